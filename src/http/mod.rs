//! How every HTTP client in this program is built: one TLS provider, one resolver, one set of time limits.
//!
//! Names are resolved inside the process (a static glibc would load resolver plug-ins at run time), and
//! certificates are checked against the system's store, or the built-in roots where the system has none.

mod resolver;

use std::net::IpAddr;
use std::time::Duration;

/// What may differ between clients.
#[derive(Debug, Clone)]
pub struct Options {
    /// Accept any certificate. Only where the operator's configuration says so.
    pub insecure: bool,
    /// Time limit of a whole request, body included; `None` for uploads of unknown length.
    pub timeout: Option<Duration>,
    /// Follow redirects (at most 10). Clients that send credentials by hand decide for themselves.
    pub follow_redirects: bool,
    /// Authorities to trust besides the system's.
    pub ca: Vec<reqwest::Certificate>,
    /// Ask directly, whatever proxy the environment names.
    pub no_proxy: bool,
    /// Ask through this SOCKS proxy of this host, which resolves names as well.
    pub socks: Option<std::net::SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            insecure: false,
            timeout: Some(Duration::from_secs(60)),
            follow_redirects: false,
            ca: Vec::new(),
            no_proxy: false,
            socks: None,
        }
    }
}

/// The addresses of a host name, for connections that are not HTTP. An address is its own.
///
/// # Errors
/// If neither `/etc/hosts` nor a name server knows the name.
pub async fn addresses(host: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
    match host.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => resolver::lookup(host).await,
    }
}

/// Builds a client; `user-agent` is `sower/<version>`. Proxies are taken from the environment.
///
/// # Errors
/// When the TLS set-up is refused, which no input can cause.
pub fn client(options: &Options) -> Result<reqwest::Client, reqwest::Error> {
    // A second call finds the provider installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Building refuses where the system has no certificates at all, plain HTTP or not.
    builder(options).build().or_else(|_| builder(options).tls_backend_preconfigured(built_in_roots()).build())
}

/// The same with a TLS set-up of its own: an authority of a cluster, a certificate to show.
///
/// # Errors
/// When the set-up is refused.
pub fn client_with(options: &Options, tls: rustls::ClientConfig) -> Result<reqwest::Client, reqwest::Error> {
    builder(options).tls_backend_preconfigured(tls).build()
}

/// TLS that trusts the roots which are compiled in.
fn built_in_roots() -> rustls::ClientConfig {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// Whether what answered a TLS greeting speaks something else, such as plain HTTP: asking again is no use.
#[must_use]
pub fn speaks_no_tls(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = cause {
        // rustls's name for it, which the layers above hand on as text only.
        if one.to_string().contains("InvalidContentType") {
            return true;
        }
        cause = one.source();
    }
    false
}

/// The end of the chain of sources. Its beginning only says that a request failed, and the whole URL, which may hold a token.
#[must_use]
pub fn innermost(error: &reqwest::Error) -> String {
    let Some(mut inner) = std::error::Error::source(error) else { return "the connection broke".to_owned() };
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Reads a body of at most `limit` bytes; `reason` words what breaks it off.
///
/// # Errors
/// When it is longer, or breaks off.
pub async fn body(
    mut answer: reqwest::Response,
    limit: usize,
    reason: impl Fn(&reqwest::Error) -> String,
) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn builder(options: &Options) -> reqwest::ClientBuilder {
    let mut builder = reqwest::Client::builder()
        .dns_resolver(resolver::Resolver)
        .user_agent(concat!("sower/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(15))
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(4);
    if let Some(timeout) = options.timeout {
        builder = builder.timeout(timeout);
    }
    if !options.follow_redirects {
        builder = builder.redirect(reqwest::redirect::Policy::none());
    }
    if !options.ca.is_empty() {
        builder = builder.tls_certs_merge(options.ca.iter().cloned());
    }
    if options.no_proxy {
        builder = builder.no_proxy();
    }
    if let Some(address) = options.socks
        && let Ok(proxy) = reqwest::Proxy::all(format!("socks5h://{address}"))
    {
        // Nobody else's proxy besides.
        builder = builder.no_proxy().proxy(proxy);
    }
    if options.insecure {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder
}
