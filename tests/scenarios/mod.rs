//! What a runner must do on any Gitea. `tests/daemon.rs` plays these on the stand-in, `tests/live.rs` on a real one.

mod start;

use sower_test_support::{JobSeen, Server, Status};
pub(crate) use start::{PATIENCE, registered, runner, ticks, wait};

/// A pushed workflow and its run.
pub(crate) struct Pushed<'a> {
    server: &'a dyn Server,
    repository: String,
    sha: String,
}

impl<'a> Pushed<'a> {
    /// Makes a repository and pushes one workflow.
    pub(crate) fn new(server: &'a dyn Server, name: &str, workflow: &str) -> Self {
        Self::with(server, name, &[(".gitea/workflows/main.yaml", workflow)])
    }

    /// Makes a repository and pushes these files.
    pub(crate) fn with(server: &'a dyn Server, name: &str, files: &[(&str, &str)]) -> Self {
        let repository = format!("{}/{name}", sower_test_support::USER);
        server
            .make_repository(&repository, &[("DEPLOY_KEY", "throwaway-secret-1")], &[("PLACE", "from-vars")])
            .unwrap();
        let sha = server.push(&repository, files).unwrap();
        Self { server, repository, sha }
    }

    pub(crate) fn jobs(&self) -> Vec<JobSeen> {
        self.server.jobs(&self.repository, &self.sha).unwrap()
    }

    pub(crate) fn done(&self) -> Vec<JobSeen> {
        wait("the end of the run", || {
            let jobs = self.jobs();
            (!jobs.is_empty() && jobs.iter().all(|job| job.status.is_done())).then_some(jobs)
        })
    }

    /// The end of a run of one job.
    pub(crate) fn job_done(&self) -> JobSeen {
        self.done().remove(0)
    }

    /// Waits for a row of the first job.
    pub(crate) fn row(&self, row: &str) -> JobSeen {
        wait(&format!("the row {row:?}"), || {
            let job = self.jobs().into_iter().next()?;
            self.rows(&job).iter().any(|one| one == row).then_some(job)
        })
    }

    pub(crate) fn rows(&self, job: &JobSeen) -> Vec<String> {
        self.server.rows(&self.repository, job.id).unwrap()
    }

    pub(crate) fn cancel(&self) {
        self.server.cancel(&self.repository, &self.sha).unwrap();
    }
}

fn job<'a>(jobs: &'a [JobSeen], name: &str) -> &'a JobSeen {
    jobs.iter().find(|job| job.name == name).unwrap_or_else(|| panic!("no job {name} in {jobs:#?}"))
}

const WHOLE: &str = r#"
name: Whole
on: [push]
env: {LEVEL: workflow}
jobs:
  build:
    runs-on: host
    env: {LEVEL: job}
    outputs:
      word: ${{ steps.say.outputs.word }}
    steps:
      - name: Say
        id: say
        env: {KEY: "${{ secrets.DEPLOY_KEY }}"}
        run: |
          echo "word=spoken" >> "$GITHUB_OUTPUT"
          echo "level $LEVEL place ${{ vars.PLACE }}"
          echo "the key is $KEY"
          echo "::add-mask::found-out"
          echo "and found-out too"
      - name: Forgiven
        id: forgiven
        continue-on-error: true
        run: exit 3
      - name: Not this
        if: ${{ false }}
        run: echo never
      - name: Last
        run: echo "forgiven ${{ steps.forgiven.outcome }} ${{ steps.forgiven.conclusion }}"
  variants:
    runs-on: host
    strategy:
      matrix: {n: [1, 2], word: [a, b]}
    steps:
      - run: echo "variant ${{ matrix.n }}${{ matrix.word }}"
  fails:
    runs-on: host
    steps:
      - {name: Breaks, run: exit 7}
      - {name: Unreached, run: echo unreached}
      - {name: Always, if: always(), run: echo "cleaned up"}
  after:
    needs: [build, variants]
    runs-on: host
    steps:
      - run: echo "heard ${{ needs.build.outputs.word }} after ${{ needs.variants.result }}"
  skipped:
    runs-on: host
    if: github.ref == 'refs/heads/elsewhere'
    steps:
      - {name: Not here, run: echo no}
  hindered:
    needs: [fails]
    runs-on: host
    steps:
      - run: echo no
"#;

/// Outputs, matrix, needs, masks, failing steps, skipped jobs.
pub(crate) fn a_workflow_runs_whole(server: &dyn Server) {
    let _runner = runner(server, 2);
    let run = Pushed::new(server, "whole", WHOLE);
    let jobs = run.done();

    let build = job(&jobs, "build");
    assert_eq!(build.status, Status::Success);
    let steps = ["Set up job", "Say", "Forgiven", "Not this", "Last", "Complete job"];
    assert_eq!(build.steps.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), steps);
    assert_eq!(build.step("Say"), Some(Status::Success));
    assert_eq!(build.step("Forgiven"), Some(Status::Failure), "Gitea is told the outcome");
    assert_eq!(build.step("Not this"), Some(Status::Skipped));
    assert_eq!(build.step("Last"), Some(Status::Success));
    let rows = run.rows(build);
    let has = |rows: &[String], row: &str| assert!(rows.iter().any(|one| one == row), "{row:?} in {rows:#?}");
    has(&rows, "level job place from-vars");
    has(&rows, "the key is ***");
    has(&rows, "and *** too");
    has(&rows, "forgiven failure success");
    // From the mask on, the value is nowhere; the script that is shown before holds it in plain sight.
    assert!(!rows.iter().any(|row| row.contains("throwaway-secret-1")), "{rows:#?}");

    for (name, row) in [
        ("variants (1, a)", "variant 1a"),
        ("variants (1, b)", "variant 1b"),
        ("variants (2, a)", "variant 2a"),
        ("variants (2, b)", "variant 2b"),
        ("after", "heard spoken after success"),
    ] {
        let job = job(&jobs, name);
        assert_eq!(job.status, Status::Success, "{name}");
        has(&run.rows(job), row);
    }

    let fails = job(&jobs, "fails");
    assert_eq!(fails.status, Status::Failure);
    assert_eq!(fails.step("Breaks"), Some(Status::Failure));
    assert_eq!(fails.step("Unreached"), Some(Status::Skipped));
    assert_eq!(fails.step("Always"), Some(Status::Success));
    let rows = run.rows(fails);
    has(&rows, "cleaned up");
    assert!(!rows.iter().any(|row| row == "unreached"), "{rows:#?}");

    let skipped = job(&jobs, "skipped");
    assert_eq!((skipped.status, skipped.step("Not here")), (Status::Skipped, Some(Status::Skipped)));
    assert_eq!(job(&jobs, "hindered").status, Status::Skipped);
}

/// A row is there while its step still runs.
pub(crate) fn rows_are_seen_while_the_job_runs(server: &dyn Server) {
    let runner = runner(server, 1);
    let gate = runner.folder().join("gate");
    let workflow = format!(
        "on: push\njobs:\n  live:\n    runs-on: host\n    steps:\n      - name: Wait\n        run: |\n          \
         echo before\n          until [ -e {0} ]; do sleep 0.1; done\n          echo after\n",
        gate.display()
    );
    let run = Pushed::new(server, "live", &workflow);
    let job = run.row("before");
    let job = if job.status == Status::Running { job } else { run.jobs().remove(0) };
    assert_eq!(job.status, Status::Running);
    wait("a running step", || (run.jobs()[0].step("Wait") == Some(Status::Running)).then_some(()));
    std::fs::write(&gate, "").unwrap();
    let job = run.job_done();
    assert_eq!(job.status, Status::Success);
    assert!(run.rows(&job).iter().any(|row| row == "after"));
}

/// Cancelling ends the processes of the job, detached ones too, lets `always()` steps run and keeps their rows.
pub(crate) fn a_cancelled_job_ends_and_cleans_up(server: &dyn Server) {
    let runner = runner(server, 1);
    let (one, two) = (runner.folder().join("one.pid"), runner.folder().join("two.pid"));
    let workflow = format!(
        "on: push\njobs:\n  long:\n    runs-on: host\n    steps:\n      - name: Long\n        run: |\n          \
         sleep 3600 & echo $! > {}\n          setsid sh -c 'echo $$ > {}; exec sleep 3600' &\n          \
         until [ -s {1} ]; do sleep 0.1; done\n          echo started\n          wait\n      \
         - name: Never\n        run: echo never\n      - name: Clean\n        if: always()\n        \
         run: echo cleaned up\n",
        one.display(),
        two.display()
    );
    let run = Pushed::new(server, "long", &workflow);
    run.row("started");
    run.cancel();
    let job = run.job_done();
    assert_eq!(job.status, Status::Cancelled);
    for file in [&one, &two] {
        let pid = std::fs::read_to_string(file).unwrap();
        let process = format!("/proc/{}", pid.trim());
        wait("the end of a process of the job", || gone(&process).then_some(()));
    }
    // The server takes rows although the job is over for it.
    wait("the row of the clean-up", || run.rows(&job).iter().any(|row| row == "cleaned up").then_some(()));
    assert!(!run.rows(&job).iter().any(|row| row == "never"));
}

/// Whether a process is gone, or dead and not yet waited for.
fn gone(process: &str) -> bool {
    std::fs::read_to_string(format!("{process}/stat"))
        .map_or(true, |stat| stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

const ODD: &str = r#"
on: push
jobs:
  odd:
    runs-on: host
    steps:
      - name: No end
        run: printf 'no line end'
      - name: No text
        run: printf 'bad \377\376 bytes\n'
      - name: No limit
        run: head -c 10000000 /dev/zero | tr '\0' q; echo
      - name: Carriage
        run: "echo one\r\necho two\r\n"
      - name: Zero
        run: printf 'a\000b\n'
"#;

/// Output without a last line end, that is not text, of 10 MB in a row; a script with CRLF.
pub(crate) fn odd_output_arrives(server: &dyn Server) {
    let _runner = runner(server, 1);
    let run = Pushed::new(server, "odd", ODD);
    let job = run.job_done();
    assert_eq!(job.status, Status::Success, "{job:#?}");
    let rows = run.rows(&job);
    let short: Vec<&String> = rows.iter().filter(|row| row.len() < 1000).collect();
    let has = |row: &str| assert!(rows.iter().any(|one| one == row), "{row:?} in {short:#?}");
    has("no line end");
    has("one");
    has("two");
    assert!(rows.iter().any(|row| row.starts_with("bad ") && row.ends_with(" bytes")), "{short:#?}");
    let long: usize = rows.iter().filter(|row| row.bytes().all(|byte| byte == b'q')).map(String::len).sum();
    assert_eq!(long, 10_000_000, "no byte of the long row is lost");
}

/// The daemon dies without warning, the job goes on, the next daemon reports the rest: every row exactly once.
pub(crate) fn a_killed_daemon_loses_nothing(server: &dyn Server) {
    let mut runner = runner(server, 1);
    let gate = runner.folder().join("gate");
    let workflow = format!(
        "on: push\njobs:\n  ticking:\n    runs-on: host\n    steps:\n      - name: Tick\n        run: |\n          \
         for i in $(seq 1 300); do echo \"tick $i\"; sleep 0.01; done\n          \
         until [ -e {} ]; do sleep 0.1; done\n          \
         for i in $(seq 301 400); do echo \"tick $i\"; done\n      - run: echo over\n",
        gate.display()
    );
    let run = Pushed::new(server, "killed", &workflow);
    run.row("tick 20");
    runner.kill().unwrap();
    std::fs::write(&gate, "").unwrap();
    runner.start(&[]).unwrap();
    let job = run.job_done();
    assert_eq!(job.status, Status::Success, "{}", runner.said());
    let rows = run.rows(&job);
    assert_eq!(ticks(&rows), (1..=400).collect::<Vec<_>>());
    assert!(rows.iter().any(|row| row == "over"));
    wait("the end of the job's processes", || (runner.processes().len() == 1).then_some(()));
}

/// The server is away while the job ends: no row is lost, and the result arrives.
pub(crate) fn an_outage_loses_nothing(server: &dyn Server) {
    let runner = runner(server, 1);
    let (gate, over) = (runner.folder().join("gate"), runner.folder().join("over"));
    let workflow = format!(
        "on: push\njobs:\n  away:\n    runs-on: host\n    steps:\n      - name: Tick\n        run: |\n          \
         for i in $(seq 1 50); do echo \"tick $i\"; done\n          \
         until [ -e {} ]; do sleep 0.1; done\n          \
         for i in $(seq 51 500); do echo \"tick $i\"; done\n      - run: touch {}\n",
        gate.display(),
        over.display()
    );
    let run = Pushed::new(server, "away", &workflow);
    run.row("tick 50");
    server.stop().unwrap();
    std::fs::write(&gate, "").unwrap();
    wait("the end of the job", || over.exists().then_some(()));
    server.restart().unwrap();
    let job = run.job_done();
    assert_eq!(job.status, Status::Success);
    assert_eq!(ticks(&run.rows(&job)), (1..=500).collect::<Vec<_>>());
}

/// An ephemeral runner does one job, delivers all of its log, and leaves.
pub(crate) fn an_ephemeral_runner_does_one_job(server: &dyn Server) {
    let mut runner = registered(server, 1, &["--ephemeral"]);
    runner.start(&[]).unwrap();
    let workflow = "on: push\njobs:\n  only:\n    runs-on: host\n    steps:\n      - run: for i in $(seq 1 200); do echo \"tick $i\"; done\n";
    let run = Pushed::new(server, "ephemeral", workflow);
    let job = run.job_done();
    assert_eq!(job.status, Status::Success);
    let left = runner.wait(PATIENCE).unwrap();
    assert!(left.success(), "{left}: {}", runner.said());
    assert_eq!(ticks(&run.rows(&job)), (1..=200).collect::<Vec<_>>());
}

/// Version 3 and version 4 of the artifact protocol, the cache server, and checkout, without Node.js.
const BUILT_IN: &str = r#"
on: push
jobs:
  first:
    runs-on: host
    outputs: {word: "${{ steps.word.outputs.word }}"}
    steps:
      - uses: actions/checkout@v4
      - id: word
        run: echo "word=spoken" >> "$GITHUB_OUTPUT"
      - id: cache
        uses: actions/cache@v4
        with: {path: deps, key: deps-1}
      - run: |
          echo "files=$(git ls-files | tr '\n' ' ') hit=[${{ steps.cache.outputs.cache-hit }}]"
          mkdir -p deps out/x && echo dep > deps/a && echo one > out/a && head -c 20000000 /dev/zero > out/x/large
      - uses: actions/upload-artifact@v3
        with: {name: third, path: out}
      - uses: actions/upload-artifact@v4
        with: {name: fourth, path: out, compression-level: 0, retention-days: 2}
      - uses: actions/upload-artifact@v4
        with: {name: fourth-b, path: out/a}
      - run: echo two > out/a
      - uses: actions/upload-artifact@v4
        with: {name: fourth-b, path: out/a, overwrite: true}
  second:
    needs: first
    runs-on: host
    steps:
      - id: cache
        uses: actions/cache@v4
        with: {path: deps, key: deps-2, restore-keys: deps-}
      - uses: actions/download-artifact@v3
        with: {name: third, path: three}
      - uses: actions/download-artifact@v4
        with: {pattern: fourth*, path: four}
      - run: |
          echo "cache=[${{ steps.cache.outputs.cache-hit }}] $(cat deps/a)"
          echo "three=$(cat three/a) $(stat -c %s three/x/large)"
          echo "four=$(cat four/fourth/a four/fourth-b/a | tr '\n' ' ') $(stat -c %s four/fourth/x/large)"
      - uses: actions/upload-artifact/merge@v4
        with: {pattern: fourth*, name: all, separate-directories: true}
      - uses: actions/download-artifact@v4
        with: {name: all, path: all}
      - run: echo "all=$(cd all && find . -type f | sort | tr '\n' ' ')"
  many:
    needs: first
    runs-on: host
    strategy: {matrix: {n: [1, 2]}}
    steps:
      - uses: actions/checkout@v6
      - id: greet
        uses: ./.gitea/actions/greet
        with: {who: "${{ matrix.n }} ${{ needs.first.outputs.word }}"}
      - run: echo "heard=${{ steps.greet.outputs.said }}"
"#;

const GREET: &str = r#"
name: greet
inputs: {who: {required: true}}
outputs:
  said: {value: "${{ steps.say.outputs.said }}"}
runs:
  using: composite
  steps:
    - id: say
      shell: bash
      run: echo "said=hello ${{ inputs.who }}" >> "$GITHUB_OUTPUT"
"#;

pub(crate) fn built_in_actions_hand_files_on(server: &dyn Server) {
    let _runner = runner(server, 1);
    let files = [(".gitea/workflows/main.yaml", BUILT_IN), (".gitea/actions/greet/action.yml", GREET)];
    let run = Pushed::with(server, "built-in", &files);
    let jobs = run.done();
    for (name, wanted) in [
        (
            "first",
            &[
                "files=.gitea/actions/greet/action.yml .gitea/workflows/main.yaml  hit=[]",
                "Cache saved with key: deps-1",
            ][..],
        ),
        (
            "second",
            &[
                "cache=[false] dep",
                "three=one 20000000",
                "four=one two  20000000",
                "all=./fourth-b/a ./fourth/a ./fourth/x/large ",
            ],
        ),
        ("many (1)", &["heard=hello 1 spoken"]),
        ("many (2)", &["heard=hello 2 spoken"]),
    ] {
        let job = job(&jobs, name);
        let rows = run.rows(job);
        assert_eq!(job.status, Status::Success, "{rows:#?}");
        for row in wanted {
            assert!(rows.iter().any(|one| one == row), "no {row:?} in {rows:#?}");
        }
    }
}

/// Makes a test of each scenario; `$start` starts a server.
macro_rules! scenarios {
    ($start:path: $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let server = $start();
                scenarios::$name(&server);
            }
        )*
    };
    ($start:path) => {
        scenarios::scenarios! { $start:
            a_workflow_runs_whole
            rows_are_seen_while_the_job_runs
            a_cancelled_job_ends_and_cleans_up
            odd_output_arrives
            a_killed_daemon_loses_nothing
            an_outage_loses_nothing
            an_ephemeral_runner_does_one_job
            built_in_actions_hand_files_on
        }
    };
}
pub(crate) use scenarios;
