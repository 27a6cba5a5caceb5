//! Job summaries on a terminal: as much of Markdown as summaries use, in plain text with some colour.

use super::show::paint;

/// The text of a summary for a terminal; each line ended by a line feed.
#[must_use]
pub fn render(markdown: &str, colour: bool) -> String {
    let mut out = String::new();
    let mut code = false;
    let mut table: Vec<Vec<String>> = Vec::new();
    for line in markdown.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            code = !code;
            continue;
        }
        if code {
            out.push_str(&format!("  {}\n", paint(colour, "2", line)));
            continue;
        }
        if let Some(cells) = cells(trimmed) {
            table.push(cells);
            continue;
        }
        flush(&mut table, colour, &mut out);
        let level = trimmed.bytes().take_while(|byte| *byte == b'#').count();
        let title = trimmed.get(level..).unwrap_or_default();
        if (1..=6).contains(&level) && title.starts_with(' ') {
            out.push_str(&format!("{}\n", paint(colour, "1;4", &inline(title.trim(), false))));
        } else if trimmed.len() >= 3 && trimmed.bytes().all(|byte| matches!(byte, b'-' | b'*' | b'_')) {
            out.push_str(&format!("{}\n", "─".repeat(40)));
        } else if let Some(item) = ["- ", "* ", "+ "].iter().find_map(|mark| trimmed.strip_prefix(mark)) {
            let indent = &line[..line.len() - line.trim_start().len()];
            let item = match item.split_at_checked(4) {
                Some(("[x] " | "[X] ", rest)) => format!("☑ {}", inline(rest, colour)),
                Some(("[ ] ", rest)) => format!("☐ {}", inline(rest, colour)),
                _ => format!("• {}", inline(item, colour)),
            };
            out.push_str(&format!("{indent}{item}\n"));
        } else if let Some(quote) = trimmed.strip_prefix('>') {
            out.push_str(&format!("{} {}\n", paint(colour, "2", "│"), inline(quote.trim(), colour)));
        } else {
            out.push_str(&inline(line, colour));
            out.push('\n');
        }
    }
    flush(&mut table, colour, &mut out);
    out
}

/// The cells of a row of a table.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix('|')?;
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    Some(inner.split('|').map(|cell| inline(cell.trim(), false)).collect())
}

fn flush(table: &mut Vec<Vec<String>>, colour: bool, out: &mut String) {
    let rule = |row: &Vec<String>| {
        row.iter().all(|cell| !cell.is_empty() && cell.bytes().all(|byte| matches!(byte, b'-' | b':' | b' ')))
    };
    let headed = table.get(1).is_some_and(rule);
    table.retain(|row| !rule(row));
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            table.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for (number, row) in table.drain(..).enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let line = cells.join("  ");
        let line = if headed && number == 0 {
            paint(colour, "1", line.trim_end())
        } else {
            line.trim_end().to_owned()
        };
        out.push_str(&format!("{line}\n"));
        if headed && number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            out.push_str(&format!("{}\n", rule.join("  ")));
        }
    }
}

/// Marks within a line: bold, code and links become what they say. Tags are left out.
fn inline(text: &str, colour: bool) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['*', '_', '`', '[', '<', '!', '\\']) {
        out.push_str(&rest[..at]);
        let here = &rest[at..];
        let before = out.chars().last();
        let (shown, taken) = if let Some(inner) =
            between(here, "**", "**").or_else(|| between(here, "__", "__"))
        {
            (paint(colour, "1", inner), inner.len() + 4)
        } else if let Some(inner) = between(here, "`", "`") {
            (paint(colour, "36", inner), inner.len() + 2)
        } else if let Some((title, url, taken)) = link(here) {
            let target = if title.is_empty() || url == title { String::new() } else { format!(" ({url})") };
            (format!("{title}{target}"), taken)
        } else if let Some(inner) = between(here, "<", ">").filter(|inner| is_tag(inner)) {
            let space = if inner.starts_with("br") || inner.starts_with("/t") { " " } else { "" };
            (space.to_owned(), inner.len() + 2)
        } else if let Some(inner) = between(here, "*", "*").filter(|inner| !inner.starts_with(' ')) {
            (paint(colour, "3", inner), inner.len() + 2)
        } else if let Some(inner) = between(here, "_", "_")
            .filter(|inner| !inner.starts_with(' ') && !before.is_some_and(char::is_alphanumeric))
        {
            (paint(colour, "3", inner), inner.len() + 2)
        } else {
            let first = here.chars().next().map_or(1, char::len_utf8);
            (here[..first].to_owned(), first)
        };
        out.push_str(&shown);
        rest = &here[taken..];
    }
    out.push_str(rest);
    out
}

/// What stands between two marks at the beginning of a text; nothing, if there is nothing between them.
fn between<'t>(text: &'t str, open: &str, close: &str) -> Option<&'t str> {
    let rest = text.strip_prefix(open)?;
    let end = rest.find(close)?;
    (end > 0).then(|| &rest[..end])
}

/// `[title](url)` or `![title](url)`: both, and how long it is.
fn link(text: &str) -> Option<(&str, &str, usize)> {
    let inner = text.strip_prefix('!').unwrap_or(text).strip_prefix('[')?;
    let (title, rest) = inner.split_once("](")?;
    let end = rest.find(')')?;
    if title.contains('[') || title.contains(']') {
        return None;
    }
    Some((title, &rest[..end], text.len() - rest.len() + end + 1))
}

fn is_tag(inner: &str) -> bool {
    inner.trim_start_matches('/').starts_with(|first: char| first.is_ascii_alphabetic())
        && !inner.contains('<')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_summaries_use_is_readable() {
        let markdown = "# Result\n\n| Test | **Time** |\n| --- | ---: |\n| a | 1 s |\n| longer | 12 s |\n\n- one `x`\n  - [two](https://e.org)\n- [x] done\n> said *so*\n```\ncode **stays**\n```\nsnake_case_name and <b>bold</b>\n";
        let expected = "Result\n\nTest    Time\n──────  ────\na       1 s\nlonger  12 s\n\n• one x\n  • two (https://e.org)\n☑ done\n│ said so\n  code **stays**\nsnake_case_name and bold\n";
        assert_eq!(render(markdown, false), expected);
        assert_eq!(render("## T\n", true), "\u{1b}[1;4mT\u{1b}[0m\n");
    }

    #[test]
    fn unfinished_marks_stay_as_they_are() {
        for text in ["a ** b", "`", "[x](", "<", "![", "*", "|", "**", "1 < 2 > 0", "ä*ö"] {
            assert_eq!(render(text, false).trim_end(), if text == "|" { "" } else { text }, "{text}");
        }
    }
}
