//! Lines that break, registries that go away, tokens that run out, disks that fill up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::front::{Do, Front};
use crate::parts::{DockerRegistry, LONG, SHORT, Sower, TestImage, TokenService, basic, gzip};
use crate::split::{nix_image, unpacked};
use crate::{PASSWORD, pulled, tags, user};

#[test]
fn a_cut_at_any_of_fifty_places_loses_nothing() {
    cuts_lose_nothing(SHORT);
}

#[test]
fn nor_does_a_cut_of_a_layer_that_is_still_being_read() {
    cuts_lose_nothing(LONG);
}

fn cuts_lose_nothing(size: usize) {
    let registry = DockerRegistry::start("");
    let address = registry.address;
    let image = TestImage::new(&[size]);
    let archive = image.archive();
    // Places from one to the layer's length, as a generator would throw them.
    let mut state: u32 = 7;
    let offsets: Vec<usize> = (0..50)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 + (state >> 8) as usize % (size / 20 * 11)
        })
        .collect();
    // Most of the time goes to waiting before the next try.
    std::thread::scope(|scope| {
        for chunk in offsets.chunks(10) {
            let archive = &archive;
            scope.spawn(move || {
                for offset in chunk {
                    let sower = Sower::new();
                    std::fs::write(sower.path("image.tar"), archive).unwrap();
                    let cut = AtomicBool::new(false);
                    let offset = *offset;
                    let front = Front::start(Some(address), move |seen| {
                        let now = seen.carries_layer() && !cut.swap(true, Ordering::SeqCst);
                        if now { Do::CutAfter(offset) } else { Do::Pass }
                    });
                    let to = format!("{}/cut/at{offset}:t", front.address);
                    sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
                }
            });
        }
    });
    for offset in offsets.iter().step_by(7) {
        let (config, layers) = pulled(&format!("{address}/cut/at{offset}:t"));
        assert!(config == image.config() && layers == image.layers, "{offset}");
    }
    for offset in offsets {
        assert_eq!(tags(&registry, &format!("cut/at{offset}")), ["t"]);
    }
}

/// A registry that keeps what it got of a cut upload and says how much that was, as the OCI specification wants it.
#[test]
fn an_upload_goes_on_where_a_registry_says_that_it_can() {
    let got: Arc<std::sync::Mutex<Vec<u8>>> = Arc::default();
    let kept = Arc::clone(&got);
    let patches = AtomicUsize::new(0);
    let registry = Front::start(None, move |seen| {
        let location = ("Location", "/v2/shop/app/blobs/uploads/1".to_owned());
        let mut kept = kept.lock().unwrap();
        match (seen.method.as_str(), seen.path.as_str()) {
            ("GET", "/v2/") => Do::Answer(200, vec![], vec![]),
            ("HEAD", path) if path.contains("/manifests/") => Do::Answer(200, vec![], vec![]),
            ("HEAD", _) => Do::Answer(404, vec![], vec![]),
            ("POST", _) => Do::Answer(202, vec![location], vec![]),
            // Half of what it was sent.
            ("PATCH", _) if patches.fetch_add(1, Ordering::SeqCst) == 0 => {
                kept.extend_from_slice(&seen.body[..seen.body.len() / 2]);
                Do::Hang
            }
            ("PATCH", _) => {
                kept.extend_from_slice(&seen.body);
                Do::Answer(202, vec![location], vec![])
            }
            ("GET", path) if path.contains("/uploads/") => {
                Do::Answer(204, vec![location, ("Range", format!("0-{}", kept.len() - 1))], vec![])
            }
            _ => Do::Answer(201, vec![], vec![]),
        }
    });
    let sower = Sower::new();
    let image = TestImage::new(&[LONG]);
    image.write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", registry.address);
    let push = sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
    assert_eq!(registry.count("PATCH", ""), 2);
    assert_eq!(registry.count("POST", ""), 2, "one for the layer, one for the configuration");
    let got = got.lock().unwrap();
    let digest = sower::image::Digest::of(&got);
    assert_eq!(push["layers"][0]["digest"], digest.as_str());
}

#[test]
fn a_token_that_runs_out_in_the_middle_is_renewed() {
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let given = AtomicUsize::new(0);
    let front = Front::start(Some(registry.address), move |seen| {
        if seen.path.starts_with("/v2/token?") {
            // The first one is good for two seconds only, and a layer takes longer on this line.
            let life = if given.fetch_add(1, Ordering::SeqCst) == 0 { 2 } else { 600 };
            return Do::Answer(200, vec![], tokens.answer_for("shop/app", &["pull", "push"], life));
        }
        if seen.method == "PATCH" { Do::PassSlowly(std::time::Duration::from_secs(4)) } else { Do::Pass }
    });
    let sower = user("dev", PASSWORD);
    let image = TestImage::new(&[LONG]);
    image.write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", front.address);
    let push = sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
    assert_eq!(push.stderr.matches("note:").count(), 1, "said once: {}", push.stderr);
    assert!(front.count("GET", "/v2/token?") >= 2);
    // On a host that is so busy that the token ran out before the layer was begun, that was refused and begun again.
    assert!(front.count("PATCH", "") <= 2);
}

#[test]
fn a_registry_that_is_started_anew_in_the_middle_gets_the_image() {
    started_anew(SHORT);
    started_anew(LONG);
}

fn started_anew(size: usize) {
    let mut registry = DockerRegistry::start("");
    let address = registry.address;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let stop = std::sync::Mutex::new(Some(stop));
    let front = Front::start(Some(address), move |seen| {
        if seen.carries_layer()
            && let Some(stop) = stop.lock().unwrap().take()
        {
            stop.send(()).unwrap();
            return Do::PassSlowly(std::time::Duration::from_secs(2));
        }
        Do::Pass
    });
    let sower = Sower::new();
    let image = TestImage::new(&[size, 3000]);
    image.write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", front.address);
    let push = std::thread::scope(|scope| {
        let push = scope.spawn(|| sower.image(&["push", "image.tar", &to, "--plain-http"]));
        stopped.recv().unwrap();
        registry.restart();
        push.join().unwrap()
    });
    push.well();
    assert_eq!(pulled(&format!("{address}/shop/app:t")), (image.config(), image.layers));
}

#[test]
fn a_registry_whose_disk_is_full_tags_nothing_and_the_reason_is_said() {
    // No file may grow past 64 KiB: the layer does not fit.
    let registry = DockerRegistry::start_limited(65_536);
    for size in [SHORT, LONG] {
        let sower = Sower::new();
        TestImage::new(&[size]).write(&sower.path("image.tar"));
        let to = format!("{}/shop/app:t", registry.address);
        sower.image(&["push", "image.tar", &to, "--plain-http"]).badly(1, &["sending a layer", "HTTP 5"]);
        assert_eq!(tags(&registry, "shop/app"), [""; 0]);
    }
}

#[test]
fn two_pushes_of_the_same_image_at_once_both_go_well() {
    let registry = DockerRegistry::start("");
    let image = nix_image("one");
    let to = format!("{}/shop/app", registry.address);
    // One cache for both: one host, two jobs.
    let home = Sower::new();
    let cache = home.path("cache");
    let digests: Vec<String> = std::thread::scope(|scope| {
        let pushes: Vec<_> = ["one", "two", "three"]
            .map(|tag| {
                let (to, image, cache) = (format!("{to}:{tag}"), &image, &cache);
                scope.spawn(move || {
                    let sower = Sower::new().env("SOWER_CACHE_DIR", cache.to_str().unwrap());
                    image.write(&sower.path("image.tar"));
                    let push =
                        sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
                    push["digest"].as_str().unwrap().to_owned()
                })
            })
            .into_iter()
            .collect();
        pushes.into_iter().map(|push| push.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    assert_eq!(tags(&registry, "shop/app"), ["one", "three", "two"]);
    assert_eq!(unpacked(&pulled(&format!("{to}:two")).1), unpacked(&image.layers));
}

#[test]
fn a_registry_that_for_a_moment_does_not_know_its_own_blob_is_asked_again() {
    let registry = DockerRegistry::start("");
    let refused = AtomicBool::new(false);
    // What docker-registry says while another push writes the same blob's link.
    let words =
        br#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"},
        {"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
    let front = Front::start(Some(registry.address), move |seen| {
        let is_manifest = seen.method == "PUT" && seen.path.contains("/manifests/");
        let now = is_manifest && !refused.swap(true, Ordering::SeqCst);
        if now { Do::Answer(400, Vec::new(), words.to_vec()) } else { Do::Pass }
    });
    let sower = Sower::new();
    let image = TestImage::new(&[200_000]);
    image.write(&sower.path("image.tar"));
    sower.image(&["push", "image.tar", &format!("{}/shop/app:t", front.address), "--plain-http"]).well();
    assert_eq!(front.count("PUT", "/manifests/"), 2);
    assert_eq!(pulled(&format!("{}/shop/app:t", registry.address)).1, image.layers);
}

#[test]
fn a_blob_that_arrives_damaged_is_sent_again() {
    for size in [SHORT, LONG] {
        let registry = DockerRegistry::start("");
        let damaged = AtomicBool::new(false);
        let front = Front::start(Some(registry.address), move |seen| {
            let now = seen.carries_layer() && !damaged.swap(true, Ordering::SeqCst);
            if now { Do::Damage } else { Do::Pass }
        });
        let sower = Sower::new();
        let image = TestImage::new(&[size]);
        image.write(&sower.path("image.tar"));
        let to = format!("{}/shop/app:t", front.address);
        sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
        assert_eq!(front.carried(), 2, "{size}");
        assert_eq!(front.count("PATCH", ""), if size == LONG { 2 } else { 0 });
        assert_eq!(pulled(&format!("{}/shop/app:t", registry.address)).1, image.layers);
    }
}

/// Standard input cannot be read again: what is sent anew was in memory.
#[test]
fn a_short_layer_is_read_once_however_often_it_is_sent() {
    let registry = DockerRegistry::start("");
    let refused = AtomicUsize::new(0);
    let front = Front::start(Some(registry.address), move |seen| {
        match seen.carries_layer().then(|| refused.fetch_add(1, Ordering::SeqCst)) {
            Some(0) => Do::CutAfter(20_000),
            Some(1) => Do::Answer(429, vec![("Retry-After", "1".to_owned())], Vec::new()),
            Some(2) => Do::Damage,
            _ => Do::Pass,
        }
    });
    let sower = Sower::new();
    let image = TestImage::new(&[SHORT]);
    let to = format!("{}/shop/app:t", front.address);
    sower.image_with_bytes(&["push", "-", &to, "--plain-http"], &image.archive()).well();
    assert_eq!((front.carried(), front.count("PATCH", "")), (4, 0));
    assert_eq!(pulled(&format!("{}/shop/app:t", registry.address)).1, image.layers);
}

/// A registry that has an image is taken to have its layers, and asked for them no more.
#[test]
fn a_layer_that_is_gone_though_its_image_is_there_is_sent_again() {
    let registry = DockerRegistry::start("");
    let front = Front::start(Some(registry.address), |_| Do::Pass);
    let to = format!("{}/shop/app:t", front.address);
    let sower = Sower::new();
    nix_image("one").write(&sower.path("one.tar"));
    let first = sower.image(&["push", "one.tar", &to, "--plain-http", "--json"]).well().json();
    let asked = || front.count("HEAD", "/blobs/");
    let (before, image) = (asked(), nix_image("two"));
    image.write(&sower.path("two.tar"));
    sower.image(&["push", "two.tar", &to, "--plain-http"]).well();
    assert_eq!(asked(), before + 1, "the configuration");

    let layers = first["layers"].as_array().unwrap();
    let lost = layers[0]["digest"].as_str().unwrap();
    registry.lose("shop/app", lost);
    let image = nix_image("three");
    image.write(&sower.path("three.tar"));
    let push = sower.image(&["push", "three.tar", &to, "--plain-http", "--json"]).well().json();
    assert_eq!((&push["layers"][0]["digest"], &push["layers"][0]["state"]), (&lost.into(), &"sent".into()));
    assert_eq!(unpacked(&pulled(&format!("{}/shop/app:t", registry.address)).1), unpacked(&image.layers));
    // Nor is the image believed in that was pushed with it before.
    registry.lose("shop/app", lost);
    let push = sower.image(&["push", "one.tar", &to, "--plain-http", "--json"]).well().json();
    assert_eq!(push["layers"][0]["state"], "sent", "{push:#}");
}

#[test]
fn a_compressed_archive_gets_through_cuts_in_any_of_its_layers() {
    let registry = DockerRegistry::start("");
    let image = nix_image("one");
    let archive = gzip(&image.archive());
    for every in [2, 5, 11] {
        let count = AtomicUsize::new(0);
        let front = Front::start(Some(registry.address), move |seen| {
            let carried = if seen.carries_layer() { count.fetch_add(1, Ordering::SeqCst) } else { 1 };
            // Four cuts in all: a layer that meets each of them is sent the fifth time.
            let now = carried % every == 0 && carried < 4 * every;
            if now { Do::CutAfter(500) } else { Do::Pass }
        });
        let sower = Sower::new();
        std::fs::write(sower.path("image.tar.gz"), &archive).unwrap();
        let name = format!("shop/every{every}:t");
        sower.image(&["push", "image.tar.gz", &format!("{}/{name}", front.address), "--plain-http"]).well();
        let (_, layers) = pulled(&format!("{}/{name}", registry.address));
        assert_eq!(unpacked(&layers), unpacked(&image.layers), "{every}");
    }
}

#[test]
fn what_another_repository_has_is_mounted() {
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let front = Front::start(Some(registry.address), move |seen| {
        if seen.path.starts_with("/v2/token?") {
            assert_eq!(seen.authorization, Some(basic("dev", PASSWORD)));
            let names = ["shop/app", "shop/other"];
            let names: Vec<&str> =
                names.into_iter().filter(|name| seen.path.contains(&name.replace('/', "%2F"))).collect();
            return Do::Answer(200, vec![], tokens.answer_for_all(&names, &["pull", "push"], 600));
        }
        Do::Pass
    });
    let sower = user("dev", PASSWORD);
    let to = |name: &str| format!("{}/shop/{name}:t", front.address);
    sower.image(&["push", "image.tar", &to("app"), "--plain-http"]).well();
    let push = sower.image(&["push", "image.tar", &to("other"), "--plain-http", "--json"]).well().json();
    assert_eq!(push["layers"][0]["state"], "mounted", "{push}");
    assert!(push["uploaded"].as_u64().unwrap() < 1000);
}
