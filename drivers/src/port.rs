//! The port trait: what every NIC and every software device looks like from above.
//!
//! A [`Device`] is the control half and stays with the control thread. Starting it
//! yields queue halves, [`RxQueue`] and [`TxQueue`], which move to the cores that
//! poll them and come back when the device is stopped or re-initialised.

use std::time::Duration;

use crate::burst::Burst;
use crate::dma::{Pool, PoolCache, Tally};
use crate::lent::LentFrame;
use crate::mac::MacAddr;
use crate::offload::Offloads;
use crate::stats::SharedStats;

/// The receiving half of a queue. One thread owns it at a time: `Send`, never shared.
pub trait RxQueue: Send {
    /// Moves up to `out.room()` received packets to the end of `out`; returns how many.
    /// Takes fresh buffers from `pool`; without any it leaves packets where they are. Never blocks.
    /// A frame whose checksums the hardware has found right is [verified](crate::dma::PacketBuf::is_verified); a frame
    /// with a wrong one passes like any other and is counted.
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize;

    /// As [`rx_burst`](Self::rx_burst); tells what there is to say of what came. For a queue that looks at each packet anyway, and
    /// need not do so twice.
    fn rx_tallied(&mut self, pool: &mut PoolCache, out: &mut Burst) -> Tally {
        let first = out.len();
        self.rx_burst(pool, out);
        out.get(first..).map_or_else(Tally::default, Tally::of)
    }

    /// Moves up to a burst of received packets straight into `to`, without a buffer in between: from where they lie to where
    /// they go they are copied once. `None` when there may be packets but the first is not to be had this way, because of
    /// what it is or because `to` does not take it: then [`rx_burst`](Self::rx_burst) gets it, with whatever is to be said or counted.
    /// Packets arrive as if they had gone through buffers, in the same order and counted the same. Never blocks.
    fn rx_into(&mut self, _to: &mut dyn TxQueue) -> Option<Passed> {
        None
    }

    /// Whether the queue sees to it from now on (`on`) that one tag is taken off each frame it brings, with what
    /// [`vlan::remove_tag`](crate::vlan::remove_tag) would have made of it byte for byte; what that would refuse the queue drops with the
    /// same reason. False, from one that can't, and nothing changes: whoever asks does it. Asked when a plan comes into
    /// force, never for a packet. `on == false` is always true: frames come as they were on the wire.
    fn strip_vlan(&mut self, on: bool) -> bool {
        !on
    }

    /// Serves requests of the control side (hand-over of vrings and memory maps) without
    /// moving packets. Called every few milliseconds while no core polls this half;
    /// `rx_burst` does the same on each call.
    fn poll_control(&mut self) {}

    /// The counters of this half.
    fn stats(&self) -> SharedStats;
}

/// What [`RxQueue::rx_into`] moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Packets; none when there were none.
    pub packets: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The sending half of a queue. One thread owns it at a time: `Send`, never shared.
pub trait TxQueue: Send {
    /// Sends packets from the front of `from` and leaves what does not fit now; returns how many
    /// left `from`. A queue that can't deliver at all (link down, guest not connected) takes and
    /// frees all of them and counts each with its reason. Never blocks.
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize;

    /// As [`tx_burst`](Self::tx_burst), of a burst of which `tally` is true, for a queue that would look at each packet to find that.
    fn tx_tallied(&mut self, pool: &mut PoolCache, from: &mut Burst, _tally: &Tally) -> usize {
        self.tx_burst(pool, from)
    }

    /// Sends frames from the front of `frames`, copied from where they lie, and returns how many: those that can be sent that way
    /// now. Whoever calls sends the others with [`tx_burst`](Self::tx_burst), which knows what to do with them. Never blocks, drops nothing.
    fn tx_lent(&mut self, _frames: &[LentFrame<'_>]) -> usize {
        0
    }

    /// Work that may be left undone in frames for this queue, at this moment: whoever sends asks when it has a frame with
    /// [work](crate::dma::PacketBuf::has_offload), and does in software what is missing here. A frame with
    /// more work than that is left in `from` by `tx_burst`. A driver whose hardware can do some says so here.
    fn offloads(&mut self) -> Offloads {
        Offloads::NONE
    }

    /// As [`RxQueue::strip_vlan`]: whether the queue sees to it from now on that each frame it is given leaves with this tag (the
    /// tag control information), as [`vlan::add_tag`](crate::vlan::add_tag) would have put it on or overwritten it. `None` is always true: frames leave as they are.
    fn insert_vlan(&mut self, tag: Option<u16>) -> bool {
        tag.is_none()
    }

    /// As [`RxQueue::poll_control`]; also gives sent buffers back to the pool.
    fn poll_control(&mut self) {}

    /// The counters of this half.
    fn stats(&self) -> SharedStats;
}

/// Queue halves of a started device, index = queue number.
#[derive(Default)]
pub struct Queues {
    /// Receiving halves.
    pub rx: Vec<Box<dyn RxQueue>>,
    /// Sending halves.
    pub tx: Vec<Box<dyn TxQueue>>,
}

/// What the link is, with the reason when it is down.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Link {
    /// Frames pass. Speed in Mbit/s, 0 when the device has none.
    Up {
        /// Mbit/s.
        speed_mbps: u32,
    },
    /// No frames pass.
    Down {
        /// In words, for the operator.
        reason: String,
    },
}

impl Link {
    /// True when frames pass.
    pub fn is_up(&self) -> bool {
        matches!(self, Link::Up { .. })
    }
}

/// Whether a device still works; the control thread looks every [`HEALTH_INTERVAL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// Stop it, start it again, and traffic resumes: why, in words.
    NeedsRestart(String),
    /// It is gone for good (unplugged, all-ones): why, in words.
    Gone(String),
}

/// How often the control thread asks [`Device::health`] and [`Device::link`].
pub const HEALTH_INTERVAL: Duration = Duration::from_millis(50);

/// What a device is, for status.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// The address it was opened by: `0000:00:04.0`, `tap:t0`, `null:`.
    pub address: String,
    /// Driver name: `virtio-net`, `tap`, ...
    pub driver: &'static str,
    /// Largest frame it takes, in bytes without FCS.
    pub max_frame_bytes: u32,
    /// Rx/tx queue pairs it offers.
    pub n_queue_pairs: u16,
    /// NUMA node of the device, where known.
    pub numa_node: Option<u32>,
}

/// Why a device can't be opened or started. The text tells what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {what}{}", remedy_text(.remedy))]
pub struct PortError {
    /// The device's address.
    pub device: String,
    /// What went wrong.
    pub what: String,
    /// What the operator can do; empty when there is nothing.
    pub remedy: String,
    /// The cause below, if any.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

fn remedy_text(remedy: &str) -> String {
    if remedy.is_empty() { String::new() } else { format!(" ({remedy})") }
}

impl PortError {
    /// An error with a remedy (may be empty).
    pub fn new(device: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        PortError { device: device.into(), what: what.into(), remedy: remedy.into(), source: None }
    }

    /// Adds the cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The control half of a NIC or software device. Used by the control thread only.
pub trait Device: Send {
    /// What it is.
    fn info(&self) -> DeviceInfo;

    /// Its own MAC address, when it has one.
    fn mac(&self) -> Option<MacAddr>;

    /// The link now. Cheap enough to ask every [`HEALTH_INTERVAL`].
    fn link(&mut self) -> Link;

    /// Receives every frame on the wire (true), or only those for its own address, those of
    /// [`set_unicast`](Self::set_unicast) and group addresses.
    fn set_promiscuous(&mut self, on: bool) -> Result<(), PortError>;

    /// Unicast addresses it receives besides its own. More than the card has filters for: it receives every frame
    /// instead, and counts that (`promiscuous_fallbacks` in [`device_counters`](Self::device_counters)). A device that
    /// receives everything anyway has nothing to do.
    fn set_unicast(&mut self, _addresses: &[MacAddr]) -> Result<(), PortError> {
        Ok(())
    }

    /// Receives all group addresses (true, as it is unless told), or only broadcasts.
    fn set_all_multicast(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(())
    }

    /// VLANs whose tagged frames it receives. Only a device behind somebody else's filter (a virtual function) has to be
    /// told; the others receive those of all.
    fn set_vlans(&mut self, _vids: &[u16]) -> Result<(), PortError> {
        Ok(())
    }

    /// Resets, initialises and starts the device with `n_queue_pairs` queues that receive into
    /// buffers of `pool`, spread over them by flow (RSS) where the card can. Promiscuous mode and filters set before are restored. At most one
    /// set of queues exists at a time.
    fn start(&mut self, pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError>;

    /// Stops the device: no DMA after this returns. Takes its queues back.
    fn stop(&mut self, queues: Queues);

    /// Whether it still works.
    fn health(&mut self) -> Health {
        Health::Ok
    }

    /// The device's own counters beyond those of the queues: (name of the datasheet, value).
    fn device_counters(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
