//! The way in: what a registry asks for, and the token that it, or its token service, gives.
//!
//! A realm that is dead or leads elsewhere is gone past: the registry's own `/v2/token` is asked, and where that fails too
//! user and password go with each request.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{StatusCode, Url};

use super::answer::{MAX_ANSWER, read, reason, words};
use super::auth::{self, Challenge, TokenAnswer};
use super::location::{same_origin, shown};
use super::{Access, Backoff, Credentials, Error, Registry, SMALL, is_passing, retry_after};
use crate::http::speaks_no_tls;

/// What goes with each request.
#[derive(Clone)]
pub(super) enum Authorization {
    None,
    Basic,
    Bearer {
        token: String,
        renew: Option<Instant>,
    },
    /// A token that was given, and that cannot be renewed.
    Given,
}

impl Registry {
    pub(super) async fn greet(&self) -> Result<(), Error> {
        let what = "asking the registry";
        let url = self.base.join("/v2/").unwrap_or_else(|_| self.base.clone());
        let mut backoff = Backoff::new(3);
        let answer = loop {
            match self.http.get(url.clone()).timeout(SMALL).send().await {
                Ok(answer)
                    if is_passing(answer.status()) && backoff.again(retry_after(answer.headers())).await => {}
                Ok(answer) => break answer,
                Err(error) if speaks_no_tls(&error) || !backoff.again(None).await => {
                    return Err(self.unreachable(what, &url, &error));
                }
                Err(_) => {}
            }
        };
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => {
                let challenge = Challenge::read(answer.headers());
                self.log_in(what, &url, challenge.as_ref()).await
            }
            status if status.is_redirection() => {
                let to = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                let is_tls = to.as_ref().is_some_and(|to| to.scheme() == "https" && url.scheme() == "http");
                let to = to.map_or("nowhere".to_owned(), |to| shown(&to));
                let advice =
                    if is_tls { "leave --plain-http out" } else { "name that address, if it is right" };
                let why = format!("HTTP {}: leads to {to}; {advice}", status.as_u16());
                let what = what.to_owned();
                Err(Error::Answer { what, url: shown(&url), why, status: status.as_u16() })
            }
            status if status.is_success() || status == StatusCode::NOT_FOUND => Err(Error::Answer {
                what: what.to_owned(),
                url: shown(&url),
                why: format!("HTTP {}: no registry answers here; check host and port", status.as_u16()),
                status: status.as_u16(),
            }),
            _ => Err(self.failure(what, &url, answer).await),
        }
    }

    pub(super) fn authorize(&self, builder: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (authorization, &self.credentials) {
            (Authorization::Bearer { token, .. }, _) => with_secret(builder, &format!("Bearer {token}")),
            (Authorization::Basic, Some(credentials)) => with_secret(builder, &credentials.basic()),
            (Authorization::Given, Some(credentials)) => with_secret(builder, &credentials.bearer()),
            _ => builder,
        }
    }

    /// Whether the answer to a 401 is a login, as against "you may not".
    pub(super) fn is_worth_a_login(&self, challenge: Option<&Challenge>) -> bool {
        let now = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*now, challenge) {
            (Authorization::Given, _) => false,
            (_, Some(Challenge::Bearer { .. })) => true,
            (Authorization::None, Some(Challenge::Basic { .. })) => self.credentials.is_some(),
            _ => false,
        }
    }

    /// Gets a new token shortly before the old one ends. True when it did.
    pub(super) async fn renew_if_old(&self, what: &str) -> Result<bool, Error> {
        let old = match &*self.authorization.lock().unwrap_or_else(PoisonError::into_inner) {
            Authorization::Bearer { renew: Some(renew), .. } => *renew <= Instant::now(),
            _ => false,
        };
        if old {
            let url = self.base.join("/v2/").unwrap_or_else(|_| self.base.clone());
            let answer = self.http.get(url.clone()).timeout(SMALL).send().await;
            let answer = answer.map_err(|error| self.unreachable(what, &url, &error))?;
            if let Some(challenge) = Challenge::read(answer.headers()) {
                self.log_in(what, &url, Some(&challenge)).await?;
            }
        }
        Ok(old)
    }

    pub(super) async fn log_in(
        &self,
        what: &str,
        url: &Url,
        challenge: Option<&Challenge>,
    ) -> Result<(), Error> {
        let authorization = match challenge {
            _ if self.credentials.as_ref().is_some_and(Credentials::is_token) => Authorization::Given,
            Some(Challenge::Bearer { realm, service, .. }) => self.token(realm, service.as_deref()).await?,
            Some(Challenge::Basic { .. }) if self.credentials.is_some() => Authorization::Basic,
            _ => {
                let why = auth::explain(401, challenge, self.credentials.as_ref(), "");
                return Err(Error::Refused { what: what.to_owned(), url: shown(url), why });
            }
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = authorization;
        Ok(())
    }

    /// Gets a token: where `--token-url` says, else at the realm if that is the registry's own origin, else at the
    /// registry's own `/v2/token`. A realm elsewhere is asked last and without credentials.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Authorization, Error> {
        let what = "asking for a token";
        if let Some(url) = &self.token_url {
            return match self.ask_for_token(url, service, true, 3).await? {
                Ok(token) => Ok(token),
                Err(why) => Err(Error::Unreachable { what: what.to_owned(), url: shown(url), why }),
            };
        }
        let own = auth::own_token_service(&self.base).unwrap_or_else(|| self.base.clone());
        // A relative realm is not allowed by the protocol, but plain enough.
        let realm = self.base.join(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut why_not = "names no token service that can be asked".to_owned();
        if let Some(realm) = realm.as_ref() {
            if same_origin(realm, &self.base) {
                match self.ask_for_token(realm, service, true, 3).await? {
                    Ok(token) => return Ok(token),
                    Err(why) if *realm == own => {
                        return self.basic_instead(&own, &why);
                    }
                    Err(why) => {
                        why_not =
                            format!("names {} for tokens, which does not give any ({why})", shown(realm))
                    }
                }
            } else {
                why_not = format!("names {} for tokens, which is not its own address", shown(realm));
            }
        }
        let own_why = match self.ask_for_token(&own, service, true, 3).await? {
            Ok(token) => {
                self.note(&format!(
                    "the registry {why_not}; asked {} instead. Pulls by other programs fail until that is mended (Gitea: \
                     ROOT_URL or PUBLIC_URL_DETECTION = auto in app.ini)",
                    shown(&own)
                ));
                return Ok(token);
            }
            Err(why) => why,
        };
        if self.credentials.is_some() {
            self.note(&format!(
                "the registry {why_not}, and {} gives no token ({own_why}); going on with user and password in each \
                 request. If the token service elsewhere is right, name it with --token-url",
                shown(&own)
            ));
            return Ok(Authorization::Basic);
        }
        match realm {
            Some(realm) => match self.ask_for_token(&realm, service, false, 1).await? {
                Ok(token) => Ok(token),
                Err(why) => Err(Error::Unreachable { what: what.to_owned(), url: shown(&realm), why }),
            },
            None => Err(Error::Unreachable { what: what.to_owned(), url: shown(&own), why: own_why }),
        }
    }

    /// The token service of a registry failed and there is no other.
    fn basic_instead(&self, own: &Url, why: &str) -> Result<Authorization, Error> {
        if self.credentials.is_none() {
            let (what, url) = ("asking for a token".to_owned(), shown(own));
            return Err(Error::Unreachable { what, url, why: why.to_owned() });
        }
        self.note(&format!(
            "{} gives no token ({why}); going on with user and password in each request",
            shown(own)
        ));
        Ok(Authorization::Basic)
    }

    /// Asks one token service. The inner error says why this service is of no use; the outer one is final.
    async fn ask_for_token(
        &self,
        service_url: &Url,
        service: Option<&str>,
        with_credentials: bool,
        tries: u32,
    ) -> Result<Result<Authorization, String>, Error> {
        let mut url = service_url.clone();
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete => "pull,delete",
        };
        url.query_pairs_mut()
            .append_pair("service", service.unwrap_or("container_registry"))
            .append_pair("scope", &format!("repository:{}:{actions}", self.repository.name));
        for other in &self.also_read {
            url.query_pairs_mut().append_pair("scope", &format!("repository:{other}:pull"));
        }
        let mut backoff = Backoff::new(tries);
        let answer = loop {
            let mut builder = self.http.get(url.clone()).timeout(SMALL);
            if let Some(credentials) = self.credentials.as_ref().filter(|_| with_credentials) {
                builder = with_secret(builder, &credentials.basic());
            }
            match builder.send().await {
                Ok(answer)
                    if is_passing(answer.status()) && backoff.again(retry_after(answer.headers())).await => {}
                Ok(answer) => break answer,
                Err(error) if !backoff.again(None).await => return Ok(Err(reason(&error))),
                Err(_) => {}
            }
        };
        let status = answer.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let challenge = Challenge::read(answer.headers());
            let words = words(answer).await;
            let with = self.credentials.as_ref().filter(|_| with_credentials);
            return Err(Error::Refused {
                what: "asking for a token".to_owned(),
                url: shown(&url),
                why: auth::explain(status.as_u16(), challenge.as_ref(), with, &words),
            });
        }
        if status != StatusCode::OK {
            return Ok(Err(format!("HTTP {}", status.as_u16())));
        }
        let body = read(answer, MAX_ANSWER).await.map_err(|why| Error::Answer {
            what: "asking for a token".to_owned(),
            url: shown(&url),
            why,
            status: 200,
        })?;
        let token = serde_json::from_slice::<TokenAnswer>(&body).ok().and_then(TokenAnswer::into_token);
        Ok(token.ok_or_else(|| "the answer holds no token".to_owned()).map(|(token, expires_in)| {
            // Ten seconds early; a shorter life is left to the 401.
            let renew = (expires_in > 20).then(|| Duration::from_secs(expires_in - 10));
            let renew = renew.and_then(|after| Instant::now().checked_add(after));
            Authorization::Bearer { token, renew }
        }))
    }
}

/// Adds an `Authorization` header that the HTTP library will not show either.
pub(super) fn with_secret(builder: reqwest::RequestBuilder, value: &str) -> reqwest::RequestBuilder {
    match HeaderValue::from_str(value) {
        Ok(mut value) => {
            value.set_sensitive(true);
            builder.header(AUTHORIZATION, value)
        }
        // A token with a line break in it; without it the registry answers 401, which is then explained.
        Err(_) => builder,
    }
}
