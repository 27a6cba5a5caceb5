//! How the programs that read archives take a faulty one: five ways, five ideas of "whole".
//!
//! Sources: `GHC.SysTools.Ar` (GHC 9.0, binary's `Get`), `rts/linker/LoadArchive.c`, and what GHC 9.0.2, ld and gold 2.40,
//! lld 14 and 22, mold 1.10 and LLVM 14 said when they were given cut and altered archives.

use serde::Serialize;

use super::check::{Report, is_object, is_table};
use super::fault::{Fault, What};
use super::header::{FIELDS, HEADER};

/// What becomes of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It fails whatever is wanted of the archive.
    Fails,
    /// It fails, or misses something, if what is damaged is wanted.
    Depends,
    /// It takes the archive.
    Takes,
}

/// What one reader makes of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The program.
    pub reader: &'static str,
    /// Whether it fails for certain, or only if a lost member is wanted.
    pub fails: bool,
    /// The same in three words.
    pub outcome: Outcome,
    /// How.
    pub how: String,
}

const GHC: &str = "ghc -staticlib";
const RTS: &str = "GHC's own linker (Template Haskell, GHCi)";
const BY_SYMBOL: &str = "ld, gold, lld up to 14";
const MOLD: &str = "mold";
const STRICT: &str = "lld from 15 on, llvm-ar";

/// What GHC says of a `/SYM64/`, also in a whole archive.
const NO_WIDE_TABLE: &str =
    "refuses every archive with a /SYM64/ table, whole or not: `Invalid extended filename reference`";

use Outcome::{Depends, Fails, Takes};

/// Verdicts are collected in the order of the readers.
struct Verdicts(Vec<Verdict>);

impl Verdicts {
    fn say(&mut self, reader: &'static str, outcome: Outcome, how: impl Into<String>) -> &mut Self {
        self.0.push(Verdict { reader, fails: outcome == Fails, outcome, how: how.into() });
        self
    }
}

/// Where `ghc -staticlib` gives up on this archive: the N of `Data.Binary.Get.runGet at position N: not enough bytes`.
///
/// GHC reads field by field, and names the place where the field begins that it could not fill. `None` where
/// its reader does not notice (it knows nothing of symbol tables) or says something else.
#[must_use]
pub fn ghc_position(report: &Report) -> Option<u64> {
    let fault = report.break_point()?;
    if report.thin || stops_at_wide_table(report, fault) {
        return None;
    }
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

/// Whether GHC comes to the end of a `/SYM64/` before it comes to the fault: it takes that for a long name, and gives up.
fn stops_at_wide_table(report: &Report, fault: &Fault) -> bool {
    let at = match (&fault.member, &fault.what) {
        (Some(member), _) => member.header,
        (None, _) => fault.position,
    };
    report.wide_table.is_some_and(|table| table < at)
}

/// What the known readers make of the archive; empty where it is sound.
#[must_use]
pub fn verdicts(report: &Report) -> Vec<Verdict> {
    if report.sound {
        return Vec::new();
    }
    let mut verdicts = Verdicts(Vec::new());
    match report.break_point() {
        Some(fault) => broken(report, fault, &mut verdicts),
        None => walkable(report, &mut verdicts),
    }
    verdicts.0
}

/// The walk from member to member ends too early.
fn broken(report: &Report, fault: &Fault, verdicts: &mut Verdicts) {
    ghc(report, fault, verdicts);
    let wanted = "fail when a symbol of a lost member is wanted";
    let refuse = "refuse it: `truncated or malformed archive`";
    let member = fault.member.as_ref();
    let in_table = member.is_some_and(|member| is_table(&member.name));
    // Who goes by the symbol table must at least find that.
    let at_start = in_table || matches!(fault.what, What::HeaderCut { .. } if fault.position == 8);
    match &fault.what {
        What::Empty => {
            verdicts.say(RTS, Fails, "refuses the file: `loadArchive: Failed reading header`");
            verdicts.say(
                BY_SYMBOL,
                Depends,
                "gold refuses the file; the others take it for one without symbols",
            );
            verdicts.say(MOLD, Fails, "refuses the file: `unknown file type`");
            verdicts.say(STRICT, Depends, "llvm-ar refuses the file; lld takes it for one without symbols");
            return;
        }
        What::MagicCut | What::NotAnArchive { .. } => {
            verdicts.say(RTS, Fails, "refuses the file");
            verdicts.say(
                BY_SYMBOL,
                Fails,
                "refuse the file: `file format not recognized`, or take it for a script",
            );
            verdicts.say(MOLD, Fails, "refuses the file");
            verdicts.say(STRICT, Fails, "refuse the file");
            return;
        }
        What::PaddingMissing => {
            verdicts.say(RTS, Takes, "takes it");
            verdicts.say(BY_SYMBOL, Takes, "take it");
            verdicts.say(MOLD, Takes, "takes it");
            verdicts.say(STRICT, Fails, refuse);
            return;
        }
        What::CutBetweenMembers => {
            let unknown = "takes it for whole; symbols of lost members are unknown to it";
            verdicts.say(RTS, Depends, unknown);
            verdicts.say(BY_SYMBOL, Depends, wanted);
            verdicts.say(MOLD, Depends, unknown);
            verdicts.say(STRICT, Depends, "take it for whole; symbols of lost members are unknown to them");
            return;
        }
        _ => {}
    }
    match &fault.what {
        // A short read inside the 16 bytes of a name counts as the end of the file.
        What::HeaderCut { found: 0..16 } => {
            verdicts.say(RTS, Depends, "takes it for whole; symbols of lost members are unknown to it");
        }
        // These are skipped, also past the end of the file.
        What::ContentCut { .. } if member.is_some_and(|member| member.name != "//" && in_table) => {
            verdicts.say(RTS, Depends, "takes it for an empty archive; all symbols are unknown to it");
        }
        What::ContentCut { .. } if !in_table && !member.is_some_and(|member| is_object(&member.name)) => {
            verdicts.say(
                RTS,
                Depends,
                "skips the member, which is no object by its name, and takes the rest",
            );
        }
        What::HeaderSize { .. } => {
            verdicts.say(
                RTS,
                Fails,
                "reads another size: it fails, dies of SIGSEGV or takes what it finds there",
            );
        }
        _ => {
            verdicts.say(RTS, Fails, "fails while it loads the archive: `loadArchive: …`");
        }
    }
    if at_start {
        verdicts.say(BY_SYMBOL, Fails, "fail: the symbol table or the names cannot be read");
    } else {
        let listing = match fault.what {
            What::HeaderEnd { .. } | What::HeaderSize { .. } => "",
            _ => "; `ar t` lists what is left and exits 0",
        };
        verdicts.say(BY_SYMBOL, Depends, format!("{wanted}{listing}"));
    }
    verdicts.say(MOLD, Depends, "stops there without a word; symbols behind it are unknown to it");
    verdicts.say(STRICT, Fails, refuse);
}

fn ghc(report: &Report, fault: &Fault, verdicts: &mut Verdicts) {
    let runs_into =
        |position: u64, what: &str| format!("`Data.Binary.Get.runGet at position {position}: {what}`");
    if report.thin {
        // Of any thin archive, whole or not.
        verdicts.say(GHC, Fails, runs_into(8, "Invalid magic number \"!<thin>"));
        return;
    }
    if stops_at_wide_table(report, fault) {
        verdicts.say(GHC, Fails, NO_WIDE_TABLE);
        return;
    }
    if let Some(position) = ghc_position(report) {
        verdicts.say(GHC, Fails, runs_into(position, "not enough bytes"));
        return;
    }
    match &fault.what {
        What::HeaderEnd { .. } => {
            let how = runs_into(fault.position + HEADER, "[BSD Archive] Invalid archive header end marker");
            verdicts.say(GHC, Fails, how)
        }
        What::NotAnArchive { .. } if report.size >= 8 => {
            verdicts.say(GHC, Fails, runs_into(8, "Invalid magic number"))
        }
        What::NotAnArchive { .. } => verdicts.say(GHC, Fails, runs_into(0, "not enough bytes")),
        What::CutBetweenMembers => {
            verdicts.say(GHC, Depends, "takes it for whole; what it joins lacks the lost members")
        }
        What::HeaderSize { .. } => verdicts.say(GHC, Fails, "refuses it: `Prelude.read: no parse`"),
        _ => verdicts.say(GHC, Fails, "refuses it"),
    };
}

/// The members can be walked; what is wrong is a table, a field, a name, an object or a file outside.
fn walkable(report: &Report, verdicts: &mut Verdicts) {
    let whats: Vec<&What> =
        report.faults.iter().map(|fault| &fault.what).filter(|what| !what.is_harmless()).collect();
    let any = |test: fn(&What) -> bool| whats.iter().any(|what| test(what));
    if any(What::is_about_symbols) {
        verdicts.say(GHC, Takes, "takes it: it does not read the symbol table");
        verdicts.say(RTS, Takes, "takes it: it does not read the symbol table");
        verdicts.say(BY_SYMBOL, Fails, "go by the symbol table: they fail, or miss what it does not name");
        verdicts.say(MOLD, Takes, "takes it: it does not read the symbol table");
        verdicts.say(STRICT, Takes, "take it");
    }
    if any(|what| matches!(what, What::ThinMissing { .. } | What::ThinSize { .. })) {
        verdicts.say(GHC, Fails, "refuses every thin archive: `Invalid magic number \"!<thin>`");
        verdicts.say(RTS, Fails, "fails when it opens the member: `can't read thin archive`");
        verdicts.say(BY_SYMBOL, Depends, "fail when a symbol of the member is wanted");
        verdicts.say(MOLD, Fails, "fails when it opens the member");
        verdicts.say(STRICT, Depends, "lld fails when it opens the member; llvm-ar lists it all the same");
    }
    if any(|what| matches!(what, What::ObjectCut { .. } | What::ObjectBlank | What::ObjectTable { .. })) {
        verdicts.say(GHC, Takes, "joins it as it is: the link of what it made fails");
        verdicts.say(RTS, Fails, "fails when it loads the object");
        verdicts.say(BY_SYMBOL, Depends, "fail when a symbol of the member is wanted");
        verdicts.say(MOLD, Depends, "fails or dies of SIGSEGV when it reads the object");
        verdicts.say(STRICT, Depends, "lld fails when it reads the object; llvm-ar lists it all the same");
    }
    for what in &whats {
        match what {
            What::LongName { .. } | What::LongNameEndless { .. } | What::BsdName { .. } => {
                verdicts.say(RTS, Fails, "fails at the name");
                verdicts.say(BY_SYMBOL, Depends, "fail when the member is wanted: `malformed archive`");
                verdicts.say(MOLD, Fails, "fails at the name");
                verdicts.say(STRICT, Fails, "refuse it: `truncated or malformed archive`");
            }
            What::LongNameMiddle { offset } => {
                verdicts.say(RTS, Fails, format!("fails: `GNU-variant filename offset {offset} invalid`"));
                verdicts.say(BY_SYMBOL, Takes, "take it, and know the member by another name");
            }
            What::BadName { found } => {
                if found.starts_with("#1/") {
                    verdicts.say(GHC, Takes, "takes it, and knows the member by another name");
                } else {
                    verdicts.say(GHC, Fails, "fails: `Prelude.read: no parse`");
                }
                verdicts.say(RTS, Fails, "fails at the name");
                verdicts.say(BY_SYMBOL, Depends, "gold and lld fail when the member is wanted");
                verdicts.say(STRICT, Fails, "refuse it: `truncated or malformed archive`");
            }
            What::NameUnended { .. } => {
                verdicts.say(RTS, Depends, "loads the member only if the name is still an object's");
                verdicts.say(
                    BY_SYMBOL,
                    Depends,
                    "gold fails when the member is wanted: `malformed archive header name`",
                );
            }
            What::OddField { found, .. } => {
                if ghc_reads(found) {
                    verdicts.say(GHC, Takes, "takes it");
                } else {
                    verdicts.say(GHC, Fails, "fails: `Prelude.read: no parse`");
                }
                verdicts.say(BY_SYMBOL, Takes, "take it");
                verdicts.say(
                    STRICT,
                    Depends,
                    "take it; what shows or unpacks it fails (`ar tv`, `llvm-ar tv`)",
                );
            }
            _ => {}
        }
    }
    // It gives up on them whatever else is wrong.
    if report.wide_table.is_some() && !report.thin {
        verdicts.0.retain(|verdict| verdict.reader != GHC);
        verdicts.say(GHC, Fails, NO_WIDE_TABLE);
        verdicts.0.rotate_right(1);
    }
    // The same fault in many members is told once; of two words about one reader the worse comes first.
    let mut said = Vec::new();
    verdicts.0.retain(|verdict| {
        let new = !said.contains(verdict);
        said.push(verdict.clone());
        new
    });
}

/// Whether GHC reads a number from a field: what stands before the first space.
fn ghc_reads(field: &str) -> bool {
    field.split(' ').next().unwrap_or_default().parse::<i64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghc_reads_up_to_the_first_space() {
        for (field, reads) in
            [("12", true), ("-1", true), ("1 2", true), (" 12", false), ("abc", false), ("", false)]
        {
            assert_eq!(ghc_reads(field), reads, "{field:?}");
        }
    }
}
