//! A virtual machine runs jobs, and its power is cut.
//!
//! The machine is QEMU with Debian's cloud kernel, an initial file system of busybox and the program, and a disk with
//! ext4. The stand-in for Gitea stays up outside. What the kernel of the machine has not written is lost with it; what
//! was printed is known from its serial line. After each cut it boots again, and the log that arrives is compared.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sower_test_support::machine::{Build, Machine, registration};
use sower_test_support::{Dice, Enqueue, Forge, Method, Options, Row, Rule, Status, Trouble, Version};

const HELP: &str = "\
sower-powercut: runs jobs in a virtual machine and cuts its power.

  --sower PATH    the program
  --kernel PATH   the machine's kernel
  --modules PATH  its modules, a folder
  --cuts N        how often [20]
  --seed N        of all that is left to chance [from the clock]";

/// How many rows a job prints that may begin after the boot.
const SHORT: u64 = 60;
/// An emulated machine on a busy one is slow.
const PATIENCE: Duration = Duration::from_secs(300);

const CONFIG: &str = "runner:\n  file: /data/state/.runner\nhost:\n  home: /data\n";

const INIT: &str = r#"while :; do /bin/sower daemon -c /etc/config.yaml >/dev/console 2>&1; sleep 1; done
"#;

/// The machine, registered with the stand-in.
fn machine(sower: &Path, kernel: &Path, modules: &Path, forge: &Forge) -> Result<Machine, Trouble> {
    Machine::new(
        &Build { sower, kernel, modules, init: INIT, config: CONFIG, programs: &[], memory: 512 },
        &registration(sower, forge, "host:host")?,
    )
}

/// What became of one cut.
struct Cut {
    what: &'static str,
    printed: u64,
    arrived: u64,
    lost: f64,
    wrong: Option<String>,
}

fn ticks(rows: &[Row]) -> Vec<(u64, std::time::SystemTime)> {
    rows.iter().filter_map(|row| Some((row.text.strip_prefix("tick ")?.parse().ok()?, row.time))).collect()
}

/// Has a job run, cuts the power in it, boots, and compares.
fn once(machine: &mut Machine, forge: &Forge, dice: &mut Dice, number: u64) -> Result<Cut, Trouble> {
    let what = *dice.pick(&["Gitea is there", "Gitea is away", "Gitea is away", "at its beginning"]);
    let asked = forge.requests(Method::FetchTask);
    forge.wait_for("a question of the machine", PATIENCE, |forge| {
        (forge.requests(Method::FetchTask) > asked).then_some(())
    })?;
    // A job that had not begun begins after the boot, and then has to end.
    let end = if what == "at its beginning" { SHORT } else { 1_000_000 };
    let yaml = format!(
        "on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n      - name: Print\n        run: |\n          \
         i=0; while [ $i -lt {end} ]; do i=$((i+1)); echo \"tick $i\"; echo \"cut {number} tick $i\" >/dev/console; usleep 30000; done\n      \
         - name: Later\n        run: echo later\n"
    );
    let run = forge.enqueue(Enqueue {
        payload: yaml.into_bytes(),
        labels: vec!["host".to_owned()],
        ..Enqueue::default()
    });
    let job = || forge.run(run).and_then(|run| run.jobs.into_iter().next());
    if what == "at its beginning" {
        forge.wait_for("the claim", PATIENCE, |_| job().filter(|job| job.task.is_some()))?;
        std::thread::sleep(Duration::from_millis(dice.below(1500)));
    } else {
        forge
            .wait_for("a row", PATIENCE, |forge| job().filter(|job| !ticks(&forge.log(job.id)).is_empty()))?;
        if what == "Gitea is away" {
            forge.go_down();
        }
        std::thread::sleep(Duration::from_millis(500 + dice.below(6000)));
    }
    machine.cut()?;
    let mark = format!("cut {number} tick ");
    let printed = machine
        .serial()
        .lines()
        .filter_map(|line| line.split_once(&mark)?.1.trim().parse().ok())
        .max()
        .unwrap_or(0);
    forge.come_up();
    machine.boot()?;
    let asked = forge.requests(Method::FetchTask);
    let done = forge.wait_for("the end of the job", PATIENCE, |forge| {
        let job = job()?;
        if job.status.is_done() {
            return Some(Some(job));
        }
        // The machine is up, and knows nothing of a task that it had not written down.
        (forge.requests(Method::FetchTask) > asked + 20 && job.rows == 0).then_some(None)
    })?;
    let Some(done) = done else {
        if let Some(task) = job().and_then(|job| job.task) {
            forge.reap(task);
        }
        return Ok(Cut {
            what: "before it was written",
            printed,
            arrived: 0,
            lost: 0.0,
            wrong: (printed > 0).then(|| "a job that ran was forgotten".to_owned()),
        });
    };
    let rows = forge.log(done.id);
    let seen = ticks(&rows);
    let arrived = seen.last().map_or(0, |(tick, _)| *tick);
    let pace = match (seen.first(), seen.last()) {
        (Some((first, from)), Some((last, to))) if last > first => {
            to.duration_since(*from).unwrap_or_default().as_secs_f64() / (last - first) as f64
        }
        _ => 0.03,
    };
    let mut wrong = String::new();
    if seen.iter().map(|(tick, _)| *tick).ne(1..=arrived) {
        wrong.push_str("rows are missing, doubled or torn; ");
    }
    if done.status == Status::Success && printed == 0 && arrived == SHORT {
        return Ok(Cut { what: "before it began", printed, arrived, lost: 0.0, wrong: None });
    }
    if done.status != Status::Failure {
        let _ = write!(wrong, "the job is {}; ", done.status);
    }
    let says = |text: &str| rows.iter().any(|row| row.text.contains(text));
    if !(says("The host went down") || says("never started")) {
        wrong.push_str("nothing says why; ");
    }
    if done.step("Later").is_some_and(|step| step.status != Status::Skipped) {
        wrong.push_str("a later step ran; ");
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let lost = printed.saturating_sub(arrived) as f64 * pace;
    Ok(Cut { what, printed, arrived, lost, wrong: (!wrong.is_empty()).then_some(wrong) })
}

fn run() -> Result<bool, Trouble> {
    let mut values = std::collections::BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().filter(|_| flag != "--help").ok_or(HELP)?;
        values.insert(flag, value);
    }
    let path = |flag: &str| -> Result<PathBuf, Trouble> {
        let value = values.get(flag).ok_or_else(|| format!("{flag} is missing\n\n{HELP}"))?;
        Ok(fs::canonicalize(value).map_err(|error| format!("{value}: {error}"))?)
    };
    let number = |flag: &str| values.get(flag).map(|value| value.parse::<u64>()).transpose();
    let cuts = number("--cuts")?.unwrap_or(20);
    let mut dice = match number("--seed")? {
        Some(seed) => Dice::new(seed),
        None => Dice::from_env("SOWER_SEED"),
    };
    let forge = Forge::start(Options {
        version: Version::V1_27,
        heartbeat: Duration::from_secs(600),
        ..Options::default()
    })?;
    for rule in [Rule::RowsAfterSeal, Rule::Result, Rule::LogLength, Rule::Steps, Rule::Fetch] {
        forge.allow(rule);
    }
    let mut machine = machine(&path("--sower")?, &path("--kernel")?, &path("--modules")?, &forge)?;
    let began = Instant::now();
    machine.boot()?;
    forge
        .wait_for("the first question of the machine", PATIENCE, |forge| {
            (forge.requests(Method::FetchTask) > 0).then_some(())
        })
        .map_err(|error| {
            format!("{error}\nits serial line:\n{}", machine.serial().chars().take(3000).collect::<String>())
        })?;
    println!("the machine is up after {:.1} s", began.elapsed().as_secs_f64());
    println!("{:>4}  {:<24} {:>8} {:>8} {:>8}", "cut", "when", "printed", "arrived", "lost");
    let (mut bad, mut worst) = (0, 0.0_f64);
    for number in 1..=cuts {
        let cut = once(&mut machine, &forge, &mut dice, number)
            .map_err(|error| format!("{error}\nthe end of its serial line:\n{}", tail(&machine.serial())))?;
        println!(
            "{number:>4}  {:<24} {:>8} {:>8} {:>6.2} s  {}",
            cut.what,
            cut.printed,
            cut.arrived,
            cut.lost,
            cut.wrong.as_deref().unwrap_or("")
        );
        std::io::stdout().flush()?;
        worst = worst.max(cut.lost);
        bad += u64::from(cut.wrong.is_some());
    }
    let broken = forge.take_violations();
    for rule in &broken {
        println!("broken rule: {rule}");
    }
    println!("{cuts} cuts, {} boots, {bad} with a wrong end, most lost {worst:.2} s", machine.boots);
    Ok(bad == 0 && broken.is_empty())
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(3000);
    &text[text.ceil_char_boundary(from)..]
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("sower-powercut: {trouble}");
            ExitCode::from(2)
        }
    }
}
