//! One layer of store paths becomes many, and a container sees the same.

use std::collections::BTreeMap;
use std::io::Read as _;

use sower::image::Digest;

use crate::parts::{DockerRegistry, Sower, TestImage, content, gunzip, gzip, part_ok, tar};
use crate::pulled;

/// What an unpacker would make of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    names: (Vec<u8>, Vec<u8>),
    time: u64,
    link: Vec<u8>,
    extensions: Vec<(String, Vec<u8>)>,
    bytes: Digest,
}

/// A name in `/nix/store`: 32 digits that depend on all of `key`, and a name.
pub(crate) fn store_name(key: &str, name: &str) -> String {
    const DIGITS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let hex = Digest::of(key.as_bytes());
    let digits = (0..32).map(|at| {
        let byte = u8::from_str_radix(&hex.hex()[2 * at..2 * at + 2], 16).unwrap();
        char::from(DIGITS[usize::from(byte % 32)])
    });
    format!("{}-{name}", digits.collect::<String>())
}

/// A tar as dockerTools writes it, with what else may stand in one.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        let mut layer = Self(tar::Builder::new(Vec::new()));
        layer.add(tar::EntryType::Directory, "./nix", 0o555, "", b"");
        layer.add(tar::EntryType::Directory, "./nix/store", 0o555, "", b"");
        layer
    }

    pub(crate) fn add(&mut self, kind: tar::EntryType, name: &str, mode: u32, link: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1);
        header.set_uid(30_001);
        header.set_gid(7);
        match link {
            "" => self.0.append_data(&mut header, name, bytes).unwrap(),
            _ => self.0.append_link(&mut header, name, link).unwrap(),
        }
    }

    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) {
        self.add(tar::EntryType::Regular, name, 0o444, "", bytes);
    }

    fn pax(&mut self, records: &[(&str, &[u8])]) {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
    }

    /// An image of this layer, as old as Nix makes it.
    fn image(self) -> TestImage {
        TestImage { layers: vec![self.finish()], created: "1970-01-01T00:00:01Z".to_owned() }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// 40 store paths, three of them large, an application that says `version`, and oddities.
pub(crate) fn nix_image(version: &str) -> TestImage {
    let mut layer = Layer::new();
    let app = store_name(&format!("app {version}"), "app-0.1");
    let mut paths: Vec<(String, usize)> = (0..40u32)
        .map(|n| {
            let name = format!("lib{n}-1.{n}");
            (
                store_name(&name, &name),
                if n < 3 { 700_000 / (n as usize + 1) } else { 3000 + 700 * n as usize },
            )
        })
        .collect();
    let shared = paths[5].0.clone();
    paths.push((app.clone(), 40_000));
    paths.sort();
    for (path, size) in &paths {
        layer.add(tar::EntryType::Directory, &format!("nix/store/{path}/"), 0o555, "", b"");
        let mut bytes = content(path.len() as u32 + u32::from(path.as_bytes()[0]), *size);
        if *path == app {
            bytes.extend(format!("version {version}").as_bytes());
            layer.add(
                tar::EntryType::Symlink,
                &format!("nix/store/{path}/lib"),
                0o777,
                &format!("/nix/store/{shared}"),
                b"",
            );
        }
        layer.file(&format!("nix/store/{path}/bin/program"), &bytes);
        let long = format!("nix/store/{path}/share/{}/{}", "d".repeat(90), "f".repeat(90));
        layer.file(&long, b"a name longer than a header holds");
    }
    // A hard link from one path into another, extended attributes, and a device.
    layer.add(
        tar::EntryType::Link,
        &format!("nix/store/{}/linked", paths[0].0),
        0o444,
        &format!("nix/store/{}/bin/program", paths[9].0),
        b"",
    );
    layer.pax(&[("SCHILY.xattr.user.note", b"kept"), ("mtime", b"1.5")]);
    layer.file(&format!("nix/store/{}/with-attributes", paths[3].0), b"x");
    layer.add(tar::EntryType::Char, "dev/null", 0o666, "", b"");
    layer.add(tar::EntryType::Symlink, "bin", 0o777, &format!("/nix/store/{app}/bin"), b"");
    layer.add(tar::EntryType::Regular, "etc/sudo", 0o4755, "", b"twice");
    layer.add(tar::EntryType::Regular, "etc/sudo", 0o4711, "", b"the last one counts");
    layer.image()
}

/// What unpacking these layers in turn makes: names to what is there.
pub(crate) fn unpacked(layers: &[Vec<u8>]) -> BTreeMap<String, Seen> {
    let mut files = BTreeMap::new();
    for layer in layers {
        let mut archive = tar::Archive::new(&layer[..]);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let name = name.trim_start_matches("./").trim_end_matches('/').to_owned();
            let extensions = entry.pax_extensions().unwrap().map(|extensions| {
                let pair = |extension: tar::PaxExtension<'_>| {
                    (extension.key().unwrap().to_owned(), extension.value_bytes().to_vec())
                };
                extensions.map(|extension| pair(extension.unwrap())).collect()
            });
            let extensions = extensions.unwrap_or_default();
            let link = entry.link_name_bytes().unwrap_or_default().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let header = entry.header();
            let user = header.as_gnu().map(|gnu| gnu.uname.to_vec()).unwrap_or_default();
            let group = header.as_gnu().map(|gnu| gnu.gname.to_vec()).unwrap_or_default();
            let seen = Seen {
                kind: header.entry_type().as_byte(),
                mode: header.mode().unwrap(),
                owner: (header.uid().unwrap(), header.gid().unwrap()),
                names: (user, group),
                time: header.mtime().unwrap(),
                link,
                extensions,
                bytes: Digest::of(&bytes),
            };
            if header.entry_type() == tar::EntryType::Link {
                let target = String::from_utf8(seen.link.clone()).unwrap();
                assert!(files.contains_key(&target), "{name} links to {target}, which is not there yet");
            }
            files.insert(name, seen);
        }
    }
    files
}

#[test]
fn a_split_image_is_the_same_to_a_container_and_the_next_push_moves_little() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = nix_image("one");
    image.write(&sower.path("one.tar"));
    std::fs::write(sower.path("one.tar.gz"), gzip(&image.archive())).unwrap();
    std::fs::write(sower.path("one.tar.zst"), zstd(&image.archive())).unwrap();
    let to = format!("{}/shop/app:one", registry.address);
    let first = sower.image(&["push", "one.tar", &to, "--plain-http", "--json"]).well().json();
    let (config, layers) = pulled(&to);
    assert!(layers.len() > 10, "{} layers", layers.len());
    assert_eq!(unpacked(&layers), unpacked(&image.layers));
    // The configuration fits the layers.
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(ids));
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.iter().filter(|entry| entry["empty_layer"] != true).count(), layers.len());
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/app"]));

    // Compressed sources give the same manifest, byte for byte; nothing of it comes from a cache.
    for source in ["one.tar.gz", "one.tar.zst", "one.tar"] {
        let cache = sower.path(&format!("cache-{source}"));
        let sower = Sower::new().env("SOWER_CACHE_DIR", cache.to_str().unwrap());
        let source = cache.with_file_name(source);
        let push =
            sower.image(&["push", source.to_str().unwrap(), &to, "--plain-http", "--json"]).well().json();
        assert_eq!(push["digest"], first["digest"], "{source:?}");
    }

    // One line of the application: its own path, and what is outside the store. The image is small, so the share is not.
    let next = nix_image("two");
    next.write(&sower.path("two.tar"));
    let to = format!("{}/shop/app:two", registry.address);
    let dry = sower.image(&["push", "two.tar", &to, "--plain-http", "--dry-run"]).well();
    let push = sower.image(&["push", "two.tar", &to, "--plain-http", "--json"]).well().json();
    let sent: Vec<&serde_json::Value> =
        push["layers"].as_array().unwrap().iter().filter(|layer| layer["state"] == "sent").collect();
    assert!(sent.len() <= 4, "{sent:?}\n{}", dry.stderr);
    assert!(push["uploaded"].as_u64().unwrap() * 5 < push["size"].as_u64().unwrap(), "{push}");
    assert_eq!(unpacked(&pulled(&to).1), unpacked(&next.layers));

    // What was learned of all these layers is in one small file, and no file is written per layer.
    let cached = |folder: &str| -> Vec<u64> {
        let folder = std::fs::read_dir(sower.path(folder)).into_iter().flatten().flatten();
        folder.map(|entry| entry.metadata().unwrap()).filter(|file| file.is_file()).map(|f| f.len()).collect()
    };
    let (facts, sources) = (cached("cache"), cached("cache/sources"));
    assert_eq!(facts.len(), 1);
    assert!(facts[0] < 600 * 2 * layers.len() as u64, "{facts:?} for {} layers", layers.len());
    assert!(sources.len() <= 2 && sources.iter().sum::<u64>() < 300 * 2 * layers.len() as u64, "{sources:?}");

    // What is in a layer can be seen afterwards, in the source and in the registry.
    let there = sower.image(&["inspect", &to, "--plain-http", "--json"]).well().json();
    let here = sower.image(&["inspect", "two.tar", &to, "--plain-http", "--json"]).well().json();
    let paths = |inspection: &serde_json::Value| -> Vec<serde_json::Value> {
        inspection["layers"].as_array().unwrap().iter().map(|layer| layer["paths"].clone()).collect()
    };
    assert_eq!(paths(&there), paths(&here));
    let to_send = here["layers"].as_array().unwrap().iter().filter(|layer| layer["there"] == false).count();
    assert_eq!(to_send, 0, "{here:#}");
    let picture = sower.image(&["inspect", "two.tar"]).well().stdout;
    assert!(picture.contains('█') && picture.contains("lib0-1.0"), "{picture}");
}

/// Nix names a path by what it is made of, not by what came out: two builds of one derivation may differ.
#[test]
fn a_path_with_other_bytes_under_the_same_name_and_size_is_sent() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = nix_image("one");
    image.write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", registry.address);
    sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
    let mut other = image.clone();
    let at = other.layers[0].windows(11).position(|bytes| bytes == b"version one").unwrap();
    other.layers[0][at..at + 11].copy_from_slice(b"version two");
    for (name, bytes) in [("other.tar", other.archive()), ("other.tar.gz", gzip(&other.archive()))] {
        std::fs::write(sower.path(name), bytes).unwrap();
        let push = sower.image(&["push", name, &to, "--plain-http", "--json"]).well().json();
        let sent = push["layers"].as_array().unwrap().iter().filter(|layer| layer["state"] == "sent").count();
        assert_eq!(sent, usize::from(name == "other.tar"), "{push:#}");
        assert_eq!(unpacked(&pulled(&to).1), unpacked(&other.layers), "{name}");
    }
}

#[test]
fn layers_are_kept_when_asked_and_split_only_when_they_can_be() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = nix_image("one");
    image.write(&sower.path("nix.tar"));
    let to = format!("{}/shop/app:t", registry.address);
    sower.image(&["push", "nix.tar", &to, "--plain-http", "--layers", "keep"]).well();
    assert_eq!(pulled(&to).1, image.layers);
    sower.image(&["push", "nix.tar", &to, "--plain-http", "--max-layers", "9"]).well();
    let (_, layers) = pulled(&to);
    assert!(layers.len() <= 9, "{}", layers.len());
    assert_eq!(unpacked(&layers), unpacked(&image.layers));
    TestImage::new(&[3000]).write(&sower.path("plain.tar"));
    sower
        .image(&["push", "plain.tar", &to, "--plain-http", "--layers", "store-paths"])
        .badly(2, &["holds no store paths", "--layers keep"]);
    sower.image(&["push", "plain.tar", &to, "--plain-http"]).well();
    TestImage::new(&[3000, 10]).write(&sower.path("two.tar"));
    sower
        .image(&["push", "two.tar", &to, "--plain-http", "--layers", "store-paths"])
        .badly(2, &["it has 2 layers, not one"]);
    // Whiteouts hide nothing that they did not hide before.
    let mut layer = Layer::new();
    let path = store_name("x", "x-1");
    layer.file("nix/store/.wh..wh..opq", b"");
    layer.file(&format!("nix/store/.wh.{path}"), b"");
    layer.file(&format!("nix/store/{path}/file"), &content(1, 300_000));
    let image = TestImage { layers: vec![layer.finish()], created: "2026-01-01T00:00:00Z".to_owned() };
    image.write(&sower.path("whiteouts.tar"));
    sower.image(&["push", "whiteouts.tar", &to, "--plain-http"]).well();
    let (_, layers) = pulled(&to);
    assert_eq!(layers.len(), 2);
    assert!(unpacked(&layers[..1]).keys().any(|name| name.contains(".wh.")), "whiteouts are at the bottom");
}

/// No writer makes such a tar, but one may: all layers are open until the end.
#[test]
fn paths_whose_files_lie_among_each_others_are_told_apart_in_a_compressed_archive_too() {
    let registry = DockerRegistry::start("");
    let mut layer = Layer::new();
    let paths: Vec<String> = (0..12).map(|n| store_name(&format!("p{n}"), &format!("p-{n}"))).collect();
    for round in 0..5 {
        for (n, path) in paths.iter().enumerate() {
            layer.file(&format!("nix/store/{path}/file{round}"), &content(100 * round + n as u32, 40_000));
        }
    }
    let image = TestImage { layers: vec![layer.finish()], created: "2026-01-01T00:00:00Z".to_owned() };
    let plain = image.archive();
    let mut digests = Vec::new();
    for (name, bytes) in [("plain.tar", plain.clone()), ("packed.tar.gz", gzip(&plain))] {
        let sower = Sower::new();
        std::fs::write(sower.path(name), bytes).unwrap();
        let to = format!("{}/shop/{}:t", registry.address, &name[..5]);
        let push = sower.image(&["push", name, &to, "--plain-http", "--json"]).well().json();
        assert_eq!(push["layers"].as_array().unwrap().len(), 12, "{push:#}");
        assert_eq!(unpacked(&pulled(&to).1), unpacked(&image.layers), "{name}");
        digests.push(push["digest"].clone());
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_layer_that_lies_is_found_out_when_it_is_split_too() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = nix_image("one");
    let to = format!("{}/shop/app:t", registry.address);
    let mut members = image.members();
    let at = members[0].1.len() / 2;
    members[0].1[at] ^= 1;
    let twisted = tar(&members);
    for (name, bytes) in [("twisted.tar", twisted.clone()), ("twisted.tar.gz", gzip(&twisted))] {
        std::fs::write(sower.path(name), bytes).unwrap();
        let push = sower.image(&["push", name, &to, "--plain-http"]);
        push.badly(1, &["hashes to", "damaged", "nothing was tagged"]);
    }
    assert_eq!(crate::tags(&registry, "shop/app"), [""; 0]);
}

/// Long enough for the next push to begin its hashing in the middle.
fn long_image(version: &str) -> TestImage {
    let mut layer = Layer::new();
    for at in 0..4u32 {
        let path = store_name(&at.to_string(), "lib");
        layer.file(&format!("nix/store/{path}/lib.so"), &content(at, 10_000_000));
    }
    layer.file(&format!("nix/store/{}/server", store_name(version, "app")), version.as_bytes());
    layer.image()
}

/// What the push before has hashed is not hashed again, and yet nothing gets by.
#[test]
fn bytes_that_were_hashed_before_are_not_taken_to_be_the_same() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = long_image("one");
    let to = |tag: &str| format!("{}/shop/app:{tag}", registry.address);
    let push = |image: &[u8], tag: &str| {
        std::fs::write(sower.path("image.tar"), image).unwrap();
        sower.image(&["push", "image.tar", &to(tag), "--plain-http", "--compression", "none", "--json"])
    };
    push(&image.archive(), "one").well();

    // Only the application is new.
    let second = long_image("two");
    let sent = push(&second.archive(), "two").well().json()["uploaded"].as_u64().unwrap();
    assert!(sent < 10_000, "{sent}");
    assert_eq!(unpacked(&pulled(&to("two")).1), unpacked(&second.layers));

    // Other bytes under an old name, early: the configuration knows nothing of them.
    let mut members = second.members();
    members[0].1[5_000_000] ^= 1;
    push(&tar(&members), "twisted").badly(1, &["hashes to", "damaged", "nothing was tagged"]);

    // And now it does.
    let mut other = second.clone();
    other.layers[0][5_000_000] ^= 1;
    push(&other.archive(), "other").well();
    assert_eq!(unpacked(&pulled(&to("other")).1), unpacked(&other.layers));
    assert_eq!(crate::tags(&registry, "shop/app"), ["one", "other", "two"]);
}

/// A cache that is wrong costs time.
#[test]
fn a_state_in_the_cache_that_is_not_true_accuses_nobody() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let to = format!("{}/shop/app:t", registry.address);
    let push = |version: &str| {
        long_image(version).write(&sower.path("image.tar"));
        sower.image(&["push", "image.tar", &to, "--plain-http", "--compression", "none"]).well();
    };
    push("one");
    let marks = std::fs::read_dir(sower.path("cache").join("marks")).unwrap().next().unwrap().unwrap().path();
    let text = zstd::decode_all(&std::fs::read(&marks).unwrap()[..]).unwrap();
    let mut read: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
    assert_eq!(read.len(), 2);
    read[1]["state"] = read[0]["state"].clone();
    std::fs::write(&marks, zstd::encode_all(&serde_json::to_vec(&read).unwrap()[..], 3).unwrap()).unwrap();
    push("two");
    assert_eq!(unpacked(&pulled(&to).1), unpacked(&long_image("two").layers));
}

#[test]
fn every_compression_gives_the_same_image() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let image = nix_image("one");
    image.write(&sower.path("one.tar"));
    for (compression, media_type) in [
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("none", "application/vnd.oci.image.layer.v1.tar"),
        ("gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let to = format!("{}/shop/{compression}:t", registry.address);
        sower.image(&["push", "one.tar", &to, "--plain-http", "--compression", compression]).well();
        let raw = part_ok("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{to}")]);
        let raw: serde_json::Value = serde_json::from_slice(&raw).unwrap();
        let types = raw["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].clone());
        assert!(types.clone().all(|is| is == media_type), "{raw}");
        let layout = sower.path(&format!("{compression}.back"));
        let (from, to) = (format!("docker://{to}"), format!("oci:{}:t", layout.display()));
        part_ok("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &from, &to]);
        assert_eq!(unpacked(&layers_of(&layout)), unpacked(&image.layers), "{compression}");
    }
}

/// The plain layers of an OCI layout, each compared with its diffID.
fn layers_of(layout: &std::path::Path) -> Vec<Vec<u8>> {
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let blob = |descriptor: &serde_json::Value| {
        let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        std::fs::read(layout.join("blobs/sha256").join(hex)).unwrap()
    };
    let index = json(&std::fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&blob(&index["manifests"][0]));
    let config = json(&blob(&manifest["config"]));
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(ids.len(), layers.len());
    let plain = layers.iter().zip(ids).map(|(layer, id)| {
        let bytes = blob(layer);
        let plain = match layer["mediaType"].as_str().unwrap().rsplit('+').next().unwrap() {
            "zstd" => unzstd(&bytes),
            "gzip" => gunzip(&bytes),
            _ => bytes,
        };
        assert_eq!(*id, Digest::of(&plain).as_str());
        plain
    });
    plain.collect()
}

pub(crate) fn unzstd(bytes: &[u8]) -> Vec<u8> {
    through("zstd", &["-q", "-d", "-c"], bytes)
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    through("zstd", &["-q", "-c"], bytes)
}

fn through(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    output.stdout
}
