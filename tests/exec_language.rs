//! The workflow language in `sower exec`: what a server does otherwise, called workflows, actions and their phases.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A repository, and the program run in it.
struct Repository {
    dir: tempfile::TempDir,
}

struct Ran {
    code: i32,
    events: Vec<Value>,
    stderr: String,
}

impl Ran {
    /// Every row, the runner's own too.
    fn rows(&self) -> Vec<&str> {
        self.events.iter().filter_map(|event| event["text"].as_str()).collect()
    }

    /// Rows that begin with this word.
    fn said(&self, word: &str) -> Vec<&str> {
        self.rows().into_iter().filter(|row| row.starts_with(word)).collect()
    }

    fn has(&self, row: &str) -> bool {
        self.rows().contains(&row)
    }

    /// How the jobs ended, by name.
    fn jobs(&self) -> Vec<String> {
        let ended = self.events.iter().filter(|event| event["event"] == "job-ended");
        let mut ended: Vec<String> = ended
            .map(|event| {
                format!("{}: {}", event["name"].as_str().unwrap(), event["result"].as_str().unwrap())
            })
            .collect();
        ended.sort();
        ended
    }
}

impl Repository {
    fn new(workflow: &str) -> Self {
        let repository = Self { dir: tempfile::tempdir().unwrap() };
        repository.write(".gitea/workflows/test.yaml", workflow);
        repository
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn git(&self, directory: &Path, arguments: &[&str]) {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(arguments)
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes a repository of its own of a folder, and commits everything in it.
    fn commit(&self, folder: &str) {
        let directory = self.dir.path().join(folder);
        self.git(&directory, &["init", "--quiet", "-b", "main"]);
        self.git(&directory, &["add", "."]);
        self.git(&directory, &["commit", "--quiet", "-m", "first"]);
    }

    fn exec(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_sower"))
            .args(["exec", "--json"])
            .args(arguments)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        Ran {
            code: output.status.code().unwrap(),
            events: stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn plain(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_sower"))
            .arg("exec")
            .args(arguments)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

const CALLED: &str = r#"
on:
  workflow_call:
    inputs:
      text: {type: string, required: true}
      flag: {type: boolean, default: true}
      count: {type: number, default: "${{ 2 }}"}
    secrets:
      KEY: {required: true}
    outputs:
      made: {value: "${{ jobs.make.outputs.made }}"}
jobs:
  make:
    runs-on: host
    outputs: {made: "${{ steps.s.outputs.made }}"}
    steps:
      - id: s
        run: |
          echo "got ${{ inputs.text }} ${{ inputs.flag == true }} ${{ inputs.count == 2 }}"
          echo "key ${{ secrets.KEY == 'open sesame' }} other ${{ secrets.OTHER == '' }}"
          echo "made=<${{ inputs.text }}>" >> $GITHUB_OUTPUT
  after:
    needs: make
    runs-on: host
    strategy: {matrix: {n: [1, 2]}}
    steps:
      - run: echo "after ${{ needs.make.outputs.made }} ${{ matrix.n }} of ${{ strategy.job-total }}"
"#;

#[test]
fn called_workflows_are_jobs_of_their_own() {
    let repository = Repository::new(
        r#"
on: push
jobs:
  call:
    strategy: {matrix: {word: [a, b]}}
    uses: ./.gitea/workflows/called.yaml
    with: {text: "${{ matrix.word }}"}
    secrets: {KEY: "${{ secrets.MAIN }}"}
  inherit:
    uses: ./.gitea/workflows/called.yaml
    with: {text: i, flag: false, count: 3}
    secrets: inherit
  off:
    if: false
    uses: ./.gitea/workflows/called.yaml
    with: {text: x}
  last:
    needs: [inherit, off]
    if: always()
    runs-on: host
    steps:
      - run: echo "last ${{ needs.inherit.result }} ${{ needs.inherit.outputs.made }} ${{ needs.off.result }}"
"#,
    );
    repository.write(".gitea/workflows/called.yaml", CALLED);
    let ran = repository.exec(&["-s", "MAIN=open sesame", "-s", "KEY=open sesame", "-s", "OTHER=o"]);
    assert_eq!(ran.code, 0, "{:#?}\n{}", ran.rows(), ran.stderr);
    assert_eq!(
        ran.jobs(),
        [
            "call (a) / after (1): success",
            "call (a) / after (2): success",
            "call (a) / make: success",
            "call (b) / after (1): success",
            "call (b) / after (2): success",
            "call (b) / make: success",
            "inherit / after (1): success",
            "inherit / after (2): success",
            "inherit / make: success",
            "last: success",
        ]
    );
    for row in [
        "got a true true",
        "got i false false",
        "key true other true",
        "key true other false",
        "after <b> 2 of 2",
        "last success <i> skipped",
    ] {
        assert!(ran.has(row), "{row}: {:#?}", ran.rows());
    }
    assert!(!ran.rows().iter().any(|row| row.contains("sesame") && !row.contains("'***'")));
    let list = repository.plain(&["--list"]);
    assert!(
        list.contains("call (a) / after (2)") && list.contains("calls ./.gitea/workflows/called.yaml"),
        "{list}"
    );
}

#[test]
fn what_a_called_workflow_wants_is_said_with_its_place() {
    let call = |rest: &str| {
        let repository = Repository::new(&format!(
            "on: push\njobs:\n  c:\n    uses: ./.gitea/workflows/called.yaml\n{rest}"
        ));
        repository.write(".gitea/workflows/called.yaml", CALLED);
        let ran = repository.exec(&["-s", "K=v"]);
        assert_eq!(ran.code, 1, "{rest}");
        ran.said("##[error]").join("\n")
    };
    let key = "    secrets: {KEY: x}\n";
    for (rest, expected) in [
        (key, ":4:11: Input text is required, but not provided while calling."),
        ("    with: {text: a}\n", ":4:11: Secret KEY is required, but not provided while calling."),
        (
            &format!("{key}    with: {{text: a, flag: maybe}}\n"),
            ":6:27: Unexpected value 'maybe': the input flag takes true or false",
        ),
        (
            &format!("{key}    with: {{text: a, other: 1}}\n"),
            "Invalid input, other is not defined in the referenced workflow.",
        ),
    ] {
        let error = call(rest);
        assert!(error.contains(expected), "{rest}: {error}");
    }
    let repository = Repository::new("on: push\njobs:\n  c:\n    uses: ./.gitea/workflows/test.yaml\n");
    assert!(repository.exec(&[]).said("##[error]")[0].contains("no 'workflow_call'"));
    let endless = "on: [push, workflow_call]\njobs:\n  c:\n    uses: ./.gitea/workflows/test.yaml\n";
    let ran = Repository::new(endless).exec(&[]);
    assert!(ran.said("##[error]")[0].contains("more than 4 deep"), "{:?}", ran.rows());
}

#[test]
fn a_workflow_of_another_repository_is_called_from_the_mirror_and_offline() {
    let repository = Repository::new(
        "on: push\njobs:\n  c:\n    uses: owner/templates/.gitea/workflows/one.yaml@v1\n    with: {text: far}\n    secrets: {KEY: k}\n",
    );
    // Its own local calls stay within it.
    repository.write(
        "mirror/owner/templates/.gitea/workflows/one.yaml",
        &CALLED.replace("jobs:\n", "jobs:\n  inner:\n    uses: ./.gitea/workflows/two.yaml\n"),
    );
    repository.write(
        "mirror/owner/templates/.gitea/workflows/two.yaml",
        "on: workflow_call\njobs:\n  two:\n    runs-on: host\n    steps: [{run: echo from two}]\n",
    );
    repository.commit("mirror/owner/templates");
    let templates = repository.dir.path().join("mirror/owner/templates");
    repository.git(&templates, &["tag", "v1"]);
    let mirror = format!("https://github.com=file://{}", repository.dir.path().join("mirror").display());
    let ran = repository.exec(&["--mirror", &mirror]);
    assert_eq!(ran.code, 0, "{:#?}", ran.rows());
    assert!(ran.has("from two") && ran.has("after <far> 1 of 2"), "{:#?}", ran.rows());
    fs::rename(&templates, repository.dir.path().join("gone")).unwrap();
    assert_eq!(repository.exec(&["--mirror", &mirror, "--offline"]).code, 0);
}

#[test]
fn the_first_failure_of_a_matrix_cancels_the_rest_unless_told_otherwise() {
    let matrix = |rest: &str| {
        Repository::new(&format!(
            "on: push\njobs:\n  m:\n    runs-on: host\n    strategy:\n      max-parallel: 1\n{rest}      matrix: {{n: [1, 2, 3]}}\n    \
             steps:\n      - run: test ${{{{ matrix.n }}}} != 2\n  after:\n    needs: m\n    if: always()\n    runs-on: host\n    \
             steps: [{{run: 'echo after ${{{{ needs.m.result }}}}'}}]\n"
        ))
    };
    let fast = matrix("").exec(&["--jobs", "2"]);
    assert_eq!(fast.code, 1);
    // What never began says nothing; the table at the end has it.
    assert_eq!(fast.jobs(), ["after: success", "m (1): success", "m (2): failure"]);
    assert!(fast.has("after failure"));
    assert!(matrix("").plain(&["--jobs", "2"]).contains("m (3)  cancelled"));
    let all = matrix("      fail-fast: false\n").exec(&["--jobs", "2"]);
    assert_eq!(all.jobs(), ["after: success", "m (1): success", "m (2): failure", "m (3): success"]);
    let forgiven = matrix("").exec(&[]);
    assert_eq!(forgiven.code, 1);
}

#[test]
fn a_running_variant_is_cancelled_when_another_fails() {
    let ran = Repository::new(
        "on: push\njobs:\n  m:\n    runs-on: host\n    strategy: {matrix: {n: [fast, slow]}}\n    steps:\n      \
         - run: |\n          if [ ${{ matrix.n }} = fast ]; then sleep 1; exit 1; fi\n          exec sleep 100\n",
    )
    .exec(&["--jobs", "2"]);
    assert_eq!(ran.jobs(), ["m (fast): failure", "m (slow): cancelled"]);
}

#[test]
fn filters_decide_as_on_a_server() {
    let repository =
        Repository::new("on: push\njobs:\n  all:\n    runs-on: host\n    steps: [{run: echo all}]\n");
    let workflow = |on: &str, id: &str| {
        repository.write(
            &format!(".gitea/workflows/{id}.yaml"),
            &format!("on:\n{on}\njobs:\n  {id}:\n    runs-on: host\n    steps: [{{run: echo}}]\n"),
        );
    };
    workflow("  push: {branches: ['release/**', '!release/old']}", "release");
    workflow("  push: {branches-ignore: [main]}", "notmain");
    workflow("  push: {tags: ['v*']}", "tags");
    workflow("  push: {paths: ['docs/**', '!docs/x']}", "docs");
    workflow("  push: {paths-ignore: ['docs/**']}", "code");
    workflow("  pull_request: {branches: [main], types: [opened]}", "pr");
    let listed = |name: &str, event: &str| {
        repository.write("event.json", event);
        let ran = repository.exec(&["--event", name, "-e", "event.json", "--list"]);
        let mut jobs: Vec<String> =
            ran.events.iter().map(|row| row["job"].as_str().unwrap().to_owned()).collect();
        jobs.sort();
        jobs.join(" ")
    };
    let push = |reference: &str, file: &str| {
        listed("push", &format!(r#"{{"ref": "{reference}", "commits": [{{"modified": ["{file}"]}}]}}"#))
    };
    assert_eq!(push("refs/heads/main", "src/a"), "all code");
    assert_eq!(push("refs/heads/release/1", "docs/a/b"), "all docs notmain release");
    assert_eq!(push("refs/heads/release/old", "docs/x"), "all notmain");
    assert_eq!(push("refs/tags/v1", "docs/a"), "all code docs tags");
    let pull = |base: &str, action: &str| {
        listed(
            "pull_request",
            &format!(r#"{{"action": "{action}", "pull_request": {{"base": {{"ref": "{base}"}}}}}}"#),
        )
    };
    assert_eq!(pull("main", "opened"), "pr");
    assert_eq!(pull("main", "closed"), "");
    assert_eq!(pull("other", "opened"), "");
    // Whoever names a workflow and no event wants to see it run.
    let named = repository.exec(&["-W", ".gitea/workflows/tags.yaml"]);
    assert_eq!(named.code, 0);
    assert!(named.stderr.contains("a server would not run it for this event"), "{}", named.stderr);
    let refused = repository.exec(&["-W", ".gitea/workflows/tags.yaml", "--event", "push"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("runs for tags only"), "{}", refused.stderr);
}

#[test]
fn the_graph_shows_what_waits_for_what() {
    let job =
        |id: &str, rest: &str| format!("  {id}:\n    runs-on: host\n{rest}    steps: [{{run: echo}}]\n");
    let repository = Repository::new(&format!(
        "on: push\njobs:\n{}{}{}",
        job("lint", ""),
        job("test", "    strategy: {matrix: {v: [1, 2]}}\n"),
        job("deploy", "    needs: [lint, test]\n")
    ));
    insta::assert_snapshot!("exec_graph", repository.plain(&["--graph"]));
}

#[test]
fn inputs_of_a_dispatch_are_judged() {
    let repository = Repository::new(
        "on:\n  workflow_dispatch:\n    inputs:\n      where: {type: choice, options: [a, b], required: true}\n      \
         really: {type: boolean}\njobs:\n  j:\n    runs-on: host\n    steps: [{run: 'echo ${{ inputs.where }}'}]\n",
    );
    let run = |inputs: &[&str]| {
        let inputs: Vec<&str> = inputs.iter().flat_map(|input| ["--input", input]).collect();
        repository.exec(&[&["--event", "workflow_dispatch"], inputs.as_slice()].concat())
    };
    assert_eq!(run(&["where=a"]).code, 0);
    assert!(run(&[]).stderr.contains("the input \"where\" is required"));
    assert!(run(&["where=c"]).stderr.contains("expected one of a, b"));
    assert!(run(&["where=a", "really=perhaps"]).stderr.contains("expected true or false"));
    let unknown = run(&["where=a", "realy=true"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("--input realy: no such input"), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("did you mean 'really'?"), "{}", unknown.stderr);
    let pushed =
        Repository::new("on: push\njobs:\n  j:\n    runs-on: host\n    steps: [{run: 'echo never'}]\n")
            .exec(&["--input", "where=a"]);
    assert_eq!((pushed.code, pushed.events.len()), (2, 0));
    assert!(pushed.stderr.contains("the event \"push\" has no inputs"), "{}", pushed.stderr);
}

#[test]
fn a_folder_may_hold_more_than_workflows() {
    let repository =
        Repository::new("on: push\njobs:\n  j:\n    runs-on: host\n    steps: [{run: 'echo ran'}]\n");
    repository.write(".gitea/workflows/action.yml", "name: a\nruns: {using: composite, steps: []}\n");
    repository.write(".gitea/workflows/settings.yaml", "some: {other: thing}\n");
    let ran = repository.exec(&["-W", ".gitea/workflows"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.has("ran"));
    repository.write(".gitea/workflows/wrong.yaml", "on: push\njob: {}\n");
    assert_eq!(repository.exec(&["-W", ".gitea/workflows"]).code, 1);
}

#[test]
fn phases_of_actions_run_in_githubs_order() {
    let repository = Repository::new(
        r#"
on: push
env: {ACTIONS_STEP_DEBUG: "false"}
jobs:
  j:
    runs-on: host
    steps:
      - run: echo "step first"
      - uses: owner/acts/one@main
        with: {word: A}
      - uses: owner/acts/both@main
      - if: false
        uses: owner/acts/one@main
        with: {word: skipped}
      - run: exit 1
      - uses: owner/acts/one@main
        if: always()
        with: {word: Z}
"#,
    );
    let say = |phase: &str| {
        format!(
            "const fs = require('fs');\nconsole.log('{phase} ' + process.env.INPUT_WORD + ' ' + (process.env.STATE_seen || '-'));\n\
             fs.appendFileSync(process.env.GITHUB_STATE, 'seen=' + (process.env.STATE_seen || '') + '{}\\n');\n",
            &phase[..2]
        )
    };
    repository.write(
        "mirror/owner/acts/one/action.yml",
        "inputs: {word: {}}\nruns: {using: node20, main: main.js, pre: pre.js, post: post.js, post-if: \"inputs.word != 'Z'\"}\n",
    );
    repository.write(
        "mirror/owner/acts/both/action.yml",
        "runs:\n  using: composite\n  steps:\n    - uses: owner/acts/one@main\n      with: {word: B}\n    \
         - uses: owner/acts/one@main\n      with: {word: C}\n",
    );
    for phase in ["pre", "main", "post"] {
        repository.write(&format!("mirror/owner/acts/one/{phase}.js"), &say(phase));
    }
    repository.commit("mirror/owner/acts");
    let mirror =
        format!("https://github.com/owner=file://{}", repository.dir.path().join("mirror/owner").display());
    let ran = repository.exec(&["--mirror", &mirror]);
    let order: Vec<&str> = ran
        .rows()
        .into_iter()
        .filter(|row| ["pre ", "main ", "post ", "step "].iter().any(|word| row.starts_with(word)))
        .collect();
    assert_eq!(
        order,
        [
            "pre A -",
            "pre B -",
            "pre C -",
            "pre skipped -",
            "pre Z -",
            "step first",
            "main A pr",
            "main B pr",
            "main C pr",
            "main Z pr",
            "post C prma",
            "post B prma",
            "post A prma",
        ],
        "{:#?}",
        ran.rows()
    );
}

#[test]
fn actions_in_go_are_built_and_run() {
    let repository = Repository::new(
        "on: push\njobs:\n  j:\n    runs-on: host\n    steps:\n      - uses: actions/checkout@v4\n      \
         - id: go\n        uses: ./goact\n        with: {name: gopher}\n      - run: echo ${{ steps.go.outputs.said }}\n",
    );
    // A stand-in for the Go toolchain: what is built is the script itself.
    repository.write("goact/action.yml", "inputs: {name: {}}\nruns: {using: go, main: ./cmd}\n");
    repository.write("goact/cmd/main.go", "package main\n");
    repository.write(
        "bin/go",
        "#!/bin/sh\n[ \"$1 $2\" = 'build -o' ] && [ -f \"$4/main.go\" ] || exit 9\n\
         printf '#!/bin/sh\\necho \"said=hello $INPUT_NAME\" >> $GITHUB_OUTPUT\\n' > \"$3\"\nchmod +x \"$3\"\n",
    );
    let go = repository.dir.path().join("bin/go");
    fs::set_permissions(&go, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    repository.commit(".");
    let path = format!("PATH={}:/usr/bin:/bin", repository.dir.path().join("bin").display());
    let ran = repository.exec(&["--env", &path]);
    assert!(ran.has("hello gopher"), "{:#?}", ran.rows());
}

#[test]
fn matchers_echo_and_masks_in_a_real_step() {
    let repository = Repository::new(
        r##"
on: push
jobs:
  j:
    runs-on: host
    steps:
      - run: |
          cat > m.json <<'X'
          {"problemMatcher": [{"owner": "cc", "pattern": [{"regexp": "^(.+):(\\d+):(\\d+): (warning|error): (.*)$",
            "file": 1, "line": 2, "column": 3, "severity": 4, "message": 5}]}]}
          X
          echo "::add-matcher::m.json"
      - run: |
          echo "src/a.c:3:4: warning: odd"
          echo "::remove-matcher owner=cc::"
          echo "src/a.c:3:4: error: unseen"
          echo "$KEY" | base64
          printf %s "user:$KEY" | base64
          printf '%s' "$KEY" | sed 's/ /%20/g'
        env: {KEY: "${{ secrets.KEY }}"}
      - run: echo "${{ github.action }} $GITHUB_ACTION $ACT ${{ env.ACT }}"
"##,
    );
    let ran = repository.exec(&["-s", "KEY=correct horse battery"]);
    assert_eq!(ran.code, 0, "{:#?}", ran.rows());
    assert!(
        ran.has("src/a.c:3:4: warning: odd") && ran.has("##[warning]src/a.c:3:4: odd"),
        "{:#?}",
        ran.rows()
    );
    assert_eq!(ran.said("##[error]"), Vec::<&str>::new());
    assert!(ran.has("__run_3 __run_3 true true"), "{:#?}", ran.rows());
    let all = ran.rows().join("\n");
    for leak in ["correct", "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5", "Y29ycmVjd", "correct%20horse", "Jhd3Rlcn"] {
        assert!(!all.contains(leak), "{leak}: {all}");
    }
    assert!(all.contains("***"));
}

#[test]
fn a_failure_or_a_skip_goes_down_the_whole_chain() {
    let job = |id: &str, rest: &str, run: &str| {
        format!("  {id}:\n    runs-on: host\n{rest}    steps: [{{run: \"{run}\"}}]\n")
    };
    let repository = Repository::new(&format!(
        "on: push\njobs:\n{}{}{}{}{}{}{}",
        job("fails", "", "exit 1"),
        job("cleans", "    needs: fails\n    if: always()\n", "true"),
        job("after-clean", "    needs: cleans\n", "true"),
        job("reports", "    needs: cleans\n    if: failure()\n", "true"),
        job("skipped", "    if: false\n", "true"),
        job("after-skip", "    needs: skipped\n", "true"),
        job("not-failed", "    needs: skipped\n    if: failure()\n", "true"),
    ));
    let ran = repository.exec(&[]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.jobs(),
        [
            "after-clean: skipped",
            "after-skip: skipped",
            "cleans: success",
            "fails: failure",
            "not-failed: skipped",
            "reports: success",
            "skipped: skipped",
        ]
    );
}

#[test]
fn a_job_may_ask_how_single_jobs_ended() {
    let repository = Repository::new(
        "on: push\njobs:\n  good: {runs-on: host, steps: [{run: 'true'}]}\n  bad: {runs-on: host, steps: [{run: exit 1}]}\n  \
         one: {needs: [good, bad], if: \"success('good')\", runs-on: host, steps: [{run: 'true'}]}\n  \
         two: {needs: [good, bad], if: \"failure('good')\", runs-on: host, steps: [{run: 'true'}]}\n",
    );
    let jobs = repository.exec(&[]).jobs();
    assert!(
        jobs.contains(&"one: success".to_owned()) && jobs.contains(&"two: skipped".to_owned()),
        "{jobs:?}"
    );
}

#[test]
fn messages_of_commands_are_unescaped() {
    let repository = Repository::new(
        "on: push\njobs:\n  a:\n    runs-on: host\n    steps:\n      - run: |\n          echo '::error file=a.c,line=2,title=Oh%3A::100%25%0Anext %0Dx'\n          \
         echo '::group::50%25'\n          echo '::endgroup::'\n",
    );
    let ran = repository.exec(&[]);
    for row in ["##[error]a.c:2: Oh:: 100%", "  next \rx", "::group::50%"] {
        assert!(ran.has(row), "{row:?} in {:#?}", ran.rows());
    }
}

#[test]
fn an_image_that_comes_out_empty_is_no_container() {
    let repository = Repository::new(
        "on: push\njobs:\n  host:\n    runs-on: host\n    container: ${{ github.event_name == 'x' && 'debian' || '' }}\n    \
         services: {db: {image: \"${{ '' }}\"}}\n    steps: [{run: test -d $RUNNER_TOOL_CACHE && echo here}]\n  \
         inside:\n    runs-on: host\n    services: {db: {image: postgres}}\n    steps: [{run: echo never}]\n",
    );
    let ran = repository.exec(&[]);
    assert!(ran.has("here") && !ran.has("never"), "{:#?}", ran.rows());
    assert_eq!(ran.jobs(), ["host: success", "inside: failure"]);
}
