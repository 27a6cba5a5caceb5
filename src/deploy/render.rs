//! What a chart would create, for hosts without a cluster.
//!
//! The rendered manifests hold Secrets, so they are neither kept nor printed: only what kind of objects there are,
//! under which names, with which images.

use saphyr_parser::{Event, Parser, ScanError};
use serde::Serialize;

use super::process::{self, Captured};
use super::{Error, Helm, Request};

/// The most that is read of a rendered chart, in bytes.
const MANIFEST_LIMIT: usize = 64 << 20;
/// How deep a manifest may be nested.
const DEEPEST: usize = 200;

/// A rendered chart.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Rendered {
    /// The objects in the order in which helm would create them.
    pub objects: Vec<RenderedObject>,
}

/// One object of a rendered chart.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct RenderedObject {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The images that its containers name.
    pub images: Vec<String>,
}

/// Renders the chart with `helm template`. No cluster is asked and nothing is changed.
///
/// # Errors
/// [`Error::Helm`] if the chart does not render, with what helm says.
pub fn render(request: &Request, helm: &Helm) -> Result<Rendered, Error> {
    request.check()?;
    let Captured { success, stdout, stderr } =
        process::capture(&mut helm.template(request), process::text(MANIFEST_LIMIT))?;
    if !success {
        let message = stderr.trim().trim_start_matches("Error: ").to_owned();
        return Err(Error::Helm { what: "template", message });
    }
    let objects = objects(&stdout).map_err(|error| Error::Helm {
        what: "template",
        message: format!("its output is not YAML: {error}"),
    })?;
    Ok(Rendered { objects })
}

/// Where the reader is: in a mapping, below one of its keys or before one, or in a sequence.
enum Level {
    Mapping(Option<String>),
    Sequence,
}

/// Lists the objects of a stream of manifests, in one pass and without a tree.
fn objects(manifests: &str) -> Result<Vec<RenderedObject>, ScanError> {
    let mut objects = Vec::new();
    let mut object = RenderedObject::default();
    let mut levels: Vec<Level> = Vec::new();
    for event in Parser::new_from_str(manifests) {
        let (event, span) = event?;
        match event {
            Event::DocumentStart(_) => object = RenderedObject::default(),
            // A document of comments alone has no kind.
            Event::DocumentEnd if !object.kind.is_empty() => objects.push(std::mem::take(&mut object)),
            Event::MappingStart(..) | Event::SequenceStart(..) if levels.len() == DEEPEST => {
                return Err(ScanError::new_str(span.start, "nested too deeply"));
            }
            Event::MappingStart(..) => levels.push(Level::Mapping(None)),
            Event::SequenceStart(..) => levels.push(Level::Sequence),
            Event::MappingEnd | Event::SequenceEnd => {
                levels.pop();
                value_ended(&mut levels);
            }
            Event::Scalar(text, ..) => {
                if let Some(Level::Mapping(key @ None)) = levels.last_mut() {
                    *key = Some(text.into_owned());
                    continue;
                }
                note(&mut object, &levels, &text);
                value_ended(&mut levels);
            }
            Event::Alias(_) => value_ended(&mut levels),
            _ => {}
        }
    }
    Ok(objects)
}

/// After the value of a key comes another key. A key that is a collection is read past.
fn value_ended(levels: &mut [Level]) {
    if let Some(Level::Mapping(key)) = levels.last_mut() {
        *key = match key {
            Some(_) => None,
            None => Some(String::new()),
        };
    }
}

fn note(object: &mut RenderedObject, levels: &[Level], text: &str) {
    let path: Vec<&str> = levels
        .iter()
        .map(|level| match level {
            Level::Mapping(key) => key.as_deref().unwrap_or_default(),
            Level::Sequence => "[]",
        })
        .collect();
    match path.as_slice() {
        ["kind"] => text.clone_into(&mut object.kind),
        ["metadata", "name"] => text.clone_into(&mut object.name),
        ["spec", .., "containers" | "initContainers", "[]", "image"] => object.images.push(text.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, images: &[&str]) -> RenderedObject {
        let images = images.iter().map(|image| (*image).to_owned()).collect();
        RenderedObject { kind: kind.to_owned(), name: name.to_owned(), images }
    }

    #[test]
    fn objects_are_listed_with_their_images() {
        let manifests = r#"---
# Source: app/templates/empty.yaml
---
apiVersion: v1
kind: Secret
metadata: {name: keys, labels: {kind: no, name: no}}
stringData:
  kind: "not a kind"
  image: hidden
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: nightly
spec:
  jobTemplate:
    spec:
      template:
        metadata: {name: inner}
        spec:
          initContainers:
          - name: first
            image: one:1
          containers:
          - {name: second, image: "two:2", env: [{name: image, value: no}]}
"#;
        assert_eq!(
            objects(manifests).unwrap(),
            [object("Secret", "keys", &[]), object("CronJob", "nightly", &["one:1", "two:2"])]
        );
    }

    #[test]
    fn odd_manifests_are_no_danger() {
        assert_eq!(objects("").unwrap(), []);
        assert_eq!(objects("? {a: b}\n: c\nkind: X\n").unwrap(), [object("X", "", &[])]);
        assert!(objects(&"[".repeat(100_000)).is_err());
        assert!(objects("a: [").is_err());
    }
}
