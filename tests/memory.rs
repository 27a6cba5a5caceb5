//! Memory of jobs, with a real kernel and real programs: limits hold, ends are told truly, and what was used is shown.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "scenarios/start.rs"]
#[expect(dead_code, reason = "runners here have configurations of their own")]
mod start;

use std::fmt::Write as _;
use std::fs;

use sower_test_support::{Enqueue, Forge, JobView, Options, Runner, Status, Version};
use start::{PATIENCE, registered, ticks, wait};

fn forge() -> Forge {
    Forge::start(Options { version: Version::V1_27, ..Options::default() }).unwrap()
}

/// A runner whose configuration has these lines too.
fn runner(forge: &Forge, capacity: usize, config: &str) -> Runner {
    let mut runner = registered(forge, capacity, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    fs::write(runner.config_file(), text + config).unwrap();
    runner.start(&[]).unwrap();
    runner
}

fn job(steps: &[&str]) -> Enqueue {
    let mut yaml = "on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n".to_owned();
    for script in steps {
        yaml.push_str("      - run: |\n");
        for line in script.lines() {
            let _ = writeln!(yaml, "          {line}");
        }
    }
    Enqueue { payload: yaml.into_bytes(), labels: vec!["host".to_owned()], ..Enqueue::default() }
}

fn done(forge: &Forge, run: i64) -> (JobView, String) {
    let job = forge.wait_done(run, PATIENCE).unwrap().jobs[0].clone();
    let text = forge.text(job.id).join("\n");
    (job, text)
}

/// Fills this many MB of memory and stays for a moment.
fn hog(megabytes: u32) -> String {
    format!(
        "python3 -c 'import time; a = b\"x\" * {megabytes}000000; time.sleep(1.5); print(\"had\", len(a))'"
    )
}

#[test]
fn what_goes_above_the_limit_is_killed_and_named_and_nothing_else_is_harmed() {
    let forge = forge();
    let runner = runner(&forge, 2, "limits:\n  memory: 64MiB\n  pids: 100\n  cpu: 1.5\n");
    let other = forge
        .enqueue(job(&[&format!("{}; for i in $(seq 1 40); do echo tick $i; sleep 0.1; done", hog(20))]));
    let hungry =
        forge.enqueue(job(&[&format!("cat /proc/self/oom_score_adj; {}", hog(200)), "echo unreached"]));
    let (ended, text) = done(&forge, hungry);
    assert_eq!(ended.status, Status::Failure, "{text}");
    assert!(
        text.contains("Limits of this job's steps: memory 64 MiB, 100 processes, 1.5 CPU (control groups"),
        "{text}"
    );
    assert!(text.contains("\n500\n"), "{text}");
    assert!(text.contains("##[error]Cause: out of memory: at this job's own limit of 64 MiB"), "{text}");
    assert!(
        text.contains("the kernel killed python3 (pid ") || text.contains("(the largest was python3"),
        "{text}"
    );
    let (ended, text) = done(&forge, other);
    assert_eq!(ended.status, Status::Success, "{text}");
    assert!(text.contains("had 20000000"), "{text}");
    let rows: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(ticks(&rows), (1..=40).collect::<Vec<_>>());
    wait("the end of all processes", || (runner.processes().len() == 1).then_some(()));
    assert!(!group_left(), "a control group is left");
    let (_, text) = done(
        &forge,
        forge.enqueue(job(&["dash -c 'i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done'"])),
    );
    assert!(text.contains("Cause: ") && text.contains("limits.pids"), "{text}");
}

/// The group of version 1 that this process is in, where its memory is counted.
fn memory_group() -> Option<std::path::PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let memory = own.lines().find_map(|line| line.split_once(":memory:")).map_or("/", |(_, path)| path);
    let place = mounts.lines().find(|line| line.ends_with(",memory")).and_then(|line| line.split(' ').nth(4));
    Some(format!("{}{memory}", place?).into())
}

/// Whether a group is left whose job's process is gone: its name has the number of that process.
fn group_left() -> bool {
    let Some(group) = memory_group() else { return false };
    let names = fs::read_dir(group).unwrap().flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.strip_prefix("sower-")?.split('-').next()?.parse::<u32>().ok())
        .any(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
}

#[test]
fn a_limit_above_the_job_s_own_is_told_apart_from_it() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    fs::write(runner.config_file(), text + "limits:\n  memory: 1GiB\n").unwrap();
    // As systemd's MemoryMax= does, or a container engine.
    let above = memory_group().unwrap().join(format!("test-above-{}", std::process::id()));
    fs::create_dir(&above).unwrap();
    fs::write(above.join("memory.limit_in_bytes"), "120M").unwrap();
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", above.display());
    runner.wrap(&["sh", "-c", &enter, "sh"]);
    runner.start(&[]).unwrap();
    let (ended, text) = done(&forge, forge.enqueue(job(&[&hog(300)])));
    assert_eq!(ended.status, Status::Failure, "{text}");
    assert!(text.contains("Cause: out of memory: the kernel killed "), "{text}");
    assert!(
        text.contains("at the limit of the control group ") && text.contains("(limit 120 MiB)"),
        "{text}"
    );
    assert!(text.contains("not one of this runner's"), "{text}");
    let (ended, text) = done(&forge, forge.enqueue(job(&["echo the daemon lives"])));
    assert_eq!(ended.status, Status::Success, "{text}");
    runner.signal("TERM").unwrap();
    runner.wait(PATIENCE).unwrap();
    wait("the group to be empty", || fs::remove_dir(&above).ok());
}

/// As in a container that may not write its groups.
fn without_control_groups(runner: &mut Runner) {
    runner.wrap(&[
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"",
        "sh",
    ]);
}

#[test]
fn without_control_groups_each_process_is_limited() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    fs::write(runner.config_file(), text + "limits:\n  memory: 64MiB\n").unwrap();
    without_control_groups(&mut runner);
    runner.start(&[]).unwrap();
    let (ended, text) = done(&forge, forge.enqueue(job(&[&hog(200)])));
    assert_eq!(ended.status, Status::Failure, "{text}");
    assert!(text.contains("##[warning]limits.memory is not enforced: "), "{text}");
    assert!(text.contains("Each process of the steps may have 64 MiB of its own (RLIMIT_DATA)"), "{text}");
    assert!(text.contains("Cause: a Python program was refused memory (MemoryError)"), "{text}");
}

#[test]
fn where_there_is_no_control_group_it_is_said_and_the_watchdog_can_help() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    fs::write(runner.config_file(), text + "limits:\n  memory: 64MiB\n  watchdog: true\n").unwrap();
    without_control_groups(&mut runner);
    runner.start(&[]).unwrap();
    let (ended, text) = done(&forge, forge.enqueue(job(&[&format!("{}; {}", hog(200), hog(200))])));
    assert_eq!(ended.status, Status::Failure, "{text}");
    assert!(text.contains("##[warning]limits.memory is not enforced: "), "{text}");
    assert!(text.contains("The runner's own watchdog ends a step above 64 MiB."), "{text}");
    assert!(
        text.contains("##[error]Cause: the step used ") && text.contains("limits.memory is 64 MiB"),
        "{text}"
    );
}

#[test]
fn the_ends_of_real_programs_are_told() {
    let forge = forge();
    let _runner = runner(
        &forge,
        1,
        "ghc:\n  heap: 100m\n  allocation_area: 1m\n  require: true\ndiagnose:\n  causes:\n    - {pattern: 'boiler at *° ', cause: 'the boiler is at {1}°', advice: Ring Ada}\n",
    );
    let end = |script: &str| {
        let (job, text) = done(&forge, forge.enqueue(job(&[script])));
        assert_eq!(job.status, Status::Failure, "{text}");
        text
    };
    let text = end("ghc -e 'let xs = [1 .. 20000000 :: Int] in print (sum xs + length xs)'");
    assert!(text.contains("Cause: GHC reached its own heap ceiling of 100 MiB (-M)"), "{text}");
    assert!(text.contains("GHC ran 1 time; heap ceiling in force: 100 MiB in 1 of 1"), "{text}");
    let text = end("kill -9 $$");
    assert!(text.contains("Cause: a process was killed (SIGKILL, exit code 137), and neither"), "{text}");
    let text = end("ulimit -v 100000; python3 -c 'a = b\"x\" * 300000000'");
    assert!(text.contains("Cause: a Python program was refused memory (MemoryError)"), "{text}");
    let text = end("echo boiler at 99° now; exit 1");
    assert!(text.contains("##[error]Cause: the boiler is at 99°. Ring Ada."), "{text}");
    let text = end("ghc +RTS -M -RTS --version; exit 3");
    assert!(text.contains("Cause: GHC refuses a run-time option: "), "{text}");
    let text = end("echo > /dev/full; dd if=/dev/zero of=/dev/full count=1");
    assert!(text.contains("Cause: no space is left on a disk"), "{text}");
    // Raised by the build itself: seen, and not allowed.
    let text = end("ghc +RTS -M300m -RTS -e 'print 1'");
    assert!(text.contains("; with 300 MiB: ") && text.contains("`require` does not allow that"), "{text}");
}

#[test]
fn what_a_job_used_is_told_drawn_and_kept() {
    let forge = forge();
    let runner = runner(&forge, 1, "ghc:\n  heap: 500m\n");
    let script =
        "ghc -e 'let xs = [1 .. 2000000 :: Int] in print (sum xs + length xs)'\n".to_owned() + &hog(300);
    let run = forge.enqueue(job(&[&script, "sleep 2.5"]));
    let (ended, text) = done(&forge, run);
    assert_eq!(ended.status, Status::Success, "{text}");
    assert!(text.contains("GHC: heap ceiling 500 MiB, allocation area 31.25 MiB"), "{text}");
    let summary = ended.summaries.values().next().cloned().unwrap_or_default();
    assert!(
        summary.contains("| Step | Peak RSS | Peak of GHC | Ceiling |") && summary.contains("xychart-beta"),
        "{summary}"
    );
    assert!(summary.contains("Run sleep 2.5"), "steps have the names that people see: {summary}");
    let line = text.lines().find(|line| line.starts_with("Memory: peak ")).unwrap();
    assert!(line.contains("MiB (") && line.contains(" % of the host)"), "{line}");

    let config = runner.config_file();
    let config = config.to_str().unwrap();
    let jobs = |arguments: &[&str]| {
        let output = runner.run(&[&["jobs"], arguments, &["-c", config]].concat()).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = wait("the job in the history", || {
        let listed = jobs(&["--json"]);
        listed.contains("\"conclusion\":\"success\"").then_some(listed)
    });
    let entry: serde_json::Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    let task = entry["task"].to_string();
    assert!(entry["peak"].as_u64().unwrap() > 250_000_000, "{entry}");
    assert!(jobs(&[]).starts_with("TASK"), "a table");
    wait("the job's own directory to be gone", || {
        (!runner.job_folder(entry["task"].as_i64().unwrap()).exists()).then_some(())
    });
    let log = jobs(&["log", &task]);
    assert!(log.contains("had 300000000\n") && log.contains("Job succeeded"), "{log}");
    assert_eq!(jobs(&["log", &task, "-f"]), log);
    let svg = runner.folder().join("memory.svg");
    let told = jobs(&["memory", &task, "--svg", svg.to_str().unwrap()]);
    assert!(told.contains("Memory: peak ") && told.contains("GHC ran 1 time"), "{told}");
    let svg = fs::read_to_string(svg).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains("python3") && svg.contains("GHC ceiling 500 MiB"),
        "{svg}"
    );
    let missing = runner.run(&["jobs", "log", "999", "-c", config]).unwrap();
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn a_job_waits_for_memory_that_another_is_known_to_need() {
    let forge = forge();
    let mut runner = registered(&forge, 2, &[]);
    // Learnt from earlier runs: each takes more than half of this host.
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let host: u64 = meminfo.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
    let history = runner.folder().join("state/history");
    fs::create_dir_all(&history).unwrap();
    let first = forge.enqueue(job(&["while [ ! -e \"$HOME/go\" ]; do sleep 0.1; done"]));
    runner.start(&[]).unwrap();
    let key = wait("the first job", || {
        let meta = fs::read(runner.job_folder(1).join("meta.json")).ok()?;
        let meta: serde_json::Value = serde_json::from_slice(&meta).ok()?;
        let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        Some(format!("{} / {} / {}", text("repository"), text("workflow"), text("job")))
    });
    let peaks = serde_json::json!({ key: {"peaks": [host / 10 * 7], "millis": [1000], "last": 1} });
    fs::write(history.join("peaks.json"), peaks.to_string()).unwrap();
    // The first was admitted before anything was known.
    fs::write(runner.folder().join("home/go"), "").unwrap();
    assert_eq!(done(&forge, first).0.status, Status::Success);
    fs::remove_file(runner.folder().join("home/go")).unwrap();
    let second = forge.enqueue(job(&["echo begun; while [ ! -e \"$HOME/go\" ]; do sleep 0.1; done"]));
    wait("the second job to run", || {
        forge
            .run(second)?
            .jobs
            .iter()
            .any(|job| forge.text(job.id).iter().any(|row| row == "begun"))
            .then_some(())
    });
    let third = forge.enqueue(job(&["echo third"]));
    wait("the third job to wait", || {
        let job = forge.run(third)?.jobs.into_iter().next()?;
        forge
            .text(job.id)
            .iter()
            .any(|row| row.starts_with("Waiting for memory: this job has used up to "))
            .then_some(())
    });
    fs::write(runner.folder().join("home/go"), "").unwrap();
    let (ended, text) = done(&forge, third);
    assert_eq!(ended.status, Status::Success, "{text}");
    assert!(text.contains(" s for memory.\n"), "{text}");
    assert_eq!(done(&forge, second).0.status, Status::Success);
}

#[test]
fn processes_that_vanish_and_large_environments_do_not_blur_the_proof() {
    let forge = forge();
    let _runner = runner(&forge, 1, "ghc:\n  heap: 500m\n  require: true\n");
    // The kernel allows 2 MiB of environment and arguments, and 128 KiB for one of them.
    let script = "set +x\n\
        for i in $(seq 1 600); do /bin/true & done; wait\n\
        for i in $(seq 1 15); do export BIG$i=$(head -c 120000 /dev/zero | tr '\\0' x); done\n\
        ghc -e 'print 42'\n\
        for i in $(seq 1 600); do /bin/true & done; wait\n";
    let (ended, text) = done(&forge, forge.enqueue(job(&[script])));
    assert_eq!(ended.status, Status::Success, "{text}");
    assert!(text.contains("\n42\n"), "{text}");
    assert!(text.contains("GHC ran 1 time; heap ceiling in force: 500 MiB in 1 of 1"), "{text}");
}

#[test]
fn a_runner_that_sees_only_its_own_processes_measures_them() {
    let forge = forge();
    let mut runner = registered(&forge, 1, &[]);
    let text = fs::read_to_string(runner.config_file()).unwrap();
    let config = "ghc:\n  heap: 500m\n  require: true\nlimits:\n  memory: 2GiB\n  pids: 4000\n";
    fs::write(runner.config_file(), text + config).unwrap();
    // Another user, who has a copy of the program where it may be read, and a /proc that hides everybody else.
    let folder = runner.folder().display();
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc && cp \"$1\" {folder}/sower && chown -R 12345:12345 {folder} && shift && \
         exec setpriv --reuid=12345 --regid=12345 --clear-groups {folder}/sower \"$@\""
    );
    runner.wrap(&["unshare", "--mount", "sh", "-c", &script, "sh"]);
    runner.start(&[]).unwrap();
    // Long enough to be measured as well as counted.
    let script = format!("id -u; ghc -e 'Control.Concurrent.threadDelay 3000000 >> print 42'; {}", hog(300));
    let (ended, text) = done(&forge, forge.enqueue(job(&[&script])));
    assert_eq!(ended.status, Status::Success, "{text}\n{}", runner.said());
    assert!(text.contains("\n12345\n"), "{text}");
    assert!(text.contains("##[warning]limits.memory is not enforced: "), "{text}");
    assert!(text.contains("GHC ran 1 time; heap ceiling in force: 500 MiB in 1 of 1"), "{text}");
    let line = text.lines().find(|line| line.starts_with("Memory: peak ")).unwrap();
    assert!(line.contains(", ghc ") && line.contains("ceiling 500 MiB"), "{line}");
}
