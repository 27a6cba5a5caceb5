//! Text with `${{ }}` inside, and conditions.

use std::sync::Arc;

use super::expression::{Expression, ExpressionError, MEMORY_LIMIT, Scope, Status, Value};
use crate::yaml::{Kind, Node, Place, Style};

const OPEN: &str = "${{";
const CLOSE: &str = "}}";

/// Why a text could not be read or computed, and where in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct EvaluationError {
    /// Where in the workflow file.
    pub place: Place,
    /// What is wrong.
    pub message: String,
}

impl EvaluationError {
    /// An error at a place of the workflow file.
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }
}

/// An expression and where its text begins in the file.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) place: Place,
    pub(super) expression: Expression,
    text: Arc<str>,
    /// How far lines after the first are indented in the file.
    indent: usize,
    /// Where its lines are in the file, if they were folded into one.
    folds: Option<Arc<[(usize, Place)]>>,
}

impl Placed {
    fn parse(text: &str, place: Place, indent: usize) -> Result<Self, EvaluationError> {
        Self::parsed(Expression::parse(text), text, place, indent)
    }

    fn condition(text: &str, place: Place, indent: usize) -> Result<Self, EvaluationError> {
        Self::parsed(Expression::parse_condition(text), text, place, indent)
    }

    fn parsed(
        parsed: Result<Expression, ExpressionError>,
        text: &str,
        place: Place,
        indent: usize,
    ) -> Result<Self, EvaluationError> {
        match parsed {
            Ok(expression) => Ok(Self { place, expression, text: text.into(), indent, folds: None }),
            Err(error) => Err(located(&error, text, place, indent)),
        }
    }

    fn evaluate(&self, scope: &dyn Scope) -> Result<Value, EvaluationError> {
        self.expression.evaluate(scope).map_err(|error| {
            EvaluationError::new(
                error.position.map_or(self.place, |position| self.at(position)),
                error.message,
            )
        })
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// The place in the file of a position in the expression (in characters from 1).
    pub(super) fn at(&self, position: usize) -> Place {
        match &self.folds {
            Some(folds) => unfold(folds, &self.text, position),
            None => advance(self.place, &self.text, position, self.indent),
        }
    }
}

fn located(error: &ExpressionError, text: &str, place: Place, indent: usize) -> EvaluationError {
    let place = error.position.map_or(place, |position| advance(place, text, position, indent));
    EvaluationError::new(place, &error.message)
}

/// The place of the character at `position` (from 1) of a text whose lines were folded into one.
fn unfold(folds: &[(usize, Place)], text: &str, position: usize) -> Place {
    let mut place = folds.first().map_or(Place::START, |(_, place)| *place);
    let mut seen = 0;
    let mut lines = folds.iter().peekable();
    for (at, character) in text.chars().enumerate() {
        let blank = character.is_whitespace();
        if !blank && let Some((_, begin)) = lines.next_if(|(count, _)| *count == seen) {
            place = *begin;
        }
        if at + 1 >= position {
            break;
        }
        seen += usize::from(!blank);
        place.column += 1;
    }
    place
}

/// The place of the character at `position` (from 1) of a text that begins at `place`.
fn advance(place: Place, text: &str, position: usize, indent: usize) -> Place {
    text.chars().take(position.saturating_sub(1)).fold(place, |place, character| {
        if character == '\n' {
            Place::new(place.line + 1, indent + 1)
        } else {
            Place::new(place.line, place.column + 1)
        }
    })
}

/// How the expressions of a text are read.
type Parse = fn(&str, Place, usize) -> Result<Placed, EvaluationError>;

/// A scalar of a workflow: a literal, or text with expressions inside. Clones share it.
#[derive(Debug, Clone)]
pub struct Template {
    /// Where the scalar begins.
    pub place: Place,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Arc<str>,
    /// The value of a literal.
    value: Value,
    /// Empty for a literal.
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Expression(Placed),
}

impl Template {
    /// Reads a text that may hold `${{ }}`.
    ///
    /// # Errors
    /// An expression that cannot be read, or is not closed, with its place.
    pub fn parse(text: &str, place: Place) -> Result<Self, EvaluationError> {
        let locate = |offset: usize| advance(place, text, text[..offset].chars().count() + 1, 0);
        Self::read(text, place, 0, Placed::parse, locate)
    }

    /// A text without anything in it.
    pub(super) fn nothing(place: Place) -> Self {
        let source: Arc<str> = "".into();
        Self {
            place,
            inner: Arc::new(Inner { value: Value::from(source.clone()), source, parts: Vec::new() }),
        }
    }

    /// Reads a scalar of a YAML document; its numbers and booleans keep their type.
    ///
    /// # Errors
    /// As [`Template::parse`], and a node that is no scalar.
    pub fn from_node(node: &Node) -> Result<Self, EvaluationError> {
        Self::of_node(node, Placed::parse)
    }

    fn of_node(node: &Node, parse: Parse) -> Result<Self, EvaluationError> {
        let (value, source) = match &node.kind {
            Kind::Null => (Value::Null, "".into()),
            Kind::Bool(value) => (Value::Bool(*value), value.to_string().into()),
            Kind::Number { value, text } => (Value::Number(*value), text.as_str().into()),
            Kind::String(text) => {
                let mut places = node.expressions.iter().flatten().copied();
                let indent = if let Style::Block { indent } = node.style { indent } else { 0 };
                return Self::read(text, node.place, indent, parse, |_| places.next().unwrap_or(node.place));
            }
            Kind::Sequence(_) | Kind::Mapping(_) => {
                let message = format!("this must be text, a number or a boolean, not {}", node.kind_name());
                return Err(EvaluationError::new(node.place, message));
            }
        };
        Ok(Self { place: node.place, inner: Arc::new(Inner { source, value, parts: Vec::new() }) })
    }

    /// `locate` is asked for the place of each `${{`, in order, by its offset in the text.
    fn read(
        text: &str,
        place: Place,
        indent: usize,
        parse: Parse,
        mut locate: impl FnMut(usize) -> Place,
    ) -> Result<Self, EvaluationError> {
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some(found) = text[at..].find(OPEN) {
            let open = at + found;
            let inside = open + OPEN.len();
            let opening = locate(open);
            let Some(length) = closing(&text[inside..]) else {
                return Err(EvaluationError::new(
                    opening,
                    "the expression after '${{' is not closed by '}}'",
                ));
            };
            if open > at {
                parts.push(Part::Text(text[at..open].to_owned()));
            }
            let place = Place::new(opening.line, opening.column + OPEN.len());
            let placed = parse(&text[inside..inside + length], place, indent)?;
            parts.push(Part::Expression(placed));
            // A `${{` within the expression's strings has a place of its own.
            for (inner, _) in text[inside..inside + length].match_indices(OPEN) {
                locate(inside + inner);
            }
            at = inside + length + CLOSE.len();
        }
        if !parts.is_empty() && at < text.len() {
            parts.push(Part::Text(text[at..].to_owned()));
        }
        let source: Arc<str> = text.into();
        let value = if parts.is_empty() { Value::String(source.clone()) } else { Value::Null };
        Ok(Self { place, inner: Arc::new(Inner { source, value, parts }) })
    }

    /// A value without expressions in it (a `${{` in the text is text).
    pub fn literal(value: impl Into<Value>, place: Place) -> Self {
        let value = value.into();
        Self { place, inner: Arc::new(Inner { source: value.text().into(), value, parts: Vec::new() }) }
    }

    /// The text as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// True if there is no expression in it.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.inner.parts.is_empty()
    }

    /// True if it is one expression and nothing else.
    #[must_use]
    pub fn is_sole_expression(&self) -> bool {
        matches!(&self.inner.parts[..], [Part::Expression(_)])
    }

    /// The value of a literal.
    pub(super) fn literal_value(&self) -> Option<&Value> {
        self.is_literal().then_some(&self.inner.value)
    }

    /// The expressions in it.
    pub(super) fn expressions(&self) -> impl Iterator<Item = &Placed> {
        self.inner.parts.iter().filter_map(|part| match part {
            Part::Expression(placed) => Some(placed),
            Part::Text(_) => None,
        })
    }

    /// The text with every expression replaced by the text of its value. A literal is given as written.
    ///
    /// # Errors
    /// An expression that cannot be computed, with its place; a text that would take too much memory.
    pub fn render(&self, scope: &dyn Scope) -> Result<String, EvaluationError> {
        if self.is_literal() {
            return Ok(self.inner.source.to_string());
        }
        let mut out = String::new();
        for part in &self.inner.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expression(placed) => {
                    out.push_str(&placed.evaluate(scope)?.text());
                    if out.len() > self.inner.source.len() + MEMORY_LIMIT {
                        let message = "The maximum allowed memory size was exceeded";
                        return Err(EvaluationError::new(placed.place, message));
                    }
                }
            }
        }
        Ok(out)
    }

    /// The value: a sole expression and a YAML literal keep their type, anything else is the rendered text.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn value(&self, scope: &dyn Scope) -> Result<Value, EvaluationError> {
        match &self.inner.parts[..] {
            [] => Ok(self.inner.value.clone()),
            [Part::Expression(placed)] => placed.evaluate(scope),
            _ => self.render(scope).map(Value::from),
        }
    }
}

/// How far it is to the `}}` that ends an expression; one within a string does not.
fn closing(text: &str) -> Option<usize> {
    let mut quoted = false;
    let bytes = text.as_bytes();
    (0..bytes.len()).find(|at| {
        if bytes[*at] == b'\'' {
            quoted = !quoted;
        }
        !quoted && bytes[*at..].starts_with(CLOSE.as_bytes())
    })
}

/// An `if`: whether a job or step runs.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Where the condition begins.
    pub place: Place,
    source: String,
    test: Test,
    /// Whether `success() &&` stands before it, because it has no status function itself.
    needs_success: bool,
}

#[derive(Debug, Clone)]
enum Test {
    /// Nothing more is asked.
    True,
    Expression(Placed),
    /// Text around `${{ }}`: text that is not empty, so it is true.
    Text(Template),
}

impl Condition {
    /// Reads the text of an `if`, with or without `${{ }}`.
    ///
    /// As on GitHub, text around `${{ }}` (a line break at the end, too) makes a condition that is always
    /// true; see [`Condition::is_text`].
    ///
    /// # Errors
    /// An expression that cannot be read, with its place.
    pub fn parse(text: &str, place: Place) -> Result<Self, EvaluationError> {
        Self::read(text, place, (place, 0), || {
            let locate = |offset: usize| advance(place, text, text[..offset].chars().count() + 1, 0);
            Template::read(text, place, 0, Placed::condition, locate)
        })
    }

    /// Reads the scalar of an `if`; nothing means `success()`.
    ///
    /// # Errors
    /// As [`Condition::parse`], and a node that is no scalar.
    pub fn from_node(node: &Node) -> Result<Self, EvaluationError> {
        let Some(text) = node.scalar_text() else {
            let message = format!("a condition must be an expression, not {}", node.kind_name());
            return Err(EvaluationError::new(node.place, message));
        };
        let Place { line, column } = node.place;
        let inside = match node.style {
            Style::Plain => (node.place, 0),
            Style::Quoted => (Place::new(line, column + 1), 0),
            Style::Block { indent } => (Place::new(line + 1, indent + 1), indent),
        };
        if let Some(folds) = &node.folds
            && !text.trim().is_empty()
        {
            let test = match Expression::parse_condition(&text) {
                Ok(expression) => Placed {
                    place: node.place,
                    expression,
                    text: text.as_str().into(),
                    indent: 0,
                    folds: Some(folds.as_slice().into()),
                },
                Err(error) => {
                    let place = error.position.map_or(node.place, |at| unfold(folds, &text, at));
                    return Err(EvaluationError::new(place, error.message));
                }
            };
            let needs_success = !test.expression.uses_status_function();
            let source = text.trim().to_owned();
            return Ok(Self { place: node.place, source, test: Test::Expression(test), needs_success });
        }
        Self::read(&text, node.place, inside, || Template::of_node(node, Placed::condition))
    }

    fn read(
        text: &str,
        place: Place,
        (inside, indent): (Place, usize),
        template: impl FnOnce() -> Result<Template, EvaluationError>,
    ) -> Result<Self, EvaluationError> {
        let source = text.trim().to_owned();
        let test = if source.is_empty() {
            Test::True
        } else if text.contains(OPEN) {
            let template = template()?;
            match &template.inner.parts[..] {
                [Part::Expression(placed)] => Test::Expression(placed.clone()),
                _ => Test::Text(template),
            }
        } else {
            Test::Expression(Placed::condition(text, inside, indent)?)
        };
        let needs_success = match &test {
            Test::True => true,
            Test::Expression(placed) => !placed.expression.uses_status_function(),
            Test::Text(template) => {
                !template.expressions().any(|placed| placed.expression.uses_status_function())
            }
        };
        Ok(Self { place, source, test, needs_success })
    }

    /// What a missing `if` means: `success()`.
    #[must_use]
    pub fn success() -> Self {
        Self { place: Place::START, source: "success()".to_owned(), test: Test::True, needs_success: true }
    }

    /// `always()`, what a missing `post-if` means.
    #[must_use]
    pub fn always() -> Self {
        Self { place: Place::START, source: "always()".to_owned(), test: Test::True, needs_success: false }
    }

    /// The same condition, without the `success()` that one without a status function asks for: `pre-if`, `post-if`.
    #[must_use]
    pub fn whatever_happened(self) -> Self {
        Self { needs_success: false, ..self }
    }

    /// Whether it holds. Without a status function in it, it holds only if nothing failed before.
    ///
    /// # Errors
    /// An expression that cannot be computed, with its place.
    pub fn holds(&self, scope: &dyn Scope) -> Result<bool, EvaluationError> {
        if self.needs_success && scope.status() != Status::Success {
            return Ok(false);
        }
        match &self.test {
            Test::True => Ok(true),
            Test::Expression(placed) => Ok(placed.evaluate(scope)?.is_truthy()),
            Test::Text(template) => Ok(!template.render(scope)?.is_empty()),
        }
    }

    /// The condition as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True if text stands around its `${{ }}`, which makes it always true.
    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self.test, Test::Text(_))
    }

    /// The expressions in it.
    pub(super) fn expressions(&self) -> Vec<&Placed> {
        match &self.test {
            Test::True => Vec::new(),
            Test::Expression(placed) => vec![placed],
            Test::Text(template) => template.expressions().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::testing::Fixed;

    fn render(text: &str) -> String {
        let scope = Fixed::from_json(r#"{"env": {"A": "x", "n": 1.5, "list": [1]}}"#);
        match Template::parse(text, Place::new(3, 5)) {
            Ok(template) => template.render(&scope).unwrap_or_else(|error| error.to_string()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn renders_text_around_expressions() {
        for (text, expected) in [
            ("plain } {{ $ text", "plain } {{ $ text"),
            ("a ${{ env.A }}-${{env.n}} z", "a x-1.5 z"),
            ("${{ env.missing }}", ""),
            ("${{ '}}' }}${{ '${{' }}", "}}${{"),
            ("${{ env.list }}", "Array"),
            ("${{ }}|", "|"),
            ("x ${{ env.A", "3:7: the expression after '${{' is not closed by '}}'"),
            ("\n  ${{ nope }}", "4:7: Unrecognized named-value: 'nope'"),
            ("${{ fromJSON('x') }}", "3:9: Error parsing fromJSON: unexpected character at character 1"),
        ] {
            assert_eq!(render(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_sole_expression_and_a_literal_keep_their_type() {
        let scope = Fixed::from_json(r#"{"env": {"n": 2}}"#);
        let value =
            |text: &str| Template::parse(text, Place::START).unwrap().value(&scope).unwrap().to_json_text();
        assert_eq!(value("${{ env.n }}"), "2");
        assert_eq!(value(" ${{ env.n }}"), "\" 2\"");
        let node = crate::yaml::parse("[1.10, yes, true, ~]").unwrap();
        let literals: Vec<_> =
            node.as_sequence().unwrap().iter().map(|item| Template::from_node(item).unwrap()).collect();
        let values: Vec<_> =
            literals.iter().map(|literal| literal.value(&scope).unwrap().to_json_text()).collect();
        let texts: Vec<_> = literals.iter().map(|literal| literal.render(&scope).unwrap()).collect();
        assert_eq!(values, ["1.1", "\"yes\"", "true", "null"]);
        assert_eq!(texts, ["1.10", "yes", "true", ""]);
    }

    #[test]
    fn conditions() {
        let cases = [
            ("", true, false, false),
            ("true", true, false, false),
            ("false", false, false, false),
            ("${{ true }}", true, false, false),
            ("always()", true, true, true),
            ("failure()", false, true, false),
            ("cancelled()", false, false, true),
            ("!cancelled()", true, true, false),
            ("${{ failure() || true }}", true, true, true),
            ("env.A == 'X'", true, false, false),
            ("env.missing", false, false, false),
            ("${{ false }} text", true, false, false),
            ("${{ false }}\n", true, false, false),
            ("${{ always() && false }} text", true, true, true),
        ];
        for (text, success, failure, cancelled) in cases {
            let condition = Condition::parse(text, Place::START).unwrap();
            for (status, expected) in
                [(Status::Success, success), (Status::Failure, failure), (Status::Cancelled, cancelled)]
            {
                let scope = Fixed { status, ..Fixed::from_json(r#"{"env": {"A": "x"}}"#) };
                assert_eq!(condition.holds(&scope).unwrap(), expected, "{text:?} {status:?}");
            }
        }
    }
}
