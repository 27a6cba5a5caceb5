//! Where a whole copy of an archive may come from.
//!
//! Files, HTTP servers and SSH hosts give any part of the copy: only what is missing is fetched. A binary cache (and a
//! server that knows no ranges) gives a stream, of which only the wanted file is kept.
//!
//! | Module | Holds |
//! | --- | --- |
//! | `http` | `http(s)://`, by ranges |
//! | `ssh` | `ssh://`, by SFTP |
//! | `cache` | the NARs of a binary cache: narinfo, decompression |

mod cache;
mod http;
mod ssh;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::nar::Hash;

/// What a donor may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `nix store repair` with the configured substituters.
    Nix,
    /// A file; a directory that holds a file of the same name (at any depth) or is a store of its own; a binary cache in a
    /// directory.
    Path(PathBuf),
    /// `http://` or `https://`: the file itself, a folder that holds it, or a binary cache.
    Http(String),
    /// `ssh://[user@]host[:port]/path`: the file, or a directory that holds it.
    Ssh {
        /// `[user@]host[:port]`.
        host: String,
        /// The path there.
        path: String,
    },
}

impl Source {
    /// Reads a source as the command line has it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "nix" {
            return Ok(Self::Nix);
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (host, path) = rest.split_once('/').ok_or("after ssh://host there must be a path")?;
            if host.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
                return Err("no password belongs into an argument: use a key or the agent".to_owned());
            }
            host.parse::<crate::ssh::Target>().map_err(|error| error.to_string())?;
            return Ok(Self::Ssh { host: host.to_owned(), path: format!("/{path}") });
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            let url = reqwest::Url::parse(text).map_err(|error| format!("{text}: {error}"))?;
            if !url.username().is_empty() || url.password().is_some() {
                return Err("no password belongs into an argument or a URL".to_owned());
            }
            return Ok(Self::Http(text.to_owned()));
        }
        if let Some(path) = text.strip_prefix("file://") {
            return Ok(Self::Path(path.into()));
        }
        match text.split_once("://") {
            Some((scheme, _)) => Err(format!("{scheme}:// is not a source that is known here")),
            None => Ok(Self::Path(text.into())),
        }
    }
}

/// The archive that a donor is wanted for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Its file name.
    pub(super) name: &'a str,
    /// Its store path, and the path of the file in it.
    pub(super) stored: Option<(&'a Path, &'a Path)>,
    /// The hash of the store path by Nix's book.
    pub(super) nar_hash: Option<Hash>,
}

/// A donor that was reached.
pub(super) enum Donor {
    /// It gives any part.
    Parts(Box<dyn Parts>),
    /// It gives everything from the beginning.
    Stream(Box<dyn Stream>),
}

/// A copy of which any part can be had.
pub(super) trait Parts {
    /// In words.
    fn name(&self) -> String;
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// Writes `length` bytes from `from` on into `sink`.
    ///
    /// # Errors
    /// What went wrong; also what `sink` says.
    fn copy(&mut self, from: u64, length: u64, sink: &mut dyn Write) -> Result<(), String>;
}

/// A copy that comes from the beginning.
pub(super) trait Stream: Read {
    /// In words.
    fn name(&self) -> String;
    /// The size of the copy in bytes.
    fn size(&self) -> u64;
    /// Reads what follows the copy and compares hashes, if the donor names one.
    ///
    /// # Errors
    /// If they do not agree.
    fn finish(&mut self) -> Result<(), String>;
}

/// Reaches a donor that is not a plain file.
///
/// # Errors
/// Why it is of no use.
pub(super) fn reach(source: &Source, wanted: Wanted<'_>) -> Result<Donor, String> {
    match source {
        Source::Http(url) => {
            let client = http::Client::new()?;
            let last = url.split(['?', '#']).next().unwrap_or(url).rsplit('/').next().unwrap_or_default();
            let is_file = last == wanted.name || last.ends_with(".a") || last.ends_with(".rlib");
            if !is_file && wanted.stored.is_some() {
                let place = cache::Place::Http(client.clone(), url.trim_end_matches('/').to_owned());
                match cache::open(place, wanted) {
                    Ok(stream) => return Ok(Donor::Stream(Box::new(stream))),
                    Err(cache::Unfit::NoCache) => {}
                    Err(cache::Unfit::Because(why)) => return Err(why),
                }
            }
            let url =
                if is_file { url.clone() } else { format!("{}/{}", url.trim_end_matches('/'), wanted.name) };
            http::open(client, &url)
        }
        Source::Ssh { host, path } => Ok(Donor::Parts(Box::new(ssh::open(host, path, wanted.name)?))),
        Source::Path(directory) => match cache::open(cache::Place::Directory(directory.clone()), wanted) {
            Ok(stream) => Ok(Donor::Stream(Box::new(stream))),
            Err(cache::Unfit::NoCache) => Err(format!("{}: it is no binary cache", directory.display())),
            Err(cache::Unfit::Because(why)) => Err(why),
        },
        Source::Nix => Err("nix: it gives no parts".to_owned()),
    }
}

/// Whether a directory is a binary cache.
pub(super) fn is_cache(directory: &Path) -> bool {
    directory.join("nix-cache-info").is_file()
}

fn odd(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_as_the_command_line_has_them() {
        assert_eq!(Source::parse("nix"), Ok(Source::Nix));
        assert_eq!(Source::parse("/mnt/backup"), Ok(Source::Path("/mnt/backup".into())));
        assert_eq!(Source::parse("file:///mnt/cache"), Ok(Source::Path("/mnt/cache".into())));
        let ssh = Source::Ssh { host: "root@h.test:2222".to_owned(), path: "/nix/store/x/libx.a".to_owned() };
        assert_eq!(Source::parse("ssh://root@h.test:2222/nix/store/x/libx.a"), Ok(ssh));
        for text in
            ["ssh://host", "ssh://u:secret@host/x", "https://u:p@h.test/x.a", "ftp://h/x.a", "http://"]
        {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}
