//! A real Gitea's registry: `SOWER_TEST_GITEA=/path/of/gitea cargo test --features live-tests --test image gitea`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use sower_test_support::{Gitea, Server as _};

use crate::front::{Do, Front};
use crate::parts::{Sower, TestImage, basic, part_ok};
use crate::split::{nix_image, unpacked};

const USER: &str = sower_test_support::USER;

fn gitea() -> Gitea {
    let program = std::env::var_os("SOWER_TEST_GITEA").map(PathBuf::from);
    Gitea::start(&program.expect("set SOWER_TEST_GITEA to the program of a Gitea")).unwrap()
}

/// The program, with the credentials of the user.
fn sower(gitea: &Gitea) -> Sower {
    Sower::new()
        .env("SOWER_REGISTRY_USERNAME", USER)
        .env("SOWER_REGISTRY_PASSWORD", gitea.token())
        .env("SOWER_REGISTRY_PLAIN_HTTP", "true")
}

/// The plain layers of a reference, read by skopeo.
fn layers(gitea: &Gitea, reference: &str) -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (format!("docker://{reference}"), format!("dir:{}", directory.path().display()));
    let credentials = format!("{USER}:{}", gitea.token());
    let options = ["copy", "--insecure-policy", "--src-tls-verify=false", "--src-creds", &credentials];
    part_ok("skopeo", &[&options[..], &[&from, &to]].concat());
    let manifest = std::fs::read(directory.path().join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| {
        let digest = layer["digest"].as_str().unwrap();
        crate::parts::gunzip(&std::fs::read(directory.path().join(&digest["sha256:".len()..])).unwrap())
    });
    layers.collect()
}

#[test]
fn a_push_goes_past_a_realm_elsewhere_and_through_cuts_and_the_next_one_moves_little() {
    let gitea = gitea();
    let host = gitea.url().trim_start_matches("http://").to_owned();
    let carried = AtomicUsize::new(0);
    // Reached under another port than the one that its ROOT_URL names; every third upload is cut.
    let front = Front::start(Some(host.parse().unwrap()), move |seen| {
        let cut = seen.carries_layer() && carried.fetch_add(1, Ordering::SeqCst).is_multiple_of(3);
        if cut { Do::CutAfter(700) } else { Do::Pass }
    });
    let sower = sower(&gitea);
    let (one, two) = (nix_image("one"), nix_image("two"));
    one.write(&sower.path("one.tar"));
    two.write(&sower.path("two.tar"));
    let to = format!("{}/{USER}/app", front.address);
    let push = sower.image(&["push", "one.tar", &format!("{to}:one")]).well();
    assert_eq!(push.stderr.matches("note:").count(), 1, "{}", push.stderr);
    let password = basic(USER, gitea.token());
    let with_password =
        front.seen().into_iter().filter(|seen| seen.authorization.as_ref() == Some(&password));
    assert!(with_password.into_iter().all(|seen| seen.path.starts_with("/v2/token?")));
    assert_eq!(unpacked(&layers(&gitea, &format!("{host}/{USER}/app:one"))), unpacked(&one.layers));
    let next = sower.image(&["push", "two.tar", &format!("{to}:two"), "--json"]).well().json();
    assert!(next["uploaded"].as_u64().unwrap() * 5 < next["size"].as_u64().unwrap(), "{next}");
    assert_eq!(unpacked(&layers(&gitea, &format!("{host}/{USER}/app:two"))), unpacked(&two.layers));
    // Another package of the owner: Gitea finds blobs by their digest.
    let other = sower.image(&["push", "two.tar", &format!("{host}/{USER}/other:t"), "--json"]).well().json();
    let states = other["layers"].as_array().unwrap().iter().map(|layer| layer["state"].clone());
    assert!(states.clone().all(|state| state == "mounted"), "{other}");
    let doctor = sower.image(&["doctor", &format!("{to}:one")]);
    assert!(doctor.stdout.contains("ROOT_URL = ") && doctor.stdout.contains("Gitea;"), "{}", doctor.stdout);
}

#[test]
fn a_long_layer_goes_in_one_request() {
    let gitea = gitea();
    let host = gitea.url().trim_start_matches("http://").to_owned();
    let front = Front::start(Some(host.parse().unwrap()), |_| Do::Pass);
    let sower = sower(&gitea);
    let image = TestImage::new(&[80_000_000]);
    image.write(&sower.path("image.tar"));
    sower.image(&["push", "image.tar", &format!("{}/{USER}/long:t", front.address)]).well();
    assert_eq!(front.count("PATCH", ""), 1);
    assert!(layers(&gitea, &format!("{host}/{USER}/long:t")) == image.layers);
}

#[test]
fn pruning_leaves_lists_that_stay_whole() {
    let gitea = gitea();
    let host = gitea.url().trim_start_matches("http://").to_owned();
    let sower = sower(&gitea);
    let name = format!("{host}/{USER}/app");
    for n in 1..=4 {
        TestImage::new(&[1000 + n]).write(&sower.path("image.tar"));
        sower.image(&["push", "image.tar", &format!("{name}:t{n}")]).well();
    }
    sower.image(&["push", "image.tar", &format!("{name}:twin"), "--tag", "latest"]).well();
    let ask = |verb: &str, reference: &str, media_type: &str, body: &[u8]| {
        let token = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{}", gitea.token()));
        let (authorization, url) =
            (format!("Basic {token}"), format!("http://{host}/v2/{USER}/app/manifests/{reference}"));
        let headers =
            [("authorization", authorization.as_str()), ("content-type", media_type), ("accept", media_type)];
        sower_test_support::ask(verb, &url, &headers, body).unwrap()
    };
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let (oci, list) =
        ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json");
    // Three images without tags, and two lists that share one.
    let images: Vec<(sower::image::Digest, Vec<u8>)> = (0..3)
        .map(|n| {
            let mut manifest: serde_json::Value =
                serde_json::from_slice(&ask("GET", "t1", docker, b"").body).unwrap();
            manifest["mediaType"] = oci.into();
            manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
            manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
            manifest["annotations"] = serde_json::json!({"n": n.to_string()});
            let bytes = manifest.to_string().into_bytes();
            let digest = sower::image::Digest::of(&bytes);
            assert_eq!(ask("PUT", digest.as_str(), oci, &bytes).status, 201);
            (digest, bytes)
        })
        .collect();
    for (tag, parts) in [("list-old", [0, 1]), ("list-new", [1, 2])] {
        let parts = parts.map(|n| {
            let (digest, bytes) = &images[n];
            let platform =
                serde_json::json!({"os": "linux", "architecture": (["amd64", "arm64", "riscv64"][n])});
            serde_json::json!({"mediaType": oci, "digest": digest, "size": bytes.len(), "platform": platform})
        });
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": list, "manifests": parts});
        assert_eq!(ask("PUT", tag, list, index.to_string().as_bytes()).status, 201);
    }
    sower.image(&["prune", &name, "--keep", "1", "--protect", "t2"]).well();
    let there = |reference: &str, media_type: &str| ask("GET", reference, media_type, b"").status == 200;
    let left: Vec<&str> =
        ["t1", "t2", "t3", "t4", "twin", "latest"].into_iter().filter(|tag| there(tag, docker)).collect();
    assert_eq!(left, ["t2", "latest"]);
    assert!(there("list-new", list) && !there("list-old", list));
    let images: Vec<bool> = images.iter().map(|(digest, _)| there(digest.as_str(), oci)).collect();
    assert_eq!(images, [false, true, true]);
}
