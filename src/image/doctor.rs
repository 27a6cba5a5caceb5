//! What a push and a pull will meet at a registry, and the line that heals what is wrong.

use super::registry::{Access, Credentials, Greeting, Options, Packages, Probe, Registry, Service};
use super::{Destination, Error};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Well,
    /// Not as it should be, and a push or a pull can live with it.
    Odd,
    /// A push or a pull fails of it.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// In words.
    pub text: String,
}

/// All that was found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// `host/namespace/name`.
    pub repository: String,
    /// Whether `sower image push` will do.
    pub push: bool,
    /// Whether a node of a cluster, which follows the realm, can pull.
    pub pull: bool,
    /// What was looked at, in order.
    pub findings: Vec<Finding>,
    /// What to do, each with the file that it concerns and the lines for it.
    pub remedies: Vec<Remedy>,
}

/// What to do.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Remedy {
    /// Where and why.
    pub text: String,
    /// The lines.
    pub lines: String,
}

impl Report {
    fn find(&mut self, what: &'static str, state: State, text: impl Into<String>) {
        self.findings.push(Finding { what, state, text: text.into() });
    }

    fn heal(&mut self, text: impl Into<String>, lines: impl Into<String>) {
        self.remedies.push(Remedy { text: text.into(), lines: lines.into() });
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.state {
                State::Well => "ok ",
                State::Odd => "odd",
                State::Bad => "BAD",
            };
            let _ = writeln!(text, "{mark}  {:<9}  {}", finding.what, finding.text);
        }
        for remedy in &self.remedies {
            let _ = writeln!(text, "\n{}", remedy.text);
            for line in remedy.lines.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        let verdict = |well: bool| if well { "works" } else { "fails" };
        let _ = writeln!(text, "\npush {}, pull by a cluster {}", verdict(self.push), verdict(self.pull));
        text
    }
}

/// Looks.
///
/// # Errors
/// When the options cannot be; whatever a registry does is a finding.
pub async fn examine(
    destination: &Destination,
    credentials: Option<Credentials>,
    options: &Options,
) -> Result<Report, Error> {
    let repository = &destination.repository;
    let host = &repository.host;
    let mut report = Report {
        repository: repository.to_string(),
        push: false,
        pull: false,
        findings: Vec::new(),
        remedies: Vec::new(),
    };
    let mut options = options.clone();
    let mut probe = Probe::new(repository, &options)?;
    let mut greeted = probe.greeting().await;
    if let (Err(why), false) = (&greeted, options.plain_http) {
        let why = why.clone();
        options.plain_http = true;
        let plain = Probe::new(repository, &options)?;
        let answer = plain.greeting().await;
        if answer.is_ok() {
            report.find("scheme", State::Odd, format!("plain HTTP only: HTTPS fails ({why})"));
            report.heal(
                "sower speaks plain HTTP only when told to:",
                format!("sower image push … {host}/… --plain-http"),
            );
            (probe, greeted) = (plain, answer);
        } else {
            report.find(
                "scheme",
                State::Bad,
                format!("neither HTTPS ({why}) nor plain HTTP answers at {host}"),
            );
            return Ok(report);
        }
    } else if greeted.is_ok() {
        let scheme = if options.plain_http { "plain HTTP" } else { "HTTPS" };
        report.find("scheme", if options.plain_http { State::Odd } else { State::Well }, scheme);
    }
    if options.plain_http {
        report.heal(
            "A k3s node pulls over plain HTTP only when /etc/rancher/k3s/registries.yaml says so (then: systemctl restart k3s):",
            format!("mirrors:\n  \"{host}\":\n    endpoint:\n      - \"http://{host}\""),
        );
    }
    let (greeting, server) = match greeted {
        Ok(answer) => answer,
        Err(why) => {
            report.find("scheme", State::Bad, format!("nothing answers at {host}: {why}"));
            return Ok(report);
        }
    };
    let is_gitea = matches!(Packages::find(repository, None, &options).await, Ok(Some(_)));
    let kind =
        if is_gitea { "Gitea".to_owned() } else { server.unwrap_or_else(|| "an OCI registry".to_owned()) };
    let realm = match &greeting {
        Greeting::Strange(status) => {
            report.find("registry", State::Bad, format!("{status} for /v2/: no registry answers at {host}"));
            return Ok(report);
        }
        Greeting::Open => {
            report.find("registry", State::Well, format!("{kind}; wants no log-in"));
            None
        }
        Greeting::Basic => {
            report.find("registry", State::Well, format!("{kind}; wants user and password"));
            None
        }
        Greeting::Bearer { realm, own, service } => {
            report.find("registry", State::Well, format!("{kind}; wants a token of {realm}"));
            let realm = (realm.as_str(), service.as_str());
            examine_realm(&mut report, &probe, realm, *own, is_gitea, host, options.plain_http).await;
            Some(realm)
        }
    };
    examine_push(&mut report, destination, credentials.clone(), &options).await;
    let tag = destination.tag.as_deref().unwrap_or("latest");
    let anonymous = probe.pull(realm, None, tag).await;
    let with = match (&anonymous, &credentials) {
        (Err(_), Some(credentials)) => probe.pull(realm, Some(credentials), tag).await,
        (result, _) => result.clone(),
    };
    report.pull = with.is_ok();
    match (anonymous, with) {
        (Ok(()), _) => report.find("pull", State::Well, "by anyone, as a node without credentials does"),
        (Err(_), Ok(())) => {
            report.find(
                "pull",
                State::Odd,
                "only with credentials: nodes need an imagePullSecret or these lines",
            );
            report.heal(
                "For a k3s node, in /etc/rancher/k3s/registries.yaml:",
                format!("configs:\n  \"{host}\":\n    auth:\n      username: USER\n      password: TOKEN"),
            );
        }
        (Err(why), Err(_)) => {
            report.find("pull", State::Bad, format!("fails for a node that follows the realm: {why}"))
        }
    }
    if !report.pull && realm.is_some() {
        report.heal(
            "Until then an image can be brought to the node itself:",
            format!("sower image push IMAGE ssh://USER@NODE/{}:TAG", report.repository),
        );
    }
    Ok(report)
}

async fn examine_realm(
    report: &mut Report,
    probe: &Probe,
    (realm, name): (&str, &str),
    own: bool,
    is_gitea: bool,
    host: &str,
    plain_http: bool,
) {
    let there = probe.service(realm, name).await;
    match (&there, own) {
        (Service::Answers | Service::Refuses(_), true) => {
            report.find("realm", State::Well, format!("{realm} answers, on the registry's own address"));
            return;
        }
        (Service::Answers, false) => {
            report.find(
                "realm",
                State::Odd,
                format!("{realm} gives tokens, but is not the registry's own address"),
            );
        }
        (Service::Refuses(status), false) => {
            report.find(
                "realm",
                State::Odd,
                format!("{realm} answers HTTP {status}; it is not the registry's own address"),
            );
        }
        (Service::Fails(why), _) => {
            report.find("realm", State::Bad, format!("{realm} gives no tokens: {why}"));
        }
    }
    let instead = probe.own_service();
    match probe.service(&instead, name).await {
        Service::Answers | Service::Refuses(_) => {
            report.find("token", State::Well, format!("{instead} answers; `sower image push` asks there"));
        }
        Service::Fails(why) => report.find("token", State::Odd, format!("{instead}: {why}")),
    }
    let scheme = if plain_http { "http" } else { "https" };
    if is_gitea {
        report.heal(
            "On the Gitea host, in app.ini (then restart Gitea); heals the realm for every client:",
            format!("[server]\nROOT_URL = {scheme}://{host}/"),
        );
        report.heal(
            "or, where Gitea is reached under several addresses (Gitea 1.26 or newer):",
            "[server]\nPUBLIC_URL_DETECTION = auto",
        );
    } else {
        report.heal(
            "In the registry's configuration (docker-registry: config.yml) the realm should be an address that answers:",
            "auth:\n  token:\n    realm: …",
        );
    }
}

async fn examine_push(
    report: &mut Report,
    destination: &Destination,
    credentials: Option<Credentials>,
    options: &Options,
) {
    let who = if credentials.is_some() { "with the given credentials" } else { "without credentials" };
    let opened =
        Registry::open(&destination.repository, Access::Push, credentials, options, Box::new(|_| {})).await;
    let tried = match opened {
        Ok(registry) => registry.try_upload().await,
        Err(error) => Err(error),
    };
    report.push = tried.is_ok();
    match tried {
        Ok(()) => report.find("push", State::Well, format!("allowed {who}")),
        Err(error) => report.find("push", State::Bad, format!("not allowed {who}: {error}")),
    }
}
