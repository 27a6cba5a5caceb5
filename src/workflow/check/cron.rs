//! Schedules: `cron`.

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What is wrong with a cron text: five fields, or one of Gitea's words like `@daily`.
pub(super) fn bad_cron(text: &str) -> Option<String> {
    let words = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if words.contains(&text.trim()) || text.trim().starts_with("@every ") {
        return None;
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("it has {} fields instead of 5", fields.len()));
    }
    let kinds: [(&str, u32, u32, &[&str]); 5] = [
        ("minute", 0, 59, &[]),
        ("hour", 0, 23, &[]),
        ("day of the month", 1, 31, &[]),
        ("month", 1, 12, MONTHS),
        ("day of the week", 0, 7, DAYS),
    ];
    fields.iter().zip(kinds).find_map(|(field, (name, least, most, words))| {
        field
            .split(',')
            .any(|part| !cron_part(part, least, most, words))
            .then(|| format!("the {name} '{field}' must be within {least} to {most}"))
    })
}

fn cron_part(part: &str, least: u32, most: u32, words: &[&str]) -> bool {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| !step.parse().is_ok_and(|step: u32| step > 0)) {
        return false;
    }
    let value = |text: &str| -> Option<u32> {
        let word = text.to_ascii_lowercase();
        if let Some(at) = words.iter().position(|known| *known == word) {
            return u32::try_from(at).ok().map(|at| at + u32::from(least == 1));
        }
        text.parse().ok().filter(|value| (least..=most).contains(value))
    };
    match range.split_once('-') {
        Some((first, last)) => {
            matches!((value(first), value(last)), (Some(first), Some(last)) if first <= last)
        }
        None => matches!(range, "*" | "?") || value(range).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crons() {
        for right in ["0 0 * * *", "*/15 0-5,9 1 JAN-mar mon", "@daily", "0 0 1 1 7"] {
            assert_eq!(bad_cron(right), None, "{right}");
        }
        for wrong in ["", "0 0 * *", "60 0 * * *", "0 24 * * *", "*/0 * * * *", "5-1 * * * *", "x * * * *"] {
            assert!(bad_cron(wrong).is_some(), "{wrong}");
        }
    }
}
