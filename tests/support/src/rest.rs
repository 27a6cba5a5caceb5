//! The few REST routes that sower and its pipeline use: version, health, packages, job summaries.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method as Verb, Request, Response, StatusCode};
use serde_json::json;
use sower_wire::Timestamp;

use crate::git::user;
use crate::http::{
    Abort, Body, Caller, Site, bytes, collect, header, json, not_found, parameter, percent_decode, text,
};
use crate::options::Version;
use crate::registry::Package;
use crate::state::Status;

/// Most bytes of one step's summary.
const MAX_SUMMARY: usize = 1024 * 1024;
/// Entries of a page when the request does not say.
const PAGE: usize = 30;
/// Most entries of a page.
const MAX_PAGE: usize = 50;

/// Answers what lies below `/api/`.
pub(crate) async fn serve(
    site: &Arc<Site>,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Abort> {
    let parts: Vec<String> = path.trim_start_matches('/').split('/').map(percent_decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let verb = request.method().clone();
    Ok(match (&verb, parts.as_slice()) {
        (&Verb::GET, ["api", "healthz"]) => json(StatusCode::OK, &json!({"status": "pass"})),
        (&Verb::GET, ["api", "v1", "version"]) => {
            let version = site.shared.lock().options.version.as_str();
            json(StatusCode::OK, &json!({"version": version}))
        }
        (&Verb::GET, ["api", "v1", "user"]) => match site.caller(request.headers()) {
            Caller::Known => json(StatusCode::OK, &user(&site.shared.lock().base)),
            _ => unauthorized(),
        },
        (&Verb::GET, ["api", "v1", "packages", owner]) => list(site, owner, &request),
        (&Verb::DELETE, ["api", "v1", "packages", owner, "container", name, version]) => {
            delete(site, owner, name, version, &request)
        }
        (
            &Verb::PUT,
            [
                "api",
                "actions_pipeline",
                "_apis",
                "pipelines",
                "workflows",
                run,
                "jobs",
                job,
                "steps",
                step,
                "summary",
            ],
        ) => {
            let place = (run.parse().ok(), job.parse().ok(), step.parse().ok());
            let (Some(run), Some(job), Some(step)) = place else { return Ok(not_found()) };
            return summary(site, run, job, step, request).await;
        }
        _ => not_found(),
    })
}

fn unauthorized() -> Response<Body> {
    json(StatusCode::UNAUTHORIZED, &json!({"message": "token is required", "url": "/api/swagger"}))
}

/// Packages of an owner, newest first, in pages.
fn list(site: &Site, owner: &str, request: &Request<Incoming>) -> Response<Body> {
    if site.caller(request.headers()) == Caller::Wrong {
        return unauthorized();
    }
    let query = request.uri().query();
    let number = |name: &str| parameter(query, name).and_then(|text| text.parse::<usize>().ok());
    let page = number("page").unwrap_or(1).max(1);
    let limit = number("limit").filter(|limit| *limit > 0).unwrap_or(PAGE).min(MAX_PAGE);
    let kind = parameter(query, "type").unwrap_or_default();
    let words = parameter(query, "q").unwrap_or_default().to_lowercase();
    let state = site.shared.lock();
    let mut packages: Vec<&Package> = state
        .packages
        .all()
        .iter()
        .filter(|package| package.owner == owner && (kind.is_empty() || kind == "container"))
        .filter(|package| package.name.to_lowercase().contains(&words))
        .collect();
    packages.sort_by_key(|package| std::cmp::Reverse((package.created, package.id)));
    let total = packages.len();
    let base = &state.base;
    let shown: Vec<_> = packages
        .into_iter()
        .skip((page - 1) * limit)
        .take(limit)
        .map(|package| {
            json!({
                "id": package.id,
                "owner": user(base),
                "repository": null,
                "creator": user(base),
                "type": "container",
                "name": package.name,
                "version": package.tag,
                "html_url": format!("{base}/{owner}/-/packages/container/{}/{}", package.name, package.tag),
                "created_at": Timestamp::from(package.created).to_string(),
            })
        })
        .collect();
    header(json(StatusCode::OK, &shown.into()), "x-total-count", &total.to_string())
}

fn delete(site: &Site, owner: &str, name: &str, tag: &str, request: &Request<Incoming>) -> Response<Body> {
    if site.caller(request.headers()) != Caller::Known {
        return unauthorized();
    }
    if site.shared.change(|state| state.packages.remove(owner, name, tag)) {
        bytes(StatusCode::NO_CONTENT, "")
    } else {
        json(StatusCode::NOT_FOUND, &json!({"message": "package does not exist", "url": "/api/swagger"}))
    }
}

/// The summary of one step, sent with the runtime token of the task that runs.
async fn summary(
    site: &Site,
    run: i64,
    job: i64,
    step: usize,
    request: Request<Incoming>,
) -> Result<Response<Body>, Abort> {
    if site.shared.lock().options.version < Version::V1_27 {
        return Ok(not_found());
    }
    let (parts, body) = request.into_parts();
    let body = collect(body).await?;
    let token = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    if body.len() > MAX_SUMMARY {
        return Ok(text(StatusCode::PAYLOAD_TOO_LARGE, "summary is too large\n"));
    }
    let Ok(markdown) = String::from_utf8(body) else {
        return Ok(text(StatusCode::BAD_REQUEST, "summary is not UTF-8\n"));
    };
    let size = markdown.len();
    let known = site.shared.change(|state| {
        let belongs = state.jobs.get(&job).is_some_and(|known| known.run == run);
        let Some(task) = state.tasks.values_mut().find(|task| task.job == job && task.runtime_token == token)
        else {
            return false;
        };
        let alive = matches!(task.status, Status::Running | Status::Cancelling);
        if !belongs || !alive || step >= task.steps.len() {
            return false;
        }
        if markdown.is_empty() {
            task.summaries.remove(&step);
        } else {
            task.summaries.insert(step, markdown);
        }
        true
    });
    Ok(if known {
        json(StatusCode::OK, &json!({"runAttempt": 1, "message": "success", "sizeBytes": size}))
    } else {
        text(StatusCode::UNAUTHORIZED, "Bad authorization header\n")
    })
}
