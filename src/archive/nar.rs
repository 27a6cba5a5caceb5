//! NAR, the form in which Nix hashes and ships a store path: writing it (to hash a path), and reading one file
//! out of it as a stream.
//!
//! Format: strings are a little-endian u64 length, the bytes, zeros up to a multiple of 8. A file tree is
//! `nix-archive-1` and a node; a node is `( type regular [executable ""] contents … )`, `( type symlink target … )`
//! or `( type directory { entry ( name … node … ) } )`, entries sorted by name (source: Nix's manual, "Nix Archive
//! (NAR) format").

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Bytes read at a time.
const BUFFER: usize = 256 * 1024;
/// Folders within folders that are followed.
const DEPTH_AT_MOST: usize = 256;
/// The longest name or link target in a NAR that is read.
const TEXT_AT_MOST: u64 = 64 * 1024;
/// How the copies that a mend makes beside a file end. They belong to no store path.
pub(super) const PENDING: &str = ".sower-mend";

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Size and hash of a path as Nix counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// Bytes of the NAR.
    pub size: u64,
    /// Their SHA-256.
    pub hash: Hash,
}

/// A file that is to be taken for another one: what the tree would be after a mend.
#[derive(Debug, Clone, Copy)]
pub struct Instead<'a> {
    /// The file in the tree.
    pub path: &'a Path,
    /// Whose content counts.
    pub content: &'a Path,
}

/// Hashes the tree at `root`, each file read once from beginning to end.
///
/// # Errors
/// What cannot be read, with its path.
pub fn sum(root: &Path, instead: Option<Instead<'_>>) -> io::Result<Sum> {
    let mut writer = Writer { hasher: Some(Sha256::new()), size: 0, instead, buffer: vec![0; BUFFER] };
    writer.text(b"nix-archive-1");
    writer.node(root, 0)?;
    let hash = writer.hasher.take().unwrap_or_default().finalize().into();
    Ok(Sum { size: writer.size, hash })
}

/// The size of the tree's NAR, from its metadata alone.
///
/// # Errors
/// What cannot be looked at, with its path.
pub fn size(root: &Path) -> io::Result<u64> {
    let mut writer = Writer { hasher: None, size: 0, instead: None, buffer: Vec::new() };
    writer.text(b"nix-archive-1");
    writer.node(root, 0)?;
    Ok(writer.size)
}

/// The SHA-256 of a file's content.
///
/// # Errors
/// If it cannot be read.
pub fn file_hash(file: &File) -> io::Result<Hash> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hasher.finalize().into()),
            read => {
                hasher.update(buffer.get(..read).unwrap_or_default());
                at += read as u64;
            }
        }
    }
}

/// A hash as people write it, in hexadecimal.
#[must_use]
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hash in Nix's own base 32, which names the files in `.links`.
#[must_use]
pub fn base32(hash: &Hash) -> String {
    let digits = b"0123456789abcdfghijklmnpqrsvwxyz";
    let length = (hash.len() * 8 - 1) / 5 + 1;
    (0..length)
        .rev()
        .map(|index| {
            let (byte, bit) = (index * 5 / 8, index * 5 % 8);
            let low = u16::from(hash.get(byte).copied().unwrap_or(0));
            let high = u16::from(hash.get(byte + 1).copied().unwrap_or(0));
            let digit = ((low | (high << 8)) >> bit) & 0x1f;
            char::from(digits[usize::from(digit)])
        })
        .collect()
}

/// Adds the path to what the system says.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

struct Writer<'a> {
    hasher: Option<Sha256>,
    size: u64,
    instead: Option<Instead<'a>>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    fn padding(&mut self, length: u64) {
        let zeros = [0; 8];
        self.bytes(zeros.get(..(length.wrapping_neg() % 8) as usize).unwrap_or_default());
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes(&(text.len() as u64).to_le_bytes());
        self.bytes(text);
        self.padding(text.len() as u64);
    }

    fn texts(&mut self, texts: &[&[u8]]) {
        for text in texts {
            self.text(text);
        }
    }

    fn node(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_AT_MOST {
            return Err(at(path)(io::Error::other("more than 256 folders within each other")));
        }
        let meta = fs::symlink_metadata(path).map_err(at(path))?;
        self.texts(&[b"(", b"type"]);
        if meta.is_file() {
            self.text(b"regular");
            if meta.mode() & 0o100 != 0 {
                self.texts(&[b"executable", b""]);
            }
            self.text(b"contents");
            self.contents(path, &meta)?;
        } else if meta.is_symlink() {
            let target = fs::read_link(path).map_err(at(path))?;
            self.texts(&[b"symlink", b"target", target.as_os_str().as_bytes()]);
        } else if meta.is_dir() {
            self.text(b"directory");
            let mut names: Vec<_> = fs::read_dir(path)
                .map_err(at(path))?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()
                .map_err(at(path))?;
            names.retain(|name| !name.as_bytes().ends_with(PENDING.as_bytes()));
            names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            for name in names {
                self.texts(&[b"entry", b"(", b"name", name.as_bytes(), b"node"]);
                self.node(&path.join(&name), depth + 1)?;
                self.text(b")");
            }
        } else {
            return Err(at(path)(io::Error::other("neither file, link nor directory: no store path has it")));
        }
        self.text(b")");
        Ok(())
    }

    fn contents(&mut self, path: &Path, meta: &fs::Metadata) -> io::Result<()> {
        let other = self.instead.filter(|instead| instead.path == path).map(|instead| instead.content);
        if self.hasher.is_none() {
            let size = meta.len();
            self.size += 8 + size + size.wrapping_neg() % 8;
            return Ok(());
        }
        let content = other.unwrap_or(path);
        let mut file = File::open(content).map_err(at(content))?;
        let size = if other.is_some() { file.metadata().map_err(at(content))?.len() } else { meta.len() };
        self.bytes(&size.to_le_bytes());
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let want = left.min(BUFFER as u64) as usize;
            let read = file.read(buffer.get_mut(..want).unwrap_or_default()).map_err(at(content))?;
            if read == 0 {
                return Err(at(content)(io::Error::other("it became shorter while it was read")));
            }
            self.bytes(buffer.get(..read).unwrap_or_default());
            left -= read as u64;
        }
        self.buffer = buffer;
        self.padding(size);
        Ok(())
    }
}

/// Reads a NAR up to the content of the file `wanted` (below its root; empty: the root itself) and gives that
/// file's size; the reader then stands at its first byte. `None` if there is no such file.
///
/// # Errors
/// If it cannot be read or is no NAR.
pub fn seek_file(reader: &mut dyn Read, wanted: &Path) -> io::Result<Option<u64>> {
    let mut reader = Tokens { reader };
    reader.expect("nix-archive-1")?;
    reader.node(PathBuf::new(), wanted, 0)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no NAR: {what}"))
}

struct Tokens<'a> {
    reader: &'a mut dyn Read,
}

impl Tokens<'_> {
    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut Read::take(&mut *self.reader, length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(wrong("it ends too early")) }
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        if length > TEXT_AT_MOST {
            return Err(wrong("a name of more than 64 KiB"));
        }
        let mut text = vec![0; length as usize];
        self.reader.read_exact(&mut text)?;
        self.skip(length.wrapping_neg() % 8)?;
        Ok(text)
    }

    fn expect(&mut self, text: &str) -> io::Result<()> {
        let found = self.text()?;
        if found == text.as_bytes() {
            return Ok(());
        }
        Err(wrong(&format!("\"{text}\" expected and \"{}\" found", found.escape_ascii())))
    }

    fn node(&mut self, here: PathBuf, wanted: &Path, depth: usize) -> io::Result<Option<u64>> {
        if depth > DEPTH_AT_MOST {
            return Err(wrong("more than 256 folders within each other"));
        }
        self.expect("(")?;
        self.expect("type")?;
        match self.text()?.as_slice() {
            b"regular" => {
                let mut word = self.text()?;
                if word == b"executable" {
                    self.expect("")?;
                    word = self.text()?;
                }
                // An empty file may come without content.
                if word == b")" {
                    return Ok((here == wanted).then_some(0));
                }
                if word != b"contents" {
                    return Err(wrong("a file without content"));
                }
                let size = self.number()?;
                if here == wanted {
                    return Ok(Some(size));
                }
                self.skip(size.checked_add(size.wrapping_neg() % 8).ok_or_else(|| wrong("a size"))?)?;
            }
            b"symlink" => {
                self.expect("target")?;
                self.text()?;
            }
            b"directory" => loop {
                match self.text()?.as_slice() {
                    b")" => return Ok(None),
                    b"entry" => {}
                    _ => return Err(wrong("a directory's entry")),
                }
                self.expect("(")?;
                self.expect("name")?;
                let name = self.text()?;
                if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
                    return Err(wrong("a name that leads elsewhere"));
                }
                self.expect("node")?;
                let below = here.join(std::ffi::OsStr::from_bytes(&name));
                if let Some(size) = self.node(below, wanted, depth + 1)? {
                    return Ok(Some(size));
                }
                self.expect(")")?;
            },
            _ => return Err(wrong("a node of no known type")),
        }
        self.expect(")")?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_the_hash_that_nix_gives_it() {
        // nix hash path --base32, of a folder with an executable `a` ("hello\n") and a link `b` to it.
        let directory = tempfile::TempDir::new().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a"), "hello\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(tree.join("a"), executable).unwrap();
        std::os::unix::fs::symlink("a", tree.join("b")).unwrap();
        fs::write(tree.join(".a.sower-mend"), "pending").unwrap();
        let sum = sum(&tree, None).unwrap();
        assert_eq!(base32(&sum.hash), "0hcic9ckh3z3v67n7nic6gfynw01irkm8y4w4ng5i53462cpfydj");
        assert_eq!(size(&tree).unwrap(), sum.size);
    }

    #[test]
    fn hostile_streams_are_refused() {
        let texts = |texts: &[&str]| {
            let mut bytes = Vec::new();
            for text in texts {
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
                bytes.resize(bytes.len().next_multiple_of(8), 0);
            }
            bytes
        };
        let begin = ["nix-archive-1", "(", "type", "directory", "entry", "(", "name"];
        for name in ["..", "a/b", "", "."] {
            let bytes = texts(&[&begin[..], &[name, "node"]].concat());
            assert!(seek_file(&mut bytes.as_slice(), Path::new("x")).is_err(), "{name}");
        }
        assert!(seek_file(&mut [0xff; 64].as_slice(), Path::new("x")).is_err());
        let deep: Vec<&str> = ["(", "type", "directory", "entry", "(", "name", "d", "node"].repeat(400);
        let bytes = texts(&[&["nix-archive-1"][..], &deep].concat());
        assert!(seek_file(&mut bytes.as_slice(), Path::new("x")).is_err());
    }
}
