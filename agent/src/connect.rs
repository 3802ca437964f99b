//! From `http://name:port,...` to a connection: endpoints, host names, one member at a time.
//!
//! Used by the agent's task and by `spp config`. Names are resolved here, by a resolver that reads
//! the hosts file and resolv.conf itself: the C library's own one loads shared objects at run time,
//! which a static binary cannot count on.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Hosts, Resolver, system_conf};

/// The port of an endpoint that names none.
const DEFAULT_PORT: u16 = 2379;

/// Longest time for a name to resolve and for a TCP connection to stand.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// What is wrong with an `--etcd` value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing there.
    #[error("no etcd endpoint given: write http://HOST:2379, several separated by commas")]
    Empty,
    /// TLS is asked for.
    #[error("{0:?}: etcd over TLS is not supported yet, use http://")]
    Tls(String),
    /// Not an endpoint.
    #[error("{0:?} is not an etcd endpoint: write http://HOST:PORT, IPv6 addresses in brackets")]
    Malformed(String),
}

/// Why a member cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The host name has no address.
    #[error(
        "host name {name} does not resolve: {reason} (looked in {hosts} and asked the servers of {resolv_conf})"
    )]
    Resolve {
        /// The name.
        name: String,
        /// What the resolver says.
        reason: String,
        /// Path of the hosts file.
        hosts: String,
        /// Path of the resolver configuration.
        resolv_conf: String,
    },
    /// The client library refuses.
    #[error("{endpoint}: {reason}")]
    Client {
        /// Which member.
        endpoint: String,
        /// What it says.
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => write!(f, "http://[{ip}]:{}", self.port),
            Err(_) => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let malformed = || EndpointError::Malformed(text.chars().take(80).collect());
        if text.starts_with("https://") {
            return Err(EndpointError::Tls(text.chars().take(80).collect()));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').map(|v6| v6.split_once(']')) {
            Some(Some((host, port))) => {
                (host.parse::<Ipv6Addr>().map_err(|_| malformed())?.to_string(), port)
            }
            Some(None) => return Err(malformed()),
            None => match rest.split_once(':') {
                Some((host, _)) => (host.to_string(), &rest[host.len()..]),
                None => (rest.to_string(), ""),
            },
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|&port| port != 0).ok_or_else(malformed)?,
            None if port.is_empty() => DEFAULT_PORT,
            None => return Err(malformed()),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
            return Err(malformed());
        }
        Ok(Endpoint { host, port })
    }
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

/// The members of an etcd cluster, as the operator names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    list: Vec<Endpoint>,
    name_files: NameFiles,
}

impl FromStr for Endpoints {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoints, EndpointError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let list = parts.map(str::parse).collect::<Result<Vec<Endpoint>, _>>()?;
        if list.is_empty() {
            return Err(EndpointError::Empty);
        }
        Ok(Endpoints { list, name_files: NameFiles::default() })
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, endpoint) in self.list.iter().enumerate() {
            write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Endpoints {
    /// How many there are; at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Looks names up in other files than the system's.
    pub fn with_name_files(mut self, name_files: NameFiles) -> Endpoints {
        self.name_files = name_files;
        self
    }

    /// The addresses of one host name, each once; an address stands for itself. Reads the files anew,
    /// so that a name entered while we wait for etcd is found.
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, DialError> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        let fail = |reason: String| DialError::Resolve {
            name: host.into(),
            reason,
            hosts: self.name_files.hosts.display().to_string(),
            resolv_conf: self.name_files.resolv_conf.display().to_string(),
        };
        let resolver = self.resolver().map_err(|error| fail(error.to_string()))?;
        let found = tokio::time::timeout(CONNECT_DEADLINE, resolver.lookup_ip(host)).await;
        let found = found.map_err(|_| fail(format!("no answer within {CONNECT_DEADLINE:?}")))?;
        let mut addresses: Vec<IpAddr> = found.map_err(|error| fail(error.to_string()))?.iter().collect();
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(fail("it has no address".into()));
        }
        Ok(addresses)
    }

    fn resolver(&self) -> Result<Resolver<TokioRuntimeProvider>, hickory_resolver::net::NetError> {
        let conf = fs::read(&self.name_files.resolv_conf).ok();
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
        if let Ok(text) = fs::read(&self.name_files.hosts) {
            // A broken line in it spoils no other name.
            let _ = hosts.read_hosts_conf(&text[..]);
        }
        resolver.set_hosts(Arc::new(hosts));
        Ok(resolver)
    }
}

/// Picks members in turn.
#[derive(Debug)]
pub struct Dialer {
    endpoints: Endpoints,
    n_failed: usize,
}

impl Dialer {
    /// Starts with the first endpoint.
    pub fn new(endpoints: Endpoints) -> Dialer {
        Dialer { endpoints, n_failed: 0 }
    }

    /// All endpoints.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The endpoint whose turn it is, as the operator wrote it.
    pub fn endpoint(&self) -> String {
        self.current().to_string()
    }

    /// The present member did not work: the next one, or the next address of its name, is up.
    pub fn failed(&mut self) {
        self.n_failed = self.n_failed.wrapping_add(1);
    }

    /// A client of the member whose turn it is. One member only, so that keys, transactions and watch
    /// share one connection and fail together. It connects with the first request.
    pub async fn dial(&self) -> Result<Client, DialError> {
        let endpoint = self.current();
        let addresses = self.endpoints.resolve(&endpoint.host).await?;
        let round = self.n_failed / self.endpoints.list.len();
        let address = SocketAddr::new(addresses[round % addresses.len()], endpoint.port);
        // http/2 pings find a dead peer even when no request is under way. Etcd throws out clients that
        // ping more often than every 5 s.
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_DEADLINE)
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let client = Client::connect([format!("http://{address}")], Some(options)).await;
        client
            .map_err(|error| DialError::Client { endpoint: endpoint.to_string(), reason: error.to_string() })
    }

    fn current(&self) -> &Endpoint {
        &self.endpoints.list[self.n_failed % self.endpoints.list.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_with_and_without_scheme_and_port() {
        for (text, want) in [
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("10.0.0.1", "http://10.0.0.1:2379"),
            ("http://etcd.lab:4001/", "http://etcd.lab:4001"),
            ("[::1]:2380", "http://[::1]:2380"),
            ("http://[fe80::1]", "http://[fe80::1]:2379"),
            ("http://a:1, http://b:2,", "http://a:1,http://b:2"),
        ] {
            assert_eq!(text.parse::<Endpoints>().unwrap().to_string(), want);
        }
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        assert_eq!("".parse::<Endpoints>(), Err(EndpointError::Empty));
        assert_eq!(" , ".parse::<Endpoints>(), Err(EndpointError::Empty));
        assert!(matches!("https://a:2379".parse::<Endpoints>(), Err(EndpointError::Tls(_))));
        for text in [
            "http://", ":2379", "a:0", "a:99999", "a:b", "a:1/x", "[::1", "[x]:1", "[::1]1", "ftp://a", "a b",
        ] {
            assert!(matches!(text.parse::<Endpoints>(), Err(EndpointError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn failures_go_round_the_members() {
        let mut dialer = Dialer::new("a,b".parse().unwrap());
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(dialer.endpoint());
            dialer.failed();
        }
        assert_eq!(seen, ["http://a:2379", "http://b:2379", "http://a:2379"]);
    }
}
