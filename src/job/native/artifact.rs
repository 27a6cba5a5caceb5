//! `actions/upload-artifact` and `actions/download-artifact`, by version 3 and version 4 of the protocol.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::glob::{Glob, Options};
use super::names::NamePattern;
use super::pipeline::Pipeline;
use super::results::{Artifact, Results};
use super::zip::{self, Member};
use super::{Call, Executor, Handed, Problem, integer, major};

pub(super) const UPLOAD_INPUTS: [&str; 8] = [
    "name",
    "path",
    "if-no-files-found",
    "retention-days",
    "compression-level",
    "overwrite",
    "include-hidden-files",
    "archive",
];

pub(super) const DOWNLOAD_INPUTS: [&str; 10] = [
    "name",
    "artifact-ids",
    "path",
    "pattern",
    "merge-multiple",
    "github-token",
    "repository",
    "run-id",
    "skip-decompress",
    "digest-mismatch",
];

/// What is refused in names: file systems elsewhere cannot have it.
const REFUSED: [(char, &str); 9] = [
    ('"', "Double quote \""),
    (':', "Colon :"),
    ('<', "Less than <"),
    ('>', "Greater than >"),
    ('|', "Vertical bar |"),
    ('*', "Asterisk *"),
    ('?', "Question mark ?"),
    ('\r', "Carriage return \\r"),
    ('\n', "Line feed \\n"),
];

fn step(message: impl Into<String>) -> Problem {
    Problem::Step(message.into())
}

/// Says why a name cannot be that of an artifact, or of a file in one.
fn check_name(name: &str, artifact: bool) -> Result<(), Problem> {
    let more = [('\\', "Backslash \\"), ('/', "Forward slash /")];
    let refused = REFUSED.iter().chain(if artifact { &more[..] } else { &[] });
    let what = if artifact { "artifact name" } else { "path for one of the files in artifact" };
    if name.is_empty() {
        return Err(step(format!("The {what} is empty")));
    }
    for (character, words) in refused {
        if name.contains(*character) {
            return Err(step(format!(
                "The {what} is not valid: {name}. Contains the following character: {words}. Such characters are not \
                 allowed, since certain file systems cannot have them."
            )));
        }
    }
    Ok(())
}

/// Files to upload, and the folder that their names are counted from.
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    root: PathBuf,
}

/// How an artifact is stored.
pub(super) struct Storing {
    /// Days, `None` for as long as the server wants.
    retention: Option<u32>,
    /// Of the compression, 0 to 9; `None` sends the one file as it is.
    pub(super) level: Option<u8>,
    /// In place of one with this name.
    pub(super) overwrite: bool,
}

impl Storing {
    /// What the inputs say that all versions have.
    pub(super) fn new(call: &Call<'_>) -> Result<Self, Problem> {
        let retention = match call.input("retention-days") {
            "" => None,
            text => Some(integer(text).and_then(|days| u32::try_from(days).ok()))
                .map(|days| days.ok_or_else(|| step("Invalid retention-days")))
                .transpose()?
                .filter(|days| *days > 0),
        };
        let level = match call.input("compression-level") {
            "" => 6,
            text => {
                let level = integer(text).ok_or_else(|| step("Invalid compression-level"))?;
                u8::try_from(level)
                    .ok()
                    .filter(|level| *level <= 9)
                    .ok_or_else(|| step("Invalid compression-level. Valid values are 0-9"))?
            }
        };
        Ok(Self { retention, level: Some(level), overwrite: false })
    }
}

impl Executor<'_> {
    /// The files that patterns stand for.
    pub(super) fn find_files(
        &mut self,
        call: &Call<'_>,
        patterns: &str,
        hidden: bool,
    ) -> Result<Found, Problem> {
        let options = Options { descendants: true, skip_hidden: !hidden };
        let glob = Glob::new(patterns, call.workspace(), call.home(), options).map_err(Problem::Step)?;
        let found = glob.find().map_err(|error| step(error.to_string()))?;
        let files: Vec<PathBuf> =
            found.into_iter().filter(|found| !found.directory).map(|found| found.path).collect();
        let mut seen = HashSet::new();
        for file in &files {
            if !seen.insert(file.to_string_lossy().to_lowercase()) {
                self.log.text(&format!(
                    "Uploads are case insensitive: {} was detected that it will be overwritten by another file with \
                     the same path",
                    file.display()
                ))?;
            }
        }
        let paths = glob.search_paths();
        let root = match &paths[..] {
            [] => call.workspace().to_owned(),
            [path] if files.len() == 1 && files[0] == *path => path.parent().unwrap_or(path).to_owned(),
            [path] => path.clone(),
            several => {
                let root = common(several);
                self.log.text(
                    "Multiple search paths detected. Calculating the least common ancestor of all paths",
                )?;
                self.log.text(&format!(
                    "The least common ancestor is {}. This will be the root directory of the artifact",
                    root.display()
                ))?;
                root
            }
        };
        Ok(Found { files, root })
    }

    /// `actions/upload-artifact`.
    pub(super) fn upload_artifact(&mut self, call: &Call<'_>, v3: bool) -> Result<Handed, Problem> {
        let hidden = call.flag("include-hidden-files", false)?;
        let overwrite = call.flag("overwrite", false)?;
        let archive = call.flag("archive", true)?;
        let missing = match call.input("if-no-files-found") {
            "" => "warn",
            known @ ("warn" | "error" | "ignore") => known,
            other => {
                return Err(step(format!(
                    "Unrecognized if-no-files-found input. Provided: {other}. Available options: warn,error,ignore"
                )));
            }
        };
        let mut storing = Storing { overwrite, ..Storing::new(call)? };
        let found = self.find_files(call, call.required("path")?, hidden)?;
        if found.files.is_empty() {
            let message = format!(
                "No files were found with the provided path: {}. No artifacts will be uploaded.",
                call.input("path")
            );
            match missing {
                "error" => return Err(step(message)),
                "warn" => self.log.warning(&message)?,
                _ => self.log.text(&message)?,
            }
            return Ok(Handed::default());
        }
        let count = found.files.len();
        let plural = if count == 1 { "" } else { "s" };
        self.log.text(&format!("With the provided path, there will be {count} file{plural} uploaded"))?;
        let mut name = call.given("name").unwrap_or("artifact").to_owned();
        if !archive && !v3 {
            let [file] = &found.files[..] else {
                return Err(step(format!(
                    "When 'archive' is set to false, only a single file can be uploaded. Found {count} files to \
                     upload."
                )));
            };
            name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            storing.level = None;
        }
        if !v3 {
            return self.store(call, &name, &found, storing);
        }
        check_name(&name, true)?;
        let members = members(&found)?;
        self.log.flush()?;
        let retention = self.limit_retention(call, storing.retention)?;
        self.upload_v3(call, &name, &members, retention)
    }

    /// Days, at most as many as the server keeps artifacts.
    fn limit_retention(&mut self, call: &Call<'_>, days: Option<u32>) -> Result<Option<u32>, Problem> {
        let Some(days) = days else { return Ok(None) };
        match call.var("GITHUB_RETENTION_DAYS").parse::<u32>() {
            Ok(most) if most > 0 && most < days => {
                self.log.warning(&format!(
                    "Retention days cannot be greater than the maximum allowed retention set within the repository. \
                     Using {most} instead."
                ))?;
                Ok(Some(most))
            }
            _ => Ok(Some(days)),
        }
    }

    fn upload_v3(
        &mut self,
        call: &Call<'_>,
        name: &str,
        members: &[Member],
        retention: Option<u32>,
    ) -> Result<Handed, Problem> {
        let pipeline = Pipeline::new(call, self.spec.actions.native.insecure).map_err(Problem::Step)?;
        let scratch = self.scratch()?;
        let size = pipeline
            .upload(name, members, retention, scratch.path())
            .map_err(|error| step(format!("Artifact {name} could not be uploaded: {error}")))?;
        self.log.text(&format!("Total size of all the files uploaded is {size} bytes"))?;
        self.log.text(&format!("Artifact {name} has been successfully uploaded!"))?;
        Ok(Handed::default())
    }

    /// Uploads by version 4 of the protocol.
    pub(super) fn store(
        &mut self,
        call: &Call<'_>,
        name: &str,
        found: &Found,
        storing: Storing,
    ) -> Result<Handed, Problem> {
        check_name(name, true)?;
        let members = members(found)?;
        self.log.flush()?;
        let failed = |error: String| step(format!("Artifact {name} could not be uploaded: {error}"));
        let results = Results::new(call, &self.spec.actions.native, &call.stop).map_err(failed)?;
        if storing.overwrite && !results.list(Some(name)).unwrap_or_default().is_empty() {
            // As the original: what cannot be removed is told by the upload.
            let _ = results.delete(name);
        }
        let expires = self.limit_retention(call, storing.retention)?.map(expiry);
        let kind = match storing.level {
            Some(_) => zip::TYPE,
            None => content_type(name),
        };
        let plain = storing.level.is_none().then_some(kind);
        let url = results.create(name, expires.as_deref(), plain).map_err(failed)?;
        let scratch = self.scratch()?;
        let packed = scratch.path().join("artifact.zip");
        let (path, size, digest) = match (storing.level, &members[..]) {
            (Some(level), _) => {
                let (size, digest) = zip::pack(&packed, &members, level, &call.stop)
                    .map_err(|error| failed(error.to_string()))?;
                (packed.as_path(), size, digest)
            }
            (None, [only, ..]) => {
                let (size, digest) = zip::digest(&only.path).map_err(|error| failed(error.to_string()))?;
                (only.path.as_path(), size, digest)
            }
            (None, []) => return Err(failed("there is no file".to_owned())),
        };
        self.log.text(&format!("SHA256 digest of uploaded artifact is {digest}"))?;
        self.log.flush()?;
        results.send(&url, path, size, kind).map_err(failed)?;
        let id = results.finalize(name, size, &digest).map_err(failed)?;
        self.log.text(&format!(
            "Artifact {name} has been successfully uploaded! Final size is {size} bytes. Artifact ID is {id}"
        ))?;
        let address = format!(
            "{}/{}/actions/runs/{}/artifacts/{id}",
            call.var("GITHUB_SERVER_URL").trim_end_matches('/'),
            call.var("GITHUB_REPOSITORY"),
            call.var("GITHUB_RUN_ID")
        );
        self.log.text(&format!("Artifact download URL: {address}"))?;
        let mut handed = Handed::default();
        for (output, value) in [("artifact-id", id), ("artifact-digest", digest), ("artifact-url", address)] {
            handed.outputs.insert(output.to_owned(), value);
        }
        Ok(handed)
    }

    /// `actions/download-artifact`.
    pub(super) fn download_artifact(&mut self, call: &Call<'_>, v3: bool) -> Result<Handed, Problem> {
        let path = match call.input("path") {
            "" => call.workspace().to_owned(),
            text => match text.strip_prefix('~') {
                Some(rest) => PathBuf::from(format!("{}{rest}", call.home().display())),
                None => call.workspace().join(text),
            },
        };
        let path = plain(&path);
        let done = if v3 { self.download_v3(call, &path) } else { self.download_v4(call, &path) };
        done.map_err(|problem| match problem {
            Problem::Step(message) => step(format!("Unable to download artifact(s): {message}")),
            sink @ Problem::Sink(_) => sink,
        })?;
        let mut handed = Handed::default();
        handed.outputs.insert("download-path".to_owned(), path.to_string_lossy().into_owned());
        self.log.text("Download artifact has finished successfully")?;
        Ok(handed)
    }

    fn download_v3(&mut self, call: &Call<'_>, path: &Path) -> Result<(), Problem> {
        let pipeline = Pipeline::new(call, self.spec.actions.native.insecure).map_err(Problem::Step)?;
        let name = call.input("name");
        let all = pipeline.list().map_err(Problem::Step)?;
        let wanted: Vec<_> = all.iter().filter(|(found, _)| name.is_empty() || found == name).collect();
        if wanted.is_empty() && !name.is_empty() {
            return Err(step(format!("Artifact {name} was not found")));
        }
        if name.is_empty() {
            self.log.text("No artifact name specified, downloading all artifacts")?;
            self.log.text("Creating an extra directory for each artifact that is being downloaded")?;
        }
        for (found, container) in wanted {
            let folder = if name.is_empty() { path.join(folder_name(found)?) } else { path.to_owned() };
            let items = pipeline.items(found, container).map_err(Problem::Step)?;
            for item in &items {
                let file = folder.join(&item.name);
                if let Some(parent) = file.parent() {
                    fs::create_dir_all(parent)
                        .map_err(|error| step(format!("{}: {error}", parent.display())))?;
                }
                pipeline.download(item, &file).map_err(Problem::Step)?;
            }
            let (count, folder) = (items.len(), folder.display());
            self.log.text(&format!("Artifact {found} was downloaded to {folder} ({count} files)"))?;
        }
        Ok(())
    }

    fn download_v4(&mut self, call: &Call<'_>, path: &Path) -> Result<(), Problem> {
        let merge = call.flag("merge-multiple", false)?;
        let skip_decompress = call.flag("skip-decompress", false)?;
        let mismatch = match call.input("digest-mismatch") {
            "" => "error",
            known @ ("ignore" | "info" | "warn" | "error") => known,
            other => {
                return Err(step(format!(
                    "Invalid value for 'digest-mismatch': '{other}'. Valid options are: ignore, info, warn, error"
                )));
            }
        };
        let name = call.input("name");
        if !name.is_empty() && !call.input("artifact-ids").is_empty() {
            return Err(step(
                "Inputs 'name' and 'artifact-ids' cannot be used together. Please specify only one.",
            ));
        }
        let results = Results::new(call, &self.spec.actions.native, &call.stop).map_err(Problem::Step)?;
        let token = call.input("github-token");
        self.log.masker.add(token);
        let artifacts = self.choose_artifacts(call, &results, token)?;
        if !artifacts.is_empty() {
            self.log.text("Preparing to download the following artifacts:")?;
        }
        for artifact in &artifacts {
            let Artifact { name, id, size, .. } = artifact;
            self.log.text(&format!("- {name} (ID: {id}, Size: {size})"))?;
        }
        self.log.flush()?;
        let version = call.uses.rsplit('@').next().and_then(major);
        let since = |first: u32| version.is_none_or(|version| version >= first);
        let single = !name.is_empty() || merge || (artifacts.len() == 1 && since(5));
        let scratch = self.scratch()?;
        let archive = scratch.path().join("artifact.zip");
        let mut wrong = Vec::new();
        for artifact in &artifacts {
            let folder = if single { path.to_owned() } else { path.join(folder_name(&artifact.name)?) };
            let failed = |error: String| step(format!("{}: {error}", artifact.name));
            fs::create_dir_all(&folder).map_err(|error| step(format!("{}: {error}", folder.display())))?;
            let came = results.download(artifact, token, &archive).map_err(failed)?;
            let (_, digest) = zip::digest(&archive).map_err(|error| failed(error.to_string()))?;
            let expected = artifact.digest.as_deref().map(|digest| digest.trim_start_matches("sha256:"));
            if expected.is_some_and(|expected| !expected.is_empty() && expected != digest) {
                let message = format!(
                    "Artifact '{}' digest validation failed. Please verify the integrity of the artifact.",
                    artifact.name
                );
                match mismatch {
                    "info" => self.log.text(&message)?,
                    "warn" => self.log.warning(&message)?,
                    "error" => wrong.push(artifact.name.clone()),
                    _ => {}
                }
            }
            // What was uploaded without an archive is had without one, since version 8.
            let packed = !since(8) || zip::is_archive(came.kind.as_deref(), &came.path, &archive);
            if skip_decompress || !packed {
                let name =
                    came.name.as_deref().unwrap_or(if packed { "artifact.zip" } else { &artifact.name });
                let to = folder.join(folder_name(name)?);
                fs::copy(&archive, &to).map_err(|error| step(format!("{}: {error}", to.display())))?;
            } else {
                zip::unpack(&archive, &folder, &call.stop).map_err(|error| failed(error.to_string()))?;
            }
            self.log.text(&format!("Artifact {} was downloaded to {}", artifact.name, folder.display()))?;
        }
        if !wrong.is_empty() {
            return Err(step(format!(
                "Digest validation failed for artifact(s): {}. Use 'digest-mismatch: warn' to continue on mismatch.",
                wrong.join(", ")
            )));
        }
        self.log.text(&format!("Total of {} artifact(s) downloaded", artifacts.len()))?;
        Ok(())
    }

    /// What the inputs ask for.
    fn choose_artifacts(
        &mut self,
        call: &Call<'_>,
        results: &Results<'_>,
        token: &str,
    ) -> Result<Vec<Artifact>, Problem> {
        let name = call.input("name");
        let or = |input: &str, variable: &str| match call.input(input) {
            "" => call.var(variable).to_owned(),
            given => given.to_owned(),
        };
        let mut all = if token.is_empty() {
            results.list((!name.is_empty()).then_some(name))
        } else {
            let repository = or("repository", "GITHUB_REPOSITORY");
            if repository.split('/').filter(|part| !part.is_empty()).count() != 2 {
                return Err(step(format!(
                    "Invalid repository: '{repository}'. Must be in format owner/repo"
                )));
            }
            let run = or("run-id", "GITHUB_RUN_ID");
            results.list_of_run(call.var("GITHUB_API_URL"), &repository, &run, token)
        }
        .map_err(Problem::Step)?;
        if !name.is_empty() {
            self.log.text("Downloading single artifact")?;
            all.retain(|artifact| artifact.name == name);
            return if all.is_empty() {
                Err(step(format!("Artifact not found for name: {name}")))
            } else {
                all.truncate(1);
                Ok(all)
            };
        }
        let ids: Vec<&str> =
            call.input("artifact-ids").split(',').map(str::trim).filter(|id| !id.is_empty()).collect();
        if !call.input("artifact-ids").is_empty() {
            self.log.text("Downloading artifacts by ID")?;
            if ids.is_empty() {
                return Err(step("No valid artifact IDs provided in 'artifact-ids' input"));
            }
            if let Some(wrong) = ids.iter().find(|id| id.parse::<u64>().is_err()) {
                return Err(step(format!("Invalid artifact ID: '{wrong}'. Must be a number.")));
            }
            all.retain(|artifact| ids.contains(&artifact.id.as_str()));
            if all.is_empty() {
                return Err(step("None of the provided artifact IDs were found"));
            }
            let lost: Vec<&str> =
                ids.into_iter().filter(|id| !all.iter().any(|artifact| artifact.id == *id)).collect();
            if !lost.is_empty() {
                let lost = lost.join(", ");
                self.log.warning(&format!("Could not find the following artifact IDs: {lost}"))?;
            }
            return Ok(all);
        }
        match call.input("pattern") {
            "" => {
                self.log.text(
                    "No input name, artifact-ids or pattern filtered specified, downloading all artifacts",
                )?;
                if !call.flag("merge-multiple", false)? {
                    self.log.text(
                        "An extra directory with the artifact name will be created for each download",
                    )?;
                }
            }
            pattern => {
                self.log.text(&format!("Filtering artifacts by pattern '{pattern}'"))?;
                let pattern = NamePattern::new(pattern).map_err(Problem::Step)?;
                all.retain(|artifact| pattern.matches(&artifact.name));
            }
        }
        Ok(all)
    }
}

/// The names that files have in an artifact.
fn members(found: &Found) -> Result<Vec<Member>, Problem> {
    let member = |path: &PathBuf| {
        let inner = path.strip_prefix(&found.root).map_err(|_| {
            let (root, file) = (found.root.display(), path.display());
            step(format!("The rootDirectory: {root} is not a parent directory of the file: {file}"))
        })?;
        let name = inner.to_string_lossy().into_owned();
        check_name(&name, false)?;
        Ok(Member { path: path.clone(), name })
    };
    found.files.iter().map(member).collect()
}

/// The time at which so many days are over, as Protobuf's JSON has it.
fn expiry(days: u32) -> String {
    let now = jiff::Timestamp::now();
    let end = now.checked_add(jiff::SignedDuration::from_hours(i64::from(days) * 24)).unwrap_or(now);
    end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What a file is, by the end of its name; browsers are shown it as that.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or(String::new(), |(_, end)| end.to_ascii_lowercase()).as_str() {
        "txt" | "log" => "text/plain",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "csv" => "text/csv",
        "xml" => "text/xml",
        "md" => "text/markdown",
        "json" => "application/json",
        "js" | "mjs" => "application/javascript",
        "yaml" | "yml" => "application/x-yaml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        "zip" => zip::TYPE,
        "tar" => "application/x-tar",
        "gz" | "tgz" => "application/gzip",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

/// An artifact's name as that of a folder: a server might say anything.
pub(super) fn folder_name(name: &str) -> Result<&str, Problem> {
    if name.is_empty() || name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
        return Err(step(format!("{name:?} cannot be the name of a folder")));
    }
    Ok(name)
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// The longest path that all these lie below.
fn common(paths: &[PathBuf]) -> PathBuf {
    let mut common = paths.first().cloned().unwrap_or_default();
    for path in paths {
        while !path.starts_with(&common) && common.pop() {}
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_other_file_systems_cannot_have_are_refused() {
        assert!(check_name("build-1.2 (x86)", true).is_ok());
        for wrong in ["", "a/b", "a:b", "a\\b", "a*", "a\nb"] {
            assert!(check_name(wrong, true).is_err(), "{wrong:?}");
        }
        assert!(check_name("dir/file", false).is_ok());
        assert!(check_name("dir/fi?le", false).is_err());
        assert!(folder_name("..").is_err());
    }

    #[test]
    fn the_root_is_what_all_have_in_common() {
        let of = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            common(&paths).display().to_string()
        };
        assert_eq!(of(&["/w/a/b", "/w/a/c"]), "/w/a");
        assert_eq!(of(&["/w/ab", "/w/a"]), "/w");
        assert_eq!(of(&["/x", "/y"]), "/");
        assert_eq!(plain(Path::new("/w/./a/../b")), Path::new("/w/b"));
    }

    #[test]
    fn days_become_a_time() {
        let text = expiry(1);
        assert!(text.ends_with('Z') && text.len() == 20, "{text}");
    }
}
