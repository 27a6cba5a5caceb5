//! Numbers: from text as expressions read it, to text as JavaScript prints it.

/// Reads a number: decimal, exponent, `0x`, `0o`, `Infinity`; surrounding blanks are ignored, nothing is 0.
///
/// NaN stands for "not a number", as everywhere in the language.
pub(super) fn parse(text: &str) -> f64 {
    let text = text.trim();
    if text.is_empty() {
        return 0.0;
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    match text {
        "Infinity" | "+Infinity" => return f64::INFINITY,
        "-Infinity" => return f64::NEG_INFINITY,
        _ => {}
    }
    // Rust also reads "inf", "nan" and "infinity"; only digits, point, sign and exponent are numbers here.
    if text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E')) {
        text.parse().unwrap_or(f64::NAN)
    } else {
        f64::NAN
    }
}

fn radix(digits: &str, base: u32) -> f64 {
    if digits.is_empty() {
        return f64::NAN;
    }
    digits
        .chars()
        .try_fold(0.0, |sum, digit| Some(sum * f64::from(base) + f64::from(digit.to_digit(base)?)))
        .unwrap_or(f64::NAN)
}

/// The text of a number in an expression: JavaScript's, of the number rounded to 15 decimals, as GitHub does.
///
/// Numbers that JavaScript prints with a negative exponent are not rounded; they would become 0.
pub(super) fn text(value: f64) -> String {
    if value.abs() < 1e-6 || value.abs() >= 1e21 || !value.is_finite() {
        return print(value);
    }
    print(format!("{value:.15}").parse().unwrap_or(value))
}

/// Prints a number as JavaScript's `String(value)` does: the shortest digits that read back the same.
pub(super) fn print(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits: String = mantissa.chars().filter(|character| *character != '.').collect();
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let point = exponent + 1;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    let split = |at: i32| digits.split_at(usize::try_from(at).unwrap_or(0));
    let sign = if value < 0.0 { "-" } else { "" };
    if count <= point && point <= 21 {
        format!("{sign}{digits}{}", zeros(point - count))
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = split(point);
        format!("{sign}{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("{sign}0.{}{digits}", zeros(-point))
    } else {
        let (first, rest) = split(1);
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{sign}{first}{dot}{rest}e{}{}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_javascript_does() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (123_456_789.0, "123456789"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1.5e21, "1.5e+21"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (-1.25e-7, "-1.25e-7"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.3333333333333333"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(print(value), text);
        }
    }

    #[test]
    fn text_has_fifteen_decimals() {
        for (value, expected) in [
            (0.845_512_408_225_570_1, "0.84551240822557"),
            (1.0 / 3.0, "0.333333333333333"),
            (std::f64::consts::PI, "3.141592653589793"),
            (1e-7, "1e-7"),
            (-0.0, "0"),
            (1e21, "1e+21"),
        ] {
            assert_eq!(text(value), expected);
        }
    }

    #[test]
    fn reads_every_form() {
        for (text, value) in [
            ("", 0.0),
            (" \n", 0.0),
            (" 12 ", 12.0),
            ("0xff", 255.0),
            ("0o17", 15.0),
            ("-1.5e+2", -150.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("Infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("1e400", f64::INFINITY),
        ] {
            assert_eq!(parse(text), value, "{text:?}");
        }
        for text in ["abc", "0x", "0xg", "-0xff", "0b1", "1_000", "inf", "nan", "1e", ".", "--1", "1 2"] {
            assert!(parse(text).is_nan(), "{text:?}");
        }
    }
}
