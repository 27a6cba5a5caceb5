//! What a chart would create, for hosts without a cluster.
//!
//! The rendered manifests hold Secrets, so they are neither kept nor printed: only what kind of objects there are,
//! under which names, with which images.

use serde::Serialize;

use super::manifest::{self, RenderedObject};
use super::process::{self, Captured};
use super::{Error, Helm, Request};

/// The most that is read of a rendered chart, in bytes.
pub(super) const MANIFEST_LIMIT: usize = 64 << 20;

/// A rendered chart.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Rendered {
    /// The objects in the order in which helm would create them.
    pub objects: Vec<RenderedObject>,
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
    Ok(Rendered { objects: manifest::objects(&stdout) })
}
