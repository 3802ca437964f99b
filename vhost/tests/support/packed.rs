//! A packed ring made by hand, every field of it free to lie, and the half that serves it.

#![allow(dead_code)] // each test uses its part

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::handover::{Command, Handover, Reply, handover};
use spp_vhost::lanes::{Lane, LaneStats};
use spp_vhost::memory::FrontendVa;
use spp_vhost::vring::layout::RingAddr;
use spp_vhost::vring::{Ring, RingFault, RingFeatures, RingMemory};
use spp_vhost::{FromGuest, ToGuest};

use super::support::*;

pub const AVAIL_FLAG: u16 = 1 << 7;
pub const USED_FLAG: u16 = 1 << 15;
pub const TABLE: u64 = BUFFERS + 0x8000;
pub const SIZE: u16 = 256;
/// Near the end of the ring, in the lap whose wrap counter is 0.
pub const START: u16 = 250;

/// A half under test with its packed ring, and the guest's side of it.
pub struct Packed<H> {
    pub memory: Memory,
    pub half: H,
    pub handover: Handover,
    pub pool: Pool,
    pub cache: PoolCache,
    pub size: u16,
    /// Next slot to make available, next to look for a used element in, and their wrap counters.
    pub avail: (u16, bool),
    pub used: (u16, bool),
}

pub fn packed(mergeable: bool, in_order: bool) -> RingFeatures {
    RingFeatures { packed: true, in_order, ..features(mergeable, false) }
}

/// Descriptor flags as a driver writes them in a lap.
pub fn turn(wrap: bool) -> u16 {
    if wrap { AVAIL_FLAG } else { USED_FLAG }
}

impl<H: Half + Send> Packed<H> {
    pub fn new(size: u16, start: (u16, bool), features: RingFeatures) -> Self {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 512 }).unwrap();
        let bell: Arc<AtomicUsize> = Arc::default();
        let (handover, mailbox) = handover(bell.clone());
        let half = H::build(Lane::new(mailbox, LaneStats::default()), bell, &pool);
        let (memory, cache) = (Memory::new(), pool.cache());
        let mut bench = Packed { memory, half, handover, cache, pool, size, avail: start, used: start };
        // Nothing is available in this lap or the next.
        (0..size).for_each(|slot| bench.memory.desc(DESC, slot, 0, 0, 0, 0));
        bench.start(features);
        bench
    }

    pub fn command(&mut self, command: Command) -> Reply {
        let (handover, half) = (&mut self.handover, &mut self.half);
        std::thread::scope(|scope| {
            let call = scope.spawn(move || handover.call(command));
            while !call.is_finished() {
                half.poll();
                std::thread::yield_now();
            }
            call.join().unwrap().unwrap()
        })
    }

    pub fn start(&mut self, features: RingFeatures) {
        let addr = RingAddr {
            desc: FrontendVa(VA + DESC),
            avail: FrontendVa(VA + AVAIL),
            used: FrontendVa(VA + USED),
        };
        let memory = RingMemory::new(self.memory.map(), addr, self.size, true).unwrap();
        let at = u32::from(self.used.0) | if self.used.1 { 0x8000 } else { 0 };
        let ring = Ring::new(memory, features, None, at | at << 16);
        self.command(Command::Start(Box::new(ring), true));
    }

    pub fn fault(&self) -> Option<RingFault> {
        self.handover.state().fault()
    }

    pub fn step(&self, (slot, wrap): (u16, bool), n: u16) -> (u16, bool) {
        if slot + n >= self.size { (slot + n - self.size, !wrap) } else { (slot + n, wrap) }
    }

    /// Writes a descriptor `ahead` of the next one, with flags of its own.
    pub fn write(&self, ahead: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let (slot, _) = self.step(self.avail, ahead);
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.memory.write(DESC + 16 * u64::from(slot), &bytes);
    }

    /// Makes a chain of these descriptors (address, length, flags) available under `id`.
    pub fn offer(&mut self, id: u16, descriptors: &[(u64, u32, u16)]) {
        for (i, &(addr, len, flags)) in descriptors.iter().enumerate().rev() {
            let wrap = self.step(self.avail, i as u16).1;
            self.write(i as u16, addr, len, id, flags | turn(wrap));
        }
        self.avail = self.step(self.avail, descriptors.len() as u16);
    }

    /// The used element at the place we are at: id and length.
    pub fn used_element(&self) -> Option<(u16, u32)> {
        let bytes = self.memory.read(DESC + 16 * u64::from(self.used.0), 16);
        let flags = u16::from_le_bytes([bytes[14], bytes[15]]);
        let both = if self.used.1 { AVAIL_FLAG | USED_FLAG } else { 0 };
        let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        (flags & (AVAIL_FLAG | USED_FLAG) == both).then(|| (u16::from_le_bytes([bytes[12], bytes[13]]), len))
    }

    /// Takes a used element that frees `n` descriptors.
    pub fn take_used(&mut self, n: u16) -> Option<(u16, u32)> {
        let element = self.used_element()?;
        self.used = self.step(self.used, n);
        Some(element)
    }

    pub fn assert_no_leak(self) {
        let Packed { half, handover, pool, cache, .. } = self;
        drop((half, handover, cache));
        assert_eq!(pool.counts().out, 0);
    }
}

impl Packed<FromGuest> {
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.half.rx_burst(&mut self.cache, &mut burst);
        let frames = burst.iter().map(bytes).collect();
        burst.free_all(&mut self.cache);
        frames
    }

    /// The ring still serves a good frame.
    pub fn assert_alive(&mut self) {
        let good = frame(60, 0x5a);
        self.memory.write(BUFFERS + 0x1_0000, &[0; 12]);
        self.memory.write(BUFFERS + 0x1_000c, &good);
        self.offer(77, &[(BUFFERS + 0x1_0000, 72, 0)]);
        assert_eq!(self.receive(), [good]);
        assert_eq!(self.take_used(1), Some((77, 0)));
    }

    /// Expects the ring to have stopped for `fault`, to stay so, and to work after a restart.
    pub fn expect_stopped(mut self, fault: RingFault) {
        assert!(self.receive().is_empty());
        assert_eq!(self.fault(), Some(fault));
        assert!(self.receive().is_empty());
        assert_eq!(self.used_element(), None);
        let Reply::Ring(Some(_)) = self.command(Command::Stop) else { panic!("the ring comes back") };
        (0..self.size).for_each(|slot| self.memory.desc(DESC, slot, 0, 0, 0, 0));
        (self.avail, self.used) = ((START, true), (START, true));
        self.start(packed(false, false));
        assert_eq!(self.fault(), None);
        self.assert_alive();
        self.assert_no_leak();
    }
}

impl Packed<ToGuest> {
    pub fn send(&mut self, lens: &[usize]) -> (usize, usize) {
        let mut burst = Burst::new();
        for (i, len) in lens.iter().enumerate() {
            burst.push(packet(&mut self.cache, *len, i as u8)).unwrap();
        }
        let n = self.half.tx_burst(&mut self.cache, &mut burst);
        let left = burst.len();
        burst.free_all(&mut self.cache);
        (n, left)
    }
}
