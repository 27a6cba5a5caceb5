//! Registration: a registration token becomes a runner.

use std::time::Duration;

use sower_wire::runner::RegisterRequest;

use super::client::{Address, Client};
use super::error::{Code, Error};
use super::registration::Registration;
use super::{Backoff, CAPABILITIES};
use crate::config::Label;

/// How often an instance that does not answer is asked.
const TRIES: u32 = 4;

/// What a runner is to be.
#[derive(Clone)]
pub struct NewRunner {
    /// The registration token, which is a secret.
    pub token: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<Label>,
    /// It takes one task and is gone.
    pub ephemeral: bool,
}

/// Why a runner was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Nothing answers there.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The instance.
        address: Address,
        /// What happened at the last try.
        reason: String,
    },
    /// Something answers, and it is no Gitea with Actions.
    #[error(
        "{address} is not a Gitea with Actions ({reason}); check the address, and that the instance has ENABLED = true in [actions] of its app.ini"
    )]
    NotGitea {
        /// The instance.
        address: Address,
        /// What it answered.
        reason: String,
    },
    /// The token is refused.
    #[error(
        "{address} refuses the registration token ({message}); take a new one from Settings, Actions, Runners of the instance, the organisation or the repository"
    )]
    Token {
        /// The instance.
        address: Address,
        /// What it said.
        message: String,
    },
    /// Registering failed otherwise.
    #[error("{address} does not register this runner: {message}")]
    Refused {
        /// The instance.
        address: Address,
        /// What it said.
        message: String,
    },
    /// The server made a permanent runner of an ephemeral one.
    #[error(
        "{address} is too old for ephemeral runners (1.24 or later is needed) and has made {name:?} a permanent one; remove it there"
    )]
    NotEphemeral {
        /// The instance.
        address: Address,
        /// Name of the runner that is to be removed.
        name: String,
    },
}

/// Registers a runner.
///
/// # Errors
/// When the instance cannot be reached, is no Gitea with Actions, or refuses.
pub async fn register(client: &Client, new: &NewRunner) -> Result<Registration, RegisterError> {
    let address = client.address().clone();
    ping(client).await?;
    let names: Vec<String> = new.labels.iter().map(|label| label.name.clone()).collect();
    let request = RegisterRequest {
        name: new.name.clone(),
        token: new.token.clone(),
        agent_labels: names.clone(),
        version: crate::VERSION.to_owned(),
        labels: names,
        ephemeral: new.ephemeral,
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        ..RegisterRequest::default()
    };
    let reply = match client.register(&request).await {
        Ok(reply) => reply,
        Err(Error::Unreachable { reason, .. }) => return Err(RegisterError::Unreachable { address, reason }),
        Err(Error::Refused { message, genuine: true, .. }) if message.contains("token") => {
            return Err(RegisterError::Token { address, message });
        }
        Err(Error::Refused { message, .. } | Error::Nonsense { message, .. }) => {
            return Err(RegisterError::Refused { address, message });
        }
    };
    let runner = reply.runner.unwrap_or_default();
    if runner.uuid.is_empty() || runner.token.is_empty() {
        let message = "the reply names no runner".to_owned();
        return Err(RegisterError::Refused { address, message });
    }
    if new.ephemeral && !runner.ephemeral {
        return Err(RegisterError::NotEphemeral { address, name: runner.name });
    }
    Ok(Registration {
        id: runner.id,
        uuid: runner.uuid,
        name: runner.name,
        token: runner.token,
        address: address.to_string(),
        labels: new.labels.iter().map(ToString::to_string).collect(),
        ephemeral: runner.ephemeral,
        ..Registration::default()
    })
}

/// Asks whether this is a Gitea with Actions.
///
/// # Errors
/// When it cannot be reached, or is none.
pub async fn look(client: &Client) -> Result<(), RegisterError> {
    ping(client).await
}

/// Asks whether this is a Gitea with Actions, a few times where nothing answers.
async fn ping(client: &Client) -> Result<(), RegisterError> {
    let address = client.address().clone();
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(2));
    loop {
        let again = backoff.failures() + 1 < TRIES;
        match client.ping("sower").await {
            Ok(reply) if reply.data.contains("sower") => return Ok(()),
            Ok(_) => {
                let reason = "it answers, but not to what it was asked".to_owned();
                return Err(RegisterError::NotGitea { address, reason });
            }
            Err(Error::Unreachable { reason, .. }) if !again => {
                return Err(RegisterError::Unreachable { address, reason });
            }
            // A proxy whose Gitea is starting.
            Err(Error::Refused { code: Code::Unavailable, message, .. }) if !again => {
                return Err(RegisterError::Unreachable { address, reason: message });
            }
            Err(Error::Unreachable { .. } | Error::Refused { code: Code::Unavailable, .. }) => {
                tokio::time::sleep(backoff.failed()).await;
            }
            Err(Error::Refused { status, message, .. }) => {
                let reason = format!("HTTP {status}: {message}");
                return Err(RegisterError::NotGitea { address, reason });
            }
            Err(Error::Nonsense { message, .. }) => {
                return Err(RegisterError::NotGitea { address, reason: message });
            }
        }
    }
}
