//! Object files inside an archive: whether what their headers name lies inside them. A member that was cut before it was
//! archived has a header of the archive that is right, and an object that is not.
//!
//! Layouts: ELF's `Elf32_Ehdr` and `Elf64_Ehdr`, Mach-O's `mach_header`, `segment_command` and `symtab_command`. Anything
//! else (LLVM bitcode, Go's objects, text) is taken as it is.

/// Bytes of a Mach-O member that are looked at, at most.
pub(super) const LOOKED_AT: usize = 8192;
/// Bytes at the beginning of a member that say what it is.
pub(super) const FIRST: usize = 64;

/// Something that ends behind the end of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun {
    /// Which format.
    pub(super) format: &'static str,
    /// What it is.
    pub(super) part: &'static str,
    /// Where it ends.
    pub(super) end: u64,
}

/// Looks at an object of `size` bytes by its first bytes.
pub(super) fn overrun(first: &[u8], size: u64) -> Option<Overrun> {
    match first.get(..4)? {
        b"\x7fELF" => elf(first, size),
        _ if is_mach(first) => mach(first, size),
        _ => None,
    }
}

/// Whether these are the first bytes of a Mach-O object, of either width and byte order.
pub(super) fn is_mach(first: &[u8]) -> bool {
    matches!(first, [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] | [0xfe, 0xed, 0xfa, 0xcf | 0xce, ..])
}

/// The section headers of an ELF object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sections {
    /// Where they begin.
    pub(super) offset: u64,
    /// Bytes of each.
    pub(super) entry: u64,
    /// How many; 0: the first one says it.
    pub(super) count: u64,
    /// Which one describes the names of sections; 0: none does, 0xffff: the first one says it.
    pub(super) names: u64,
    wide: bool,
    big_endian: bool,
}

/// One section header of an ELF object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    /// `SHT_…`: 3 is a table of strings.
    pub(super) kind: u64,
    /// Where its content ends; 0 if it has none in the file.
    pub(super) end: u64,
    /// Its size.
    pub(super) size: u64,
    /// `sh_link`.
    pub(super) link: u64,
}

/// A table of strings (`SHT_STRTAB`).
pub(super) const STRINGS: u64 = 3;

/// Where an ELF object has its section headers, if it is one and has some.
pub(super) fn sections(first: &[u8]) -> Option<Sections> {
    if !first.starts_with(b"\x7fELF") {
        return None;
    }
    let (wide, big_endian) = (*first.get(4)? == 2, *first.get(5)? == 2);
    let numbers = Numbers { bytes: first, big_endian };
    let (offset, at) = if wide { (numbers.at(40, 8)?, 58) } else { (numbers.at(32, 4)?, 46) };
    let (entry, count, names) = (numbers.at(at, 2)?, numbers.at(at + 2, 2)?, numbers.at(at + 4, 2)?);
    let usual = if wide { 64 } else { 40 };
    (offset != 0 && entry >= usual).then_some(Sections { offset, entry, count, names, wide, big_endian })
}

impl Sections {
    /// Reads one section header.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Section> {
        let numbers = Numbers { bytes, big_endian: self.big_endian };
        let kind = numbers.at(4, 4)?;
        let (offset, size, link) = if self.wide {
            (numbers.at(24, 8)?, numbers.at(32, 8)?, numbers.at(40, 4)?)
        } else {
            (numbers.at(16, 4)?, numbers.at(20, 4)?, numbers.at(24, 4)?)
        };
        // SHT_NULL and SHT_NOBITS have nothing in the file.
        let end = if matches!(kind, 0 | 8) { 0 } else { offset.saturating_add(size) };
        Some(Section { kind, end, size, link })
    }

    /// Where they end.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.entry.saturating_mul(self.count))
    }
}

/// Numbers of a header, in the byte order that it names.
struct Numbers<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Numbers<'_> {
    fn at(&self, position: usize, width: usize) -> Option<u64> {
        let bytes = self.bytes.get(position..position.checked_add(width)?)?;
        let fold = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) })
    }
}

fn elf(first: &[u8], size: u64) -> Option<Overrun> {
    let wide = match first.get(4)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let numbers = Numbers { bytes: first, big_endian: *first.get(5)? == 2 };
    let over = |part, end: u64| (end > size).then_some(Overrun { format: "ELF", part, end });
    let header = if wide { 64 } else { 52 };
    if size < header {
        return over("header", header);
    }
    let table = |offset: usize, width: usize, entry: usize, count: usize| {
        let offset = numbers.at(offset, width)?;
        // With too many sections for the field, the first one holds the number: it at least must be there.
        let count = numbers.at(count, 2)?.max(u64::from(offset != 0));
        Some(if offset == 0 { 0 } else { offset.saturating_add(numbers.at(entry, 2)?.saturating_mul(count)) })
    };
    let (programs, sections) = if wide {
        (table(32, 8, 54, 56)?, table(40, 8, 58, 60)?)
    } else {
        (table(28, 4, 42, 44)?, table(32, 4, 46, 48)?)
    };
    over("section headers", sections).or_else(|| over("program headers", programs))
}

fn mach(first: &[u8], size: u64) -> Option<Overrun> {
    let big_endian = *first.first()? == 0xfe;
    let numbers = Numbers { bytes: first, big_endian };
    let wide = *first.get(if big_endian { 3 } else { 0 })? == 0xcf;
    let over = |part, end: u64| (end > size).then_some(Overrun { format: "Mach-O", part, end });
    let header: usize = if wide { 32 } else { 28 };
    if size < header as u64 {
        return over("header", header as u64);
    }
    let commands = over("load commands", (header as u64).saturating_add(numbers.at(20, 4)?));
    if commands.is_some() {
        return commands;
    }
    let mut at = header;
    for _ in 0..numbers.at(16, 4)?.min(64) {
        let (Some(command), Some(length)) = (numbers.at(at, 4), numbers.at(at + 4, 4)) else { break };
        let ends = match command {
            0x19 => numbers
                .at(at + 40, 8)
                .zip(numbers.at(at + 48, 8))
                .map(|(from, size)| from.saturating_add(size)),
            0x01 => numbers.at(at + 32, 4).zip(numbers.at(at + 36, 4)).map(|(from, size)| from + size),
            0x02 => {
                let strings = numbers.at(at + 16, 4).zip(numbers.at(at + 20, 4));
                let symbols = numbers.at(at + 8, 4).zip(numbers.at(at + 12, 4));
                let symbols = symbols.map_or(0, |(from, count)| from + count * if wide { 16 } else { 12 });
                strings.map(|(from, size)| symbols.max(from + size))
            }
            _ => Some(0),
        };
        let found = ends.and_then(|end| over(if command == 0x02 { "symbols" } else { "segment" }, end));
        if found.is_some() {
            return found;
        }
        at = at.checked_add(usize::try_from(length.max(8)).ok()?)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf64(sections: u64, count: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[40..48].copy_from_slice(&sections.to_le_bytes());
        bytes[58..60].copy_from_slice(&64_u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    #[test]
    fn tables_behind_the_end_are_found() {
        let object = elf64(1000, 10);
        assert_eq!(overrun(&object, 1640), None);
        let cut = Overrun { format: "ELF", part: "section headers", end: 1640 };
        assert_eq!(overrun(&object, 1639), Some(cut));
        // No sections; more than the field can count; numbers that overflow.
        assert_eq!(overrun(&elf64(0, 0), 64), None);
        assert_eq!(overrun(&elf64(1000, 0), 1064), None);
        assert!(overrun(&elf64(u64::MAX, u16::MAX), 1 << 40).is_some());
        for bytes in [&b"BC\xc0\xde"[..], b"go object", b"", b"\x7fEL", b"\x7fELF\x09"] {
            assert_eq!(overrun(bytes, bytes.len() as u64), None);
        }
        assert!(overrun(b"\x7fELF\x02\x01", 6).is_some());
    }

    #[test]
    fn section_headers_are_read() {
        let object = elf64(1000, 3);
        let sections = sections(&object).unwrap();
        assert_eq!((sections.end(), sections.names), (1192, 0));
        let mut header = [0; 64];
        (header[4], header[24], header[32], header[40]) = (3, 100, 20, 7);
        let expected = Section { kind: STRINGS, end: 120, size: 20, link: 7 };
        assert_eq!(sections.read(&header), Some(expected));
        header[4] = 8;
        assert_eq!(sections.read(&header).unwrap().end, 0);
        assert_eq!(sections.read(&header[..40]), None);
        assert_eq!(super::sections(&elf64(0, 0)), None);
    }

    #[test]
    fn segments_of_mach_objects_are_looked_at() {
        let mut object = vec![0xcf, 0xfa, 0xed, 0xfe];
        object.resize(32 + 72, 0);
        object[16] = 1;
        object[20] = 72;
        object[32] = 0x19;
        object[36] = 72;
        object[32 + 40..32 + 42].copy_from_slice(&500_u16.to_le_bytes());
        object[32 + 48..32 + 50].copy_from_slice(&300_u16.to_le_bytes());
        assert_eq!(overrun(&object, 800), None);
        assert_eq!(overrun(&object, 799).map(|over| over.end), Some(800));
        assert_eq!(overrun(&object, 90).map(|over| over.part), Some("load commands"));
    }
}
