//! The part of `~/.ssh/config` that names hosts: aliases with HostName, User, Port, IdentityFile, IdentitiesOnly,
//! ProxyJump, HostKeyAlias and UserKnownHostsFile; Include. Other keywords are left to ssh.
//!
//! As in ssh_config(5) the first value that is found wins. What would change where a connection goes and is not
//! understood (ProxyCommand, Match) is refused rather than passed over, if it concerns the host that is asked for.

use std::path::{Path, PathBuf};

use super::Error;

/// How deep Include may go.
const DEEPEST: usize = 8;
/// The largest configuration that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// What the configuration says about one host.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct HostConfig {
    pub(super) host_name: Option<String>,
    pub(super) user: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) identities: Vec<PathBuf>,
    pub(super) identities_only: Option<bool>,
    /// Empty: `none`, which ends what later lines say.
    pub(super) proxy_jump: Option<Vec<String>>,
    pub(super) host_key_alias: Option<String>,
    pub(super) known_hosts: Vec<PathBuf>,
}

/// Reads what the files say about `host`. The user's file goes before the system's; a missing default file is none.
pub(super) fn lookup(host: &str, file: Option<&Path>) -> Result<HostConfig, Error> {
    let mut config = HostConfig::default();
    if let Some(path) = file {
        Reader { host, config: &mut config }.file(path, 0, true)?;
        return Ok(config);
    }
    let user = home().map(|home| home.join(".ssh/config"));
    for path in user.into_iter().chain([PathBuf::from("/etc/ssh/ssh_config")]) {
        if path.is_file() {
            Reader { host, config: &mut config }.file(&path, 0, true)?;
        }
    }
    Ok(config)
}

/// The home directory of the user that this program runs as.
pub(super) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

struct Reader<'a> {
    host: &'a str,
    config: &'a mut HostConfig,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, depth: usize, mut applies: bool) -> Result<(), Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > LARGEST {
            return Err(failed(std::io::Error::other("larger than 1 MiB: this is no ssh configuration")));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        for (index, line) in text.lines().enumerate() {
            let wrong = |message: String| Error::Config { path: path.to_owned(), line: index + 1, message };
            let Some((keyword, arguments)) = words(line) else { continue };
            let first = || {
                arguments
                    .first()
                    .map(String::as_str)
                    .ok_or_else(|| wrong(format!("{keyword} without a value")))
            };
            match keyword.as_str() {
                "host" => applies = matches(self.host, &arguments),
                // Only `Match all` can be answered without running anything.
                "match" => {
                    applies = matches!(arguments.as_slice(), [all] if all.eq_ignore_ascii_case("all"));
                }
                "include" if applies => {
                    if depth == DEEPEST {
                        return Err(wrong("Include goes too deep".to_owned()));
                    }
                    for pattern in &arguments {
                        for file in included(pattern, path) {
                            self.file(&file, depth + 1, true)?;
                        }
                    }
                }
                _ if !applies => {}
                "hostname" => {
                    let name = first()?.replace("%h", self.host).replace("%%", "%");
                    self.config.host_name.get_or_insert(name);
                }
                "user" => {
                    let user = first()?.to_owned();
                    self.config.user.get_or_insert(user);
                }
                "port" => {
                    let port = first()?;
                    let port: u16 = port.parse().map_err(|_| wrong(format!("{port:?} is no port")))?;
                    self.config.port.get_or_insert(port);
                }
                // The only ones that add up.
                "identityfile" => {
                    let file = first()?;
                    if !file.eq_ignore_ascii_case("none") {
                        self.config.identities.push(expanded(file));
                    }
                }
                "identitiesonly" => {
                    let only = first()?.eq_ignore_ascii_case("yes");
                    self.config.identities_only.get_or_insert(only);
                }
                "hostkeyalias" => {
                    let alias = first()?.to_owned();
                    self.config.host_key_alias.get_or_insert(alias);
                }
                "userknownhostsfile" if self.config.known_hosts.is_empty() => {
                    self.config.known_hosts = arguments.iter().map(|file| expanded(file)).collect();
                }
                "proxyjump" => {
                    first()?;
                    // The rest of the line, which may have spaces after its commas.
                    let jump = arguments.concat();
                    let hosts = if jump.eq_ignore_ascii_case("none") {
                        Vec::new()
                    } else {
                        jump.split(',').map(|hop| hop.trim().to_owned()).collect()
                    };
                    self.config.proxy_jump.get_or_insert(hosts);
                }
                "proxycommand"
                    if self.config.proxy_jump.is_none() && !first()?.eq_ignore_ascii_case("none") =>
                {
                    return Err(wrong("ProxyCommand is not supported: use ProxyJump".to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Keyword in lower case and its arguments; `None` for empty lines and comments.
fn words(line: &str) -> Option<(String, Vec<String>)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let mut arguments = Vec::new();
    let mut chars = rest.chars().peekable();
    while let Some(&first) = chars.peek() {
        if first.is_whitespace() {
            chars.next();
        } else if first == '#' {
            break;
        } else if first == '"' {
            chars.next();
            arguments.push(chars.by_ref().take_while(|c| *c != '"').collect());
        } else {
            let mut word = String::new();
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
            arguments.push(word);
        }
    }
    Some((keyword.to_lowercase(), arguments))
}

/// Whether a line `Host PATTERN…` is about this host: one pattern fits, and no negated one does.
fn matches(host: &str, patterns: &[String]) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(not) if fits(not, host) => return false,
            Some(_) => {}
            None => found |= fits(pattern, host),
        }
    }
    found
}

/// `*` and `?`, without regard to case. Linear in both: the last star is the only one that is gone back to.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let pattern = pattern.to_lowercase().into_bytes();
    let text = text.to_lowercase().into_bytes();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == b'?' || *c == text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn expanded(file: &str) -> PathBuf {
    let home = home().unwrap_or_default();
    match file.strip_prefix("~/").or_else(|| file.strip_prefix("%d/")) {
        Some(rest) => home.join(rest),
        None => PathBuf::from(file),
    }
}

/// The files that an Include names, sorted; a relative one stands beside the user's configuration.
fn included(pattern: &str, from: &Path) -> Vec<PathBuf> {
    let path = expanded(pattern);
    let path = if path.is_absolute() {
        path
    } else {
        from.parent().map_or_else(|| path.clone(), |directory| directory.join(&path))
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return if path.is_file() { vec![path] } else { Vec::new() };
    }
    let Some(directory) = path.parent() else { return Vec::new() };
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| fits(&name, &entry.file_name().to_string_lossy()))
                .map(|entry| entry.path())
                .filter(|path| path.is_file())
                .collect()
        })
        .unwrap_or_default();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(host: &str, text: &str) -> Result<HostConfig, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        std::fs::write(dir.path().join("config.d/a.conf"), "Host included\n  Port 2201\n").unwrap();
        lookup(host, Some(&path))
    }

    const CONFIG: &str = "\
# people's own names
Include config.d/*.conf
Host cluster prod-*
    HostName = node.test
    User deploy
    Port 2222
    IdentityFile \"/keys/my key\"
    ProxyJump jump, other:22
Host * !secret
    User nobody
    IdentityFile /keys/other
    HostName %h.example.test
";

    #[test]
    fn the_first_value_wins_and_identities_add_up() {
        let config = about("prod-1", CONFIG).unwrap();
        assert_eq!(config.host_name.as_deref(), Some("node.test"));
        assert_eq!((config.user.as_deref(), config.port), (Some("deploy"), Some(2222)));
        assert_eq!(config.identities, [PathBuf::from("/keys/my key"), PathBuf::from("/keys/other")]);
        assert_eq!(config.proxy_jump, Some(vec!["jump".to_owned(), "other:22".to_owned()]));
        let other = about("web", CONFIG).unwrap();
        assert_eq!(other.host_name.as_deref(), Some("web.example.test"));
        assert_eq!(about("secret", CONFIG).unwrap(), HostConfig::default());
        assert_eq!(about("included", CONFIG).unwrap().port, Some(2201));
    }

    #[test]
    fn what_would_lead_elsewhere_is_not_passed_over() {
        let error = about("a", "Host a\n  ProxyCommand nc %h %p\n").unwrap_err();
        assert!(error.to_string().contains("config:2: ProxyCommand is not supported"), "{error}");
        about("b", "Host a\n  ProxyCommand nc %h %p\n").unwrap();
        assert!(about("a", "Host a\n  Port many\n").is_err());
    }

    #[test]
    fn patterns() {
        for (pattern, text, fit) in [
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("?b", "ab", true),
            ("*a*b*", "xxaxxb", true),
            ("A", "a", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
    }
}
