//! Old tags: which stay, which go.
//!
//! On a Gitea tags are deleted one by one through its packages API, so a tag never takes another one with it. On
//! another registry a manifest is deleted by digest, which takes all its tags: so only when all of them may go.
//! Nothing is deleted unless the list was read to its end and its order is certain.

mod oci;
pub mod release;

use std::collections::{HashMap, HashSet};

use globset::{Glob, GlobSet, GlobSetBuilder};
use jiff::Timestamp;

use super::registry::{Access, Credentials, Note, Options, Packages, Registry};
use super::report::{Prune as Report, Tag as TagReport, Verdict};
use super::{Digest, Error, Repository};

/// What stays.
#[derive(Debug)]
pub struct Rules {
    keep: usize,
    protect: GlobSet,
    /// Tags that something runs.
    running: HashSet<String>,
    /// Digests that something runs.
    running_digests: HashSet<Digest>,
}

impl Rules {
    /// The newest `keep` tags stay, and besides them `latest` and what a pattern names (`*`, `?`, `[…]`, `{a,b}`).
    ///
    /// # Errors
    /// When a pattern cannot be read.
    pub fn new(keep: usize, protect: &[String]) -> Result<Self, Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in std::iter::once("latest").chain(protect.iter().map(String::as_str)) {
            let glob = Glob::new(pattern).map_err(|error| Error::Argument {
                given: pattern.to_owned(),
                why: error.kind().to_string(),
            })?;
            set.add(glob);
        }
        let protect = set
            .build()
            .map_err(|error| Error::Argument { given: protect.join(" "), why: error.kind().to_string() })?;
        Ok(Self { keep, protect, running: HashSet::new(), running_digests: HashSet::new() })
    }

    /// What these texts (manifests of Kubernetes objects) name of the repository stays. A cluster may know the registry by
    /// another name, so the host is not compared.
    pub fn protect_images(&mut self, texts: Vec<String>, repository: &Repository) {
        for text in texts {
            for (at, _) in text.match_indices(&repository.name) {
                // Part of a longer name is another repository.
                let before = text[..at].chars().next_back();
                let mut rest = &text[at + repository.name.len()..];
                if before.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
                    continue;
                }
                if let Some(tag) = rest.strip_prefix(':') {
                    let end =
                        tag.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')));
                    let (tag, after) = tag.split_at(end.unwrap_or(tag.len()));
                    self.running.insert(tag.to_owned());
                    rest = after;
                }
                let digest =
                    rest.strip_prefix('@').and_then(|digest| digest.get(..71)).and_then(Digest::parse);
                self.running_digests.extend(digest);
            }
        }
    }

    fn is_protected(&self, tag: &Found) -> bool {
        self.protect.is_match(&tag.tag)
            || self.running.contains(&tag.tag)
            || tag.digest.as_ref().is_some_and(|digest| self.running_digests.contains(digest))
    }
}

/// A tag as a registry tells it.
#[derive(Debug, Clone)]
struct Found {
    tag: String,
    created: Option<Timestamp>,
    /// Orders tags of the same moment; none where nothing does.
    order: Option<i64>,
    digest: Option<Digest>,
}

/// Puts the tags in order, newest first, and says which are to go.
fn decide(mut tags: Vec<Found>, rules: &Rules) -> Result<Vec<(Found, Verdict)>, Error> {
    tags.sort_by(|a, b| (b.created, b.order, &b.tag).cmp(&(a.created, a.order, &a.tag)));
    let mut left = rules.keep;
    let mut last_kept: Option<(Option<Timestamp>, Option<i64>)> = None;
    let mut kept = HashSet::new();
    let mut decided = Vec::with_capacity(tags.len());
    for tag in tags {
        let verdict = if rules.is_protected(&tag) {
            Verdict::Protected
        } else if tag.created.is_none() {
            Verdict::Spared
        } else if left > 0 {
            left -= 1;
            last_kept = Some((tag.created, tag.order));
            kept.extend(tag.digest.clone());
            Verdict::Kept
        } else {
            // Another name of what stays is no question.
            let is_twin = tag.digest.as_ref().is_some_and(|digest| kept.contains(digest));
            if last_kept == Some((tag.created, tag.order)) && !is_twin {
                return Err(Error::Unsure(format!(
                    "{} was made at the same time as tags that stay ({}), so it cannot be told which is newer; builds that \
                     fix the date of their images need a registry that knows when a tag was pushed, as Gitea's does",
                    tag.tag,
                    tag.created.map_or(String::new(), shown)
                )));
            }
            Verdict::WouldDelete
        };
        decided.push((tag, verdict));
    }
    Ok(decided)
}

fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads the tags, decides, deletes.
///
/// # Errors
/// When the list cannot be read to its end or its order is not certain (nothing was deleted then), or when a deletion
/// is refused.
pub async fn run(
    repository: &Repository,
    rules: &Rules,
    credentials: Option<Credentials>,
    options: &Options,
    dry_run: bool,
    note: Note,
) -> Result<Report, Error> {
    if let Some(packages) = Packages::find(repository, credentials.clone(), options).await? {
        return on_gitea(repository, rules, &packages, dry_run).await;
    }
    let registry = Registry::open(repository, Access::Delete, credentials, options, note).await?;
    oci::run(&registry, rules, dry_run).await
}

async fn on_gitea(
    repository: &Repository,
    rules: &Rules,
    packages: &Packages,
    dry_run: bool,
) -> Result<Report, Error> {
    let mut found = Vec::new();
    let mut untagged = HashSet::new();
    for version in packages.versions().await? {
        // A manifest without a tag: part of a list, or left over.
        if let Some(digest) = Digest::parse(&version.version) {
            untagged.insert(digest);
            continue;
        }
        let created: Timestamp = version.created_at.parse().map_err(|_| {
            Error::Unsure(format!("{}: no time of creation in {:?}", version.version, version.created_at))
        })?;
        let (tag, order) = (version.version, Some(version.id));
        found.push(Found { tag, created: Some(created), order, digest: None });
    }
    // Gitea's list does not tell the digests of tags, nor what a list of images holds.
    let mut children: HashMap<String, Vec<Digest>> = HashMap::new();
    if !rules.running_digests.is_empty() || !untagged.is_empty() {
        for tag in &mut found {
            if let Some((bytes, digest)) = packages.manifest(&tag.tag).await? {
                let parts = oci::children(&bytes);
                // Who runs an image of a list needs the list.
                let runs = parts.iter().find(|part| rules.running_digests.contains(part)).cloned();
                tag.digest = Some(runs.unwrap_or(digest));
                children.insert(tag.tag.clone(), parts);
            }
        }
    }
    let mut tags = Vec::new();
    let mut candidates = HashSet::new();
    // Oldest first, so that what is left after a failure is the newest.
    for (tag, mut verdict) in decide(found, rules)?.into_iter().rev() {
        if verdict == Verdict::WouldDelete && !dry_run {
            verdict = if packages.delete(&tag.tag).await? { Verdict::Deleted } else { Verdict::Gone };
        }
        if matches!(verdict, Verdict::WouldDelete | Verdict::Deleted | Verdict::Gone) {
            candidates.extend(children.remove(&tag.tag).unwrap_or_default());
        }
        tags.push(TagReport { tag: tag.tag, created: tag.created.map(shown), verdict });
    }
    tags.reverse();
    candidates.retain(|digest| untagged.contains(digest) && !rules.running_digests.contains(digest));
    let parts = match dry_run {
        true => {
            let needed: HashSet<&Digest> = children.values().flatten().collect();
            candidates.iter().filter(|digest| !needed.contains(digest)).count()
        }
        false => delete_parts(packages, candidates).await?,
    };
    Ok(Report { repository: repository.to_string(), by: "gitea", tags, parts, dry_run })
}

/// Deletes the images of lists that are gone, unless a list that is there by now holds them, too. How many.
async fn delete_parts(packages: &Packages, mut candidates: HashSet<Digest>) -> Result<usize, Error> {
    if candidates.is_empty() {
        return Ok(0);
    }
    // Read anew: somebody may have pushed meanwhile.
    for version in packages.versions().await? {
        if Digest::parse(&version.version).is_none()
            && let Some((bytes, digest)) = packages.manifest(&version.version).await?
        {
            candidates.remove(&digest);
            for child in oci::children(&bytes) {
                candidates.remove(&child);
            }
        }
    }
    let mut deleted = 0;
    for digest in candidates {
        deleted += usize::from(packages.delete(digest.as_str()).await?);
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str, second: i64, order: Option<i64>) -> Found {
        let created = Some(Timestamp::from_second(second).unwrap());
        Found { tag: name.to_owned(), created, order, digest: None }
    }

    fn gone(tags: Vec<Found>, keep: usize, protect: &[&str]) -> Vec<String> {
        let protect: Vec<String> = protect.iter().map(ToString::to_string).collect();
        let decided = decide(tags, &Rules::new(keep, &protect).unwrap()).unwrap();
        decided.into_iter().filter(|(_, v)| *v == Verdict::WouldDelete).map(|(t, _)| t.tag).collect()
    }

    #[test]
    fn the_newest_stay_and_latest_and_patterns_do_not_count() {
        let tags = || {
            (1..=8).map(|n| tag(&format!("t{n}"), n, Some(n))).chain([tag("latest", 0, Some(0))]).collect()
        };
        assert_eq!(gone(tags(), 5, &[]), ["t3", "t2", "t1"]);
        assert_eq!(gone(tags(), 5, &["t[28]"]), ["t1"]);
        assert_eq!(gone(tags(), 9, &[]), [""; 0]);
    }

    #[test]
    fn what_a_release_runs_stays() {
        let mut rules = Rules::new(1, &[]).unwrap();
        let repository = Repository { host: "r:1".to_owned(), name: "shop/app".to_owned() };
        let text = "image: \"mirror:5000/shop/app:t2\"\nimage: r:1/shop/app-two:t1\nimage: my-shop/app:t1\nimage: shop/app:t4@sha256:";
        rules.protect_images(vec![format!("{text}{}", "a".repeat(64))], &repository);
        assert_eq!(rules.running, HashSet::from(["t2".to_owned(), "t4".to_owned()]));
        assert_eq!(rules.running_digests.len(), 1);
        let tags: Vec<Found> = (1..=5).map(|n| tag(&format!("t{n}"), n, Some(n))).collect();
        let verdicts: Vec<Verdict> =
            decide(tags, &rules).unwrap().into_iter().map(|(_, verdict)| verdict).collect();
        use Verdict::{Kept, Protected, WouldDelete};
        assert_eq!(verdicts, [Kept, Protected, WouldDelete, Protected, WouldDelete]);
    }

    #[test]
    fn ids_order_tags_of_one_second() {
        assert_eq!(gone(vec![tag("a", 5, Some(1)), tag("b", 5, Some(2))], 1, &[]), ["a"]);
    }

    #[test]
    fn an_order_that_is_not_certain_deletes_nothing() {
        let tags = vec![tag("a", 1, None), tag("b", 1, None), tag("c", 2, None)];
        let error = decide(tags.clone(), &Rules::new(2, &[]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("nothing was deleted"), "{error}");
        // Two names of one image are of one age.
        let same = |tag| Found { digest: Some(Digest::of(b"x")), ..tag };
        assert_eq!(gone(tags.into_iter().map(same).collect(), 2, &[]), ["a"]);
    }
}
