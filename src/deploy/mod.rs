//! Deployment with helm: running it, watching the rollout and saying why it failed.
//!
//! helm does what helm is for and is not imitated; kubectl says, as JSON, what becomes of the pods. This room
//! knows both programs, the objects that they print, and what those objects mean when a deployment fails.
//!
//! | Module | Holds |
//! | --- | --- |
//! | `request` | what is to be deployed, checked before any program starts |
//! | `kubeconfig` | the way to the cluster: a file, or a secret that is a file for the moment |
//! | `helm`, `kubectl` | the two programs: found, asked for their version, called |
//! | `process` | children with bounded output and a chance to end on their own |
//! | `objects` | the few fields of Kubernetes objects that matter here |
//! | `rollout` | the release's workloads and pods now, and what changed since the last look |
//! | `evidence` | what can still be learned about a rollout that failed |
//! | `diagnosis` | from evidence to one cause and what to do about it |
//! | `render` | what a chart would create, for hosts without a cluster |
//! | `upgrade` | one deployment from beginning to end |
//! | `report` | the outcome for people, for programs and for the job's summary |

mod diagnosis;
mod error;
mod evidence;
mod helm;
mod kubeconfig;
mod kubectl;
mod objects;
mod process;
mod render;
mod report;
mod request;
mod rollout;
mod upgrade;

pub use diagnosis::{Cause, Kind};
pub use error::Error;
pub use evidence::{ContainerEvidence, Evidence, PodEvidence};
pub use helm::{Helm, Revision};
pub use kubeconfig::{Kubeconfig, VARIABLE as KUBECONFIG_VARIABLE};
pub use render::{Rendered, RenderedObject, render};
pub use report::{write_outputs, write_summary};
pub use request::{Access, Request, parse_timeout};
pub use rollout::{ReleasePod, Rollout, Workload};
pub use upgrade::{Deployed, Failed, Outcome, deploy};
