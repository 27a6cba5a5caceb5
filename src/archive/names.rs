//! Names of members: short ones in the header, long ones in a table (GNU) or in front of the content (BSD).

use std::io;

use super::fault::What;
use super::header::HEADER;
use super::window::Window;

/// Bytes of a name that are shown.
const SHOWN_AT_MOST: usize = 512;
/// The longest name in bytes: in thin archives it is a path. One that goes on behind this has no end.
const NAME_AT_MOST: u64 = 4096;

/// Where the table of long names (`//`) stands.
#[derive(Debug, Clone, Copy, Default)]
struct Table {
    content: u64,
    size: u64,
}

/// Reads names; holds one buffer of the file.
#[derive(Debug)]
pub(super) struct Names<'a> {
    window: Window<'a>,
    table: Option<Table>,
}

impl<'a> Names<'a> {
    pub(super) fn new(window: Window<'a>) -> Self {
        Self { window, table: None }
    }

    /// Long names are in the table at `content` from now on.
    pub(super) fn table_at(&mut self, content: u64, size: u64) {
        self.table = Some(Table { content, size });
    }

    /// The first bytes of a BSD long name; the name itself if it is none.
    pub(super) fn begin(&mut self, name: &[u8], content: u64, size: u64, most: u64) -> io::Result<Vec<u8>> {
        let Some(length) = bsd_length(name) else { return Ok(name.to_vec()) };
        let bytes = self.window.hop(content, length.min(most).min(size) as usize)?;
        Ok(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec())
    }

    /// The name as people know it; the field itself where it leads nowhere.
    pub(super) fn resolve(&mut self, name: &[u8], content: u64, size: u64) -> io::Result<Vec<u8>> {
        let table = self.table.unwrap_or_default();
        if bsd_length(name).is_some_and(|length| length <= size) {
            return self.begin(name, content, size, SHOWN_AT_MOST as u64);
        }
        if let Some(offset) = gnu_offset(name).filter(|&offset| offset < table.size) {
            let left = (table.size - offset).min(NAME_AT_MOST) as usize;
            let bytes = self.window.run(table.content + offset, left)?;
            let line = bytes.split(|&byte| byte == b'\n' || byte == 0).next().unwrap_or_default();
            return Ok(line.strip_suffix(b"/").unwrap_or(line).to_vec());
        }
        Ok(match name {
            b"/" | b"//" | b"/SYM64/" => name,
            _ => name.strip_suffix(b"/").unwrap_or(name),
        }
        .to_vec())
    }

    /// What is wrong with the name of a member of `size` bytes, if anything is. `gnu` says that the archive has a table of
    /// System V: then short names end with a slash.
    pub(super) fn fault(&mut self, name: &[u8], size: u64, gnu: bool) -> io::Result<Option<What>> {
        let shown = || name.escape_ascii().to_string();
        if name.starts_with(b"#1/") {
            return Ok(match bsd_length(name) {
                None => Some(What::BadName { found: shown() }),
                Some(length) if length > size => Some(What::BsdName { length }),
                Some(_) => None,
            });
        }
        if name.starts_with(b"/") {
            let Some(offset) = gnu_offset(name) else { return Ok(Some(What::BadName { found: shown() })) };
            return self.in_table(offset);
        }
        let ends = name.contains(&b'/') || !(gnu || self.table.is_some());
        Ok((!ends).then(|| What::NameUnended { found: shown() }))
    }

    fn in_table(&mut self, offset: u64) -> io::Result<Option<What>> {
        let table = self.table.unwrap_or_default();
        if offset >= table.size {
            return Ok(Some(What::LongName { offset, table: table.size }));
        }
        let is_end = |byte: &u8| matches!(byte, b'\n' | 0);
        // The byte before it belongs to the name before it.
        let before = offset.min(1);
        let left = (table.size - offset).min(NAME_AT_MOST) + before;
        let bytes = self.window.run(table.content + offset - before, left as usize)?;
        let (before, name) = bytes.split_at(bytes.len().min(before as usize));
        if before.first().is_some_and(|byte| !is_end(byte)) {
            return Ok(Some(What::LongNameMiddle { offset }));
        }
        Ok((!name.iter().any(is_end)).then_some(What::LongNameEndless { offset }))
    }
}

/// The length in a BSD long name, `#1/<length>`.
pub(super) fn bsd_length(name: &[u8]) -> Option<u64> {
    number(name.strip_prefix(b"#1/")?)
}

/// The offset in a GNU long name, `/<offset>` or, nested in a thin archive, `/<offset>:<origin>`.
pub(super) fn gnu_offset(name: &[u8]) -> Option<u64> {
    number(name.strip_prefix(b"/")?.split(|&byte| byte == b':').next()?)
}

/// Where in the archive of its name a member of a nested thin archive has its header.
pub(super) fn nested_origin(name: &[u8]) -> Option<u64> {
    let at = name.iter().position(|&byte| byte == b':')?;
    number(name.get(at + 1..)?)
}

/// Where a nested member of `size` bytes ends in its archive.
pub(super) fn nested_end(origin: u64, size: u64) -> u64 {
    origin.saturating_add(HEADER).saturating_add(size)
}

fn number(digits: &[u8]) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if all { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

/// A name for people: control characters are shown as question marks, what is not UTF-8 is replaced.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_digits_alone() {
        assert_eq!(bsd_length(b"#1/20"), Some(20));
        assert_eq!(gnu_offset(b"/17"), Some(17));
        assert_eq!((gnu_offset(b"/17:304"), nested_origin(b"/17:304")), (Some(17), Some(304)));
        for name in [&b"#1/"[..], b"#1/x", b"#1/+2", b"#1/99999999999999999999"] {
            assert_eq!(bsd_length(name), None);
        }
        for name in [&b"/"[..], b"/x", b"//", b"/-1", b"a.o/"] {
            assert_eq!(gnu_offset(name), None);
        }
        assert_eq!(nested_end(u64::MAX, 1), u64::MAX);
    }
}
