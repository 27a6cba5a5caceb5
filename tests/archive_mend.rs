//! Mending archives: from distant donors, from what is left, and back; killed at any moment.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sower::archive::check;
use sower_test_support::Sshd;
use tempfile::TempDir;

fn run(program: &str, arguments: &[&str], directory: &Path) -> Output {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it"))
}

fn tool(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = run(program, arguments, directory);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn command(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sower"));
    command.arg("archive").args(arguments).current_dir(path).env_remove("GITHUB_STEP_SUMMARY");
    command.env("SOWER_STATE_DIR", path.join("state")).env("SOWER_CACHE_DIR", path.join("cache"));
    command.env("HOME", path);
    command
}

/// A program with GHC's own linker in it.
const LOADS_AN_ARCHIVE: &str = r#"
import Foreign.C
import Foreign.Ptr
foreign import ccall "initLinker" initLinker :: IO ()
foreign import ccall "loadArchive" loadArchive :: CString -> IO CInt
foreign import ccall "resolveObjs" resolveObjs :: IO CInt
foreign import ccall "lookupSymbol" lookupSymbol :: CString -> IO (Ptr ())
main = do
  initLinker
  loaded <- withCString "lib.a" loadArchive
  resolved <- resolveObjs
  found <- withCString "f9" lookupSymbol
  print (loaded, resolved, found /= nullPtr)
"#;

/// Exit code, stdout, stderr.
fn sower(path: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = command(path, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// An archive of some megabytes: many members, each with a symbol. `lib.a` is cut, `whole.a` is not.
fn large(path: &Path) -> (PathBuf, PathBuf) {
    let mut names = Vec::new();
    for index in 0..12 {
        let name = format!("member_number_{index}");
        fs::write(
            path.join("x.c"),
            format!("char {name}[400000]={{1}};int f{index}(void){{return {index};}}"),
        )
        .unwrap();
        tool("gcc", &["-c", "x.c", "-o", &format!("{name}.o")], path);
        names.push(format!("{name}.o"));
    }
    let mut arguments = vec!["rcsD", "whole.a"];
    arguments.extend(names.iter().map(String::as_str));
    tool("ar", &arguments, path);
    let (archive, whole) = (path.join("lib.a"), path.join("whole.a"));
    fs::copy(&whole, &archive).unwrap();
    cut(&archive, 4_300_000);
    (archive, whole)
}

fn cut(archive: &Path, size: u64) {
    fs::OpenOptions::new().write(true).open(archive).unwrap().set_len(size).unwrap();
}

/// Serves the files of a directory over HTTP; counts the bytes of bodies. `ranges` says whether it knows them.
fn serve(directory: &Path, ranges: bool) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU64::new(0));
    let (counter, directory) = (Arc::clone(&sent), directory.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (counter, directory) = (Arc::clone(&counter), directory.clone());
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                while let Some(request) = lines.next() {
                    let headers: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
                    let name = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
                    let mut out = &stream;
                    let Ok(bytes) = fs::read(directory.join(name)) else {
                        let _ = out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                        continue;
                    };
                    let range = headers.iter().find_map(|line| {
                        let line = line.to_ascii_lowercase();
                        let (from, to) = line.strip_prefix("range: bytes=")?.split_once('-')?;
                        Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
                    });
                    let (head, body) = match range.filter(|_| ranges) {
                        Some((from, to)) => {
                            let to = to.min(bytes.len() - 1);
                            (
                                format!(
                                    "206 Partial Content\r\nContent-Range: bytes {from}-{to}/{}",
                                    bytes.len()
                                ),
                                &bytes[from..=to],
                            )
                        }
                        None => ("200 OK".to_owned(), &bytes[..]),
                    };
                    counter.fetch_add(body.len() as u64, Ordering::SeqCst);
                    let _ = write!(out, "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
                    let _ = out.write_all(body);
                }
            });
        }
    });
    (url, sent)
}

#[test]
fn over_http_only_the_missing_tail_is_fetched() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, whole) = large(path);
    let bytes = fs::read(&whole).unwrap();
    let (url, sent) = serve(path, true);
    let (code, stdout, stderr) = sower(path, &["patch", "lib.a", "--from", &format!("{url}/whole.a")]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(fs::read(&archive).unwrap(), bytes);
    let tail = bytes.len() as u64 - 4_300_000;
    let read = sent.load(Ordering::SeqCst);
    assert!(read < tail + 1_300_000, "{read} bytes were read for a tail of {tail}");
    assert!(stdout.contains("whole.a") && stdout.contains("sha256"), "{stdout}");

    // A server without ranges gives everything; another archive is found out by either kind.
    cut(&archive, 4_300_000);
    let (plain, _) = serve(path, false);
    assert_eq!(sower(path, &["patch", "lib.a", "--from", &format!("{plain}/whole.a")]).0, 0);
    assert_eq!(fs::read(&archive).unwrap(), bytes);
    cut(&archive, 4_300_000);
    let mut other = bytes.clone();
    other[4_299_000] ^= 1;
    fs::write(path.join("other.a"), &other).unwrap();
    for server in [&url, &plain] {
        let (code, _, stderr) = sower(path, &["patch", "lib.a", "--from", &format!("{server}/other.a")]);
        assert!(code == 1 && stderr.contains("the first difference is at position"), "{stderr}");
    }
    // The same beginning and a shorter, longer or garbled tail: the symbol table finds it out.
    let mut garbled = bytes.clone();
    garbled.truncate(4_310_000);
    garbled.resize(bytes.len(), b'x');
    fs::write(path.join("garbled.a"), &garbled).unwrap();
    fs::write(path.join("short.a"), &bytes[..bytes.len() - 100_000]).unwrap();
    for name in ["garbled.a", "short.a", "missing.a"] {
        let (code, _, stderr) = sower(path, &["patch", "lib.a", "--from", &format!("{url}/{name}")]);
        assert_eq!(code, 1, "{name}: {stderr}");
        assert_eq!(fs::metadata(&archive).unwrap().len(), 4_300_000, "{name}");
    }
    let (code, _, stderr) = sower(path, &["patch", "lib.a", "--from", "https://me:hunter2@h.test/x.a"]);
    assert!(code == 2 && !stderr.contains("hunter2"), "{stderr}");
}

#[test]
fn over_ssh_only_known_hosts_are_believed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, whole) = large(path);
    let sshd = Sshd::start().unwrap();
    let from = format!("ssh://127.0.0.1:{}{}", sshd.port(), whole.display());
    let patch = || {
        let mut command = command(path, &["patch", "lib.a", "--from", &from]);
        command.env("SOWER_SSH_KEY", fs::read_to_string(sshd.key()).unwrap()).env_remove("SSH_AUTH_SOCK");
        command.output().unwrap()
    };
    fs::create_dir(path.join(".ssh")).unwrap();
    let refused = patch();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(fs::metadata(&archive).unwrap().len(), 4_300_000);
    fs::copy(sshd.known_hosts(), path.join(".ssh/known_hosts")).unwrap();
    let done = patch();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read(&archive).unwrap(), fs::read(&whole).unwrap());
}

#[test]
fn what_is_left_is_taken_by_both_kinds_of_reader() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, _) = large(path);
    let (code, stdout, stderr) = sower(path, &["patch", "lib.a", "--salvage", "--keep-old"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("LOST: at least 2 members with 4 symbols"), "{stdout}");
    assert!(stdout.contains("member_number_10.o") && stdout.contains("f11"), "{stdout}");
    let report = check(&archive).unwrap();
    assert!(report.sound, "{report:?}");
    assert_eq!((report.members, report.symbols), (10, 20));
    // By symbol: a link that wants the last whole member. By member: llvm-ar, and GHC's linker.
    fs::write(path.join("main.c"), "int f9(void);int main(void){return f9()-9;}").unwrap();
    tool("gcc", &["main.c", "lib.a", "-o", "program"], path);
    tool("./program", &[], path);
    assert_eq!(tool("llvm-ar", &["t", "lib.a"], path).lines().count(), 10);
    assert_eq!(tool("nm", &["-s", "lib.a"], path).matches(" in member_number_").count(), 20);
    // GHC's linker itself, which walks from member to member.
    fs::write(path.join("Load.hs"), LOADS_AN_ARCHIVE).unwrap();
    tool("ghc", &["-v0", "Load.hs", "-o", "load"], path);
    assert_eq!(tool("./load", &[], path), "(1,1,True)\n");
    // And back.
    let (code, _, stderr) = sower(path, &["patch", "lib.a", "--undo"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(fs::metadata(&archive).unwrap().len(), 4_300_000);
    assert_eq!(sower(path, &["patch", "lib.a", "--undo"]).0, 2);

    tool("llvm-ar", &["--format=bsd", "rcsD", "bsd.a", "member_number_1.o", "member_number_2.o"], path);
    let size = fs::metadata(path.join("bsd.a")).unwrap().len();
    cut(&path.join("bsd.a"), size - 1000);
    assert_eq!(sower(path, &["patch", "bsd.a", "--salvage"]).0, 0);
    let report = check(&path.join("bsd.a")).unwrap();
    assert!(report.sound && report.members == 1 && report.symbols == 2, "{report:?}");
    tool("llvm-nm", &["bsd.a"], path);
}

/// At some moments here, at as many as SOWER_KILLS says in `make bench-archives`.
#[test]
fn killed_at_any_moment_there_is_the_old_file_or_the_new_one() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, whole) = large(path);
    let bytes = fs::read(&whole).unwrap();
    let rounds: u64 = std::env::var("SOWER_KILLS").map_or(24, |rounds| rounds.parse().unwrap());
    let begin = || {
        fs::copy(&whole, path.join("again")).unwrap();
        cut(&path.join("again"), 4_300_000);
        fs::rename(path.join("again"), &archive).unwrap();
        let mut patch = command(path, &["patch", "lib.a", "--from", "whole.a"]);
        patch.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // How long a mend takes here, so that the moments lie all over it.
    let began = Instant::now();
    assert!(begin().wait().unwrap().success());
    let span = began.elapsed().as_nanos() as u64;
    let (mut state, mut old) = (0x5eed_u64, 0);
    for round in 0..rounds {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child = begin();
        std::thread::sleep(Duration::from_nanos((state >> 11) % span));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = fs::read(&archive).unwrap();
        old += u64::from(now != bytes);
        assert!(now == bytes || now == bytes[..4_300_000], "round {round}: {} bytes", now.len());
    }
    println!(
        "killed at {rounds} moments of a mend: {old} times the old file, {} times the new one",
        rounds - old
    );
    assert_eq!(sower(path, &["patch", "lib.a", "--from", "whole.a"]).0, 0);
    assert_eq!(fs::read(&archive).unwrap(), bytes);
}

#[test]
fn a_directory_that_is_mounted_read_only_is_written_to_all_the_same() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("store")).unwrap();
    let (archive, whole) = large(path);
    fs::rename(&archive, path.join("store/lib.a")).unwrap();
    let script = format!(
        "mount --bind store store && mount -o remount,bind,ro store && ! touch store/x 2>/dev/null && \
         {} archive patch store/lib.a --from whole.a && ! touch store/x 2>/dev/null",
        env!("CARGO_BIN_EXE_sower")
    );
    tool("unshare", &["--mount", "--map-root-user", "sh", "-c", &script], path);
    assert_eq!(fs::read(path.join("store/lib.a")).unwrap(), fs::read(&whole).unwrap());
}

/// A Nix store of its own.
struct Nix {
    path: PathBuf,
}

impl Nix {
    fn environment(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.path.join(name).display().to_string();
        let config = "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\nrequire-sigs = false\nsubstituters =\n";
        [
            ("CONFIG", config.to_owned()),
            ("STORE_DIR", at("store")),
            ("STATE_DIR", at("var")),
            ("LOG_DIR", at("log")),
            ("CONF_DIR", at("etc")),
            ("REMOTE", String::new()),
        ]
        .map(|(name, value)| (format!("NIX_{name}"), value))
        .into()
    }

    fn nix(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(&self.path)
            .envs(self.environment())
            .env("HOME", &self.path)
            .output();
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn sower(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = command(&self.path, arguments).envs(self.environment()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

fn damage(stored: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(stored).unwrap();
    change(&mut bytes);
    fs::set_permissions(stored, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(stored, bytes).unwrap();
    fs::set_permissions(stored, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn nix_knows_better_than_the_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, whole) = large(path);
    let nix = Nix { path: path.to_owned() };
    for (tree, source) in [("good", &whole), ("bad", &archive)] {
        fs::create_dir_all(path.join(tree).join("lib")).unwrap();
        fs::copy(source, path.join(tree).join("lib/lib.a")).unwrap();
        fs::write(path.join(tree).join("text"), tree).unwrap();
    }
    let good = nix.nix("nix", &["store", "add-path", "good"]);
    let bad = nix.nix("nix", &["store", "add-path", "bad"]);
    let stored = PathBuf::from(&good).join("lib/lib.a");
    let cache = format!("file://{}", path.join("caches").display());
    nix.nix("nix", &["copy", "--to", &cache, &good]);

    // Whole: one line for the store path, one for the archive.
    let (code, stdout, stderr) = nix.sower(&["check", &good]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("and the hash, as Nix's book says"), "{stdout}");
    // A flipped bit in a body: only the hash finds it.
    damage(&stored, |bytes| bytes[2_000_000] ^= 1);
    assert_eq!(nix.sower(&["check", "--no-hash", stored.to_str().unwrap()]).0, 0);
    let (code, stdout, _) = nix.sower(&["check", stored.to_str().unwrap()]);
    assert!(code == 1 && stdout.contains("the size is right and the content is not"), "{stdout}");
    // What a closure remembers of a structure says nothing of the bodies.
    assert_eq!(nix.sower(&["check", "--closure", &good]).0, 0);
    assert_eq!(nix.sower(&["check", "--hash", "--closure", &good]).0, 1);
    // A reader that went away changes no verdict.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut unread = command(path, &["check", stored.to_str().unwrap()]);
    assert_eq!(unread.envs(nix.environment()).stdout(writer).status().unwrap().code(), Some(1));
    // Where the damage is nobody knows: the hash proves a copy, and refuses another.
    let mut other = fs::read(&whole).unwrap();
    other[3_000_000] ^= 1;
    fs::write(path.join("other.a"), other).unwrap();
    let (code, _, stderr) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", "other.a"]);
    assert!(code == 1 && stderr.contains("would not be what Nix's book says"), "{stderr}");
    let (code, stdout, stderr) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", "whole.a"]);
    assert!(code == 0 && stdout.contains("is what Nix's book says"), "{stdout}{stderr}");
    assert_eq!(nix.sower(&["check", "--hash", "--closure", &good]).0, 0);
    let (_, stdout, _) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", "whole.a"]);
    assert!(stdout.contains("nothing to mend"), "{stdout}");
    // A check that repairs takes the same sources.
    damage(&stored, |bytes| bytes[2_500_000] ^= 1);
    let repair = |from: &str| nix.sower(&["check", "--repair", "--from", from, stored.to_str().unwrap()]);
    let (code, _, stderr) = repair("other.a");
    assert!(code == 1 && stderr.contains("would not be what Nix's book says"), "{stderr}");
    let (code, stdout, stderr) = repair("whole.a");
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(fs::read(&stored).unwrap(), fs::read(&whole).unwrap());

    // Cut: size and structure both say so. The NAR of a binary cache mends it, and Nix's own check agrees.
    let twin = path.join("store/.links").join("0".repeat(52));
    fs::create_dir_all(path.join("store/.links")).unwrap();
    damage(&stored, |bytes| bytes.truncate(4_300_000));
    fs::hard_link(&stored, &twin).unwrap();
    let (code, stdout, _) = nix.sower(&["check", stored.to_str().unwrap()]);
    assert!(code == 1 && stdout.contains("Nix's book has"), "{stdout}");
    let (code, stdout, stderr) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", &cache]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("is what Nix's book says") && stdout.contains(".links"), "{stdout}");
    assert!(!twin.exists(), "the damaged content is still in .links");
    nix.nix("nix", &["store", "verify", "--no-trust", &good]);
    let meta = fs::metadata(&stored).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o444, 1));

    // The same cache over HTTP, its NARs compressed otherwise.
    for compression in ["zstd", "none", "gzip", "bzip2"] {
        let name = format!("cache-{compression}");
        nix.nix(
            "nix",
            &[
                "copy",
                "--to",
                &format!("file://{}?compression={compression}", path.join(&name).display()),
                &good,
            ],
        );
        damage(&stored, |bytes| bytes.truncate(1_000_000));
        let (url, _) = serve(&path.join(&name), true);
        let (code, stdout, stderr) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", &url]);
        assert_eq!(code, 0, "{compression}: {stdout}{stderr}");
        nix.nix("nix", &["store", "verify", "--no-trust", &good]);
    }
    // A narinfo that names no compression means bzip2.
    let infos = fs::read_dir(path.join("cache-bzip2")).unwrap().flatten().map(|entry| entry.path());
    let info = infos.into_iter().find(|path| path.extension().is_some_and(|end| end == "narinfo")).unwrap();
    let text = fs::read_to_string(&info).unwrap();
    assert!(text.contains("\nCompression: bzip2\n"), "{text}");
    fs::write(&info, text.replace("Compression: bzip2\n", "")).unwrap();
    damage(&stored, |bytes| bytes.truncate(1_000_000));
    let cache = path.join("cache-bzip2").display().to_string();
    let (code, stdout, stderr) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", &cache]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(fs::read(&stored).unwrap(), fs::read(&whole).unwrap());

    // Another archive with the same beginning: structure is well, Nix's hash is not.
    damage(&stored, |bytes| bytes.truncate(4_300_000));
    let mut other = fs::read(&whole).unwrap();
    let last = other.len() - 100;
    other[last] ^= 1;
    fs::write(path.join("other.a"), other).unwrap();
    let (code, _, stderr) = nix.sower(&["patch", stored.to_str().unwrap(), "--from", "other.a"]);
    assert!(code == 1 && stderr.contains("would not be what Nix's book says"), "{stderr}");

    // Cut when it was built: the book agrees with the cut file.
    let built = format!("{bad}/lib/lib.a");
    let (code, stdout, _) = nix.sower(&["check", &built]);
    assert!(code == 1 && stdout.contains("it was cut when it was built"), "{stdout}");
    let (code, _, stderr) = nix.sower(&["patch", &built, "--from", "whole.a"]);
    assert!(code == 1 && stderr.contains("nix build --repair"), "{stderr}");
}

#[test]
fn a_closure_is_looked_through_once() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (_, whole) = large(path);
    let nix = Nix { path: path.to_owned() };
    fs::create_dir_all(path.join("lib-1/lib")).unwrap();
    fs::copy(&whole, path.join("lib-1/lib/libone.a")).unwrap();
    fs::copy(&whole, path.join("lib-1/lib/libtwo.a")).unwrap();
    let library = nix.nix("nix", &["store", "add-path", "lib-1"]);
    let expression = r#"derivation { name = "app"; system = builtins.currentSystem; builder = "/bin/sh"; args = ["-c" "echo > $out"];
        configureFlags = "--disable-shared"; setupCompilerEnvironmentPhase = "configureFlags=\"--verbose --libsubdir=x --enable-static $configureFlags\"";
        lib = builtins.storePath LIBRARY; }"#;
    fs::write(path.join("app.nix"), expression.replace("LIBRARY", &library)).unwrap();
    let derivation = nix.nix("nix-instantiate", &["app.nix"]);
    let (code, stdout, stderr) = nix.sower(&["check", "--closure", &derivation]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("libone.a") && stdout.ends_with("2 sound, 0 not sound\n"), "{stdout}");
    assert!(stdout.contains("joins      app: Cabal is configured with --enable-static"), "{stdout}");
    // From memory: Nix is not asked.
    let without = command(path, &["check", "--closure", &derivation])
        .envs(nix.environment())
        .env("PATH", "")
        .output()
        .unwrap();
    assert!(without.status.success(), "{}", String::from_utf8_lossy(&without.stderr));
    assert!(String::from_utf8_lossy(&without.stdout).contains("2 sound"));
    // A changed file is asked again, and named by the position in GHC's message.
    damage(&PathBuf::from(&library).join("lib/libtwo.a"), |bytes| bytes.truncate(4_300_000));
    let (code, stdout, _) = nix.sower(&["check", "--json", "--closure", &derivation]);
    assert_eq!(code, 1);
    let report = stdout.lines().find(|line| line.contains("libtwo.a")).unwrap();
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    assert_eq!(report["nix"]["agrees"], false, "{report}");
    let position = report["ghc_position"].to_string();
    let (code, stdout, _) = nix.sower(&["explain", "--position", &position, "--closure", &derivation]);
    assert!(
        code == 0 && stdout.contains("is member_number_10.o of") && stdout.contains("libtwo.a"),
        "{stdout}"
    );
    fs::write(
        path.join("build.log"),
        format!("ghc: panic!\n  Data.Binary.Get.runGet at position {position}: not enough bytes\n"),
    )
    .unwrap();
    let (code, stdout, _) = nix.sower(&["explain", "--log", "build.log", &library]);
    assert!(code == 0 && stdout.contains("member_number_10.o"), "{stdout}");
    assert_eq!(nix.sower(&["explain", "--position", "7", "whole.a"]).0, 1);
    let (code, _, _) = nix.sower(&["check", "--fresh", "--closure", &library]);
    assert_eq!(code, 1);
}
