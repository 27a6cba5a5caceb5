//! Blobs and manifests on their way to a registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Response, StatusCode};

use super::answer::reason;
use super::location::{Target, shown};
use super::{Backoff, Challenge, Registry, Request, TRIES, is_passing, retry_after};
use crate::image::chunks::Whole;
use crate::image::layer::{Broken, Outcome, Packed, Packing};
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

/// Longest time in which an upload may stand still.
const STILL: Duration = Duration::from_secs(300);

/// What errors say that was under way.
const SENDING: &str = "sending a layer";

/// Bytes of a layer in one request, where a registry takes several: it writes them to its disk before it answers, and more
/// is compressed meanwhile. Nor do proxies take a request of any length.
const PART: u64 = 32 * 1024 * 1024;

/// An upload that the registry has opened.
enum Opened {
    At(Target),
    Mounted,
}

/// What became of the bytes of a layer.
enum Carried {
    /// The registry took all of them.
    All,
    /// It answered otherwise.
    Refused(Response),
    /// The line broke or stood still, or the registry was content with fewer.
    Broken(String),
}

/// Why one try of an upload failed.
enum Try {
    /// Another one may go well, after the time that the registry asks for if it does.
    Again(Error, Option<Duration>),
    Final(Error),
}

impl Registry {
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
        let opened = self.open_upload(Some(&digest), &[]).await?;
        let bytes = Bytes::copy_from_slice(bytes);
        let what = "sending the configuration";
        let sent = self.push_whole(what, opened, &digest, &bytes, &mut Backoff::new(TRIES)).await?;
        Ok((packed, sent))
    }

    /// Sends a blob that is in memory by one request to an open upload, and to new ones if need be.
    async fn push_whole(
        &self,
        what: &str,
        mut opened: Opened,
        digest: &Digest,
        bytes: &Bytes,
        backoff: &mut Backoff,
    ) -> Result<Sent, Error> {
        loop {
            let target = match opened {
                Opened::Mounted => return Ok(Sent::Mounted),
                Opened::At(target) => target,
            };
            match self.close_upload(what, target, digest, bytes.clone()).await {
                Ok(()) => return Ok(Sent::Sent),
                Err(Try::Again(error, after)) if !backoff.again(after).await => return Err(error),
                Err(Try::Again(error, _)) => tracing::debug!(%error, "upload starts again"),
                Err(Try::Final(error)) => return Err(error),
            }
            opened = self.open_upload(Some(digest), &[]).await?;
        }
    }

    /// Sends a layer. `start` reads it from the beginning, each time it is called, and leaves out
    /// so many of the bytes to send; `known` is what the layer will be, if that is known, which saves the upload where
    /// the registry has it, in this repository or in one of `elsewhere`.
    ///
    /// A short one is sent when all of it was read, by one request whose length is known, and is not read again if that fails.
    ///
    /// A long one is sent while it is being read. After a cut, and after a token that ran out, the registry is asked what it
    /// got, and the rest is sent where it says so. Where it does not (docker-registry and Gitea after a cut), or the rest is
    /// not taken, a new upload starts from the beginning: a registry may keep half a chunk of the old one.
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
        let (mut may_resume, mut may_part) = (true, true);
        loop {
            let (mut target, got) = match resume.take() {
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
            let part = match may_part && got == 0 && takes_parts(&target) {
                true => PART,
                false => u64::MAX,
            };
            let range = size.filter(|size| got > 0 && *size > got).map(|size| format!("{got}-{}", size - 1));
            let packing = start(got)?;
            on_progress(packing.progress());
            if got == 0
                && let Some(whole) =
                    moving(packing.chunks().whole(&self.room), &packing.progress()).await.flatten()
            {
                return self.push_short(target, packing, &whole, &mut backoff).await;
            }
            match self.try_layer(&mut target, packing, range, part).await {
                Ok(outcome) => return Ok((outcome, Sent::Sent)),
                Err(Try::Again(error, after)) => {
                    // Perhaps it takes none after all.
                    may_part &= matches!(error, Error::Unreachable { .. });
                    if !backoff.again(after).await {
                        return Err(error);
                    }
                    // One that was taken up and broke again is not trusted any more.
                    may_resume &= got == 0;
                    if may_resume && matches!(error, Error::Unreachable { .. } | Error::Refused { .. }) {
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

    /// Sends what is being read in requests of `part` bytes, the first to `target`, which becomes the place of the next.
    async fn try_layer(
        &self,
        target: &mut Target,
        packing: Packing,
        range: Option<String>,
        part: u64,
    ) -> Result<Outcome, Try> {
        let carried = self.carry(SENDING, target, &packing, range, part).await;
        // Whatever became of the requests, a source at fault is the cause.
        let outcome = match self.outcome(target, packing).await {
            Err(Try::Final(error)) => return Err(Try::Final(error)),
            outcome => outcome,
        };
        match carried.map_err(Try::Final)? {
            Carried::All => {}
            Carried::Refused(answer) => return Err(self.judge(SENDING, target, answer).await),
            Carried::Broken(why) => return Err(broken(target, why)),
        }
        let outcome = outcome?;
        self.close_upload("closing an upload", target.clone(), &outcome.packed.digest, Bytes::new()).await?;
        Ok(outcome)
    }

    /// Sends a layer that was taken in as a whole.
    async fn push_short(
        &self,
        target: Target,
        packing: Packing,
        whole: &Whole<'_>,
        backoff: &mut Backoff,
    ) -> Result<(Outcome, Sent), Error> {
        let outcome = match self.outcome(&target, packing).await {
            Ok(outcome) => outcome,
            Err(Try::Again(error, _) | Try::Final(error)) => return Err(error),
        };
        let digest = &outcome.packed.digest;
        let sent = self.push_whole(SENDING, Opened::At(target), digest, &whole.bytes, backoff).await?;
        Ok((outcome, sent))
    }

    /// What was read of a layer. An upload whose source is at fault is given up.
    async fn outcome(&self, target: &Target, packing: Packing) -> Result<Outcome, Try> {
        match packing.outcome().await {
            Ok(outcome) => Ok(outcome),
            Err(Broken::Abandoned) => Err(broken(target, "the layer was not read to its end".to_owned())),
            Err(Broken::Source(error)) => {
                // Courtesy: the registry would forget the upload by itself in time.
                let builder = self.http.delete(target.url.clone()).timeout(Duration::from_secs(5));
                let builder = if target.own { self.authorize(builder) } else { builder };
                let _ = builder.send().await;
                Err(Try::Final(error))
            }
        }
    }

    /// The requests that carry a layer.
    async fn carry(
        &self,
        what: &str,
        target: &mut Target,
        packing: &Packing,
        range: Option<String>,
        part: u64,
    ) -> Result<Carried, Error> {
        let (chunks, read) = (packing.chunks(), packing.progress());
        let still = || Carried::Broken(format!("no byte moved for {} seconds", STILL.as_secs()));
        loop {
            match self.renew_if_old(what).await {
                Err(Error::Unreachable { why, .. }) => return Ok(Carried::Broken(why)),
                renewed => renewed?,
            };
            let mut builder = self
                .http
                .patch(target.url.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(Body::wrap_stream(chunks.part(part)));
            if let Some(range) = &range {
                builder = builder.header(CONTENT_RANGE, range);
            }
            if target.own {
                builder = self.authorize(builder);
            }
            let answer = tokio::select! {
                answer = moving(builder.send(), &read) => answer,
                never = chunks.read_ahead() => match never {},
            };
            let answer = match answer {
                None => return Ok(still()),
                Some(Err(error)) => return Ok(Carried::Broken(reason(&error))),
                Some(Ok(answer)) if !answer.status().is_success() => return Ok(Carried::Refused(answer)),
                Some(Ok(answer)) if !chunks.is_part_over() => {
                    let status = answer.status().as_u16();
                    return Ok(Carried::Broken(format!(
                        "HTTP {status} before the layer was sent to its end"
                    )));
                }
                Some(Ok(answer)) => answer,
            };
            *target = self.follow(what, target, &answer)?;
            match moving(chunks.has_more(), &read).await {
                None => return Ok(still()),
                Some(true) => {}
                Some(false) => return Ok(Carried::All),
            }
        }
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
                return Try::Again(self.failure(what, &target.url, answer).await, None);
            }
        }
        // The upload was lost (404, 416), or arrived damaged (400 DIGEST_INVALID): a new one may go well.
        let anew = is_passing(status) || matches!(status.as_u16(), 400 | 404 | 416);
        let after = retry_after(answer.headers());
        let error = self.failure(what, &target.url, answer).await;
        if anew { Try::Again(error, after) } else { Try::Final(error) }
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
    async fn close_upload(
        &self,
        what: &str,
        mut target: Target,
        digest: &Digest,
        rest: Bytes,
    ) -> Result<(), Try> {
        target.url.query_pairs_mut().append_pair("digest", digest.as_str());
        let mut request = Request::new(what, Method::PUT, target.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, rest.len().to_string());
        // An upload that has got some of its bytes takes no second helping.
        request.tries = if rest.is_empty() { TRIES } else { 1 };
        request.body = rest;
        let failed = match self.send(request).await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => self.judge(what, &target, answer).await,
            Err(error @ Error::Unreachable { .. }) => Try::Again(error, None),
            Err(error) => Try::Final(error),
        };
        // When the answer to a first PUT was lost, the second one finds no upload, and the blob is there.
        match failed {
            Try::Again(..) if self.has_blob(digest).await.unwrap_or(false) => Ok(()),
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
        let body = Bytes::copy_from_slice(bytes);
        let target = self.own(&format!("manifests/{tag}"));
        let url = target.url.clone();
        // docker-registry writes anew what says that a blob is there when somebody else pushes it too, and in that moment
        // does not know it.
        let mut backoff = Backoff::new(4);
        loop {
            let mut request =
                Request::new(&what, Method::PUT, target.clone()).header(CONTENT_TYPE, media_type);
            request.body = body.clone();
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

/// A layer that did not get through to its end.
fn broken(target: &Target, why: String) -> Try {
    Try::Again(Error::Unreachable { what: SENDING.to_owned(), url: shown(&target.url), why }, None)
}

/// Whether a registry takes a layer in several requests whose lengths nobody knows before. distribution does (that is
/// docker-registry, Harbor, GitLab, Docker Hub), and can be told by the state that it has uploads carry. Gitea takes one
/// such request only, others none.
fn takes_parts(target: &Target) -> bool {
    target.url.query_pairs().any(|(name, _)| name == "_state")
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
