//! The 60-byte header in front of each member, as ar(5) has it: ASCII fields padded with spaces.

/// Bytes of a member header.
pub(super) const HEADER: u64 = 60;

/// A field of the header: name, offset and length.
pub(super) const FIELDS: [(&str, usize, usize); 7] = [
    ("name", 0, 16),
    ("date", 16, 12),
    ("uid", 28, 6),
    ("gid", 34, 6),
    ("mode", 40, 8),
    ("size", 48, 10),
    ("end", 58, 2),
];

/// What a member header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// The name field without its trailing spaces.
    pub(super) name: Vec<u8>,
    /// Size of the content in bytes (a BSD long name is part of it).
    pub(super) size: u64,
    /// The first field that holds something else than the format allows, and what it holds.
    pub(super) odd: Option<(&'static str, Vec<u8>)>,
    /// The first of date and mode that holds nothing, as in the headers of tables.
    pub(super) blank: Option<&'static str>,
}

/// Why 60 bytes are no header that the walk can go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bad {
    /// The two bytes at the end are not a backquote and a newline.
    End([u8; 2]),
    /// The size field is not a number.
    Size(Vec<u8>),
}

/// Reads a header; `bytes` must be 60 long.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, Bad> {
    let field = |index: usize| {
        let (_, from, length) = FIELDS[index];
        bytes.get(from..from + length).unwrap_or_default()
    };
    if field(6) != b"`\n" {
        return Err(Bad::End([
            field(6).first().copied().unwrap_or(0),
            field(6).get(1).copied().unwrap_or(0),
        ]));
    }
    // Spaces may follow and not lead: GHC, its linker and LLVM read none before the digits.
    let digits = field(5).trim_ascii_end();
    let size = std::str::from_utf8(digits)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Bad::Size(field(5).to_vec()))?;
    let odd = [(1, 10), (2, 10), (3, 10), (4, 8)]
        .into_iter()
        .find(|&(index, radix)| !is_number(field(index), radix))
        .map(|(index, _)| (FIELDS[index].0, field(index).trim_ascii_end().to_vec()));
    // Microsoft's tools know no owners.
    let blank = [1, 4].into_iter().find(|&index| field(index).trim_ascii_end().is_empty());
    let blank = blank.map(|index| FIELDS[index].0);
    Ok(Header { name: field(0).trim_ascii_end().to_vec(), size, odd, blank })
}

/// Blank, or a number with spaces behind it. Microsoft's tools write a date of `-1`.
fn is_number(field: &[u8], radix: u32) -> bool {
    let text = field.trim_ascii_end();
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    digits.iter().all(|&byte| char::from(byte).is_digit(radix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, date: &str, mode: &str, size: &str, end: &str) -> Vec<u8> {
        format!("{name:<16}{date:<12}{:<6}{:<6}{mode:<8}{size:<10}{end}", 0, 0).into_bytes()
    }

    #[test]
    fn reads_every_field() {
        let read = parse(&header("a.o/", "0", "100644", "1104", "`\n")).unwrap();
        assert_eq!(read, Header { name: b"a.o/".to_vec(), size: 1104, odd: None, blank: None });
        let blank = parse(&header("a.o/", "-1", "", "0", "`\n")).unwrap();
        assert_eq!((blank.odd, blank.blank), (None, Some("mode")));
        for mode in ["100689", " 644", "6 44"] {
            let odd = parse(&header("a.o/", "0", mode, "0", "`\n")).unwrap().odd;
            assert_eq!(odd, Some(("mode", mode.as_bytes().to_vec())));
        }
    }

    #[test]
    fn refuses_what_the_walk_cannot_go_on_from() {
        assert_eq!(parse(&header("a.o/", "0", "0", "12", "xx")), Err(Bad::End(*b"xx")));
        for size in ["", "-4", "0x10", "1 2", "1e3", " 12", "+12"] {
            assert!(matches!(parse(&header("a.o/", "0", "0", size, "`\n")), Err(Bad::Size(_))), "{size}");
        }
    }
}
