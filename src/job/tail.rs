//! The last rows of a step, held in bounded memory.

/// Bytes of rows that are held at least, if there are so many.
const HELD: usize = 32 * 1024;
/// Of a longer row only this much is held.
const ROW_AT_MOST: usize = 2 * 1024;

/// The last rows.
#[derive(Debug, Default)]
pub struct Tail {
    text: String,
}

impl Tail {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.text.clear();
    }

    /// Adds a row.
    pub fn push(&mut self, row: &str) {
        if self.text.len() > 2 * HELD {
            let cut = self.text.floor_char_boundary(self.text.len() - HELD);
            let cut = self.text[cut..].find('\n').map_or(cut, |end| cut + end + 1);
            self.text.drain(..cut);
        }
        self.text.push_str(&row[..row.floor_char_boundary(ROW_AT_MOST)]);
        self.text.push('\n');
    }

    /// The rows, each with its end.
    #[must_use]
    pub fn rows(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rows_are_held_and_no_more() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(&format!("ä row {number}"));
        }
        tail.push(&"ö".repeat(1_000_000));
        assert!(tail.rows().len() < 2 * HELD + 2 * ROW_AT_MOST);
        assert!(tail.rows().contains("ä row 99999\n") && tail.rows().starts_with("ä row "));
    }
}
