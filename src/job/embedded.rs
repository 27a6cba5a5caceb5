//! The actions that are compiled in: `uses: sower/<name>@v1`.
//!
//! They are ordinary composite actions; their files lie in `workflows/actions/`. No network is asked for them.

/// An action's name behind `sower/` and its `action.yml`.
const ACTIONS: [(&str, &str); 6] = [
    ("ghc-caps", include_str!("../../workflows/actions/ghc-caps/action.yml")),
    ("check-archives", include_str!("../../workflows/actions/check-archives/action.yml")),
    ("doctor", include_str!("../../workflows/actions/doctor/action.yml")),
    ("nix-build", include_str!("../../workflows/actions/nix-build/action.yml")),
    ("push-image", include_str!("../../workflows/actions/push-image/action.yml")),
    ("deploy-helm", include_str!("../../workflows/actions/deploy-helm/action.yml")),
];

/// The version that `@` has to name.
const VERSION: &str = "v1";

/// Why there is no such embedded action.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No action has this name.
    #[error("there is no embedded action {name:?}; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The version is another one.
    #[error("sower/{name}@{version}: the embedded actions have version {VERSION}")]
    Version {
        /// The action.
        name: String,
        /// What was asked for.
        version: String,
    },
}

/// The `action.yml` of an embedded action, if `uses` names one: `sower/<name>@v1`.
///
/// # Errors
/// When `uses` begins with `sower/` and names none.
pub fn find(uses: &str) -> Option<Result<&'static str, Error>> {
    let (name, version) = uses.strip_prefix("sower/")?.split_once('@')?;
    let Some((_, text)) = ACTIONS.iter().find(|(known, _)| *known == name) else {
        let known = ACTIONS.map(|(name, _)| format!("sower/{name}@{VERSION}")).join(", ");
        return Some(Err(Error::Unknown { name: name.to_owned(), known }));
    };
    if version != VERSION {
        return Some(Err(Error::Version { name: name.to_owned(), version: version.to_owned() }));
    }
    Some(Ok(text))
}
