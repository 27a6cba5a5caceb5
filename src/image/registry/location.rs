//! Where a `Location`, `Link` or realm leads, and whether credentials may go there.
//!
//! Credentials belong to one origin: scheme, host and port of the registry. Nothing else gets them.

use reqwest::Url;

/// A URL to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) url: Url,
    /// Whether it is the registry itself, which may see credentials.
    pub(super) own: bool,
}

/// Resolves what a header says against the URL that answered.
///
/// A registry behind a proxy may name its own host with the scheme or port of the inside; that is taken to be
/// the registry itself. Another host is another host: it is followed without credentials, and only over TLS unless
/// plain HTTP was asked for.
pub(super) fn resolve(base: &Url, header: &str) -> Result<Target, String> {
    let mut url = base.join(header).map_err(|error| format!("the registry leads to {header:?}: {error}"))?;
    // User and password in a URL would be sent as credentials of somebody's choosing.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the registry leads to an address with a user name in it".to_owned());
    }
    if same_origin(base, &url) {
        return Ok(Target { url, own: true });
    }
    if url.host() == base.host() && url.path().starts_with("/v2/") {
        let scheme = base.scheme().to_owned();
        // Both are http or https, between which a change is always allowed.
        if url.set_scheme(&scheme).is_ok() && url.set_port(base.port()).is_ok() {
            return Ok(Target { url, own: true });
        }
    }
    match url.scheme() {
        "https" => Ok(Target { url, own: false }),
        "http" if base.scheme() == "http" => Ok(Target { url, own: false }),
        _ => Err(format!("the registry leads to {}, which is not safe to follow", shown(&url))),
    }
}

/// Same scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// A URL for people: upload states and signatures stand in the query, which is left out.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(base: &str, header: &str) -> (String, bool) {
        match resolve(&Url::parse(base).unwrap(), header) {
            Ok(target) => (target.url.to_string(), target.own),
            Err(why) => (why, false),
        }
    }

    #[test]
    fn relative_and_absolute_locations_of_the_registry_are_its_own() {
        let base = "http://r.example:5000/v2/a/b/blobs/uploads/";
        for header in
            ["/v2/a/b/blobs/uploads/1?x=y", "http://r.example:5000/v2/a/b/blobs/uploads/1?x=y", "1?x=y"]
        {
            assert_eq!(
                go(base, header),
                ("http://r.example:5000/v2/a/b/blobs/uploads/1?x=y".to_owned(), true)
            );
        }
    }

    #[test]
    fn a_proxy_that_hides_the_scheme_is_seen_through() {
        assert_eq!(
            go("https://r.example/v2/", "http://r.example:5000/v2/a/1"),
            ("https://r.example/v2/a/1".to_owned(), true)
        );
    }

    #[test]
    fn another_host_gets_no_credentials_and_never_plain_text_for_tls() {
        assert_eq!(
            go("https://r.example/v2/", "https://s3.example/x?sig=1"),
            ("https://s3.example/x?sig=1".to_owned(), false)
        );
        assert!(!go("http://r.example/v2/", "//evil.example/v2/").1);
        assert!(go("https://r.example/v2/", "http://s3.example/x?sig=1").0.contains("not safe"));
        assert!(go("https://r.example/v2/", "file:///etc/passwd").0.contains("not safe"));
        assert!(go("https://r.example/v2/", "https://u:p@r.example/v2/").0.contains("user name"));
    }
}
