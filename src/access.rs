//! How etcd is reached, by every command that talks to it; and how neutron's broker is, by `spp run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use spp_agent::heartbeat::url::Brokers;
use spp_agent::{Endpoints, HeartbeatConfig, Name, NameFiles, NodeKey, Root, Secret, TlsFiles};

use crate::fail::{Failure, chain};

/// The variable that may hold the password of `--etcd-user`.
const PASSWORD_VARIABLE: &str = "SPP_ETCD_PASSWORD";

/// The variable that may hold the password of the users in `--amqp`.
const AMQP_PASSWORD_VARIABLE: &str = "SPP_AMQP_PASSWORD";

/// How etcd lets us in, and where the keys are.
#[derive(Debug, Args)]
#[command(next_help_heading = "etcd")]
pub struct EtcdAccess {
    /// CA that signed the members' certificates, for https:// (PEM)
    #[arg(long, value_name = "FILE", env = "SPP_ETCD_CA")]
    pub etcd_ca: Option<PathBuf>,
    /// Our certificate for etcd (PEM)
    #[arg(long, value_name = "FILE", env = "SPP_ETCD_CERT", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", env = "SPP_ETCD_KEY", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// Log in as this user; the password is in --etcd-password-file or in the variable SPP_ETCD_PASSWORD
    #[arg(long, value_name = "NAME", env = "SPP_ETCD_USER")]
    pub etcd_user: Option<String>,
    /// File with the user's password on one line
    #[arg(long, value_name = "FILE", env = "SPP_ETCD_PASSWORD_FILE")]
    pub etcd_password_file: Option<PathBuf>,
    /// What all keys start with; the control node must be told the same
    #[arg(long, value_name = "PREFIX", env = "SPP_ETCD_PREFIX", default_value = spp_agent::keys::DEFAULT_PREFIX)]
    pub etcd_prefix: Root,
}

impl EtcdAccess {
    /// The cluster, with all that is needed to be let in.
    pub fn to(&self, endpoints: &Endpoints) -> Result<Endpoints, Failure> {
        if self.etcd_ca.is_some() && !endpoints.any_tls() {
            return Err(Failure::usage(format!(
                "--etcd-ca is for https://, and {endpoints} is not: write https://"
            )));
        }
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        let tls = TlsFiles { ca: self.etcd_ca.clone(), identity };
        let endpoints = endpoints.clone().with_tls(tls).with_root(self.etcd_prefix.clone());
        match &self.etcd_user {
            None => Ok(endpoints),
            Some(user) => {
                let password = password(self.etcd_password_file.as_ref(), PASSWORD_VARIABLE)?;
                let missing = format!(
                    "--etcd-user {user} has no password: give --etcd-password-file, or set {PASSWORD_VARIABLE}"
                );
                Ok(endpoints.with_login(user, password.ok_or_else(|| Failure::usage(missing))?))
            }
        }
    }
}

/// How others are told that the node is alive.
#[derive(Debug, Args)]
#[command(next_help_heading = "Signs of life")]
pub struct SignsOfLife {
    /// Keep a key PREFIX/HOST in etcd that lasts as long as the node, such as /spp-nodes [default: none]
    #[arg(long, value_name = "PREFIX", env = "SPP_NODE_PREFIX", requires = "etcd")]
    pub node_prefix: Option<String>,
    /// Report to neutron through its RabbitMQ: neutron's transport_url, best without the passwords [default: none]
    #[arg(long, value_name = "URL", env = "SPP_AMQP", hide_env_values = true, requires = "etcd")]
    pub amqp: Option<String>,
    /// File with the password of the users in --amqp, on one line; else it is in the variable SPP_AMQP_PASSWORD
    #[arg(long, value_name = "FILE", env = "SPP_AMQP_PASSWORD_FILE")]
    pub amqp_password_file: Option<PathBuf>,
    /// CA that signed the brokers' certificates, for amqps:// (PEM)
    #[arg(long, value_name = "FILE", env = "SPP_AMQP_CA")]
    pub amqp_ca: Option<PathBuf>,
    /// Our certificate for the brokers (PEM)
    #[arg(long, value_name = "FILE", env = "SPP_AMQP_CERT", requires = "amqp_key")]
    pub amqp_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", env = "SPP_AMQP_KEY", requires = "amqp_cert")]
    pub amqp_key: Option<PathBuf>,
    /// Seconds between reports; neutron waits 75 s for one before it takes the node for dead
    #[arg(long, value_name = "SECONDS", env = "SPP_REPORT_INTERVAL", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub report_interval: u64,
}

impl SignsOfLife {
    /// The key in etcd, if one is wanted.
    pub fn node_key(&self, endpoints: &Endpoints, host: &Name) -> Result<Option<NodeKey>, Failure> {
        let Some(prefix) = self.node_prefix.as_deref().filter(|prefix| !prefix.is_empty()) else {
            return Ok(None);
        };
        let key = NodeKey::new(endpoints.clone(), prefix, host.clone(), env!("CARGO_PKG_VERSION"));
        key.map(Some).map_err(|error| Failure::usage(format!("--node-prefix: {error}")))
    }

    /// The reports to neutron, if they are wanted.
    pub fn heartbeat(&self, host: &Name) -> Result<Option<HeartbeatConfig>, Failure> {
        let Some(url) = self.amqp.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
        // Not left to the command line's parser, which would show the value, password and all.
        let brokers = url.parse::<Brokers>().map_err(|error| Failure::usage(format!("--amqp: {error}")))?;
        let brokers = match password(self.amqp_password_file.as_ref(), AMQP_PASSWORD_VARIABLE)? {
            Some(password) => brokers.with_password(&password),
            None => brokers,
        };
        if let Some(user) = brokers.without_password() {
            return Err(Failure::usage(format!(
                "the user {user} of --amqp has no password: give --amqp-password-file, or set {AMQP_PASSWORD_VARIABLE}"
            )));
        }
        if self.amqp_ca.is_some() && !brokers.tls {
            return Err(Failure::usage(
                "--amqp-ca is for TLS, and --amqp is not: write amqps://, or end it with ?ssl=1",
            ));
        }
        let identity = self.amqp_cert.clone().zip(self.amqp_key.clone());
        Ok(Some(HeartbeatConfig {
            brokers,
            tls: TlsFiles { ca: self.amqp_ca.clone(), identity },
            names: NameFiles::default(),
            host: host.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            interval: Duration::from_secs(self.report_interval),
        }))
    }
}

/// A password from a file, or from a variable: a command line is there for everybody to read.
pub fn password(file: Option<&PathBuf>, variable: &str) -> Result<Option<Secret>, Failure> {
    match file {
        Some(path) => Secret::read(path).map(Some).map_err(|error| Failure::usage(chain(&error))),
        None => Ok(std::env::var(variable).ok().filter(|text| !text.is_empty()).map(Secret::new)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn signs(args: &[&str]) -> SignsOfLife {
        let run = ["spp", "run", "--etcd", "http://a", "--host", "h"];
        let cli = Cli::try_parse_from(run.iter().chain(args)).expect("these parse");
        let Command::Run(run) = cli.command else { panic!("not run") };
        run.signs
    }

    fn refused(args: &[&str]) -> String {
        signs(args).heartbeat(&Name::new("h").unwrap()).map(|_| ()).unwrap_err().message
    }

    #[test]
    fn a_broker_url_that_is_refused_is_not_shown() {
        for url in ["http://u:hunter2@h", "rabbit://u:hunter2@h:0", "rabbit://u:hunter2@h/v?x=hunter2"] {
            let text = refused(&["--amqp", url]);
            assert!(text.starts_with("--amqp: ") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn passwords_and_tls_files_must_have_a_use() {
        assert!(refused(&["--amqp", "rabbit://nova@h"]).contains("SPP_AMQP_PASSWORD"));
        assert!(refused(&["--amqp", "rabbit://u:p@h", "--amqp-ca", "ca.pem"]).contains("amqps://"));
        let plain = Cli::try_parse_from([
            "spp",
            "config",
            "show",
            "--etcd",
            "http://a",
            "--host",
            "h",
            "--etcd-ca",
            "c",
        ]);
        let Command::Config(crate::cli::Config::Show(show)) = plain.expect("it parses").command else {
            panic!("not show")
        };
        assert!(show.keys.endpoints().unwrap_err().message.contains("write https://"));
    }

    #[test]
    fn signs_of_life_are_off_unless_asked_for() {
        let host = Name::new("h").unwrap();
        let endpoints: Endpoints = "http://a".parse().unwrap();
        assert!(signs(&[]).heartbeat(&host).unwrap().is_none());
        assert!(signs(&[]).node_key(&endpoints, &host).unwrap().is_none());
        let key = signs(&["--node-prefix", "/spp-nodes"]).node_key(&endpoints, &host).unwrap().unwrap();
        assert_eq!(key.key, "/spp-nodes/h");
        let on = signs(&["--amqp", "rabbit://u:p@h1,h2/v", "--report-interval", "5"]);
        assert_eq!(on.heartbeat(&host).unwrap().unwrap().interval, Duration::from_secs(5));
    }
}
