//! How etcd is reached: the options every command that talks to etcd shares.

use std::path::PathBuf;

use clap::Args;
use spp_agent::{Endpoints, Root, Secret, TlsFiles};

use crate::fail::{Failure, chain};

/// The variable that may hold the password of `--etcd-user`.
const PASSWORD_VARIABLE: &str = "SPP_ETCD_PASSWORD";

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

/// A password from a file, or from a variable: a command line is there for everybody to read.
pub fn password(file: Option<&PathBuf>, variable: &str) -> Result<Option<Secret>, Failure> {
    match file {
        Some(path) => Secret::read(path).map(Some).map_err(|error| Failure::usage(chain(&error))),
        None => Ok(std::env::var(variable).ok().filter(|text| !text.is_empty()).map(Secret::new)),
    }
}
