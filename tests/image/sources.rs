//! Sources that are read once: scripts, standard input; and archives with several images.

use std::os::unix::fs::PermissionsExt;

use crate::front::{Do, Front};
use crate::parts::{DockerRegistry, Sower, TestImage, gzip, tar};
use crate::split::zstd;
use crate::{pulled, tags};

fn script(sower: &Sower, text: &str) {
    let path = sower.path("stream");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let _ = std::os::unix::fs::symlink("stream", sower.path("result"));
}

#[test]
fn a_script_and_standard_input_are_pushed_as_they_come() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new().env("PATH", "/usr/bin:/bin");
    let image = TestImage::new(&[300_000, 2000]);
    image.write(&sower.path("image.tar"));
    script(&sower, &format!("exec cat {}", sower.path("image.tar").display()));
    let to = format!("{}/shop/script:t", registry.address);
    let push = sower.image(&["push", "result", &to, "--plain-http", "--json"]).well().json();
    assert_eq!(pulled(&to), (image.config(), image.layers.clone()));
    // The same manifest as from the file.
    let file = format!("{}/shop/file:t", registry.address);
    let from_file = sower.image(&["push", "image.tar", &file, "--plain-http", "--json"]).well().json();
    assert_eq!(push["digest"], from_file["digest"]);

    for (name, bytes) in
        [("plain", image.archive()), ("gzip", gzip(&image.archive())), ("zstd", zstd(&image.archive()))]
    {
        let to = format!("{}/shop/stdin-{name}:t", registry.address);
        let push =
            sower.image_with_bytes(&["push", "-", &to, "--plain-http", "--json"], &bytes).well().json();
        assert_eq!(push["digest"], from_file["digest"], "{name}");
        assert_eq!(pulled(&to).1, image.layers, "{name}");
    }
    let (secret, to) = (b"x\n".as_slice(), to.as_str());
    sower
        .image_with_bytes(&["push", "-", to, "--plain-http", "--username", "u", "--password-stdin"], secret)
        .badly(2, &["both the image and the password"]);
    sower.image_with_bytes(&["push", "-", to, "--plain-http"], b"").badly(2, &["nothing came"]);
    sower.image_with_bytes(&["push", "-", to, "--layers", "store-paths"], b"").badly(2, &["needs a file"]);
}

#[test]
fn what_a_stream_names_by_digest_is_known_again_but_not_believed() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = TestImage::new(&[300_000, 200_000]);
    // As nixpkgs and podman name layers.
    let named = |image: &TestImage, twist: bool| {
        let config = image.config();
        let name = |at: usize| format!("{}/layer.tar", sower::image::Digest::of(&image.layers[at]).hex());
        let mut first = image.layers[0].clone();
        if twist {
            first[2000] ^= 1;
        }
        let manifest =
            serde_json::json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": [name(0), name(1)]}]);
        tar(&[
            (&name(0), &first),
            (&name(1), &image.layers[1]),
            ("c.json", &config),
            ("manifest.json", manifest.to_string().as_bytes()),
        ])
    };
    let to = format!("{}/shop/app:t", registry.address);
    let push =
        |bytes: &[u8], to: &str| sower.image_with_bytes(&["push", "-", to, "--plain-http", "--json"], bytes);
    push(&named(&image, false), &to).well();
    let again = push(&named(&image, false), &to).well().json();
    assert_eq!(again["uploaded"], 0);
    assert_eq!(again["layers"][0]["state"], "kept");
    // The name says what was pushed before, the bytes do not.
    let lie = format!("{}/shop/app:lie", registry.address);
    push(&named(&image, true), &lie).badly(1, &["is said to be", "damaged", "nothing was tagged"]);
    assert_eq!(tags(&registry, "shop/app"), ["t"]);
}

#[test]
fn a_script_that_fails_half_way_tags_nothing() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new().env("PATH", "/usr/bin:/bin");
    let image = TestImage::new(&[300_000, 2000]);
    image.write(&sower.path("image.tar"));
    let path = sower.path("image.tar");
    let to = format!("{}/shop/app:t", registry.address);
    let push = || sower.image(&["push", "result", &to, "--plain-http"]);
    script(&sower, &format!("head -c 200000 {}; exit 3", path.display()));
    push().badly(1, &["the script failed: exit status: 3", "nothing was tagged"]);
    // All is there, and still it says that it failed.
    script(&sower, &format!("cat {}; exit 4", path.display()));
    push().badly(1, &["the script failed: exit status: 4", "nothing was tagged"]);
    // It says that it went well, and half is there.
    script(&sower, &format!("head -c 200000 {}", path.display()));
    push().badly(1, &["nothing was tagged"]);
    script(&sower, &format!("head -c 307500 {}", path.display()));
    push().badly(1, &["nothing was tagged"]);
    script(&sower, "exit 0");
    push().badly(2, &["nothing came"]);
    assert_eq!(tags(&registry, "shop/app"), [""; 0]);
}

#[test]
fn a_script_is_run_again_when_the_registry_breaks_off_and_standard_input_says_what_to_do() {
    let registry = DockerRegistry::start("");
    let cut = std::sync::atomic::AtomicBool::new(false);
    let front = Front::start(Some(registry.address), move |seen| {
        let first = seen.method == "PATCH" && !cut.swap(true, std::sync::atomic::Ordering::SeqCst);
        if first { Do::CutAfter(20_000) } else { Do::Pass }
    });
    let sower = Sower::new().env("PATH", "/usr/bin:/bin");
    let image = TestImage::new(&[400_000, 2000]);
    image.write(&sower.path("image.tar"));
    script(&sower, &format!("exec cat {}", sower.path("image.tar").display()));
    let to = format!("{}/shop/app:t", front.address);
    sower.image(&["push", "result", &to, "--plain-http"]).well();
    assert_eq!(pulled(&format!("{}/shop/app:t", registry.address)).1, image.layers);

    let front = Front::start(Some(registry.address), |seen| match seen.method.as_str() {
        "PATCH" => Do::CutAfter(20_000),
        _ => Do::Pass,
    });
    let to = format!("{}/shop/other:t", front.address);
    sower
        .image_with_bytes(&["push", "-", &to, "--plain-http"], &image.archive())
        .badly(1, &["standard input", "broke in the middle", "Push again"]);
}

#[test]
fn one_image_of_several_is_chosen_by_name() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let (one, two) = (TestImage::new(&[3000]), TestImage::new(&[4000, 20]));
    let mut entries = Vec::new();
    let mut members: Vec<(String, Vec<u8>)> = Vec::new();
    for (image, tag) in [(&one, "reg.example/shop/one:1"), (&two, "two:latest")] {
        let prefix = tag.replace(['/', ':'], "-");
        let names: Vec<String> =
            (0..image.layers.len()).map(|at| format!("{prefix}{at}/layer.tar")).collect();
        entries.push(
            serde_json::json!({"Config": format!("{prefix}.json"), "RepoTags": [tag], "Layers": names}),
        );
        members.extend(names.into_iter().zip(image.layers.iter().cloned()));
        members.push((format!("{prefix}.json"), image.config()));
    }
    members.push(("manifest.json".to_owned(), serde_json::json!(entries).to_string().into_bytes()));
    let members: Vec<_> = members.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let archive = tar(&members);
    std::fs::write(sower.path("both.tar"), &archive).unwrap();
    let to = format!("{}/shop/app:t", registry.address);
    let push = |more: &[&str]| {
        let mut arguments = vec!["push", "both.tar", &to, "--plain-http"];
        arguments.extend(more);
        sower.image(&arguments)
    };
    push(&[]).badly(2, &["holds 2 images", "reg.example/shop/one:1, two:latest", "--image NAME"]);
    push(&["--image", "three"]).badly(2, &["holds no image \"three\"", "two:latest"]);
    push(&["--image", "shop/one:1"]).well();
    assert_eq!(pulled(&to).1, one.layers);
    push(&["--image", "two"]).well();
    assert_eq!(pulled(&to).1, two.layers);
    sower.image_with_bytes(&["push", "-", &to, "--plain-http", "--image", "shop/one:1"], &archive).well();
    assert_eq!(pulled(&to).1, one.layers);
    let inspection = sower.image(&["inspect", "both.tar", "--image", "two", "--json"]).well().json();
    assert_eq!(inspection["layers"].as_array().unwrap().len(), 2);
}
