//! `strategy.matrix`: every combination that a job runs in.

use std::sync::Arc;

use super::expression::{Object, Scope, Value, loosely_equal};
use super::template::{EvaluationError, Template};
use crate::yaml::{Key, Place};

/// How many combinations a matrix may give.
pub const MAX_COMBINATIONS: usize = 256;
/// How many combinations may be looked at before `exclude`.
const MAX_PRODUCT: usize = 100_000;

/// `strategy.matrix` as written; its values may be expressions.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Where the matrix is.
    pub place: Place,
    pub(super) tree: Tree,
}

/// A part of a document whose scalars may be expressions.
#[derive(Debug, Clone)]
pub(super) enum Tree {
    Scalar(Template),
    Sequence(Vec<Tree>),
    Mapping(Vec<(Name, Tree)>),
}

/// A key of a mapping in a part of a document.
#[derive(Debug, Clone)]
pub(super) enum Name {
    Literal(String),
    /// `${{ insert }}`: the names and values of an object.
    Insert,
    Computed(Template),
}

impl Name {
    pub(super) fn read(key: &Key) -> Result<Self, EvaluationError> {
        if is_insert(&key.text) {
            Ok(Self::Insert)
        } else if key.text.contains("${{") {
            Template::parse(&key.text, key.place).map(Self::Computed)
        } else {
            Ok(Self::Literal(key.text.clone()))
        }
    }
}

/// Whether a key is GitHub's `${{ insert }}`.
pub(super) fn is_insert(key: &str) -> bool {
    let inner = key.trim().strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}"));
    inner.is_some_and(|inner| inner.trim().eq_ignore_ascii_case("insert"))
}

impl Tree {
    fn value(&self, scope: &dyn Scope) -> Result<Value, EvaluationError> {
        Ok(match self {
            Self::Scalar(template) => template.value(scope)?,
            Self::Sequence(items) => {
                let mut values = Vec::with_capacity(items.len());
                for item in items {
                    match (item, item.value(scope)?) {
                        // An item that is computed and is a list stands for its items.
                        (Self::Scalar(template), Value::Array(inner)) if template.is_sole_expression() => {
                            values.extend(inner.iter().cloned());
                        }
                        (_, value) => values.push(value),
                    }
                }
                Value::from(values)
            }
            Self::Mapping(entries) => {
                let mut object = Object::new();
                for (name, tree) in entries {
                    let value = tree.value(scope)?;
                    match (name, value) {
                        (Name::Literal(name), value) => object.insert(name.as_str(), value),
                        (Name::Computed(template), value) => object.insert(template.render(scope)?, value),
                        (Name::Insert, Value::Object(inner)) => {
                            inner.iter().for_each(|(name, value)| object.insert(name, value.clone()));
                        }
                        (Name::Insert, Value::Null) => {}
                        (Name::Insert, other) => {
                            let message =
                                format!("'${{{{ insert }}}}' takes an object, not a {}", other.kind_name());
                            return Err(EvaluationError::new(tree.place(), message));
                        }
                    }
                }
                object.into()
            }
        })
    }

    fn place(&self) -> Place {
        match self {
            Self::Scalar(template) => template.place,
            Self::Sequence(items) => items.first().map_or(Place::START, Self::place),
            Self::Mapping(entries) => entries.first().map_or(Place::START, |(_, tree)| tree.place()),
        }
    }

    pub(super) fn templates(&self) -> Vec<&Template> {
        let mut found = Vec::new();
        let mut open = vec![self];
        while let Some(tree) = open.pop() {
            match tree {
                Self::Scalar(template) => found.push(template),
                Self::Sequence(items) => open.extend(items),
                Self::Mapping(entries) => {
                    for (name, tree) in entries {
                        if let Name::Computed(template) = name {
                            found.push(template);
                        }
                        open.push(tree);
                    }
                }
            }
        }
        found
    }
}

impl Matrix {
    /// The combinations in GitHub's order: the product of the keys (last key fastest) without what `exclude`
    /// matches, each with what `include` adds to it; then what `include` could add to none. A matrix without
    /// any combination gives one empty object.
    ///
    /// # Errors
    /// A value that cannot be computed or has the wrong type, or more than [`MAX_COMBINATIONS`], with a place.
    pub fn combinations(&self, scope: &dyn Scope) -> Result<Vec<Object>, EvaluationError> {
        let fail = |message: String| EvaluationError::new(self.place, message);
        let object = match self.tree.value(scope)? {
            Value::Object(object) => object,
            Value::Null => return Ok(vec![Object::new()]),
            Value::String(text) if text.is_empty() => return Ok(vec![Object::new()]),
            other => return Err(fail(format!("a matrix must be an object, not a {}", other.kind_name()))),
        };
        let mut vectors: Vec<(&str, Vec<Value>)> = Vec::new();
        let mut include = Vec::new();
        let mut exclude = Vec::new();
        for (name, value) in object.iter() {
            match name {
                "include" => include = filters(value).map_err(|kind| fail(wrong_filter(name, kind)))?,
                "exclude" => exclude = filters(value).map_err(|kind| fail(wrong_filter(name, kind)))?,
                _ => match value {
                    Value::Array(items) if items.is_empty() => {
                        return Err(fail(format!("the matrix key '{name}' has no values")));
                    }
                    Value::Array(items) => vectors.push((name, items.to_vec())),
                    // One value instead of a list of one, as the server may send it.
                    value => vectors.push((name, vec![value.clone()])),
                },
            }
        }
        for filter in &exclude {
            if let Some((name, _)) = filter.iter().find(|(name, _)| !has(&vectors, name)) {
                return Err(fail(format!("'exclude' names '{name}', which is no key of the matrix")));
            }
        }
        let product = vectors.iter().try_fold(1_usize, |size, (_, values)| size.checked_mul(values.len()));
        let product = product.filter(|size| *size <= MAX_PRODUCT).ok_or_else(|| fail(too_many()))?;
        let mut found = Vec::new();
        let mut used = vec![false; include.len()];
        for number in 0..if vectors.is_empty() { 0 } else { product } {
            let combination = combination(&vectors, product, number);
            if exclude.iter().any(|filter| matches(filter, &combination)) {
                continue;
            }
            let mut whole = combination.clone();
            for (addition, used) in include.iter().zip(&mut used) {
                let (filter, extra): (Vec<_>, Vec<_>) =
                    addition.iter().partition(|(name, _)| has(&vectors, name));
                let filter: Object = filter.into_iter().map(|(name, value)| (name, value.clone())).collect();
                if matches(&filter, &combination) {
                    *used = true;
                    for (name, value) in extra {
                        whole.insert(name, value.clone());
                    }
                }
            }
            found.push(whole);
        }
        found.extend(
            include.iter().zip(used).filter(|(_, used)| !used).map(|(addition, _)| Object::clone(addition)),
        );
        match found.len() {
            0 => Ok(vec![Object::new()]),
            1..=MAX_COMBINATIONS => Ok(found),
            _ => Err(fail(too_many())),
        }
    }
}

fn too_many() -> String {
    format!("the matrix has more than {MAX_COMBINATIONS} combinations")
}

fn wrong_filter(name: &str, kind: &str) -> String {
    format!("'{name}' of a matrix must be a list of mappings, not {kind}")
}

/// The mappings of an `include` or `exclude`; an empty text stands for none.
fn filters(value: &Value) -> Result<Vec<Arc<Object>>, &'static str> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::Object(object) => Ok(vec![object.clone()]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::Object(object) => Ok(object.clone()),
                other => Err(other.kind_name()),
            })
            .collect(),
        other => Err(other.kind_name()),
    }
}

fn has(vectors: &[(&str, Vec<Value>)], name: &str) -> bool {
    vectors.iter().any(|(key, _)| key.eq_ignore_ascii_case(name))
}

fn combination(vectors: &[(&str, Vec<Value>)], product: usize, number: usize) -> Object {
    let mut block = product;
    vectors
        .iter()
        .map(|(name, values)| {
            block /= values.len();
            (*name, values[(number / block) % values.len()].clone())
        })
        .collect()
}

/// Whether every leaf of the filter equals what the combination has there.
fn matches(filter: &Object, combination: &Object) -> bool {
    fn agrees(filter: &Value, value: Option<&Value>) -> bool {
        match (filter, value) {
            (Value::Object(filter), Some(Value::Object(value))) => {
                filter.iter().all(|(name, filter)| agrees(filter, value.get(name)))
            }
            (Value::Array(filter), Some(Value::Array(value))) => {
                filter.iter().enumerate().all(|(at, filter)| agrees(filter, value.get(at)))
            }
            (Value::Object(filter), _) => filter.is_empty(),
            (Value::Array(filter), _) => filter.is_empty(),
            (filter, value) => loosely_equal(value.unwrap_or(&Value::Null), filter),
        }
    }
    filter.iter().all(|(name, filter)| agrees(filter, combination.get(name)))
}

#[cfg(test)]
mod tests {
    use crate::workflow::parse_workflow;
    use crate::workflow::testing::Fixed;

    fn combinations(matrix: &str) -> String {
        let scope = Fixed::from_json(r#"{"needs": {"a": {"outputs": {"list": "[1, 2]"}}}}"#);
        let text = format!(
            "on: push\njobs:\n  a:\n    runs-on: x\n    strategy:\n      matrix: {matrix}\n    steps: []\n"
        );
        let workflow = match parse_workflow(&text, "w.yaml") {
            Ok((workflow, _)) => workflow,
            Err(found) => return found[0].to_string(),
        };
        let matrix = workflow.jobs["a"].strategy.clone().unwrap().matrix.unwrap();
        match matrix.combinations(&scope) {
            Ok(found) => {
                let texts: Vec<_> =
                    found.into_iter().map(|object| super::Value::from(object).to_json_text()).collect();
                texts.join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn product_and_exclude() {
        assert_eq!(
            combinations("{os: [a, b], v: [1, 2], exclude: [{os: B, v: '1'}]}"),
            r#"{"os":"a","v":1} {"os":"a","v":2} {"os":"b","v":2}"#
        );
        assert_eq!(
            combinations("{c: [{x: {y: 1}}, {x: {y: 2}}], exclude: [{c: {x: {y: 2}}}]}"),
            r#"{"c":{"x":{"y":1}}}"#
        );
        assert_eq!(combinations("{}"), "{}");
        assert_eq!(combinations("{v: ['${{ 1 }}', x]}"), r#"{"v":1} {"v":"x"}"#);
        assert_eq!(combinations("{v: '${{ fromJSON(needs.a.outputs.list) }}'}"), r#"{"v":1} {"v":2}"#);
        assert_eq!(
            combinations("{v: ['${{ fromJSON(needs.a.outputs.list) }}', 3]}"),
            r#"{"v":1} {"v":2} {"v":3}"#
        );
        assert_eq!(
            combinations(
                "{'${{ format(''{0}'', ''k'') }}': [{'${{ insert }}': {a: 1}, '${{insert}}': {b: 2}}]}"
            ),
            r#"{"k":{"a":1,"b":2}}"#
        );
        assert_eq!(combinations("\"${{ fromJSON('{\\\"v\\\":[3]}') }}\""), r#"{"v":3}"#);
    }

    #[test]
    fn include_as_in_the_documentation() {
        assert_eq!(
            combinations(concat!(
                "{fruit: [apple, pear], animal: [cat, dog], include: [{color: green}, ",
                "{color: pink, animal: cat}, {fruit: apple, shape: circle}, {fruit: banana}, ",
                "{fruit: banana, animal: cat}]}"
            )),
            [
                r#"{"fruit":"apple","animal":"cat","color":"pink","shape":"circle"}"#,
                r#"{"fruit":"apple","animal":"dog","color":"green","shape":"circle"}"#,
                r#"{"fruit":"pear","animal":"cat","color":"pink"}"#,
                r#"{"fruit":"pear","animal":"dog","color":"green"}"#,
                r#"{"fruit":"banana"}"#,
                r#"{"fruit":"banana","animal":"cat"}"#,
            ]
            .join(" ")
        );
        assert_eq!(combinations("{include: [{a: 1}, {b: 2}]}"), r#"{"a":1} {"b":2}"#);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let values = "[1,2,3,4,5,6,7,8,9]";
        assert!(combinations(&format!("{{a: {values}, b: {values}, c: {values}}}")).contains("256"));
        let huge =
            format!("{{a: {values}, b: {values}, c: {values}, d: {values}, e: {values}, f: {values}}}");
        assert!(combinations(&huge).contains("256"));
        assert!(combinations("{a: \"${{ fromJSON('[]') }}\"}").contains("'a' has no values"));
        assert!(combinations("{a: [1], exclude: [{b: 1}]}").contains("'b'"));
        assert!(combinations("{a: [1], include: 3}").contains("'include'"));
    }
}
