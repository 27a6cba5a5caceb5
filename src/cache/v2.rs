//! Version 2 of the cache protocol: Twirp in JSON, and archives sent as to Azure's blob store.

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde_json::{Value, json};

use super::reply::{
    Answer, Body, Refusal, empty, field, json as reply, next, number_field, parameter, question, text,
    text_field,
};
use super::server::Site;
use super::store::{Error, Grant, Store, Writer};

/// Answers a method of the service.
pub(super) async fn serve(site: &Site, grant: &Grant, method: &str, mut body: Incoming) -> Answer {
    let store = site.store()?;
    let asked = question(&mut body).await?;
    let (key, version) = (text_field(&asked, "key"), text_field(&asked, "version"));
    let answer = match method {
        "CreateCacheEntry" => match store.reserve(grant, key, version, 0) {
            Ok(id) => json!({"ok": true, "signed_upload_url": site.upload_url(id)}),
            Err(error @ Error::Exists { .. }) => {
                json!({"ok": false, "signed_upload_url": "", "message": error.to_string()})
            }
            Err(error) => return Err(error.into()),
        },
        "FinalizeCacheEntryUpload" => {
            let id = store.find_upload(grant, key, version)?;
            store.commit(grant, &id, number_field(&asked, "size_bytes"))?;
            json!({"ok": true, "entry_id": id})
        }
        "GetCacheEntryDownloadURL" => {
            let more = field(&asked, "restore_keys").and_then(Value::as_array);
            let mut keys = vec![key.to_owned()];
            keys.extend(more.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
            match store.find(grant, &keys, version)? {
                Some(entry) => json!({
                    "ok": true, "signed_download_url": site.download_url(&entry), "matched_key": entry.meta.key,
                }),
                None => json!({"ok": false, "signed_download_url": "", "matched_key": ""}),
            }
        }
        _ => return Err(Refusal::not_found()),
    };
    Ok(reply(StatusCode::OK, &answer))
}

/// Takes a block, the list of blocks, or the whole archive, at a signed address.
pub(super) async fn upload(store: &Store, id: &str, request: Request<Incoming>) -> Answer {
    let (parts, mut body) = request.into_parts();
    if parts.method != Method::PUT {
        return Err(Refusal::not_found());
    }
    let query = parts.uri.query();
    match parameter(query, "comp").as_str() {
        "blocklist" => {
            let list = text(&mut body).await?;
            store.join_blocks(id, &block_list(&String::from_utf8_lossy(&list)))?;
        }
        "block" => {
            let block = parameter(query, "blockid");
            write(store.write_block(id, Some(&block))?, &mut body).await?;
        }
        _ => write(store.write_block(id, None)?, &mut body).await?,
    }
    Ok(created())
}

/// What Azure's clients expect.
pub(super) fn created() -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    let header = hyper::header::HeaderValue::from_static("00000000-0000-0000-0000-000000000000");
    response.headers_mut().insert("x-ms-request-id", header);
    response
}

async fn write(mut writer: Writer, body: &mut Incoming) -> Result<(), Refusal> {
    while let Some(piece) = next(body).await {
        writer.write(&piece?)?;
    }
    Ok(())
}

/// The names of a `<BlockList>`, in order.
pub(super) fn block_list(xml: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = xml;
    while let Some(begin) = rest.find('<') {
        rest = &rest[begin + 1..];
        for tag in ["Latest>", "Uncommitted>", "Committed>"] {
            if let Some(inner) = rest.strip_prefix(tag)
                && let Some(end) = inner.find('<')
            {
                names.push(inner[..end].trim().to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn block_lists() {
        let xml =
            "<?xml version=\"1.0\"?>\n<BlockList>\n<Latest>YQ==</Latest><Latest> Yg== </Latest></BlockList>";
        assert_eq!(super::block_list(xml), ["YQ==", "Yg=="]);
        assert!(super::block_list("<Latest>").is_empty());
    }
}
