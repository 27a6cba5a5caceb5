//! Files on hosts that are reached over SSH, by SFTP: only the missing part is read.

use std::io::Write;

use super::Parts;
use crate::ssh::{Connection, FileKind, Options, Target};

/// A file over there.
pub(super) struct Ssh {
    connection: Connection,
    path: String,
    size: u64,
}

/// Connects; host keys must be known, keys come from the usual files, the agent or the environment.
pub(super) fn open(host: &str, path: &str, name: &str) -> Result<Ssh, String> {
    let words = |error: crate::ssh::Error| format!("ssh://{host}{path}: {error}");
    let target: Target = host.parse().map_err(words)?;
    let connection = Connection::open(&target, &Options::from_environment()).map_err(words)?;
    let mut path = path.to_owned();
    let mut sftp = connection.sftp().map_err(words)?;
    let mut status = sftp.status_of(&path).map_err(words)?;
    if status.kind == FileKind::Directory {
        path = format!("{}/{name}", path.trim_end_matches('/'));
        status = sftp.status_of(&path).map_err(words)?;
    }
    drop(sftp);
    if status.kind != FileKind::File {
        return Err(format!("ssh://{host}{path}: it is not a file"));
    }
    Ok(Ssh { connection, path, size: status.size })
}

impl Parts for Ssh {
    fn name(&self) -> String {
        format!("ssh://{}{}", self.connection.host(), self.path)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn copy(&mut self, from: u64, length: u64, sink: &mut dyn Write) -> Result<(), String> {
        let words = |error: crate::ssh::Error| format!("{}: {error}", self.name());
        let mut sftp = self.connection.sftp().map_err(words)?;
        let read = sftp.read(&self.path, from, Some(length), sink).map_err(words)?;
        if read == length {
            Ok(())
        } else {
            Err(format!("{}: it became shorter while it was read", self.name()))
        }
    }
}
