//! One layer of store paths becomes many, so that the next push and the next pull move only paths that changed.
//!
//! The plan depends on nothing but the image: the same image gives the same layers anywhere, and a path that did not
//! change has, as far as can be, the same layer in the next image. Large paths stand alone; the small rest is grouped
//! in the tar's order, and where one group ends is decided by names alone (as content-defined chunking does), so that
//! a path that comes or goes changes the group it is in and no other. The smallest are grouped among themselves: a script
//! that changes with every build takes no library along. Few large paths hold nearly all bytes of a Nix
//! image, so groups are small. What the image starts comes last, and then what is outside the store.

use super::digest::Hasher;
use super::source::{Anatomy, Unit};
use super::{Digest, Error};

/// Paths below this length are grouped even when there is room for more layers, in bytes.
const ALONE: u64 = 128 * 1024;
/// How many layers a split makes at most when nobody says otherwise; container runtimes take about 127.
pub const MAX_LAYERS: usize = 100;
/// The most paths that count as the image's own.
const MAX_OWN: usize = 8;

/// A layer of the plan.
#[derive(Debug, Clone)]
pub struct Part {
    /// Names in `/nix/store`.
    pub paths: Vec<String>,
    /// Holds what is outside the store.
    pub outside: bool,
    /// Where its entries stand in the layer that is split, ascending.
    pub ranges: Vec<std::ops::Range<u64>>,
    /// Their length.
    pub bytes: u64,
    /// Names its bytes without being their digest: equal parts have equal ones.
    pub content: Digest,
}

/// Splits a layer into at most `max_layers`, lowest first.
#[must_use]
pub fn plan(anatomy: &Anatomy, config: &[u8], max_layers: usize) -> Vec<Part> {
    let max_layers = max_layers.max(2);
    let started = started_paths(config);
    let own_limit = MAX_OWN.min(max_layers / 4);
    let groups = (max_layers * 2 / 5).max(1);
    let (mut own, mut rest, mut outside) = (Vec::new(), Vec::new(), Vec::new());
    for unit in &anatomy.units {
        if unit.outside {
            outside.push(unit);
        } else if own.len() < own_limit && unit.paths.iter().any(|path| started.contains(path)) {
            own.push(unit);
        } else {
            rest.push(unit);
        }
    }
    let mut by_size: Vec<&Unit> = rest.iter().copied().filter(|unit| unit.bytes >= ALONE).collect();
    by_size.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.paths.cmp(&b.paths)));
    by_size.truncate(max_layers.saturating_sub(outside.len() + own.len() + groups));
    let is_alone = |unit: &Unit| by_size.iter().any(|alone| std::ptr::eq(*alone, unit));
    let small: Vec<&Unit> = rest.into_iter().filter(|unit| !is_alone(unit)).collect();
    let smallest_groups = groups / 4;
    let is_smallest = |unit: &&Unit| smallest_groups > 0 && unit.bytes < ALONE;
    let (smallest, small): (Vec<&Unit>, Vec<&Unit>) = small.into_iter().partition(is_smallest);

    // What is large is rarely new: at the bottom, where a new layer would have everything above unpacked again.
    let mut parts: Vec<Part> = by_size.iter().map(|unit| part(anatomy, &[unit])).collect();
    for (units, groups) in [(&small, groups - smallest_groups), (&smallest, smallest_groups)] {
        parts.extend(grouped(units, groups).iter().map(|units| part(anatomy, units)));
    }
    parts.extend(own.iter().map(|unit| part(anatomy, &[unit])));
    // Whiteouts hide what is below, so below must be what was below before: nothing.
    let bottom = outside.iter().any(|unit| unit.whiteouts);
    let outside = outside.iter().map(|unit| part(anatomy, &[unit]));
    if bottom { outside.chain(parts).collect() } else { parts.into_iter().chain(outside).collect() }
}

/// Cuts where a name says so, about every `units / groups`, where a group has grown large, and at most `groups - 1`
/// times.
fn grouped<'a>(units: &[&'a Unit], groups: usize) -> Vec<Vec<&'a Unit>> {
    if units.is_empty() {
        return Vec::new();
    }
    // Powers of two, so that one path more or less does not move every border.
    let every = (units.len() / groups).max(1).next_power_of_two() as u64;
    let bytes: u64 = units.iter().map(|unit| unit.bytes).sum();
    let large = (2 * bytes / groups as u64).max(1).next_power_of_two();
    let mut found: Vec<Vec<&Unit>> = Vec::new();
    let (mut cut, mut length) = (true, 0);
    for unit in units {
        if cut && found.len() < groups {
            found.push(Vec::new());
            length = 0;
        }
        if let Some(last) = found.last_mut() {
            last.push(unit);
        }
        length += unit.bytes;
        let name = Digest::of(unit.paths.join(" ").as_bytes());
        let number = u64::from_str_radix(&name.hex()[..12], 16).unwrap_or(0);
        cut = number.is_multiple_of(every) || length >= large;
    }
    found
}

fn part(anatomy: &Anatomy, units: &[&Unit]) -> Part {
    let mut content = Hasher::default();
    content.update(&anatomy.parents);
    let mut ranges = Vec::new();
    for (at, unit) in units.iter().enumerate() {
        content.update(unit.content.as_str().as_bytes());
        ranges.extend(unit.ranges.iter().map(|range| (range.clone(), at)));
    }
    ranges.sort_by_key(|(range, _)| range.start);
    // Units may stand between the pieces of others.
    for (range, at) in &ranges {
        content.update(&(range.end - range.start).to_le_bytes());
        content.update(&at.to_le_bytes());
    }
    Part {
        paths: units.iter().flat_map(|unit| unit.paths.iter().cloned()).collect(),
        outside: units.iter().any(|unit| unit.outside),
        bytes: units.iter().map(|unit| unit.bytes).sum(),
        ranges: ranges.into_iter().map(|(range, _)| range).collect(),
        content: content.finish(),
    }
}

/// Store paths that the configuration starts: entry point and command.
fn started_paths(config: &[u8]) -> Vec<String> {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(config) else { return Vec::new() };
    let words = |key: &str| config["config"][key].as_array().cloned().unwrap_or_default();
    let words = words("Entrypoint").into_iter().chain(words("Cmd"));
    let path = |word: serde_json::Value| {
        let name = word.as_str()?.strip_prefix("/nix/store/")?.split('/').next()?;
        Some(name.to_owned())
    };
    words.filter_map(path).collect()
}

/// The configuration for the new layers: their diffIDs, and a history that names the store paths in each, as
/// nixpkgs' layered images do.
///
/// # Errors
/// When it is not the configuration of an image with one layer; the text says why.
pub fn configuration(config: &[u8], parts: &[Part], diff_ids: &[Digest]) -> Result<Vec<u8>, String> {
    let mut config: serde_json::Value = serde_json::from_slice(config).map_err(|error| error.to_string())?;
    let created = config.get("created").cloned().unwrap_or_else(|| "1970-01-01T00:00:01Z".into());
    let root = config.as_object_mut().ok_or("the configuration is no object")?;
    root.insert("rootfs".to_owned(), serde_json::json!({"type": "layers", "diff_ids": diff_ids}));
    let old = root.get("history").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let is_empty = |entry: &serde_json::Value| entry["empty_layer"] == true;
    let layer = old.iter().find(|entry| !is_empty(entry)).cloned();
    let created = layer.as_ref().and_then(|entry| entry.get("created").cloned()).unwrap_or(created);
    let by = layer.as_ref().and_then(|entry| entry.get("created_by").cloned());
    let entries = parts.iter().map(|part| {
        let mut entry = serde_json::Map::new();
        entry.insert("created".to_owned(), created.clone());
        if let Some(by) = &by {
            entry.insert("created_by".to_owned(), by.clone());
        }
        entry.insert("comment".to_owned(), comment(part).into());
        serde_json::Value::Object(entry)
    });
    // The one layer's place in the history is taken by all of them.
    let before = old.iter().position(|entry| !is_empty(entry)).unwrap_or(old.len());
    let history: Vec<serde_json::Value> = (old[..before].iter().cloned())
        .chain(entries)
        .chain(old.iter().skip(before + 1).filter(|entry| is_empty(entry)).cloned())
        .collect();
    root.insert("history".to_owned(), history.into());
    serde_json::to_vec(&config).map_err(|error| error.to_string())
}

fn comment(part: &Part) -> String {
    let paths: Vec<String> = part.paths.iter().map(|path| format!("'/nix/store/{path}'")).collect();
    match (paths.is_empty(), part.outside) {
        (false, false) => format!("store paths: [{}]", paths.join(", ")),
        (false, true) => format!("store paths: [{}], and what is outside the store", paths.join(", ")),
        (true, _) => "what is outside the store".to_owned(),
    }
}

/// The store paths that a layer's entry in the history names, in the words of [`configuration`] or of nixpkgs.
#[must_use]
pub fn paths_in_comment(comment: &str) -> Vec<String> {
    let Some(list) = comment.strip_prefix("store paths: [").and_then(|rest| rest.split(']').next()) else {
        return Vec::new();
    };
    let names = list.split(',').map(|path| path.trim().trim_matches('\''));
    names.filter_map(|path| Some(path.strip_prefix("/nix/store/")?.to_owned())).collect()
}

/// Why `--layers store-paths` cannot be followed, as an error.
pub(super) fn cannot(image: &super::source::Image, why: &str) -> Error {
    Error::Argument {
        given: image.path().display().to_string(),
        why: format!("cannot be split by store paths: {why}; use --layers keep"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(seed: u32, bytes: u64) -> Unit {
        let hex = Digest::of(&seed.to_le_bytes()).hex()[..32].replace('e', "g");
        let path = format!("{hex}-path{seed}");
        let range = u64::from(seed) * 1_000_000_000..u64::from(seed) * 1_000_000_000 + bytes;
        Unit {
            content: Digest::of(path.as_bytes()),
            paths: vec![path],
            outside: false,
            ranges: vec![range],
            bytes,
            whiteouts: false,
        }
    }

    fn image(count: u32) -> Anatomy {
        // Sizes as Nix has them: few large ones, many small.
        let mut units: Vec<Unit> = (1..=count).map(|n| unit(n, 60_000_000 / u64::from(n))).collect();
        units.sort_by(|a, b| a.paths.cmp(&b.paths));
        Anatomy { parents: Vec::new(), units }
    }

    #[test]
    fn no_more_layers_than_allowed_and_nothing_lost() {
        for (count, max) in [(1, 2), (5, 100), (900, 100), (900, 2), (900, 7), (60_000, 100)] {
            let anatomy = image(count);
            let parts = plan(&anatomy, b"{}", max);
            assert!(parts.len() <= max, "{count} {max}: {}", parts.len());
            assert_eq!(parts.iter().map(|part| part.paths.len()).sum::<usize>(), count as usize);
        }
    }

    #[test]
    fn a_path_that_is_exchanged_changes_few_layers() {
        let mut before = image(900);
        let contents = |anatomy: &Anatomy| -> Vec<(Vec<String>, u64)> {
            plan(anatomy, b"{}", 100).into_iter().map(|part| (part.paths, part.bytes)).collect()
        };
        let old = contents(&before);
        let total: u64 = old.iter().map(|(_, bytes)| bytes).sum();
        let small = before.units.iter().position(|unit| unit.bytes < 100_000).unwrap();
        before.units[small] = unit(5001, 90_000);
        before.units.sort_by(|a, b| a.paths.cmp(&b.paths));
        let new = contents(&before);
        let changed: Vec<u64> =
            new.iter().filter(|part| !old.contains(part)).map(|(_, bytes)| *bytes).collect();
        assert!(changed.len() <= 2, "{changed:?}");
        assert!(changed.iter().sum::<u64>() < total / 20, "{changed:?} of {total}");
    }

    #[test]
    fn what_is_started_comes_last_but_for_the_outside() {
        let mut anatomy = image(50);
        let own = anatomy.units[7].paths[0].clone();
        anatomy.units.push(Unit { paths: vec![], outside: true, ..unit(77, 3000) });
        let config = serde_json::json!({"config": {"Cmd": [format!("/nix/store/{own}/bin/app")]}});
        let parts = plan(&anatomy, config.to_string().as_bytes(), 100);
        assert_eq!(parts[parts.len() - 2].paths, [own]);
        assert!(parts[parts.len() - 1].outside);
    }

    #[test]
    fn the_history_keeps_its_empty_entries_and_names_the_paths() {
        let anatomy = image(3);
        let parts = plan(&anatomy, b"{}", 100);
        let config = br#"{"os":"linux","created":"x","history":[{"empty_layer":true},{"created_by":"nix"},{"empty_layer":true}],"zz":1}"#;
        let ids: Vec<Digest> = parts.iter().map(|part| part.content.clone()).collect();
        let made = configuration(config, &parts, &ids).unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
        let history = made["history"].as_array().unwrap();
        assert_eq!(history.len(), parts.len() + 2);
        assert_eq!(history[1]["created_by"], "nix");
        assert_eq!(paths_in_comment(history[1]["comment"].as_str().unwrap()), parts[0].paths);
        assert_eq!(made["rootfs"]["diff_ids"].as_array().unwrap().len(), parts.len());
        assert_eq!(made["zz"], 1);
    }
}
