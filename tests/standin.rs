//! The stand-in against what real servers answered: every recorded exchange is played to it once more.

#[path = "standin/registry.rs"]
mod registry;

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde_json::Value as Json;
use sower_test_support::{
    Answer, Enqueue, ErrorStyle, Fault, Forge, Method, Options, Rule, Status, Version, ask, push_files,
};
use sower_wire::Timestamp;
use sower_wire::ping::PingResponse;
use sower_wire::runner::{
    DeclareRequest, DeclareResponse, FetchTaskRequest, FetchTaskResponse, LogRow, RegisterRequest,
    RegisterResponse, Result as WireResult, StepState, TaskState, UpdateLogRequest, UpdateLogResponse,
    UpdateTaskRequest, UpdateTaskResponse,
};

const SERVERS: [(&str, Version); 2] =
    [("gitea-1.26-dev", Version::V1_26_1), ("gitea-1.27-like", Version::V1_27)];

struct Recording {
    folder: PathBuf,
    entries: Vec<Json>,
}

impl Recording {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/recorded").join(name);
        let index = std::fs::read(folder.join("index.json")).unwrap();
        Self { folder, entries: serde_json::from_slice(&index).unwrap() }
    }

    fn read(&self, entry: &Json, end: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(format!("{}.{end}", entry["file"].as_str().unwrap()))).unwrap()
    }

    /// Tasks in the order in which the server gave them out.
    fn tasks(&self) -> Vec<(Vec<u8>, FetchTaskResponse)> {
        self.entries
            .iter()
            .filter(|entry| entry["method"] == "FetchTask" && entry["status"] == 200 && is_numbered(entry))
            .map(|entry| FetchTaskResponse::decode(&self.read(entry, "res")[..]).unwrap())
            .filter(|reply| reply.task.is_some())
            .map(|reply| (reply.task.as_ref().unwrap().workflow_payload.clone().unwrap(), reply))
            .collect()
    }
}

fn is_numbered(entry: &Json) -> bool {
    entry["file"].as_str().unwrap().starts_with(|first: char| first.is_ascii_digit())
}

/// A runner that speaks the protocol by hand.
struct Client {
    base: String,
    uuid: String,
    token: String,
}

impl Client {
    fn register(forge: &Forge, labels: &[&str], capabilities: &[&str]) -> Self {
        let mut client = Self { base: forge.url(), uuid: String::new(), token: String::new() };
        let request = RegisterRequest {
            name: "by-hand".to_owned(),
            token: forge.registration_token(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            capabilities: capabilities.iter().map(|word| (*word).to_owned()).collect(),
            ..RegisterRequest::default()
        };
        let reply: RegisterResponse = client.call("Register", &request).unwrap();
        let runner = reply.runner.unwrap();
        (client.uuid, client.token) = (runner.uuid, runner.token);
        client
    }

    fn send(&self, method: &str, body: &[u8], headers: &[(&str, &str)]) -> std::io::Result<Answer> {
        let url = format!("{}/api/actions/runner.v1.RunnerService/{method}", self.base);
        let mut all = vec![("x-runner-uuid", self.uuid.as_str()), ("x-runner-token", self.token.as_str())];
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/proto"));
        }
        all.extend(headers);
        ask("POST", &url, &all, body)
    }

    fn call<Q: Message, R: Message + Default>(&self, method: &str, request: &Q) -> Result<R, String> {
        let answer = self.send(method, &request.encode_to_vec(), &[]).map_err(|error| error.to_string())?;
        if answer.status == 200 {
            Ok(R::decode(&answer.body[..]).unwrap())
        } else {
            Err(format!("{} {}", answer.status, answer.text()))
        }
    }

    fn fetch(&self, version: i64) -> FetchTaskResponse {
        self.call("FetchTask", &FetchTaskRequest { tasks_version: version }).unwrap()
    }

    fn log(&self, task: i64, index: i64, rows: &[&str], no_more: bool) -> Result<i64, String> {
        let rows = rows.iter().map(|row| LogRow { time: Some(at(1)), content: (*row).to_owned() }).collect();
        let request = UpdateLogRequest { task_id: task, index, rows, no_more };
        self.call::<_, UpdateLogResponse>("UpdateLog", &request).map(|reply| reply.ack_index)
    }

    fn state(&self, state: TaskState, outputs: &[(&str, &str)]) -> UpdateTaskResponse {
        let outputs = outputs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.call("UpdateTask", &UpdateTaskRequest { state: Some(state), outputs }).unwrap()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp { seconds: 1_795_000_000 + second, nanos: 0 }
}

fn step(id: i64, result: WireResult, log_index: i64, log_length: i64) -> StepState {
    let ran = matches!(result, WireResult::Success | WireResult::Failure | WireResult::Unspecified);
    let ended = result != WireResult::Unspecified;
    StepState {
        id,
        result: result.into(),
        started_at: ran.then(|| at(1)),
        stopped_at: ended.then(|| at(2)),
        log_index,
        log_length,
    }
}

fn ended(id: i64, result: WireResult, steps: Vec<StepState>) -> TaskState {
    TaskState { id, result: result.into(), started_at: Some(at(0)), stopped_at: Some(at(3)), steps }
}

fn running(id: i64, steps: Vec<StepState>) -> TaskState {
    TaskState { id, result: 0, started_at: Some(at(0)), stopped_at: None, steps }
}

fn payload(steps: usize) -> Enqueue {
    let steps: String = (0..steps).map(|step| format!("      - run: echo {step}\n")).collect();
    Enqueue {
        payload: format!("on: push\njobs:\n  job:\n    runs-on: host\n    steps:\n{steps}").into_bytes(),
        labels: vec!["host".to_owned()],
        ..Enqueue::default()
    }
}

#[test]
fn every_recorded_exchange_is_answered_as_the_real_server_did() {
    for (name, version) in SERVERS {
        let recording = Recording::open(name);
        let forge = Forge::start(Options { version, ..Options::default() }).unwrap();
        for (payload, reply) in recording.tasks() {
            let task = reply.task.unwrap();
            let vars = task.vars.into_iter().collect();
            forge.enqueue(Enqueue { payload, labels: vec!["host".to_owned()], vars, ..Enqueue::default() });
        }
        let mut client = Client { base: forge.url(), uuid: String::new(), token: String::new() };
        let mut runtime_token = String::new();
        for entry in recording.entries.iter().filter(|entry| is_numbered(entry)) {
            let file = entry["file"].as_str().unwrap();
            let (mut body, expected) = (recording.read(entry, "req"), recording.read(entry, "res"));
            let method = entry["method"].as_str().unwrap();
            if method == "Register" {
                let mut request = RegisterRequest::decode(&body[..]).unwrap();
                request.token = forge.registration_token();
                body = request.encode_to_vec();
            }
            // Polls differ in how often a runner looked in vain, so each one here looks in any case.
            if method == "FetchTask" {
                body = Vec::new();
                if FetchTaskResponse::decode(&expected[..]).unwrap().task.is_none() {
                    continue;
                }
            }
            let url = format!("{}{}", forge.url(), entry["path"].as_str().unwrap());
            let bearer = format!("Bearer {runtime_token}");
            let answer = match entry["verb"].as_str().unwrap() {
                "PUT" => ask("PUT", &url, &[("authorization", &bearer)], &body).unwrap(),
                verb => {
                    let headers = [
                        ("x-runner-uuid", client.uuid.as_str()),
                        ("x-runner-token", client.token.as_str()),
                        ("content-type", "application/proto"),
                    ];
                    ask(verb, &url, &headers, &body).unwrap()
                }
            };
            assert_eq!(u64::from(answer.status), entry["status"].as_u64().unwrap(), "{name} {file}");
            for header in ["content-type", "x-gitea-actions-capabilities"] {
                let expected = entry["response_headers"].get(header).and_then(Json::as_str);
                assert_eq!(answer.header(header), expected, "{name} {file}");
            }
            match method {
                "Ping" => {
                    let reply = PingResponse::decode(&answer.body[..]).unwrap();
                    assert_eq!(reply, PingResponse::decode(&expected[..]).unwrap());
                }
                "Register" => {
                    let runner = RegisterResponse::decode(&answer.body[..]).unwrap().runner.unwrap();
                    let real = RegisterResponse::decode(&expected[..]).unwrap().runner.unwrap();
                    assert_eq!((runner.id, runner.token.len(), runner.uuid.len()), (1, 40, 36));
                    assert_eq!((runner.name, runner.labels), (real.name, real.labels));
                    (client.uuid, client.token) = (runner.uuid, runner.token);
                }
                "Declare" => {
                    let runner = DeclareResponse::decode(&answer.body[..]).unwrap().runner.unwrap();
                    let real = DeclareResponse::decode(&expected[..]).unwrap().runner.unwrap();
                    assert_eq!(
                        (runner.token, runner.name, runner.labels),
                        (real.token, real.name, real.labels)
                    );
                }
                "FetchTask" => {
                    let task = FetchTaskResponse::decode(&answer.body[..]).unwrap().task.unwrap();
                    let real = FetchTaskResponse::decode(&expected[..]).unwrap().task.unwrap();
                    assert_eq!(task.id, real.id, "{name} {file}");
                    let keys = |task: &sower_wire::runner::Task| -> Vec<(String, &'static str)> {
                        let fields = &task.context.as_ref().unwrap().fields;
                        fields.iter().map(|(key, value)| (key.clone(), kind(value))).collect()
                    };
                    assert_eq!(keys(&task), keys(&real), "{name} {file}: the keys of the context");
                    runtime_token = text(&task, "gitea_runtime_token");
                    assert_eq!(runtime_token.split('.').count(), 3);
                }
                "UpdateLog" => {
                    let reply = UpdateLogResponse::decode(&answer.body[..]).unwrap();
                    assert_eq!(reply, UpdateLogResponse::decode(&expected[..]).unwrap(), "{name} {file}");
                }
                "UpdateTask" => {
                    let reply = UpdateTaskResponse::decode(&answer.body[..]).unwrap();
                    assert_eq!(reply, UpdateTaskResponse::decode(&expected[..]).unwrap(), "{name} {file}");
                }
                _ => assert_eq!(
                    answer.json(),
                    serde_json::from_slice::<Json>(&expected).unwrap(),
                    "{name} {file}"
                ),
            }
        }
        // All jobs ended as they did there.
        let ends: Vec<Status> = forge.runs().iter().map(|run| run.status).collect();
        let success = Status::Success;
        assert_eq!(ends, [success, success, success, Status::Skipped, Status::Failure, success], "{name}");

        // That runner tells how long a step is before it has sent the rows; nothing else is wrong with it.
        for violation in forge.take_violations() {
            assert!(violation.starts_with("StateBeforeLog"), "{name}: {violation}");
        }

        questions(&forge, &recording, &client, name);
        // They were meant to break rules.
        let _ = forge.take_violations();
    }
}

/// The questions that were put by hand after the run.
fn questions(forge: &Forge, recording: &Recording, client: &Client, name: &str) {
    for entry in recording.entries.iter().filter(|entry| !is_numbered(entry)) {
        let file = entry["file"].as_str().unwrap();
        let (uuid, token) = match file {
            "e01-fetch-unregistered" => ("00000000-0000-4000-8000-000000000000", client.token.as_str()),
            "e02-fetch-wrong-token" => (client.uuid.as_str(), "0000000000000000000000000000000000000000"),
            _ => (client.uuid.as_str(), client.token.as_str()),
        };
        let headers = [
            ("x-runner-uuid", uuid),
            ("x-runner-token", token),
            ("connect-protocol-version", "1"),
            ("content-type", entry["request_headers"]["content-type"].as_str().unwrap()),
        ];
        let url = format!("{}{}", forge.url(), entry["path"].as_str().unwrap());
        let answer = ask("POST", &url, &headers, &recording.read(entry, "req")).unwrap();
        assert_eq!(u64::from(answer.status), entry["status"].as_u64().unwrap(), "{name} {file}");
        assert_eq!(
            answer.header("content-type"),
            entry["response_headers"].get("content-type").and_then(Json::as_str),
            "{name} {file}"
        );
        let expected = recording.read(entry, "res");
        match file {
            // The version of the tasks is another one; the page of a crash is the server's own.
            "e13-json" => assert!(answer.json()["tasksVersion"].is_string(), "{name} {file}"),
            "e11-task-empty" => assert!(answer.text().contains("Internal Server Error"), "{name} {file}"),
            _ => assert_eq!(answer.text(), String::from_utf8_lossy(&expected), "{name} {file}"),
        }
    }
}

fn kind(value: &sower_wire::Value) -> &'static str {
    use sower_wire::value::Kind;
    match value.kind {
        Some(Kind::StringValue(_)) => "string",
        Some(Kind::BoolValue(_)) => "bool",
        Some(Kind::StructValue(_)) => "object",
        _ => "other",
    }
}

fn text(task: &sower_wire::runner::Task, key: &str) -> String {
    match &task.context.as_ref().unwrap().fields[key].kind {
        Some(sower_wire::value::Kind::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn refusals_can_be_genuine() {
    let forge = Forge::start(Options { errors: ErrorStyle::Genuine, ..Options::default() }).unwrap();
    let client = Client { base: forge.url(), uuid: String::new(), token: String::new() };
    let answer = client.send("FetchTask", b"", &[]).unwrap();
    assert_eq!(answer.status, 401);
    assert_eq!(answer.text(), r#"{"code":"unauthenticated","message":"unregistered runner"}"#);
}

#[test]
fn only_post_in_a_known_encoding_is_understood() {
    let forge = Forge::start(Options::default()).unwrap();
    let client = Client::register(&forge, &["host"], &[]);
    let url = format!("{}/api/actions/runner.v1.RunnerService/FetchTask", forge.url());
    assert_eq!(ask("GET", &url, &[], b"").unwrap().status, 405);
    let answer = client.send("FetchTask", b"", &[("content-encoding", "br")]).unwrap();
    assert_eq!(answer.status, 501, "{}", answer.text());
    let violations = forge.take_violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].starts_with("Encoding"), "{violations:?}");
}

#[test]
fn the_seal_of_a_log_is_that_of_the_version() {
    for version in [Version::V1_26_1, Version::V1_26_2, Version::V1_27] {
        let forge = Forge::start(Options { version, ..Options::default() }).unwrap();
        forge.allow(Rule::EmptySeal);
        forge.allow(Rule::RowsAfterSeal);
        let client = Client::register(&forge, &["host"], &[]);
        forge.enqueue(payload(1));
        forge.enqueue(payload(1));
        let first = client.fetch(0).task.unwrap().id;
        assert_eq!(client.log(first, 0, &["one", "two"], false), Ok(2));
        // Empty rows with no_more.
        assert_eq!(client.log(first, 2, &[], true), Ok(2));
        let sealed = forge.runs()[0].jobs[0].sealed;
        assert_eq!(sealed, version > Version::V1_26_1, "{version:?}");

        let second = client.fetch(0).task.unwrap().id;
        assert_eq!(client.log(second, 0, &["one", "two"], true), Ok(2));
        let again = client.log(second, 0, &["one", "two"], true);
        assert_eq!(again.is_err(), version == Version::V1_26_2, "{version:?}: {again:?}");
        let more = client.log(second, 2, &["three"], false).unwrap_err();
        assert!(more.contains("log file has been archived"), "{more}");
    }
}

#[test]
fn cancelling_is_immediate_unless_server_and_runner_can_do_better() {
    for (version, capability, status) in [
        (Version::V1_26_1, "cancelling", Status::Cancelled),
        (Version::V1_27, "", Status::Cancelled),
        (Version::V1_27, "cancelling", Status::Cancelling),
    ] {
        let forge = Forge::start(Options { version, ..Options::default() }).unwrap();
        let client = Client::register(&forge, &["host"], &[capability]);
        let run = forge.enqueue(payload(1));
        let task = client.fetch(0).task.unwrap().id;
        forge.cancel(run);
        assert_eq!(forge.run(run).unwrap().status, status);
        let reply = client.state(running(task, vec![step(0, WireResult::Unspecified, 0, 0)]), &[]);
        assert_eq!(reply.state.unwrap().result(), WireResult::Cancelled);
        assert_eq!(client.log(task, 0, &["cleaned up"], true), Ok(1));
        client.state(ended(task, WireResult::Success, vec![step(0, WireResult::Success, 0, 1)]), &[]);
        let run = forge.run(run).unwrap();
        assert_eq!(run.status, Status::Cancelled);
        let step = run.jobs[0].steps[1].status;
        // Once it is over nothing changes; a gentle end keeps what the runner said.
        let expected = if status == Status::Cancelled { Status::Cancelled } else { Status::Success };
        assert_eq!(step, expected, "{version:?} {capability}");
    }
}

#[test]
fn an_ephemeral_runner_is_gone_with_its_task() {
    let forge = Forge::start(Options::default()).unwrap();
    let mut client = Client { base: forge.url(), uuid: String::new(), token: String::new() };
    let request = RegisterRequest {
        name: "once".to_owned(),
        token: forge.registration_token(),
        labels: vec!["host".to_owned()],
        ephemeral: true,
        ..RegisterRequest::default()
    };
    let runner = client.call::<_, RegisterResponse>("Register", &request).unwrap().runner.unwrap();
    assert!(runner.ephemeral);
    (client.uuid, client.token) = (runner.uuid, runner.token);
    forge.enqueue(payload(1));
    forge.enqueue(payload(1));
    let task = client.fetch(0).task.unwrap().id;
    assert!(client.fetch(0).task.is_none(), "one task and no more");
    client.log(task, 0, &["row"], true).unwrap();
    client.state(ended(task, WireResult::Success, vec![step(0, WireResult::Success, 0, 1)]), &[]);
    let refused = client.call::<_, FetchTaskResponse>("FetchTask", &FetchTaskRequest::default()).unwrap_err();
    assert!(refused.contains("unregistered runner"), "{refused}");
}

#[test]
fn what_a_real_server_suffers_in_silence_is_a_violation() {
    let forge = Forge::start(Options::default()).unwrap();
    let client = Client::register(&forge, &["host"], &[]);
    forge.enqueue(payload(2));
    let task = client.fetch(0).task.unwrap().id;
    let broke = |what: &str, rules: &[&str]| {
        let violations: Vec<String> = forge.take_violations();
        let mut broken: Vec<&str> = violations.iter().map(|one| one.split(':').next().unwrap()).collect();
        broken.sort_unstable();
        broken.dedup();
        assert_eq!(broken, rules, "{what}: {violations:?}");
    };
    let u = WireResult::Unspecified;
    let ok = WireResult::Success;

    client.log(task, 5, &["a"], false).unwrap();
    broke("rows from the future", &["Gap"]);
    client.log(task, 0, &["a", "b", "c", "d"], false).unwrap();
    client.state(running(task, vec![step(0, u, 1, 2), StepState { id: 1, ..StepState::default() }]), &[]);
    broke("a good start", &[]);
    client.state(running(task, vec![step(0, u, 1, 2)]), &[]);
    broke("a step is missing", &["Steps"]);
    client.state(running(task, vec![step(0, u, 1, 1), step(1, u, 2, 0)]), &[]);
    broke("a step lost a row", &["LogLength"]);
    client.state(running(task, vec![step(0, u, 1, 9), step(1, u, 10, 0)]), &[]);
    broke("rows that are not there", &["LogLength", "StateBeforeLog"]);
    client.log(task, 4, &[&"x".repeat(70_000)], false).unwrap();
    broke("a long row", &["Row"]);
    client.log(task, 5, &[], true).unwrap();
    broke("a seal without a row", &["EmptySeal"]);
    let no_time = StepState { stopped_at: None, ..step(1, ok, 10, 0) };
    client.state(running(task, vec![step(0, ok, 1, 9), no_time]), &[("x", &"y".repeat(2 << 20))]);
    broke("no time, a large output", &["Output", "StateBeforeLog", "Times"]);
    client.state(running(task, vec![step(0, ok, 1, 9), step(1, ok, 11, 0)]), &[]);
    broke("a hole between two steps", &["LogLength", "StateBeforeLog", "Uncovered"]);
    client.state(ended(task, ok, vec![step(0, ok, 1, 9), step(1, ok, 11, 0)]), &[]);
    let violations = forge.take_violations();
    assert!(violations.iter().any(|one| one.starts_with("ResultBeforeSeal")), "{violations:?}");
    client.log(task, 5, &["late"], true).unwrap();
    client.log(task, 6, &["later"], false).unwrap_err();
    let violations = forge.take_violations();
    assert!(violations[0].starts_with("RowsAfterSeal"), "{violations:?}");
}

#[test]
fn faults_happen_as_often_as_asked() {
    let forge = Forge::start(Options::default()).unwrap();
    let client = Client::register(&forge, &["host"], &[]);
    forge.enqueue(payload(1));
    let fetch = || client.send("FetchTask", b"", &[]);
    forge.fault(Method::FetchTask, Fault::Refuse, 2);
    forge.fault(Method::FetchTask, Fault::Stall(Duration::from_millis(10)), 1);
    forge.fault(Method::FetchTask, Fault::Html(502), 1);
    for _ in 0..3 {
        fetch().unwrap_err();
    }
    let page = fetch().unwrap();
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html")));
    assert_eq!(forge.faults_left(), 0);
    let task = client.fetch(0).task.unwrap().id;

    forge.fault(Method::UpdateLog, Fault::DropReply, 1);
    client.log(task, 0, &["one", "two", "three"], false).unwrap_err();
    assert_eq!(forge.runs()[0].jobs[0].rows, 3, "the request was carried out");
    forge.fault(Method::UpdateLog, Fault::ForgetRows(2), 1);
    assert_eq!(client.log(task, 3, &["four"], false), Ok(1));
    assert_eq!(client.log(task, 1, &["two", "three", "four"], false), Ok(4));
    forge.fault(Method::UpdateLog, Fault::SealEarly, 1);
    assert!(client.log(task, 4, &["five"], false).unwrap_err().contains("archived"));

    forge.go_down();
    forge
        .wait_for("refused connections", Duration::from_secs(10), |_| fetch().is_err().then_some(()))
        .unwrap();
    forge.come_up();
    forge.wait_for("answers", Duration::from_secs(10), |_| fetch().is_ok().then_some(())).unwrap();
    // The gap was the doing of the fault above.
    let violations = forge.take_violations();
    assert!(violations.iter().all(|one| one.starts_with("Gap")), "{violations:?}");
}

const WORKFLOW: &str = r#"
name: Two
run-name: two jobs
on:
  push:
    branches: [main]
jobs:
  first:
    runs-on: host
    outputs: {word: "${{ steps.say.outputs.word }}"}
    steps:
      - {id: say, name: Say, run: echo}
  after:
    needs: [first]
    runs-on: [host]
    steps:
      - run: echo ${{ needs.first.outputs.word }}
  never:
    needs: broken
    runs-on: host
    steps: [{run: echo}]
  broken:
    runs-on: host
    steps: [{run: exit 1}]
"#;

#[test]
fn a_push_starts_the_workflow_that_it_brings() {
    let forge = Forge::start(Options::default()).unwrap();
    forge.set_secret("KEY", "hidden");
    forge.set_var("PLACE", "here");
    let repository = forge.repository("dev/app").unwrap();
    let sha = repository.push(&[(".gitea/workflows/two.yaml", WORKFLOW), ("README.md", "hello")]).unwrap();
    push_files(&repository.push_url(), "other", &[("README.md", "elsewhere")]).unwrap();
    assert_eq!(forge.runs().len(), 1, "only the push to main counts: {}", forge.describe());
    let run = &forge.runs()[0];
    assert_eq!((run.title.as_str(), run.sha.as_str(), run.number), ("two jobs", sha.as_str(), 1));
    let states: Vec<Status> = run.jobs.iter().map(|job| job.status).collect();
    let (waiting, blocked) = (Status::Waiting, Status::Blocked);
    assert_eq!(states, [waiting, blocked, blocked, waiting]);

    let client = Client::register(&forge, &["host"], &[]);
    let reply = client.fetch(0);
    let task = reply.task.unwrap();
    assert_eq!(task.secrets["KEY"], "hidden");
    assert_eq!(task.secrets["GITHUB_TOKEN"].len(), 40);
    assert_eq!(task.vars["PLACE"], "here");
    assert_eq!(text(&task, "repository"), "dev/app");
    assert_eq!(text(&task, "server_url"), format!("{}/", forge.url()));
    assert_eq!(text(&task, "ref"), "refs/heads/main");
    assert_eq!(text(&task, "workflow"), "two.yaml");

    // The token of the task can read the repository.
    let folder = tempfile::tempdir().unwrap();
    let url =
        repository.url().replace("://", &format!("://x-access-token:{}@", task.secrets["GITHUB_TOKEN"]));
    let cloned =
        std::process::Command::new("git").args(["clone", "-q", &url]).arg(folder.path()).output().unwrap();
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    assert!(folder.path().join("README.md").exists());

    let finish = |task: i64, result: WireResult, outputs: &[(&str, &str)]| {
        client.log(task, 0, &["set up", "row", "tear down"], true).unwrap();
        client.state(ended(task, result, vec![step(0, result, 1, 1)]), outputs);
    };
    finish(task.id, WireResult::Success, &[("word", "spoken")]);
    let second = client.fetch(0).task.unwrap();
    assert_eq!(second.needs["first"].outputs["word"], "spoken");
    assert_eq!(second.needs["first"].result(), WireResult::Success);
    finish(second.id, WireResult::Success, &[]);
    let third = client.fetch(0).task.unwrap();
    finish(third.id, WireResult::Failure, &[]);

    let run = forge.wait_done(1, Duration::from_secs(10)).unwrap();
    assert_eq!(run.status, Status::Failure);
    assert_eq!(run.job("never").unwrap().status, Status::Skipped);
    let steps: Vec<_> =
        run.jobs[0].steps.iter().map(|step| (step.name.as_str(), step.rows.clone())).collect();
    assert_eq!(steps, [("Set up job", 0..1), ("Say", 1..2), ("Complete job", 2..3)]);
    assert_eq!(forge.text(run.jobs[0].id), ["set up", "row", "tear down"]);
    // The push of another branch took no token away, and a finished task's token is worth nothing.
    let refused = std::process::Command::new("git")
        .args(["push", "-q", &url, "main:again"])
        .current_dir(folder.path())
        .env("GIT_TERMINAL_PROMPT", "0")
        .output()
        .unwrap();
    assert!(!refused.status.success());
}

#[test]
fn a_declared_label_decides_who_gets_the_job() {
    let forge = Forge::start(Options { path_prefix: "/git".to_owned(), ..Options::default() }).unwrap();
    assert!(forge.url().ends_with("/git"));
    let client = Client::register(&forge, &["other"], &[]);
    forge.enqueue(payload(1));
    let reply = client.fetch(0);
    assert!(reply.task.is_none());
    assert!(reply.tasks_version >= 2);
    let declare = DeclareRequest { labels: vec!["host".to_owned()], ..DeclareRequest::default() };
    client.call::<_, DeclareResponse>("Declare", &declare).unwrap();
    assert!(client.fetch(reply.tasks_version).task.is_none(), "nothing is looked for at the same version");
    assert!(client.fetch(0).task.is_some());
    forge.unregister_all();
}
