//! `sower exec`: Run a workflow of the working directory locally.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;

use crate::job::process::Control;
use crate::job::spec::NativePolicy;
use crate::job::tree::{self, Members};
use crate::local::context::{self, Context, Event};
use crate::local::plan::{self, Instance, Plan, Selection};
use crate::local::schedule::{Ended, LEFTOVER_GRACE, Schedule};
use crate::local::services;
use crate::local::show::{self, Style};
use crate::local::status::Status;
use crate::local::{graph, summary};
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
    /// Name of the event [default: push]
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
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
    /// An input of `workflow_dispatch`, which the workflow has to declare
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
    /// Print what would run for this event and leave
    #[arg(long)]
    list: bool,
    /// Print what would run for this event, and what waits for what, as a graph and leave
    #[arg(long, conflicts_with = "list")]
    graph: bool,
    /// Ask no server for actions that are cached already
    #[arg(long)]
    offline: bool,
    /// Fetch actions from another place: what their URL begins with, and what it is to begin with
    #[arg(long, value_name = "URL=URL")]
    mirror: Vec<String>,
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
        name: args.event.clone().unwrap_or_else(|| "push".to_owned()),
        file: args.eventpath.clone(),
        inputs: pairs(&args.input, '=', "--input")?,
        offline: args.offline,
        mirrors: pairs(&args.mirror, '=', "--mirror")?.into_iter().collect(),
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
    let selection = Selection {
        workflows: args.workflows.clone(),
        job: args.job.clone(),
        matrix,
        any_event: args.event.is_none() && args.eventpath.is_none(),
    };
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
    if args.graph {
        let _ = io::stdout().write_all(graph::draw(&plan, &context, &selection).as_bytes());
        return Ok(ExitCode::SUCCESS);
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
    let style = if args.json { Style::Json } else { Style::Text { colour, prefix: several(plan) } };
    let work = tempfile::Builder::new().prefix("sower-exec-").tempdir().map_err(Failure::not_well)?;
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map_or_else(|| work.path().join("cache"), |cache| cache.join("sower"));
    // A job that uses no cache does not miss it, and one that does says so.
    let services = services::start(&cache.join("store"), QUOTA, work.path())
        .inspect_err(|error| eprintln!("No cache and no artifacts: {error}"))
        .ok();
    // Without it everything else is shown all the same.
    let status = (!args.json && io::stdout().is_terminal()).then(|| Status::start().ok()).flatten();
    let out: show::Shared = Arc::new(Mutex::new(match &status {
        Some(status) => Box::new(status.clone()),
        None => Box::new(io::stdout()),
    }));
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
        status: status.clone(),
    };
    let ended = schedule.run(&out);
    if let Some(mut status) = status {
        // Takes the line away.
        let _ = status.write(b"");
    }
    Members::all(String::new(), None).end_all(LEFTOVER_GRACE);
    let ended = ended.map_err(Failure::not_well)?;
    if !args.json {
        print_end(&ended, colour);
    }
    if control.is_cancelled() {
        return Ok(ExitCode::FAILURE);
    }
    Ok(if ended.iter().all(Ended::is_well) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether more than one job may print.
fn several(plan: &Plan) -> bool {
    plan.len() > 1
        || plan
            .instances
            .iter()
            .any(|instance| instance.jobs.iter().any(|id| instance.job(id).uses.is_some()))
}

fn print_end(ended: &[Ended], colour: bool) {
    let mut text = String::new();
    for job in ended {
        for (step, markdown) in &job.summaries {
            let title = show::paint(colour, "1", &format!("Summary of {} / {step}", job.run.name));
            let shown = match io::stdout().is_terminal() {
                true => summary::render(markdown, colour),
                false => markdown.clone(),
            };
            text.push_str(&format!("\n{title}\n{}\n", shown.trim_end()));
        }
    }
    let rows: Vec<_> = ended.iter().map(|job| (job.run.name.clone(), job.conclusion, job.millis)).collect();
    text.push_str(&show::table(&rows, colour));
    // Nobody may be reading any more.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn list(plan: &Plan, context: &Context, selection: &Selection, json: bool) -> Outcome {
    let mut rows = vec![["WORKFLOW", "JOB", "NAME", "NEEDS", "RUNS ON"].map(str::to_owned)];
    let mut open: Vec<Arc<Instance>> = plan.instances.iter().rev().cloned().collect();
    while let Some(instance) = open.pop() {
        let mut inner = Vec::new();
        for id in &instance.jobs {
            let job = instance.job(id);
            let needs: Vec<&str> = job.needs.iter().map(|need| need.value.as_str()).collect();
            // A matrix that comes from what a needed job gives cannot be known yet.
            for run in instance.runs(context, selection, id, &IndexMap::new()).unwrap_or_default() {
                let labels = match &job.uses {
                    Some(uses) => vec![format!("calls {}", uses.value)],
                    None => instance.labels(context, &run).unwrap_or_default(),
                };
                rows.push([
                    instance.file.name.clone(),
                    id.clone(),
                    run.name.clone(),
                    needs.join(", "),
                    labels.join(", "),
                ]);
                // Nothing is fetched for a list.
                let here = job.uses.as_ref().is_some_and(|uses| uses.value.starts_with("./"));
                if here && let Some(called) = instance.outline(context, &run) {
                    inner.push(Arc::new(called));
                }
            }
        }
        open.extend(inner.into_iter().rev());
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
    for instance in &plan.instances {
        for id in &instance.jobs {
            for run in instance.runs(context, selection, id, &IndexMap::new()).unwrap_or_default() {
                asked.extend(instance.labels(context, &run).unwrap_or_default());
            }
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
