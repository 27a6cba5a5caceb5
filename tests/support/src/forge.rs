//! The stand-in as tests and the demo see it: started, asked, changed, made to fail.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::fault::{Fault, Method};
use crate::git::{self, Repository};
use crate::http::{self, Site};
use crate::options::Options;
use crate::random;
use crate::registry::Package;
use crate::rules::Rule;
use crate::runs::Origin;
use crate::state::{Extra, Row, Shared, State, Status};
use crate::view::{JobView, RunView, RunnerView};
use crate::workflow::Trigger;

/// Name of the only user.
pub const USER: &str = "dev";
/// Password of the only user.
pub const PASSWORD: &str = "devpass-1234";

/// A running stand-in. It ends when it is dropped, and then panics if a rule was broken that
/// [`Forge::violations`] was not asked about.
pub struct Forge {
    site: Arc<Site>,
    address: SocketAddr,
    up: watch::Sender<bool>,
    runtime: Option<Runtime>,
    folder: Option<tempfile::TempDir>,
    strict: bool,
}

/// A task that a test writes itself.
#[derive(Debug, Clone, Default)]
pub struct Enqueue {
    /// What FetchTask delivers as `workflow_payload`, whatever it is.
    pub payload: Vec<u8>,
    /// Labels that a runner must have.
    pub labels: Vec<String>,
    /// Secrets beside those of the forge.
    pub secrets: BTreeMap<String, String>,
    /// Variables beside those of the forge.
    pub vars: BTreeMap<String, String>,
    /// Results and outputs of the jobs that it needs.
    pub needs: BTreeMap<String, (Status, BTreeMap<String, String>)>,
    /// Entries of the `github` context that differ from what a push would give.
    pub context: serde_json::Map<String, Json>,
}

/// What was waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not come within {} s\n{state}", .after.as_secs())]
pub struct TimedOut {
    what: String,
    after: Duration,
    state: String,
}

impl fmt::Debug for Forge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forge").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Forge {
    /// Starts a stand-in on a free port of 127.0.0.1, with its files in a temporary folder.
    ///
    /// # Errors
    /// When no port, thread or folder is to be had.
    pub fn start(options: Options) -> io::Result<Self> {
        Self::start_at(options, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// As [`Forge::start`], at a given address.
    ///
    /// # Errors
    /// When the address is taken, too.
    pub fn start_at(options: Options, address: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("forge")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let folder = tempfile::Builder::new().prefix("forge-").tempdir()?;
        let prefix = options.path_prefix.trim_end_matches('/').to_owned();
        let base = format!("http://{address}{prefix}");
        let site = Arc::new(Site {
            shared: Arc::new(Shared::new(State::new(options, base)?)),
            repositories: folder.path().join("repositories"),
            token: random::hex(20)?,
            prefix,
            pushes: tokio::sync::Mutex::new(()),
            artifacts: crate::artifacts::Artifacts::default(),
        });
        let (up, watched) = watch::channel(true);
        runtime.spawn(http::run(Arc::clone(&site), listener, watched));
        Ok(Self { site, address, up, runtime: Some(runtime), folder: Some(folder), strict: true })
    }

    fn shared(&self) -> &Shared {
        &self.site.shared
    }

    /// Address of the instance, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        self.shared().lock().base.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token that registers runners.
    #[must_use]
    pub fn registration_token(&self) -> String {
        self.shared().lock().registration_token.clone()
    }

    /// The access token of [`USER`]: for git, REST and the registry.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.site.token
    }

    /// The repository `owner/name`; made when it is not there.
    ///
    /// # Errors
    /// When the name cannot be one, or git fails.
    pub fn repository(&self, name: &str) -> io::Result<Repository> {
        if !git::is_name(name) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not owner/name: {name:?}")));
        }
        let path = self.repository_path(name);
        git::create(&path)?;
        Ok(Repository { name: name.to_owned(), base: self.url(), token: self.site.token.clone(), path })
    }

    fn repository_path(&self, name: &str) -> PathBuf {
        self.site.repositories.join(format!("{name}.git"))
    }

    /// Sets a secret that every job gets.
    pub fn set_secret(&self, name: &str, value: &str) {
        self.shared().change(|state| state.secrets.insert(name.to_owned(), value.to_owned()));
    }

    /// Sets a variable that every job gets.
    pub fn set_var(&self, name: &str, value: &str) {
        self.shared().change(|state| state.vars.insert(name.to_owned(), value.to_owned()));
    }

    /// Makes a run of a workflow without a repository, as if `main` had been pushed; answers the run.
    ///
    /// # Errors
    /// Says what is wrong with the workflow.
    pub fn submit(&self, file: &str, yaml: &str) -> Result<i64, String> {
        let origin = self.origin("dev/submitted", file, "push", json!({}));
        self.shared()
            .change(|state| state.start_run(origin, yaml.as_bytes(), &Trigger::Push("refs/heads/main")))?
            .ok_or_else(|| format!("{file}: `on` does not have push"))
    }

    /// Starts a workflow of a repository by hand, at the tip of `main`; answers the run.
    ///
    /// # Errors
    /// Says what is wrong with the workflow, or that it is not there.
    pub fn dispatch(&self, repository: &str, file: &str, inputs: &[(&str, &str)]) -> Result<i64, String> {
        let path = self.repository_path(repository);
        let sha =
            git::resolve(&path, "refs/heads/main").ok_or_else(|| format!("{repository} has no main"))?;
        let (_, yaml) = git::workflows(&path, &sha)
            .into_iter()
            .find(|(name, _)| name == file)
            .ok_or_else(|| format!("{repository} has no workflow {file}"))?;
        let inputs: serde_json::Map<String, Json> =
            inputs.iter().map(|(name, value)| ((*name).to_owned(), Json::from(*value))).collect();
        let base = self.url();
        let event = json!({
            "inputs": inputs,
            "ref": "refs/heads/main",
            "repository": git::repository_json(&base, repository),
            "sender": git::user(&base),
        });
        let mut origin = self.origin(repository, file, "workflow_dispatch", event);
        origin.sha = sha;
        self.shared()
            .change(|state| state.start_run(origin, yaml.as_bytes(), &Trigger::Dispatch))?
            .ok_or_else(|| format!("{file}: `on` does not have workflow_dispatch"))
    }

    /// Has a task delivered as it is; answers the run.
    pub fn enqueue(&self, task: Enqueue) -> i64 {
        let origin = self.origin("dev/enqueued", "enqueued.yaml", "push", json!({"ref": "refs/heads/main"}));
        let extra =
            Extra { secrets: task.secrets, vars: task.vars, needs: task.needs, context: task.context };
        self.shared().change(|state| state.enqueue(origin, task.payload, task.labels, extra))
    }

    fn origin(&self, repository: &str, file: &str, event_name: &'static str, event: Json) -> Origin {
        Origin {
            repository: repository.to_owned(),
            workflow: file.to_owned(),
            title: file.to_owned(),
            event_name,
            reference: "refs/heads/main".to_owned(),
            sha: "0123456789012345678901234567890123456789".to_owned(),
            event,
        }
    }

    /// All runs, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<RunView> {
        let state = self.shared().lock();
        state.runs.values().map(|run| state.view_run(run)).collect()
    }

    /// One run.
    #[must_use]
    pub fn run(&self, id: i64) -> Option<RunView> {
        let state = self.shared().lock();
        state.runs.get(&id).map(|run| state.view_run(run))
    }

    /// Registered runners.
    #[must_use]
    pub fn runners(&self) -> Vec<RunnerView> {
        self.shared().lock().view_runners()
    }

    /// The whole log of a job.
    #[must_use]
    pub fn log(&self, job: i64) -> Vec<Row> {
        self.rows(job, 0..usize::MAX)
    }

    /// The text of a job's log.
    #[must_use]
    pub fn text(&self, job: i64) -> Vec<String> {
        self.log(job).into_iter().map(|row| row.text).collect()
    }

    /// Some rows of a job's log; rows that are not there are left out.
    #[must_use]
    pub fn rows(&self, job: i64, range: Range<usize>) -> Vec<Row> {
        let state = self.shared().lock();
        let task = state.jobs.get(&job).and_then(|job| job.task).and_then(|task| state.tasks.get(&task));
        let Some(task) = task else { return Vec::new() };
        let end = range.end.min(task.rows.len());
        task.rows.get(range.start.min(end)..end).unwrap_or_default().to_vec()
    }

    /// Tags of images, oldest first.
    #[must_use]
    pub fn packages(&self) -> Vec<Package> {
        self.shared().lock().packages.all().to_vec()
    }

    /// Enters a tag that nobody pushed, such as an old one for a clean-up to find.
    pub fn add_package(&self, owner: &str, name: &str, tag: &str, digest: &str, created: SystemTime) {
        self.shared().change(|state| state.packages.insert(owner, name, tag, digest, created));
    }

    /// Workflows that a push brought and that could not be read.
    #[must_use]
    pub fn rejected(&self) -> Vec<String> {
        self.shared().lock().rejected.clone()
    }

    /// How often a method was called.
    #[must_use]
    pub fn requests(&self, method: Method) -> u64 {
        self.shared().lock().requests.get(&method).copied().unwrap_or(0)
    }

    /// A number that grows with every change, for [`Forge::wait_change`].
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared().revision()
    }

    /// Waits until something has changed since `revision`, at most for `timeout`; answers the present revision.
    #[must_use]
    pub fn wait_change(&self, revision: u64, timeout: Duration) -> u64 {
        self.shared().wait(revision, Instant::now() + timeout)
    }

    /// Looks after every change until `probe` finds something.
    ///
    /// # Errors
    /// When it has not after `timeout`; the error shows runs, logs and broken rules.
    pub fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut probe: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, TimedOut> {
        let deadline = Instant::now() + timeout;
        loop {
            let revision = self.revision();
            if let Some(found) = probe(self) {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                return Err(TimedOut { what: what.to_owned(), after: timeout, state: self.describe() });
            }
            // Some probes look at more than the state here, so look again from time to time.
            let _ = self.shared().wait(revision, deadline.min(Instant::now() + Duration::from_millis(200)));
        }
    }

    /// Waits until a run has ended.
    ///
    /// # Errors
    /// As [`Forge::wait_for`].
    pub fn wait_done(&self, run: i64, timeout: Duration) -> Result<RunView, TimedOut> {
        self.wait_for(&format!("the end of run {run}"), timeout, |forge| {
            forge.run(run).filter(|run| run.status.is_done())
        })
    }

    /// Everything of use when a test has failed: runs, steps, the last rows, broken rules.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for run in self.runs() {
            let _ = writeln!(text, "run {} {} {} {}", run.id, run.workflow, run.title, run.status);
            for job in &run.jobs {
                self.describe_job(&mut text, job);
            }
        }
        for violation in self.shared().lock().violations.iter().take(50) {
            let _ = writeln!(text, "broken rule: {violation}");
        }
        for rejected in self.rejected() {
            let _ = writeln!(text, "unreadable workflow: {rejected}");
        }
        text
    }

    fn describe_job(&self, text: &mut String, job: &JobView) {
        let sealed = if job.sealed { "sealed" } else { "open" };
        let _ = writeln!(text, "  job {} {} {}, {} rows, {sealed}", job.id, job.name, job.status, job.rows);
        for step in &job.steps {
            let _ = writeln!(text, "    {:<30} {:<10} {:?}", step.name, step.status, step.rows);
        }
        for row in self.rows(job.id, job.rows.saturating_sub(40)..job.rows) {
            let shown: String = row.text.chars().take(200).collect();
            let _ = writeln!(text, "    | {shown}");
        }
    }

    /// Cancels every job of a run, as a click does.
    pub fn cancel(&self, run: i64) {
        self.shared().change(|state| {
            let jobs = state.runs.get(&run).map(|run| run.jobs.clone()).unwrap_or_default();
            for job in jobs {
                state.cancel_job(job);
            }
        });
    }

    /// Ends a task as the reaper of silent tasks does: failed, log sealed.
    pub fn reap(&self, task: i64) {
        self.shared().change(|state| {
            state.seal_early(task);
            state.finish(task, Status::Failure, SystemTime::now());
        });
    }

    /// Deletes all runners: whatever they ask next, they are unknown.
    pub fn unregister_all(&self) {
        self.shared().change(|state| state.runners.clear());
    }

    /// Lets the next `times` requests of a method meet a fault. Faults of one method are met in order.
    pub fn fault(&self, method: Method, fault: Fault, times: usize) {
        self.shared().change(|state| state.faults.arm(method, fault, times));
    }

    /// How many requests will still meet a fault.
    #[must_use]
    pub fn faults_left(&self) -> usize {
        self.shared().lock().faults.left()
    }

    /// Takes back the faults that nobody has met.
    pub fn clear_faults(&self) {
        self.shared().change(|state| state.faults.clear());
    }

    /// Stops listening and closes every connection; the state stays.
    pub fn go_down(&self) {
        // The only receiver is the server, which lives as long as this.
        let _ = self.up.send(false);
    }

    /// Listens again, at the same address.
    pub fn come_up(&self) {
        let _ = self.up.send(true);
    }

    /// From now on breaking this rule is no violation.
    pub fn allow(&self, rule: Rule) {
        self.shared().change(|state| state.allowed.insert(rule));
    }

    /// What runners did that they must not do.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let state = self.shared().lock();
        let mut all = state.violations.clone();
        all.extend(state.check_end());
        all
    }

    /// Do not panic when this is dropped with broken rules. The demo wants that.
    pub fn lenient(&mut self) {
        self.strict = false;
    }

    /// Takes the broken rules away, so that dropping this does not panic because of them.
    #[must_use]
    pub fn take_violations(&self) -> Vec<String> {
        let all = self.violations();
        self.shared().change(|state| {
            state.violations.clear();
            for task in state.tasks.values_mut() {
                task.watch.result = None;
            }
        });
        all
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        let violations = self.violations();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(self.folder.take());
        if self.strict && !violations.is_empty() && !std::thread::panicking() {
            #[expect(clippy::panic, reason = "this is how a test learns of it")]
            {
                panic!("a runner broke rules of the protocol:\n{}", violations.join("\n"));
            }
        }
    }
}
