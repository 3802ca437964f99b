//! The sending half of Intel's NICs. Owned by the core that sends.
//!
//! One write-back is asked for with the last descriptor of a burst, one doorbell rung; sent buffers are reaped by
//! those write-backs, never by reading the head register (82599 7.2.3.5.2).

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::desc::TxFormat;
use super::{Parked, Shared};
use crate::burst::Burst;
use crate::dma::{Iova, PacketBuf, PoolCache, TxBuffers};
use crate::nic::fault::Fault;
use crate::nic::regs::Doorbell;
use crate::nic::ring::DescRing;
use crate::nic::tags::{Tagging, Tags};
use crate::nic::watchdog::Watchdog;
use crate::offload::{Offload, Offloads, checksum};
use crate::pci::Registers;
use crate::port::TxQueue;
use crate::stats::{Counter, DropReason, SharedStats};
use crate::vlan;

const ETHERNET_HEADER: usize = 14;
/// Room for the pieces of one frame; no format takes more.
const PIECES: usize = 64;

/// What a sending half is made of.
pub struct TxParts<B: Registers> {
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
    /// Longest frame.
    pub max_frame_bytes: usize,
    /// How long the device may go without completing anything while it has frames.
    pub limit: Duration,
    /// What becomes of tags, with the control half.
    pub tags: Arc<Tags>,
    /// Tags the card inserts.
    pub inserted: Arc<Counter>,
}

/// What the card is to do with one frame.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    /// What has to be in its context.
    context: Option<[u64; 2]>,
    /// Complete the checksum that the context says.
    checksum: bool,
    /// Insert this tag.
    tag: Option<u16>,
}

impl Work {
    /// One piece of the frame.
    #[inline(always)]
    fn data<F: TxFormat>(&self, at: Iova, len_bytes: usize, total_bytes: usize, last: bool) -> [u64; 2] {
        let words = F::data(at, len_bytes, total_bytes, last, self.checksum);
        self.tag.map_or(words, |tag| F::tagged(words, tag))
    }
}

/// What one call gave to the ring.
#[derive(Default)]
struct Posted {
    n: usize,
    bytes: u64,
}

/// A sending half.
pub struct Tx<F: TxFormat, B: Registers> {
    queue: u16,
    /// `None` only while dropping.
    ring: Option<(DescRing, TxBuffers)>,
    /// Next descriptor to fill and next one to reap; both run free.
    tail: u16,
    reaped: u16,
    /// Descriptors that were asked for a write-back, oldest first. Never grows past its capacity.
    reports: VecDeque<u16>,
    /// What the card was last told to do with checksums.
    context: Option<[u64; 2]>,
    bell: Doorbell<B>,
    shared: Arc<Shared>,
    stats: SharedStats,
    max_frame_bytes: usize,
    watchdog: Watchdog,
    /// The tag that frames get.
    tag: Option<u16>,
    tags: Arc<Tags>,
    /// It has told that there may be descriptors with a tag in its ring.
    announced: bool,
    inserted: Arc<Counter>,
    format: PhantomData<fn() -> F>,
}

impl<F: TxFormat, B: Registers> Tx<F, B> {
    /// An empty queue.
    pub fn new(parts: TxParts<B>, pool: &PoolCache) -> Self {
        const { assert!(F::MAX_SEGMENTS <= PIECES) };
        let TxParts { queue, ring, tail, shared, stats, max_frame_bytes, limit, tags, inserted } = parts;
        let size = usize::from(ring.size());
        assert!(size > F::MAX_SEGMENTS + 2, "the longest frame fits an empty ring");
        let buffers = TxBuffers::new(ring.size(), pool);
        Tx {
            queue,
            ring: Some((ring, buffers)),
            tail: 0,
            reaped: 0,
            reports: VecDeque::with_capacity(size),
            context: None,
            bell: tail,
            shared,
            stats,
            max_frame_bytes,
            watchdog: Watchdog::new(limit),
            tag: None,
            tags,
            announced: false,
            inserted,
            format: PhantomData,
        }
    }

    /// Takes sent frames back, and watches that the device gets on.
    #[inline(always)]
    fn reap(&mut self, mut free: impl FnMut(&mut TxBuffers, u16, u16)) {
        let Some((ring, buffers)) = &mut self.ring else { return };
        let was_idle = self.tail == self.reaped;
        let before = self.reaped;
        while let Some(&report) = self.reports.front() {
            if ring.done_word(report) & F::DONE == 0 {
                break;
            }
            self.reports.pop_front();
            let end = report.wrapping_add(1);
            free(buffers, self.reaped, end.wrapping_sub(self.reaped));
            self.reaped = end;
        }
        // Without a link nothing is sent, and that is no hang.
        let excused = was_idle || self.shared.link_is_down();
        if self.watchdog.is_hung(excused, self.reaped != before) {
            let n_descriptors = self.tail.wrapping_sub(self.reaped);
            self.shared.fail(Fault::TxHang { queue: self.queue, n_descriptors });
        }
    }

    /// What the frames of this burst get.
    #[inline(always)]
    fn tagging(&mut self) -> Option<Tagging> {
        let tag = self.tag?;
        Some(Tagging { tag, by_card: self.tags.may_insert(self.queue, &mut self.announced) })
    }

    /// Once nothing that is to get a tag can be in the ring any more.
    fn withdraw_tags(&mut self) {
        if self.announced && self.tail == self.reaped && (self.tag.is_none() || !self.tags.inserts()) {
            self.tags.withdraw(self.queue, &mut self.announced);
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

    /// Makes a frame one that the card takes as it is, or says why there is none.
    #[inline(always)]
    fn fit(
        &self,
        frame: &mut PacketBuf,
        tagging: Option<Tagging>,
        pool: &mut PoolCache,
    ) -> Result<Work, DropReason> {
        let tag = tagging.map_or(Ok(None), |tagging| tagging.put(frame, pool))?;
        let len = frame.total_len() + tag.map_or(0, |_| vlan::TAG_BYTES);
        if len > self.max_frame_bytes || (frame.is_chained() && frame.n_segments() > F::MAX_SEGMENTS) {
            return Err(DropReason::Oversize);
        }
        if len < F::MIN_FRAME_BYTES {
            lengthen(frame, pool, F::MIN_FRAME_BYTES)?;
        }
        let mut context = None;
        if let Some(work) = frame.offload() {
            context = F::OFFLOADS.contains(Offloads::CSUM).then(|| F::context(&work)).flatten();
            if context.is_none() {
                complete(frame, &work, pool)?;
            }
        }
        let checksum = context.is_some();
        let context = tag.map_or(context, |tag| F::tag_context(context, tag));
        Ok(Work { context, checksum, tag })
    }

    /// Gives one descriptor to the ring. The caller has made sure that there is one.
    #[inline(always)]
    fn put(&mut self, words: [u64; 2], frame: Option<PacketBuf>) {
        let Some((ring, buffers)) = &mut self.ring else { return };
        ring.put(self.tail, words);
        buffers.put(self.tail, frame);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Posts a frame.
    #[inline(always)]
    fn post(&mut self, frame: PacketBuf, work: Work) {
        if work.context.is_some() && work.context != self.context {
            self.context = work.context;
            work.context.into_iter().for_each(|words| self.put(words, None));
        }
        if frame.is_chained() {
            self.post_chain(frame, work);
        } else {
            let words = work.data::<F>(frame.iova(), frame.len(), frame.len(), true);
            self.put(words, Some(frame));
        }
    }

    /// Posts the frames in front that the card takes as they are, up to the first other one: nearly all there are, in a
    /// loop without calls. How many.
    #[inline(always)]
    fn post_run(&mut self, from: &mut Burst, n_free: usize, posted: &mut Posted) -> usize {
        let Some((ring, buffers)) = &mut self.ring else { return 0 };
        let lens = F::MIN_FRAME_BYTES..=self.max_frame_bytes;
        let mut bytes = 0;
        let run = (self.tail, ring.run(self.tail));
        let n = buffers.post_plain(run, n_free, lens, from, |desc, at, len| {
            bytes += len as u64;
            desc.put(F::data(at, len, len, true, false));
        });
        self.tail = self.tail.wrapping_add(n as u16);
        posted.n += n;
        posted.bytes += bytes;
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
        let tagging = self.tagging();
        let (mut n, mut needed, mut n_inserted) = (0, 0, 0);
        for frame in from.iter() {
            let n_segments = if frame.is_plain() && tagging.is_none() {
                1
            } else {
                frame.n_segments().min(F::MAX_SEGMENTS) + 1
            };
            needed += n_segments;
            if needed > n_free || is_beyond::<F>(frame) {
                break;
            }
            n += 1;
        }
        for mut frame in from.take_front(n) {
            match self.fit(&mut frame, tagging, pool) {
                Ok(work) => {
                    posted.bytes += frame.total_len() as u64;
                    posted.n += 1;
                    n_inserted += u64::from(work.tag.is_some());
                    self.post(frame, work);
                }
                Err(reason) => {
                    self.stats.dropped(reason, 1);
                    pool.free(frame);
                }
            }
        }
        if n_inserted > 0 {
            posted.bytes += n_inserted * vlan::TAG_BYTES as u64;
            self.inserted.add(n_inserted);
        }
        n
    }

    #[inline(never)]
    fn post_chain(&mut self, frame: PacketBuf, work: Work) {
        let total = frame.total_len();
        let mut pieces = ArrayVec::<_, PIECES>::new();
        for piece in frame.segment_bufs().filter(|piece| piece.len() > 0).take(PIECES) {
            pieces.push((piece.iova(), piece.len()));
        }
        let mut frame = Some(frame);
        let n = pieces.len();
        for (index, (at, len)) in pieces.into_iter().enumerate() {
            let is_last = index + 1 == n;
            let words = work.data::<F>(at, len, total, is_last);
            self.put(words, if is_last { frame.take() } else { None });
        }
        debug_assert!(frame.is_none(), "a frame with bytes has a piece");
    }
}

/// Zeros behind a frame that is too short for the card.
#[cold]
fn lengthen(frame: &mut PacketBuf, pool: &mut PoolCache, min_bytes: usize) -> Result<(), DropReason> {
    let len = frame.total_len();
    if len < ETHERNET_HEADER {
        return Err(DropReason::Runt);
    }
    frame.own_chain(pool).map_err(|_| DropReason::NoBuffer)?;
    let zeros = [0; 64];
    frame.last_segment_mut().append(&zeros[..min_bytes - len]).map_err(|_| DropReason::Runt)
}

/// Completes a checksum in software.
#[cold]
fn complete(frame: &mut PacketBuf, work: &Offload, pool: &mut PoolCache) -> Result<(), DropReason> {
    frame.own_chain(pool).map_err(|_| DropReason::NoBuffer)?;
    checksum::complete(frame, work).map_err(|_| DropReason::BadOffload)
}

/// Work that a frame brings and that the card doesn't do: such a frame stays with the caller.
#[inline(always)]
fn is_beyond<F: TxFormat>(frame: &PacketBuf) -> bool {
    frame.has_offload() && frame.offload().is_some_and(|work| !F::OFFLOADS.contains(work.needs()))
}

impl<F: TxFormat, B: Registers> TxQueue for Tx<F, B> {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.reap(|buffers, first, n| buffers.free(first, n, pool));
        if let Some(reason) = self.closed() {
            let n = from.free_all(pool);
            self.stats.dropped(reason, n);
            return n;
        }
        let Some(mask) = self.ring.as_ref().map(|(ring, _)| ring.mask()) else { return 0 };
        // One descriptor always stays unused.
        let n_free = usize::from(mask.wrapping_sub(self.tail.wrapping_sub(self.reaped)));
        let (mut posted, mut n) = (Posted::default(), 0);
        if self.tag.is_none() {
            n = self.post_run(from, n_free, &mut posted);
            if !from.is_empty() && self.tail & mask == 0 {
                n += self.post_run(from, n_free - n, &mut posted);
            }
        }
        if !from.is_empty() && n < n_free {
            n += self.post_rest(pool, from, n_free - n, &mut posted);
        }
        let Posted { n: sent, bytes } = posted;
        if let Some((ring, _)) = &self.ring
            && sent > 0
        {
            let report = self.tail.wrapping_sub(1);
            ring.put(report, F::report(ring.words(report)));
            self.reports.push_back(report);
            self.bell.ring(u32::from(self.tail & ring.mask()));
        }
        self.stats.moved(sent, bytes);
        n
    }

    fn offloads(&mut self) -> Offloads {
        F::OFFLOADS
    }

    fn insert_vlan(&mut self, tag: Option<u16>) -> bool {
        if tag.is_some() && !self.tags.can_insert() {
            return false;
        }
        self.tag = tag;
        true
    }

    fn poll_control(&mut self) {
        self.reap(TxBuffers::send_home);
        self.withdraw_tags();
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl<F: TxFormat, B: Registers> Drop for Tx<F, B> {
    fn drop(&mut self) {
        if let Some((ring, buffers)) = self.ring.take() {
            self.shared.park(Parked::Tx(ring, buffers));
        }
    }
}
