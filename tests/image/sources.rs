//! Sources that are read once: scripts, standard input; and archives with several images.

use std::os::unix::fs::PermissionsExt;

use sower::image::Digest;

use crate::front::{Do, Front};
use crate::parts::{DockerRegistry, LONG, Sower, TestImage, gzip, part_ok, tar};
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
    // A pipe with a name, as a shell makes one of `<(…)`.
    let pipe = ["push", "/dev/stdin", &to, "--plain-http", "--json"];
    let push = sower.image_with_bytes(&pipe, &gzip(&image.archive())).well().json();
    assert_eq!(push["digest"], from_file["digest"]);
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
            (name(0).as_str(), &first[..]),
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
    // Too long to be kept in memory.
    let image = TestImage::new(&[LONG, 2000]);
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

/// What a docker of today saves: an OCI layout with a `manifest.json` besides, its layers plain or as they were pulled.
fn layout(layers: &[(Vec<u8>, &str)], image: &TestImage) -> Vec<(String, Vec<u8>)> {
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let config = image.config();
    let descriptor = |bytes: &[u8], kind: &str| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
    };
    let described: Vec<_> =
        layers.iter().map(|(bytes, packed)| descriptor(bytes, &format!("layer.v1.tar{packed}"))).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(&config, "config.v1+json"), "layers": described,
    });
    let manifest = manifest.to_string().into_bytes();
    let index =
        serde_json::json!({"schemaVersion": 2, "manifests": [descriptor(&manifest, "manifest.v1+json")]});
    let mut members: Vec<(String, Vec<u8>)> =
        layers.iter().map(|(bytes, _)| (blob(bytes), bytes.clone())).collect();
    let docker = serde_json::json!([{
        "Config": blob(&config), "RepoTags": ["app:t"],
        "Layers": layers.iter().map(|(bytes, _)| blob(bytes)).collect::<Vec<_>>(),
    }]);
    members.extend([
        (blob(&config), config),
        (blob(&manifest), manifest),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        ("manifest.json".to_owned(), docker.to_string().into_bytes()),
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ]);
    members
}

/// The plain layers of a reference, whatever they are packed with.
fn plain_layers(sower: &Sower, reference: &str) -> Vec<Vec<u8>> {
    let directory = sower.path("pulled");
    let _ = std::fs::remove_dir_all(&directory);
    let (from, to) = (format!("docker://{reference}"), format!("dir:{}", directory.display()));
    part_ok("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &from, &to]);
    let manifest = std::fs::read(directory.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| {
        let bytes =
            std::fs::read(directory.join(&layer["digest"].as_str().unwrap()["sha256:".len()..])).unwrap();
        match bytes[..4] {
            [0x1f, 0x8b, ..] => crate::parts::gunzip(&bytes),
            [0x28, 0xb5, 0x2f, 0xfd] => crate::split::unzstd(&bytes),
            _ => bytes,
        }
    });
    layers.collect()
}

#[test]
fn what_todays_docker_saves_and_every_kind_of_layer_is_pushed_from_a_file_and_a_stream() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = TestImage::new(&[200_000, 3000]);
    for (packed, pack) in
        [("", (|bytes| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>), ("+gzip", gzip), ("+zstd", zstd)]
    {
        let layers: Vec<(Vec<u8>, &str)> = image.layers.iter().map(|layer| (pack(layer), packed)).collect();
        let docker = layout(&layers, &image);
        // Without docker's list it is an OCI layout.
        let oci: Vec<_> = docker.iter().filter(|(name, _)| name != "manifest.json").cloned().collect();
        for (kind, members) in [("docker", docker), ("oci", oci)] {
            let archive = tar(&members);
            std::fs::write(sower.path("image.tar"), &archive).unwrap();
            let name = format!("{}/{kind}/layers{}", registry.address, packed.replace('+', "-"));
            let (file, stream) = (format!("{name}:file"), format!("{name}:stream"));
            sower.image(&["push", "image.tar", &file, "--plain-http"]).well();
            assert!(plain_layers(&sower, &file) == image.layers, "{file}");
            sower.image_with_bytes(&["push", "-", &stream, "--plain-http"], &archive).well();
            assert!(plain_layers(&sower, &stream) == image.layers, "{stream}");
        }
    }
}

#[test]
fn a_directory_of_skopeos_and_an_unpacked_archive_are_pushed() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = TestImage::new(&[200_000, 3000]);
    image.write(&sower.path("image.tar"));
    let (dir, unpacked) = (sower.path("dir"), sower.path("unpacked"));
    let from = format!("docker-archive:{}", sower.path("image.tar").display());
    part_ok("skopeo", &["copy", "--insecure-policy", &from, &format!("dir:{}", dir.display())]);
    std::fs::create_dir(&unpacked).unwrap();
    let archive = sower.path("image.tar");
    part_ok("tar", &["-C", unpacked.to_str().unwrap(), "-xf", archive.to_str().unwrap()]);
    for source in ["dir", "unpacked"] {
        let to = format!("{}/shop/{source}:t", registry.address);
        sower.image(&["push", source, &to, "--plain-http"]).well();
        assert!(plain_layers(&sower, &to) == image.layers, "{source}");
        sower.image(&["inspect", source]).well();
    }
    std::fs::create_dir(sower.path("empty")).unwrap();
    sower.image(&["push", "empty", "r.example/a/b", "--plain-http"]).badly(2, &["neither index.json"]);
}

#[test]
fn a_compressed_layer_that_is_not_what_the_configuration_says_tags_nothing() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = TestImage::new(&[100_000]);
    let other = TestImage::new(&[100_001]);
    let to = format!("{}/shop/app:t", registry.address);
    for pack in [gzip as fn(&[u8]) -> Vec<u8>, zstd] {
        // Every digest is right but the one of the plain tar.
        let members = layout(&[(pack(&other.layers[0]), "")], &image);
        for without in ["manifest.json", "index.json"] {
            let members: Vec<_> = members.iter().filter(|(name, _)| name != without).cloned().collect();
            std::fs::write(sower.path("image.tar"), tar(&members)).unwrap();
            let push = sower.image(&["push", "image.tar", &to, "--plain-http"]);
            push.badly(1, &["a layer hashes to", "nothing was tagged"]);
        }
    }
    assert_eq!(tags(&registry, "shop/app"), [""; 0]);
}

#[test]
fn a_stream_can_be_looked_into() {
    let sower = Sower::new().env("PATH", "/usr/bin:/bin");
    let image = crate::split::nix_image("one");
    image.write(&sower.path("image.tar"));
    script(&sower, &format!("exec cat {}", sower.path("image.tar").display()));
    let from_script = sower.image(&["inspect", "result", "--json"]).well().json();
    let from_stdin = sower.image_with_bytes(&["inspect", "-", "--json"], &image.archive()).well().json();
    let from_file = sower.image(&["inspect", "image.tar", "--keep", "--json"]).well().json();
    assert_eq!(from_script["layers"], from_file["layers"]);
    assert_eq!(from_stdin["layers"], from_file["layers"]);
    let paths = from_file["layers"][0]["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 41, "{paths:?}");
    script(&sower, "exit 3");
    sower.image(&["inspect", "result"]).badly(1, &["the script failed"]);
}
