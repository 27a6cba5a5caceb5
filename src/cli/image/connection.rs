//! How to talk to the registry, and as whom.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::builder::FalseyValueParser;

use crate::cli::Failure;
use crate::image::Repository;
use crate::image::registry::{Credentials, Options};

/// How to talk to the registry.
#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// Speak plain HTTP
    #[arg(long, env = "SOWER_REGISTRY_PLAIN_HTTP", value_parser = FalseyValueParser::new())]
    plain_http: bool,
    /// Accept any certificate
    #[arg(long)]
    insecure: bool,
    /// Trust the authorities in this PEM file, too
    #[arg(long, value_name = "FILE", env = "SOWER_REGISTRY_CA")]
    ca: Option<PathBuf>,
    /// User name
    #[arg(long, value_name = "U")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// A bearer token that was fetched already: the file it is in, `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["username", "password_stdin"])]
    registry_token: Option<PathBuf>,
    /// Ask here for tokens, whatever the registry says; the credentials are sent there
    #[arg(long, value_name = "URL", env = "SOWER_REGISTRY_TOKEN_URL")]
    token_url: Option<String>,
}

/// A password is short; a stream by mistake must not fill the memory.
const MAX_SECRET: u64 = 64 * 1024;

impl Connection {
    pub(super) fn options(&self) -> Options {
        Options {
            plain_http: self.plain_http,
            insecure: self.insecure,
            token_url: self.token_url.clone(),
            ca: self.ca.clone(),
            also_read: Vec::new(),
            socks: None,
        }
    }

    /// Whether a secret is read from standard input, so that nothing else can be.
    pub(super) fn takes_stdin(&self) -> bool {
        self.password_stdin || self.registry_token.as_deref() == Some(Path::new("-"))
    }

    pub(super) fn credentials(&self, repository: &Repository) -> Result<Option<Credentials>, Failure> {
        if let Some(path) = &self.registry_token {
            let token = match path.as_os_str() == "-" {
                true => secret(&mut std::io::stdin().lock(), "--registry-token on standard input")?,
                false => {
                    let named = format!("--registry-token {}", path.display());
                    let mut file = std::fs::File::open(path)
                        .map_err(|error| Failure::wrong_question(format!("{named}: {error}")))?;
                    secret(&mut file, &named)?
                }
            };
            return Ok(Some(Credentials::token(&token)));
        }
        let password = match self.password_stdin {
            true => Some(secret(&mut std::io::stdin().lock(), "--password-stdin")?),
            false => None,
        };
        Ok(Credentials::find(repository, self.username.clone(), password)?)
    }
}

fn secret(source: &mut dyn std::io::Read, named: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = source.take(MAX_SECRET).read_to_string(&mut text);
    read.map_err(|error| Failure::wrong_question(format!("{named}: {error}")))?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() {
        return Err(Failure::wrong_question(format!("{named}: there is nothing")));
    }
    Ok(line.to_owned())
}
