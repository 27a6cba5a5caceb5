//! A real registry: Debian's `docker-registry` on loopback, without authentication. The forge stands before it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::processes::{self, Interrupt};
use crate::trouble::{At, Trouble};

/// The registry while it runs.
pub(crate) struct Registry {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Registry {
    /// Starts it with its blobs below `place`.
    pub(crate) fn start(place: &Path, log: &Path, interrupt: &Interrupt) -> Result<Self, Trouble> {
        let address = free_address()?;
        fs::create_dir_all(place).at(place)?;
        let config = place.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http: {{addr: \"{address}\"}}\n",
            place.join("blobs").display()
        );
        fs::write(&config, text).at(&config)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        command.stdout(processes::append(log)?).stderr(processes::append(log)?);
        let mut child = processes::start(&mut command)?;
        let ready = interrupt.wait_for("docker-registry answers", Duration::from_secs(20), || {
            TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok()
        });
        if let Err(trouble) = ready {
            processes::stop(&mut child, Duration::ZERO);
            return Err(trouble);
        }
        Ok(Self { child, address })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        processes::stop(&mut self.child, Duration::from_secs(2));
    }
}

/// An address on loopback that nobody listens on at the moment.
fn free_address() -> Result<SocketAddr, Trouble> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|error| Trouble::Failed(format!("no free port on 127.0.0.1: {error}")))
}
