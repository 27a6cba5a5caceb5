//! The cache server of the daemon: where it listens, and which jobs may ask.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use tracing::{info, warn};

use crate::cache::relay::Relay;
use crate::cache::sign::Signer;
use crate::cache::{Grant, Options, Server, Store};
use crate::config::{Cache, Config};
use crate::supervisor::JobDir;

/// The file in the state directory with the port that was used last: jobs that outlive a daemon know no other.
const PORT_FILE: &str = "cache-port";

/// The cache server, where there is one.
#[derive(Debug)]
pub(super) struct Caches {
    url: Option<String>,
    server: Option<Server>,
    counts: Option<std::sync::Arc<crate::cache::Counts>>,
}

impl Caches {
    /// Starts what the configuration asks for. That it cannot be started is a warning: jobs run without, too.
    pub(super) fn start(config: &Config, state: &Path, instance: &str) -> Self {
        let cache = &config.cache;
        if !cache.enabled {
            return Self { url: None, server: None, counts: None };
        }
        if let Some(external) = &cache.external_server {
            return Self { url: Some(external.clone()), server: None, counts: None };
        }
        let directory = cache.dir.clone().unwrap_or_else(|| state.join("cache")).join("store");
        let relay = || Relay::new(instance, config.runner.insecure);
        match serve(cache, &directory, state, &relay) {
            Ok((server, counts)) => {
                info!("cache server at {}", server.url());
                Self { url: Some(server.url().to_owned()), server: Some(server), counts: Some(counts) }
            }
            Err(error) => {
                warn!("no cache server, jobs run without one: {error}");
                Self { url: None, server: None, counts: None }
            }
        }
    }

    /// How often jobs found what they asked for, where the server is ours.
    pub(super) fn counts(&self) -> Option<std::sync::Arc<crate::cache::Counts>> {
        self.counts.clone()
    }

    /// Where jobs find it.
    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Where clients of version 2 find cache and artifacts, where the server is ours.
    pub(super) fn results(&self) -> Option<&str> {
        self.server.as_ref().map(Server::url)
    }

    /// Lets a job ask until it is reported.
    pub(super) fn admit(&self, dir: &JobDir) {
        let Some(server) = &self.server else { return };
        let meta = dir.read_meta();
        let Some(scope) = meta.cache_refs.first().cloned() else { return };
        let repository = meta.repository.to_lowercase();
        server.admit(&dir.read_token(), Grant { repository, scope, reads: meta.cache_refs });
    }

    /// Lets it ask no more.
    pub(super) fn revoke(&self, dir: &JobDir) {
        if let Some(server) = &self.server {
            server.revoke(&dir.read_token());
        }
    }
}

fn serve(
    cache: &Cache,
    directory: &Path,
    state: &Path,
    relay: &dyn Fn() -> Relay,
) -> Result<(Server, std::sync::Arc<crate::cache::Counts>), String> {
    let named = |path: &Path, error: &io::Error| format!("{}: {error}", path.display());
    let store = Store::open(directory, cache.quota).map_err(|error| error.to_string())?;
    store.sweep().map_err(|error| error.to_string())?;
    let secret = directory.join("secret");
    let signer = Signer::open(&secret).map_err(|error| named(&secret, &error))?;
    let address = match &cache.host {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(host) => (host.as_str(), 0)
            .to_socket_addrs()
            .map_err(|error| format!("cache.host {host}: {error}"))?
            .next()
            .ok_or_else(|| format!("cache.host {host}: no such address"))?
            .ip(),
    };
    let file = state.join(PORT_FILE);
    let last = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let ports = if cache.port == 0 { [last.unwrap_or(0), 0] } else { [cache.port; 2] };
    let start = |port: u16| {
        Server::start(Options {
            address: SocketAddr::new(address, port),
            store: Some(store.clone()),
            artifacts: None,
            relay: Some(relay()),
            signer: signer.clone(),
        })
        .map_err(|error| format!("{address}, port {port}: {error}"))
    };
    let server = start(ports[0]).or_else(|_| start(ports[1]))?;
    fs::write(&file, server.port().to_string()).map_err(|error| named(&file, &error))?;
    Ok((server, store.counts()))
}
