//! Binary caches: `<hash>.narinfo` names a compressed NAR, of which only the wanted file is kept.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::http::{self, Client};
use super::{Stream, Wanted, odd};
use crate::archive::nar::{self, Hash};
use crate::archive::nix::known::parse_hash;

/// The longest narinfo that is read, in bytes.
const NARINFO_AT_MOST: u64 = 256 * 1024;
/// Memory that a decoder may use, in KiB: what xz -9 needs.
const XZ_MEMORY: u32 = 96 * 1024;
/// The largest window of zstd, as a power of two.
const ZSTD_WINDOW: u32 = 27;

/// Where a cache is.
pub(super) enum Place {
    /// On a server; the URL without a slash at its end.
    Http(Client, String),
    /// In a directory.
    Directory(PathBuf),
}

/// Why there is no stream.
pub(super) enum Unfit {
    /// There is no narinfo of this path: it may be something else than a cache.
    NoCache,
    /// It is of no use.
    Because(String),
}

/// A file inside a NAR.
pub(super) struct Nar {
    name: String,
    size: u64,
    left: u64,
    reader: Hashing,
    expected: Hash,
    expected_size: u64,
}

impl Place {
    fn shown(&self) -> String {
        match self {
            Self::Http(_, url) => http::shown(url).to_owned(),
            Self::Directory(directory) => directory.display().to_string(),
        }
    }

    /// Opens a file of the cache; `None` if there is none.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read>>, String> {
        match self {
            Self::Http(client, url) => {
                let response = client.get(&format!("{url}/{name}"), None)?;
                match response.status() {
                    reqwest::StatusCode::OK => Ok(Some(Box::new(client.body(response)))),
                    reqwest::StatusCode::NOT_FOUND | reqwest::StatusCode::FORBIDDEN => Ok(None),
                    status => Err(format!("{name}: the server says {status}")),
                }
            }
            Self::Directory(directory) => match File::open(directory.join(name)) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!("{name}: {error}")),
            },
        }
    }
}

/// Opens the NAR of the archive's store path and reads up to the archive.
pub(super) fn open(place: Place, wanted: Wanted<'_>) -> Result<Nar, Unfit> {
    let Some((store_path, inside)) = wanted.stored else { return Err(Unfit::NoCache) };
    let shown = place.shown();
    let because = |why: String| Unfit::Because(format!("{shown}: {why}"));
    let full = store_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hash = full.get(..32).unwrap_or_default();
    let info = place.open(&format!("{hash}.narinfo")).map_err(because)?.ok_or(Unfit::NoCache)?;
    let mut text = String::new();
    info.take(NARINFO_AT_MOST).read_to_string(&mut text).map_err(|error| because(error.to_string()))?;
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim);
    let missing = |name: &str| because(format!("{hash}.narinfo has no {name}"));
    // A server may answer everything with a page.
    let its_path = field("StorePath").ok_or(Unfit::NoCache)?;
    if its_path.rsplit('/').next() != Some(full.as_str()) {
        return Err(because(format!("{hash}.narinfo is about {its_path}")));
    }
    let expected = field("NarHash").and_then(parse_hash).ok_or_else(|| missing("NarHash"))?;
    let expected_size: u64 =
        field("NarSize").and_then(|text| text.parse().ok()).ok_or_else(|| missing("NarSize"))?;
    if wanted.nar_hash.is_some_and(|known| known != expected) {
        return Err(because(
            "the cache has another build of this path: its hash is not the one in Nix's book".to_owned(),
        ));
    }
    let url = field("URL").ok_or_else(|| missing("URL"))?;
    if url.contains("://") || !Path::new(url).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(because(format!("{hash}.narinfo leads elsewhere: {url}")));
    }
    let compressed = place.open(url).map_err(because)?.ok_or_else(|| because(format!("{url} is missing")))?;
    let reader = decoder(field("Compression").unwrap_or("bzip2"), compressed).map_err(because)?;
    let mut reader =
        Hashing { reader: BufReader::with_capacity(256 * 1024, reader), hasher: Sha256::new(), size: 0 };
    let size = nar::seek_file(&mut reader, inside)
        .map_err(|error| because(format!("{url}: {error}")))?
        .ok_or_else(|| because(format!("{} is not in it", inside.display())))?;
    let name = format!("{shown}: {} of {full}", inside.display());
    Ok(Nar { name, size, left: size, reader, expected, expected_size })
}

fn decoder(compression: &str, reader: Box<dyn Read>) -> Result<Box<dyn Read>, String> {
    Ok(match compression {
        "none" => reader,
        "xz" => Box::new(lzma_rust2::XzReader::new_mem_limit(BufReader::new(reader), true, XZ_MEMORY)),
        "gzip" => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        // Its blocks have at most 900 kB: the decoder has under 4 MB of them, whatever is in the stream.
        "bzip2" => Box::new(bzip2::read::MultiBzDecoder::new(reader)),
        "zstd" => {
            let mut decoder = zstd::Decoder::new(reader).map_err(|error| error.to_string())?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(|error| error.to_string())?;
            Box::new(decoder)
        }
        other => return Err(format!("its NARs are compressed by {other}, which is not read here")),
    })
}

/// Hashes what is read.
struct Hashing {
    reader: BufReader<Box<dyn Read>>,
    hasher: Sha256,
    size: u64,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        self.size += read as u64;
        Ok(read)
    }
}

impl Read for Nar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let read = self.reader.read(buffer.get_mut(..want).unwrap_or_default())?;
        if read == 0 {
            return Err(odd("the NAR ends too early"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

impl Stream for Nar {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn finish(&mut self) -> Result<(), String> {
        // A stream that decompresses to more than it should is not read to its end.
        let left = self.expected_size.saturating_sub(self.reader.size).saturating_add(1);
        io::copy(&mut self.reader.by_ref().take(left), &mut io::sink()).map_err(|error| error.to_string())?;
        let hash: Hash = self.reader.hasher.clone().finalize().into();
        if self.reader.size != self.expected_size || hash != self.expected {
            return Err(format!("{}: the NAR has not the hash that its narinfo names", self.name));
        }
        Ok(())
    }
}
