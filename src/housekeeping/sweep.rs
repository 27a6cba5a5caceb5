//! Files that nobody needs any more: what jobs have left, old logs, what is over the cache's quota, actions that no job
//! asks for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Item, Options};
use crate::cache::Store;
use crate::config::Config;
use crate::job::remove;
use crate::supervisor::{StateDir, history};

/// A workspace without a job is left alone for this long: it may be another runner's.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// An action that no job has asked for in so long is fetched again when one does.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Bytes on the disk of all that is below a folder, links not followed.
fn size(path: &Path) -> u64 {
    let Ok(meta) = path.symlink_metadata() else { return 0 };
    let own = meta.blocks() * 512;
    if meta.is_dir() { own + entries(path).iter().map(|entry| size(entry)).sum::<u64>() } else { own }
}

fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(path.symlink_metadata().ok()?.modified().ok()?).ok()
}

fn gone(what: &'static str, path: PathBuf, dry: bool) -> Item {
    let bytes = size(&path);
    let problem = if dry { None } else { remove::tree(&path).err().map(|error| error.to_string()) };
    Item { what, path, bytes, problem }
}

/// Directories of jobs that are reported, where no daemon is there to remove them.
pub(super) fn jobs(config: &Config, options: Options) -> Vec<Item> {
    if options.daemon || !config.state_dir().join("jobs").is_dir() {
        return Vec::new();
    }
    let Ok(state) = StateDir::open(config.state_dir()) else { return Vec::new() };
    let Ok(_lock) = state.lock() else { return Vec::new() };
    let done = state.running().unwrap_or_default().into_iter().filter(crate::supervisor::JobDir::is_reported);
    done.map(|dir| {
        let (path, bytes) = (dir.path().to_owned(), size(dir.path()));
        let removed = if options.dry_run {
            Ok(())
        } else {
            history::keep(&state, &dir, &config.history).and_then(|()| dir.remove())
        };
        Item { what: "job", path, bytes, problem: removed.err().map(|error| error.to_string()) }
    })
    .collect()
}

/// Workspaces in a place of their own whose job is not here.
pub(super) fn workspaces(config: &Config, dry: bool) -> Vec<Item> {
    let Some(parent) = &config.host.workdir_parent else { return Vec::new() };
    let patience = ABANDONED.max(config.runner.timeout * 2);
    let abandoned = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let task = name.strip_prefix("task-").and_then(|task| task.parse::<i64>().ok());
        task.is_some_and(|task| !config.state_dir().join("jobs").join(task.to_string()).exists())
            && age(path).is_some_and(|age| age > patience)
    };
    entries(parent).into_iter().filter(abandoned).map(|path| gone("workspace", path, dry)).collect()
}

/// Logs that are too old or too many.
pub(super) fn history(config: &Config, dry: bool) -> Vec<Item> {
    let old = history::too_much(config.state_dir(), &config.history);
    old.into_iter().map(|path| gone("log", path, dry)).collect()
}

fn cache_folder(config: &Config) -> PathBuf {
    config.cache.dir.clone().unwrap_or_else(|| config.state_dir().join("cache"))
}

/// Cache entries over the quota, and those that nobody asks for.
pub(super) fn cache(config: &Config, dry: bool) -> Option<Item> {
    let folder = cache_folder(config).join("store");
    if !folder.is_dir() {
        return None;
    }
    let store = Store::open(&folder, config.cache.quota);
    let swept = store.and_then(|store| if dry { store.would_sweep() } else { store.sweep() });
    match swept {
        Ok(swept) if swept.files == 0 => None,
        Ok(swept) => Some(Item { what: "cache entries", path: folder, bytes: swept.bytes, problem: None }),
        Err(error) => {
            Some(Item { what: "cache entries", path: folder, bytes: 0, problem: Some(error.to_string()) })
        }
    }
}

/// Fetched actions: `cache/actions/HOST/…/COMMIT`, whose time is when it was fetched or asked for last.
pub(super) fn actions(config: &Config, dry: bool) -> Vec<Item> {
    let mut found = Vec::new();
    commits(&cache_folder(config).join("actions"), 0, &mut found);
    found.retain(|path| age(path).is_some_and(|age| age > UNUSED));
    found.into_iter().map(|path| gone("action", path, dry)).collect()
}

fn commits(folder: &Path, depth: usize, into: &mut Vec<PathBuf>) {
    for path in entries(folder) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !path.is_dir() || path.is_symlink() {
            continue;
        }
        if name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            into.push(path);
        } else if depth < 8 {
            commits(&path, depth + 1, into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_workspaces_go_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("work");
        let mut config = Config::default();
        config.runner.file = folder.path().join("state/.runner");
        config.host.workdir_parent = Some(parent.clone());
        for name in ["task-1", "task-2", "task-3", "other", "task-x"] {
            fs::create_dir_all(parent.join(name).join("workspace")).unwrap();
        }
        fs::create_dir_all(folder.path().join("state/jobs/2")).unwrap();
        let old = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
        for name in ["task-1", "task-2", "other", "task-x"] {
            fs::File::open(parent.join(name)).unwrap().set_modified(old).unwrap();
        }
        let found: Vec<PathBuf> = workspaces(&config, true).into_iter().map(|item| item.path).collect();
        assert_eq!(found, [parent.join("task-1")]);
        assert!(found[0].exists());
        assert_eq!(workspaces(&config, false).len(), 1);
        assert!(!found[0].exists() && parent.join("task-2").exists());
    }
}
