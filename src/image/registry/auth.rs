//! Challenges, token realms and what a refusal means.
//!
//! A registry says in `WWW-Authenticate` where tokens are to be had. Gitea builds that address from its ROOT_URL,
//! which is often wrong: it then names a port where nothing answers. The token service is always at `/v2/token` of
//! the registry's own address as well, so that is asked when the realm is dead, unknown there, or leads away.

use reqwest::Url;

use super::Credentials;

/// A `WWW-Authenticate` header, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic { realm: String },
    Bearer { realm: String, service: Option<String>, error: Option<String> },
}

impl Challenge {
    /// The best one of the headers' challenges: Bearer before Basic.
    pub(super) fn read(headers: &reqwest::header::HeaderMap) -> Option<Self> {
        let all = headers.get_all(reqwest::header::WWW_AUTHENTICATE);
        let mut found: Vec<Self> =
            all.iter().filter_map(|value| value.to_str().ok()).filter_map(Self::parse).collect();
        found.sort_by_key(|challenge| matches!(challenge, Self::Basic { .. }));
        found.into_iter().next()
    }

    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let parameters = parameters(rest);
        let get =
            |key: &str| parameters.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("bearer") {
            Some(Self::Bearer { realm: get("realm")?, service: get("service"), error: get("error") })
        } else if scheme.eq_ignore_ascii_case("basic") {
            Some(Self::Basic { realm: get("realm").unwrap_or_default() })
        } else {
            None
        }
    }
}

/// `key="value", key=value`; quoted values may hold commas and escapes.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let key = key.trim_matches([',', ' ', '\t']).to_owned();
        let mut value = String::new();
        let rest = rest.trim_start();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    c => value.push(c),
                }
            }
            text = &quoted[end..];
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            rest[..end].trim().clone_into(&mut value);
            text = &rest[end..];
        }
        found.push((key, value));
    }
    found
}

/// The token service of the registry's own address.
pub(super) fn own_token_service(base: &Url) -> Option<Url> {
    base.join("/v2/token").ok()
}

/// The answer of a token service.
#[derive(serde::Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds. Gitea says nothing, which means 60 in distribution's token protocol.
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The token, and the seconds that it is good for.
    pub(super) fn into_token(self) -> Option<(String, u64)> {
        let expires_in = self.expires_in.unwrap_or(60);
        let token = self.token.or(self.access_token).filter(|token| !token.is_empty())?;
        Some((token, expires_in))
    }
}

/// What a 401 or 403 means and what to do about it.
pub(super) fn explain(
    status: u16,
    challenge: Option<&Challenge>,
    credentials: Option<&Credentials>,
    words: &str,
) -> String {
    let said = if words.is_empty() { String::new() } else { format!(" (the registry says: {words})") };
    let Some(credentials) = credentials else {
        return format!(
            "HTTP {status}: credentials are wanted; set SOWER_REGISTRY_USERNAME and SOWER_REGISTRY_PASSWORD, or use \
             --username with --password-stdin{said}"
        );
    };
    if credentials.are_the_jobs_own() {
        return format!(
            "HTTP {status}: this is the job's own token, which may not write packages; store a personal access token with \
             write:package as a secret of the repository, REGISTRY_PASSWORD say, and hand the step \
             ${{{{ secrets.REGISTRY_PASSWORD }}}} as SOWER_REGISTRY_PASSWORD or `password:`{said}"
        );
    }
    let no_right = match challenge {
        Some(Challenge::Basic { realm }) => realm == "Gitea Package API",
        Some(Challenge::Bearer { error, .. }) => error.as_deref() == Some("insufficient_scope"),
        None => status == 403,
    };
    if no_right || status == 403 {
        format!(
            "HTTP {status}: known user, no right: the token lacks write:package, or the user may not write there; a job's \
             own token never may: set a secret, REGISTRY_PASSWORD say, with a personal access token{said}"
        )
    } else {
        format!(
            "HTTP {status}: the registry does not know this user and password; on Gitea use a personal access token \
             with write:package as the password (a job's own token is not accepted){said}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gitea_and_docker_challenges_are_read() {
        let gitea = r#"Bearer realm="http://127.0.0.1:1/v2/token",service="container_registry",scope="*""#;
        assert_eq!(
            Challenge::parse(gitea),
            Some(Challenge::Bearer {
                realm: "http://127.0.0.1:1/v2/token".to_owned(),
                service: Some("container_registry".to_owned()),
                error: None,
            })
        );
        let docker = r#"Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push",error="insufficient_scope""#;
        let Some(Challenge::Bearer { error, .. }) = Challenge::parse(docker) else { panic!("no bearer") };
        assert_eq!(error.as_deref(), Some("insufficient_scope"));
        assert_eq!(
            Challenge::parse(r#"Basic realm="Gitea Package API""#),
            Some(Challenge::Basic { realm: "Gitea Package API".to_owned() })
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(
            Challenge::parse("Bearer realm=\"unended"),
            Some(Challenge::Bearer { realm: "unended".to_owned(), service: None, error: None })
        );
    }
}
