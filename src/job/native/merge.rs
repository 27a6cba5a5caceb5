//! `actions/upload-artifact/merge`: several artifacts of the run become one.

use std::fs;

use super::artifact::{Storing, folder_name};
use super::names::NamePattern;
use super::results::Results;
use super::{Call, Executor, Handed, Problem, zip};

pub(super) const INPUTS: [&str; 7] = [
    "name",
    "pattern",
    "separate-directories",
    "retention-days",
    "compression-level",
    "delete-merged",
    "include-hidden-files",
];

fn step(message: impl Into<String>) -> Problem {
    Problem::Step(message.into())
}

impl Executor<'_> {
    /// `actions/upload-artifact/merge`.
    pub(super) fn merge_artifacts(&mut self, call: &Call<'_>) -> Result<Handed, Problem> {
        let or = |input: &str, default: &'static str| match call.given(input) {
            None => Ok(default.to_owned()),
            Some("") => Err(step(format!("Input required and not supplied: {input}"))),
            Some(given) => Ok(given.to_owned()),
        };
        let (name, pattern) = (or("name", "merged-artifacts")?, or("pattern", "*")?);
        let separate = call.flag("separate-directories", false)?;
        let delete = call.flag("delete-merged", false)?;
        let hidden = call.flag("include-hidden-files", false)?;
        let storing = Storing::new(call)?;
        let results = Results::new(call, &self.spec.actions.native, &call.stop).map_err(Problem::Step)?;
        let matcher = NamePattern::new(&pattern).map_err(Problem::Step)?;
        let mut artifacts = results.list(None).map_err(Problem::Step)?;
        artifacts.retain(|artifact| matcher.matches(&artifact.name));
        if artifacts.is_empty() {
            return Err(step(format!("No artifacts found matching pattern '{pattern}'")));
        }
        self.log.text("Preparing to download the following artifacts:")?;
        for artifact in &artifacts {
            self.log.text(&format!("- {} (ID: {}, Size: {})", artifact.name, artifact.id, artifact.size))?;
        }
        self.log.flush()?;
        let scratch = self.scratch()?;
        let (archive, all) = (scratch.path().join("artifact.zip"), scratch.path().join("merged"));
        for artifact in &artifacts {
            let folder = if separate { all.join(folder_name(&artifact.name)?) } else { all.clone() };
            let failed = |error: String| step(format!("{}: {error}", artifact.name));
            fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
            let came = results.download(artifact, "", &archive).map_err(failed)?;
            if zip::is_archive(came.kind.as_deref(), &came.path, &archive) {
                zip::unpack(&archive, &folder, &call.stop).map_err(|error| failed(error.to_string()))?;
            } else {
                let to = folder.join(folder_name(came.name.as_deref().unwrap_or(&artifact.name))?);
                fs::copy(&archive, &to).map_err(|error| failed(error.to_string()))?;
            }
        }
        let found = self.find_files(call, &super::glob::literal(&all), hidden)?;
        if found.files.is_empty() {
            return Err(step("The artifacts hold no files that could be merged"));
        }
        let handed = self.store(call, &name, &found, storing)?;
        let count = artifacts.len();
        self.log.text(&format!("The {count} artifact(s) have been successfully merged!"))?;
        if delete {
            for artifact in &artifacts {
                results.delete(&artifact.name).map_err(Problem::Step)?;
            }
            self.log.text(&format!("The {count} artifact(s) have been deleted"))?;
        }
        Ok(handed)
    }
}
