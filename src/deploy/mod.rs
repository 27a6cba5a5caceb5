//! Deployment with helm: running it, watching the rollout and saying why it failed.
//!
//! helm does what helm is for and is not imitated; the API server says, as JSON, what becomes of the pods. This room
//! knows helm and kubectl, the objects that the API has, and what those objects mean when a deployment fails.
//!
//! | Module | Holds |
//! | --- | --- |
//! | `request` | what is to be deployed, checked before any program starts |
//! | `access`, `place` | the way to the cluster: directly, through SSH, or with all programs on the far side |
//! | `kubeconfig` | a file, or a secret that is a file for the moment, or one whose server is moved |
//! | `expiry` | until when a certificate is good |
//! | `helm` | helm: found, asked for its version, called |
//! | `api`, `kubectl` | the cluster asked: directly, or by kubectl where only that knows the way |
//! | `process`, `remote` | children with bounded output and a chance to end on their own; the same over SSH |
//! | `claim` | one deployment of a release at a time on this host, and who left one unfinished |
//! | `at_work` | whether a helm works on the release right now, here or on the far side |
//! | `precheck`, `registry`, `pull`, `machines` | what is looked at before anything is changed |
//! | `manifest`, `render` | what a chart makes, needs, and changes |
//! | `objects` | the few fields of Kubernetes objects that matter here |
//! | `rollout` | the release's workloads and pods now, and what changed since the last look |
//! | `stuck` | what keeps things from moving that their states do not tell |
//! | `verdict` | whether waiting longer is of any use |
//! | `evidence` | what can still be learned about a rollout that failed |
//! | `hidden` | the values of Secrets in what others say |
//! | `diagnosis` | from evidence to one cause and what to do about it |
//! | `release` | the release's state: in words, freed of a lock |
//! | `in_use` | which images deployments from this host run: they are not to be pruned |
//! | `smoke` | the question that is asked of the application in the end |
//! | `upgrade` | one deployment from beginning to end |
//! | `doctor` | whether a deployment could be made, without making one |
//! | `report` | the outcome for people, for programs and for the job's summary |

mod access;
mod api;
mod at_work;
mod claim;
mod diagnosis;
pub mod doctor;
mod error;
mod evidence;
mod expiry;
mod helm;
mod hidden;
mod in_use;
mod kubeconfig;
mod kubectl;
mod machines;
mod manifest;
mod objects;
mod place;
mod precheck;
mod process;
mod pull;
mod registry;
mod release;
mod remote;
mod render;
mod report;
mod request;
mod rollout;
mod smoke;
mod stuck;
mod upgrade;
mod verdict;

pub use access::{Access, Ways};
pub use diagnosis::{Cause, Kind};
pub use error::Error;
pub use evidence::{ContainerEvidence, Evidence, PodEvidence};
pub use helm::{Helm, Revision};
pub use in_use::images as images_in_use;
pub use kubeconfig::{Kubeconfig, VARIABLE as KUBECONFIG_VARIABLE};
pub use manifest::RenderedObject;
pub use render::{Rendered, render};
pub use report::{write_outputs, write_summary};
pub use request::{Request, parse_timeout};
pub use rollout::{ReleasePod, Rollout, Workload};
pub use smoke::{Answered, Smoke};
pub use upgrade::{Deployed, Failed, Outcome, deploy};
