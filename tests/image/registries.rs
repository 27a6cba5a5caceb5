//! Who logs in how, what a diagnosis says, and nodes that an image is brought to.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use sower_test_support::Sshd;

use crate::front::{Do, Front};
use crate::parts::{DockerRegistry, Sower, TestImage, TokenService, part_ok};
use crate::split::{nix_image, unpacked};
use crate::{PASSWORD, pulled, tags, user, with_tokens};

fn program(sower: &Sower, name: &str, text: &str) -> String {
    let folder = sower.path("bin");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    format!("{}:/usr/bin:/bin", folder.display())
}

#[test]
fn credentials_come_from_helpers_and_a_token_from_a_file() {
    let (_registry, front) = with_tokens("http://127.0.0.1:1/v2/token");
    let to = format!("{}/shop/app:t", front.address);
    let sower = Sower::new();
    TestImage::new(&[1000]).write(&sower.path("image.tar"));
    let path = program(
        &sower,
        "docker-credential-vault",
        &format!(
            "read host; [ \"$1 $host\" = 'get {}' ] || {{ echo credentials not found; exit 1; }}\n\
             echo '{{\"ServerURL\":\"x\",\"Username\":\"dev\",\"Secret\":\"{PASSWORD}\"}}'",
            front.address
        ),
    );
    std::fs::create_dir(sower.path(".docker")).unwrap();
    let sower = sower.env("PATH", &path);
    let config = |store: &str| serde_json::json!({"credsStore": store});
    let write = |config: serde_json::Value| {
        std::fs::write(sower.path(".docker/config.json"), config.to_string()).unwrap();
    };

    write(config("vault"));
    sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
    write(serde_json::json!({"credHelpers": {front.address.to_string(): "vault"}, "credsStore": "absent"}));
    sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
    write(config("absent"));
    sower
        .image(&["push", "image.tar", &to, "--plain-http"])
        .badly(2, &["docker-credential-absent get", "No such file"]);
    // One that has nothing for this registry is no fault; then credentials are wanted.
    write(serde_json::json!({"credHelpers": {"other.example": "absent"}}));
    sower.image(&["push", "image.tar", &to, "--plain-http"]).badly(1, &["credentials are wanted"]);

    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let answer: serde_json::Value =
        serde_json::from_slice(&tokens.answer("shop/app", &["pull", "push"])).unwrap();
    let token = answer["token"].as_str().unwrap();
    std::fs::write(sower.path("token"), format!("{token}\n")).unwrap();
    let to = format!("{}/shop/app:t", registry.address);
    sower.image(&["push", "image.tar", &to, "--plain-http", "--registry-token", "token"]).well();
    let sower = sower.env("SOWER_REGISTRY_TOKEN", token);
    std::fs::remove_file(sower.path(".docker/config.json")).unwrap();
    sower.image(&["push", "image.tar", &to, "--plain-http"]).well();
    let sower = sower.env("SOWER_REGISTRY_TOKEN", "not.a.token");
    let wrong = sower.image(&["push", "image.tar", &to, "--plain-http"]).badly(1, &["401"]);
    assert!(!wrong.stderr.contains("not.a.token"));
}

#[test]
fn an_authority_of_ones_own_is_trusted_when_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (ca, ca_key) = (file("ca.pem"), file("ca-key.pem"));
    let (key, cert) = (file("key.pem"), file("cert.pem"));
    let common = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    let make = |more: &[&str]| drop(part_ok("openssl", &[&common[..], more].concat()));
    make(&["-subj", "/CN=authority", "-keyout", &ca_key, "-out", &ca]);
    let leaf = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    let signed = ["-subj", "/CN=registry", "-CA", &ca, "-CAkey", &ca_key, "-keyout", &key, "-out", &cert];
    make(&[&leaf[..], &signed[..]].concat());
    let registry = DockerRegistry::start_with_tls(&cert, &key);
    let sower = Sower::new();
    TestImage::new(&[1000]).write(&sower.path("image.tar"));
    let to = format!("{}/shop/app:t", registry.address);
    sower.image(&["push", "image.tar", &to]).badly(1, &["asking the registry"]);
    sower.image(&["push", "image.tar", &to, "--ca", &ca]).well();
    sower.image(&["push", "image.tar", &to, "--insecure"]).well();
    sower.image(&["push", "image.tar", &to, "--ca", &key]).badly(2, &["no certificate in PEM form"]);
}

#[test]
fn the_doctor_tells_what_a_push_and_a_pull_will_meet() {
    // Well in all.
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let open = format!("{}/shop/app", registry.address);
    let well = sower.image(&["doctor", &open, "--plain-http"]).well();
    assert!(well.stdout.contains("push works, pull by a cluster works"), "{}", well.stdout);
    assert!(well.stdout.contains("registries.yaml") && well.stdout.contains("mirrors:"), "{}", well.stdout);
    // The scheme is found out.
    let found = sower.image(&["doctor", &open, "--json"]).well().json();
    assert!(found["findings"][0]["text"].as_str().unwrap().contains("plain HTTP only"), "{found}");

    // A dead realm: a push goes round it, a cluster cannot.
    let (_registry, front) = with_tokens("http://127.0.0.1:1/v2/token");
    let to = format!("{}/shop/app:t", front.address);
    let sower = user("dev", PASSWORD);
    let dead = sower.image(&["doctor", &to, "--plain-http"]);
    assert_eq!(dead.code, 1, "{}{}", dead.stdout, dead.stderr);
    for words in [
        "BAD  realm      http://127.0.0.1:1/v2/token gives no tokens",
        &format!("http://{}/v2/token answers", front.address),
        "ok   push       allowed with the given credentials",
        "BAD  pull       fails for a node that follows the realm",
        "push works, pull by a cluster fails",
        "ssh://",
    ] {
        assert!(dead.stdout.contains(words), "{words}: {}", dead.stdout);
    }
    assert!(!dead.stdout.contains(PASSWORD));
    // Nothing was left there.
    assert_eq!(front.count("PUT", ""), 0);
    assert_eq!(front.count("DELETE", "/blobs/uploads/"), 1);
    let reader = user("reader", PASSWORD).image(&["doctor", &to, "--plain-http"]);
    assert!(
        reader.stdout.contains("BAD  push") && reader.stdout.contains("write:package"),
        "{}",
        reader.stdout
    );

    // A Gitea is told by its version, and gets the line for its app.ini.
    let gitea = Front::start(None, |seen| match seen.path.split('?').next().unwrap() {
        "/api/v1/version" => Do::Answer(200, vec![], br#"{"version":"1.26.0"}"#.to_vec()),
        "/v2/token" => Do::Answer(200, vec![], br#"{"token":"x"}"#.to_vec()),
        "/v2/" => {
            let realm =
                r#"Bearer realm="http://127.0.0.1:1/v2/token",service="container_registry",scope="*""#;
            Do::Answer(401, vec![("WWW-Authenticate", realm.to_owned())], vec![])
        }
        _ => Do::Answer(404, vec![], vec![]),
    });
    let to = format!("{}/shop/app", gitea.address);
    let text = user("dev", PASSWORD).image(&["doctor", &to, "--plain-http"]).stdout;
    for words in [
        &format!("ROOT_URL = http://{}/", gitea.address),
        "PUBLIC_URL_DETECTION = auto",
        "Gitea; wants a token",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let nothing = sower.image(&["doctor", "127.0.0.1:1/shop/app"]);
    assert_eq!(nothing.code, 1);
    assert!(nothing.stdout.contains("neither HTTPS"), "{}", nothing.stdout);
}

#[test]
fn what_a_helm_release_runs_is_not_pruned() {
    let registry = DockerRegistry::start("");
    let sower = Sower::new();
    let name = format!("{}/shop/app", registry.address);
    for day in 1..=6 {
        let mut image = TestImage::new(&[2000 + day]);
        image.created = format!("2026-01-0{day}T00:00:00Z");
        image.write(&sower.path("image.tar"));
        sower.image(&["push", "image.tar", &format!("{name}:day{day}"), "--plain-http"]).well();
    }
    // What helm 3.12 and newer answer.
    let path = program(
        &sower,
        "helm",
        "echo \"$@\" >> \"$HOME/asked\"\ncase \"$*\" in\n\
         history*--namespace\\ shop\\ --\\ web) echo '[{\"revision\":3,\"status\":\"superseded\"},{\"revision\":4,\"status\":\"deployed\"}]' ;;\n\
         *get\\ manifest\\ --revision\\ 3*) echo '  image: \"mirror.example/shop/app:day1\"' ;;\n\
         *get\\ manifest\\ --revision\\ 4*) echo '  image: shop/app:day2' ;;\n\
         *) echo 'Error: release: not found' >&2; exit 1 ;;\nesac",
    );
    let sower = sower.env("PATH", &path);
    let prune = |release: &str| {
        sower.image(&["prune", &name, "--keep", "2", "--protect-release", release, "--plain-http"])
    };
    prune("shop/absent").badly(1, &["helm history", "release: not found", "nothing was deleted"]);
    assert_eq!(tags(&registry, "shop/app").len(), 6);
    prune("shop/web").well();
    assert_eq!(tags(&registry, "shop/app"), ["day1", "day2", "day5", "day6"]);
}

/// A `ctr` that unpacks what it gets and tells of it as the real one does.
const CTR: &str = r#"
cd "$CTR_ROOT" || exit 1
case "$*" in
"images import -")
    tar -xf - || exit 1
    grep -o '"io.containerd.image.name":"[^"]*"' index.json | cut -d '"' -f 4 > name
    grep -o '"digest":"[^"]*"' index.json | cut -d '"' -f 4 > digest ;;
"images check name=="*)
    echo "REF TYPE DIGEST STATUS SIZE UNPACKED"
    [ -e name ] && echo "$(cat name) application/vnd.oci.image.manifest.v1+json $(cat digest) complete (3/3) true" ;;
*) echo "ctr: $*" >&2; exit 2 ;;
esac
"#;

#[test]
fn a_cluster_that_cannot_pull_gets_the_image_over_ssh() {
    let sshd = Sshd::start().unwrap();
    let sower = Sower::new();
    program(&sower, "ctr", CTR);
    let node = sower.path("node");
    std::fs::create_dir(&node).unwrap();
    std::fs::create_dir(sower.path(".ssh")).unwrap();
    std::fs::copy(sshd.known_hosts(), sower.path(".ssh/known_hosts")).unwrap();
    let sower = sower.env("SOWER_SSH_KEY", &std::fs::read_to_string(sshd.key()).unwrap());
    let image = nix_image("one");
    image.write(&sower.path("image.tar"));
    let user = String::from_utf8(part_ok("id", &["-un"])).unwrap();
    let host = format!("ssh://{}@127.0.0.1:{}", user.trim(), sshd.port());
    let ctr = format!("env CTR_ROOT={} {}", node.display(), sower.path("bin/ctr").display());
    let to = format!("{host}/git.example.org/shop/app:t");
    let push = sower.image(&["push", "image.tar", &to, "--ctr", &ctr, "--json"]).well().json();
    assert_eq!(std::fs::read_to_string(node.join("name")).unwrap().trim(), "git.example.org/shop/app:t");
    assert_eq!(
        std::fs::read_to_string(node.join("digest")).unwrap().trim(),
        push["digest"].as_str().unwrap()
    );
    let layer = sower::image::Digest::of(&image.layers[0]);
    let there = std::fs::read(node.join("blobs/sha256").join(layer.hex())).unwrap();
    assert!(there == image.layers[0]);
    assert_eq!(unpacked(&[there]), unpacked(&image.layers));

    // A layer that lies is not imported: the stream breaks off before its end.
    std::fs::remove_dir_all(&node).unwrap();
    std::fs::create_dir(&node).unwrap();
    let mut members = image.members();
    members[0].1[5000] ^= 1;
    std::fs::write(sower.path("twisted.tar"), crate::parts::tar(&members)).unwrap();
    sower
        .image(&["push", "twisted.tar", &to, "--ctr", &ctr])
        .badly(1, &["is said to be", "damaged", "nothing was tagged"]);
    assert!(!node.join("name").exists());
    // A node without containerd, and one that nobody knows.
    sower
        .image(&["push", "image.tar", &to, "--ctr", "absent-ctr"])
        .badly(1, &["the import failed", "absent-ctr"]);
    std::fs::write(sower.path(".ssh/known_hosts"), "").unwrap();
    sower.image(&["push", "image.tar", &to, "--ctr", &ctr]).badly(1, &["host key"]);
    sower.image(&["push", "image.tar", "ssh://127.0.0.1/app"]).badly(2, &["a tag is wanted"]);
}

#[test]
fn a_thousand_versions_are_read_to_the_last() {
    let gitea = crate::packages(1000, None);
    let name = format!("{}/shop/app", gitea.address);
    let prune = user("dev", PASSWORD)
        .image(&["prune", &name, "--keep", "990", "--plain-http", "--json"])
        .well()
        .json();
    let verdicts = prune["tags"].as_array().unwrap();
    assert_eq!(verdicts.len(), 1000);
    let gone = verdicts.iter().filter(|tag| tag["verdict"] == "deleted" || tag["verdict"] == "gone").count();
    // `latest` stays besides.
    assert_eq!((gone, gitea.count("DELETE", "")), (9, 9));
    assert_eq!(gitea.count("GET", "/api/v1/packages/shop?"), 22);
}

#[test]
fn a_push_again_asks_and_reads_nothing() {
    let registry = DockerRegistry::start("");
    let front = Front::start(Some(registry.address), |_| Do::Pass);
    let sower = Sower::new();
    let image = nix_image("one");
    image.write(&sower.path("image.tar"));
    // A file that has just changed may change again unseen, so it is not known again.
    std::thread::sleep(std::time::Duration::from_millis(3100));
    let to = format!("{}/shop/app:t", front.address);
    let first = sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
    let (posts, puts) = (front.count("POST", ""), front.count("PUT", ""));
    let again =
        sower.image(&["push", "image.tar", &to, "--tag", "more", "--plain-http", "--json"]).well().json();
    assert_eq!((&again["digest"], &again["uploaded"]), (&first["digest"], &serde_json::json!(0)));
    assert_eq!(again["layers"].as_array().unwrap().len(), first["layers"].as_array().unwrap().len());
    assert_eq!(front.count("POST", ""), posts, "nothing is uploaded");
    assert_eq!(front.count("PUT", ""), puts + 2, "two tags");
    assert_eq!(
        pulled(&format!("{}/shop/app:more", registry.address)).1.len(),
        first["layers"].as_array().unwrap().len()
    );
    // Another registry has none of it.
    let other = DockerRegistry::start("");
    let to = format!("{}/shop/app:t", other.address);
    let push = sower.image(&["push", "image.tar", &to, "--plain-http", "--json"]).well().json();
    assert_eq!(push["digest"], first["digest"]);
    assert_eq!(unpacked(&pulled(&to).1), unpacked(&image.layers));
}

#[test]
fn the_configuration_says_how_a_registry_is_spoken_to() {
    let tokens = TokenService::new();
    let registry = DockerRegistry::start(&tokens.config("http://127.0.0.1:1/v2/token"));
    let service =
        Front::start(None, move |_| Do::Answer(200, vec![], tokens.answer("shop/app", &["pull", "push"])));
    let sower = user("dev", PASSWORD);
    let to = format!("{}/shop/app:t", registry.address);
    let config = format!(
        "images:\n  registries:\n    \"{}\": {{plain_http: true, token_url: \"http://{}/tokens\"}}\n",
        registry.address, service.address
    );
    std::fs::write(sower.path("config.yaml"), config).unwrap();
    sower.image(&["push", "image.tar", &to]).badly(1, &["--plain-http"]);
    sower.image(&["push", "image.tar", &to, "--config", "config.yaml"]).well();
    assert_eq!(service.count("GET", "/tokens?"), 1);
    let sower = sower.env("SOWER_CONFIG", "config.yaml");
    sower.image(&["inspect", &to]).well();
    sower.image(&["prune", &format!("{}/shop/app", registry.address), "--dry-run"]).well();
    std::fs::write(sower.path("config.yaml"), "images: {registries: {a: {plain_http: 7}}}").unwrap();
    sower.image(&["push", "image.tar", &to]).badly(2, &["config.yaml:1:", "images.registries.a.plain_http"]);
}

#[test]
fn a_jobs_own_token_is_told_from_other_passwords() {
    let (_registry, front) = with_tokens("http://127.0.0.1:1/v2/token");
    let to = format!("{}/shop/app:t", front.address);
    let sower = user("dev", "job-token").env("GITHUB_TOKEN", "job-token");
    let push = sower.image(&["push", "image.tar", &to, "--plain-http"]);
    let push = push.badly(1, &["the job's own token", "REGISTRY_PASSWORD", "write:package"]);
    assert!(!push.stderr.contains("job-token"), "{}", push.stderr);
}

#[test]
fn a_registry_that_wants_user_and_password_with_each_request_gets_them() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // PASSWORD as htpasswd -B writes it.
    let hash = "$2b$04$C0uzdDNOoKLdohZeWT1DfeQ.g7krX0Bl1XL1oGikdocMramCdh2Wa";
    std::fs::write(file.path(), format!("dev:{hash}\n")).unwrap();
    let auth = format!("auth:\n  htpasswd: {{realm: basic, path: {}}}\n", file.path().display());
    let registry = DockerRegistry::start(&auth);
    let to = format!("{}/shop/app:t", registry.address);
    user("dev", PASSWORD).image(&["push", "image.tar", &to, "--plain-http"]).well();
    user("dev", "wrong").image(&["push", "image.tar", &to, "--plain-http"]).badly(1, &["401"]);
    let doctor = user("dev", PASSWORD).image(&["doctor", &to, "--plain-http"]).well();
    assert!(doctor.stdout.contains("only with credentials"), "{}", doctor.stdout);
}

#[test]
fn a_registry_that_leads_to_tls_is_told_of() {
    let front = Front::start(None, |_| {
        Do::Answer(301, vec![("Location", "https://registry.example/v2/".to_owned())], vec![])
    });
    let to = format!("{}/shop/app:t", front.address);
    user("dev", PASSWORD)
        .image(&["push", "image.tar", &to, "--plain-http"])
        .badly(1, &["https://registry.example/v2/", "leave --plain-http out"]);
    assert!(front.seen().iter().all(|seen| seen.authorization.is_none()));
}

/// A Gitea with two lists of images: one goes, and with it the image that no other list holds.
#[test]
fn what_only_a_pruned_list_held_goes_with_it() {
    use sower::image::Digest;
    let image = |n: u8| Digest::of(&[n]);
    let list = |parts: &[u8]| {
        let parts: Vec<_> = parts.iter().map(|n| serde_json::json!({"digest": image(*n)})).collect();
        serde_json::json!({"schemaVersion": 2, "manifests": parts}).to_string().into_bytes()
    };
    let lists = std::collections::HashMap::from([("old", list(&[1, 2])), ("new", list(&[2, 3]))]);
    let gone = AtomicBool::new(false);
    let gitea = Front::start(None, move |seen| {
        let json = |value: serde_json::Value| Do::Answer(200, vec![], value.to_string().into_bytes());
        let is_gone = gone.load(Ordering::SeqCst);
        let version = |id: u8, name: &str| {
            let created = format!("2026-01-0{id}T00:00:00Z");
            serde_json::json!({"id": id, "name": "app", "type": "container", "version": name, "created_at": created})
        };
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        match (seen.method.as_str(), path) {
            ("GET", "/api/v1/version") => json(serde_json::json!({"version": "1.26.0"})),
            ("GET", "/api/v1/packages/shop") if query.contains("page=1") => {
                let images = [1, 2, 3, 4].map(|n| version(n, image(n).as_str()));
                let lists = [version(6, "new"), version(5, "old")];
                json([&images[..], &lists[..2 - usize::from(is_gone)]].concat().into())
            }
            ("GET", "/api/v1/packages/shop") => json(serde_json::json!([])),
            ("GET", path) => {
                match path.strip_prefix("/v2/shop/app/manifests/").and_then(|tag| lists.get(tag)) {
                    Some(list) => Do::Answer(200, vec![], list.clone()),
                    None => Do::Answer(404, vec![], vec![]),
                }
            }
            ("DELETE", path) => {
                gone.fetch_or(path.ends_with("/old"), Ordering::SeqCst);
                Do::Answer(204, vec![], vec![])
            }
            _ => Do::Answer(404, vec![], vec![]),
        }
    });
    let name = format!("{}/shop/app", gitea.address);
    let sower = user("dev", PASSWORD);
    let prune = |more: &[&str]| {
        let mut arguments = vec!["prune", &name, "--keep", "1", "--plain-http"];
        arguments.extend(more);
        sower.image(&arguments).well()
    };
    let end = format!("{name}: 2 tags, 1 would be deleted with 1 images of lists, 1 kept");
    assert_eq!(prune(&["--dry-run"]).stdout.lines().last(), Some(end.as_str()));
    assert_eq!(gitea.count("DELETE", ""), 0);
    let done = prune(&[]);
    assert!(done.stderr.contains("cron.cleanup_packages"), "{}", done.stderr);
    let deleted: Vec<String> =
        gitea.seen().into_iter().filter(|seen| seen.method == "DELETE").map(|seen| seen.path).collect();
    let of = |version: &str| format!("/api/v1/packages/shop/container/app/{version}");
    assert_eq!(deleted, [of("old"), of(image(1).as_str())]);
}
