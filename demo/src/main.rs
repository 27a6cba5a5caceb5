//! Shows the main job on real parts: a push runs the declared pipeline, from a commit to a running pod.
//!
//! `make demo` builds what is needed and runs this. A small forge (the stand-in of the tests) takes the place of
//! Gitea; everything else is real: the runner, git, nix, ghc, the registry, helm, Kubernetes. The workflow is
//! `workflows/deploy.yaml` itself.

mod application;
mod cluster;
mod damage;
mod old_tags;
mod processes;
mod registry;
mod runner;
mod screen;
mod show;
mod stations;
mod trouble;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use sower_test_support::{Forge, Options, RegistryOptions, USER, Version};

use application::Application;
use cluster::Cluster;
use damage::Damage;
use processes::Interrupt;
use registry::Registry;
use runner::Runner;
use screen::{Screen, Style, grouped, seconds};
use stations::{Verdicts, version};
use trouble::{At, Trouble};

/// Name of the sample application: repository, image, release.
const NAME: &str = "greeter";
/// Namespace that it is deployed to.
const NAMESPACE: &str = "demo";
/// A token realm at which nobody answers, as the first user's registry has it.
const WRONG_REALM: &str = "http://127.0.0.1:1";

/// Shows the main job on real parts: a push runs the declared pipeline.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit code: 0 all stations passed, 1 one did not, 130 interrupted.\n\nExample:\n  make demo"
)]
struct Args {
    /// The runner's binary
    #[arg(long, value_name = "FILE")]
    sower: PathBuf,
    /// The source tree
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// Where the parts are and the demo's own files go
    #[arg(long, value_name = "DIR", env = "CARGO_TARGET_DIR", default_value = "target")]
    target: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut screen = Screen::new();
    let outcome = Interrupt::listen()
        .map_err(|error| Trouble::Missing(format!("signals: {error}")))
        .and_then(|interrupt| demo(&args, &mut screen, &interrupt));
    // Whatever went before: jobs outlive their daemon, and nothing is to outlive the demo.
    processes::end_all();
    screen.clear();
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(Trouble::Interrupted) => {
            screen.line("interrupted; nothing is left running");
            ExitCode::from(130)
        }
        Err(trouble) => {
            let mark = screen.styled(Style::Red, "demo:");
            screen.line(&format!("{mark} {trouble}"));
            ExitCode::FAILURE
        }
    }
}

/// Places of one demo.
struct Places {
    source: PathBuf,
    target: PathBuf,
    sower: PathBuf,
    /// Removed at the end.
    scratch: PathBuf,
    /// Stay, for who wants to know more.
    logs: PathBuf,
}

impl Places {
    fn new(args: &Args) -> Result<Self, Trouble> {
        let target = fs::canonicalize(&args.target).at(&args.target)?;
        let places = Self {
            source: fs::canonicalize(&args.source).at(&args.source)?,
            sower: fs::canonicalize(&args.sower).at(&args.sower)?,
            scratch: target.join("demo/run"),
            logs: target.join("demo/logs"),
            target,
        };
        for folder in [&places.scratch, &places.logs] {
            // A demo that was killed may have left something.
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at(folder),
                _ => fs::create_dir_all(folder).at(folder)?,
            }
        }
        Ok(places)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next demo, or named by it.
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Runs all of it; answers how many stations failed.
fn demo(args: &Args, screen: &mut Screen, interrupt: &Interrupt) -> Result<usize, Trouble> {
    let began = Instant::now();
    let title = screen.styled(Style::Bold, "sower demo: a push runs the declared pipeline on real parts");
    screen.line(&title);
    screen.line("");
    let places = Places::new(args)?;
    say_parts(screen, &places);

    let registry = Registry::start(&places.scratch.join("registry"), &places.log("registry"), interrupt)?;
    let mut forge = start_forge(&registry)?;
    // What the runner breaks is a station that fails, not a panic.
    forge.lenient();
    let host = forge.address().to_string();
    fact(
        screen,
        "forge",
        &format!("{}, a stand-in for Gitea; its registry names {WRONG_REALM}/v2/token as realm", forge.url()),
    );

    // It takes longest, so the others are made ready meanwhile.
    let mut cluster = Cluster::is_built(&places.target)
        .then(|| Cluster::start(&places.source, &places.target, registry.address, &places.log("cluster")))
        .transpose()?;
    if cluster.is_none() {
        fact(
            screen,
            "cluster",
            "none: Kubernetes is built with Go 1.24 or newer (https://go.dev/dl), and there is none.",
        );
        fact(screen, "", "The deployment is rendered only; with Go installed `make demo` runs it.");
    }

    let mut runner = Runner::start(
        &places.sower,
        &places.scratch.join("runner"),
        &places.target.join("parts/bin"),
        &forge.url(),
        &forge.registration_token(),
        &places.log("daemon"),
        interrupt,
    )?;
    let label = runner::LABEL;
    fact(screen, "runner", &format!("registered with label {label}:host, `sower daemon` runs"));

    screen.going_on("laying out the sample application, cutting an archive");
    let application =
        Application::lay_out(&places.source, &places.scratch.join(NAME), &places.log("git"), interrupt)?;
    let root = places.target.join("demo/ghc");
    let damage = Damage::do_it(&application.tree, &root, &places.log("nix"), interrupt)?;
    let archive = damage.archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let cut = format!(
        "{archive} in the Nix store cut from {} to {} bytes",
        grouped(damage.whole),
        grouped(damage.left)
    );
    fact(screen, "archive", &cut);

    screen.going_on("pushing images of the past");
    let image = format!("{host}/{USER}/{NAME}");
    let credentials = (USER, forge.token());
    old_tags::push(&places.sower, &image, credentials, &places.scratch, &places.log("tags"), interrupt)?;
    fact(screen, "tags", &format!("{} images of the past in {image}", old_tags::COUNT));

    if let Some(cluster) = &mut cluster {
        cluster.wait(screen, interrupt)?;
        cluster.mirror(&host, registry.address)?;
        fact(
            screen,
            "cluster",
            &format!("Kubernetes on loopback, its node is ready ({})", seconds(began.elapsed())),
        );
    }
    configure(&forge, &image, &damage, cluster.as_ref())?;

    let repository = forge
        .repository(&format!("{USER}/{NAME}"))
        .map_err(|error| Trouble::Failed(format!("the forge makes no repository: {error}")))?;
    let sha = application.push(&repository.push_url(), interrupt)?;
    let tag = sha.get(..7).unwrap_or(&sha).to_owned();
    fact(screen, "push", &format!("{tag} to main of {}", repository.url()));
    screen.line("");

    let run = interrupt.wait_for("a run of the pushed workflow", Duration::from_secs(10), || {
        forge.runs().into_iter().find(|run| run.sha == sha)
    });
    let Ok(run) = run else {
        return Err(Trouble::Failed(format!("the push started no run\n{}", forge.describe())));
    };
    let title =
        format!("{} · {} #{} · {} · {}", run.repository, run.workflow, run.number, run.event, run.title);
    let title = screen.styled(Style::Bold, &title);
    screen.line(&format!(" {title}"));
    let run = match show::run(&forge, run.id, &mut runner, screen, interrupt) {
        Err(Trouble::Interrupted) => {
            // The job ends its steps in its own way, and only then its processes.
            forge.cancel(run.id);
            return Err(Trouble::Interrupted);
        }
        other => other?,
    };

    screen.line("");
    let heading = screen.styled(Style::Bold, "What is there now");
    screen.line(&format!(" {heading}"));
    let mut verdicts = Verdicts::default();
    stations::run(&mut verdicts, screen, &run, &forge.violations());
    stations::ceiling(&mut verdicts, screen, &forge, &run);
    stations::archive(&mut verdicts, screen, &damage, interrupt);
    stations::tags(&mut verdicts, screen, &forge, (USER, NAME), &tag, old_tags::COUNT);
    if let Some(cluster) = &cluster {
        stations::pod(&mut verdicts, screen, cluster, NAMESPACE, (&tag, &application.words), interrupt)?;
    }
    screen.line("");
    let memory =
        runner.memory().map(|bytes| format!("; the daemon has {} KB resident", grouped(bytes / 1024)));
    let took = seconds(began.elapsed());
    let failed = verdicts.failed();
    let all = verdicts.count();
    screen.line(&if failed == 0 {
        let words = screen.styled(Style::Green, &format!("all {all} stations passed"));
        format!("{words} in {took}{}", memory.unwrap_or_default())
    } else {
        let words = screen.styled(Style::Red, &format!("{failed} of {all} stations failed"));
        format!("{words} ({took}); the logs of the parts are in {}", places.logs.display())
    });
    screen.going_on("putting everything away");
    Ok(failed)
}

fn fact(screen: &mut Screen, name: &str, text: &str) {
    let name = screen.styled(Style::Dim, &format!("{name:<9}"));
    screen.line(&format!(" {name} {text}"));
}

/// The real parts with their versions.
fn say_parts(screen: &mut Screen, places: &Places) {
    let helm = places.target.join("parts/bin/helm");
    let parts: Vec<String> = [
        ("sower", places.sower.to_string_lossy().as_ref(), &["--version"][..]),
        ("git", "git", &["--version"]),
        ("ghc", "ghc", &["--numeric-version"]),
        ("nix", "nix", &["--version"]),
        ("docker-registry", "docker-registry", &["--version"]),
        ("helm", helm.to_string_lossy().as_ref(), &["version", "--short"]),
    ]
    .into_iter()
    .map(|(name, program, arguments)| match version(program, arguments) {
        Some(version) => format!("{name} {version}"),
        None => format!("{name} (missing)"),
    })
    .collect();
    fact(screen, "parts", &parts.join(", "));
}

fn start_forge(registry: &Registry) -> Result<Forge, Trouble> {
    let options = Options {
        // The first that shows a job's summary.
        version: Version::V1_27,
        registry: Some(RegistryOptions { upstream: registry.address, realm: Some(WRONG_REALM.to_owned()) }),
        ..Options::default()
    };
    Forge::start(options).map_err(|error| Trouble::Failed(format!("the forge does not start: {error}")))
}

/// Variables and secrets of the repository, as `workflows/README.md` lists them.
fn configure(forge: &Forge, image: &str, damage: &Damage, cluster: Option<&Cluster>) -> Result<(), Trouble> {
    // Debian's own file is a whole copy of what was cut; on a build host it would be another host or a backup.
    let donor = Path::new("/usr/lib/ghc").join(damage.folder());
    forge.set_var("IMAGE", image);
    forge.set_var("REGISTRY_PLAIN_HTTP", "true");
    // Of this compiler only: a store may hold others.
    forge.set_var("ARCHIVES", &damage.libraries().to_string_lossy());
    forge.set_var("ARCHIVE_DONORS", &donor.to_string_lossy());
    forge.set_var("REGISTRY_USERNAME", USER);
    forge.set_var("RELEASE", NAME);
    forge.set_var("NAMESPACE", NAMESPACE);
    forge.set_secret("REGISTRY_PASSWORD", forge.token());
    match cluster {
        Some(cluster) => forge.set_secret("KUBECONFIG", &cluster.kubeconfig()?),
        None => forge.set_var("RENDER_ONLY", "true"),
    }
    Ok(())
}
