//! `sower image inspect`.

use std::path::Path;
use std::process::ExitCode;

use super::connection::Connection;
use super::display::Display;
use super::{print, print_json};
use crate::cli::{Failure, Outcome};
use crate::image::Destination;
use crate::image::cache::Cache;
use crate::image::inspect::Inspection;
use crate::image::registry::{Access, Registry};
use crate::image::source::{Image, Wanted};

/// Show an image's layers: their sizes, the store paths in each, and what a push would move.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A file, directory or script, `-` for standard input, else host[:port]/namespace/name[:tag]
    image: String,
    /// Where a push would go: says which layers are there
    #[arg(value_name = "DEST")]
    to: Option<String>,
    /// Which image of a source or list that holds several
    #[arg(long = "image", value_name = "NAME")]
    name: Option<String>,
    /// Show the layers as they are, not as a push would split them
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    connection: Connection,
    /// The report as JSON on standard output
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower image inspect ./result
  sower image inspect ./result git.example.org/shop/app
  sower image inspect git.example.org/shop/app:latest";

pub(super) async fn run(args: &Args) -> Outcome {
    let note = || Display::new(args.json).note();
    let path = Path::new(&args.image);
    let stream = args.connection.stream(path)?;
    let inspection = if stream.is_some() || path.exists() {
        let cache = Cache::from_environment();
        let name = args.name.as_deref();
        let mut inspection = match &stream {
            Some(stream) => Inspection::of_stream(stream, name, &cache)?,
            None => {
                let image = Image::open(path, Wanted { name, anatomy: !args.keep })?;
                Inspection::of_source(&image, &cache, !args.keep)?
            }
        };
        if let Some(to) = &args.to {
            let destination = Destination::parse(to)?;
            let credentials = args.connection.credentials(&destination.repository)?;
            let repository = &destination.repository;
            let options = args.connection.options(repository)?;
            let registry = Registry::open(repository, Access::Pull, credentials, &options, note()).await?;
            inspection.compare(&registry).await?;
        }
        inspection
    } else {
        let destination = Destination::parse(&args.image).map_err(|error| {
            Failure::wrong_question(format!("{error} (and there is no file or directory of that name)"))
        })?;
        let credentials = args.connection.credentials(&destination.repository)?;
        let repository = &destination.repository;
        let options = args.connection.options(repository)?;
        let registry = Registry::open(repository, Access::Pull, credentials, &options, note()).await?;
        let tag = destination.tag.as_deref().unwrap_or("latest");
        Inspection::of_tag(&registry, tag, args.name.as_deref()).await?
    };
    if args.json {
        print_json(&inspection)?;
    } else {
        print(&inspection.table())?;
    }
    Ok(ExitCode::SUCCESS)
}
