//! Symbol tables: the offsets that they hold, read as a stream.
//!
//! | Name | Layout (source: ar(5), binutils' `bfd/archive.c`, Apple's `ranlib.h`, Microsoft's PE/COFF format) |
//! | --- | --- |
//! | `/` | big-endian u32 count, count × u32 offset, count strings |
//! | `/SYM64/` | the same with u64 |
//! | second `/` (COFF) | u32 members, members × u32 offset, u32 symbols, symbols × u16 index, strings; little-endian |
//! | `__.SYMDEF*` | u32 bytes, pairs of u32 (name, offset), u32 bytes, strings; either byte order |
//! | `__.SYMDEF_64*` | the same with u64 |

use std::io;

use super::window::Window;

/// Which table a special member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// System V; the offsets are this many bytes wide.
    SystemV(usize),
    /// BSD's; the numbers are this many bytes wide.
    Bsd(usize),
    /// The second table of an import library.
    Coff,
}

/// A table's own place in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) table: Table,
    /// Position of its header.
    pub(super) header: u64,
    pub(super) content: u64,
    pub(super) size: u64,
}

/// Where the offsets lie, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offsets {
    pub(super) count: u64,
    first: u64,
    stride: u64,
    width: usize,
    big_endian: bool,
    /// Bytes of the table of names that BSD's pairs point into.
    names: Option<Names>,
}

/// A table of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Names {
    from: u64,
    size: u64,
}

/// Why a table is not one.
#[derive(Debug)]
pub(super) enum Bad {
    Table(String),
    Io(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn number(bytes: &[u8], big_endian: bool) -> u64 {
    let fold = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
    if big_endian { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) }
}

/// Reads the table's own numbers and checks that they fit into it, and its names. Of a table that the file cuts
/// (`whole` is false) only the numbers that are there can be read.
pub(super) fn open(window: &mut Window<'_>, place: Place, whole: bool) -> Result<Offsets, Bad> {
    match place.table {
        Table::SystemV(width) => system_v(window, place, width, whole),
        Table::Bsd(width) => {
            for big_endian in [false, true] {
                if let Some(offsets) = bsd(window, place, width, big_endian, whole)? {
                    return Ok(offsets);
                }
            }
            Err(Bad::Table(format!("its own sizes do not fit into its {} bytes", place.size)))
        }
        Table::Coff => coff(window, place, whole),
    }
}

fn system_v(window: &mut Window<'_>, place: Place, width: usize, whole: bool) -> Result<Offsets, Bad> {
    let count = word(window, place, 0, width, true)?;
    let names = fits(count, width as u64, width as u64, place.size)
        .ok_or_else(|| Bad::Table(format!("it claims {count} symbols and has {} bytes", place.size)))?;
    if whole {
        strings(window, place.content + names, place.content + place.size, count)?;
    }
    let (first, stride) = (place.content + width as u64, width as u64);
    Ok(Offsets { count, first, stride, width, big_endian: true, names: None })
}

fn bsd(
    window: &mut Window<'_>,
    place: Place,
    width: usize,
    big_endian: bool,
    whole: bool,
) -> Result<Option<Offsets>, Bad> {
    let wide = width as u64;
    let bytes = word(window, place, 0, width, big_endian)?;
    let names = if bytes % (2 * wide) == 0 { fits(bytes, 1, wide, place.size) } else { None };
    let Some(names) = names else { return Ok(None) };
    let mut offsets = Offsets {
        count: bytes / (2 * wide),
        first: place.content + 2 * wide,
        stride: 2 * wide,
        width,
        big_endian,
        names: None,
    };
    if whole {
        let size = word(window, place, names, width, big_endian)?;
        let from = names.saturating_add(wide);
        if from.checked_add(size).is_none_or(|end| end > place.size) {
            return Ok(None);
        }
        offsets.names = Some(Names { from: place.content + from, size });
    }
    Ok(Some(offsets))
}

fn coff(window: &mut Window<'_>, place: Place, whole: bool) -> Result<Offsets, Bad> {
    let claims = |number: u64, what: &str| {
        Bad::Table(format!("it claims {number} {what} and has {} bytes", place.size))
    };
    let members = word(window, place, 0, 4, false)?;
    let at = fits(members, 4, 4, place.size).ok_or_else(|| claims(members, "members"))?;
    if whole {
        let symbols = word(window, place, at, 4, false)?;
        let names = fits(symbols, 2, at + 4, place.size).ok_or_else(|| claims(symbols, "symbols"))?;
        let mut position = place.content + at + 4;
        let end = place.content + names;
        while position < end {
            let bytes = window.run(position, (end - position).min(64 * 1024) as usize)?;
            let odd =
                bytes.chunks(2).map(|pair| number(pair, false)).find(|&index| index == 0 || index > members);
            if let Some(index) = odd {
                return Err(Bad::Table(format!("a symbol is in member {index} of {members}")));
            }
            if bytes.is_empty() {
                break;
            }
            position += bytes.len() as u64;
        }
        strings(window, place.content + names, place.content + place.size, symbols)?;
    }
    Ok(Offsets {
        count: members,
        first: place.content + 4,
        stride: 4,
        width: 4,
        big_endian: false,
        names: None,
    })
}

/// Offset of what follows `count` things of `each` bytes behind `before` bytes, if that is inside `size`.
fn fits(count: u64, each: u64, before: u64, size: u64) -> Option<u64> {
    count.checked_mul(each)?.checked_add(before).filter(|&end| end <= size)
}

fn word(window: &mut Window<'_>, place: Place, at: u64, width: usize, big_endian: bool) -> Result<u64, Bad> {
    if at.checked_add(width as u64).is_none_or(|end| end > place.size) {
        return Err(Bad::Table(format!("it has only {} bytes", place.size)));
    }
    let bytes = window.run(place.content + at, width)?;
    if bytes.len() < width {
        return Err(Bad::Table("the file ends inside it".to_owned()));
    }
    Ok(number(bytes, big_endian))
}

/// Checks that there are `count` names that end with a NUL, none of them empty, and nothing but padding behind them.
fn strings(window: &mut Window<'_>, from: u64, end: u64, count: u64) -> Result<(), Bad> {
    let (mut at, mut seen) = (from, 0);
    // Whether the name that is being read has a letter yet.
    let mut begun = false;
    while at < end {
        let bytes = window.run(at, (end - at).min(64 * 1024) as usize)?;
        if bytes.is_empty() {
            break;
        }
        let mut start = 0;
        let mut ends = memchr::memchr_iter(0, bytes);
        while seen < count
            && let Some(end) = ends.next()
        {
            if end == start && !begun {
                return Err(Bad::Table(format!(
                    "it claims {count} symbols, and number {} has no name",
                    seen + 1
                )));
            }
            (seen, start, begun) = (seen + 1, end + 1, false);
        }
        let rest = bytes.get(start..).unwrap_or_default();
        if seen < count {
            begun = begun || !rest.is_empty();
        } else if rest.iter().any(|byte| !matches!(byte, 0 | b'\n' | b' ')) {
            return Err(Bad::Table(format!("it claims {count} symbols and names more")));
        }
        at += bytes.len() as u64;
    }
    if seen < count {
        return Err(Bad::Table(format!("it claims {count} symbols and names {seen}")));
    }
    Ok(())
}

impl Offsets {
    /// Calls `each` with every offset of the table, in its order, as far as the file reaches.
    pub(super) fn each(&self, window: &mut Window<'_>, mut each: impl FnMut(u64)) -> Result<(), Bad> {
        let mut left = self.count;
        let mut at = self.first;
        let mut last_name = 0;
        while left > 0 {
            let take = left.min(64 * 1024 / self.stride);
            // The last pair of a BSD table ends with its offset: no byte behind it is asked for. Of a pair the name
            // stands in front of the offset.
            let before = self.stride - self.width as u64;
            let bytes = window.run(at - before, (take * self.stride) as usize)?;
            let there = bytes.len() as u64 / self.stride;
            for entry in bytes.chunks_exact(self.stride as usize) {
                let (name, offset) = entry.split_at(before as usize);
                last_name = last_name.max(number(name, self.big_endian));
                each(number(offset, self.big_endian));
            }
            if there < take {
                return Ok(());
            }
            left -= take;
            at += take * self.stride;
        }
        self.name_ends(window, last_name)
    }

    /// Whether the last of BSD's names is in its table and ends there.
    fn name_ends(&self, window: &mut Window<'_>, name: u64) -> Result<(), Bad> {
        let Some(names) = self.names.filter(|_| self.count > 0) else { return Ok(()) };
        if name >= names.size {
            let why = format!("a symbol has its name at {name} of a table of {} bytes", names.size);
            return Err(Bad::Table(why));
        }
        let mut at = names.from + name;
        let end = names.from + names.size;
        while at < end {
            let bytes = window.run(at, (end - at).min(64 * 1024) as usize)?;
            if bytes.contains(&0) {
                return Ok(());
            }
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
        }
        Err(Bad::Table("its last name has no end".to_owned()))
    }
}
