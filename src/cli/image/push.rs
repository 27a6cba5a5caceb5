//! `sower image push`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::connection::Connection;
use super::display::Display;
use super::{Output, append, print, print_json};
use crate::cli::{Failure, Outcome};
use crate::image::cache::{Cache, source_key};
use crate::image::compress::Method;
use crate::image::look::Look;
use crate::image::node::{self, Node};
use crate::image::push::{Event, Layering, Push, Settings};
use crate::image::registry::{Access, Registry};
use crate::image::report::State;
use crate::image::source::{Image, Wanted};
use crate::image::stream::Stream;
use crate::image::{Destination, Error, reference, report};
use crate::observe::tally;

/// Push an image in one pass, sending only what the registry lacks.
///
/// Layers are read, compressed and sent as a stream; nothing is unpacked to disk. The one layer of a Nix image is
/// split by store paths, so that the next push and the next pull move only the paths that changed. What was
/// learned is remembered in $SOWER_CACHE_DIR (default: the user's cache directory): digests, no contents.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// docker-archive (plain, gzip or zstd), OCI layout (directory or tar), a directory of skopeo's, a script that writes
    /// one of them (Nix's streamLayeredImage), a pipe, `-` for standard input; a link such as Nix's `result` will do
    source: PathBuf,
    /// Where to: host[:port]/namespace/name[:tag], without any tag `latest`; or ssh://[user@]host[:port]/NAME:TAG, straight
    /// into a Kubernetes node's containerd
    #[arg(value_name = "DEST")]
    destination: String,
    /// A tag to set; may be given several times, the image is pushed once
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Which image of a source that holds several: its name, platform, or a beginning of its digest
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Split a Nix image's one layer by store paths, or keep layers as they are
    #[arg(long, value_enum, default_value_t = Layers::Auto)]
    layers: Layers,
    /// The most layers that a split makes
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=127))]
    max_layers: u32,
    /// How plain layers are compressed
    #[arg(long, value_enum, default_value_t = Compression::Gzip)]
    compression: Compression,
    /// Read all of the source, even a file that has not changed since it was pushed
    #[arg(long)]
    verify: bool,
    /// The command on the node of an ssh:// destination [default: `k3s ctr`, else `ctr -n k8s.io`]
    #[arg(long, value_name = "COMMAND", env = "SOWER_CTR")]
    ctr: Option<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Layers {
    /// Split where it can be done
    Auto,
    /// Split, or fail
    StorePaths,
    /// Leave layers as they are
    Keep,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Compression {
    /// For every registry and runtime
    Gzip,
    /// Smaller; containerd 1.5 (k3s 1.22), Docker 23 or newer
    Zstd,
    None,
}

const EXAMPLES: &str = "\
Credentials: SOWER_REGISTRY_USERNAME and SOWER_REGISTRY_PASSWORD, or --username with --password-stdin,
or docker's config.json with its helpers. For Gitea: a personal access token with write:package as the
password; a job's own token may not write packages.

Examples:
  sower image push ./result git.example.org/shop/app:1a2b3c4
  sower image push ./result 10.0.0.5:3000/shop/app --tag 1a2b3c4 --tag latest --plain-http
  docker save app | sower image push - git.example.org/shop/app:1a2b3c4
  sower image push image.tar git.example.org/shop/app --username ci --password-stdin < token
  sower image push ./result ssh://root@node1/git.example.org/shop/app:1a2b3c4";

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            dry_run: self.output.dry_run,
            method: match self.compression {
                Compression::Gzip => Method::Gzip,
                Compression::Zstd => Method::Zstd,
                Compression::None => Method::None,
            },
            layering: match self.layers {
                Layers::Auto => Layering::Auto,
                Layers::StorePaths => Layering::StorePaths,
                Layers::Keep => Layering::Keep,
            },
            max_layers: self.max_layers as usize,
            verify: self.verify,
        }
    }

    /// Where the image comes from, if it can be read only once.
    fn stream(&self) -> Result<Option<Stream>, Failure> {
        let Some(stream) = self.connection.stream(&self.source)? else { return Ok(None) };
        if matches!(self.layers, Layers::StorePaths) {
            return Err(Failure::wrong_question(
                "--layers store-paths needs a file: how a layer is best split can be said only when all of it was seen",
            ));
        }
        Ok(Some(stream))
    }
}

/// Brings the image to a node itself. Blocks: nothing else goes on meanwhile.
fn to_node(args: &Args, node: &Node) -> Result<report::Push, Failure> {
    if !args.tags.is_empty() || args.stream()?.is_some() {
        return Err(Failure::wrong_question(
            "an ssh:// destination takes a file and one tag, the one in the destination",
        ));
    }
    let image = Image::open(&args.source, Wanted { name: args.image.as_deref(), anatomy: false })?;
    if args.output.dry_run {
        return Ok(node::all_of(&image, node)?);
    }
    let display = Display::new(args.output.json);
    let read = Arc::default();
    display.show(&Event::Begin { total: image.layers.iter().map(|layer| layer.stored_size).sum() });
    display.show(&Event::Reading { index: 0, read: Arc::clone(&read) });
    let options = crate::ssh::Options::from_environment();
    let report = node::push(&image, node, &options, args.ctr.as_deref(), &read);
    display.finish();
    Ok(report?)
}

fn tell(report: &report::Push, json: bool) -> Outcome {
    if !report.dry_run {
        let skipped = report.size.unwrap_or(report.uploaded).saturating_sub(report.uploaded);
        tally::note(&tally::Entry::Push { ok: true, sent: report.uploaded, skipped });
        append("GITHUB_OUTPUT", &report.outputs())?;
        append("GITHUB_STEP_SUMMARY", &report.summary())?;
    }
    if json {
        print_json(report)?;
    } else {
        eprintln!("{}", total(report));
        print(&format!("{}\n", report.line()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn run(args: &Args) -> Outcome {
    if let Some(node) = Node::parse(&args.destination) {
        let node = node?;
        // It drives a connection of its own, which this thread must not be in the way of.
        let report = std::thread::scope(|scope| scope.spawn(|| to_node(args, &node)).join());
        let report = report.map_err(|_| Failure::not_well("the push stopped"))??;
        return tell(&report, args.output.json);
    }
    let destination = Destination::parse(&args.destination)?;
    let mut tags: Vec<String> = destination.tag.into_iter().collect();
    for tag in &args.tags {
        reference::check_tag(tag)?;
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    if tags.is_empty() {
        tags.push("latest".to_owned());
    }
    let stream = args.stream()?;
    if stream.is_none() && !args.source.exists() {
        // Said before anything is asked of the registry.
        Image::open(&args.source, Wanted::default())?;
    }
    let credentials = args.connection.credentials(&destination.repository)?;
    let cache = Cache::from_environment();
    let mut options = args.connection.options(&destination.repository)?;
    options.also_read = cache.repositories(&destination.repository);
    let settings = args.settings();
    let display = Display::new(args.output.json);
    let events = |event: Event<'_>| display.show(&event);
    let open = async |settings: &Settings| {
        let access = if settings.dry_run { Access::Pull } else { Access::Push };
        Registry::open(&destination.repository, access, credentials.clone(), &options, display.note()).await
    };
    let name = args.image.as_deref();
    let identity = format!("{} {}", settings.identity(), name.unwrap_or_default());
    let key = if stream.is_none() { source_key(&args.source, &identity) } else { None };
    let result = async {
        let known = key.as_ref().filter(|_| !settings.verify).and_then(|key| cache.source(key));
        let look = || {
            let marks = if settings.verify { Vec::new() } else { cache.marks(&destination.repository) };
            Look::start(&args.source, name, settings.layering, marks)
        };
        let mut looking = if stream.is_none() && known.is_none() { Some(look()?) } else { None };
        let registry = match &mut looking {
            Some(looking) => looking.beside(open(&settings)).await?,
            None => open(&settings).await?,
        };
        let push = Push { registry: &registry, cache: &cache, tags: &tags, settings: &settings };
        if let Some(stream) = &stream {
            return push.stream(stream, name, &events).await;
        }
        if let Some(known) = known
            && let Some(report) = push.remembered(known, &events).await?
        {
            return Ok(report);
        }
        let looking = looking.map_or_else(look, Ok)?;
        push.image(looking, key.as_ref(), &events).await
    };
    let result: Result<report::Push, Error> = result.await;
    display.finish();
    if result.is_err() && !args.output.dry_run {
        tally::note(&tally::Entry::Push { ok: false, sent: 0, skipped: 0 });
    }
    tell(&result?, args.output.json)
}

/// What moved, on one line.
fn total(report: &report::Push) -> String {
    if !report.dry_run {
        let count = report.layers.iter().filter(|layer| layer.state == State::Sent).count();
        return format!(
            "{} sent in {count} of {} layers, {:.1} s",
            report::bytes(report.uploaded),
            report.layers.len(),
            report.seconds
        );
    }
    let would: Vec<_> = report.layers.iter().filter(|layer| layer.state == State::WouldSend).collect();
    let bytes: u64 = would.iter().map(|layer| layer.size.unwrap_or(layer.stored_size)).sum();
    let unknown = would.iter().any(|layer| layer.size.is_none());
    let before = if unknown { " (before compression)" } else { "" };
    format!("{}{before} to send in {} of {} layers", report::bytes(bytes), would.len(), report.layers.len())
}
