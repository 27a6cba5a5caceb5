//! The walk over an archive: every header, no bodies, then the symbol table against what was found.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::fault::{Fault, Lost, Member, What};
use super::header::{self, HEADER};
use super::inside::{self, Inside};
use super::names::{self, Names};
use super::symbols::{self, Place, Table};
use super::window::Window;

/// Members that are followed; each costs 8 bytes while the symbol table is compared with them.
const MEMBERS_AT_MOST: u64 = 1 << 20;
/// Faults that are told one by one; the rest is counted.
const FAULTS_AT_MOST: usize = 16;

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
    #[serde(serialize_with = "lossy")]
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
    /// Where the header of a `/SYM64/` is, which not every reader knows.
    #[serde(skip)]
    pub wide_table: Option<u64>,
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

/// A path in JSON: what is not UTF-8 is replaced.
pub(super) fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Reads `path` as an archive. Member bodies are not read; memory stays below a few megabytes.
///
/// # Errors
/// Only when there is no answer: see [`CheckError`]. What is wrong with the archive is in the report.
pub fn check(path: &Path) -> Result<Report, CheckError> {
    check_for(path, path)
}

/// Reads `path` as what `place` will be: the members of a thin archive are looked for beside that.
pub(super) fn check_for(path: &Path, place: &Path) -> Result<Report, CheckError> {
    let io = |source| CheckError::Io { path: path.to_owned(), source };
    let file = open(path)?;
    let before = file.metadata().map_err(io)?;
    let mut walk = Walk::new(path, place, &file, before.len());
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

struct Walk<'a> {
    path: &'a Path,
    place: &'a Path,
    window: Window<'a>,
    names: Names<'a>,
    /// For section headers, which lie elsewhere than the walk reads.
    aside: Window<'a>,
    tables: Vec<Place>,
    /// Headers that were met, those of tables included.
    seen: u64,
    /// Positions of the members' headers, ascending.
    headers: Vec<u64>,
    report: Report,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path, place: &'a Path, file: &'a File, size: u64) -> Self {
        Self {
            path,
            place,
            window: Window::new(file, size),
            names: Names::new(Window::new(file, size)),
            aside: Window::new(file, size),
            tables: Vec::new(),
            seen: 0,
            headers: Vec::new(),
            report: Report {
                path: path.to_owned(),
                sound: false,
                size,
                kind: Kind::Plain,
                thin: false,
                members: 0,
                symbols: 0,
                wide_table: None,
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
            if self.seen >= MEMBERS_AT_MOST {
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
        self.seen += 1;
        if !special {
            self.headers.push(position);
            self.report.members += 1;
            self.member_name(&header.name, position, size)?;
            if self.report.thin {
                self.thin_member(&header.name, position, size)?;
            } else {
                self.object(&header.name, position, size)?;
            }
        }
        let blank = header.blank.filter(|_| !special && self.report.kind != Kind::Coff);
        if let Some((field, found)) = header.odd.or(blank.map(|field| (field, Vec::new()))) {
            let member = self.place(&header.name, position, size)?;
            let (field, found) = (field.to_owned(), found.escape_ascii().to_string());
            let what =
                if special { What::OddTableField { field, found } } else { What::OddField { field, found } };
            self.fault(position, Some(member), what);
        }
        if end % 2 == 1 && !self.padding(end, &header.name, position, size)? {
            return Ok(None);
        }
        Ok(Some(end + end % 2))
    }

    /// Looks at the byte that evens out a member; whether it is there.
    fn padding(&mut self, end: u64, name: &[u8], position: u64, size: u64) -> io::Result<bool> {
        // The next header comes with it.
        let byte = self.window.hop(end, 1 + HEADER as usize)?.first().copied();
        if byte == Some(b'\n') {
            return Ok(true);
        }
        let member = self.place(name, position, size)?;
        match byte {
            Some(byte) => {
                self.fault(end, Some(member), What::OddPadding { found: [byte].escape_ascii().to_string() });
            }
            None => {
                self.report.whole_until = end;
                self.fault(end, Some(member), What::PaddingMissing);
            }
        }
        Ok(byte.is_some())
    }

    /// Notes tables; whether the member is one of the format's own.
    fn special(&mut self, name: &[u8], content: u64, size: u64) -> io::Result<bool> {
        let index = self.seen;
        let table = match name {
            b"/" if index == 1
                && self.tables.first().is_some_and(|first| first.table == Table::SystemV(4)) =>
            {
                self.report.kind = Kind::Coff;
                Some(Table::Coff)
            }
            b"/" => Some(Table::SystemV(4)),
            b"/SYM64/" => {
                self.report.wide_table.get_or_insert(content - HEADER);
                Some(Table::SystemV(8))
            }
            b"//" => {
                if self.report.kind == Kind::Plain {
                    self.report.kind = Kind::Gnu;
                }
                self.names.table_at(content, size);
                return Ok(true);
            }
            // Tables of ARM64EC and of control flow guard: nothing here reads them.
            _ if name.starts_with(b"/<") => return Ok(true),
            _ if index == 0 => {
                let long = names::bsd_length(name);
                let real = self.names.begin(name, content, size, 32)?;
                let width = match real.strip_prefix(b"__.SYMDEF") {
                    Some(b"" | b" SORTED") => 4,
                    Some(b"_64" | b"_64 SORTED") => 8,
                    _ => return Ok(false),
                };
                self.report.kind = Kind::Bsd;
                let skip = long.unwrap_or(0).min(size);
                self.tables.push(Place {
                    table: Table::Bsd(width),
                    header: content - HEADER,
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
            self.tables.push(Place { table, header: content - HEADER, content, size });
        }
        Ok(true)
    }

    /// Checks a member's name, and learns from it which tools wrote the archive.
    fn member_name(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<()> {
        let bsd = names::bsd_length(name).is_some();
        if bsd && !matches!(self.report.kind, Kind::Coff) {
            // LLVM writes `/SYM64/` for BSD as well.
            self.report.kind = Kind::Bsd;
        } else if self.report.kind == Kind::Plain && name.ends_with(b"/") {
            self.report.kind = Kind::Gnu;
        }
        let gnu = self.report.kind != Kind::Bsd
            && self.tables.iter().any(|place| matches!(place.table, Table::SystemV(_)));
        if let Some(what) = self.names.fault(name, size, gnu)? {
            let member = self.place(name, position, size)?;
            self.fault(position, Some(member), what);
        }
        Ok(())
    }

    fn place(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<Member> {
        let content = position + HEADER;
        let name = self.names.resolve(name, content, size)?;
        Ok(Member { name: names::shown(&name), header: position, content, size })
    }

    /// Looks at an object file's own headers: it may have been cut before it was archived.
    fn object(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<()> {
        let skip = names::bsd_length(name).unwrap_or(0).min(size);
        let (content, inside) = (position + HEADER + skip, size - skip);
        let what = match inside::object(&mut self.window, &mut self.aside, content, inside)? {
            Inside::Fine => return Ok(()),
            Inside::Blank => What::ObjectBlank,
            Inside::Wrong(what) => what,
        };
        let member = self.place(name, position, size)?;
        // Zeros may be what a member of another kind begins with.
        if what != What::ObjectBlank || is_object(&member.name) {
            self.fault(content, Some(member), what);
        }
        Ok(())
    }

    /// A thin archive's members are files beside it.
    fn thin_member(&mut self, name: &[u8], position: u64, size: u64) -> io::Result<()> {
        let real = self.names.resolve(name, position + HEADER, size)?;
        if let Some(what) = inside::thin(self.place, &real, names::nested_origin(name), size) {
            let member = self.place(name, position, size)?;
            self.fault(position, Some(member), what);
        }
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
            // Of a table that is cut itself, what is there still tells how much there was.
            let whole = place.content + place.size <= self.window.size();
            let offsets = match symbols::open(&mut self.window, place, whole) {
                Ok(offsets) => offsets,
                Err(symbols::Bad::Io(error)) => return Err(error),
                Err(symbols::Bad::Table(_)) if !whole => continue,
                Err(symbols::Bad::Table(why)) => {
                    self.fault(place.content, Some(place.member()), What::SymbolTable { why });
                    continue;
                }
            };
            let counts_symbols = place.table != Table::Coff;
            if counts_symbols {
                self.report.symbols += offsets.count;
            }
            let (mut astray, mut first_astray, mut last_good) = (0, 0, None);
            let headers = &self.headers;
            let mut told = 0;
            let outcome = offsets.each(&mut self.window, |offset| {
                told += 1;
                if last_good == Some(offset) || headers.binary_search(&offset).is_ok() {
                    last_good = Some(offset);
                } else if offset >= lost_from {
                    lost.symbols += u64::from(counts_symbols);
                    if lost_headers.last() != Some(&offset) && (lost_headers.len() as u64) < MEMBERS_AT_MOST {
                        lost_headers.push(offset);
                    }
                } else {
                    astray += 1;
                    if astray == 1 {
                        first_astray = offset;
                    }
                }
            });
            match outcome {
                Ok(()) => {}
                Err(symbols::Bad::Io(error)) => return Err(error),
                Err(symbols::Bad::Table(why)) => {
                    self.fault(place.content, Some(place.member()), What::SymbolTable { why });
                }
            }
            if counts_symbols {
                // Where the table is cut, nothing tells where the rest of its symbols is; without the table they are lost.
                lost.symbols += offsets.count - told;
            }
            if astray > 0 {
                let what = What::SymbolsAstray { count: astray, points_at: first_astray };
                self.fault(place.content, Some(place.member()), what);
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
                if !is_table(&member.name) && headers.binary_search(&member.header).is_err() {
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

impl Place {
    /// The table as the member that it is.
    fn member(&self) -> Member {
        let name = match self.table {
            Table::SystemV(8) => "/SYM64/",
            Table::Bsd(_) => "__.SYMDEF",
            _ => "/",
        };
        Member { name: name.to_owned(), header: self.header, content: self.content, size: self.size }
    }
}

/// Whether a name is that of a symbol table or of the table of long names.
pub(super) fn is_table(name: &str) -> bool {
    matches!(name, "/" | "//" | "/SYM64/") || name.starts_with("__.SYMDEF")
}

/// Whether a name is that of an object file.
pub(super) fn is_object(name: &str) -> bool {
    [".o", ".obj"].iter().any(|end| name.ends_with(end))
}
