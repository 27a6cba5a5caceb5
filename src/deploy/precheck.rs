//! What is looked at before anything is changed: the release's history, the namespace as it is, whether the chart
//! renders, and whether its pods could start.
//!
//! All of it at the same time, because each answer costs a program start. What cannot be asked is no reason to stop:
//! helm and the cluster have the last word.

use std::thread;
use std::time::Duration;

use super::diagnosis::{Cause, Kind};
use super::helm::{Helm, Revision};
use super::hidden::Hidden;
use super::kubectl::{Keys, Kubectl};
use super::manifest::{Need, RenderedObject};
use super::objects::Object;
use super::process::{self, Captured};
use super::render::MANIFEST_LIMIT;
use super::{Error, Request, machines, manifest, pull, registry};

/// How long registries may take to answer, all together.
const REGISTRY: Duration = Duration::from_secs(4);

/// What was found.
pub(super) struct Before {
    pub(super) history: Result<Vec<Revision>, Error>,
    /// The workloads and pods of the namespace.
    pub(super) objects: Vec<Object>,
    /// The names of the hooks' Jobs.
    pub(super) hooks: Vec<String>,
    /// Whether some hooks run before the rest is changed.
    pub(super) has_early_hooks: bool,
    /// The values of the chart's Secrets.
    pub(super) hidden: Hidden,
    /// Why the pods could not start.
    pub(super) problem: Option<Cause>,
    /// What could not be looked at.
    pub(super) notes: Vec<String>,
}

pub(super) fn look(helm: &Helm, kubectl: &Kubectl, request: &Request) -> Before {
    thread::scope(|scope| {
        let history = scope.spawn(|| helm.history(request, request.history_max.max(10)));
        let rendered = scope.spawn(|| {
            let objects = template(helm, request);
            // A chart that brings all that it needs costs no question.
            let asks = request.checks
                && objects
                    .as_ref()
                    .is_some_and(|objects| !missing(objects, &Keys::new(), &request.namespace).is_empty());
            let keys = asks.then(|| scope.spawn(|| kubectl.keys()));
            let images = match &objects {
                Some(objects) if request.checks => images(scope, objects, kubectl, request),
                _ => registry::Looked::default(),
            };
            let keys = keys.and_then(|keys| keys.join().ok());
            (objects, images, keys)
        });
        let objects = kubectl.workloads().unwrap_or_default();
        let (rendered, images, keys) = rendered.join().unwrap_or_default();
        let rendered = rendered.unwrap_or_default();
        let history = history.join().unwrap_or_else(|_| Ok(Vec::new()));
        let mut notes = images.notes;
        let mut problem = images.problem;
        match keys {
            Some(Ok(keys)) => {
                let missing = missing(&rendered, &keys, &request.namespace);
                if !missing.is_empty() {
                    problem = Some(explain(&missing, &keys, kubectl, request));
                }
            }
            Some(Err(error)) if history.is_ok() => {
                notes.push(format!("whether the pods' Secrets are there could not be asked: {error}"));
            }
            _ => {}
        }
        let is_early =
            |hook: &String| matches!(hook.as_str(), "pre-install" | "pre-upgrade" | "pre-rollback");
        let mut hidden = Hidden::default();
        hidden.add(rendered.iter().flat_map(|object| object.values.0.iter().cloned()));
        Before {
            history,
            hidden,
            objects,
            hooks: rendered
                .iter()
                .filter(|object| object.kind == "Job" && !object.hooks.is_empty())
                .map(|object| object.name.clone())
                .collect(),
            has_early_hooks: rendered.iter().any(|object| object.hooks.iter().any(is_early)),
            problem,
            notes,
        }
    })
}

/// Whether the images are there, for the cluster's machines, and whether its nodes will get at them.
fn images<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    objects: &[RenderedObject],
    kubectl: &'scope Kubectl,
    request: &'scope Request,
) -> registry::Looked {
    if registry::images(objects).next().is_none() {
        return registry::Looked::default();
    }
    let remembered = machines::remembered(request);
    let asks = remembered.is_empty();
    let nodes = asks.then(|| scope.spawn(|| machines::ask(kubectl, request)));
    let names: Vec<String> = registry::images(objects).map(str::to_owned).collect();
    let pull = scope.spawn(move || pull::look(names.iter().map(String::as_str), &request.access));
    let mut looked = registry::look(objects, &request.registry, REGISTRY);
    let nodes = nodes.map_or(remembered, |nodes| nodes.join().unwrap_or_default());
    let mut other = registry::other_machine(&looked.machines, &nodes);
    // There may be others by now.
    if other.is_some() && !asks {
        other = registry::other_machine(&looked.machines, &machines::ask(kubectl, request));
    }
    looked.problem = looked.problem.or(other);
    looked.notes.extend(pull.join().unwrap_or_default());
    looked
}

/// The chart without a cluster. A chart that wants to see one does not render so; helm renders it again in any case,
/// before it changes anything.
fn template(helm: &Helm, request: &Request) -> Option<Vec<RenderedObject>> {
    let Captured { success, stdout, .. } =
        process::capture_at(helm.place(), &mut helm.template(request), process::text(MANIFEST_LIMIT)).ok()?;
    success.then(|| manifest::objects(&stdout))
}

/// What the pods need and neither the namespace nor the chart has.
fn missing(objects: &[RenderedObject], there: &Keys, namespace: &str) -> Vec<Need> {
    let own = |need: &Need| {
        objects.iter().any(|object| {
            object.kind == need.kind
                && object.name == need.name
                && need.key.as_ref().is_none_or(|key| object.keys.contains(key))
        })
    };
    let there = |need: &Need| {
        let keys = there.get(&(need.kind.to_owned(), need.name.clone()));
        keys.is_some_and(|keys| need.key.as_ref().is_none_or(|key| keys.contains(key)))
    };
    let here = |object: &&RenderedObject| object.namespace.as_deref().is_none_or(|name| name == namespace);
    // What tests need is not needed by the deployment.
    let is_test = |object: &&RenderedObject| object.hooks.iter().any(|hook| hook.starts_with("test"));
    let needs =
        objects.iter().filter(here).filter(|object| !is_test(object)).flat_map(|object| &object.needs);
    let mut missing: Vec<Need> = needs.filter(|need| !own(need) && !there(need)).cloned().collect();
    missing.sort();
    missing.dedup_by(|a, b| (a.kind, &a.name, &a.key) == (b.kind, &b.name, &b.key));
    missing
}

fn explain(missing: &[Need], there: &Keys, kubectl: &Kubectl, request: &Request) -> Cause {
    let namespace = &request.namespace;
    if !request.create_namespace && kubectl.has_namespace(namespace) == Some(false) {
        return Cause::new(
            Kind::Configuration,
            format!("namespace {namespace} is not there"),
            "create it, or deploy with --create-namespace",
        );
    }
    let words: Vec<String> = missing
        .iter()
        .map(|need| match &need.key {
            Some(key) => format!("key {key} of {} {} ({})", need.kind, need.name, need.who),
            None => format!("{} {} ({})", need.kind, need.name, need.who),
        })
        .collect();
    let mut names: Vec<(&str, &str)> = missing.iter().map(|need| (need.kind, need.name.as_str())).collect();
    names.dedup();
    let commands: Vec<String> = names
        .iter()
        .map(|(kind, name)| {
            let keys = missing.iter().filter(|need| need.kind == *kind && need.name == *name);
            let keys: Vec<&str> = keys.map(|need| need.key.as_deref().unwrap_or("KEY")).collect();
            let secret = *kind == "Secret";
            // What is there already is added to.
            if there.contains_key(&((*kind).to_owned(), (*name).to_owned())) {
                let (kind, field) = if secret { ("secret", "stringData") } else { ("configmap", "data") };
                let keys: Vec<String> = keys.iter().map(|key| format!("\"{key}\": \"…\"")).collect();
                let patch = format!("{{\"{field}\": {{{}}}}}", keys.join(", "));
                return format!("kubectl --namespace {namespace} patch {kind} {name} --patch '{patch}'");
            }
            let keys: Vec<String> = keys.iter().map(|key| format!(" --from-literal={key}=…")).collect();
            let kind = if secret { "secret generic" } else { "configmap" };
            format!("kubectl --namespace {namespace} create {kind} {name}{}", keys.concat())
        })
        .collect();
    Cause {
        paste: Some(commands.join("\n")),
        ..Cause::new(
            Kind::Configuration,
            format!("what the pods need to start is not in namespace {namespace}: {}", words.join(", ")),
            "create it, as below; if something creates it during the deployment, use --no-checks",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_found_and_what_the_chart_brings_is_not() {
        let objects = manifest::objects(
            "kind: Secret\nmetadata: {name: own}\nstringData: {a: b}\n---\nkind: Deployment\nmetadata: {name: app}\n\
             spec: {template: {spec: {containers: [{name: c, envFrom: [{secretRef: {name: own}}, {secretRef: {name: gone}}], \
             env: [{name: A, valueFrom: {secretKeyRef: {name: own, key: a}}}, {name: B, valueFrom: {secretKeyRef: {name: own, key: b}}}, \
             {name: C, valueFrom: {secretKeyRef: {name: keys, key: DATABASE_URL}}}, \
             {name: D, valueFrom: {secretKeyRef: {name: keys, key: IHP_SESSION_SECRET}}}]}]}}}\n",
        );
        let keys = std::iter::once("DATABASE_URL".to_owned()).collect();
        let there = Keys::from([(("Secret".to_owned(), "keys".to_owned()), keys)]);
        let found: Vec<_> = missing(&objects, &there, "web")
            .iter()
            .map(|need| format!("{} {}", need.name, need.key.as_deref().unwrap_or("-")))
            .collect();
        assert_eq!(found, ["gone -", "keys IHP_SESSION_SECRET", "own b"]);
    }
}
