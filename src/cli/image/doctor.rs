//! `sower image doctor`.

use std::process::ExitCode;

use super::connection::Connection;
use super::{print, print_json};
use crate::cli::Outcome;
use crate::image::{Destination, doctor};

/// Say what a push and a pull will meet at a registry, and the line that heals what is wrong.
///
/// Looks at the scheme, the log-in that is wanted, who answers at the token realm, and what the credentials may do.
/// Writes nothing but an upload that is given up at once. Run it on the node that pulls, too: what a realm leads to
/// may differ there. Exits with 1 when a push or a pull would fail.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// What would be pushed or pulled: host[:port]/namespace/name[:tag]
    #[arg(value_name = "DEST")]
    destination: String,
    #[command(flatten)]
    connection: Connection,
    /// The report as JSON on standard output
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower image doctor git.example.org/shop/app:latest
  sower image doctor 10.0.0.5:3000/shop/app --plain-http --json";

pub(super) async fn run(args: &Args) -> Outcome {
    let destination = Destination::parse(&args.destination)?;
    let credentials = args.connection.credentials(&destination.repository)?;
    let options = args.connection.options(&destination.repository)?;
    let report = doctor::examine(&destination, credentials, &options).await?;
    match args.json {
        true => print_json(&report)?,
        false => print(&report.text())?,
    }
    Ok(if report.push && report.pull { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
