//! The control groups above a job's: a limit of theirs kills its processes as well.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::size::Size;
use crate::job::group;

/// The groups above, each with how often its own limit was reached.
#[derive(Debug, Default)]
pub struct Parents(Vec<Parent>);

#[derive(Debug)]
struct Parent {
    place: PathBuf,
    /// Open, since it is asked after each step.
    counter: File,
    reached: u64,
}

impl Parent {
    /// Counted by version 2 since Linux 5.2, and always by version 1; the root has no limit.
    fn at(place: &Path) -> Option<Self> {
        let files = ["memory.events.local", "memory.failcnt"];
        let counter = files.iter().find_map(|file| File::open(place.join(file)).ok())?;
        let reached = reached(&counter)?;
        Some(Self { place: place.to_owned(), counter, reached })
    }
}

impl Parents {
    /// The group of this process and those above it.
    #[must_use]
    pub fn now() -> Self {
        let mut found = Vec::new();
        for own in [group::unified(), group::controller("memory")].into_iter().flatten() {
            found.extend(own.ancestors().filter_map(Parent::at));
        }
        Self(found)
    }

    /// The innermost group whose limit was reached since this was asked last, for people.
    pub fn news(&mut self) -> Option<String> {
        let mut news = None;
        for Parent { place, counter, reached: before } in &mut self.0 {
            let now = reached(counter).unwrap_or(*before);
            if now > *before && news.is_none() {
                news = Some(match limit(place) {
                    Some(limit) => format!("{} (limit {})", place.display(), Size(limit)),
                    None => place.display().to_string(),
                });
            }
            *before = now;
        }
        news
    }
}

/// Version 2 has a line for it among others, version 1 just the number.
fn reached(counter: &File) -> Option<u64> {
    let mut text = [0; 512];
    let length = counter.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom "));
    line.unwrap_or(text).trim().parse().ok()
}

fn limit(place: &Path) -> Option<u64> {
    let files = ["memory.max", "memory.limit_in_bytes"];
    let text = files.iter().find_map(|file| fs::read_to_string(place.join(file)).ok())?;
    // Version 1 says "no limit" by a number near 2^63.
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_whose_limit_was_reached_is_named_once() {
        let root = tempfile::tempdir().unwrap();
        let (outer, inner) = (root.path().join("outer"), root.path().join("outer/inner"));
        fs::create_dir_all(&inner).unwrap();
        let oom = |place: &Path, count: u64| {
            fs::write(place.join("memory.events.local"), format!("max 9\noom {count}\noom_kill 0\n"))
                .unwrap();
        };
        oom(&inner, 0);
        oom(&outer, 3);
        fs::write(outer.join("memory.max"), "104857600\n").unwrap();
        let mut parents =
            Parents([&inner, &outer].into_iter().filter_map(|place| Parent::at(place)).collect());
        assert_eq!(parents.0.len(), 2);
        assert_eq!(parents.news(), None);
        oom(&outer, 4);
        assert_eq!(parents.news(), Some(format!("{} (limit 100 MiB)", outer.display())));
        assert_eq!(parents.news(), None);
    }
}
