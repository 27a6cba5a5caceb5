//! `sower deploy helm` without a cluster: real helm where it renders or cannot reach anything, a scripted helm where
//! the question is what it is told and what becomes of secrets and signals. The real cluster is in
//! `kubernetes_cluster.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/charts/app");
const SECRET_KUBECONFIG: &str =
    "apiVersion: v1\nkind: Config\nclusters: []\nusers: [{name: u, user: {token: hunter3}}]\n";

/// Where `scripts/parts.sh` unpacks helm and kubectl.
fn parts() -> PathBuf {
    let bin = Path::new(env!("CARGO_BIN_EXE_sower")).ancestors().nth(2).unwrap().join("parts/bin");
    for program in ["helm", "kubectl"] {
        assert!(
            bin.join(program).is_file(),
            "{program} is missing: `make test-parts` fetches it into {}",
            bin.display()
        );
    }
    bin
}

/// The program, with `bin` before the rest of PATH and no way to any cluster of this machine.
fn sower(bin: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sower"));
    command
        .args(["deploy", "helm"])
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("HOME", "/nonexistent")
        // Nothing is noted of these deployments.
        .env("SOWER_STATE_DIR", "/dev/null")
        .env_remove("SSH_AUTH_SOCK")
        .env_remove("COLUMNS")
        .env_remove("KUBECONFIG")
        .env_remove("SOWER_KUBECONFIG")
        .env_remove("GITHUB_STEP_SUMMARY")
        .env_remove("GITHUB_OUTPUT");
    command
}

fn text(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout.clone()).unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

fn script(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A directory with a scripted helm and kubectl. The helm notes its arguments and environment in `calls`, and does
/// `upgrade` as told.
fn scripted(upgrade: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    script(
        &dir.path().join("helm"),
        &format!(
            r#"
case $1 in
version) echo v3.12.1+gabcdef; exit ;;
template) exit 1 ;;
get) exit 1 ;;
history) echo '[{{"revision":6,"updated":"x","status":"failed"}},{{"revision":5,"updated":"x","status":"deployed"}}]'; exit ;;
esac
echo "$@" >>{here}/calls
env >>{here}/calls
{upgrade}
"#
        ),
    );
    script(&dir.path().join("kubectl"), "echo '{\"kind\":\"List\",\"items\":[]}'\n");
    dir
}

#[test]
fn a_chart_is_rendered_without_a_cluster() {
    let output = sower(&parts())
        .args(["shop", CHART, "--namespace", "web", "--render-only", "--set", "image.tag=7f3"])
        .output()
        .unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(
        stdout,
        "rendered only, nothing was deployed: release shop would consist of\n  secret/shop-password\n  \
         deployment/shop  image registry.invalid/app:7f3\n"
    );
    assert!(!stderr.contains("hunter2"));
}

#[test]
fn rendering_answers_programs_and_the_summary_too() {
    let dir = tempfile::tempdir().unwrap();
    let summary = dir.path().join("summary.md");
    let output = sower(&parts())
        .args(["shop", CHART, "-n", "web", "--render-only", "--json", "--set-string", "image.tag=007"])
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 0, "{stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["result"], "rendered");
    assert_eq!(json["objects"][1]["images"][0], "registry.invalid/app:007");
    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.contains("| Image | `registry.invalid/app:007` |"), "{summary}");
    assert!(!format!("{stdout}{summary}").contains("hunter2"));
}

#[test]
fn a_chart_that_does_not_render_is_explained_by_helm() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("templates")).unwrap();
    fs::write(dir.path().join("Chart.yaml"), "apiVersion: v2\nname: bad\nversion: 1.0.0\n").unwrap();
    fs::write(dir.path().join("templates/a.yaml"), "kind: {{ .Values.some.deep.value }}\n").unwrap();
    let chart = dir.path().to_str().unwrap();
    let output = sower(&parts()).args(["bad", chart, "-n", "web", "--render-only"]).output().unwrap();
    let (code, _, stderr) = text(&output);
    assert_eq!(code, 1);
    assert!(stderr.contains("helm template failed") && stderr.contains("a.yaml"), "{stderr}");
}

#[test]
fn a_cluster_that_does_not_answer_is_said_to_be_that() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    // Nobody listens on port 1.
    let content = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
                   clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n";
    fs::write(&kubeconfig, content).unwrap();
    let output = sower(&parts())
        .args(["shop", CHART, "-n", "web", "--timeout", "20s", "--json", "--kubeconfig"])
        .arg(&kubeconfig)
        .output()
        .unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("the cluster cannot be reached") && stderr.contains("connection refused"),
        "{stderr}"
    );
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (json["result"].as_str(), json["cause"]["kind"].as_str()),
        (Some("failed"), Some("unreachable"))
    );
}

#[test]
fn without_any_kubeconfig_that_is_what_is_missing() {
    let output = sower(&parts()).args(["shop", CHART, "-n", "web", "--timeout", "20s"]).output().unwrap();
    let (code, _, stderr) = text(&output);
    assert_eq!(code, 1);
    assert!(stderr.contains("there is no kubeconfig"), "{stderr}");
}

#[test]
fn wrong_questions_are_answered_with_2_and_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().display().to_string();
    let mut command = sower(empty.path());
    let output = command.env("PATH", &path).args(["shop", CHART, "-n", "web"]).output().unwrap();
    let (code, _, stderr) = text(&output);
    assert_eq!(code, 2);
    assert!(stderr.contains("helm is not on PATH: install helm 3.12 or newer"), "{stderr}");

    script(&empty.path().join("helm"), "echo v3.11.0+g1\n");
    let output = sower(empty.path()).args(["shop", CHART, "-n", "web"]).output().unwrap();
    let (code, _, stderr) = text(&output);
    assert_eq!(code, 2);
    assert!(stderr.contains("helm 3.11.0: helm 3.12 or newer"), "{stderr}");

    let tools = scripted("exit 0");
    let cases: [(&[&str], &str); 7] = [
        (&["shop", "/nonexistent/chart", "-n", "web"], "no chart at /nonexistent/chart"),
        (&["shop", "/tmp", "-n", "web"], "no Chart.yaml"),
        (&["Shop", CHART, "-n", "web"], "cannot be the name of a release"),
        (&["shop", CHART, "-n", "web", "-f", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (&["shop", CHART, "-n", "web", "--set", "novalue"], "KEY=VALUE"),
        (&["shop", CHART, "-n", "web", "--timeout", "5"], "5m, 90s or 1h30m"),
        (&["shop", CHART, "-n", "web", "--kubeconfig", "/nonexistent/kubeconfig"], "/nonexistent/kubeconfig"),
    ];
    for (arguments, words) in cases {
        let (code, _, stderr) = text(&sower(tools.path()).args(arguments).output().unwrap());
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
    assert!(!tools.path().join("calls").exists(), "helm was asked although the question was wrong");
}

#[test]
fn helm_is_told_what_was_asked_for() {
    let tools = scripted("exit 0");
    let output = sower(tools.path())
        .args(["shop", CHART, "-n", "web", "--create-namespace", "--timeout", "1m30s", "--context", "blue"])
        .args(["--set", "a=1", "--set", "b=x y", "--set-string", "c=007", "-f"])
        .arg(format!("{CHART}/values.yaml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let calls = fs::read_to_string(tools.path().join("calls")).unwrap();
    assert_eq!(
        calls.lines().next().unwrap(),
        format!(
            "upgrade --install --wait --timeout 90s --history-max 10 --create-namespace --kube-context blue --namespace web \
             --values {CHART}/values.yaml --set a=1 --set b=x y --set-string c=007 -- shop {CHART}"
        )
    );
}

#[test]
fn a_kubeconfig_from_a_secret_is_a_private_file_for_the_moment() {
    let tools = scripted("stat -c '%a %n' \"$9\" >&2; exit 0");
    let scratch = tempfile::tempdir().unwrap();
    let output = sower(tools.path())
        .args(["shop", CHART, "-n", "web"])
        .env("SOWER_KUBECONFIG", SECRET_KUBECONFIG)
        .env("TMPDIR", scratch.path())
        .output()
        .unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 0, "{stderr}");
    let line = stdout.lines().find_map(|line| line.strip_prefix("helm: ")).unwrap();
    assert!(line.starts_with(&format!("600 {}", scratch.path().display())), "{line}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "the file is still there");
    let calls = fs::read_to_string(tools.path().join("calls")).unwrap();
    assert!(!format!("{calls}{stdout}{stderr}").contains("hunter3"), "the secret was handed on");
}

#[test]
fn what_helm_prints_of_the_release_is_not_shown() {
    let tools = scripted("echo 'NOTES: the password is hunter2'; echo 'WARNING: old' >&2; exit 0");
    let dir = tempfile::tempdir().unwrap();
    let (outputs, summary) = (dir.path().join("outputs"), dir.path().join("summary"));
    let output = sower(tools.path())
        .args(["shop", CHART, "-n", "web"])
        .env("GITHUB_OUTPUT", &outputs)
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 0);
    assert!(!format!("{stdout}{stderr}").contains("hunter2"));
    assert!(stdout.contains("helm: WARNING: old\n") && stdout.contains("revision 7 is ready"), "{stdout}");
    assert_eq!(fs::read_to_string(outputs).unwrap(), "revision=7\nimages=\n");
    assert!(fs::read_to_string(summary).unwrap().contains("| Revision | 7 |"));
}

#[test]
fn a_signal_is_handed_to_helm_and_waited_for() {
    for signal in ["INT", "TERM"] {
        let tools = scripted(
            "trap 'sleep 0.3; echo \"Error: UPGRADE FAILED: context canceled\" >&2; exit 1' TERM\n\
             echo waiting >&2; while :; do sleep 0.05; done",
        );
        let mut child = sower(tools.path())
            .args(["shop", CHART, "-n", "web"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "helm: waiting"));
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let rest: Vec<String> = lines.collect();
        assert!(rest.iter().any(|line| line == "helm: Error: UPGRADE FAILED: context canceled"), "{rest:?}");
        let output = child.wait_with_output().unwrap();
        let (code, _, stderr) = text(&output);
        assert_eq!(code, 1);
        assert_eq!(
            stderr,
            "sower: the deployment was cancelled: release shop is at revision 6 (failed); the last good one is 5\n"
        );
    }
}

/// A helm whose release is locked since `updated`, until it is told to roll back.
fn locked(updated: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    script(
        &dir.path().join("helm"),
        &format!(
            r#"
case $1 in
version) echo v3.12.1+gabcdef; exit ;;
template|get) exit 1 ;;
history)
    newest=pending-upgrade; [ ! -e {here}/free ] || newest=superseded
    echo '[{{"revision":6,"updated":"{updated}","status":"'$newest'"}},{{"revision":5,"updated":"x","status":"deployed"}}]'; exit ;;
rollback) : >{here}/free ;;
esac
echo "$1 $*" >>{here}/calls
"#
        ),
    );
    script(&dir.path().join("kubectl"), "echo '{\"kind\":\"List\",\"items\":[]}'\n");
    dir
}

#[test]
fn an_old_lock_of_somebody_else_is_taken_for_a_dead_one() {
    let tools = locked("2020-01-02T03:04:05.123456789+01:00");
    let output = sower(tools.path()).args(["old-lock", CHART, "-n", "web"]).output().unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("revision 6 is pending-upgrade since 2020-01-02"), "{stdout}");
    assert!(stdout.contains("it is taken to be dead\n"), "{stdout}");
    assert!(stdout.contains("release old-lock is freed: rolled back to revision 5\n"), "{stdout}");
    let calls = fs::read_to_string(tools.path().join("calls")).unwrap();
    assert!(calls.lines().next().unwrap().ends_with("-- old-lock 5"), "{calls}");
}

#[test]
fn a_helm_that_is_seen_at_work_is_waited_for_however_old_its_lock_is() {
    let tools = locked("2020-01-02T03:04:05Z");
    // What counts is what a process looks like.
    let mut other = Command::new("bash")
        .args(["-c", "exec -a helm sh -c 'sleep 600; :' upgrade live-lock -n web"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let process = format!("/proc/{}/cmdline", other.id());
    while !fs::read_to_string(&process).unwrap().starts_with("helm\0") {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output =
        sower(tools.path()).args(["live-lock", CHART, "-n", "web", "--timeout", "3s"]).output().unwrap();
    let (code, stdout, stderr) = text(&output);
    let pid = other.id();
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains(&format!("by helm, process {pid} of this host")), "{stderr}");
    assert!(!tools.path().join("free").exists());
}

#[test]
fn images_of_a_deployment_are_known_to_those_who_prune() {
    let tools = scripted("exit 0");
    let state = tempfile::tempdir().unwrap();
    let objects = |tag: &str| {
        format!(
            r#"echo '{{"kind":"List","items":[
{{"kind":"StatefulSet","metadata":{{"name":"s","uid":"s","annotations":{{"meta.helm.sh/release-name":"shop"}}}},"spec":{{"replicas":1}}}},
{{"kind":"Pod","metadata":{{"name":"s-0","ownerReferences":[{{"uid":"s"}}]}},
 "spec":{{"containers":[{{"name":"a","image":"r.test/shop:{tag}","readinessProbe":{{}}}}]}}}}]}}'"#
        )
    };
    for tag in ["1", "2", "2"] {
        script(&tools.path().join("kubectl"), &objects(tag));
        let mut command = sower(tools.path());
        let output = command.args(["shop", CHART, "-n", "web"]).env("SOWER_STATE_DIR", state.path()).output();
        let (code, stdout, stderr) = text(&output.unwrap());
        assert_eq!(code, 0, "{stdout}{stderr}");
    }
    let notes = fs::read_dir(state.path().join("deploy")).unwrap().map(|entry| entry.unwrap().path());
    let note = notes.into_iter().find(|path| path.extension().is_some_and(|end| end == "images")).unwrap();
    let note: Value = serde_json::from_slice(&fs::read(note).unwrap()).unwrap();
    assert_eq!((&note["images"][0], &note["before"][0]), (&"r.test/shop:2".into(), &"r.test/shop:1".into()));
}

/// An API server as far as it is asked for workloads: a directory of answers, shown by openssl to whoever has a
/// certificate of its authority. One connection after the other, each for one question.
struct Server {
    process: std::process::Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout other.key -out other.pem -days 2 -subj /CN=user
for name in server user; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $name.key -out $name.csr -subj /CN=$name
    echo subjectAltName=DNS:api.test >$name.ext
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
done
apps=apis/apps/v1/namespaces/web
mkdir -p $apps apis/batch/v1/namespaces/web api/v1/namespaces/web
for name in $apps/deployments $apps/daemonsets $apps/replicasets apis/batch/v1/namespaces/web/jobs; do
    echo '{"items":[]}' >$name
done
echo '{"items":[{"metadata":{"name":"s","uid":"s","annotations":{"meta.helm.sh/release-name":"shop"}},"spec":{"replicas":1}}]}' \
    >$apps/statefulsets
echo '{"items":[{"metadata":{"name":"s-0","ownerReferences":[{"uid":"s"}]},
"spec":{"containers":[{"name":"a","image":"r.test/shop:7","readinessProbe":{}}]},
"status":{"containerStatuses":[{"name":"a","ready":true,"state":{"running":{}}}]}}]}' >api/v1/namespaces/web/pods
"#;
        let made = Command::new("sh").args(["-c", script]).current_dir(dir.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = sower_test_support::free_address().unwrap().port();
        let process = Command::new("openssl")
            .args(["s_server", "-quiet", "-WWW", "-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"])
            .args(["-key", "server.key", "-cert", "server.pem", "-accept", &format!("127.0.0.1:{port}")])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { process, dir, port }
    }

    /// With the name that its certificate is for, as at this end of a tunnel. `user`: the files that the user shows.
    fn kubeconfig(&self, name: &str, user: &str) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}', tls-server-name: {name}, certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{client-certificate: {user}.pem, client-key: {user}.key}}}}]\n",
            self.port
        );
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_api_server_is_asked_without_kubectl_where_the_kubeconfig_says_all() {
    let server = Server::start();
    let tools = scripted("exit 0");
    let asked = tools.path().join("asked");
    let deploy = |name: &str, user: &str| {
        script(
            &tools.path().join("kubectl"),
            &format!("echo \"$@\" >>{}; echo '{{\"kind\":\"List\",\"items\":[]}}'", asked.display()),
        );
        let kubeconfig = server.kubeconfig(name, user);
        let output = sower(tools.path())
            .args(["shop", CHART, "-n", "web", "--json", "--kubeconfig"])
            .arg(kubeconfig)
            .output()
            .unwrap();
        let (code, stdout, stderr) = text(&output);
        assert_eq!(code, 0, "{stdout}{stderr}");
        let json: Value = serde_json::from_str(&stdout).unwrap();
        let calls = fs::read_to_string(&asked).unwrap_or_default();
        let _ = fs::remove_file(&asked);
        (json["images"].clone(), calls)
    };
    assert_eq!(deploy("api.test", "user"), (serde_json::json!(["r.test/shop:7"]), String::new()));
    // A certificate of another name is not believed, and a user whom nobody knows is not let in: kubectl may know better.
    for (name, user) in [("other.test", "user"), ("api.test", "other")] {
        let (images, calls) = deploy(name, user);
        assert_eq!(images, serde_json::json!([]), "{name} {user}");
        assert!(calls.contains("get deployments,"), "{calls}");
    }
}

#[test]
fn what_could_not_be_tried_is_in_the_summary_too() {
    let tools = scripted("exit 0");
    let summary = tools.path().join("summary");
    let output = sower(tools.path())
        .args(["shop", CHART, "-n", "web", "--json", "--ssh", "127.0.0.1:1", "--ssh-config", "/dev/null"])
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    let (code, stdout, stderr) = text(&output);
    assert_eq!(code, 1, "{stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["result"], "not-tried");
    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.contains("| Cause | 127.0.0.1:1 cannot be reached over SSH: "), "{summary}");
}

#[test]
fn the_help_has_examples() {
    let output = sower(Path::new("/nonexistent")).arg("--help").output().unwrap();
    insta::assert_snapshot!(text(&output).1);
}
