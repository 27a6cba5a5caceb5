//! What a push, a prune or an inspection found, for people and for programs.

use std::fmt::Write as _;

use super::Digest;

/// A push, done or tried dry.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Push {
    /// `host/namespace/name`.
    pub repository: String,
    /// The tags that name the image now.
    pub tags: Vec<String>,
    /// The manifest's digest; none after a dry run that does not know what layers will be.
    pub digest: Option<Digest>,
    /// Bytes of layers and configuration in the registry.
    pub size: Option<u64>,
    /// Bytes of them that had to be sent.
    pub uploaded: u64,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// Wall time.
    pub seconds: f64,
    /// Nothing was sent.
    pub dry_run: bool,
}

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The registry had it.
    Kept,
    /// The registry had it in another repository.
    Mounted,
    /// It was sent.
    Sent,
    /// It would be sent (dry run).
    WouldSend,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Mounted => "mounted",
            Self::Sent => "sent",
            Self::WouldSend => "would send",
        }
    }
}

/// A layer of a push.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Layer {
    /// Digest of the plain tar.
    pub diff_id: Option<Digest>,
    /// Digest in the registry.
    pub digest: Option<Digest>,
    /// Bytes in the registry.
    pub size: Option<u64>,
    /// Bytes in the source.
    pub stored_size: u64,
    /// What became of it.
    pub state: State,
    /// Wall time.
    pub seconds: f64,
    /// Names in `/nix/store`, where the layer was made of store paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// A store path's name without its hash; of several, their number, too.
#[must_use]
pub fn content(paths: &[String]) -> String {
    let name = |path: &String| path.get(33..).unwrap_or(path).to_owned();
    match paths {
        [] => String::new(),
        [one] => name(one),
        [one, more @ ..] => format!("{} and {} more", name(one), more.len()),
    }
}

impl Layer {
    /// One line: `sent  1a2b3c4d5e6f  12.3 MB (30.1 MB in the source) 0.8 s`.
    #[must_use]
    pub fn line(&self) -> String {
        let name = self.digest.as_ref().or(self.diff_id.as_ref()).map_or("?", Digest::short);
        let mut line = format!("{:<10}  {name}  ", self.state.word());
        let stored = bytes(self.stored_size);
        // Writing to a String cannot fail.
        let _ = match self.size {
            Some(size) if size != self.stored_size => {
                write!(line, "{} ({stored} in the source)", bytes(size))
            }
            Some(size) => write!(line, "{}", bytes(size)),
            None => write!(line, "{stored} in the source"),
        };
        if self.state == State::Sent {
            let _ = write!(line, "  {:.1} s", self.seconds);
        }
        if !self.paths.is_empty() {
            let _ = write!(line, "  {}", content(&self.paths));
        }
        line
    }
}

impl Push {
    /// The last line on stdout: digest, size in bytes, names.
    #[must_use]
    pub fn line(&self) -> String {
        let digest = self.digest.as_ref().map_or("-", Digest::as_str);
        let size = self.size.map_or("-".to_owned(), |size| size.to_string());
        format!("{digest} {size} {}:{}", self.repository, self.tags.join(","))
    }

    /// What goes to `GITHUB_OUTPUT`: `digest`, `size`, `uploaded`, `tag`.
    #[must_use]
    pub fn outputs(&self) -> String {
        let digest = self.digest.as_ref().map_or("", Digest::as_str);
        let size = self.size.map_or(String::new(), |size| size.to_string());
        let tag = self.tags.first().map_or("", String::as_str);
        format!("digest={digest}\nsize={size}\nuploaded={}\ntag={tag}\n", self.uploaded)
    }

    /// What goes to `GITHUB_STEP_SUMMARY`: Markdown.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!("### Image `{}:{}`\n\n", self.repository, self.tags.join("`, `"));
        if let Some(digest) = &self.digest {
            let _ = writeln!(text, "Digest `{digest}`\n");
        }
        let sent = self.layers.iter().filter(|layer| layer.state == State::Sent).count();
        let _ = writeln!(
            text,
            "| Layers | Sent | Skipped | Bytes sent | Of | Seconds |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n\
             | {} | {sent} | {} | {} | {} | {:.1} |\n",
            self.layers.len(),
            self.layers.len() - sent,
            bytes(self.uploaded),
            self.size.map_or("?".to_owned(), bytes),
            self.seconds
        );
        text.push_str("<details><summary>Each layer</summary>\n\n");
        text.push_str(
            "| Layer | | Size | In the source | Seconds | |\n| --- | --- | ---: | ---: | ---: | --- |\n",
        );
        for layer in &self.layers {
            let name = layer.digest.as_ref().or(layer.diff_id.as_ref()).map_or("?", Digest::short);
            let size = layer.size.map_or("?".to_owned(), bytes);
            let _ = writeln!(
                text,
                "| `{name}` | {} | {size} | {} | {:.1} | {} |",
                layer.state.word(),
                bytes(layer.stored_size),
                layer.seconds,
                content(&layer.paths)
            );
        }
        text.push_str("\n</details>\n\n");
        text
    }
}

/// What is to become of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Among the newest.
    Kept,
    /// Named by a pattern, or `latest`.
    Protected,
    /// Has no time of creation, or shares its manifest with a tag that stays.
    Spared,
    /// To be deleted (dry run).
    WouldDelete,
    /// Deleted.
    Deleted,
    /// Was gone when it was to be deleted.
    Gone,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Protected => "protected",
            Self::Spared => "spared",
            Self::WouldDelete => "would delete",
            Self::Deleted => "deleted",
            Self::Gone => "gone",
        }
    }
}

/// A tag of a prune.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Tag {
    /// Its name.
    pub tag: String,
    /// When it was made, RFC 3339, UTC.
    pub created: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
}

/// A prune, done or tried dry.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Prune {
    /// `host/namespace/name`.
    pub repository: String,
    /// By what means: `gitea` or `oci`.
    pub by: &'static str,
    /// The tags, newest first.
    pub tags: Vec<Tag>,
    /// Images without a tag of their own that went, or would go, with the lists they were parts of.
    pub parts: usize,
    /// Nothing was deleted.
    pub dry_run: bool,
}

impl Prune {
    /// How many tags have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.tags.iter().filter(|tag| tag.verdict == verdict).count()
    }

    /// A table, one tag a line.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.tags.iter().map(|tag| tag.tag.chars().count()).max().unwrap_or(0).max(3);
        let mut text = format!("{:<width$}  {:<20}  {}\n", "TAG", "CREATED", "STATE");
        for tag in &self.tags {
            let created = tag.created.as_deref().unwrap_or("unknown");
            let _ = writeln!(text, "{:<width$}  {created:<20}  {}", tag.tag, tag.verdict.word());
        }
        text
    }

    /// The last line.
    #[must_use]
    pub fn line(&self) -> String {
        let gone =
            self.count(Verdict::Deleted) + self.count(Verdict::Gone) + self.count(Verdict::WouldDelete);
        let what = if self.dry_run { "would be deleted" } else { "deleted" };
        let parts = match self.parts {
            0 => String::new(),
            parts => format!(" with {parts} images of lists"),
        };
        format!(
            "{}: {} tags, {gone} {what}{parts}, {} kept",
            self.repository,
            self.tags.len(),
            self.tags.len() - gone
        )
    }

    /// When the room on the registry's disk comes back. `None`: nothing was deleted.
    #[must_use]
    pub fn when_room_comes(&self) -> Option<&'static str> {
        if self.dry_run || self.count(Verdict::Deleted) == 0 {
            return None;
        }
        Some(match self.by {
            "gitea" => {
                "the disk has the room back after Gitea's own clean-up (cron.cleanup_packages: at midnight, blobs older than a day)"
            }
            _ => {
                "the disk has the room back after the registry's garbage collection (docker-registry garbage-collect)"
            }
        })
    }

    /// What goes to `GITHUB_STEP_SUMMARY`: Markdown.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text =
            format!("### Tags of `{}`\n\n| Tag | Created | |\n| --- | --- | --- |\n", self.repository);
        for tag in &self.tags {
            let created = tag.created.as_deref().unwrap_or("unknown");
            let _ = writeln!(text, "| `{}` | {created} | {} |", tag.tag, tag.verdict.word());
        }
        text.push('\n');
        text
    }
}

/// A number of bytes for people: `372.1 MB`, powers of 1000 as registries count.
#[must_use]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.95 || unit == "GB" {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{count} B")
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!(bytes(372_123_456), "372.1 MB");
        assert_eq!(bytes(u64::MAX), "18446744073.7 GB");
    }
}
