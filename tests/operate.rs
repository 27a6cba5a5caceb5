//! What an operator has: doctor, status, metrics, health, hooks, a notifier, gc, the disk gate, migration.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "scenarios/start.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod scenarios_start;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use scenarios_start::{PATIENCE, registered, runner, wait};
use serde_json::Value;
use sower_test_support::{Enqueue, Forge, Options, Rule, Runner, free_address};

fn forge() -> Forge {
    Forge::start(Options::default()).unwrap()
}

fn payload(yaml: &str) -> Enqueue {
    Enqueue { payload: yaml.as_bytes().to_vec(), labels: vec!["host".to_owned()], ..Enqueue::default() }
}

fn job(steps: &str) -> Enqueue {
    payload(&format!("on: push\njobs:\n  one:\n    runs-on: host\n    steps:\n{steps}"))
}

fn configure(runner: &Runner, more: &str) {
    let text = fs::read_to_string(runner.config_file()).unwrap();
    fs::write(runner.config_file(), format!("{text}{more}")).unwrap();
}

fn sower(runner: &Runner, arguments: &[&str]) -> (i32, String) {
    let config = runner.config_file().display().to_string();
    let (first, rest) = arguments.split_first().unwrap();
    let output = runner.run(&[&[*first, "-c", &config], rest].concat()).unwrap();
    (output.status.code().unwrap(), said(&output))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Status line and body of an answer.
fn get(mut stream: impl Read + Write, path: &str, accept: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_and_health_are_served_on_loopback_and_on_a_socket() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    configure(&runner, "metrics: {enabled: true, addr: '127.0.0.1:0'}\n");
    runner.start(&[]).unwrap();
    let address = wait("the address of the metrics", || {
        let said = runner.said();
        let (_, rest) = said.split_once("metrics at http://")?;
        Some(rest.split_once("/metrics")?.0.to_owned())
    });
    let connect = || TcpStream::connect(&address).unwrap();
    wait("a ready daemon", || get(connect(), "/readyz", "*/*").0.contains("200").then_some(()));
    assert_eq!(get(connect(), "/healthz", "*/*").1, "ok\n");
    let task = forge.enqueue(job("      - run: echo hello\n"));
    forge.wait_done(task, PATIENCE).unwrap();
    let openmetrics = "application/openmetrics-text; version=1.0.0";
    let metrics = wait("a counted job", || {
        let (_, text) = get(connect(), "/metrics", openmetrics);
        (value(&text, "sower_jobs_ended_total{conclusion=\"success\"}") > 0.0).then_some(text)
    });
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(value(&metrics, "sower_log_rows_total") >= 1.0);
    assert!(value(&metrics, "sower_job_duration_seconds_count{conclusion=\"success\"}") >= 1.0);
    assert!(value(&metrics, "sower_step_duration_seconds_count{conclusion=\"success\"}") >= 1.0);
    assert!(value(&metrics, "sower_rpc_calls_total{method=\"FetchTask\",outcome=\"ok\"}") >= 1.0);
    assert!(value(&metrics, "sower_disk_free_bytes{place=\"state\"}") > 0.0);
    let (_, older) = get(connect(), "/metrics", "*/*");
    assert!(!older.contains("# EOF") && older.contains("# TYPE sower_jobs_ended_total counter"), "{older}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool; `make test-parts` installs it");
    promtool.stdin.take().unwrap().write_all(older.as_bytes()).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    assert!(checked.status.success(), "{}\n{older}", said(&checked));

    assert!(
        get(connect(), "/status", "*/*").0.contains("404"),
        "names of repositories are not for everybody"
    );

    // The same on the socket, which is for the daemon's user only.
    let socket = runner.folder().join("state/daemon.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, text) = get(UnixStream::connect(&socket).unwrap(), "/status", "*/*");
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status["ready"].as_bool(), status["labels"][0].as_str()), (Some(true), Some("host")));
    assert!(get(UnixStream::connect(&socket).unwrap(), "/elsewhere", "*/*").0.contains("404"));
    assert!(forge.violations().is_empty(), "{:?}", forge.violations());
}

#[test]
fn metrics_can_be_on_a_socket_of_their_own_and_the_daemon_keeps_house_by_itself() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let socket = runner.folder().join("metrics.sock");
    let more = format!(
        "metrics: {{enabled: true, addr: 'unix:{}'}}\nhistory: {{age: 1h}}\nhousekeeping: {{interval: 1s}}\n",
        socket.display()
    );
    configure(&runner, &more);
    let old = runner.folder().join("state/history/1");
    fs::create_dir_all(&old).unwrap();
    fs::write(old.join("journal"), "").unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600);
    fs::File::open(old.join("journal")).unwrap().set_modified(long_ago).unwrap();
    runner.start(&[]).unwrap();
    wait("the old log to go", || (!old.exists()).then_some(()));
    let connect = || UnixStream::connect(&socket).unwrap();
    wait("a ready daemon", || get(connect(), "/readyz", "*/*").0.contains("200").then_some(()));
    wait("a turn that is counted", || {
        let (_, text) = get(connect(), "/metrics", "application/openmetrics-text");
        (value(&text, "sower_housekeeping_turns_total") > 0.0).then_some(())
    });
    assert!(
        get(connect(), "/status", "*/*").0.contains("404"),
        "names of repositories are not for everybody"
    );
    // A daemon that was killed leaves its socket; the next one takes the place.
    runner.kill().unwrap();
    assert!(socket.exists());
    runner.start(&[]).unwrap();
    wait("the next daemon", || {
        let stream = UnixStream::connect(&socket).ok()?;
        get(stream, "/healthz", "*/*").0.contains("200").then_some(())
    });
}

#[test]
fn status_shows_the_daemon_and_its_jobs() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let (code, text) = sower(&runner, &["status"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no daemon runs in"), "{text}");
    assert_eq!(sower(&runner, &["status", "--quiet"]), (1, String::new()));
    runner.start(&[]).unwrap();
    let go = runner.folder().join("go");
    forge.enqueue(job(&format!("      - run: while [ ! -e {} ]; do sleep 0.1; done\n", go.display())));
    wait("a job in the status", || {
        let (code, text) = sower(&runner, &["status"]);
        (code == 0 && text.contains("1 of 1") && text.contains("  running  ") && text.contains("/ job\n"))
            .then_some(())
    });
    let (_, text) = sower(&runner, &["status", "--json"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["jobs"].as_array().unwrap().len(), 1, "{text}");
    let socket = UnixStream::connect(runner.folder().join("state/daemon.sock")).unwrap();
    let (_, metrics) = get(socket, "/metrics", "application/openmetrics-text");
    let jobs = |state: &str| value(&metrics, &format!("sower_jobs{{state=\"{state}\"}}"));
    assert_eq!((jobs("waiting"), jobs("running"), jobs("reporting")), (0.0, 1.0, 0.0), "{metrics}");
    fs::write(go, "").unwrap();
    assert_eq!(sower(&runner, &["status", "--quiet"]), (0, String::new()));
    // Nobody answers any more when the daemon was killed.
    runner.kill().unwrap();
    assert_eq!(sower(&runner, &["status"]).0, 1);
    runner.start(&[]).unwrap();
    wait("the next daemon", || (sower(&runner, &["status"]).0 == 0).then_some(()));
}

#[test]
fn without_gitea_the_daemon_is_healthy_and_not_ready() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    forge.go_down();
    runner.start(&[]).unwrap();
    let socket = runner.folder().join("state/daemon.sock");
    let answer = wait("an answer", || {
        let stream = UnixStream::connect(&socket).ok()?;
        let (head, body) = get(stream, "/readyz", "*/*");
        head.contains("503").then_some(body)
    });
    assert!(answer.starts_with("not ready: "), "{answer}");
    assert!(get(UnixStream::connect(&socket).unwrap(), "/healthz", "*/*").0.contains("200"));
    forge.come_up();
    wait("readiness", || {
        get(UnixStream::connect(&socket).unwrap(), "/readyz", "*/*").0.contains("200").then_some(())
    });
}

#[test]
fn hooks_see_the_job_and_their_rows_are_in_its_log() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let (started, completed) = (runner.folder().join("started"), runner.folder().join("completed"));
    script(&started, "echo \"$SOWER_HOOK $GITHUB_JOB [$FROM_WORKFLOW]\"");
    script(&completed, "echo \"$SOWER_HOOK $SOWER_JOB_STATUS\"");
    let hooks =
        format!("hooks: {{job_started: {}, job_completed: {}}}\n", started.display(), completed.display());
    configure(&runner, &hooks);
    runner.start(&[]).unwrap();
    let yaml = "on: push\nenv: {FROM_WORKFLOW: x}\njobs:\n  one:\n    runs-on: host\n    steps:\n      - run: exit 4\n";
    let run = forge.wait_done(forge.enqueue(payload(yaml)), PATIENCE).unwrap();
    let rows = forge.text(run.jobs[0].id);
    let at =
        |row: &str| rows.iter().position(|one| one == row).unwrap_or_else(|| panic!("{row} in {rows:#?}"));
    assert!(at("job_started one []") < at("##[error]Process completed with exit code 4."));
    assert!(at("job_completed failure") > at("##[error]Process completed with exit code 4."));
}

#[test]
fn what_will_not_work_is_told_before_a_job_fails_of_it() {
    let forge = forge();
    // The doctor asks for the log of a task that there cannot be.
    forge.allow(Rule::Owner);
    let mut runner = registered(&forge, 1, &[]);
    let hook = runner.folder().join("hook");
    runner.start(&[]).unwrap();
    wait("a ready daemon", || (sower(&runner, &["status"]).0 == 0).then_some(()));
    let good = fs::read_to_string(runner.config_file()).unwrap();
    configure(&runner, &format!("hooks: {{job_started: {}}}\nghc: {{heap: 2gb}}\n", hook.display()));
    let config = runner.config_file().display().to_string();
    let check = runner.run(&["config", "check", "-c", &config]).unwrap();
    let text = said(&check);
    assert_eq!(check.status.code(), Some(1), "{text}");
    assert!(text.contains("ghc.heap: `2gb` is not a size") && text.contains("hooks.job_started: "), "{text}");
    let (code, text) = sower(&runner, &["doctor"]);
    assert!(code == 1 && text.contains("BAD  key") && text.contains("with it every job fails"), "{text}");
    // A daemon that runs stays with what it has.
    runner.signal("HUP").unwrap();
    wait("the refusal", || {
        runner.said().contains("not reloaded, all stays as it was: ghc.heap").then_some(())
    });
    script(&hook, "exit 0");
    fs::write(runner.config_file(), format!("{good}hooks: {{job_started: {}}}\n", hook.display())).unwrap();
    runner.signal("HUP").unwrap();
    wait("the reload", || runner.said().contains("reloaded: labels host").then_some(()));
    let run = forge.wait_done(forge.enqueue(job("      - run: echo fine\n")), PATIENCE).unwrap();
    assert_eq!(run.status.to_string(), "success");
    assert!(forge.text(run.jobs[0].id).iter().any(|row| row.contains("Hook job_started")));
}

#[test]
fn a_hook_that_fails_or_takes_too_long_fails_the_job() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let hook = runner.folder().join("hook");
    configure(&runner, &format!("hooks: {{job_started: {}, timeout: 1s}}\n", hook.display()));
    runner.start(&[]).unwrap();
    for (text, told) in [("exit 1", "exit code 1"), ("sleep 600", "The time limit was reached")] {
        script(&hook, text);
        let run = forge.wait_done(forge.enqueue(job("      - run: echo never\n")), PATIENCE).unwrap();
        assert_eq!(run.status.to_string(), "failure");
        let rows = forge.text(run.jobs[0].id).join("\n");
        assert!(rows.contains(told), "{rows}");
        assert!(rows.contains("The hook job_started of this host has failed"), "{rows}");
        assert!(!rows.lines().any(|row| row == "never"), "{rows}");
    }
}

/// Takes one request, and answers it: its head and its body.
fn answer(listener: &TcpListener, status: &str) -> (String, String) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the request ends early: {}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Some(length) = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())
            && body.len() >= length
        {
            let reply = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(reply.as_bytes()).unwrap();
            return (head.to_owned(), body.to_owned());
        }
    }
}

#[test]
fn who_wants_to_know_is_told_of_failures_and_of_nothing_else() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, secret) = (runner.folder().join("url"), runner.folder().join("secret"));
    fs::write(&url, format!("http://{}/hush\n", listener.local_addr().unwrap())).unwrap();
    fs::write(&secret, "key\n").unwrap();
    let notify = format!("notify: {{url_file: {}, secret_file: {}}}\n", url.display(), secret.display());
    configure(&runner, &notify);
    runner.start(&[]).unwrap();
    forge.wait_done(forge.enqueue(job("      - run: echo fine\n")), PATIENCE).unwrap();
    forge.enqueue(job("      - {name: Break, run: \"echo last words; exit 3\"}\n"));
    // The first answer is no: it is told again.
    let (_, first) = answer(&listener, "500 Internal Server Error");
    let (head, body) = answer(&listener, "204 No Content");
    assert_eq!(first, body);
    let signature = head
        .to_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("x-sower-signature: sha256=").map(str::to_owned));
    let hmac = "import hmac, sys; print(hmac.new(b'key', sys.argv[1].encode(), 'sha256').hexdigest())";
    let wanted = Command::new("python3").args(["-c", hmac, &body]).output().unwrap();
    assert_eq!(signature.unwrap_or_else(|| panic!("{head}")), said(&wanted).trim());
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((told["event"].as_str(), told["step"].as_str()), (Some("job_failed"), Some("Break")));
    let rows: Vec<&str> = told["rows"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(rows, ["last words", "##[error]Process completed with exit code 3."]);
    assert!(!runner.said().contains("hush"), "the address is a secret");
}

#[test]
fn the_log_is_json_where_asked_for_and_rooms_have_levels() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    let text = text.replace("level: debug", "level: error\n  rooms: {gitea: info}");
    fs::write(runner.config_file(), text).unwrap();
    runner.start(&["--log-format", "json"]).unwrap();
    let line = wait("a line", || {
        let said = runner.said();
        said.lines().find(|line| line.contains("connected to")).map(str::to_owned)
    });
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["target"].as_str()),
        (Some("INFO"), Some("sower::gitea::poller"))
    );
}

/// A program on a terminal (that of util-linux's `script`), which is answered as a person would: after the question.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(command: &str, folder: &Path) -> Self {
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", command, "/dev/null"])
            .current_dir(folder)
            .env_remove("SOWER_REGISTRATION_TOKEN")
            .env_remove("GITEA_RUNNER_REGISTRATION_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut screen, into) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut piece) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        let keys = child.stdin.take().unwrap();
        Self { child, keys, shown }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// Waits until this question is asked for the `times`-th time, and answers it.
    fn answer(&mut self, question: &str, times: usize, text: &str) {
        wait(question, || (self.shown().matches(question).count() >= times).then_some(()));
        writeln!(self.keys, "{text}").unwrap();
    }
}

#[test]
fn register_asks_on_a_terminal_and_checks_each_answer_at_once() {
    let forge = forge();
    let runner = Runner::new(env!("CARGO_BIN_EXE_sower"), 1).unwrap();
    let command = format!("{} register -c {}", env!("CARGO_BIN_EXE_sower"), runner.config_file().display());
    let mut terminal = Terminal::new(&command, runner.folder());
    let nobody = free_address().unwrap();
    terminal.answer("Address: ", 1, "git.example.org/");
    terminal.answer("Address: ", 2, &format!("http://{nobody}"));
    terminal.answer("Address: ", 3, &forge.url());
    terminal.answer("Name [", 1, "by-hand");
    terminal.answer("Labels [", 1, "host:docker://x");
    terminal.answer("Labels [", 2, "host:host,big:host");
    terminal.answer("Token: ", 1, "not-the-token");
    terminal.answer("Token: ", 2, &forge.registration_token());
    let status = wait("the end", || terminal.child.try_wait().unwrap());
    let shown = terminal.shown();
    assert!(status.success(), "{shown}");
    for text in [
        "is not the address of a Gitea",
        "cannot be reached",
        "answers, and its Actions are on",
        "jobs on the host only",
        "refuses the registration token",
        "registered by-hand with",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(!shown.contains("not-the-token") && !shown.contains(&forge.registration_token()), "{shown}");
    assert!(runner.state_file().exists());
}

#[test]
fn who_leaves_register_at_the_token_has_a_terminal_that_shows_what_is_typed() {
    let forge = forge();
    let runner = Runner::new(env!("CARGO_BIN_EXE_sower"), 1).unwrap();
    let command = format!(
        "trap : INT; {} register -c {} --instance {} --labels host:host; echo \"code $?\"; stty -a",
        env!("CARGO_BIN_EXE_sower"),
        runner.config_file().display(),
        forge.url()
    );
    let mut terminal = Terminal::new(&command, runner.folder());
    terminal.answer("Name [", 1, "");
    terminal.answer("Token: ", 1, "\u{3}");
    wait("the end", || terminal.child.try_wait().unwrap());
    let shown = terminal.shown();
    assert!(shown.contains("code 130"), "{shown}");
    assert!(shown.contains(" echo ") && !shown.contains("-echo "), "{shown}");
    assert!(!runner.state_file().exists());
}

#[test]
fn doctor_looks_at_the_instance_and_changes_nothing() {
    let forge = forge();
    // It asks for the log of a task that there cannot be: whether it is known is all that the answer says.
    forge.allow(Rule::Owner);
    let mut runner = registered(&forge, 1, &[]);
    configure(&runner, "housekeeping: {min_free: 1}\n");
    runner.start(&[]).unwrap();
    wait("a ready daemon", || (sower(&runner, &["status"]).0 == 0).then_some(()));
    let (code, text) = sower(&runner, &["doctor", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let check = |room: &str, name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["room"] == room && check["name"] == name);
        found.unwrap_or_else(|| panic!("no {room} {name} in {text}")).clone()
    };
    for (room, name) in [
        ("host", "disk for jobs"),
        ("host", "memory"),
        ("tools", "git"),
        ("gitea", "instance"),
        ("gitea", "registration"),
        ("gitea", "labels"),
        ("gitea", "daemon"),
        ("gitea", "clock"),
    ] {
        assert_eq!(check(room, name)["state"], "well", "{room} {name}: {}", check(room, name));
    }
    assert_eq!(code == 0, report["well"].as_bool().unwrap());
    assert!(forge.violations().is_empty(), "{:?}", forge.violations());

    // What is not well says what to change.
    forge.unregister_all();
    let (code, text) = sower(&runner, &["doctor"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("is not known there") && text.contains("→ sower register"), "{text}");
    forge.go_down();
    let (code, text) = sower(&runner, &["doctor"]);
    assert_eq!(code, 1);
    assert!(text.contains("BAD  instance"), "{text}");
}

#[test]
fn doctor_in_a_job_writes_the_summary() {
    let forge = forge();
    forge.allow(Rule::Owner);
    let runner = runner(&forge, 1);
    let config = runner.config_file().display().to_string();
    let archive = runner.folder().join("libcut.a");
    fs::write(&archive, "!<arch>\ncut").unwrap();
    let steps = format!(
        "      - uses: sower/doctor@v1\n        with: {{config: '{config}', archives: '{}', fail: false}}\n",
        archive.display()
    );
    let run = forge.wait_done(forge.enqueue(job(&steps)), PATIENCE).unwrap();
    let rows = forge.text(run.jobs[0].id).join("\n");
    assert_eq!(run.status.to_string(), "success", "{rows}");
    assert!(rows.contains("BAD  libcut.a") && rows.contains("sower archive patch"), "{rows}");
}

#[test]
fn the_disk_gate_holds_on_a_small_disk_and_opens_again() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    configure(&runner, "housekeeping: {min_free: 8MiB}\n");
    let state = runner.folder().join("state");
    // A disk of 16 MiB with a registration on it.
    let small = format!(
        "cp {0}/.runner {0}/../saved && mount -t tmpfs -o size=16m none {0} && cp {0}/../saved {0}/.runner && exec \"$@\"",
        state.display()
    );
    runner.wrap(&["unshare", "--mount", "sh", "-c", &small, "sh"]);
    runner.start(&[]).unwrap();
    let seen = PathBuf::from(format!("/proc/{}/root{}", runner.pid().unwrap(), state.display()));
    let status = || -> Option<Value> {
        let stream = UnixStream::connect(seen.join("daemon.sock")).ok()?;
        serde_json::from_str(&get(stream, "/status", "*/*").1).ok()
    };
    wait("a ready daemon", || status()?["ready"].as_bool().filter(|ready| *ready));
    // An old log is what housekeeping can free; the rest of it is not sower's.
    fs::write(seen.join("ballast"), vec![1; 12 << 20]).unwrap();
    wait("the gate to close", || {
        runner.said().contains("fetching no tasks until there is room").then_some(())
    });
    let task = forge.enqueue(job("      - run: echo at last\n"));
    let told = wait("a status that says so", || {
        let status = status()?;
        (status["ready"] == false).then(|| status["not_ready"].as_str().unwrap_or_default().to_owned())
    });
    assert!(told.contains("housekeeping.min_free asks for 8 MiB"), "{told}");
    let (_, metrics) = get(
        UnixStream::connect(seen.join("daemon.sock")).unwrap(),
        "/metrics",
        "application/openmetrics-text",
    );
    assert!(value(&metrics, "sower_disk_gate_closed") > 0.0, "{metrics}");
    wait("housekeeping", || status()?["housekeeping"].as_i64());
    assert!(forge.run(task).unwrap().jobs.iter().all(|job| !job.status.is_done()), "no task is taken");
    fs::remove_file(seen.join("ballast")).unwrap();
    let run = forge.wait_done(task, PATIENCE).unwrap();
    assert_eq!(run.status.to_string(), "success");
}

/// A Nix store of the test's own.
struct Nix {
    folder: tempfile::TempDir,
}

impl Nix {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("etc")).unwrap();
        let config = "experimental-features = nix-command flakes\nbuild-users-group =\nsubstituters =\nsandbox = false\n";
        fs::write(folder.path().join("etc/nix.conf"), config).unwrap();
        // What the application is built from is not in its closure.
        let expression = r#"{ word }: let
  lib = derivation { name = "lib-${word}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo ${word} > $out" ]; };
in derivation { name = "app-${word}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "read x < ${lib}; echo linked > $out" ]; }
"#;
        fs::write(folder.path().join("app.nix"), expression).unwrap();
        Self { folder }
    }

    fn environment(&self) -> Vec<String> {
        [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "var"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "etc"),
        ]
        .iter()
        .map(|(name, place)| format!("{name}={}", self.folder.path().join(place).display()))
        .collect()
    }

    /// `runner.envs` for the steps.
    fn envs(&self) -> String {
        let pairs: Vec<String> =
            self.environment().iter().map(|pair| format!("    {}\n", pair.replacen('=', ": ", 1))).collect();
        pairs.concat()
    }

    fn has(&self, name: &str) -> bool {
        let entries = fs::read_dir(self.folder.path().join("store")).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name())
            .any(|found| found.to_string_lossy().ends_with(&format!("-{name}")))
    }

    /// `sower gc` with this store.
    fn gc(&self, runner: &Runner, more: &[&str]) -> String {
        let config = runner.config_file();
        let output = Command::new("env")
            .args(self.environment())
            .arg(env!("CARGO_BIN_EXE_sower"))
            .arg("gc")
            .arg("-c")
            .arg(config)
            .args(more)
            .output()
            .unwrap();
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        said
    }
}

#[test]
fn gc_leaves_what_kept_results_and_running_jobs_need() {
    let nix = Nix::new();
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    let text = text.replace("\nrunner:\n", &format!("\nrunner:\n  envs:\n{}", nix.envs()));
    fs::write(runner.config_file(), format!("{text}housekeeping: {{results: 1}}\n")).unwrap();
    let environment = nix.environment();
    let wrapper: Vec<&str> = ["env"].into_iter().chain(environment.iter().map(String::as_str)).collect();
    runner.wrap(&wrapper);
    runner.start(&[]).unwrap();
    let build = |word: &str, after: &str| {
        let expression = nix.folder.path().join("app.nix").display().to_string();
        job(&format!("      - run: nix-build {expression} --argstr word {word}\n{after}"))
    };
    let done = |task: Enqueue| {
        let run = forge.wait_done(forge.enqueue(task), PATIENCE).unwrap();
        let rows = forge.text(run.jobs[0].id).join("\n");
        (run.status.to_string(), rows)
    };
    let (status, rows) = done(build("first", ""));
    assert_eq!(status, "success", "{rows}");
    assert!(rows.contains("The Nix store keeps") && rows.contains("-app-first"), "{rows}");
    assert_eq!(done(build("failed", "      - run: exit 1\n")).0, "failure");
    assert!(nix.has("app-failed") && nix.has("lib-failed"));

    // Of the failed job nothing stays; of the successful one what it was built from, too, though no closure has it.
    let said = nix.gc(&runner, &["--dry-run", "--max-freed", "1GiB"]);
    assert!(said.contains("paths that nothing keeps") && nix.has("app-failed"), "{said}");
    let said = nix.gc(&runner, &["--max-freed", "1GiB"]);
    assert!(said.contains("Nix store: "), "{said}");
    assert!(!nix.has("app-failed") && !nix.has("lib-failed"), "{said}");
    assert!(nix.has("app-first") && nix.has("lib-first"), "{said}");

    // A job that runs keeps everybody away, also from what has no root.
    let (built, go) = (runner.folder().join("built"), runner.folder().join("go"));
    let waits = format!(
        "      - run: rm result; touch {}; while [ ! -e {} ]; do sleep 0.1; done\n",
        built.display(),
        go.display()
    );
    let task = forge.enqueue(build("running", &waits));
    wait("the build", || built.exists().then_some(()));
    let said = nix.gc(&runner, &["--max-freed", "1GiB"]);
    assert!(said.contains("left alone, a job runs"), "{said}");
    assert!(nix.has("app-running") && nix.has("lib-running"));
    fs::write(&go, "").unwrap();
    forge.wait_done(task, PATIENCE).unwrap();

    // With the next success the one before goes.
    assert_eq!(done(build("second", "")).0, "success");
    nix.gc(&runner, &["--max-freed", "1GiB"]);
    assert!(nix.has("lib-second") && !nix.has("app-first") && !nix.has("app-running"));
}

#[test]
fn gc_removes_old_logs_and_says_so_first() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    configure(&runner, "history: {jobs: 1}\n");
    runner.start(&[]).unwrap();
    let history = runner.folder().join("state/history");
    for _ in 0..2 {
        forge.wait_done(forge.enqueue(job("      - run: echo x\n")), PATIENCE).unwrap();
    }
    wait("the history", || history.join("2/journal").exists().then_some(()));
    // It keeps house itself after each job.
    runner.signal("TERM").unwrap();
    runner.wait(PATIENCE).unwrap();
    fs::create_dir_all(history.join("1")).unwrap();
    fs::write(history.join("1/journal"), vec![0; 100_000]).unwrap();
    fs::File::open(history.join("1/journal"))
        .unwrap()
        .set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600))
        .unwrap();
    let (code, text) = sower(&runner, &["gc", "--dry-run"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("would go") && text.contains("history/1") && history.join("1").exists(), "{text}");
    let (_, text) = sower(&runner, &["gc", "--json"]);
    let turn: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(turn["items"][0]["what"], "log", "{text}");
    assert!(!history.join("1").exists() && history.join("2").exists());
}

#[test]
fn act_runners_files_are_taken_over() {
    let forge = forge();
    let runner = registered(&forge, 1, &[]);
    let folder = runner.folder();
    let old = folder.join("old.yaml");
    fs::write(
        &old,
        "log:\n  level: warn\nrunner:\n  file: .runner\n  capacity: 2\n  envs: {TOKEN: hush}\n  labels: ['host:host', 'u:docker://x']\n\
         container:\n  network: bridge\n",
    )
    .unwrap();
    let (new, registration) = (folder.join("new/config.yaml"), folder.join("new/.runner"));
    let paths = [&old, &runner.state_file(), &new, &registration].map(|path| path.display().to_string());
    let [old, state, new_config, new_runner] = &paths;
    let common =
        ["migrate", "--config", old, "--runner", state, "--to-config", new_config, "--to-runner", new_runner];
    let output = runner.run(&common).unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("old.yaml:5: runner.capacity") && text.contains("u:docker://x left out"), "{text}");
    assert!(text.contains("container.network") && text.contains("nothing is written"), "{text}");
    assert!(!text.contains("hush") && !new.exists(), "{text}");
    let output = runner.run(&[&common[..], &["--write"]].concat()).unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let config = fs::read_to_string(&new).unwrap();
    assert!(config.contains("capacity: 2") && config.contains("labels: [\"host:host\"]"), "{config}");
    assert_eq!(fs::metadata(&registration).unwrap().permissions().mode() & 0o777, 0o600);
    let checked = runner.run(&["config", "check", "-c", new_config]).unwrap();
    assert!(checked.status.success(), "{}", said(&checked));
    let again = runner.run(&[&common[..], &["--write"]].concat()).unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
}

#[test]
fn the_alert_rules_and_the_dashboard_know_the_metrics() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runner-config/monitoring");
    for arguments in [&["check", "config", "prometheus.yml"][..], &["test", "rules", "sower.test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&folder).output();
        let output = output.expect("promtool; `make test-parts` installs it");
        assert!(output.status.success(), "promtool {arguments:?}: {}", said(&output));
    }
    // What they name is served.
    let source = fs::read_to_string(folder.join("../../docs/operate.md")).unwrap();
    for file in ["sower.rules.yml", "grafana-dashboard.json"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        for name in text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("sower_"))
        {
            let base = name.trim_end_matches("_bucket");
            assert!(
                base == "sower_build_info" || source.contains(base),
                "{file}: {name} is in no table of docs/operate.md"
            );
        }
    }
    let dashboard = fs::read(folder.join("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() >= 12);
}
