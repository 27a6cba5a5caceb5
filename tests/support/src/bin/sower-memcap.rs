//! Processes that want more memory than their job may have, a hundred times, beside a job that is not to notice.
//!
//! With a kernel it happens in a virtual machine, where the control groups are of version 2 and laid out as OpenRC does it.
//! Without one it happens on this host, with what it has.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sower_test_support::machine::{Build, Machine, registration};
use sower_test_support::{Enqueue, Forge, JobView, Options, Runner, Status, Trouble, Version};

const HELP: &str = "\
sower-memcap: has processes of 200 MB run in jobs that may have 64 MB.

  --sower PATH    the program
  --times N       how often [100]
  --kernel PATH   a kernel: in a virtual machine, with control groups of version 2
  --modules PATH  its modules, a folder";

/// How many of them a job starts, one after the other.
const IN_A_JOB: u64 = 10;
/// An emulated machine on a busy one is slow.
const PATIENCE: Duration = Duration::from_secs(1800);
const LIMITS: &str = "limits:\n  memory: 64MiB\n";
/// Far below the limit of these jobs the kernel begins to slow down, and without swap it gets nothing back: they stand still.
const SLOW: &str = "  labels: {slow: {memory: 400MiB, memory_high: 40MiB}}\n";

const INIT: &str = r#"echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/openrc.sower
export RC_SVCNAME=sower
echo $$ >/sys/fs/cgroup/openrc.sower/cgroup.procs
/bin/sower daemon -c /etc/config.yaml >/dev/console 2>&1
echo "THE DAEMON IS GONE"
sleep 1000000
"#;

fn workflow(steps: &[String]) -> Enqueue {
    labelled("host", steps)
}

fn labelled(label: &str, steps: &[String]) -> Enqueue {
    let mut yaml = format!("on: push\njobs:\n  it:\n    runs-on: {label}\n    steps:\n");
    for step in steps {
        let _ = writeln!(yaml, "      - continue-on-error: true\n        run: {step}");
    }
    Enqueue { payload: yaml.into_bytes(), labels: vec![label.to_owned()], ..Enqueue::default() }
}

/// A job that the kernel slows down for ever instead of ending it: the watchdog ends it, and says so.
fn stands_still(forge: &Forge) -> Result<bool, Trouble> {
    let began = Instant::now();
    let steps = ["dd if=/dev/zero of=/dev/null bs=200M count=1".to_owned()];
    let (_, rows) = done(forge, forge.enqueue(labelled("slow", &steps)))?;
    let cause = rows.iter().find(|row| row.contains("Cause: "));
    println!(
        "a job that stands still, after {:.0} s: {}",
        began.elapsed().as_secs_f64(),
        cause.map_or("no cause", String::as_str)
    );
    Ok(cause.is_some_and(|cause| cause.contains("at its limit of 400 MiB the job stood still")))
}

/// Where the jobs run.
enum Place {
    Machine(Machine),
    Host(Runner),
}

impl Place {
    /// Whether the daemon is the one that was started.
    fn is_well(&self) -> bool {
        match self {
            Self::Machine(machine) => !machine.serial().contains("THE DAEMON IS GONE"),
            Self::Host(runner) => runner.pid().is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()),
        }
    }

    fn said(&self) -> String {
        match self {
            Self::Machine(machine) => machine.serial(),
            Self::Host(runner) => runner.said(),
        }
    }
}

fn place(sower: &Path, vm: Option<(PathBuf, PathBuf)>, forge: &Forge) -> Result<Place, Trouble> {
    if let Some((kernel, modules)) = vm {
        let config = format!(
            "runner:\n  file: /data/state/.runner\n  capacity: 2\nhost:\n  home: /data\n{LIMITS}{SLOW}"
        );
        let build = Build {
            sower,
            kernel: &kernel,
            modules: &modules,
            init: INIT,
            config: &config,
            programs: &[],
            memory: 768,
        };
        let mut machine = Machine::new(&build, &registration(sower, forge, "host:host,slow:host")?)?;
        machine.boot()?;
        return Ok(Place::Machine(machine));
    }
    let mut runner = Runner::new(&sower.display().to_string(), 2)?;
    let output = runner.register(&forge.url(), &forge.registration_token(), "host:host", &[])?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let config = fs::read_to_string(runner.config_file())?;
    fs::write(runner.config_file(), config + LIMITS)?;
    runner.start(&[])?;
    Ok(Place::Host(runner))
}

fn done(forge: &Forge, run: i64) -> Result<(JobView, Vec<String>), Trouble> {
    let job = forge.wait_done(run, PATIENCE)?.jobs.swap_remove(0);
    let text = forge.text(job.id);
    Ok((job, text))
}

fn run() -> Result<bool, Trouble> {
    let mut values = std::collections::BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().filter(|_| flag != "--help").ok_or(HELP)?;
        values.insert(flag, value);
    }
    let path = |flag: &str| -> Result<Option<PathBuf>, Trouble> {
        let value = values.get(flag);
        Ok(value
            .map(|value| fs::canonicalize(value).map_err(|error| format!("{value}: {error}")))
            .transpose()?)
    };
    let times = values.get("--times").map(|times| times.parse::<u64>()).transpose()?.unwrap_or(100);
    let sower = path("--sower")?.ok_or(HELP)?;
    let vm = path("--kernel")?.zip(path("--modules")?);
    let forge = Forge::start(Options { version: Version::V1_27, heartbeat: PATIENCE, ..Options::default() })?;
    let place = place(&sower, vm, &forge)?;
    let began = Instant::now();
    // 20 MB of its own, and a row every now and then: it is not to notice anything.
    let other = forge.enqueue(workflow(&[
        "dd if=/dev/zero of=/tmp/memcap bs=1M count=1 2>/dev/null; i=0; while [ ! -e \"$HOME/stop\" ]; do i=$((i+1)); echo tick $i; dd if=/dev/zero of=/dev/null bs=20M count=1 2>/dev/null || exit 1; sleep 1; done; rm -f \"$HOME/stop\"".to_owned(),
    ]));
    forge
        .wait_for("the other job", PATIENCE, |forge| {
            let job = forge.run(other)?.jobs.into_iter().next()?;
            forge.text(job.id).iter().any(|row| row == "tick 1").then_some(())
        })
        .map_err(|error| format!("{error}\n{}", place.said()))?;
    let (mut killed, mut named, mut by_us) = (0, 0, 0);
    let mut left = times;
    while left > 0 {
        let count = left.min(IN_A_JOB);
        left -= count;
        let steps = vec!["dd if=/dev/zero of=/dev/null bs=200M count=1".to_owned(); usize::try_from(count)?];
        let (job, rows) = done(&forge, forge.enqueue(workflow(&steps)))?;
        let ends = |text: &str| rows.iter().filter(|row| row.contains(text)).count();
        killed += ends("##[error]Process was killed by SIGKILL")
            + ends("##[error]Process completed with exit code 137");
        named += ends("##[error]Cause: out of memory: at this job's own limit of 64 MiB");
        by_us += ends("##[error]Cause: at its limit of 64 MiB the job stood still");
        println!(
            "{:>4} of {times}: {killed} killed, {named} named, {by_us} ended by the watchdog, after {:.0} s",
            times - left,
            began.elapsed().as_secs_f64()
        );
        if job.status != Status::Success || !place.is_well() {
            println!("{}\n{}", rows.join("\n"), place.said());
            return Ok(false);
        }
        if times - left == count {
            let first = rows.iter().find(|row| row.contains("Cause: "));
            println!("      {}", first.map_or("no cause", String::as_str));
        }
    }
    let ended = matches!(place, Place::Host(_)) || stands_still(&forge)?;
    let stop = forge.enqueue(workflow(&["touch \"$HOME/stop\"".to_owned()]));
    done(&forge, stop)?;
    let (other, rows) = done(&forge, other)?;
    let ticks: Vec<u64> = rows.iter().filter_map(|row| row.strip_prefix("tick ")?.parse().ok()).collect();
    let unharmed = other.status == Status::Success
        && !rows.iter().any(|row| row.contains("##[error]"))
        && ticks.iter().copied().eq(1..=ticks.len() as u64);
    let well =
        usize::try_from(times)? == killed && killed == named + by_us && unharmed && ended && place.is_well();
    println!(
        "{killed} of {times} killed, the cause named in {} ({by_us} of them by the watchdog); the other job printed {} ticks and {}; the daemon {}",
        named + by_us,
        ticks.len(),
        if unharmed { "ended well" } else { "WAS HARMED" },
        if place.is_well() { "is the one that was started" } else { "IS GONE" }
    );
    Ok(well)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("sower-memcap: {trouble}");
            ExitCode::from(2)
        }
    }
}
