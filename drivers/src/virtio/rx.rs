//! The receiving half of virtio-net (virtio 1.2, 5.1.6.3 and 5.1.6.4). Owned by the core that polls it.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::desc::NetHdr;
use super::init::Doorbell;
use super::ring::Segment;
use super::stats::{NetFault, Ring, Shared, Side};
use crate::burst::{BURST, Burst};
use crate::dma::{DATA_ROOM, HEADROOM, PacketBuf, PoolCache};
use crate::pci::Registers;
use crate::port::RxQueue;
use crate::stats::{DropReason, SharedStats};

/// Most buffers one frame takes: 64 KiB.
const MAX_BUFFERS: u16 = 33;
const ETHERNET_HEADER: usize = 14;

/// A frame of several buffers, some of them still to come. Without its packet it is passed over.
struct Partial {
    frame: Option<PacketBuf>,
    missing: u16,
}

pub(super) struct Rx<B: Registers> {
    /// `None` only while dropping.
    ring: Option<Ring>,
    doorbell: Doorbell<B>,
    shared: Arc<Shared>,
    stats: SharedStats,
    mergeable: bool,
    partial: Option<Partial>,
}

/// Gives one fresh buffer to the device: the header lands in the headroom, the frame where it belongs.
#[inline(always)]
fn post(ring: &mut Ring, mut buffer: PacketBuf) -> Result<(), PacketBuf> {
    let room = buffer.reserve(HEADROOM - NetHdr::BYTES);
    debug_assert!(room.is_ok(), "a fresh buffer is empty");
    let whole = [Segment::writable(buffer.iova().0, (NetHdr::BYTES + DATA_ROOM) as u32)];
    ring.post(&whole, buffer)
}

/// Fills free descriptors with fresh buffers, at most `limit`; returns how many.
#[inline(always)]
fn refill(ring: &mut Ring, pool: &mut PoolCache, limit: usize) -> usize {
    let wanted = ring.n_free().min(limit);
    for n in 0..wanted {
        let Some(buffer) = pool.alloc() else { return n };
        if let Err(buffer) = post(ring, buffer) {
            pool.free(buffer);
            return n;
        }
    }
    wanted
}

impl<B: Registers> Rx<B> {
    /// Takes an empty ring and fills it. `None` when the pool has not enough buffers: a ring that starts short
    /// would stay so. The device is told by [`start`](Self::start).
    pub(super) fn new(
        mut ring: Ring,
        doorbell: Doorbell<B>,
        shared: Arc<Shared>,
        stats: SharedStats,
        mergeable: bool,
        pool: &mut PoolCache,
    ) -> Option<Self> {
        let size = usize::from(ring.size());
        if refill(&mut ring, pool, size) < size {
            return None;
        }
        Some(Rx { ring: Some(ring), doorbell, shared, stats, mergeable, partial: None })
    }

    /// Shows the device the first buffers; after DRIVER_OK.
    pub(super) fn start(&mut self) {
        if let Some(ring) = &mut self.ring
            && ring.publish()
        {
            self.doorbell.ring();
        }
    }

    /// Turns one completed buffer into a frame, or a piece of one. `Ok(None)`: more is to come, or it was dropped.
    #[inline(always)]
    fn take(
        &mut self,
        mut buffer: PacketBuf,
        len: usize,
        pool: &mut PoolCache,
    ) -> Result<Option<PacketBuf>, NetFault> {
        if buffer.set_len(len).is_err() {
            debug_assert!(false, "the ring has checked the length against the buffer");
            pool.free(buffer);
            return Ok(None);
        }
        if self.partial.is_some() {
            return Ok(self.take_more(buffer, pool));
        }
        let Some(header) = NetHdr::parse(buffer.data()) else {
            self.drop_frame(buffer, DropReason::DeviceGarbage, pool);
            return Ok(None);
        };
        let n_buffers = if self.mergeable { header.num_buffers } else { 1 };
        if n_buffers > MAX_BUFFERS {
            self.drop_frame(buffer, DropReason::DeviceGarbage, pool);
            return Err(NetFault::TooManyBuffers(n_buffers));
        }
        let stripped = buffer.pull_front(NetHdr::BYTES);
        debug_assert!(stripped.is_ok(), "the header was parsed from these bytes");
        if n_buffers == 1 && buffer.len() >= ETHERNET_HEADER {
            return Ok(Some(buffer));
        }
        Ok(self.take_first(buffer, n_buffers, pool))
    }

    #[cold]
    fn take_first(&mut self, buffer: PacketBuf, n_buffers: u16, pool: &mut PoolCache) -> Option<PacketBuf> {
        let reason = match (n_buffers, buffer.len()) {
            (0, _) | (_, 0) => Some(DropReason::DeviceGarbage),
            (_, n) if n < ETHERNET_HEADER => Some(DropReason::Runt),
            _ => None,
        };
        let missing = n_buffers.saturating_sub(1);
        let frame = match reason {
            Some(reason) => {
                self.drop_frame(buffer, reason, pool);
                None
            }
            None => Some(buffer),
        };
        if missing > 0 {
            self.partial = Some(Partial { frame, missing });
        }
        None
    }

    #[inline(never)]
    fn take_more(&mut self, buffer: PacketBuf, pool: &mut PoolCache) -> Option<PacketBuf> {
        let Partial { mut frame, missing } = self.partial.take()?;
        match &mut frame {
            Some(head) if buffer.len() > 0 => head.last_segment_mut().chain(buffer),
            Some(_) => {
                pool.free(buffer);
                let head = frame.take()?;
                self.drop_frame(head, DropReason::DeviceGarbage, pool);
            }
            None => pool.free(buffer),
        }
        if missing > 1 {
            self.partial = Some(Partial { frame, missing: missing - 1 });
            return None;
        }
        frame
    }

    #[cold]
    fn drop_frame(&self, frame: PacketBuf, reason: DropReason, pool: &mut PoolCache) {
        self.stats.dropped(reason, 1);
        pool.free(frame);
    }
}

impl<B: Registers> RxQueue for Rx<B> {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        if self.shared.fault().is_some() {
            return 0;
        }
        // More than a burst short and nothing to refill with: the frames wait in the ring.
        if ring.n_free() >= BURST && refill(ring, pool, BURST) == 0 {
            return 0;
        }
        let mut done = ArrayVec::<(PacketBuf, u32), BURST>::new();
        let reaped = ring.reap(out.room(), |buffer, len| done.push((buffer, len)));
        if let Err(fault) = reaped {
            self.shared.fail(NetFault::Rx(fault));
            self.stats.dropped(DropReason::DeviceGarbage, 1);
        }
        let (mut n, mut bytes) = (0, 0);
        for (buffer, len) in done.drain(..) {
            match self.take(buffer, len as usize, pool) {
                Ok(Some(frame)) => {
                    bytes += frame.total_len() as u64;
                    n += 1;
                    let pushed = out.push(frame);
                    debug_assert!(pushed.is_ok(), "no more are reaped than there is room");
                }
                Ok(None) => {}
                Err(fault) => self.shared.fail(fault),
            }
        }
        let Some(ring) = &mut self.ring else { return n };
        refill(ring, pool, 2 * BURST);
        if ring.publish() {
            self.doorbell.ring();
        }
        self.stats.moved(n, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl<B: Registers> Drop for Rx<B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.shared.park(Side::Rx, ring);
        }
    }
}
