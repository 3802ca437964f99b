//! The command line: every command, option, default and example, in one place.
//!
//! Values with a syntax of their own (PCI address, etcd endpoints) are parsed here, so that a wrong one
//! ends the command before anything is touched.

use clap::{Args, Parser, Subcommand};
use spp_agent::{Endpoints, Name};
use spp_drivers::pci::PciAddress;

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
    /// Write, show or remove a host's keys in etcd
    #[command(subcommand)]
    Config(Config),
    /// Show which core of a mask does what, before using it
    Cores(Cores),
    /// List NICs, give one to VFIO, give it back
    #[command(subcommand)]
    Nic(Nic),
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
    #[arg(long, value_name = "URL[,URL...]")]
    pub etcd: Endpoints,
    /// The host's name in the keys: neutron's and nova's name for it
    #[arg(long, value_name = "NAME", value_parser = Name::new)]
    pub host: Name,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

const PUT_EXAMPLES: &str = "\
Examples:
  spp config put --etcd http://10.0.0.1:2379 --host compute1 '00:04.0#phys1#2#0xfe'
  spp config put --etcd http://10.0.0.1:2379 --host compute1 '00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02' --list-form

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
    #[arg(long)]
    pub list_form: bool,
    /// Take vhosts away from ports that use them
    #[arg(long)]
    pub force: bool,
}

const SHOW_EXAMPLES: &str = "\
Examples:
  spp config show --etcd http://10.0.0.1:2379 --host compute1
  spp config show --etcd http://10.0.0.1:2379 --host compute1 --json";

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

/// `spp nic`
#[derive(Debug, Subcommand)]
pub enum Nic {
    /// List the network devices of this machine
    List(NicList),
    /// Give a NIC to vfio-pci, so that spp can drive it
    Bind(NicBind),
    /// Give a NIC back to the driver it had
    Unbind(NicUnbind),
}

const NIC_LIST_EXAMPLES: &str = "\
Examples:
  spp nic list
  spp nic list --json";

/// `spp nic list`
#[derive(Debug, Args)]
#[command(after_help = NIC_LIST_EXAMPLES)]
pub struct NicList {
    /// Print the list as JSON
    #[arg(long)]
    pub json: bool,
}

const NIC_BIND_EXAMPLES: &str = "\
Examples:
  spp nic bind 00:04.0
  spp nic bind 0000:00:04.0 --json

The driver it had is remembered for `spp nic unbind`. The NIC of the default route is refused without --force.";

/// `spp nic bind`
#[derive(Debug, Args)]
#[command(after_help = NIC_BIND_EXAMPLES)]
pub struct NicBind {
    /// The NIC's PCI address
    #[arg(value_name = "ADDRESS")]
    pub address: PciAddress,
    /// Bind even the NIC of the default route: the machine loses it
    #[arg(long)]
    pub force: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

const NIC_UNBIND_EXAMPLES: &str = "\
Examples:
  spp nic unbind 00:04.0";

/// `spp nic unbind`
#[derive(Debug, Args)]
#[command(after_help = NIC_UNBIND_EXAMPLES)]
pub struct NicUnbind {
    /// The NIC's PCI address
    #[arg(value_name = "ADDRESS")]
    pub address: PciAddress,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
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
        let missing = usage(&["spp", "cores"]);
        assert!(missing.contains("<MASK>...") && missing.ends_with("(see spp cores --help)"), "{missing}");
        let typo = usage(&["spp", "core"]);
        assert!(typo.contains("cores"), "{typo}");
        for line in [missing, typo] {
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
