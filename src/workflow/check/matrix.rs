//! `strategy.matrix`: what it may hold, and what of it is known before it is computed.

use std::collections::HashSet;

use super::Problems;
use crate::workflow::matrix::{Matrix, Name, Tree};
use crate::workflow::parse::did_you_mean;
use crate::yaml::Place;

pub(super) fn check(matrix: &Matrix, problems: &mut Problems) {
    let Tree::Mapping(entries) = &matrix.tree else { return };
    for (name, tree) in entries {
        let Name::Literal(name) = name else { continue };
        // Nothing, a word, a number: a server wants a list, or an expression that gives one.
        if let Tree::Scalar(template) = tree
            && template.is_literal()
        {
            let message =
                format!("'{name}' of a matrix must be a list or an expression, not '{}'", template.source());
            problems.error(template.place, "matrix", message);
        }
    }
    exclude(entries, problems);
}

/// Every key that `exclude` names is one of the matrix, as far as all are known.
fn exclude(entries: &[(Name, Tree)], problems: &mut Problems) {
    let mut known = Vec::new();
    let mut filters: &[Tree] = &[];
    for (name, tree) in entries {
        match (name, tree) {
            (Name::Literal(name), Tree::Sequence(items)) if name == "exclude" => filters = items,
            (Name::Literal(name), _) if name == "exclude" || name == "include" => {}
            (Name::Literal(name), _) => known.push(name.as_str()),
            _ => return,
        }
    }
    for filter in filters {
        let Tree::Mapping(entries) = filter else { continue };
        for (name, tree) in entries {
            let Name::Literal(name) = name else { continue };
            if !known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                let hint = did_you_mean(name, known.iter().copied());
                let message = format!("'exclude' names '{name}', which is no key of the matrix{hint}");
                problems.error(place(tree), "matrix", message);
            }
        }
    }
}

fn place(tree: &Tree) -> Place {
    match tree {
        Tree::Scalar(template) => template.place,
        Tree::Sequence(items) => items.first().map_or(Place::START, place),
        Tree::Mapping(entries) => entries.first().map_or(Place::START, |(_, tree)| place(tree)),
    }
}

/// The properties that `matrix` has, in lower case; `None` if they are known only when it is computed.
pub(super) fn properties(matrix: &Matrix) -> Option<HashSet<String>> {
    let Tree::Mapping(entries) = &matrix.tree else { return None };
    let mut known = HashSet::new();
    for (name, tree) in entries {
        let Name::Literal(name) = name else { return None };
        match (name.as_str(), tree) {
            ("exclude", _) => {}
            ("include", Tree::Sequence(items)) => {
                for item in items {
                    let Tree::Mapping(entries) = item else { return None };
                    for (name, _) in entries {
                        let Name::Literal(name) = name else { return None };
                        known.insert(name.to_lowercase());
                    }
                }
            }
            ("include", _) => return None,
            _ => {
                known.insert(name.to_lowercase());
            }
        }
    }
    Some(known)
}
