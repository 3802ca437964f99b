//! The receiving half of Intel's NICs. Owned by the core that polls it.
//!
//! Every descriptor always has a buffer: one is only taken out when a fresh one goes in, so the ring never runs
//! short, and a pool without buffers leaves frames in the card.

use std::marker::PhantomData;
use std::sync::Arc;

use super::desc::{Checksum, RxFormat};
use super::{Parked, Shared};
use crate::burst::{BURST, Burst};
use crate::dma::{DATA_ROOM, PacketBuf, PoolCache};
use crate::nic::fault::{Fault, Side};
use crate::nic::regs::Doorbell;
use crate::nic::ring::DescRing;
use crate::pci::Registers;
use crate::port::RxQueue;
use crate::stats::{Counter, DropReason, SharedStats};

/// Most buffers one frame takes: the longest any of these cards receives has 16 KiB.
const MAX_BUFFERS: u16 = 8;
/// Most buffers taken in one call besides whole good frames: frames of several buffers take more than one.
const MAX_ODD: usize = 4 * BURST;
const ETHERNET_HEADER: usize = 14;

/// What the card found of checksums, counted by the half and read by the control half.
#[derive(Debug, Default)]
pub struct Checksums {
    /// Frames with all checksums right.
    pub right: Counter,
    /// Frames with a wrong one; passed on.
    pub wrong: Counter,
}

/// The beginning of a frame whose end is still to come. Without its frame the rest is passed over.
struct Partial {
    frame: Option<PacketBuf>,
    n_buffers: u16,
}

/// What a receiving half is made of.
pub struct RxParts<B: Registers> {
    /// Its number.
    pub queue: u16,
    /// Its descriptors.
    pub ring: DescRing,
    /// Its tail register.
    pub tail: Doorbell<B>,
    /// With the control half.
    pub shared: Arc<Shared>,
    /// Its counters.
    pub stats: SharedStats,
    /// Its findings.
    pub checksums: Arc<Checksums>,
}

/// A receiving half.
pub struct Rx<F: RxFormat, B: Registers> {
    queue: u16,
    /// `None` only while dropping.
    ring: Option<DescRing>,
    buffers: Box<[Option<PacketBuf>]>,
    /// Next descriptor the device completes; runs free.
    next: u16,
    tail: Doorbell<B>,
    shared: Arc<Shared>,
    stats: SharedStats,
    checksums: Arc<Checksums>,
    partial: Option<Partial>,
    /// Polls that found nothing, and where a gap in the ring was seen: see [`look_for_gap`](Rx::look_for_gap).
    n_idle: u16,
    gap_at: Option<u16>,
    format: PhantomData<fn() -> F>,
}

impl<F: RxFormat, B: Registers> Rx<F, B> {
    /// Fills the ring with buffers. `None` when the pool has too few. The device is told by [`start`](Self::start).
    pub fn new(parts: RxParts<B>, pool: &mut PoolCache) -> Option<Self> {
        let RxParts { queue, ring, tail, shared, stats, checksums } = parts;
        let mut buffers = Vec::with_capacity(usize::from(ring.size()));
        for index in 0..ring.size() {
            let Some(buffer) = pool.alloc() else {
                buffers.into_iter().flatten().for_each(|buffer| pool.free(buffer));
                return None;
            };
            ring.put(index, [buffer.iova().0, 0]);
            buffers.push(Some(buffer));
        }
        Some(Rx {
            queue,
            ring: Some(ring),
            buffers: buffers.into_boxed_slice(),
            next: 0,
            tail,
            shared,
            stats,
            checksums,
            partial: None,
            n_idle: 0,
            gap_at: None,
            format: PhantomData,
        })
    }

    /// Gives all descriptors but one to the device; once the receiver is enabled.
    pub fn start(&mut self) {
        if let Some(ring) = &self.ring {
            self.tail.ring(u32::from(self.next.wrapping_sub(1) & ring.mask()));
        }
    }

    /// Once in 65,536 empty polls: a descriptor that is done behind one that isn't, twice with nothing in between, is a
    /// ring that stands still for ever.
    #[cold]
    fn look_for_gap(&mut self) {
        let Some(ring) = &self.ring else { return };
        let word = ring.done_word(self.next.wrapping_add(1));
        let gap = ring.done_word(self.next) & F::DONE == 0 && word & F::DONE != 0;
        if gap && self.gap_at == Some(self.next) {
            let what = "a descriptor was passed over";
            self.shared.fail(Fault::Garbage { side: Side::Rx, queue: self.queue, what, value: word });
        }
        self.gap_at = gap.then_some(self.next);
    }

    /// One completed buffer that isn't a whole good frame by itself: a piece of one, a damaged one, or garbage.
    /// Returns a frame that it completes.
    #[inline(never)]
    fn take_odd(&mut self, mut buffer: PacketBuf, word: u64, pool: &mut PoolCache) -> Option<PacketBuf> {
        let len = F::len_bytes(word);
        let is_last = word & F::LAST != 0;
        let Partial { mut frame, n_buffers } = match self.partial.take() {
            Some(partial) => partial,
            None => Partial { frame: None, n_buffers: 0 },
        };
        let is_first = n_buffers == 0;
        let skipping = !is_first && frame.is_none();
        let reason = match () {
            () if skipping => None,
            // A frame goes on in another buffer only where this one is full; the last may have held nothing but the FCS.
            () if len > DATA_ROOM || (!is_last && len != DATA_ROOM) || (is_first && len == 0) => {
                Some(DropReason::DeviceGarbage)
            }
            () if is_last && word & F::DAMAGED != 0 => Some(DropReason::DeviceError),
            () if is_first && is_last && len < ETHERNET_HEADER => Some(DropReason::Runt),
            () => None,
        };
        if let Some(reason) = reason {
            self.stats.dropped(reason, 1);
            frame.take().into_iter().for_each(|frame| pool.free(frame));
        }
        if skipping || reason.is_some() || len == 0 {
            pool.free(buffer);
        } else {
            let fits = buffer.set_len(len);
            debug_assert!(fits.is_ok(), "the length was checked");
            match &mut frame {
                Some(head) => head.last_segment_mut().chain(buffer),
                None => frame = Some(buffer),
            }
        }
        if is_last {
            return frame;
        }
        let n_buffers = n_buffers + 1;
        if n_buffers >= MAX_BUFFERS {
            if let Some(frame) = frame {
                self.stats.dropped(DropReason::DeviceGarbage, 1);
                pool.free(frame);
            }
            let what = "a frame that never ends";
            self.shared.fail(Fault::Garbage { side: Side::Rx, queue: self.queue, what, value: word });
            return None;
        }
        self.partial = Some(Partial { frame, n_buffers });
        None
    }
}

/// Puts a VLAN tag back where the card took it off; how many bytes longer the frame is.
fn put_back(frame: &mut PacketBuf, tag: u16) -> u64 {
    const ADDRESSES: usize = 12;
    const TAG_BYTES: usize = 4;
    if frame.len() < ADDRESSES || frame.push_front(TAG_BYTES).is_err() {
        debug_assert!(false, "a buffer of a card has its whole headroom, and a frame its header");
        return 0;
    }
    let bytes = frame.data_mut();
    bytes.copy_within(TAG_BYTES..TAG_BYTES + ADDRESSES, 0);
    let [high, low] = tag.to_be_bytes();
    bytes[ADDRESSES..ADDRESSES + TAG_BYTES].copy_from_slice(&[0x81, 0, high, low]);
    TAG_BYTES as u64
}

/// What came off the ring in one call.
#[derive(Default)]
struct Taken {
    bytes: u64,
    n_right: u64,
    n_wrong: u64,
}

impl Taken {
    /// What the card says of a whole frame besides.
    #[inline(always)]
    fn judge<F: RxFormat>(&mut self, frame: &mut PacketBuf, word: u64) {
        if let Some(tag) = F::stripped_tag(word) {
            self.bytes += put_back(frame, tag);
        }
        match F::checksum(word) {
            Checksum::Unknown => {}
            Checksum::Right => {
                frame.set_verified(true);
                self.n_right += 1;
            }
            Checksum::Wrong => self.n_wrong += 1,
        }
    }
}

impl<F: RxFormat, B: Registers> Rx<F, B> {
    /// Takes whole good frames until there is anything else in the ring: nearly all there are, in a loop without calls.
    #[inline(always)]
    fn take_run(&mut self, pool: &mut PoolCache, out: &mut Burst, taken: &mut Taken) {
        let Some(ring) = &self.ring else { return };
        if self.partial.is_some() {
            return;
        }
        let (mut next, mask) = (self.next, ring.mask());
        while out.room() > 0 {
            let word = ring.done_word(next);
            let len = F::len_bytes(word);
            let is_plain = word & (F::DONE | F::LAST | F::DAMAGED) == F::DONE | F::LAST
                && (ETHERNET_HEADER..=DATA_ROOM).contains(&len);
            let Some(slot) = self.buffers.get_mut(usize::from(next & mask)).filter(|_| is_plain) else {
                break;
            };
            let Some(fresh) = pool.alloc() else { break };
            ring.put(next, [fresh.iova().0, 0]);
            next = next.wrapping_add(1);
            let Some(mut frame) = slot.replace(fresh) else {
                debug_assert!(false, "every descriptor has a buffer");
                break;
            };
            let fits = frame.set_received(len);
            debug_assert!(fits.is_ok(), "the length was checked");
            taken.bytes += len as u64;
            taken.judge::<F>(&mut frame, word);
            let pushed = out.push(frame);
            debug_assert!(pushed.is_ok(), "there is room");
        }
        self.next = next;
    }

    /// Takes one buffer, whatever is in it. False when there is none, or none to put in its place.
    #[inline(never)]
    fn take_one(&mut self, pool: &mut PoolCache, out: &mut Burst, taken: &mut Taken) -> bool {
        let Some(ring) = &self.ring else { return false };
        let word = ring.done_word(self.next);
        if word & F::DONE == 0 {
            return false;
        }
        let Some(fresh) = pool.alloc() else { return false };
        ring.put(self.next, [fresh.iova().0, 0]);
        let slot = usize::from(self.next & ring.mask());
        self.next = self.next.wrapping_add(1);
        let Some(buffer) = self.buffers.get_mut(slot).and_then(|slot| slot.replace(fresh)) else {
            debug_assert!(false, "every descriptor has a buffer");
            return true;
        };
        if let Some(mut frame) = self.take_odd(buffer, word, pool) {
            taken.bytes += frame.total_len() as u64;
            taken.judge::<F>(&mut frame, word);
            let pushed = out.push(frame);
            debug_assert!(pushed.is_ok(), "the caller has looked for room");
        }
        true
    }
}

impl<F: RxFormat, B: Registers> RxQueue for Rx<F, B> {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        if self.shared.fault().is_some() {
            return 0;
        }
        let (first, n_before, mut taken) = (self.next, out.len(), Taken::default());
        self.take_run(pool, out, &mut taken);
        let mut n_odd = 0;
        while out.room() > 0 && n_odd < MAX_ODD && self.take_one(pool, out, &mut taken) {
            if self.shared.fault().is_some() {
                break;
            }
            n_odd += 1;
            self.take_run(pool, out, &mut taken);
        }
        if self.next != first {
            self.start();
            self.checksums.right.add(taken.n_right);
            self.checksums.wrong.add(taken.n_wrong);
        } else {
            self.n_idle = self.n_idle.wrapping_add(1);
            if self.n_idle == 0 {
                self.look_for_gap();
            }
        }
        let n = out.len() - n_before;
        self.stats.moved(n, taken.bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl<F: RxFormat, B: Registers> Drop for Rx<F, B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            let buffers = std::mem::take(&mut self.buffers);
            self.shared.park(Parked { side: Side::Rx, ring, buffers });
        }
    }
}
