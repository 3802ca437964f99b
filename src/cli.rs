//! The command line: every command, option, default and example, in one place.
//!
//! Values with a syntax of their own (MAC, VLAN, API address) are parsed here, so that a wrong one
//! ends the command before anything is touched.

mod etcd;
mod nic;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use spp_agent::{Endpoints, Name};
use spp_drivers::MacAddr;
use spp_pipeline::idle::IdlePolicy;

use crate::access::{EtcdAccess, SignsOfLife};

pub use etcd::*;
pub use nic::*;

/// Where the node's API is by default.
pub const DEFAULT_API: &str = "unix:/run/spp/api.sock";

/// The packet plane of a compute node.
#[derive(Debug, Parser)]
#[command(name = "spp", version, about, long_about = ABOUT, after_help = EXIT_CODES, propagate_version = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const ABOUT: &str = "The packet plane of a compute node: NICs through VFIO, VMs through vhost-user, \
classifier, merge and forward components between them on pinned cores, wired from etcd. No DPDK, no kernel module, one binary.";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 the node or etcd can't be reached, \
4 the node refused, 5 the configuration can't be used.";

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node until SIGTERM or SIGINT
    Run(Box<Run>),
    /// Show what the running node is doing
    Status(Status),
    /// Show what the agent does about etcd, or start it anew
    #[command(subcommand)]
    Agent(Agent),
    /// Wire a VM to its network, on a node that runs without etcd
    Plug(Plug),
    /// Undo the wiring of a VM, on a node that runs without etcd
    Unplug(Unplug),
    /// Give a VM a place on a host, through etcd, as neutron does
    Bind(Bind),
    /// Take it back
    Unbind(Unbind),
    /// Write, show or remove a host's keys in etcd
    #[command(subcommand)]
    Config(Config),
    /// Show which core of a mask does what, before using it
    Cores(Cores),
    /// List NICs, give one to VFIO, give it back
    #[command(subcommand)]
    Nic(Nic),
    /// Prove that packets flow: a node, a wire and two guests inside this process
    Demo(Demo),
}

const RUN_EXAMPLES: &str = "\
Examples:
  spp run --etcd http://10.0.0.1:2379 --host compute1
  spp run --etcd http://10.0.0.1:2379,http://10.0.0.2:2379 --host compute1 --api tcp:127.0.0.1:7777
  spp run --etcd https://etcd1,https://etcd2 --host compute1 --etcd-ca ca.pem --etcd-cert spp.pem --etcd-key spp.key
  spp run --etcd https://etcd1 --host compute1 --etcd-ca ca.pem --etcd-user spp --etcd-password-file /etc/spp/etcd.password
  spp run --etcd http://10.0.0.1:2379 --host compute1 --amqp rabbit://openstack@10.0.0.1:5672,openstack@10.0.0.2:5672/ --amqp-password-file /etc/spp/amqp.password
  spp run --config node.json --fold-cores --vhost-dir /run/spp --api unix:/run/spp/api.sock

node.json holds what the etcd key holds:
  [{\"num_vhost\": 2, \"pci_address\": \"00:04.0\", \"physical_network\": \"phys1\", \"core_mask\": \"0xfe\"}]
Components that share one guest by its queues are named there one by one, with ports like vhost:0nq1 (docs/port.md).";

/// `spp run`
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct Run {
    /// etcd members, separated by commas; their configuration and port keys are served
    #[arg(
        long,
        value_name = "URL[,URL...]",
        env = "SPP_ETCD",
        required_unless_present = "config",
        requires = "host"
    )]
    pub etcd: Option<Endpoints>,
    /// This host's name in the keys: neutron's and nova's name for it
    #[arg(long, value_name = "NAME", env = "SPP_HOST", requires = "etcd", value_parser = Name::new)]
    pub host: Option<Name>,
    /// Read the node's configuration from a file instead, without etcd
    #[arg(long, value_name = "FILE", conflicts_with_all = ["etcd", "host"])]
    pub config: Option<PathBuf>,
    /// Directory of the vhost-user sockets `sock<vhost id>`
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub vhost_dir: PathBuf,
    /// Who listens on those sockets: the VM (client), or spp (server)
    #[arg(long, value_name = "MODE", value_enum, default_value_t = VhostMode::Client)]
    pub vhost_mode: VhostMode,
    /// Directory of what the next start of spp must know: what each VM was offered, so that an
    /// upgrade never withdraws it
    #[arg(long, value_name = "DIR", default_value = "/run/spp")]
    pub state_dir: PathBuf,
    /// Run any core mask on the CPUs there are: two threads for each NIC, one to its guests and one from them, not
    /// pinned, which yield when idle
    #[arg(long)]
    pub fold_cores: bool,
    /// What cores do while there are no packets: spin (fastest), pause (leaves the core's other thread more), or
    /// sleep-max=US (sleep up to so many microseconds, which a first packet then waits)
    #[arg(
        long,
        value_name = "spin|pause|sleep-max=US",
        default_value = "spin",
        conflicts_with = "fold_cores"
    )]
    pub idle: IdlePolicy,
    /// Send what guests of one NIC and VLAN send each other to the wire too, as SPP does, and not from guest to guest inside
    #[arg(long)]
    pub no_local_switching: bool,
    /// Where to serve the HTTP API; may be given several times [default: unix:/run/spp/api.sock]
    #[arg(long, value_name = "unix:PATH|tcp:IP:PORT")]
    pub api: Vec<ApiAddress>,
    /// Let `--api tcp:` listen beyond loopback: whoever reaches the port controls the node
    #[arg(long)]
    pub api_allow_remote: bool,
    /// How much to log on stderr
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    /// How etcd is reached.
    #[command(flatten)]
    pub access: EtcdAccess,
    /// How others are told that the node is alive.
    #[command(flatten)]
    pub signs: SignsOfLife,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  spp status
  spp status --json | jq '.vfs[].vhosts'
  spp status --api tcp:127.0.0.1:7777";

/// `spp status`
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct Status {
    /// Print the node's status object
    #[arg(long)]
    pub json: bool,
    /// The node.
    #[command(flatten)]
    pub node: NodeAddress,
}

/// `spp agent`
#[derive(Debug, Subcommand)]
pub enum Agent {
    /// Show what etcd wants, what runs, and what differs and why
    Status(AgentStatus),
    /// Start the agent anew, from etcd and from what is wired; traffic goes on
    Restart(AgentRestart),
}

const AGENT_STATUS_EXAMPLES: &str = "\
Examples:
  spp agent status
  spp agent status --json | jq '.ports[] | select(.wanted != .live)'
  spp agent status > /dev/null || echo 'not as etcd wants it'

Exit codes: 0 all is as etcd wants it, 1 something differs or there is no connection to etcd, 3 no node at that --api, \
4 the node has no agent.";

/// `spp agent status`
#[derive(Debug, Args)]
#[command(after_help = AGENT_STATUS_EXAMPLES)]
pub struct AgentStatus {
    /// Print the agent's status object
    #[arg(long)]
    pub json: bool,
    /// The node.
    #[command(flatten)]
    pub node: NodeAddress,
}

const AGENT_RESTART_EXAMPLES: &str = "\
Examples:
  spp agent restart
  spp agent restart --api tcp:127.0.0.1:7777";

/// `spp agent restart`
#[derive(Debug, Args)]
#[command(after_help = AGENT_RESTART_EXAMPLES)]
pub struct AgentRestart {
    /// The node.
    #[command(flatten)]
    pub node: NodeAddress,
}

const PLUG_EXAMPLES: &str = "\
Examples:
  spp plug --vhost 0 --mac fa:16:3e:00:00:01
  spp plug --vhost 1 --mac fa:16:3e:00:00:02 --vlan 100";

/// `spp plug`
#[derive(Debug, Args)]
#[command(after_help = PLUG_EXAMPLES)]
pub struct Plug {
    /// Vhost id, as in the socket's name `sock<N>`
    #[arg(long, value_name = "N")]
    pub vhost: u32,
    /// The VM's MAC address
    #[arg(long, value_name = "MAC", value_parser = unicast_mac)]
    pub mac: MacAddr,
    /// VLAN id of its network; without it the network is flat
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// The node.
    #[command(flatten)]
    pub node: NodeAddress,
}

const UNPLUG_EXAMPLES: &str = "\
Examples:
  spp unplug --vhost 0";

/// `spp unplug`
#[derive(Debug, Args)]
#[command(after_help = UNPLUG_EXAMPLES)]
pub struct Unplug {
    /// Vhost id, as in the socket's name `sock<N>`
    #[arg(long, value_name = "N")]
    pub vhost: u32,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// The node.
    #[command(flatten)]
    pub node: NodeAddress,
}

const CORES_EXAMPLES: &str = "\
Examples:
  spp cores 0xfe
  spp cores 0xfe 0xfc02 --vhosts 2 2
  spp cores '00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02' --json";

/// `spp cores`
#[derive(Debug, Args)]
#[command(after_help = CORES_EXAMPLES)]
pub struct Cores {
    /// Core masks, one for each NIC, or the mappings `spp config put` takes
    #[arg(value_name = "MASK", required = true)]
    pub masks: Vec<String>,
    /// Number of vhosts of each mask [default: as many as it has cores for]
    #[arg(long, value_name = "N", num_args = 1.., value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub vhosts: Vec<u32>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

const DEMO_EXAMPLES: &str = "\
Examples:
  spp demo
  spp demo --seconds 60
  spp demo --seconds 1 --json

Needs no root, etcd, huge pages, NIC or VM. Exits 0 only if every frame arrived once, in order, at the right place.";

/// `spp demo`
#[derive(Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub struct Demo {
    /// How long to pass traffic
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Print only the result object
    #[arg(long)]
    pub json: bool,
}

/// How a command finds the running node.
#[derive(Debug, Args)]
pub struct NodeAddress {
    /// The node's API
    #[arg(long, value_name = "unix:PATH|tcp:IP:PORT", env = "SPP_API", default_value = DEFAULT_API)]
    pub api: ApiAddress,
}

/// Who listens on the vhost-user sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VhostMode {
    /// The VM listens, spp connects (what OpenStack asks QEMU for)
    Client,
    /// spp listens, the VM connects
    Server,
}

/// How much to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures only
    Error,
    /// And what looks wrong
    Warn,
    /// And what changes
    Info,
    /// And why
    Debug,
    /// Everything
    Trace,
}

/// Where the API is: `unix:PATH` or `tcp:IP:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP socket.
    Tcp(SocketAddr),
}

impl FromStr for ApiAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(ApiAddress::Unix(PathBuf::from(path)));
        }
        let address = text.strip_prefix("tcp:").and_then(|rest| rest.parse().ok());
        address
            .map(ApiAddress::Tcp)
            .ok_or_else(|| "write unix:/run/spp/api.sock or tcp:127.0.0.1:7777".into())
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ApiAddress::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A MAC address a VM can have: not a group address, not all zero.
fn unicast_mac(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error| format!("{error}"))?;
    if mac.is_group() {
        return Err("it is a multicast address: give the VM's own".into());
    }
    if mac.0 == [0; 6] {
        return Err("the all-zero address belongs to nobody: give the VM's own".into());
    }
    Ok(mac)
}

/// What `spp: ...` says for a command line clap refuses: its first paragraph on one line, and where to look.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n");
    let what = super::fail::one_line(paragraphs.next().unwrap_or_default());
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    let tip = paragraphs.find_map(|p| p.trim().strip_prefix("tip: ")).map(super::fail::one_line);
    let help =
        text.lines().find_map(|line| line.strip_prefix("Usage: ")).map(command_words).unwrap_or("spp".into());
    let tip = tip.map(|tip| format!("; {tip}")).unwrap_or_default();
    format!("{what}{tip} (see {help} --help)")
}

/// `spp plug [OPTIONS] --vhost <N>` -> `spp plug`.
fn command_words(usage: &str) -> String {
    let words = usage.split(' ').take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn usage(args: &[&str]) -> String {
        usage_line(&Cli::try_parse_from(args).unwrap_err())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let has_children = sub.get_subcommands().next().is_some();
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(
                    has_children || help.contains("Examples:\n  spp "),
                    "{} has no examples",
                    sub.get_name()
                );
                check(sub);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn wrong_command_lines_become_one_line_with_the_place_to_look() {
        let missing = usage(&["spp", "plug", "--vhost", "0"]);
        assert!(missing.contains("--mac <MAC>") && missing.ends_with("(see spp plug --help)"), "{missing}");
        let group = usage(&["spp", "plug", "--vhost", "0", "--mac", "01:00:5e:00:00:01"]);
        assert!(group.contains("multicast"), "{group}");
        let vlan = usage(&["spp", "plug", "--vhost", "0", "--mac", "2:0:0:0:0:1", "--vlan", "4095"]);
        assert!(vlan.contains("4095") && vlan.contains("1..=4094"), "{vlan}");
        for line in [missing, group, vlan, usage(&["spp", "run"]), usage(&["spp", "stauts"])] {
            assert!(!line.contains('\n'), "{line}");
        }
        assert!(usage(&["spp", "stauts"]).contains("status"));
    }

    #[test]
    fn run_wants_either_etcd_with_host_or_a_file() {
        assert!(Cli::try_parse_from(["spp", "run", "--etcd", "http://a:2379"]).is_err());
        assert!(Cli::try_parse_from(["spp", "run", "--config", "f", "--host", "h", "--etcd", "u"]).is_err());
        let cli =
            Cli::try_parse_from(["spp", "run", "--etcd", "http://a:1,http://b:2", "--host", "h"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.etcd.unwrap().to_string(), "http://a:1,http://b:2");
        assert_eq!(run.vhost_mode, VhostMode::Client);
    }

    #[test]
    fn api_addresses_round_trip_and_others_are_refused() {
        for text in ["unix:/run/spp/api.sock", "tcp:127.0.0.1:7777", "tcp:[::1]:7777"] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:7777", "tcp:localhost:7777", "/run/x", "http://127.0.0.1:1"] {
            assert!(text.parse::<ApiAddress>().is_err(), "{text}");
        }
    }
}
