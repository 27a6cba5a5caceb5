//! `sower image` against Debian's docker-registry, with skopeo as the judge of what arrived.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "image/faults.rs"]
mod faults;
#[path = "image/front.rs"]
mod front;
#[cfg(feature = "live-tests")]
#[path = "image/gitea.rs"]
mod gitea;
#[path = "image/large.rs"]
mod large;
#[path = "image/parts.rs"]
mod parts;
#[path = "image/registries.rs"]
mod registries;
#[path = "image/sources.rs"]
mod sources;
#[path = "image/split.rs"]
mod split;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use front::{Do, Front};
use parts::{DockerRegistry, LONG, Sower, TestImage, TokenService, basic, gunzip, gzip, part, part_ok, tar};
use sower::image::Digest;

const PASSWORD: &str = "s3cret-t0ken";

/// What skopeo reads from the registry: configuration and plain layers.
fn pulled(reference: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
    let directory = tempfile::tempdir().unwrap();
    let to = format!("dir:{}", directory.path().display());
    let from = format!("docker://{reference}");
    part_ok("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &from, &to]);
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let blob = |descriptor: &serde_json::Value| {
        read(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| {
        let is_plain = layer["mediaType"].as_str().unwrap().ends_with("tar");
        if is_plain { blob(layer) } else { gunzip(&blob(layer)) }
    });
    (blob(&manifest["config"]), layers.collect())
}

fn tags(registry: &DockerRegistry, name: &str) -> Vec<String> {
    let reference = format!("docker://{}/{name}", registry.address);
    let output = part("skopeo", &["list-tags", "--tls-verify=false", &reference]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let tags = listed["Tags"].as_array().cloned().unwrap_or_default();
    let mut tags: Vec<String> = tags.iter().filter_map(|tag| Some(tag.as_str()?.to_owned())).collect();
    tags.sort();
    tags
}

#[test]
fn a_pushed_archive_is_the_same_image_and_an_unchanged_layer_is_not_sent_again() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let mut image = TestImage::new(&[700_000, 3000]);
    image.write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:one", registry.address);
    let push = sower.image(&["push", "image.tar", &to, "--tag", "two", "--plain-http"]).well();
    assert_eq!(pulled(&to), (image.config(), image.layers.clone()));
    assert_eq!(tags(&registry, "shop/app"), ["one", "two"]);
    let words: Vec<&str> = push.stdout.split_whitespace().collect();
    let there = part_ok("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{to}")]);
    assert_eq!(words[0], Digest::of(&there).as_str());
    assert_eq!(push.stdout.lines().count(), 1, "{}", push.stdout);
    assert_eq!(push.stderr.matches("sent  ").count(), 2, "{}", push.stderr);

    let again = sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
    assert_eq!(again["uploaded"], 0);
    assert_eq!(again["digest"], words[0]);

    // A new top layer: only that is sent.
    image.layers.push(tar(&[("etc/new", b"one line")]));
    image.write(&sower.path("image.tar"));
    let dry = sower.image(&["push", "image.tar", &to, "--plain-http", "--dry-run", "--json"]).well().json();
    assert_eq!(dry["uploaded"], 0);
    let states: Vec<&str> =
        dry["layers"].as_array().unwrap().iter().map(|l| l["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["kept", "kept", "would-send"]);
    let next = sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
    assert!(next["uploaded"].as_u64().unwrap() < 2000, "{next}");
    assert_eq!(pulled(&to).1, image.layers);

    // Nothing of the image was written to disk.
    assert_eq!(std::fs::read_dir(sower.path("tmp")).unwrap().count(), 0);
    assert!(std::fs::metadata(sower.path("cache/facts")).unwrap().len() < 4096);
}

#[test]
fn every_form_of_an_image_arrives_with_the_same_content() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = TestImage::new(&[300_000, 2000, 150_000]);
    image.write(&sower.path("plain.tar"));
    std::fs::write(sower.path("packed.tar.gz"), gzip(&image.archive())).unwrap();
    std::os::unix::fs::symlink("packed.tar.gz", sower.path("result")).unwrap();
    // As kaniko writes it: the layers are gzip'd inside.
    let mut members = image.members();
    for (name, bytes) in &mut members {
        if name.ends_with("layer.tar") {
            *bytes = gzip(bytes);
        }
    }
    // And the manifest first, as docker does not.
    members.reverse();
    std::fs::write(sower.path("inner.tar"), tar(&members)).unwrap();
    let layout = sower.path("layout");
    let from = format!("docker-archive:{}", sower.path("plain.tar").display());
    part_ok("skopeo", &["copy", "--insecure-policy", &from, &format!("oci:{}:t", layout.display())]);
    part_ok("tar", &["-C", layout.to_str().unwrap(), "-cf", sower.path("layout.tar").to_str().unwrap(), "."]);

    let mut digests = Vec::new();
    for source in ["plain.tar", "result", "inner.tar", "layout", "layout.tar"] {
        let to = format!("{}/shop/{}:t", registry.address, source.replace('.', "-"));
        // A cache of its own, so that each form is read to its end.
        let cache = sower.path(&format!("cache-{source}"));
        let sower = Sower::new().env("SOWER_CACHE_DIR", cache.to_str().unwrap());
        let source = layout.with_file_name(source).to_str().unwrap().to_owned();
        let push = sower.image(&["push", &source, &to, "--plain-http"]).well();
        digests.push(push.stdout.split(' ').next().unwrap().to_owned());
        let (config, layers) = pulled(&to);
        assert!(layers == image.layers, "{source}");
        // skopeo writes the configuration of a layout anew, with its keys in another order.
        let parsed = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(parsed(&config), parsed(&image.config()), "{source}");
    }
    assert_eq!(digests[0], digests[1], "plain and gzip'd sources give the same manifest");
    assert_eq!(digests[3], digests[4]);
    let index = std::fs::read_to_string(layout.join("index.json")).unwrap();
    assert!(index.contains(&digests[3]), "an OCI layout keeps its digest");
}

/// A registry with token auth, behind a front that serves `/v2/token` on the registry's own address.
fn with_tokens(realm: &str) -> (DockerRegistry, Front) {
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config(realm));
    let front = Front::start(Some(registry.address), move |seen| {
        if !seen.path.starts_with("/v2/token?") {
            return Do::Pass;
        }
        let text = vec![("Content-Type", "text/plain".to_owned())];
        match &seen.authorization {
            Some(given) if *given == basic("dev", PASSWORD) => {
                Do::Answer(200, vec![], tokens.answer("shop/app", &["pull", "push", "delete"]))
            }
            Some(given) if *given == basic("reader", PASSWORD) => {
                Do::Answer(200, vec![], tokens.answer("shop/app", &["pull"]))
            }
            None => Do::Answer(200, vec![], tokens.answer("shop/app", &[])),
            Some(_) => Do::Answer(401, text, b"Failed to authenticate user".to_vec()),
        }
    });
    (registry, front)
}

fn user(name: &str, password: &str) -> Sower {
    let sower = Sower::new().env("SOWER_REGISTRY_USERNAME", name).env("SOWER_REGISTRY_PASSWORD", password);
    TestImage::new(&[200_000]).write(&sower.path("image.tar"));
    sower
}

#[test]
fn a_dead_realm_is_gone_round_and_said_once() {
    let (_registry, front) = with_tokens("http://127.0.0.1:1/v2/token");
    let to = format!("{}/shop/app:t", front.address);
    let from = format!("docker-archive:{}", user("dev", PASSWORD).path("image.tar").display());
    let creds = format!("dev:{PASSWORD}");
    let skopeo = part(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            "--dest-creds",
            &creds,
            &from,
            &format!("docker://{to}"),
        ],
    );
    assert!(!skopeo.status.success(), "the realm is meant to be dead for those who follow it");

    let sower = user("dev", PASSWORD);
    let push = sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
    assert_eq!(push.stderr.matches("note:").count(), 1, "{}", push.stderr);
    let note = format!("asked http://{}/v2/token instead", front.address);
    assert!(
        push.stderr.contains("http://127.0.0.1:1/v2/token") && push.stderr.contains(&note),
        "{}",
        push.stderr
    );
    assert!(!push.stderr.contains(PASSWORD) && !push.stdout.contains(PASSWORD));
    assert!(front.seen().iter().all(|seen| !seen.path.contains(PASSWORD)));
    // The password goes to the token service only; every other request carries the token.
    let password = basic("dev", PASSWORD);
    let with_password =
        front.seen().into_iter().filter(|seen| seen.authorization.as_ref() == Some(&password));
    assert!(with_password.into_iter().all(|seen| seen.path.starts_with("/v2/token?")));
}

#[test]
fn a_refusal_says_who_is_refused_and_what_to_do() {
    let (_registry, front) = with_tokens("http://127.0.0.1:1/v2/token");
    let to = format!("{}/shop/app:t", front.address);
    let push = |sower: &Sower| sower.image(&["push", "image.tar", &to, "--plain-http"]);
    let wrong = push(&user("dev", "wrong-one")).badly(1, &["401", "does not know", "personal access token"]);
    assert!(!wrong.stderr.contains("wrong-one"));
    push(&user("reader", PASSWORD)).badly(1, &["no right", "write:package", "personal access token"]);
    let nobody = Sower::new();
    TestImage::new(&[1000]).write(&nobody.path("image.tar"));
    push(&nobody).badly(1, &["credentials are wanted", "SOWER_REGISTRY_USERNAME"]);
    push(&user("", PASSWORD)).badly(2, &["a password without a user name"]);
    assert_eq!(front.count("PUT", "manifests"), 0);
}

#[test]
fn credentials_come_from_standard_input_or_dockers_config_too() {
    let (_registry, front) = with_tokens("http://127.0.0.1:1/v2/token");
    let to = format!("{}/shop/app:t", front.address);
    let sower = Sower::new();
    TestImage::new(&[1000]).write(&sower.path("image.tar"));
    let arguments = ["push", "image.tar", &to, "--plain-http", "--username", "dev", "--password-stdin"];
    sower.image_with_stdin(&arguments, &format!("{PASSWORD}\n")).well();
    std::fs::create_dir(sower.path(".docker")).unwrap();
    let auth = basic("dev", PASSWORD).replace("Basic ", "");
    let config = serde_json::json!({"auths": {front.address.to_string(): {"auth": auth}}});
    std::fs::write(sower.path(".docker/config.json"), config.to_string()).unwrap();
    sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
}

#[test]
fn a_realm_on_another_host_gets_no_credentials() {
    let thief = Front::start(None, |_| Do::Answer(200, vec![], br#"{"token":"x"}"#.to_vec()));
    let (_registry, front) = with_tokens(&format!("http://{}/v2/token", thief.address));
    let to = format!("{}/shop/app:t", front.address);
    user("dev", PASSWORD).image(&["push", "image.tar", &to, "--plain-http"]).well();
    assert!(thief.seen().is_empty(), "{:?}", thief.seen());
}

#[test]
fn the_registrys_own_realm_is_asked_without_a_word() {
    // The front's port is not known before the registry is configured, so the challenge is rewritten on its way.
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let own = Arc::new(std::sync::Mutex::new(String::new()));
    let realm = Arc::clone(&own);
    let front = Front::start(Some(registry.address), move |seen| {
        if seen.path.starts_with("/tokens?") {
            return Do::Answer(200, vec![], tokens.answer("shop/app", &["pull", "push"]));
        }
        Do::Rewrite("http://127.0.0.1:1/v2/token".to_owned(), realm.lock().unwrap().clone())
    });
    *own.lock().unwrap() = format!("http://{}/tokens", front.address);
    let to = format!("{}/shop/app:t", front.address);
    let push = user("dev", PASSWORD).image(&["push", "image.tar", &to, "--plain-http"]).well();
    assert!(!push.stderr.contains("note:"), "{}", push.stderr);
    assert_eq!(front.count("GET", "/tokens?"), 1);
}

#[test]
fn a_location_on_another_host_gets_no_credentials() {
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let thief = Front::start(None, |_| Do::Answer(403, vec![], vec![]));
    let elsewhere = format!("Location: http://{}/", thief.address);
    let front = Front::start(Some(registry.address), move |seen| {
        if seen.path.starts_with("/v2/token?") {
            return Do::Answer(200, vec![], tokens.answer("shop/app", &["pull", "push"]));
        }
        match seen.method.as_str() {
            // The registry names its Host, which is the front.
            "POST" => Do::Rewrite("Location: http://127.0.0.1:".to_owned(), format!("{elsewhere}?was=")),
            _ => Do::Pass,
        }
    });
    let to = format!("{}/shop/app:t", front.address);
    user("dev", PASSWORD).image(&["push", "image.tar", &to, "--plain-http"]).badly(1, &["403"]);
    assert!(!thief.seen().is_empty());
    assert!(thief.seen().iter().all(|seen| seen.authorization.is_none()), "{:?}", thief.seen());
}

#[test]
fn a_cut_upload_and_a_busy_registry_are_tried_again() {
    let registry = DockerRegistry::start("");
    let carried = AtomicUsize::new(0);
    let busy = AtomicUsize::new(0);
    let front = Front::start(Some(registry.address), move |seen| match seen.method.as_str() {
        _ if seen.carries_layer() => match carried.fetch_add(1, Ordering::SeqCst) {
            0 => Do::CutAfter(30_000),
            1 => Do::Answer(503, vec![], vec![]),
            _ => Do::Pass,
        },
        "HEAD" | "POST" if busy.fetch_add(1, Ordering::SeqCst) == 0 => {
            Do::Answer(429, vec![("Retry-After", "0".to_owned())], vec![])
        }
        _ => Do::Pass,
    });
    let sower = Sower::new();
    let image = TestImage::new(&[LONG]);
    // A compressed source, whose reading must start anew as well.
    std::fs::write(sower.path("image.tar.gz"), gzip(&image.archive())).unwrap();
    let to = format!("{}/shop/app:t", front.address);
    sower.image(&["push", "image.tar.gz", &to, "--plain-http"]).well();
    assert_eq!(front.count("PATCH", "uploads"), 3);
    assert_eq!(pulled(&format!("{}/shop/app:t", registry.address)), (image.config(), image.layers));
}

#[test]
fn sources_that_lie_tag_nothing() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = TestImage::new(&[200_000, 50_000]);
    let whole = image.archive();
    let to = format!("{}/shop/app:t", registry.address);
    let push = |bytes: &[u8]| {
        std::fs::write(sower.path("image.tar"), bytes).unwrap();
        sower.image(&["push", "image.tar", &to, "--plain-http"])
    };
    let changed = |change: &dyn Fn(&str, &mut Vec<u8>)| {
        let mut members = image.members();
        members.iter_mut().for_each(|(name, bytes)| change(name, bytes));
        tar(&members)
    };
    let in_manifest = |from: &str, to: &str| {
        changed(&|name, bytes| {
            if name == "manifest.json" {
                *bytes = String::from_utf8_lossy(bytes).replace(from, to).into_bytes();
            }
        })
    };
    push(&whole[..150_000]).badly(1, &["image.tar", "is cut", "nothing was tagged"]);
    let packed = gzip(&whole);
    push(&packed[..packed.len() / 2]).badly(1, &["gzip archive is cut", "nothing was tagged"]);
    let mut flipped = packed.clone();
    let end = flipped.len() - 6;
    flipped[end] ^= 0xff;
    push(&flipped).badly(1, &["damaged"]);
    push(&in_manifest("l1/layer.tar", "l9/layer.tar"))
        .badly(1, &["manifest.json names \"l9/layer.tar\", which is not there"]);
    push(&in_manifest("l1/layer.tar", "/etc/shadow")).badly(1, &["\"/etc/shadow\", a path outside"]);
    push(&in_manifest("l1/layer.tar", "../../x")).badly(1, &["a path outside"]);
    push(&in_manifest("[", "{")).badly(1, &["manifest.json: "]);
    let twisted = changed(&|name, bytes| {
        if name == "l1/layer.tar" {
            bytes[1000] ^= 1;
        }
    });
    push(&twisted).badly(1, &["a layer hashes to", "damaged", "nothing was tagged"]);
    let huge = changed(&|name, bytes| {
        if name.ends_with(".json") && name != "manifest.json" {
            bytes.resize(5 << 20, b' ');
        }
    });
    push(&huge).badly(1, &["5242880 bytes long; at most 4194304"]);
    let mut overflow = whole.clone();
    overflow[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    overflow[148..156].copy_from_slice(b"        ");
    let sum: u32 = overflow[..512].iter().map(|b| u32::from(*b)).sum();
    overflow[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    push(&overflow).badly(2, &["claims 18446744073709551615 bytes"]);
    push(b"").badly(2, &["empty"]);
    push(b"#!/bin/sh\n").badly(1, &["image.tar"]);
    push(&[7; 4096]).badly(2, &["no tar header", "wanted a docker-archive or an OCI layout"]);
    push(&tar(&[("hello", b"x")])).badly(2, &["neither manifest.json"]);
    sower.image(&["push", "absent.tar", &to, "--plain-http"]).badly(2, &["absent.tar", "no such file"]);
    sower.image(&["push", "image.tar", "app:t"]).badly(2, &["wanted host[:port]/namespace/name"]);
    assert_eq!(tags(&registry, "shop/app"), [""; 0]);
    // All of it right, and it goes through.
    push(&whole).well();
    assert_eq!(tags(&registry, "shop/app"), ["t"]);
}

#[test]
fn plain_http_is_spoken_only_when_told_to() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    TestImage::new(&[1000]).write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", registry.address);
    sower.image(&["push", "image.tar", &to]).badly(1, &["--plain-http"]);
    let sower = sower.env("SOWER_REGISTRY_PLAIN_HTTP", "false");
    sower.image(&["push", "image.tar", &to]).badly(1, &["--plain-http"]);
    let sower = sower.env("SOWER_REGISTRY_PLAIN_HTTP", "true");
    sower.image(&["push", "image.tar", &to]).well();
}

#[test]
fn a_job_gets_outputs_and_a_summary() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let (output, summary) = (sower.path("output"), sower.path("summary"));
    let sower = sower
        .env("GITHUB_OUTPUT", output.to_str().unwrap())
        .env("GITHUB_STEP_SUMMARY", summary.to_str().unwrap());
    TestImage::new(&[9000]).write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", registry.address);
    let push = sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
    let expected = format!(
        "digest={}\nsize={}\nuploaded={}\ntag=t\n",
        push["digest"].as_str().unwrap(),
        push["size"],
        push["uploaded"]
    );
    assert_eq!(std::fs::read_to_string(output).unwrap(), expected);
    let summary = std::fs::read_to_string(summary).unwrap();
    assert!(summary.contains("| Layer |") && summary.contains("| sent |"), "{summary}");
}

/// Gitea's packages REST calls: 50 versions a page at most, newest first, deletion tag by tag.
fn packages(count: usize, cut_after: Option<usize>) -> Front {
    let mut versions: Vec<serde_json::Value> = (1..=count)
        .map(|n| {
            let version = if n == 2 { "latest".to_owned() } else { format!("t{n:03}") };
            serde_json::json!({
                "id": n, "name": "app", "type": "container", "version": version,
                "created_at": format!("2026-01-01T{:02}:{:02}:00Z", n / 60, n % 60),
            })
        })
        .collect();
    // A package of a like name, and a manifest without a tag.
    versions.push(serde_json::json!({"id": 9001, "name": "app-two", "type": "container", "version": "t000", "created_at": "2020-01-01T00:00:00Z"}));
    versions.push(serde_json::json!({"id": 9002, "name": "app", "type": "container", "version": format!("sha256:{}", "a".repeat(64)), "created_at": "2020-01-01T00:00:00Z"}));
    versions.reverse();
    let gone = AtomicBool::new(false);
    Front::start(None, move |seen| {
        let json = |value: serde_json::Value, total: usize| {
            Do::Answer(200, vec![("X-Total-Count", total.to_string())], value.to_string().into_bytes())
        };
        let Some(given) = &seen.authorization else { return Do::Answer(401, vec![], vec![]) };
        if *given != basic("dev", PASSWORD) {
            return Do::Answer(401, vec![], vec![]);
        }
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        match (seen.method.as_str(), path) {
            ("GET", "/api/v1/version") => json(serde_json::json!({"version": "1.26.0"}), 1),
            ("GET", "/api/v1/packages/shop") => {
                let page = query.split('&').find_map(|pair| pair.strip_prefix("page="));
                let page: usize = page.unwrap_or("1").parse().unwrap();
                if cut_after.is_some_and(|last| page > last) {
                    return Do::Answer(500, vec![], b"<html>".to_vec());
                }
                let page: Vec<_> = versions.iter().skip((page - 1) * 50).take(50).cloned().collect();
                json(page.into(), versions.len())
            }
            // The first one to be deleted vanished meanwhile.
            ("DELETE", _) if !gone.swap(true, Ordering::SeqCst) => Do::Answer(404, vec![], vec![]),
            ("DELETE", _) => Do::Answer(204, vec![], vec![]),
            _ => Do::Answer(404, vec![], vec![]),
        }
    })
}

#[test]
fn on_a_gitea_old_tags_go_one_by_one() {
    let gitea = packages(120, None);
    let name = format!("{}/shop/app", gitea.address);
    let sower = user("dev", PASSWORD);
    let dry = sower
        .image(&["prune", &name, "--keep", "117", "--protect", "t00[13]", "--dry-run", "--plain-http"])
        .well();
    let end: Vec<&str> = dry.stdout.lines().rev().take(5).collect();
    assert_eq!(
        end,
        [
            &format!("{name}: 120 tags, 0 would be deleted, 120 kept"),
            "t001    2026-01-01T00:01:00Z  protected",
            "latest  2026-01-01T00:02:00Z  protected",
            "t003    2026-01-01T00:03:00Z  protected",
            "t004    2026-01-01T00:04:00Z  kept",
        ]
    );
    let prune = sower.image(&["prune", &name, "--keep", "116", "--plain-http", "--json"]).well().json();
    let deleted: Vec<String> =
        gitea.seen().into_iter().filter(|seen| seen.method == "DELETE").map(|seen| seen.path).collect();
    assert_eq!(
        deleted,
        ["t001", "t003", "t004"].map(|tag| format!("/api/v1/packages/shop/container/app/{tag}"))
    );
    assert_eq!(prune["tags"][119]["verdict"], "gone");
    assert_eq!(prune["tags"][117]["verdict"], "deleted");
    assert_eq!(prune["by"], "gitea");
}

#[test]
fn nothing_is_deleted_when_the_list_is_not_whole() {
    let gitea = packages(120, Some(1));
    let name = format!("{}/shop/app", gitea.address);
    let sower = user("dev", PASSWORD);
    sower
        .image(&["prune", &name, "--keep", "5", "--plain-http"])
        .badly(1, &["listing the package's versions", "500"]);
    sower.image(&["prune", &name, "--keep", "0", "--plain-http"]).badly(2, &["--keep"]);
    sower.image(&["prune", &name, "--protect", "[", "--plain-http"]).badly(2, &["\"[\""]);
    assert_eq!(gitea.count("DELETE", ""), 0);
}

#[test]
fn on_another_registry_a_manifest_goes_only_with_all_its_tags() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let name = format!("{}/shop/app", registry.address);
    for (day, more) in [(1, "old"), (2, "latest"), (3, "release"), (4, ""), (5, ""), (6, "")] {
        let mut image = TestImage::new(&[2000]);
        image.created = format!("2026-01-0{day}T00:00:00Z");
        image.write(&sower.path("image.tar"));
        let to = format!("{name}:day{day}");
        let mut arguments = vec!["push", "image.tar", &to, "--plain-http"];
        if !more.is_empty() {
            arguments.extend(["--tag", more]);
        }
        sower.image(&arguments).well();
    }
    let prune = sower.image(&["prune", &name, "--keep", "2", "--protect", "rel*", "--plain-http"]).well();
    assert_eq!(
        tags(&registry, "shop/app"),
        ["day2", "day3", "day5", "day6", "latest", "release"],
        "{}",
        prune.stdout
    );
    assert!(prune.stdout.contains("9 tags, 3 deleted, 6 kept"), "{}", prune.stdout);
    // Builds that fix the date of their images: the order cannot be told.
    for tag in ["a", "b", "c"] {
        let mut image = TestImage::new(&[2000 + tag.as_bytes()[0] as usize]);
        image.created = "1970-01-01T00:00:01Z".to_owned();
        image.write(&sower.path("image.tar"));
        sower
            .image(&["push", "image.tar", &format!("{}/shop/nix:{tag}", registry.address), "--plain-http"])
            .well();
    }
    let nix = format!("{}/shop/nix", registry.address);
    sower
        .image(&["prune", &nix, "--keep", "2", "--plain-http"])
        .badly(1, &["cannot be told", "nothing was deleted"]);
    assert_eq!(tags(&registry, "shop/nix"), ["a", "b", "c"]);
}
