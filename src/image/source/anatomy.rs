//! What a layer of Nix's making holds: which bytes of its tar belong to which store path.
//!
//! Found by reading it once. Entries are never rewritten: a part of a layer is put together from whole entries,
//! byte for byte, so names, modes, owners, times, links and extended attributes stay what they are. Each store path is
//! hashed on the way, so that what is unchanged since an earlier push is known by what it is, not by its name. These
//! hashes are nobody else's business, so that they are BLAKE3, which takes a third of SHA-256's time: all of the image is
//! read for them at each push.

use std::collections::HashMap;
use std::io::{BufRead, Read};
use std::ops::Range;

use indexmap::IndexSet;

use super::hashed::HashedTape;
use super::marks::Names;
use super::tape::{Entry, Fault, StreamTape, Walker};
use crate::image::Digest;
use crate::image::digest::Hasher;

/// More pieces than this and a layer is left as it is; a real one has a few thousand.
const MAX_PIECES: usize = 65_536;

/// A layer taken apart.
#[derive(Debug, Clone)]
pub struct Anatomy {
    /// Header blocks of the directories `nix` and `nix/store`, which every part repeats.
    pub parents: Vec<u8>,
    /// What belongs together, in the order of the tar.
    pub units: Vec<Unit>,
}

/// Entries that must stay in one layer: a store path, or several that share hard links, or all that is outside the
/// store.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Names in `/nix/store`, in the order of the tar. None: what is outside.
    pub paths: Vec<String>,
    /// Holds what is outside the store.
    pub outside: bool,
    /// Where its entries stand, relative to the layer's begin, ascending.
    pub ranges: Vec<Range<u64>>,
    /// Their length.
    pub bytes: u64,
    /// Names all their bytes, headers included. Equal units have equal ones.
    pub content: Digest,
    /// Holds whiteouts, which hide what is in layers below.
    pub whiteouts: bool,
}

/// Takes notes while a layer's tar is walked.
#[derive(Default)]
pub(super) struct Scan {
    units: Vec<Draft>,
    by_name: HashMap<String, usize>,
    outside: Option<usize>,
    parents: [Option<Vec<u8>>; 2],
    links: Vec<(usize, usize)>,
    pieces: usize,
}

struct Draft {
    path: Option<String>,
    ranges: Vec<Range<u64>>,
    content: Hasher,
    whiteouts: bool,
}

/// Why a layer cannot be taken apart.
pub(super) type Obstacle = String;

impl Anatomy {
    /// Walks a layer. `Ok(Err(_))` says why it stays as it is.
    pub(super) fn read(
        tape: &mut HashedTape<impl BufRead>,
        names: &mut Names,
    ) -> Result<Result<Self, Obstacle>, Fault> {
        let mut scan = Scan::default();
        // A piece is what stands together and belongs together; none: the directories that every part repeats.
        let mut piece: Option<usize> = None;
        let mut walker = Walker::new(tape);
        loop {
            walker.tape().begin();
            let Some(entry) = walker.next()? else { break };
            let unit = match scan.entry(&entry, walker.headers()) {
                Ok(unit) => unit,
                Err(why) => return Ok(Err(why)),
            };
            if unit != piece {
                let hash = walker.tape().cut()?;
                names.piece(&hash);
                scan.piece(piece, &hash);
                piece = unit;
            }
            let (tape, headers) = walker.tape_and_headers();
            tape.keep(headers);
            // In the middle of headers nothing can be told of what is before.
            while names.next_before(entry.data).is_some() {
                names.leave_out();
            }
            while let Some(place) = names.next_before(entry.end()) {
                walker.pass_to(place)?;
                names.name(&walker.tape().so_far()?);
            }
            walker.pass()?;
        }
        scan.piece(piece, &walker.tape().cut()?);
        Ok(scan.finish())
    }
}

/// The store paths of which a tar holds entries, in its order. What cannot be read ends the list: this is for a picture.
pub(super) fn store_paths(tar: &mut dyn Read) -> Vec<String> {
    let mut found = IndexSet::new();
    let mut tape = StreamTape(tar);
    let mut walker = Walker::new(&mut tape);
    while let Ok(Some(entry)) = walker.next() {
        let Some(name) = parts(&entry.name) else { continue };
        if let Home::Path(path) = home(&name)
            && !found.contains(path)
            && found.len() < MAX_PIECES
        {
            found.insert(path.to_owned());
        }
    }
    found.into_iter().collect()
}

/// What of a name decides where the entry goes.
enum Home<'a> {
    /// `nix` (0) or `nix/store` (1) itself.
    Parent(usize),
    Path(&'a str),
    Outside,
}

fn home<'a>(parts: &[&'a [u8]]) -> Home<'a> {
    match parts {
        [b"nix"] => Home::Parent(0),
        [b"nix", b"store"] => Home::Parent(1),
        [b"nix", b"store", name, ..] => std::str::from_utf8(name)
            .ok()
            .filter(|name| is_store_name(name))
            .map_or(Home::Outside, Home::Path),
        _ => Home::Outside,
    }
}

/// `<32 digits of Nix's base 32>-<name>`
fn is_store_name(name: &str) -> bool {
    let digit =
        |b: u8| b.is_ascii_digit() || (b.is_ascii_lowercase() && !matches!(b, b'e' | b'o' | b't' | b'u'));
    let name = name.as_bytes();
    name.len() > 33 && name[..32].iter().all(|b| digit(*b)) && name[32] == b'-'
}

/// `./a//b/` → `a`, `b`. None where a part is `..`.
fn parts(name: &[u8]) -> Option<Vec<&[u8]>> {
    let parts: Vec<&[u8]> =
        name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    (!parts.contains(&&b".."[..])).then_some(parts)
}

impl Scan {
    /// Notes an entry. Says to which unit it belongs.
    fn entry(&mut self, entry: &Entry, headers: &[u8]) -> Result<Option<usize>, Obstacle> {
        if entry.kind == b'g' {
            return Err("the layer has pax headers for all of its members".to_owned());
        }
        let outside = || "a name in the layer has `..` in it".to_owned();
        let name = parts(&entry.name).ok_or_else(outside)?;
        let at = match home(&name) {
            Home::Parent(which) => {
                if entry.kind != b'5' {
                    return Err("/nix or /nix/store is no directory in the layer".to_owned());
                }
                self.parents[which] = Some(headers.to_vec());
                return Ok(None);
            }
            Home::Path(path) => self.unit(Some(path)),
            Home::Outside => self.unit(None),
        };
        if entry.kind == b'1' {
            let target = parts(entry.link.as_deref().unwrap_or_default()).ok_or_else(outside)?;
            let other = match home(&target) {
                Home::Path(path) => self.unit(Some(path)),
                _ => self.unit(None),
            };
            if other != at {
                self.links.push((at, other));
            }
        }
        let unit = &mut self.units[at];
        unit.whiteouts |= name.last().is_some_and(|last| last.starts_with(b".wh."));
        match unit.ranges.last_mut() {
            Some(last) if last.end == entry.start => last.end = entry.end(),
            _ => {
                unit.ranges.push(entry.start..entry.end());
                self.pieces += 1;
            }
        }
        if self.pieces > MAX_PIECES || self.links.len() > MAX_PIECES || self.units.len() > MAX_PIECES {
            return Err("the layer is in too many pieces".to_owned());
        }
        Ok(Some(at))
    }

    /// Notes what a piece of a unit holds.
    fn piece(&mut self, unit: Option<usize>, hash: &blake3::Hash) {
        if let Some(unit) = unit {
            self.units[unit].content.update(hash.as_bytes());
        }
    }

    fn unit(&mut self, path: Option<&str>) -> usize {
        let known = match path {
            Some(path) => self.by_name.get(path).copied(),
            None => self.outside,
        };
        known.unwrap_or_else(|| {
            let at = self.units.len();
            match path {
                Some(path) => drop(self.by_name.insert(path.to_owned(), at)),
                None => self.outside = Some(at),
            }
            self.units.push(Draft {
                path: path.map(str::to_owned),
                ranges: Vec::new(),
                content: Hasher::default(),
                whiteouts: false,
            });
            at
        })
    }

    fn finish(self) -> Result<Anatomy, Obstacle> {
        if self.by_name.is_empty() {
            return Err("the layer holds no store paths".to_owned());
        }
        // Units that share hard links become one.
        let mut root: Vec<usize> = (0..self.units.len()).collect();
        fn find(root: &mut [usize], mut at: usize) -> usize {
            while root[at] != at {
                root[at] = root[root[at]];
                at = root[at];
            }
            at
        }
        for (a, b) in self.links {
            let (a, b) = (find(&mut root, a), find(&mut root, b));
            // The one that comes first in the tar stands for both.
            root[a.max(b)] = a.min(b);
        }
        let mut units: Vec<Option<(Unit, Hasher)>> = Vec::new();
        units.resize_with(self.units.len(), || None);
        for (at, draft) in self.units.into_iter().enumerate() {
            let home = find(&mut root, at);
            let (unit, content) = units[home].get_or_insert_with(|| {
                let unit = Unit {
                    paths: Vec::new(),
                    outside: false,
                    ranges: Vec::new(),
                    bytes: 0,
                    content: Digest::of(b""),
                    whiteouts: false,
                };
                (unit, Hasher::default())
            });
            unit.outside |= draft.path.is_none();
            unit.paths.extend(draft.path);
            unit.bytes += draft.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
            unit.ranges.extend(draft.ranges);
            unit.whiteouts |= draft.whiteouts;
            content.update(draft.content.finish().as_str().as_bytes());
        }
        let units = units.into_iter().flatten().map(|(mut unit, content)| {
            unit.ranges.sort_by_key(|range| range.start);
            unit.content = content.finish();
            unit
        });
        let parents = self.parents.into_iter().flatten().flatten().collect();
        // A target that is named and never there.
        Ok(Anatomy { parents, units: units.filter(|unit| unit.bytes > 0).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(letter: char, name: &str) -> String {
        format!("{}-{name}", letter.to_string().repeat(32))
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder.append_data(&mut header, name, bytes).unwrap();
    }

    #[test]
    fn paths_that_share_hard_links_stay_together() {
        let (a, b, c) = (store('a', "one"), store('b', "two"), store('c', "three"));
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, tar::EntryType::Directory, "nix/", "", b"");
        add(&mut tar, tar::EntryType::Directory, "nix/store/", "", b"");
        add(&mut tar, tar::EntryType::Regular, &format!("nix/store/{a}/file"), "", &[1; 700]);
        add(&mut tar, tar::EntryType::Regular, &format!("nix/store/{b}/file"), "", &[2; 10]);
        add(&mut tar, tar::EntryType::Link, &format!("nix/store/{c}/x"), &format!("nix/store/{a}/file"), b"");
        add(&mut tar, tar::EntryType::Symlink, "bin/app", &format!("/nix/store/{b}/file"), b"");
        let tar = tar.into_inner().unwrap();
        let anatomy = Anatomy::read(&mut HashedTape::new(&tar[..]), &mut Names::default()).unwrap().unwrap();
        let names: Vec<(Vec<String>, bool)> =
            anatomy.units.iter().map(|unit| (unit.paths.clone(), unit.outside)).collect();
        assert_eq!(names, [(vec![a, c], false), (vec![b], false), (vec![], true)]);
        assert_eq!(anatomy.parents.len(), 1024);
        let all: u64 = anatomy.units.iter().map(|unit| unit.bytes).sum();
        assert_eq!(all + 1024 + 1024, tar.len() as u64, "entries, parents, end mark");
    }

    #[test]
    fn what_cannot_be_taken_apart_is_said() {
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, tar::EntryType::Regular, "bin/app", "", b"x");
        let tar = tar.into_inner().unwrap();
        let why = Anatomy::read(&mut HashedTape::new(&tar[..]), &mut Names::default()).unwrap().unwrap_err();
        assert!(why.contains("no store paths"), "{why}");
        assert!(parts(b"nix/store/../x").is_none());
        assert!(!is_store_name(".wh.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x"));
    }
}
