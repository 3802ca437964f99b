//! The receiving half of vmxnet3. Owned by the core that polls it.
//!
//! A frame begins in a buffer of the first ring and goes on in buffers of the second. A buffer is only taken out when a
//! fresh one goes in, so that the rings never run short, and a pool without buffers leaves frames with the device.

use std::sync::Arc;

use super::area::Area;
use super::config::{MAX_BUFFERS, queue};
use super::counters::Findings;
use super::desc::{Checksum, Done, rx_buffer};
use super::ring::{CommandRing, CompletionRing};
use super::{Parked, Shared};
use crate::burst::{BURST, Burst};
use crate::dma::{DATA_ROOM, PacketBuf, PoolCache};
use crate::nic::fault::{Fault, Side};
use crate::nic::regs::Doorbell;
use crate::nic::tags::Tags;
use crate::pci::Registers;
use crate::port::RxQueue;
use crate::stats::{DropReason, SharedStats};
use crate::vlan;

/// Most completions looked at in one call: frames of several buffers take more than one.
const MAX_DESCRIPTORS: usize = 4 * BURST;
const ETHERNET_HEADER: usize = 14;

/// What a receiving half is made of.
pub(super) struct RxParts<B: Registers> {
    pub(super) queue: u16,
    /// Receive queues the device was told of.
    pub(super) n_queues: u16,
    /// For the beginnings of frames, and for what follows.
    pub(super) commands: [CommandRing; 2],
    pub(super) completions: CompletionRing,
    pub(super) bells: [Doorbell<B>; 2],
    /// Descriptions of queues, and where in them this one is.
    pub(super) queues: Arc<Area>,
    pub(super) described_at: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: SharedStats,
    pub(super) findings: Arc<Findings>,
    /// What becomes of tags, with the control half.
    pub(super) tags: Arc<Tags>,
}

/// A command ring with its buffers.
struct Posted {
    ring: CommandRing,
    buffers: Box<[Option<PacketBuf>]>,
    is_body: bool,
}

impl Posted {
    /// Fills the ring. False when the pool has too few buffers.
    fn new(ring: CommandRing, is_body: bool, pool: &mut PoolCache) -> (Posted, bool) {
        let buffers = (0..ring.size()).map(|_| None).collect();
        let mut posted = Posted { ring, buffers, is_body };
        while posted.ring.n_free() > 0 {
            let Some(buffer) = pool.alloc() else { return (posted, false) };
            posted.post(buffer);
        }
        posted.ring.publish();
        (posted, true)
    }

    #[inline(always)]
    fn post(&mut self, buffer: PacketBuf) {
        let words = rx_buffer(buffer.iova(), self.is_body);
        if let Some(slot) = self.buffers.get_mut(usize::from(self.ring.fill_slot())) {
            debug_assert!(slot.is_none(), "a free descriptor has no buffer");
            *slot = Some(buffer);
            self.ring.push(words);
        }
    }

    /// Takes the buffer of the oldest descriptor and posts a fresh one.
    #[inline(always)]
    fn exchange(&mut self, fresh: PacketBuf) -> Option<PacketBuf> {
        let taken = self.buffers.get_mut(usize::from(self.ring.done_slot())).and_then(Option::take);
        self.ring.complete();
        self.post(fresh);
        taken
    }
}

struct Rings {
    posted: [Posted; 2],
    completions: CompletionRing,
}

/// The beginning of a frame whose end is still to come. Without its frame the rest is passed over.
struct Partial {
    frame: Option<PacketBuf>,
    n_buffers: u16,
}

/// Frames out of several buffers, and those that are none.
struct Assembly {
    queue: u16,
    partial: Option<Partial>,
    shared: Arc<Shared>,
    stats: SharedStats,
}

pub(super) struct Rx<B: Registers> {
    n_queues: u16,
    /// `None` only while dropping.
    rings: Option<Rings>,
    bells: [Doorbell<B>; 2],
    queues: Arc<Area>,
    described_at: usize,
    assembly: Assembly,
    findings: Arc<Findings>,
    tags: Arc<Tags>,
    /// Tags go: where the device has not taken one off, software does. Else one it has taken off is put back.
    strips: bool,
}

impl<B: Registers> Rx<B> {
    /// Fills both rings with buffers. `None` when the pool has too few: what there is waits with the halves of this start.
    pub(super) fn new(parts: RxParts<B>, pool: &mut PoolCache) -> Option<Self> {
        let RxParts { queue, n_queues, commands: [heads, bodies], completions, .. } = parts;
        let (heads, enough) = Posted::new(heads, false, pool);
        let (bodies, enough_more) = Posted::new(bodies, true, pool);
        let rx = Rx {
            n_queues,
            rings: Some(Rings { posted: [heads, bodies], completions }),
            bells: parts.bells,
            queues: parts.queues,
            described_at: parts.described_at,
            assembly: Assembly { queue, partial: None, shared: parts.shared, stats: parts.stats },
            findings: parts.findings,
            tags: parts.tags,
            strips: false,
        };
        (enough && enough_more).then_some(rx)
    }

    /// Tells the device of all buffers there are.
    pub(super) fn ring_doorbells(&self) {
        let Some(rings) = &self.rings else { return };
        for (posted, bell) in rings.posted.iter().zip(&self.bells) {
            bell.ring(posted.ring.fill_slot().into());
        }
    }

    /// After a burst: hands the fresh buffers over. Most devices watch the rings and want no doorbells.
    #[inline(always)]
    fn publish(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        rings.posted.iter_mut().for_each(|posted| posted.ring.publish());
        if self.queues.load32(self.described_at + queue::UPDATE_RX_PROD) & 0xff != 0 {
            self.ring_doorbells();
        }
    }
}

/// Which ring a completion is of, if it can be true.
#[inline(always)]
fn ring_of(done: Done, rings: &Rings, own: u16, n_queues: u16) -> Result<usize, &'static str> {
    // Some devices leave the kind of the usual ones at zero.
    if !matches!(done.kind(), 0 | Done::RX) {
        return Err("a completion of a kind that was not asked for");
    }
    let ring = match done.queue() {
        queue if queue == own => 0,
        queue if queue == own + n_queues => 1,
        _ => return Err("a completion of a queue that is not this one"),
    };
    let Some(posted) = rings.posted.get(ring) else { return Err("a completion of no ring") };
    if done.index() != posted.ring.done_slot() || posted.ring.n_out() == 0 {
        return Err("a descriptor was completed out of turn");
    }
    Ok(ring)
}

impl Assembly {
    #[cold]
    fn fail(&self, what: &'static str, value: u64) {
        self.shared.fail(Fault::Garbage { side: Side::Rx, queue: self.queue, what, value });
    }

    /// One completed buffer that isn't a whole good frame by itself: a piece of one, a damaged one, or garbage.
    /// Returns a frame that it completes.
    #[inline(never)]
    fn take_odd(&mut self, mut buffer: PacketBuf, done: Done, pool: &mut PoolCache) -> Option<PacketBuf> {
        let (len, is_first, is_last) = (done.len_bytes(), done.is_first(), done.is_last());
        let partial = self.partial.take();
        let is_due = partial.is_none();
        let Partial { mut frame, n_buffers } = partial.unwrap_or(Partial { frame: None, n_buffers: 0 });
        let skipping = !is_due && frame.is_none();
        let reason = match () {
            () if skipping => None,
            // A frame goes on in another buffer only where this one is full.
            () if is_first != is_due || len > DATA_ROOM || len == 0 || (!is_last && len != DATA_ROOM) => {
                Some(DropReason::DeviceGarbage)
            }
            () if is_last && done.is_damaged() => Some(DropReason::DeviceError),
            () if is_first && is_last && len < ETHERNET_HEADER => Some(DropReason::Runt),
            () => None,
        };
        if let Some(reason) = reason {
            self.stats.dropped(reason, 1);
            frame.take().into_iter().for_each(|frame| pool.free(frame));
        }
        if skipping || reason.is_some() {
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
            self.fail("a frame that never ends", done.0[1]);
            return None;
        }
        self.partial = Some(Partial { frame, n_buffers });
        None
    }
}

/// Makes a frame what it has to be with its tag or without, whatever the device did; how many bytes it was longer on the wire
/// than it came.
#[inline(never)]
fn settle_tag(
    frame: &mut PacketBuf,
    stripped: Option<u16>,
    strips: bool,
    pool: &mut PoolCache,
) -> Result<u64, DropReason> {
    match stripped {
        None => vlan::remove_tag(frame, pool).map(|()| 0),
        Some(_) if strips => Ok(vlan::TAG_BYTES as u64),
        Some(tag) => Ok(vlan::put_back(frame, tag)),
    }
}

impl<B: Registers> RxQueue for Rx<B> {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        if self.assembly.shared.fault().is_some() {
            return 0;
        }
        let Some(rings) = &mut self.rings else { return 0 };
        let room = out.room();
        let (mut n, mut n_done, mut bytes) = (0, 0, 0);
        let (mut n_right, mut n_wrong, mut n_stripped) = (0, 0, 0);
        while n < room && n_done < MAX_DESCRIPTORS {
            let Some(done) = rings.completions.peek() else { break };
            let ring = match ring_of(done, rings, self.assembly.queue, self.n_queues) {
                Ok(ring) => ring,
                Err(what) => {
                    self.assembly.stats.dropped(DropReason::DeviceGarbage, 1);
                    self.assembly.fail(what, done.0[0]);
                    break;
                }
            };
            let Some(fresh) = pool.alloc() else { break };
            rings.completions.advance();
            n_done += 1;
            let Some(mut buffer) = rings.posted.get_mut(ring).and_then(|posted| posted.exchange(fresh))
            else {
                debug_assert!(false, "every descriptor that is out has a buffer");
                continue;
            };
            let len = done.len_bytes();
            let is_plain = done.is_first()
                && done.is_last()
                && !done.is_damaged()
                && self.assembly.partial.is_none()
                && (ETHERNET_HEADER..=DATA_ROOM).contains(&len);
            let frame = if is_plain {
                let fits = buffer.set_len(len);
                debug_assert!(fits.is_ok(), "the length was checked");
                bytes += len as u64;
                Some(buffer)
            } else {
                let frame = self.assembly.take_odd(buffer, done, pool);
                bytes += frame.as_ref().map_or(0, PacketBuf::total_len) as u64;
                frame
            };
            let Some(mut frame) = frame else {
                if self.assembly.shared.fault().is_some() {
                    break;
                }
                continue;
            };
            let stripped = done.stripped_tag();
            if self.strips || stripped.is_some() {
                match settle_tag(&mut frame, stripped, self.strips, pool) {
                    Ok(more) => bytes += more,
                    Err(reason) => {
                        bytes -= frame.total_len() as u64;
                        self.assembly.stats.dropped(reason, 1);
                        pool.free(frame);
                        continue;
                    }
                }
                n_stripped += u64::from(self.strips && stripped.is_some());
            }
            match done.checksum() {
                Checksum::Unknown => {}
                Checksum::Right => {
                    frame.set_verified(true);
                    n_right += 1;
                }
                Checksum::Wrong => n_wrong += 1,
            }
            n += 1;
            let pushed = out.push(frame);
            debug_assert!(pushed.is_ok(), "no more are taken than there is room");
        }
        if n_done > 0 {
            self.publish();
            self.findings.right.add(n_right);
            self.findings.wrong.add(n_wrong);
            self.findings.stripped.add(n_stripped);
        }
        self.assembly.stats.moved(n, bytes);
        n
    }

    fn strip_vlan(&mut self, on: bool) -> bool {
        self.strips = on;
        self.tags.ask_to_strip(self.assembly.queue, on);
        true
    }

    fn stats(&self) -> SharedStats {
        self.assembly.stats.clone()
    }
}

impl<B: Registers> Drop for Rx<B> {
    fn drop(&mut self) {
        if let Some(Rings { posted: [heads, bodies], completions }) = self.rings.take() {
            self.assembly.shared.park(Parked {
                side: Side::Rx,
                _rings: (vec![heads.ring, bodies.ring], completions),
                buffers: vec![heads.buffers, bodies.buffers],
            });
        }
    }
}
