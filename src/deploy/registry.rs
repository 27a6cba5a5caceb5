//! Whether the images of a chart are in their registries.
//!
//! Only a registry that says so itself is believed: one that does not answer here may well answer the cluster.

use std::time::Duration;

use super::diagnosis::{Cause, Kind};
use super::manifest::RenderedObject;
use crate::image::Destination;
use crate::image::registry::{Access, Credentials, Options, Registry};

/// The most images that are asked for.
const MOST: usize = 8;

/// What registries said.
#[derive(Default)]
pub(super) struct Looked {
    /// An image that is not there.
    pub(super) problem: Option<Cause>,
    /// What could not be asked.
    pub(super) notes: Vec<String>,
}

/// One image.
enum Answer {
    There,
    Missing,
    Unknown(String),
}

/// Asks for all images of the objects.
pub(super) fn look(objects: &[RenderedObject], options: &Options, limit: Duration) -> Looked {
    let mut images: Vec<&str> =
        objects.iter().flat_map(|object| object.images.iter().map(String::as_str)).collect();
    images.sort_unstable();
    images.dedup();
    let mut looked = Looked::default();
    for image in images.into_iter().take(MOST) {
        match ask(image, options, limit) {
            None | Some(Answer::There) => {}
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

fn missing(image: &str) -> Cause {
    Cause::new(
        Kind::ImageMissing,
        format!("the image {image} is not in the registry"),
        "push it before the deployment (`sower image push`), or correct the tag that the chart is given",
    )
}

/// Whether the registry itself says that it does not have the image.
pub(super) fn says_missing(image: &str, options: &Options) -> bool {
    matches!(ask(image, options, Duration::from_secs(4)), Some(Answer::Missing))
}

/// `None` for images that name no registry of their own, and for digests.
fn ask(image: &str, options: &Options, limit: Duration) -> Option<Answer> {
    let destination = Destination::parse(image).ok()?;
    let tag = destination.tag.as_deref().unwrap_or("latest");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let credentials = Credentials::find(&destination.repository, None, None).unwrap_or_default();
    let once = async |options: &Options, credentials| {
        let asked = async {
            let repository = &destination.repository;
            let registry =
                Registry::open(repository, Access::Pull, credentials, options, Box::new(|_| {})).await?;
            registry.read_manifest(tag).await
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(Some(_))) => Answer::There,
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
