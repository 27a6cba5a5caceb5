//! The container registry of the stand-in: a real one behind it, Gitea's authentication and tags in front.
//!
//! Blobs and manifests live in the registry behind. Tags live here, because Gitea can delete a tag without its
//! manifest and knows when each was made, and a plain registry can do neither.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, LOCATION};
use hyper::{Method as Verb, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::forge::{PASSWORD, USER};
use crate::http::{Body, BoxError, Site, basic, bytes, header, json as reply, not_found, parameter, text};
use crate::options::RegistryOptions;

/// Every kind of manifest.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A tag of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Identifies the version of the package.
    pub id: i64,
    /// User or organisation.
    pub owner: String,
    /// Name of the image without its owner.
    pub name: String,
    /// The tag.
    pub tag: String,
    /// What the tag stands for.
    pub digest: String,
    /// When it was pushed first.
    pub created: SystemTime,
}

/// All tags.
#[derive(Debug, Default)]
pub(crate) struct Packages {
    all: Vec<Package>,
    last: i64,
}

impl Packages {
    pub(crate) fn all(&self) -> &[Package] {
        &self.all
    }

    pub(crate) fn insert(&mut self, owner: &str, name: &str, tag: &str, digest: &str, created: SystemTime) {
        let same = |known: &&mut Package| known.owner == owner && known.name == name && known.tag == tag;
        if let Some(known) = self.all.iter_mut().find(same) {
            digest.clone_into(&mut known.digest);
            return;
        }
        self.last += 1;
        self.all.push(Package {
            id: self.last,
            owner: owner.to_owned(),
            name: name.to_owned(),
            tag: tag.to_owned(),
            digest: digest.to_owned(),
            created,
        });
    }

    pub(crate) fn remove(&mut self, owner: &str, name: &str, tag: &str) -> bool {
        let before = self.all.len();
        self.all.retain(|known| known.owner != owner || known.name != name || known.tag != tag);
        self.all.len() < before
    }

    fn tags(&self, owner: &str, name: &str) -> Vec<String> {
        let mut tags: Vec<String> = self
            .all
            .iter()
            .filter(|known| known.owner == owner && known.name == name)
            .map(|known| known.tag.clone())
            .collect();
        tags.sort();
        tags
    }
}

/// What a path below `/v2/` asks for.
enum Wanted<'a> {
    Root,
    Token,
    Tags(&'a str),
    Manifest(&'a str, &'a str),
    Other,
}

fn wanted(path: &str) -> Wanted<'_> {
    let rest = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
    if rest.is_empty() {
        Wanted::Root
    } else if rest == "token" {
        Wanted::Token
    } else if let Some(name) = rest.strip_suffix("/tags/list") {
        Wanted::Tags(name)
    } else if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
        Wanted::Manifest(name, reference)
    } else {
        Wanted::Other
    }
}

/// Answers what lies below `/v2/`.
pub(crate) async fn serve(site: &Arc<Site>, request: Request<Incoming>) -> Response<Body> {
    let Some(options) = site.shared.lock().options.registry.clone() else { return not_found() };
    let path = request.uri().path().to_owned();
    let wanted = wanted(&path);
    if let Wanted::Token = wanted {
        return token(site, &request);
    }
    let access = match access(site, &request) {
        Ok(access) => access,
        Err(text) => return challenge(site, &options, text),
    };
    if access == Access::Basic && matches!(wanted, Wanted::Root) {
        return challenge(site, &options, "Failed to authenticate user");
    }
    let writes = !matches!(*request.method(), Verb::GET | Verb::HEAD);
    if writes && access == Access::Anonymous {
        let refused = text(StatusCode::UNAUTHORIZED, "reqPackageAccess\n");
        return header(refused, "www-authenticate", "Basic realm=\"Gitea Package API\"");
    }
    match wanted {
        Wanted::Root => docker(reply(StatusCode::OK, &json!({}))),
        Wanted::Tags(name) => tags(site, name, &request),
        Wanted::Manifest(name, reference) => manifest(site, &options, name, reference, request).await,
        _ => forward(&options, request).await.unwrap_or_else(|error| bad_gateway(&error)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Anonymous,
    User,
    Basic,
}

/// Only a token of `/v2/token` is good as Bearer; an access token is not.
fn access(site: &Site, request: &Request<Incoming>) -> Result<Access, &'static str> {
    let value =
        request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            if token == jwt(site, 1) {
                Ok(Access::User)
            } else if token == jwt(site, -1) {
                Ok(Access::Anonymous)
            } else {
                Err("")
            }
        }
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("basic") => match basic(rest) {
            Some((user, password)) if is_user(site, &user, &password) => Ok(Access::Basic),
            _ => Err("Failed to authenticate user"),
        },
        _ => Err(""),
    }
}

/// The task token of a job is no access token: it gets none here.
fn is_user(site: &Site, user: &str, password: &str) -> bool {
    user == USER && (password == PASSWORD || password == site.token)
}

/// A token that only this server can have made; its parts are those of a JWT.
fn jwt(site: &Site, user: i64) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string());
    let claims = json!({"UserID": user, "Scope": "all"}).to_string();
    format!(
        "{header}.{}.{}{user}",
        URL_SAFE_NO_PAD.encode(claims),
        URL_SAFE_NO_PAD.encode(site.token.as_bytes()).chars().rev().collect::<String>()
    )
}

fn token(site: &Site, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Verb::GET {
        return not_found();
    }
    let user = match request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        None => -1,
        Some(value) => {
            let known = value
                .strip_prefix("Basic ")
                .and_then(basic)
                .is_some_and(|(user, password)| is_user(site, &user, &password));
            if !known {
                return text(StatusCode::UNAUTHORIZED, "Failed to authenticate user\n");
            }
            1
        }
    };
    reply(StatusCode::OK, &json!({"token": jwt(site, user)}))
}

fn challenge(site: &Site, options: &RegistryOptions, message: &str) -> Response<Body> {
    let base = options.realm.clone().unwrap_or_else(|| site.shared.lock().base.clone());
    let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": message}]});
    let challenge = format!("Bearer realm=\"{base}/v2/token\",service=\"container_registry\",scope=\"*\"");
    docker(header(reply(StatusCode::UNAUTHORIZED, &body), "www-authenticate", &challenge))
}

fn docker(response: Response<Body>) -> Response<Body> {
    header(response, "docker-distribution-api-version", "registry/2.0")
}

fn bad_gateway(error: &BoxError) -> Response<Body> {
    text(StatusCode::BAD_GATEWAY, format!("the registry behind does not answer: {error}\n"))
}

fn unknown(code: &str) -> Response<Body> {
    docker(reply(StatusCode::NOT_FOUND, &json!({"errors": [{"code": code, "message": ""}]})))
}

/// The tags of an image. The link to a next page is there even when nothing follows, as Gitea has it.
fn tags(site: &Site, name: &str, request: &Request<Incoming>) -> Response<Body> {
    let Some((owner, image)) = name.split_once('/') else { return unknown("NAME_UNKNOWN") };
    let all = site.shared.lock().packages.tags(owner, image);
    if all.is_empty() {
        return unknown("NAME_UNKNOWN");
    }
    let query = request.uri().query();
    let after = parameter(query, "last").unwrap_or_default();
    let count = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let shown: Vec<String> = all.into_iter().filter(|tag| *tag > after).take(count).collect();
    let response = docker(reply(StatusCode::OK, &json!({"name": name, "tags": shown})));
    match shown.last() {
        Some(last) => header(response, "link", &format!("</v2/{name}/tags/list?last={last}>; rel=\"next\"")),
        None => response,
    }
}

async fn manifest(
    site: &Site,
    options: &RegistryOptions,
    name: &str,
    reference: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some((owner, image)) = name.split_once('/') else { return unknown("NAME_UNKNOWN") };
    let is_tag = !reference.contains(':');
    let verb = request.method().clone();
    if is_tag && verb != Verb::PUT {
        let known = site.shared.lock().packages.tags(owner, image).iter().any(|tag| tag == reference);
        if !known {
            return unknown("MANIFEST_UNKNOWN");
        }
    }
    if verb == Verb::DELETE {
        let gone = |package: &Package| {
            if is_tag { package.tag == reference } else { package.digest == reference }
        };
        site.shared.change(|state| {
            let tags: Vec<String> = state
                .packages
                .all()
                .iter()
                .filter(|package| package.owner == owner && package.name == image && gone(package))
                .map(|package| package.tag.clone())
                .collect();
            for tag in tags {
                state.packages.remove(owner, image, &tag);
            }
        });
        return docker(bytes(StatusCode::ACCEPTED, ""));
    }
    let response = match forward(options, request).await {
        Ok(response) => response,
        Err(error) => return bad_gateway(&error),
    };
    if verb == Verb::PUT && is_tag && response.status().is_success() {
        let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let digest = digest.unwrap_or_default().to_owned();
        site.shared.change(|state| {
            state.packages.insert(owner, image, reference, &digest, SystemTime::now());
        });
    }
    response
}

/// Hands a request to the registry behind. Its `Location` becomes a path, as Gitea's is.
async fn forward(options: &RegistryOptions, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
    let stream = tokio::net::TcpStream::connect(options.upstream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    parts.uri = target.parse::<Uri>()?;
    parts.headers.remove(AUTHORIZATION);
    // Gitea hands out a manifest as it was pushed; the registry behind would convert it for who does not ask.
    parts.headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
    parts.headers.insert(HOST, HeaderValue::from_str(&options.upstream.to_string())?);
    let response = sender.send_request(Request::from_parts(parts, body)).await?;
    let mut response = response.map(|body| body.map_err(BoxError::from).boxed());
    let location =
        response.headers().get(LOCATION).and_then(|location| location.to_str().ok()?.parse::<Uri>().ok());
    if let Some(path) = location.as_ref().and_then(Uri::path_and_query) {
        let value = HeaderValue::from_str(path.as_str())?;
        response.headers_mut().insert(LOCATION, value);
    }
    Ok(response)
}
