//! Gitea's REST API for container packages: every tag is a version of the package, with its time of creation.

use reqwest::header::{ACCEPT, HeaderMap};
use reqwest::{Method, StatusCode};

use super::answer::{MAX_ANSWER, json, read};
use super::location::{Target, shown};
use super::login::Authorization;
use super::{Access, Credentials, Options, Registry, Request, is_passing};
use crate::image::{Digest, Error, Repository};

/// One version of a package: a tag, or a manifest without a tag (`sha256:…`).
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Version {
    /// Grows with each version.
    pub id: i64,
    /// The package's name.
    pub name: String,
    /// The tag or digest.
    pub version: String,
    /// RFC 3339.
    pub created_at: String,
    /// `container` for images.
    #[serde(rename = "type", default)]
    pub kind: String,
}

/// Pages that are read before the list is held to be endless; 50 versions each.
const MAX_PAGES: usize = 2000;

/// A client for the REST API of the Gitea that a registry belongs to.
#[derive(Debug)]
pub struct Packages {
    inner: Registry,
    owner: String,
    package: String,
}

impl Packages {
    /// Finds out whether the host is a Gitea. `None`: it is another registry.
    ///
    /// # Errors
    /// When the host does not answer, so that nothing is known of it.
    pub async fn find(
        repository: &Repository,
        credentials: Option<Credentials>,
        options: &Options,
    ) -> Result<Option<Self>, Error> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(rename = "version")]
            _version: String,
        }
        let what = "asking whether this is a Gitea";
        let inner = Registry::unasked(repository, Access::Delete, credentials, options, Box::new(|_| {}))?;
        if inner.credentials.is_some() {
            *inner.authorization.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                Authorization::Basic;
        }
        let mut target = Target { url: inner.base.clone(), own: true };
        target.url.set_path("/api/v1/version");
        let url = target.url.clone();
        let answer = inner.send(Request::new(what, Method::GET, target)).await?;
        if is_passing(answer.status()) {
            return Err(inner.failure(what, &url, answer).await);
        }
        if answer.status() != StatusCode::OK {
            return Ok(None);
        }
        let body = read(answer, MAX_ANSWER).await.unwrap_or_default();
        if serde_json::from_slice::<Answer>(&body).is_err() {
            return Ok(None);
        }
        // Only here matters that a package belongs to an owner: the first part of the name.
        let Some((owner, package)) = repository.name.split_once('/') else {
            return Err(Error::Argument {
                given: repository.to_string(),
                why: "wanted host/owner/name: a package in Gitea belongs to an owner".to_owned(),
            });
        };
        let (owner, package) = (owner.to_owned(), package.to_owned());
        Ok(Some(Self { inner, owner, package }))
    }

    /// All versions of the package, to the end of the list.
    ///
    /// # Errors
    /// When a page cannot be read, or the pages together are not the whole list.
    pub async fn versions(&self) -> Result<Vec<Version>, Error> {
        let mut last = None;
        // A push in the middle shifts the pages; then the list is read once more.
        for _ in 0..3 {
            match self.try_versions().await {
                Err(error @ Error::Unsure(_)) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| Error::Unsure("the list of versions could not be read".to_owned())))
    }

    async fn try_versions(&self) -> Result<Vec<Version>, Error> {
        let what = "listing the package's versions";
        let mut found: indexmap::IndexMap<i64, Version> = indexmap::IndexMap::new();
        let mut total = None;
        for page in 1..=MAX_PAGES {
            let mut target = self.target(&[]);
            target
                .url
                .query_pairs_mut()
                .append_pair("type", "container")
                .append_pair("q", &self.package)
                .append_pair("limit", "50")
                .append_pair("page", &page.to_string());
            let url = target.url.clone();
            let request = Request::new(what, Method::GET, target).header(ACCEPT, "application/json");
            let answer = self.inner.send(request).await?;
            if answer.status() != StatusCode::OK {
                return Err(self.inner.failure(what, &url, answer).await);
            }
            total = total_count(answer.headers()).or(total);
            let versions: Vec<Version> = json(what, &url, answer).await?;
            let before = found.len();
            let empty = versions.is_empty();
            found.extend(versions.into_iter().map(|version| (version.id, version)));
            if empty {
                if let Some(total) = total
                    && found.len() != total
                {
                    return Err(Error::Unsure(format!(
                        "{}: the list of versions has {total} entries, {} were read",
                        shown(&url),
                        found.len()
                    )));
                }
                // The search is for a part of the name.
                let ours = |version: &Version| version.name == self.package && version.kind == "container";
                return Ok(found.into_values().filter(ours).collect());
            }
            if found.len() == before {
                return Err(Error::Unsure(format!("{}: the list of versions repeats itself", shown(&url))));
            }
        }
        Err(Error::Unsure(format!("the list of versions has more than {MAX_PAGES} pages")))
    }

    /// Deletes one tag; other tags of the same manifest stay. False: it was gone already.
    ///
    /// # Errors
    /// When Gitea refuses.
    pub async fn delete(&self, version: &str) -> Result<bool, Error> {
        let what = format!("deleting {version}");
        let target = self.target(&["container", &self.package, version]);
        let url = target.url.clone();
        let answer = self.inner.send(Request::new(&what, Method::DELETE, target)).await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.inner.failure(&what, &url, answer).await),
        }
    }

    /// What a tag names, asked of the registry itself. `None`: there is no such tag (any more).
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn manifest(&self, tag: &str) -> Result<Option<(Vec<u8>, Digest)>, Error> {
        Ok(self.inner.read_manifest(tag).await?.map(|(bytes, _, digest)| (bytes, digest)))
    }

    /// `/api/v1/packages/{owner}/…`, each part escaped by itself: a package's name may hold slashes.
    fn target(&self, rest: &[&str]) -> Target {
        let mut url = self.inner.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(["api", "v1", "packages", &self.owner]).extend(rest);
        }
        Target { url, own: true }
    }
}

fn total_count(headers: &HeaderMap) -> Option<usize> {
    headers.get("x-total-count")?.to_str().ok()?.trim().parse().ok()
}
