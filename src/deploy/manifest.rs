//! What a chart makes: its objects, what their pods refer to, and how two revisions differ.
//!
//! Manifests hold Secrets: of those only names and keys are kept, never a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use crate::yaml::{self, Node};

/// The most differences that are listed.
const DIFFERENCES: usize = 40;

/// One object of a chart.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct RenderedObject {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The images that its containers name.
    pub images: Vec<String>,
    /// Of which hooks it is one, such as `pre-upgrade`; empty for what is part of the release itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<String>,
    /// Another namespace than the release's.
    #[serde(skip)]
    pub(super) namespace: Option<String>,
    /// Secrets and ConfigMaps that its pods cannot do without.
    #[serde(skip)]
    pub(super) needs: Vec<Need>,
    /// The keys of a Secret or ConfigMap.
    #[serde(skip)]
    pub(super) keys: BTreeSet<String>,
    /// Whether its pods have a container without a readiness probe.
    #[serde(skip)]
    pub(super) unprobed: Vec<String>,
    /// The values of a Secret, to be hidden.
    #[serde(skip)]
    pub(super) values: Values,
    /// Paths and values, for comparing.
    #[serde(skip)]
    fields: BTreeMap<String, String>,
}

/// Values that are not to be seen.
#[derive(Default, Clone, PartialEq, Eq)]
pub(super) struct Values(pub(super) Vec<String>);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Values(…)")
    }
}

/// A Secret or ConfigMap, or a key in one, that a container needs to start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    /// `Secret` or `ConfigMap`.
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) key: Option<String>,
    /// Who needs it, such as `container app of deployment/app`.
    pub(super) who: String,
}

/// Reads a stream of manifests. A document that is no YAML is passed over: helm or the cluster will complain about it.
pub(super) fn objects(manifests: &str) -> Vec<RenderedObject> {
    read(manifests, false)
}

/// The same for [`differences`]: with all fields.
pub(super) fn with_fields(manifests: &str) -> Vec<RenderedObject> {
    read(manifests, true)
}

fn read(manifests: &str, fields: bool) -> Vec<RenderedObject> {
    documents(manifests)
        .filter_map(|document| yaml::parse(document).ok())
        .flat_map(|node| match node.get("items").and_then(Node::as_sequence) {
            Some(items) if text(&node, "kind").is_some_and(|kind| kind.ends_with("List")) => items.to_vec(),
            _ => vec![node],
        })
        .filter_map(|node| object(&node, fields))
        .collect()
}

/// The documents between lines that begin with `---`: in block scalars such a line would be indented.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = if text.starts_with("---") { 3 } else { 0 };
        let cut = text[end..].find("\n---").map(|at| end + at + 1);
        let (document, left) = match cut {
            Some(cut) => (&text[..cut], Some(&text[cut..])),
            None => (text, None),
        };
        rest = left;
        Some(document)
    })
}

fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.get(key)?.as_str()
}

fn object(node: &Node, with_fields: bool) -> Option<RenderedObject> {
    let kind = text(node, "kind")?.to_owned();
    let metadata = node.get("metadata");
    let name =
        metadata.and_then(|metadata| metadata.get("name")).and_then(Node::scalar_text).unwrap_or_default();
    let hooks =
        metadata.and_then(|metadata| metadata.get("annotations")).and_then(|all| text(all, "helm.sh/hook"));
    let mut object = RenderedObject {
        hooks: hooks
            .map(|hooks| hooks.split(',').map(|hook| hook.trim().to_owned()).collect())
            .unwrap_or_default(),
        namespace: metadata.and_then(|metadata| text(metadata, "namespace")).map(str::to_owned),
        kind,
        name,
        ..RenderedObject::default()
    };
    if matches!(object.kind.as_str(), "Secret" | "ConfigMap") {
        for list in ["data", "stringData", "binaryData"] {
            let entries = node.get(list).and_then(Node::as_mapping).unwrap_or_default();
            object.keys.extend(entries.iter().map(|(key, _)| key.text.clone()));
            if object.kind == "Secret" {
                let values = entries.iter().filter_map(|(_, value)| value.scalar_text());
                // Wrong ones may be quoted as they stand.
                object.values.0.extend(values.flat_map(|value| [decoded(&value), Some(value)]).flatten());
            }
        }
    }
    if let Some(spec) = pod_spec(&object.kind, node) {
        read_pod(spec, &mut object);
    }
    let hidden = matches!(object.kind.as_str(), "Secret" | "ConfigMap");
    if !with_fields {
        return Some(object);
    }
    flatten(node, String::new(), hidden, &mut object.fields);
    Some(object)
}

/// The text that a value of `data` stands for.
pub(super) fn decoded(value: &str) -> Option<String> {
    String::from_utf8(BASE64.decode(value.trim()).ok()?).ok()
}

fn pod_spec<'a>(kind: &str, node: &'a Node) -> Option<&'a Node> {
    let spec = node.get("spec")?;
    match kind {
        "Pod" => Some(spec),
        "CronJob" => spec.get("jobTemplate")?.get("spec")?.get("template")?.get("spec"),
        _ => spec.get("template")?.get("spec"),
    }
}

fn items<'a>(node: &'a Node, key: &str) -> &'a [Node] {
    node.get(key).and_then(Node::as_sequence).unwrap_or_default()
}

fn is_optional(node: &Node) -> bool {
    matches!(node.get("optional").map(|node| &node.kind), Some(yaml::Kind::Bool(true)))
}

fn read_pod(spec: &Node, object: &mut RenderedObject) {
    let owner = format!("{}/{}", object.kind.to_lowercase(), object.name);
    let mut need = |who: &str, kind, reference: &Node, name_key: &str, key: Option<String>| {
        let Some(name) = reference.get(name_key).and_then(Node::scalar_text).filter(|name| !name.is_empty())
        else {
            return;
        };
        if !is_optional(reference) {
            object.needs.push(Need { kind, name, key, who: format!("{who} of {owner}") });
        }
    };
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            let name = text(container, "name").unwrap_or_default();
            if let Some(image) = container.get("image").and_then(Node::scalar_text) {
                object.images.push(image);
            }
            if list == "containers" && container.get("readinessProbe").is_none_or(Node::is_null) {
                object.unprobed.push(name.to_owned());
            }
            let who = format!("container {name}");
            for variable in items(container, "env") {
                let Some(from) = variable.get("valueFrom") else { continue };
                for (field, kind) in [("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")] {
                    if let Some(reference) = from.get(field) {
                        need(&who, kind, reference, "name", reference.get("key").and_then(Node::scalar_text));
                    }
                }
            }
            for source in items(container, "envFrom") {
                for (field, kind) in [("secretRef", "Secret"), ("configMapRef", "ConfigMap")] {
                    if let Some(reference) = source.get(field) {
                        need(&who, kind, reference, "name", None);
                    }
                }
            }
        }
    }
    for volume in items(spec, "volumes") {
        let who = format!("volume {}", text(volume, "name").unwrap_or_default());
        for (field, kind, name_key) in
            [("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")]
        {
            let Some(reference) = volume.get(field) else { continue };
            if items(reference, "items").is_empty() {
                need(&who, kind, reference, name_key, None);
            }
            for item in items(reference, "items") {
                need(&who, kind, reference, name_key, item.get("key").and_then(Node::scalar_text));
            }
        }
    }
}

/// Every scalar with its path. Where a value may be a secret only that there is one, and which one it is not.
fn flatten(node: &Node, path: String, hidden: bool, into: &mut BTreeMap<String, String>) {
    match &node.kind {
        yaml::Kind::Mapping(entries) => {
            for (key, value) in entries {
                let inner = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                let secret = ["password", "secret", "token", "credential", "passphrase", "privatekey"]
                    .iter()
                    .any(|word| key.text.to_lowercase().replace(['-', '_'], "").contains(word));
                // The value of an environment variable.
                let environment = key.text == "value" && path.contains(".env[");
                let data =
                    path.is_empty() && matches!(key.text.as_str(), "data" | "stringData" | "binaryData");
                let hidden = (hidden
                    && (data
                        || path.starts_with("data")
                        || path.starts_with("stringData")
                        || path.starts_with("binaryData")))
                    || secret
                    || environment;
                flatten_into(value, inner, hidden, into);
            }
        }
        _ => flatten_into(node, path, hidden, into),
    }
}

fn flatten_into(node: &Node, path: String, hidden: bool, into: &mut BTreeMap<String, String>) {
    match &node.kind {
        yaml::Kind::Mapping(_) => flatten(node, path, hidden, into),
        yaml::Kind::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                // By name where there is one, so that an insertion is one difference.
                let name = text(item, "name").map_or_else(|| index.to_string(), str::to_owned);
                flatten_into(item, format!("{path}[{name}]"), hidden, into);
            }
        }
        _ => {
            let value = node.scalar_text().unwrap_or_default();
            let value = if hidden { format!("\u{0}{value}") } else { value };
            into.insert(path, value);
        }
    }
}

/// How the objects differ, one line each; what may be a secret without its values.
pub(super) fn differences(before: &[RenderedObject], after: &[RenderedObject]) -> Vec<String> {
    let by_name = |objects: &[RenderedObject]| {
        let named = objects.iter().map(|object| ((object.kind.clone(), object.name.clone()), object.clone()));
        named.collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (by_name(before), by_name(after));
    let mut lines = Vec::new();
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for name in names {
        let title = format!("{}/{}", name.0.to_lowercase(), name.1);
        match (before.get(name), after.get(name)) {
            (Some(_), None) => lines.push(format!("{title}: removed")),
            (None, Some(_)) => lines.push(format!("{title}: added")),
            (Some(old), Some(new)) => fields(&title, &old.fields, &new.fields, &mut lines),
            (None, None) => {}
        }
    }
    let more = lines.len().saturating_sub(DIFFERENCES);
    if more > 0 {
        lines.truncate(DIFFERENCES);
        lines.push(format!("… and {more} more"));
    }
    lines
}

fn fields(
    title: &str,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    lines: &mut Vec<String>,
) {
    let paths: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for path in paths {
        let (was, is) = (old.get(path), new.get(path));
        if was == is {
            continue;
        }
        let secret = [was, is].iter().flatten().any(|value| value.starts_with('\u{0}'));
        let shown =
            |value: Option<&String>| value.map_or_else(|| "nothing".to_owned(), |value| shortened(value));
        let line = if secret {
            format!("{title}: {path} has changed (values are not shown)")
        } else {
            format!("{title}: {path}: {} -> {}", shown(was), shown(is))
        };
        lines.push(line);
    }
}

fn shortened(value: &str) -> String {
    let line = value.replace('\n', "\u{23ce}");
    if line.chars().count() <= 100 {
        return line;
    }
    format!("{}…", line.chars().take(100).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHART: &str = r#"---
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
kind: Job
metadata:
  name: migrate
  annotations: {"helm.sh/hook": "pre-upgrade, post-install"}
spec:
  template:
    spec:
      initContainers:
      - name: first
        image: one:1
      containers:
      - name: second
        image: "two:2"
        env:
        - {name: image, value: no}
        - name: SECRET
          valueFrom: {secretKeyRef: {name: app, key: IHP_SESSION_SECRET}}
        - name: MAYBE
          valueFrom: {secretKeyRef: {name: other, key: x, optional: true}}
        envFrom:
        - configMapRef: {name: settings}
      volumes:
      - {name: v, secret: {secretName: tls, items: [{key: tls.crt, path: c}]}}
"#;

    #[test]
    fn objects_are_read_with_images_hooks_and_needs() {
        let objects = objects(CHART);
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0].keys.iter().collect::<Vec<_>>(), ["image", "kind"]);
        let job = &objects[1];
        assert_eq!((job.kind.as_str(), job.name.as_str()), ("Job", "migrate"));
        assert_eq!(job.images, ["one:1", "two:2"]);
        assert_eq!(job.hooks, ["pre-upgrade", "post-install"]);
        let needs: Vec<_> =
            job.needs.iter().map(|need| (need.kind, need.name.as_str(), need.key.as_deref())).collect();
        assert_eq!(
            needs,
            [
                ("Secret", "app", Some("IHP_SESSION_SECRET")),
                ("ConfigMap", "settings", None),
                ("Secret", "tls", Some("tls.crt")),
            ]
        );
        assert_eq!(job.needs[0].who, "container second of job/migrate");
        assert_eq!(job.unprobed, ["second"]);
    }

    #[test]
    fn differences_show_no_secrets() {
        let after = CHART
            .replace("two:2", "two:3")
            .replace("value: no", "value: hunter2")
            .replace("image: hidden", "image: hunter3");
        let lines = differences(&with_fields(CHART), &with_fields(&after));
        assert_eq!(
            lines,
            [
                "job/migrate: spec.template.spec.containers[second].env[image].value has changed (values are not shown)",
                "job/migrate: spec.template.spec.containers[second].image: two:2 -> two:3",
                "secret/keys: stringData.image has changed (values are not shown)",
            ]
        );
        let removed = differences(&objects(CHART), &objects("kind: X\nmetadata: {name: y}\n"));
        assert_eq!(removed, ["job/migrate: removed", "secret/keys: removed", "x/y: added"]);
    }

    #[test]
    fn odd_manifests_are_no_danger() {
        assert_eq!(objects(""), []);
        assert_eq!(objects(&"[".repeat(100_000)), []);
        assert_eq!(objects("a: ["), []);
        assert_eq!(objects("kind: X\n---\n- broken: [\n---\nkind: Y\n").len(), 2);
        assert_eq!(objects("kind: List\nitems: [{kind: A, metadata: {name: b}}]\n")[0].kind, "A");
    }
}
