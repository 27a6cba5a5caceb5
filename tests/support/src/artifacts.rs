//! The artifact routes of Gitea: version 4 (Twirp in JSON, archives in blocks) and version 3 (each file by itself).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method as Verb, Request, Response, StatusCode};
use serde_json::{Value as Json, json};

use crate::http::{Abort, Body, Site, bytes, collect, header, json as reply, parameter, text};
use crate::state::Status;

/// What clients of version 4 put before each method's name.
pub(crate) const TWIRP: &str = "/twirp/github.actions.results.api.v1.ArtifactService/";
/// What clients of version 3 put before the number of the run.
pub(crate) const PIPELINES: &str = "/api/actions_pipeline/_apis/pipelines/workflows/";

/// One artifact of version 4, or one file of version 3.
#[derive(Debug, Default, Clone)]
struct Artifact {
    id: i64,
    run: i64,
    name: String,
    /// The file's name in the artifact; of version 4 the archive's.
    path: String,
    body: Vec<u8>,
    gzip: bool,
    v4: bool,
    confirmed: bool,
}

/// All artifacts.
#[derive(Debug, Default)]
pub(crate) struct Artifacts {
    all: Mutex<Store>,
}

#[derive(Debug, Default)]
struct Store {
    artifacts: Vec<Artifact>,
    blocks: BTreeMap<(i64, String), Vec<u8>>,
    /// Which artifact of a run a block of this name belonged to.
    names: BTreeMap<(i64, String), i64>,
}

impl Artifacts {
    fn lock(&self) -> std::sync::MutexGuard<'_, Store> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    fn add(&mut self, run: i64, name: &str, path: &str, v4: bool) -> &mut Artifact {
        let known = |known: &Artifact| known.run == run && known.name == name && known.path == path;
        let index = self.artifacts.iter().position(known).unwrap_or_else(|| {
            let id = i64::try_from(self.artifacts.len()).unwrap_or(0) + 1;
            let (name, path) = (name.to_owned(), path.to_owned());
            self.artifacts.push(Artifact { id, run, name, path, v4, ..Artifact::default() });
            self.artifacts.len() - 1
        });
        &mut self.artifacts[index]
    }

    fn find(&self, run: i64, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| {
            artifact.run == run && artifact.name == name && artifact.v4 && artifact.confirmed
        })
    }
}

/// The run of the job that asks; Gitea serves running jobs only.
fn run_of(site: &Site, request: &Request<Incoming>) -> Result<i64, Box<Response<Body>>> {
    let value =
        request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(token) = value.strip_prefix("Bearer ") else {
        return Err(Box::new(text(StatusCode::UNAUTHORIZED, "Bad authorization header")));
    };
    let state = site.shared.lock();
    let task = state.tasks.values().find(|task| task.runtime_token == token || task.token == token);
    let refused = |message: &'static str| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, message));
    match task {
        Some(task) if task.status == Status::Running => {
            let job = state.jobs.get(&task.job).map(|job| job.run);
            job.ok_or_else(|| refused("Error runner api getting job"))
        }
        Some(_) => Err(refused("Error runner api getting task: task is not running")),
        None => Err(refused("Error runner api getting task")),
    }
}

/// Answers a method of version 4, or takes and gives archives.
pub(crate) async fn twirp(
    site: &Arc<Site>,
    method: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Abort> {
    if matches!(method, "UploadArtifact" | "DownloadArtifact") {
        return blob(site, request).await;
    }
    let run = match run_of(site, &request) {
        Ok(run) => run,
        Err(refusal) => return Ok(*refusal),
    };
    let base = site.shared.lock().base.trim_end_matches('/').to_owned();
    let asked: Json = serde_json::from_slice(&collect(request.into_body()).await?).unwrap_or_default();
    let field = |snake: &str, camel: &str| {
        let value = if asked[snake].is_null() { &asked[camel] } else { &asked[snake] };
        value.as_str().unwrap_or_default().to_owned()
    };
    if field("workflow_run_backend_id", "workflowRunBackendId") != run.to_string() {
        return Ok(text(StatusCode::BAD_REQUEST, "run-id does not match"));
    }
    let name = asked["name"].as_str().unwrap_or_default().to_owned();
    let address = |end: &str, id: i64| format!("{base}{TWIRP}{end}?sig=s&artifactID={id}");
    let missing = || text(StatusCode::NOT_FOUND, "Error artifact not found");
    let mut store = site.artifacts.lock();
    let answer = match method {
        "CreateArtifact" => {
            let artifact = store.add(run, &name, &format!("{name}.zip"), true);
            artifact.body.clear();
            json!({"ok": true, "signedUploadUrl": address("UploadArtifact", artifact.id)})
        }
        "FinalizeArtifact" => {
            let artifact = store.add(run, &name, &format!("{name}.zip"), true);
            let size = field("size", "size").parse().ok();
            if size != Some(artifact.body.len()) {
                return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "Error merge chunks"));
            }
            artifact.confirmed = true;
            json!({"ok": true, "artifactId": artifact.id.to_string()})
        }
        "ListArtifacts" => {
            let wanted = field("name_filter", "nameFilter");
            let list: Vec<Json> = store
                .artifacts
                .iter()
                .filter(|artifact| artifact.run == run && artifact.v4 && artifact.confirmed)
                .filter(|artifact| wanted.is_empty() || artifact.name == wanted)
                .map(|artifact| {
                    json!({
                        "workflowRunBackendId": run.to_string(), "workflowJobRunBackendId": "1",
                        "databaseId": artifact.id.to_string(), "name": artifact.name,
                        "size": artifact.body.len().to_string(), "createdAt": "2026-01-01T00:00:00Z",
                    })
                })
                .collect();
            json!({"artifacts": list})
        }
        "GetSignedArtifactURL" => match store.find(run, &name) {
            Some(artifact) => json!({"signedUrl": address("DownloadArtifact", artifact.id)}),
            None => return Ok(missing()),
        },
        "DeleteArtifact" => {
            let Some(id) = store.find(run, &name).map(|artifact| artifact.id) else { return Ok(missing()) };
            store.artifacts.iter_mut().filter(|artifact| artifact.id == id).for_each(|artifact| {
                artifact.confirmed = false;
            });
            json!({"ok": true, "artifactId": id.to_string()})
        }
        _ => return Ok(crate::http::not_found()),
    };
    Ok(reply(StatusCode::OK, &answer))
}

async fn blob(site: &Arc<Site>, request: Request<Incoming>) -> Result<Response<Body>, Abort> {
    let query = request.uri().query().map(str::to_owned);
    let value = |name: &str| parameter(query.as_deref(), name).unwrap_or_default();
    let id: i64 = value("artifactID").parse().unwrap_or_default();
    if value("sig") != "s" {
        return Ok(text(StatusCode::UNAUTHORIZED, "Error unauthorized"));
    }
    if request.method() == Verb::GET {
        let store = site.artifacts.lock();
        let found = store.artifacts.iter().find(|artifact| artifact.id == id);
        return Ok(match found {
            Some(artifact) => bytes(StatusCode::OK, artifact.body.clone()),
            None => text(StatusCode::NOT_FOUND, "Error artifact not found"),
        });
    }
    let body = collect(request.into_body()).await?;
    let mut store = site.artifacts.lock();
    let (comp, block) = (value("comp"), value("blockid"));
    let whole = match comp.as_str() {
        "block" | "appendBlock" if !block.is_empty() => {
            // Gitea keeps the blocks of a run side by side: two artifacts with one name get each other's.
            let run = store.artifacts.iter().find(|known| known.id == id).map_or(0, |known| known.run);
            if *store.names.entry((run, block.clone())).or_insert(id) != id {
                return Ok(text(StatusCode::CONFLICT, "a block of another artifact has this name"));
            }
            store.blocks.insert((id, block), body);
            None
        }
        "blocklist" => {
            let list = String::from_utf8_lossy(&body).into_owned();
            let names = list.split("<Latest>").skip(1).filter_map(|rest| rest.split('<').next());
            let parts: Vec<_> =
                names.filter_map(|name| store.blocks.remove(&(id, name.trim().to_owned()))).collect();
            Some(parts.concat())
        }
        _ => Some(body),
    };
    if let (Some(whole), Some(artifact)) = (whole, store.artifacts.iter_mut().find(|known| known.id == id)) {
        artifact.body = whole;
    }
    Ok(reply(StatusCode::CREATED, &json!("appended")))
}

/// Answers version 3: `RUN/artifacts…`.
pub(crate) async fn pipelines(
    site: &Arc<Site>,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Abort> {
    let run = match run_of(site, &request) {
        Ok(run) => run,
        Err(refusal) => return Ok(*refusal),
    };
    let Some((number, rest)) = path.split_once("/artifacts") else { return Ok(crate::http::not_found()) };
    if number != run.to_string() {
        return Ok(text(StatusCode::BAD_REQUEST, "run-id does not match"));
    }
    let base = format!("{}{PIPELINES}{run}/artifacts", site.shared.lock().base.trim_end_matches('/'));
    let query = request.uri().query().map(str::to_owned);
    let item = parameter(query.as_deref(), "itemPath").unwrap_or_default();
    let verb = request.method().clone();
    let headers = request.headers().clone();
    let body = collect(request.into_body()).await?;
    let mut store = site.artifacts.lock();
    let success = || reply(StatusCode::OK, &json!({"message": "success"}));
    Ok(match (&verb, rest.trim_start_matches('/').split_once('/')) {
        (&Verb::POST, None) => {
            let asked: Json = serde_json::from_slice(&body).unwrap_or_default();
            let name = asked["Name"].as_str().unwrap_or_default();
            let url = format!("{base}/{}/upload", hash(name));
            reply(StatusCode::OK, &json!({"fileContainerResourceUrl": url}))
        }
        (&Verb::PUT, Some((_, "upload"))) => {
            let (name, path) = item.split_once('/').unwrap_or((&item, ""));
            let range = headers.get("content-range").and_then(|value| value.to_str().ok());
            let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
            let start: usize = start.unwrap_or(0);
            if !headers.contains_key("x-actions-results-md5") {
                return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "Error save upload chunk"));
            }
            let gzip = headers.get("content-encoding").is_some_and(|value| value == "gzip");
            let artifact = store.add(run, name, path, false);
            artifact.gzip = gzip;
            artifact.body.resize(start, 0);
            artifact.body.extend_from_slice(&body);
            success()
        }
        (&Verb::PATCH, None) => {
            let name = parameter(query.as_deref(), "artifactName").unwrap_or_default();
            let mine = |artifact: &&mut Artifact| artifact.run == run && artifact.name == name;
            store.artifacts.iter_mut().filter(mine).for_each(|artifact| artifact.confirmed = true);
            success()
        }
        (&Verb::GET, None) => {
            let mut names: Vec<&str> = store
                .artifacts
                .iter()
                .filter(|artifact| artifact.run == run && artifact.confirmed)
                .map(|artifact| artifact.name.as_str())
                .collect();
            names.sort_unstable();
            names.dedup();
            if names.is_empty() {
                return Ok(text(StatusCode::NOT_FOUND, "Not Found"));
            }
            let list: Vec<Json> = names
                .iter()
                .map(|name| {
                    let url = format!("{base}/{}/download_url", hash(name));
                    json!({"name": name, "fileContainerResourceUrl": url})
                })
                .collect();
            reply(StatusCode::OK, &json!({"count": list.len(), "value": list}))
        }
        (&Verb::GET, Some((_, "download_url"))) => {
            let list: Vec<Json> = store
                .artifacts
                .iter()
                .filter(|artifact| artifact.run == run && artifact.confirmed && artifact.name == item)
                .map(|artifact| {
                    let url = format!("{base}/{}/download", artifact.id);
                    let path = format!("{item}/{}", artifact.path);
                    json!({"path": path, "itemType": "file", "contentLocation": url})
                })
                .collect();
            reply(StatusCode::OK, &json!({"value": list}))
        }
        (&Verb::GET, Some((id, "download"))) => {
            match store.artifacts.iter().find(|artifact| artifact.id.to_string() == id) {
                Some(artifact) if artifact.gzip => {
                    header(bytes(StatusCode::OK, artifact.body.clone()), "content-encoding", "gzip")
                }
                Some(artifact) => bytes(StatusCode::OK, artifact.body.clone()),
                None => text(StatusCode::NOT_FOUND, "Not Found"),
            }
        }
        _ => crate::http::not_found(),
    })
}

/// Stands for the MD5 that Gitea has there; clients do not look at it.
fn hash(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}
