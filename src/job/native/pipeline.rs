//! Version 3 of the artifact protocol: the pipelines service, which takes and gives each file by itself.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use reqwest::Method;
use serde_json::{Value, json};

use super::Call;
use super::http::{Http, Part, Question, encode};
use super::zip::Member;

/// How much of a file is sent at once, in bytes: as much as the original sends.
const CHUNK: u64 = 8 << 20;

/// The service of one job.
#[derive(Debug)]
pub(super) struct Pipeline<'c> {
    http: Http,
    base: String,
    token: &'c str,
}

/// A file of an artifact on the server.
#[derive(Debug)]
pub(super) struct Item {
    /// Its name in the artifact.
    pub(super) name: PathBuf,
    url: String,
}

impl<'c> Pipeline<'c> {
    /// The service that the job's variables name.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn new(call: &'c Call<'_>, insecure: bool) -> Result<Self, String> {
        let url = call.var("ACTIONS_RUNTIME_URL");
        let token = call.var("ACTIONS_RUNTIME_TOKEN");
        let run = call.var("GITHUB_RUN_ID");
        if url.is_empty() || token.is_empty() {
            return Err(
                "there is no artifact service: ACTIONS_RUNTIME_URL or ACTIONS_RUNTIME_TOKEN is not set"
                    .to_owned(),
            );
        }
        let http = Http::new(url, insecure, &call.stop)?;
        let base = format!("{url}_apis/pipelines/workflows/{run}/artifacts");
        Ok(Self { http, base, token })
    }

    fn ask(&self, question: &Question<'_>) -> Result<Value, String> {
        let accept = [("accept", "application/json;api-version=6.0-preview".to_owned())];
        let headers = if question.headers.is_empty() { &accept[..] } else { question.headers };
        let answer = self.http.ask(&Question { headers, ..*question })?;
        if answer.is_success() {
            return Ok(answer.json());
        }
        Err(format!("the artifact service answered {}", answer.reason()))
    }

    /// Sends files as an artifact; gives how many bytes went.
    pub(super) fn upload(
        &self,
        name: &str,
        members: &[Member],
        retention: Option<u32>,
        scratch: &Path,
    ) -> Result<u64, String> {
        let mut asked = json!({"Type": "actions_storage", "Name": name});
        if let Some(days) = retention {
            asked["RetentionDays"] = days.into();
        }
        let url = format!("{}?api-version=6.0-preview", self.base);
        let answer = self.ask(&Question::new(&Method::POST, &url, self.token).json(&asked.to_string()))?;
        let container = answer["fileContainerResourceUrl"].as_str().ok_or("the answer names no container")?;
        let mut total = 0;
        for member in members {
            total += self.send(container, name, member, scratch)?;
        }
        let url = format!("{}?api-version=6.0-preview&artifactName={}", self.base, encode(name));
        let size = json!({"Size": total}).to_string();
        self.ask(&Question::new(&Method::PATCH, &url, self.token).json(&size))?;
        Ok(total)
    }

    fn send(&self, container: &str, name: &str, member: &Member, scratch: &Path) -> Result<u64, String> {
        let at = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        let whole = fs::metadata(&member.path).map_err(|error| at(&member.path, error))?.len();
        let packed = scratch.join("packed");
        let small = gzip(&member.path, &packed).map_err(|error| at(&member.path, error))?;
        // Compressed only where that makes it smaller.
        let gzip = small <= whole;
        let (path, size) = if gzip { (packed.as_path(), small) } else { (member.path.as_path(), whole) };
        let separator = if container.contains('?') { '&' } else { '?' };
        let item = encode(&format!("{name}/{}", member.name));
        let url = format!("{container}{separator}itemPath={item}");
        let mut start = 0;
        // An empty file is sent as well, once.
        loop {
            let length = CHUNK.min(size - start);
            let end = (start + length).saturating_sub(1);
            let sum = md5(path, start, length).map_err(|error| at(path, error))?;
            let mut headers = vec![
                ("accept", "application/json;api-version=6.0-preview".to_owned()),
                ("content-type", "application/octet-stream".to_owned()),
                ("content-range", format!("bytes {start}-{end}/{size}")),
                ("x-actions-results-md5", sum),
            ];
            headers.push(("x-tfs-filelength", whole.to_string()));
            if gzip {
                headers.push(("content-encoding", "gzip".to_owned()));
            }
            let part = Some(Part { path, start, length });
            let question = Question::new(&Method::PUT, &url, self.token);
            self.ask(&Question { headers: &headers, part, ..question })?;
            start += length;
            if start >= size {
                return Ok(size);
            }
        }
    }

    /// The names of this run's artifacts, and where their files are listed.
    pub(super) fn list(&self) -> Result<Vec<(String, String)>, String> {
        let url = format!("{}?api-version=6.0-preview", self.base);
        let answer = self.http.ask(&Question::new(&Method::GET, &url, self.token))?;
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        if !answer.is_success() {
            return Err(format!("the artifact service answered {}", answer.reason()));
        }
        let json = answer.json();
        let list = json["value"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        Ok(list.iter().map(|item| (text(item, "name"), text(item, "fileContainerResourceUrl"))).collect())
    }

    /// The files of an artifact.
    pub(super) fn items(&self, name: &str, container: &str) -> Result<Vec<Item>, String> {
        let separator = if container.contains('?') { '&' } else { '?' };
        let url = format!("{container}{separator}itemPath={}", encode(name));
        let answer = self.ask(&Question::new(&Method::GET, &url, self.token))?;
        let mut items = Vec::new();
        for value in answer["value"].as_array().into_iter().flatten() {
            let path = value["path"].as_str().unwrap_or_default().replace('\\', "/");
            let inner = path.strip_prefix(name).unwrap_or(&path).trim_start_matches('/').to_owned();
            let name = PathBuf::from(&inner);
            if !name.components().all(|part| matches!(part, Component::Normal(_))) || inner.is_empty() {
                return Err(format!("the artifact holds {path:?}, which leads out of the folder"));
            }
            if value["itemType"] == "file" {
                let url = value["contentLocation"].as_str().unwrap_or_default().to_owned();
                items.push(Item { name, url });
            }
        }
        Ok(items)
    }

    /// Writes a file of an artifact.
    pub(super) fn download(&self, item: &Item, file: &Path) -> Result<u64, String> {
        let headers = [("accept", "application/octet-stream;api-version=6.0-preview".to_owned())];
        // What was stored compressed comes compressed, and the client undoes it.
        let question = Question::new(&Method::GET, &item.url, self.token);
        self.http.download(&Question { headers: &headers, ..question }, file).map(|came| came.size)
    }
}

/// Compresses a file; gives the size of the result.
fn gzip(from: &Path, to: &Path) -> io::Result<u64> {
    let mut input = File::open(from)?;
    let mut out = flate2::write::GzEncoder::new(File::create(to)?, flate2::Compression::default());
    io::copy(&mut input, &mut out)?;
    let mut file = out.finish()?;
    file.flush()?;
    Ok(file.metadata()?.len())
}

/// The MD5 of a part of a file, which the protocol has as its check sum.
fn md5(path: &Path, start: u64, length: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
    let mut input = file.take(length);
    let mut hash = Md5::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(STANDARD.encode(hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
