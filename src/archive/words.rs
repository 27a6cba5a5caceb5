//! Reports in words: text for people, a table for a job's summary.

use std::fmt::Write as _;
use std::path::Path;

use super::check::{Kind, Report};
use super::fault::{Fault, What};
use super::mend::Done;
use super::salvage::Losses;
use super::{nix, readers};

/// A number of bytes or things with separators: `287,686,318`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// The kind of an archive in words.
#[must_use]
pub fn kind(report: &Report) -> String {
    let kind = match report.kind {
        Kind::Gnu => "GNU",
        Kind::Bsd => "BSD",
        Kind::Coff => "COFF import library",
        Kind::Plain => "plain",
        Kind::LinkerScript => return "linker script".to_owned(),
        Kind::Object => return "object file".to_owned(),
    };
    if report.thin { format!("{kind}, thin") } else { kind.to_owned() }
}

/// One line for a sound archive; for another what is wrong, what is lost, who fails, what mends it.
#[must_use]
pub fn text(report: &Report) -> String {
    let path = report.path.display();
    if report.sound {
        let odd = match report.faults.len() {
            0 => String::new(),
            n => format!(" ({} that no reader minds)", count(n as u64, "oddity", "oddities")),
        };
        return match report.kind {
            Kind::LinkerScript | Kind::Object => {
                format!("sound      {path}: no archive but a {}, taken as it is", kind(report))
            }
            _ => format!(
                "sound      {path}: {}, {}, {}, {}{odd}",
                kind(report),
                count(report.members, "member", "members"),
                count(report.symbols, "symbol", "symbols"),
                count(report.size, "byte", "bytes"),
            ),
        };
    }
    let mut text = format!("NOT SOUND  {path}: {}, {}\n", kind(report), count(report.size, "byte", "bytes"));
    for fault in report.faults.iter().filter(|fault| !fault.what.is_harmless()) {
        let _ = writeln!(text, "  wrong    {}", fault_text(fault, report.size));
    }
    if report.more_faults > 0 {
        let _ = writeln!(text, "           and {} more", grouped(report.more_faults));
    }
    if let Some(lost) = lost_text(report) {
        let _ = writeln!(text, "  lost     {lost}");
    }
    for verdict in readers::verdicts(report) {
        let mark = if verdict.fails { "fails" } else { "depends" };
        let _ = writeln!(text, "  {mark:<8} {}: {}", verdict.reader, verdict.how);
    }
    if let Some(view) = &report.nix {
        let _ = writeln!(text, "  nix      {}", view.text());
        if view.hash_agrees() {
            text.push_str(BUILT_SO);
            return text;
        }
    }
    let _ = write!(text, "  mend     {}", mend_command(&report.path));
    text
}

const BUILT_SO: &str =
    "           so it was cut when it was built, or stored like this: no repair will find anything wrong
  mend     rebuild it: `nix build --repair INSTALLABLE`";

/// One sentence about a fault.
#[must_use]
pub fn fault_text(fault: &Fault, size: u64) -> String {
    let at = grouped(fault.position);
    let member = fault.member.as_ref().map_or_else(
        || "a member".to_owned(),
        |member| match member.name.as_str() {
            "/" | "/SYM64/" => "the symbol table".to_owned(),
            "//" => "the table of long names".to_owned(),
            name => format!("member {name}"),
        },
    );
    match &fault.what {
        What::Empty => "the file is empty: not even the 8 bytes that begin an archive are there".to_owned(),
        What::NotAnArchive { begins_with } => {
            format!("not an archive: it begins with \"{begins_with}\", not with \"!<arch>\\n\"")
        }
        What::MagicCut => {
            format!("cut at {}: the 8 bytes that begin an archive are not all there", grouped(size))
        }
        What::HeaderCut { found } => {
            format!("cut inside a member header: at position {at} 60 bytes are expected and {found} found")
        }
        What::HeaderEnd { found } => format!(
            "no member header at position {at}: it should end with \"`\\n\" and ends with \"{found}\""
        ),
        What::HeaderSize { found } => {
            format!("the header at position {at} has a size that is no number: \"{found}\"")
        }
        What::ContentCut { expected, found } => format!(
            "cut inside {member}: its content begins at position {at}, {} bytes are expected and {} found",
            grouped(*expected),
            grouped(*found)
        ),
        What::PaddingMissing => format!(
            "the padding byte behind {member} is missing: 1 byte is expected at position {at} and the file ends"
        ),
        What::CutBetweenMembers => format!(
            "cut between two members, at position {at}: the symbol table knows members behind the end"
        ),
        What::SymbolTable { why } => format!("the symbol table at position {at} cannot be read: {why}"),
        What::SymbolsAstray { count: number, points_at } => format!(
            "{} where no member begins (the first points at {})",
            count(*number, "symbol points", "symbols point"),
            grouped(*points_at)
        ),
        What::LongName { offset, table } => format!(
            "{member} at position {at} has its name at {} of a table of {} bytes",
            grouped(*offset),
            grouped(*table)
        ),
        What::BsdName { length } => {
            format!("{member} at position {at} has a name of {} bytes, longer than itself", grouped(*length))
        }
        What::ThinMissing { file, why } => format!("{member}, the file {file}: {why}"),
        What::ThinSize { file, expected, found } => format!(
            "{member}, the file {file}: {} bytes are expected and {} found",
            grouped(*expected),
            grouped(*found)
        ),
        What::ObjectCut { format, part, expected, found } => format!(
            "{member} at position {at} was cut before it was archived: its {format} header names {part} up to {}, and it has {} bytes",
            grouped(*expected),
            grouped(*found)
        ),
        What::OddField { field } => format!("{member} at position {at} has a {field} that is no number"),
    }
}

/// What is lost, in one sentence.
#[must_use]
pub fn lost_text(report: &Report) -> Option<String> {
    let lost = report.lost.filter(|lost| lost.members > 0 || lost.size_at_least > report.size)?;
    let mut text = if lost.members == 0 {
        "no member".to_owned()
    } else {
        format!(
            "at least {} of {}, {} of {} symbols",
            count(lost.members, "member", "members"),
            grouped(report.members + lost.members),
            grouped(lost.symbols),
            grouped(report.symbols)
        )
    };
    if lost.size_at_least > report.size {
        let _ = write!(text, "; whole it has at least {} bytes", grouped(lost.size_at_least));
    }
    Some(text)
}

/// The command that mends the archive.
#[must_use]
pub fn mend_command(path: &Path) -> String {
    let text = path.display().to_string();
    let quoted = shlex::try_quote(&text).map_or_else(|_| text.clone(), Into::into);
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if nix::store_path(&real).is_some() {
        format!("sower archive patch {quoted}")
    } else {
        format!("sower archive patch {quoted} --from A-WHOLE-COPY")
    }
}

/// A table row's cell: one line, no bars.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// Losses that are listed by name.
const LISTED: usize = 20;

/// What is lost for good, loudly.
#[must_use]
pub fn losses(losses: &Losses) -> String {
    let list = |names: &[String]| {
        let mut text = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        if names.len() > LISTED {
            let _ = write!(text, " and {} more", grouped((names.len() - LISTED) as u64));
        }
        text
    };
    let mut text = format!(
        "LOST: at least {} with {}",
        count(losses.member_count, "member", "members"),
        count(losses.symbols.len() as u64, "symbol", "symbols")
    );
    if !losses.members.is_empty() {
        let _ = write!(text, "\n  members  {}", list(&losses.members));
    }
    if !losses.symbols.is_empty() {
        let _ = write!(text, "\n  symbols  {}", list(&losses.symbols));
    }
    text
}

/// What a mend did, in words.
#[must_use]
pub fn mended(done: &Done) -> String {
    let mut text = format!(
        "mended     {}: {} bytes before, {} now, {} members, {} symbols\n  from     {}\n  sha256   {} before\n           {} now",
        done.after.path.display(),
        grouped(done.before.size),
        grouped(done.after.size),
        grouped(done.after.members),
        grouped(done.after.symbols),
        done.source,
        done.before_hash,
        done.after_hash,
    );
    if let Some(lost) = &done.losses {
        let _ = write!(text, "\n{}", losses(lost));
    }
    for notice in &done.notices {
        let _ = write!(text, "\n  note     {notice}");
    }
    text
}

/// The before/after table of a mend for the job's summary (Markdown).
#[must_use]
pub fn mend_summary(done: &Done) -> String {
    let wrong = done.before.faults.iter().find(|fault| !fault.what.is_harmless());
    let wrong = wrong.map(|fault| fault_text(fault, done.before.size)).unwrap_or_default();
    let row = |name: &str, report: &Report, state: &str, hash: &str| {
        format!(
            "| {name} | {} | {} | {} | {} | `{hash}` |\n",
            grouped(report.size),
            grouped(report.members),
            grouped(report.symbols),
            cell(state)
        )
    };
    let lost =
        done.losses.as_ref().map(|lost| format!("**{}**\n\n", cell(&losses(lost)))).unwrap_or_default();
    format!(
        "### Archive mended: `{}`\n\n| | Bytes | Members | Symbols | State | SHA-256 |\n| --- | ---: | ---: | ---: | --- | --- |\n{}{}\n{lost}Source: {}\n\n",
        done.before.path.display(),
        row("before", &done.before, &wrong, &done.before_hash),
        row("after", &done.after, "sound", &done.after_hash),
        cell(&done.source)
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn groups_digits() {
        assert_eq!(super::grouped(0), "0");
        assert_eq!(super::grouped(999), "999");
        assert_eq!(super::grouped(287_686_318), "287,686,318");
    }
}
