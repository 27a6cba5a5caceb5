//! The heap ceiling of GHC, with a real GHC and a real Nix: it reaches every GHC and nothing else, and the proof is true.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Prints the command line that GHC itself runs with.
const SAY_ARGUMENTS: &str =
    "readFile \"/proc/self/cmdline\" >>= putStrLn . map (\\c -> if c == '\\0' then ' ' else c)";

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn command(program: &str, arguments: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    for name in ["GHCRTS", "GITHUB_PATH", "RUNNER_TEMP", "NIX_REMOTE"] {
        command.env_remove(name);
    }
    command
}

fn sower(arguments: &[&str], directory: &Path) -> Ran {
    ran(&command(env!("CARGO_BIN_EXE_sower"), arguments, directory).output().unwrap())
}

/// Runs a program that the test needs; its absence is a failure, not a pass.
fn tool(program: &str, arguments: &[&str], directory: &Path) -> Ran {
    let output = command(program, arguments, directory).output();
    let ran =
        ran(&output.unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it")));
    assert_eq!(ran.code, 0, "{program} {arguments:?}: {}", ran.stderr);
    ran
}

fn needs_root() {
    assert!(rustix::process::geteuid().is_root(), "mounts are root's: run this test as root");
}

/// A directory with launchers for the ceiling, and PATH with it in front.
fn caps(directory: &Path, arguments: &[&str]) -> String {
    let path_file = directory.join("path");
    let temporary = directory.join("temp");
    let mut all = vec!["ghc", "caps"];
    all.extend(arguments);
    let output = command(env!("CARGO_BIN_EXE_sower"), &all, directory)
        .env("GITHUB_PATH", &path_file)
        .env("RUNNER_TEMP", &temporary)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let front = fs::read_to_string(path_file).unwrap();
    format!("{}:{}", front.lines().last().unwrap(), std::env::var("PATH").unwrap())
}

#[test]
fn caps_reach_ghc_and_no_other_program() {
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    fs::write(at.join("Main.hs"), "main = getContents >>= putStr\n").unwrap();
    tool("ghc", &["Main.hs", "-o", "ordinary"], at);
    let path = caps(at, &["--heap", "1g", "--allocation-area", "16m", "--jobs", "1"]);
    // Asked twice in a job, the launchers do not lead to launchers.
    assert_eq!(caps(at, &["--heap", "1g", "--allocation-area", "16m", "--jobs", "1"]), path);
    let with = |script: &str| ran(&command("sh", &["-c", script], at).env("PATH", &path).output().unwrap());

    fs::write(at.join("Say.hs"), format!("main = {SAY_ARGUMENTS}\n")).unwrap();
    for call in [
        format!("ghc -e '{}'", SAY_ARGUMENTS.replace('\'', "'\\''")),
        "runghc Say.hs".to_owned(),
        "ghci -v0 Say.hs -e main".to_owned(),
    ] {
        let said = with(&call);
        assert_eq!(said.code, 0, "{call}: {}", said.stderr);
        assert!(said.stdout.contains("+RTS -A16m -M1g -RTS -j1"), "{call}: {}", said.stdout);
    }
    let ordinary = with("echo untouched | ./ordinary; printenv GHCRTS");
    assert_eq!((ordinary.stdout.as_str(), ordinary.stderr.as_str()), ("untouched\n", ""));
    // The same ceiling for the whole job would have ended it.
    let ended = ran(&command("./ordinary", &[], at).env("GHCRTS", "-M1g").output().unwrap());
    assert_eq!(ended.code, 1, "{}", ended.stderr);

    // A program that GHC starts is an ordinary program as well.
    fs::write(
        at.join("Pre.hs"),
        "import System.Environment\nmain = do { [_, i, o] <- getArgs; readFile i >>= writeFile o }\n",
    )
    .unwrap();
    tool("ghc", &["Pre.hs", "-o", "pre"], at);
    fs::write(at.join("Used.hs"), "module Used where\nused = 1\n").unwrap();
    let used = with("ghc -F -pgmF ./pre -c Used.hs");
    assert_eq!(used.code, 0, "{}", used.stderr);
}

#[test]
fn what_the_workflow_sets_itself_is_honoured() {
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    let path = caps(at, &[]);
    let with = |arguments: &[&str]| {
        ran(&command("ghc", arguments, at).env("PATH", &path).env("GHCRTS", "-M3g").output().unwrap()).stdout
    };
    let said = with(&["-e", SAY_ARGUMENTS]);
    assert!(said.contains("+RTS -A32m -RTS"), "{said}");
}

#[test]
fn the_ceiling_ends_what_goes_beyond_it() {
    let directory = TempDir::new().unwrap();
    let hungry = "let xs = [1 .. 20000000 :: Int] in print (sum xs + length xs)";
    let ran = sower(
        &["ghc", "run", "--heap", "100m", "--allocation-area", "1m", "--", "ghc", "-e", hungry],
        directory.path(),
    );
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("heap overflow") || ran.code == 251, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("GHC ran 1 time; heap ceiling in force: 100 MiB in 1 of 1"),
        "{}",
        ran.stderr
    );
}

#[test]
fn run_exits_as_the_command_does() {
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        let ran = sower(&["ghc", "run", "--", "sh", "-c", script], at);
        assert_eq!(ran.code, code, "{script}");
        assert!(ran.stderr.ends_with("sower: GHC did not run\n"), "{}", ran.stderr);
    }
    assert_eq!(sower(&["ghc", "run", "--", "no-such-program"], at).code, 127);
    for heap in ["2gb", "50%", "", "4k", "0"] {
        let ran = sower(&["ghc", "run", "--heap", heap, "--", "true"], at);
        assert_eq!(ran.code, 2, "{heap}");
        assert!(ran.stderr.contains("heap"), "{heap}: {}", ran.stderr);
    }
    assert_eq!(sower(&["ghc", "run", "--heap", "1g", "--allocation-area", "1g", "--", "true"], at).code, 2);
    let outside = sower(&["ghc", "caps"], at);
    assert!(outside.code == 2 && outside.stderr.contains("--dir"), "{}", outside.stderr);
}

#[test]
fn signals_are_the_commands() {
    let directory = TempDir::new().unwrap();
    let script = "trap 'echo caught; exit 9' TERM; touch ready; while :; do sleep 0.05; done";
    let child =
        command(env!("CARGO_BIN_EXE_sower"), &["ghc", "run", "--", "sh", "-c", script], directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    while !directory.path().join("ready").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = ran(&child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (9, "caught\n"));
}

#[test]
fn run_reaches_ghc_by_its_full_path_and_tells_who_ran_without() {
    needs_root();
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    let libdir = tool("ghc", &["--print-libdir"], at).stdout.trim().to_owned();
    let binary = Path::new(&libdir).join("bin/ghc");
    let script = format!("PATH=/usr/bin:/bin {} -B{libdir} -e 'print 1'", binary.display());
    let bound = sower(&["ghc", "run", "--require", "--", "sh", "-c", &script], at);
    assert_eq!((bound.code, bound.stdout.as_str()), (0, "1\n"), "{}", bound.stderr);
    assert!(
        bound.stderr.contains("GHC ran 1 time; heap ceiling in force: 2 GiB in 1 of 1, peak RSS "),
        "{}",
        bound.stderr
    );
    // Outside of that run nothing has changed.
    assert!(!Path::new(&libdir).join("bin/ghc.original").exists());

    // The build's own flag is read last.
    let raised = ["ghc", "run", "--require", "--", "ghc", "+RTS", "-M3g", "-RTS", "-e", "print 1"];
    let ran = sower(&raised, at);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("heap ceiling in force: 3 GiB in 1 of 1"), "{}", ran.stderr);
    assert!(ran.stderr.contains("; with 3 GiB: "), "{}", ran.stderr);

    // A copy that nobody knows of is still seen.
    fs::copy(&binary, at.join("ghc")).unwrap();
    let script =
        format!("LD_LIBRARY_PATH=$(echo {libdir}/*/ | tr ' ' ':') exec ./ghc -B{libdir} -e 'print 2'");
    let ran = sower(&["ghc", "run", "--require", "--", "sh", "-c", &script], at);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "2\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("none in 1 of 1") && ran.stderr.contains("without: ./ghc"), "{}", ran.stderr);
    assert!(ran.stderr.contains("started by sower"), "{}", ran.stderr);
}

/// A Nix store of the test's own, with a GHC in it, and a flake without nixpkgs whose builder runs that GHC.
struct Nix {
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
    compiler: String,
}

impl Nix {
    fn new(sandbox: bool, ghcrts: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "experimental-features = nix-command flakes\nbuild-users-group =\nsubstituters =\nsandbox = {sandbox}\nextra-sandbox-paths = /usr /lib /lib64 /bin /var/lib/ghc\n"
        );
        let environment = vec![
            ("NIX_CONFIG", config),
            ("NIX_STORE_DIR", at("store")),
            ("NIX_STATE_DIR", at("var")),
            ("NIX_LOG_DIR", at("log")),
            ("NIX_CONF_DIR", at("etc")),
            ("HOME", directory.path().display().to_string()),
        ];
        let mut nix = Self { environment, compiler: String::new(), directory };
        let libdir = tool("ghc", &["--print-libdir"], nix.at()).stdout.trim().to_owned();
        let tree = nix.at().join("ghc-9.0.2");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("libempty.a"), "!<arch>\n").unwrap();
        fs::write(tree.join("bin/ghc"), format!("#!/bin/sh\nexec {libdir}/bin/ghc -B{libdir} \"$@\"\n"))
            .unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(tree.join("bin/ghc"), fs::Permissions::from_mode(0o755)).unwrap();
        nix.compiler = nix.nix(&["store", "add-path", "ghc-9.0.2"]);
        fs::create_dir(nix.at().join("flake")).unwrap();
        let compiler = &nix.compiler;
        let flake = format!(
            r#"{{ outputs = {{ self }}: {{ packages.x86_64-linux.docker = derivation {{
  name = "image"; system = "x86_64-linux"; builder = "/bin/sh"; PATH = "/usr/bin:/bin"; {ghcrts}
  compiler = builtins.storePath "{compiler}";
  args = [ "-c" "echo environment: $GHCRTS. > $out; $compiler/bin/ghc -e 'readFile \"/proc/self/cmdline\" >>= appendFile (\"'$out'\")'" ];
}}; }}; }}
"#
        );
        fs::write(nix.at().join("flake/flake.nix"), flake).unwrap();
        nix
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let output = command(program, arguments, self.at())
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .output();
        ran(&output.unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it")))
    }

    fn nix(&self, arguments: &[&str]) -> String {
        let ran = self.run("nix", arguments);
        assert_eq!(ran.code, 0, "nix {arguments:?}: {}", ran.stderr);
        ran.stdout.trim().to_owned()
    }
}

const INSTALLABLE: &str = "./flake#docker";

fn ceiling_inside_a_build(sandbox: bool) {
    needs_root();
    let nix = Nix::new(sandbox, "");
    let eval = ["eval", "--impure", "--raw", "./flake#docker.drvPath"];
    let derivation = nix.nix(&eval);
    let sower = env!("CARGO_BIN_EXE_sower");
    let under = ["ghc", "run", "--require", "--", "nix"];
    let same = nix.run(sower, &[&under[..], &eval[..]].concat());
    assert_eq!(same.stdout, derivation, "the derivation is another one under the ceiling");

    let built = nix.run(sower, &[&under[..], &["build", "--impure", "-L", INSTALLABLE]].concat());
    assert_eq!(built.code, 0, "{}", built.stderr);
    assert!(
        built.stderr.contains("GHC ran 1 time; heap ceiling in force: 2 GiB in 1 of 1"),
        "{}",
        built.stderr
    );
    let said = fs::read_to_string(nix.at().join("result")).unwrap();
    assert!(said.starts_with("environment: .\n"), "{said}");
    assert!(said.contains("+RTS\0-A32m\0-M2g\0-RTS"), "{said}");
    nix.nix(&["store", "verify", "--no-trust", &nix.compiler]);
}

#[test]
fn the_ceiling_is_in_force_inside_a_nix_build() {
    ceiling_inside_a_build(false);
}

#[test]
fn the_ceiling_is_in_force_inside_nix_s_sandbox() {
    ceiling_inside_a_build(true);
}

#[test]
fn archives_are_compared_with_the_store_and_not_with_the_launchers() {
    needs_root();
    let nix = Nix::new(false, "");
    let sower = env!("CARGO_BIN_EXE_sower");
    // The launcher is there: the store path is another one for who looks.
    let seen = nix.run(sower, &["ghc", "run", "--", "nix", "store", "verify", "--no-trust", &nix.compiler]);
    assert_ne!(seen.code, 0, "{}", seen.stderr);
    let checked = nix.run(sower, &["ghc", "run", "--", sower, "archive", "check", &nix.compiler]);
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
}

#[test]
fn caps_tell_which_derivations_carry_a_ceiling() {
    for (ghcrts, words) in [("", "  image: none"), ("GHCRTS = \"-A32m -M2g\";", "  image: 2 GiB")] {
        let nix = Nix::new(false, ghcrts);
        // Only a path known to the evaluator may be read in pure mode; a plain text may always.
        let flake = nix.at().join("flake/flake.nix");
        let text = fs::read_to_string(&flake).unwrap().replace("builtins.storePath ", "");
        fs::write(&flake, text).unwrap();
        let ran = nix.run(
            env!("CARGO_BIN_EXE_sower"),
            &["ghc", "caps", "--dir", "launchers", "--installable", INSTALLABLE],
        );
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(
            ran.stdout.contains("1 of 1 derivations run GHC") && ran.stdout.contains(words),
            "{}",
            ran.stdout
        );
    }
    let ran = Nix::new(false, "").run(
        env!("CARGO_BIN_EXE_sower"),
        &["ghc", "caps", "--dir", "launchers", "--installable", "./nothing"],
    );
    assert!(ran.code == 1 && ran.stderr.contains("./nothing"), "{}", ran.stderr);
}

#[test]
fn a_nix_build_is_followed() {
    let nix = Nix::new(false, "");
    let summary = nix.at().join("summary.md");
    let environment = [("GITHUB_STEP_SUMMARY", summary.clone()), ("XDG_CACHE_HOME", nix.at().join("cache"))];
    let build = || {
        let mut build =
            command(env!("CARGO_BIN_EXE_sower"), &["nix", "build", INSTALLABLE, "--", "--impure"], nix.at());
        build.envs(nix.environment.iter().map(|(k, v)| (k, v))).envs(environment.clone());
        ran(&build.output().unwrap())
    };
    let first = build();
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(
        first.stderr.contains("building image\n") && first.stderr.contains("image: ended after "),
        "{}",
        first.stderr
    );
    let table = fs::read_to_string(&summary).unwrap();
    assert!(
        table.contains("| Derivation | State | Time | Peak RSS |") && table.contains("| image | built | "),
        "{table}"
    );
    assert!(nix.at().join("cache/sower/nix-builds.json").exists());
    // What failed says why, and Nix's exit code is kept.
    let flake = nix.at().join("flake/flake.nix");
    let text = fs::read_to_string(&flake)
        .unwrap()
        .replace("echo environment", "echo worse; exit 3; echo environment");
    fs::write(&flake, text).unwrap();
    let second = build();
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(
        second.stderr.contains("building image, about ") && second.stderr.contains("image> worse"),
        "{}",
        second.stderr
    );
}

#[test]
fn an_enforced_ceiling_beats_what_the_build_passes() {
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    let path = caps(at, &["--heap", "1g", "--enforce"]);
    let with =
        |arguments: &[&str]| ran(&command("ghc", arguments, at).env("PATH", &path).output().unwrap()).stdout;
    let said = with(&["+RTS", "-M3g", "-A128m", "-RTS", "-e", SAY_ARGUMENTS]);
    assert!(said.trim_end().ends_with("+RTS -A32m -M1g -RTS"), "{said}");
    let output = command("ghc", &["--version", "--", "x"], at).env("PATH", &path).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("9.0"), "{output:?}");
}

/// A repository with one workflow, of which `sower exec` runs the job.
fn workflow(at: &Path, steps: &str) {
    fs::create_dir_all(at.join(".gitea/workflows")).unwrap();
    let yaml = format!("on: push\njobs:\n  it:\n    runs-on: host\n    steps:\n{steps}");
    fs::write(at.join(".gitea/workflows/it.yaml"), yaml).unwrap();
    tool("git", &["init", "-q"], at);
}

#[test]
fn caps_in_a_job_reach_ghc_by_any_path_and_nothing_outside_of_it() {
    needs_root();
    let directory = TempDir::new().unwrap();
    let at = directory.path();
    let libdir = tool("ghc", &["--print-libdir"], at).stdout.trim().to_owned();
    fs::write(at.join("Main.hs"), "main = print 4\n").unwrap();
    tool("ghc", &["Main.hs", "-o", "ordinary"], at);
    workflow(
        at,
        &format!(
            "      - uses: sower/ghc-caps@v1\n        with: {{heap: 600m, allocation-area: 8m, require: 'true'}}\n\
             \x20     - run: |\n\
             \x20         PATH=/usr/bin:/bin {libdir}/bin/ghc -B{libdir} -e 'print 1'\n\
             \x20         PATH=/usr/bin:/bin /usr/bin/runghc {0}/Main.hs\n\
             \x20         {0}/ordinary\n\
             \x20     - run: ghc -e 'print 5'\n\
             \x20       env: {{GHCRTS: -M500m}}\n\
             \x20     - uses: sower/ghc-caps@v1\n        with: {{heap: 300m, allocation-area: 8m}}\n\
             \x20     - run: /usr/bin/ghc -e 'print 6'\n",
            at.display()
        ),
    );
    let ran = sower(&["exec"], at);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("The ceiling reaches "), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("GHCRTS is set to \"-M500m\": for GHC, what it says counts"),
        "{}",
        ran.stdout
    );
    let proof =
        "GHC ran 4 times; heap ceiling in force: 300 MiB in 1 of 4, 500 MiB in 1 of 4, 600 MiB in 2 of 4";
    assert!(ran.stdout.contains(proof), "{}", ran.stdout);
    assert!(!Path::new(&libdir).join("bin/ghc.original").exists());
}

#[test]
fn a_plain_nix_build_in_a_job_is_followed() {
    needs_root();
    let nix = Nix::new(false, "");
    // Not beside the flake, which would be one of a repository then.
    let repository = TempDir::new().unwrap();
    workflow(
        repository.path(),
        &format!(
            "      - uses: sower/ghc-caps@v1\n        with: {{heap: 1g}}\n\
             \x20     - run: cd {} && nix build --impure {INSTALLABLE} && nix --version && nix eval --impure --raw {INSTALLABLE}.name\n",
            nix.at().display()
        ),
    );
    let mut exec = command(env!("CARGO_BIN_EXE_sower"), &["exec"], repository.path());
    for (name, value) in &nix.environment {
        // In a job nothing comes from the runner's own environment.
        exec.arg("--env").arg(format!("{name}={value}")).env(name, value);
    }
    let ran = ran(&exec.output().unwrap());
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    for words in [
        "Heap ceiling: 1 of 1 derivations that are still to be built runs GHC, 0 of them with a ceiling in GHCRTS; launchers",
        "▸ building image",
        "image: ended after ",
        "nix (Nix) ",
        "| image | built | ",
        "GHC ran 1 time; heap ceiling in force: 1 GiB in 1 of 1",
    ] {
        assert!(ran.stdout.contains(words), "{words}\n{}", ran.stdout);
    }
    let said = fs::read_to_string(nix.at().join("result")).unwrap();
    assert!(said.starts_with("environment: .\n") && said.contains("\0-M1g\0"), "{said}");
}

/// A nix-daemon of this store, under the program or by itself, ended with the value.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn a_nix_daemon_under_the_ceiling_hands_it_to_its_builders() {
    needs_root();
    let nix = Nix::new(false, "");
    let sower = env!("CARGO_BIN_EXE_sower");
    let socket = nix.at().join("var/daemon-socket/socket");
    let daemon = command(sower, &["ghc", "run", "--heap", "1500m", "--", "nix-daemon"], nix.at())
        .envs(nix.environment.iter().map(|(k, v)| (k, v)))
        .stdout(Stdio::null())
        .stderr(fs::File::create(nix.at().join("daemon.log")).unwrap())
        .spawn()
        .unwrap();
    let daemon = Daemon(daemon);
    let began = std::time::Instant::now();
    while !socket.exists() {
        assert!(began.elapsed().as_secs() < 60, "the nix-daemon does not come up");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let as_client = |program: &str, arguments: &[&str]| {
        let mut command = command(program, arguments, nix.at());
        command.envs(nix.environment.iter().map(|(k, v)| (k, v))).env("NIX_REMOTE", "daemon");
        ran(&command.output().unwrap())
    };
    let built = as_client("nix", &["build", "--impure", INSTALLABLE]);
    assert_eq!(built.code, 0, "{}", built.stderr);
    let said = fs::read_to_string(nix.at().join("result")).unwrap();
    assert!(said.starts_with("environment: .\n"), "{said}");
    assert!(said.contains("+RTS\0-A32m\0-M1500m\0-RTS"), "{said}");
    // The doctor sees it; without it, it says how to get there.
    let config = nix.at().join("config.yaml");
    fs::write(&config, "runner:\n  file: state/.runner\nghc:\n  heap: 1500m\nlimits:\n  memory: 3GiB\n")
        .unwrap();
    let doctor = ["doctor", "-c", "config.yaml"];
    let seen = as_client(sower, &doctor).stdout;
    assert!(seen.contains("which runs under `sower ghc run`"), "{seen}");
    drop(daemon);
    let log = fs::read_to_string(nix.at().join("daemon.log")).unwrap();
    assert!(log.contains("GHC ran 1 time; heap ceiling in force: 1.46 GiB in 1 of 1"), "{log}");
    let seen = as_client(sower, &doctor).stdout;
    assert!(seen.contains("children of the nix-daemon: neither"), "{seen}");
    assert!(seen.contains("ghc run --heap 1500m --allocation-area 32m -- "), "{seen}");
}

#[test]
fn sockets_of_a_service_are_the_commands() {
    let directory = TempDir::new().unwrap();
    let script = "LISTEN_PID=$$ exec \"$0\" ghc run -- sh -c '[ \"$LISTEN_PID\" = $$ ] && echo mine'";
    let ran = ran(&command("sh", &["-c", script, env!("CARGO_BIN_EXE_sower")], directory.path())
        .env("LISTEN_FDS", "1")
        .output()
        .unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "mine\n"), "{}", ran.stderr);
}
