//! The daemon on the stand-in: registering, the scenarios of every Gitea, bad payloads, and every kind of fault.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod scenarios;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::{Duration, Instant};

use scenarios::{PATIENCE, registered, runner, ticks, wait};
use sower_test_support::{
    Enqueue, ErrorStyle, Fault, Forge, Method, Options, Rule, RunView, Runner, Status, Version, free_address,
};

fn forge() -> Forge {
    Forge::start(Options::default()).unwrap()
}

scenarios::scenarios!(forge);

fn new_runner() -> Runner {
    Runner::new(env!("CARGO_BIN_EXE_sower"), 1).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// Registering.

#[test]
fn register_writes_a_private_file() {
    let forge = forge();
    let runner = new_runner();
    let labels = "host:host,haskelseed";
    let output = runner.register(&forge.url(), &forge.registration_token(), labels, &[]).unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let file = runner.state_file();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["name"], "under-test");
    assert_eq!(written["address"], forge.url());
    assert_eq!(written["uuid"].as_str().unwrap().len(), 36);
    assert_eq!(written["token"].as_str().unwrap().len(), 40);
    assert_eq!(written["labels"][0], "host:host");
    let known = forge.runners();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].labels, ["host", "haskelseed"]);
    assert!(known[0].capabilities.contains(&"cancelling".to_owned()), "{known:?}");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert!(!said.contains(written["token"].as_str().unwrap()), "the token is nobody's business: {said}");
}

#[test]
fn register_with_a_wrong_token_says_so() {
    let forge = forge();
    let runner = new_runner();
    let output = runner.register(&forge.url(), "no-such-token", "host:host", &[]).unwrap();
    assert!(!output.status.success());
    let said = stderr(&output);
    assert!(said.contains("token"), "{said}");
    assert!(!said.contains("no-such-token"), "{said}");
    assert!(!runner.state_file().exists());
}

#[test]
fn register_at_what_is_no_gitea_says_so() {
    let forge = forge();
    let runner = new_runner();
    let url = format!("{}/elsewhere", forge.url());
    let output = runner.register(&url, &forge.registration_token(), "host:host", &[]).unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains(&url), "{}", stderr(&output));
    assert!(stderr(&output).contains("Gitea"), "{}", stderr(&output));
    assert!(!runner.state_file().exists());
}

#[test]
fn register_where_nobody_listens_says_so() {
    let address = free_address().unwrap();
    let runner = new_runner();
    let output = runner.register(&format!("http://{address}"), "token", "host:host", &[]).unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains(&address.to_string()), "{}", stderr(&output));
    assert!(!runner.state_file().exists());
}

#[test]
fn a_label_that_cannot_be_is_refused() {
    let forge = forge();
    let runner = new_runner();
    let output =
        runner.register(&forge.url(), &forge.registration_token(), "host:docker://image", &[]).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("docker"), "{}", stderr(&output));
    assert!(forge.runners().is_empty());
}

#[test]
fn a_daemon_without_registration_says_what_to_do() {
    let mut runner = new_runner();
    runner.start(&[]).unwrap();
    let left = runner.wait(PATIENCE).unwrap();
    assert!(!left.success());
    assert!(runner.said().contains("register"), "{}", runner.said());
}

// Runs of one job that the test writes.

fn payload(yaml: &str) -> Enqueue {
    Enqueue { payload: yaml.as_bytes().to_vec(), labels: vec!["host".to_owned()], ..Enqueue::default() }
}

/// A job that prints `count` numbered rows and then its end.
fn counting(count: u32) -> Enqueue {
    payload(&format!(
        "on: push\njobs:\n  count:\n    runs-on: host\n    steps:\n      - name: Count\n        run: |\n          \
         for i in $(seq 1 {count}); do echo \"tick $i\"; sleep 0.01; done\n      - name: Say\n        run: echo over\n"
    ))
}

fn done(forge: &Forge, run: i64) -> RunView {
    forge.wait_done(run, PATIENCE).unwrap()
}

fn assert_counted(forge: &Forge, run: &RunView, count: u32) {
    let job = &run.jobs[0];
    assert_eq!(job.status, Status::Success, "{}", forge.describe());
    assert!(job.sealed, "the log of a finished job is complete");
    let rows = forge.text(job.id);
    assert_eq!(ticks(&rows), (1..=count).collect::<Vec<_>>(), "{}", forge.describe());
    assert!(rows.iter().any(|row| row == "over"), "{}", forge.describe());
}

#[test]
fn the_rows_of_each_step_are_shown_below_it() {
    let forge = forge();
    let _runner = runner(&forge, 1);
    let run = forge.enqueue(counting(20));
    let run = done(&forge, run);
    assert_counted(&forge, &run, 20);
    let job = &run.jobs[0];
    let rows = |name: &str| {
        let range = job.step(name).unwrap().rows.clone();
        forge.rows(job.id, range).into_iter().map(|row| row.text).collect::<Vec<_>>()
    };
    assert_eq!(ticks(&rows("Count")).len(), 20, "{}", forge.describe());
    assert!(!rows("Say").is_empty() && ticks(&rows("Say")).is_empty());
    let setup = rows("Set up job").join("\n");
    assert!(setup.contains("sower") && setup.contains(env!("CARGO_PKG_VERSION")), "{setup}");
    let named: usize = job.steps.iter().map(|step| step.rows.len()).sum();
    assert_eq!(named, job.rows, "every row is shown, and once: {}", forge.describe());
}

#[test]
fn results_and_outputs_of_needed_jobs_are_known() {
    let forge = forge();
    let _runner = runner(&forge, 1);
    let outputs = BTreeMap::from([("word".to_owned(), "a b".to_owned())]);
    let run = forge.enqueue(Enqueue {
        needs: BTreeMap::from([("first".to_owned(), (Status::Failure, outputs))]),
        secrets: BTreeMap::from([("EMPTY".to_owned(), String::new()), ("TWO".to_owned(), "one\ntwo-of-it".to_owned())]),
        ..payload(
            "on: push\njobs:\n  x:\n    runs-on: host\n    if: always()\n    outputs: {back: \"${{ steps.s.outputs.back }}\"}\n    \
             steps:\n      - id: s\n        run: |\n          echo \"back=${{ needs.first.outputs.word }}\" >> \"$GITHUB_OUTPUT\"\n          \
             echo \"first ${{ needs.first.result }} of ${{ github.repository }}\"\n          echo 'x two-of-it y'\n",
        )
    });
    let run = done(&forge, run);
    let job = &run.jobs[0];
    assert_eq!(job.status, Status::Success, "{}", forge.describe());
    assert_eq!(job.outputs["back"], "a b");
    let rows = forge.text(job.id);
    assert!(rows.contains(&"first failure of dev/enqueued".to_owned()), "{rows:#?}");
    assert!(rows.contains(&"x *** y".to_owned()), "each line of a secret is masked: {rows:#?}");
}

// Payloads that no runner can run.

fn refuses(what: &str, payload: Vec<u8>) {
    let forge = forge();
    // Who cannot read the payload knows of no steps.
    forge.allow(Rule::Steps);
    let runner = runner(&forge, 1);
    let run = forge.enqueue(Enqueue { payload, labels: vec!["host".to_owned()], ..Enqueue::default() });
    let run = done(&forge, run);
    let job = &run.jobs[0];
    assert_eq!(job.status, Status::Failure, "{what}: {}", forge.describe());
    assert!(job.sealed, "{what}");
    let rows = forge.text(job.id);
    assert!(rows.iter().any(|row| row.contains("##[error]")), "{what} is explained: {rows:#?}");
    assert!(rows.len() < 100, "{what}: {} rows", rows.len());
    // The next job is none the worse for it.
    let next = forge.enqueue(counting(3));
    assert_counted(&forge, &done(&forge, next), 3);
    drop(runner);
}

#[test]
fn a_payload_without_a_job_fails() {
    refuses("no job", b"name: nothing\non: push\njobs: {}\n".to_vec());
}

#[test]
fn a_payload_with_two_jobs_fails() {
    let job = "{runs-on: host, steps: [{run: echo}]}";
    refuses("two jobs", format!("on: push\njobs:\n  a: {job}\n  b: {job}\n").into_bytes());
}

#[test]
fn a_payload_that_is_not_yaml_fails() {
    refuses("not YAML", b"jobs: {a: [}\n\t%".to_vec());
}

#[test]
fn a_payload_of_noise_fails() {
    refuses(
        "noise",
        (0..50_000_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect(),
    );
}

#[test]
fn an_empty_payload_fails() {
    refuses("nothing", Vec::new());
}

#[test]
fn a_huge_payload_fails() {
    let mut huge = "on: push\njobs:\n  a:\n    runs-on: host\n    env:\n".to_owned();
    while huge.len() < 40_000_000 {
        let _ = writeln!(huge, "      K{}: {}", huge.len(), "x".repeat(200));
    }
    huge.push_str("    steps: [{run: echo}]\n");
    refuses("huge", huge.into_bytes());
}

#[test]
fn a_billion_laughs_fail() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(bomb, "a{level}: &a{level} [{list}]");
    }
    refuses(
        "aliases of aliases",
        format!("{bomb}jobs: {{a: {{runs-on: host, env: *a11, steps: []}}}}\n").into_bytes(),
    );
}

// Faults. Each hits a running job, which must not notice.

/// Runs a job while a method meets a fault some times.
fn survives(options: Options, method: Method, fault: Fault, times: usize) {
    let forge = Forge::start(options).unwrap();
    let runner = runner(&forge, 1);
    let run = if method == Method::FetchTask {
        // A lost reply would lose the task on a real server too, so this hits empty polls.
        forge.fault(method, fault, times);
        forge.wait_for("the faults", PATIENCE, |forge| (forge.faults_left() == 0).then_some(())).unwrap();
        forge.enqueue(counting(50))
    } else {
        let run = forge.enqueue(counting(150));
        forge
            .wait_for("a row", PATIENCE, |forge| {
                forge.run(run)?.jobs.first().is_some_and(|job| job.rows > 0).then_some(())
            })
            .unwrap();
        forge.fault(method, fault, times);
        run
    };
    let seen = done(&forge, run);
    assert_eq!(forge.faults_left(), 0, "the job ended before the fault: {}", forge.describe());
    assert_counted(&forge, &seen, if method == Method::FetchTask { 50 } else { 150 });
    drop(runner);
}

macro_rules! faults {
    ($($name:ident: $method:ident $fault:expr;)*) => {
        $(
            #[test]
            fn $name() {
                survives(Options::default(), Method::$method, $fault, 1);
            }
        )*
    };
}

const MOMENT: Duration = Duration::from_secs(2);

faults! {
    a_refused_log_is_sent_again: UpdateLog Fault::Refuse;
    a_stalled_log_is_sent_again: UpdateLog Fault::Stall(MOMENT);
    a_log_whose_reply_is_lost_is_not_doubled: UpdateLog Fault::DropReply;
    a_log_that_met_a_500_is_sent_again: UpdateLog Fault::Html(500);
    a_log_that_met_a_502_is_sent_again: UpdateLog Fault::Html(502);
    a_slow_log_is_waited_for: UpdateLog Fault::Slow(MOMENT);
    rows_that_the_server_lost_are_sent_again: UpdateLog Fault::ForgetRows(5);
    a_refused_state_is_sent_again: UpdateTask Fault::Refuse;
    a_stalled_state_is_sent_again: UpdateTask Fault::Stall(MOMENT);
    a_state_whose_reply_is_lost_is_sent_again: UpdateTask Fault::DropReply;
    a_state_that_met_a_500_is_sent_again: UpdateTask Fault::Html(500);
    a_state_that_met_a_502_is_sent_again: UpdateTask Fault::Html(502);
    a_slow_state_is_waited_for: UpdateTask Fault::Slow(MOMENT);
    a_refused_poll_is_made_again: FetchTask Fault::Refuse;
    a_stalled_poll_is_made_again: FetchTask Fault::Stall(MOMENT);
    a_poll_whose_reply_is_lost_is_made_again: FetchTask Fault::DropReply;
    a_poll_that_met_a_500_is_made_again: FetchTask Fault::Html(500);
    a_poll_that_met_a_502_is_made_again: FetchTask Fault::Html(502);
    a_slow_poll_is_waited_for: FetchTask Fault::Slow(MOMENT);
}

#[test]
fn a_log_that_the_server_sealed_is_let_go() {
    let forge = forge();
    let _runner = runner(&forge, 1);
    let run = forge.enqueue(counting(150));
    forge
        .wait_for("a row", PATIENCE, |forge| (forge.run(run)?.jobs.first()?.rows > 0).then_some(()))
        .unwrap();
    forge.fault(Method::UpdateLog, Fault::SealEarly, 1);
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success, "the job is what it was: {}", forge.describe());
    assert!(run.jobs[0].sealed);
}

#[test]
fn the_reply_to_the_last_rows_may_be_lost_on_every_server() {
    for version in [Version::V1_26_1, Version::V1_26_2, Version::V1_27] {
        let forge = Forge::start(Options { version, ..Options::default() }).unwrap();
        let runner = runner(&forge, 1);
        // A job this short may have one batch only.
        forge.fault(Method::UpdateLog, Fault::DropReply, 1);
        let run = forge.enqueue(counting(1));
        let seen = done(&forge, run);
        assert_counted(&forge, &seen, 1);
        // And one where it is surely the last.
        let run = forge.enqueue(counting(100));
        forge
            .wait_for("the last tick", PATIENCE, |forge| {
                let job = forge.run(run)?.jobs.into_iter().next()?;
                (forge.text(job.id).iter().any(|row| row == "tick 60")).then_some(())
            })
            .unwrap();
        forge.fault(Method::UpdateLog, Fault::DropReply, 3);
        let seen = done(&forge, run);
        assert_counted(&forge, &seen, 100);
        drop(runner);
    }
}

// Ends that come from the server.

/// A step that waits to be ended, and one that cleans up.
fn endless() -> Enqueue {
    payload(
        "on: push\njobs:\n  endless:\n    runs-on: host\n    steps:\n      - name: Wait\n        run: |\n          \
         echo waiting\n          sleep 3600\n      - name: Clean\n        if: always()\n        run: echo \"cleaned, ${{ job.status }}\"\n",
    )
}

fn waiting(forge: &Forge, run: i64) -> RunView {
    forge
        .wait_for("the first row of the step", PATIENCE, |forge| {
            let run = forge.run(run)?;
            let job = run.jobs.first()?;
            forge.text(job.id).iter().any(|row| row == "waiting").then_some(run)
        })
        .unwrap()
}

#[test]
fn a_server_that_can_wait_sees_the_clean_up_of_a_cancelled_job() {
    let forge = Forge::start(Options { version: Version::V1_27, ..Options::default() }).unwrap();
    let _runner = runner(&forge, 1);
    let run = forge.enqueue(endless());
    waiting(&forge, run);
    forge.cancel(run);
    assert_eq!(forge.run(run).unwrap().status, Status::Cancelling);
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Cancelled);
    let job = &run.jobs[0];
    assert!(job.sealed);
    assert_eq!(job.step("Clean").unwrap().status, Status::Success, "{}", forge.describe());
    assert!(forge.text(job.id).contains(&"cleaned, cancelled".to_owned()), "{}", forge.describe());
}

#[test]
fn a_job_that_the_server_gave_up_is_stopped() {
    let forge = forge();
    let runner = runner(&forge, 1);
    let run = forge.enqueue(endless());
    let seen = waiting(&forge, run);
    let steps = runner.processes().len();
    assert!(steps > 1);
    forge.reap(seen.jobs[0].task.unwrap());
    wait("the end of the job's processes", || (runner.processes().len() == 1).then_some(()));
    // Sealed by the server: nothing more can be said.
    let next = forge.enqueue(counting(3));
    assert_counted(&forge, &done(&forge, next), 3);
}

#[test]
fn an_unregistered_daemon_leaves() {
    for errors in [ErrorStyle::Grpc, ErrorStyle::Genuine] {
        let forge = Forge::start(Options { errors, ..Options::default() }).unwrap();
        let mut runner = runner(&forge, 1);
        forge
            .wait_for("a poll", PATIENCE, |forge| (forge.requests(Method::FetchTask) > 1).then_some(()))
            .unwrap();
        forge.unregister_all();
        let left = runner.wait(PATIENCE).unwrap();
        assert_eq!(left.code(), Some(1), "{errors:?}: {}", runner.said());
        assert!(runner.said().contains("register"), "{errors:?}: {}", runner.said());
    }
}

// The daemon's own life.

#[test]
fn a_stopped_daemon_leaves_its_job_to_the_next() {
    let forge = forge();
    let mut runner = runner(&forge, 1);
    // It ends when the test says so, however slowly the daemon leaves.
    let gate = runner.folder().join("gate");
    let run = forge.enqueue(payload(&format!(
        "on: push\njobs:\n  count:\n    runs-on: host\n    steps:\n      - run: |\n          \
         seq -f 'tick %.0f' 1 100\n          until [ -e {} ]; do sleep 0.1; done\n          \
         seq -f 'tick %.0f' 101 200\n      - run: echo over\n",
        gate.display()
    )));
    forge
        .wait_for("rows", PATIENCE, |forge| (forge.run(run)?.jobs.first()?.rows > 20).then_some(()))
        .unwrap();
    runner.signal("TERM").unwrap();
    let left = runner.wait(PATIENCE).unwrap();
    assert!(left.success(), "{left}: {}", runner.said());
    assert!(!forge.run(run).unwrap().status.is_done(), "stopping the daemon is no end of the job");
    std::fs::write(&gate, "").unwrap();
    runner.start(&[]).unwrap();
    assert_counted(&forge, &done(&forge, run), 200);
}

#[test]
fn once_means_one_task() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let first = forge.enqueue(counting(3));
    let second = forge.enqueue(counting(3));
    runner.start(&["--once"]).unwrap();
    assert!(runner.wait(PATIENCE).unwrap().success(), "{}", runner.said());
    assert_counted(&forge, &forge.run(first).unwrap(), 3);
    assert_eq!(forge.run(second).unwrap().status, Status::Waiting);
}

#[test]
fn two_slots_run_two_jobs_at_a_time() {
    let forge = forge();
    let runner = runner(&forge, 2);
    let meet = |own: &str, other: &str| {
        let folder = runner.folder().display();
        payload(&format!(
            "on: push\njobs:\n  meet:\n    runs-on: host\n    timeout-minutes: 2\n    steps:\n      - run: |\n          \
             touch {folder}/{own}\n          until [ -e {folder}/{other} ]; do sleep 0.1; done\n"
        ))
    };
    let runs = [forge.enqueue(meet("a", "b")), forge.enqueue(meet("b", "a"))];
    for run in runs {
        assert_eq!(done(&forge, run).status, Status::Success, "{}", forge.describe());
    }
}

#[test]
fn a_summary_reaches_a_server_that_shows_it() {
    let forge = Forge::start(Options { version: Version::V1_27, ..Options::default() }).unwrap();
    let _runner = runner(&forge, 1);
    let run = forge.enqueue(payload(
        "on: push\njobs:\n  sum:\n    runs-on: host\n    steps:\n      - run: echo\n      - run: echo '# Result' >> \"$GITHUB_STEP_SUMMARY\"\n",
    ));
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
    assert_eq!(run.jobs[0].summaries.get(&1).map(String::as_str), Some("# Result\n"), "{}", forge.describe());
}

#[test]
fn many_rows_arrive_in_few_requests() {
    let forge = forge();
    let _runner = runner(&forge, 1);
    let before = Instant::now();
    let run = forge.enqueue(payload(
        "on: push\njobs:\n  many:\n    runs-on: host\n    steps:\n      - run: seq -f 'tick %.0f' 1 50000\n",
    ));
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
    assert_eq!(ticks(&forge.text(run.jobs[0].id)).len(), 50_000);
    // A batch a second while it runs, and what a large one must be cut into.
    let most = 20 + before.elapsed().as_secs() * 3;
    let requests = forge.requests(Method::UpdateLog);
    assert!(requests <= most, "{requests} UpdateLog, {most} would do");
}

#[test]
fn a_rule_that_is_broken_on_purpose_is_no_violation() {
    let forge = forge();
    forge.allow(Rule::Heartbeat);
    assert!(forge.violations().is_empty());
}

// Reloading, and room on the disk.

#[test]
fn a_reload_brings_labels_and_opens_the_disk_gate() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let config = std::fs::read_to_string(runner.config_file()).unwrap();
    let gate = |free: &str| format!("{config}housekeeping:\n  min_free: {free}\n");
    // No disk has as much.
    std::fs::write(runner.config_file(), gate("900000TiB")).unwrap();
    runner.start(&[]).unwrap();
    wait("the gate", || runner.said().contains("fetching no tasks until there is room").then_some(()));
    let run = forge.submit(
        "main.yaml",
        "on: push\njobs:\n  a:\n    runs-on: fresh\n    steps:\n      - run: echo hello\n",
    );
    let run = run.unwrap();

    // What is wrong changes nothing.
    std::fs::write(runner.config_file(), "runner: {capacity: none}\n").unwrap();
    runner.signal("HUP").unwrap();
    wait("the refusal", || runner.said().contains("not reloaded, all stays as it was").then_some(()));

    let labelled = gate("0").replacen("\nrunner:\n", "\nrunner:\n  labels: [fresh]\n", 1);
    std::fs::write(runner.config_file(), labelled).unwrap();
    runner.signal("HUP").unwrap();
    let done = forge.wait_done(run, PATIENCE).unwrap();
    assert_eq!(done.status, Status::Success, "{}", runner.said());
    assert!(runner.said().contains("reloaded: labels fresh, capacity 1"), "{}", runner.said());
}

// The service manager.

#[test]
fn the_service_manager_hears_of_the_daemon() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let path = runner.folder().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    runner.wrap(&["env", &format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=400000"]);
    runner.start(&[]).unwrap();
    let told = |what: &str| {
        let mut buffer = [0; 512];
        while let Ok(length) = manager.recv(&mut buffer) {
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == what) {
                return;
            }
        }
        panic!("{what} did not come");
    };
    told("READY=1");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    runner.signal("HUP").unwrap();
    told("RELOADING=1");
    told("READY=1");
    runner.signal("TERM").unwrap();
    told("STOPPING=1");
    runner.wait(PATIENCE).unwrap();
}
