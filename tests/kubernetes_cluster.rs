//! `sower deploy helm` on a real Kubernetes: what it says about deployments that go well and that do not.
//!
//! Ignored unless asked for: `tests/kubernetes/cluster.sh run cargo test --test kubernetes_cluster -- --ignored`
//! (`make test-cluster`) starts the cluster and says where it is. Each test has a registry and a namespace of its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sower_test_support::{Sshd, free_address};

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

impl Drop for Stage {
    fn drop(&mut self) {
        // A cluster that goes on has room for the next test.
        let _ = Command::new(parts().join("kubectl"))
            .args(["--kubeconfig", &self.kubeconfig, "delete", "namespace", &self.namespace, "--wait=false"])
            .output();
    }
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
        let port = free_address().unwrap().port();
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

/// A store path, as Nix names them.
const STORE_PATH: &str = "nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-busybox";

/// A busybox with the few programs that the chart's scripts need, as Nix's dockerTools would write it: one layer, which
/// the push splits by store paths. So each pod here shows that what was split runs.
fn write_image(path: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    let header = |kind, mode| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(mode);
        header
    };
    for name in ["nix", "nix/store", STORE_PATH, &format!("{STORE_PATH}/bin")] {
        let mut header = header(tar::EntryType::Directory, 0o755);
        layer.append_data(&mut header, format!("{name}/"), std::io::empty()).unwrap();
    }
    layer
        .append_path_with_name("/bin/busybox", format!("{STORE_PATH}/bin/busybox"))
        .unwrap_or_else(|error| panic!("/bin/busybox: {error}: `make test-parts` installs it"));
    let programs = ["sh", "httpd", "mkdir", "sleep", "tail"];
    let links = programs.map(|name| (format!("{STORE_PATH}/bin/{name}"), "busybox".to_owned()));
    for (name, to) in links.into_iter().chain([("bin".to_owned(), format!("/{STORE_PATH}/bin"))]) {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        layer.append_link(&mut header, name, to).unwrap();
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
            .env("SOWER_STATE_DIR", self.registry.dir.path().join("state"))
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

impl Stage {
    fn kubectl(&self, arguments: &[&str]) -> String {
        let output = Command::new(parts().join("kubectl"))
            .args(["--kubeconfig", &self.kubeconfig, "--namespace", &self.namespace])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The revisions, the oldest first.
    fn history(&self) -> Vec<Value> {
        serde_json::from_str(&self.helm(&["history", "app", "--output", "json"])).unwrap()
    }

    /// The URL of the pod that runs, from this host.
    fn service(&self) -> String {
        let address = self.kubectl(&["get", "pods", "--output", "jsonpath={.items[0].status.podIP}"]);
        assert!(!address.is_empty());
        format!("http://{address}:8080/")
    }

    /// Kills sower and its helm in the middle of a deployment, so that nobody can say goodbye.
    fn leave_locked(&self, environment: &[(&str, &str)]) {
        let mut child = self
            .command(&["--timeout", "4m", "--set", "hook=sleep 600"])
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("app-migrate") && line.contains("running")));
        let children = Command::new("pgrep").args(["-P", &child.id().to_string(), "helm"]).output().unwrap();
        let helm = String::from_utf8(children.stdout).unwrap().trim().to_owned();
        assert!(!helm.is_empty());
        for process in [child.id().to_string(), helm] {
            assert!(Command::new("kill").args(["-KILL", &process]).status().unwrap().success());
        }
        child.wait().unwrap();
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
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
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

/// As helm itself: what the chart has, in its namespace, and nothing else.
const ROLE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: NS}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: deployer, namespace: NS}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: deployer, namespace: NS}
rules:
- apiGroups: ["", apps]
  resources: [namespaces, secrets, configmaps, services, pods, pods/log, deployments, replicasets, events]
  verbs: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: deployer, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: deployer}
subjects: [{kind: ServiceAccount, name: deployer, namespace: NS}]
"#;

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_user_needs_no_rights_but_helm_s_own() {
    let stage = Stage::new("role");
    let role = stage.registry.dir.path().join("role.yaml");
    fs::write(&role, ROLE.replace("NS", &stage.namespace)).unwrap();
    stage.kubectl(&["apply", "--filename", role.to_str().unwrap()]);
    let token = stage.kubectl(&["create", "token", "deployer"]);
    let certificate = |line: &&str| !line.trim_start().starts_with("client-");
    let kubeconfig = fs::read_to_string(&stage.kubeconfig).unwrap();
    let kubeconfig: Vec<&str> = kubeconfig.lines().filter(certificate).collect();
    let kubeconfig = format!("{}\n    token: {}\n", kubeconfig.join("\n"), token.trim());
    let deploy = |more: &[&str]| {
        let mut command = stage.command(more);
        let output = command.env("SOWER_KUBECONFIG", &kubeconfig).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json)
    };
    let (code, json) = deploy(&["--timeout", "2m"]);
    assert_eq!(code, 0, "{json:#}");
    assert_eq!(json["pods"][0]["state"], "running, ready");
    let (code, json) = deploy(&[LONG, &["--set", "script=echo broken; exit 3"]].concat());
    assert_eq!((code, &json["cause"]["kind"]), (1, &"crash".into()), "{json:#}");
    assert!(json["undone"].as_str().unwrap().contains("1 of 1 pods ready"), "{json:#}");
}

/// A good release, so that there is something to go back to.
fn stage_with_release(name: &str) -> Stage {
    stage_with(name, &[])
}

fn stage_with(name: &str, more: &[&str]) -> Stage {
    let stage = Stage::new(name);
    let ran = stage.deploy(&[&["--timeout", "2m"], more].concat());
    assert_eq!(ran.code, 0, "{}", ran.progress);
    stage
}

/// Early: long before the time-out. What is measured exactly is in `make bench-deploy`.
const LONG: &[&str] = &["--timeout", "4m", "--rollback"];

impl Stage {
    fn fails(&self, kind: &str, more: &[&str]) -> Ran {
        let ran = self.deploy(&[LONG, more].concat());
        ran.failed_of(kind);
        assert!(
            ran.json["seconds"].as_f64().unwrap() < 200.0,
            "it was waited for the time-out: {:#}",
            ran.json
        );
        ran
    }

    fn is_rolled_back(&self, ran: &Ran) {
        let undone = ran.json["undone"].as_str().unwrap_or_else(|| panic!("{:#}", ran.json));
        assert!(
            undone.starts_with("rolled back to revision 1 in") && undone.contains("1 of 1 pods ready"),
            "{undone}"
        );
        assert_eq!(ran.json["state"], "release app is at revision 3 (deployed)");
    }
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn an_image_that_is_missing_is_found_before_anything_is_changed() {
    let stage = stage_with_release("tag");
    let ran = stage.fails("image-missing", &["--set", "image.tag=nope"]);
    assert!(
        ran.sentence().contains(&format!("127.0.0.1:{}/app:nope", stage.registry.port)),
        "{}",
        ran.sentence()
    );
    assert_eq!(ran.json["state"], "nothing was changed");
    assert_eq!(stage.history().len(), 1);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn an_image_that_is_missing_ends_the_deployment_early_and_it_is_rolled_back() {
    let stage = stage_with_release("image");
    let ran = stage.fails("image-missing", &["--no-checks", "--set", "image.tag=nope"]);
    assert!(
        ran.sentence().contains(&format!("127.0.0.1:{}/app:nope", stage.registry.port)),
        "{}",
        ran.sentence()
    );
    stage.is_rolled_back(&ran);
    assert!(ran.progress.contains("cannot pull its image"), "{}", ran.progress);
    let changes = ran.json["changes"].to_string();
    assert!(changes.contains("app:1 -> ") && changes.contains("app:nope"), "{changes}");
    // The same again without going back: the pods of a failed revision are not taken for the new ones' sake.
    let ran = stage.deploy(&["--timeout", "4m", "--no-checks", "--set", "image.tag=nope"]);
    ran.failed_of("image-missing");
    let again = stage.deploy(&["--timeout", "4m", "--no-checks", "--set", "image.tag=nope"]);
    again.failed_of("image-missing");
    let good = stage.deploy(&["--timeout", "2m"]);
    assert_eq!(good.code, 0, "{}", good.progress);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_registry_that_speaks_plain_http_gets_its_mirror_entry() {
    let stage = stage_with_release("mirror");
    stage.registry.push("2");
    // A node trusts 127.0.0.1 without TLS; any other name it asks over https, unless it has a mirror entry.
    // This one leads to the same registry.
    let name = format!("0.0.0.0:{}", stage.registry.port);
    let repository = format!("image.repository={name}/app");
    let ran = stage.fails("image-pull", &["--set", "image.tag=2", "--set", &repository]);
    assert!(ran.sentence().contains("the registry speaks plain http"), "{}", ran.sentence());
    let paste = ran.json["cause"]["paste"].as_str().unwrap();
    assert!(paste.contains(&format!("- \"http://{name}\"")), "{paste}");
    stage.is_rolled_back(&ran);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_crash_is_told_with_exit_code_and_last_words() {
    let stage = stage_with_release("crash");
    // One stream: two are put together in any order.
    let script = "script=echo starting; echo DATABASE_URL is not set; exit 3";
    let ran = stage.fails("crash", &["--set", script]);
    let container = &ran.json["evidence"]["pods"][0]["containers"][0];
    assert_eq!(container["exit_code"], 3);
    assert_eq!(container["log"], serde_json::json!(["starting", "DATABASE_URL is not set"]));
    assert!(container["restarts"].as_u64().unwrap() >= 2, "{container}");
    assert!(ran.sentence().ends_with("its last words: DATABASE_URL is not set"), "{}", ran.sentence());
    stage.is_rolled_back(&ran);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn want_of_memory_is_told_with_the_limit() {
    let stage = Stage::new("memory");
    let ran = stage.fails("out-of-memory", &["--set", "memory=16Mi", "--set", "script=tail /dev/zero"]);
    assert!(ran.sentence().contains("its limit is 16Mi"), "{}", ran.sentence());
    assert!(ran.json["undone"].as_str().unwrap().contains("no good revision"), "{}", ran.json);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_secret_or_key_that_is_missing_is_named_before_anything_is_changed() {
    let stage = stage_with_release("secret");
    let ran = stage.fails("configuration", &["--set", "secret=gone"]);
    assert!(ran.sentence().contains("Secret gone (container app of deployment/app)"), "{}", ran.sentence());
    assert_eq!(ran.json["state"], "nothing was changed");

    stage.kubectl(&["create", "secret", "generic", "keys", "--from-literal=OTHER=hunter4"]);
    let ran = stage.fails("configuration", &["--set", "key=DATABASE_URL"]);
    assert!(ran.sentence().contains("key DATABASE_URL of Secret keys"), "{}", ran.sentence());
    assert!(!format!("{}{}", ran.json, ran.progress).contains("hunter4"));
    assert_eq!(stage.history().len(), 1);

    // Unasked it is the node that says so.
    let ran = stage.fails("configuration", &["--no-checks", "--set", "key=DATABASE_URL"]);
    assert!(ran.sentence().contains("couldn't find key DATABASE_URL in Secret"), "{}", ran.sentence());
    stage.is_rolled_back(&ran);
    stage.kubectl(&["patch", "secret", "keys", "--patch", "{\"stringData\": {\"DATABASE_URL\": \"x\"}}"]);
    assert_eq!(stage.deploy(&["--timeout", "2m", "--set", "key=DATABASE_URL"]).code, 0);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_probe_that_fails_is_quoted_when_the_time_is_up() {
    let stage = stage_with_release("probe");
    let ran = stage.deploy(&["--timeout", "12s", "--rollback", "--set", "path=/nothing"]);
    ran.failed_of("probe");
    assert!(ran.sentence().contains("statuscode: 404"), "{}", ran.sentence());
    stage.is_rolled_back(&ran);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_pod_that_no_node_takes_is_explained_by_the_scheduler() {
    let stage = stage_with_release("room");
    let ran = stage.fails("unschedulable", &["--set", "cpu=900"]);
    assert!(ran.sentence().contains("Insufficient cpu"), "{}", ran.sentence());
    stage.is_rolled_back(&ran);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn pods_that_a_quota_forbids_are_explained() {
    let stage = stage_with_release("quota");
    stage.kubectl(&["create", "quota", "small", "--hard=pods=1"]);
    let ran = stage.fails("pods-refused", &["--set", "script=sleep 1000"]);
    assert!(ran.sentence().contains("exceeded quota: small"), "{}", ran.sentence());
    stage.is_rolled_back(&ran);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_hook_that_fails_is_told_with_its_log() {
    let stage = stage_with_release("hook");
    let ran = stage.fails("hook", &["--set", "hook=echo no such table >&2; exit 4"]);
    assert!(
        ran.sentence().contains("hook job/app-migrate") && ran.sentence().ends_with("no such table"),
        "{}",
        ran.sentence()
    );
    stage.is_rolled_back(&ran);

    // One that cannot even begin would be waited for to the end of time.
    let ran = stage.fails("image-missing", &["--no-checks", "--set", "hook=true", "--set", "image.tag=nope"]);
    assert!(ran.sentence().starts_with("hook job/app-migrate: "), "{}", ran.sentence());
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_green_helm_is_not_believed_without_a_probe() {
    // The pods of the first revision are still there, and ready, when it is gone back to.
    let stage = stage_with("settle", &["--set", "grace=20"]);
    let ran = stage.fails("crash", &["--set", "probe=false", "--set", "script=sleep 3; echo gone; exit 5"]);
    assert!(ran.sentence().contains("exit code 5"), "{}", ran.sentence());
    assert!(
        ran.progress.contains("container app of deployment/app has no readiness probe"),
        "{}",
        ran.progress
    );
    stage.is_rolled_back(&ran);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn an_application_that_does_not_answer_is_a_failure() {
    let stage = stage_with_release("check");
    let url = stage.service();
    let good = stage.deploy(&["--timeout", "2m", "--check-url", &url, "--check-text", "well"]);
    assert_eq!(good.code, 0, "{}", good.progress);
    assert_eq!(good.json["answered"]["status"], 200);
    let ran = stage.deploy(&[
        "--timeout",
        "2m",
        "--rollback",
        "--check-url",
        &url,
        "--check-text",
        "better",
        "--check-timeout",
        "3s",
    ]);
    ran.failed_of("check");
    assert!(ran.sentence().contains("\"better\" is not in it"), "{}", ran.sentence());
    assert!(ran.json["undone"].as_str().unwrap().starts_with("rolled back to revision 2"), "{}", ran.json);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_lock_that_kill_9_leaves_behind_is_recovered() {
    let stage = stage_with_release("kill");
    for first in [false, true] {
        if first {
            stage.helm(&["uninstall", "app", "--wait"]);
        }
        stage.leave_locked(&[]);
        let newest = stage.history().last().unwrap()["status"].as_str().unwrap().to_owned();
        assert_eq!(newest, if first { "pending-install" } else { "pending-upgrade" });
        let ran = stage.deploy(&["--timeout", "2m"]);
        assert_eq!(ran.code, 0, "{}", ran.progress);
        assert!(
            ran.progress.contains("on this host") && ran.progress.contains("is freed"),
            "{}",
            ran.progress
        );
    }
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_lock_of_somebody_else_is_freed_when_it_is_old_or_when_told() {
    let stage = stage_with_release("foreign");
    // Nothing is known here of who left it, so that it must be old before it is taken for a dead one.
    stage.leave_locked(&[("SOWER_STATE_DIR", "/nonexistent")]);
    let ran = stage.deploy(&["--timeout", "2m", "--stale-lock", "10s"]);
    assert_eq!(ran.code, 0, "{}", ran.progress);
    assert!(ran.progress.contains("it is taken to be dead"), "{}", ran.progress);
    stage.leave_locked(&[("SOWER_STATE_DIR", "/nonexistent")]);
    let ran = stage.deploy(&["--timeout", "2m", "--stale-lock", "1h", "--break-lock"]);
    assert_eq!(ran.code, 0, "{}", ran.progress);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn two_deployments_at_once_come_one_after_the_other() {
    let stage = stage_with_release("two");
    let first = stage
        .command(&["--timeout", "2m", "--set", "hook=sleep 4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(1));
    let second = stage.deploy(&["--timeout", "3m"]);
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(second.code, 0, "{}", second.progress);
    assert!(second.progress.contains("is held by the deployment of process"), "{}", second.progress);
    assert_eq!(second.json["revision"], 3);
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_helm_that_cannot_reach_the_cluster_says_why() {
    let stage = Stage::new("way");
    let content = fs::read_to_string(&stage.kubeconfig).unwrap();
    let with = |content: String| {
        let output = stage.command(&["--timeout", "20s"]).env("SOWER_KUBECONFIG", content).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["cause"]["kind"].clone(), json["cause"]["sentence"].as_str().unwrap().to_owned())
    };
    let api =
        content.lines().find_map(|line| line.trim().strip_prefix("server: https://")).unwrap().to_owned();
    let (kind, sentence) = with(content.replace(&api, "127.0.0.1:1"));
    assert_eq!(kind, "unreachable", "{sentence}");
    assert!(sentence.contains("connection refused"), "{sentence}");

    let expired = expired::Server::start();
    let (kind, sentence) = with(expired.kubeconfig());
    assert_eq!(kind, "certificate", "{sentence}");
    assert!(sentence.contains("has expired"), "{sentence}");
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_cancelled_deployment_leaves_no_lock() {
    let stage = Stage::new("cancel");
    let mut child = stage
        .command(&["--timeout", "2m", "--set", "hook=sleep 600"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("app-migrate") && line.contains("running")));
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

/// An sshd on the cluster's host, in whose sessions helm, kubectl and the kubeconfig are found.
fn far_side(stage: &Stage) -> Sshd {
    let mut sshd = Sshd::start().unwrap();
    sshd.kill();
    let config = fs::read_to_string(sshd.path("sshd_config")).unwrap();
    let more = format!("SetEnv PATH={}:/usr/bin:/bin KUBECONFIG={}\n", parts().display(), stage.kubeconfig);
    fs::write(sshd.path("sshd_config"), config + &more).unwrap();
    fs::write(sshd.path("no_config"), "").unwrap();
    sshd.go_on().unwrap();
    sshd
}

fn through(stage: &Stage, sshd: &Sshd, more: &[&str]) -> Command {
    let mut command = stage.command(&["--ssh", &format!("127.0.0.1:{}", sshd.port())]);
    command
        .arg("--ssh-known-hosts")
        .arg(sshd.known_hosts())
        .arg("--ssh-config")
        .arg(sshd.path("no_config"))
        .args(more)
        .env("SOWER_SSH_KEY", fs::read_to_string(sshd.key()).unwrap())
        // The far side's own.
        .env_remove("SOWER_KUBECONFIG")
        .env_remove("SSH_AUTH_SOCK");
    command
}

/// Starts a deployment whose hook takes a while, and does something in the middle of it.
fn in_the_middle(mut command: Command, what: impl FnOnce()) -> (std::process::Output, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut said = Vec::new();
    let mut begun = false;
    for line in lines.by_ref() {
        begun = line.contains("app-migrate") && line.contains("running");
        said.push(line);
        if begun {
            break;
        }
    }
    assert!(begun, "the hook was not seen at work: {said:#?}");
    what();
    said.extend(lines);
    (child.wait_with_output().unwrap(), said.join("\n"))
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_tunnel_leads_to_the_cluster_and_outlives_its_connection() {
    let stage = Stage::new("tunnel");
    let sshd = far_side(&stage);
    let output = through(&stage, &sshd, &[]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let url = stage.service();

    let more = ["--set", "hook=sleep 8", "--check-url", &url, "--check-tunnel"];
    let (output, said) = in_the_middle(through(&stage, &sshd, &more), || sshd.drop_sessions());
    assert!(output.status.success(), "{said}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["revision"], &json["answered"]["status"]), (&2.into(), &200.into()));
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn a_host_that_is_gone_in_the_middle_is_the_cause_and_the_next_deployment_recovers() {
    let stage = Stage::new("gone");
    let mut sshd = far_side(&stage);
    let output = through(&stage, &sshd, &[]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let command = through(&stage, &sshd, &["--timeout", "20s", "--set", "hook=sleep 600"]);
    let (output, said) = in_the_middle(command, || sshd.kill());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["cause"]["kind"], "connection", "{said}\n{json:#}");
    sshd.go_on().unwrap();
    let output = through(&stage, &sshd, &[]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stage.history().last().unwrap()["status"], "deployed");
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn helm_on_the_far_side_goes_on_when_the_connection_is_lost() {
    let stage = Stage::new("remote");
    let sshd = far_side(&stage);
    let output = through(&stage, &sshd, &["--remote"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let command = through(&stage, &sshd, &["--remote", "--set", "hook=sleep 8"]);
    let (output, said) = in_the_middle(command, || sshd.drop_sessions());
    assert!(output.status.success(), "{said}");
    assert_eq!(stage.history().len(), 2);

    // It fails there as it does here.
    let more = ["--remote", "--rollback", "--timeout", "4m", "--set", "script=echo gone; exit 3"];
    let output = through(&stage, &sshd, &more).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["cause"]["kind"], "crash", "{json:#}");
    assert!(json["seconds"].as_f64().unwrap() < 200.0, "it was waited for the time-out: {json:#}");
    assert!(json["undone"].as_str().unwrap().starts_with("rolled back to revision 2"), "{json:#}");
}

#[test]
#[ignore = "needs a Kubernetes: `make test` and `make test-cluster` start one"]
fn another_host_key_stops_everything_with_both_fingerprints() {
    let stage = Stage::new("key");
    let mut sshd = far_side(&stage);
    let before = sshd.fingerprint().unwrap();
    sshd.kill();
    sshd.change_host_key().unwrap();
    sshd.go_on().unwrap();
    let output = through(&stage, &sshd, &[]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("has CHANGED") && said.contains(&before), "{said}");
    assert!(said.contains(&sshd.fingerprint().unwrap()), "{said}");
    assert!(stage.helm(&["list", "--output", "json"]).contains("[]"));
}

/// An API server whose certificate has expired, as far as one gets with it.
mod expired {
    use super::*;

    pub(super) struct Server {
        process: Child,
        dir: tempfile::TempDir,
        port: u16,
    }

    impl Server {
        pub(super) fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let port = free_address().unwrap().port();
            let (key, certificate) = (dir.path().join("key"), dir.path().join("certificate"));
            let script = "openssl ecparam -name prime256v1 -genkey -noout -out $1 && \
                 openssl req -new -key $1 -subj /CN=127.0.0.1 -out $2.csr && echo subjectAltName=IP:127.0.0.1 >$2.ext && \
                 openssl x509 -req -in $2.csr -signkey $1 -days -1 -extfile $2.ext -out $2";
            let made =
                Command::new("sh").args(["-c", script, "sh"]).arg(&key).arg(&certificate).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let process = Command::new("openssl")
                .args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}")])
                .arg("-key")
                .arg(&key)
                .arg("-cert")
                .arg(&certificate)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                thread::sleep(Duration::from_millis(20));
            }
            Self { process, dir, port }
        }

        pub(super) fn kubeconfig(&self) -> String {
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
                 clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}', certificate-authority: {}}}}}]\n\
                 users: [{{name: u, user: {{token: t}}}}]\n",
                self.port,
                self.dir.path().join("certificate").display()
            )
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
