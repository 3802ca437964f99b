//! What the packet-path tests share: frames, rings as ports, edges with counters.
#![allow(dead_code)] // each test binary uses its part

use std::time::Duration;

use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::ring_port::{RingRx, RingTx, packet_ring};
use spp_drivers::stats::{DropReason, QueueStats, SharedStats};
use spp_drivers::{Burst, MacAddr, tsc};
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use spp_pipeline::table::{Dst, Table, TableBuilder};

/// Long enough for a loaded machine; no test waits that long when things work.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn pool(n_buffers: u32) -> Pool {
    Pool::new(&DmaSpace::new(), PoolConfig { n_buffers }).unwrap()
}

pub fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

/// A tag as (TPID, TCI).
pub type Tag = (u16, u16);

pub fn tag(vid: u16) -> Tag {
    (0x8100, vid)
}

/// A frame of `len` bytes with these tags; `mark` is at the start of its payload.
pub fn frame(dst: MacAddr, tags: &[Tag], len: usize, mark: u32) -> Vec<u8> {
    let mut bytes = dst.0.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 0xee]);
    for (tpid, tci) in tags {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend([0x88, 0xb5]);
    bytes.extend(mark.to_be_bytes());
    let from = bytes.len();
    bytes.extend((from..len.max(from)).map(|i| i as u8));
    bytes
}

/// Tags and mark of a frame made by [`frame`].
pub fn tags_and_mark(frame: &[u8]) -> (Vec<Tag>, u32) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (mut at, mut tags) = (12, Vec::new());
    while matches!(word(at), 0x8100 | 0x88a8) {
        tags.push((word(at), word(at + 2)));
        at += 4;
    }
    assert_eq!(word(at), 0x88b5, "{frame:02x?}");
    (tags, u32::from_be_bytes(frame[at + 2..at + 6].try_into().unwrap()))
}

/// Puts bytes into buffers, in as many segments as they need.
pub fn packet(cache: &mut PoolCache, bytes: &[u8]) -> PacketBuf {
    let mut packet = cache.alloc().unwrap();
    let (first, rest) = bytes.split_at(bytes.len().min(packet.tailroom()));
    packet.append(first).unwrap();
    for piece in rest.chunks(2048) {
        let mut segment = cache.alloc().unwrap();
        segment.append(piece).unwrap();
        packet.last_segment_mut().chain(segment);
    }
    packet
}

pub fn bytes(packet: &PacketBuf) -> Vec<u8> {
    packet.segments().flatten().copied().collect()
}

/// The outside of an input: what a guest or NIC would be.
pub struct Source(pub RingTx);

impl Source {
    /// Sends one frame; false when the ring is full.
    pub fn send(&mut self, cache: &mut PoolCache, bytes: &[u8]) -> bool {
        let mut burst = Burst::new();
        burst.push(packet(cache, bytes)).unwrap();
        self.0.tx_burst(cache, &mut burst) == 1
    }
}

/// The outside of an output.
pub struct Sink(pub RingRx);

impl Sink {
    /// All frames there are now.
    pub fn drain(&mut self, cache: &mut PoolCache) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut burst = Burst::new();
            if self.0.rx_burst(cache, &mut burst) == 0 {
                return frames;
            }
            frames.extend(burst.iter().map(bytes));
            burst.free_all(cache);
        }
    }

    pub fn marks(&mut self, cache: &mut PoolCache) -> Vec<u32> {
        self.drain(cache).iter().map(|frame| tags_and_mark(frame).1).collect()
    }
}

pub fn source(slots: usize) -> (Source, Box<dyn RxQueue>) {
    let (tx, rx) = packet_ring(slots);
    (Source(tx), Box::new(rx))
}

pub fn sink(slots: usize) -> (Sink, Box<dyn TxQueue>) {
    let (tx, rx) = packet_ring(slots);
    (Sink(rx), Box::new(tx))
}

pub fn rx_edge(slot: u16, vlan: VlanOp) -> RxEdge {
    RxEdge { slot: RxSlot(slot), vlan, closed: false, from: Default::default(), stats: QueueStats::shared() }
}

pub fn tx_edge(slot: u16, vlan: VlanOp, full: WhenFull) -> TxEdge {
    TxEdge { slot: TxSlot(slot), vlan, full, guest: None, sharing: None, stats: QueueStats::shared() }
}

pub const DROP: WhenFull = WhenFull::Drop(DropReason::RingFull);

/// Waits practically for ever.
pub const WAIT: WhenFull = WhenFull::Wait { limit_ticks: u64::MAX, then: DropReason::GuestRingFull };

pub fn wait_for(limit: Duration) -> WhenFull {
    WhenFull::Wait { limit_ticks: tsc::ticks(limit), then: DropReason::GuestRingFull }
}

pub fn component(name: &str, work: Work) -> ComponentPlan {
    ComponentPlan { name: name.to_owned(), work, stats: ComponentStats::shared() }
}

pub fn plan(generation: u64, components: Vec<ComponentPlan>) -> CorePlan {
    CorePlan { generation, components, ..CorePlan::default() }
}

/// A table from (VLAN, MAC text or "default", output).
pub fn table(entries: &[(Option<u16>, &str, usize)]) -> Table {
    let mut builder = TableBuilder::new();
    for &(vid, dst, tx) in entries {
        let dst = if dst == "default" { Dst::Default } else { Dst::Mac(mac(dst)) };
        builder.add(vid, dst, tx).unwrap();
    }
    builder.build()
}

/// Drops for one reason at an edge.
pub fn drops(stats: &SharedStats, reason: DropReason) -> u64 {
    stats.drops(reason)
}
