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

/// Reads the table's own numbers and checks that they fit into it; `names` also counts its strings.
pub(super) fn open(window: &mut Window<'_>, place: Place) -> Result<Offsets, Bad> {
    match place.table {
        Table::SystemV(width) => {
            let count = word(window, place, 0, width, true)?;
            let names = fits(count, width as u64, width as u64, place.size).ok_or_else(|| {
                Bad::Table(format!("it claims {count} symbols and has {} bytes", place.size))
            })?;
            let strings = count_strings(window, place.content + names, place.content + place.size, count)?;
            if strings < count {
                return Err(Bad::Table(format!("it claims {count} symbols and names {strings}")));
            }
            Ok(Offsets {
                count,
                first: place.content + width as u64,
                stride: width as u64,
                width,
                big_endian: true,
            })
        }
        Table::Bsd(width) => {
            let wide = width as u64;
            let readings = [false, true].map(|big_endian| {
                let bytes = word(window, place, 0, width, big_endian)?;
                let strings = if bytes % (2 * wide) == 0 { fits(bytes, 1, wide, place.size) } else { None };
                let Some(strings) = strings else { return Ok(None) };
                let length = word(window, place, strings, width, big_endian)?;
                let end = strings.checked_add(wide).and_then(|at| at.checked_add(length));
                Ok::<_, Bad>(end.filter(|&end| end <= place.size).map(|_| Offsets {
                    count: bytes / (2 * wide),
                    first: place.content + 2 * wide,
                    stride: 2 * wide,
                    width,
                    big_endian,
                }))
            });
            for reading in readings {
                if let Some(offsets) = reading? {
                    return Ok(offsets);
                }
            }
            Err(Bad::Table(format!("its own sizes do not fit into its {} bytes", place.size)))
        }
        Table::Coff => {
            let members = word(window, place, 0, 4, false)?;
            let at = fits(members, 4, 4, place.size).ok_or_else(|| {
                Bad::Table(format!("it claims {members} members and has {} bytes", place.size))
            })?;
            let symbols = word(window, place, at, 4, false)?;
            fits(symbols, 2, at + 4, place.size).ok_or_else(|| {
                Bad::Table(format!("it claims {symbols} symbols and has {} bytes", place.size))
            })?;
            Ok(Offsets { count: members, first: place.content + 4, stride: 4, width: 4, big_endian: false })
        }
    }
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

/// Counts strings that end with a NUL, and stops at `enough`.
fn count_strings(window: &mut Window<'_>, from: u64, end: u64, enough: u64) -> io::Result<u64> {
    let (mut at, mut count) = (from, 0);
    while at < end && count < enough {
        let bytes = window.run(at, (end - at).min(64 * 1024) as usize)?;
        if bytes.is_empty() {
            break;
        }
        count += bytes.iter().filter(|&&byte| byte == 0).count() as u64;
        at += bytes.len() as u64;
    }
    Ok(count)
}

impl Offsets {
    /// Calls `each` with every offset of the table, in its order, as far as the file reaches.
    pub(super) fn each(&self, window: &mut Window<'_>, mut each: impl FnMut(u64)) -> io::Result<()> {
        let mut left = self.count;
        let mut at = self.first;
        while left > 0 {
            let take = left.min(64 * 1024 / self.stride);
            // The last pair of a BSD table ends with its offset: no byte behind it is asked for.
            let span = (take - 1) * self.stride + self.width as u64;
            let bytes = window.run(at, span as usize)?;
            if (bytes.len() as u64) < span {
                return Ok(());
            }
            for index in 0..take as usize {
                let from = index * self.stride as usize;
                each(number(bytes.get(from..from + self.width).unwrap_or_default(), self.big_endian));
            }
            left -= take;
            at += take * self.stride;
        }
        Ok(())
    }
}
