//! The runner protocol on the wire: Connect, unary calls, binary bodies.

use std::io::{Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use prost::Message;
use serde_json::{Value as Json, json};
use sower_wire::ping::{PingRequest, PingResponse};
use sower_wire::runner::{
    DeclareRequest, FetchTaskRequest, FetchTaskResponse, RegisterRequest, UpdateLogRequest, UpdateTaskRequest,
};

use crate::fault::{Fault, Method};
use crate::http::{self, Abort, Body, bytes, collect, header, text};
use crate::options::{ErrorStyle, Version};
use crate::protocol::Refusal;
use crate::rules::Rule;
use crate::state::{Shared, Status};

/// Responses of this size and more are compressed for clients that take it.
const COMPRESS_FROM: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Codec {
    Proto,
    Json,
}

/// Answers one call; `path` is what follows `/api/actions/`.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    path: &str,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Body>, Abort> {
    let Some(method) = Method::from_path(path) else {
        return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
    };
    if request.method() != hyper::Method::POST {
        return Ok(header(bytes(StatusCode::METHOD_NOT_ALLOWED, ""), "allow", "POST"));
    }
    let (fault, version) = {
        let mut state = shared.lock();
        *state.requests.entry(method).or_default() += 1;
        (state.faults.take(method), state.options.version)
    };
    match fault {
        Some(Fault::Refuse) => return Err(Abort),
        Some(Fault::Stall(time)) => {
            tokio::time::sleep(time).await;
            return Err(Abort);
        }
        Some(Fault::Html(status)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            let page =
                format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>\n");
            return Ok(header(bytes(status, page), "content-type", "text/html"));
        }
        Some(Fault::TooMany(seconds)) => {
            let reply = bytes(StatusCode::TOO_MANY_REQUESTS, "slow down\n");
            return Ok(header(reply, "retry-after", &seconds.to_string()));
        }
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let codec = match essence(&parts.headers).as_str() {
        "application/proto" => Codec::Proto,
        "application/json" => Codec::Json,
        other => {
            shared.lock().violated(Rule::Encoding, format_args!("{method:?} as {other:?}"));
            let reply = bytes(StatusCode::UNSUPPORTED_MEDIA_TYPE, "");
            return Ok(header(reply, "accept-post", "application/json, application/proto"));
        }
    };
    let style = shared.lock().options.errors;
    if let Some(version) = parts.headers.get("connect-protocol-version").filter(|version| *version != "1") {
        let message = format!("connect-protocol-version must be \"1\": got {version:?}");
        return Ok(connect_error(StatusCode::BAD_REQUEST, "invalid_argument", &message));
    }
    let body = collect(body).await?;
    let body = match decompress(&parts.headers, body) {
        Ok(body) => body,
        Err(problem) => {
            shared.lock().violated(Rule::Encoding, format_args!("{method:?}: {problem}"));
            return Ok(connect_error(StatusCode::NOT_IMPLEMENTED, "unimplemented", &problem));
        }
    };
    // A request that meets a fault may outlive the client's patience, so it does not count.
    let _in_flight = (method == Method::FetchTask && fault.is_none())
        .then(|| InFlight::enter(shared, header_value(&parts.headers, "x-runner-uuid")));
    let reply = call(shared, method, codec, &parts.headers, &body, fault);
    if let Some(Fault::Slow(time)) = fault {
        tokio::time::sleep(time).await;
    }
    if fault == Some(Fault::DropReply) {
        return Err(Abort);
    }
    if fault == Some(Fault::TornReply) {
        return Ok(header(Response::new(http::torn()), "content-type", "application/proto"));
    }
    let mut response = match reply {
        Ok(reply) => {
            let kind = if codec == Codec::Json { "application/json" } else { "application/proto" };
            if let Some((task, ack)) = reply.told {
                shared.lock().told(task, ack);
            }
            let (reply, compressed) = compress(&parts.headers, reply.body);
            let mut response = header(bytes(StatusCode::OK, reply), "content-type", kind);
            if compressed {
                response = header(response, "content-encoding", "gzip");
            }
            response
        }
        Err(Refused::Decode(message)) => connect_error(StatusCode::BAD_REQUEST, "invalid_argument", &message),
        Err(Refused::Server(refusal)) => refused(style, &refusal),
        Err(Refused::Codec) => connect_error(
            StatusCode::NOT_IMPLEMENTED,
            "unimplemented",
            "the stand-in knows this method in binary only",
        ),
    };
    if method == Method::Declare && version >= Version::V1_27 {
        response = header(response, "x-gitea-actions-capabilities", "job-summary");
    }
    Ok(header(response, ACCEPT_ENCODING.as_str(), "gzip"))
}

/// A FetchTask that is being answered.
struct InFlight<'a> {
    shared: &'a Shared,
    uuid: String,
}

impl<'a> InFlight<'a> {
    fn enter(shared: &'a Shared, uuid: &str) -> Self {
        let mut state = shared.lock();
        let mut name = None;
        if let Some(runner) = state.runners.iter_mut().find(|runner| runner.uuid == uuid) {
            runner.fetching += 1;
            name = (runner.fetching > 1).then(|| runner.name.clone());
        }
        if let Some(name) = name {
            state.violated(Rule::Fetch, format_args!("runner {name} has two FetchTask in flight"));
        }
        Self { shared, uuid: uuid.to_owned() }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(runner) = self.shared.lock().runners.iter_mut().find(|runner| runner.uuid == self.uuid) {
            runner.fetching = runner.fetching.saturating_sub(1);
        }
    }
}

fn header_value<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

struct Reply {
    body: Vec<u8>,
    /// The task and the row that the reply acknowledges.
    told: Option<(i64, i64)>,
}

enum Refused {
    Decode(String),
    Server(Refusal),
    Codec,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Server(refusal)
    }
}

fn call(
    shared: &Shared,
    method: Method,
    codec: Codec,
    headers: &HeaderMap,
    body: &[u8],
    fault: Option<Fault>,
) -> Result<Reply, Refused> {
    if codec == Codec::Json {
        return call_in_json(shared, method, headers, body);
    }
    let runner = || {
        shared
            .lock()
            .authenticate(header_value(headers, "x-runner-uuid"), header_value(headers, "x-runner-token"))
    };
    let plain = |body| Reply { body, told: None };
    Ok(match method {
        Method::Ping => {
            let request: PingRequest = decode(shared, "pingv1.PingRequest", body)?;
            plain(PingResponse { data: greeting(&request.data) }.encode_to_vec())
        }
        Method::Register => {
            let request: RegisterRequest = decode(shared, "runnerv1.RegisterRequest", body)?;
            plain(shared.change(|state| state.register(request))?.encode_to_vec())
        }
        Method::Declare => {
            let request: DeclareRequest = decode(shared, "runnerv1.DeclareRequest", body)?;
            let runner = runner()?;
            plain(shared.change(|state| state.declare(runner, request))?.encode_to_vec())
        }
        Method::FetchTask => {
            let request: FetchTaskRequest = decode(shared, "runnerv1.FetchTaskRequest", body)?;
            plain(fetch(shared, runner()?, request)?.encode_to_vec())
        }
        Method::UpdateTask => {
            let request: UpdateTaskRequest = decode(shared, "runnerv1.UpdateTaskRequest", body)?;
            let runner = runner()?;
            plain(shared.change(|state| state.update_task(runner, request))?.encode_to_vec())
        }
        Method::UpdateLog => {
            let request: UpdateLogRequest = decode(shared, "runnerv1.UpdateLogRequest", body)?;
            let runner = runner()?;
            let task = request.task_id;
            let reply = shared.change(|state| {
                match fault {
                    Some(Fault::ForgetRows(rows)) => state.forget_rows(task, rows),
                    Some(Fault::SealEarly) => state.seal_early(task),
                    _ => {}
                }
                state.update_log(runner, request, body.len())
            })?;
            Reply { body: reply.encode_to_vec(), told: Some((task, reply.ack_index)) }
        }
    })
}

/// An empty look for work changes nothing, and so wakes nobody.
fn fetch(shared: &Shared, runner: i64, request: FetchTaskRequest) -> Result<FetchTaskResponse, Refusal> {
    let worth_it = {
        let state = shared.lock();
        request.tasks_version != state.tasks_version
            && state.jobs.values().any(|job| job.status == Status::Waiting)
    };
    if worth_it {
        shared.change(|state| state.fetch(runner, request))
    } else {
        shared.lock().fetch(runner, request)
    }
}

fn greeting(data: &str) -> String {
    format!("Hello, {data}!")
}

/// The two calls that a person makes with curl.
fn call_in_json(shared: &Shared, method: Method, headers: &HeaderMap, body: &[u8]) -> Result<Reply, Refused> {
    let request: Json = serde_json::from_slice(body).map_err(|error| Refused::Decode(error.to_string()))?;
    let reply = match method {
        Method::Ping => json!({"data": greeting(request["data"].as_str().unwrap_or_default())}),
        Method::FetchTask => {
            let value =
                |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let state = shared.lock();
            state.authenticate(value("x-runner-uuid"), value("x-runner-token"))?;
            json!({"tasksVersion": state.tasks_version.to_string()})
        }
        _ => {
            shared.lock().violated(Rule::Encoding, format_args!("{method:?} in JSON"));
            return Err(Refused::Codec);
        }
    };
    Ok(Reply { body: reply.to_string().into_bytes(), told: None })
}

fn decode<M: Message + Default>(shared: &Shared, name: &str, body: &[u8]) -> Result<M, Refused> {
    M::decode(body).map_err(|error| {
        shared.lock().violated(Rule::Encoding, format_args!("{name}: {error}"));
        Refused::Decode(format!(
            "unmarshal message: unmarshal into *{name}: proto: cannot parse invalid wire-format data"
        ))
    })
}

fn refused(style: ErrorStyle, refusal: &Refusal) -> Response<Body> {
    match refusal {
        Refusal::Crash => {
            let reply = bytes(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n");
            header(reply, "content-type", "application/proto")
        }
        Refusal::Plain(message) => connect_error(StatusCode::INTERNAL_SERVER_ERROR, "unknown", message),
        Refusal::Status(code, message) => match style {
            ErrorStyle::Grpc => {
                let message = format!("rpc error: code = {code} desc = {message}");
                connect_error(StatusCode::INTERNAL_SERVER_ERROR, "unknown", &message)
            }
            ErrorStyle::Genuine => {
                let (status, code) = match *code {
                    "Unauthenticated" => (StatusCode::UNAUTHORIZED, "unauthenticated"),
                    "AlreadyExists" => (StatusCode::CONFLICT, "already_exists"),
                    _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
                };
                connect_error(status, code, message)
            }
        },
    }
}

/// A refusal is JSON, whatever the codec of the request.
fn connect_error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({"code": code, "message": message}).to_string();
    header(bytes(status, body), "content-type", "application/json")
}

fn essence(headers: &HeaderMap) -> String {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn decompress(headers: &HeaderMap, body: Vec<u8>) -> Result<Vec<u8>, String> {
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"") => Ok(body),
        Some(b"gzip") => {
            let mut plain = Vec::new();
            let limit = crate::http::MAX_BODY;
            GzDecoder::new(&body[..])
                .take(limit)
                .read_to_end(&mut plain)
                .map_err(|error| format!("not gzip: {error}"))?;
            Ok(plain)
        }
        Some(other) => Err(format!(
            "unknown compression {:?}: supported encodings are gzip",
            String::from_utf8_lossy(other)
        )),
    }
}

fn compress(headers: &HeaderMap, body: Vec<u8>) -> (Vec<u8>, bool) {
    let accepted = |name: &HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains("gzip"))
    };
    if body.len() < COMPRESS_FROM || !accepted(&ACCEPT_ENCODING) {
        return (body, false);
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    match encoder.write_all(&body).and_then(|()| encoder.finish()) {
        Ok(compressed) => (compressed, true),
        Err(_) => (body, false),
    }
}
