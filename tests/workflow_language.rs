//! The workflow language as its users see it: documents, expressions, workflows and what is wrong with them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test fails as the test does")]

use proptest::prelude::*;
use sower::workflow::{
    Action, Condition, Diagnostic, Expression, Object, Runs, Scope, Status, StepKind, Template, Value,
    Workflow, check_action, check_workflow, parse_action, parse_workflow,
};
use sower::yaml::{self, Kind, Place};

/// Contexts that do not change.
struct Contexts(Object);

impl Contexts {
    fn new(json: &str) -> Self {
        match Value::from_json_text(json, 1 << 20).unwrap() {
            Value::Object(object) => Self((*object).clone()),
            other => panic!("{other:?} is no object"),
        }
    }
}

impl Scope for Contexts {
    fn named(&self, name: &str) -> Option<Value> {
        self.0.get(name).cloned()
    }

    fn status(&self) -> Status {
        Status::Success
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        Ok(patterns.join("+"))
    }
}

fn evaluate(expression: &str) -> String {
    let contexts = Contexts::new(
        r#"{"github": {"event": {"labels": [{"name": "a", "n": {"x": 1}}, {"name": "B", "n": {"x": 2}}],
            "list": [[1, 2], [3]], "Mixed-Case": {"Key": "v"}}, "ref": "refs/heads/main"},
            "env": {"EMPTY": "", "N": "12", "HEX": "0x10"}}"#,
    );
    match Expression::parse(expression).and_then(|parsed| parsed.evaluate(&contexts)) {
        Ok(value) => value.to_json_text(),
        Err(error) => match error.position {
            Some(position) => format!("{position}: {}", error.message),
            None => error.message,
        },
    }
}

#[test]
fn expressions_have_githubs_values() {
    for (expression, value) in [
        // Precedence: index > ! > < > == > && > ||.
        ("!github.nope == true", "true"),
        ("1 < 2 == true", "true"),
        ("true == 1 < 2", "true"),
        ("false && false || true", "true"),
        ("true || nope2()", "9: Unrecognized function: 'nope2'"),
        ("1 || 2 && 0", "1"),
        ("'' || 'x'", "\"x\""),
        ("0 && 'x'", "0"),
        // Loose equality and ordering.
        ("'12' == 12 && env.n == 12 && env.hex == 16", "true"),
        ("null == 0 && null == '' && false == 0 && true == '1'", "true"),
        ("'ABC' == 'abc' && 'É' == 'é' && 'ı' != 'I'", "true"),
        ("NaN == NaN", "false"),
        ("'a' < 'B' && 'B' < 'c' && 'a' >= 'A'", "true"),
        ("'abc' < 1 || 'abc' > 1 || 'abc' == 1", "false"),
        ("false < true && null < 1", "true"),
        ("github.event == github.event && github.event.list != fromJSON('[]')", "true"),
        ("fromJSON('[]') == fromJSON('[]')", "false"),
        // Index, property, filter.
        ("GitHub.EVENT['mixed-case'].KEY", "\"v\""),
        ("github.event.labels[1].name", "\"B\""),
        ("github.event.labels[1.9].name", "\"B\""),
        ("github.event.labels['1'].name", "\"B\""),
        ("github.event.labels[-1]", "null"),
        ("github.event.labels[2].name", "null"),
        ("github.event.labels.*.name", "[\"a\",\"B\"]"),
        ("github.event.labels.*.n.x", "[1,2]"),
        ("github.event.labels.*.nope", "[]"),
        ("github.event.list.*[0]", "[1,3]"),
        ("github.event.list.*.*", "[1,2,3]"),
        ("(github.event.list.*)[0]", "[1,3]"),
        ("github.event['mixed-case'].*", "[\"v\"]"),
        ("github.ref.*", "[]"),
        ("github.nope.deeper.still", "null"),
        // Functions.
        ("contains(github.event.labels.*.name, 'b')", "true"),
        ("contains('Hello', 'ELL') && startsWith('Hello', 'he') && endsWith('Hello', 'LO')", "true"),
        ("contains(12345, 34)", "true"),
        ("contains(github.event, 'x')", "false"),
        ("format('{0} {1} {0} {{0}}', 'a', 1.50)", "\"a 1.5 a {0}\""),
        (
            "format('{2}', 1)",
            "1: The following format string references more arguments than were supplied: {2}",
        ),
        ("format('{')", "1: The following format string is invalid: {"),
        ("join(github.event.list.*.*, '; ')", "\"1; 2; 3\""),
        ("join('x')", "\"x\""),
        ("join(github.event.labels)", "\"Object,Object\""),
        ("toJSON(fromJSON('{\"a\":[1,{}]}'))", r#""{\n  \"a\": [\n    1,\n    {}\n  ]\n}""#),
        ("fromJSON('1e3')", "1000"),
        ("fromJSON('')", "1: Error parsing fromJSON: the text ends before the value at character 1"),
        ("hashFiles('a', 'b')", "\"a+b\""),
        ("case(false, 1, true, 2, fromJSON('x'))", "2"),
        ("case(1, 2, 3)", "1: case predicate must evaluate to a boolean value"),
        // Literals.
        ("0xFF + ''", "6: Unexpected symbol: '+'"),
        ("'it''s'", "\"it's\""),
        ("-1.5e3", "-1500"),
        ("0o17", "15"),
        ("-Infinity", "\"-Infinity\""),
        ("1e21", "1e+21"),
        ("", "null"),
        (" \n ", "null"),
    ] {
        assert_eq!(evaluate(expression), value, "{expression}");
    }
}

#[test]
fn wrong_expressions_say_what_and_where() {
    for (expression, message) in [
        ("1 ==", "3: Unexpected end of expression: '=='"),
        ("(1", "2: Unexpected end of expression: '1'"),
        ("contains(1,", "11: Unexpected end of expression: ','"),
        ("contains(1, 2,)", "15: Unexpected symbol: ')'"),
        ("github.", "7: Unexpected end of expression: '.'"),
        ("github[", "7: Unexpected end of expression: '['"),
        ("'open", "1: Unexpected symbol: ''open'"),
        ("a && b", "1: Unrecognized named-value: 'a'"),
        ("github.ref\n  == nope", "17: Unrecognized named-value: 'nope'"),
        ("contains(1)", "1: Too few parameters supplied: 'contains'"),
        ("Success(1)", "1: Too many parameters supplied: 'Success'"),
        (
            "case(true, 1, 2, 3)",
            "1: Even number of parameters supplied, requires an odd number of parameters: 'case'",
        ),
        ("1 2", "3: Unexpected symbol: '2'"),
        ("'a'[0]", "4: Unexpected symbol: '['"),
        ("\"x\"", "1: Unexpected symbol: '\"x\"'"),
    ] {
        assert_eq!(evaluate(expression), message, "{expression}");
    }
    assert_eq!(evaluate(&"x".repeat(21_001)), "Exceeded max expression length 21000");
    for deep in ["!".repeat(50) + "1", "(".repeat(10_000), "github".to_owned() + &"[0]".repeat(50)] {
        assert!(evaluate(&deep).ends_with("Exceeded max expression depth 50"), "{deep}");
    }
    assert_eq!(evaluate(&("1".to_owned() + &" == 1".repeat(3000))), "true");
    assert!(evaluate(&format!("fromJSON('{}')", "[".repeat(10_000))).contains("nested deeper"));
}

#[test]
fn documents_are_read_by_the_core_schema_with_places() {
    let root =
        yaml::parse("\u{feff}on: push\r\nyes: no\r\nn: [1.10, 0x1F, 0o17, ~, 'true', true, 1_000]\r\n")
            .unwrap();
    assert_eq!(root.get("on").unwrap().as_str(), Some("push"));
    assert_eq!(root.get("yes").unwrap().as_str(), Some("no"));
    let numbers = root.get("n").unwrap().as_sequence().unwrap();
    assert_eq!(numbers[0].kind, Kind::Number { value: 1.1, text: "1.10".to_owned() });
    assert_eq!(numbers[1].kind, Kind::Number { value: 31.0, text: "0x1F".to_owned() });
    assert_eq!(numbers[2].kind, Kind::Number { value: 15.0, text: "0o17".to_owned() });
    assert!(numbers[3].is_null());
    assert_eq!(numbers[4].as_str(), Some("true"));
    assert_eq!(numbers[5].kind, Kind::Bool(true));
    assert_eq!(numbers[6].as_str(), Some("1_000"));
    assert_eq!(numbers[1].place, Place::new(3, 11));
    assert!(yaml::parse("").unwrap().is_null());
    assert!(yaml::parse("# nothing\n").unwrap().is_null());
}

#[test]
fn anchors_and_merge_keys_are_expanded() {
    let root = yaml::parse(
        "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\nuse:\n  a: 9\n  <<: [*base, *more]\n  d: *base\n",
    )
    .unwrap();
    let used = root.get("use").unwrap();
    let keys: Vec<_> = used.as_mapping().unwrap().iter().map(|(key, _)| key.text.as_str()).collect();
    assert_eq!(keys, ["a", "b", "c", "d"]);
    assert_eq!(used.get("a").unwrap().scalar_text().unwrap(), "9");
    assert_eq!(used.get("b").unwrap().scalar_text().unwrap(), "2");
    assert_eq!(used.get("d").unwrap().get("b").unwrap().scalar_text().unwrap(), "2");
}

#[test]
fn documents_that_cannot_be_read_say_why_and_where() {
    let error = |text: &[u8]| yaml::parse(text).unwrap_err().to_string();
    assert!(
        error(b"a: 1\nb: 2\na: 3\n").starts_with("3:1: the key 'a' is here a second time (first in line 1)")
    );
    assert!(error(b"a:\n\tb: 1\n").starts_with("2:1: a tab is used as indentation"));
    assert!(error(b"a: \xff\n").starts_with("1:4: the document is not UTF-8"));
    assert!(error(b"a: 1\nb: \0\n").starts_with("2:4: the control character U+0000 (NUL)"));
    assert!(error(b"a: 1\n---\nb: 2\n").starts_with("2:1: a second document"));
    assert!(error(b"[a]: 1\n").contains("a key must be text"));
    assert!(error(b"a: &a [*a]\n").contains("alias"));
    assert!(error("[".repeat(100_000).as_bytes()).contains("nested deeper than 200"));
    assert!(error("- ".repeat(10_000).as_bytes()).contains("nested deeper than 200"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    assert!(error(bomb.as_bytes()).contains("too large"));
    let wide = format!("a: &a {}\nb: [{}]\n", "x".repeat(1_000_000), vec!["*a"; 1000].join(","));
    assert!(error(wide.as_bytes()).contains("too large"));
}

fn workflow(text: &str) -> (Workflow, Vec<Diagnostic>) {
    parse_workflow(text, "w.yaml").unwrap_or_else(|found| panic!("{found:?}"))
}

#[test]
fn a_workflow_becomes_its_model() {
    let (workflow, warnings) = workflow(
        r#"
name: Build
run-name: by ${{ github.actor }}
on:
  push: {branches: [main]}
  workflow_dispatch:
    inputs:
      level: {type: choice, required: true, default: low, options: [low, high]}
      dry: {type: boolean, default: false}
env: {A: 1.10, B: true, C: null, D: "${{ vars.D }}"}
defaults: {run: {shell: bash, working-directory: sub}}
jobs:
  build:
    runs-on: [self-hosted, "${{ matrix.os }}"]
    strategy: {fail-fast: false, max-parallel: 2, matrix: {os: [a, b]}}
    timeout-minutes: ${{ fromJSON('5') }}
    outputs: {sha: "${{ steps.one.outputs.sha }}"}
    env: ${{ fromJSON('{"X":"y"}') }}
    steps:
      - uses: actions/checkout@v4
        with: {fetch-depth: 0}
      - id: one
        if: always()
        run: |
          echo one
        continue-on-error: true
        timeout-minutes: "5"
  deploy:
    needs: build
    if: ${{ github.ref == 'refs/heads/main' }}
    runs-on: {group: g, labels: x}
    container: {image: debian}
    services: {db: {image: postgres}}
    steps:
      - run: "true"
  call:
    needs: [build, deploy]
    uses: ./.gitea/workflows/other.yaml
    with: {n: 3}
    secrets: inherit
"#,
    );
    assert_eq!(warnings, []);
    let contexts = Contexts::new(r#"{"matrix": {"os": "linux"}, "vars": {"D": "dd"}}"#);
    assert!(workflow.on.has_event("push") && !workflow.on.has_event("pull_request"));
    let inputs = workflow.on.dispatch_inputs();
    assert_eq!(inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>(), ["level", "dry"]);
    assert_eq!(inputs[0].options, ["low", "high"]);
    assert_eq!(
        workflow.env.render(&contexts).unwrap(),
        [("A", "1.10"), ("B", "true"), ("C", ""), ("D", "dd")].map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    let build = &workflow.jobs["build"];
    assert_eq!(build.place, Place::new(13, 3));
    assert_eq!(build.runs_on.labels(&contexts).unwrap(), ["self-hosted", "linux"]);
    assert_eq!(build.env.render(&contexts).unwrap(), [("X".to_owned(), "y".to_owned())]);
    let timeout = build.timeout_minutes.as_ref().unwrap().value(&contexts).unwrap();
    assert_eq!(timeout.to_number(), 5.0);
    assert_eq!(
        build.strategy.as_ref().unwrap().matrix.as_ref().unwrap().combinations(&contexts).unwrap().len(),
        2
    );
    assert!(matches!(&build.steps[0].kind, StepKind::Uses { action, with }
        if action.source() == "actions/checkout@v4" && with[0].1.render(&contexts).unwrap() == "0"));
    assert!(matches!(&build.steps[1].kind, StepKind::Run { script, .. } if script.source() == "echo one\n"));
    assert_eq!(build.steps[1].id.as_deref(), Some("one"));
    let deploy = &workflow.jobs["deploy"];
    assert!(deploy.container.is_some() && deploy.services.is_some());
    assert_eq!(deploy.runs_on.labels(&contexts).unwrap(), ["x"]);
    assert_eq!(deploy.needs[0].value, "build");
    let call = &workflow.jobs["call"];
    assert_eq!(call.uses.as_ref().unwrap().value, "./.gitea/workflows/other.yaml");
    assert_eq!(call.needs.len(), 2);
}

/// What a server sends: re-marshalled, `needs` erased, numbers as strings.
#[test]
fn a_payload_of_a_server_is_read() {
    let (payload, warnings) = workflow(
        r#"name: Probe
"on": [push]
env:
    LEVEL: workflow
jobs:
    deploy:
        name: deploy
        runs-on: host
        needs: [build]
        unknown-to-us: {a: 1}
        if: github.ref == 'refs/heads/main'
        steps:
            - run: echo "deploy ${{ needs.build.outputs.sha }}"
        timeout-minutes: "5"
        strategy:
            fail-fast: "false"
            matrix:
                ghc:
                    - "9.10"
defaults:
    run:
        shell: bash
run-name: probe
"#,
    );
    assert_eq!(payload.jobs.len(), 1);
    let rules: Vec<_> = warnings.iter().map(|warning| warning.rule).collect();
    assert_eq!(rules, ["undefined-needs", "unknown-key"]);
    for odd in ["true", "''", "null", "[]", "{}"] {
        workflow(&format!("on: {odd}\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: a\n"));
    }
    workflow("true: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: a\n");
}

fn checked(text: &str) -> String {
    let lines: Vec<_> = check_workflow(text.as_bytes(), "w.yaml").iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn check_names_every_mistake_at_its_place() {
    insta::assert_snapshot!(checked(
        r#"on:
  psuh:
  schedule: [{cron: "0 25 * * *"}]
  pull_request: {branches: ["[a"], brnches: x}
jobs:
  build:
    run-on: x
    needs: [deploy, gone]
    if: secrets.KEY != ''
    timeout-minutes: soon
    steps:
      - run: echo ${{ github.event.issue.title }} ${{ nope.x }}
        uses: actions/checkout@v4
      - id: a
        run: echo ${{ steps.b.outputs.x }}
        shell: fish
      - id: A
        uses: actions/checkout
        with: [1]
      - name: nothing
      - run: |
          one
          two ${{ github.ref == 'x' &&
            matrx.os }}
  deploy:
    runs-on: x
    needs: build
    env: {GHCRTS: -M2g}
    steps:
      - run: echo ${{ needs.build.outputs.none }} ${{ hashFiles('x') }}
      - if: ${{ false }} text
        run: echo ${{ github.event.issue.title }}
"#
    ));
}

#[test]
fn check_looks_into_what_the_model_keeps_as_written() {
    let job =
        |rest: &str| format!("on: push\njobs:\n  a:\n    runs-on: x\n    steps: [{{run: echo}}]\n{rest}");
    for (text, expected) in [
        (job("    permissions: {contens: read}\n"), ":6:19: error: unknown permission 'contens'"),
        (job("    permissions: {contents: all}\n"), ":6:29: error: 'contents' can be read, write or none"),
        (job("    permissions: everything\n"), ":6:18: error: 'permissions' must be read-all"),
        (job("    container: {imag: x}\n"), ":6:17: error: unknown key 'imag' in 'container'"),
        (job("    services: {db: {ports: [1]}}\n"), ": error: the service 'db' has no 'image'"),
        (job("    concurrency: {cancel-in-progress: true}\n"), ": error: 'concurrency' has no 'group'"),
        (
            job("  A:\n    runs-on: x\n    steps: [{run: echo}]\n"),
            ":6:3: error: the job 'A' is here a second time",
        ),
        (job("    name: 'x ${{ }}'\n"), ": error: an expression was expected"),
        (job("").replace("push", "{push: {branches: [a], branches-ignore: [b]}}"), "exclude each other"),
        (
            job("").replace("push", "{workflow_call: {inputs: {i: {type: bolean}}}}"),
            "cannot be of the type 'bolean' (string, boolean, number) (did you mean 'boolean'?)",
        ),
        (
            job("").replace("push", "{workflow_dispatch: {inputs: {i: {type: choice}}}}"),
            "a choice without 'options'",
        ),
        (job("").replace("push", "{workflow_call: {outputs: {o: {}}}}"), "the output 'o' has no 'value'"),
    ] {
        let found = checked(&text);
        assert!(found.contains(expected), "{text}\n{found}");
    }
}

/// The findings of a job with these lines in it, in the line that is marked with `#!`; all others are wrong.
#[track_caller]
fn one_mistake(text: &str, severity: &str, word: &str) {
    let line = text.lines().position(|line| line.contains("#!")).unwrap() + 1;
    let found = check_workflow(text.replace(" #!", "").as_bytes(), "w.yaml");
    assert!((1..=4).contains(&found.len()), "{text}\n{found:#?}");
    for finding in &found {
        assert_eq!(finding.place.line, line, "{text}\n{found:#?}");
    }
    let named =
        |finding: &Diagnostic| finding.severity.to_string() == severity && finding.message.contains(word);
    assert!(found.iter().any(named), "{word}: {text}\n{found:#?}");
}

#[test]
fn one_mistake_is_named_in_its_line() {
    let head = "on: push\njobs:\n  build:\n    runs-on: x\n";
    for (severity, word, job) in [
        ("error", "matrix.os", "    steps:\n      - run: echo ${{ matrix.os }} #!\n"),
        (
            "error",
            "oss",
            "    strategy: {matrix: {os: [a]}}\n    steps:\n      - run: echo ${{ matrix.oss }} #!\n",
        ),
        ("error", "'os'", "    strategy:\n      matrix:\n        os: linux #!\n    steps: [{run: x}]\n"),
        (
            "error",
            "'ox'",
            "    strategy:\n      matrix:\n        os: [a]\n        exclude: [{ox: a}] #!\n    steps: [{run: x}]\n",
        ),
        (
            "warning",
            "foo",
            "    steps:\n      - run: echo ${{ steps.foo.outcome }} #!\n      - {id: foo, run: x}\n",
        ),
        (
            "error",
            "output",
            "    steps:\n      - {id: foo, run: x}\n      - run: echo ${{ steps.foo.output.a }} #!\n",
        ),
        ("warning", "evnt_name", "    steps:\n      - run: echo ${{ github.evnt_name }} #!\n"),
        ("error", "__a", "    steps:\n      - id: __a #!\n        run: x\n"),
        ("error", "'run'", "    steps:\n      - run: [a] #!\n"),
        ("error", "'run'", "    steps:\n      - run: #!\n"),
        ("error", "docker://", "    steps:\n      - uses: docker:// #!\n"),
        ("error", "a workflow", "    steps:\n      - uses: ./.gitea/workflows/x.yaml #!\n"),
        ("error", "{2}", "    steps:\n      - run: echo ${{ format('{2}', github.ref) }} #!\n"),
        ("error", "fromJSON", "    steps:\n      - run: echo ${{ fromJSON('{') }} #!\n"),
        ("error", "secrets", "    container: '${{ secrets.A }}' #!\n    steps: [{run: x}]\n"),
        ("error", "secrets", "    environment: '${{ secrets.A }}' #!\n    steps: [{run: x}]\n"),
        ("error", "nme", "    environment: {nme: x} #!\n    steps: [{run: x}]\n"),
        ("error", "ports", "    container: {image: x, ports: 80} #!\n    steps: [{run: x}]\n"),
        ("error", "image", "    container: #!\n      options: x\n    steps: [{run: x}]\n"),
        (
            "error",
            "sometimes",
            "    concurrency: {group: a, cancel-in-progress: sometimes} #!\n    steps: [{run: x}]\n",
        ),
        ("error", "'with'", "    with: {a: b} #!\n    steps: [{run: x}]\n"),
        ("error", "success", "    steps:\n      - if: success('a') #!\n        run: x\n"),
        ("error", "A", "    env:\n      A: 1\n      A: 2 #!\n    steps: [{run: x}]\n"),
        ("error", "nothing", "    env: *nothing #!\n    steps: [{run: x}]\n"),
        ("error", "tab", "    steps:\n      - run: x\n\tname: y #!\n"),
        ("error", "!!int", "    timeout-minutes: !!int 5x #!\n    steps: [{run: x}]\n"),
        (
            "warning",
            "commits.*.message",
            "    steps:\n      - run: echo ${{ github.event.commits[0].message }} #!\n",
        ),
        ("warning", "github.event", "    steps:\n      - run: echo ${{ toJSON(github.event) }} #!\n"),
    ] {
        one_mistake(&format!("{head}{job}"), severity, word);
    }
    let tail = "jobs: {a: {runs-on: x, steps: [{run: x}]}}\n";
    for (severity, word, on) in [
        ("error", "frobnicate", "on: frobnicate #!\n"),
        ("error", "opend", "on:\n  issues:\n    types: [opend] #!\n"),
        ("warning", "'tags'", "on:\n  pull_request:\n    tags: [a] #!\n"),
        ("error", "^main", "on:\n  push:\n    branches: [^main] #!\n"),
        ("error", "./src", "on:\n  push:\n    paths: [./src] #!\n"),
        ("warning", "'!'", "on:\n  push:\n    branches: ['!a', '!b'] #!\n"),
        (
            "error",
            "'b'",
            "on:\n  workflow_call:\n    outputs:\n      o: {value: '${{ jobs.b.outputs.c }}'} #!\n",
        ),
        (
            "error",
            "requird",
            "on:\n  workflow_call:\n    inputs:\n      i: {type: string, requird: true} #!\n",
        ),
        ("warning", "'i'", "on:\n  workflow_call:\n    inputs:\n      i: {required: true} #!\n"),
        ("error", "'write'", "on: push\npermissions: {models: write} #!\n"),
        ("error", "no expression", "on: push\nname: ${{ github.ref }} #!\n"),
    ] {
        one_mistake(&format!("{on}{tail}"), severity, word);
    }
    one_mistake("on: push\njobs:\n  a:\n    uses: ./x.yaml\n    env: {A: 1} #!\n", "error", "'env'");
    one_mistake("on: push\njobs:\n  a:\n    uses: ./x.yaml@main #!\n", "error", "@main");
    one_mistake(
        "on: {workflow_dispatch: {inputs: {where: {}}}}\njobs:\n  a:\n    runs-on: x\n    steps:\n      \
         - run: echo ${{ github.event.inputs.wher }} #!\n",
        "warning",
        "did you mean 'where'?",
    );
}

#[test]
fn what_is_right_gives_nothing() {
    let head = "on: push\njobs:\n  build:\n    runs-on: x\n";
    for job in [
        "    steps:\n      - run: echo ${{ contains(github.event.comment.body, '/run') && github.sha }}\n",
        "    steps:\n      - run: echo ${{ github.event.pull_request.head.sha }} ${{ github.event.sender.login }}\n",
        "    steps:\n      - run: echo ${{ github.event.inputs.name }} ${{ github.event.repository.name }}\n",
        "    if: success('build')\n    steps: [{run: x}]\n",
        "    strategy: {matrix: '${{ fromJSON(vars.M) }}'}\n    steps: [{run: 'echo ${{ matrix.any }}'}]\n",
        "    strategy: {matrix: {os: [a], include: [{os: a, v: 1}]}}\n    steps: [{run: 'echo ${{ matrix.v }}'}]\n",
        "    environment: {name: a, url: '${{ steps.s.outputs.u }}'}\n    steps: [{id: s, run: x}]\n",
        "    container: {image: x, env: {A: '${{ secrets.A }}'}, credentials: {username: a, password: '${{ secrets.P }}'}}\n    steps: [{run: x}]\n",
        "    timeout-minutes: 99999999999999999999999999\n    cancel-timeout-minutes: 1\n    steps: [{shell: PowerShell, run: x}]\n",
    ] {
        assert_eq!(checked(&format!("{head}{job}")), "", "{job}");
    }
}

#[test]
fn block_scalars_are_where_their_header_is() {
    let steps = "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n";
    for (step, place) in [
        (
            "      - if: |\n          nope.bar\n        run: x\n",
            "7:11: error: Unrecognized named-value: 'nope'",
        ),
        ("      - if: >- # why\n\n          true &&\n            nope.bar\n        run: x\n", "9:13: error"),
        ("      - if: >-\n          true &&\n          nope.bar\n        run: x\n", "8:11: error"),
        ("      - if: true &&\n\n          !nope.bar\n        run: x\n", "8:12: error"),
        ("      - if: true &&\n           secrets.A\n        run: x\n", "7:12: error"),
        ("      - run: x\n        shell: |\n          zsx\n", "7:16: error: 'zsx"),
        ("      - run: |2-\n          a ${{ 1\n          == nope }}\n", "8:14: error"),
    ] {
        let found = checked(&format!("{steps}{step}"));
        assert!(found.starts_with(&format!("w.yaml:{place}")), "{step}\n{found}");
    }
}

#[test]
fn keys_that_come_twice_do_not_hide_what_else_is_wrong() {
    let found = checked(
        "on: push\non: push\njobs:\n  a:\n    run-on: x\n    env: {A: 1, A: 2}\n    steps: [{run: x}]\n",
    );
    for place in ["2:1: error: the key 'on'", "5:5: error", "6:17: error: the key 'A'"] {
        assert!(found.contains(place), "{found}");
    }
}

#[test]
fn labels_are_judged_by_those_that_there_are() {
    let text = "on: push\njobs:\n  a: {runs-on: buidl, steps: [{run: echo}]}\n  b:\n    runs-on: ['${{ matrix.os }}', build]\n    \
                strategy: {matrix: {os: [build, mac]}}\n    steps: [{run: echo}]\n  c: {runs-on: '${{ vars.X }}', steps: [{run: echo}]}\n";
    let served = ["build".to_owned()];
    let around = sower::workflow::Around { served: Some(&served), read: None };
    let found: Vec<String> = sower::workflow::check_workflow_in(text.as_bytes(), "w.yaml", around)
        .iter()
        .map(|found| format!("{} {}", found.place, found.message))
        .collect();
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found[0].starts_with("3:16 no runner here has the label 'buidl' (did you mean 'build'?)"),
        "{found:#?}"
    );
    assert!(found[1].starts_with("5:15 no runner here has the label 'mac'"), "{found:#?}");
}

#[test]
fn check_accepts_what_is_valid() {
    for text in [
        "\u{feff}on: push\r\njobs:\r\n  a:\r\n    runs-on: x\r\n    steps:\r\n      - run: a\r\n",
        "on: push\njobs:\n  a: &a\n    runs-on: [any, label]\n    cancel-timeout-minutes: 3\n    steps:\n      - if: ''\n        uses: https://git.example.org/o/r@main\n      - uses: docker://debian:12\n      - uses: ./not/there\n      - run: echo ${{ gitea.sha }}\n  b:\n    <<: *a\n    description: text\n",
        "on:\n  workflow_call:\n    inputs: {a: {type: string, description: x}}\njobs:\n  a:\n    uses: ./.gitea/workflows/not-there.yaml\n  b:\n    strategy: {matrix: {v: [1, 1]}}\n    runs-on: x\n    steps: [{run: 'echo ::set-output name=a::b'}, {uses: actions/checkout@v1}]\n",
    ] {
        assert_eq!(checked(text), "");
    }
    let warned = checked("on: {push: {odd: 1}}\njobs:\n  a:\n    runs-on: x\n");
    assert!(
        warned.lines().count() == 2 && warned.lines().all(|line| line.contains(": warning: ")),
        "{warned}"
    );
}

#[test]
fn circles_of_needs_are_found() {
    let found = checked(
        "on: push\njobs:\n  a: {runs-on: x, needs: c, steps: [{run: a}]}\n  b: {runs-on: x, needs: a, steps: [{run: a}]}\n  c: {runs-on: x, needs: [b], steps: [{run: a}]}\n",
    );
    // Each need that is part of it is named.
    let places = ["3:26", "4:26", "5:27"];
    let expected = places
        .map(|place| format!("w.yaml:{place}: error: jobs need one another in a circle: a → c → b → a"));
    assert_eq!(found, expected.join("\n"));
}

fn action(text: &str) -> Action {
    parse_action(text, "action.yml").unwrap_or_else(|found| panic!("{found:?}"))
}

#[test]
fn actions_of_every_kind_are_read() {
    let composite = action(
        "name: Cap\ninputs:\n  heap: {description: d, required: 'true', default: '${{ github.ref }}'}\n  plain:\noutputs:\n  out: {value: '${{ steps.s.outputs.x }}'}\nruns:\n  using: composite\n  steps:\n    - id: s\n      shell: bash\n      run: echo ${{ inputs.heap }}\n",
    );
    assert_eq!(composite.name, "Cap");
    assert!(composite.inputs[0].required && composite.inputs[0].default.is_some());
    assert!(!composite.inputs[1].required && composite.inputs[1].default.is_none());
    assert!(matches!(composite.runs, Runs::Composite { steps } if steps.len() == 1));
    let node = action("runs: {using: node20, main: a.js, post: b.js, post-if: success()}");
    assert!(
        matches!(node.runs, Runs::Node { using, post: Some(_), post_if: Some(_), pre: None, .. } if using == "node20")
    );
    assert!(matches!(action("runs: {using: docker, image: Dockerfile}").runs, Runs::Docker { .. }));
    assert!(matches!(action("runs: {using: go, main: .}").runs, Runs::Go { .. }));
    for (text, word) in [
        ("name: x", "runs"),
        ("runs: {using: node20}", "main"),
        ("runs: {using: python}", "python"),
        ("runs: {using: composite}", "steps"),
        ("[]", "sequence"),
    ] {
        let found = parse_action(text, "action.yml").unwrap_err();
        assert!(found[0].message.contains(word), "{found:?}");
        assert!(!check_action(text.as_bytes(), "action.yml").is_empty());
    }
}

/// What is found in an action, as `LINE:COLUMN SEVERITY message`.
fn checked_action(text: &str) -> Vec<String> {
    let found = check_action(text.as_bytes(), "action.yml");
    found.iter().map(|found| format!("{} {} {}", found.place, found.severity, found.message)).collect()
}

#[test]
fn check_looks_into_actions() {
    let text = r#"name: x
autor: me
icon: pen
inputs:
  heap: {descripton: d, default: "${{ github.ref }}"}
  other: {default: "${{ secrets.KEY }}", colour: red}
outputs:
  out: {value: "${{ steps.mak.outputs.x }}"}
  bare: {description: nothing}
runs:
  using: composite
  main: index.js
  steps:
    - id: make
      run: echo ${{ inputs.heep }}
    - uses: ./x
      wiht: {a: b}
"#;
    insta::assert_snapshot!(checked_action(text).join("\n"));
    let node = checked_action("runs: {using: node20, mian: a.js}");
    assert!(node.iter().all(|line| line.starts_with("1:23 error")), "{node:?}");
    assert!(node.iter().any(|line| line.contains("did you mean 'main'?")), "{node:?}");
    let whole = "name: x\ndescription: d\nauthor: me\nbranding: {icon: pen}\ninputs:\n  a: {type: choice, options: [x], \
                 deprecationMessage: no}\nruns:\n  using: docker\n  image: Dockerfile\n  args: ['${{ inputs.a }}']\n  env: {A: b}\n  \
                 entrypoint: /x\n  pre-entrypoint: /y\n  post-entrypoint: /z\n  post-if: always()\n";
    assert_eq!(checked_action(whole), [""; 0]);
}

#[test]
fn calls_are_compared_with_what_is_called() {
    let called = "on:\n  workflow_call:\n    inputs:\n      count: {type: number, required: true}\n      flag: {type: boolean}\n    \
                  secrets: {KEY: {required: true}}\n    outputs:\n      made: {value: '${{ jobs.j.outputs.o }}'}\njobs:\n  j:\n    \
                  runs-on: x\n    outputs: {o: '1'}\n    steps: [{run: echo}]\n";
    let action = "inputs: {name: {required: true}, plain: {}}\nruns: {using: composite, steps: []}\n";
    let read = |path: &str| match path {
        ".gitea/workflows/called.yaml" => Some(called.as_bytes().to_vec()),
        ".gitea/workflows/push.yaml" => {
            Some(b"on: push\njobs: {j: {runs-on: x, steps: [{run: echo}]}}".to_vec())
        }
        "act/action.yml" => Some(action.as_bytes().to_vec()),
        _ => None,
    };
    let check = |text: &str| -> Vec<String> {
        let around = sower::workflow::Around { served: None, read: Some(&read) };
        let found = sower::workflow::check_workflow_in(text.as_bytes(), "w.yaml", around);
        found.iter().map(|found| format!("{} {} {}", found.place, found.severity, found.message)).collect()
    };
    let text = "on: push
jobs:
  good:
    uses: ./.gitea/workflows/called.yaml
    with: {COUNT: 3, flag: '${{ github.ref == 1 }}'}
    secrets: {key: '${{ secrets.A }}'}
  inherits:
    uses: ./.gitea/workflows/called.yaml
    with: {count: '4'}
    secrets: inherit
  bad:
    uses: ./.gitea/workflows/called.yaml
    with: {count: many, flga: true}
    secrets: {KYE: x}
  none:
    uses: ./.gitea/workflows/called.yaml
  push:
    uses: ./.gitea/workflows/push.yaml
  later:
    uses: ./.gitea/workflows/not-there.yaml
    with: {whatever: 1}
  outside:
    uses: ./../called.yaml
  last:
    needs: [good, later]
    runs-on: x
    steps:
      - run: echo ${{ needs.good.outputs.made }} ${{ needs.good.outputs.maed }} ${{ needs.later.outputs.x }}
      - uses: ./act
        with: {nmae: x, plain: y}
      - uses: ./not-there
        with: {z: z}
";
    insta::assert_snapshot!(check(text).join("\n"));
}

#[test]
fn workflows_that_call_one_another_in_a_circle_are_found() {
    let calls = |names: &[&str]| {
        let jobs = names.iter().enumerate().map(|(at, name)| format!("  j{at}: {{uses: ./{name}}}\n"));
        Some(format!("on: workflow_call\njobs:\n{}", jobs.collect::<String>()).into_bytes())
    };
    let read = |path: &str| match path {
        "one.yaml" => calls(&["end.yaml", "two.yaml"]),
        "two.yaml" => calls(&["end.yaml", "elsewhere.yaml", "one.yaml"]),
        "itself.yaml" => calls(&["itself.yaml"]),
        "end.yaml" => Some(b"on: workflow_call\njobs: {j: {runs-on: x, steps: [{run: echo}]}}".to_vec()),
        "twice.yaml" => calls(&["end.yaml", "end.yaml"]),
        _ => None,
    };
    let text = "on: push
jobs:
  circle: {uses: ./one.yaml}
  itself: {uses: ./itself.yaml}
  end: {uses: ./end.yaml}
  twice: {uses: ./twice.yaml}
";
    let around = sower::workflow::Around { served: None, read: Some(&read) };
    let found = sower::workflow::check_workflow_in(text.as_bytes(), "w.yaml", around);
    let found: Vec<String> =
        found.iter().map(|found| format!("{} {} {}", found.place, found.severity, found.message)).collect();
    insta::assert_snapshot!(found.join("\n"));
}

fn soup() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "${{",
        "}}",
        "github",
        "env",
        ".",
        "*",
        "[",
        "]",
        "(",
        ")",
        ",",
        "'",
        "''",
        "!",
        "==",
        "!=",
        "<=",
        ">",
        "&&",
        "||",
        "0x",
        "1e9",
        "-",
        "+",
        "NaN",
        "null",
        "true",
        "format",
        "fromJSON",
        "toJSON",
        "join",
        "case",
        "contains",
        "success",
        "hashFiles",
        "{0}",
        "{",
        "}",
        " ",
        "\n",
        "é",
        "😀",
        "\\",
        "\"",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

fn yaml_soup() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "on",
        "jobs",
        "steps",
        "run",
        "uses",
        "if",
        "needs",
        "env",
        "matrix",
        "strategy",
        "include",
        "with",
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "\n      ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "|",
        ">-",
        "'",
        "\"",
        "#",
        "!!str ",
        "!x ",
        "?",
        "~",
        "1.5",
        "true",
        "${{ ",
        " }}",
        "github.ref",
        "\t",
        "---\n",
        "é",
        "\r\n",
        "%",
        "@",
        "`",
    ]);
    prop::collection::vec(words, 0..80).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_expression_panics(text in prop_oneof![soup(), ".{0,200}"]) {
        let contexts = Contexts::new(r#"{"github": {"a": [1, {"b": "x"}]}}"#);
        if let Ok(expression) = Expression::parse(&text) {
            let _ = expression.evaluate(&contexts);
        }
        if let Ok(template) = Template::parse(&text, Place::START) {
            let _ = template.render(&contexts);
            let _ = template.value(&contexts);
        }
        if let Ok(condition) = Condition::parse(&text, Place::START) {
            let _ = condition.holds(&contexts);
        }
    }

    #[test]
    fn no_document_panics(text in prop_oneof![yaml_soup(), ".{0,200}"], bytes in any::<Vec<u8>>()) {
        let _ = yaml::parse(&bytes);
        let _ = yaml::parse(&text);
        for found in check_workflow(text.as_bytes(), "w").into_iter().chain(check_action(text.as_bytes(), "a")) {
            prop_assert!(found.message.chars().count() <= 600);
            let _ = sower::workflow::snippet(&found, &text);
        }
    }

    #[test]
    fn no_workflow_panics(tail in yaml_soup()) {
        let text = format!("on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: {tail}\n");
        if let Ok((workflow, _)) = parse_workflow(&text, "w") {
            let contexts = Contexts::new("{}");
            for job in workflow.jobs.values() {
                let _ = job.runs_on.labels(&contexts);
                let _ = job.env.render(&contexts);
            }
        }
        let _ = check_workflow(text.as_bytes(), "w");
        let _ = parse_action(format!("runs:\n  using: {tail}"), "a");
    }
}
