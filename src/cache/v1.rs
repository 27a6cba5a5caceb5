//! Version 1 of the cache protocol, under `/_apis/artifactcache`.

use hyper::header::CONTENT_RANGE;
use hyper::{Method, Request, StatusCode, body::Incoming};
use serde_json::json;

use super::reply::{
    Answer, Refusal, empty, json as reply, next, number_field, parameter, question, text_field,
};
use super::server::Site;
use super::store::Grant;

/// Answers a request; `path` is what follows the base.
pub(super) async fn serve(site: &Site, grant: &Grant, path: &str, request: Request<Incoming>) -> Answer {
    let (parts, mut body) = request.into_parts();
    let query = parts.uri.query();
    let store = site.store()?;
    match (&parts.method, path.split_once('/').unwrap_or((path, ""))) {
        (&Method::GET, ("cache", "")) => {
            let keys: Vec<String> = parameter(query, "keys").split(',').map(str::to_owned).collect();
            match store.find(grant, &keys, &parameter(query, "version"))? {
                None => Ok(empty(StatusCode::NO_CONTENT)),
                Some(entry) => Ok(reply(
                    StatusCode::OK,
                    &json!({
                        "result": "hit",
                        "cacheKey": entry.meta.key,
                        "scope": entry.meta.scope,
                        "cacheVersion": entry.meta.version,
                        "archiveLocation": site.download_url(&entry),
                    }),
                )),
            }
        }
        (&Method::GET, ("caches", "")) => {
            let entries = store.similar(grant, &parameter(query, "key"))?;
            let list: Vec<_> = entries
                .iter()
                .map(|entry| {
                    json!({"cacheKey": entry.meta.key, "cacheVersion": entry.meta.version, "scope": entry.meta.scope})
                })
                .collect();
            Ok(reply(StatusCode::OK, &json!({"totalCount": list.len(), "artifactCaches": list})))
        }
        (&Method::POST, ("caches", "")) => {
            let asked = question(&mut body).await?;
            let size = number_field(&asked, "cacheSize").unwrap_or(0);
            let id = store.reserve(grant, text_field(&asked, "key"), text_field(&asked, "version"), size)?;
            Ok(reply(StatusCode::CREATED, &json!({"cacheId": id})))
        }
        (&Method::PATCH, ("caches", id)) => {
            let range = parts.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let start = range
                .and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok())
                .ok_or_else(|| {
                    Refusal::new(StatusCode::BAD_REQUEST, "Content-Range: bytes START-END/* is missing")
                })?;
            let mut writer = store.write_at(grant, id, start)?;
            while let Some(piece) = next(&mut body).await {
                writer.write(&piece?)?;
            }
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ("caches", id)) => {
            let asked = question(&mut body).await?;
            let entry = store.commit(grant, id, number_field(&asked, "size"))?;
            tracing::debug!(
                "cache: {} saved {}, {} bytes",
                grant.repository,
                entry.meta.key,
                entry.meta.size
            );
            Ok(empty(StatusCode::NO_CONTENT))
        }
        // Clean-up is the server's own affair.
        (&Method::POST, ("clean", "")) => Ok(empty(StatusCode::OK)),
        _ => Err(Refusal::not_found()),
    }
}
