//! How to talk to the registry, and as whom.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::builder::FalseyValueParser;

use crate::cli::Failure;
use crate::config::{Config, DEFAULT_PATH, RegistryAccess};
use crate::image::Repository;
use crate::image::registry::{Credentials, Options};
use crate::image::stream::Stream;

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
    /// The runner's configuration, whose `images.registries` says how registries are spoken to [default:
    /// /etc/sower/config.yaml, where there is one]
    #[arg(long, short, value_name = "FILE", env = "SOWER_CONFIG")]
    config: Option<PathBuf>,
}

/// A password is short; a stream by mistake must not fill the memory.
const MAX_SECRET: u64 = 64 * 1024;

impl Connection {
    /// What flags and environment say, and for the rest the configuration.
    pub(super) fn options(&self, repository: &Repository) -> Result<Options, Failure> {
        let configured = self.configured(&repository.host)?;
        Ok(Options {
            plain_http: self.plain_http || configured.plain_http,
            insecure: self.insecure || configured.insecure,
            token_url: self.token_url.clone().or(configured.token_url),
            ca: self.ca.clone().or(configured.ca),
            also_read: Vec::new(),
            socks: None,
        })
    }

    fn configured(&self, host: &str) -> Result<RegistryAccess, Failure> {
        let path = self.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read(path) {
            Ok(text) => text,
            // Nobody named it, and it is not there or not for this user.
            Err(error) if self.config.is_none() => {
                tracing::debug!(path = %path.display(), %error, "no configuration");
                return Ok(RegistryAccess::default());
            }
            Err(error) => return Err(Failure::wrong_question(format!("{}: {error}", path.display()))),
        };
        let (config, _) = Config::parse(path, &text).map_err(Failure::wrong_question)?;
        let all = config.images.registries.into_iter();
        let found = all.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(host));
        Ok(found.map(|(_, access)| access).unwrap_or_default())
    }

    /// The source, if it can be read only once.
    pub(super) fn stream(&self, source: &Path) -> Result<Option<Stream>, Failure> {
        let stream = Stream::of(source);
        let secret = self.password_stdin || self.registry_token.as_deref() == Some(Path::new("-"));
        if secret && matches!(stream, Some(Stream::Stdin)) {
            return Err(Failure::wrong_question(
                "standard input cannot be both the image and the password; set SOWER_REGISTRY_PASSWORD",
            ));
        }
        Ok(stream)
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
