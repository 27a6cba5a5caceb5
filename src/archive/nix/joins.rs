//! Derivations that join static libraries: the cause behind "at position N" at the very end of a build.
//!
//! Cabal that was configured with `--enable-static` runs one more GHC after all modules (`ghc -staticlib`). It reads the
//! archive of every dependency whole into its heap and joins them; nixpkgs configures Haskell libraries so by default,
//! and what is joined is not even installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A derivation that is about to be built and joins static libraries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joins {
    /// Its name.
    pub name: String,
    /// Its `.drv`.
    pub derivation: PathBuf,
    /// Archives of its dependencies that are there already.
    pub archives: u64,
    /// Their bytes: what GHC reads into its heap, at least. Dependencies that are still to be built are not in it.
    pub bytes: u64,
}

/// Asks Nix for all derivations that `installable` (or a `.drv`) needs. Nothing is built.
///
/// # Errors
/// What Nix said.
pub fn derivations(installable: &str) -> Result<Value, String> {
    // The second is the name of the same command before Nix 2.13.
    let newer = super::ask(super::command(&["derivation", "show", "-r"]).arg(installable));
    let said = match newer {
        Err(error) if error.contains("is not a recognised command") => {
            super::ask(super::command(&["show-derivation", "-r"]).arg(installable))
        }
        other => other,
    }?;
    serde_json::from_slice(&said).map_err(|error| format!("nix's answer is no JSON: {error}"))
}

/// Which derivations of Nix's answer are not built yet and join static libraries. `archives_of` gives the archives in a
/// store path.
#[must_use]
pub fn find(answer: &Value, archives_of: &mut dyn FnMut(&Path) -> Vec<PathBuf>) -> Vec<Joins> {
    // Newer versions wrap the map: {"version": …, "derivations": {…}}.
    let map = answer.get("derivations").unwrap_or(answer);
    let Some(map) = map.as_object() else { return Vec::new() };
    let by_path: BTreeMap<PathBuf, &Value> = map.iter().map(|(path, value)| (full(path), value)).collect();
    let mut sizes: BTreeMap<PathBuf, (u64, u64)> = BTreeMap::new();
    let mut found = Vec::new();
    for (path, derivation) in &by_path {
        if !enables_static(derivation) || outputs(derivation).iter().any(|output| output.exists()) {
            continue;
        }
        let (mut archives, mut bytes) = (0, 0);
        for output in haskell_inputs(derivation, &by_path) {
            let (number, size) = *sizes.entry(output).or_insert_with_key(|output| {
                let archives = archives_of(output);
                let joined = archives.iter().filter(|path| is_joined(path));
                joined.fold((0, 0), |(number, size), path| {
                    (number + 1, size + std::fs::metadata(path).map_or(0, |meta| meta.len()))
                })
            });
            archives += number;
            bytes += size;
        }
        found.push(Joins { name: name(path), derivation: path.clone(), archives, bytes });
    }
    found.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    found
}

/// Outputs of the derivations in Nix's answer that are not there.
pub(super) fn missing_outputs(answer: &Value) -> Vec<PathBuf> {
    let map = answer.get("derivations").unwrap_or(answer).as_object().into_iter().flatten();
    map.flat_map(|(_, derivation)| outputs(derivation)).filter(|output| !output.exists()).collect()
}

/// Store path of a derivation; newer versions leave the store's directory out.
fn full(path: &str) -> PathBuf {
    if path.starts_with('/') { path.into() } else { super::store_directory().join(path) }
}

fn name(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    name.get(33..).unwrap_or(&name).to_owned()
}

/// Profiled and threaded twins of an archive are not read; neither are C's.
fn is_joined(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("libHS") && !["_p.a", "_thr.a", "_debug.a", "_l.a"].iter().any(|end| name.ends_with(end))
}

/// Whether Cabal is configured with `--enable-static`, and the last word on it is that one.
fn enables_static(derivation: &Value) -> bool {
    let flags = flags(derivation);
    // Flags that only Cabal's Setup knows: autoconf has an --enable-static of its own, which joins nothing.
    let is_cabal = flags.iter().any(|flag| {
        ["--libsubdir=", "--ghc-option", "--package-db", "--enable-library-vanilla"]
            .iter()
            .any(|known| flag.starts_with(known))
    });
    let last =
        flags.iter().rev().find(|flag| matches!(flag.as_str(), "--enable-static" | "--disable-static"));
    is_cabal && last.is_some_and(|flag| flag == "--enable-static")
}

/// What Cabal is configured with. nixpkgs writes its own flags into the text of a phase, and appends the package's.
fn flags(derivation: &Value) -> Vec<String> {
    let mut flags = words(derivation, "setupCompilerEnvironmentPhase");
    flags.extend(words(derivation, "configureFlags"));
    for flag in &mut flags {
        *flag = flag.trim_matches(['"', '\'']).to_owned();
    }
    flags
}

/// A variable of the builder as words; structured attributes hold it as a list.
fn words(derivation: &Value, name: &str) -> Vec<String> {
    let split = |text: &str| text.split_ascii_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    let Some(environment) = derivation.get("env") else { return Vec::new() };
    if let Some(text) = environment.get(name).and_then(Value::as_str) {
        return split(text);
    }
    let structured = derivation
        .get("structuredAttrs")
        .cloned()
        .or_else(|| serde_json::from_str::<Value>(environment.get("__json").and_then(Value::as_str)?).ok());
    match structured.as_ref().and_then(|structured| structured.get(name)) {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect(),
        Some(Value::String(text)) => split(text),
        _ => Vec::new(),
    }
}

fn outputs(derivation: &Value) -> Vec<PathBuf> {
    let outputs = derivation.get("outputs").and_then(Value::as_object).into_iter().flatten();
    outputs.filter_map(|(_, output)| output.get("path").and_then(Value::as_str)).map(full).collect()
}

/// Outputs that are there of the derivations that this one needs, through any number of Haskell packages.
fn haskell_inputs(derivation: &Value, by_path: &BTreeMap<PathBuf, &Value>) -> BTreeSet<PathBuf> {
    let mut there = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut waiting = inputs(derivation);
    while let Some(path) = waiting.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let Some(input) = by_path.get(&path) else { continue };
        if flags(input).iter().any(|flag| flag.starts_with("--libsubdir=")) {
            waiting.extend(inputs(input));
        }
        there.extend(outputs(input).into_iter().filter(|output| output.exists()));
    }
    there
}

fn inputs(derivation: &Value) -> Vec<PathBuf> {
    let newer = derivation.get("inputs").and_then(|inputs| inputs.get("drvs"));
    let map = derivation.get("inputDrvs").or(newer).and_then(Value::as_object).into_iter().flatten();
    map.map(|(path, _)| full(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cabal_packages_with_static_libraries_are_found() {
        let directory = tempfile::TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let archive = |package: &str, name: &str, size: usize| {
            std::fs::create_dir_all(at(package)).unwrap();
            std::fs::write(Path::new(&at(package)).join(name), vec![0; size]).unwrap();
        };
        archive("ghc", "libHSghc-9.10.3.a", 1000);
        archive("ghc", "libHSghc-9.10.3_p.a", 9000);
        archive("hsx", "libHSihp-hsx.a", 30);
        archive("zlib", "libz.a", 500);
        let hash = "8xwdrqkvb6ydmbqlp9bzjg0l9sxfi3a7";
        let drv = |name: &str| format!("/nix/store/{hash}-{name}.drv");
        let cabal = |output: &str, flags: &str, inputs: &[&str]| {
            let inputs: BTreeMap<String, Vec<&str>> =
                inputs.iter().map(|name| (drv(name), vec!["out"])).collect();
            serde_json::json!({
                "outputs": {"out": {"path": at(output)}}, "inputDrvs": inputs,
                "env": {
                    "setupCompilerEnvironmentPhase": "configureFlags=\"--verbose --prefix=$out --libsubdir=x --enable-static --enable-library-vanilla $configureFlags\"\n",
                    "configureFlags": flags}})
        };
        let plain = |output: &str| serde_json::json!({"outputs": {"out": {"path": at(output)}}, "env": {"configureFlags": "--enable-static"}});
        let map = serde_json::json!({
            drv("app"): cabal("app", "", &["hsx", "zlib"]),
            drv("app-off"): cabal("off", "--disable-static", &["hsx"]),
            drv("hsx"): cabal("hsx", "", &["ghc"]),
            drv("ghc"): {"outputs": {"out": {"path": at("ghc")}}, "env": {}},
            drv("zlib"): plain("zlib"),
            drv("curl"): plain("not-there"),
        });
        let mut archives = |path: &Path| crate::archive::find::archives_below(path).archives;
        let found = find(&map, &mut archives);
        let expected =
            Joins { name: "app".to_owned(), derivation: drv("app").into(), archives: 2, bytes: 1030 };
        assert_eq!(found, std::slice::from_ref(&expected));
        assert_eq!(find(&serde_json::json!({"version": 4, "derivations": map}), &mut archives), [expected]);
        assert!(find(&Value::Null, &mut archives).is_empty());
    }
}
