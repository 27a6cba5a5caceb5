//! Whether the images of a chart are in their registries, and for which kinds of machines.
//!
//! Only a registry that says so itself is believed: one that does not answer here may well answer the cluster.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::diagnosis::{Cause, Kind};
use super::manifest::RenderedObject;
use crate::image::registry::{Access, Credentials, Options, Registry};
use crate::image::{Destination, Digest};

/// The most images that are asked for.
const MOST: usize = 8;
/// How long a registry may take to answer when a deployment has failed: the cause is waited for.
const LIMIT: Duration = Duration::from_secs(2);

/// What registries said.
#[derive(Default)]
pub(super) struct Looked {
    /// An image that is not there.
    pub(super) problem: Option<Cause>,
    /// What could not be asked.
    pub(super) notes: Vec<String>,
    /// The images that are there, with the machines that they are for (as Go names them: `amd64`); none where that
    /// is not said.
    pub(super) machines: Vec<(String, Vec<String>)>,
}

/// One image.
enum Answer {
    There(Vec<String>),
    Missing,
    Unknown(String),
}

/// Asks for all images of the objects, for at most `limit` in all.
pub(super) fn look(objects: &[RenderedObject], options: &Options, limit: Duration) -> Looked {
    let mut looked = Looked::default();
    let began = Instant::now();
    for image in images(objects) {
        match ask(image, options, limit.saturating_sub(began.elapsed())) {
            None => {}
            Some(Answer::There(machines)) => looked.machines.push((image.to_owned(), machines)),
            Some(Answer::Missing) => {
                looked.problem = Some(missing(image));
                break;
            }
            Some(Answer::Unknown(why)) => {
                looked.notes.push(format!("whether {image} is in its registry could not be asked: {why}"));
            }
        }
    }
    looked
}

/// The images of the objects, each once, and not too many.
pub(super) fn images(objects: &[RenderedObject]) -> impl Iterator<Item = &str> {
    let mut images: Vec<&str> =
        objects.iter().flat_map(|object| object.images.iter().map(String::as_str)).collect();
    images.sort_unstable();
    images.dedup();
    images.into_iter().take(MOST)
}

/// An image that no node of the cluster can run. `nodes`: their machines, as Kubernetes names them.
pub(super) fn other_machine(machines: &[(String, Vec<String>)], nodes: &[String]) -> Option<Cause> {
    let runs = |machine: &String| nodes.contains(machine);
    let (image, machines) = machines
        .iter()
        .find(|(_, machines)| !nodes.is_empty() && !machines.is_empty() && !machines.iter().any(runs))?;
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes.dedup();
    Some(Cause::new(
        Kind::Architecture,
        format!(
            "the image {image} is for {}, and the nodes of the cluster are {}",
            machines.join(", "),
            nodes.join(", ")
        ),
        "build the image for the nodes' architecture and push it under this tag",
    ))
}

fn missing(image: &str) -> Cause {
    Cause::new(
        Kind::ImageMissing,
        format!("the image {image} is not in the registry"),
        "push it before the deployment (`sower image push`), or correct the tag that the chart is given",
    )
}

/// Whether the registry itself says that it does not have the image.
pub(super) fn says_missing(image: &str, options: &Options) -> bool {
    matches!(ask(image, options, LIMIT), Some(Answer::Missing))
}

/// `None` for images that name no registry of their own, and for digests.
fn ask(image: &str, options: &Options, limit: Duration) -> Option<Answer> {
    let destination = Destination::parse(image).ok()?;
    let tag = destination.tag.as_deref().unwrap_or("latest");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let credentials = Credentials::find(&destination.repository, None, None).unwrap_or_default();
    // There may be a second try.
    let limit = if options.plain_http { limit } else { limit / 2 };
    let once = async |options: &Options, credentials| {
        let asked = async {
            let repository = &destination.repository;
            let registry =
                Registry::open(repository, Access::Pull, credentials, options, Box::new(|_| {})).await?;
            let Some((manifest, ..)) = registry.read_manifest(tag).await? else { return Ok(None) };
            // That it is there is known by now; for what it is may stay unknown.
            Ok::<_, crate::image::Error>(Some(machines(&registry, &manifest).await.unwrap_or_default()))
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(Some(machines))) => Answer::There(machines),
            Ok(Ok(None)) => Answer::Missing,
            Ok(Err(error)) => Answer::Unknown(error.to_string()),
            Err(_) => Answer::Unknown("it does not answer in time".to_owned()),
        }
    };
    Some(runtime.block_on(async {
        match once(options, credentials).await {
            // Small registries speak plain HTTP. Nothing secret is sent that way unless it was said so.
            Answer::Unknown(why) if !options.plain_http => {
                let plain = Options { plain_http: true, ..options.clone() };
                match once(&plain, None).await {
                    Answer::Unknown(_) => Answer::Unknown(why),
                    answer => answer,
                }
            }
            answer => answer,
        }
    }))
}

/// The machines that a manifest is for: those of its index, or that of its configuration.
async fn machines(registry: &Registry, manifest: &[u8]) -> Option<Vec<String>> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    if let Some(manifests) = manifest["manifests"].as_array() {
        let all = manifests.iter().filter_map(|entry| entry["platform"]["architecture"].as_str());
        // Attestations are listed as `unknown`.
        return Some(all.filter(|name| *name != "unknown").map(str::to_owned).collect());
    }
    let digest = Digest::parse(manifest["config"]["digest"].as_str()?)?;
    let config: Value = serde_json::from_slice(&registry.read_blob(&digest).await.ok()?).ok()?;
    Some(vec![config["architecture"].as_str()?.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_for_another_machine_is_named() {
        let names = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let image = |machines: &[&str]| vec![("r.test/app:1".to_owned(), names(machines))];
        let cause = other_machine(&image(&["arm64"]), &names(&["amd64", "amd64"])).unwrap();
        assert_eq!(
            cause.sentence,
            "the image r.test/app:1 is for arm64, and the nodes of the cluster are amd64"
        );
        for (machines, nodes) in [
            (&["arm64", "amd64"][..], &["amd64"][..]),
            (&["arm64"], &["amd64", "arm64"]),
            (&[], &["amd64"]),
            (&["arm64"], &[]),
        ] {
            assert_eq!(other_machine(&image(machines), &names(nodes)), None);
        }
    }
}
