//! Version 4 of the artifact protocol: the results service, Twirp in JSON, and archives as to Azure's blob store.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};

use super::super::spec::NativeActions;
use super::http::{Came, Http, Part, Question, encode};
use super::{Call, Stop};

/// How much of an archive is sent at once, in bytes: as much as the originals send.
const BLOCK: u64 = 8 << 20;

/// An artifact of this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Artifact {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) size: String,
    /// `sha256:…`, where the server says it.
    pub(super) digest: Option<String>,
    /// Where it is had by who asks for another run's; `None` for this run's.
    pub(super) archive: Option<String>,
}

/// The service of one job.
#[derive(Debug)]
pub(super) struct Results<'c> {
    http: Http,
    base: String,
    token: &'c str,
    run: String,
    job: String,
}

impl<'c> Results<'c> {
    /// The service that the job's variables name.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn new(call: &'c Call<'_>, actions: &NativeActions, stop: &Stop) -> Result<Self, String> {
        let url = match (call.var("ACTIONS_RESULTS_URL"), &actions.artifacts) {
            (url, Some(detour)) if url == detour.announced => &detour.direct,
            (url, _) => url,
        };
        let token = call.var("ACTIONS_RUNTIME_TOKEN");
        if url.is_empty() || token.is_empty() {
            return Err(
                "there is no artifact service: ACTIONS_RESULTS_URL or ACTIONS_RUNTIME_TOKEN is not set"
                    .to_owned(),
            );
        }
        let http = Http::new(url, actions.insecure, stop)?;
        let base =
            format!("{}/twirp/github.actions.results.api.v1.ArtifactService", url.trim_end_matches('/'));
        // Servers that send no such token look at the run only.
        let (run, job) = ids(token).unwrap_or_else(|| (call.var("GITHUB_RUN_ID").to_owned(), "0".to_owned()));
        Ok(Self { http, base, token, run, job })
    }

    fn ask(&self, method: &str, mut asked: Value) -> Result<Value, String> {
        asked["workflow_run_backend_id"] = self.run.as_str().into();
        asked["workflow_job_run_backend_id"] = self.job.as_str().into();
        let url = format!("{}/{method}", self.base);
        let asked = asked.to_string();
        // As the originals do it: what goes wrong inside the server may go well the next time.
        let question = Question::new(&Method::POST, &url, self.token).json(&asked).patient();
        let answer = self.http.ask(&question)?;
        if answer.is_success() { Ok(answer.json()) } else { Err(format!("{method}: {}", answer.reason())) }
    }

    /// Opens an artifact; gives where its archive is to be sent. `plain` is the type of a file that is sent as it is.
    pub(super) fn create(
        &self,
        name: &str,
        expires: Option<&str>,
        plain: Option<&str>,
    ) -> Result<String, String> {
        let mut asked = json!({"name": name, "version": 4});
        if let Some(kind) = plain {
            // Servers from before there was such a thing refuse it, and with it what they could not give back.
            asked["version"] = 7.into();
            asked["mime_type"] = kind.into();
        }
        if let Some(expires) = expires {
            asked["expires_at"] = expires.into();
        }
        let answer = self.ask("CreateArtifact", asked).map_err(|error| match plain {
            Some(_) => {
                format!("{error}; does this server know artifacts without an archive (archive: false)?")
            }
            None => error,
        })?;
        match text(&answer, "signed_upload_url", "signedUploadUrl") {
            url if !url.is_empty() && answer["ok"] == true => Ok(url),
            _ => Err("CreateArtifact: response from backend was not ok".to_owned()),
        }
    }

    /// Sends an archive in blocks, each of which is sent again when it got lost.
    pub(super) fn send(&self, url: &str, archive: &Path, size: u64, kind: &str) -> Result<(), String> {
        let prefix = prefix()?;
        let mut blocks = String::new();
        let mut start = 0;
        while start < size {
            let length = BLOCK.min(size - start);
            let block = STANDARD.encode(format!("{prefix}{:06}", start / BLOCK));
            let address = format!("{url}&comp=block&blockid={}", encode(&block));
            let headers = [("content-type", "application/octet-stream".to_owned())];
            let part = Some(Part { path: archive, start, length });
            let question = Question::new(&Method::PUT, &address, "");
            self.put(&Question { headers: &headers, part, ..question })?;
            blocks.push_str(&format!("<Latest>{block}</Latest>"));
            start += length;
        }
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>");
        let address = format!("{url}&comp=blocklist");
        let question = Question::new(&Method::PUT, &address, "");
        let headers = [("x-ms-blob-content-type", kind.to_owned())];
        self.put(&Question { headers: &headers, text: Some(("application/xml", &list)), ..question })
    }

    fn put(&self, question: &Question<'_>) -> Result<(), String> {
        let answer = self.http.ask(question)?;
        if answer.is_success() { Ok(()) } else { Err(format!("the upload was answered {}", answer.reason())) }
    }

    /// Closes an artifact whose archive was sent; gives its id.
    pub(super) fn finalize(&self, name: &str, size: u64, digest: &str) -> Result<String, String> {
        let asked = json!({"name": name, "size": size.to_string(), "hash": format!("sha256:{digest}")});
        let answer = self.ask("FinalizeArtifact", asked)?;
        if answer["ok"] == true {
            return Ok(text(&answer, "artifact_id", "artifactId"));
        }
        Err("FinalizeArtifact: response from backend was not ok".to_owned())
    }

    /// The artifacts of this run, or those of this name.
    pub(super) fn list(&self, name: Option<&str>) -> Result<Vec<Artifact>, String> {
        let asked = name.map_or_else(|| json!({}), |name| json!({"name_filter": name}));
        let answer = self.ask("ListArtifacts", asked)?;
        let mut found: Vec<Artifact> = answer["artifacts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|artifact| Artifact {
                id: text(artifact, "database_id", "databaseId"),
                name: text(artifact, "name", "name"),
                size: text(artifact, "size", "size"),
                digest: artifact["digest"].as_str().map(str::to_owned),
                archive: None,
            })
            .collect();
        // Of those with the same name the latest counts.
        found.sort_by_key(|artifact| std::cmp::Reverse(artifact.id.parse::<u64>().unwrap_or(0)));
        let mut names = std::collections::HashSet::new();
        found.retain(|artifact| names.insert(artifact.name.clone()));
        found.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(found)
    }

    /// Where an artifact's archive can be had.
    pub(super) fn address(&self, name: &str) -> Result<String, String> {
        let answer = self.ask("GetSignedArtifactURL", json!({"name": name}))?;
        match text(&answer, "signed_url", "signedUrl") {
            url if url.is_empty() => Err("GetSignedArtifactURL: the answer holds no address".to_owned()),
            url => Ok(url),
        }
    }

    /// Removes an artifact.
    pub(super) fn delete(&self, name: &str) -> Result<(), String> {
        self.ask("DeleteArtifact", json!({"name": name})).map(|_| ())
    }

    /// Writes an artifact's archive to a file.
    pub(super) fn download(&self, artifact: &Artifact, token: &str, file: &Path) -> Result<Came, String> {
        let (url, token) = match &artifact.archive {
            Some(url) => (url.clone(), token),
            None => (self.address(&artifact.name)?, ""),
        };
        self.http.download(&Question::new(&Method::GET, &url, token), file)
    }

    /// The artifacts of another run, by the REST API.
    pub(super) fn list_of_run(
        &self,
        api: &str,
        repository: &str,
        run: &str,
        token: &str,
    ) -> Result<Vec<Artifact>, String> {
        let base = format!("{api}/repos/{repository}/actions");
        let mut found = Vec::new();
        for page in 1..=100 {
            let url = format!("{base}/runs/{run}/artifacts?limit=50&per_page=50&page={page}");
            let answer = self.http.ask(&Question::new(&Method::GET, &url, token))?;
            if !answer.is_success() {
                let reason = answer.reason();
                return Err(format!("the artifacts of run {run} of {repository}: {reason}"));
            }
            let json = answer.json();
            let list = json["artifacts"].as_array().cloned().unwrap_or_default();
            let last = list.len() < 50;
            found.extend(list.iter().map(|artifact| {
                let id = text(artifact, "id", "id");
                Artifact {
                    archive: Some(format!("{base}/artifacts/{id}/zip")),
                    name: text(artifact, "name", "name"),
                    size: text(artifact, "size_in_bytes", "sizeInBytes"),
                    digest: artifact["digest"].as_str().map(str::to_owned),
                    id,
                }
            }));
            if last {
                break;
            }
        }
        Ok(found)
    }
}

/// A value by either spelling of its name, numbers too.
fn text(value: &Value, snake: &str, camel: &str) -> String {
    let found = if value[snake].is_null() { &value[camel] } else { &value[snake] };
    match found {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// What the names of one upload's blocks begin with. Gitea keeps the blocks of all artifacts of a run side by side: of
/// two jobs that send at the same time, one would find the other's block under a name that both have.
fn prefix() -> Result<String, String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| format!("no random number: {error}"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Run and job as the token's claim `scp` has them: `Actions.Results:RUN:JOB`.
fn ids(token: &str) -> Option<(String, String)> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    claims["scp"].as_str()?.split(' ').find_map(|scope| {
        let (run, job) = scope.strip_prefix("Actions.Results:")?.split_once(':')?;
        Some((run.to_owned(), job.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_two_uploads_have_no_name_in_common() {
        let (one, other) = (prefix().unwrap(), prefix().unwrap());
        assert_eq!((one.len(), other.len()), (32, 32));
        assert_ne!(one, other);
    }

    #[test]
    fn run_and_job_are_in_the_token() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let found = ids(&token(r#"{"scp":"Actions.Other:1 Actions.Results:21:49"}"#));
        assert_eq!(found, Some(("21".to_owned(), "49".to_owned())));
        assert_eq!(ids(&token("{}")), None);
        assert_eq!(ids("plain"), None);
    }
}
