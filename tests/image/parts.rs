//! The real parts that the tests of `sower image` stand on: Debian's docker-registry, skopeo, openssl, and the program
//! itself.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sower::image::Digest;
use sower_test_support::free_address;

/// Runs a program that the tests need.
pub(crate) fn part(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it"))
}

/// Like [`part`], and it must succeed.
pub(crate) fn part_ok(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = part(program, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}

/// A docker-registry on a loopback port of its own.
pub(crate) struct DockerRegistry {
    pub(crate) address: SocketAddr,
    child: Child,
    command: Vec<String>,
    directory: tempfile::TempDir,
}

impl DockerRegistry {
    /// Starts one; `extra` is put into its configuration.
    pub(crate) fn start(extra: &str) -> Self {
        Self::configured(extra, "", &["docker-registry"])
    }

    /// One whose files cannot grow past so many bytes: to those who write them that looks like a full disk.
    pub(crate) fn start_limited(bytes: u64) -> Self {
        Self::configured("", "", &["prlimit", &format!("--fsize={bytes}"), "docker-registry"])
    }

    /// One that speaks HTTPS.
    pub(crate) fn start_with_tls(cert: &str, key: &str) -> Self {
        Self::configured("", &format!(", tls: {{certificate: {cert}, key: {key}}}"), &["docker-registry"])
    }

    fn configured(extra: &str, http: &str, command: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address().unwrap();
        let config = directory.path().join("config.yml");
        let data = directory.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http: {{addr: {address}{http}}}\n{extra}",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let child = Self::spawn(&command, &config);
        let registry = Self { address, child, command, directory };
        registry.wait();
        registry
    }

    fn spawn(command: &[String], config: &Path) -> Child {
        Command::new(&command[0])
            .args(&command[1..])
            .arg("serve")
            .arg(config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry: {error}; `make test-parts` installs it"))
    }

    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < until, "docker-registry does not answer on {}", self.address);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has it lose a blob of a repository, as its `DELETE` does; images that need it stay.
    pub(crate) fn lose(&self, repository: &str, digest: &str) {
        let (_, hex) = digest.split_once(':').unwrap();
        let data = self.directory.path().join("data/docker/registry/v2/repositories");
        std::fs::remove_dir_all(data.join(repository).join("_layers/sha256").join(hex)).unwrap();
    }

    /// Kills it and starts it again on the same files.
    pub(crate) fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = Self::spawn(&self.command, &self.directory.path().join("config.yml"));
        self.wait();
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Signs tokens for a docker-registry with a key of its own.
pub(crate) struct TokenService {
    directory: tempfile::TempDir,
}

impl TokenService {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (key, cert) = (directory.path().join("key.pem"), directory.path().join("cert.pem"));
        let (key, cert) = (key.to_str().unwrap(), cert.to_str().unwrap());
        part_ok(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=token",
                "-keyout",
                key,
                "-out",
                cert,
            ],
        );
        Self { directory }
    }

    /// The `auth` part of the registry's configuration.
    pub(crate) fn config(&self, realm: &str) -> String {
        let cert = self.directory.path().join("cert.pem");
        format!(
            "auth:\n  token:\n    realm: {realm}\n    service: container_registry\n    issuer: test\n    rootcertbundle: {}\n",
            cert.display()
        )
    }

    /// The body of a token answer for these rights.
    pub(crate) fn answer(&self, repository: &str, actions: &[&str]) -> Vec<u8> {
        self.answer_for(repository, actions, 600)
    }

    /// A token that is good for so many seconds.
    pub(crate) fn answer_for(&self, repository: &str, actions: &[&str], seconds: u64) -> Vec<u8> {
        self.answer_for_all(&[repository], actions, seconds)
    }

    /// A token for several repositories.
    pub(crate) fn answer_for_all(&self, repositories: &[&str], actions: &[&str], seconds: u64) -> Vec<u8> {
        // The registry takes a token a minute longer than it says.
        let seconds = if seconds < 60 { seconds as i64 - 60 } else { seconds as i64 };
        let cert = std::fs::read_to_string(self.directory.path().join("cert.pem")).unwrap();
        let der: String = cert.lines().filter(|line| !line.starts_with("-----")).collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let access: Vec<serde_json::Value> = repositories
            .iter()
            .map(|name| serde_json::json!({"type": "repository", "name": name, "actions": actions}))
            .collect();
        let header = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
        let claims = serde_json::json!({
            "iss": "test", "sub": "dev", "aud": "container_registry", "exp": now as i64 + seconds, "nbf": now - 120,
            "iat": now - 120, "jti": "1",
            "access": access,
        });
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let mut sign = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(self.directory.path().join("key.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        sign.stdin.take().unwrap().write_all(signed.as_bytes()).unwrap();
        let signature = sign.wait_with_output().unwrap().stdout;
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        serde_json::json!({ "token": token }).to_string().into_bytes()
    }
}

/// `Basic …` for a user and password.
pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// The program, with an environment and a home of its own.
pub(crate) struct Sower {
    pub(crate) home: tempfile::TempDir,
    env: BTreeMap<String, String>,
}

/// What a run of the program said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// It must have gone well.
    #[track_caller]
    pub(crate) fn well(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// It must have failed, with these words on stderr and on one line of at most 600 characters.
    #[track_caller]
    pub(crate) fn badly(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert!(self.stderr.lines().all(|line| line.len() < 600), "{}", self.stderr);
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

impl Sower {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for directory in ["tmp", "cache"] {
            std::fs::create_dir(home.path().join(directory)).unwrap();
        }
        Self { home, env: BTreeMap::new() }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn image(&self, arguments: &[&str]) -> Said {
        self.image_with_stdin(arguments, "")
    }

    pub(crate) fn image_with_stdin(&self, arguments: &[&str], stdin: &str) -> Said {
        self.image_with_bytes(arguments, stdin.as_bytes())
    }

    pub(crate) fn image_with_bytes(&self, arguments: &[&str], stdin: &[u8]) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sower"))
            .arg("image")
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("HOME", self.home.path())
            .env("TMPDIR", self.path("tmp"))
            .env("SOWER_CACHE_DIR", self.path("cache"))
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may not read its standard input at all.
        let mut pipe = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || drop(pipe.write_all(stdin)));
            child.wait_with_output().unwrap()
        });
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Lengths of content of which half cannot be compressed: a layer that goes in one piece, and one that is sent while it is
/// read.
pub(crate) const SHORT: usize = 200_000;
pub(crate) const LONG: usize = 2_600_000;

/// An image to be written as docker-archive.
#[derive(Clone)]
pub(crate) struct TestImage {
    /// Plain tars, lowest first.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) created: String,
}

impl TestImage {
    /// Layers of these many bytes, different from each other, that compress about as programs do.
    pub(crate) fn new(sizes: &[usize]) -> Self {
        let layers =
            sizes.iter().enumerate().map(|(seed, size)| tar(&[("bin/app", &content(seed as u32, *size))]));
        Self { layers: layers.collect(), created: "2026-01-01T00:00:00Z".to_owned() }
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| Digest::of(layer)).collect();
        serde_json::json!({
            "architecture": "amd64", "os": "linux", "created": self.created, "config": {"Cmd": ["/bin/app"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes()
    }

    /// The members of a docker-archive, `manifest.json` last.
    pub(crate) fn members(&self) -> Vec<(String, Vec<u8>)> {
        let config = self.config();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let names: Vec<String> = (0..self.layers.len()).map(|at| format!("l{at}/layer.tar")).collect();
        let manifest = serde_json::json!([{"Config": config_name, "RepoTags": ["app:t"], "Layers": names}]);
        let mut members: Vec<_> = names.into_iter().zip(self.layers.iter().cloned()).collect();
        members.push((config_name, config));
        members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
        members
    }

    pub(crate) fn archive(&self) -> Vec<u8> {
        tar(&self.members())
    }

    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.archive()).unwrap();
    }
}

pub(crate) fn tar(members: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let bytes = bytes.as_ref();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name.as_ref(), bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

pub(crate) fn content(seed: u32, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..size)
        .map(|at| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if at % 16 < 8 { b"the same "[at % 8] } else { (state >> 24) as u8 }
        })
        .collect()
}
