//! Durations as Go writes them (`3h`, `1m30s`, `250ms`), which is how act_runner's configuration has them.

use std::time::Duration;

const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration; `None` when the text is none, is negative, or is longer than 290 years.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, behind) = rest.split_at(digits);
        let unit_length = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_length);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos = nanos.checked_add(scale(number, *factor)?)?;
        rest = behind;
    }
    u64::try_from(nanos).ok().filter(|nanos| i64::try_from(*nanos).is_ok()).map(Duration::from_nanos)
}

/// `number` (digits with at most one point) times `factor`.
fn scale(number: &str, factor: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(factor)?;
    let mut part = factor;
    for digit in fraction.bytes() {
        part /= 10;
        total = total.checked_add(part * u128::from(digit - b'0'))?;
    }
    Some(total)
}

/// Writes a duration as Go does, without units that are zero: `3h`, `1m30s`, `250ms`, `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut left = duration.as_nanos();
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for unit in ["h", "m", "s", "ms", "us", "ns"] {
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map_or(1, |(_, factor)| *factor);
        if left >= factor {
            text.push_str(&format!("{}{unit}", left / factor));
            left %= factor;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("3h", 10_800_000),
            ("1m30s", 90_000),
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("2h45m10.25s", 9_910_250),
            ("+3s", 3000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("3µs"), Some(Duration::from_micros(3)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "3", "h", "3x", "-3s", "1h-2m", "1..5s", ".s", "3 s", "9999999999h", "٣s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_written_so_that_they_can_be_read() {
        for text in ["3h", "1m30s", "250ms", "0s", "1h1m1s1ms"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }
}
