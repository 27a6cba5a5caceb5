//! `sower exec`: Run a workflow of the working directory locally.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;

use crate::events::Conclusion;
use crate::job::process::Control;
use crate::job::spec::NativePolicy;
use crate::job::tree::{self, Members};
use crate::local::context::{self, Context, Event};
use crate::local::plan::{self, Plan, Selection};
use crate::local::schedule::{Ended, LEFTOVER_GRACE, Schedule};
use crate::local::services;
use crate::local::show::{self, Style};
use crate::workflow::snippet;

use super::{Failure, Outcome};

/// Run a workflow of the working directory locally.
///
/// Jobs run on this host, each in a fresh workspace. `actions/checkout` of this repository copies the working tree.
/// Exit code: 0 all jobs succeeded or were skipped, 1 a job failed or a workflow is invalid, 2 the question was wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A workflow file, or a directory of them [default: the repository's .gitea/workflows or .github/workflows]
    #[arg(short = 'W', long, value_name = "FILE|DIR")]
    workflows: Option<PathBuf>,
    /// Run this job and what it needs
    #[arg(short, long, value_name = "JOB")]
    job: Option<String>,
    /// Name of the event
    #[arg(long, value_name = "NAME", default_value = "push")]
    event: String,
    /// The event's payload
    #[arg(short = 'e', long, value_name = "EVENT.json")]
    eventpath: Option<PathBuf>,
    /// A secret; without a value it is taken from the environment
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    secret: Vec<String>,
    /// A dotenv file of secrets
    #[arg(long, value_name = "FILE")]
    secret_file: Vec<PathBuf>,
    /// A variable of the `vars` context
    #[arg(long, value_name = "KEY=VALUE")]
    var: Vec<String>,
    /// A dotenv file of variables of the `vars` context
    #[arg(long, value_name = "FILE")]
    var_file: Vec<PathBuf>,
    /// A variable of every step's environment
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// A dotenv file of variables of every step's environment
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// An input of `workflow_dispatch`
    #[arg(long, value_name = "KEY=VALUE")]
    input: Vec<String>,
    /// Only combinations of a matrix with this value; several of one key are alternatives
    #[arg(long, value_name = "KEY:VALUE")]
    matrix: Vec<String>,
    /// Which labels run on this host; without any, all do
    #[arg(short = 'P', long = "platform", value_name = "LABEL=host")]
    platform: Vec<String>,
    /// How many jobs run at once [default: one for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Use the built-in checkout, cache and artifact actions: where there is no Node.js, always, or never
    #[arg(long, value_name = "auto|always|never", default_value = "auto")]
    native: String,
    /// Print what would run and leave
    #[arg(long)]
    list: bool,
    /// Print events as JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// How much is kept of what `actions/cache` saves, in bytes.
const QUOTA: u64 = 10 << 30;

const EXAMPLES: &str = "\
Examples:
  sower exec
  sower exec -W .gitea/workflows/deploy.yaml -j build --matrix ghc:9.10
  sower exec --event workflow_dispatch --input environment=staging -s REGISTRY_TOKEN";

pub(super) fn run(args: Args) -> Outcome {
    let directory = std::env::current_dir().map_err(Failure::wrong_question)?;
    let event = Event {
        name: args.event.clone(),
        file: args.eventpath.clone(),
        inputs: pairs(&args.input, '=', "--input")?,
    };
    let mut context = Context::new(
        &directory,
        &event,
        secrets(&args)?,
        merged(&args.var_file, &args.var, "--var")?,
        merged(&args.env_file, &args.env, "--env")?,
    )
    .map_err(Failure::wrong_question)?;
    context.native = match args.native.as_str() {
        "auto" => NativePolicy::Auto,
        "always" => NativePolicy::Always,
        "never" => NativePolicy::Never,
        other => {
            return Err(Failure::wrong_question(format!("--native {other}: expected auto, always or never")));
        }
    };
    let mut matrix: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in pairs(&args.matrix, ':', "--matrix")? {
        matrix.entry(key).or_default().push(value);
    }
    let selection = Selection { workflows: args.workflows.clone(), job: args.job.clone(), matrix };
    let plan = match Plan::new(&context, &selection) {
        Ok((plan, warnings)) => {
            for warning in &warnings {
                eprintln!("{warning}");
            }
            plan
        }
        Err(plan::Error::Question(question)) => return Err(Failure::wrong_question(question)),
        Err(plan::Error::Invalid(problems)) => {
            for problem in &problems {
                let source = std::fs::read_to_string(context.root.join(&problem.file)).unwrap_or_default();
                eprint!("{problem}\n{}", snippet(problem, &source));
            }
            return Err(Failure::not_well("the workflow is invalid"));
        }
    };
    if args.list {
        return list(&plan, &context, &selection, args.json);
    }
    check_labels(&plan, &context, &selection, &args.platform)?;
    execute(&args, &plan, &context, &selection)
}

fn execute(args: &Args, plan: &Plan, context: &Context, selection: &Selection) -> Outcome {
    tree::adopt_orphans().map_err(Failure::not_well)?;
    let control = Control::new().map_err(Failure::not_well)?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        control.cancel_on(signal).map_err(Failure::not_well)?;
    }
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if args.json { Style::Json } else { Style::Text { colour, prefix: plan.jobs.len() > 1 } };
    let work = tempfile::Builder::new().prefix("sower-exec-").tempdir().map_err(Failure::not_well)?;
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map_or_else(|| work.path().join("cache"), |cache| cache.join("sower"));
    // A job that uses no cache does not miss it, and one that does says so.
    let services = services::start(&cache.join("store"), QUOTA, work.path())
        .inspect_err(|error| eprintln!("No cache and no artifacts: {error}"))
        .ok();
    let out: show::Shared = Arc::new(Mutex::new(Box::new(io::stdout())));
    let schedule = Schedule {
        plan,
        context,
        selection,
        parallel: args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        work: work.path(),
        action_cache: &cache.join("actions"),
        tool_cache: &cache.join("tools"),
        services: services.as_ref(),
        control: &control,
        style,
    };
    let ended = schedule.run(&out);
    Members::all(String::new(), None).end_all(LEFTOVER_GRACE);
    let ended = ended.map_err(Failure::not_well)?;
    if !args.json {
        print_end(&ended, colour);
    }
    let well = |ended: &Ended| {
        ended.forgiven || matches!(ended.conclusion, Conclusion::Success | Conclusion::Skipped)
    };
    Ok(if ended.iter().all(well) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_end(ended: &[Ended], colour: bool) {
    let mut text = String::new();
    for job in ended {
        for (step, markdown) in &job.summaries {
            text.push_str(&format!("\nSummary of {} / {step}\n{}\n", job.run.name, markdown.trim_end()));
        }
    }
    let rows: Vec<_> = ended.iter().map(|job| (job.run.name.clone(), job.conclusion, job.millis)).collect();
    text.push_str(&show::table(&rows, colour));
    // Nobody may be reading any more.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn list(plan: &Plan, context: &Context, selection: &Selection, json: bool) -> Outcome {
    let mut rows = vec![["WORKFLOW", "JOB", "NAME", "NEEDS", "RUNS ON"].map(str::to_owned)];
    for (file, id) in &plan.jobs {
        let job = plan.job(*file, id);
        let needs: Vec<&str> = job.needs.iter().map(|need| need.value.as_str()).collect();
        // A matrix that comes from what a needed job gives cannot be known yet.
        let runs = plan.runs(context, selection, *file, id, &IndexMap::new()).unwrap_or_default();
        for run in &runs {
            let labels = plan.labels(context, run).unwrap_or_default();
            rows.push([
                plan.files[*file].name.clone(),
                id.clone(),
                run.name.clone(),
                needs.join(", "),
                labels.join(", "),
            ]);
        }
    }
    let mut text = String::new();
    if json {
        for row in &rows[1..] {
            let [workflow, job, name, needs, labels] = row;
            let object = serde_json::json!({"workflow": workflow, "job": job, "name": name, "needs": needs, "runs-on": labels});
            text.push_str(&format!("{object}\n"));
        }
    } else {
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
    }
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// With `-P`, every label that a job asks for must be mapped to this host.
fn check_labels(
    plan: &Plan,
    context: &Context,
    selection: &Selection,
    platforms: &[String],
) -> Result<(), Failure> {
    let mut mapped = Vec::new();
    for platform in platforms {
        match platform.split_once('=') {
            Some((label, "host" | "-self-hosted")) => mapped.push(label),
            _ => {
                return Err(Failure::wrong_question(format!(
                    "-P {platform}: expected LABEL=host; jobs run on this host and in no container"
                )));
            }
        }
    }
    let mut asked: Vec<String> = Vec::new();
    for (file, id) in &plan.jobs {
        for run in plan.runs(context, selection, *file, id, &IndexMap::new()).unwrap_or_default() {
            asked.extend(plan.labels(context, &run).unwrap_or_default());
        }
    }
    asked.sort();
    asked.dedup();
    if mapped.is_empty() {
        if !asked.is_empty() {
            eprintln!("Every label runs on this host: {}", asked.join(", "));
        }
        return Ok(());
    }
    match asked.iter().find(|label| !mapped.contains(&label.as_str())) {
        Some(label) => {
            Err(Failure::wrong_question(format!("label {label:?} is not mapped; add -P {label}=host")))
        }
        None => Ok(()),
    }
}

fn pairs(texts: &[String], separator: char, flag: &str) -> Result<Vec<(String, String)>, Failure> {
    texts
        .iter()
        .map(|text| match text.split_once(separator) {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::wrong_question(format!("{flag} {text}: expected KEY{separator}VALUE"))),
        })
        .collect()
}

/// Files first, in order, then what the command line says.
fn merged(files: &[PathBuf], given: &[String], flag: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::new();
    for file in files {
        all.extend(context::read_dotenv(file).map_err(Failure::wrong_question)?);
    }
    all.extend(pairs(given, '=', flag)?);
    Ok(all)
}

fn secrets(args: &Args) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = merged(&args.secret_file, &[], "--secret")?;
    for secret in &args.secret {
        let (key, value) = match secret.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => match std::env::var(secret) {
                Ok(value) => (secret.as_str(), value),
                Err(_) => {
                    return Err(Failure::wrong_question(format!(
                        "-s {secret}: there is no variable {secret} in the environment to take the secret from"
                    )));
                }
            },
        };
        all.insert(key.to_owned(), value);
    }
    // Names of secrets are upper-case on every server.
    Ok(all.into_iter().map(|(key, value)| (key.to_uppercase(), value)).collect())
}
