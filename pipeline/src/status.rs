//! What a node says about itself: all that `spp status` shows, as data that can be sent and read back.
//!
//! Filled in by the control thread, [`crate::node::Node::status`]. Fields are only ever added. Every drop
//! is counted once among components and ports: the edges of a component repeat its drops, port by port.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spp_drivers::MacAddr;
use spp_drivers::dma::{PageSize, PoolCounts};
use spp_drivers::port::Link;
use spp_drivers::stats::StatsSnapshot;
use spp_vhost::memory::RegionInfo;

use crate::config::Form;
use crate::cores::CoreMask;
use crate::names::ComponentKind;
use crate::plan::VlanOp;
use crate::topology::Tap;

/// A node at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Version of spp.
    pub version: String,
    /// Since the node was started.
    pub uptime_ms: u64,
    /// Shape of the configuration it was started with.
    pub configuration_form: Form,
    /// Worker threads share CPUs.
    pub fold_cores: bool,
    /// Nothing passes from the guests of unplugged vhosts.
    pub gate_unplugged: bool,
    /// Guests of one NIC and VLAN reach each other inside the node.
    #[serde(default)]
    pub local_switching: bool,
    /// Packet memory.
    pub pool: PoolStatus,
    /// One for each NIC.
    pub vfs: Vec<VfStatus>,
    /// Mirrors of the configuration.
    #[serde(default)]
    pub mirrors: Vec<MirrorStatus>,
    /// Rings between components.
    pub rings: Vec<RingStatus>,
    /// What an operator should know, beyond the counters.
    pub warnings: Vec<String>,
}

/// Packet memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Buffers in all.
    pub buffers: u32,
    /// Buffers nobody has.
    pub free: u32,
    /// Buffers with cores and devices.
    pub out: u32,
    /// Bytes of the pages behind them.
    pub page_size_bytes: u64,
}

impl PoolStatus {
    /// From the pool's own counts.
    pub fn new(counts: PoolCounts, page: PageSize) -> PoolStatus {
        let PoolCounts { capacity, free, out } = counts;
        PoolStatus { buffers: capacity, free, out, page_size_bytes: page.bytes() as u64 }
    }
}

/// One NIC and what is behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VfStatus {
    /// Its id in the API: 1 for the first NIC.
    pub id: u32,
    /// Neutron's name of its network.
    pub physical_network: String,
    /// Its cores.
    pub core_mask: CoreMask,
    /// The master core.
    pub master_core: usize,
    /// The NIC.
    pub nic: NicStatus,
    /// Components, in order of start.
    pub components: Vec<ComponentStatus>,
    /// Vhost ports.
    pub vhosts: Vec<VhostStatus>,
}

/// Packets and drops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets moved.
    pub packets: u64,
    /// Their bytes, without FCS.
    pub bytes: u64,
    /// Drops by reason; zeros are left out.
    pub drops: BTreeMap<String, u64>,
}

impl Counters {
    /// Drops for all reasons together.
    pub fn total_drops(&self) -> u64 {
        self.drops.values().sum()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: Counters) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        for (reason, n) in other.drops {
            *self.drops.entry(reason).or_default() += n;
        }
    }
}

impl From<StatsSnapshot> for Counters {
    fn from(stats: StatsSnapshot) -> Counters {
        let drops = stats.drops.into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect();
        Counters { packets: stats.packets, bytes: stats.bytes, drops }
    }
}

/// A NIC or the software device in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStatus {
    /// `phy:0`.
    pub port: String,
    /// Queue pairs it was started with.
    #[serde(default = "one")]
    pub queue_pairs: u16,
    /// PCI address in full, or the software device's specification.
    pub address: String,
    /// Driver.
    pub driver: String,
    /// Its own address.
    pub mac: Option<MacAddr>,
    /// `running`, or why it does not: `restarting: reason`, `gone: reason`.
    pub state: String,
    /// True when frames pass.
    pub link_up: bool,
    /// `up, 10000 Mbit/s`, or `down: reason`.
    pub link: String,
    /// Times it was restarted after a fault.
    pub restarts: u64,
    /// Received from the wire.
    pub rx: Counters,
    /// Sent to the wire.
    pub tx: Counters,
    /// The device's own counters, by the names of its datasheet.
    pub device: BTreeMap<String, u64>,
}

fn one() -> u16 {
    1
}

/// A link in words.
pub fn link_text(link: &Link) -> String {
    match link {
        Link::Up { speed_mbps: 0 } => "up".to_owned(),
        Link::Up { speed_mbps } => format!("up, {speed_mbps} Mbit/s"),
        Link::Down { reason } => format!("down: {reason}"),
    }
}

/// A component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// Name.
    pub name: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: ComponentKind,
    /// The core that runs it.
    pub core: usize,
    /// `running`, `incomplete` (a port is missing), `idle` (a mirror without a tap), or `failed`.
    pub state: String,
    /// Share of its core's time in which it moved packets, over the last second.
    pub busy_percent: f32,
    /// Packets taken.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets made of others: copies of group frames, of mirrors, and all but the last segment of a long frame.
    pub copies: u64,
    /// Long frames cut into segments in software, because their receiver can't.
    #[serde(default)]
    pub segmented: u64,
    /// Checksums completed in software, because their receiver can't.
    #[serde(default)]
    pub checksummed: u64,
    /// Packets waiting for a full output now.
    pub held: u64,
    /// Drops by reason, at all of its edges together.
    pub drops: BTreeMap<String, u64>,
    /// Inputs.
    pub rx: Vec<EdgeStatus>,
    /// Outputs.
    pub tx: Vec<EdgeStatus>,
}

/// A port of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    /// The port.
    pub port: String,
    /// `none`, `add 100 pcp 0` or `del`.
    pub vlan: String,
    /// Frames are taken and dropped, since the guest's vhost is not plugged.
    pub closed: bool,
    /// What passed here.
    pub counters: Counters,
}

/// A tag operation in words.
pub fn vlan_text(vlan: VlanOp) -> String {
    match vlan {
        VlanOp::None => "none".to_owned(),
        VlanOp::Add { vid, pcp } => format!("add {vid} pcp {pcp}"),
        VlanOp::Del => "del".to_owned(),
    }
}

/// A vhost port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostStatus {
    /// Its id, counted over all NICs.
    pub id: u32,
    /// `vhost:0`.
    pub port: String,
    /// Its socket.
    pub socket: PathBuf,
    /// `client` or `server`.
    pub role: String,
    /// `waiting`, `connected`, `negotiated`, `running` or `failed: reason`.
    pub state: String,
    /// What it waits for; empty when it runs.
    pub detail: String,
    /// The last failure, also after recovery.
    pub last_failure: Option<String>,
    /// Connections after the first.
    pub reconnects: u64,
    /// Bugs of ours in the port's code, each contained at the cost of a connection.
    #[serde(default)]
    pub panics: u64,
    /// What the frontend told the guest to be the longest packet, in bytes without Ethernet header.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Negotiated virtio features, by name.
    pub features: Vec<String>,
    /// What is plugged.
    pub plug: Option<PlugStatus>,
    /// Queue pairs the guest has set up, up to the last one.
    #[serde(default)]
    pub queues: Vec<QueueStatus>,
    /// Sent to the guest.
    pub to_guest: Counters,
    /// Received from the guest.
    pub from_guest: Counters,
    /// Times it was reset because its code panicked.
    #[serde(default)]
    pub resets: u64,
    /// The guest's memory the node has mapped.
    #[serde(default)]
    pub memory: Vec<MemoryStatus>,
}

/// A region of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Its first address in the guest.
    pub guest_address: u64,
    /// Bytes.
    pub len_bytes: u64,
}

impl From<RegionInfo> for MemoryStatus {
    fn from(region: RegionInfo) -> MemoryStatus {
        MemoryStatus { guest_address: region.gpa, len_bytes: region.len_bytes }
    }
}

/// A queue pair of a vhost port, by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// To the guest.
    pub to_guest: RingUse,
    /// From the guest.
    pub from_guest: RingUse,
}

/// One direction of a queue pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingUse {
    /// Polled and enabled.
    pub running: bool,
    /// Frames moved.
    pub packets: u64,
    /// The component that has it; none while nobody does.
    pub component: Option<String>,
}

/// A plug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlugStatus {
    /// The guest's address.
    pub mac: MacAddr,
    /// Its VLAN.
    pub vlan: Option<u16>,
}

/// A mirror.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// Its number in the configuration.
    pub id: u32,
    /// What it is used for.
    pub tap: Option<Tap>,
    /// What passed it.
    pub component: ComponentStatus,
}

/// A ring between components.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingStatus {
    /// `ring:0`.
    pub port: String,
    /// Packets it holds at most.
    pub slots: u64,
    /// Packets in it, give or take a burst.
    pub depth: u64,
    /// The component that sends into it.
    pub from: Option<String>,
    /// The component that receives from it.
    pub to: Option<String>,
    /// Packets that went in.
    pub packets: u64,
    /// Both components are on one core, which hands bursts over: the ring only takes what piles up.
    #[serde(default)]
    pub fused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_tags_read_as_words() {
        assert_eq!(link_text(&Link::Up { speed_mbps: 0 }), "up");
        assert_eq!(link_text(&Link::Up { speed_mbps: 10_000 }), "up, 10000 Mbit/s");
        assert_eq!(link_text(&Link::Down { reason: "no cable".into() }), "down: no cable");
        assert_eq!(vlan_text(VlanOp::Add { vid: 100, pcp: 3 }), "add 100 pcp 3");
    }
}
