// UNSAFETY: plays a guest, which writes its own memory while the backend reads it.
//! A guest made by hand: memory in a memfd, two split rings laid out in it, and every field
//! of them free to lie. No socket: rings go to the halves through their hand-over.

#![allow(dead_code)] // each test uses its part

pub mod peer;
pub mod served;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::offload::Offloads;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::DropReason;
use spp_drivers::{BURST, Burst};
use spp_vhost::handover::{Command, Handover, Reply, handover};
use spp_vhost::lanes::{Lane, LaneStats};
use spp_vhost::memory::{FrontendVa, GuestMap, RegionInfo};
use spp_vhost::vring::layout::RingAddr;
use spp_vhost::vring::{Ring, RingFault, RingFeatures, RingMemory};
use spp_vhost::{FromGuest, ToGuest};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Guest addresses: rings first, then buffers.
pub const DESC: u64 = 0x0;
pub const AVAIL: u64 = 0x8_0000;
pub const USED: u64 = 0x9_8000;
pub const BUFFERS: u64 = 0x10_0000;
/// Bytes of the first region; a second one follows it directly in guest addresses.
pub const REGION: u64 = 0x20_0000;
/// Frontend addresses are guest addresses plus this.
pub const VA: u64 = 0x7000_0000_0000;

pub fn memfd(len: u64) -> File {
    let file = File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, len).unwrap();
    file
}

pub fn region(gpa: u64, len: u64, file_offset: u64) -> RegionInfo {
    RegionInfo { gpa, len_bytes: len, frontend_va: VA + gpa, file_offset }
}

/// Guest memory of two regions: adjacent in guest addresses, far apart in the file.
pub struct Memory {
    pub file: File,
    own: MmapRaw,
}

impl Memory {
    pub fn new() -> Memory {
        let file = memfd(4 * REGION);
        let own = MmapOptions::new().map_raw(&file).unwrap();
        Memory { file, own }
    }

    /// The same memory, for another thread.
    pub fn over(other: &Memory) -> Memory {
        let file = other.file.try_clone().unwrap();
        let own = MmapOptions::new().map_raw(&file).unwrap();
        Memory { file, own }
    }

    pub fn map(&self) -> Arc<GuestMap> {
        let first = (region(0, REGION, 0), self.file.try_clone().unwrap());
        let second = (region(REGION, REGION, 3 * REGION), self.file.try_clone().unwrap());
        Arc::new(GuestMap::new([first, second]).unwrap())
    }

    fn at(&self, gpa: u64) -> *mut u8 {
        let offset = if gpa < REGION { gpa } else { gpa - REGION + 3 * REGION };
        assert!(offset < 4 * REGION);
        self.own.as_mut_ptr().wrapping_add(offset as usize)
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping (checked by at); volatile, since the backend may read it.
            unsafe { self.at(gpa + i as u64).write_volatile(*byte) };
        }
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        // SAFETY: inside the mapping (checked by at); volatile, since the backend may write it.
        (0..len).map(|i| unsafe { self.at(gpa + i as u64).read_volatile() }).collect()
    }

    pub fn read_u16(&self, gpa: u64) -> u16 {
        u16::from_le_bytes(self.read(gpa, 2).try_into().unwrap())
    }

    /// Descriptor `index` of the table at `table`.
    pub fn desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }
}

pub fn features(mergeable: bool, event_idx: bool) -> RingFeatures {
    RingFeatures {
        packed: false,
        in_order: false,
        mergeable,
        event_idx,
        indirect: true,
        header_bytes: 12,
        from_guest: Offloads::NONE,
        to_guest: Offloads::NONE,
        max_frame_bytes: usize::MAX,
    }
}

/// A half under test with its ring, and the guest side of that ring.
pub struct Bench<H> {
    pub memory: Memory,
    pub half: H,
    pub handover: Handover,
    pub pool: Pool,
    pub cache: PoolCache,
    pub size: u16,
    /// Next available and next used index, as the guest counts.
    pub avail: u16,
    pub used: u16,
}

pub trait Half {
    fn build(lane: Lane, bell: Arc<AtomicUsize>, pool: &Pool) -> Self;
    fn poll(&mut self);
    fn drops(&self, reason: DropReason) -> u64;
}

impl Half for FromGuest {
    fn build(lane: Lane, bell: Arc<AtomicUsize>, pool: &Pool) -> Self {
        FromGuest::new([lane], bell, pool)
    }
    fn poll(&mut self) {
        self.poll_control();
    }
    fn drops(&self, reason: DropReason) -> u64 {
        self.stats().drops(reason)
    }
}

impl Half for ToGuest {
    fn build(lane: Lane, bell: Arc<AtomicUsize>, _pool: &Pool) -> Self {
        ToGuest::new([lane], bell)
    }
    fn poll(&mut self) {
        self.poll_control();
    }
    fn drops(&self, reason: DropReason) -> u64 {
        self.stats().drops(reason)
    }
}

impl<H: Half + Send> Bench<H> {
    /// A running ring of `size` whose indices start at `start`.
    pub fn new(size: u16, start: u16, features: RingFeatures) -> Self {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 512 }).unwrap();
        let bell: Arc<AtomicUsize> = Arc::default();
        let (handover, mailbox) = handover(bell.clone());
        let half = H::build(Lane::new(mailbox, LaneStats::default()), bell, &pool);
        let memory = Memory::new();
        let cache = pool.cache();
        let mut bench = Bench { memory, half, handover, cache, pool, size, avail: start, used: start };
        bench.memory.write(AVAIL + 2, &start.to_le_bytes());
        bench.memory.write(USED + 2, &start.to_le_bytes());
        bench.start(features);
        bench
    }

    /// Sends a command while the half answers, as its core would.
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

    pub fn ring_addr(&self) -> RingAddr {
        RingAddr { desc: FrontendVa(VA + DESC), avail: FrontendVa(VA + AVAIL), used: FrontendVa(VA + USED) }
    }

    pub fn start(&mut self, features: RingFeatures) {
        let memory = RingMemory::new(self.memory.map(), self.ring_addr(), self.size, false).unwrap();
        let ring = Ring::new(memory, features, None, u32::from(self.used));
        self.command(Command::Start(Box::new(ring), true));
    }

    pub fn fault(&self) -> Option<RingFault> {
        self.handover.state().fault()
    }

    /// Puts a head into the available ring without publishing it.
    pub fn put_head(&mut self, head: u16) {
        let slot = u64::from(self.avail & (self.size - 1));
        self.memory.write(AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
    }

    pub fn publish(&mut self) {
        self.memory.write(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Puts a head into the available ring and publishes it.
    pub fn offer(&mut self, head: u16) {
        self.put_head(head);
        self.publish();
    }

    /// Used elements since the last look: head and length.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let idx = self.memory.read_u16(USED + 2);
        let mut all = Vec::new();
        while self.used != idx {
            let slot = u64::from(self.used & (self.size - 1));
            let element = self.memory.read(USED + 4 + 8 * slot, 8);
            let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
            all.push((u16::try_from(word(0)).unwrap(), word(4)));
            self.used = self.used.wrapping_add(1);
        }
        all
    }

    /// All buffers are back in the pool.
    pub fn assert_no_leak(self) {
        let Bench { half, handover, pool, cache, .. } = self;
        drop((half, handover, cache));
        assert_eq!(pool.counts().out, 0);
    }
}

impl Bench<FromGuest> {
    /// One burst; the frames received, as bytes.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.half.rx_burst(&mut self.cache, &mut burst);
        let frames = burst.iter().map(bytes).collect();
        burst.free_all(&mut self.cache);
        frames
    }

    /// Offers a well-formed frame in descriptor `index`.
    pub fn offer_frame(&mut self, index: u16, frame: &[u8]) {
        let at = BUFFERS + 0x1000 * u64::from(index);
        self.memory.write(at, &[0; 12]);
        self.memory.write(at + 12, frame);
        self.memory.desc(DESC, index, at, 12 + frame.len() as u32, 0, 0);
        self.offer(index);
    }

    /// The ring still serves a good frame: what a bad chain must not prevent.
    pub fn assert_alive(&mut self) {
        self.take_used();
        let frame = [0x5a; 60];
        self.offer_frame(self.size - 1, &frame);
        assert_eq!(self.receive(), [frame.to_vec()]);
        assert_eq!(self.take_used(), [(self.size - 1, 0)]);
    }
}

impl Bench<ToGuest> {
    /// Sends frames of these lengths; returns how many left the burst, and how many remain.
    pub fn send(&mut self, lens: &[usize]) -> (usize, usize) {
        let mut burst = Burst::new();
        assert!(lens.len() <= BURST);
        for (i, len) in lens.iter().enumerate() {
            burst.push(packet(&mut self.cache, *len, i as u8)).unwrap();
        }
        let n = self.half.tx_burst(&mut self.cache, &mut burst);
        let left = burst.len();
        burst.free_all(&mut self.cache);
        (n, left)
    }
}

/// The whole frame.
pub fn bytes(packet: &PacketBuf) -> Vec<u8> {
    packet.segments().collect::<Vec<_>>().concat()
}

/// A frame of `len` bytes, chained when it needs to be: byte i is i + seed.
pub fn packet(cache: &mut PoolCache, len: usize, seed: u8) -> PacketBuf {
    packet_of(cache, &frame(len, seed))
}

/// These bytes, chained when they need to be.
pub fn packet_of(cache: &mut PoolCache, data: &[u8]) -> PacketBuf {
    let mut parts = data.chunks(2048);
    let mut packet = cache.alloc().unwrap();
    packet.append(parts.next().unwrap_or_default()).unwrap();
    for part in parts {
        let mut next = cache.alloc().unwrap();
        next.append(part).unwrap();
        packet.last_segment_mut().chain(next);
    }
    packet
}

pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_add(seed)).collect()
}
