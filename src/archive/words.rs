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
        let mark = match verdict.outcome {
            readers::Outcome::Fails => "fails",
            readers::Outcome::Depends => "depends",
            readers::Outcome::Takes => "takes",
        };
        let _ = writeln!(text, "  {mark:<8} {}: {}", verdict.reader, verdict.how);
    }
    if let Some(view) = &report.nix {
        let _ = writeln!(text, "  nix      {}", view.text());
        if view.hash_agrees() {
            text.push_str(BUILT_SO);
            return text;
        }
    }
    let _ = write!(text, "  mend     {}", mend_command(report));
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
            name if name.starts_with("__.SYMDEF") => "the symbol table".to_owned(),
            "" => "a member without a name".to_owned(),
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
        What::LongNameMiddle { offset } => format!(
            "{member} at position {at} has its name at {} of the table of long names, where none begins",
            grouped(*offset)
        ),
        What::LongNameEndless { offset } => format!(
            "{member} at position {at} has its name at {} of the table of long names, where it has no end",
            grouped(*offset)
        ),
        What::BadName { found } => {
            format!("the member at position {at} has a name that is none: \"{found}\"")
        }
        What::NameUnended { found } => {
            format!("the member at position {at} has a name that does not end with a slash: \"{found}\"")
        }
        What::ObjectBlank => format!(
            "{member} at position {at} begins with zeros: its blocks never reached the disk, or were lost on it"
        ),
        What::ObjectTable { format, at: inside } => format!(
            "{member} at position {at} is an {format} object without section headers where its header names them (at {} of it): zeros, or something else",
            grouped(*inside)
        ),
        What::OddField { field, found } => {
            format!("{member} at position {at} has a {field} that is no number: \"{found}\"")
        }
        What::OddTableField { field, found } => {
            format!(
                "{member} at position {at} has a {field} that is no number (no reader minds): \"{found}\""
            )
        }
        What::OddPadding { found } => format!(
            "the padding byte behind {member}, at position {at}, is \"{found}\" and no newline (no reader minds)"
        ),
    }
}

/// What is lost, in one sentence.
#[must_use]
pub fn lost_text(report: &Report) -> Option<String> {
    let lost = report
        .lost
        .filter(|lost| lost.members > 0 || lost.symbols > 0 || lost.size_at_least > report.size)?;
    let break_point = report.break_point();
    let mut text = if break_point.is_some_and(|fault| fault.what == What::PaddingMissing) {
        "one byte and no member".to_owned()
    } else if lost.members == 0 {
        // Nothing is left that could tell how many there were.
        match lost.symbols {
            0 => "all members".to_owned(),
            symbols => format!("all members, {}", count(symbols, "symbol", "symbols")),
        }
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

/// The command that mends the archive. Where it needs a whole copy that nobody named, `A-WHOLE-COPY` stands for it.
#[must_use]
pub fn mend_command(report: &Report) -> String {
    let path = quoted(&report.path);
    let wrong = || report.faults.iter().map(|fault| &fault.what).filter(|what| !what.is_harmless());
    let real = std::fs::canonicalize(&report.path).unwrap_or_else(|_| report.path.clone());
    if nix::store_path(&real).is_some() {
        format!("sower archive patch {path}")
    } else if wrong().all(|what| *what == What::PaddingMissing) {
        format!("sower archive patch {path} --salvage")
    } else if wrong().all(What::is_about_symbols) && !matches!(report.kind, Kind::Coff) {
        // ranlib does not open an archive whose table it cannot read.
        format!("sower archive patch {path} --salvage && ranlib {path}")
    } else if wrong().all(|what| matches!(what, What::ThinMissing { .. } | What::ThinSize { .. })) {
        "rebuild the files that it stands for".to_owned()
    } else {
        format!("sower archive patch {path} --from A-WHOLE-COPY")
    }
}

/// A path as a shell takes it for one argument that is no option.
#[must_use]
pub fn quoted(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let (before, bytes) = if bytes.starts_with(b"-") { ("./", bytes) } else { ("", bytes) };
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => {
            let text = format!("{before}{text}");
            shlex::try_quote(&text).map_or_else(|_| text.clone(), Into::into)
        }
        _ => {
            let octal = |byte: &u8| match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'/' | b'.' | b'_' | b'-' => {
                    char::from(*byte).to_string()
                }
                other => format!("\\{other:03o}"),
            };
            format!("\"$(printf '{before}{}')\"", bytes.iter().map(octal).collect::<String>())
        }
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
    let wrong = wrong.map_or_else(
        || "its content is not what Nix's book says".to_owned(),
        |fault| fault_text(fault, done.before.size),
    );
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
    fn a_path_is_one_argument() {
        use std::os::unix::ffi::OsStrExt;
        for (path, shell) in [
            (&b"lib/x.a"[..], "lib/x.a"),
            (b"-x.a", "./-x.a"),
            (b"a b.a", "'a b.a'"),
            (b"a\xff'.a", "\"$(printf 'a\\377\\047.a')\""),
        ] {
            assert_eq!(super::quoted(std::ffi::OsStr::from_bytes(path).as_ref()), shell);
        }
    }

    #[test]
    fn groups_digits() {
        assert_eq!(super::grouped(0), "0");
        assert_eq!(super::grouped(999), "999");
        assert_eq!(super::grouped(287_686_318), "287,686,318");
    }
}
