//! The archives of version 4 artifacts: ZIP, deflated. They hold permissions, which unpacking leaves aside, as with the
//! originals.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::Stop;

/// The type of such archives.
pub(super) const TYPE: &str = "application/zip";
/// How much is copied at once, in bytes.
const PIECE: usize = 64 * 1024;

/// A file and its name in the archive.
#[derive(Debug)]
pub(super) struct Member {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its name there, with `/`.
    pub(super) name: String,
}

/// Packs files; level 0 stores them. Gives the size and the SHA-256 of the archive.
///
/// # Errors
/// When a file cannot be read, or the archive not be written, or the job has to stop.
pub(super) fn pack(archive: &Path, members: &[Member], level: u8, stop: &Stop) -> io::Result<(u64, String)> {
    let named = |error: io::Error| name_error(archive, &error);
    let file = File::create(archive).map_err(named)?;
    let mut zip = ZipWriter::new(io::BufWriter::new(file));
    let mut buffer = vec![0; PIECE];
    for member in members {
        let at = |error: io::Error| name_error(&member.path, &error);
        let mut from = File::open(&member.path).map_err(at)?;
        let meta = from.metadata().map_err(at)?;
        let method = if level == 0 { CompressionMethod::Stored } else { CompressionMethod::Deflated };
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .compression_level((level > 0).then_some(i64::from(level)))
            .last_modified_time(time(&meta))
            .unix_permissions(meta.mode() & 0o7777)
            .large_file(meta.len() >= u64::from(u32::MAX) - (1 << 20));
        zip.start_file(member.name.as_str(), options).map_err(io::Error::from)?;
        loop {
            stop.check()?;
            match from.read(&mut buffer).map_err(at)? {
                0 => break,
                count => zip.write_all(&buffer[..count]).map_err(named)?,
            }
        }
    }
    zip.finish().map_err(io::Error::from)?.into_inner().map_err(|error| named(error.into_error()))?;
    let (size, digest) = digest(archive)?;
    Ok((size, digest))
}

/// The size and the SHA-256 of a file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path).map_err(|error| name_error(path, &error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Whether what was downloaded is an archive: by its type, where the service says one that says something, or by how
/// it begins.
pub(super) fn is_archive(kind: Option<&str>, url_path: &str, file: &Path) -> bool {
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        TYPE | "application/x-zip-compressed" | "application/zip-compressed" => true,
        _ if url_path.to_ascii_lowercase().ends_with(".zip") => true,
        "" | "application/octet-stream" | "binary/octet-stream" => {
            let mut begin = [0; 4];
            let read = File::open(file).and_then(|mut file| file.read_exact(&mut begin));
            read.is_ok() && matches!(&begin, b"PK\x03\x04" | b"PK\x05\x06")
        }
        _ => false,
    }
}

/// Unpacks an archive into a folder. A name that leads out of it is an error.
///
/// # Errors
/// When it is no archive or a broken one, a file cannot be written, or the job has to stop.
pub(super) fn unpack(archive: &Path, folder: &Path, stop: &Stop) -> io::Result<()> {
    let file = File::open(archive).map_err(|error| name_error(archive, &error))?;
    let mut zip = ZipArchive::new(io::BufReader::new(file)).map_err(io::Error::from)?;
    let mut buffer = vec![0; PIECE];
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(io::Error::from)?;
        let name = entry.name().map_err(io::Error::from)?.replace('\\', "/");
        let inner = Path::new(name.trim_start_matches('/'));
        if !inner.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(io::Error::other(format!(
                "the archive holds {name:?}, which leads out of the folder"
            )));
        }
        let path = folder.join(inner);
        let at = |error: io::Error| name_error(&path, &error);
        if entry.is_dir() {
            fs::create_dir_all(&path).map_err(at)?;
            continue;
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| name_error(parent, &error))?;
        }
        let mut out = File::create(&path).map_err(at)?;
        loop {
            stop.check()?;
            match entry.read(&mut buffer).map_err(at)? {
                0 => break,
                count => out.write_all(&buffer[..count]).map_err(at)?,
            }
        }
    }
    Ok(())
}

fn time(meta: &fs::Metadata) -> DateTime {
    let seconds = i64::try_from(super::tape::modified(meta).as_secs()).unwrap_or(0);
    let Ok(time) = jiff::Timestamp::from_second(seconds) else { return DateTime::default() };
    let text = time.strftime("%Y %m %d %H %M %S").to_string();
    let parts: Vec<u16> = text.split(' ').filter_map(|part| part.parse().ok()).collect();
    let [year, rest @ ..] = &parts[..] else { return DateTime::default() };
    let rest: Vec<u8> = rest.iter().filter_map(|part| u8::try_from(*part).ok()).collect();
    let [month, day, hour, minute, second] = rest[..] else { return DateTime::default() };
    // Before 1980 there was no such archive.
    DateTime::from_date_and_time(*year, month, day, hour, minute, second).unwrap_or_default()
}

fn name_error(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, vec![b'x'; 300_000]).unwrap();
        for level in [0, 6, 9] {
            let archive = folder.path().join("a.zip");
            let member = |name: &str| Member { path: file.clone(), name: name.to_owned() };
            let stop = Stop::never();
            let (size, sum) = pack(&archive, &[member("a"), member("b/ö")], level, &stop).unwrap();
            assert_eq!(size > 600_000, level == 0);
            assert_eq!(digest(&archive).unwrap(), (size, sum));
            let out = tempfile::tempdir().unwrap();
            unpack(&archive, out.path(), &stop).unwrap();
            assert_eq!(fs::read(out.path().join("b/ö")).unwrap().len(), 300_000);
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.zip");
        let mut zip = ZipWriter::new(File::create(&archive).unwrap());
        zip.start_file("../x", SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        assert!(unpack(&archive, &inner, &Stop::never()).unwrap_err().to_string().contains("leads out"));
        assert!(!folder.path().join("x").exists());
        fs::write(&archive, "no archive").unwrap();
        assert!(unpack(&archive, &inner, &Stop::never()).is_err());
    }
}
