//! The part of SOCKS 5 (RFC 1928) that a client on loopback needs: no log-in, CONNECT.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const VERSION: u8 = 5;
const NO_LOG_IN: u8 = 0;
const CONNECT: u8 = 1;

/// Greets a client and reads where it wants to go; `None` if it speaks something else, or wants something else.
pub(super) async fn wanted(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<(String, u16)> {
    let asked = async {
        let [version, methods] = read(stream).await?;
        let mut offered = vec![0; usize::from(methods)];
        stream.read_exact(&mut offered).await?;
        if version != VERSION || !offered.contains(&NO_LOG_IN) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        stream.write_all(&[VERSION, NO_LOG_IN]).await?;
        let [version, command, _, kind] = read(stream).await?;
        if (version, command) != (VERSION, CONNECT) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let host = match kind {
            1 => Ipv4Addr::from(read::<4>(stream).await?).to_string(),
            3 => {
                let [length] = read(stream).await?;
                let mut name = vec![0; usize::from(length)];
                stream.read_exact(&mut name).await?;
                String::from_utf8(name).map_err(io::Error::other)?
            }
            4 => Ipv6Addr::from(read::<16>(stream).await?).to_string(),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok::<_, io::Error>((host, u16::from_be_bytes(read(stream).await?)))
    };
    asked.await.ok()
}

/// Says whether the connection is there.
pub(super) async fn answer(stream: &mut (impl AsyncWrite + Unpin), there: bool) -> io::Result<()> {
    // The code for a refused connection; the address of this end, which nobody asks for.
    let code = if there { 0 } else { 5 };
    stream.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(bytes: &[u8]) -> Option<(String, u16)> {
        let (mut client, mut server) = tokio::io::duplex(256);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        wanted(&mut server).await
    }

    #[tokio::test]
    async fn places_are_names_and_addresses() {
        let name = b"\x05\x01\x00\x05\x01\x00\x03\x06a.test\x01\xbb";
        assert_eq!(asked(name).await, Some(("a.test".to_owned(), 443)));
        let four = b"\x05\x02\x02\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50";
        assert_eq!(asked(four).await, Some(("127.0.0.1".to_owned(), 80)));
        let mut six = b"\x05\x01\x00\x05\x01\x00\x04".to_vec();
        six.extend(Ipv6Addr::LOCALHOST.octets());
        six.extend([0, 80]);
        assert_eq!(asked(&six).await, Some(("::1".to_owned(), 80)));
        for rubbish in [
            &b""[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x04\x01",
            b"\x05\x01\x02",
            b"\x05\x01\x00\x05\x02\x00\x01",
        ] {
            assert_eq!(asked(rubbish).await, None);
        }
    }
}
