//! The sending half of virtio-net (virtio 1.2, 5.1.6.2), compiled for both layouts of rings. Owned by the core that sends.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::desc::NetHdr;
use super::queue::{Doorbell, Parked, Ring, Shared, lie};
use super::ring::{DriverRing, Segment};
use crate::burst::Burst;
use crate::dma::{Offload, PacketBuf, PoolCache};
use crate::nic::fault::{Fault, Side};
use crate::nic::watchdog::Watchdog;
use crate::offload::Offloads;
use crate::pci::Registers;
use crate::port::TxQueue;
use crate::stats::{DropReason, SharedStats};

/// Most pieces of one frame, with its header: 64 KiB and some.
const MAX_SEGMENTS: usize = 36;
/// Completions taken back before a burst: twice what a burst adds, so that a backlog shrinks.
const REAP: usize = 64;
const ETHERNET_HEADER: usize = 14;
/// Longest frame that is to be cut: what an IP length can say, Ethernet header, two tags.
const MAX_LONG_BYTES: usize = 65_535 + ETHERNET_HEADER + 8;
/// No offloads, one buffer.
const PLAIN: [u8; NetHdr::BYTES] = [0; NetHdr::BYTES];

/// What a sending half is made of, besides its ring.
pub(super) struct TxParts<B: Registers> {
    /// Number of the pair.
    pub(super) queue: u16,
    pub(super) doorbell: Doorbell<B>,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: SharedStats,
    /// On the wire; a long frame's segments too.
    pub(super) max_frame_bytes: usize,
    /// Work the device does.
    pub(super) does: Offloads,
    /// How long the device may go without completing anything while it has frames.
    pub(super) limit: Duration,
}

pub(super) struct Tx<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> {
    /// `None` only while dropping.
    ring: Option<R>,
    parts: TxParts<B>,
    /// Most pieces of one frame that the ring takes.
    max_pieces: usize,
    watchdog: Watchdog,
}

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> Tx<R, B> {
    pub(super) fn new(ring: R, parts: TxParts<B>) -> Self {
        let max_pieces = MAX_SEGMENTS.min(ring.size().into());
        Tx { ring: Some(ring), max_pieces, watchdog: Watchdog::new(parts.limit), parts }
    }

    /// Takes sent buffers back, and watches that the device gets on.
    #[inline(always)]
    fn reap(&mut self, mut free: impl FnMut(PacketBuf)) {
        let Some(ring) = &mut self.ring else { return };
        let was_idle = ring.outstanding() == 0;
        let reaped = ring.reap(REAP, |frame, _| free(frame));
        let outstanding = ring.outstanding();
        match reaped {
            Ok(n) => {
                // Without a link a device may keep its frames, and that is no hang.
                let excused = was_idle || self.parts.shared.link_is_down();
                if self.watchdog.is_hung(excused, n > 0) {
                    self.hung(outstanding);
                }
            }
            Err(fault) => self.parts.shared.fail(lie(Side::Tx, self.parts.queue, fault)),
        }
    }

    #[cold]
    fn hung(&self, n_descriptors: u16) {
        self.parts.shared.fail(Fault::TxHang { queue: self.parts.queue, n_descriptors });
    }

    /// Why nothing can be sent at all, if so.
    #[inline(always)]
    fn closed(&self) -> Option<DropReason> {
        if self.parts.shared.link_is_down() {
            return Some(DropReason::LinkDown);
        }
        match self.parts.shared.fault() {
            None => None,
            Some(Fault::TxHang { .. }) => Some(DropReason::TxTimeout),
            Some(_) => Some(DropReason::DeviceError),
        }
    }

    /// Why this frame can't be sent, if so.
    #[inline(always)]
    fn unfit(&self, frame: &PacketBuf) -> Option<DropReason> {
        match frame.total_len() {
            n if n < ETHERNET_HEADER => Some(DropReason::Runt),
            n if n > self.parts.max_frame_bytes && !self.is_cut_to_fit(frame, n) => {
                Some(DropReason::Oversize)
            }
            _ if n_pieces(frame) > self.max_pieces => Some(DropReason::Oversize),
            _ => None,
        }
    }

    /// A long frame whose segments are short enough.
    #[cold]
    fn is_cut_to_fit(&self, frame: &PacketBuf, len_bytes: usize) -> bool {
        let fits = |work: Offload| {
            let segment = usize::from(work.hdr_len) + usize::from(work.gso_size);
            work.is_long() && segment <= self.parts.max_frame_bytes
        };
        len_bytes <= MAX_LONG_BYTES && frame.offload().is_some_and(fits)
    }

    /// Work that a frame brings and that the device doesn't do: such a frame stays with the caller.
    #[inline(always)]
    fn is_beyond(&self, frame: &PacketBuf) -> bool {
        frame.has_offload() && frame.offload().is_some_and(|work| !self.parts.does.contains(work.needs()))
    }
}

/// What the device is told about a frame.
#[inline(always)]
fn header(frame: &PacketBuf) -> [u8; NetHdr::BYTES] {
    if frame.has_offload() { header_with_work(frame) } else { PLAIN }
}

#[inline(never)]
fn header_with_work(frame: &PacketBuf) -> [u8; NetHdr::BYTES] {
    let Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } =
        frame.offload().unwrap_or_default();
    NetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers: 0 }.to_bytes()
}

/// Puts the header in front: in the headroom, or in a buffer of its own when there is none or somebody else reads
/// the frame too. Gives the frame back when there is no such buffer.
#[inline(always)]
fn with_header(mut frame: PacketBuf, pool: &mut PoolCache) -> Result<PacketBuf, PacketBuf> {
    let bytes = header(&frame);
    if !needs_header_buffer(&frame) && frame.push_front(NetHdr::BYTES).is_ok() {
        frame.data_mut()[..NetHdr::BYTES].copy_from_slice(&bytes);
        return Ok(frame);
    }
    let Some(mut header) = pool.alloc() else { return Err(frame) };
    let fits = header.append(&bytes);
    debug_assert!(fits.is_ok(), "an empty buffer has room for a header");
    header.chain(frame);
    Ok(header)
}

/// One descriptor a segment, and one for a header that can't be in the headroom.
#[inline(always)]
fn n_pieces(frame: &PacketBuf) -> usize {
    frame.n_segments() + usize::from(needs_header_buffer(frame))
}

#[inline(always)]
fn needs_header_buffer(frame: &PacketBuf) -> bool {
    frame.headroom() < NetHdr::BYTES || frame.is_shared()
}

/// Gives a frame with its header to the device. The caller has made sure of the descriptors.
#[inline(always)]
fn post(ring: &mut impl DriverRing<PacketBuf>, frame: PacketBuf) -> Result<(), PacketBuf> {
    if !frame.is_chained() {
        let whole = [Segment::readable(frame.iova().0, frame.len() as u32)];
        return ring.post(&whole, frame);
    }
    post_chain(ring, frame)
}

#[inline(never)]
fn post_chain(ring: &mut impl DriverRing<PacketBuf>, frame: PacketBuf) -> Result<(), PacketBuf> {
    let mut segments = ArrayVec::<Segment, MAX_SEGMENTS>::new();
    for piece in frame.segment_bufs().filter(|piece| piece.len() > 0).take(MAX_SEGMENTS) {
        segments.push(Segment::readable(piece.iova().0, piece.len() as u32));
    }
    ring.post(&segments, frame)
}

/// What one call gave to the ring.
#[derive(Default)]
struct Posted {
    n: usize,
    bytes: u64,
}

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> Tx<R, B> {
    /// Posts the frames in front that need nothing but an empty header in their headroom, up to the first other one: nearly
    /// all there are. How many.
    #[inline(always)]
    fn post_run(
        &mut self,
        pool: &mut PoolCache,
        from: &mut Burst,
        n_free: usize,
        posted: &mut Posted,
    ) -> usize {
        let lens = ETHERNET_HEADER..=self.parts.max_frame_bytes;
        let plain = |frame: &&PacketBuf| {
            frame.is_simple() && frame.headroom() >= NetHdr::BYTES && lens.contains(&frame.len())
        };
        let n = from.iter().take(n_free).take_while(plain).count();
        let Some(ring) = &mut self.ring else { return 0 };
        for mut frame in from.take_front(n) {
            let len = frame.len();
            let fits = frame.push_front(NetHdr::BYTES);
            debug_assert!(fits.is_ok(), "there is headroom");
            frame.data_mut()[..NetHdr::BYTES].copy_from_slice(&PLAIN);
            match ring.post(&[Segment::readable(frame.iova().0, (NetHdr::BYTES + len) as u32)], frame) {
                Ok(()) => (posted.n, posted.bytes) = (posted.n + 1, posted.bytes + len as u64),
                Err(frame) => {
                    self.parts.stats.dropped(DropReason::RingFull, 1);
                    pool.free(frame);
                }
            }
        }
        n
    }

    /// Posts what fits, whatever it is; how many frames are gone.
    #[inline(never)]
    fn post_rest(
        &mut self,
        pool: &mut PoolCache,
        from: &mut Burst,
        n_free: usize,
        posted: &mut Posted,
    ) -> usize {
        let (mut n, mut needed) = (0, 0);
        for frame in from.iter() {
            // One that no ring takes is taken, to be dropped.
            needed += Some(n_pieces(frame)).filter(|n| *n <= self.max_pieces).unwrap_or(0);
            if needed > n_free || self.is_beyond(frame) {
                break;
            }
            n += 1;
        }
        for frame in from.take_front(n) {
            if let Some(reason) = self.unfit(&frame) {
                self.parts.stats.dropped(reason, 1);
                pool.free(frame);
                continue;
            }
            let len = frame.total_len() as u64;
            let Some(ring) = &mut self.ring else { continue };
            match with_header(frame, pool)
                .map_err(|f| (DropReason::NoBuffer, f))
                .and_then(|frame| post(ring, frame).map_err(|f| (DropReason::RingFull, f)))
            {
                Ok(()) => (posted.n, posted.bytes) = (posted.n + 1, posted.bytes + len),
                Err((reason, frame)) => {
                    self.parts.stats.dropped(reason, 1);
                    pool.free(frame);
                }
            }
        }
        n
    }
}

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> TxQueue for Tx<R, B> {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.reap(|frame| pool.free(frame));
        if let Some(reason) = self.closed() {
            let n = from.free_all(pool);
            self.parts.stats.dropped(reason, n);
            return n;
        }
        let n_free = self.ring.as_ref().map_or(0, R::n_free);
        let mut posted = Posted::default();
        let mut n = self.post_run(pool, from, n_free, &mut posted);
        if !from.is_empty() && n < n_free {
            n += self.post_rest(pool, from, n_free - n, &mut posted);
        }
        if let Some(ring) = &mut self.ring
            && ring.publish()
        {
            self.parts.doorbell.ring();
        }
        self.parts.stats.moved(posted.n, posted.bytes);
        n
    }

    fn offloads(&mut self) -> Offloads {
        self.parts.does
    }

    fn poll_control(&mut self) {
        self.reap(drop);
    }

    fn stats(&self) -> SharedStats {
        self.parts.stats.clone()
    }
}

impl<R: DriverRing<PacketBuf> + Into<Ring>, B: Registers> Drop for Tx<R, B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            let tx = Some((self.parts.queue, self.parts.stats.clone()));
            self.parts.shared.park(Parked { ring: ring.into(), tx });
        }
    }
}
