//! The registry of the stand-in: Debian's docker-registry behind it, Gitea's authentication and tags in front.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use sower_test_support::{Answer, Forge, Options, PASSWORD, RegistryOptions, USER, ask, free_address};

const DEAD_REALM: &str = "http://127.0.0.1:1";

/// A docker-registry without authentication, ended when dropped.
struct Registry {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address().unwrap();
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem: {{rootdir: {}}}\nhttp: {{addr: \"{address}\"}}\n",
                storage.display()
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry: {error}; `make test-parts` installs it"));
        let registry = Self { child, address, _folder: folder };
        for _ in 0..600 {
            if TcpStream::connect(address).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("docker-registry does not answer");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(realm: Option<&str>) -> (Registry, Forge) {
    let registry = Registry::start();
    let options = RegistryOptions { upstream: registry.address, realm: realm.map(str::to_owned) };
    let forge = Forge::start(Options { registry: Some(options), ..Options::default() }).unwrap();
    (registry, forge)
}

fn get(forge: &Forge, path: &str, authorization: &str) -> Answer {
    let headers = [("authorization", authorization)];
    let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
    ask("GET", &format!("{}{path}", forge.url()), headers, b"").unwrap()
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// An image of one layer with one file, as `docker save` writes it.
fn image(path: &Path) {
    let entry = |tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data).unwrap();
    };
    let mut layer = tar::Builder::new(Vec::new());
    entry(&mut layer, "hello", b"hello\n");
    let layer = layer.into_inner().unwrap();
    let digest: String = {
        use sha2::Digest as _;
        sha2::Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["app:x"],"Layers":["layer.tar"]}]"#;
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, "config.json", config.as_bytes());
    entry(&mut archive, "layer.tar", &layer);
    entry(&mut archive, "manifest.json", manifest.as_bytes());
    fs::File::create(path).unwrap().write_all(&archive.into_inner().unwrap()).unwrap();
}

fn sower(folder: &Path, password: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sower"))
        .args(arguments)
        .env("HOME", folder)
        .env("SOWER_CACHE_DIR", folder.join("cache"))
        .env("SOWER_REGISTRY_USERNAME", USER)
        .env("SOWER_REGISTRY_PASSWORD", password)
        .output()
        .unwrap()
}

#[test]
fn a_token_is_had_as_from_gitea() {
    let (_registry, forge) = start(None);
    let asked = get(&forge, "/v2/", "");
    assert_eq!(asked.status, 401);
    let expected =
        format!("Bearer realm=\"{}/v2/token\",service=\"container_registry\",scope=\"*\"", forge.url());
    assert_eq!(asked.header("www-authenticate"), Some(expected.as_str()));
    assert_eq!(asked.json()["errors"][0]["code"], "UNAUTHORIZED");

    assert_eq!(get(&forge, "/v2/token", &basic(USER, "wrong")).status, 401);
    let token = get(&forge, "/v2/token?service=container_registry", &basic(USER, PASSWORD)).json();
    let token = token["token"].as_str().unwrap();
    assert_eq!(get(&forge, "/v2/", &format!("Bearer {token}")).status, 200);
    let anonymous = get(&forge, "/v2/token", "").json();
    let anonymous = format!("Bearer {}", anonymous["token"].as_str().unwrap());
    assert_eq!(get(&forge, "/v2/", &anonymous).status, 200);
    let url = format!("{}/v2/dev/app/blobs/uploads/", forge.url());
    assert_eq!(ask("POST", &url, &[("authorization", &anonymous)], b"").unwrap().status, 401);
    // Right as they are, these are not what the root takes.
    assert_eq!(get(&forge, "/v2/", &basic(USER, PASSWORD)).status, 401);
    assert_eq!(get(&forge, "/v2/", &format!("Bearer {}", forge.token())).status, 401);

    let access = basic(USER, forge.token());
    let upload = ask("POST", &url, &[("authorization", &access)], b"").unwrap();
    assert_eq!(upload.status, 202, "{}", upload.text());
    assert!(
        upload.header("location").unwrap().starts_with("/v2/dev/app/blobs/uploads/"),
        "a path, no address"
    );
}

#[test]
fn images_are_pushed_past_a_dead_realm_and_pruned() {
    let (_registry, forge) = start(Some(DEAD_REALM));
    assert!(get(&forge, "/v2/", "").header("www-authenticate").unwrap().contains(DEAD_REALM));
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    image(&archive);
    let archive = archive.to_str().unwrap();
    let name = format!("{}/dev/app", forge.address());
    for tag in 1..=7 {
        let output = sower(
            folder.path(),
            forge.token(),
            &["image", "push", archive, &name, "--tag", &format!("t{tag}"), "--plain-http"],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let tags = || forge.packages().into_iter().map(|package| package.tag).collect::<Vec<_>>();
    assert_eq!(tags(), ["t1", "t2", "t3", "t4", "t5", "t6", "t7"]);
    let digests: std::collections::BTreeSet<String> =
        forge.packages().into_iter().map(|package| package.digest).collect();
    assert_eq!(digests.len(), 1, "one image, seven tags");

    // The list of packages comes in pages, newest first.
    let page = get(&forge, "/api/v1/packages/dev?type=container&page=2&limit=3", &basic(USER, forge.token()));
    let versions: Vec<_> =
        page.json().as_array().unwrap().iter().map(|package| package["version"].clone()).collect();
    assert_eq!(versions, ["t4", "t3", "t2"]);
    assert_eq!(page.header("x-total-count"), Some("7"));

    let output =
        sower(folder.path(), forge.token(), &["image", "prune", &name, "--keep", "5", "--plain-http"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(tags(), ["t3", "t4", "t5", "t6", "t7"]);

    let access = basic(USER, forge.token());
    let listed = get(&forge, "/v2/dev/app/tags/list", &access);
    assert_eq!(listed.json()["tags"].as_array().unwrap().len(), 5);
    assert!(listed.header("link").unwrap().contains("last=t7"), "a link even when nothing follows");
    assert_eq!(get(&forge, "/v2/dev/app/manifests/t1", &access).status, 404);
    assert_eq!(get(&forge, "/v2/dev/app/manifests/t7", &access).status, 200);
    let again = ask(
        "DELETE",
        &format!("{}/api/v1/packages/dev/container/app/t1", forge.url()),
        &[("authorization", &access)],
        b"",
    )
    .unwrap();
    assert_eq!(again.status, 404);
}
