//! `sower deploy`: Deploy with helm and say why it failed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Failure, Outcome};
use crate::deploy::{self, Access, Helm, KUBECONFIG_VARIABLE, Kubeconfig, Request};

/// Deploy with helm and say why it failed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Helm(HelmArgs),
}

const EXAMPLES: &str = "\
Examples:
  sower deploy helm app ./chart --namespace web --set image.tag=\"$(git rev-parse HEAD)\"
  sower deploy helm app ./chart -n web -f production.yaml --timeout 10m --context staging
  sower deploy helm app ./chart -n web --render-only

The helm (3.12 or newer, or 4) and the kubectl on PATH are used. A kubeconfig may also come
as content in the environment variable SOWER_KUBECONFIG; without either, helm and kubectl
look where they always do. Everybody on this host can read what --set is given while helm
runs: secrets belong into the cluster.

Exit code: 0 deployed, 1 the deployment failed or was cancelled, 2 the question was wrong.";

/// Install or upgrade a release, watch its pods, and explain a failure.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
struct HelmArgs {
    /// Name of the release
    release: String,
    /// Chart directory, packed chart, or a reference that helm resolves
    chart: String,
    /// Namespace of the release
    #[arg(short, long, value_name = "NS")]
    namespace: String,
    /// Create the namespace if it is not there
    #[arg(long)]
    create_namespace: bool,
    /// Set a value of the chart
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Set a value of the chart that stays text
    #[arg(long, value_name = "KEY=VALUE")]
    set_string: Vec<String>,
    /// Take values from a file
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// How long the release may take to be ready
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = deploy::parse_timeout)]
    timeout: Duration,
    /// Kubeconfig file
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// Only render the chart and list what it would create; needs no cluster
    #[arg(long)]
    render_only: bool,
    /// Print the outcome as one JSON object on stdout, and progress on stderr
    #[arg(long)]
    json: bool,
}

impl std::fmt::Debug for HelmArgs {
    /// Values may be secrets, so only the release is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HelmArgs").field("release", &self.release).finish_non_exhaustive()
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Helm(args) => helm(args),
    }
}

fn helm(args: &HelmArgs) -> Outcome {
    let helm = Helm::find()?;
    let request = request(args)?;
    if args.render_only { render(args, &request, &helm) } else { upgrade(args, &request, &helm) }
}

fn request(args: &HelmArgs) -> Result<Request, deploy::Error> {
    // Nothing is asked of a cluster when the chart is only rendered.
    let access = if args.render_only {
        Access::default()
    } else {
        Access { kubeconfig: kubeconfig(args.kubeconfig.as_deref())?, context: args.context.clone() }
    };
    Ok(Request {
        release: args.release.clone(),
        chart: args.chart.clone(),
        namespace: args.namespace.clone(),
        create_namespace: args.create_namespace,
        set: args.set.clone(),
        set_string: args.set_string.clone(),
        values: args.values.clone(),
        timeout: args.timeout,
        access,
    })
}

/// The argument goes before the environment; an empty variable is none.
fn kubeconfig(file: Option<&Path>) -> Result<Option<Kubeconfig>, deploy::Error> {
    if let Some(path) = file {
        return Kubeconfig::file(path).map(Some);
    }
    match env::var(KUBECONFIG_VARIABLE) {
        Ok(content) if !content.trim().is_empty() => Kubeconfig::content(&content).map(Some),
        _ => Ok(None),
    }
}

fn render(args: &HelmArgs, request: &Request, helm: &Helm) -> Outcome {
    let rendered = deploy::render(request, helm)?;
    if args.json {
        let objects =
            serde_json::json!({ "result": "rendered", "release": args.release, "objects": rendered.objects });
        println!("{objects}");
    } else {
        println!("rendered only, nothing was deployed: release {} would consist of", args.release);
        print!("{rendered}");
    }
    if let Some(path) = asked_for("GITHUB_STEP_SUMMARY") {
        deploy::write_summary(&path, &rendered.markdown(request))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn upgrade(args: &HelmArgs, request: &Request, helm: &Helm) -> Outcome {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(Failure::not_well)?;
    }
    let json = args.json;
    let mut say = |line: &str| if json { eprintln!("{line}") } else { println!("{line}") };
    let outcome = deploy::deploy(request, helm, &interrupted, &mut say)?;
    record(request, &outcome)?;
    if json {
        println!("{}", outcome.json(request));
    }
    match outcome {
        deploy::Outcome::Deployed(deployed) => {
            if !json {
                print!("{deployed}");
            }
            Ok(ExitCode::SUCCESS)
        }
        deploy::Outcome::Failed(failed) => {
            if !json {
                print!("{failed}");
            }
            let cause = &failed.cause;
            Err(Failure::not_well(format!(
                "release {} was not deployed: {}\nwhat to do: {}",
                request.release, cause.sentence, cause.remedy
            )))
        }
        deploy::Outcome::Cancelled { state } => {
            Err(Failure::not_well(format!("the deployment was cancelled: {state}")))
        }
    }
}

/// Writes the job's summary and the step's outputs, where a runner asks for them.
fn record(request: &Request, outcome: &deploy::Outcome) -> Result<(), deploy::Error> {
    if let Some(path) = asked_for("GITHUB_STEP_SUMMARY") {
        deploy::write_summary(&path, &outcome.markdown(request))?;
    }
    if let (Some(path), deploy::Outcome::Deployed(deployed)) = (asked_for("GITHUB_OUTPUT"), outcome) {
        deploy::write_outputs(&path, &[("revision", deployed.revision.to_string())])?;
    }
    Ok(())
}

/// The file that a runner names in an environment variable.
fn asked_for(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl From<deploy::Error> for Failure {
    fn from(error: deploy::Error) -> Self {
        if error.is_wrong_question() { Self::wrong_question(error) } else { Self::not_well(error) }
    }
}
