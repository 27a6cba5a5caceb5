//! `actions/cache`, `actions/cache/restore` and `actions/cache/save`.
//!
//! Speaks version 1 of the cache protocol, as the originals do with every server but GitHub's own.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::workflow::Condition;

use super::glob::{Glob, Options};
use super::http::{Http, Part, Question, encode};
use super::tape::{self, Method as Compression};
use super::{AfterJob, Call, Executor, Handed, Problem, STOPPED};

pub(super) const INPUTS: [&str; 8] = [
    "path",
    "key",
    "restore-keys",
    "upload-chunk-size",
    "enableCrossOsArchive",
    "fail-on-cache-miss",
    "lookup-only",
    "save-always",
];

/// How many keys may be asked for: GitHub's limit.
const MAX_KEYS: usize = 10;
/// How long a key may be in characters: GitHub's limit.
const MAX_KEY: usize = 512;
/// How much of an archive is sent at once where the step does not say, in bytes.
const CHUNK: u64 = 32 << 20;

/// Why a cache is not saved: told in the log, since a build goes on without.
enum Failure {
    /// Somebody else saves it, or has.
    Reserved(String),
    /// Anything else.
    Other(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Other(message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// One cache service, and what identifies an entry there.
struct Service<'c> {
    http: Http,
    base: String,
    token: &'c str,
    compression: Compression,
    version: String,
}

impl Service<'_> {
    /// The entry that stands for these keys: its key and where its archive is.
    fn look_up(&self, keys: &[String]) -> Result<Option<(String, String)>, String> {
        let url = format!("{}cache?keys={}&version={}", self.base, encode(&keys.join(",")), self.version);
        let answer = self.http.ask(&Question::new(&Method::GET, &url, self.token))?;
        if answer.status == 204 {
            return Ok(None);
        }
        if !answer.is_success() {
            return Err(format!("Cache service responded with {}", answer.reason()));
        }
        let json = answer.json();
        match (json["cacheKey"].as_str(), json["archiveLocation"].as_str()) {
            (Some(key), Some(location)) if !location.is_empty() => {
                Ok(Some((key.to_owned(), location.to_owned())))
            }
            _ => Err("Cache not found.".to_owned()),
        }
    }

    fn send(&self, key: &str, archive: &Path, size: u64, chunk: u64) -> Result<(), Failure> {
        let asked = json!({"key": key, "version": self.version, "cacheSize": size}).to_string();
        let url = format!("{}caches", self.base);
        let answer = self.http.ask(&Question::new(&Method::POST, &url, self.token).json(&asked))?;
        let json = answer.json();
        let said = json["message"].as_str().unwrap_or_default();
        let id = match &json["cacheId"] {
            id if answer.is_success() && (id.is_u64() || id.is_string()) => {
                id.to_string().trim_matches('"').to_owned()
            }
            _ if answer.status == 400 && !said.is_empty() => return Err(Failure::Other(said.to_owned())),
            _ => {
                let details = if said.is_empty() { answer.reason() } else { said.to_owned() };
                return Err(Failure::Reserved(format!(
                    "Unable to reserve cache with key {key}, another job may be creating this cache. More details: \
                     {details}"
                )));
            }
        };
        let url = format!("{}caches/{id}", self.base);
        let mut start = 0;
        while start < size {
            let length = chunk.min(size - start);
            let headers = [
                ("content-type", "application/octet-stream".to_owned()),
                ("content-range", format!("bytes {start}-{}/*", start + length - 1)),
            ];
            let part = Some(Part { path: archive, start, length });
            let question = Question::new(&Method::PATCH, &url, self.token);
            let answer = self.http.ask(&Question { headers: &headers, part, ..question })?;
            if !answer.is_success() {
                let reason = answer.reason();
                return Err(Failure::Other(format!(
                    "Cache service responded with {reason} during upload chunk."
                )));
            }
            start += length;
        }
        let asked = json!({"size": size}).to_string();
        let answer = self.http.ask(&Question::new(&Method::POST, &url, self.token).json(&asked))?;
        if answer.is_success() {
            return Ok(());
        }
        Err(Failure::Other(format!("Cache service responded with {} during commit cache.", answer.reason())))
    }
}

/// The hash by which clients tell apart what cannot be restored in place of another.
fn version(paths: &[String], compression: &Compression) -> String {
    let mut parts: Vec<&str> = paths.iter().map(String::as_str).collect();
    parts.extend([compression.word(), "1.0"]);
    Sha256::digest(parts.join("|")).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_key(key: &str) -> Result<(), String> {
    let wrong = if key.chars().count() > MAX_KEY {
        "cannot be larger than 512 characters."
    } else if key.contains(',') {
        "cannot contain commas."
    } else {
        return Ok(());
    };
    Err(format!("Key Validation Error: {key} {wrong}"))
}

/// Servers may treat the case of keys as they like, so the original does not look at it.
fn is_exact(key: &str, found: &str) -> bool {
    key.to_lowercase() == found.to_lowercase()
}

/// A size as the log has it.
fn size_row(size: u64) -> String {
    format!("Cache Size: ~{} MB ({size} B)", (size + (1 << 19)) >> 20)
}

impl Executor<'_> {
    /// Whether there is a cache to be had at all; says it where not.
    fn cache_service<'c>(&mut self, call: &'c Call<'_>) -> Result<Option<Service<'c>>, Problem> {
        let url = call.var("ACTIONS_CACHE_URL");
        if url.is_empty() {
            self.log
                .warning("There is no cache service (ACTIONS_CACHE_URL is not set); nothing is cached.")?;
            return Ok(None);
        }
        if call.var("GITHUB_REF").is_empty() {
            self.log.warning(&format!(
                "Event Validation Error: The event type {} is not supported because it's not tied to a branch or tag \
                 ref.",
                call.var("GITHUB_EVENT_NAME")
            ))?;
            return Ok(None);
        }
        let http = Http::new(url, self.spec.actions.native.insecure, &call.stop).map_err(Problem::Step)?;
        let compression = Compression::on(call.var("PATH"));
        let version = version(&call.lines("path"), &compression);
        let base = format!("{url}_apis/artifactcache/");
        Ok(Some(Service { http, base, token: call.var("ACTIONS_RUNTIME_TOKEN"), compression, version }))
    }

    /// Restores; with `save` the job's end saves what was not there.
    pub(super) fn restore_cache(&mut self, call: &Call<'_>, save: bool) -> Result<Handed, Problem> {
        let mut handed = Handed::default();
        let mut output = |name: &str, value: &str| {
            handed.outputs.insert(name.to_owned(), value.to_owned());
        };
        let Some(service) = self.cache_service(call)? else {
            output("cache-hit", "false");
            return Ok(handed);
        };
        let key = call.required("key")?.to_owned();
        call.required("path")?;
        if !save {
            output("cache-primary-key", &key);
        }
        let mut keys = vec![key.clone()];
        keys.extend(call.lines("restore-keys"));
        if keys.len() > MAX_KEYS {
            return Err(Problem::Step(
                "Key Validation Error: Keys are limited to a maximum of 10.".to_owned(),
            ));
        }
        keys.iter().try_for_each(|key| check_key(key)).map_err(Problem::Step)?;
        let lookup_only = call.input("lookup-only").eq_ignore_ascii_case("true");
        let found = self.fetch_cache(call, &service, &keys, lookup_only)?;
        if let Some(found) = &found {
            output("cache-hit", if is_exact(&key, found) { "true" } else { "false" });
            if !save {
                output("cache-matched-key", found);
            }
            let row = if lookup_only {
                "Cache found and can be restored from key"
            } else {
                "Cache restored from key"
            };
            self.log.text(&format!("{row}: {found}"))?;
        } else if call.input("fail-on-cache-miss").eq_ignore_ascii_case("true") {
            return Err(Problem::Step(format!(
                "Failed to restore cache entry. Exiting as fail-on-cache-miss is set. Input key: {key}"
            )));
        } else {
            self.log.text(&format!("Cache not found for input keys: {}", keys.join(", ")))?;
        }
        if save {
            let matched = found.unwrap_or_default();
            self.after(call, Condition::success(), AfterJob::SaveCache { key, matched });
        }
        Ok(handed)
    }

    fn fetch_cache(
        &mut self,
        call: &Call<'_>,
        service: &Service<'_>,
        keys: &[String],
        lookup_only: bool,
    ) -> Result<Option<String>, Problem> {
        let (key, location) = match service.look_up(keys) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(message) => return self.cache_failed("restore", &message).map(|()| None),
        };
        if lookup_only {
            self.log.text("Lookup only - skipping download")?;
            return Ok(Some(key));
        }
        match self.unpack_cache(call, service, &location) {
            Ok(()) => Ok(Some(key)),
            Err(Failure::Other(message) | Failure::Reserved(message)) => {
                self.cache_failed("restore", &message).map(|()| None)
            }
        }
    }

    fn unpack_cache(
        &mut self,
        call: &Call<'_>,
        service: &Service<'_>,
        location: &str,
    ) -> Result<(), Failure> {
        let folder = self.scratch_folder()?;
        let archive = folder.path().join(service.compression.file_name());
        // The address is signed; the token is for the service itself.
        let size = service.http.download(&Question::new(&Method::GET, location, ""), &archive)?.size;
        self.log.text(&size_row(size))?;
        tape::unpack(&archive, call.workspace(), &service.compression, &call.stop)?;
        self.log.text("Cache restored successfully")?;
        Ok(())
    }

    /// A folder in `RUNNER_TEMP` that goes when it is not needed any more.
    fn scratch_folder(&self) -> io::Result<tempfile::TempDir> {
        let temp = self.spec.places.scratch.join("temp");
        fs::create_dir_all(&temp)?;
        tempfile::Builder::new().prefix("native-").tempdir_in(&temp)
    }

    /// Such a folder for a step that cannot do without.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir, Problem> {
        self.scratch_folder().map_err(|error| Problem::Step(format!("No folder in RUNNER_TEMP: {error}")))
    }

    /// A build goes on without its cache, unless it has to stop anyway.
    fn cache_failed(&mut self, what: &str, message: &str) -> Result<(), Problem> {
        if message.contains(STOPPED) {
            return Err(Problem::Step(message.to_owned()));
        }
        if message.contains("Validation Error: ") {
            return Ok(self.log.warning(message)?);
        }
        Ok(self.log.warning(&format!("Failed to {what}: {message}"))?)
    }

    /// `actions/cache/save`.
    pub(super) fn save_cache_only(&mut self, call: &Call<'_>) -> Result<Handed, Problem> {
        match call.input("key") {
            "" => self.log.warning("Key is not specified.")?,
            key => {
                if !self.save_cache(call, key, "")? {
                    self.log.warning("Cache save failed.")?;
                }
            }
        }
        Ok(Handed::default())
    }

    /// Saves, unless this very key was restored; whether nothing kept it from being saved.
    pub(super) fn save_cache(&mut self, call: &Call<'_>, key: &str, matched: &str) -> Result<bool, Problem> {
        if !matched.is_empty() && is_exact(key, matched) {
            self.log.text(&format!("Cache hit occurred on the primary key {key}, not saving cache."))?;
            return Ok(true);
        }
        let Some(service) = self.cache_service(call)? else { return Ok(true) };
        match self.save_to(call, &service, key) {
            Ok(()) => {
                self.log.text(&format!("Cache saved with key: {key}"))?;
                Ok(true)
            }
            Err(Failure::Reserved(message)) => {
                self.log.text(&format!("Failed to save: {message}"))?;
                Ok(false)
            }
            Err(Failure::Other(message)) => self.cache_failed("save", &message).map(|()| false),
        }
    }

    fn save_to(&mut self, call: &Call<'_>, service: &Service<'_>, key: &str) -> Result<(), Failure> {
        check_key(key)?;
        let lines = call.lines("path");
        if lines.is_empty() {
            return Err(Failure::Other("Input required and not supplied: path".to_owned()));
        }
        let workspace = call.workspace();
        let options = Options { descendants: false, skip_hidden: false };
        let found = Glob::new(&lines.join("\n"), workspace, call.home(), options)?.find()?;
        if found.is_empty() {
            return Err(Failure::Other(
                "Path Validation Error: Path(s) specified in the action for caching do(es) not exist, hence no cache \
                 is being saved."
                    .to_owned(),
            ));
        }
        let paths: Vec<PathBuf> = found.iter().map(|found| relative(&found.path, workspace)).collect();
        let folder = self.scratch_folder()?;
        let archive = folder.path().join(service.compression.file_name());
        tape::pack(&archive, workspace, &paths, &service.compression, &call.stop)?;
        let size = fs::metadata(&archive)?.len();
        let chunk = call.input("upload-chunk-size").parse().ok().filter(|size| *size > 0).unwrap_or(CHUNK);
        service.send(key, &archive, size, chunk)?;
        self.log.text(&size_row(size))?;
        self.log.text("Cache saved successfully")?;
        Ok(())
    }
}

/// A path as counted from the workspace, with `..` where it lies outside.
fn relative(path: &Path, base: &Path) -> PathBuf {
    let common = path.components().zip(base.components()).take_while(|(a, b)| a == b).count();
    let up = base.components().skip(common).map(|_| Component::ParentDir);
    let out: PathBuf = up.chain(path.components().skip(common)).collect();
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_original() {
        // SHA-256 of "node_modules|~/.cache/x|zstd-without-long|1.0" and of "node_modules|gzip|1.0".
        let paths = ["node_modules".to_owned(), "~/.cache/x".to_owned()];
        let zstd = version(&paths, &Compression::Zstd(PathBuf::from("zstd")));
        assert_eq!(zstd, "04e39aeb7c64ed3f7502612e8e562b0de59b75f36aa7550edac8933fe62bff2c");
        assert_eq!(
            version(&paths[..1], &Compression::Gzip),
            "470e252814dbffc9524891b17cf4e5749b26c1b5026e63dd3f00972db2393117"
        );
    }

    #[test]
    fn paths_are_counted_from_the_workspace() {
        let relative = |path: &str| relative(Path::new(path), Path::new("/a/w")).display().to_string();
        assert_eq!(relative("/a/w/x/y"), "x/y");
        assert_eq!(relative("/a/w"), ".");
        assert_eq!(relative("/root/.cache"), "../../root/.cache");
    }

    #[test]
    fn keys_have_limits() {
        assert!(check_key("a-b c").is_ok());
        assert!(check_key("a,b").is_err());
        assert!(check_key(&"x".repeat(513)).is_err());
        assert!(is_exact("Linux-A", "linux-a") && !is_exact("a", "ab"));
        assert_eq!(size_row(1_500_000), "Cache Size: ~1 MB (1500000 B)");
    }
}
