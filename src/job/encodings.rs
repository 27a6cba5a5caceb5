//! The forms in which a secret turns up in output: as it is, line by line, and as the usual programs encode it.
//!
//! Base64 (both alphabets, at every alignment, and in lines of 64 and 76 characters), URL, JSON, XML, the quotes of
//! shells, and the escapes of workflow commands.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Fewer bytes than this give base64 that is too short to look for.
const SHORTEST_BASE64: usize = 6;

/// Calls `each` with every form of a secret; some come more than once.
pub(super) fn each(secret: &str, each: &mut dyn FnMut(&str)) {
    let whole = secret.trim_end_matches(['\r', '\n']);
    forms(whole, each);
    let inner = whole.trim();
    if inner != whole {
        forms(inner, each);
    }
    if inner.contains(['\n', '\r']) {
        for line in inner.split(['\n', '\r']) {
            forms(line.trim(), each);
        }
        wrapped_base64(secret.as_bytes(), each);
    }
    // A value that is quoted in the settings is used without its quotes.
    if let Some(bare) = inner.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        forms(bare, each);
    }
}

fn forms(value: &str, each: &mut dyn FnMut(&str)) {
    if value.chars().nth(1).is_none() {
        return;
    }
    each(value);
    base64(value.as_bytes(), each);
    let mut other = |form: String| {
        if form != value {
            each(&form);
        }
    };
    let json = serde_json::Value::from(value).to_string();
    let json = &json[1..json.len() - 1];
    other(json.to_owned());
    // As Go writes it, and as PHP does.
    other(json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"));
    other(json.replace('/', "\\/"));
    // As Python writes it, and .NET.
    if !value.is_ascii() {
        other(in_ascii(json, false));
        other(in_ascii(json, true));
        other(in_ascii(json, false).replace('/', "\\/"));
    }
    let url = |safe: &str, space: &str, upper: bool| percent(value, safe, space, upper);
    // As a component in JavaScript, as Go and Python write it, as a form does, and in lower case.
    other(url("-_.!~*'()", "%20", true));
    other(url("-_.~", "%20", true));
    other(url("-_.~/", "%20", true));
    other(url("-_.~", "+", true));
    other(url("-_.*", "+", true));
    other(url("-_.~", "%20", false));
    other(value.replace('\'', "'\\''"));
    other(value.replace('\'', "'\"'\"'"));
    other(escaped(value, "\\\"$`"));
    other(escaped(value, " !\"#$&'()*,;<=>?[\\]^`{|}~"));
    other(escaped(value, " !\"#$&'()*,;<>?[\\]^`{|}"));
    other(value.replace('\'', "''"));
    let xml = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    other(xml.replace('"', "&quot;").replace('\'', "&apos;"));
    other(xml.replace('"', "&#34;").replace('\'', "&#39;"));
    other(xml);
    let command = value.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    other(command.replace(':', "%3A").replace(',', "%2C"));
    other(command);
}

/// Base64 of a value inside a longer text differs by where the value begins modulo three. The characters at both ends
/// also hold neighbouring bits, so only those in between can be looked for.
fn base64(bytes: &[u8], each: &mut dyn FnMut(&str)) {
    if bytes.len() < SHORTEST_BASE64 {
        return;
    }
    for lead in 0..3 {
        let padded = [&[0; 2][..lead], bytes].concat();
        let begin = [0, 2, 3][lead];
        let end = padded.len() / 3 * 4;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            each(&engine.encode(&padded)[begin..end]);
        }
        // Where nothing follows, or the line feed of an echo, the last characters are known too.
        each(&STANDARD.encode(&padded)[begin..]);
        each(&STANDARD.encode([&padded, &b"\n"[..]].concat())[begin..]);
    }
}

/// Base64 of a file is written in lines: each of them, as `base64` and `openssl` break them.
fn wrapped_base64(bytes: &[u8], each: &mut dyn FnMut(&str)) {
    let encoded = STANDARD_NO_PAD.encode(bytes);
    for width in [64, 76] {
        let mut rest = encoded.as_str();
        while rest.len() > 8 {
            let (line, behind) = rest.split_at(width.min(rest.len()));
            // The last characters depend on whether a line feed ends the value.
            each(if behind.is_empty() { &line[..line.len() - 4] } else { line });
            rest = behind;
        }
    }
}

/// Percent-encodes everything but letters, digits and `safe`; a blank becomes `space`.
fn percent(value: &str, safe: &str, space: &str, upper: bool) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match char::from(byte) {
            ' ' => out.push_str(space),
            plain if byte.is_ascii_alphanumeric() || byte.is_ascii() && safe.contains(plain) => {
                out.push(plain)
            }
            _ if upper => out.push_str(&format!("%{byte:02X}")),
            _ => out.push_str(&format!("%{byte:02x}")),
        }
    }
    out
}

/// JSON whose characters beyond ASCII are escaped, in pairs where one needs two.
fn in_ascii(json: &str, upper: bool) -> String {
    let mut out = String::with_capacity(json.len());
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => out.push(char::from(byte)),
            _ if upper => out.push_str(&format!("\\u{unit:04X}")),
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out
}

/// A backslash before each of these characters.
fn escaped(value: &str, special: &str) -> String {
    value.chars().flat_map(|c| special.contains(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::super::mask::Masker;

    fn masked(secret: &str, text: &str) -> String {
        Masker::new([secret]).mask(text)
    }

    #[test]
    fn the_usual_programs_encodings_are_masked() {
        let secret = r#"p@ss/w"o'r$d<&> ä=+~!"#;
        for text in [
            secret,
            "p%40ss%2Fw%22o%27r%24d%3C%26%3E%20%C3%A4%3D%2B~%21",
            "p%40ss%2Fw%22o'r%24d%3C%26%3E%20%C3%A4%3D%2B~!",
            "p%40ss%2Fw%22o%27r%24d%3C%26%3E+%C3%A4%3D%2B~%21",
            "p%40ss%2fw%22o%27r%24d%3c%26%3e%20%c3%a4%3d%2b~%21",
            r#"p@ss/w\"o'r$d<&> ä=+~!"#,
            r#"p@ss\/w\"o'r$d<&> ä=+~!"#,
            r#"p@ss/w\"o'r$d\u003c\u0026\u003e ä=+~!"#,
            r#"p@ss/w\"o'r$d<&> \u00e4=+~!"#,
            r#"p@ss/w\"o'r$d<&> \u00E4=+~!"#,
            r#"p@ss\/w\"o'r$d<&> \u00e4=+~!"#,
            r#"p@ss/w"o'\''r$d<&> ä=+~!"#,
            r#"p@ss/w"o'"'"'r$d<&> ä=+~!"#,
            r#"p@ss/w\"o'r\$d<&> ä=+~!"#,
            r#"p@ss/w\"o\'r\$d\<\&\>\ ä=+~\!"#,
            "p@ss/w&quot;o&apos;r$d&lt;&amp;&gt; ä=+~!",
            "p@ss/w&#34;o&#39;r$d&lt;&amp;&gt; ä=+~!",
        ] {
            assert_eq!(masked(secret, &format!("<{text}>")), "<***>", "{text}");
        }
    }

    #[test]
    fn escapes_of_commands_and_quotes_around_a_value() {
        assert_eq!(masked("50%:a,b", "x 50%25%3Aa%2Cb 50%25:a,b"), "x *** ***");
        assert_eq!(masked("\"quoted value\"", "quoted value"), "***");
    }

    #[test]
    fn base64_of_nothing_but_the_secret_is_masked_to_its_end() {
        let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        for secret in ["eight by", "nine byte", "ten bytes!"] {
            assert_eq!(masked(secret, &encode(secret)), "***");
            assert_eq!(masked(secret, &encode(&format!("{secret}\n"))), "***");
            assert!(!masked(secret, &encode(&format!("me:{secret}"))).contains('='));
        }
    }

    #[test]
    fn a_key_file_is_masked_in_base64_of_any_width() {
        let key: String =
            (0..12).map(|line| format!("line {line} of a key, long enough to be broken\n")).collect();
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &key);
        for width in [64, 76, 10_000] {
            let mut masker = Masker::new([key.as_str()]);
            let lines: Vec<&str> =
                encoded.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
            for line in lines {
                let left = masker.mask(line).replace("***", "").len();
                assert!(left <= 8, "{width}: {left} characters are left of {line}");
            }
        }
    }
}
