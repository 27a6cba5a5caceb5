//! The service files of `runner-config/` under a real systemd and a real OpenRC: jobs outlive whatever the init does to
//! the service.
//!
//! A virtual machine boots a root file system of Debian with that init. A job runs in it all the while and prints rows;
//! the service is restarted, stopped and started, reloaded, killed, upgraded, and hangs. In the end the rows are compared,
//! the limits are seen to be in force, and the host is shut down in the middle of a job.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use sower_test_support::console::{self, Console};
use sower_test_support::machine::{Build, Machine, registration};
use sower_test_support::{Enqueue, Forge, JobView, Method, Options, Rule, Status, Trouble, Version};

const HELP: &str = "\
sower-restart: restarts the service in the middle of jobs, under a real init.

  --sower PATH    the program
  --kernel PATH   the machine's kernel
  --modules PATH  its modules, a folder
  --config PATH   the folder with the service files
  --roots PATH    root file systems, RELEASE/INIT/root each
  --only NAME     of these only RELEASE/INIT; once for each";

/// An emulated machine on a busy one is slow.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long one command of the init may take.
const COMMAND: Duration = Duration::from_secs(240);
const DISK: u64 = 2 << 30;

/// What the machine's first process does: the disk becomes the root, and its init takes over.
const INIT: &str = r#"umount /sys/fs/cgroup /tmp
for place in dev proc sys; do mount --move /$place /data/$place; done
mknod /dev/null c 1 3
chroot /data /bin/sh -c 'SHELL' &
exec switch_root /data /sbin/init
"#;

/// The first job knows no limits, as it is without a configuration.
const PLAIN: &str = "log:\n  level: debug\nrunner:\n  capacity: 2\n";
const LIMITS: &str = "limits:\n  memory: 64MiB\n  pids: 200\n";

/// How an init is spoken to.
struct Init {
    name: &'static str,
    version: &'static str,
    restart: &'static str,
    stop: &'static str,
    start: &'static str,
    reload: &'static str,
    reboot: &'static str,
    log: &'static str,
}

const SYSTEMD: Init = Init {
    name: "systemd",
    version: "systemctl --version | head -n 1",
    restart: "systemctl restart sower",
    stop: "systemctl stop sower",
    start: "systemctl start sower",
    reload: "systemctl reload sower",
    reboot: "systemctl reboot",
    log: "journalctl --no-pager --lines 60 --unit sower; systemd-cgls --no-pager | grep -v invocation_id",
};

const OPENRC: Init = Init {
    name: "OpenRC",
    version: "openrc --version",
    restart: "rc-service sower restart",
    stop: "rc-service sower stop",
    start: "rc-service sower start",
    reload: "rc-service sower reload",
    reboot: "openrc-shutdown -r now",
    log: "rc-service sower status; tail -n 40 /var/log/sower.log; find /sys/fs/cgroup -name cgroup.procs -path '*sower*' | xargs grep .",
};

/// A root file system with the service in it, as an operator would install it, in a folder that is removed in the end.
fn install(
    root: &Path,
    sower: &Path,
    services: &Path,
    registration: &str,
) -> Result<(tempfile::TempDir, &'static Init), Trouble> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("root");
    let copied = Command::new("cp").arg("-a").arg(root).arg(&place).status()?;
    if !copied.success() {
        return Err(format!("{} cannot be copied", root.display()).into());
    }
    for made in ["etc/sower", "var/lib/sower", "usr/local/bin"] {
        fs::create_dir_all(place.join(made))?;
    }
    fs::copy(sower, place.join("usr/local/bin/sower"))?;
    fs::write(place.join("etc/sower/config.yaml"), PLAIN)?;
    fs::write(place.join("var/lib/sower/.runner"), registration)?;
    // Nothing is to be waited for but the service itself.
    if place.join("usr/bin/systemctl").exists() {
        let units = place.join("etc/systemd/system");
        fs::copy(services.join("sower.service"), units.join("sower.service"))?;
        // As the file says, but for the time that a hanging daemon is given.
        fs::create_dir_all(units.join("sower.service.d"))?;
        fs::write(units.join("sower.service.d/quick.conf"), "[Service]\nWatchdogSec=30\nRestartSec=1\n")?;
        fs::create_dir_all(units.join("multi-user.target.wants"))?;
        link("../sower.service", &units.join("multi-user.target.wants/sower.service"))?;
        link("/lib/systemd/system/multi-user.target", &units.join("default.target"))?;
        for unit in ["getty@tty1.service", "serial-getty@ttyS0.service"] {
            link("/dev/null", &units.join(unit))?;
        }
        return Ok((folder, &SYSTEMD));
    }
    let script = place.join("etc/init.d/sower");
    fs::copy(services.join("sower.initd"), &script)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(place.join("etc/conf.d"))?;
    fs::write(
        place.join("etc/conf.d/sower"),
        "healthcheck_delay=10\nhealthcheck_timer=10\nrespawn_delay=1\n",
    )?;
    fs::write(place.join("etc/rc.conf"), "rc_cgroup_mode=\"unified\"\n")?;
    // The network is there before the init is.
    let net = place.join("etc/init.d/net-there");
    fs::write(&net, "#!/sbin/openrc-run\ndepend() {\n\tprovide net\n}\nstart() {\n\t:\n}\n")?;
    fs::set_permissions(&net, fs::Permissions::from_mode(0o755))?;
    for (level, service) in [("sysinit", "cgroups"), ("boot", "net-there"), ("default", "sower")] {
        link(&format!("/etc/init.d/{service}"), &place.join("etc/runlevels").join(level).join(service))?;
    }
    link("openrc-init", &place.join("sbin/init"))?;
    Ok((folder, &OPENRC))
}

/// A symbolic link, in the place of what is there.
fn link(target: &str, place: &Path) -> Result<(), Trouble> {
    let _ = fs::remove_file(place);
    symlink(target, place).map_err(|error| format!("{}: {error}", place.display()).into())
}

/// A job that prints rows until a file is there.
fn printing(number: u32) -> Enqueue {
    let yaml = format!(
        "on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n      - name: Print\n        run: |\n          \
         echo x >>/root/ran-{number}; i=0; until [ -e /root/gate-{number} ]; do i=$((i+1)); echo \"tick $i\"; sleep 0.2; done\n      \
         - name: Later\n        run: echo later\n"
    );
    Enqueue { payload: yaml.into_bytes(), labels: vec!["host".to_owned()], ..Enqueue::default() }
}

fn ticks(rows: &[String]) -> Vec<u64> {
    rows.iter().filter_map(|row| row.strip_prefix("tick ")?.parse().ok()).collect()
}

/// A machine with the service, and a job that goes on.
struct Host<'h> {
    forge: &'h Forge,
    init: &'static Init,
    machine: Machine,
    console: Console,
    /// What has gone wrong.
    wrong: u32,
}

impl Host<'_> {
    fn run(&mut self, command: &str) -> Result<console::Ended, Trouble> {
        self.console.run(command, COMMAND)
    }

    /// The daemon's number, once there is one that is not `before`.
    fn daemon(&mut self, before: Option<&str>) -> Result<String, Trouble> {
        let began = Instant::now();
        loop {
            // The lock is there also when its holder is gone.
            let seen = self.run("read pid </var/lib/sower/daemon.lock && kill -0 $pid && echo $pid")?;
            let pid = seen.said.trim().to_owned();
            if seen.code == 0 && !pid.is_empty() && before != Some(pid.as_str()) {
                return Ok(pid);
            }
            if began.elapsed() > PATIENCE {
                return Err("no daemon comes up".into());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn job(&self, run: i64) -> Option<JobView> {
        self.forge.run(run)?.jobs.into_iter().next()
    }

    /// Waits until the server has this many rows more than now; false when the job ended instead.
    fn goes_on(&self, run: i64, more: usize) -> Result<bool, Trouble> {
        let count = |forge: &Forge, job: &JobView| ticks(&forge.text(job.id)).len();
        let before = self.job(run).map_or(0, |job| count(self.forge, &job));
        Ok(self.forge.wait_for("further rows", PATIENCE, |forge| {
            let job = self.job(run)?;
            if job.status.is_done() {
                return Some(false);
            }
            (count(forge, &job) >= before + more).then_some(true)
        })?)
    }

    /// Does something to the service, and sees that the daemon is another one where it should be, that it asks for tasks,
    /// and that the job goes on.
    fn station(&mut self, what: &str, run: i64, commands: &[&str], anew: bool) -> Result<(), Trouble> {
        let began = Instant::now();
        let before = self.daemon(None)?;
        let asked = self.forge.requests(Method::FetchTask);
        let mut problem = None;
        for command in commands {
            let ended = self.run(&command.replace("DAEMON", &before))?;
            if ended.code != 0 {
                problem = Some(format!("{command} exits with {}: {}", ended.code, ended.said.trim()));
            }
        }
        let after = self.daemon(anew.then_some(before.as_str()))?;
        if !anew && after != before {
            problem = Some(format!("the daemon is another one: {before}, {after}"));
        }
        self.forge.wait_for("a question of the daemon", PATIENCE, |forge| {
            (forge.requests(Method::FetchTask) > asked + 1).then_some(())
        })?;
        if !self.goes_on(run, 5)? {
            problem = Some("the job ended".to_owned());
        }
        self.tell(what, began, problem);
        Ok(())
    }

    fn tell(&mut self, what: &str, began: Instant, problem: Option<String>) {
        self.wrong += u32::from(problem.is_some());
        println!(
            "  {what:<44} {:>5.1} s  {}",
            began.elapsed().as_secs_f64(),
            problem.as_deref().map_or("ok", |_| "WRONG")
        );
        if let Some(problem) = problem {
            println!("    {problem}");
            if let Ok(said) = self.run(self.init.log) {
                println!("{}", said.said);
            }
        }
        let _ = std::io::stdout().flush();
    }

    /// Ends a job that prints, and compares what arrived.
    fn end(&mut self, number: u32, run: i64) -> Result<(), Trouble> {
        let began = Instant::now();
        self.run(&format!("touch /root/gate-{number}"))?;
        let job = self.forge.wait_done(run, PATIENCE)?.jobs.swap_remove(0);
        let rows = self.forge.text(job.id);
        let seen = ticks(&rows);
        let ran = self.run(&format!("cat /root/ran-{number}"))?.said;
        let whole = seen.iter().copied().eq(1..=seen.len() as u64) && rows.iter().any(|row| row == "later");
        let problem = (job.status != Status::Success || !whole || ran.trim() != "x").then(|| {
            format!("{}, {} rows, whole: {whole}, ran: {ran:?}\n{}", job.status, seen.len(), tail(&rows))
        });
        self.tell(&format!("the job ends: {} rows, each once", seen.len()), began, problem);
        Ok(())
    }
}

fn tail(rows: &[String]) -> String {
    rows[rows.len().saturating_sub(15)..].join("\n")
}

/// All that happens to one init; how much of it went wrong.
fn under(root: &Path, sower: &Path, services: &Path, kernel: &Path, modules: &Path) -> Result<u32, Trouble> {
    let forge = Forge::start(Options {
        version: Version::V1_27,
        heartbeat: Duration::from_secs(600),
        ..Options::default()
    })?;
    // A daemon that is killed makes its last call again.
    for rule in [Rule::RowsAfterSeal, Rule::Result, Rule::LogLength, Rule::Steps, Rule::Fetch] {
        forge.allow(rule);
    }
    let (folder, init) = install(root, sower, services, &registration(sower, &forge, "host:host")?)?;
    let first = INIT.replace("SHELL", console::SHELL);
    let build = Build { sower, kernel, modules, init: &first, config: "", programs: &[], memory: 768 };
    let mut machine = Machine::of_root(&build, &folder.path().join("root"), DISK)?;
    drop(folder);
    let began = Instant::now();
    machine.boot()?;
    let console =
        Console::open(&machine, PATIENCE).map_err(|error| format!("{error}\n{}", machine.serial()))?;
    let mut host = Host { forge: &forge, init, machine, console, wrong: 0 };
    let version = host.run(init.version)?.said;
    println!("{} ({})", version.trim().lines().next().unwrap_or(init.name).trim(), root.display());
    forge
        .wait_for("the first question", PATIENCE, |forge| {
            (forge.requests(Method::FetchTask) > 0).then_some(())
        })
        .map_err(|error| {
            let said = host.run(init.log).map_or_else(|error| error.to_string(), |said| said.said);
            format!("{error}\n{said}\n{}", host.machine.serial())
        })?;
    host.tell("the machine and the service are up", began, None);

    let run = forge.enqueue(printing(1));
    host.goes_on(run, 2)?;
    host.station("restart, without limits", run, &[init.restart], true)?;
    host.end(1, run)?;

    host.run(&format!("printf '{}' >>/etc/sower/config.yaml", LIMITS.replace('\n', "\\n")))?;
    let ended = host.run(init.restart)?;
    if ended.code != 0 {
        host.tell("restart, with limits and no job", Instant::now(), Some(ended.said));
    }
    let run = forge.enqueue(printing(2));
    host.goes_on(run, 2)?;
    host.station("restart, with limits", run, &[init.restart], true)?;
    host.station("restart, once more", run, &[init.restart], true)?;
    host.station("stop, some seconds, start", run, &[init.stop, "sleep 3", init.start], true)?;
    host.station("reload", run, &[init.reload], false)?;
    host.station(
        "the clock jumps, a day ahead and back",
        run,
        &[
            "date -s @$(($(date +%s) + 86400)) >/dev/null",
            "sleep 5",
            "date -s @$(($(date +%s) - 86400)) >/dev/null",
        ],
        false,
    )?;
    host.station("the daemon is killed", run, &["kill -KILL DAEMON"], true)?;
    host.station(
        "upgrade: another file, restart",
        run,
        &[
            "cp /usr/local/bin/sower /usr/local/bin/new && mv /usr/local/bin/new /usr/local/bin/sower",
            init.restart,
        ],
        true,
    )?;
    host.station("the daemon hangs, and the init sees it", run, &["kill -STOP DAEMON"], true)?;
    limited(&mut host)?;
    host.end(2, run)?;
    nothing_left(&mut host)?;
    shut_down(&mut host)?;
    for rule in forge.take_violations() {
        println!("  broken rule: {rule}");
        host.wrong += 1;
    }
    Ok(host.wrong)
}

/// The limits of jobs are in force, whatever daemon it is by now.
fn limited(host: &mut Host<'_>) -> Result<(), Trouble> {
    let began = Instant::now();
    let yaml = "on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n      - run: head -c 200M /dev/zero | tail -n 1\n";
    let run = host.forge.enqueue(Enqueue {
        payload: yaml.into(),
        labels: vec!["host".to_owned()],
        ..Enqueue::default()
    });
    let job = host.forge.wait_done(run, PATIENCE)?.jobs.swap_remove(0);
    let rows = host.forge.text(job.id);
    // On a slow machine the kernel may take so long over it that the watchdog is first.
    let causes =
        ["out of memory: at this job's own limit of 64 MiB", "at its limit of 64 MiB the job stood still"];
    let named = rows.iter().any(|row| causes.iter().any(|cause| row.contains(&format!("Cause: {cause}"))));
    let problem =
        (!named || job.status != Status::Failure).then(|| format!("{}\n{}", job.status, tail(&rows)));
    host.tell("a job above its limit beside it is killed", began, problem);
    Ok(())
}

/// No process and no control group of a job is left.
fn nothing_left(host: &mut Host<'_>) -> Result<(), Trouble> {
    let began = Instant::now();
    let look = "find /sys/fs/cgroup -type d -name 'sower-[0-9]*'; find /sys/fs/cgroup -type d -name 'sower-job*'; grep -la 'RUNNER_TRACKING_ID' /proc/[0-9]*/environ 2>/dev/null";
    let mut left = String::new();
    while began.elapsed() < Duration::from_secs(60) {
        left = host.run(look)?.said;
        if left.trim().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    host.tell("nothing is left of the jobs", began, (!left.trim().is_empty()).then_some(left));
    Ok(())
}

/// An orderly shutdown in the middle of a job: the daemon of the next boot tells the truth about it.
fn shut_down(host: &mut Host<'_>) -> Result<(), Trouble> {
    let began = Instant::now();
    let run = host.forge.enqueue(printing(3));
    host.goes_on(run, 2)?;
    // The line may be gone before the command has ended.
    let _ = host
        .console
        .run(&format!("(sleep 1; {}) >/dev/null 2>&1 & true", host.init.reboot), Duration::from_secs(20));
    host.machine.wait_off(PATIENCE)?;
    host.machine.boot()?;
    host.console = Console::open(&host.machine, PATIENCE)?;
    let job = host.forge.wait_done(run, PATIENCE)?.jobs.swap_remove(0);
    let rows = host.forge.text(job.id);
    let seen = ticks(&rows);
    let told = rows.iter().rev().find(|row| row.starts_with("##[error]")).cloned().unwrap_or_default();
    let well = job.status == Status::Failure
        && seen.iter().copied().eq(1..=seen.len() as u64)
        && ["host went down", "shut"].iter().any(|words| told.contains(words))
        && job.step("Later").is_none_or(|step| step.status == Status::Skipped);
    println!("    {} {told}", job.status);
    host.tell("shut down in the middle of a job", began, (!well).then(|| tail(&rows)));
    Ok(())
}

/// The root file systems in a folder, or some of them.
fn roots(folder: &Path, only: &[String]) -> Result<Vec<PathBuf>, Trouble> {
    if !only.is_empty() {
        return Ok(only.iter().map(|name| folder.join(name).join("root")).collect());
    }
    let mut roots = Vec::new();
    for release in fs::read_dir(folder)? {
        for init in fs::read_dir(release?.path())? {
            roots.push(init?.path().join("root"));
        }
    }
    roots.sort();
    Ok(roots)
}

fn run() -> Result<bool, Trouble> {
    let mut values = std::collections::BTreeMap::new();
    let mut only = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().filter(|_| flag != "--help").ok_or(HELP)?;
        if flag == "--only" {
            only.push(value);
        } else {
            let path = fs::canonicalize(&value).map_err(|error| format!("{value}: {error}"))?;
            values.insert(flag, path);
        }
    }
    let path = |flag: &str| -> Result<PathBuf, Trouble> {
        Ok(values.get(flag).cloned().ok_or_else(|| format!("{flag} is missing\n\n{HELP}"))?)
    };
    let (sower, kernel, modules) = (path("--sower")?, path("--kernel")?, path("--modules")?);
    let (services, folder) = (path("--config")?, path("--roots")?);
    let roots = roots(&folder, &only)?;
    let mut wrong = 0;
    for root in &roots {
        wrong += under(root, &sower, &services, &kernel, &modules)?;
    }
    println!("{} inits, {wrong} wrong", roots.len());
    Ok(wrong == 0 && !roots.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("sower-restart: {trouble}");
            ExitCode::from(2)
        }
    }
}
