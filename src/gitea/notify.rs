//! Telling somebody that a job has failed: a JSON object, posted to an address of the operator's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use ring::hmac;
use serde_json::json;
use tokio::sync::watch;
use tracing::warn;

use crate::config::Notify;
use crate::events::journal::Reader;
use crate::events::{Conclusion, Event, StepInfo};
use crate::http;
use crate::supervisor::JobDir;

/// How often a message is sent that does not arrive.
const TRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Rows of the failed step that are sent along.
const ROWS: usize = 20;
/// The most of a row that is sent, in bytes.
const ROW: usize = 500;

/// Where it is told; nowhere by default.
#[derive(Clone, Default)]
pub(super) struct Alarm {
    target: Option<(reqwest::Client, Url)>,
    key: Option<hmac::Key>,
    /// Messages that are on their way.
    under_way: Arc<watch::Sender<usize>>,
}

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alarm").field("set", &self.target.is_some()).finish_non_exhaustive()
    }
}

impl Alarm {
    /// Reads where and how. The address is not repeated in errors: it may be a secret.
    pub(super) fn of(config: &Notify) -> Result<Self, String> {
        let read = |path: &Path| {
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<_, String>(text.trim().to_owned())
        };
        let url = match (&config.url_file, &config.url) {
            (Some(path), _) => read(path)?,
            (None, Some(url)) => url.clone(),
            (None, None) => return Ok(Self::default()),
        };
        let url = Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or("notify.url: an address such as https://chat.example.org/hook is expected")?;
        let options = http::Options { timeout: Some(TIMEOUT), ..http::Options::default() };
        let client = http::client(&options).map_err(|error| error.to_string())?;
        let key = config.secret_file.as_deref().map(read).transpose()?;
        let key = key.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
        Ok(Self { target: Some((client, url)), key, ..Self::default() })
    }

    /// Tells of a job if it has failed. Reads its journal; the message goes beside the other work.
    pub(super) fn ring(&self, dir: &JobDir, address: &str, runner: &str) {
        let Some((client, url)) = self.target.clone() else { return };
        let Some(failure) = Failure::of(dir) else { return };
        let task = dir.task();
        let meta = dir.read_meta();
        let body = json!({
            "event": "job_failed",
            "text": format!(
                "{}: job {} of {} has failed{}",
                meta.repository,
                meta.job,
                meta.workflow,
                failure.step.as_ref().map(|step| format!(" in step {step:?}")).unwrap_or_default()
            ),
            "repository": meta.repository,
            "workflow": meta.workflow,
            "job": meta.job,
            "task": task,
            "step": failure.step,
            "rows": failure.rows,
            "instance": address,
            "url": format!("{address}/{}/actions", meta.repository),
            "runner": runner,
        })
        .to_string();
        let signature = self.key.as_ref().map(|key| {
            let tag = hmac::sign(key, body.as_bytes());
            tag.as_ref().iter().fold("sha256=".to_owned(), |text, byte| format!("{text}{byte:02x}"))
        });
        let under_way = Arc::clone(&self.under_way);
        under_way.send_modify(|count| *count += 1);
        tokio::spawn(async move {
            if let Err(problem) = send(&client, &url, &body, signature.as_deref()).await {
                warn!("task {task}: nobody could be told of its failure: {problem}");
            }
            under_way.send_modify(|count| *count -= 1);
        });
    }

    /// Returns when no message is on its way any more.
    pub(super) async fn said(&self) {
        let _ = self.under_way.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Sends a message until it arrives. The address is not repeated in errors.
async fn send(
    client: &reqwest::Client,
    url: &Url,
    body: &str,
    signature: Option<&str>,
) -> Result<(), String> {
    let mut wait = Duration::from_secs(1);
    for again in (0..TRIES).rev() {
        let mut request =
            client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body.to_owned());
        if let Some(signature) = signature {
            request = request.header("x-sower-signature", signature);
        }
        let problem = match request.send().await {
            Ok(response) if response.status().is_success() => return Ok(()),
            Ok(response) => format!("HTTP {}", response.status().as_u16()),
            Err(error) => error.without_url().to_string(),
        };
        if again == 0 {
            return Err(problem);
        }
        tokio::time::sleep(wait).await;
        wait *= 4;
    }
    Ok(())
}

/// A row without the colours of a terminal.
fn plain(row: &str) -> String {
    let mut text = String::with_capacity(row.len());
    let mut rest = row;
    while let Some((before, behind)) = rest.split_once("\x1b[") {
        text.push_str(before);
        rest = behind.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = rest.strip_prefix(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest);
    }
    text.push_str(rest);
    text
}

/// What there is to tell.
#[derive(Debug, Default)]
struct Failure {
    step: Option<String>,
    rows: Vec<String>,
}

impl Failure {
    /// `None` for a job that has not failed. What it printed is masked already.
    fn of(dir: &JobDir) -> Option<Self> {
        let mut reader = Reader::open(&dir.journal()).ok()?;
        let mut names: Vec<StepInfo> = Vec::new();
        let (mut failure, mut found, mut announced) = (Self::default(), false, false);
        while let Ok(Some(event)) = reader.next_event() {
            match event {
                Event::JobStarted { steps, .. } => names = steps,
                Event::StepStarted { .. } if !found => {
                    failure.rows.clear();
                    announced = true;
                }
                // The script of the step, as it was announced.
                Event::Row { text, .. } if !found && text == "::endgroup::" && announced => {
                    announced = false;
                    failure.rows.clear();
                }
                Event::Row { text, .. } if !found => {
                    if failure.rows.len() == ROWS {
                        failure.rows.remove(0);
                    }
                    let end = (0..=text.len().min(ROW)).rev().find(|end| text.is_char_boundary(*end));
                    failure.rows.push(plain(&text[..end.unwrap_or(0)]));
                }
                Event::StepEnded { step, conclusion: Conclusion::Failure, .. } if !found => {
                    found = true;
                    failure.step = names.get(step).map(|step| step.name.clone());
                }
                Event::JobEnded { conclusion, .. } => {
                    return (conclusion == Conclusion::Failure).then_some(failure);
                }
                _ => {}
            }
        }
        None
    }
}
