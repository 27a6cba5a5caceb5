//! How the programs that read archives take a faulty one: four readers, four ideas of "whole".
//!
//! Sources: `GHC.SysTools.Ar` (GHC 9.0, binary's `Get`), `rts/linker/LoadArchive.c`, and what the programs
//! said when they were given cut archives.

use serde::Serialize;

use super::check::Report;
use super::fault::{Fault, What};
use super::header::{FIELDS, HEADER};

/// What one reader makes of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The program.
    pub reader: &'static str,
    /// Whether it fails for certain, or only if a lost member is wanted.
    pub fails: bool,
    /// How.
    pub how: String,
}

const GHC: &str = "ghc -staticlib";
const RTS: &str = "GHC's own linker (Template Haskell, GHCi)";
const BY_SYMBOL: &str = "ld, gold";
const BY_MEMBER: &str = "lld, mold, llvm-ar";

/// Where `ghc -staticlib` gives up on this archive: the N of `Data.Binary.Get.runGet at position N`.
///
/// GHC reads field by field, and names the place where the field begins that it could not fill. `None` where
/// its reader does not notice (it knows nothing of symbol tables) or says something else.
#[must_use]
pub fn ghc_position(report: &Report) -> Option<u64> {
    let fault = report.break_point()?;
    match fault.what {
        What::Empty | What::MagicCut => Some(0),
        What::ContentCut { .. } | What::PaddingMissing => Some(fault.position),
        What::HeaderCut { found } => {
            let field = FIELDS.iter().rev().find(|(_, from, _)| *from as u64 <= found)?;
            Some(fault.position + field.1 as u64)
        }
        _ => None,
    }
}

/// What the known readers make of the archive; empty where it is sound.
#[must_use]
pub fn verdicts(report: &Report) -> Vec<Verdict> {
    let Some(fault) = report.break_point() else { return by_table(report) };
    let mut verdicts = vec![ghc(report, fault)];
    let verdict = |reader, fails, how: &str| Verdict { reader, fails, how: how.to_owned() };
    match fault.what {
        What::Empty | What::MagicCut | What::NotAnArchive { .. } => {
            verdicts.push(verdict(RTS, true, "refuses the file"));
            verdicts.push(verdict(BY_SYMBOL, true, "refuse the file: `file format not recognized`"));
            verdicts.push(verdict(BY_MEMBER, true, "refuse the file"));
        }
        What::PaddingMissing => {
            verdicts.push(verdict(RTS, false, "takes it"));
            verdicts.push(verdict(BY_SYMBOL, false, "take it"));
        }
        // A short read inside the 16 bytes of a name counts as the end of the file.
        What::CutBetweenMembers | What::HeaderCut { found: 0..16 } => {
            let unknown = "takes it for whole; symbols of lost members are unknown to it";
            let wanted = "fail when a symbol of a lost member is wanted; `nm` and `ranlib` die";
            let by_member = match fault.what {
                What::CutBetweenMembers => "refuse the symbol table or miss the lost members",
                _ => "refuse it: `truncated or malformed archive`",
            };
            verdicts.push(verdict(RTS, false, unknown));
            verdicts.push(verdict(BY_SYMBOL, false, wanted));
            verdicts.push(verdict(BY_MEMBER, true, by_member));
        }
        _ => {
            verdicts.push(verdict(RTS, true, "fails while it loads the archive: `loadArchive: …`"));
            verdicts.push(verdict(BY_SYMBOL, false, "fail when a symbol of a lost member is wanted; `ar t` lists what is left, `nm` and `ranlib` die"));
            verdicts.push(verdict(BY_MEMBER, true, "refuse it: `truncated or malformed archive`"));
        }
    }
    verdicts
}

fn ghc(report: &Report, fault: &Fault) -> Verdict {
    let (fails, how) = match (ghc_position(report), &fault.what) {
        (Some(position), _) => {
            (true, format!("`Data.Binary.Get.runGet at position {position}: not enough bytes`"))
        }
        (None, What::HeaderEnd { .. }) => (
            true,
            format!(
                "`Data.Binary.Get.runGet at position {}: [BSD Archive] Invalid archive header end marker`",
                fault.position + HEADER
            ),
        ),
        (None, What::CutBetweenMembers) => {
            (false, "takes it for whole; what it joins lacks the lost members".to_owned())
        }
        (None, _) => (true, "refuses it".to_owned()),
    };
    Verdict { reader: GHC, fails, how }
}

/// The members can be walked; what is wrong is a table or a file outside.
fn by_table(report: &Report) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let any = |test: fn(&What) -> bool| report.faults.iter().any(|fault| test(&fault.what));
    if any(|what| matches!(what, What::SymbolTable { .. } | What::SymbolsAstray { .. })) {
        let how = "go by the symbol table and fail; `ranlib` makes it anew".to_owned();
        verdicts.push(Verdict { reader: BY_SYMBOL, fails: true, how });
    }
    if any(|what| matches!(what, What::ObjectCut { .. })) {
        let how = "fail when they load the member; rebuild it".to_owned();
        verdicts.push(Verdict { reader: "every reader", fails: true, how });
    }
    if any(|what| matches!(what, What::LongName { .. } | What::BsdName { .. })) {
        verdicts.push(Verdict { reader: RTS, fails: true, how: "fails at the name".to_owned() });
        verdicts.push(Verdict { reader: BY_MEMBER, fails: true, how: "refuse it".to_owned() });
    }
    if any(|what| matches!(what, What::ThinMissing { .. } | What::ThinSize { .. })) {
        let how = "fail when they open the member".to_owned();
        verdicts.push(Verdict { reader: "every reader", fails: true, how });
    }
    verdicts
}
