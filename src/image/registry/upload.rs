//! Blobs and manifests on their way to and from a registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Response, StatusCode};

use super::answer::{read, reason};
use super::location::{Target, shown};
use super::{Backoff, Challenge, Registry, Request, is_passing};
use crate::image::layer::{Broken, Outcome, Packed, Packing};
use crate::image::source::MAX_DOCUMENT;
use crate::image::{Digest, Error};

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sent {
    /// The registry had it.
    Kept,
    /// The registry had it in another repository.
    Mounted,
    /// It was uploaded.
    Sent,
}

/// Every manifest type that is read.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// Longest time in which an upload may stand still.
const STILL: Duration = Duration::from_secs(300);

const TRIES: u32 = 5;

/// An upload that the registry has opened.
enum Opened {
    At(Target),
    Mounted,
}

/// Why one try of an upload failed.
enum Try {
    Again(Error),
    Final(Error),
}

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
    /// When it cannot be read, or is longer than [`MAX_DOCUMENT`].
    pub async fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let what = "reading a blob";
        let target = self.own(&format!("blobs/{digest}"));
        let url = target.url.clone();
        let answer = self.send(Request::new(what, Method::GET, target)).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.failure(what, &url, answer).await);
        }
        let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let wrong = |why| Error::Answer { what: what.to_owned(), url: shown(&url), why, status: 0 };
        let bytes = read(answer, limit).await.map_err(wrong)?;
        if Digest::of(&bytes) != *digest {
            return Err(wrong("the blob is not what its digest says".to_owned()));
        }
        Ok(bytes)
    }

    /// A manifest by tag or digest: its bytes, media type and digest. `None`: there is no such tag (any more).
    ///
    /// # Errors
    /// When it cannot be read, or is longer than [`MAX_DOCUMENT`].
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
        let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let bytes = read(answer, limit).await;
        let bytes =
            bytes.map_err(|why| Error::Answer { what: what.to_owned(), url: shown(&url), why, status: 0 })?;
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
            let body = read(answer, usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX)).await;
            let page: Result<Page, String> =
                body.and_then(|body| serde_json::from_slice(&body).map_err(|error| error.to_string()));
            let page = page.map_err(|why| Error::Answer {
                what: what.to_owned(),
                url: shown(&url),
                why,
                status: 0,
            })?;
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

    /// Sends bytes that are in memory, unless they are there.
    ///
    /// # Errors
    /// When the registry does not take them.
    pub async fn push_bytes(&self, bytes: &[u8]) -> Result<(Packed, Sent), Error> {
        let digest = Digest::of(bytes);
        let packed = Packed { digest: digest.clone(), size: bytes.len() as u64 };
        if self.has_blob(&digest).await? {
            return Ok((packed, Sent::Kept));
        }
        let mut backoff = Backoff::new(TRIES);
        loop {
            let target = match self.open_upload(Some(&digest), &[]).await? {
                Opened::Mounted => return Ok((packed, Sent::Mounted)),
                Opened::At(target) => target,
            };
            match self.close_upload(target, &digest, bytes.to_vec()).await {
                Ok(()) => return Ok((packed, Sent::Sent)),
                Err(Try::Again(error)) if !backoff.again(None).await => return Err(error),
                Err(Try::Again(_)) => {}
                Err(Try::Final(error)) => return Err(error),
            }
        }
    }

    /// Sends a layer as it is being read. `start` reads it from the beginning, each time it is called, and leaves out
    /// so many of the bytes to send; `known` is what the layer will be, if that is known, which saves the upload where
    /// the registry has it, in this repository or in one of `elsewhere`.
    ///
    /// After a cut the registry is asked what it got, and the rest is sent where it says so. Where it does not, or
    /// the rest is not taken, a new upload starts from the beginning: a registry may keep half a chunk of the old one.
    ///
    /// # Errors
    /// When the source is at fault (at once) or the registry does not take it (after retries).
    pub async fn push_layer(
        &self,
        start: &dyn Fn(u64) -> Result<Packing, Error>,
        known: Option<&Packed>,
        elsewhere: &[String],
        on_progress: &dyn Fn(Arc<AtomicU64>),
    ) -> Result<(Outcome, Sent), Error> {
        let mut backoff = Backoff::new(TRIES);
        let mut resume: Option<(Target, u64)> = None;
        let mut may_resume = true;
        loop {
            let (target, got) = match resume.take() {
                Some(point) => point,
                None => match (self.open_upload(known.map(|packed| &packed.digest), elsewhere).await?, known)
                {
                    (Opened::Mounted, Some(packed)) => {
                        return Ok((Outcome { packed: packed.clone(), diff_id: None }, Sent::Mounted));
                    }
                    // Mounted without a digest asked for cannot be; an answer without place is an error below.
                    (Opened::Mounted, None) => (self.own("blobs/uploads/"), 0),
                    (Opened::At(target), _) => (target, 0),
                },
            };
            let size = known.map(|known| known.size);
            match self.try_layer(target.clone(), start(got)?, got, size, on_progress).await {
                Ok(outcome) => return Ok((outcome, Sent::Sent)),
                Err(Try::Again(error)) => {
                    if !backoff.again(None).await {
                        return Err(error);
                    }
                    // One that was taken up and broke again is not trusted any more.
                    may_resume &= got == 0;
                    if may_resume && matches!(error, Error::Unreachable { .. }) {
                        resume = self.resume_point(&target).await;
                    }
                    let got = resume.as_ref().map_or(0, |(_, got)| *got);
                    tracing::debug!(%error, got, "upload starts again");
                }
                Err(Try::Final(error)) => return Err(error),
            }
        }
    }

    /// Where an upload that was cut goes on, as the registry says: place and bytes it has.
    async fn resume_point(&self, target: &Target) -> Option<(Target, u64)> {
        let what = "asking how far an upload got";
        let answer = self.send(Request::new(what, Method::GET, target.clone())).await.ok()?;
        if answer.status() != StatusCode::NO_CONTENT {
            return None;
        }
        let range = answer.headers().get("range")?.to_str().ok()?;
        let last: u64 = range.trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
        let next = match answer.headers().contains_key(LOCATION) {
            true => self.follow(what, target, &answer).ok()?,
            false => target.clone(),
        };
        // `0-0` is what is said of nothing, too.
        (last > 0).then_some((next, last + 1))
    }

    async fn try_layer(
        &self,
        target: Target,
        packing: Packing,
        got: u64,
        size: Option<u64>,
        on_progress: &dyn Fn(Arc<AtomicU64>),
    ) -> Result<Outcome, Try> {
        let what = "sending a layer";
        let read = packing.progress();
        on_progress(Arc::clone(&read));
        let mut builder = self
            .http
            .patch(target.url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Body::wrap_stream(packing.chunks()));
        if let Some(size) = size.filter(|size| got > 0 && *size > got) {
            builder = builder.header(CONTENT_RANGE, format!("{got}-{}", size - 1));
        }
        if target.own {
            builder = self.authorize(builder);
        }
        let answer = moving(builder.send(), &read).await;
        let outcome = packing.outcome().await;
        if let Err(Broken::Source(error)) = outcome {
            // Courtesy: the registry would forget the upload by itself in time.
            let builder = self.http.delete(target.url.clone()).timeout(Duration::from_secs(5));
            let builder = if target.own { self.authorize(builder) } else { builder };
            let _ = builder.send().await;
            return Err(Try::Final(error));
        }
        let unreachable =
            |why: String| Error::Unreachable { what: what.to_owned(), url: shown(&target.url), why };
        let answer = match answer {
            None => {
                let why = format!("no byte moved for {} seconds", STILL.as_secs());
                return Err(Try::Again(unreachable(why)));
            }
            Some(Err(error)) => return Err(Try::Again(unreachable(reason(&error)))),
            Some(Ok(answer)) => answer,
        };
        let status = answer.status();
        if !status.is_success() {
            return Err(self.judge(what, &target, answer).await);
        }
        let Ok(outcome) = outcome else {
            let why = format!("HTTP {} before the layer was sent to its end", status.as_u16());
            return Err(Try::Again(unreachable(why)));
        };
        let target = self.follow(what, &target, &answer).map_err(Try::Final)?;
        self.close_upload(target, &outcome.packed.digest, Vec::new()).await?;
        Ok(outcome)
    }

    /// What to do after an answer that is no success.
    async fn judge(&self, what: &str, target: &Target, answer: Response) -> Try {
        let status = answer.status();
        let expired = status == StatusCode::UNAUTHORIZED && target.own;
        if expired {
            let challenge = Challenge::read(answer.headers());
            if self.is_worth_a_login(challenge.as_ref()) {
                if let Err(error) = self.log_in(what, &target.url, challenge.as_ref()).await {
                    return Try::Final(error);
                }
                return Try::Again(self.failure(what, &target.url, answer).await);
            }
        }
        // The upload was lost (404, 416), or arrived damaged (400 DIGEST_INVALID): a new one may go well.
        let anew = is_passing(status) || matches!(status.as_u16(), 400 | 404 | 416);
        let error = self.failure(what, &target.url, answer).await;
        if anew { Try::Again(error) } else { Try::Final(error) }
    }

    /// Opens an upload, or gets the blob mounted: Gitea finds any blob the user may read by its digest, others have
    /// to be told the repository.
    async fn open_upload(&self, mount: Option<&Digest>, elsewhere: &[String]) -> Result<Opened, Error> {
        let what = "opening an upload";
        let plain = self.own("blobs/uploads/");
        let mut asks = Vec::new();
        if let Some(digest) = mount {
            let mut target = plain.clone();
            target.url.query_pairs_mut().append_pair("mount", digest.as_str());
            asks.extend(elsewhere.iter().map(|from| {
                let mut target = target.clone();
                target.url.query_pairs_mut().append_pair("from", from);
                target
            }));
            // Gitea needs no name, and one that is wrong does no harm there.
            if asks.is_empty() {
                asks.push(target);
            }
        }
        asks.push(plain.clone());
        let last = asks.len() - 1;
        for (at, target) in asks.into_iter().enumerate() {
            let from = target.clone();
            let request = Request::new(what, Method::POST, target);
            let answer = if at == last { self.send(request).await? } else { self.send_once(request).await? };
            match answer.status() {
                StatusCode::CREATED if mount.is_some() => return Ok(Opened::Mounted),
                StatusCode::ACCEPTED => return Ok(Opened::At(self.follow(what, &from, &answer)?)),
                // Perhaps it may not be read there. Without that wish it goes.
                _ if at < last => {}
                _ => return Err(self.failure(what, &from.url, answer).await),
            }
        }
        let (what, url) = (what.to_owned(), shown(&plain.url));
        Err(Error::Answer { what, url, why: "no upload".to_owned(), status: 0 })
    }

    /// Opens an upload and gives it up again: whether writing is allowed.
    ///
    /// # Errors
    /// When it is not.
    pub async fn try_upload(&self) -> Result<(), Error> {
        if let Opened::At(target) = self.open_upload(None, &[]).await? {
            // One that stays behind is forgotten in time.
            let _ = self.send(Request::new("giving an upload up", Method::DELETE, target)).await;
        }
        Ok(())
    }

    /// `PUT ?digest=` with what is left of the blob.
    async fn close_upload(&self, mut target: Target, digest: &Digest, rest: Vec<u8>) -> Result<(), Try> {
        let what = "closing an upload";
        target.url.query_pairs_mut().append_pair("digest", digest.as_str());
        let mut request = Request::new(what, Method::PUT, target.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, rest.len().to_string());
        request.body = rest;
        let failed = match self.send(request).await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => self.judge(what, &target, answer).await,
            Err(error @ Error::Unreachable { .. }) => Try::Again(error),
            Err(error) => Try::Final(error),
        };
        // When the answer to a first PUT was lost, the second one finds no upload, and the blob is there.
        match failed {
            Try::Again(_) if self.has_blob(digest).await.unwrap_or(false) => Ok(()),
            failed => Err(failed),
        }
    }

    /// Puts a manifest under a tag and looks whether it is there.
    ///
    /// # Errors
    /// When the registry does not take it, or has another one under that tag afterwards.
    pub async fn push_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<(), Error> {
        let what = format!("tagging {tag}");
        let digest = Digest::of(bytes);
        let target = self.own(&format!("manifests/{tag}"));
        let url = target.url.clone();
        // docker-registry writes anew what says that a blob is there when somebody else pushes it too, and in that moment
        // does not know it.
        let mut backoff = Backoff::new(4);
        loop {
            let mut request =
                Request::new(&what, Method::PUT, target.clone()).header(CONTENT_TYPE, media_type);
            request.body = bytes.to_vec();
            let answer = self.send(request).await?;
            if answer.status().is_success() {
                break;
            }
            let failure = self.failure(&what, &url, answer).await;
            let lacks = matches!(
                &failure,
                Error::Answer { why, .. } if why.contains("MANIFEST_BLOB_UNKNOWN") || why.contains("DIGEST_INVALID")
            );
            if !(lacks && backoff.again(None).await) {
                return Err(failure);
            }
        }
        let answer = self.send(Request::new(&what, Method::HEAD, target).header(ACCEPT, media_type)).await?;
        let there = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let wrong = |why: String| Error::Answer {
            what: what.clone(),
            url: shown(&url),
            why,
            status: answer.status().as_u16(),
        };
        match (answer.status(), there) {
            (StatusCode::OK, Some(there)) if there == digest.as_str() => Ok(()),
            // The header is only recommended.
            (StatusCode::OK, None) => Ok(()),
            (StatusCode::OK, Some(there)) => {
                Err(wrong(format!("the tag names {there}, pushed was {digest}; somebody else pushed it too")))
            }
            (status, _) => Err(wrong(format!("HTTP {} after the push: it is not there", status.as_u16()))),
        }
    }
}

/// `Link: <…>; rel="next"`
fn next_page(answer: &Response) -> Option<String> {
    let header = answer.headers().get("link")?.to_str().ok()?;
    let (url, rest) = header.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| url.to_owned())
}

/// Waits for a request as long as its body moves. `None`: it stood still.
async fn moving<T>(request: impl Future<Output = T>, read: &AtomicU64) -> Option<T> {
    let mut request = std::pin::pin!(request);
    let mut before = u64::MAX;
    loop {
        match tokio::time::timeout(STILL, &mut request).await {
            Ok(answer) => return Some(answer),
            Err(_) => {
                let now = read.load(Ordering::Relaxed);
                if now == before {
                    return None;
                }
                before = now;
            }
        }
    }
}
