//! `sower doctor`: Whether this host can do what it is to do.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::config::Config;
use crate::doctor::{self, rooms};
use crate::limits::cover;
use crate::ssh;

/// Say whether this host can do what it is to do, and what to change where it cannot.
///
/// Looks at memory, disks, control groups, the programs that jobs call, the Gitea that the runner is registered at, and the
/// daemon. Changes nothing. In a job it also writes the summary.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look at a registry, too: host[:port]/namespace/name. Credentials come as for `sower image push`
    #[arg(long, value_name = "DEST")]
    registry: Option<String>,
    /// The registry speaks plain HTTP
    #[arg(long, env = "SOWER_REGISTRY_PLAIN_HTTP", value_parser = clap::builder::FalseyValueParser::new())]
    plain_http: bool,
    /// Look at a deployment target, too: a namespace, or namespace/release. The kubeconfig is found as for `sower deploy helm`
    #[arg(long, value_name = "NAMESPACE[/RELEASE]")]
    deploy: Option<String>,
    /// Reach the cluster through this host: [user@]host[:port], or an alias of ~/.ssh/config
    #[arg(long, value_name = "HOST", requires = "deploy")]
    ssh: Option<ssh::Target>,
    /// Look at static archives, too: files, directories, store paths, or what will be built (.#docker)
    #[arg(long, value_name = "PATH|INSTALLABLE", num_args = 1..)]
    archives: Vec<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower doctor
  sower doctor --registry git.example.org/shop/app --plain-http
  sower doctor --deploy shop/app --archives .#docker --json

Exit code: 0 well, 1 not well, 2 the question was wrong.";

pub(super) fn run(args: &Args) -> Outcome {
    let (config, warnings) = Config::load(args.config.as_deref()).map_err(Failure::wrong_question)?;
    let mut report = doctor::examine(&config);
    report.checks.extend(rooms::configuration(&config, &warnings));
    if let Some(registry) = &args.registry {
        report.checks.extend(rooms::registry(registry, args.plain_http)?);
    }
    if let Some(target) = &args.deploy {
        report.checks.extend(rooms::deploy(target, args.ssh.clone()));
    }
    if !args.archives.is_empty() {
        cover::leave().map_err(Failure::wrong_question)?;
        report.checks.extend(rooms::archives(&args.archives));
    }
    let text = if args.json {
        let checks = serde_json::json!({ "well": report.is_well(), "checks": report.checks });
        format!("{}\n", serde_json::to_string_pretty(&checks).map_err(Failure::not_well)?)
    } else {
        report.text()
    };
    // Nobody may be reading any more.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty())
        && !std::io::stdout().is_terminal()
    {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(report.markdown().as_bytes()))
            .map_err(|error| Failure::not_well(format!("GITHUB_STEP_SUMMARY: {error}")))?;
    }
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
