//! Where an image comes from: a docker-archive (plain or gzip'd tar) or an OCI layout (directory or tar).
//!
//! Nothing is unpacked. A plain tar is indexed by its headers and layers are read by offset; a gzip'd one is
//! decompressed once for the index (which also proves its checksum) and once more while the layers are read.

mod docker;
mod oci;
mod tape;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;

use self::tape::{Fault, FileTape, Index, Place, StreamTape, skip_by_reading};
use super::{Digest, Error};

/// The largest manifest or configuration that is read, in bytes; registries refuse larger ones.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers that are taken; no container runtime mounts more.
const MAX_LAYERS: usize = 1000;

/// An image as its source describes it. No layer has been read yet.
#[derive(Debug)]
pub struct Image {
    /// What kind of source it was, for people.
    pub kind: &'static str,
    /// The configuration, byte for byte.
    pub config: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The manifest that came with the image (OCI layouts); a docker-archive has none, one is made for it.
    pub manifest: Option<Manifest>,
    source: Source,
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
    /// gzip: goes as it is.
    Gzip,
    /// Goes as it is because the source's manifest names exactly these bytes.
    AsIs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    Member(Place),
    File(PathBuf),
}

/// The files of a source, by name.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Tar(Index),
    GzipTar(Index, Arc<Mutex<Option<Cursor>>>),
    Directory,
}

/// A decompressor that stands at some byte of the plain tar.
struct Cursor {
    decoder: MultiGzDecoder<BufReader<File>>,
    position: u64,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Image {
    /// Looks at a source: a file or directory, symbolic links followed.
    ///
    /// # Errors
    /// [`Error::NoSource`] when it is not there or of another kind, [`Error::Lie`] when it is cut or names what
    /// it does not hold.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path)?;
        if source.has("manifest.json") { docker::read(source) } else { oci::read(source) }
    }

    /// The source as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// Positions of the layers in the order in which the source is best read.
    #[must_use]
    pub fn reading_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|i| match &self.layers[*i].location {
            Location::Member(place) => place.offset,
            Location::File(_) => 0,
        });
        order
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
    fn open(path: &Path) -> Result<Self, Error> {
        let no = |why: &str| Error::NoSource { path: path.to_owned(), why: why.to_owned() };
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no("no such file; wanted a docker-archive or an OCI layout"),
            _ => Error::io(path, error),
        })?;
        if metadata.is_dir() {
            if !path.join("index.json").is_file() {
                return Err(no("a directory without index.json is no OCI layout"));
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
        let storage = match magic[..] {
            [] => return Err(no("the file is empty")),
            [0x1f, 0x8b, ..] => {
                let mut tape = StreamTape(decoder(file));
                let index = Index::read(&mut tape).and_then(|index| {
                    // To the very end: only there stands gzip's checksum.
                    io::copy(&mut tape.0, &mut io::sink())?;
                    Ok(index)
                });
                Storage::GzipTar(index.map_err(|fault| explain(path, fault, "gzip'd tar"))?, Arc::default())
            }
            [0x28, 0xb5, 0x2f, 0xfd] => {
                return Err(no("a zstd archive, which is not read; unpack it first: zstd -d"));
            }
            [b'#', b'!', ..] => {
                return Err(no("a script; run it and give its output: ./script > image.tar"));
            }
            _ => {
                let mut tape = FileTape::new(file).map_err(|error| Error::io(path, error))?;
                Storage::Tar(Index::read(&mut tape).map_err(|fault| explain(path, fault, "tar"))?)
            }
        };
        Ok(Self { path: path.to_owned(), storage })
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Where a file of the source is, and its size.
    fn find(&self, name: &str) -> Option<(Location, u64)> {
        match &self.storage {
            Storage::Tar(index) | Storage::GzipTar(index, _) => {
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
        self.find(name).ok_or_else(|| self.lie(format!("{namer} names {name:?}, which is not there")))
    }

    /// A whole small file.
    fn document(&self, name: &str, namer: &str) -> Result<Vec<u8>, Error> {
        let (location, size) = self.demand(name, namer)?;
        if size > MAX_DOCUMENT {
            return Err(self.lie(format!("{name} is {size} bytes long; at most {MAX_DOCUMENT} are read")));
        }
        if let (Storage::Tar(index) | Storage::GzipTar(index, _), Location::Member(place)) =
            (&self.storage, &location)
            && let Some(bytes) = index.kept(*place)
        {
            return Ok(bytes.to_vec());
        }
        let mut bytes = Vec::new();
        // One byte more than allowed, because a file may grow between the look and the read.
        let read = self.read(&location)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::io(&self.path, error))?;
        Ok(bytes)
    }

    fn read(&self, location: &Location) -> Result<Box<dyn Read + Send>, Error> {
        let open = |path: &Path| File::open(path).map_err(|error| Error::io(path, error));
        match (location, &self.storage) {
            (Location::File(path), _) => Ok(Box::new(open(path)?)),
            (Location::Member(place), Storage::GzipTar(_, home)) => {
                let left = home.lock().unwrap_or_else(PoisonError::into_inner).take();
                let mut cursor = match left {
                    Some(cursor) if cursor.position <= place.offset => cursor,
                    _ => Cursor { decoder: decoder(open(&self.path)?), position: 0 },
                };
                let ahead = place.offset - cursor.position;
                skip_by_reading(&mut cursor.decoder, ahead).map_err(|error| Error::io(&self.path, error))?;
                cursor.position = place.offset;
                Ok(Box::new(Exact::new(
                    GzipMember { cursor: Some(cursor), home: Arc::clone(home) },
                    place.size,
                )))
            }
            (Location::Member(place), _) => {
                let mut file = open(&self.path)?;
                file.seek(SeekFrom::Start(place.offset)).map_err(|error| Error::io(&self.path, error))?;
                Ok(Box::new(Exact::new(file, place.size)))
            }
        }
    }

    /// How a layer is stored, by its first bytes.
    fn probe(&self, location: &Location) -> Result<Stored, Error> {
        let mut magic = Vec::new();
        let read = self.read(location)?.take(4).read_to_end(&mut magic);
        read.map_err(|error| Error::io(&self.path, error))?;
        match magic[..] {
            [0x1f, 0x8b, ..] => Ok(Stored::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd] => Err(self.lie("holds a zstd layer, which a docker-archive cannot")),
            _ => Ok(Stored::Plain),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.lie(format!("{name}: {error}")))
    }

    fn lie(&self, what: impl Into<String>) -> Error {
        Error::lie(&self.path, what)
    }
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

fn decoder(file: File) -> MultiGzDecoder<BufReader<File>> {
    MultiGzDecoder::new(BufReader::with_capacity(128 * 1024, file))
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

/// A member of a gzip'd tar. Gives the decompressor back when dropped, so that the next member goes on there.
struct GzipMember {
    cursor: Option<Cursor>,
    home: Arc<Mutex<Option<Cursor>>>,
}

impl Read for GzipMember {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(cursor) = &mut self.cursor else { return Ok(0) };
        let count = cursor.decoder.read(buffer)?;
        cursor.position += count as u64;
        Ok(count)
    }
}

impl Drop for GzipMember {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.cursor.take();
    }
}

/// Exactly so many bytes, or `UnexpectedEof`.
struct Exact<R> {
    inner: Take<R>,
}

impl<R: Read> Exact<R> {
    fn new(inner: R, size: u64) -> Self {
        Self { inner: inner.take(size) }
    }
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.inner.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}
