//! Two guests made by hand, each with one ring in either layout, and a core between them that forwards from the one to the
//! other, copying once or through packet buffers.

#![allow(dead_code)] // each test uses its part

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use spp_drivers::Burst;
use spp_drivers::dma::PoolCache;
use spp_drivers::offload::F_NEEDS_CSUM;
use spp_drivers::port::{Passed, RxQueue, TxQueue};
use spp_drivers::stats::StatsSnapshot;
use spp_vhost::dirty::{DirtyLog, RingLog};
use spp_vhost::handover::{Command, Reply};
use spp_vhost::vring::{RingFault, RingFeatures};
use spp_vhost::{FromGuest, ToGuest};

use super::support::*;
use super::support_packed::Packed;

/// Buffers of a guest, and room for each: the longest frame and its header.
pub const N: u16 = 64;
pub const ROOM: u64 = 0x4000;
pub const LOG_BYTES: u64 = 2 * REGION / 4096 / 8;

pub fn address(id: u16) -> u64 {
    BUFFERS + ROOM * u64::from(id)
}

/// A half with its ring of 256 entries in either layout, and the guest's side of it. Chains have up to four descriptors.
pub enum Side<H> {
    Split(Bench<H>),
    /// With the number of descriptors of each chain that is with the port, 0 for the others.
    Packed(Packed<H>, [u16; N as usize]),
}

impl<H: Half + Send> Side<H> {
    pub fn new(features: RingFeatures) -> Self {
        if features.packed {
            Side::Packed(Packed::new(256, (250, true), features), [0; N as usize])
        } else {
            Side::Split(Bench::new(256, 65_530, features))
        }
    }

    pub fn offer(&mut self, id: u16, descriptors: &[(u64, u32, u16)]) {
        match self {
            Side::Split(bench) => {
                for (i, &(addr, len, flags)) in (0..).zip(descriptors) {
                    bench.memory.desc(DESC, 4 * id + i, addr, len, flags, 4 * id + i + 1);
                }
                bench.offer(4 * id);
            }
            Side::Packed(packed, lens) => {
                lens[usize::from(id)] = descriptors.len() as u16;
                packed.offer(id, descriptors);
            }
        }
    }

    /// Chains given back since the last look, with the lengths said.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        match self {
            Side::Split(bench) => bench.take_used().iter().map(|(head, len)| (head / 4, *len)).collect(),
            Side::Packed(packed, lens) => {
                let mut used = Vec::new();
                // Slots never written before look as if they were used in the second lap.
                while lens.iter().any(|len| *len > 0)
                    && let Some((id, len)) = packed.used_element()
                {
                    packed.take_used(std::mem::take(&mut lens[usize::from(id)]));
                    used.push((id, len));
                }
                used
            }
        }
    }

    pub fn half(&mut self) -> (&mut H, &mut PoolCache) {
        match self {
            Side::Split(bench) => (&mut bench.half, &mut bench.cache),
            Side::Packed(packed, _) => (&mut packed.half, &mut packed.cache),
        }
    }

    pub fn memory(&self) -> &Memory {
        match self {
            Side::Split(bench) => &bench.memory,
            Side::Packed(packed, _) => &packed.memory,
        }
    }

    pub fn fault(&self) -> Option<RingFault> {
        match self {
            Side::Split(bench) => bench.fault(),
            Side::Packed(packed, _) => packed.fault(),
        }
    }

    pub fn command(&mut self, command: Command) -> Reply {
        match self {
            Side::Split(bench) => bench.command(command),
            Side::Packed(packed, _) => packed.command(command),
        }
    }

    pub fn assert_no_leak(self) {
        match self {
            Side::Split(bench) => bench.assert_no_leak(),
            Side::Packed(packed, _) => packed.assert_no_leak(),
        }
    }
}

/// Two guests, and a core that forwards from the one to the other as the component does.
pub struct World {
    pub once: bool,
    pub from: Side<FromGuest>,
    pub to: Side<ToGuest>,
    pub pending: Burst,
    pub n_passed: usize,
    pub log: std::fs::File,
    /// Which buffers each guest has in hand.
    pub free: [Vec<u16>; 2],
    /// Frames given back to their sender so far, and those of them whose buffers are in its hand again.
    pub sent: Vec<(u16, u32)>,
    pub n_reclaimed: usize,
}

impl World {
    pub fn new(once: bool, from: RingFeatures, to: RingFeatures) -> World {
        let (from, mut to, log) = (Side::new(from), Side::new(to), memfd(LOG_BYTES));
        let dirty = Arc::new(DirtyLog::new(&log, LOG_BYTES, 0).unwrap());
        to.command(Command::Log(Some(RingLog { log: dirty, used_at: None })));
        let free = [(); 2].map(|()| (0..N).rev().collect());
        World {
            once,
            from,
            to,
            pending: Burst::new(),
            n_passed: 0,
            log,
            free,
            sent: Vec::new(),
            n_reclaimed: 0,
        }
    }

    pub fn turn(&mut self) {
        let (from, cache) = self.from.half();
        let (to, _) = self.to.half();
        to.tx_burst(cache, &mut self.pending);
        if !self.pending.is_empty() {
            return;
        }
        if self.once
            && let Some(Passed { packets, .. }) = from.rx_into(to)
        {
            self.n_passed += packets;
            return;
        }
        from.rx_burst(cache, &mut self.pending);
        to.tx_burst(cache, &mut self.pending);
    }

    /// Turns until nothing can move any more: four bursts are all there could be, with one for each long chain.
    pub fn settle(&mut self) {
        (0..2 * N).for_each(|_| self.turn());
    }

    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::Send { shape, len, seed } => {
                if let Some(id) = self.free[0].pop() {
                    let frame = frame(*len, *seed);
                    self.from.memory().write(address(id), &[&shape.header()[..], &frame[..]].concat());
                    self.from.offer(id, &shape.descriptors(address(id), frame.len() as u32));
                }
            }
            Action::Buffer { shape, len } => {
                if let Some(id) = self.free[1].pop() {
                    self.to.offer(id, &shape.descriptors(address(id), *len));
                }
            }
            Action::Settle => self.settle(),
        }
    }

    /// What the receiver sees: used elements with their bytes. Notes what the sender sees.
    pub fn received(&mut self) -> Vec<(u16, Vec<u8>)> {
        let used = self.from.take_used();
        self.sent.extend(used);
        let used = self.to.take_used();
        self.free[1].extend(used.iter().map(|used| used.0));
        let bytes = |(id, len): &(u16, u32)| (*id, self.to.memory().read(address(*id), *len as usize));
        used.iter().map(bytes).collect()
    }

    /// The sender takes buffers into its hand again, those of its first `n` frames.
    pub fn reclaim(&mut self, n: usize) {
        let ids = self.sent[self.n_reclaimed..n].iter().map(|used| used.0);
        self.free[0].extend(ids);
        self.n_reclaimed = n;
    }

    pub fn counters(&mut self) -> [StatsSnapshot; 2] {
        let (from, to) = (self.from.half().0.stats().snapshot(), self.to.half().0.stats().snapshot());
        // Where one burst ends and the next begins is not the same.
        [from, to].map(|stats| StatsSnapshot { bursts: 0, ..stats })
    }

    pub fn marked(&self) -> Vec<u8> {
        let mut bytes = vec![0; LOG_BYTES as usize];
        self.log.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn close(mut self) {
        let (_, cache) = self.from.half();
        self.pending.free_all(cache);
        self.from.assert_no_leak();
        self.to.assert_no_leak();
    }
}

/// A frame's chain.
#[derive(Debug, Clone, Copy)]
pub enum Sent {
    Plain,
    /// Plain, with a header that asks for a checksum inside the frame.
    Asks,
    /// Plain, with a header that asks for a checksum far outside of it.
    AsksAmiss,
    /// Plain, with a header full of what means nothing.
    Noise,
    HeaderApart,
    Outside,
    /// A buffer the device should write.
    Backwards,
    Runt,
}

impl Sent {
    pub fn header(self) -> [u8; 12] {
        match self {
            Sent::Asks => [F_NEEDS_CSUM, 0, 0, 0, 0, 0, 20, 0, 4, 0, 0, 0],
            Sent::AsksAmiss => [F_NEEDS_CSUM, 0, 0, 0, 0, 0, 0xff, 0xff, 4, 0, 0, 0],
            Sent::Noise => [0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            _ => [0; 12],
        }
    }

    pub fn descriptors(self, at: u64, len: u32) -> Vec<(u64, u32, u16)> {
        match self {
            Sent::HeaderApart => vec![(at, 12, NEXT), (at + 12, len, 0)],
            Sent::Outside => vec![(4 * REGION, 12 + len, 0)],
            Sent::Backwards => vec![(at, 12 + len, WRITE)],
            Sent::Runt => vec![(at, 25, 0)],
            _ => vec![(at, 12 + len, 0)],
        }
    }
}

/// A receive buffer's chain.
#[derive(Debug, Clone, Copy)]
pub enum Room {
    Plain,
    TwoPieces,
    Outside,
    /// A buffer the device should read.
    Backwards,
}

impl Room {
    pub fn descriptors(self, at: u64, len: u32) -> Vec<(u64, u32, u16)> {
        match self {
            Room::Plain => vec![(at, len, WRITE)],
            Room::TwoPieces => vec![(at, 12, WRITE | NEXT), (at + 12, len - 12, WRITE)],
            Room::Outside => vec![(4 * REGION, len, WRITE)],
            Room::Backwards => vec![(at, len, 0)],
        }
    }
}

#[derive(Debug, Clone)]
pub enum Action {
    Send { shape: Sent, len: usize, seed: u8 },
    Buffer { shape: Room, len: u32 },
    Settle,
}
