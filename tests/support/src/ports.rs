//! Ports for programs that must be told theirs, and that may be ended and started again on the same one.
//!
//! A port that the kernel gave and that was given back is soon somebody else's: the next connection out of this machine
//! may take it, and one that looks whether the program listens may even connect to itself. So these ports lie below the
//! range that the kernel hands out, and each is handed out once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below 32768, where Linux begins to hand out, and below the ports of the tests' Kubernetes.
const FIRST: u16 = 11_000;
const COUNT: u32 = 16_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address of loopback on which nobody listens.
///
/// # Errors
/// If all ports of the range are taken.
pub fn free_address() -> io::Result<SocketAddr> {
    // Programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(127);
    for _ in 0..COUNT {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (begin.wrapping_add(next) % COUNT) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Asked and not bound: a program that another thread starts at this moment would hold the port a little longer.
        if TcpStream::connect(address).is_err() {
            return Ok(address);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "all ports for tests are taken"))
}
