//! `sower register`: Register this host with a Gitea instance.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::termios::{LocalModes, OptionalActions};
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Outcome};
use crate::config::{Config, Label};
use crate::gitea::{self, Address, Client, NewRunner, RegisterError, Registration, RegistrationError};
use crate::supervisor::StateDir;

/// Where a token may be beside the command line, which every user of the host can read.
const TOKEN_VARIABLES: [&str; 2] = ["SOWER_REGISTRATION_TOKEN", "GITEA_RUNNER_REGISTRATION_TOKEN"];

/// Register this host with a Gitea instance.
///
/// What is not given is asked for on a terminal. The registration is written to runner.file of the configuration.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Ask nothing; what is missing is an error
    #[arg(long)]
    no_interactive: bool,
    /// Address of the instance, such as https://git.example.org
    #[arg(long, value_name = "URL")]
    instance: Option<String>,
    /// Registration token, from Settings, Actions, Runners. Better in SOWER_REGISTRATION_TOKEN, since
    /// command lines are no secret
    #[arg(long)]
    token: Option<String>,
    /// Name of the runner [default: the name of this host]
    #[arg(long)]
    name: Option<String>,
    /// Labels, separated by commas, such as haskelseed:host [default: runner.labels of the configuration]
    #[arg(long)]
    labels: Option<String>,
    /// The runner takes one task and is then deleted (Gitea 1.24 or later)
    #[arg(long)]
    ephemeral: bool,
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  sower register
  SOWER_REGISTRATION_TOKEN=… sower register --no-interactive \\
      --instance https://git.example.org --labels haskelseed:host";

impl std::fmt::Debug for Args {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Args").field("instance", &self.instance).finish_non_exhaustive()
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let (config, warnings) = Config::load(args.config.as_deref()).map_err(Failure::wrong_question)?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    let ask = !args.no_interactive && std::io::stdin().is_terminal();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::not_well(format!("cannot start: {error}")))?;
    let client = |address: Address| Client::new(address, config.runner.insecure).map_err(Failure::not_well);
    let client = match &args.instance {
        Some(address) => client(address.parse().map_err(Failure::wrong_question)?)?,
        None if ask => {
            eprintln!(
                "Which Gitea is this runner for? The address as a browser has it, such as https://git.example.org"
            );
            again(|| {
                let client = client(prompt("Address", None)?.parse().map_err(Failure::wrong_question)?)?;
                runtime.block_on(gitea::look(&client)).map_err(Failure::not_well)?;
                eprintln!("  {} answers, and its Actions are on", client.address());
                Ok(client)
            })?
        }
        None => return Err(Failure::wrong_question("no instance; give --instance URL")),
    };
    let name = match &args.name {
        Some(name) => checked_name(name)?,
        None if ask => {
            eprintln!("What is it called there?");
            again(|| checked_name(&prompt("Name", Some(&host))?))?
        }
        None => checked_name(&host)?,
    };
    let labels = match &args.labels {
        Some(labels) => parse_labels(labels)?,
        None if !config.runner.labels.is_empty() => config.runner.labels.clone(),
        None if ask => {
            eprintln!(
                "Which jobs are for it? Labels, with commas between them: what `runs-on` of a workflow asks for\n  \
                 haskelseed:host           jobs with runs-on: haskelseed\n  \
                 haskelseed:host,big:host  those, and jobs with runs-on: big"
            );
            again(|| {
                let labels = parse_labels(&prompt("Labels", Some(&format!("{host}:host")))?)?;
                if labels.is_empty() { Err(Failure::wrong_question("no label")) } else { Ok(labels) }
            })?
        }
        None => Vec::new(),
    };
    if labels.is_empty() {
        return Err(Failure::wrong_question(
            "no labels; give --labels NAME:host, where NAME is what runs-on of a workflow asks for",
        ));
    }

    let file = &config.runner.file;
    // Before anything is made on the server: is there a place for the result?
    StateDir::open(config.state_dir()).map_err(Failure::not_well)?;
    let before = match Registration::read(file) {
        Ok(before) => Some(before),
        Err(RegistrationError::Missing { .. } | RegistrationError::Wrong { .. }) => None,
        Err(error) => return Err(Failure::not_well(error)),
    };
    let register = |token: String| {
        let token = token.trim().to_owned();
        if token.is_empty() {
            return Err(Failure::wrong_question("the registration token is empty"));
        }
        let new = NewRunner { token, name: name.clone(), labels: labels.clone(), ephemeral: args.ephemeral };
        let registered = runtime.block_on(async {
            tokio::select! {
                registered = gitea::register(&client, &new) => registered,
                _ = tokio::signal::ctrl_c() => std::process::exit(130),
            }
        });
        registered.map_err(|error: RegisterError| Failure::not_well(error))
    };
    let registration = match args.token.clone().or_else(token_of_environment) {
        Some(token) => register(token)?,
        None if ask => {
            eprintln!(
                "The registration token: Settings, Actions, Runners, Create new runner, of the instance, an organisation or \
                 a repository. It is not shown."
            );
            again(|| register(secret_prompt(&runtime, "Token")?))?
        }
        None => {
            let variable = TOKEN_VARIABLES[0];
            return Err(Failure::wrong_question(format!(
                "no registration token; set {variable}, or give --token"
            )));
        }
    };
    registration.write(file).map_err(Failure::not_well)?;
    if let Some(before) = before {
        eprintln!(
            "replaced the registration of {} ({}) with {}; remove that runner there if it is not needed",
            before.name, before.uuid, before.address
        );
    }
    println!(
        "registered {} with {}, labels {}; written to {}",
        registration.name,
        registration.address,
        registration.labels.join(", "),
        file.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Asks until the answer will do, or there are no more answers.
fn again<T>(mut question: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match question() {
            Err(failure) if !failure.is_final() => eprintln!("  {failure}"),
            done => return done,
        }
    }
}

fn checked_name(name: &str) -> Result<String, Failure> {
    let name = name.trim();
    if name.is_empty() {
        return Err(Failure::wrong_question("the runner's name is empty; give --name"));
    }
    if name.chars().count() > 255 {
        return Err(Failure::wrong_question(
            "the runner's name is longer than 255 characters; give a shorter --name",
        ));
    }
    Ok(name.to_owned())
}

fn parse_labels(text: &str) -> Result<Vec<Label>, Failure> {
    Label::parse_list(text).map_err(Failure::wrong_question)
}

fn token_of_environment() -> Option<String> {
    TOKEN_VARIABLES.iter().find_map(|name| std::env::var(name).ok()).filter(|token| !token.is_empty())
}

/// Asks a question on the terminal; an empty answer is the default.
fn prompt(question: &str, default: Option<&str>) -> Result<String, Failure> {
    match default {
        Some(default) => eprint!("{question} [{default}]: "),
        None => eprint!("{question}: "),
    }
    let answer = read_line()?;
    match (answer.trim(), default) {
        ("", Some(default)) => Ok(default.to_owned()),
        ("", None) => Err(Failure::wrong_question("an answer is expected; Ctrl-C leaves")),
        (answer, _) => Ok(answer.to_owned()),
    }
}

/// Asks without showing what is typed.
fn secret_prompt(runtime: &tokio::runtime::Runtime, question: &str) -> Result<String, Failure> {
    let stdin = std::io::stdin();
    // Ctrl-C must not leave a silent terminal behind, so it is waited for before there is one.
    let mut interrupt = {
        let _inside = runtime.enter();
        signal(SignalKind::interrupt())
            .map_err(|error| Failure::not_well(format!("cannot wait for Ctrl-C: {error}")))?
    };
    let before = rustix::termios::tcgetattr(&stdin);
    if let Ok(before) = &before {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        let _ = rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, &silent);
    }
    // Only now: who is quick types before it is silent, else.
    eprint!("{question}: ");
    let answer = runtime.block_on(async {
        tokio::select! {
            // Who ends the line as well has left all the same.
            biased;
            _ = interrupt.recv() => None,
            answer = tokio::task::spawn_blocking(read_line) => answer.ok(),
        }
    });
    if let Ok(before) = &before {
        let _ = rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, before);
    }
    eprintln!();
    // The thread that reads would be waited for.
    answer.unwrap_or_else(|| std::process::exit(130))
}

fn read_line() -> Result<String, Failure> {
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) => Err(Failure::wrong_question("no more answers").for_good()),
        Ok(_) => Ok(line),
        Err(error) => Err(Failure::wrong_question(format!("cannot read the answer: {error}")).for_good()),
    }
}
