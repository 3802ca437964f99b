//! The commands that work on a host's keys in etcd, and need no node.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use spp_agent::{Endpoints, Name};
use spp_drivers::MacAddr;

use super::unicast_mac;
use crate::access::EtcdAccess;
use crate::fail::Failure;

const BIND_EXAMPLES: &str = "\
Examples:
  spp bind web1 --etcd http://10.0.0.1:2379 --host compute1 --phys phys1 --mac fa:16:3e:00:00:01
  spp bind db1 --etcd http://10.0.0.1:2379 --host compute1 --phys phys1 --mac fa:16:3e:00:00:02 --vlan 100 --json

Takes a free vhost of the host and waits until its agent has wired it. The VM then listens on the socket that is
printed. When the agent does not answer in time, or on SIGINT, everything is taken back.";

/// `spp bind`
#[derive(Debug, Args)]
#[command(after_help = BIND_EXAMPLES)]
pub struct Bind {
    /// A name for the port that no other port of the host has
    #[arg(value_name = "PORT-ID", value_parser = Name::new)]
    pub port: Name,
    /// Whose keys.
    #[command(flatten)]
    pub keys: HostKeys,
    /// Physical network: one of the host's NICs has it
    #[arg(long, value_name = "NAME", value_parser = Name::new)]
    pub phys: Name,
    /// The VM's MAC address
    #[arg(long, value_name = "MAC", value_parser = unicast_mac)]
    pub mac: MacAddr,
    /// VLAN id of its network; without it the network is flat
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,
    /// How long to wait for the host's agent, in seconds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub wait_s: u64,
    /// The host's directory of vhost-user sockets, for the path that is printed
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub vhost_dir: PathBuf,
}

const UNBIND_EXAMPLES: &str = "\
Examples:
  spp unbind web1 --etcd http://10.0.0.1:2379 --host compute1";

/// `spp unbind`
#[derive(Debug, Args)]
#[command(after_help = UNBIND_EXAMPLES)]
pub struct Unbind {
    /// The port's name
    #[arg(value_name = "PORT-ID", value_parser = Name::new)]
    pub port: Name,
    /// Whose keys.
    #[command(flatten)]
    pub keys: HostKeys,
    /// How long to wait for the host's agent, in seconds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub wait_s: u64,
}

/// `spp config`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Write the configuration and a key for each vhost, as devstack does
    Put(ConfigPut),
    /// Show all keys of the host
    Show(ConfigShow),
    /// Remove all keys of the host
    Destroy(ConfigDestroy),
}

/// Whose keys.
#[derive(Debug, Args)]
pub struct HostKeys {
    /// etcd members, separated by commas
    #[arg(long, value_name = "URL[,URL...]", env = "SPP_ETCD")]
    pub etcd: Endpoints,
    /// The host's name in the keys: neutron's and nova's name for it
    #[arg(long, value_name = "NAME", env = "SPP_HOST", value_parser = Name::new)]
    pub host: Name,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// How etcd is reached.
    #[command(flatten)]
    pub access: EtcdAccess,
}

impl HostKeys {
    /// The cluster, with all that is needed to be let in.
    pub fn endpoints(&self) -> Result<Endpoints, Failure> {
        self.access.to(&self.etcd)
    }
}

const PUT_EXAMPLES: &str = "\
Examples:
  spp config put --etcd http://10.0.0.1:2379 --host compute1 '00:04.0#phys1#2#0xfe'
  spp config put --etcd http://10.0.0.1:2379 --host compute1 '00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02' --list-form
  spp config put --etcd http://10.0.0.1:2379 --host compute1 '00:04.0#phys1#2#0xfe' --mirrors 8,9

MAPPINGS: PCI address # physical network # number of vhosts # core mask, for each NIC, separated by commas.";

/// `spp config put`
#[derive(Debug, Args)]
#[command(after_help = PUT_EXAMPLES)]
pub struct ConfigPut {
    /// Whose keys.
    #[command(flatten)]
    pub keys: HostKeys,
    /// The NICs
    #[arg(value_name = "MAPPINGS")]
    pub mappings: String,
    /// Write the list of the architecture document, not the later form with components
    #[arg(long, conflicts_with = "mirrors")]
    pub list_form: bool,
    /// A mirror on each of these cores, for taps (TaaS); cores of NICs may be given, at the price of speed
    #[arg(long, value_name = "CORE[,CORE...]", value_delimiter = ',')]
    pub mirrors: Vec<usize>,
    /// Take vhosts and mirrors away from ports and taps that use them
    #[arg(long)]
    pub force: bool,
}

const SHOW_EXAMPLES: &str = "\
Examples:
  spp config show --etcd http://10.0.0.1:2379 --host compute1
  spp config show --etcd http://10.0.0.1:2379 --host compute1 --json
  SPP_ETCD_PASSWORD=... spp config show --etcd https://etcd1 --host compute1 --etcd-ca ca.pem --etcd-user spp";

/// `spp config show`
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub struct ConfigShow {
    /// Whose keys.
    #[command(flatten)]
    pub keys: HostKeys,
}

const DESTROY_EXAMPLES: &str = "\
Examples:
  spp config destroy --etcd http://10.0.0.1:2379 --host compute1";

/// `spp config destroy`
#[derive(Debug, Args)]
#[command(after_help = DESTROY_EXAMPLES)]
pub struct ConfigDestroy {
    /// Whose keys.
    #[command(flatten)]
    pub keys: HostKeys,
}
