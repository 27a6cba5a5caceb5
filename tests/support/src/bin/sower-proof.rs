//! A job prints numbered rows on a real Gitea while the daemon is killed, or Gitea is away; then the log that Gitea serves
//! is compared row by row.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sower_test_support::{Dice, Gitea, JobSeen, Runner, Server, Status, Trouble};

const HELP: &str = "\
sower-proof: numbered rows through a real Gitea, the daemon killed or Gitea away meanwhile.

  --sower PATH    the program [target/release/sower]
  --gitea PATH    a Gitea
  --rows N        how many rows the job prints [200000]
  --kills N       how often the daemon is killed (kill -9) [3]
  --outage N      for how many seconds Gitea is stopped [60]
  --rounds N      how often all of it is done [1]
  --seed N        of all that is left to chance [from the clock]

Example: sower-proof --sower target/release/sower --gitea /usr/bin/gitea --kills 3 --outage 60";

/// How long a job takes to print.
const PRINTING: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(600);
/// So many blocks of rows with a pause behind each.
const BLOCKS: u64 = 100;

struct Asked {
    sower: String,
    gitea: String,
    rows: u64,
    kills: u64,
    outage: u64,
    rounds: u64,
    dice: Dice,
}

/// What happens while the job prints.
#[derive(Clone, Copy)]
enum Trial {
    Kills(u64),
    Outage(Duration),
}

/// What came of it.
#[derive(Default)]
struct Seen {
    rows: usize,
    wrong: Vec<String>,
    took: Duration,
}

fn workflow(rows: u64, mark: &Path) -> String {
    let block = rows.div_ceil(BLOCKS);
    let pause = PRINTING.as_secs_f64() / BLOCKS as f64;
    format!(
        "on: push\njobs:\n  count:\n    runs-on: host\n    steps:\n      - name: Count\n        run: |\n          \
         echo x >> {mark}\n          i=0\n          while [ $i -lt {rows} ]; do\n            \
         n=$((i + {block})); [ $n -le {rows} ] || n={rows}\n            \
         seq -f 'row %.0f' $((i + 1)) $n; i=$n; sleep {pause}\n          done\n      \
         - name: Then\n        run: echo over\n",
        mark = mark.display()
    )
}

fn job(gitea: &Gitea, repository: &str, sha: &str) -> Option<JobSeen> {
    gitea.jobs(repository, sha).ok()?.into_iter().next()
}

fn wait<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T, Trouble> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(format!("{what} did not come").into());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn trial(
    asked: &mut Asked,
    gitea: &Gitea,
    runner: &mut Runner,
    name: &str,
    trial: Trial,
) -> Result<Seen, Trouble> {
    let repository = format!("{}/{name}", sower_test_support::USER);
    let mark = runner.folder().join(name);
    gitea.make_repository(&repository, &[], &[])?;
    let sha = gitea.push(&repository, &[(".gitea/workflows/count.yaml", &workflow(asked.rows, &mark))])?;
    let began = wait("the first step", || mark.exists().then(Instant::now))?;
    match trial {
        Trial::Kills(kills) => {
            let share = PRINTING / u32::try_from(kills.max(1))?;
            for kill in 0..kills {
                let most = u64::try_from(share.as_millis())?;
                let at = share * u32::try_from(kill)? + Duration::from_millis(asked.dice.below(most));
                std::thread::sleep(at.saturating_sub(began.elapsed()));
                runner.kill()?;
                println!("  {name}: daemon killed after {:.1} s", began.elapsed().as_secs_f64());
                runner.start(&[])?;
            }
        }
        Trial::Outage(time) => {
            std::thread::sleep(Duration::from_millis(2000 + asked.dice.below(4000)));
            println!("  {name}: Gitea stopped after {:.1} s", began.elapsed().as_secs_f64());
            gitea.stop()?;
            std::thread::sleep(time);
            gitea.restart()?;
            println!("  {name}: Gitea there again after {:.1} s", began.elapsed().as_secs_f64());
        }
    }
    let job =
        wait("the end of the job", || job(gitea, &repository, &sha).filter(|job| job.status.is_done()))?;
    let took = began.elapsed();
    let all = gitea.rows(&repository, job.id)?;
    let rows: Vec<&String> = all.iter().filter(|row| row.starts_with("row ")).collect();
    let mut seen = Seen { rows: rows.len(), took, wrong: Vec::new() };
    if job.status != Status::Success {
        seen.wrong.push(format!("the job is {}", job.status));
    }
    for (index, row) in rows.iter().enumerate() {
        let wanted = format!("row {}", index + 1);
        if **row != wanted {
            seen.wrong.push(format!("{row:?} where {wanted:?} was to be"));
            break;
        }
    }
    if rows.len() as u64 != asked.rows {
        seen.wrong.push(format!("{} rows of {}", rows.len(), asked.rows));
    }
    if !all.iter().any(|row| row == "over") {
        seen.wrong.push("the second step has no row".to_owned());
    }
    let ran = fs::read_to_string(&mark)?;
    if ran != "x\n" {
        seen.wrong.push(format!("the step ran {} times", ran.lines().count()));
    }
    if !seen.wrong.is_empty() {
        let file = std::env::temp_dir().join(format!("sower-proof-{name}.log"));
        fs::write(&file, runner.said())?;
        seen.wrong.push(format!("what the daemons said: {}", file.display()));
    }
    Ok(seen)
}

fn run(mut asked: Asked) -> Result<bool, Trouble> {
    let gitea = Gitea::start(Path::new(&asked.gitea))?;
    let mut runner = Runner::new(&asked.sower, 1)?;
    let output = runner.register(&gitea.url(), &gitea.registration_token(), "host:host", &[])?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    runner.start(&[])?;
    let mut good = true;
    for round in 1..=asked.rounds {
        for (what, happens) in [
            ("killed", Trial::Kills(asked.kills)),
            ("away", Trial::Outage(Duration::from_secs(asked.outage))),
        ] {
            let name = format!("{what}-{round}");
            let seen = trial(&mut asked, &gitea, &mut runner, &name, happens)?;
            let verdict = if seen.wrong.is_empty() {
                "each once and in order, the step ran once".to_owned()
            } else {
                seen.wrong.join("; ")
            };
            println!(
                "{name}: {} of {} rows after {:.1} s: {verdict}",
                seen.rows,
                asked.rows,
                seen.took.as_secs_f64()
            );
            good &= seen.wrong.is_empty();
        }
    }
    Ok(good)
}

fn asked() -> Result<Asked, String> {
    let mut values = std::collections::BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if !HELP.contains(&format!("  {flag} ")) {
            return Err(HELP.to_owned());
        }
        let value = arguments.next().ok_or(HELP)?;
        values.insert(flag, value);
    }
    let number = |flag: &str, default: u64| match values.get(flag) {
        Some(text) => text.parse().map_err(|_| format!("{flag} {text}: not a number\n\n{HELP}")),
        None => Ok(default),
    };
    let path = |flag: &str, default: &str| {
        let path = values.get(flag).map_or(default, String::as_str);
        let path = fs::canonicalize(path).map_err(|error| format!("{flag} {path}: {error}\n\n{HELP}"))?;
        Ok::<_, String>(path.to_string_lossy().into_owned())
    };
    let dice = if values.contains_key("--seed") {
        Dice::new(number("--seed", 0)?)
    } else {
        Dice::from_env("SOWER_SEED")
    };
    Ok(Asked {
        sower: path("--sower", "target/release/sower")?,
        gitea: path("--gitea", "")?,
        rows: number("--rows", 200_000)?,
        kills: number("--kills", 3)?,
        outage: number("--outage", 60)?,
        rounds: number("--rounds", 1)?,
        dice,
    })
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match run(asked) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("sower-proof: {trouble}");
            ExitCode::from(2)
        }
    }
}
