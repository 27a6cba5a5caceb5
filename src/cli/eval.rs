//! `sower eval`: Evaluate an expression of the workflow language.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::{Failure, Outcome};
use crate::workflow::{
    Expression, ExpressionError, ExpressionErrorKind, Object, Scope, Status, Value, hash_files,
};

/// How much memory the values that one expression computes may take, as on GitHub's servers.
const MEMORY: usize = 1 << 20;
/// The longest line that `--batch` reads, in bytes.
const MAX_LINE: usize = 16 << 20;
/// How much memory a context may take, in bytes.
const MAX_CONTEXT: usize = 64 << 20;

/// Evaluate an expression of the workflow language and print its value as JSON.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The expression, with or without `${{ }}`.
    #[arg(value_name = "EXPR", allow_hyphen_values = true, required_unless_present = "batch")]
    expression: Option<String>,
    /// A JSON object: the contexts by name. Other names are errors.
    #[arg(long, value_name = "FILE.json", conflicts_with = "batch")]
    context: Option<PathBuf>,
    /// Read requests from standard input, one JSON object a line: {"expr": "…", "context": {…}}.
    #[arg(long, conflicts_with = "expression")]
    batch: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower eval \"format('{0}-{1}', 'ghc', 0x1f)\"
  sower eval '${{ github.ref_name }}' --context contexts.json
  echo '{\"expr\": \"a.*.b\", \"context\": {\"a\": [{\"b\": 1}]}}' | sower eval --batch";

pub(super) fn run(args: &Args) -> Outcome {
    if args.batch {
        batch(io::stdin().lock(), &mut io::stdout().lock())
            .map_err(|error| Failure::wrong_question(format!("eval --batch: {error}")))?;
        return Ok(ExitCode::SUCCESS);
    }
    let contexts = match &args.context {
        Some(file) => read_contexts(file)?,
        None => Object::new(),
    };
    let text = args.expression.as_deref().unwrap_or_default();
    let value = evaluate(text, contexts).map_err(|error| {
        Failure::wrong_question(match error.position {
            Some(position) => format!("{} (at character {position})", error.message),
            None => error.message,
        })
    })?;
    let mut line = one_line(value.to_json_text());
    line.push('\n');
    match io::stdout().write_all(line.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::wrong_question(format!("cannot write the value: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn read_contexts(file: &Path) -> Result<Object, Failure> {
    let fail = |reason: String| Failure::wrong_question(format!("context file {}: {reason}", file.display()));
    let bytes = fs::read(file).map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| fail("not UTF-8".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match Value::from_json_text(text, MAX_CONTEXT) {
        Ok(Value::Object(object)) => Ok(Arc::unwrap_or_clone(object)),
        Ok(other) => Err(fail(format!("holds {}, not an object of contexts", other.kind_name()))),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// Evaluates an expression that may be wrapped in `${{ }}`; positions are in `text`.
fn evaluate(text: &str, contexts: Object) -> Result<Value, ExpressionError> {
    let trimmed = text.trim();
    let inner = trimmed.strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}"));
    let (expression, before) = match inner {
        Some(inner) => {
            let blanks = text.len() - text.trim_start().len();
            (inner, text[..blanks].chars().count() + 3)
        }
        None => (text, 0),
    };
    Expression::parse_for(expression, &contexts)
        .and_then(|parsed| parsed.evaluate_within(&Contexts { values: contexts }, MEMORY))
        .map_err(|error| ExpressionError { position: error.position.map(|at| at + before), ..error })
}

/// The contexts that were given, and the current folder.
struct Contexts {
    values: Object,
}

impl Scope for Contexts {
    fn named(&self, name: &str) -> Option<Value> {
        self.values.get(name).cloned()
    }

    fn status(&self) -> Status {
        let Some(Value::Object(job)) = self.values.get("job") else { return Status::Success };
        match job.get("status").map(|status| status.to_text().to_ascii_lowercase()).as_deref() {
            Some("failure") => Status::Failure,
            Some("cancelled") => Status::Cancelled,
            _ => Status::Success,
        }
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        let root = std::env::current_dir()
            .map_err(|error| format!("hashFiles cannot tell the current folder: {error}"))?;
        hash_files(&root, patterns)
    }
}

/// Answers every request of `input` with one line, in order.
fn batch(input: impl Read, output: &mut dyn Write) -> io::Result<()> {
    let mut input = BufReader::with_capacity(64 << 10, input);
    let mut output = io::BufWriter::with_capacity(64 << 10, output);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut input).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            return output.flush();
        }
        let mut answer = if line.len() > MAX_LINE && line.last() != Some(&b'\n') {
            skip_line(&mut input)?;
            failure("input", &format!("the line is longer than {MAX_LINE} bytes"), None)
        } else if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        } else {
            answer(&line)
        };
        answer = one_line(answer);
        answer.push('\n');
        // Whoever waits for this answer before asking again gets it at once.
        let waiting = input.buffer().is_empty();
        let written =
            output.write_all(answer.as_bytes()).and_then(|()| if waiting { output.flush() } else { Ok(()) });
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
    }
}

/// JSON without the characters that some programs take for the end of a line; they stand in strings only.
fn one_line(json: String) -> String {
    if !json.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
        return json;
    }
    json.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

fn skip_line(input: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let (length, found) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        input.consume(length);
        if found || length == 0 {
            return Ok(());
        }
    }
}

/// The answer to one request, as one line of JSON.
fn answer(line: &[u8]) -> String {
    let (text, contexts) = match request(line) {
        Ok(request) => request,
        Err(message) => return failure("input", &message, None),
    };
    match evaluate(&text, contexts) {
        Ok(value) => {
            format!("{{\"kind\":\"{}\",\"value\":{}}}", value.kind_name(), value.to_json_text())
        }
        Err(error) => {
            let kind = match error.kind {
                ExpressionErrorKind::Syntax => "syntax",
                ExpressionErrorKind::Evaluation => "evaluation",
            };
            failure(kind, &error.message, error.position)
        }
    }
}

fn request(line: &[u8]) -> Result<(String, Object), String> {
    let text = std::str::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())?;
    let value = Value::from_json_text(text.strip_prefix('\u{feff}').unwrap_or(text), MAX_CONTEXT)
        .map_err(|error| format!("the line is no JSON that can be used: {error}"))?;
    let Value::Object(request) = value else {
        return Err("the line is no JSON object".to_owned());
    };
    let Some(Value::String(expression)) = request.get("expr") else {
        return Err("the request has no \"expr\" that is a string".to_owned());
    };
    let contexts = match request.get("context") {
        None | Some(Value::Null) => Object::new(),
        Some(Value::Object(contexts)) => (**contexts).clone(),
        Some(_) => return Err("\"context\" is not an object".to_owned()),
    };
    Ok((expression.to_string(), contexts))
}

fn failure(kind: &str, message: &str, position: Option<usize>) -> String {
    let message = Value::from(message).to_json_text();
    let position = position.map(|at| format!(",\"position\":{at}")).unwrap_or_default();
    format!("{{\"error\":{{\"kind\":\"{kind}\",\"message\":{message}{position}}}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(requests: &str) -> String {
        let mut out = Vec::new();
        batch(requests.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn batch_answers_each_request_in_order() {
        insta::assert_snapshot!(ask(concat!(
            r#"{"expr": "1 == 1"}"#, "\n",
            "\n  \n",
            r#"{"expr": "a.B", "context": {"A": {"b": [1, null, 1e400]}}}"#, "\n",
            "nonsense\n",
            r#"{"expr": ""}"#, "\n",
            r#"{"expr": "${{ 1 +* }}"}"#, "\n",
            r#"{"expr": "format('{0}')"}"#, "\n",
            r#"{"expr": "false && b"}"#, "\n",
            r#"{"expr": 1}"#, "\n",
            r#"{"expr": "failure() && 'é\n' == 'É\n'", "context": {"job": {"status": "failure"}}}"#,
        )), @r#"
        {"kind":"boolean","value":true}
        {"kind":"array","value":[1,null,"Infinity"]}
        {"error":{"kind":"input","message":"the line is no JSON that can be used: unknown word at character 1"}}
        {"kind":"null","value":null}
        {"error":{"kind":"syntax","message":"Unexpected symbol: '+*'","position":7}}
        {"error":{"kind":"evaluation","message":"The following format string references more arguments than were supplied: {0}","position":1}}
        {"error":{"kind":"syntax","message":"Unrecognized named-value: 'b'","position":10}}
        {"error":{"kind":"input","message":"the request has no \"expr\" that is a string"}}
        {"kind":"boolean","value":true}
        "#);
    }

    #[test]
    fn an_answer_is_one_line_to_every_program() {
        assert_eq!(
            ask("{\"expr\": \"'a\u{2028}b\u{85}'\"}"),
            "{\"kind\":\"string\",\"value\":\"a\\u2028b\\u0085\"}\n"
        );
    }

    #[test]
    fn memory_is_limited() {
        let doubled =
            (0..30).fold("'x'".to_owned(), |inner, _| format!("format('{{0}}{{0}}{{0}}', {inner})"));
        let answer = ask(&format!("{{\"expr\": \"{doubled}\"}}\n"));
        assert!(answer.contains("memory") && answer.contains("evaluation"), "{answer}");
    }

    #[test]
    fn long_lines_are_input_errors_and_do_not_end_the_batch() {
        let answers = ask(&format!("{}\n{{\"expr\": \"2\"}}\n", " x".repeat(MAX_LINE / 2 + 1)));
        let lines: Vec<_> = answers.lines().collect();
        assert!(lines[0].contains("\"input\"") && lines[1] == r#"{"kind":"number","value":2}"#, "{answers}");
    }
}
