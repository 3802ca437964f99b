//! From `https://name:port,...` to a connection: endpoints, TLS, login, one member at a time.
//!
//! Used by the agent's task, by the node key's and by `spp config`.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};

use crate::keys::{HostKeys, Name, Root};
use crate::resolve::{NameFiles, ResolveError, host_port};
use crate::secret::Secret;
use crate::tls::{self, TlsError, TlsFiles};

/// The port of an endpoint that names none.
const DEFAULT_PORT: u16 = 2379;

/// Longest time for a TCP connection to stand.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Longest time for connecting with a user and password: etcd hashes the password slowly on purpose.
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);

/// Longest text taken over from an answer, in characters.
const REASON_MAX_CHARS: usize = 300;

/// What is wrong with an `--etcd` value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing there.
    #[error("no etcd endpoint given: write http://HOST:2379, several separated by commas")]
    Empty,
    /// Not an endpoint.
    #[error(
        "{0:?} is not an etcd endpoint: write http://HOST:PORT or https://HOST:PORT, IPv6 addresses in brackets"
    )]
    Malformed(String),
}

/// Why a member cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The files of `--etcd-ca` and its like are no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The client library or the member refuses.
    #[error("{endpoint}: {fault}")]
    Client {
        /// Which member.
        endpoint: String,
        /// What it says.
        fault: Fault,
    },
    /// No answer to user and password.
    #[error("{endpoint}: the login was not answered within {LOGIN_DEADLINE:?}")]
    Login {
        /// Which member.
        endpoint: String,
    },
}

/// What the client library says of a failed request, with its cause and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}{}", .remedy.as_ref().map(|remedy| format!(" ({remedy})")).unwrap_or_default())]
pub struct Fault {
    text: String,
    remedy: Option<String>,
    denied: bool,
}

impl Fault {
    /// The member was reached, and does not let us.
    pub fn denied(&self) -> bool {
        self.denied
    }

    /// It is known what to do about it.
    pub fn has_remedy(&self) -> bool {
        self.remedy.is_some()
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let (mut text, mut cause) = match &error {
            Error::GRpcStatus(status) => (status.message().to_string(), status.source()),
            Error::TransportError(error) => (error.to_string(), error.source()),
            other => (other.to_string(), None),
        };
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        let text: String = text.chars().filter(|c| !c.is_control()).take(REASON_MAX_CHARS).collect();
        let denial = denial(&text);
        let remedy = denial.map(str::to_string).or_else(|| tls::remedy(&text, "--etcd"));
        let remedy = remedy.or_else(|| hung_up(&text).map(str::to_string));
        Fault { remedy, denied: denial.is_some(), text }
    }
}

/// A server that misses its client's certificate may close before its reason is read.
fn hung_up(text: &str) -> Option<&'static str> {
    let remedy = "the member hung up: if that goes on, it wants https://, or a certificate: give --etcd-cert and --etcd-key";
    ["broken pipe", "reset by peer", "connection closed"]
        .iter()
        .any(|word| text.contains(word))
        .then_some(remedy)
}

/// What to do about etcd's words for "you may not".
fn denial(text: &str) -> Option<&'static str> {
    let remedies = [
        ("invalid user ID or password", "check --etcd-user and its password"),
        ("user name is empty", "this etcd wants a user: give --etcd-user and its password"),
        ("authentication is not enabled", "this etcd knows no users: leave --etcd-user away"),
        (
            "permission denied",
            "grant the user's role read and write on the prefix of --etcd-prefix and of --node-prefix; without --etcd-user the user is the name in our certificate",
        ),
    ];
    remedies.iter().find(|(word, _)| text.contains(word)).map(|(_, remedy)| *remedy)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => write!(f, "{scheme}://[{ip}]:{}", self.port),
            Err(_) => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let malformed = || EndpointError::Malformed(text.chars().take(80).collect());
        let (tls, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://").unwrap_or(text)),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = host_port(rest, DEFAULT_PORT).ok_or_else(malformed)?;
        Ok(Endpoint { tls, host, port })
    }
}

/// An etcd cluster as the operator names it: its members, how one is let in, and below which prefix
/// our keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    list: Vec<Endpoint>,
    name_files: NameFiles,
    tls: TlsFiles,
    login: Option<(String, Secret)>,
    root: Root,
}

impl FromStr for Endpoints {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoints, EndpointError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let list = parts.map(str::parse).collect::<Result<Vec<Endpoint>, _>>()?;
        if list.is_empty() {
            return Err(EndpointError::Empty);
        }
        let (name_files, tls) = (NameFiles::default(), TlsFiles::default());
        Ok(Endpoints { list, name_files, tls, login: None, root: Root::default() })
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

    /// True if any of them is https://.
    pub fn any_tls(&self) -> bool {
        self.list.iter().any(|endpoint| endpoint.tls)
    }

    /// Looks names up in other files than the system's.
    pub fn with_name_files(mut self, name_files: NameFiles) -> Endpoints {
        self.name_files = name_files;
        self
    }

    /// Files for the members that are https://.
    pub fn with_tls(mut self, tls: TlsFiles) -> Endpoints {
        self.tls = tls;
        self
    }

    /// Logs in as this user.
    pub fn with_login(mut self, user: impl Into<String>, password: Secret) -> Endpoints {
        self.login = Some((user.into(), password));
        self
    }

    /// Keeps our keys below another prefix.
    pub fn with_root(mut self, root: Root) -> Endpoints {
        self.root = root;
        self
    }

    /// The keys of a host there.
    pub fn keys(&self, host: Name) -> HostKeys {
        HostKeys::under(self.root.clone(), host)
    }
}

/// Open connections by member, for many short calls that share them.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<BTreeMap<String, Client>>>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    fn clients(&self) -> MutexGuard<'_, BTreeMap<String, Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Picks members in turn.
#[derive(Debug)]
pub struct Dialer {
    endpoints: Endpoints,
    n_failed: usize,
    pool: Option<Pool>,
}

impl Dialer {
    /// Starts with the first endpoint.
    pub fn new(endpoints: Endpoints) -> Dialer {
        Dialer { endpoints, n_failed: 0, pool: None }
    }

    /// Takes connections from a pool, and leaves them there.
    pub fn with_pool(mut self, pool: Pool) -> Dialer {
        self.pool = Some(pool);
        self
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
        if let Some(pool) = &self.pool {
            pool.clients().remove(&self.endpoint());
        }
        self.n_failed = self.n_failed.wrapping_add(1);
    }

    /// A client of the member whose turn it is. One member only, so that keys, transactions and watch
    /// share one connection and fail together. It connects with the first request, or to log in.
    pub async fn dial(&self) -> Result<Client, DialError> {
        let Some(pool) = &self.pool else { return self.dial_anew().await };
        let open = pool.clients().get(&self.endpoint()).cloned();
        if let Some(client) = open {
            return Ok(client);
        }
        let client = self.dial_anew().await?;
        Ok(pool.clients().entry(self.endpoint()).or_insert(client).clone())
    }

    async fn dial_anew(&self) -> Result<Client, DialError> {
        let endpoint = self.current();
        let address = self.address().await?;
        // http/2 pings find a dead peer even when no request is under way. Etcd throws out clients that
        // ping more often than every 5 s.
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_DEADLINE)
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((user, password)) = &self.endpoints.login {
            // A token that has expired is renewed by the library with the request that finds out.
            options = options.with_user(user, password.reveal()).with_auto_token_refresh(true);
        }
        if endpoint.tls {
            options = options.with_tls(self.tls_options(&endpoint.host)?);
        }
        let scheme = if endpoint.tls { "https" } else { "http" };
        let connect = Client::connect([format!("{scheme}://{address}")], Some(options));
        let client = tokio::time::timeout(LOGIN_DEADLINE, connect).await;
        let client = client.map_err(|_| DialError::Login { endpoint: endpoint.to_string() })?;
        client.map_err(|error| DialError::Client { endpoint: endpoint.to_string(), fault: error.into() })
    }

    /// The address that is dialled: of a name with several, the next one each round.
    pub(crate) async fn address(&self) -> Result<SocketAddr, DialError> {
        let endpoint = self.current();
        let addresses: Vec<IpAddr> = self.endpoints.name_files.resolve(&endpoint.host).await?;
        let round = self.n_failed / self.endpoints.list.len();
        Ok(SocketAddr::new(addresses[round % addresses.len()], endpoint.port))
    }

    /// The address is dialled, but it is the name that the certificate must have.
    fn tls_options(&self, host: &str) -> Result<TlsOptions, DialError> {
        let files = self.endpoints.tls.read("--etcd-ca")?;
        let options = TlsOptions::new().ca_certificate(Certificate::from_pem(files.ca)).domain_name(host);
        Ok(match files.identity {
            Some((cert, key)) => options.identity(Identity::from_pem(cert, key)),
            None => options,
        })
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
            ("https://etcd.lab", "https://etcd.lab:2379"),
        ] {
            assert_eq!(text.parse::<Endpoints>().unwrap().to_string(), want);
        }
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        assert_eq!("".parse::<Endpoints>(), Err(EndpointError::Empty));
        assert_eq!(" , ".parse::<Endpoints>(), Err(EndpointError::Empty));
        for text in [
            "http://", ":2379", "a:0", "a:99999", "a:b", "a:1/x", "[::1", "[x]:1", "[::1]1", "ftp://a",
            "a b", "https://",
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

    #[test]
    fn refusals_and_broken_trust_say_what_to_do() {
        let fault = |text: &str| Fault::from(Error::WatchError(text.into()));
        let wrong = fault("etcdserver: authentication failed, invalid user ID or password");
        assert!(
            wrong.denied() && wrong.to_string().ends_with("(check --etcd-user and its password)"),
            "{wrong}"
        );
        let untrusted = fault("invalid peer certificate: UnknownIssuer");
        assert!(!untrusted.denied() && untrusted.to_string().contains("--etcd-ca"), "{untrusted}");
        let other = fault("tcp connect error\n: refused");
        assert_eq!(other.to_string(), "watch error: tcp connect error: refused");
    }

    #[test]
    fn a_login_is_not_printed() {
        let endpoints = "a".parse::<Endpoints>().unwrap().with_login("root", Secret::new("hunter2"));
        assert!(!format!("{endpoints:?} {endpoints}").contains("hunter2"));
    }
}
