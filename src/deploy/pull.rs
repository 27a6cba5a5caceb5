//! What a node will meet when it pulls, asked from where SSH leads to: whether the registry answers there, in which
//! scheme, whether its tokens can be had, and whether k3s was told what it must be told.
//!
//! All of it is said and none of it stops a deployment: a node may have the image already, or another way to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Access;
use crate::image::registry::{Greeting, Options, Probe};
use crate::image::{Destination, Repository};
use crate::yaml::{self, Node};

/// How long a registry may take to answer.
const LIMIT: Duration = Duration::from_secs(4);
/// The most registries that are asked.
const MOST: usize = 3;
/// Prints `there PATH` and the file, `missing PATH`, or `closed PATH`; nothing where there is no k3s.
const REGISTRIES: &str = r#"
for directory in /etc/rancher/k3s /etc/rancher/rke2; do
    [ -d "$directory" ] || continue
    file=$directory/registries.yaml
    if content=$(cat "$file" 2>/dev/null || sudo -n cat "$file" 2>/dev/null); then
        echo "there $file"; printf '%s\n' "$content"
    elif [ -e "$file" ] || [ ! -x "$directory" ]; then echo "closed $file"
    else echo "missing $file"; fi
    exit
done
"#;
/// The most that is read of that, in bytes.
const REGISTRIES_LIMIT: usize = 256 << 10;

/// How a registry answers.
#[derive(Debug, PartialEq, Eq)]
enum Answers {
    Https,
    PlainHttp,
    Not(String),
}

/// What is to be said of the images' registries; nothing without SSH.
pub(super) fn look<'a>(images: impl Iterator<Item = &'a str>, access: &Access) -> Vec<String> {
    let mut repositories: BTreeMap<String, (Repository, String)> = BTreeMap::new();
    for destination in images.filter_map(|image| Destination::parse(image).ok()) {
        let tag = destination.tag.unwrap_or_else(|| "latest".to_owned());
        repositories.entry(destination.repository.host.clone()).or_insert((destination.repository, tag));
    }
    if repositories.is_empty() {
        return Vec::new();
    }
    // Without SSH there is nobody to ask; the node's own words come soon enough.
    let Ok(Some(proxy)) = access.proxy() else { return Vec::new() };
    let Some((node, registries)) = access.ask_far_side(REGISTRIES, REGISTRIES_LIMIT) else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for (registry, (repository, tag)) in repositories.into_iter().take(MOST) {
        let (answers, realm) = runtime.block_on(ask(&repository, &tag, proxy.address()));
        match answers {
            Answers::Https => {}
            Answers::PlainHttp => notes.extend(mirror_note(&node, &registry, &registries)),
            Answers::Not(why) => notes.push(format!(
                "seen from {node} the registry {registry} does not answer ({why}): a node there cannot pull from it"
            )),
        }
        notes.extend(realm.map(|why| {
            format!(
                "seen from {node} the registry {registry} gives no tokens: {why}; a node there cannot pull from it, \
                 whatever its credentials (`sower image doctor` there says what heals it)"
            )
        }));
    }
    notes
}

async fn ask(repository: &Repository, tag: &str, socks: SocketAddr) -> (Answers, Option<String>) {
    let mut last = String::new();
    for plain_http in [false, true] {
        // Which authorities the node trusts is not known here.
        let options = Options { plain_http, insecure: true, socks: Some(socks), ..Options::default() };
        let Ok(probe) = Probe::new(repository, &options) else { continue };
        let greeting = tokio::time::timeout(LIMIT, probe.greeting());
        let greeting = match greeting.await {
            Ok(Ok((greeting, _))) => greeting,
            Ok(Err(why)) => {
                last = why;
                continue;
            }
            Err(_) => {
                last = "no answer in time".to_owned();
                continue;
            }
        };
        let mut why = None;
        if let Greeting::Bearer { realm, service, .. } = &greeting {
            let asked = (realm.as_str(), service.as_str());
            let pull = tokio::time::timeout(LIMIT, probe.pull(Some(asked), None, tag));
            why = match pull.await {
                // Credentials would help where it only says no.
                Ok(Err(why)) if !why.contains("HTTP 401") && !why.contains("HTTP 403") => {
                    Some(format!("{realm}: {}", why.trim_start_matches("the realm: ")))
                }
                Err(_) => Some(format!("{realm}: no answer in time")),
                Ok(_) => None,
            };
        }
        return (if plain_http { Answers::PlainHttp } else { Answers::Https }, why);
    }
    (Answers::Not(last), None)
}

/// The entry for `registries.yaml` that lets k3s pull over plain HTTP.
pub(super) fn mirror_entry(registry: &str) -> String {
    format!("mirrors:\n  \"{registry}\":\n    endpoint:\n      - \"http://{registry}\"")
}

/// What is wrong with what [`REGISTRIES`] prints, if the registry speaks plain HTTP.
fn mirror_note(node: &str, registry: &str, printed: &str) -> Option<String> {
    let (first, content) = printed.split_once('\n').unwrap_or((printed, ""));
    let (how, file) = first.split_once(' ')?;
    let content = match how {
        "there" => yaml::parse(content).ok(),
        "missing" => None,
        _ => return None,
    };
    if content.is_some_and(|content| has_mirror(&content, registry)) {
        return None;
    }
    Some(format!(
        "seen from {node} the registry {registry} speaks plain http, and {file} there has no entry for it: a node asks \
         over https and cannot pull from it; this is wanted there (then: systemctl restart k3s):\n{}",
        mirror_entry(registry)
    ))
}

fn has_mirror(content: &Node, registry: &str) -> bool {
    let mirrors = content.get("mirrors");
    let endpoints = |name: &str| {
        let endpoints = mirrors?.get(name)?.get("endpoint")?.as_sequence()?;
        Some(endpoints.iter().any(|endpoint| endpoint.as_str().is_some_and(|url| url.starts_with("http://"))))
    };
    [registry, "*"].into_iter().any(|name| endpoints(name) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_k3s_is_told_is_read() {
        let note = |printed: &str| mirror_note("node.test", "10.0.0.5:3000", printed);
        let there = "there /etc/rancher/k3s/registries.yaml\n";
        let entry = mirror_entry("10.0.0.5:3000");
        assert_eq!(note(&format!("{there}{entry}\n")), None);
        assert_eq!(note(&format!("{there}mirrors: {{'*': {{endpoint: ['http://10.0.0.6']}}}}\n")), None);
        assert_eq!(note(""), None);
        assert_eq!(note("closed /etc/rancher/k3s/registries.yaml"), None);
        for printed in [
            "missing /etc/rancher/k3s/registries.yaml\n".to_owned(),
            format!("{there}{}\n", mirror_entry("10.0.0.5:3001")),
            format!("{there}mirrors: {{'10.0.0.5:3000': {{endpoint: ['https://10.0.0.5:3000']}}}}\n"),
            format!("{there}[\n"),
        ] {
            let note = note(&printed).unwrap();
            assert!(note.contains("has no entry for it") && note.ends_with(&entry), "{note}");
        }
    }
}
