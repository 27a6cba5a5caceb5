//! The outer tar of an image archive, walked once without unpacking it: where each member's bytes begin.
//!
//! Knows POSIX ustar, GNU long names, pax `path`, `linkpath` and `size`, and the old GNU sparse headers (to step
//! over them). The same index serves a seekable file and a decompressed stream: offsets count plain bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read};

const BLOCK: u64 = 512;
/// Longest long-name or pax record that is read; real ones are below 10 KiB.
const MAX_RECORD: u64 = 1 << 20;
/// An image archive has a few hundred members at most.
const MAX_MEMBERS: usize = 100_000;
/// JSON members up to this size are kept while walking, so that a compressed archive need not be read again.
const KEEP_EACH: u64 = 1 << 20;
const KEEP_ALL: u64 = 4 << 20;

/// Something a tar is read from: read on, or step over bytes.
pub(super) trait Tape: Read {
    /// Steps over `count` bytes; fails with `UnexpectedEof` when there are fewer.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// A plain tar on disk: members are stepped over by seeking.
pub(super) struct FileTape {
    file: io::BufReader<File>,
    position: u64,
    length: u64,
}

impl FileTape {
    /// The whole file.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: io::BufReader::with_capacity(8192, file), position: 0, length })
    }
}

impl Read for FileTape {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.length - self.position).unwrap_or(usize::MAX));
        let count = self.file.read(&mut buffer[..want])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Tape for FileTape {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let target = self.position.checked_add(count).filter(|target| *target <= self.length);
        let target = target.ok_or(io::ErrorKind::UnexpectedEof)?;
        // Within the buffer nothing is read again.
        self.file.seek_relative(i64::try_from(count).map_err(|_| io::ErrorKind::UnexpectedEof)?)?;
        self.position = target;
        Ok(())
    }
}

/// A tar inside a compressed stream: members are stepped over by reading them.
pub(super) struct StreamTape<R>(pub(super) R);

impl<R: Read> Read for StreamTape<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: BufRead> BufRead for StreamTape<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

impl<R: Read> Tape for StreamTape<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        skip_by_reading(&mut self.0, count)
    }
}

/// Reads `count` bytes and drops them; fails with `UnexpectedEof` when there are fewer.
pub(super) fn skip_by_reading(reader: &mut impl Read, mut count: u64) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let mut buffer = vec![0; usize::try_from(count).unwrap_or(usize::MAX).min(128 * 1024)];
    while count > 0 {
        let want = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        match reader.read(&mut buffer[..want]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => count -= got as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where a member's bytes are in the plain tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
enum Member {
    File(Place),
    /// A link, with its target as a member name; old `docker save` links equal layers so.
    Link(String),
    /// A file that is stored with its holes left out.
    Sparse,
    Other,
}

/// What stands in an archive: names to places. Of equal names the last one counts, as when unpacking.
#[derive(Debug, Default)]
pub(super) struct Index {
    members: HashMap<String, Member>,
    kept: HashMap<u64, Vec<u8>>,
}

/// Why a tar could not be walked.
#[derive(Debug)]
pub(super) enum Fault {
    /// Reading failed; `UnexpectedEof` means that the tar is cut.
    Io(io::Error),
    /// The bytes are no tar, or one that cannot be.
    Shape(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Part of a tape: a member that is a tar itself.
pub(super) struct Within<'a, T> {
    tape: &'a mut T,
    left: u64,
}

impl<'a, T: Tape> Within<'a, T> {
    pub(super) fn new(tape: &'a mut T, length: u64) -> Self {
        Self { tape, left: length }
    }

    /// Steps over what was not read.
    pub(super) fn finish(self) -> io::Result<()> {
        self.tape.skip(self.left)
    }
}

impl<T: Tape> Read for Within<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.tape.read(&mut buffer[..want])?;
        self.left -= count as u64;
        Ok(count)
    }
}

impl<T: Tape> Tape for Within<'_, T> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(count).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.tape.skip(count)
    }
}

/// A member as a walk meets it. All offsets count bytes of the tar.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where its first header stands, long names and pax records included.
    pub(super) start: u64,
    /// Where its data begins.
    pub(super) data: u64,
    /// Bytes of data that are stored, without padding.
    pub(super) stored: u64,
    /// The type byte of the header.
    pub(super) kind: u8,
    /// Has holes: what is stored is not what the file reads as.
    pub(super) sparse: bool,
    /// As written, or as a record before it says.
    pub(super) name: Vec<u8>,
    /// The target of a link.
    pub(super) link: Option<Vec<u8>>,
}

impl Entry {
    /// Where the next header stands.
    pub(super) fn end(&self) -> u64 {
        self.data + padded(self.stored)
    }
}

/// Goes through a tar member by member.
pub(super) struct Walker<'a, T> {
    tape: &'a mut T,
    position: u64,
    /// Data of the last entry that is still to be stepped over, padding included.
    ahead: u64,
    /// The header blocks of the last entry, as they stand in the tar.
    headers: Vec<u8>,
}

impl<'a, T: Tape> Walker<'a, T> {
    pub(super) fn new(tape: &'a mut T) -> Self {
        Self { tape, position: 0, ahead: 0, headers: Vec::new() }
    }

    /// The header blocks of the last entry.
    pub(super) fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// The next member; `None` at the end mark. Data of the one before that was not read is stepped over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        self.pass()?;
        self.headers.clear();
        let start = self.position;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut pax = Pax::default();
        loop {
            let mut header = tar::Header::new_old();
            if !read_block(self.tape, header.as_mut_bytes())? || header.as_bytes().iter().all(|b| *b == 0) {
                return Ok(None);
            }
            let at = self.position;
            self.position += BLOCK;
            self.headers.extend_from_slice(header.as_bytes());
            let size = check(&header, at)?;
            let kind = header.entry_type().as_byte();
            if matches!(kind, b'L' | b'K' | b'x' | b'g') {
                let record = read_record(self.tape, size, at, &mut self.headers)?;
                self.position += padded(size);
                match kind {
                    b'L' => long_name = Some(record),
                    b'K' => long_link = Some(record),
                    b'x' => pax.read(&record),
                    // What it says holds for all that follow, which nobody uses for what matters here.
                    _ => {
                        return Ok(Some(Entry {
                            start,
                            data: self.position,
                            stored: 0,
                            kind,
                            sparse: false,
                            name: Vec::new(),
                            link: None,
                        }));
                    }
                }
                continue;
            }
            let size = pax.size.take().unwrap_or(size);
            let name = pax.name.take().or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
            let link =
                pax.link.take().or(long_link).or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
            let sparse = header.entry_type().is_gnu_sparse() || pax.sparse;
            let mut extended = header.entry_type().is_gnu_sparse()
                && header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
            while extended {
                let mut block = [0; BLOCK as usize];
                self.tape.read_exact(&mut block)?;
                self.headers.extend_from_slice(&block);
                if self.headers.len() as u64 > MAX_RECORD {
                    return Err(Fault::Shape(format!("the sparse member at byte {at} has too many holes")));
                }
                self.position += BLOCK;
                extended = block[504] == 1;
            }
            let end = size.checked_add(BLOCK).and_then(|size| self.position.checked_add(size));
            if end.is_none_or(|end| end > i64::MAX as u64) {
                return Err(Fault::Shape(format!(
                    "the member at byte {at} claims {size} bytes, which cannot be"
                )));
            }
            // Links and directories carry no bytes, whatever their size field says.
            let stored = if matches!(kind, b'1'..=b'6') { 0 } else { size };
            let entry = Entry { start, data: self.position, stored, kind, sparse, name, link };
            self.ahead = padded(stored);
            self.position += padded(stored);
            return Ok(Some(entry));
        }
    }

    /// What is walked.
    pub(super) fn tape(&mut self) -> &mut T {
        self.tape
    }

    /// Both at once.
    pub(super) fn tape_and_headers(&mut self) -> (&mut T, &[u8]) {
        (self.tape, &self.headers)
    }

    /// Steps over the data of the last entry, padding included.
    pub(super) fn pass(&mut self) -> io::Result<()> {
        self.tape.skip(std::mem::take(&mut self.ahead))
    }

    /// Steps over data of the last entry up to a position in it.
    pub(super) fn pass_to(&mut self, position: u64) -> io::Result<()> {
        // The next header stands at `self.position`.
        let is_at = self.position - self.ahead;
        let step = position.saturating_sub(is_at).min(self.ahead);
        self.ahead -= step;
        self.tape.skip(step)
    }

    /// The first bytes of the last entry's data, at most [`BLOCK`], which then count as read.
    pub(super) fn begin(&mut self, entry: &Entry) -> io::Result<Vec<u8>> {
        let want = entry.stored.min(BLOCK);
        let mut bytes = vec![0; want as usize];
        self.tape.read_exact(&mut bytes)?;
        self.ahead -= want;
        Ok(bytes)
    }

    /// What follows after [`begin`](Self::begin).
    pub(super) fn rest(&mut self, entry: &Entry) -> Within<'_, T> {
        let left = entry.stored - entry.stored.min(BLOCK);
        self.ahead -= left;
        Within::new(self.tape, left)
    }
}

/// Whether bytes begin as a tar does, the tar of nothing included.
pub(super) fn begins_as_tar(bytes: &[u8]) -> bool {
    let Some(block) = bytes.first_chunk::<{ BLOCK as usize }>() else { return false };
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    block.iter().all(|b| *b == 0) || check(&header, 0).is_ok()
}

impl Index {
    /// Walks a tar to its end mark. `layer` is shown every member that is itself a tar; it need not read it.
    pub(super) fn read<T: Tape>(
        tape: &mut T,
        mut layer: impl FnMut(&Entry, &mut dyn Read, &[u8]) -> Result<(), Fault>,
    ) -> Result<Self, Fault> {
        let mut index = Self::default();
        let mut walker = Walker::new(tape);
        while let Some(entry) = walker.next()? {
            if entry.kind == b'g' {
                continue;
            }
            let first = walker.begin(&entry)?;
            if matches!(first.first(), Some(b'{' | b'[')) && index.has_room_for(entry.stored) {
                let mut bytes = first;
                let mut rest = walker.rest(&entry);
                rest.read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < entry.stored {
                    return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
                }
                index.keep(entry.data, bytes);
            } else {
                let mut rest = walker.rest(&entry);
                layer(&entry, &mut rest, &first)?;
                rest.finish()?;
            }
            index.add(&entry)?;
        }
        Ok(index)
    }

    /// Whether a JSON member of this size may be kept.
    pub(super) fn has_room_for(&self, size: u64) -> bool {
        size <= KEEP_EACH && self.kept.values().map(|kept| kept.len() as u64).sum::<u64>() + size <= KEEP_ALL
    }

    /// Keeps the bytes of a JSON member that begins at `data`.
    pub(super) fn keep(&mut self, data: u64, bytes: Vec<u8>) {
        self.kept.insert(data, bytes);
    }

    /// Notes where a member is.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), Fault> {
        let name = normalise(&entry.name);
        let link = entry.link.as_deref().map(normalise).unwrap_or_default();
        let member = match entry.kind {
            b'0' | 0 | b'7' if !entry.sparse => {
                Member::File(Place { offset: entry.data, size: entry.stored })
            }
            b'1' => Member::Link(link),
            b'2' => Member::Link(join(&name, &link)),
            _ if entry.sparse => Member::Sparse,
            _ => Member::Other,
        };
        self.members.insert(name, member);
        if self.members.len() > MAX_MEMBERS {
            return Err(Fault::Shape(format!("more than {MAX_MEMBERS} members: this is no image archive")));
        }
        Ok(())
    }

    /// Where a named file is, links followed. `None`: not there, or not a file.
    pub(super) fn find(&self, name: &str) -> Option<Place> {
        let mut name = normalise(name.as_bytes());
        // Longer chains of links are loops.
        for _ in 0..8 {
            match self.members.get(&name)? {
                Member::File(place) => return Some(*place),
                Member::Link(target) => name.clone_from(target),
                Member::Sparse | Member::Other => return None,
            }
        }
        None
    }

    /// Whether a member is there, but with its holes left out.
    pub(super) fn is_sparse(&self, name: &str) -> bool {
        matches!(self.members.get(&normalise(name.as_bytes())), Some(Member::Sparse))
    }

    /// The bytes of a small JSON member, if they were kept while walking.
    pub(super) fn kept(&self, place: Place) -> Option<&[u8]> {
        self.kept.get(&place.offset).map(Vec::as_slice)
    }
}

/// Reads a header block; false when the file ends exactly here (some writers leave the end mark out).
fn read_block(tape: &mut impl Tape, block: &mut [u8; BLOCK as usize]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < block.len() {
        match tape.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The member's size, once the header's checksum fits.
fn check(header: &tar::Header, at: u64) -> Result<u64, Fault> {
    let bytes = header.as_bytes();
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    // Its own field counts as spaces.
    let sum = sum(bytes) - sum(&bytes[148..156]) + 8 * u32::from(b' ');
    if header.cksum().ok() != Some(sum) {
        return Err(Fault::Shape(format!("no tar header at byte {at}")));
    }
    header.entry_size().map_err(|_| Fault::Shape(format!("the tar header at byte {at} has no readable size")))
}

/// Saturates: a size near the end of the number range is then longer than any file.
fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn read_record(tape: &mut impl Tape, size: u64, at: u64, raw: &mut Vec<u8>) -> Result<Vec<u8>, Fault> {
    if size > MAX_RECORD || raw.len() as u64 > 2 * MAX_RECORD {
        return Err(Fault::Shape(format!("the name or pax record at byte {at} claims {size} bytes")));
    }
    let before = raw.len();
    tape.by_ref().take(padded(size)).read_to_end(raw)?;
    if ((raw.len() - before) as u64) < padded(size) {
        return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    let end = before + usize::try_from(size).unwrap_or(0);
    let mut record = raw[before..end].to_vec();
    while record.last() == Some(&0) {
        record.pop();
    }
    Ok(record)
}

/// What matters of pax records (`<length> <key>=<value>\n`).
#[derive(Default)]
struct Pax {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Pax {
    fn read(&mut self, mut records: &[u8]) {
        while let Some(space) = records.iter().position(|b| *b == b' ') {
            let length =
                std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let Some(record) = length.filter(|l| *l > space + 1).and_then(|l| records.get(space + 1..l - 1))
            else {
                return;
            };
            if let Some(equals) = record.iter().position(|b| *b == b'=') {
                let (key, value) = (&record[..equals], &record[equals + 1..]);
                match key {
                    b"path" => self.name = Some(value.to_vec()),
                    b"linkpath" => self.link = Some(value.to_vec()),
                    b"size" => self.size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                    key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                    _ => {}
                }
            }
            records = records.get(length.unwrap_or(records.len())..).unwrap_or_default();
        }
    }
}

/// `./a//b/` becomes `a/b`. `..` stays: what is named so is not found.
fn normalise(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

/// The member that a symbolic link of the member `from` means; out of the archive means nothing.
fn join(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." if parts.pop().is_none() => return String::new(),
            ".." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Index, Fault> {
        Index::read(&mut StreamTape(bytes), |_, _, _| Ok(()))
    }

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }

    #[test]
    fn members_are_found_by_name_long_names_and_links_included() {
        let long = format!("{}/layer.tar", "d".repeat(180));
        let bytes = archive(|builder| {
            add(builder, "a/layer.tar", b"hello");
            add(builder, &long, b"far");
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
            add(builder, "manifest.json", b"[1]");
        });
        let index = read(&bytes).unwrap();
        let place = index.find("./b/layer.tar").unwrap();
        assert_eq!(&bytes[place.offset as usize..][..place.size as usize], b"hello");
        let place = index.find(&long).unwrap();
        assert_eq!(&bytes[place.offset as usize..][..3], b"far");
        assert_eq!(index.kept(index.find("manifest.json").unwrap()), Some(&b"[1]"[..]));
        assert_eq!(index.find("../a/layer.tar"), None);
    }

    #[test]
    fn a_cut_tar_is_noticed_and_noise_is_no_tar() {
        let bytes = archive(|builder| add(builder, "a", &[7; 3000]));
        for cut in [1, 511, 513, 2000] {
            let fault = read(&bytes[..cut]).unwrap_err();
            assert!(
                matches!(fault, Fault::Io(ref e) if e.kind() == io::ErrorKind::UnexpectedEof),
                "{fault:?}"
            );
        }
        assert!(matches!(read(&[1; 1024]), Err(Fault::Shape(_))));
    }

    #[test]
    fn a_size_that_overflows_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("layer.tar").unwrap();
        header.set_size(u64::MAX - 10);
        header.set_cksum();
        let fault = read(header.as_bytes()).unwrap_err();
        assert!(matches!(fault, Fault::Shape(_) | Fault::Io(_)), "{fault:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(flips in proptest::collection::vec((0usize..4096, 0u8..=255), 0..40)) {
            let mut bytes = archive(|builder| {
                add(builder, &format!("{}/x", "n".repeat(120)), b"{}");
                add(builder, "manifest.json", b"[]");
            });
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = read(&bytes);
        }
    }
}
