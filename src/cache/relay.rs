//! Hands calls of the artifact service on to Gitea.
//!
//! Clients of version 2 find cache and artifacts at one address (`ACTIONS_RESULTS_URL`). The cache is ours, the
//! artifacts are Gitea's; only these small questions pass, archives go to Gitea by the addresses that it gives out.

use std::sync::OnceLock;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, Response, StatusCode};

use crate::http;

use super::reply::{Answer, Body, Refusal, text};

/// The most that is read of an answer, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// The way to the server that keeps the artifacts.
#[derive(Debug)]
pub struct Relay {
    /// Its address, without a slash at the end.
    base: String,
    insecure: bool,
    /// Made when it is first needed.
    client: OnceLock<reqwest::Client>,
}

impl Relay {
    /// To this server; `insecure` accepts any certificate from it.
    #[must_use]
    pub fn new(base: &str, insecure: bool) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), insecure, client: OnceLock::new() }
    }

    fn client(&self) -> Result<&reqwest::Client, reqwest::Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = http::client(&http::Options { insecure: self.insecure, ..http::Options::default() })?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Asks the same of the server, and answers what it answers.
    pub(super) async fn serve(&self, request: Request<Incoming>) -> Answer {
        let (parts, mut body) = request.into_parts();
        let asked = text(&mut body).await?;
        let away = |error: reqwest::Error| {
            let error = error.without_url();
            Refusal::new(StatusCode::BAD_GATEWAY, format!("{} cannot be asked: {error}", self.base))
        };
        let url = format!("{}{}", self.base, parts.uri.path());
        let mut question = self.client().map_err(away)?.post(url).body(asked);
        for name in [AUTHORIZATION, CONTENT_TYPE, ACCEPT] {
            if let Some(value) = parts.headers.get(&name) {
                question = question.header(name, value);
            }
        }
        let mut answer = question.send().await.map_err(away)?;
        let (status, kind) = (answer.status(), answer.headers().get(CONTENT_TYPE).cloned());
        let mut whole = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(away)? {
            whole.extend_from_slice(&piece);
            if whole.len() > MAX_ANSWER {
                return Err(Refusal::new(StatusCode::BAD_GATEWAY, format!("{} answers too much", self.base)));
            }
        }
        let mut response = Response::new(Body::Text(Some(Bytes::from(whole))));
        *response.status_mut() = status;
        if let Some(kind) = kind {
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
        Ok(response)
    }
}
