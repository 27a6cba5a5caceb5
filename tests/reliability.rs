//! Nothing lost, nothing left behind: daemons and jobs are killed, the server fails, disks fill up, jobs are hostile.
//! Where chance has a part, its seed is printed, and `SOWER_SEED` runs it again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "scenarios/start.rs"]
mod start;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sower_test_support::{
    Dice, Enqueue, Fault, Forge, JobView, Method, Options, Rule, RunView, Runner, Status, Version, signal,
};
use start::{PATIENCE, registered, runner, ticks, wait};

fn forge() -> Forge {
    Forge::start(Options::default()).unwrap()
}

/// A job of these steps: name, further keys, script.
fn job(steps: &[(&str, &str, &str)]) -> Enqueue {
    let mut yaml = "on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n".to_owned();
    for (name, keys, script) in steps {
        let _ = writeln!(yaml, "      - name: {name}");
        for key in keys.split(';').filter(|key| !key.is_empty()) {
            let _ = writeln!(yaml, "        {}", key.trim());
        }
        yaml.push_str("        run: |\n");
        for line in script.lines() {
            let _ = writeln!(yaml, "          {line}");
        }
    }
    Enqueue { payload: yaml.into_bytes(), labels: vec!["host".to_owned()], ..Enqueue::default() }
}

fn done(forge: &Forge, run: i64) -> RunView {
    forge.wait_done(run, PATIENCE).unwrap()
}

fn only(run: &RunView) -> &JobView {
    &run.jobs[0]
}

/// Waits for a row of a run's job.
fn row(forge: &Forge, run: i64, text: &str) -> JobView {
    forge
        .wait_for(&format!("the row {text:?}"), PATIENCE, |forge| {
            let job = forge.run(run)?.jobs.into_iter().next()?;
            forge.text(job.id).iter().any(|row| row == text).then_some(job)
        })
        .unwrap()
}

fn has(forge: &Forge, job: &JobView, text: &str) {
    assert!(forge.text(job.id).iter().any(|row| row.contains(text)), "{text:?}: {}", forge.describe());
}

/// Whether the process whose number stands in a file is gone.
fn gone(file: &Path) -> bool {
    let pid = fs::read_to_string(file).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.map_or(true, |stat| stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// The next job is none the worse for what was before it.
fn still_works(forge: &Forge) {
    let run = forge.enqueue(job(&[("Fine", "", "echo fine")]));
    let run = done(forge, run);
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
}

// 1. The daemon dies.

#[test]
fn a_daemon_that_is_killed_again_and_again_loses_nothing() {
    let mut dice = Dice::from_env("SOWER_SEED");
    let forge = forge();
    let mut runner = runner(&forge, 2);
    let count = runner.folder().join("count");
    let script = format!(
        "echo x >> {}\nfor i in $(seq 1 1500); do echo \"tick $i\"; sleep 0.004; done",
        count.display()
    );
    let steps = [
        ("Count", "", script.as_str()),
        ("More", "", "for i in $(seq 1501 1600); do echo \"tick $i\"; done"),
    ];
    let runs = [forge.enqueue(job(&steps)), forge.enqueue(job(&steps))];
    // A task whose reply a killed daemon has not read is lost, and has a test of its own.
    for run in runs {
        wait("the task on disk", || task(&forge, run).filter(|task| runner.job_folder(*task).exists()));
    }
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(dice.below(700)));
        runner.kill().unwrap();
        runner.start(&[]).unwrap();
    }
    for run in runs {
        let run = done(&forge, run);
        assert_eq!(run.status, Status::Success, "{}\n{}", forge.describe(), runner.said());
        assert_eq!(ticks(&forge.text(only(&run).id)), (1..=1600).collect::<Vec<_>>());
    }
    assert_eq!(fs::read_to_string(count).unwrap(), "x\nx\n", "no step runs twice");
}

/// The task of a run's job, once it is handed out.
fn task(forge: &Forge, run: i64) -> Option<i64> {
    forge.run(run)?.jobs.first()?.task
}

#[test]
fn a_daemon_that_is_killed_while_it_takes_tasks_starts_each_once_or_never_had_it() {
    let mut dice = Dice::from_env("SOWER_SEED");
    let forge = forge();
    // Killed right after a call, nobody knows whether it has arrived: it is made once more.
    forge.allow(Rule::RowsAfterSeal);
    forge.allow(Rule::Result);
    let mut runner = runner(&forge, 3);
    let marks: Vec<_> = (0..12).map(|number| runner.folder().join(format!("ran-{number}"))).collect();
    let runs: Vec<i64> = marks
        .iter()
        .map(|mark| forge.enqueue(job(&[("Mark", "", &format!("echo x >> {}\necho done", mark.display()))])))
        .collect();
    for _ in 0..20 {
        let asked = forge.requests(Method::FetchTask);
        let left = |forge: &Forge| runs.iter().all(|run| task(forge, *run).is_some());
        forge
            .wait_for("a question", PATIENCE, |forge| {
                (forge.requests(Method::FetchTask) > asked || left(forge)).then_some(())
            })
            .unwrap();
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        runner.kill().unwrap();
        runner.start(&[]).unwrap();
    }
    let mut lost = 0;
    for (run, mark) in runs.into_iter().zip(marks) {
        let open = |forge: &Forge| {
            let run = forge.run(run)?;
            let task = run.jobs.first()?.task?;
            (!run.status.is_done() && !runner.job_folder(task).exists()).then_some(task)
        };
        // The daemon that lives has written down what it was given before it asks for more.
        let mut since = None;
        let never_had = forge
            .wait_for("the end of the job", PATIENCE, |forge| {
                let asked = forge.requests(Method::FetchTask);
                match (open(forge), since) {
                    (Some(_), None) => since = Some(asked),
                    (Some(task), Some(since)) if asked > since + 1 => return Some(Some(task)),
                    (Some(_), Some(_)) => {}
                    (None, _) => since = None,
                }
                forge.run(run).filter(|run| run.status.is_done()).map(|_| None)
            })
            .unwrap();
        let ran = fs::read_to_string(&mark).unwrap_or_default();
        if let Some(task) = never_had {
            lost += 1;
            assert_eq!(ran, "", "{}", runner.said());
            forge.reap(task);
            continue;
        }
        let run = forge.run(run).unwrap();
        if run.status == Status::Success {
            assert_eq!(ran, "x\n");
        } else {
            // It was killed while it wrote the task down.
            has(&forge, only(&run), "never started");
            assert_eq!(ran, "", "{}", runner.said());
        }
    }
    println!("{lost} of 12 tasks were lost with the reply");
    let broken = forge.take_violations();
    assert!(broken.iter().all(|rule| rule.starts_with("Steps: ")), "{broken:?}");
    still_works(&forge);
}

#[test]
fn a_second_daemon_says_who_is_there() {
    let forge = forge();
    let runner = runner(&forge, 1);
    forge
        .wait_for("a poll", PATIENCE, |forge| (forge.requests(Method::FetchTask) > 0).then_some(()))
        .unwrap();
    let config = runner.config_file();
    let second = runner.run(&["daemon", "-c", config.to_str().unwrap()]).unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(&format!("process {}", runner.pid().unwrap())), "{said}");
    still_works(&forge);
}

#[test]
fn a_drained_daemon_leaves_when_its_jobs_have_ended() {
    for by_command in [false, true] {
        let forge = forge();
        let mut runner = runner(&forge, 1);
        let gate = runner.folder().join("gate");
        let wait_there = format!("echo begun\nuntil [ -e {} ]; do sleep 0.1; done", gate.display());
        let first = forge.enqueue(job(&[("Wait", "", &wait_there)]));
        row(&forge, first, "begun");
        let second = forge.enqueue(job(&[("Late", "", "echo late")]));
        let asked = if by_command {
            let program = env!("CARGO_BIN_EXE_sower").to_owned();
            let config = runner.config_file();
            Some(std::thread::spawn(move || {
                std::process::Command::new(program)
                    .args(["daemon", "--drain", "-c"])
                    .arg(config)
                    .output()
                    .unwrap()
            }))
        } else {
            runner.signal("USR1").unwrap();
            None
        };
        std::thread::sleep(Duration::from_millis(1500));
        fs::write(&gate, "").unwrap();
        assert!(runner.wait(PATIENCE).unwrap().success(), "{}", runner.said());
        if let Some(asked) = asked {
            let output = asked.join().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(done(&forge, first).status, Status::Success);
        assert_eq!(forge.run(second).unwrap().status, Status::Waiting, "no task is taken meanwhile");
    }
}

// 2. The job's process dies, 6. and nothing is left.

/// Starts processes that do what they can to be forgotten; their numbers are in files of `folder`.
fn runaways(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "sleep 3600 & echo $! > {folder}/plain.pid\n\
         nohup sleep 3600 >/dev/null 2>&1 & echo $! > {folder}/nohup.pid\n\
         (setsid sh -c 'echo $$ > {folder}/session.pid; exec sleep 3600' &)\n\
         (cd /; env -i /usr/bin/setsid /bin/sh -c 'echo $$ > {folder}/bare.pid; exec /bin/sleep 3600' >/dev/null 2>&1 &)\n\
         until [ -s {folder}/session.pid ] && [ -s {folder}/bare.pid ]; do sleep 0.05; done\n"
    )
}

const RUNAWAYS: [&str; 4] = ["plain", "nohup", "session", "bare"];

fn pids(folder: &Path, names: &[&str]) {
    for name in names {
        let file = folder.join(format!("{name}.pid"));
        wait(&format!("the end of {name}"), || gone(&file).then_some(()));
    }
}

#[test]
fn a_job_whose_process_is_killed_fails_with_the_reason_and_leaves_nothing() {
    let forge = forge();
    let runner = runner(&forge, 1);
    let script = format!("{}echo ready\nwait", runaways(runner.folder()));
    let run = forge.enqueue(job(&[
        ("Before", "", "echo before"),
        ("Runs", "", &script),
        ("Later", "", "echo later"),
    ]));
    let task = row(&forge, run, "ready").task.unwrap();
    let killed = Instant::now();
    signal(runner.job_process(task).unwrap(), "KILL").unwrap();
    let run = done(&forge, run);
    println!("the end was told after {:.1} s", killed.elapsed().as_secs_f64());
    let job = only(&run);
    assert_eq!(job.status, Status::Failure);
    assert_eq!(job.step("Before").unwrap().status, Status::Success);
    assert_eq!(job.step("Runs").unwrap().status, Status::Failure);
    assert_eq!(job.step("Later").unwrap().status, Status::Skipped);
    has(&forge, job, "killed by SIGKILL");
    // What has left session, environment and directory is held by a control group only; root has one everywhere.
    let root = fs::metadata("/proc/self").unwrap();
    let held = if std::os::unix::fs::MetadataExt::uid(&root) == 0 { &RUNAWAYS[..] } else { &RUNAWAYS[..3] };
    pids(runner.folder(), held);
    still_works(&forge);
}

#[test]
fn a_job_that_died_while_no_daemon_was_there_is_told_by_the_next() {
    let forge = forge();
    let mut runner = runner(&forge, 1);
    let script = format!("{}echo ready\nwait", runaways(runner.folder()));
    let run = forge.enqueue(job(&[("Runs", "", &script)]));
    let task = row(&forge, run, "ready").task.unwrap();
    let process = runner.job_process(task).unwrap();
    runner.kill().unwrap();
    signal(process, "KILL").unwrap();
    runner.start(&[]).unwrap();
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Failure);
    has(&forge, only(&run), "The job process is gone");
    pids(runner.folder(), &RUNAWAYS[..3]);
}

#[test]
fn a_job_whose_process_is_told_to_end_was_not_cancelled() {
    let forge = forge();
    let runner = runner(&forge, 1);
    let run = forge.enqueue(job(&[
        ("Runs", "", "echo ready\nsleep 3600"),
        ("Later", "", "echo later"),
        ("Cleans", "if: always()", "echo cleaned"),
    ]));
    let task = row(&forge, run, "ready").task.unwrap();
    // As an init does when the host shuts down.
    signal(runner.job_process(task).unwrap(), "TERM").unwrap();
    let run = done(&forge, run);
    let job = only(&run);
    assert_eq!(job.status, Status::Failure, "{}", forge.describe());
    assert_eq!(job.step("Runs").unwrap().status, Status::Failure);
    assert_eq!(job.step("Later").unwrap().status, Status::Skipped);
    has(&forge, job, "told to end (SIGTERM), as it is when the host shuts down");
    has(&forge, job, "cleaned");
    still_works(&forge);
}

#[test]
fn what_steps_leave_running_lives_until_the_job_ends() {
    let forge = forge();
    let runner = runner(&forge, 1);
    let alive = format!("kill -0 $(cat {0}/plain.pid) && echo alive", runner.folder().display());
    let run = forge.enqueue(job(&[
        ("Starts", "", &runaways(runner.folder())),
        ("Hangs", "timeout-minutes: 0.02; continue-on-error: true", "sleep 3600"),
        ("Uses", "", &alive),
        (
            "Storm",
            "",
            "hop() { sleep 0.01; hop & }\nfor i in $(seq 1 20); do hop & done >/dev/null 2>&1\nsleep 0.3",
        ),
    ]));
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
    has(&forge, only(&run), "alive");
    pids(runner.folder(), &RUNAWAYS);
    wait("the end of all processes", || (runner.processes().len() == 1).then_some(()));
    still_works(&forge);
}

#[test]
fn an_odd_workspace_is_removed() {
    let forge = forge();
    let runner = runner(&forge, 1);
    let kept = runner.folder().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "").unwrap();
    let script = format!(
        "mkdir -p a/b/c mounted bound && touch a/b/c/file && chmod -R a-w a\n\
         printf x > \"$(printf 'n\\303(\\377')\"\n\
         ln -s {kept} link\n\
         mkdir many && (cd many && seq 1 200000 | xargs touch)\n\
         if [ \"$(id -u)\" = 0 ]; then mount -t tmpfs none mounted && touch mounted/file && mount --bind {kept} bound; \
         mkdir -p others/deep && touch others/deep/file && chmod 500 others/deep && chown -R 12345:12345 others; fi\n\
         echo made",
        kept = kept.display()
    );
    let run = forge.enqueue(job(&[("Make", "", &script)]));
    let seen = done(&forge, run);
    assert_eq!(seen.status, Status::Success, "{}", forge.describe());
    let folder = runner.job_folder(only(&seen).task.unwrap());
    wait("the end of the job's directory", || (!folder.exists()).then_some(()));
    assert!(kept.join("file").exists(), "what was linked and mounted is nobody's to remove");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
}

// 3. The power goes. (`make powercut` does it for real.)

#[test]
fn a_host_that_went_down_is_told_with_the_last_row() {
    let forge = forge();
    let mut runner = runner(&forge, 1);
    let run =
        forge.enqueue(job(&[("Runs", "", "echo 'last words'\nsleep 3600"), ("Later", "", "echo later")]));
    let task = row(&forge, run, "last words").task.unwrap();
    let process = runner.job_process(task).unwrap();
    runner.kill().unwrap();
    signal(process, "KILL").unwrap();
    // As after a boot: the process was one of another boot, and the last bytes of the journal were never written.
    let file = runner.job_folder(task).join("process.json");
    let mut identity: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    identity["boot"] = 1.into();
    fs::write(&file, identity.to_string()).unwrap();
    let journal = fs::File::options().append(true).open(runner.job_folder(task).join("journal")).unwrap();
    std::io::Write::write_all(&mut &journal, b"\x40\0\0\0torn").unwrap();
    for pid in runner.processes() {
        let _ = signal(pid, "KILL");
    }
    runner.start(&[]).unwrap();
    let run = done(&forge, run);
    let job = only(&run);
    assert_eq!(job.status, Status::Failure);
    assert_eq!(job.step("Runs").unwrap().status, Status::Failure);
    assert_eq!(job.step("Later").unwrap().status, Status::Skipped);
    has(&forge, job, "The host went down");
    has(&forge, job, "The last row that was kept: last words");
}

// 4. Network and server.

#[test]
fn every_fault_in_turn_loses_nothing() {
    let mut dice = Dice::from_env("SOWER_SEED");
    let forge = forge();
    forge.allow(Rule::Batch);
    let runner = runner(&forge, 1);
    let run = forge.enqueue(job(&[
        ("Count", "", "for i in $(seq 1 600); do echo \"tick $i\"; sleep 0.02; done"),
        ("Say", "", "echo over"),
    ]));
    row(&forge, run, "tick 1");
    let faults = [
        Fault::TornReply,
        Fault::TooMany(1),
        Fault::Html(413),
        Fault::Html(503),
        Fault::Refuse,
        Fault::DropReply,
        Fault::ForgetRows(30),
    ];
    for method in [Method::UpdateLog, Method::UpdateTask] {
        for _ in 0..6 {
            let fault = *dice.pick(&faults);
            if method == Method::UpdateLog || !matches!(fault, Fault::ForgetRows(_)) {
                forge.fault(method, fault, 1);
            }
        }
    }
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
    assert_eq!(ticks(&forge.text(only(&run).id)), (1..=600).collect::<Vec<_>>());
    forge.clear_faults();
    drop(runner);
}

#[test]
fn a_daemon_waits_for_a_server_that_is_away_at_its_start() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    forge.go_down();
    runner.start(&[]).unwrap();
    wait("a complaint", || runner.said().contains("trying again").then_some(()));
    forge.come_up();
    still_works(&forge);
}

#[test]
fn a_name_that_is_gone_comes_back() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let hosts = runner.folder().join("hosts");
    let names = "127.0.0.1 localhost git.sower.test\n";
    fs::write(&hosts, names).unwrap();
    let registration = fs::read_to_string(runner.state_file()).unwrap();
    fs::write(runner.state_file(), registration.replace("127.0.0.1", "git.sower.test")).unwrap();
    // It sees this file as /etc/hosts, and no name server.
    let script = format!(
        "mount --bind {hosts} /etc/hosts && mount --bind /dev/null /etc/resolv.conf && exec \"$@\"",
        hosts = hosts.display()
    );
    runner.wrap(&["unshare", "--mount", "sh", "-c", &script, "sh"]);
    runner.start(&[]).unwrap();
    let gate = runner.folder().join("gate");
    let script = format!(
        "seq -f 'tick %.0f' 1 100\nuntil [ -e {} ]; do sleep 0.1; done\nseq -f 'tick %.0f' 101 200",
        gate.display()
    );
    let run = forge.enqueue(job(&[("Count", "", &script)]));
    row(&forge, run, "tick 100");
    // In place: what is mounted is the file, not its name.
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    // A connection that is there needs no name.
    forge.go_down();
    wait("a complaint", || {
        let said = runner.said();
        (said.contains("no such host name") || said.contains("resolv.conf")).then_some(())
    });
    forge.come_up();
    fs::write(&gate, "").unwrap();
    fs::write(&hosts, names).unwrap();
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success, "{}", runner.said());
    assert_eq!(ticks(&forge.text(only(&run).id)), (1..=200).collect::<Vec<_>>());
    still_works(&forge);
}

#[test]
fn a_server_that_speaks_no_tls_is_named_and_waited_for() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let registration = fs::read_to_string(runner.state_file()).unwrap();
    fs::write(runner.state_file(), registration.replace("http://", "https://")).unwrap();
    runner.start(&[]).unwrap();
    wait("a complaint", || runner.said().contains("trying again").then_some(()));
    let said = runner.said();
    assert!(said.contains("https://127.0.0.1") && said.contains("TLS"), "{said}");
    std::thread::sleep(Duration::from_secs(2));
    // It is there still, and would be when the certificate is mended.
    runner.signal("TERM").unwrap();
    assert!(runner.wait(PATIENCE).unwrap().success(), "{}", runner.said());
    fs::write(runner.state_file(), registration).unwrap();
    runner.start(&[]).unwrap();
    still_works(&forge);
}

#[test]
fn a_long_outage_costs_disk_and_no_memory() {
    let forge = forge();
    let runner = runner(&forge, 1);
    let over = runner.folder().join("over");
    let script = format!("echo begun\nsleep 1\nseq -f 'tick %.0f' 1 400000\ntouch {}", over.display());
    let run = forge.enqueue(job(&[("Print", "", &script)]));
    let task = row(&forge, run, "begun").task.unwrap();
    forge.go_down();
    wait("all to be printed", || over.exists().then_some(()));
    let peak = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB").trim();
        line.split(' ').next().unwrap().parse::<u64>().unwrap() / 1024
    };
    let (daemon, process) = (peak(runner.pid().unwrap()), runner.job_process(task).map_or(0, peak));
    println!("peaks: daemon {daemon} MiB, job process {process} MiB");
    // A debug build is larger than what the limit of 16 MiB is for; what matters here is that it does not grow.
    assert!(daemon < 48 && process < 48, "daemon {daemon} MiB, job process {process} MiB");
    forge.come_up();
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Success);
    assert_eq!(ticks(&forge.text(only(&run).id)), (1..=400_000).collect::<Vec<_>>());
}

#[test]
fn a_journal_has_a_limit_and_says_what_is_left_out() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    runner.set("journal_limit", "1MiB").unwrap();
    runner.start(&[]).unwrap();
    let run = forge.enqueue(job(&[
        (
            "Flood",
            "",
            "seq -f 'tick %.0f' 1 300000\nhead -c 20000000 /dev/zero | tr '\\0' q\necho; echo last words",
        ),
        ("Next", "", "echo next"),
    ]));
    let run = done(&forge, run);
    let job = only(&run);
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
    let rows = forge.text(job.id);
    let size: usize = rows.iter().map(String::len).sum();
    assert!(size < 2_000_000, "{size}");
    has(&forge, job, "runner.journal_limit");
    has(&forge, job, "are left out here");
    has(&forge, job, "last words");
    has(&forge, job, "next");
    let seen = ticks(&rows);
    assert!(seen.len() > 10_000 && seen.is_sorted(), "{}", seen.len());
}

// 5. Cancelling and time limits.

#[test]
fn who_does_not_listen_is_killed_and_the_clean_up_runs_under_its_own_deadline() {
    let forge = Forge::start(Options { version: Version::V1_27, ..Options::default() }).unwrap();
    let mut runner = registered(&forge, 1, &[]);
    for (key, value) in
        [("interrupt_grace", "300ms"), ("terminate_grace", "300ms"), ("cleanup_timeout", "4s")]
    {
        runner.set(key, value).unwrap();
    }
    runner.start(&[]).unwrap();
    let deaf = "trap 'echo got INT' INT\ntrap 'echo got TERM' TERM\nsleep 3600 & \necho deaf\nwhile :; do sleep 0.1; done";
    let run = forge.enqueue(job(&[
        ("Deaf", "", deaf),
        ("Never", "", "echo never"),
        ("Cleans", "if: cancelled()", "echo cleaning\nsleep 1\necho cleaned"),
        ("Hangs", "if: always()", "echo hanging\nsleep 3600"),
        ("Too late", "if: always()", "echo too late"),
    ]));
    row(&forge, run, "deaf");
    forge.cancel(run);
    let run = done(&forge, run);
    let job = only(&run);
    assert_eq!(run.status, Status::Cancelled, "{}", forge.describe());
    for text in ["got INT", "got TERM", "cleaning", "cleaned", "hanging"] {
        has(&forge, job, text);
    }
    assert!(!forge.text(job.id).iter().any(|row| row == "never"));
    assert_eq!(job.step("Cleans").unwrap().status, Status::Success);
    assert_eq!(job.step("Hangs").unwrap().status, Status::Failure);
    wait("the end of all processes", || (runner.processes().len() == 1).then_some(()));
}

// 7. Disks.

/// Runs a daemon whose state directory is a file system of its own, which only it sees.
fn on_a_small_disk(forge: &Forge, size: &str) -> Runner {
    let mut runner = registered(forge, 1, &[]);
    let state = runner.state_file().parent().unwrap().to_owned();
    let script = format!(
        "cp {0}/.runner {0}/../saved && mount -t tmpfs -o {size} none {0} && cp {0}/../saved {0}/.runner && exec \"$@\"",
        state.display()
    );
    runner.wrap(&["unshare", "--mount", "sh", "-c", &script, "sh"]);
    runner.start(&[]).unwrap();
    runner
}

#[test]
fn a_full_disk_fails_the_job_and_nothing_else() {
    let forge = forge();
    let runner = on_a_small_disk(&forge, "size=3m");
    // Journal and workspace share the disk.
    let fills = forge.enqueue(job(&[
        (
            "Fill",
            "",
            "echo begun\ndd if=/dev/zero of=big bs=64k 2>/dev/null || echo full\nseq -f 'tick %.0f' 1 400000",
        ),
        ("Later", "", "echo later"),
    ]));
    let run = done(&forge, fills);
    assert_eq!(run.status, Status::Failure, "{}\n{}", forge.describe(), runner.said());
    has(&forge, only(&run), "No space left on device");
    assert_eq!(only(&run).step("Later").unwrap().status, Status::Skipped);
    still_works(&forge);
    // While it stays full no task is taken, and when there is room again all goes on.
    let fill = |by: &str| {
        let state = runner.state_file().parent().unwrap().to_owned();
        let status = std::process::Command::new("nsenter")
            .args(["--mount", "--target", &runner.pid().unwrap().to_string(), "sh", "-c", by, "sh"])
            .arg(state)
            .status();
        assert!(status.is_ok());
    };
    fill("dd if=/dev/zero of=$1/other bs=64k 2>/dev/null");
    wait("a complaint", || runner.said().contains("taking no task").then_some(()));
    let late = forge.enqueue(job(&[("Late", "", "echo late")]));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(forge.run(late).unwrap().status, Status::Waiting);
    fill("rm $1/other");
    assert_eq!(done(&forge, late).status, Status::Success, "{}", runner.said());
    // The same with no file to be had.
    drop(runner);
    let runner = on_a_small_disk(&forge, "nr_inodes=120");
    let fills = forge.enqueue(job(&[
        ("Fill", "", "i=0; while touch f$i; do i=$((i+1)); done; touch another"),
        ("Later", "", "echo later"),
    ]));
    let run = done(&forge, fills);
    assert_eq!(run.status, Status::Failure, "{}\n{}", forge.describe(), runner.said());
    has(&forge, only(&run), "cannot touch 'another': No space left on device");
    assert_eq!(only(&run).step("Later").unwrap().status, Status::Skipped);
    still_works(&forge);
}

/// Runs a daemon whose state directory is a file system on a loop device, which only it sees, and again after it has
/// ended. `make` makes it in the file `disk`, `mount` are the words behind `mount`, with STATE for the directory.
fn on_a_disk(forge: &Forge, size: &str, make: &str, mount: &str) -> Runner {
    let mut runner = registered(forge, 1, &[]);
    let state = runner.state_file().parent().unwrap().to_owned();
    let script = format!(
        "PATH=$PATH:/usr/sbin:/sbin; cd {0}/..\n\
         if [ ! -e disk ]; then cp {0}/.runner saved && truncate -s {size} disk && {make} || exit 99; fi\n\
         mount {1} && cp saved {0}/.runner && exec \"$@\"",
        state.display(),
        mount.replace("STATE", &state.display().to_string())
    );
    runner.wrap(&["unshare", "--mount", "sh", "-c", &script, "sh"]);
    runner.start(&[]).unwrap();
    runner
}

#[test]
fn a_disk_that_turns_read_only_fails_the_job_and_comes_back() {
    let forge = forge();
    // What the disk has forgotten is told once more.
    for rule in [Rule::RowsAfterSeal, Rule::Result, Rule::LogLength, Rule::Steps] {
        forge.allow(rule);
    }
    let mut runner = on_a_disk(&forge, "64M", "mkfs.ext4 -q disk", "-o loop disk STATE");
    let run = forge.enqueue(job(&[
        ("Print", "", "i=0; while :; do i=$((i+1)); echo \"tick $i\"; sleep 0.05; done"),
        ("Later", "", "echo later"),
    ]));
    row(&forge, run, "tick 1");
    // As the kernel does when it meets an error of the disk.
    let turned = std::process::Command::new("nsenter")
        .args(["--mount", "--target", &runner.pid().unwrap().to_string(), "mount", "-o", "remount,abort"])
        .arg(runner.state_file().parent().unwrap())
        .status()
        .unwrap();
    assert!(turned.success(), "the file system did not turn: {}", runner.said());
    let seen = done(&forge, run);
    assert_eq!(seen.status, Status::Failure, "{}", forge.describe());
    has(&forge, only(&seen), "Read-only file system");
    assert_eq!(only(&seen).step("Later").unwrap().status, Status::Skipped);
    let rows = ticks(&forge.text(only(&seen).id));
    assert_eq!(rows, (1..=u32::try_from(rows.len()).unwrap()).collect::<Vec<_>>());
    wait("a complaint", || runner.said().contains("taking no task").then_some(()));
    let late = forge.enqueue(job(&[("Late", "", "echo late")]));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(forge.run(late).unwrap().status, Status::Waiting);
    // Mounted anew it takes tasks again.
    runner.kill().unwrap();
    wait("the end of all processes", || runner.processes().is_empty().then_some(()));
    runner.start(&[]).unwrap();
    assert_eq!(done(&forge, late).status, Status::Success, "{}", runner.said());
    still_works(&forge);
}

#[test]
fn a_quota_that_is_used_up_fails_the_job_and_nothing_else() {
    let forge = forge();
    // The quotas of btrfs hold for root as well.
    let make = "mkfs.btrfs -q disk >/dev/null";
    let quota = "-o loop,commit=1 disk STATE && btrfs quota enable STATE && btrfs qgroup limit 4M STATE";
    let runner = on_a_disk(&forge, "256M", make, quota);
    let fill =
        "echo begun\ndd if=/dev/zero of=big bs=64k 2>/dev/null || echo full\nseq -f 'tick %.0f' 1 800000";
    let run = forge.enqueue(job(&[("Fill", "", fill), ("Later", "", "echo later")]));
    let run = done(&forge, run);
    assert_eq!(run.status, Status::Failure, "{}\n{}", forge.describe(), runner.said());
    has(&forge, only(&run), "quota exceeded");
    assert_eq!(only(&run).step("Later").unwrap().status, Status::Skipped);
    still_works(&forge);
}

#[test]
fn a_daemon_without_file_descriptors_lives() {
    let forge = forge();
    let mut runner = registered(&forge, 3, &[]);
    runner.wrap(&["sh", "-c", "ulimit -n 22; exec \"$@\"", "sh"]);
    runner.start(&[]).unwrap();
    let runs: Vec<i64> = (0..4)
        .map(|_| {
            forge.enqueue(job(&[(
                "Count",
                "",
                "for i in $(seq 1 100); do echo \"tick $i\"; sleep 0.01; done",
            )]))
        })
        .collect();
    for run in runs {
        let run = done(&forge, run);
        // Either it ran whole, or it says why it did not.
        match run.status {
            Status::Success => assert_eq!(ticks(&forge.text(only(&run).id)).len(), 100),
            _ => has(&forge, only(&run), "Too many open files"),
        }
    }
    assert!(runner.pid().is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()), "{}", runner.said());
}

// 9. Hostile jobs.

#[test]
fn a_row_that_does_not_end_costs_no_memory() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    // What is kept of it is not the point here.
    runner.set("journal_limit", "4MiB").unwrap();
    runner.start(&[]).unwrap();
    let script = "head -c 200000000 /dev/zero | tr '\\0' q; grep VmHWM /proc/$PPID/status; echo done";
    let run = done(&forge, forge.enqueue(job(&[("Flood", "", script)])));
    assert_eq!(run.status, Status::Success, "{}", forge.describe());
    let rows = forge.text(only(&run).id);
    let peak = rows.iter().find_map(|row| row.split_once("VmHWM:")).unwrap().1;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // A debug build is larger than a release build; neither grows with what is printed.
    assert!(peak < 48 << 10, "{peak} kB");
    has(&forge, only(&run), "are left out here");
    still_works(&forge);
}

fn hostile(script: &str, expected: Status, says: &str) {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    for key in ["interrupt_grace", "terminate_grace"] {
        runner.set(key, "300ms").unwrap();
    }
    runner.start(&[]).unwrap();
    let run = forge.enqueue(job(&[
        ("Hostile", "timeout-minutes: 0.1", script),
        ("After", "if: always()", "echo after"),
    ]));
    let seen = done(&forge, run);
    assert_eq!(seen.status, expected, "{script}: {}\n{}", forge.describe(), runner.said());
    has(&forge, only(&seen), says);
    wait("the end of all processes", || (runner.processes().len() == 1).then_some(()));
    still_works(&forge);
}

macro_rules! hostile {
    ($($name:ident: $script:expr => $status:ident $says:expr;)*) => {
        $(
            #[test]
            fn $name() {
                hostile($script, Status::$status, $says);
            }
        )*
    };
}

hostile! {
    a_step_may_close_its_streams: "exec >&- 2>&-; exit 3" => Failure "exit code 3";
    a_step_may_flood_both_streams:
        "head -c 3000000 /dev/zero | tr '\\0' o & head -c 3000000 /dev/zero | tr '\\0' e >&2; wait; echo; echo done" => Success "done";
    a_grandchild_may_keep_the_pipe: "(sleep 3600 & ) ; echo gone" => Success "gone";
    a_step_that_stops_itself_is_stopped_in_time: "echo stopping; kill -STOP $$" => Failure "time limit";
    a_step_that_stops_its_parent_is_stopped_in_time: "echo $PPID; kill -STOP $PPID; sleep 3600" => Failure "time limit";
    a_step_that_kills_its_parent_fails: "kill -9 $PPID; sleep 3600" => Failure "SIGKILL";
    an_output_file_of_2_gb_is_refused: "truncate -s 2G \"$GITHUB_OUTPUT\"" => Failure "2147483648 bytes";
    an_environment_file_that_is_a_fifo_is_refused: "rm \"$GITHUB_ENV\"; mkfifo \"$GITHUB_ENV\"" => Failure "no longer a regular file";
    an_environment_file_that_is_a_link_is_refused: "ln -sf /etc/passwd \"$GITHUB_ENV\"" => Failure "no longer a regular file";
    a_workspace_that_was_removed_fails_what_follows: "rm -rf \"$GITHUB_WORKSPACE\"" => Failure "working directory";
    a_job_directory_that_was_removed_fails_what_follows:
        "cd /; rm -rf \"$GITHUB_WORKSPACE/..\" 2>/dev/null; rm -rf \"$(dirname \"$GITHUB_WORKSPACE\")\"; echo removed" => Failure "removed";
}
