//! The sending half of vmxnet3. Owned by the core that sends.
//!
//! One completion is asked for with the last descriptor of a burst, and one doorbell rung, unless the device has said that
//! it wants to hear of more frames at a time.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::area::Area;
use super::config::queue;
use super::desc::{Done, MAX_SEGMENTS, TX_TAG, tx_checksum, tx_data, tx_report, tx_tag};
use super::ring::{CommandRing, CompletionRing};
use super::{Parked, Shared};
use crate::burst::{BURST, Burst};
use crate::dma::{PacketBuf, PoolCache};
use crate::nic::fault::{Fault, Side};
use crate::nic::regs::Doorbell;
use crate::nic::tags::Tagging;
use crate::nic::watchdog::Watchdog;
use crate::offload::{Offload, Offloads, checksum};
use crate::pci::Registers;
use crate::port::TxQueue;
use crate::stats::{Counter, DropReason, SharedStats};
use crate::vlan;

const ETHERNET_HEADER: usize = 14;
/// Work the device does.
const OFFLOADS: Offloads = Offloads::CSUM;

/// What a sending half is made of.
pub(super) struct TxParts<B: Registers> {
    pub(super) queue: u16,
    pub(super) commands: CommandRing,
    pub(super) completions: CompletionRing,
    pub(super) bell: Doorbell<B>,
    /// Descriptions of queues, and where in them this one is.
    pub(super) queues: Arc<Area>,
    pub(super) described_at: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: SharedStats,
    pub(super) max_frame_bytes: usize,
    /// How long the device may go without completing anything while it has frames.
    pub(super) limit: Duration,
    /// Frames the device was to insert a tag in.
    pub(super) inserted: Arc<Counter>,
}

struct Rings {
    commands: CommandRing,
    completions: CompletionRing,
}

pub(super) struct Tx<B: Registers> {
    queue: u16,
    /// `None` only while dropping.
    rings: Option<Rings>,
    /// The frame is with its last descriptor.
    buffers: Box<[Option<PacketBuf>]>,
    bell: Doorbell<B>,
    queues: Arc<Area>,
    described_at: usize,
    /// Frames posted since the last doorbell.
    n_deferred: u32,
    shared: Arc<Shared>,
    stats: SharedStats,
    max_frame_bytes: usize,
    watchdog: Watchdog,
    /// The tag that frames get.
    tagging: Option<Tagging>,
    inserted: Arc<Counter>,
}

impl<B: Registers> Tx<B> {
    /// An empty queue.
    pub(super) fn new(parts: TxParts<B>) -> Self {
        Tx {
            queue: parts.queue,
            buffers: (0..parts.commands.size()).map(|_| None).collect(),
            rings: Some(Rings { commands: parts.commands, completions: parts.completions }),
            bell: parts.bell,
            queues: parts.queues,
            described_at: parts.described_at,
            n_deferred: 0,
            shared: parts.shared,
            stats: parts.stats,
            max_frame_bytes: parts.max_frame_bytes,
            watchdog: Watchdog::new(parts.limit),
            tagging: None,
            inserted: parts.inserted,
        }
    }

    #[cold]
    fn fail(&self, what: &'static str, value: u64) {
        self.shared.fail(Fault::Garbage { side: Side::Tx, queue: self.queue, what, value });
    }

    /// Takes sent frames back, and watches that the device gets on.
    #[inline(always)]
    fn reap(&mut self, mut free: impl FnMut(PacketBuf)) {
        let Some(rings) = &mut self.rings else { return };
        let was_idle = rings.commands.n_out() == 0;
        let (mut progressed, mut lie) = (false, None);
        // Each takes at least one descriptor off the ring.
        while let Some(done) = rings.completions.peek() {
            let mask = rings.commands.size() - 1;
            let n = (done.index().wrapping_sub(rings.commands.done_slot()) & mask) + 1;
            let ends_frame = self.buffers.get(usize::from(done.index())).is_some_and(Option::is_some);
            if done.kind() != Done::TX || n > rings.commands.n_out() || !ends_frame {
                lie = Some(done.0[0]);
                break;
            }
            rings.completions.advance();
            progressed = true;
            for _ in 0..n {
                let slot = usize::from(rings.commands.done_slot());
                if let Some(frame) = self.buffers.get_mut(slot).and_then(Option::take) {
                    free(frame);
                }
                rings.commands.complete();
            }
        }
        let n_descriptors = rings.commands.n_out();
        if let Some(value) = lie {
            self.fail("a descriptor was completed that was never posted", value);
            return;
        }
        // Without a link nothing is sent, and that is no hang.
        let excused = was_idle || self.shared.link_is_down();
        if self.watchdog.is_hung(excused, progressed) {
            self.shared.fail(Fault::TxHang { queue: self.queue, n_descriptors });
        }
    }

    /// Why nothing can be sent at all, if so.
    #[inline(always)]
    fn closed(&self) -> Option<DropReason> {
        if self.shared.link_is_down() {
            return Some(DropReason::LinkDown);
        }
        match self.shared.fault() {
            None => None,
            Some(Fault::TxHang { .. }) => Some(DropReason::TxTimeout),
            Some(_) => Some(DropReason::DeviceError),
        }
    }

    /// Makes a frame one that the device takes as it is, or says why there is none. What the device is to do with it, and
    /// how long that makes it.
    #[inline(always)]
    fn fit(&self, frame: &mut PacketBuf, pool: &mut PoolCache) -> Result<(u64, usize), DropReason> {
        let tag = self.tagging.map_or(Ok(None), |tagging| tagging.put(frame, pool))?;
        let len = frame.total_len() + tag.map_or(0, |_| vlan::TAG_BYTES);
        let tag = tag.map_or(0, tx_tag);
        if len < ETHERNET_HEADER {
            return Err(DropReason::Runt);
        }
        if len > self.max_frame_bytes || (frame.is_chained() && frame.n_segments() > MAX_SEGMENTS) {
            return Err(DropReason::Oversize);
        }
        let Some(work) = frame.offload() else { return Ok((tag, len)) };
        match tx_checksum(&work) {
            Some(bits) => Ok((tag | bits, len)),
            None => complete(frame, &work, pool).map(|()| (tag, len)),
        }
    }

    /// Posts a frame; returns its last descriptor. The caller has made sure that there is room.
    #[inline(always)]
    fn post(&mut self, frame: PacketBuf, work: u64) -> [u64; 2] {
        let Some(rings) = &mut self.rings else { return [0; 2] };
        let last = if frame.is_chained() {
            push_pieces(&mut rings.commands, &frame, work)
        } else {
            let words = tx_data(frame.iova(), frame.len(), true, work);
            rings.commands.push(words);
            words
        };
        let mask = rings.commands.size() - 1;
        let slot = rings.commands.fill_slot().wrapping_sub(1) & mask;
        if let Some(slot) = self.buffers.get_mut(usize::from(slot)) {
            debug_assert!(slot.is_none(), "a free descriptor has no frame");
            *slot = Some(frame);
        }
        last
    }

    /// Hands a burst of `n` frames over, the last one asking for a completion.
    #[inline(always)]
    fn publish(&mut self, n: u32, last: [u64; 2]) {
        let Some(Rings { commands, .. }) = &mut self.rings else { return };
        commands.amend_last(tx_report(last));
        commands.publish();
        let tail = commands.fill_slot();
        self.n_deferred += n;
        let wanted = self.queues.load32(self.described_at + queue::TX_THRESHOLD);
        // A threshold above a burst would leave frames lying about that nothing follows.
        if self.n_deferred >= wanted.min(BURST as u32) {
            self.n_deferred = 0;
            self.bell.ring(tail.into());
        }
        self.queues.store32(self.described_at + queue::TX_NUM_DEFERRED, self.n_deferred);
    }
}

/// The pieces of a frame of several buffers; returns the last descriptor.
#[inline(never)]
fn push_pieces(commands: &mut CommandRing, frame: &PacketBuf, work: u64) -> [u64; 2] {
    let mut pieces = ArrayVec::<_, MAX_SEGMENTS>::new();
    for piece in frame.segment_bufs().filter(|piece| piece.len() > 0).take(MAX_SEGMENTS) {
        pieces.push((piece.iova(), piece.len()));
    }
    let (n, mut last) = (pieces.len(), [0; 2]);
    for (index, (at, len)) in pieces.into_iter().enumerate() {
        last = tx_data(at, len, index + 1 == n, if index == 0 { work } else { 0 });
        commands.push(last);
    }
    last
}

/// Completes a checksum in software.
#[cold]
fn complete(frame: &mut PacketBuf, work: &Offload, pool: &mut PoolCache) -> Result<(), DropReason> {
    frame.own_chain(pool).map_err(|_| DropReason::NoBuffer)?;
    checksum::complete(frame, work).map_err(|_| DropReason::BadOffload)
}

/// Work that a frame brings and that the device doesn't do: such a frame stays with the caller.
#[inline(always)]
fn is_beyond(frame: &PacketBuf) -> bool {
    frame.has_offload() && frame.offload().is_some_and(|work| !OFFLOADS.contains(work.needs()))
}

impl<B: Registers> TxQueue for Tx<B> {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.reap(|frame| pool.free(frame));
        if let Some(reason) = self.closed() {
            let n = from.free_all(pool);
            self.stats.dropped(reason, n);
            return n;
        }
        let Some(Rings { commands, .. }) = &self.rings else { return 0 };
        let n_free = usize::from(commands.n_free());
        let (mut n, mut needed) = (0, 0);
        for frame in from.iter() {
            needed += if frame.is_chained() { frame.n_segments().min(MAX_SEGMENTS) } else { 1 };
            if needed > n_free || is_beyond(frame) {
                break;
            }
            n += 1;
        }
        let (mut sent, mut bytes, mut n_inserted, mut last) = (0, 0, 0, [0; 2]);
        for mut frame in from.take_front(n) {
            match self.fit(&mut frame, pool) {
                Ok((work, len)) => {
                    bytes += len as u64;
                    n_inserted += u64::from(work & TX_TAG != 0);
                    sent += 1;
                    last = self.post(frame, work);
                }
                Err(reason) => {
                    self.stats.dropped(reason, 1);
                    pool.free(frame);
                }
            }
        }
        if sent > 0 {
            self.publish(sent, last);
            self.inserted.add(n_inserted);
        }
        self.stats.moved(sent as usize, bytes);
        n
    }

    fn offloads(&mut self) -> Offloads {
        OFFLOADS
    }

    fn insert_vlan(&mut self, tag: Option<u16>) -> bool {
        self.tagging = tag.map(|tag| Tagging { tag, by_card: true });
        true
    }

    fn poll_control(&mut self) {
        self.reap(drop);
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl<B: Registers> Drop for Tx<B> {
    fn drop(&mut self) {
        if let Some(Rings { commands, completions }) = self.rings.take() {
            let buffers = vec![std::mem::take(&mut self.buffers)];
            self.shared.park(Parked { side: Side::Tx, _rings: (vec![commands], completions), buffers });
        }
    }
}
