//! The commands for this machine's NICs.

use clap::{Args, Subcommand};
use spp_drivers::pci::PciAddress;

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
