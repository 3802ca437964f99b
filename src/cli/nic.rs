//! The commands for this machine's NICs.

use clap::{Args, Subcommand};
use spp_drivers::pci::PciAddress;

use super::NodeAddress;

/// `spp nic`
#[derive(Debug, Subcommand)]
pub enum Nic {
    /// List the network devices of this machine
    List(NicList),
    /// Print all counters of a NIC of the running node
    Stats(NicStats),
    /// Give a NIC to vfio-pci, so that spp can drive it
    Bind(NicBind),
    /// Give a NIC back to the driver it had
    Unbind(NicUnbind),
}

const NIC_LIST_EXAMPLES: &str = "\
Examples:
  spp nic list
  spp nic list --json

spp driver says who would drive the card in spp, or - where spp can't; link is the kernel's word, or that of the
running node for the cards it has.";

/// `spp nic list`
#[derive(Debug, Args)]
#[command(after_help = NIC_LIST_EXAMPLES)]
pub struct NicList {
    #[command(flatten)]
    pub node: NodeAddress,
    /// Print the list as JSON
    #[arg(long)]
    pub json: bool,
}

const NIC_STATS_EXAMPLES: &str = "\
Examples:
  spp nic stats phy:0
  spp nic stats phy:0 --json

Queue counters first, with drops by reason; then the card's own, by the names of its datasheet. All count since the
node started. Counters that are zero are left out without --json.";

/// `spp nic stats`
#[derive(Debug, Args)]
#[command(after_help = NIC_STATS_EXAMPLES)]
pub struct NicStats {
    /// The NIC's port, as `spp status` shows it: phy:0
    #[arg(value_name = "PORT")]
    pub port: String,
    #[command(flatten)]
    pub node: NodeAddress,
    /// Print the counters as JSON
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
