//! Many archives at once: in parallel, each store path compared once with Nix's book, what was sound not asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::{fs, thread};

use super::check::{CheckError, Report, check};
use super::memory::Memory;
use super::nar::Sum;
use super::nix;
use super::store::{self, View};

/// Threads at most: more only wait for the disk.
const THREADS_AT_MOST: usize = 8;

/// What is asked for.
#[derive(Debug, Default)]
pub struct Request {
    /// Archives to check.
    pub archives: Vec<PathBuf>,
    /// Store paths that are compared with Nix's book, and told of, whether they hold archives or not.
    pub store_paths: Vec<PathBuf>,
    /// Read every body: store paths are compared with their hash.
    pub hash: bool,
    /// Store paths that are compared with their hash as well, because they or something in them was named.
    pub hashed: BTreeSet<PathBuf>,
}

/// An answer, as it comes: in the order of the request.
#[derive(Debug)]
pub enum Answer {
    /// An archive was checked, or could not be.
    Archive(PathBuf, Box<Result<Report, CheckError>>),
    /// A store path was compared that was asked for, or that is not as Nix's book says.
    StorePath(View),
    /// A store path could not be compared, and why.
    StorePathUnknown(PathBuf, String),
    /// Something to know.
    Notice(String),
}

/// Checks everything that is asked for. `memory` knows what was sound; without one everything is read.
pub fn run(request: &Request, mut memory: Option<&mut Memory>, each: &mut dyn FnMut(Answer)) {
    let homes: Vec<Option<PathBuf>> = request.archives.iter().map(|path| home(path)).collect();
    let remembered: Vec<Option<Report>> = request
        .archives
        .iter()
        .map(|path| memory.as_deref().and_then(|memory| memory.sound(path, request.hash)))
        .collect();
    let mut wanted: Vec<PathBuf> = request.store_paths.clone();
    for (home, remembered) in homes.iter().zip(&remembered) {
        if let (Some(home), None) = (home, remembered)
            && !wanted.contains(home)
        {
            wanted.push(home.clone());
        }
    }
    let book = book(&wanted, each);
    let by_hash = |path: &PathBuf| request.hash || request.hashed.contains(path);
    let views = compare_all(&wanted, &book, by_hash);
    let metas: Vec<Option<fs::Metadata>> =
        request.archives.iter().map(|path| fs::metadata(path).ok()).collect();
    in_order(
        request.archives.len(),
        |index| match remembered.get(index).and_then(Option::clone) {
            Some(report) => Some((Ok(report), true)),
            None => request.archives.get(index).map(|path| (check(path), false)),
        },
        |index, answer| {
            let (Some((mut result, known)), Some(path)) = (answer, request.archives.get(index)) else {
                return;
            };
            let home = homes.get(index).and_then(Option::as_ref);
            if let (Ok(report), Some(home)) = (&mut result, home) {
                explain(report, home, &views, &book);
                if let (Some(memory), false) = (memory.as_deref_mut(), known)
                    && let Some(Some(meta)) = metas.get(index)
                    && views.get(home).is_none_or(|view| view.as_ref().is_ok_and(|view| view.agrees))
                {
                    let hash = request.hash.then(|| book.get(home).map(|sum| &sum.hash)).flatten();
                    memory.remember(report, meta, hash);
                }
            } else if let (Ok(report), Some(memory), Some(Some(meta)), false) =
                (&result, memory.as_deref_mut(), metas.get(index), known)
            {
                memory.remember(report, meta, None);
            }
            each(Answer::Archive(path.clone(), Box::new(result)));
        },
    );
    let unknown = request.store_paths.iter().filter(|path| !views.contains_key(*path));
    for path in unknown.cloned().collect::<Vec<_>>() {
        each(Answer::StorePathUnknown(
            path,
            "Nix does not know this path, so that it cannot be compared".to_owned(),
        ));
    }
    for (path, view) in views {
        let asked_for = request.store_paths.contains(&path);
        match view {
            Ok(view) if asked_for || !view.agrees => each(Answer::StorePath(view)),
            Ok(_) => {}
            Err(why) => each(Answer::StorePathUnknown(path, why)),
        }
    }
}

/// The store path that an archive really lies in.
fn home(path: &Path) -> Option<PathBuf> {
    nix::store_path(path).or_else(|| nix::store_path(&fs::canonicalize(path).ok()?))
}

fn book(wanted: &[PathBuf], each: &mut dyn FnMut(Answer)) -> BTreeMap<PathBuf, Sum> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    nix::known::ask(wanted)
        .or_else(|all| {
            // One that Nix does not know makes older versions refuse them all.
            let each: Vec<_> =
                wanted.iter().map(|path| nix::known::ask_one(path).map(|sum| (path.clone(), sum))).collect();
            if each.iter().all(Result::is_err) { Err(all) } else { Ok(each.into_iter().flatten().collect()) }
        })
        .unwrap_or_else(|why| {
            each(Answer::Notice(format!(
                "Nix's book could not be asked, so only the structure is checked: {why}"
            )));
            BTreeMap::new()
        })
}

type Views = BTreeMap<PathBuf, Result<View, String>>;

fn compare_all(
    wanted: &[PathBuf],
    book: &BTreeMap<PathBuf, Sum>,
    hash: impl Fn(&PathBuf) -> bool + Sync,
) -> Views {
    let mut views = Views::new();
    in_order(
        wanted.len(),
        |index| {
            let path = wanted.get(index)?;
            let view = book
                .get(path)
                .map(|known| store::compare(path, known, hash(path)).map_err(|e| e.to_string()));
            Some((path.clone(), view?))
        },
        |_, answer| views.extend(answer),
    );
    views
}

/// Tells a report what Nix knows of it. Where the archive is faulty and the size is right, only the hash can tell whether
/// it was built like this.
fn explain(report: &mut Report, home: &Path, views: &Views, book: &BTreeMap<PathBuf, Sum>) {
    let Some(Ok(view)) = views.get(home) else { return };
    if report.sound {
        return;
    }
    let mut view = view.clone();
    if view.agrees
        && view.hash_found.is_none()
        && let Some(known) = book.get(home)
        && let Ok(hashed) = store::compare(home, known, true)
    {
        view = hashed;
    }
    report.nix = Some(view);
}

/// Does `work` for each index on several threads and gives the results in order.
fn in_order<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync, mut each: impl FnMut(usize, T)) {
    let threads = thread::available_parallelism().map_or(1, Into::into).min(THREADS_AT_MOST).min(count);
    if threads < 2 {
        for index in 0..count {
            each(index, work(index));
        }
        return;
    }
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::sync_channel(64);
    thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            let (work, next) = (&work, &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || sender.send((index, work(index))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for (index, result) in receiver {
            early.insert(index, result);
            while let Some(result) = early.remove(&due) {
                each(due, result);
                due += 1;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_order() {
        let mut seen = Vec::new();
        super::in_order(200, |index| index * 2, |index, result| seen.push((index, result)));
        assert_eq!(seen, (0..200).map(|index| (index, index * 2)).collect::<Vec<_>>());
    }
}
