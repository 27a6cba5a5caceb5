//! `sower deploy helm` on a real Kubernetes: what it says about deployments that go well and that do not.
//!
//! Built only with the feature `cluster-tests`; `tests/kubernetes/cluster.sh run cargo test …` (`make test-cluster`)
//! starts the cluster and says where it is. Each test has a registry and a namespace of its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/charts/app");

/// A namespace, and a registry that holds `app:1`.
struct Stage {
    namespace: String,
    kubeconfig: String,
    registry: Registry,
}

struct Registry {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Ran {
    code: i32,
    json: Value,
    progress: String,
}

/// Where `scripts/parts.sh` unpacks helm and kubectl; SOWER_TEST_HELM names the directory of others.
fn parts() -> PathBuf {
    if let Some(other) = std::env::var_os("SOWER_TEST_HELM") {
        return other.into();
    }
    Path::new(env!("CARGO_BIN_EXE_sower")).ancestors().nth(2).unwrap().join("parts/bin")
}

fn path() -> String {
    format!("{}:{}", parts().display(), std::env::var("PATH").unwrap())
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry: {error}: `make test-parts` installs it"));
        let registry = Self { process, port, dir };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return registry;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not listen");
    }

    fn push(&self, tag: &str) {
        let image = self.dir.path().join("image.tar");
        write_image(&image);
        let output = Command::new(env!("CARGO_BIN_EXE_sower"))
            .args(["image", "push", "--plain-http"])
            .arg(&image)
            .arg(format!("127.0.0.1:{}/app:{tag}", self.port))
            .env("SOWER_CACHE_DIR", self.dir.path().join("cache"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A busybox with the few programs that the chart's scripts need, as `docker save` would write it.
fn write_image(path: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    layer
        .append_path_with_name("/bin/busybox", "bin/busybox")
        .unwrap_or_else(|error| panic!("/bin/busybox: {error}: `make test-parts` installs it"));
    for name in ["sh", "httpd", "mkdir", "sleep"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let diff_id: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    });
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["layer.tar"]}]);
    let mut image = tar::Builder::new(File::create(path).unwrap());
    let config = config.to_string().into_bytes();
    let manifest = manifest.to_string().into_bytes();
    for (name, content) in [("manifest.json", &manifest), ("config.json", &config), ("layer.tar", &layer)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        image.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    image.finish().unwrap();
}

impl Stage {
    fn new(name: &str) -> Self {
        let kubeconfig = std::env::var("SOWER_TEST_KUBECONFIG").unwrap_or_else(|_| {
            panic!("SOWER_TEST_KUBECONFIG is not set: `make test-cluster` starts a cluster and sets it")
        });
        let registry = Registry::start();
        registry.push("1");
        // A cluster that is kept running sees more than one run.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        Self { namespace: format!("{name}-{now}"), kubeconfig, registry }
    }

    /// The command for release `app`; the kubeconfig goes in as a secret would.
    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sower"));
        command
            .args([
                "deploy",
                "helm",
                "app",
                CHART,
                "--create-namespace",
                "--json",
                "--namespace",
                &self.namespace,
            ])
            .arg("--set")
            .arg(format!("image.repository=127.0.0.1:{}/app", self.registry.port))
            .args(more)
            .env("PATH", path())
            .env("SOWER_KUBECONFIG", fs::read_to_string(&self.kubeconfig).unwrap())
            .env_remove("KUBECONFIG")
            .env_remove("GITHUB_OUTPUT")
            .env_remove("GITHUB_STEP_SUMMARY");
        command
    }

    fn deploy(&self, more: &[&str]) -> Ran {
        let output = self.command(more).output().unwrap();
        let progress = String::from_utf8(output.stderr).unwrap();
        let json =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {progress}"));
        Ran { code: output.status.code().unwrap(), json, progress }
    }

    fn helm(&self, arguments: &[&str]) -> String {
        let output = Command::new(parts().join("helm"))
            .args(["--kubeconfig", &self.kubeconfig, "--namespace", &self.namespace])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Ran {
    fn failed_of(&self, kind: &str) {
        assert_eq!(self.code, 1, "{}", self.json);
        assert_eq!(self.json["result"], "failed", "{}", self.json);
        assert_eq!(self.json["cause"]["kind"], kind, "{:#}", self.json);
    }

    fn sentence(&self) -> &str {
        self.json["cause"]["sentence"].as_str().unwrap()
    }
}

#[test]
fn a_good_deployment_says_revision_image_and_pods() {
    let stage = Stage::new("good");
    let ran = stage.deploy(&["--timeout", "2m"]);
    assert_eq!(ran.code, 0, "{}", ran.progress);
    assert_eq!(ran.json["revision"], 1);
    assert_eq!(ran.json["images"][0], format!("127.0.0.1:{}/app:1", stage.registry.port));
    assert_eq!(ran.json["pods"][0]["state"], "running, ready");
    assert!(ran.json["pods"][0]["digests"][0].as_str().unwrap().contains("@sha256:"), "{}", ran.json);

    stage.registry.push("2");
    let ran = stage.deploy(&["--timeout", "2m", "--set", "image.tag=2"]);
    assert_eq!(ran.code, 0, "{}", ran.progress);
    assert_eq!(ran.json["revision"], 2);
    assert_eq!(
        ran.json["pods"].as_array().unwrap().len(),
        1,
        "pods of the old revision are listed: {}",
        ran.json
    );
    assert_eq!(ran.json["images"][0], format!("127.0.0.1:{}/app:2", stage.registry.port));
}

#[test]
fn an_image_that_is_missing_is_named_and_the_good_revision_too() {
    let stage = Stage::new("image");
    assert_eq!(stage.deploy(&["--timeout", "2m"]).code, 0);
    let ran = stage.deploy(&["--timeout", "12s", "--set", "image.tag=nope"]);
    ran.failed_of("image-missing");
    assert!(
        ran.sentence().contains(&format!("127.0.0.1:{}/app:nope", stage.registry.port)),
        "{}",
        ran.sentence()
    );
    assert_eq!(ran.json["state"], "release app is at revision 2 (failed); the last good one is 1");
    assert!(ran.progress.contains("cannot pull its image"), "{}", ran.progress);
}

#[test]
fn a_crash_is_told_with_exit_code_and_last_words() {
    let stage = Stage::new("crash");
    let script = "script=echo starting; echo DATABASE_URL is not set >&2; exit 3";
    let ran = stage.deploy(&["--timeout", "15s", "--set", script]);
    ran.failed_of("crash");
    let container = &ran.json["evidence"]["pods"][0]["containers"][0];
    assert_eq!(container["exit_code"], 3);
    assert_eq!(container["log"], serde_json::json!(["starting", "DATABASE_URL is not set"]));
    assert!(container["restarts"].as_u64().unwrap() > 0, "{container}");
    assert!(ran.sentence().ends_with("its last words: DATABASE_URL is not set"), "{}", ran.sentence());
}

#[test]
fn a_secret_that_is_missing_is_named() {
    let ran = Stage::new("secret").deploy(&["--timeout", "10s", "--set", "secret=keys"]);
    ran.failed_of("configuration");
    assert!(ran.sentence().contains("secret \"keys\" not found"), "{}", ran.sentence());
}

#[test]
fn a_probe_that_fails_is_quoted() {
    let ran = Stage::new("probe").deploy(&["--timeout", "12s", "--set", "path=/nothing"]);
    ran.failed_of("probe");
    assert!(ran.sentence().contains("statuscode: 404"), "{}", ran.sentence());
}

#[test]
fn a_pod_that_no_node_takes_is_explained_by_the_scheduler() {
    let ran = Stage::new("room").deploy(&["--timeout", "8s", "--set", "cpu=900"]);
    ran.failed_of("unschedulable");
    assert!(ran.sentence().contains("Insufficient cpu"), "{}", ran.sentence());
}

#[test]
fn a_cancelled_deployment_leaves_no_lock() {
    let stage = Stage::new("cancel");
    let mut child = stage
        .command(&["--timeout", "2m", "--set", "image.tag=nope"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("cannot pull its image")));
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
    // Read on, so that nothing it still says breaks the pipe.
    let said: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{said:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["result"], "cancelled");
    let history: Value = serde_json::from_str(&stage.helm(&["history", "app", "--output", "json"])).unwrap();
    assert_eq!(history[0]["status"], "failed");
    assert_eq!(stage.deploy(&["--timeout", "2m", "--set", "image.tag=1"]).code, 0);
}
