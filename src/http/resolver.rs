//! Names to addresses, inside the process: `/etc/hosts` first, then the name servers of `/etc/resolv.conf`.
//!
//! A static glibc would load plug-ins at run time for this. Both files are read anew for each connection, so a
//! daemon that runs for months follows a change; a connection is made rarely. There is no fall-back to name
//! servers that nobody configured.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The resolver of every client.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = lookup(name.as_str()).await?;
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// The addresses of a name.
///
/// # Errors
/// If neither `/etc/hosts` nor a name server knows it.
pub(super) async fn lookup(name: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let found = from_hosts(&hosts, name);
    if found.is_empty() { ask(name).await } else { Ok(found) }
}

/// Asks the system's name servers.
async fn ask(name: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let mut builder =
        TokioResolver::builder_tokio().map_err(|error| format!("cannot read /etc/resolv.conf: {error}"))?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    let found = builder.build()?.lookup_ip(name).await?;
    Ok(found.iter().collect())
}

/// The addresses that a hosts file has for a name. `localhost` has some in any case.
fn from_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let wanted = name.trim_end_matches('.');
    let lines = hosts.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|known| known.trim_end_matches('.').eq_ignore_ascii_case(wanted)).then_some(address)
    });
    let found: Vec<IpAddr> = lines.collect();
    if found.is_empty() && wanted.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_written() {
        let hosts = "# local\n127.0.0.1 localhost\n10.0.0.7\tgit.example.org git # forge\nfe80::1 git\nrubbish line\n";
        let of = |name: &str| from_hosts(hosts, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("git.example.org"), ["10.0.0.7"]);
        assert_eq!(of("GIT."), ["10.0.0.7", "fe80::1"]);
        assert_eq!(of("localhost"), ["127.0.0.1"]);
        assert_eq!(of("forge"), [""; 0]);
        assert_eq!(from_hosts("", "localhost").len(), 2);
    }
}
