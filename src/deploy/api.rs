//! The API server, asked directly with what the kubeconfig says. A kubectl costs a tenth of a second of CPU time and
//! forty megabytes for each question, and while a rollout is watched many are asked.
//!
//! Only for kubeconfigs that hold all that is needed: certificates or a token. Where a plug-in, a proxy or somebody
//! else's name is wanted, and where the server does not take what is said here, kubectl is asked: it knows all ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::join_all;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::Error;
use super::kubeconfig::Opened;
use crate::http;

/// How long the server may take for one answer, as kubectl is told.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to wait before a stream that ended is begun anew.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest line of a stream, in bytes.
const LINE: usize = 1 << 20;
/// The most that is read of a refusal, in bytes.
const REFUSAL: usize = 64 << 10;

/// An API server that can be asked without kubectl.
pub(super) struct Api {
    client: reqwest::Client,
    /// Without a slash at the end.
    server: String,
    token: Option<HeaderValue>,
    runtime: Runtime,
    /// Whether it ever took what is said here.
    taken: AtomicBool,
}

/// Why there is no answer.
pub(super) enum Failure {
    /// This server never answered: kubectl may know better.
    Unproven,
    /// It does not answer any more.
    Lost(String),
    /// The user has no right to ask that.
    Forbidden(String),
    /// It says no, in these words.
    Refused(String),
}

impl Failure {
    /// As an error about what was asked.
    pub(super) fn told(self, what: &'static str) -> Error {
        let message = match self {
            Self::Unproven => "the API server does not answer".to_owned(),
            Self::Lost(why) => format!("the API server does not answer: {why}"),
            Self::Forbidden(message) | Self::Refused(message) => message,
        };
        Error::Kubectl { what, message }
    }
}

impl Api {
    /// The server of a kubeconfig whose files have absolute names. `None`: only kubectl can ask it.
    pub(super) fn new(opened: &Opened) -> Option<Self> {
        let (cluster, user) = opened.parts();
        let odd = ["exec", "auth-provider", "as", "as-user-extra", "username"];
        if odd.iter().any(|key| !user[*key].is_null())
            || !cluster["proxy-url"].is_null()
            || cluster["insecure-skip-tls-verify"] == true
        {
            return None;
        }
        let server = opened.server().trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&server).ok()?;
        let token = match (&user["token"], &user["tokenFile"]) {
            (_, Value::String(path)) => Some(std::fs::read_to_string(path).ok()?.trim().to_owned()),
            (Value::String(token), _) => Some(token.clone()),
            _ => None,
        };
        let token = token.map(|token| HeaderValue::try_from(format!("Bearer {token}"))).transpose().ok()?;
        let token = token.map(|mut token| {
            token.set_sensitive(true);
            token
        });
        let near = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
        let options = http::Options { no_proxy: near, timeout: None, ..http::Options::default() };
        if url.scheme() != "https" {
            return None;
        }
        let client = http::client_with(&options, tls(cluster, user)?).ok()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        Some(Self { client, server, token, runtime, taken: AtomicBool::new(false) })
    }

    /// Whether it has answered: then each further question costs next to nothing.
    pub(super) fn is_proven(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// The answers to several questions at the same time, each at most `limit` bytes long.
    pub(super) fn get(&self, paths: &[String], limit: usize) -> Vec<Result<Vec<u8>, Failure>> {
        self.runtime.block_on(join_all(paths.iter().map(|path| self.read(path, limit))))
    }

    /// Calls `each` with each line that the server sends on `path` from now on, until `stop` is dropped. `list`: where it
    /// is asked what "now" is.
    pub(super) fn follow(
        &self,
        list: &str,
        path: &str,
        mut stop: oneshot::Receiver<()>,
        mut each: impl FnMut(&[u8]),
    ) {
        self.runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = &mut stop => return,
                    _ = self.follow_once(list, path, &mut each) => {}
                }
                tokio::select! {
                    _ = &mut stop => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        });
    }

    async fn follow_once(&self, list: &str, path: &str, each: &mut impl FnMut(&[u8])) -> Option<()> {
        let list = self.read(list, LINE).await.ok()?;
        let list: Value = serde_json::from_slice(&list).ok()?;
        let version = list["metadata"]["resourceVersion"].as_str()?;
        let mut answer = self.ask(&format!("{path}&resourceVersion={version}"), None).await.ok()?;
        let mut line: Vec<u8> = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if line.len() > LINE {
                    return None;
                }
                if line.ends_with(b"\n") {
                    each(&line);
                    line.clear();
                }
            }
        }
        None
    }

    async fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, Failure> {
        let first = match self.ask(path, Some(LIMIT)).await {
            Ok(answer) => body(answer, limit).await.map_err(Failure::Lost),
            Err(failure) => Err(failure),
        };
        match first {
            // A connection that was kept may have been cut meanwhile.
            Err(Failure::Lost(_)) => {
                body(self.ask(path, Some(LIMIT)).await?, limit).await.map_err(Failure::Lost)
            }
            other => other,
        }
    }

    async fn ask(&self, path: &str, limit: Option<Duration>) -> Result<Response, Failure> {
        let mut request = self.client.get(format!("{}{path}", self.server));
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(_) if !self.is_proven() => return Err(Failure::Unproven),
            Err(error) => return Err(Failure::Lost(http::innermost(&error))),
        };
        let status = answer.status();
        if !self.is_proven() && (status == StatusCode::UNAUTHORIZED || status.is_redirection()) {
            return Err(Failure::Unproven);
        }
        self.taken.store(true, Ordering::Relaxed);
        if status.is_success() {
            return Ok(answer);
        }
        let said = body(answer, REFUSAL).await.unwrap_or_default();
        let said = serde_json::from_slice::<Value>(&said).unwrap_or_default();
        let message = match said["message"].as_str() {
            Some(message) => message.to_owned(),
            None => format!("the API server answers with status {}", status.as_u16()),
        };
        Err(match status {
            StatusCode::FORBIDDEN => Failure::Forbidden(message),
            _ => Failure::Refused(message),
        })
    }
}

async fn body(answer: Response, limit: usize) -> Result<Vec<u8>, String> {
    http::body(answer, limit, http::innermost).await
}

/// Trusts the cluster's own authority, and shows the user's certificate.
fn tls(cluster: &Value, user: &Value) -> Option<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    // Without one of its own kubectl goes by the system's.
    for certificate in CertificateDer::pem_slice_iter(&pem(cluster, "certificate-authority")?) {
        roots.add(certificate.ok()?).ok()?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().ok()?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let builder = match cluster["tls-server-name"].as_str() {
        None => builder.with_webpki_verifier(verifier),
        Some(name) => {
            let name = ServerName::try_from(name.to_owned()).ok()?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Named { verifier, name }))
        }
    };
    let Some(certificate) = pem(user, "client-certificate") else {
        return Some(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(&pem(user, "client-key")?).ok()?;
    builder.with_client_auth_cert(chain, key).ok()
}

/// What stands in the kubeconfig under `NAME-data`, or in the file under `NAME`.
fn pem(part: &Value, name: &str) -> Option<Vec<u8>> {
    match (part[format!("{name}-data")].as_str(), part[name].as_str()) {
        (Some(data), _) if !data.is_empty() => BASE64.decode(data.trim()).ok(),
        (_, Some(path)) => std::fs::read(path).ok(),
        _ => None,
    }
}

/// Checks the server's certificate as that of another name than it is asked by: the end of a tunnel is this host.
#[derive(Debug)]
struct Named {
    verifier: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
