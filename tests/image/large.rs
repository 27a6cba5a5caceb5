//! Layers that are longer than what goes in one request.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::front::{Do, Front, Seen};
use crate::parts::{DockerRegistry, Sower, TestImage, TokenService};
use crate::{PASSWORD, pulled, tags, user};

/// Its only layer takes two requests when it is sent as it is.
static LARGE: LazyLock<TestImage> = LazyLock::new(|| TestImage::new(&[40_000_000]));

/// Before a registry: says what becomes of the first, the second and every later request for a layer's bytes.
fn front(behind: SocketAddr, rule: impl Fn(usize) -> Do + Send + Sync + 'static) -> Front {
    let patches = AtomicUsize::new(0);
    Front::start(Some(behind), move |seen| match seen.method == "PATCH" {
        true => rule(patches.fetch_add(1, Ordering::SeqCst)),
        false => Do::Pass,
    })
}

/// Pushes the image through `front` with nothing compressed. How many requests carried the layer, and how many uploads were
/// opened for it.
fn push(sower: &Sower, front: &Front) -> (usize, usize) {
    LARGE.write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", front.address);
    sower.image(&["push", "image.tar", &to, "--plain-http", "--compression", "none"]).well();
    let of_the_configuration = 1;
    (front.count("PATCH", ""), front.count("POST", "") - of_the_configuration)
}

#[track_caller]
fn arrived(registry: &DockerRegistry) {
    let (config, layers) = pulled(&format!("{}/shop/app:t", registry.address));
    assert!(config == LARGE.config() && layers == LARGE.layers);
}

#[test]
fn a_long_layer_goes_in_two_requests() {
    let registry = DockerRegistry::start("");
    let front = front(registry.address, |_| Do::Pass);
    assert_eq!(push(&Sower::new(), &front), (2, 1));
    arrived(&registry);
}

/// docker-registry knows nothing of the upload any more then.
#[test]
fn a_cut_in_the_second_request_begins_anew() {
    let registry = DockerRegistry::start("");
    let front = front(registry.address, |at| if at == 1 { Do::CutAfter(2_000_000) } else { Do::Pass });
    assert_eq!(push(&Sower::new(), &front), (4, 2));
    arrived(&registry);
}

#[test]
fn a_second_request_that_arrives_damaged_spoils_the_upload_and_a_new_one_is_begun() {
    let registry = DockerRegistry::start("");
    let front = front(registry.address, |at| if at == 1 { Do::Damage } else { Do::Pass });
    let (_, uploads) = push(&Sower::new(), &front);
    assert_eq!(uploads, 2);
    arrived(&registry);
}

#[test]
fn a_long_layer_that_is_not_what_its_image_says_is_given_up() {
    let registry = DockerRegistry::start("");
    let front = front(registry.address, |_| Do::Pass);
    let sower = Sower::new();
    let mut archive = LARGE.archive();
    // Well inside of the last request.
    archive[39_000_000] ^= 1;
    std::fs::write(sower.path("image.tar"), archive).unwrap();
    let to = format!("{}/shop/app:t", front.address);
    let push = sower.image(&["push", "image.tar", &to, "--plain-http", "--compression", "none"]);
    push.badly(1, &["damaged"]);
    assert_eq!((front.count("PATCH", ""), front.count("DELETE", "/uploads/")), (2, 1));
    assert_eq!(tags(&registry, "shop/app"), [""; 0]);
}

#[test]
fn where_a_second_request_is_refused_all_goes_in_one() {
    let registry = DockerRegistry::start("");
    let words = br#"{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"no more"}]}"#;
    let front = front(registry.address, |at| match at {
        1 => Do::Answer(400, Vec::new(), words.to_vec()),
        _ => Do::Pass,
    });
    assert_eq!(push(&Sower::new(), &front), (3, 2));
    arrived(&registry);
}

/// Gitea takes one request for what it is not told the length of, and so may others.
#[test]
fn a_registry_of_another_make_gets_it_in_one_request() {
    let registry = Front::start(None, |seen: &Seen| {
        let location = ("Location", "/v2/shop/app/blobs/uploads/1".to_owned());
        match (seen.method.as_str(), seen.path.as_str()) {
            ("HEAD", path) if !path.contains("/manifests/") => Do::Answer(404, Vec::new(), Vec::new()),
            ("POST" | "PATCH", _) => Do::Answer(202, vec![location], Vec::new()),
            ("PUT", _) => Do::Answer(201, Vec::new(), Vec::new()),
            _ => Do::Answer(200, Vec::new(), Vec::new()),
        }
    });
    assert_eq!(push(&Sower::new(), &registry), (1, 1));
    let seen = registry.seen();
    let sent = seen.iter().find(|seen| seen.method == "PATCH").unwrap();
    assert!(sent.body == LARGE.layers[0]);
}

#[test]
fn a_token_that_runs_out_between_two_requests_is_renewed_and_nothing_sent_twice() {
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let (given, patches) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let front = Front::start(Some(registry.address), move |seen| {
        if seen.path.starts_with("/v2/token?") {
            let life = if given.fetch_add(1, Ordering::SeqCst) == 0 { 8 } else { 600 };
            return Do::Answer(200, vec![], tokens.answer_for("shop/app", &["pull", "push"], life));
        }
        let is_first = seen.method == "PATCH" && patches.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { Do::PassSlowly(Duration::from_secs(8)) } else { Do::Pass }
    });
    // One was refused, and the rest went to the same upload.
    assert_eq!(push(&user("dev", PASSWORD), &front), (3, 1));
    assert!(front.count("GET", "/v2/token?") >= 2);
}
