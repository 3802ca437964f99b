//! `rabbit://user:password@host:port,host:port/vhost`: brokers as oslo.messaging's transport_url names them.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::resolve::host_port;
use crate::secret::Secret;

const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;

/// What is wrong with an `--amqp` value. Never shows it: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not one of the schemes.
    #[error("write rabbit://USER@HOST/VHOST, amqp:// or, for TLS, amqps://")]
    Scheme,
    /// A host is missing or malformed.
    #[error(
        "host number {0} is no USER:PASSWORD@HOST:PORT: IPv6 addresses go in brackets, and / , @ : in a password as %2F %2C %40 %3A"
    )]
    Host(usize),
    /// Something behind a question mark.
    #[error("{0:?} is not understood: only ?ssl=1 is")]
    Option(String),
    /// Not text after decoding.
    #[error("a %XX in it is not UTF-8")]
    Decoding,
}

/// One broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Who we are there.
    pub user: String,
    /// Its password, where the URL has one.
    pub password: Option<Secret>,
}

/// The brokers neutron-server listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brokers {
    /// At least one; tried in turn.
    pub list: Vec<Broker>,
    /// RabbitMQ's virtual host.
    pub vhost: String,
    /// Speak TLS.
    pub tls: bool,
}

impl FromStr for Brokers {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Brokers, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let mut tls = match scheme {
            "rabbit" | "amqp" => false,
            "amqps" => true,
            _ => return Err(UrlError::Scheme),
        };
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("ssl", "1" | "true" | "True")) => tls = true,
                Some(("ssl", "0" | "false" | "False")) => tls = false,
                _ => return Err(UrlError::Option(option.split('=').next().unwrap_or_default().into())),
            }
        }
        let (hosts, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        let vhost = if vhost.is_empty() { "/".into() } else { decoded(vhost)? };
        let port = if tls { TLS_PORT } else { PORT };
        let mut list: Vec<Broker> = Vec::new();
        for (i, host) in hosts.split(',').enumerate() {
            let broker = broker(host, port, list.first())?.ok_or(UrlError::Host(i + 1))?;
            list.push(broker);
        }
        Ok(Brokers { list, vhost, tls })
    }
}

/// One host. Without a user it has the first one's.
fn broker(text: &str, port: u16, first: Option<&Broker>) -> Result<Option<Broker>, UrlError> {
    let (login, place) = match text.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, text),
    };
    let Some((host, port)) = host_port(place, port) else { return Ok(None) };
    let (user, password) = match (login, first) {
        (Some(login), _) => match login.split_once(':') {
            Some((user, password)) => (decoded(user)?, Some(Secret::new(decoded(password)?))),
            None => (decoded(login)?, None),
        },
        (None, Some(first)) => (first.user.clone(), first.password.clone()),
        (None, None) => ("guest".into(), None),
    };
    Ok(Some(Broker { host, port, user, password }))
}

fn decoded(text: &str) -> Result<String, UrlError> {
    percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| UrlError::Decoding)
}

impl Brokers {
    /// Every host has a password, from here on.
    pub fn with_password(mut self, password: &Secret) -> Brokers {
        for broker in &mut self.list {
            broker.password.get_or_insert_with(|| password.clone());
        }
        self
    }

    /// The user of the first host that has no password.
    pub fn without_password(&self) -> Option<&str> {
        self.list.iter().find(|broker| broker.password.is_none()).map(|broker| broker.user.as_str())
    }

    /// One of them for people: no user, no password.
    pub fn label(&self, idx: usize) -> String {
        let broker = &self.list[idx % self.list.len()];
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let v6 = broker.host.contains(':');
        let (open, close) = if v6 { ("[", "]") } else { ("", "") };
        format!("{scheme}://{open}{}{close}:{}", broker.host, broker.port)
    }
}

impl fmt::Display for Brokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = (0..self.list.len()).map(|idx| self.label(idx)).collect();
        f.write_str(&labels.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Brokers {
        text.parse().unwrap()
    }

    #[test]
    fn transport_urls_are_read_as_oslo_reads_them() {
        let brokers = parse("rabbit://nova:s%40cret@h1:5673,neutron:x@[::1],h3/cloud%2f1");
        assert_eq!(brokers.to_string(), "amqp://h1:5673,amqp://[::1]:5672,amqp://h3:5672");
        let logins: Vec<_> = brokers.list.iter().map(|b| (b.user.as_str(), b.password.clone())).collect();
        let secret = |text| Some(Secret::new(text));
        assert_eq!(
            logins,
            [("nova", secret("s@cret")), ("neutron", secret("x")), ("nova", secret("s@cret"))]
        );
        assert_eq!((brokers.vhost.as_str(), brokers.tls), ("cloud/1", false));
        assert_eq!(parse("rabbit://u:p@h").vhost, "/");
        assert_eq!(parse("rabbit://u:p@h/").vhost, "/");
        assert_eq!(parse("rabbit://u:p@h//").vhost, "/");
        assert_eq!(parse("amqps://h").to_string(), "amqps://h:5671");
        assert!(parse("rabbit://u:p@h:5671/?ssl=1").tls);
    }

    #[test]
    fn passwords_from_elsewhere_go_to_hosts_without_one_and_are_never_shown() {
        let brokers = parse("rabbit://a@h1,b:inline@h2/v").with_password(&Secret::new("hunter2"));
        assert_eq!(brokers.without_password(), None);
        let reveal = |i: usize| brokers.list[i].password.as_ref().unwrap().reveal().to_string();
        assert_eq!((reveal(0), reveal(1)), ("hunter2".into(), "inline".into()));
        let shown = format!("{brokers} {brokers:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("inline"), "{shown}");
        assert_eq!(parse("rabbit://a@h1").without_password(), Some("a"));
    }

    #[test]
    fn malformed_urls_are_refused_without_showing_them() {
        for (text, want) in [
            ("h1:5672", UrlError::Scheme),
            ("http://u:secret@h1", UrlError::Scheme),
            ("rabbit://", UrlError::Host(1)),
            ("rabbit://u:secret@h1,/v", UrlError::Host(2)),
            ("rabbit://u:secret@h1:0", UrlError::Host(1)),
            ("rabbit://u:secret@h1:99999/v", UrlError::Host(1)),
            ("rabbit://u:secret@h1/v?heartbeat=secret", UrlError::Option("heartbeat".into())),
            ("rabbit://u:%ff@h1", UrlError::Decoding),
        ] {
            let error = text.parse::<Brokers>().unwrap_err();
            assert_eq!(error, want, "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
