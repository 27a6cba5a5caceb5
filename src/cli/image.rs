//! `sower image`: push images to a registry, prune tags, look at images.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::builder::FalseyValueParser;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, Outcome};
use crate::image::cache::Cache;
use crate::image::inspect::Inspection;
use crate::image::push::{Event, Push};
use crate::image::registry::{Access, Credentials, Options, Registry};
use crate::image::source::Image;
use crate::image::{Destination, Error, Repository, prune, reference, report};

/// Push images to a registry, prune tags, look at images.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Push(PushArgs),
    Prune(PruneArgs),
    Inspect(InspectArgs),
}

/// Push an image in one pass, sending only what the registry lacks.
///
/// Layers are read, compressed and sent as a stream; nothing is unpacked to disk. Digests of compressed layers are
/// remembered in $SOWER_CACHE_DIR (default: the user's cache directory), so an unchanged layer is not read again.
#[derive(Debug, clap::Args)]
#[command(after_help = PUSH_EXAMPLES)]
struct PushArgs {
    /// docker-archive (plain or gzip'd), or OCI layout (directory or tar); a link such as Nix's `result` will do
    source: PathBuf,
    /// Where to: host[:port]/namespace/name[:tag]; without any tag, `latest`
    #[arg(value_name = "DEST")]
    destination: String,
    /// A tag to set; may be given several times, the image is pushed once
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    #[command(flatten)]
    connection: Connection,
    /// Say what would be sent, send nothing
    #[arg(long)]
    dry_run: bool,
    /// The report as JSON on standard output
    #[arg(long)]
    json: bool,
}

const PUSH_EXAMPLES: &str = "\
Credentials: SOWER_REGISTRY_USERNAME and SOWER_REGISTRY_PASSWORD, or --username with --password-stdin,
or docker's config.json. For Gitea: a personal access token with write:package as the password.

Examples:
  sower image push ./result git.example.org/shop/app:1a2b3c4
  sower image push ./result 10.0.0.5:3000/shop/app --tag 1a2b3c4 --tag latest --plain-http
  sower image push image.tar git.example.org/shop/app --username ci --password-stdin < token";

/// Delete old tags; the newest, `latest` and what patterns name stay.
///
/// On a Gitea tags are deleted one by one. On another registry a manifest is deleted by its digest, and only when
/// all its tags may go. Nothing is deleted when the list of tags could not be read to its end.
#[derive(Debug, clap::Args)]
#[command(after_help = PRUNE_EXAMPLES)]
struct PruneArgs {
    /// Which repository: host[:port]/namespace/name
    #[arg(value_name = "NAME")]
    repository: String,
    /// How many of the newest tags stay
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// Tags that stay besides: a pattern with * ? [...]; may be given several times
    #[arg(long = "protect", value_name = "PATTERN")]
    protect: Vec<String>,
    #[command(flatten)]
    connection: Connection,
    /// Show what would be deleted, delete nothing
    #[arg(long)]
    dry_run: bool,
    /// The report as JSON on standard output
    #[arg(long)]
    json: bool,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  sower image prune git.example.org/shop/app --keep 5 --dry-run
  sower image prune 10.0.0.5:3000/shop/app --keep 5 --protect 'v*' --plain-http";

/// Show an image's layers and their sizes.
#[derive(Debug, clap::Args)]
#[command(after_help = INSPECT_EXAMPLES)]
struct InspectArgs {
    /// A file or directory, else host[:port]/namespace/name[:tag]
    image: String,
    #[command(flatten)]
    connection: Connection,
    /// The report as JSON on standard output
    #[arg(long)]
    json: bool,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  sower image inspect ./result
  sower image inspect git.example.org/shop/app:latest";

/// How to talk to the registry.
#[derive(Debug, clap::Args)]
struct Connection {
    /// Speak plain HTTP
    #[arg(long, env = "SOWER_REGISTRY_PLAIN_HTTP", value_parser = FalseyValueParser::new())]
    plain_http: bool,
    /// Accept any certificate
    #[arg(long)]
    insecure: bool,
    /// User name
    #[arg(long, value_name = "U")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Ask here for tokens, whatever the registry says; the credentials are sent there
    #[arg(long, value_name = "URL")]
    token_url: Option<String>,
}

impl Connection {
    fn options(&self) -> Options {
        Options { plain_http: self.plain_http, insecure: self.insecure, token_url: self.token_url.clone() }
    }

    fn credentials(&self, repository: &Repository) -> Result<Option<Credentials>, Failure> {
        let mut password = None;
        if self.password_stdin {
            let mut text = String::new();
            // A password is short; a stream by mistake must not fill the memory.
            let read = std::io::stdin().lock().take(64 * 1024).read_to_string(&mut text);
            read.map_err(|error| Failure::wrong_question(format!("password on standard input: {error}")))?;
            let line = text.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                return Err(Failure::wrong_question("--password-stdin, and nothing on standard input"));
            }
            password = Some(line.to_owned());
        }
        Ok(Credentials::find(repository, self.username.clone(), password)?)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_wrong_question() { Self::wrong_question(error) } else { Self::not_well(error) }
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::not_well(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        match &args.command {
            Command::Push(args) => push(args).await,
            Command::Prune(args) => prune(args).await,
            Command::Inspect(args) => inspect(args).await,
        }
    })
}

async fn push(args: &PushArgs) -> Outcome {
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
    let credentials = args.connection.credentials(&destination.repository)?;
    let image = Image::open(&args.source)?;
    let display = Display::new(args.json);
    let registry = Registry::open(
        &destination.repository,
        if args.dry_run { Access::Pull } else { Access::Push },
        credentials,
        &args.connection.options(),
        display.note(),
    )
    .await?;
    let cache = Cache::from_environment();
    let push = Push { image: &image, registry: &registry, cache: &cache, tags: &tags, dry_run: args.dry_run };
    let result = push.run(&|event| display.show(&event)).await;
    display.finish();
    let report = result?;
    if !report.dry_run {
        append("GITHUB_OUTPUT", &report.outputs())?;
        append("GITHUB_STEP_SUMMARY", &report.summary())?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        let verb = if report.dry_run { "to send" } else { "sent" };
        let sent: u64 = match report.dry_run {
            false => report.uploaded,
            true => report
                .layers
                .iter()
                .filter(|l| l.state == report::State::WouldSend)
                .map(|l| l.stored_size)
                .sum(),
        };
        eprintln!("{} {verb}, {:.1} s", report::bytes(sent), report.seconds);
        print(&format!("{}\n", report.line()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn prune(args: &PruneArgs) -> Outcome {
    let destination = Destination::parse(&args.repository)?;
    if destination.tag.is_some() {
        return Err(Failure::wrong_question(format!(
            "{:?}: a repository is pruned, not a tag",
            args.repository
        )));
    }
    let rules = prune::Rules::new(args.keep as usize, &args.protect)?;
    let credentials = args.connection.credentials(&destination.repository)?;
    let note = Display::new(args.json).note();
    let options = args.connection.options();
    let report =
        prune::run(&destination.repository, &rules, credentials, &options, args.dry_run, note).await?;
    if !report.dry_run {
        append("GITHUB_STEP_SUMMARY", &report.summary())?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        print(&format!("{}{}\n", report.table(), report.line()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn inspect(args: &InspectArgs) -> Outcome {
    let inspection = if Path::new(&args.image).exists() {
        Inspection::of_source(&Image::open(Path::new(&args.image))?)
    } else {
        let destination = Destination::parse(&args.image).map_err(|error| {
            Failure::wrong_question(format!("{error} (and there is no file or directory of that name)"))
        })?;
        let credentials = args.connection.credentials(&destination.repository)?;
        let note = Display::new(args.json).note();
        let options = args.connection.options();
        let registry =
            Registry::open(&destination.repository, Access::Pull, credentials, &options, note).await?;
        Inspection::of_tag(&registry, destination.tag.as_deref().unwrap_or("latest")).await?
    };
    if args.json {
        print_json(&inspection)?;
    } else {
        print(&inspection.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Progress on a terminal, one line per layer elsewhere; all of it on stderr.
struct Display {
    quiet: bool,
    bar: Option<ProgressBar>,
    counter: Arc<Mutex<Option<Arc<AtomicU64>>>>,
}

impl Display {
    fn new(json: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::no_length);
        let display = Self { quiet: json && bar.is_none(), bar, counter: Arc::default() };
        if let Some(bar) = &display.bar {
            let style =
                ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            let (bar, counter) = (bar.downgrade(), Arc::downgrade(&display.counter));
            // Ends when the display is gone.
            std::thread::spawn(move || {
                while let (Some(bar), Some(counter)) = (bar.upgrade(), counter.upgrade()) {
                    if let Some(read) = &*counter.lock().unwrap_or_else(PoisonError::into_inner) {
                        bar.set_position(read.load(Ordering::Relaxed));
                    }
                    drop((bar, counter));
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        display
    }

    fn note(&self) -> Box<dyn Fn(&str)> {
        let bar = self.bar.clone();
        Box::new(move |text| say(bar.as_ref(), &format!("note: {text}")))
    }

    fn show(&self, event: &Event<'_>) {
        match event {
            Event::Reading { index, stored_size, read } => {
                if let Some(bar) = &self.bar {
                    bar.reset();
                    bar.set_length(*stored_size);
                    bar.set_prefix(format!("layer {}", index + 1));
                }
                *self.counter.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(read));
            }
            Event::Done { index, of, layer } => {
                *self.counter.lock().unwrap_or_else(PoisonError::into_inner) = None;
                if !self.quiet {
                    say(self.bar.as_ref(), &format!("layer {}/{of}  {}", index + 1, layer.line()));
                }
            }
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn say(bar: Option<&ProgressBar>, line: &str) {
    match bar {
        Some(bar) => bar.suspend(|| eprintln!("{line}")),
        None => eprintln!("{line}"),
    }
}

/// Appends to the file that an environment variable of the job names, if it is set.
fn append(variable: &str, text: &str) -> Result<(), Failure> {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(());
    };
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::not_well(format!("{variable}: {}: {error}", path.display())))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::not_well(format!("the report as JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// A reader that went away is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::not_well(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
