//! `sower exec`: workflows of a working directory, run on this host by the real program with real shells and git.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A repository with one workflow, and the program run in it.
struct Repository {
    dir: tempfile::TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Repository {
    fn new(workflow: &str) -> Self {
        let repository = Self { dir: tempfile::tempdir().unwrap() };
        repository.write(".gitea/workflows/test.yaml", workflow);
        repository
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn git(&self, arguments: &[&str]) -> Output {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(arguments)
            .current_dir(self.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn committed(self) -> Self {
        self.git(&["init", "--quiet", "-b", "main"]);
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "-m", "first"]);
        self.git(&["remote", "add", "origin", "https://git.example.org/owner/app.git"]);
        self
    }

    fn exec(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_sower"))
            .arg("exec")
            .args(arguments)
            .current_dir(self.path())
            .env("HOME", self.path())
            .env("FROM_ENV", "taken-from-env")
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs with `--json` and gives the events.
    fn events(&self, arguments: &[&str]) -> (i32, Vec<Value>) {
        let ran = self.exec(&[&["--json"], arguments].concat());
        let events = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (ran.code, events)
    }
}

/// The rows of the steps, without what the runner itself says.
fn rows(events: &[Value]) -> Vec<String> {
    let mut rows = Vec::new();
    let mut folded = false;
    for event in events.iter().filter(|event| event["event"] == "log" && !event["step"].is_null()) {
        let text = event["text"].as_str().unwrap();
        match text {
            "::endgroup::" if folded => folded = false,
            _ if folded => {}
            _ if text.starts_with("::group::Run ") => folded = true,
            // There for steps that take a while, which on a busy machine any step may.
            _ if text.starts_with("Memory: peak ") => {}
            _ => rows.push(text.to_owned()),
        }
    }
    rows
}

fn results(events: &[Value], kind: &str) -> Vec<(String, String)> {
    events
        .iter()
        .filter(|event| event["event"] == kind)
        .map(|event| {
            (event["name"].as_str().unwrap().to_owned(), event["result"].as_str().unwrap().to_owned())
        })
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, result)| ((*name).to_owned(), (*result).to_owned())).collect()
}

const PUSH: &str = "on: push\njobs:\n  test:\n    runs-on: host\n    steps:\n";

fn steps(steps: &str) -> Repository {
    Repository::new(&format!("{PUSH}{steps}"))
}

/// Rows of a workflow of these steps, which must succeed.
fn printed(text: &str) -> Vec<String> {
    let (code, events) = steps(text).events(&[]);
    let rows = rows(&events);
    assert_eq!(code, 0, "{rows:#?}");
    rows
}

#[test]
fn what_people_see() {
    let repository = steps(
        "
      - name: Greet
        run: |
          echo hello
          echo '::group::Details'
          echo inside
          echo '::endgroup::'
          echo '::warning file=a.c,line=3::look here'
      - run: exit 3
      - name: Never
        run: echo never
      - name: Always
        if: always()
        run: echo \"**done**\" >> $GITHUB_STEP_SUMMARY
",
    );
    let ran = repository.exec(&[]);
    assert_eq!(ran.code, 1);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    // What differs from host to host and from run to run.
    let shown: Vec<String> = ran
        .stdout
        .lines()
        .map(|line| match line {
            _ if line.starts_with("  sower ") => "  sower [version] on [host]".to_owned(),
            _ if line.starts_with("  Limits: ") => "  Limits: [limits]".to_owned(),
            _ => without_duration(line),
        })
        .collect();
    settings.bind(|| insta::assert_snapshot!("exec_terminal", shown.join("\n")));
}

fn without_duration(line: &str) -> String {
    let words: Vec<&str> = line.rsplitn(3, ' ').collect();
    match words[..] {
        ["ms" | "s", number, rest] if number.parse::<f64>().is_ok() => format!("{rest} [time]"),
        _ => line.to_owned(),
    }
}

#[test]
fn values_go_from_step_to_step() {
    assert_eq!(
        printed(
            r#"
      - id: first
        run: |
          echo "plain=one" >> "$GITHUB_OUTPUT"
          printf 'multi<<EOF\na\nb\nEOF\n' >> "$GITHUB_OUTPUT"
          echo "FROM_FILE=two" >> "$GITHUB_ENV"
          mkdir -p "$RUNNER_TEMP/bin"
          printf '#!/bin/sh\necho tool\n' > "$RUNNER_TEMP/bin/own-tool"
          chmod +x "$RUNNER_TEMP/bin/own-tool"
          echo "$RUNNER_TEMP/bin" >> "$GITHUB_PATH"
          echo '::set-output name=old::three'
      - run: |
          echo "${{ steps.first.outputs.plain }} $FROM_FILE ${{ env.FROM_FILE }} ${{ steps.first.outputs.old }}"
          echo '${{ toJSON(steps.first.outputs.multi) }}'
          own-tool
"#
        ),
        ["one two two three", r#""a\nb""#, "tool"]
    );
}

#[test]
fn env_of_three_levels_and_of_the_runner() {
    let repository = Repository::new(
        r#"
on: push
env: {A: workflow, B: workflow, C: workflow}
jobs:
  test:
    runs-on: host
    env: {B: job, C: job}
    steps:
      - env: {C: step}
        run: |
          echo $A $B $C
          echo "${{ env.A }} ${{ env.B }} ${{ env.C }}"
          echo "$GITHUB_REPOSITORY $GITHUB_REF_NAME $GITHUB_EVENT_NAME $RUNNER_OS $CI $GITHUB_ACTIONS"
          echo "$FROM_ENV-"
          test "$PWD" = "$GITHUB_WORKSPACE" && echo workspace
          test "$(cat "$GITHUB_EVENT_PATH" | head -c1)" = "{" && echo event
      - run: echo $C $EXTRA
"#,
    )
    .committed();
    let (code, events) = repository.events(&["--env", "EXTRA=extra"]);
    assert_eq!(code, 0);
    assert_eq!(
        rows(&events),
        [
            "workflow job step",
            "workflow job step",
            "owner/app main push Linux true true",
            // Nothing of the caller's own environment gets in.
            "-",
            "workspace",
            "event",
            "job extra",
        ]
    );
}

#[test]
fn outcome_and_conclusion() {
    let (code, events) = steps(
        r#"
      - id: bad
        continue-on-error: true
        run: exit 7
      - run: echo "${{ steps.bad.outcome }} ${{ steps.bad.conclusion }} ${{ job.status }}"
      - id: fatal
        run: exit 1
      - run: echo not this
      - if: failure()
        run: echo failure
      - if: always() && steps.fatal.outcome == 'failure'
        run: echo always
      - if: success()
        run: echo nor this
"#,
    )
    .events(&[]);
    assert_eq!(code, 1);
    assert_eq!(
        rows(&events),
        [
            "##[error]Process completed with exit code 7.",
            "failure success success",
            "##[error]Process completed with exit code 1.",
            "failure",
            "always"
        ]
    );
    let ended: Vec<String> = results(&events, "step-ended").into_iter().map(|(_, result)| result).collect();
    assert_eq!(ended, ["failure", "success", "failure", "skipped", "success", "success", "skipped"]);
    assert_eq!(results(&events, "job-ended"), pairs(&[("test", "failure")]));
}

#[test]
fn shells() {
    assert_eq!(
        printed(
            r#"
      - run: 'echo "$0" | sed "s/.*[.]//"; false | true || echo pipefail'
      - shell: sh
        run: false | true && echo no pipefail
      - shell: python
        run: |
          import sys
          print("python", sys.version_info[0])
      - shell: perl {0} extra
        run: print "perl $ARGV[0]\n";
      - run: "echo crlf\r\necho lines\r\n"
      - run: printf 'no newline'
"#
        ),
        ["sh", "pipefail", "no pipefail", "python 3", "perl extra", "crlf", "lines", "no newline"]
    );
}

#[test]
fn defaults_and_working_directories() {
    let repository = Repository::new(
        r#"
on: push
defaults: {run: {shell: sh}}
jobs:
  test:
    runs-on: host
    defaults: {run: {working-directory: sub}}
    steps:
      - {working-directory: ., run: mkdir sub other}
      - run: basename "$PWD"
      - {working-directory: other, run: 'basename "$PWD"'}
      - {working-directory: nowhere, run: echo never}
"#,
    );
    let (code, events) = repository.events(&[]);
    assert_eq!(code, 1);
    let rows = rows(&events);
    assert_eq!(rows[..2], ["sub", "other"]);
    assert!(
        rows[2].starts_with("##[error]The working directory ") && rows[2].contains("nowhere"),
        "{rows:?}"
    );
}

#[test]
fn secrets_are_masked_everywhere() {
    let repository = steps(
        r##"
      - env: {TOKEN: "${{ secrets.TOKEN }}"}
        run: |
          echo "it is $TOKEN"
          printf '%s' "$TOKEN" | base64
          echo "x=$TOKEN" >> "$GITHUB_OUTPUT"
          echo "# $TOKEN" >> "$GITHUB_STEP_SUMMARY"
          printf 'two lines:\n%s\n' "$MULTI"
          echo '::add-mask::later-secret'
          echo later-secret
        name: with ${{ secrets.TOKEN }}
"##,
    );
    let ran = repository.exec(&[
        "--json",
        "-s",
        "TOKEN=s3cr3t-value",
        "-s",
        "FROM_ENV",
        "-s",
        "MULTI=line one\nline two",
        "--env",
        "MULTI=line one\nline two",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    for secret in ["s3cr3t-value", "czNjcjN0LXZhbHVl", "line two", "\"later-secret\"", "taken-from-env"] {
        assert!(!ran.stdout.contains(secret), "{secret} in {}", ran.stdout);
    }
    assert!(ran.stdout.contains("it is ***"));
}

#[test]
fn matrix_needs_and_outputs() {
    let repository = Repository::new(
        r#"
on: push
jobs:
  report:
    runs-on: host
    needs: [build, skipped]
    if: always()
    steps:
      - run: echo "${{ needs.build.result }} ${{ needs.build.outputs.version }} ${{ needs.skipped.result }}"
  build:
    runs-on: host
    strategy:
      matrix:
        a: [1, 2]
        b: [x, y]
        exclude: [{a: 2, b: y}]
    outputs: {version: "${{ steps.v.outputs.v }}"}
    steps:
      - id: v
        run: |
          echo "v=1.2" >> $GITHUB_OUTPUT
          echo "${{ matrix.a }}${{ matrix.b }}"
  skipped:
    runs-on: host
    if: github.event_name == 'tag'
    steps: [{run: echo never}]
  dependent:
    runs-on: host
    needs: skipped
    steps: [{run: echo never}]
"#,
    );
    let (code, events) = repository.events(&["--jobs", "2"]);
    assert_eq!(code, 0);
    let mut ended = results(&events, "job-ended");
    ended.sort();
    assert_eq!(
        ended,
        pairs(&[
            ("build (1, x)", "success"),
            ("build (1, y)", "success"),
            ("build (2, x)", "success"),
            ("dependent", "skipped"),
            ("report", "success"),
            ("skipped", "skipped"),
        ])
    );
    assert!(rows(&events).contains(&"success 1.2 skipped".to_owned()));

    let (_, events) =
        repository.events(&["-j", "build", "--matrix", "a:1", "--matrix", "b:x", "--matrix", "b:y"]);
    assert_eq!(results(&events, "job-ended").len(), 2);
    let listed = repository.exec(&["--list"]);
    insta::assert_snapshot!("exec_list", listed.stdout);
}

#[test]
fn composite_actions_of_the_repository_and_of_git() {
    let action = "
name: greet
inputs:
  who: {default: world}
outputs:
  said: {value: \"${{ steps.say.outputs.said }}\"}
runs:
  using: composite
  steps:
    - id: say
      shell: bash
      run: |
        echo \"hello ${{ inputs.who }} from $(basename $GITHUB_ACTION_PATH)\"
        echo \"said=${{ inputs.who }}\" >> $GITHUB_OUTPUT
    - if: inputs.who == 'nobody'
      shell: bash
      run: exit 9
";
    let remote = Repository::new("on: push\njobs: {}\n");
    remote.write("greet/action.yml", action);
    let remote = remote.committed();
    let server = Server::start(&remote);
    let repository = steps(&format!(
        "
      - uses: actions/checkout@v4
      - id: local
        uses: ./.gitea/actions/greet
        with: {{who: you}}
      - run: echo ${{{{ steps.local.outputs.said }}}}
      - uses: {}/owner/app/greet@main
      - uses: ./.gitea/actions/greet
        continue-on-error: true
        with: {{who: nobody}}
      - if: false
        uses: nowhere/never@v1
      - run: cat uncommitted
",
        server.url
    ));
    repository.write(".gitea/actions/greet/action.yml", action);
    let repository = repository.committed();
    repository.write("uncommitted", "seen\n");
    let (code, events) = repository.events(&[]);
    let rows: Vec<String> = rows(&events)
        .into_iter()
        .filter(|row| !row.starts_with("Copied") && !row.contains(" is commit "))
        .collect();
    assert_eq!(
        rows,
        [
            "hello you from greet",
            "you",
            "hello world from greet",
            "hello nobody from greet",
            "##[error]Process completed with exit code 9.",
            "seen"
        ]
    );
    assert_eq!(code, 0);
}

/// A repository at `http://127.0.0.1:PORT/owner/app`, served by git's own program as static files.
struct Server {
    url: String,
}

impl Server {
    fn start(repository: &Repository) -> Self {
        let bare = repository.path().join("served/owner/app");
        repository.git(&["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
        let status = Command::new("git").args(["update-server-info"]).current_dir(&bare).status().unwrap();
        assert!(status.success());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let root = repository.path().join("served");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &root);
            }
        });
        Self { url }
    }
}

/// Answers one GET from a directory: the "dumb" protocol of git needs no more.
fn serve(mut stream: std::net::TcpStream, root: &Path) {
    use std::io::{BufRead, BufReader, Write};
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/");
    let (status, body) = match fs::read(root.join(path.trim_start_matches('/'))) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[test]
fn javascript_actions_run_with_the_node_of_the_host() {
    let repository = steps(
        "
      - uses: actions/checkout@v4
      - id: js
        uses: ./action
        with: {name: you}
      - run: echo ${{ steps.js.outputs.greeting }}
",
    );
    repository.write(
        "action/action.yml",
        "name: js\ninputs: {name: {}, mood: {default: happy}}\nruns: {using: node20, main: main.js, post: post.js}\n",
    );
    repository.write(
        "action/main.js",
        "const fs = require('fs');\n\
         console.log('main ' + process.env.INPUT_NAME + ' ' + process.env.INPUT_MOOD);\n\
         fs.appendFileSync(process.env.GITHUB_OUTPUT, 'greeting=hi\\n');\n\
         fs.appendFileSync(process.env.GITHUB_STATE, 'kept=state\\n');\n",
    );
    repository.write("action/post.js", "console.log('post ' + process.env.STATE_kept);\n");
    let (code, events) = repository.committed().events(&[]);
    let all: Vec<&str> = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(code, 0, "{all:#?}");
    assert!(all.contains(&"main you happy"), "{all:#?}");
    assert!(all.contains(&"hi"), "{all:#?}");
    assert!(all.contains(&"post state"), "{all:#?}");
}

#[test]
fn time_limits() {
    let (code, events) = steps(
        "
      - timeout-minutes: 0.005
        run: |
          trap 'echo stopping; exit 0' INT
          while :; do sleep 0.05; done
      - if: always()
        run: echo after
",
    )
    .events(&[]);
    assert_eq!(code, 1);
    assert_eq!(
        rows(&events),
        ["stopping", "##[error]The time limit was reached; the step was stopped.", "after"]
    );
}

#[test]
fn nothing_that_a_job_started_is_left() {
    let marker = format!("sower-leftover-{}", std::process::id());
    let ran = steps(&format!(
        "
      - run: |
          (exec -a {marker} sleep 300) &
          (setsid bash -c 'exec -a {marker} sleep 300' </dev/null >/dev/null 2>&1 &)
          nohup bash -c 'exec -a {marker} sleep 300' >/dev/null 2>&1 &
          sleep 0.2
"
    ))
    .exec(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let found = Command::new("pgrep").args(["-f", &format!("^{marker}")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn output_of_every_kind() {
    let (code, events) = steps(
        r"
      - run: |
          printf 'not utf8: \xff\n'
          head -c 10000000 /dev/zero | tr '\0' 'x'
          echo
          printf 'progress 1\rprogress 2\n'
",
    )
    .events(&[]);
    assert_eq!(code, 0);
    let rows = rows(&events);
    assert_eq!(rows.first().unwrap(), "not utf8: \u{fffd}");
    assert!(rows.iter().all(|row| row.len() < 65_536));
    assert_eq!(rows.iter().map(|row| row.matches('x').count()).sum::<usize>(), 10_000_000);
    assert_eq!(rows.last().unwrap(), "progress 1\rprogress 2");
}

#[test]
fn what_cannot_be_run_fails_before_the_first_step() {
    for (job, wanted) in [
        ("container: alpine:3\n    steps: [{run: echo never}]", "asks for a container"),
        ("services: {db: {image: postgres}}\n    steps: [{run: echo never}]", "asks for services"),
    ] {
        let repository =
            Repository::new(&format!("on: push\njobs:\n  test:\n    runs-on: host\n    {job}\n"));
        let ran = repository.exec(&[]);
        assert_eq!(ran.code, 1, "{}", ran.stdout);
        assert!(ran.stdout.contains(wanted), "{}", ran.stdout);
        assert!(!ran.stdout.contains("never"), "{}", ran.stdout);
    }
}

#[test]
fn steps_that_cannot_start_say_why() {
    for (step, wanted) in [
        ("{shell: fish, run: x}", "unknown shell \"fish\""),
        ("{shell: 'nosuch {0}', run: x}", "there is no \"nosuch\" on PATH"),
        ("{uses: 'docker://alpine:3'}", "no container engine"),
        ("{uses: ./nowhere}", "is there an actions/checkout step before this one?"),
        ("{uses: sower/nothing@v1}", "there is no embedded action \"nothing\""),
        ("{uses: sower/push-image@v9}", "have version v1"),
        ("{run: 'echo rubbish >> $GITHUB_ENV'}", "GITHUB_ENV, line 1: expected NAME=VALUE"),
        ("{run: 'echo ::set-env name=A::b'}", "::set-env:: is refused"),
    ] {
        let ran = steps(&format!("      - {step}\n")).exec(&[]);
        assert_eq!(ran.code, 1, "{step}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains(wanted), "{step}: {}", ran.stdout);
    }
}

#[test]
fn wrong_questions_are_exit_code_2() {
    let repository = steps("      - run: echo hi\n");
    repository.write("bad.json", "[1]");
    for (arguments, wanted) in [
        (&["-W", "nowhere.yaml"][..], "there is no workflow nowhere.yaml"),
        (&["-j", "nothing"], "there is no job \"nothing\"; there are: test"),
        (
            &["--event", "release"],
            "no workflow runs on \"release\" (.gitea/workflows/test.yaml runs on push)",
        ),
        (&["-e", "nowhere.json"], "cannot read the event nowhere.json"),
        (&["-e", "bad.json"], "expected a JSON object"),
        (&["-s", "NOT_THERE"], "no variable NOT_THERE in the environment"),
        (&["--var", "x"], "--var x: expected KEY=VALUE"),
        (&["-P", "other=host"], "label \"host\" is not mapped"),
        (&["-P", "host=alpine:3"], "expected LABEL=host"),
        (&["--frobnicate"], "--frobnicate"),
    ] {
        let ran = repository.exec(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(wanted), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
}

#[test]
fn an_invalid_workflow_is_said_with_its_place() {
    let ran = Repository::new(
        "on: push\njobs:\n  test:\n    runs-on: host\n    steps:\n      - run: echo ${{ github.nope( }}\n",
    )
    .exec(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with(".gitea/workflows/test.yaml:6:"), "{}", ran.stderr);
    let ran = Repository::new("on: push\njobs:\n\ttest: {}\n").exec(&[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with(".gitea/workflows/test.yaml:3:"), "{}", ran.stderr);
}

#[test]
fn inputs_of_a_dispatch_have_their_types() {
    let repository = Repository::new(
        r#"
on:
  workflow_dispatch:
    inputs:
      flag: {type: boolean, default: true}
      count: {type: number, default: 3}
      text: {default: plain}
jobs:
  test:
    runs-on: host
    steps:
      - run: echo '${{ toJSON(inputs) }}${{ toJSON(github.event.inputs) }}' | tr -d ' \n'
"#,
    );
    let (code, events) =
        repository.events(&["--event", "workflow_dispatch", "--input", "flag=false", "--input", "text=x"]);
    assert_eq!(code, 0);
    assert_eq!(
        rows(&events),
        [r#"{"flag":false,"count":3,"text":"x"}{"flag":"false","text":"x","count":"3"}"#]
    );
}

#[test]
fn interrupting_stops_the_job_and_lets_it_clean_up() {
    let repository = steps(
        "
      - run: |
          echo ready > started
          cp started \"$HOME/started\"
          sleep 300
      - if: cancelled()
        run: echo cleaned up
      - run: echo never
",
    );
    let child = Command::new(env!("CARGO_BIN_EXE_sower"))
        .args(["exec", "--json"])
        .current_dir(repository.path())
        .env("HOME", repository.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !repository.path().join("started").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let events: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ended: Vec<String> = results(&events, "step-ended").into_iter().map(|(_, result)| result).collect();
    assert_eq!(ended, ["cancelled", "success", "skipped"]);
    assert_eq!(results(&events, "job-ended"), pairs(&[("test", "cancelled")]));
    assert!(rows(&events).contains(&"cleaned up".to_owned()));
}
