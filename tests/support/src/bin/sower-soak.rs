//! Kills daemons and jobs and breaks the network for as long as it is told to, and counts what should never be.
//!
//! Each world is a stand-in for Gitea with a runner of its own. Jobs print numbered rows and leave processes behind;
//! the steps note that they ran. At the end one table says what happened, and the exit code is 1 when something did
//! that must not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use sower_test_support::{
    Dice, Enqueue, Fault, Forge, JobView, Method, Options, Rule, Runner, Status, Trouble, Version, signal,
};

const HELP: &str = "\
sower-soak: kills daemons and jobs, breaks the network, counts what is lost.

  --sower PATH    the program [target/release/sower]
  --minutes N     how long [10]
  --worlds N      how many runners at a time [3]
  --seed N        of all that is left to chance [from the clock]

Example: sower-soak --sower target/debug/sower --minutes 5 --seed 7";

/// How long a job may take from its last event to its end in the stand-in before it counts as without one.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone)]
struct Asked {
    sower: String,
    minutes: f64,
    worlds: u64,
    seed: u64,
}

/// What happened.
#[derive(Debug, Default)]
struct Count {
    jobs: u64,
    daemon_kills: u64,
    daemon_stops: u64,
    job_kills: u64,
    faults: u64,
    outages: u64,
    rows: u64,
    lost_claims: u64,
    peak_daemon: u64,
    peak_job: u64,
    /// From the kill of a job to its end in the stand-in.
    truths: Vec<Duration>,
    // And what must not.
    rows_lost: u64,
    rows_doubled: u64,
    steps_twice: u64,
    processes_left: u64,
    without_end: u64,
    wrong_end: u64,
    rules_broken: u64,
    notes: Vec<String>,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.daemon_kills += other.daemon_kills;
        self.daemon_stops += other.daemon_stops;
        self.job_kills += other.job_kills;
        self.faults += other.faults;
        self.outages += other.outages;
        self.rows += other.rows;
        self.lost_claims += other.lost_claims;
        self.peak_daemon = self.peak_daemon.max(other.peak_daemon);
        self.peak_job = self.peak_job.max(other.peak_job);
        self.truths.extend(other.truths);
        self.rows_lost += other.rows_lost;
        self.rows_doubled += other.rows_doubled;
        self.steps_twice += other.steps_twice;
        self.processes_left += other.processes_left;
        self.without_end += other.without_end;
        self.wrong_end += other.wrong_end;
        self.rules_broken += other.rules_broken;
        self.notes.extend(other.notes);
    }

    fn bad(&self) -> [(&'static str, u64); 7] {
        [
            ("rows lost", self.rows_lost),
            ("rows doubled or out of order", self.rows_doubled),
            ("steps run twice", self.steps_twice),
            ("processes left", self.processes_left),
            ("jobs without an end", self.without_end),
            ("jobs with a wrong end", self.wrong_end),
            ("rules of the protocol broken", self.rules_broken),
        ]
    }

    fn table(&self) -> String {
        let mut truths = self.truths.clone();
        truths.sort();
        let seconds = |time: Option<&Duration>| {
            time.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
        };
        let mut rows: Vec<(&str, String)> = vec![
            ("jobs", self.jobs.to_string()),
            ("daemon kills (SIGKILL)", self.daemon_kills.to_string()),
            ("daemon stops (SIGTERM)", self.daemon_stops.to_string()),
            ("job kills", self.job_kills.to_string()),
            ("network faults", self.faults.to_string()),
            ("outages", self.outages.to_string()),
            ("rows in the logs", self.rows.to_string()),
        ];
        rows.extend(self.bad().map(|(name, count)| (name, count.to_string())));
        rows.extend([
            ("time from a job's kill to its end, median", seconds(truths.get(truths.len() / 2))),
            ("  the worst", seconds(truths.last())),
            ("claims lost with the reply (not ours to know)", self.lost_claims.to_string()),
            ("most memory of a daemon", format!("{} KiB", self.peak_daemon)),
            ("most memory of a job process", format!("{} KiB", self.peak_job)),
        ]);
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        rows.iter().map(|(name, value)| format!("{name:<width$}  {value:>10}\n")).collect()
    }
}

/// A job that is on its way.
struct Job {
    run: i64,
    folder: PathBuf,
    ticks: u64,
    killed: Option<Instant>,
    since: Instant,
    over: Option<Instant>,
}

struct World {
    number: u64,
    dice: Dice,
    forge: Forge,
    runner: Runner,
    folder: tempfile::TempDir,
    jobs: Vec<Job>,
    made: u64,
    /// Jobs whose leftovers are still to be looked for.
    to_check: Vec<(Instant, PathBuf)>,
    /// Tasks that no daemon could write down.
    unwritten: Vec<i64>,
    count: Count,
}

impl World {
    fn new(asked: &Asked, number: u64) -> Result<Self, Trouble> {
        let mut dice = Dice::new(asked.seed.wrapping_add(number.wrapping_mul(1_000_003)));
        let version = *dice.pick(&[Version::V1_26_1, Version::V1_26_2, Version::V1_27]);
        let forge = Forge::start(Options { version, ..Options::default() })?;
        // A daemon that dies right after a call cannot know whether it has arrived, and tries once more.
        forge.allow(Rule::RowsAfterSeal);
        forge.allow(Rule::Result);
        let mut runner = Runner::new(&asked.sower, 3)?;
        let output = runner.register(&forge.url(), &forge.registration_token(), "host:host", &[])?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        runner.start(&[])?;
        Ok(Self {
            number,
            dice,
            forge,
            runner,
            folder: tempfile::tempdir()?,
            jobs: Vec::new(),
            made: 0,
            to_check: Vec::new(),
            unwritten: Vec::new(),
            count: Count::default(),
        })
    }

    fn run(mut self, until: Instant) -> Result<Count, Trouble> {
        while Instant::now() < until {
            while self.jobs.len() < 3 {
                self.new_job()?;
            }
            self.act()?;
            self.look();
            std::thread::sleep(Duration::from_millis(50 + self.dice.below(450)));
        }
        self.count.faults -= self.forge.faults_left() as u64;
        self.forge.clear_faults();
        self.forge.come_up();
        let deadline = Instant::now() + PATIENCE;
        while (!self.jobs.is_empty() || !self.to_check.is_empty()) && Instant::now() < deadline {
            self.look();
            std::thread::sleep(Duration::from_millis(100));
        }
        self.count.without_end += self.jobs.len() as u64;
        for job in &self.jobs {
            let said =
                format!("world {}: run {} has no end\n{}", self.number, job.run, self.forge.describe());
            self.count.notes.push(said);
        }
        // Directories are removed beside other work.
        std::thread::sleep(Duration::from_secs(2));
        let left = self.runner.processes().len().saturating_sub(1);
        if left > 0 {
            self.count.notes.push(format!("world {}: {left} processes at the end", self.number));
        }
        self.count.processes_left += left as u64;
        let mut broken = self.forge.take_violations();
        // Nobody knows the steps of what was not written down.
        broken.retain(|text| {
            !self.unwritten.iter().any(|task| text.starts_with(&format!("Steps: task {task}:")))
        });
        self.count.rules_broken += broken.len() as u64;
        self.count.notes.extend(broken);
        if self.count.bad().iter().any(|(_, count)| *count > 0) {
            let file = std::env::temp_dir().join(format!("sower-soak-{}.log", self.number));
            fs::write(&file, self.runner.said())?;
            self.count.notes.push(format!(
                "what the daemons of world {} said: {}",
                self.number,
                file.display()
            ));
        }
        Ok(self.count)
    }

    fn new_job(&mut self) -> Result<(), Trouble> {
        self.made += 1;
        let folder = self.folder.path().join(self.made.to_string());
        fs::create_dir(&folder)?;
        let ticks = 50 + self.dice.below(600);
        let pause = [0.0, 0.002, 0.01][usize::try_from(self.dice.below(3))?];
        let (half, f) = (ticks / 2, folder.display());
        let rows = |from: u64, to: u64| {
            if pause == 0.0 {
                format!("seq -f 'tick %.0f' {from} {to}")
            } else {
                format!("for i in $(seq {from} {to}); do echo \"tick $i\"; sleep {pause}; done")
            }
        };
        let runaways = if self.dice.below(3) == 0 {
            format!(
                "sleep 3600 & echo $! > {f}/plain.pid\n          (setsid nohup sleep 3600 >/dev/null 2>&1 & echo $! > {f}/session.pid)\n          "
            )
        } else {
            String::new()
        };
        let yaml = format!(
            "on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n      - name: One\n        run: |\n          \
             echo 1 >> {f}/ran\n          {runaways}{}\n      - name: Two\n        run: |\n          echo 2 >> {f}/ran\n          {}\n      \
             - name: Three\n        run: |\n          echo 3 >> {f}/ran; echo over\n",
            rows(1, half),
            rows(half + 1, ticks),
        );
        let run = self.forge.enqueue(Enqueue {
            payload: yaml.into_bytes(),
            labels: vec!["host".to_owned()],
            ..Enqueue::default()
        });
        self.jobs.push(Job { run, folder, ticks, killed: None, since: Instant::now(), over: None });
        Ok(())
    }

    fn act(&mut self) -> Result<(), Trouble> {
        match self.dice.below(100) {
            0..=39 => {
                self.sample();
                // On a slow machine most would hit a daemon that has just been started.
                if self.dice.below(2) == 0 {
                    let said = self.requests();
                    let _ = self.forge.wait_for("a word of the daemon", Duration::from_secs(20), |_| {
                        (self.requests() > said + 2).then_some(())
                    });
                }
                self.runner.kill()?;
                self.count.daemon_kills += 1;
                std::thread::sleep(Duration::from_millis(self.dice.below(250)));
                self.runner.start(&[])?;
            }
            40..=62 => self.kill_a_job(),
            63..=93 => self.break_the_network(),
            94..=96 => {
                self.forge.go_down();
                std::thread::sleep(Duration::from_millis(300 + self.dice.below(2500)));
                self.forge.come_up();
                self.count.outages += 1;
            }
            _ => {
                self.runner.signal("TERM")?;
                let _ = self.runner.wait(Duration::from_secs(90))?;
                self.count.daemon_stops += 1;
                self.runner.start(&[])?;
            }
        }
        Ok(())
    }

    /// How often the daemons have said something that matters.
    fn requests(&self) -> u64 {
        [Method::FetchTask, Method::UpdateTask, Method::UpdateLog]
            .into_iter()
            .map(|method| self.forge.requests(method))
            .sum()
    }

    fn kill_a_job(&mut self) {
        let index = usize::try_from(self.dice.below(self.jobs.len() as u64)).unwrap_or(0);
        let how = *self.dice.pick(&["KILL", "KILL", "SEGV"]);
        let Some(job) = self.jobs.get_mut(index).filter(|job| job.killed.is_none()) else { return };
        let task = self.forge.run(job.run).and_then(|run| run.jobs.first()?.task);
        let Some(process) = task.and_then(|task| self.runner.job_process(task)) else { return };
        self.count.peak_job = self.count.peak_job.max(peak(process));
        if signal(process, how).is_ok() {
            job.killed = Some(Instant::now());
            self.count.job_kills += 1;
        }
    }

    fn break_the_network(&mut self) {
        if self.forge.faults_left() > 3 {
            return;
        }
        let method =
            *self.dice.pick(&[Method::UpdateLog, Method::UpdateLog, Method::UpdateTask, Method::FetchTask]);
        let stall = Duration::from_millis(500 + self.dice.below(2500));
        let rows = usize::try_from(self.dice.below(40)).unwrap_or(0);
        let fault = match (method, self.dice.below(9)) {
            (_, 0) => Fault::Refuse,
            (_, 1) => Fault::Stall(stall),
            (_, 2) => Fault::Html(502),
            (_, 3) => Fault::Html(500),
            (_, 4) => Fault::TooMany(1),
            (_, 5) => Fault::Slow(stall),
            (Method::UpdateLog, 6) => Fault::ForgetRows(rows),
            // A task whose reply is lost is lost on a real server too.
            (Method::FetchTask, _) => Fault::Refuse,
            (_, 7) => Fault::TornReply,
            _ => Fault::DropReply,
        };
        self.forge.fault(method, fault, 1);
        self.count.faults += 1;
    }

    fn sample(&mut self) {
        let memory = self.runner.pid().map_or(0, peak);
        self.count.peak_daemon = self.count.peak_daemon.max(memory);
    }

    /// Looks which jobs are over, and judges them.
    fn look(&mut self) {
        let mut left = Vec::new();
        for mut job in std::mem::take(&mut self.jobs) {
            let view = self.forge.run(job.run).and_then(|run| run.jobs.into_iter().next());
            match view {
                Some(view) if view.status.is_done() => self.judge(&job, &view),
                Some(view) if self.is_lost_claim(&job, &view) => {
                    self.count.lost_claims += 1;
                    if let Some(task) = view.task {
                        self.forge.reap(task);
                    }
                }
                _ => {
                    if job.over.is_none()
                        && fs::read_to_string(job.folder.join("ran")).is_ok_and(|ran| ran.contains('3'))
                    {
                        job.over = Some(Instant::now());
                    }
                    left.push(job);
                }
            }
        }
        self.jobs = left;
        let now = Instant::now();
        let due: Vec<PathBuf>;
        (due, self.to_check) = {
            let (due, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.to_check).into_iter().partition(|(at, _)| *at <= now);
            (due.into_iter().map(|(_, folder)| folder).collect(), later)
        };
        for folder in due {
            for name in ["plain.pid", "session.pid"] {
                if let Some(pid) = alive(&folder.join(name)) {
                    self.count.processes_left += 1;
                    self.count.notes.push(format!(
                        "world {}: {} ({pid}) lives",
                        self.number,
                        folder.join(name).display()
                    ));
                    let _ = signal(pid, "KILL");
                }
            }
        }
    }

    /// The daemon was killed between the server's claim and the arrival of its reply: nobody here can know of it.
    fn is_lost_claim(&self, job: &Job, view: &JobView) -> bool {
        let Some(task) = view.task else { return false };
        let age = view
            .started
            .and_then(|started| SystemTime::now().duration_since(started).ok())
            .unwrap_or_default();
        job.since.elapsed() > Duration::from_secs(20)
            && age > Duration::from_secs(20)
            && view.rows == 0
            && !job.folder.join("ran").exists()
            && !self.runner.job_folder(task).exists()
    }

    fn judge(&mut self, job: &Job, view: &JobView) {
        self.count.jobs += 1;
        let rows = self.forge.text(view.id);
        self.count.rows += rows.len() as u64;
        if !job.folder.join("ran").exists()
            && rows.iter().any(|row| row.contains("never started"))
            && job.killed.is_none()
        {
            // The daemon was killed while it wrote the task down.
            self.count.lost_claims += 1;
            self.unwritten.extend(view.task);
            return;
        }
        let ticks: Vec<u64> = rows.iter().filter_map(|row| row.strip_prefix("tick ")?.parse().ok()).collect();
        let doubled = ticks.windows(2).filter(|pair| pair[1] <= pair[0]).count() as u64;
        // A killed job may have printed what nobody read; what was read must be there without a gap.
        let last = if job.killed.is_some() && view.status != Status::Success {
            ticks.last().copied().unwrap_or(0)
        } else {
            job.ticks
        };
        let distinct: BTreeMap<u64, ()> = ticks.iter().map(|tick| (*tick, ())).collect();
        let lost = last.saturating_sub(distinct.len() as u64);
        let ran = fs::read_to_string(job.folder.join("ran")).unwrap_or_default();
        let twice = ["1", "2", "3"].iter().filter(|step| ran.matches(**step).count() > 1).count() as u64;
        let right = match (view.status, job.killed) {
            (Status::Success, _) => view.sealed && rows.iter().any(|row| row == "over"),
            (Status::Failure, Some(_)) => {
                let says = |row: &String| {
                    row.contains("job process was killed by SIG")
                        || row.contains("job process is gone")
                        || row.contains("never started")
                };
                view.sealed && rows.iter().any(says)
            }
            _ => false,
        };
        if let (Some(killed), Status::Failure) = (job.killed, view.status) {
            self.count.truths.push(killed.elapsed());
        }
        self.count.rows_doubled += doubled;
        self.count.rows_lost += lost;
        self.count.steps_twice += twice;
        self.count.wrong_end += u64::from(!right);
        if doubled + lost + twice > 0 || !right {
            let said = format!(
                "world {}: run {} {}: {doubled} doubled, {lost} lost, {twice} twice, end {}, killed {}\n{}",
                self.number,
                job.run,
                view.status,
                if right { "right" } else { "wrong" },
                job.killed.is_some(),
                rows[rows.len().saturating_sub(6)..].join("\n"),
            );
            self.count.notes.push(said);
        }
        self.to_check.push((Instant::now() + Duration::from_secs(8), job.folder.clone()));
    }
}

/// The process whose number stands in a file, if it lives.
fn alive(file: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    line.starts_with("sleep\0").then_some(pid)
}

/// The most memory that a process had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn asked() -> Result<Asked, String> {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut asked = Asked {
        sower: "target/release/sower".to_owned(),
        minutes: 10.0,
        worlds: 3,
        seed: u64::from(clock.subsec_nanos()),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--help" {
            return Err(HELP.to_owned());
        }
        let value = arguments.next().ok_or_else(|| format!("{flag}: a value is missing\n\n{HELP}"))?;
        let wrong = || format!("{flag} {value}: not a number\n\n{HELP}");
        match flag.as_str() {
            "--sower" => asked.sower = value,
            "--minutes" => asked.minutes = value.parse().map_err(|_| wrong())?,
            "--worlds" => asked.worlds = value.parse().map_err(|_| wrong())?,
            "--seed" => asked.seed = value.parse().map_err(|_| wrong())?,
            _ => return Err(format!("{flag}: unknown\n\n{HELP}")),
        }
    }
    let program = fs::canonicalize(&asked.sower).map_err(|error| format!("{}: {error}", asked.sower))?;
    asked.sower = program.to_string_lossy().into_owned();
    Ok(asked)
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    println!("soak: {} worlds for {} minutes, --seed {}", asked.worlds, asked.minutes, asked.seed);
    let until = Instant::now() + Duration::from_secs_f64(asked.minutes * 60.0);
    let total = Mutex::new(Count::default());
    std::thread::scope(|scope| {
        for number in 0..asked.worlds {
            let (asked, total) = (&asked, &total);
            scope.spawn(move || {
                let count =
                    World::new(asked, number).and_then(|world| world.run(until)).unwrap_or_else(|trouble| {
                        Count {
                            without_end: 1,
                            notes: vec![format!("world {number}: {trouble}")],
                            ..Count::default()
                        }
                    });
                total.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(count);
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for note in total.notes.iter().take(40) {
        println!("{note}");
    }
    print!("{}", total.table());
    if total.bad().iter().any(|(_, count)| *count > 0) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
