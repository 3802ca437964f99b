//! The sending half of virtio-net (virtio 1.2, 5.1.6.2). Owned by the core that sends.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::desc::NetHdr;
use super::init::Doorbell;
use super::ring::Segment;
use super::stats::{NetFault, Ring, Shared, Side};
use crate::burst::Burst;
use crate::dma::{PacketBuf, PoolCache};
use crate::pci::Registers;
use crate::port::TxQueue;
use crate::stats::{DropReason, SharedStats};
use crate::tsc;

/// Most pieces of one frame, with its header: 64 KiB.
const MAX_SEGMENTS: usize = 34;
/// Completions taken back before a burst: twice what a burst adds, so that a backlog shrinks.
const REAP: usize = 64;
const ETHERNET_HEADER: usize = 14;
/// No offloads, one buffer.
const PLAIN: [u8; NetHdr::BYTES] = [0; NetHdr::BYTES];

pub(super) struct Tx<B: Registers> {
    /// `None` only while dropping.
    ring: Option<Ring>,
    doorbell: Doorbell<B>,
    shared: Arc<Shared>,
    stats: SharedStats,
    max_frame_bytes: usize,
    /// How long the device may go without completing anything while it has frames.
    limit_ticks: u64,
    last_progress: u64,
}

impl<B: Registers> Tx<B> {
    pub(super) fn new(
        ring: Ring,
        doorbell: Doorbell<B>,
        shared: Arc<Shared>,
        stats: SharedStats,
        max_frame_bytes: usize,
        limit_ticks: u64,
    ) -> Self {
        let last_progress = tsc::now();
        Tx { ring: Some(ring), doorbell, shared, stats, max_frame_bytes, limit_ticks, last_progress }
    }

    /// Takes sent buffers back, and watches that the device gets on.
    #[inline(always)]
    fn reap(&mut self, pool: &mut PoolCache) {
        let Some(ring) = &mut self.ring else { return };
        let was_idle = ring.outstanding() == 0;
        let reaped = ring.reap(REAP, |frame, _| pool.free(frame));
        self.watch(was_idle, reaped.map_err(NetFault::Tx));
    }

    #[inline(always)]
    fn watch(&mut self, was_idle: bool, reaped: Result<usize, NetFault>) {
        let now = tsc::now();
        match reaped {
            Ok(0) if was_idle => self.last_progress = now,
            Ok(0) if now.wrapping_sub(self.last_progress) <= self.limit_ticks => {}
            Ok(0) => {
                let n_frames = self.ring.as_ref().map_or(0, |ring| ring.outstanding());
                self.shared.fail(NetFault::TxHang { n_frames });
            }
            Ok(_) => self.last_progress = now,
            Err(fault) => self.shared.fail(fault),
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
            Some(NetFault::TxHang { .. }) => Some(DropReason::TxTimeout),
            Some(_) => Some(DropReason::DeviceError),
        }
    }

    /// Why this frame can't be sent, if so.
    #[inline(always)]
    fn unfit(&self, frame: &PacketBuf) -> Option<DropReason> {
        match frame.total_len() {
            n if n < ETHERNET_HEADER => Some(DropReason::Runt),
            n if n > self.max_frame_bytes => Some(DropReason::Oversize),
            _ if frame.is_chained() && frame.n_segments() + 1 >= MAX_SEGMENTS => Some(DropReason::Oversize),
            _ => None,
        }
    }
}

/// Puts the header in front: in the headroom, or in a buffer of its own when there is none or somebody else reads
/// the frame too. Gives the frame back when there is no such buffer.
#[inline(always)]
fn with_header(mut frame: PacketBuf, pool: &mut PoolCache) -> Result<PacketBuf, PacketBuf> {
    if !needs_header_buffer(&frame) && frame.push_front(NetHdr::BYTES).is_ok() {
        frame.data_mut()[..NetHdr::BYTES].copy_from_slice(&PLAIN);
        return Ok(frame);
    }
    let Some(mut header) = pool.alloc() else { return Err(frame) };
    let fits = header.append(&PLAIN);
    debug_assert!(fits.is_ok(), "an empty buffer has room for a header");
    header.chain(frame);
    Ok(header)
}

#[inline(always)]
fn needs_header_buffer(frame: &PacketBuf) -> bool {
    frame.headroom() < NetHdr::BYTES || frame.is_shared()
}

/// Gives a frame with its header to the device. The caller has made sure of the descriptors.
#[inline(always)]
fn post(ring: &mut Ring, frame: PacketBuf) -> Result<(), PacketBuf> {
    if !frame.is_chained() {
        let whole = [Segment::readable(frame.iova().0, frame.len() as u32)];
        return ring.post(&whole, frame);
    }
    let mut segments = ArrayVec::<Segment, MAX_SEGMENTS>::new();
    for piece in frame.segment_bufs().filter(|piece| piece.len() > 0).take(MAX_SEGMENTS) {
        segments.push(Segment::readable(piece.iova().0, piece.len() as u32));
    }
    ring.post(&segments, frame)
}

impl<B: Registers> TxQueue for Tx<B> {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.reap(pool);
        if let Some(reason) = self.closed() {
            let n = from.free_all(pool);
            self.stats.dropped(reason, n);
            return n;
        }
        let n_free = self.ring.as_ref().map_or(0, Ring::n_free);
        // One descriptor a segment, and one for a header that can't be in the headroom.
        let (mut n, mut needed) = (0, 0);
        for frame in from.iter() {
            needed += frame.n_segments() + usize::from(needs_header_buffer(frame));
            if needed > n_free {
                break;
            }
            n += 1;
        }
        let (mut sent, mut bytes) = (0, 0);
        for frame in from.take_front(n) {
            if let Some(reason) = self.unfit(&frame) {
                self.stats.dropped(reason, 1);
                pool.free(frame);
                continue;
            }
            let len = frame.total_len() as u64;
            let Some(ring) = &mut self.ring else { continue };
            match with_header(frame, pool)
                .map_err(|f| (DropReason::NoBuffer, f))
                .and_then(|frame| post(ring, frame).map_err(|f| (DropReason::RingFull, f)))
            {
                Ok(()) => (sent, bytes) = (sent + 1, bytes + len),
                Err((reason, frame)) => {
                    self.stats.dropped(reason, 1);
                    pool.free(frame);
                }
            }
        }
        if let Some(ring) = &mut self.ring
            && ring.publish()
        {
            self.doorbell.ring();
        }
        self.stats.moved(sent, bytes);
        n
    }

    fn poll_control(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let was_idle = ring.outstanding() == 0;
        let reaped = ring.reap(REAP, |frame, _| drop(frame));
        self.watch(was_idle, reaped.map_err(NetFault::Tx));
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl<B: Registers> Drop for Tx<B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.shared.park(Side::Tx, ring);
        }
    }
}
