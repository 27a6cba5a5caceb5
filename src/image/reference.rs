//! Names of repositories and tags: `host[:port]/namespace/name[:tag]`, by the rules of the OCI distribution
//! specification.

use std::fmt;

use super::Error;

/// A repository on a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// `host` or `host:port`, lower case.
    pub host: String,
    /// `namespace/name`, possibly with more parts.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// Where a push goes: a repository and at most one tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The repository.
    pub repository: Repository,
    /// The tag after the last colon, if there is one.
    pub tag: Option<String>,
}

impl Destination {
    /// Reads `host[:port]/namespace/name[:tag]`; a leading `docker://` is taken off.
    ///
    /// # Errors
    /// [`Error::Argument`] that says which part cannot be.
    pub fn parse(given: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Argument { given: given.to_owned(), why: why.to_owned() };
        let text = given.strip_prefix("docker://").unwrap_or(given);
        if text.contains("://") {
            return Err(wrong(
                "no scheme here, only host[:port]/namespace/name[:tag]; plain HTTP is --plain-http",
            ));
        }
        if text.contains('@') {
            return Err(wrong("no user, password or digest here, only host[:port]/namespace/name[:tag]"));
        }
        let Some((host, rest)) = text.split_once('/') else {
            return Err(wrong("wanted host[:port]/namespace/name[:tag]"));
        };
        if !(host.contains(['.', ':']) || host.eq_ignore_ascii_case("localhost")) {
            return Err(wrong(
                "the part before the first slash is no host: wanted host[:port]/namespace/name[:tag]",
            ));
        }
        let host = host.to_ascii_lowercase();
        let as_url = reqwest::Url::parse(&format!("https://{host}/"));
        if !as_url.is_ok_and(|url| url.has_host() && url.path() == "/" && url.query().is_none()) {
            return Err(wrong("the part before the first slash is no host[:port]"));
        }
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag.to_owned())),
            None => (rest, None),
        };
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong("repository names are lower case"));
        }
        if name.len() > 255 || !name.split('/').all(is_component) {
            return Err(wrong(
                "a repository name is parts of a-z, 0-9 with . _ - between them, separated by slashes",
            ));
        }
        if let Some(tag) = &tag {
            check_tag(tag)?;
        }
        Ok(Self { repository: Repository { host, name: name.to_owned() }, tag })
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alnum)
        && part.ends_with(alnum)
        && part
            .split(alnum)
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

/// Checks a tag: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
///
/// # Errors
/// [`Error::Argument`] when it cannot be one.
pub fn check_tag(tag: &str) -> Result<(), Error> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let well = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if well {
        return Ok(());
    }
    Err(Error::Argument {
        given: tag.to_owned(),
        why: "a tag is at most 128 of A-Z a-z 0-9 _ . - and does not begin with . or -".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_port_and_tag_are_taken_apart() {
        let dest = Destination::parse("Git.example.org:32166/coulomb/haskell-seed:abc1234").unwrap();
        assert_eq!(dest.repository.host, "git.example.org:32166");
        assert_eq!(dest.repository.name, "coulomb/haskell-seed");
        assert_eq!(dest.tag.as_deref(), Some("abc1234"));
        let dest = Destination::parse("docker://localhost/a/b/c").unwrap();
        assert_eq!((dest.repository.name.as_str(), dest.tag), ("a/b/c", None));
        assert_eq!(Destination::parse("[::1]:5000/a/b").unwrap().repository.host, "[::1]:5000");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            "",
            "app",
            "ns/app",
            "http://h.x/ns/app",
            "h.x/Ns/app",
            "h.x/ns/app:",
            "h.x/ns/-a",
            "h.x//a",
            "h.x/a/",
            "h.x/a..b",
            "h.x:port/a",
            "h.x/a:t:u",
            "u:p@h.x/a",
            "h.x/ns/app:.dot",
            "h .x/a",
        ] {
            assert!(Destination::parse(bad).is_err(), "{bad}");
        }
    }
}
