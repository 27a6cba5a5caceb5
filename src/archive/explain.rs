//! Which archive and member the "position N" of an error message belongs to.
//!
//! GHC's message (`Data.Binary.Get.runGet at position N: not enough bytes`) names no file. N is where a field or a content
//! begins that a cut archive cannot fill, so the archive is the one on which GHC would give up at that very place.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::check::{CheckError, Report, check, open};
use super::header::{self, HEADER};
use super::names::Names;
use super::readers;
use super::window::Window;

/// An archive that a position may belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Culprit {
    /// The archive.
    #[serde(serialize_with = "super::check::lossy")]
    pub path: PathBuf,
    /// The member at that place; none in the file's header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Whether GHC gives up on this archive at exactly that position. Otherwise it is cut, and elsewhere.
    pub exact: bool,
    /// What the check found.
    pub report: Report,
}

impl Culprit {
    /// The member in words.
    #[must_use]
    pub fn place(&self) -> &str {
        match self.member.as_deref() {
            Some("/" | "/SYM64/") => "the symbol table",
            Some("//") => "the table of long names",
            Some(name) => name,
            None => "no member",
        }
    }
}

/// Reads the position out of a line of a build's log, if it is GHC's message.
#[must_use]
pub fn position_in(line: &str) -> Option<u64> {
    let text = line.split_once("Data.Binary.Get.runGet at position ")?.1;
    let digits = text.split(|c: char| !c.is_ascii_digit() && c != ',').next()?;
    digits.replace(',', "").parse().ok()
}

/// The archives on which a reader gives up at `position`; else those that are cut elsewhere. What cannot be asked is told to
/// `unasked`.
pub fn position(archives: &[PathBuf], position: u64, unasked: &mut dyn FnMut(CheckError)) -> Vec<Culprit> {
    let mut culprits = Vec::new();
    for path in archives {
        let report = match check(path) {
            Ok(report) => report,
            Err(error) => {
                unasked(error);
                continue;
            }
        };
        if report.break_point().is_none() {
            continue;
        }
        let exact = readers::ghc_position(&report) == Some(position);
        let cut =
            report.break_point().and_then(|fault| fault.member.as_ref()).map(|member| member.name.clone());
        // A build host's file may have been cut once more, or mended in part, since the log was written.
        let member = if exact { cut } else { member_at(path, position) };
        culprits.push(Culprit { path: path.clone(), member, exact, report });
    }
    if culprits.iter().any(|culprit| culprit.exact) {
        culprits.retain(|culprit| culprit.exact);
    }
    culprits
}

/// The member whose header or content holds a position, by its name. `None` where there is none, or it cannot be read.
#[must_use]
pub fn member_at(path: &Path, position: u64) -> Option<String> {
    let file = open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let mut window = Window::new(&file, size);
    let mut names = Names::new(Window::new(&file, size));
    let mut at = 8;
    let thin = window.hop(0, 8).ok()? == b"!<thin>\n";
    while at <= position {
        let header = header::parse(window.hop(at, HEADER as usize).ok()?).ok()?;
        let content = at + HEADER;
        if header.name == b"//" {
            names.table_at(content, header.size);
        }
        let special = matches!(header.name.as_slice(), b"/" | b"//" | b"/SYM64/");
        let end = content + if thin && !special { 0 } else { header.size + header.size % 2 };
        if position < end {
            let name = names.resolve(&header.name, content, header.size).ok()?;
            return Some(super::names::shown(&name));
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_position_is_read_from_a_log() {
        let line = "ghc: panic! Data.Binary.Get.runGet at position 287686318: not enough bytes";
        assert_eq!(super::position_in(line), Some(287_686_318));
        assert_eq!(super::position_in("at position 12: other"), None);
    }
}
