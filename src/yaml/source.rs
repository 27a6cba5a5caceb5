//! The text of a document: whether it may be read at all, and places in it.

use super::{Error, Place};

/// The text without byte order mark, if it is UTF-8, not too large, and free of control characters.
pub(super) fn check(bytes: &[u8], limit: usize) -> Result<&str, Error> {
    if bytes.len() > limit {
        return Err(Error::new(
            Place::START,
            format!("the document has {} bytes; at most {limit} are read", bytes.len()),
        ));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(Error::new(Place::START, "the document is UTF-16; it must be UTF-8"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        Error::new(end_of(&before), "the document is not UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let forbidden = |byte: u8| (byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r')) || byte == 0x7f;
    if let Some(at) = text.bytes().position(forbidden) {
        let code = text.as_bytes()[at];
        let name = if code == 0 { " (NUL)" } else { "" };
        return Err(Error::new(
            end_of(&text[..at]),
            format!("the control character U+{code:04X}{name} must not be in a document"),
        ));
    }
    Ok(text)
}

/// The place right after a text.
fn end_of(text: &str) -> Place {
    let line_start = text.rfind('\n').map_or(0, |at| at + 1);
    Place::new(text.matches('\n').count() + 1, text[line_start..].chars().count() + 1)
}

/// Whether this can follow the `|` or `>` of a block scalar in its line.
fn is_block_header(rest: &str) -> bool {
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'));
    rest.is_empty()
        || rest.starts_with([' ', '\t']) && matches!(rest.trim_start().chars().next(), None | Some('#'))
}

/// A position that moves forward through the text and knows its line and column.
pub(super) struct Cursor<'a> {
    text: &'a str,
    byte: usize,
    character: usize,
    place: Place,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, byte: 0, character: 0, place: Place::START }
    }

    /// The places of `needle` between two positions, given in characters from 0.
    ///
    /// Positions must not go back from call to call; what lies before the cursor is not found.
    pub(super) fn places(&mut self, needle: &str, start: usize, end: usize) -> Box<[Place]> {
        self.forward(start);
        let mut found = Vec::new();
        while self.character < end && self.byte < self.text.len() {
            if self.text[self.byte..].starts_with(needle) {
                found.push(self.place);
            }
            self.forward(self.character + 1);
        }
        found.into()
    }

    /// Where the `|` or `>` of the block scalar stands whose text begins at a position, and how far the text is
    /// indented, in characters.
    pub(super) fn block(&mut self, start: usize) -> (Option<Place>, usize) {
        self.forward(start);
        let line_start = self.text[..self.byte].rfind(['\n', '\r']).map_or(0, |at| at + 1);
        let line = self.text[line_start..].lines().find(|line| !line.trim().is_empty());
        let indent = line.map_or(0, |line| line.len() - line.trim_start_matches(' ').len());
        let before = self.text[..self.byte].trim_end();
        let head_start = before.rfind(['\n', '\r']).map_or(0, |at| at + 1);
        let head = &before[head_start..];
        let Some((at, _)) = head.match_indices(['|', '>']).find(|(at, _)| is_block_header(&head[at + 1..]))
        else {
            return (None, indent);
        };
        let between = &self.text[head_start..self.byte];
        let lines = between.matches('\n').count() + between.replace("\r\n", "").matches('\r').count();
        let place = Place::new(self.place.line.saturating_sub(lines).max(1), head[..at].chars().count() + 1);
        (Some(place), indent)
    }

    /// Where the lines of a folded string begin that starts at a position; the cursor stays where it starts.
    pub(super) fn folds(&mut self, start: usize, value: &str) -> Vec<(usize, Place)> {
        self.forward(start);
        let mut left = value.chars().filter(|c| !c.is_whitespace()).count();
        let mut seen = 0;
        let mut place = self.place;
        let mut begins = true;
        let mut found = Vec::new();
        let mut rest = self.text[self.byte..].chars().peekable();
        while left > 0
            && let Some(character) = rest.next()
        {
            if character == '\n' || character == '\r' && rest.peek() != Some(&'\n') {
                place = Place::new(place.line + 1, 1);
                begins = true;
                continue;
            }
            if !character.is_whitespace() {
                if std::mem::take(&mut begins) {
                    found.push((seen, place));
                }
                seen += 1;
                left -= 1;
            }
            place.column += 1;
        }
        found
    }

    fn forward(&mut self, character: usize) {
        while self.character < character {
            let rest = &self.text[self.byte..];
            let Some(next) = rest.chars().next() else { return };
            self.byte += next.len_utf8();
            self.character += 1;
            // A carriage return alone ends a line, one before a line feed does not.
            let ends = next == '\n' || (next == '\r' && !rest[1..].starts_with('\n'));
            if ends {
                self.place = Place::new(self.place.line + 1, 1);
            } else {
                self.place.column += 1;
            }
        }
    }
}
