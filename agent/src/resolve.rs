//! Host names to addresses, by a resolver that reads the hosts file and resolv.conf itself.
//!
//! Used for etcd members and message brokers alike. The C library's resolver loads shared objects at
//! run time, which a static binary cannot count on.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::ResolverConfig;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Hosts, Resolver, system_conf};

/// Longest time for a name to resolve.
const DEADLINE: Duration = Duration::from_secs(2);

/// A host name that has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "host name {name} does not resolve: {reason} (looked in {hosts} and asked the servers of {resolv_conf})"
)]
pub struct ResolveError {
    /// The name.
    pub name: String,
    /// What the resolver says.
    pub reason: String,
    /// Path of the hosts file.
    pub hosts: String,
    /// Path of the resolver configuration.
    pub resolv_conf: String,
}

/// Reads `name`, `name:port`, `address:port` or `[v6]:port`. None: it is none of these.
pub(crate) fn host_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']')?;
            (host.parse::<Ipv6Addr>().ok()?.to_string(), port)
        }
        None => match text.split_once(':') {
            Some((host, _)) => (host.to_string(), &text[host.len()..]),
            None => (text.to_string(), ""),
        },
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&port| port != 0)?,
        None if port.is_empty() => default_port,
        None => return None,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(plain)).then_some((host, port))
}

/// Where host names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameFiles {
    /// Names given by hand, first in order.
    pub hosts: PathBuf,
    /// The DNS servers and search domains. Without the file only `hosts` counts.
    pub resolv_conf: PathBuf,
}

impl Default for NameFiles {
    fn default() -> NameFiles {
        NameFiles { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into() }
    }
}

impl NameFiles {
    /// The addresses of one host name, each once; an address stands for itself. Reads the files anew,
    /// so that a name entered while somebody is waited for is found.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        let fail = |reason: String| ResolveError {
            name: host.into(),
            reason,
            hosts: self.hosts.display().to_string(),
            resolv_conf: self.resolv_conf.display().to_string(),
        };
        let resolver = self.resolver().map_err(|error| fail(error.to_string()))?;
        let found = tokio::time::timeout(DEADLINE, resolver.lookup_ip(host)).await;
        let found = found.map_err(|_| fail(format!("no answer within {DEADLINE:?}")))?;
        let mut addresses: Vec<IpAddr> = found.map_err(|error| fail(error.to_string()))?.iter().collect();
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(fail("it has no address".into()));
        }
        Ok(addresses)
    }

    fn resolver(&self) -> Result<Resolver<TokioRuntimeProvider>, hickory_resolver::net::NetError> {
        let conf = fs::read(&self.resolv_conf).ok();
        let parsed = conf.and_then(|conf| system_conf::parse_resolv_conf(conf).ok());
        let (config, options) = match parsed {
            Some((config, options)) => (config, Some(options)),
            None => (ResolverConfig::from_parts(None, vec![], vec![]), None),
        };
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        if let Some(options) = options {
            *builder.options_mut() = options;
        }
        // The system's hosts file is not read behind our back: it is the one named here that counts.
        builder.options_mut().use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
        let mut resolver = builder.build()?;
        let mut hosts = Hosts::default();
        if let Ok(text) = fs::read(&self.hosts) {
            // A broken line in it spoils no other name.
            let _ = hosts.read_hosts_conf(&text[..]);
        }
        resolver.set_hosts(Arc::new(hosts));
        Ok(resolver)
    }
}
