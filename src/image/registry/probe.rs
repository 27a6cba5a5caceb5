//! What a registry says to those who do as they are told: the facts of a diagnosis. Nothing here goes round anything.

use reqwest::header::HeaderMap;
use reqwest::{StatusCode, Url};

use super::answer::{MAX_ANSWER, read, reason, words};
use super::auth::{self, Challenge};
use super::location::{same_origin, shown};
use super::login::with_secret;
use super::{Access, Credentials, Options, Registry, SMALL};
use crate::image::{Error, Repository};

/// Gitea's token service, for registries that name none.
const GITEA: &str = "container_registry";

/// What `GET /v2/` answered.
#[derive(Debug, Clone)]
pub enum Greeting {
    /// No log-in is wanted.
    Open,
    /// User and password with each request.
    Basic,
    /// A token of this service.
    Bearer {
        /// The realm as the registry wrote it.
        realm: String,
        /// Whether it is on the registry's own scheme, host and port.
        own: bool,
        /// The name of the service that tokens are for.
        service: String,
    },
    /// Something else: no registry.
    Strange(String),
}

/// A token service, asked without credentials.
#[derive(Debug, Clone)]
pub enum Service {
    /// It gives tokens.
    Answers,
    /// It wants credentials.
    Refuses(u16),
    /// It does not give any.
    Fails(String),
}

/// Asks a registry without going round anything.
#[derive(Debug)]
pub struct Probe(Registry);

impl Probe {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// When the options cannot be.
    pub fn new(repository: &Repository, options: &Options) -> Result<Self, Error> {
        Ok(Self(Registry::unasked(repository, Access::Pull, None, options, Box::new(|_| {}))?))
    }

    /// What the registry says first. The outer error says that nothing answers.
    ///
    /// # Errors
    /// The network's reason.
    pub async fn greeting(&self) -> Result<(Greeting, Option<String>), String> {
        let url = self.0.base.join("/v2/").map_err(|error| error.to_string())?;
        let answer = self.0.http.get(url).timeout(SMALL).send().await.map_err(|error| reason(&error))?;
        let server = software(answer.headers());
        let status = answer.status();
        let greeting = match (status, Challenge::read(answer.headers())) {
            (StatusCode::OK, _) => Greeting::Open,
            (StatusCode::UNAUTHORIZED, Some(Challenge::Basic { .. })) => Greeting::Basic,
            (StatusCode::UNAUTHORIZED, Some(Challenge::Bearer { realm, service, .. })) => {
                let own = self.0.base.join(&realm).is_ok_and(|url| same_origin(&url, &self.0.base));
                Greeting::Bearer { realm, own, service: service.unwrap_or_else(|| GITEA.to_owned()) }
            }
            _ => Greeting::Strange(format!("HTTP {}", status.as_u16())),
        };
        Ok((greeting, server))
    }

    /// The token service at the registry's own address.
    #[must_use]
    pub fn own_service(&self) -> String {
        auth::own_token_service(&self.0.base).map_or(String::new(), |url| shown(&url))
    }

    /// Asks a token service as a node without credentials does.
    pub async fn service(&self, url: &str, service: &str) -> Service {
        match self.anonymous(url, service).await {
            Ok(Ok(_)) => Service::Answers,
            Ok(Err(status)) => Service::Refuses(status),
            Err(why) => Service::Fails(why),
        }
    }

    async fn anonymous(&self, url: &str, service: &str) -> Result<Result<String, u16>, String> {
        let mut url: Url = self.0.base.join(url).map_err(|error| error.to_string())?;
        url.query_pairs_mut()
            .append_pair("service", service)
            .append_pair("scope", &format!("repository:{}:pull", self.0.repository.name));
        let answer = self.0.http.get(url).timeout(SMALL).send().await.map_err(|error| reason(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Ok(Err(status.as_u16())),
            status => return Err(format!("HTTP {}", status.as_u16())),
        }
        let body = read(answer, MAX_ANSWER).await?;
        let token = serde_json::from_slice::<auth::TokenAnswer>(&body).ok().and_then(|t| t.into_token());
        token.map(|(token, _)| Ok(token)).ok_or_else(|| "the answer holds no token".to_owned())
    }

    /// Asks for a manifest as a node does that follows the realm, for tokens of the service: with these credentials, or
    /// none.
    ///
    /// # Errors
    /// Why that fails.
    pub async fn pull(
        &self,
        realm: Option<(&str, &str)>,
        credentials: Option<&Credentials>,
        tag: &str,
    ) -> Result<(), String> {
        let authorization = match (realm, credentials) {
            (Some((realm, service)), credentials) => {
                let mut url: Url = self.0.base.join(realm).map_err(|error| error.to_string())?;
                url.query_pairs_mut()
                    .append_pair("service", service)
                    .append_pair("scope", &format!("repository:{}:pull", self.0.repository.name));
                let mut builder = self.0.http.get(url.clone()).timeout(SMALL);
                // Credentials go to the registry's own address only, even to find out.
                if let Some(credentials) = credentials.filter(|_| same_origin(&url, &self.0.base)) {
                    builder = with_secret(builder, &credentials.basic());
                }
                let answer =
                    builder.send().await.map_err(|error| format!("the realm: {}", reason(&error)))?;
                if answer.status() != StatusCode::OK {
                    return Err(format!("the realm: HTTP {}", answer.status().as_u16()));
                }
                let body = read(answer, MAX_ANSWER).await?;
                let token = serde_json::from_slice::<auth::TokenAnswer>(&body).ok();
                let (token, _) =
                    token.and_then(|token| token.into_token()).ok_or("the realm gives no token")?;
                Some(format!("Bearer {token}"))
            }
            (None, Some(credentials)) => Some(credentials.basic()),
            (None, None) => None,
        };
        let target = self.0.own(&format!("manifests/{tag}"));
        let accept = "application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.oci.image.index.v1+json";
        let mut builder = self.0.http.get(target.url).timeout(SMALL).header(reqwest::header::ACCEPT, accept);
        if let Some(authorization) = authorization {
            builder = with_secret(builder, &authorization);
        }
        let answer = builder.send().await.map_err(|error| reason(&error))?;
        match answer.status() {
            // Nothing was pushed yet; who may not read is told so before that.
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            status => Err(format!("HTTP {} {}", status.as_u16(), words(answer).await).trim().to_owned()),
        }
    }
}

/// What the headers tell of the program that answers.
fn software(headers: &HeaderMap) -> Option<String> {
    headers.get("server").and_then(|value| value.to_str().ok()).map(|text| text.chars().take(40).collect())
}
