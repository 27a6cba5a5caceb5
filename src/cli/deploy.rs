//! `sower deploy`: Deploy with helm and say why it failed.

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Failure, Outcome};
use crate::deploy::{self, Access, Helm, KUBECONFIG_VARIABLE, Request, Smoke, Ways};
use crate::image::registry;
use crate::observe::tally;
use crate::ssh;

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
  sower deploy helm app ./chart --namespace web --set image.tag=\"$(git rev-parse HEAD)\" --rollback
  sower deploy helm app ./chart -n web -f production.yaml --timeout 10m --context staging
  sower deploy helm app ./chart -n web --ssh deploy@node.example.org --rollback \\
    --check-url http://127.0.0.1/ --check-host app.example.org --check-tunnel
  sower deploy helm app ./chart -n web --ssh node --remote
  sower deploy helm app ./chart -n web --render-only

The helm (3.12 or newer, or 4) and the kubectl on PATH are used; with --remote those of the far
side. A kubeconfig may also come as content in the environment variable SOWER_KUBECONFIG;
without either, helm and kubectl look where they always do, and with --ssh the far side's own is
fetched (k3s: /etc/rancher/k3s/k3s.yaml). An SSH key may come as content in SOWER_SSH_KEY, its
passphrase in SOWER_SSH_PASSPHRASE. Everybody on this host can read what --set is given while
helm runs: secrets belong into the cluster.

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
    /// Kubeconfig file; with --remote a file of the far side
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// After a failure go back to the last good revision, once the evidence is secured
    #[arg(long)]
    rollback: bool,
    /// Watch the pods for so long after helm is content [default: 10s where a container has no readiness probe, else 0s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    settle: Option<Duration>,
    /// How often a container may be started again before that is a failure
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    restarts: u64,
    /// How many revisions helm keeps
    #[arg(long, value_name = "N", default_value_t = 10)]
    history_max: u32,
    /// Do not look beforehand whether Secrets, their keys and image tags are there
    #[arg(long)]
    no_checks: bool,
    /// Free the release if somebody else left it locked, at once
    #[arg(long)]
    break_lock: bool,
    /// Take a lock of somebody else for a dead one when it is older [default: as long as a helm with this --timeout could
    /// hold it, at least 5m]
    #[arg(long, value_name = "DURATION", value_parser = deploy::parse_timeout)]
    stale_lock: Option<Duration>,
    /// Only render the chart and list what it would create; needs no cluster
    #[arg(long)]
    render_only: bool,
    /// Print the outcome as one JSON object on stdout, and progress on stderr
    #[arg(long)]
    json: bool,
    /// Ask registries for image tags over plain HTTP
    #[arg(long)]
    registry_plain_http: bool,
    /// Accept any certificate of a registry
    #[arg(long)]
    registry_insecure: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    check: CheckArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Through SSH")]
struct WayArgs {
    /// Reach the cluster through this host: [user@]host[:port], or an alias of ~/.ssh/config
    #[arg(long, value_name = "HOST")]
    ssh: Option<ssh::Target>,
    /// Run helm and kubectl on the far side: the chart is sent there
    #[arg(long, requires = "ssh")]
    remote: bool,
    /// Private key file
    #[arg(long, value_name = "FILE", requires = "ssh")]
    ssh_identity: Option<PathBuf>,
    /// File of known host keys [default: ~/.ssh/known_hosts]
    #[arg(long, value_name = "FILE", requires = "ssh")]
    ssh_known_hosts: Option<PathBuf>,
    /// Fingerprint of the host key, as `ssh-keygen -lf` prints it, instead of known_hosts
    #[arg(long, value_name = "SHA256:…", requires = "ssh")]
    ssh_fingerprint: Option<String>,
    /// File of host aliases [default: ~/.ssh/config]
    #[arg(long, value_name = "FILE", requires = "ssh")]
    ssh_config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The application's answer")]
struct CheckArgs {
    /// Ask this URL when all is ready
    #[arg(long, value_name = "URL")]
    check_url: Option<String>,
    /// Status that it must answer with
    #[arg(long, value_name = "STATUS", default_value_t = 200, requires = "check_url")]
    check_status: u16,
    /// Text that must be in the answer
    #[arg(long, value_name = "TEXT", requires = "check_url")]
    check_text: Option<String>,
    /// Host header, if not that of the URL: what an ingress tells applications apart by
    #[arg(long, value_name = "NAME", requires = "check_url")]
    check_host: Option<String>,
    /// How long it may take until the answer is right
    #[arg(long, value_name = "DURATION", default_value = "30s", requires = "check_url", value_parser = duration)]
    check_timeout: Duration,
    /// Accept any certificate
    #[arg(long, requires = "check_url")]
    check_insecure: bool,
    /// Ask from the far side of the SSH connection
    #[arg(long, requires = "check_url", requires = "ssh")]
    check_tunnel: bool,
}

/// As a time-out, and zero.
fn duration(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { deploy::parse_timeout(text) }
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
    let tried = deployed(args);
    if let Err(error) = &tried {
        // The way there was closed, or the question wrong: no outcome was written.
        if args.json {
            tell(&error.json(&args.release, &args.namespace).to_string());
        }
        if let Some(path) = asked_for("GITHUB_STEP_SUMMARY") {
            deploy::write_summary(&path, &error.markdown(&args.release, &args.namespace))?;
        }
    }
    tried?
}

/// Prints a line; nobody may be left to read it, and the deployment goes on all the same.
fn tell(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The outer error: it could not be tried.
fn deployed(args: &HelmArgs) -> Result<Outcome, deploy::Error> {
    // Nothing is asked of a cluster when the chart is only rendered.
    let access = if args.render_only { Access::default() } else { access(args)? };
    let helm = Helm::find(&access)?;
    let request = request(args, access);
    if args.render_only { render(args, &request, &helm) } else { upgrade(args, request, &helm) }
}

fn request(args: &HelmArgs, access: Access) -> Request {
    let CheckArgs { check_url, check_status, check_text, check_host, check_timeout, check_insecure, .. } =
        &args.check;
    Request {
        release: args.release.clone(),
        chart: args.chart.clone(),
        namespace: args.namespace.clone(),
        create_namespace: args.create_namespace,
        set: args.set.clone(),
        set_string: args.set_string.clone(),
        values: args.values.clone(),
        timeout: args.timeout,
        access,
        rollback: args.rollback,
        settle: args.settle,
        restarts: args.restarts,
        history_max: args.history_max,
        checks: !args.no_checks,
        break_lock: args.break_lock,
        stale_lock: args.stale_lock,
        smoke: check_url.as_ref().map(|url| Smoke {
            url: url.clone(),
            status: *check_status,
            text: check_text.clone(),
            host: check_host.clone(),
            insecure: *check_insecure,
            deadline: *check_timeout,
            tunnel: args.check.check_tunnel,
        }),
        registry: registry::Options {
            plain_http: args.registry_plain_http,
            insecure: args.registry_insecure,
            token_url: None,
            ..registry::Options::default()
        },
    }
}

/// Arguments go before the environment; an empty variable is none.
fn access(args: &HelmArgs) -> Result<Access, deploy::Error> {
    let content = env::var(KUBECONFIG_VARIABLE).ok().filter(|content| !content.trim().is_empty());
    let way = &args.way;
    let ssh = way.ssh.clone().map(|target| {
        let mut options = ssh::Options::from_environment();
        options.identities.extend(way.ssh_identity.clone());
        options.known_hosts.extend(way.ssh_known_hosts.clone());
        options.fingerprint.clone_from(&way.ssh_fingerprint);
        options.config.clone_from(&way.ssh_config);
        (target, options)
    });
    Access::open(Ways {
        kubeconfig: args.kubeconfig.clone(),
        content: content.map(ssh::Secret::new),
        context: args.context.clone(),
        ssh,
        remote: way.remote,
    })
}

fn render(args: &HelmArgs, request: &Request, helm: &Helm) -> Result<Outcome, deploy::Error> {
    let rendered = deploy::render(request, helm)?;
    if args.json {
        let objects =
            serde_json::json!({ "result": "rendered", "release": args.release, "objects": rendered.objects });
        tell(&objects.to_string());
    } else {
        tell(&format!("rendered only, nothing was deployed: release {} would consist of", args.release));
        tell(rendered.to_string().trim_end());
    }
    if let Some(path) = asked_for("GITHUB_STEP_SUMMARY") {
        deploy::write_summary(&path, &rendered.markdown(request))?;
    }
    Ok(Ok(ExitCode::SUCCESS))
}

fn upgrade(args: &HelmArgs, mut request: Request, helm: &Helm) -> Result<Outcome, deploy::Error> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&interrupted)) {
            return Ok(Err(Failure::not_well(error)));
        }
    }
    let json = args.json;
    let mut say = |line: &str| {
        if json {
            let _ = writeln!(io::stderr(), "{line}");
        } else {
            tell(line);
        }
    };
    let outcome = deploy::deploy(&mut request, helm, &interrupted, &mut say);
    tally::note(&tally::Entry::Deploy { ok: matches!(outcome, Ok(deploy::Outcome::Deployed(_))) });
    let outcome = outcome?;
    let request = &request;
    record(request, &outcome)?;
    if json {
        tell(&outcome.json(request).to_string());
    }
    Ok(match outcome {
        deploy::Outcome::Deployed(deployed) => {
            if !json {
                tell(deployed.to_string().trim_end());
            }
            Ok(ExitCode::SUCCESS)
        }
        deploy::Outcome::Failed(failed) => {
            if !json {
                tell(failed.to_string().trim_end());
            }
            Err(Failure::not_well(failed.conclusion(&request.release)))
        }
        deploy::Outcome::Cancelled { state } => {
            Err(Failure::not_well(format!("the deployment was cancelled: {state}")))
        }
    })
}

/// Writes the job's summary and the step's outputs, where a runner asks for them.
fn record(request: &Request, outcome: &deploy::Outcome) -> Result<(), deploy::Error> {
    if let Some(path) = asked_for("GITHUB_STEP_SUMMARY") {
        deploy::write_summary(&path, &outcome.markdown(request))?;
    }
    if let (Some(path), deploy::Outcome::Deployed(deployed)) = (asked_for("GITHUB_OUTPUT"), outcome) {
        let images = deployed.rollout.images().join(",");
        deploy::write_outputs(&path, &[("revision", deployed.revision.to_string()), ("images", images)])?;
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
