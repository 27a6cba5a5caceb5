//! The outer tar of an image archive, walked once without unpacking it: where each member's bytes begin.
//!
//! Knows POSIX ustar, GNU long names, pax `path`, `linkpath` and `size`, and the old GNU sparse headers (to step
//! over them). The same index serves a seekable file and a decompressed stream: offsets count plain bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

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
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: io::BufReader::with_capacity(4096, file), position: 0, length })
    }
}

impl Read for FileTape {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Tape for FileTape {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let target = self.position.checked_add(count).filter(|target| *target <= self.length);
        let target = target.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.seek(SeekFrom::Start(target))?;
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

impl<R: Read> Tape for StreamTape<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        skip_by_reading(&mut self.0, count)
    }
}

/// Reads `count` bytes and drops them; fails with `UnexpectedEof` when there are fewer.
pub(super) fn skip_by_reading(reader: &mut impl Read, mut count: u64) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
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

impl Index {
    /// Walks a tar to its end mark.
    pub(super) fn read(tape: &mut impl Tape) -> Result<Self, Fault> {
        let mut index = Self::default();
        let mut kept = 0;
        let mut position: u64 = 0;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut pax_size: Option<u64> = None;
        loop {
            let mut header = tar::Header::new_old();
            if !read_block(tape, header.as_mut_bytes())? || header.as_bytes().iter().all(|b| *b == 0) {
                return Ok(index);
            }
            let at = position;
            position += BLOCK;
            let size = check(&header, at)?;
            match header.entry_type().as_byte() {
                kind @ (b'L' | b'K' | b'x') => {
                    let record = read_record(tape, size, at)?;
                    position += padded(size);
                    match kind {
                        b'L' => long_name = Some(record),
                        b'K' => long_link = Some(record),
                        _ => read_pax(&record, &mut long_name, &mut long_link, &mut pax_size),
                    }
                    continue;
                }
                b'g' => {
                    tape.skip(padded(size))?;
                    position = position.saturating_add(padded(size));
                    continue;
                }
                _ => {}
            }
            let size = pax_size.take().unwrap_or(size);
            let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
            let link = long_link.take().or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
            let mut sparse = header.entry_type().is_gnu_sparse();
            let mut extended = sparse && header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
            while extended {
                let mut block = [0; BLOCK as usize];
                tape.read_exact(&mut block)?;
                position += BLOCK;
                extended = block[504] == 1;
                sparse = true;
            }
            let end = size.checked_add(BLOCK).and_then(|size| position.checked_add(size));
            if end.is_none_or(|end| end > i64::MAX as u64) {
                return Err(Fault::Shape(format!(
                    "the member at byte {at} claims {size} bytes, which cannot be"
                )));
            }
            let name = normalise(&name);
            let member = match header.entry_type().as_byte() {
                b'0' | 0 | b'7' if !sparse => Member::File(Place { offset: position, size }),
                b'1' => Member::Link(link.as_deref().map(normalise).unwrap_or_default()),
                b'2' => Member::Link(join(&name, &link.as_deref().map(normalise).unwrap_or_default())),
                _ => Member::Other,
            };
            // Links and directories carry no bytes, whatever their size field says.
            let stored = if matches!(header.entry_type().as_byte(), b'1'..=b'6') { 0 } else { size };
            if stored <= KEEP_EACH && kept + stored <= KEEP_ALL {
                let bytes = read_if_json(tape, stored)?;
                if let Some(bytes) = bytes {
                    kept += stored;
                    index.kept.insert(position, bytes);
                }
                tape.skip(padded(stored) - stored)?;
            } else {
                tape.skip(padded(stored))?;
            }
            position += padded(stored);
            index.members.insert(name, member);
            if index.members.len() > MAX_MEMBERS {
                return Err(Fault::Shape(format!(
                    "more than {MAX_MEMBERS} members: this is no image archive"
                )));
            }
        }
    }

    /// Where a named file is, links followed. `None`: not there, or not a file.
    pub(super) fn find(&self, name: &str) -> Option<Place> {
        let mut name = normalise(name.as_bytes());
        // Longer chains of links are loops.
        for _ in 0..8 {
            match self.members.get(&name)? {
                Member::File(place) => return Some(*place),
                Member::Link(target) => name.clone_from(target),
                Member::Other => return None,
            }
        }
        None
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
    let sum: u32 =
        bytes.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    if header.cksum().ok() != Some(sum) {
        return Err(Fault::Shape(format!("no tar header at byte {at}")));
    }
    header.entry_size().map_err(|_| Fault::Shape(format!("the tar header at byte {at} has no readable size")))
}

/// Saturates: a size near the end of the number range is then longer than any file.
fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn read_record(tape: &mut impl Tape, size: u64, at: u64) -> Result<Vec<u8>, Fault> {
    if size > MAX_RECORD {
        return Err(Fault::Shape(format!("the name or pax record at byte {at} claims {size} bytes")));
    }
    let mut record = Vec::new();
    tape.by_ref().take(size).read_to_end(&mut record)?;
    if (record.len() as u64) < size {
        return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    tape.skip(padded(size) - size)?;
    while record.last() == Some(&0) {
        record.pop();
    }
    Ok(record)
}

/// Takes `path`, `linkpath` and `size` out of pax records (`<length> <key>=<value>\n`).
fn read_pax(
    mut records: &[u8],
    name: &mut Option<Vec<u8>>,
    link: &mut Option<Vec<u8>>,
    size: &mut Option<u64>,
) {
    while let Some(space) = records.iter().position(|b| *b == b' ') {
        let length = std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let Some(record) = length.filter(|l| *l > space + 1).and_then(|l| records.get(space + 1..l - 1))
        else {
            return;
        };
        if let Some(equals) = record.iter().position(|b| *b == b'=') {
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => *name = Some(value.to_vec()),
                b"linkpath" => *link = Some(value.to_vec()),
                b"size" => *size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                _ => {}
            }
        }
        records = &records[length.unwrap_or(records.len())..];
    }
}

/// Reads `size` bytes if they begin as JSON does, else steps over them.
fn read_if_json(tape: &mut impl Tape, size: u64) -> Result<Option<Vec<u8>>, Fault> {
    if size == 0 {
        return Ok(None);
    }
    let mut first = [0];
    tape.read_exact(&mut first)?;
    if !matches!(first[0], b'{' | b'[') {
        tape.skip(size - 1)?;
        return Ok(None);
    }
    let mut bytes = vec![first[0]];
    tape.by_ref().take(size - 1).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < size {
        return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some(bytes))
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
        let index = Index::read(&mut StreamTape(&bytes[..])).unwrap();
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
            let fault = Index::read(&mut StreamTape(&bytes[..cut])).unwrap_err();
            assert!(
                matches!(fault, Fault::Io(ref e) if e.kind() == io::ErrorKind::UnexpectedEof),
                "{fault:?}"
            );
        }
        assert!(matches!(Index::read(&mut StreamTape(&[1; 1024][..])), Err(Fault::Shape(_))));
    }

    #[test]
    fn a_size_that_overflows_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("layer.tar").unwrap();
        header.set_size(u64::MAX - 10);
        header.set_cksum();
        let fault = Index::read(&mut StreamTape(&header.as_bytes()[..])).unwrap_err();
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
            let _ = Index::read(&mut StreamTape(&bytes[..]));
        }
    }
}
