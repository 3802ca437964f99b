//! The receiving half of virtio-net (virtio 1.2, 5.1.6.3 and 5.1.6.4), compiled for both layouts of rings. Owned by the
//! core that polls it.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::counters::Checksums;
use super::desc::NetHdr;
use super::queue::{Doorbell, Parked, Ring, Shared, lie};
use super::ring::{DriverRing, Segment};
use crate::burst::{BURST, Burst};
use crate::dma::{DATA_ROOM, HEADROOM, Offload, PacketBuf, PoolCache};
use crate::nic::fault::{Fault, Side};
use crate::offload::{F_DATA_VALID, F_NEEDS_CSUM, Offloads, accept};
use crate::pci::Registers;
use crate::port::RxQueue;
use crate::stats::{DropReason, SharedStats};

/// Most buffers one frame takes: 64 KiB.
const MAX_BUFFERS: u16 = 33;
const ETHERNET_HEADER: usize = 14;

/// A frame of several buffers, some of them still to come. Without its packet it is passed over.
struct Partial {
    frame: Option<PacketBuf>,
    header: NetHdr,
    missing: u16,
}

/// What a receiving half is made of, besides its ring.
pub(super) struct RxParts<B: Registers> {
    /// Number of the pair.
    pub(super) queue: u16,
    pub(super) doorbell: Doorbell<B>,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: SharedStats,
    pub(super) checksums: Arc<Checksums>,
    /// A frame may take several buffers.
    pub(super) mergeable: bool,
    /// Work that frames may still need.
    pub(super) takes: Offloads,
}

pub(super) struct Rx<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> {
    /// `None` only while dropping.
    ring: Option<R>,
    parts: RxParts<B>,
    partial: Option<Partial>,
}

/// Gives one fresh buffer to the device: the header lands in the headroom, the frame where it belongs.
#[inline(always)]
fn post(ring: &mut impl DriverRing<PacketBuf>, mut buffer: PacketBuf) -> Result<(), PacketBuf> {
    let room = buffer.reserve(HEADROOM - NetHdr::BYTES);
    debug_assert!(room.is_ok(), "a fresh buffer is empty");
    let whole = [Segment::writable(buffer.iova().0, (NetHdr::BYTES + DATA_ROOM) as u32)];
    ring.post(&whole, buffer)
}

/// Fills free descriptors with fresh buffers, at most `limit`; returns how many.
#[inline(always)]
fn refill(ring: &mut impl DriverRing<PacketBuf>, pool: &mut PoolCache, limit: usize) -> usize {
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

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> Rx<R, B> {
    /// Takes an empty ring and fills it. `None` when the pool has not enough buffers: a ring that starts short
    /// would stay so. The device sees them when it starts, which is before it may be told by doorbell.
    pub(super) fn new(mut ring: R, parts: RxParts<B>, pool: &mut PoolCache) -> Option<Self> {
        let size = usize::from(ring.size());
        let filled = refill(&mut ring, pool, size);
        ring.publish();
        let rx = Rx { ring: Some(ring), parts, partial: None };
        (filled == size).then_some(rx)
    }

    /// Turns one completed buffer into a frame, or a piece of one. `Ok(None)`: more is to come, or it was dropped.
    #[inline(always)]
    fn take(
        &mut self,
        mut buffer: PacketBuf,
        len: usize,
        pool: &mut PoolCache,
    ) -> Result<Option<PacketBuf>, Fault> {
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
        let n_buffers = if self.parts.mergeable { header.num_buffers } else { 1 };
        if n_buffers > MAX_BUFFERS {
            self.drop_frame(buffer, DropReason::DeviceGarbage, pool);
            let (queue, what) = (self.parts.queue, "a frame claims more buffers than any can have");
            return Err(Fault::Garbage { side: Side::Rx, queue, what, value: n_buffers.into() });
        }
        let stripped = buffer.pull_front(NetHdr::BYTES);
        debug_assert!(stripped.is_ok(), "the header was parsed from these bytes");
        if n_buffers == 1 && buffer.len() >= ETHERNET_HEADER {
            return Ok(self.judge(buffer, &header, pool));
        }
        Ok(self.take_first(buffer, header, n_buffers, pool))
    }

    /// A whole frame, with what its header says about checksums and segments.
    #[inline(always)]
    fn judge(&self, frame: PacketBuf, header: &NetHdr, pool: &mut PoolCache) -> Option<PacketBuf> {
        if header.flags | header.gso_type == 0 {
            return Some(frame);
        }
        self.judge_work(frame, header, pool)
    }

    /// The header is the device's word: work that is not true of this frame, or was not negotiated, is no frame.
    #[inline(never)]
    fn judge_work(&self, mut frame: PacketBuf, header: &NetHdr, pool: &mut PoolCache) -> Option<PacketBuf> {
        let NetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, .. } = *header;
        let request = Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset };
        match accept::accept(&request, &frame, self.parts.takes) {
            Ok(Some(work)) => {
                self.parts.checksums.undone.add(1);
                frame.set_offload(Some(work));
            }
            Ok(None) => {
                let right = flags & (F_DATA_VALID | F_NEEDS_CSUM) == F_DATA_VALID
                    && self.parts.takes.contains(Offloads::CSUM);
                self.parts.checksums.right.add(u64::from(right));
                frame.set_verified(right);
            }
            Err(reason) => {
                self.drop_frame(frame, reason, pool);
                return None;
            }
        }
        Some(frame)
    }

    #[cold]
    fn take_first(
        &mut self,
        buffer: PacketBuf,
        header: NetHdr,
        n_buffers: u16,
        pool: &mut PoolCache,
    ) -> Option<PacketBuf> {
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
            self.partial = Some(Partial { frame, header, missing });
        }
        None
    }

    #[inline(never)]
    fn take_more(&mut self, buffer: PacketBuf, pool: &mut PoolCache) -> Option<PacketBuf> {
        let Partial { mut frame, header, missing } = self.partial.take()?;
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
            self.partial = Some(Partial { frame, header, missing: missing - 1 });
            return None;
        }
        self.judge(frame?, &header, pool)
    }

    #[cold]
    fn drop_frame(&self, frame: PacketBuf, reason: DropReason, pool: &mut PoolCache) {
        self.parts.stats.dropped(reason, 1);
        pool.free(frame);
    }
}

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> RxQueue for Rx<R, B> {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        if self.parts.shared.fault().is_some() {
            return 0;
        }
        // More than a burst short and nothing to refill with: the frames wait in the ring.
        if ring.n_free() >= BURST && refill(ring, pool, BURST) == 0 {
            return 0;
        }
        let mut done = ArrayVec::<(PacketBuf, u32), BURST>::new();
        let reaped = ring.reap(out.room(), |buffer, len| done.push((buffer, len)));
        if let Err(fault) = reaped {
            self.parts.shared.fail(lie(Side::Rx, self.parts.queue, fault));
            self.parts.stats.dropped(DropReason::DeviceGarbage, 1);
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
                Err(fault) => self.parts.shared.fail(fault),
            }
        }
        let Some(ring) = &mut self.ring else { return n };
        refill(ring, pool, 2 * BURST);
        if ring.publish() {
            self.parts.doorbell.ring();
        }
        self.parts.stats.moved(n, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.parts.stats.clone()
    }
}

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> Drop for Rx<R, B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.parts.shared.park(Parked::other(ring));
        }
    }
}
