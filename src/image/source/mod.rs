//! Where an image comes from: a docker-archive (plain, gzip'd or zstd'd tar), an OCI layout (directory or tar), or a
//! directory as `skopeo copy … dir:` writes it.
//!
//! Nothing is unpacked. A plain tar is indexed by its headers and layers are read by offset; a compressed one is
//! decompressed once for the index (which also proves its checksum) and once more while the layers are read.
//! What can be read only once, a script's output or standard input, is in [`super::stream`].

mod ahead;
mod anatomy;
mod docker;
mod hashed;
mod marks;
mod oci;
mod pieces;
mod sweep;
mod tape;
mod unpack;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::ahead::Ahead;
use self::hashed::HashedTape;
use self::pieces::{Exact, Pieces, Reel};
use self::tape::{Fault, FileTape, Index, Place, StreamTape};
use self::unpack::{Decoder, Packed};
use super::digest::Hasher;
use super::relayer::Part;
use super::{Digest, Error};

pub use self::anatomy::{Anatomy, Unit};
pub use self::marks::{Mark, Names, WholeHash};
pub(super) use self::oci::listed;
pub use self::sweep::{Sweep, Swept};
pub use self::unpack::Codec;
pub(super) use self::unpack::Unpacker;

/// The largest manifest or configuration that is read, in bytes; registries refuse larger ones.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers that are taken; no container runtime mounts more.
const MAX_LAYERS: usize = 1000;

/// An image as its source describes it. No layer has been read yet.
#[derive(Debug, Clone)]
pub struct Image {
    /// What kind of source it was, for people.
    pub kind: &'static str,
    /// The configuration, byte for byte.
    pub config: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The manifest that came with the image (OCI layouts); a docker-archive has none, one is made for it.
    pub manifest: Option<Manifest>,
    source: Arc<Source>,
}

/// A manifest, byte for byte, and its media type.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// `application/vnd.oci.image.manifest.v1+json` or Docker's.
    pub media_type: String,
    /// What is hashed and sent.
    pub bytes: Vec<u8>,
}

/// One layer of a source.
#[derive(Debug, Clone)]
pub struct Layer {
    location: Location,
    /// Its length as it stands in the source, in bytes.
    pub stored_size: u64,
    /// How it is stored.
    pub stored: Stored,
    /// Digest of the plain tar, from the configuration.
    pub diff_id: Option<Digest>,
    /// Digest of the layer as it stands in the source, where the source's manifest tells it.
    pub digest: Option<Digest>,
}

/// How a layer is stored in its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// A plain tar: is compressed on the way.
    Plain,
    /// Compressed by whoever wrote it: goes as it is, and is looked into on the way.
    Packed(Codec),
    /// Goes as it is because the source's manifest names exactly these bytes.
    AsIs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    Member(Place),
    File(PathBuf),
    /// Whole entries of a tar that stands at the place, with other headers before them and an end mark after.
    Pieces {
        of: Box<Location>,
        before: Arc<[u8]>,
        ranges: Arc<[Range<u64>]>,
    },
}

/// Bytes read at once of a layer that is looked into.
const READ: usize = 128 * 1024;
/// The same where it is hashed by BLAKE3, which takes longer for pieces that are no round number of its blocks.
const LONG_READ: usize = 512 * 1024;
/// The end mark of a tar.
const END_MARK: [u8; 1024] = [0; 1024];

/// The files of a source, by name.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Tar(Index),
    PackedTar(Index, Packed, HashMap<u64, Tarball>),
    Directory,
    /// A tar that was read once and is gone: only its index and small members are left.
    Read(Index, HashMap<u64, Stored>),
}

/// What was learned of a tar in a source by reading it.
#[derive(Debug, Clone)]
struct Tarball {
    anatomy: Result<Anatomy, String>,
    digest: Digest,
}

impl Tarball {
    fn read(bytes: &mut dyn Read) -> Result<Self, Fault> {
        let mut bytes =
            Hashing { inner: io::BufReader::with_capacity(READ, bytes), hasher: Hasher::default() };
        let anatomy = anatomy_of(&mut bytes, &mut Names::default());
        // Whatever that says: what cannot be read to its end has no digest.
        io::copy(&mut bytes, &mut io::sink())?;
        Ok(Self { anatomy: anatomy?, digest: bytes.hasher.finish() })
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        // What is in the buffer is there without reading.
        if let Ok(bytes) = self.inner.fill_buf() {
            self.hasher.update(&bytes[..count.min(bytes.len())]);
        }
        self.inner.consume(count);
    }
}

impl<R: BufRead> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Looks into a layer. One that is no tar from begin to end can still be pushed as it is.
fn anatomy_of<R: BufRead>(bytes: &mut R, names: &mut Names) -> Result<Result<Anatomy, String>, Fault> {
    match Anatomy::read(&mut HashedTape::new(bytes), names) {
        Err(Fault::Shape(why)) => Ok(Err(why)),
        Err(Fault::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err("the layer's tar ends in the middle of a member".to_owned()))
        }
        result => result,
    }
}

/// A member of a stream that looks like a layer.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its name in the archive.
    pub name: &'a str,
    /// Where it begins.
    pub position: u64,
    /// Its length as it is stored, in bytes.
    pub size: u64,
    /// How it is stored.
    pub stored: Stored,
}

/// Which image of several is meant: by a name in the archive, or a beginning of its configuration's digest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// `name:tag` as the archive has it.
    pub name: Option<&'a str>,
    /// Compressed archives: look into one-layer images on the way, for [`Image::anatomy`].
    pub anatomy: bool,
}

impl Image {
    /// Looks at a source: a file or directory, symbolic links followed.
    ///
    /// # Errors
    /// [`Error::NoSource`] when it is not there or of another kind, [`Error::Lie`] when it is cut or names what
    /// it does not hold.
    pub fn open(path: &Path, wanted: Wanted<'_>) -> Result<Self, Error> {
        Self::of(Source::open(path, wanted.anatomy)?, wanted.name)
    }

    /// Reads an archive that comes as a stream, plain or compressed, to its end. Each member that looks like a layer is
    /// given to `each`, which should read it; the image's layers are told from each other by [`position`](Self::position).
    ///
    /// # Errors
    /// As [`open`](Self::open), and what `each` says.
    pub fn read_stream(
        path: &Path,
        mut stream: Box<dyn Read + Send>,
        name: Option<&str>,
        each: &mut dyn FnMut(&Member<'_>, &mut dyn Read) -> io::Result<()>,
    ) -> Result<Self, Error> {
        let mut magic = Vec::new();
        stream.by_ref().take(4).read_to_end(&mut magic).map_err(|error| Error::io(path, error))?;
        if magic.is_empty() {
            return Err(Error::NoSource { path: path.to_owned(), why: "nothing came".to_owned() });
        }
        let codec = Codec::of(&magic);
        let stream = io::Cursor::new(magic).chain(stream);
        let stream: Box<dyn Read> = match codec {
            Some(codec) => Box::new(Decoder::new(codec, stream).map_err(|error| Error::io(path, error))?),
            None => Box::new(io::BufReader::with_capacity(128 * 1024, stream)),
        };
        let mut tape = StreamTape(stream);
        let mut layers = HashMap::new();
        let index = Index::read(&mut tape, |entry, rest, first| {
            let stored = match Codec::of(first) {
                _ if tape::begins_as_tar(first) => Stored::Plain,
                Some(codec) => Stored::Packed(codec),
                None => return Ok(()),
            };
            layers.insert(entry.data, stored);
            let name = String::from_utf8_lossy(&entry.name);
            let member = Member { name: &name, position: entry.data, size: entry.stored, stored };
            Ok(each(&member, &mut first.chain(Exact::new(rest, entry.stored - first.len() as u64)))?)
        });
        // To the very end: a writer is not stopped before it is done, and only there stands a checksum.
        let index = index.and_then(|index| {
            io::copy(&mut tape.0, &mut io::sink())?;
            Ok(index)
        });
        let kind = codec.map_or("tar", Codec::name);
        let index = index.map_err(|fault| explain(path, fault, kind))?;
        Self::of(Source { path: path.to_owned(), storage: Storage::Read(index, layers) }, name)
    }

    fn of(source: Source, name: Option<&str>) -> Result<Self, Error> {
        if !source.has("manifest.json") {
            return oci::read(source, name);
        }
        // A list is docker's; skopeo's directories have the image's own manifest under this name.
        let document = source.document("manifest.json", "the source")?;
        match document.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') if matches!(source.storage, Storage::Directory) => {
                oci::read_dir(source, document, name)
            }
            _ => docker::read(source, name),
        }
    }

    /// What the one layer of a Nix image holds. The inner error says why it cannot be split. Whether the layer is what
    /// the configuration says is another question, which can be asked at the same time: [`check_whole`](Self::check_whole). With
    /// `names` that one's marks can be made.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn anatomy(&self, names: &mut Names) -> Result<Result<Anatomy, String>, Error> {
        let location = match self.whole() {
            Ok(location) => location,
            Err(why) => return Ok(Err(why)),
        };
        if let Some(tarball) = self.source.tarball(location) {
            return Ok(tarball.anatomy.clone());
        }
        if matches!(self.source.storage, Storage::PackedTar(..)) {
            return Ok(Err("its layer is no tar".to_owned()));
        }
        if self.source.is_read() {
            return Ok(Err("it can be read only once".to_owned()));
        }
        let mut bytes = io::BufReader::with_capacity(LONG_READ, self.source.read(location)?);
        anatomy_of(&mut bytes, names).map_err(|fault| explain(self.path(), fault, "layer's tar"))
    }

    /// Reads the layer that [`anatomy`](Self::anatomy) looks into, unless that was done when the source was opened, and sees
    /// whether it is what the configuration says. Marks are those of a layer that may be much the same: up to where this
    /// one seems to be, it is not read. It gives up, with no answer, when `stop` is set.
    ///
    /// # Errors
    /// [`Error::Lie`] when it is not, and when the source cannot be read.
    pub fn check_whole(&self, marks: &[Mark], stop: &AtomicBool) -> Result<WholeHash, Error> {
        let (Ok(location), Some(said)) =
            (self.whole(), self.layers.first().and_then(|layer| layer.diff_id.as_ref()))
        else {
            return Ok(WholeHash::default());
        };
        let (is, hashed) = match self.source.tarball(location) {
            Some(tarball) => (tarball.digest.clone(), WholeHash::default()),
            None => match self.hash(location, marks, stop)? {
                Some(hashed) => (hashed.digest(), hashed),
                None => return Ok(WholeHash::default()),
            },
        };
        if is == *said {
            return Ok(hashed);
        }
        // Not by the word of a cache.
        if hashed.is_resumed() {
            return self.check_whole(&[], stop);
        }
        Err(self
            .source
            .lie(format!("a layer hashes to {is}, the configuration says {said}: one of them is damaged")))
    }

    fn hash(
        &self,
        location: &Location,
        marks: &[Mark],
        stop: &AtomicBool,
    ) -> Result<Option<WholeHash>, Error> {
        let failed = |error| explain(self.path(), Fault::Io(error), "layer's tar");
        let (path, place) = match (location, &self.source.storage) {
            (Location::Member(place), Storage::Tar(_)) => (self.path(), Some(*place)),
            (Location::File(path), _) => (path.as_path(), None),
            _ => return Err(self.source.lie("its layer cannot be read by itself")),
        };
        let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
        let place = match place {
            Some(place) => place,
            None => Place { offset: 0, size: file.metadata().map_err(failed)?.len() },
        };
        let mut hashed = WholeHash::begin(&file, place.offset, place.size, marks).map_err(failed)?;
        file.seek(SeekFrom::Start(place.offset + hashed.length())).map_err(failed)?;
        let mut bytes = io::BufReader::with_capacity(READ, Exact::new(file, place.size - hashed.length()));
        loop {
            let piece = bytes.fill_buf().map_err(failed)?;
            if piece.is_empty() {
                return Ok(Some(hashed));
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            hashed.update(piece);
            let length = piece.len();
            bytes.consume(length);
        }
    }

    /// Where the one layer of a Nix image stands as a plain tar, or why there is none.
    fn whole(&self) -> Result<&Location, String> {
        let [layer] = &self.layers[..] else {
            return Err(format!("it has {} layers, not one", self.layers.len()));
        };
        match (layer.stored, &layer.digest) {
            (Stored::Plain, _) => Ok(&layer.location),
            // A layout's plain layer stands under its diffID.
            (Stored::AsIs, digest) if *digest == layer.diff_id => Ok(&layer.location),
            _ => Err("its layer is compressed by itself".to_owned()),
        }
    }

    /// The store paths of which a layer holds entries.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn store_paths(&self, layer: &Layer) -> Result<Vec<String>, Error> {
        Ok(store_paths(self.source.probe(&layer.location)?, self.read_layer(layer)?))
    }

    /// A layer that is made of entries of the only one.
    #[must_use]
    pub fn piece(&self, anatomy: &Anatomy, part: &Part) -> Option<Layer> {
        let whole = self.layers.first()?;
        let before = Arc::from(&anatomy.parents[..]);
        let ranges = Arc::from(&part.ranges[..]);
        Some(Layer {
            location: Location::Pieces { of: Box::new(whole.location.clone()), before, ranges },
            stored_size: anatomy.parents.len() as u64 + part.bytes + END_MARK.len() as u64,
            stored: Stored::Plain,
            diff_id: None,
            digest: None,
        })
    }

    /// The source as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// How many bytes of the plain archive come before a layer.
    #[must_use]
    pub fn position(&self, layer: &Layer) -> u64 {
        match &layer.location {
            Location::Member(place) => place.offset,
            Location::File(_) => 0,
            Location::Pieces { ranges, .. } => ranges.first().map_or(0, |range| range.start),
        }
    }

    /// Opens a layer's bytes as they stand in the source. The reader ends after `stored_size` bytes or fails.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn read_layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, Error> {
        self.source.read(&layer.location)
    }
}

impl Source {
    fn open(path: &Path, anatomy: bool) -> Result<Self, Error> {
        let no = |why: &str| Error::NoSource { path: path.to_owned(), why: why.to_owned() };
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no("no such file; wanted a docker-archive or an OCI layout"),
            _ => Error::io(path, error),
        })?;
        if metadata.is_dir() {
            if !["index.json", "manifest.json"].iter().any(|name| path.join(name).is_file()) {
                return Err(no("a directory with neither index.json (OCI layout) nor manifest.json"));
            }
            return Ok(Self { path: path.to_owned(), storage: Storage::Directory });
        }
        if !metadata.is_file() {
            return Err(no("neither a file nor a directory"));
        }
        let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
        let mut magic = Vec::new();
        file.by_ref().take(4).read_to_end(&mut magic).map_err(|error| Error::io(path, error))?;
        file.rewind().map_err(|error| Error::io(path, error))?;
        let storage = match (&magic[..], Codec::of(&magic)) {
            ([], _) => return Err(no("the file is empty")),
            (_, Some(codec)) => {
                let packed = Packed::new(path, codec);
                let kind = format!("{} archive", codec.name());
                let mut tarballs = HashMap::new();
                let index = Decoder::new(codec, file)
                    .map_err(Fault::Io)
                    .and_then(|decoder| read_packed(decoder, anatomy.then_some(&mut tarballs)))
                    .map_err(|fault| explain(path, fault, &kind))?;
                Storage::PackedTar(index, packed, tarballs)
            }
            ([b'#', b'!', ..], _) => {
                return Err(no("a script, whose output can be pushed but not looked into"));
            }
            ([0xfd, b'7', b'z', b'X'] | [b'B', b'Z', b'h', _], _) => {
                return Err(no("xz or bzip2 is not read here; unpack it, or pack it with gzip or zstd"));
            }
            ([0x7f, b'E', b'L', b'F'], _) => {
                return Err(no("a program, whose output can be pushed but not looked into"));
            }
            _ => {
                let mut tape = FileTape::new(file).map_err(|error| Error::io(path, error))?;
                let index = Index::read(&mut tape, |_, _, _| Ok(()));
                Storage::Tar(index.map_err(|fault| explain(path, fault, "tar"))?)
            }
        };
        Ok(Self { path: path.to_owned(), storage })
    }

    /// What was learned of a tar when a compressed archive was opened.
    fn tarball(&self, location: &Location) -> Option<&Tarball> {
        match (location, &self.storage) {
            (Location::Member(place), Storage::PackedTar(_, _, tarballs)) => tarballs.get(&place.offset),
            _ => None,
        }
    }

    /// Whether it was a stream, of which only small members are left.
    fn is_read(&self) -> bool {
        matches!(self.storage, Storage::Read(..))
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Where a file of the source is, and its size.
    fn find(&self, name: &str) -> Option<(Location, u64)> {
        match &self.storage {
            Storage::Tar(index) | Storage::PackedTar(index, ..) | Storage::Read(index, _) => {
                index.find(name).map(|place| (Location::Member(place), place.size))
            }
            Storage::Directory => {
                let path = self.path.join(name);
                let metadata = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
                Some((Location::File(path), metadata.len()))
            }
        }
    }

    /// Like [`find`](Self::find), for a name that a manifest says is there.
    fn demand(&self, name: &str, namer: &str) -> Result<(Location, u64), Error> {
        let outside = name.starts_with('/') || name.split('/').any(|part| part == "..");
        if outside {
            return Err(self.lie(format!("{namer} names {name:?}, a path outside the archive")));
        }
        self.find(name).ok_or_else(|| match &self.storage {
            Storage::Tar(index) | Storage::PackedTar(index, ..) | Storage::Read(index, _)
                if index.is_sparse(name) =>
            {
                self.lie(format!(
                    "{name:?} is stored as a sparse file; write the archive anew without tar's -S"
                ))
            }
            _ => self.lie(format!("{namer} names {name:?}, which is not there")),
        })
    }

    /// A whole small file.
    fn document(&self, name: &str, namer: &str) -> Result<Vec<u8>, Error> {
        let (location, size) = self.demand(name, namer)?;
        if size > MAX_DOCUMENT {
            return Err(self.lie(format!("{name} is {size} bytes long; at most {MAX_DOCUMENT} are read")));
        }
        if let (
            Storage::Tar(index) | Storage::PackedTar(index, ..) | Storage::Read(index, _),
            Location::Member(place),
        ) = (&self.storage, &location)
            && let Some(bytes) = index.kept(*place)
        {
            return Ok(bytes.to_vec());
        }
        if self.is_read() {
            return Err(self.lie(format!("{name} is no JSON document, or there are too many before it")));
        }
        let mut bytes = Vec::new();
        // One byte more than allowed, because a file may grow between the look and the read.
        let read = self.read(&location)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::io(&self.path, error))?;
        Ok(bytes)
    }

    fn read(&self, location: &Location) -> Result<Box<dyn Read + Send>, Error> {
        let failed = |error| Error::io(&self.path, error);
        match location {
            Location::Pieces { of, before, ranges } => {
                let (base, size) = match &**of {
                    Location::Member(place) => (place.offset, place.size),
                    _ => (0, u64::MAX),
                };
                // Never past the layer, whatever its headers claim.
                let end = ranges.last().map_or(0, |range| range.end);
                if end > size {
                    return Err(self.lie("a member of its layer is longer than the layer"));
                }
                let file = match &**of {
                    Location::File(path) => path,
                    _ => &self.path,
                };
                let reel = match &self.storage {
                    Storage::PackedTar(_, packed, _) => {
                        let first = ranges.first().map_or(0, |range| range.start);
                        Reel::Packed(Box::new(packed.at(base + first).map_err(failed)?))
                    }
                    _ => Reel::File(File::open(file).map_err(failed)?),
                };
                let pieces = Pieces::new(reel, base, Arc::clone(ranges));
                let before = io::Cursor::new(Arc::clone(before));
                Ok(Box::new(before.chain(pieces).chain(&END_MARK[..])))
            }
            Location::File(path) => Ok(Box::new(File::open(path).map_err(|error| Error::io(path, error))?)),
            Location::Member(place) => match &self.storage {
                Storage::PackedTar(_, packed, _) => {
                    Ok(Box::new(Exact::new(packed.at(place.offset).map_err(failed)?, place.size)))
                }
                Storage::Read(..) => Err(self.lie("the stream is over and cannot be read again")),
                _ => {
                    let mut file = File::open(&self.path).map_err(failed)?;
                    file.seek(SeekFrom::Start(place.offset)).map_err(failed)?;
                    Ok(Box::new(Exact::new(file, place.size)))
                }
            },
        }
    }

    /// How a layer is stored, by its first bytes.
    fn probe(&self, location: &Location) -> Result<Stored, Error> {
        if let (Storage::Read(_, layers), Location::Member(place)) = (&self.storage, location) {
            let stored = layers.get(&place.offset).copied();
            return stored.ok_or_else(|| self.lie("a layer is neither a tar nor a compressed one"));
        }
        let mut magic = Vec::new();
        let read = self.read(location)?.take(4).read_to_end(&mut magic);
        read.map_err(|error| Error::io(&self.path, error))?;
        Ok(Codec::of(&magic).map_or(Stored::Plain, Stored::Packed))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.lie(format!("{name}: {error}")))
    }

    fn lie(&self, what: impl Into<String>) -> Error {
        Error::lie(&self.path, what)
    }
}

/// None or several images of an archive are meant.
fn choose(source: &Source, wanted: Option<&str>, meant: usize, names: &[String]) -> Error {
    let why = match (wanted, meant) {
        (_, 0) if names.is_empty() => "holds no image".to_owned(),
        (Some(wanted), 0) => format!("holds no image {wanted:?}, but these: {}", names.join(", ")),
        (Some(wanted), _) => format!("holds {meant} images {wanted:?}; all: {}", names.join(", ")),
        (None, _) => format!("holds {meant} images ({}); say which with --image NAME", names.join(", ")),
    };
    Error::NoSource { path: source.path.clone(), why }
}

/// What an image's configuration says of its layers.
#[derive(serde::Deserialize)]
struct Config {
    rootfs: Option<RootFs>,
}

#[derive(serde::Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// The store paths of which a layer holds entries; `layer` is its bytes as they are stored.
pub fn store_paths(stored: Stored, layer: impl Read) -> Vec<String> {
    match stored {
        Stored::Packed(codec) => {
            Decoder::new(codec, layer).map_or(Vec::new(), |mut plain| anatomy::store_paths(&mut plain))
        }
        _ => anatomy::store_paths(&mut io::BufReader::with_capacity(128 * 1024, layer)),
    }
}

/// Walks a compressed archive to its very end: only there stands the checksum. With `tarballs`, looks into members
/// that are tars.
fn read_packed(
    decoder: Decoder<File>,
    mut tarballs: Option<&mut HashMap<u64, Tarball>>,
) -> Result<Index, Fault> {
    let mut tape = StreamTape(Ahead::start(decoder)?);
    let index = Index::read(&mut tape, |entry, rest, first| {
        // One is what can be split; of more nothing is wanted.
        let Some(tarballs) = tarballs.as_deref_mut().filter(|found| found.len() < 2) else { return Ok(()) };
        if !tape::begins_as_tar(first) {
            return Ok(());
        }
        tarballs.insert(entry.data, Tarball::read(&mut first.chain(rest))?);
        Ok(())
    })?;
    io::copy(&mut tape.0, &mut io::sink())?;
    Ok(index)
}

fn explain(path: &Path, fault: Fault, kind: &str) -> Error {
    match fault {
        Fault::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::lie(path, format!("the {kind} is cut: it ends in the middle of a member"))
        }
        Fault::Io(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) =>
        {
            Error::lie(path, format!("the {kind} is damaged: {error}"))
        }
        Fault::Io(error) => Error::io(path, error),
        Fault::Shape(what) => Error::NoSource {
            path: path.to_owned(),
            why: format!("{what}; wanted a docker-archive or an OCI layout"),
        },
    }
}
