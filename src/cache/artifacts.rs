//! Artifacts of a local run, so that one job can hand files to the next without a server.
//!
//! Speaks version 4 of the protocol as Gitea serves it (Twirp in JSON, archives as to Azure's blob store), and version
//! 3. They live as long as the run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::header::{CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::reply::{
    Answer, Refusal, encode, field, file, json as reply, next, number_field, parameter, question, text,
    text_field,
};
use super::server::Site;
use super::v2::{block_list, created};

/// The artifacts of one run.
#[derive(Debug)]
pub struct Artifacts {
    directory: PathBuf,
    known: Mutex<BTreeMap<String, Artifact>>,
}

/// One artifact, or one file of an artifact of version 3 (`name/path`).
#[derive(Debug, Clone)]
struct Artifact {
    id: u64,
    size: Option<u64>,
    gzip: bool,
    v3: bool,
    /// `sha256:…`, as the client says.
    digest: Option<String>,
    /// What the archive, or the file that was sent without one, is.
    kind: String,
    /// When it was made, as Protobuf's JSON has it.
    created: String,
}

/// What archives are.
const ZIP: &str = "application/zip";

impl Artifacts {
    /// Artifacts that are kept in this directory, which is made when it is needed.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Artifact>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: u64, block: Option<&str>) -> PathBuf {
        let end = block.map_or_else(String::new, |block| {
            format!(".{}", block.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
        });
        self.directory.join(format!("{id}{end}"))
    }

    fn add(&self, name: &str, v3: bool, kind: &str) -> std::io::Result<u64> {
        fs::create_dir_all(&self.directory)?;
        let mut known = self.known();
        if let (true, Some(artifact)) = (v3, known.get(name)) {
            return Ok(artifact.id);
        }
        let id = known.values().map(|artifact| artifact.id).max().unwrap_or(0) + 1;
        File::create(self.file(id, None))?;
        let created = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let kind = kind.to_owned();
        known.insert(
            name.to_owned(),
            Artifact { id, size: None, gzip: false, v3, digest: None, kind, created },
        );
        Ok(id)
    }
}

fn missing() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such artifact")
}

/// Answers a method of the service.
pub(super) async fn serve(site: &Site, artifacts: &Artifacts, method: &str, mut body: Incoming) -> Answer {
    let asked = question(&mut body).await?;
    let name = text_field(&asked, "name");
    let address = |id: u64| site.signed(&format!("/artifact/{id}"));
    let done = || artifacts.known().get(name).filter(|artifact| artifact.size.is_some()).cloned();
    let answer = match method {
        "CreateArtifact" => {
            if done().is_some() {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "an artifact with this name already exists on the workflow run",
                ));
            }
            let kind = match text_field(&asked, "mime_type") {
                "" => ZIP,
                kind => kind,
            };
            let id = artifacts.add(name, false, kind)?;
            json!({"ok": true, "signedUploadUrl": address(id)})
        }
        "FinalizeArtifact" => {
            let mut known = artifacts.known();
            let artifact = known.get_mut(name).ok_or_else(missing)?;
            let size = fs::metadata(artifacts.file(artifact.id, None))?.len();
            if number_field(&asked, "size").is_some_and(|said| said != size) {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("{size} bytes have come")));
            }
            artifact.size = Some(size);
            artifact.digest = Some(text_field(&asked, "hash").to_owned()).filter(|hash| !hash.is_empty());
            json!({"ok": true, "artifactId": artifact.id.to_string()})
        }
        "ListArtifacts" => {
            let by_name = field(&asked, "name_filter").and_then(Value::as_str);
            let by_id = number_field(&asked, "id_filter");
            let known = artifacts.known();
            let list: Vec<Value> = known
                .iter()
                .filter(|(name, artifact)| {
                    !artifact.v3
                        && by_name.is_none_or(|wanted| wanted == name.as_str())
                        && by_id.is_none_or(|wanted| wanted == artifact.id)
                })
                .filter_map(|(name, artifact)| {
                    let mut row = json!({
                        "workflowRunBackendId": text_field(&asked, "workflow_run_backend_id"),
                        "workflowJobRunBackendId": text_field(&asked, "workflow_job_run_backend_id"),
                        "databaseId": artifact.id.to_string(),
                        "name": name,
                        "size": artifact.size?.to_string(),
                        "createdAt": artifact.created,
                    });
                    if let Some(digest) = &artifact.digest {
                        row["digest"] = digest.as_str().into();
                    }
                    Some(row)
                })
                .collect();
            json!({"artifacts": list})
        }
        "GetSignedArtifactURL" => json!({"signedUrl": address(done().ok_or_else(missing)?.id)}),
        "DeleteArtifact" => {
            let gone = done().ok_or_else(missing)?;
            artifacts.known().remove(name);
            let _ = fs::remove_file(artifacts.file(gone.id, None));
            json!({"ok": true, "artifactId": gone.id.to_string()})
        }
        _ => return Err(Refusal::not_found()),
    };
    Ok(reply(StatusCode::OK, &answer))
}

/// Takes an archive or gives it out, at a signed address.
pub(super) async fn blob(artifacts: &Artifacts, id: &str, request: Request<Incoming>) -> Answer {
    let id: u64 = id.parse().map_err(|_| Refusal::not_found())?;
    let (parts, mut body) = request.into_parts();
    let whole = artifacts.file(id, None);
    if parts.method != Method::PUT {
        let mut response = file(&whole, &parts.headers, parts.method == Method::HEAD)?;
        let known = artifacts.known();
        if let Some((name, artifact)) = known.iter().find(|(_, artifact)| artifact.id == id) {
            let end = if artifact.kind == ZIP && !name.to_ascii_lowercase().ends_with(".zip") {
                ".zip"
            } else {
                ""
            };
            let disposition = format!("attachment; filename*=UTF-8''{}", encode(&format!("{name}{end}")));
            for (header, value) in [(CONTENT_TYPE, &artifact.kind), (CONTENT_DISPOSITION, &disposition)] {
                if let Ok(value) = HeaderValue::from_str(value) {
                    response.headers_mut().insert(header, value);
                }
            }
        }
        return Ok(response);
    }
    let query = parts.uri.query();
    if parameter(query, "comp") == "blocklist" {
        let list = text(&mut body).await?;
        let mut out = File::create(&whole)?;
        for block in block_list(&String::from_utf8_lossy(&list)) {
            let path = artifacts.file(id, Some(&block));
            std::io::copy(&mut File::open(&path)?, &mut out)?;
            fs::remove_file(&path)?;
        }
        return Ok(created());
    }
    let block = parameter(query, "blockid");
    let path = if block.is_empty() { whole } else { artifacts.file(id, Some(&block)) };
    let mut out = match parameter(query, "comp").as_str() {
        "block" | "appendBlock" if block.is_empty() => File::options().append(true).open(&path)?,
        _ => File::create(&path)?,
    };
    while let Some(piece) = next(&mut body).await {
        out.write_all(&piece?)?;
    }
    Ok(created())
}

/// Version 3: `RUN/artifacts…`; every file of an artifact is sent and had by itself.
pub(super) async fn serve_v3(
    site: &Site,
    artifacts: &Artifacts,
    path: &str,
    request: Request<Incoming>,
) -> Answer {
    let (parts, mut body) = request.into_parts();
    let query = parts.uri.query();
    let (run, rest) = path.split_once("/artifacts").ok_or_else(Refusal::not_found)?;
    let base = site.address(&format!("/_apis/pipelines/workflows/{run}/artifacts"));
    let item = parameter(query, "itemPath");
    match (&parts.method, rest.trim_start_matches('/').split_once('/')) {
        (&Method::POST, None) => {
            let asked = question(&mut body).await?;
            let name = text_field(&asked, "Name");
            Ok(reply(
                StatusCode::OK,
                &json!({"fileContainerResourceUrl": format!("{base}/{}/upload", hex(name))}),
            ))
        }
        (&Method::PUT, Some((_, "upload"))) => {
            let id = artifacts.add(&item, true, "")?;
            let range = parts.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
            let mut out = File::options().write(true).open(artifacts.file(id, None))?;
            out.seek(SeekFrom::Start(start.unwrap_or(0)))?;
            while let Some(piece) = next(&mut body).await {
                out.write_all(&piece?)?;
            }
            let gzip = parts.headers.get(CONTENT_ENCODING).is_some_and(|value| value == "gzip");
            if let Some(artifact) = artifacts.known().get_mut(&item) {
                artifact.gzip = gzip;
                artifact.size = Some(out.metadata()?.len());
            }
            Ok(reply(StatusCode::OK, &json!({"message": "success"})))
        }
        (&Method::PATCH, None) => Ok(reply(StatusCode::OK, &json!({"message": "success"}))),
        (&Method::GET, None) => {
            let known = artifacts.known();
            let mut names: Vec<&str> = known
                .iter()
                .filter(|(_, artifact)| artifact.v3)
                .filter_map(|(item, _)| item.split('/').next())
                .collect();
            names.dedup();
            if names.is_empty() {
                return Err(missing());
            }
            let list: Vec<Value> = names
                .iter()
                .map(|name| {
                    json!({"name": name, "fileContainerResourceUrl": format!("{base}/{}/download_url", hex(name))})
                })
                .collect();
            Ok(reply(StatusCode::OK, &json!({"count": list.len(), "value": list})))
        }
        (&Method::GET, Some((_, "download_url"))) => {
            let known = artifacts.known();
            let prefix = format!("{item}/");
            let list: Vec<Value> = known
                .iter()
                .filter(|(path, artifact)| artifact.v3 && path.starts_with(&prefix))
                .map(|(path, artifact)| {
                    let location = format!("{base}/{}/download", artifact.id);
                    json!({"path": path, "itemType": "file", "contentLocation": location})
                })
                .collect();
            if list.is_empty() { Err(missing()) } else { Ok(reply(StatusCode::OK, &json!({"value": list}))) }
        }
        (&Method::GET, Some((id, "download"))) => {
            let id: u64 = id.parse().map_err(|_| missing())?;
            let gzip = artifacts.known().values().any(|artifact| artifact.id == id && artifact.gzip);
            let mut response = file(&artifacts.file(id, None), &parts.headers, false)?;
            if gzip {
                response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            Ok(response)
        }
        _ => Err(Refusal::not_found()),
    }
}

/// Clients treat it as opaque; Gitea has the MD5 of the name here.
fn hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}
