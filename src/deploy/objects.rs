//! The few fields of Kubernetes objects that matter here, as the API has them in JSON.
//!
//! One struct for all kinds: what a kind does not have stays empty. The environment of containers, where secrets
//! may be, is not read at all.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// A list of objects.
#[derive(Debug, Default, Deserialize)]
pub(super) struct List {
    #[serde(default)]
    pub(super) items: Vec<Object>,
}

/// Any object.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Object {
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    pub(super) status: Status,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) annotations: Annotations,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) owner_references: Vec<Owner>,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
}

/// The annotations that say whose an object is.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Annotations {
    /// helm writes it on everything that a release owns (since 3.2).
    #[serde(rename = "meta.helm.sh/release-name")]
    pub(super) release: String,
    /// On a Deployment and on its ReplicaSets: the newest ReplicaSet has the Deployment's number.
    #[serde(rename = "deployment.kubernetes.io/revision")]
    pub(super) revision: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Owner {
    pub(super) uid: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) replicas: Option<u64>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) containers: Vec<Container>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) init_containers: Vec<Container>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) readiness_probe: Option<IgnoredAny>,
    pub(super) resources: Resources,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) limits: BTreeMap<String, String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) phase: String,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) conditions: Vec<Condition>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
    pub(super) ready_replicas: u64,
    pub(super) updated_replicas: u64,
    /// DaemonSets count differently.
    pub(super) desired_number_scheduled: Option<u64>,
    pub(super) number_ready: u64,
    pub(super) updated_number_scheduled: u64,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    /// The digest of the image that runs.
    #[serde(rename = "imageID")]
    pub(super) image_id: String,
    pub(super) ready: bool,
    pub(super) restart_count: u64,
    pub(super) state: State,
    pub(super) last_state: State,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) waiting: Option<Waiting>,
    pub(super) running: Option<IgnoredAny>,
    pub(super) terminated: Option<Terminated>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Terminated {
    pub(super) exit_code: i64,
    pub(super) reason: String,
    pub(super) message: String,
}

/// A list of Secrets or ConfigMaps.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct HeldList<T> {
    #[serde(default = "Vec::new")]
    pub(super) items: Vec<Held<T>>,
}

/// A Secret or ConfigMap. It may hold secrets: no `Debug`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "T: Deserialize<'de>")]
pub(super) struct Held<T> {
    pub(super) metadata: Metadata,
    #[serde(default = "BTreeMap::new")]
    pub(super) data: BTreeMap<String, T>,
    #[serde(default = "BTreeMap::new")]
    pub(super) binary_data: BTreeMap<String, IgnoredAny>,
}

/// A list of nodes.
#[derive(Debug, Default, Deserialize)]
pub(super) struct NodeList {
    #[serde(default)]
    pub(super) items: Vec<Node>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct NodeStatus {
    pub(super) node_info: NodeInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeInfo {
    /// As Go names it.
    pub(super) architecture: String,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Change {
    pub(super) object: Event,
}

/// A list of events.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventList {
    #[serde(default)]
    pub(super) items: Vec<Event>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Event {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) count: Option<u64>,
    pub(super) involved_object: Involved,
    /// The scheduler's events have an `eventTime` instead, and no count.
    pub(super) last_timestamp: Option<String>,
    pub(super) event_time: Option<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Involved {
    pub(super) kind: String,
    pub(super) name: String,
}

impl Event {
    /// When it was last seen. Times of day in UTC, so that text order is time order.
    pub(super) fn when(&self) -> &str {
        self.last_timestamp.as_deref().or(self.event_time.as_deref()).unwrap_or_default()
    }
}

impl Object {
    /// Whether this object was made by the one with that uid.
    pub(super) fn belongs_to(&self, uid: &str) -> bool {
        !uid.is_empty() && self.metadata.owner_references.iter().any(|owner| owner.uid == uid)
    }

    /// The condition of that type.
    pub(super) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind)
    }
}

/// The API leaves empty fields out, but some programs write `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(value).map(Option::unwrap_or_default)
}
