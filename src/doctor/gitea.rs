//! The instance, this runner's registration there, and the daemon.

use std::time::Duration;

use reqwest::header::DATE;
use serde_json::Value;

use super::report::Check;
use crate::config::Config;
use crate::gitea::{Address, Client, Credentials, Error, Meaning, Registration, RegistrationError};
use crate::http;
use crate::observe::{self, AskError, Status};

const ROOM: &str = "gitea";
/// How long the instance may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is read of a page, in bytes.
const LIMIT: usize = 512 << 10;
/// Clocks that differ by more make log rows look wrong, and signatures of caches fail.
const SKEW: i64 = 30;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let registration = match Registration::read(&config.runner.file) {
        Ok(registration) => registration,
        Err(error) => {
            let remedy = match &error {
                RegistrationError::Missing { .. } => "sower register",
                _ => "restore the file, or register again: sower register",
            };
            checks.push(Check::bad(ROOM, "registration", error.to_string(), remedy));
            checks.push(daemon(config, None));
            return checks;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(instance(config, &registration, &mut checks)),
        Err(error) => checks.push(Check::bad(ROOM, "instance", error.to_string(), "more file descriptors")),
    }
    checks.push(labels(config, &registration));
    checks.push(daemon(config, Some(&registration)));
    checks
}

async fn instance(config: &Config, registration: &Registration, checks: &mut Vec<Check>) {
    let wrong = |seen: String| Check::bad(ROOM, "instance", seen, "register again: sower register");
    let address = match registration.address.parse::<Address>() {
        Ok(address) => address,
        Err(error) => return checks.push(wrong(error.to_string())),
    };
    let client = Client::new(address.clone(), config.runner.insecure);
    let credentials = Credentials::new(&registration.uuid, &registration.token);
    let (client, credentials) = match (client, credentials) {
        (Ok(client), Some(credentials)) => (client, credentials),
        (Err(error), _) => return checks.push(wrong(error.to_string())),
        (_, None) => return checks.push(wrong("the uuid or the token cannot be sent".to_owned())),
    };
    let client = client.with_credentials(credentials);
    let pages = match http::client(&http::Options {
        insecure: config.runner.insecure,
        timeout: Some(PATIENCE),
        ..http::Options::default()
    }) {
        Ok(pages) => pages,
        Err(error) => return checks.push(wrong(error.to_string())),
    };
    let (ping, version, root, known) = tokio::join!(
        limited(client.ping("sower")),
        page(&pages, format!("{address}/api/v1/version")),
        root_url(&pages, &address),
        limited(client.knows_us()),
    );
    match ping {
        Ok(reply) if reply.data.contains("sower") => {
            checks.push(Check::well(ROOM, "instance", format!("{address} answers, Actions are on")));
        }
        Ok(_) => {
            checks.push(wrong(format!("{address} answers, but not to what it was asked")));
        }
        Err(Some(Error::Unreachable { reason, .. })) => {
            checks.push(Check::bad(
                ROOM,
                "instance",
                format!("{address}: {reason}"),
                "start it, or open the way to it; if it has moved: sower register",
            ));
            return;
        }
        Err(Some(error)) => {
            checks.push(Check::bad(
                ROOM,
                "instance",
                format!("{address}: {error}"),
                "in Gitea's app.ini: [actions] ENABLED = true; or the address is another one: sower register",
            ));
        }
        Err(None) => {
            checks.push(Check::bad(
                ROOM,
                "instance",
                format!("{address}: no answer within 5 s"),
                "look at its load and its log",
            ));
            return;
        }
    }
    checks.push(version_check(version.as_ref()));
    checks.extend(version.as_ref().and_then(|(_, date)| clock(date.as_deref()?)));
    checks.push(registered(registration, known));
    checks.push(root_check(&address, root));
}

/// With a time limit; `None` as error when it has passed.
async fn limited<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Option<Error>> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => result.map_err(Some),
        Err(_) => Err(None),
    }
}

/// A page with its `Date`; `None` where there is none to be had.
async fn page(client: &reqwest::Client, url: String) -> Option<(String, Option<String>)> {
    let mut response = client.get(url).send().await.ok()?;
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    if !response.status().is_success() {
        return Some((String::new(), date));
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > LIMIT {
            break;
        }
    }
    Some((String::from_utf8_lossy(&body).into_owned(), date))
}

fn version_check(page: Option<&(String, Option<String>)>) -> Check {
    let version = page
        .and_then(|(text, _)| serde_json::from_str::<Value>(text).ok())
        .and_then(|answer| answer.get("version").and_then(Value::as_str).map(str::to_owned));
    let Some(version) = version else {
        return Check::note(ROOM, "version", "is not told to strangers (REQUIRE_SIGNIN_VIEW)");
    };
    let mut numbers = version.split(['.', '-', '+']).filter_map(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(1), Some(minor)) if minor < 21 => Check::odd(
            ROOM,
            "version",
            format!("Gitea {version}"),
            "Actions have matured since: 1.21 or newer",
        ),
        _ => Check::well(ROOM, "version", format!("Gitea {version}")),
    }
}

fn clock(date: &str) -> Option<Check> {
    let there = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    let skew = jiff::Timestamp::now().as_second() - there.as_second();
    let seen = format!("{} s apart from Gitea's", skew.abs());
    Some(if skew.abs() > SKEW {
        Check::bad(
            ROOM,
            "clock",
            seen,
            "keep both set: apk add chrony && rc-update add chronyd && rc-service chronyd start",
        )
    } else {
        Check::well(ROOM, "clock", seen)
    })
}

fn registered(registration: &Registration, known: Result<(), Option<Error>>) -> Check {
    let name = format!("{} ({})", registration.name, registration.uuid);
    match known {
        Ok(()) => Check::well(ROOM, "registration", format!("{name} is known there")),
        Err(Some(error)) if error.meaning() == Meaning::Unregistered => {
            Check::bad(ROOM, "registration", format!("{name} is not known there"), "sower register")
        }
        Err(Some(error)) => {
            Check::odd(ROOM, "registration", format!("{name}: {error}"), "ask again in a moment")
        }
        Err(None) => Check::odd(ROOM, "registration", format!("{name}: no answer"), "ask again in a moment"),
    }
}

/// What the instance calls itself: its `OpenID` configuration says it, else its first page.
async fn root_url(client: &reqwest::Client, address: &Address) -> Option<String> {
    let (text, _) = page(client, format!("{address}/.well-known/openid-configuration")).await?;
    if let Ok(answer) = serde_json::from_str::<Value>(&text)
        && let Some(issuer) = answer.get("issuer").and_then(Value::as_str)
    {
        return Some(issuer.to_owned());
    }
    let (text, _) = page(client, format!("{address}/")).await?;
    let (_, rest) = text.split_once("property=\"og:url\" content=\"")?;
    rest.split_once('"').map(|(url, _)| url.to_owned())
}

fn root_check(address: &Address, root: Option<String>) -> Check {
    let Some(root) = root else {
        return Check::note(ROOM, "ROOT_URL", "is not told to strangers");
    };
    let same = root.parse::<Address>().is_ok_and(|root| root == *address);
    if same {
        return Check::well(ROOM, "ROOT_URL", root);
    }
    Check::odd(
        ROOM,
        "ROOT_URL",
        format!(
            "{root}, and this runner uses {address}: links, and the realm of the registry's tokens, lead there"
        ),
        format!(
            "in Gitea's app.ini: [server] ROOT_URL = {address}/\nif {root} is right: sower register --instance {root}"
        ),
    )
}

fn labels(config: &Config, registration: &Registration) -> Check {
    let labels: Vec<String> = if config.runner.labels.is_empty() {
        registration.labels.clone()
    } else {
        config.runner.labels.iter().map(ToString::to_string).collect()
    };
    if labels.is_empty() {
        return Check::bad(
            ROOM,
            "labels",
            "none, so no job is for this runner",
            "in the configuration: runner: {labels: [haskelseed:host]}",
        );
    }
    Check::well(ROOM, "labels", labels.join(", "))
}

fn daemon(config: &Config, registration: Option<&Registration>) -> Check {
    let state = config.state_dir();
    match observe::ask(state) {
        Ok(status) if status.ready => {
            Check::well(ROOM, "daemon", format!("process {}, {}", status.pid, declared(&status)))
        }
        Ok(status) => {
            let why = status.not_ready.clone().unwrap_or_default();
            Check::odd(
                ROOM,
                "daemon",
                format!("process {} is not ready: {why}", status.pid),
                "see `sower status`, and its log",
            )
        }
        Err(AskError::NotRunning { .. }) if registration.is_none() => {
            Check::note(ROOM, "daemon", "does not run")
        }
        Err(AskError::NotRunning { .. }) => Check::odd(
            ROOM,
            "daemon",
            format!("does not run ({})", state.display()),
            "rc-service sower start, or systemctl start sower",
        ),
        Err(error) => Check::bad(
            ROOM,
            "daemon",
            error.to_string(),
            "rc-service sower restart, or systemctl restart sower; jobs go on",
        ),
    }
}

fn declared(status: &Status) -> String {
    let server = if status.server_capabilities.is_empty() {
        "the server names no capabilities (before 1.27)".to_owned()
    } else {
        format!("the server can {}", status.server_capabilities.join(", "))
    };
    match status.declared {
        Some(_) => format!("labels {} declared; {server}", status.labels.join(", ")),
        None => "labels not declared yet".to_owned(),
    }
}
