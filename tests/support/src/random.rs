//! Tokens and identifiers that cannot be guessed and never repeat.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};

/// `count` random bytes in hexadecimal.
pub(crate) fn hex(count: usize) -> io::Result<String> {
    let mut bytes = vec![0_u8; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(count * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// A random UUID of version 4.
pub(crate) fn uuid() -> io::Result<String> {
    let hex = hex(16)?;
    Ok(format!("{}-{}-4{}-a{}-{}", &hex[0..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]))
}
