//! `sower image prune`.

use std::process::ExitCode;

use super::connection::Connection;
use super::display::Display;
use super::{Output, append, print, print_json};
use crate::cli::{Failure, Outcome};
use crate::deploy;
use crate::image::{Destination, prune};

/// Delete old tags; the newest, `latest`, what patterns name and what releases run stay.
///
/// What `sower deploy helm` has deployed from this host is known to run, and so is what a rollback would go back to.
/// On a Gitea tags are deleted one by one. On another registry a manifest is deleted by its digest, and only when
/// all its tags may go. Nothing is deleted when the list of tags could not be read to its end.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which repository: host[:port]/namespace/name
    #[arg(value_name = "NAME")]
    repository: String,
    /// How many of the newest tags stay
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// Tags that stay besides: a pattern with * ? [...]; may be given several times
    #[arg(long = "protect", value_name = "PATTERN")]
    protect: Vec<String>,
    /// Tags that this Helm release runs, or ran before, stay too: helm is asked, with the kubeconfig in force
    #[arg(long = "protect-release", value_name = "[NAMESPACE/]RELEASE")]
    protect_release: Vec<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  sower image prune git.example.org/shop/app --keep 5 --dry-run
  sower image prune git.example.org/shop/app --keep 5 --protect-release shop/app
  sower image prune 10.0.0.5:3000/shop/app --keep 5 --protect 'v*' --plain-http";

pub(super) async fn run(args: &Args) -> Outcome {
    let destination = Destination::parse(&args.repository)?;
    if destination.tag.is_some() {
        return Err(Failure::wrong_question(format!(
            "{:?}: a repository is pruned, not a tag",
            args.repository
        )));
    }
    let mut rules = prune::Rules::new(args.keep as usize, &args.protect)?;
    rules.protect_images(deploy::images_in_use(), &destination.repository);
    for release in &args.protect_release {
        rules.protect_images(prune::release::images(release)?, &destination.repository);
    }
    let credentials = args.connection.credentials(&destination.repository)?;
    let note = Display::new(args.output.json).note();
    let options = args.connection.options(&destination.repository)?;
    let report =
        prune::run(&destination.repository, &rules, credentials, &options, args.output.dry_run, note).await?;
    if !report.dry_run {
        append("GITHUB_STEP_SUMMARY", &report.summary())?;
    }
    if args.output.json {
        print_json(&report)?;
    } else {
        print(&format!("{}{}\n", report.table(), report.line()))?;
        if let Some(when) = report.when_room_comes() {
            eprintln!("note: {when}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
