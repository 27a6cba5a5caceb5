//! The question that is asked of the application when its pods are ready.

use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::header::HOST;

use super::{Access, Error};
use crate::http;
use crate::ssh::Tunnel;

/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// The most that is read of an answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// How long one try may take.
const TRY: Duration = Duration::from_secs(10);

/// A URL that must answer.
#[derive(Debug, Clone)]
pub struct Smoke {
    /// The URL, `http` or `https`.
    pub url: String,
    /// The status that is wanted.
    pub status: u16,
    /// Text that must be in the answer.
    pub text: Option<String>,
    /// The Host header, if not that of the URL: what an ingress tells applications apart by.
    pub host: Option<String>,
    /// Accept any certificate.
    pub insecure: bool,
    /// How long it may take until the answer is right.
    pub deadline: Duration,
    /// Ask from the far side of the SSH connection.
    pub tunnel: bool,
}

/// The answer was right.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Answered {
    /// The URL.
    pub url: String,
    /// Its status.
    pub status: u16,
    /// How many tries it took.
    pub tries: u32,
}

/// What came instead, in words.
pub(super) struct Wrong(pub(super) String);

impl Smoke {
    /// Looks for what can be known to be wrong without asking anybody.
    ///
    /// # Errors
    /// If the URL is none.
    pub(super) fn check(&self) -> Result<Url, Error> {
        let url = Url::parse(&self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        url.ok_or_else(|| Error::Argument(format!("--check-url: {:?} is no http or https URL", self.url)))
    }

    /// Asks until the answer is right or the time is up. `stop` is asked between tries.
    pub(super) fn ask(
        &self,
        access: &Access,
        stop: &dyn Fn() -> bool,
    ) -> Result<Result<Answered, Wrong>, Error> {
        let url = self.check()?;
        let tunnel = self.tunnel(access)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Process { program: "the HTTP client".to_owned(), source })?;
        let client = http::client(&http::Options {
            no_proxy: false,
            insecure: self.insecure,
            timeout: Some(TRY),
            socks: tunnel.as_ref().map(Tunnel::address),
            follow_redirects: self.host.is_none(),
            ..http::Options::default()
        })
        .map_err(|error| Error::Argument(format!("--check-url: {error}")))?;
        let began = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = runtime.block_on(self.once(&client, &url));
            match answer {
                Ok(status) => return Ok(Ok(Answered { url: self.url.clone(), status, tries })),
                Err(wrong) if began.elapsed() + PAUSE > self.deadline || stop() => {
                    let seconds = began.elapsed().as_secs();
                    let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
                    return Ok(Err(Wrong(format!("{} (asked {times} in {seconds} s)", wrong.0))));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn tunnel(&self, access: &Access) -> Result<Option<Tunnel>, Error> {
        if !self.tunnel {
            return Ok(None);
        }
        match access.proxy()? {
            Some(tunnel) => Ok(Some(tunnel)),
            None => Err(Error::Argument("--check-tunnel needs --ssh".to_owned())),
        }
    }

    async fn once(&self, client: &reqwest::Client, url: &Url) -> Result<u16, Wrong> {
        let mut request = client.get(url.clone());
        if let Some(host) = &self.host {
            request = request.header(HOST, host);
        }
        let mut answer = request
            .send()
            .await
            .map_err(|error| Wrong(format!("{}: {}", self.url, http::innermost(&error))))?;
        let status = answer.status().as_u16();
        if status != self.status {
            return Err(Wrong(format!(
                "{} answers with status {status} instead of {}",
                self.url, self.status
            )));
        }
        let Some(wanted) = &self.text else { return Ok(status) };
        let mut body = Vec::new();
        while body.len() < ANSWER_LIMIT {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend(&chunk),
                Ok(None) => break,
                Err(error) => return Err(Wrong(format!("{}: {}", self.url, http::innermost(&error)))),
            }
        }
        if String::from_utf8_lossy(&body).contains(wanted) {
            return Ok(status);
        }
        Err(Wrong(format!("{} answers with status {status}, but {wanted:?} is not in it", self.url)))
    }
}
