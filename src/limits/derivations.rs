//! Which derivations run GHC, and which of them carry a ceiling: asked of Nix before anything is built.

use serde_json::Value;

use super::ceiling::in_force;
use super::programs;
use super::size::Size;
use crate::archive::nix;

/// A derivation that runs GHC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// Its name.
    pub name: String,
    /// The ceiling that its GHCRTS sets.
    pub heap: Option<Size>,
}

/// What Nix said about an installable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// All derivations that it needs.
    pub all: usize,
    /// Those that run GHC, by name.
    pub with_ghc: Vec<Derivation>,
}

/// Asks Nix for the derivations of `installable`. Nothing is built.
///
/// # Errors
/// What Nix said, or what is wrong with its answer.
pub fn ask(installable: &str) -> Result<Asked, String> {
    Ok(read(&nix::joins::derivations(installable)?))
}

fn read(answer: &Value) -> Asked {
    // Newer versions wrap the map: {"version": …, "derivations": {…}}.
    let derivations = answer.get("derivations").unwrap_or(answer);
    let Some(derivations) = derivations.as_object() else { return Asked::default() };
    let mut asked = Asked { all: derivations.len(), with_ghc: Vec::new() };
    for (path, derivation) in derivations {
        if !strings(derivation).any(|text| names_ghc(&text)) {
            continue;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let name = name.get(33..).unwrap_or(name).trim_end_matches(".drv").to_owned();
        let variable = variable(derivation, "GHCRTS").unwrap_or_default();
        let heap = in_force(format!("GHCRTS={variable}\0").as_bytes(), b"").heap;
        asked.with_ghc.push(Derivation { name, heap });
    }
    asked.with_ghc.sort_by(|a, b| a.name.cmp(&b.name));
    asked
}

/// A variable of the builder; derivations with structured attributes hold them in one JSON text.
fn variable(derivation: &Value, name: &str) -> Option<String> {
    let environment = derivation.get("env")?;
    if let Some(value) = environment.get(name).and_then(Value::as_str) {
        return Some(value.to_owned());
    }
    let text = environment.get("__json").and_then(Value::as_str)?;
    let structured: Value = serde_json::from_str(text).ok()?;
    let value = structured.get("env").and_then(|env| env.get(name)).or_else(|| structured.get(name))?;
    value.as_str().map(ToOwned::to_owned)
}

/// What the builder is given: program, arguments, environment.
fn strings(derivation: &Value) -> impl Iterator<Item = String> {
    let mut texts = Vec::new();
    if let Some(builder) = derivation.get("builder").and_then(Value::as_str) {
        texts.push(builder.to_owned());
    }
    let arguments = derivation.get("args").and_then(Value::as_array).into_iter().flatten();
    texts.extend(arguments.filter_map(Value::as_str).map(ToOwned::to_owned));
    let environment = derivation.get("env").and_then(Value::as_object).into_iter().flatten();
    // A derivation's own name and outputs say what it is, not what it runs.
    let own = ["name", "pname", "out", "dev", "doc", "bin", "lib"];
    texts.extend(
        environment
            .filter(|(key, _)| !own.contains(&key.as_str()))
            .filter_map(|(_, value)| value.as_str())
            .map(ToOwned::to_owned),
    );
    texts.into_iter()
}

/// Whether a text names a compiler: as a word, a file, or a store path `<hash>-ghc-9.10.3`.
fn names_ghc(text: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+'))).any(|word| {
        let name = match word.as_bytes().get(32) {
            Some(b'-') => &word[33..],
            _ => word,
        };
        let name = name.strip_suffix("-with-packages").unwrap_or(name);
        programs::role(name).is_some()
    })
}

impl Asked {
    /// What to tell, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let without: Vec<&Derivation> =
            self.with_ghc.iter().filter(|derivation| derivation.heap.is_none()).collect();
        let mut lines = vec![format!(
            "{} of {} derivations run GHC; {} carry a heap ceiling in GHCRTS, {} do not",
            self.with_ghc.len(),
            self.all,
            self.with_ghc.len() - without.len(),
            without.len()
        )];
        for derivation in &self.with_ghc {
            lines.push(match derivation.heap {
                Some(heap) => format!("  {}: {heap}", derivation.name),
                None => format!("  {}: none", derivation.name),
            });
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_old_and_new_answers() {
        let hash = "8xwdrqkvb6ydmbqlp9bzjg0l9sxfi3a7";
        let map = serde_json::json!({
            format!("/nix/store/{hash}-app-1.0.drv"): {
                "builder": "/bin/sh", "args": ["-c", "Setup build"],
                "env": {"nativeBuildInputs": format!("/nix/store/{hash}-ghc-9.10.3"), "GHCRTS": "-A32m -M2g", "name": "app"}},
            format!("/nix/store/{hash}-lib.drv"): {
                "builder": "/bin/sh", "args": ["-c", "ghc Main.hs"], "env": {}},
            format!("/nix/store/{hash}-deep.drv"): {
                "builder": "x", "args": [], "env": {"__json": "{\"env\":{\"GHCRTS\":\"-M1g\"}}", "p": "/usr/bin/ghc-9.0.2"}},
            format!("/nix/store/{hash}-ghc-9.10.3.drv"): {
                "builder": "/bin/sh", "args": ["-c", "tar x"], "env": {"name": "ghc-9.10.3", "hint": "ghcid haddock-ghc-9.0.2"}},
        });
        let asked = read(&map);
        insta::assert_snapshot!(asked.lines().join("\n"), @"
        3 of 4 derivations run GHC; 2 carry a heap ceiling in GHCRTS, 1 do not
          app-1.0: 2 GiB
          deep: 1 GiB
          lib: none
        ");
        assert_eq!(read(&serde_json::json!({"version": 3, "derivations": map})), asked);
        assert_eq!(read(&Value::Null), Asked::default());
    }
}
