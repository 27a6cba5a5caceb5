//! What is left of a cut archive, as an archive: all members that are whole, and a symbol table of them alone.
//!
//! A link may work that wants nothing of what is lost. `ld` and `gold` go by the symbol table, GHC's linker walks the
//! members: both must take it, so the table is made anew and every offset in it moved by what the table became smaller.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::check::{Kind, Report};
use super::fault::What;
use super::header::{self, HEADER};

/// Bytes of a symbol or name table that are held at most.
const TABLE_AT_MOST: u64 = 512 << 20;

/// What is lost for good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Members whose names are still known.
    pub members: Vec<String>,
    /// Members that are lost in all, at least.
    pub member_count: u64,
    /// Symbols that were defined there.
    pub symbols: Vec<String>,
}

/// How the archive is written anew.
#[derive(Debug)]
pub struct Plan {
    /// Its size then, in bytes.
    pub size: u64,
    /// What is lost, if anything is.
    pub losses: Option<Losses>,
    /// The rebuilt table with its header, in the place of the old one.
    table: Vec<u8>,
    /// Where the old table ended, padding included; 8 without one.
    from: u64,
    /// Where the last whole member ends.
    until: u64,
    /// Whether a padding byte is to be added.
    pad: bool,
}

/// Plans it from what the check found.
///
/// # Errors
/// Why it cannot be done.
pub fn plan(file: &File, report: &Report) -> Result<Plan, String> {
    let Some(fault) = report.break_point() else { return without_table(file, report) };
    if report.thin {
        return Err("a thin archive holds no members that could be saved".to_owned());
    }
    if report.members == 0 {
        return Err("no member is whole".to_owned());
    }
    // Of a member that only lacks its padding nothing is lost.
    let until = match fault.what {
        What::PaddingMissing => fault.position,
        _ => report.whole_until,
    };
    let io = |error: io::Error| error.to_string();
    let raw = read(file, 8, HEADER).map_err(io)?;
    let first = header::parse(&raw).map_err(|_| "its first header cannot be read".to_owned())?;
    let mut old = first.size;
    if old > TABLE_AT_MOST || 8 + HEADER + old > report.size {
        return Err("its first member, the symbol table, is cut or too large to be made anew here".to_owned());
    }
    let (layout, name_length) = match first.name.as_slice() {
        b"/" => (Layout::SystemV(4), 0),
        b"/SYM64/" => (Layout::SystemV(8), 0),
        name => {
            let length = name
                .strip_prefix(b"#1/")
                .and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
            let real = match length {
                Some(length) => read(file, 8 + HEADER, length.min(32).min(old)).map_err(io)?,
                None => name.to_vec(),
            };
            let real = real.split(|&byte| byte == 0).next().unwrap_or_default();
            match real {
                b"__.SYMDEF" | b"__.SYMDEF SORTED" => (Layout::Bsd(4), length.unwrap_or(0)),
                b"__.SYMDEF_64" | b"__.SYMDEF_64 SORTED" => (Layout::Bsd(8), length.unwrap_or(0)),
                // Without a table nothing tells what is lost.
                _ => (Layout::None, 0),
            }
        }
    };
    if matches!(layout, Layout::None) {
        old = 0;
    }
    if name_length > old {
        return Err("its symbol table cannot be read".to_owned());
    }
    let second =
        read(file, 8 + HEADER + old + old % 2, HEADER).ok().and_then(|bytes| header::parse(&bytes).ok());
    if matches!(layout, Layout::SystemV(_)) && second.is_some_and(|second| second.name == b"/") {
        return Err(
            "an import library has a second table of members: make it anew with its own tools".to_owned()
        );
    }
    let from = if matches!(layout, Layout::None) { 8 } else { 8 + HEADER + old + old % 2 };
    let name = read(file, 8 + HEADER, name_length).map_err(io)?;
    let content = read(file, 8 + HEADER + name_length, old - name_length).map_err(io)?;
    let entries = layout.entries(&content).ok_or("its symbol table cannot be read")?;
    let lost_from = match fault.what {
        What::PaddingMissing => u64::MAX,
        _ => until,
    };
    let (kept, lost): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(offset, _)| *offset < lost_from);
    let table = layout.table(&raw, &name, &kept, from)?;
    let mut losses =
        Losses { symbols: lost.iter().map(|(_, name)| shown(name)).collect(), ..Losses::default() };
    losses.member_count = report.lost.map_or(0, |lost| lost.members);
    losses.members = lost_names(file, report, until).map_err(io)?;
    let pad = matches!(fault.what, What::PaddingMissing);
    let size = 8 + table.len() as u64 + (until - from) + u64::from(pad);
    let lost = losses.member_count > 0 || !losses.symbols.is_empty() || !losses.members.is_empty();
    Ok(Plan { size, losses: lost.then_some(losses), table, from, until, pad })
}

/// All members are there, and only the symbol table is wrong: without it `ranlib` can make a new one.
fn without_table(file: &File, report: &Report) -> Result<Plan, String> {
    let wrong = || report.faults.iter().filter(|fault| !fault.what.is_harmless());
    if !wrong().all(|fault| fault.what.is_about_symbols()) || wrong().next().is_none() {
        return Err("no member is lost, so that nothing can be left out".to_owned());
    }
    let first = read(file, 8, HEADER).ok().and_then(|bytes| header::parse(&bytes).ok());
    let table = wrong().next().and_then(|fault| fault.member.as_ref()).filter(|table| table.header == 8);
    let (Some(first), Some(_), true) = (first, table, report.kind != Kind::Coff) else {
        return Err(
            "its symbol table is not where one can be left out: make it anew with its own tools".to_owned()
        );
    };
    let from = 8 + HEADER + first.size + first.size % 2;
    let size = 8 + report.size.saturating_sub(from);
    Ok(Plan { size, losses: None, table: Vec::new(), from, until: report.size, pad: false })
}

impl Plan {
    /// What it is made of, in words.
    #[must_use]
    pub fn source(&self) -> &'static str {
        match (&self.losses, self.pad) {
            (Some(_), _) => "what is whole of it",
            (None, true) => "itself, with the byte that was missing",
            (None, false) => "its members; it has no symbol table now, and `ranlib` makes one",
        }
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// Whatever reading or writing says.
    pub fn write(&self, file: &File, out: &mut File) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(256 * 1024, out);
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0)?;
        out.write_all(&magic)?;
        out.write_all(&self.table)?;
        let mut buffer = vec![0; 256 * 1024];
        let mut at = self.from;
        while at < self.until {
            let take = (self.until - at).min(buffer.len() as u64) as usize;
            let some = buffer.get_mut(..take).unwrap_or_default();
            file.read_exact_at(some, at)?;
            out.write_all(some)?;
            at += take as u64;
        }
        if self.pad {
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    SystemV(usize),
    Bsd(usize),
    None,
}

type Entry = (u64, Vec<u8>);

impl Layout {
    fn entries(self, content: &[u8]) -> Option<Vec<Entry>> {
        match self {
            Self::None => Some(Vec::new()),
            Self::SystemV(width) => {
                let count = usize::try_from(big(content.get(..width)?)).ok()?;
                let offsets = content.get(width..width.checked_add(count.checked_mul(width)?)?)?;
                let names = content.get(width + offsets.len()..)?.split(|&byte| byte == 0);
                Some(offsets.chunks(width).map(big).zip(names.map(<[u8]>::to_vec)).collect())
            }
            Self::Bsd(width) => {
                let bytes = usize::try_from(little(content.get(..width)?)).ok()?;
                let pairs = content.get(width..width.checked_add(bytes)?)?;
                let names = content.get((width + bytes).checked_add(width)?..)?;
                pairs
                    .chunks_exact(2 * width)
                    .map(|pair| {
                        let name = names.get(usize::try_from(little(pair.get(..width)?)).ok()?..)?;
                        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
                        Some((little(pair.get(width..)?), name.to_vec()))
                    })
                    .collect()
            }
        }
    }

    /// The table with its header; `from` is where what follows the old one begins.
    fn table(self, raw: &[u8], name: &[u8], kept: &[Entry], from: u64) -> Result<Vec<u8>, String> {
        let (content, align) = match self {
            Self::None => return Ok(Vec::new()),
            Self::SystemV(width) => {
                let names: usize = kept.iter().map(|(_, name)| name.len() + 1).sum();
                let length = width * (kept.len() + 1) + names;
                let moved = moved(length.next_multiple_of(2) as u64, from);
                let mut content = Vec::with_capacity(length);
                put(&mut content, kept.len() as u64, width, true);
                for (offset, _) in kept {
                    put(&mut content, moved(*offset)?, width, true);
                }
                for (_, name) in kept {
                    content.extend(name);
                    content.push(0);
                }
                (content, 2)
            }
            Self::Bsd(width) => {
                let names: usize =
                    kept.iter().map(|(_, name)| name.len() + 1).sum::<usize>().next_multiple_of(8);
                let length = name.len() + 2 * width + 2 * width * kept.len() + names;
                let moved = moved(length.next_multiple_of(8) as u64, from);
                let mut content = name.to_vec();
                put(&mut content, (kept.len() * 2 * width) as u64, width, false);
                let mut at = 0;
                for (offset, name) in kept {
                    put(&mut content, at, width, false);
                    put(&mut content, moved(*offset)?, width, false);
                    at += name.len() as u64 + 1;
                }
                put(&mut content, names as u64, width, false);
                let begin = content.len();
                for (_, name) in kept {
                    content.extend(name);
                    content.push(0);
                }
                content.resize(begin + names, 0);
                (content, 8)
            }
        };
        let mut content = content;
        content.resize(content.len().next_multiple_of(align), 0);
        let mut table = raw.to_vec();
        let size = format!("{:<10}", content.len());
        table.splice(48..58, size.bytes());
        table.extend(content);
        Ok(table)
    }
}

/// Where something is found when the table of `length` bytes stands in the place of the one that ended at `from`.
fn moved(length: u64, from: u64) -> impl Fn(u64) -> Result<u64, String> {
    move |offset| {
        let behind = offset.checked_sub(from).ok_or("a symbol points into the symbol table")?;
        Ok(8 + HEADER + length + behind)
    }
}

fn big(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn put(out: &mut Vec<u8>, number: u64, width: usize, big_endian: bool) {
    if big_endian {
        out.extend(number.to_be_bytes().get(8 - width..).unwrap_or_default());
    } else {
        out.extend(number.to_le_bytes().get(..width).unwrap_or_default());
    }
}

fn read(file: &File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Long names that no whole member has: those of lost members. Short names are lost with their headers.
fn lost_names(file: &File, report: &Report, until: u64) -> io::Result<Vec<String>> {
    let (mut names, mut used) = (Vec::new(), BTreeSet::new());
    let mut at = 8;
    while at + HEADER <= until {
        let Ok(header) = header::parse(&read(file, at, HEADER)?) else { break };
        if header.name == b"//" && header.size <= TABLE_AT_MOST {
            names = read(file, at + HEADER, header.size)?;
        } else if let Some(offset) = header.name.strip_prefix(b"/") {
            used.extend(std::str::from_utf8(offset).ok().and_then(|text| text.parse::<usize>().ok()));
        }
        at += HEADER + header.size + header.size % 2;
    }
    let mut lost = Vec::new();
    let mut offset = 0;
    for line in names.split_inclusive(|&byte| byte == b'\n') {
        let name = line.strip_suffix(b"\n").unwrap_or(line);
        let name = name.strip_suffix(b"/").unwrap_or(name);
        if !used.contains(&offset) && !name.is_empty() {
            lost.push(shown(name));
        }
        offset += line.len();
    }
    let cut = report.break_point().and_then(|fault| fault.member.as_ref());
    if let Some(cut) = cut
        && !lost.contains(&cut.name)
        && !matches!(report.break_point().map(|fault| &fault.what), Some(What::PaddingMissing))
    {
        lost.insert(0, cut.name.clone());
    }
    Ok(lost)
}
