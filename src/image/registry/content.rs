//! What a repository holds: looked for, read, listed, deleted.

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response, StatusCode};

use super::answer::{at_fault, document, json};
use super::location::shown;
use super::{Registry, Request};
use crate::image::{Digest, Error};

/// Every manifest type that is read.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

impl Registry {
    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// When the registry does not say.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.has("looking for a blob", &format!("blobs/{digest}"), "*/*").await
    }

    /// Whether the repository has a manifest. A registry keeps the blobs of one that it has.
    ///
    /// # Errors
    /// When the registry does not say.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<bool, Error> {
        self.has("looking for a manifest", &format!("manifests/{digest}"), MANIFESTS).await
    }

    async fn has(&self, what: &str, which: &str, accept: &str) -> Result<bool, Error> {
        let target = self.own(which);
        let url = target.url.clone();
        let answer = self.send(Request::new(what, Method::HEAD, target).header(ACCEPT, accept)).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.failure(what, &url, answer).await),
        }
    }

    /// A small blob: a configuration.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than [`crate::image::source::MAX_DOCUMENT`].
    pub async fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let what = "reading a blob";
        let target = self.own(&format!("blobs/{digest}"));
        let url = target.url.clone();
        let answer = self.send(Request::new(what, Method::GET, target)).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.failure(what, &url, answer).await);
        }
        let bytes = document(what, &url, answer).await?;
        if Digest::of(&bytes) != *digest {
            return Err(at_fault(what, &url, "the blob is not what its digest says".to_owned()));
        }
        Ok(bytes)
    }

    /// A manifest by tag or digest: its bytes, media type and digest. `None`: there is no such tag (any more).
    ///
    /// # Errors
    /// When it cannot be read, or is longer than [`crate::image::source::MAX_DOCUMENT`].
    pub async fn read_manifest(&self, reference: &str) -> Result<Option<(Vec<u8>, String, Digest)>, Error> {
        let what = "reading a manifest";
        let target = self.own(&format!("manifests/{reference}"));
        let url = target.url.clone();
        let answer = self.send(Request::new(what, Method::GET, target).header(ACCEPT, MANIFESTS)).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.failure(what, &url, answer).await),
        }
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let bytes = document(what, &url, answer).await?;
        let digest = Digest::of(&bytes);
        Ok(Some((bytes, media_type, digest)))
    }

    /// Deletes a manifest with all its tags. False: it was not there.
    ///
    /// # Errors
    /// When the registry refuses, or does not allow deletion at all.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<bool, Error> {
        let what = "deleting a manifest";
        let target = self.own(&format!("manifests/{digest}"));
        let url = target.url.clone();
        let answer = self.send(Request::new(what, Method::DELETE, target)).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NO_CONTENT => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            StatusCode::METHOD_NOT_ALLOWED => Err(Error::Answer {
                what: what.to_owned(),
                url: shown(&url),
                why: "HTTP 405: this registry does not allow deletion (docker-registry: storage.delete.enabled)"
                    .to_owned(),
                status: 405,
            }),
            _ => Err(self.failure(what, &url, answer).await),
        }
    }

    /// All tags, to the end of the list. `None`: the registry does not know the repository.
    ///
    /// # Errors
    /// When any page cannot be read, or the pages never end.
    pub async fn tags(&self) -> Result<Option<Vec<String>>, Error> {
        #[derive(serde::Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let what = "listing tags";
        let mut target = self.own("tags/list");
        target.url.set_query(Some("n=100"));
        let mut tags: indexmap::IndexSet<String> = indexmap::IndexSet::new();
        loop {
            let url = target.url.clone();
            let answer = self.send(Request::new(what, Method::GET, target.clone())).await?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND if tags.is_empty() => return Ok(None),
                _ => return Err(self.failure(what, &url, answer).await),
            }
            let next = next_page(&answer);
            let page: Page = json(what, &url, answer).await?;
            let before = tags.len();
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { break };
            // Gitea names a next page always, even after the last one.
            if tags.len() == before {
                break;
            }
            target =
                super::location::resolve(&self.base, &next).ok().filter(|target| target.own).ok_or_else(
                    || Error::Unsure("the registry's list of tags goes on at another host".to_owned()),
                )?;
        }
        Ok(Some(tags.into_iter().collect()))
    }
}

/// `Link: <…>; rel="next"`
fn next_page(answer: &Response) -> Option<String> {
    let header = answer.headers().get("link")?.to_str().ok()?;
    let (url, rest) = header.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| url.to_owned())
}
