//! What several rooms need of mounts: a namespace of a thread's own, and paths as the kernel lists them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::thread::UnshareFlags;

/// Gives this thread, and what it starts from now on, a mount namespace of its own. Other threads keep theirs. Mounts that
/// are shared still spread: who mounts something changes the propagation first.
///
/// # Errors
/// When the process may not (only root may), or the kernel has none.
#[expect(
    unsafe_code,
    reason = "unshare can take file descriptors apart between threads; only mounts are asked for"
)]
pub fn own_namespace() -> io::Result<()> {
    // SAFETY: NEWNS does not touch the table of file descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(io::Error::from)
}

/// A path of `/proc/PID/mountinfo`, where blanks, tabs, line ends and backslashes stand as `\040` and so on (source:
/// proc_pid_mountinfo(5)).
#[must_use]
pub fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte == b'\\'
            && let Some((digits, behind)) = rest.split_at_checked(3)
            && digits.iter().all(u8::is_ascii_digit)
            && let Some(value) =
                std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 8).ok())
        {
            bytes.push(value);
            rest = behind;
        } else {
            bytes.push(byte);
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn escaped_places_are_read() {
        assert_eq!(unescaped(br"/a\040b\134c"), Path::new("/a b\\c"));
        assert_eq!(unescaped(br"/a\+12\9\04"), Path::new(r"/a\+12\9\04"));
    }
}
