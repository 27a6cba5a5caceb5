//! Which derivations run GHC, and which of them carry a ceiling: asked of Nix before anything is built.

use std::ffi::OsString;
use std::io::{BufReader, Read};
use std::process::Stdio;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::ceiling::in_force;
use super::programs;
use super::size::Size;
use crate::archive::nix;

/// What Nix says on stderr is kept up to this many bytes.
const SAID_AT_MOST: u64 = 256 * 1024;

/// A derivation that runs GHC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// Its name.
    pub name: String,
    /// The ceiling that its GHCRTS sets.
    pub heap: Option<Size>,
    /// All its outputs are there.
    pub built: bool,
}

/// What Nix said about an installable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// All derivations that it needs.
    pub all: usize,
    /// Those of them of which an output is not there.
    pub waiting: usize,
    /// Those that run GHC, by name.
    pub with_ghc: Vec<Derivation>,
}

/// Asks Nix for the derivations of an installable, given with the options that it needs. Nothing is built. The answer of
/// Nix, which may be tens of megabytes, is read one derivation at a time.
///
/// # Errors
/// What Nix said, or what is wrong with its answer.
pub fn ask(question: &[OsString]) -> Result<Asked, String> {
    // The second is the name of the same command before Nix 2.13.
    match ask_by(&["derivation", "show", "-r"], question) {
        Err(error) if error.contains("is not a recognised command") => {
            ask_by(&["show-derivation", "-r"], question)
        }
        other => other,
    }
}

fn ask_by(command: &[&str], question: &[OsString]) -> Result<Asked, String> {
    let mut child = nix::command(command)
        .args(question)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("nix could not be started: {error}"))?;
    let mut stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut last = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.take(SAID_AT_MOST).read_to_end(&mut last);
            // Whatever comes behind is read and forgotten, or Nix would wait.
            let _ = std::io::copy(stderr, &mut std::io::sink());
        }
        last
    });
    let read = child.stdout.take().map_or_else(
        || Ok(Asked::default()),
        |out| {
            let mut out = BufReader::new(out);
            let asked = read(&mut out);
            // What stands behind the answer, a line's end, has to be read too: Nix takes a closed pipe for a failure.
            let _ = std::io::copy(&mut out, &mut std::io::sink());
            asked
        },
    );
    let status = child.wait().map_err(|error| error.to_string())?;
    let said = said.join().unwrap_or_default();
    if !status.success() {
        return Err(nix::last_words(&said));
    }
    read.map_err(|error| format!("nix's answer is no JSON: {error}"))
}

/// Reads `{DRV: {…}}`; newer versions wrap it: `{"version": …, "derivations": {…}}`.
fn read(answer: impl Read) -> Result<Asked, serde_json::Error> {
    let mut asked = Asked::default();
    let mut reader = serde_json::Deserializer::from_reader(answer);
    Map(&mut asked).deserialize(&mut reader)?;
    asked.with_ghc.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(asked)
}

/// A map of derivations, taken in as it comes.
struct Map<'a>(&'a mut Asked);

impl<'d> DeserializeSeed<'d> for Map<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'d>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'d> Visitor<'d> for Map<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map of derivations")
    }

    fn visit_map<A: MapAccess<'d>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "derivations" => map.next_value_seed(Map(&mut *self.0))?,
                "version" => drop(map.next_value::<IgnoredAny>()?),
                path => take(self.0, path, &map.next_value::<Value>()?),
            }
        }
        Ok(())
    }
}

fn take(asked: &mut Asked, path: &str, derivation: &Value) {
    asked.all += 1;
    let built = is_built(derivation);
    asked.waiting += usize::from(!built);
    if !strings(derivation).any(|text| names_ghc(&text)) {
        return;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = name.get(33..).unwrap_or(name).trim_end_matches(".drv").to_owned();
    let variable = variable(derivation, "GHCRTS").unwrap_or_default();
    let heap = in_force(format!("GHCRTS={variable}\0").as_bytes(), b"").heap;
    asked.with_ghc.push(Derivation { name, heap, built });
}

/// Whether all outputs are in the store. Where their paths are not known before they are built, they are not.
fn is_built(derivation: &Value) -> bool {
    let outputs = derivation.get("outputs").and_then(Value::as_object);
    outputs.is_some_and(|outputs| {
        !outputs.is_empty()
            && outputs.values().all(|output| {
                // Newer versions leave the store's directory out.
                let path = output.get("path").and_then(Value::as_str);
                path.is_some_and(|path| nix::store_directory().join(path).exists())
            })
    })
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
        let read = |answer: &Value| read(answer.to_string().as_bytes()).unwrap_or_default();
        let asked = read(&map);
        insta::assert_snapshot!(asked.lines().join("\n"), @"
        3 of 4 derivations run GHC; 2 carry a heap ceiling in GHCRTS, 1 do not
          app-1.0: 2 GiB
          deep: 1 GiB
          lib: none
        ");
        assert_eq!(read(&serde_json::json!({"version": 3, "derivations": map})), asked);
        assert_eq!((asked.waiting, read(&Value::Null)), (4, Asked::default()));
    }
}
