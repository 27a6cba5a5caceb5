//! The walk over an archive: every header, no bodies, then the symbol table against what was found.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::fault::{Fault, Lost, Member, What};
use super::header::{self, HEADER};
use super::object;
use super::symbols::{self, Place, Table};
use super::window::Window;

/// Members that are followed; each costs 8 bytes while the symbol table is compared with them.
const MEMBERS_AT_MOST: usize = 1 << 20;
/// Faults that are told one by one; the rest is counted.
const FAULTS_AT_MOST: usize = 16;
/// Bytes of a member's name that are shown.
const NAME_AT_MOST: usize = 512;

const MAGIC: &[u8; 8] = b"!<arch>\n";
const THIN_MAGIC: &[u8; 8] = b"!<thin>\n";

/// Why a file could not be asked whether it is sound.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Opening or reading failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("{}: it is {what}, not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Size or time changed while it was read.
    #[error("{}: it changed while it was read; ask again when nothing writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// More members than are followed.
    #[error("{}: more than {MEMBERS_AT_MOST} members, which is more than is followed here", path.display())]
    TooManyMembers {
        /// The file.
        path: PathBuf,
    },
    /// An archive of a kind that is not read here.
    #[error("{}: {format}, which is not read here", path.display())]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its kind.
        format: &'static str,
    },
}

/// Which tools write archives like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// GNU ar, LLVM ar, rustc: names end with a slash, symbol table `/`.
    Gnu,
    /// BSD and Apple: long names `#1/N`, symbol table `__.SYMDEF`.
    Bsd,
    /// Import libraries: two symbol tables named `/`.
    Coff,
    /// No long names and no symbol table: Go's archives, empty ones.
    Plain,
    /// Text that a linker reads in an archive's place (glibc's `libm.a`); taken as it is.
    LinkerScript,
    /// An object file by an archive's name (glibc's `libmcheck.a`, Go's oldest packages); taken as it is.
    Object,
}

/// What a walk over an archive found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The archive, as it was asked for.
    pub path: PathBuf,
    /// Whether every reader will take it as a whole.
    pub sound: bool,
    /// Size of the file in bytes.
    pub size: u64,
    /// Which tools write archives like this.
    pub kind: Kind,
    /// Whether the members are files outside the archive.
    pub thin: bool,
    /// Members that are there, symbol and name tables not counted.
    pub members: u64,
    /// Symbols that the table claims.
    pub symbols: u64,
    /// What is wrong, in the order of the file.
    pub faults: Vec<Fault>,
    /// Faults that are not listed for their number.
    pub more_faults: u64,
    /// What is lost, if a part is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
    /// Every byte before this position has been accounted for: the size, if it is sound.
    pub whole_until: u64,
    /// Its store path against Nix's book, where that was asked and the archive is not sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nix: Option<super::store::View>,
}

impl Report {
    /// The fault behind which no member can be reached, if there is one.
    #[must_use]
    pub fn break_point(&self) -> Option<&Fault> {
        self.faults.iter().find(|fault| fault.what.ends_the_walk())
    }
}

/// Reads `path` as an archive. Member bodies are not read; memory stays below a few megabytes.
///
/// # Errors
/// Only when there is no answer: see [`CheckError`]. What is wrong with the archive is in the report.
pub fn check(path: &Path) -> Result<Report, CheckError> {
    let io = |source| CheckError::Io { path: path.to_owned(), source };
    let file = open(path)?;
    let before = file.metadata().map_err(io)?;
    let mut walk = Walk::new(path, &file, before.len());
    let outcome = walk.run();
    let after = file.metadata().map_err(io)?;
    if (before.len(), before.mtime(), before.mtime_nsec()) != (after.len(), after.mtime(), after.mtime_nsec())
    {
        return Err(CheckError::Changed { path: path.to_owned() });
    }
    outcome?;
    let mut report = walk.report;
    report.faults.sort_by_key(|fault| fault.position);
    report.sound = report.faults.iter().all(|fault| fault.what.is_harmless());
    Ok(report)
}

/// Opens a regular file for reading and nothing else: a fifo or a device would hang or act.
pub(super) fn open(path: &Path) -> Result<File, CheckError> {
    let io = |source| CheckError::Io { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(io)?.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() { "a directory" } else { "a device, socket or pipe" };
        return Err(CheckError::NotAFile { path: path.to_owned(), what });
    }
    // Between the two calls it may have become a fifo: then opening must not wait for a writer.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(CheckError::NotAFile { path: path.to_owned(), what: "a device, socket or pipe" });
    }
    Ok(file)
}

/// The table of long names.
#[derive(Debug, Clone, Copy, Default)]
struct NameTable {
    content: u64,
    size: u64,
}

struct Walk<'a> {
    path: &'a Path,
    window: Window<'a>,
    names: Window<'a>,
    name_table: NameTable,
    tables: Vec<Place>,
    /// Positions of the headers, ascending.
    headers: Vec<u64>,
    report: Report,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path, file: &'a File, size: u64) -> Self {
        Self {
            path,
            window: Window::new(file, size),
            names: Window::new(file, size),
            name_table: NameTable::default(),
            tables: Vec::new(),
            headers: Vec::new(),
            report: Report {
                path: path.to_owned(),
                sound: false,
                size,
                kind: Kind::Plain,
                thin: false,
                members: 0,
                symbols: 0,
                faults: Vec::new(),
                more_faults: 0,
                lost: None,
                whole_until: 0,
                nix: None,
            },
        }
    }

    fn fault(&mut self, position: u64, member: Option<Member>, what: What) {
        if self.report.faults.len() < FAULTS_AT_MOST || what.ends_the_walk() {
            self.report.faults.push(Fault { position, member, what });
        } else {
            self.report.more_faults += 1;
        }
    }

    fn run(&mut self) -> Result<(), CheckError> {
        let io = |source| CheckError::Io { path: self.path.to_owned(), source };
        if !self.magic().map_err(io)? {
            return match self.other_format() {
                Some(format) => Err(CheckError::OtherFormat { path: self.path.to_owned(), format }),
                None => Ok(()),
            };
        }
        let mut position = MAGIC.len() as u64;
        self.report.whole_until = position;
        while position < self.window.size() {
            if self.headers.len() >= MEMBERS_AT_MOST {
                return Err(CheckError::TooManyMembers { path: self.path.to_owned() });
            }
            let step = self
                .member(position)
                .map_err(|source| CheckError::Io { path: self.path.to_owned(), source })?;
            let Some(next) = step else { break };
            position = next;
            self.report.whole_until = position;
        }
        self.symbol_tables().map_err(|source| CheckError::Io { path: self.path.to_owned(), source })
    }

    /// Whether the file begins as an archive does.
    fn magic(&mut self) -> io::Result<bool> {
        let size = self.window.size();
        let begin = self.window.hop(0, MAGIC.len())?.to_vec();
        if begin == MAGIC || begin == THIN_MAGIC {
            self.report.thin = begin == THIN_MAGIC;
            return Ok(true);
        }
        if size == 0 {
            self.fault(0, None, What::Empty);
        } else if MAGIC.starts_with(&begin) || THIN_MAGIC.starts_with(&begin) {
            self.fault(0, None, What::MagicCut);
        } else if self.is_linker_script()? {
            self.report.kind = Kind::LinkerScript;
            self.report.whole_until = size;
        } else if begin.starts_with(b"\x7fELF") || begin.starts_with(b"go objec") {
            self.report.kind = Kind::Object;
            self.report.whole_until = size;
        } else {
            self.fault(0, None, What::NotAnArchive { begins_with: begin.escape_ascii().to_string() });
        }
        Ok(false)
    }

    fn is_linker_script(&mut self) -> io::Result<bool> {
        let text = self.window.hop(0, 4096)?;
        let is_text = text.iter().all(|byte| matches!(byte, 0x20..=0x7e | b'\n' | b'\r' | b'\t'));
        let text = String::from_utf8_lossy(text);
        Ok(is_text && ["GROUP", "INPUT", "OUTPUT_FORMAT", "SECTIONS"].iter().any(|word| text.contains(word)))
    }

    /// Kinds of archive that are real and not ours to judge.
    fn other_format(&mut self) -> Option<&'static str> {
        match self.window.hop(0, 8).unwrap_or_default() {
            b"<bigaf>\n" | b"<aiaff>\n" => Some("an archive of AIX"),
            [0xca, 0xfe, 0xba, 0xbe | 0xbf, ..] => Some("a universal file of several architectures"),
            _ => None,
        }
    }

    /// Reads the member whose header is at `position`; gives the position of the next one.
    fn member(&mut self, position: u64) -> io::Result<Option<u64>> {
        let bytes = self.window.hop(position, HEADER as usize)?;
        let found = bytes.len() as u64;
        if found < HEADER {
            self.fault(position, None, What::HeaderCut { found });
            return Ok(None);
        }
        let header = match header::parse(bytes) {
            Ok(header) => header,
            Err(bad) => {
                let what = match bad {
                    header::Bad::End(found) => What::HeaderEnd { found: found.escape_ascii().to_string() },
                    header::Bad::Size(field) => What::HeaderSize { found: field.escape_ascii().to_string() },
                };
                self.fault(position, None, what);
                return Ok(None);
            }
        };
        let content = position + HEADER;
        let size = header.size;
        let special = self.special(&header.name, content, size)?;
        let inside = if self.report.thin && !special { 0 } else { size };
        // Position and size are below 2^63 and 10^10: the sum fits.
        let end = content + inside;
        if end > self.window.size() {
            let member = self.place(&header.name, position, size)?;
            let found = self.window.size().saturating_sub(content);
            self.fault(content, Some(member), What::ContentCut { expected: size, found });
            return Ok(None);
        }
        self.headers.push(position);
        if !special {
            self.report.members += 1;
            self.long_name(&header.name, position, size)?;
            if self.report.thin {
                self.thin_member(&header.name, position, size)?;
            } else {
                self.object(&header.name, position, size)?;
            }
        }
        if let Some(field) = header.odd {
            let member = self.place(&header.name, position, size)?;
            self.fault(position, Some(member), What::OddField { field: field.to_owned() });
        }
        if end % 2 == 1 && end == self.window.size() {
            let member = self.place(&header.name, position, size)?;
            self.report.whole_until = end;
            self.fault(end, Some(member), What::PaddingMissing);
            return Ok(None);
        }
        Ok(Some(end + end % 2))
    }

    /// Notes tables; whether the member is one of the format's own.
    fn special(&mut self, name: &[u8], content: u64, size: u64) -> io::Result<bool> {
        let index = self.headers.len();
        let table = match name {
            b"/" if index == 1
                && self.tables.first().is_some_and(|first| first.table == Table::SystemV(4)) =>
            {
                self.report.kind = Kind::Coff;
                Some(Table::Coff)
            }
            b"/" => Some(Table::SystemV(4)),
            b"/SYM64/" => Some(Table::SystemV(8)),
            b"//" => {
                if self.report.kind == Kind::Plain {
                    self.report.kind = Kind::Gnu;
                }
                self.name_table = NameTable { content, size };
                return Ok(true);
            }
            // Tables of ARM64EC and of control flow guard: nothing here reads them.
            _ if name.starts_with(b"/<") => return Ok(true),
            _ if index == 0 => {
                let long = bsd_length(name);
                let real = match long {
                    Some(length) => {
                        let taken = self.names.hop(content, length.min(32).min(size) as usize)?;
                        taken.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
                    }
                    None => name.to_vec(),
                };
                let width = match real.strip_prefix(b"__.SYMDEF") {
                    Some(b"" | b" SORTED") => 4,
                    Some(b"_64" | b"_64 SORTED") => 8,
                    _ => return Ok(false),
                };
                self.report.kind = Kind::Bsd;
                let skip = long.unwrap_or(0).min(size);
                self.tables.push(Place {
                    table: Table::Bsd(width),
                    content: content + skip,
                    size: size - skip,
                });
                return Ok(true);
            }
            _ => return Ok(false),
        };
        if self.report.kind == Kind::Plain {
            self.report.kind = Kind::Gnu;
        }
        // A second table of a kind says nothing that the first does not.
        if let Some(table) = table.filter(|table| self.tables.iter().all(|known| known.table != *table)) {
            self.tables.push(Place { table, content, size });
        }
        Ok(true)
    }

    /// Checks that a long name is where the header says it is.
    fn long_name(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<()> {
        if let Some(length) = bsd_length(name) {
            if self.report.kind == Kind::Plain {
                self.report.kind = Kind::Bsd;
            }
            if length > size {
                let member = self.place(name, position, size)?;
                self.fault(position, Some(member), What::BsdName { length });
            }
        } else if let Some(offset) = gnu_offset(name) {
            if offset >= self.name_table.size {
                let member = self.place(name, position, size)?;
                let table = self.name_table.size;
                self.fault(position, Some(member), What::LongName { offset, table });
            }
        } else if self.report.kind == Kind::Plain && name.ends_with(b"/") {
            self.report.kind = Kind::Gnu;
        }
        Ok(())
    }

    /// The name as people know it.
    fn name(&mut self, name: &[u8], content: u64, size: u64) -> io::Result<Vec<u8>> {
        if let Some(length) = bsd_length(name) {
            let bytes = self.names.hop(content, length.min(size).min(NAME_AT_MOST as u64) as usize)?;
            return Ok(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec());
        }
        if let Some(offset) = gnu_offset(name).filter(|&offset| offset < self.name_table.size) {
            let left = (self.name_table.size - offset).min(NAME_AT_MOST as u64) as usize;
            let bytes = self.names.run(self.name_table.content + offset, left)?;
            let line = bytes.split(|&byte| byte == b'\n' || byte == 0).next().unwrap_or_default();
            return Ok(line.strip_suffix(b"/").unwrap_or(line).to_vec());
        }
        Ok(match name {
            b"/" | b"//" | b"/SYM64/" => name,
            _ => name.strip_suffix(b"/").unwrap_or(name),
        }
        .to_vec())
    }

    fn place(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<Member> {
        let content = position + HEADER;
        let name = self.name(name, content, size)?;
        let shown: String =
            String::from_utf8_lossy(&name).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        Ok(Member { name: shown, header: position, content, size })
    }

    /// Looks at an object file's own header: it may have been cut before it was archived.
    fn object(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<()> {
        let skip = bsd_length(name).unwrap_or(0).min(size);
        let (content, size) = (position + HEADER + skip, size - skip);
        // ELF says it all in its first bytes, which came with the header.
        let mut first = self.window.hop(content, size.min(64) as usize)?;
        if first.starts_with(&[0xcf, 0xfa]) || first.starts_with(&[0xce, 0xfa]) {
            first = self.window.hop(content, size.min(object::LOOKED_AT as u64) as usize)?;
        }
        if let Some(object::Overrun { format, part, end }) = object::overrun(first, size) {
            let member = self.place(name, position, size + skip)?;
            let what = What::ObjectCut {
                format: format.to_owned(),
                part: part.to_owned(),
                expected: end,
                found: size,
            };
            self.fault(content, Some(member), what);
        }
        Ok(())
    }

    /// A thin archive's members are files beside it. They are looked at, never opened.
    fn thin_member(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let real = self.name(name, position + HEADER, size)?;
        let file = self.path.parent().unwrap_or(Path::new("")).join(std::ffi::OsStr::from_bytes(&real));
        // `/17:304` is a member at 304 of the archive that the name tells.
        let nested = name.contains(&b':');
        let what = match std::fs::metadata(&file) {
            Ok(meta) if nested || meta.len() == size => return Ok(()),
            Ok(meta) => {
                What::ThinSize { file: file.display().to_string(), expected: size, found: meta.len() }
            }
            Err(error) => What::ThinMissing { file: file.display().to_string(), why: error.to_string() },
        };
        let member = self.place(name, position, size)?;
        self.fault(position, Some(member), what);
        Ok(())
    }

    /// Compares the symbol tables with the headers that the walk met.
    fn symbol_tables(&mut self) -> io::Result<()> {
        let cut_at = self.report.break_point().map(|fault| match (&fault.member, &fault.what) {
            // Of this member nothing is missing.
            (_, What::PaddingMissing) => fault.position,
            (Some(member), _) => member.header,
            (None, _) => fault.position,
        });
        // What is missing without any break in the walk lies behind the end.
        let lost_from = cut_at.unwrap_or(self.window.size());
        let mut lost = Lost::default();
        let mut lost_headers: Vec<u64> = Vec::new();
        for place in self.tables.clone() {
            if place.content + place.size > self.window.size() {
                continue;
            }
            let offsets = match symbols::open(&mut self.window, place) {
                Ok(offsets) => offsets,
                Err(symbols::Bad::Io(error)) => return Err(error),
                Err(symbols::Bad::Table(why)) => {
                    self.fault(place.content, None, What::SymbolTable { why });
                    continue;
                }
            };
            let counts_symbols = place.table != Table::Coff;
            if counts_symbols {
                self.report.symbols += offsets.count;
            }
            let (mut astray, mut first_astray, mut last_good) = (0, 0, None);
            let headers = &self.headers;
            offsets.each(&mut self.window, |offset| {
                if last_good == Some(offset) || headers.binary_search(&offset).is_ok() {
                    last_good = Some(offset);
                } else if offset >= lost_from {
                    lost.symbols += u64::from(counts_symbols);
                    if lost_headers.last() != Some(&offset) && lost_headers.len() < MEMBERS_AT_MOST {
                        lost_headers.push(offset);
                    }
                } else {
                    astray += 1;
                    if astray == 1 {
                        first_astray = offset;
                    }
                }
            })?;
            if astray > 0 {
                let what = What::SymbolsAstray { count: astray, points_at: first_astray };
                self.fault(place.content, None, what);
            }
        }
        lost_headers.sort_unstable();
        lost_headers.dedup();
        lost.members = lost_headers.len() as u64;
        if cut_at.is_none() && lost.members > 0 {
            self.fault(self.window.size(), None, What::CutBetweenMembers);
        }
        self.count_lost(lost, &lost_headers);
        Ok(())
    }

    fn count_lost(&mut self, mut lost: Lost, headers: &[u64]) {
        let Some(fault) = self.report.break_point() else { return };
        lost.size_at_least = headers.last().map_or(0, |header| header.saturating_add(HEADER));
        match (&fault.member, &fault.what) {
            (_, What::PaddingMissing) => lost.size_at_least = lost.size_at_least.max(fault.position + 1),
            (Some(member), _) => {
                // A member without symbols is lost as well when its content is.
                let whole = member.content.saturating_add(member.size);
                lost.size_at_least = lost.size_at_least.max(whole.saturating_add(whole % 2));
                let special = matches!(member.name.as_str(), "/" | "//" | "/SYM64/");
                if !special && headers.binary_search(&member.header).is_err() {
                    lost.members += 1;
                }
            }
            (None, What::HeaderCut { .. }) => {
                lost.size_at_least = lost.size_at_least.max(fault.position + HEADER);
                if headers.binary_search(&fault.position).is_err() {
                    lost.members += 1;
                }
            }
            _ => {}
        }
        self.report.lost = Some(lost);
    }
}

/// The length in a BSD long name, `#1/<length>`.
fn bsd_length(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"#1/")?).ok()?.trim().parse().ok()
}

/// The offset in a GNU long name, `/<offset>` or, nested in a thin archive, `/<offset>:<origin>`.
fn gnu_offset(name: &[u8]) -> Option<u64> {
    let digits = name.strip_prefix(b"/")?.split(|&byte| byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.trim().parse().ok()
}
