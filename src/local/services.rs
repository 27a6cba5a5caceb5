//! What a server would offer to jobs, offered by this program: caches that stay, and artifacts for the run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::cache::artifacts::Artifacts;
use crate::cache::sign::Signer;
use crate::cache::{Grant, Options, Server, Store};
use crate::job::spec::JobSpec;

use super::context::Context;

/// Starts the services on loopback. Cache entries are kept in `cache`, at most `quota` bytes of them; artifacts in
/// `work`.
///
/// # Errors
/// When a directory cannot be made, or there is no port.
pub fn start(cache: &Path, quota: u64, work: &Path) -> Result<Server, String> {
    let store = Store::open(cache, quota).map_err(|error| error.to_string())?;
    let secret = cache.join("secret");
    let signer = Signer::open(&secret).map_err(|error| format!("{}: {error}", secret.display()))?;
    Server::start(Options {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        store: Some(store),
        artifacts: Some(Artifacts::new(work.join("artifacts"))),
        relay: None,
        signer,
    })
    .map_err(|error| error.to_string())
}

/// Gives a job the addresses of the services and a token for them; what the command line has set stays. Gives the
/// token.
///
/// # Errors
/// When the system has no random numbers.
pub fn offer(server: &Server, context: &Context, spec: &mut JobSpec) -> Result<String, String> {
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    // Clients look for the numbers of run and job in the token, as in GitHub's.
    let claims = URL_SAFE_NO_PAD.encode(r#"{"scp":"Actions.Results:1:1"}"#);
    let token = format!("e30.{claims}.{}", URL_SAFE_NO_PAD.encode(random));
    let own = |key: &str| !spec.env.contains_key(key);
    let url = server.url();
    let results = own("ACTIONS_RESULTS_URL") && own("ACTIONS_CACHE_URL");
    let mut offered = vec![
        ("ACTIONS_CACHE_URL", format!("{url}/")),
        ("ACTIONS_RUNTIME_URL", format!("{url}/")),
        ("ACTIONS_RESULTS_URL", url.to_owned()),
        ("ACTIONS_RUNTIME_TOKEN", token),
    ];
    if results {
        offered.push(("ACTIONS_CACHE_SERVICE_V2", "true".to_owned()));
    }
    for (key, value) in offered {
        spec.env.entry(key.to_owned()).or_insert(value);
    }
    let token = spec.env.get("ACTIONS_RUNTIME_TOKEN").cloned().unwrap_or_default();
    spec.masks.push(token.clone());
    let mut grant = Grant::of_context(&context.github);
    // Repositories without a remote are all called alike.
    grant.repository = if grant.repository.starts_with("local/") {
        context.root.to_string_lossy().into_owned()
    } else {
        let server = context.github.get("server_url").and_then(|url| url.as_str()).unwrap_or_default();
        format!("{server}/{}", grant.repository)
    };
    server.admit(&token, grant);
    Ok(token)
}
