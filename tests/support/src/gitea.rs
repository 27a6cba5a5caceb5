//! A real Gitea, started from its program in a temporary folder, for the tests that run on both.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::ask::{Answer, ask};
use crate::forge::{PASSWORD, USER};
use crate::git::push_files;
use crate::ports::free_address;
use crate::random;
use crate::runner::signal;
use crate::server::{JobSeen, Server, Trouble};
use crate::state::Status;

/// How long the server may take to come up.
const PATIENCE: Duration = Duration::from_secs(300);

/// A real Gitea.
#[derive(Debug)]
pub struct Gitea {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    token: String,
    registration_token: String,
    process: Mutex<Option<Child>>,
    session: Mutex<Option<Session>>,
}

/// Cookies of a person who has logged in.
#[derive(Debug, Clone, Default)]
struct Session {
    cookies: BTreeMap<String, String>,
}

impl Session {
    fn take_from(&mut self, answer: &Answer) {
        for (_, cookie) in answer.headers.iter().filter(|(name, _)| name == "set-cookie") {
            let pair = cookie.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    fn header(&self) -> String {
        self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    fn csrf(&self) -> String {
        crate::http::percent_decode(self.cookies.get("_csrf").map(String::as_str).unwrap_or_default())
    }
}

impl Gitea {
    /// Starts a fresh server with one user, [`USER`].
    ///
    /// # Errors
    /// When the program cannot be started, or says no; the error has its last words.
    pub fn start(program: &Path) -> Result<Self, Trouble> {
        let folder = tempfile::Builder::new().prefix("gitea-").tempdir()?;
        let port = free_address()?.port();
        let mut server = Self {
            program: program.to_owned(),
            folder,
            port,
            token: String::new(),
            registration_token: random::hex(20)?,
            process: Mutex::new(None),
            session: Mutex::new(None),
        };
        server.configure()?;
        server.tool(&["migrate"])?;
        let email = format!("{USER}@example.invalid");
        server.tool(&[
            "admin",
            "user",
            "create",
            "--admin",
            "--username",
            USER,
            "--password",
            PASSWORD,
            "--email",
            &email,
            "--must-change-password=false",
        ])?;
        let said = server.tool(&[
            "admin",
            "user",
            "generate-access-token",
            "-u",
            USER,
            "-t",
            "test",
            "--scopes",
            "all",
            "--raw",
        ])?;
        said.lines().last().unwrap_or_default().trim().clone_into(&mut server.token);
        server.up()?;
        Ok(server)
    }

    fn configure(&self) -> io::Result<()> {
        let (folder, port) = (self.folder.path().display(), self.port);
        for name in ["home", "data", "log"] {
            fs::create_dir(self.folder.path().join(name))?;
        }
        let config = format!(
            "APP_NAME = test\nRUN_MODE = prod\nWORK_PATH = {folder}\nI_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true\n\
             [server]\nPROTOCOL = http\nHTTP_ADDR = 127.0.0.1\nHTTP_PORT = {port}\nDOMAIN = 127.0.0.1\n\
             ROOT_URL = http://127.0.0.1:{port}/\nDISABLE_SSH = true\nLFS_START_SERVER = false\nOFFLINE_MODE = true\n\
             [database]\nDB_TYPE = sqlite3\nPATH = {folder}/data/gitea.db\n\
             [repository]\nROOT = {folder}/data/repos\nDEFAULT_PRIVATE = public\n\
             [security]\nINSTALL_LOCK = true\nSECRET_KEY = a-secret-key-of-a-test\nINTERNAL_TOKEN =\n\
             [service]\nDISABLE_REGISTRATION = true\n\
             [actions]\nENABLED = true\nDEFAULT_ACTIONS_URL = self\n[packages]\nENABLED = true\n\
             [indexer]\nISSUE_INDEXER_TYPE = db\n[cron.update_checker]\nENABLED = false\n\
             [log]\nMODE = file\nLEVEL = Info\nROOT_PATH = {folder}/log\n"
        );
        fs::write(self.folder.path().join("app.ini"), config)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-c", "app.ini"])
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path().join("home"))
            .env("USER", std::env::var_os("USER").unwrap_or_else(|| "root".into()))
            .env("GITEA_WORK_DIR", self.folder.path())
            .env("GITEA_RUNNER_REGISTRATION_TOKEN", &self.registration_token)
            .stdin(Stdio::null());
        command
    }

    /// Runs one of the program's own commands.
    fn tool(&self, arguments: &[&str]) -> Result<String, Trouble> {
        let output = self.command().args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} {}: {said}{errors}", self.program.display(), arguments.join(" ")).into())
    }

    fn up(&self) -> Result<(), Trouble> {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("web.log"))?;
        let child = self.command().arg("web").stdout(log.try_clone()?).stderr(log).spawn()?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let deadline = Instant::now() + PATIENCE;
        let health = format!("{}/api/healthz", self.url());
        while !ask("GET", &health, &[], b"").is_ok_and(|answer| answer.status == 200) {
            if Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("web.log")).unwrap_or_default();
                return Err(format!("Gitea does not come up:\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn down(&self) -> Result<(), Trouble> {
        let Some(mut child) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let _ = signal(child.id(), "TERM");
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The access token of [`USER`].
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A REST call as [`USER`].
    fn rest(&self, verb: &str, path: &str, body: Option<&Json>) -> Result<Answer, Trouble> {
        let url = format!("{}/api/v1{path}", self.url());
        let authorization = format!("token {}", self.token);
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        let body = body.map(Json::to_string).unwrap_or_default();
        Ok(ask(verb, &url, &headers, body.as_bytes())?)
    }

    fn rest_ok(&self, verb: &str, path: &str, body: Option<&Json>) -> Result<Answer, Trouble> {
        let answer = self.rest(verb, path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        Err(format!("{verb} {path}: {} {}", answer.status, answer.text()).into())
    }

    /// A call of the web interface, as a person who has logged in. A server that was started again has forgotten them.
    fn web(&self, path: &str, body: &Json) -> Result<Answer, Trouble> {
        let first = self.web_once(path, body)?;
        let answer = if first.status == 200 {
            first
        } else {
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.web_once(path, body)?
        };
        if answer.status == 200 {
            return Ok(answer);
        }
        Err(format!("POST {path}: {} {}", answer.status, answer.text()).into())
    }

    fn web_once(&self, path: &str, body: &Json) -> Result<Answer, Trouble> {
        let session = self.log_in()?;
        let (cookies, csrf) = (session.header(), session.csrf());
        let headers = [
            ("cookie", cookies.as_str()),
            ("x-csrf-token", csrf.as_str()),
            ("content-type", "application/json"),
        ];
        Ok(ask("POST", &format!("{}{path}", self.url()), &headers, body.to_string().as_bytes())?)
    }

    fn log_in(&self) -> Result<Session, Trouble> {
        let mut held = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = held.as_ref() {
            return Ok(session.clone());
        }
        let url = format!("{}/user/login", self.url());
        let mut session = Session::default();
        session.take_from(&ask("GET", &url, &[], b"")?);
        let form = format!("_csrf={}&user_name={USER}&password={PASSWORD}", encode(&session.csrf()));
        let cookies = session.header();
        let headers = [("cookie", cookies.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        let answer = ask("POST", &url, &headers, form.as_bytes())?;
        if !(300..400).contains(&answer.status) {
            return Err(format!("logging in: {}", answer.status).into());
        }
        session.take_from(&answer);
        // The page after it brings the token that belongs to the new session.
        let cookies = session.header();
        session.take_from(&ask("GET", &format!("{}/", self.url()), &[("cookie", &cookies)], b"")?);
        *held = Some(session.clone());
        Ok(session)
    }

    /// The run of a commit: its id and its number in the repository.
    fn run(&self, repository: &str, sha: &str) -> Result<Option<(i64, i64)>, Trouble> {
        let list =
            self.rest_ok("GET", &format!("/repos/{repository}/actions/runs?head_sha={sha}"), None)?.json();
        let runs = list["workflow_runs"].as_array().cloned().unwrap_or_default();
        Ok(runs
            .iter()
            .find(|run| run["head_sha"] == *sha)
            .and_then(|run| Some((run["id"].as_i64()?, run["run_number"].as_i64()?))))
    }

    /// Steps as the page has them; there is no REST call that tells.
    fn steps(&self, repository: &str, number: i64, job: usize) -> Result<Vec<(String, Status)>, Trouble> {
        let page = self
            .web(&format!("/{repository}/actions/runs/{number}/jobs/{job}"), &json!({"logCursors": []}))?
            .json();
        let steps = page["state"]["currentJob"]["steps"].as_array().cloned().unwrap_or_default();
        Ok(steps
            .iter()
            .map(|step| {
                let name = step["summary"].as_str().unwrap_or_default().to_owned();
                (name, status(step["status"].as_str().unwrap_or_default(), ""))
            })
            .collect())
    }
}

impl Server for Gitea {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn registration_token(&self) -> String {
        self.registration_token.clone()
    }

    fn make_repository(
        &self,
        name: &str,
        secrets: &[(&str, &str)],
        vars: &[(&str, &str)],
    ) -> Result<(), Trouble> {
        let short = name.rsplit('/').next().unwrap_or(name);
        self.rest_ok("POST", "/user/repos", Some(&json!({"name": short, "private": false})))?;
        for (key, value) in secrets {
            let path = format!("/repos/{name}/actions/secrets/{key}");
            self.rest_ok("PUT", &path, Some(&json!({"data": value})))?;
        }
        for (key, value) in vars {
            let path = format!("/repos/{name}/actions/variables/{key}");
            self.rest_ok("POST", &path, Some(&json!({"value": value})))?;
        }
        Ok(())
    }

    fn push(&self, repository: &str, files: &[(&str, &str)]) -> Result<String, Trouble> {
        let url = format!("http://{USER}:{}@127.0.0.1:{}/{repository}.git", self.token, self.port);
        Ok(push_files(&url, "main", files)?)
    }

    fn jobs(&self, repository: &str, sha: &str) -> Result<Vec<JobSeen>, Trouble> {
        let Some((id, number)) = self.run(repository, sha)? else { return Ok(Vec::new()) };
        let list = self
            .rest_ok("GET", &format!("/repos/{repository}/actions/runs/{id}/jobs?limit=50"), None)?
            .json();
        let mut jobs = list["jobs"].as_array().cloned().unwrap_or_default();
        jobs.sort_by_key(|job| job["id"].as_i64());
        jobs.iter()
            .enumerate()
            .map(|(index, job)| {
                let text = |key: &str| job[key].as_str().unwrap_or_default();
                Ok(JobSeen {
                    id: job["id"].as_i64().unwrap_or_default(),
                    name: text("name").to_owned(),
                    status: status(text("status"), text("conclusion")),
                    steps: self.steps(repository, number, index)?,
                })
            })
            .collect()
    }

    fn rows(&self, repository: &str, job: i64) -> Result<Vec<String>, Trouble> {
        let answer = self.rest("GET", &format!("/repos/{repository}/actions/jobs/{job}/logs"), None)?;
        // Before the first row there is no file, which this server calls an error of its own.
        if answer.status != 200 {
            return Ok(Vec::new());
        }
        let log = answer.text();
        let log = log.trim_start_matches('\u{feff}');
        Ok(log
            .split_terminator('\n')
            .map(|row| row.split_once(' ').map_or("", |(_, content)| content).to_owned())
            .collect())
    }

    fn cancel(&self, repository: &str, sha: &str) -> Result<(), Trouble> {
        let (_, number) = self.run(repository, sha)?.ok_or("no run to cancel")?;
        self.web(&format!("/{repository}/actions/runs/{number}/cancel"), &json!({}))?;
        Ok(())
    }

    fn stop(&self) -> Result<(), Trouble> {
        self.down()
    }

    fn restart(&self) -> Result<(), Trouble> {
        self.up()
    }
}

impl Drop for Gitea {
    fn drop(&mut self) {
        // It cannot be helped when it does not go.
        let _ = self.down();
    }
}

/// REST says `completed` and a conclusion, the page says the state itself.
fn status(status: &str, conclusion: &str) -> Status {
    match if status == "completed" { conclusion } else { status } {
        "success" => Status::Success,
        "failure" => Status::Failure,
        "cancelled" => Status::Cancelled,
        "skipped" => Status::Skipped,
        "running" | "in_progress" => Status::Running,
        "cancelling" => Status::Cancelling,
        "blocked" => Status::Blocked,
        _ => Status::Waiting,
    }
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}
