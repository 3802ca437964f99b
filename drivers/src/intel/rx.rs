//! The receiving half of Intel's NICs. Owned by the core that polls it.
//!
//! Every descriptor always has a buffer: one is only taken out when a fresh one goes in, so the ring never runs
//! short, and a pool without buffers leaves frames in the card.

use std::marker::PhantomData;
use std::sync::Arc;

use super::desc::{Checksum, RxFormat};
use super::{Parked, Shared};
use crate::burst::{BURST, Burst};
use crate::dma::{DATA_ROOM, PacketBuf, PoolCache, Received, RxBuffers};
use crate::nic::fault::{Fault, Side};
use crate::nic::regs::Doorbell;
use crate::nic::ring::{Desc, DescRing};
use crate::nic::tags::Tags;
use crate::pci::Registers;
use crate::port::RxQueue;
use crate::stats::{Counter, DropReason, SharedStats};
use crate::vlan;

/// Most buffers one frame takes: the longest any of these cards receives has 16 KiB.
const MAX_BUFFERS: u16 = 8;
/// Most buffers taken in one call besides whole good frames: frames of several buffers take more than one.
const MAX_ODD: usize = 4 * BURST;
const ETHERNET_HEADER: usize = 14;

/// What the card found and did, counted by the half and read by the control half.
#[derive(Debug, Default)]
pub struct Findings {
    /// Frames with all checksums right.
    pub right: Counter,
    /// Frames with a wrong one; passed on.
    pub wrong: Counter,
    /// Frames it took a tag off, for good.
    pub stripped: Counter,
}

/// What is to become of VLAN tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stripping {
    /// They stay, and the card was never asked for anything else: as [`Off`](Self::Off) where somebody else may have asked.
    Never,
    /// They go: where the card has not taken one off, software does.
    On,
    /// They stay: where the card has taken one off, it is put back.
    Off,
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
    pub findings: Arc<Findings>,
    /// What becomes of tags, with the control half.
    pub tags: Arc<Tags>,
}

/// A receiving half.
pub struct Rx<F: RxFormat, B: Registers> {
    queue: u16,
    /// `None` only while dropping.
    ring: Option<(DescRing, RxBuffers)>,
    /// Next descriptor the device completes; runs free.
    next: u16,
    tail: Doorbell<B>,
    shared: Arc<Shared>,
    stats: SharedStats,
    findings: Arc<Findings>,
    tags: Arc<Tags>,
    stripping: Stripping,
    partial: Option<Partial>,
    /// Polls that found nothing, and where a gap in the ring was seen: see [`look_for_gap`](Rx::look_for_gap).
    n_idle: u16,
    gap_at: Option<u16>,
    format: PhantomData<fn() -> F>,
}

impl<F: RxFormat, B: Registers> Rx<F, B> {
    /// Fills the ring with buffers. `None` when the pool has too few. The device is told by [`start`](Self::start).
    pub fn new(parts: RxParts<B>, pool: &mut PoolCache) -> Option<Self> {
        let RxParts { queue, ring, tail, shared, stats, findings, tags } = parts;
        let buffers = RxBuffers::new(ring.size(), pool, |index, at| ring.put(index, [at.0, 0]))?;
        Some(Rx {
            queue,
            ring: Some((ring, buffers)),
            next: 0,
            tail,
            shared,
            stats,
            findings,
            tags,
            stripping: Stripping::Never,
            partial: None,
            n_idle: 0,
            gap_at: None,
            format: PhantomData,
        })
    }

    /// Gives all descriptors but one to the device; once the receiver is enabled.
    pub fn start(&mut self) {
        if let Some((ring, _)) = &self.ring {
            self.tail.ring(u32::from(self.next.wrapping_sub(1) & ring.mask()));
        }
    }

    /// Once in 65,536 empty polls: a descriptor that is done behind one that isn't, twice with nothing in between, is a
    /// ring that stands still for ever.
    #[cold]
    fn look_for_gap(&mut self) {
        let Some((ring, _)) = &self.ring else { return };
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

/// What came off the ring in one call.
#[derive(Default)]
struct Taken {
    bytes: u64,
    n_right: u64,
    n_wrong: u64,
    n_stripped: u64,
}

impl Taken {
    /// Counts what the card found of a frame's checksums; true when they are right.
    #[inline(always)]
    fn judge<F: RxFormat>(&mut self, word: u64) -> bool {
        let found = F::checksum(word);
        self.n_right += u64::from(found == Checksum::Right);
        self.n_wrong += u64::from(found == Checksum::Wrong);
        found == Checksum::Right
    }

    /// Counts frames that the card took a tag off, as long as they were on the wire.
    #[inline(always)]
    fn stripped(&mut self, n: u64) {
        self.n_stripped += n;
        self.bytes += n * vlan::TAG_BYTES as u64;
    }

    /// A whole frame in one buffer, good as it is; `None` for anything else.
    #[inline(always)]
    fn whole<F: RxFormat>(&mut self, word: u64) -> Option<Received> {
        let len = F::len_bytes(word);
        let is_whole = word & (F::DONE | F::LAST | F::DAMAGED) == F::DONE | F::LAST
            && (ETHERNET_HEADER..=DATA_ROOM).contains(&len)
            && !(F::STRIPS_UNASKED && word & F::STRIPPED != 0);
        let found = F::checksum(word);
        if !is_whole || found == Checksum::Wrong {
            return None;
        }
        let received = Received::new(len, found == Checksum::Right)?;
        self.n_right += u64::from(found == Checksum::Right);
        self.bytes += len as u64;
        Some(received)
    }
}

impl<F: RxFormat, B: Registers> Rx<F, B> {
    /// Takes whole good frames until there is anything else in the ring: nearly all there are, in a loop without calls.
    #[inline(always)]
    fn take_run(&mut self, pool: &mut PoolCache, out: &mut Burst, taken: &mut Taken) {
        if self.partial.is_some() {
            return;
        }
        if self.stripping != Stripping::Never {
            return self.take_run_minding_tags(pool, out, taken);
        }
        let Some((ring, buffers)) = &mut self.ring else { return };
        let run = (self.next, ring.run(self.next));
        let filled = |desc: &Desc| taken.whole::<F>(desc.done_word());
        let n = buffers.exchange(run, pool, out, filled, |desc, at| desc.put([at.0, 0]));
        self.next = self.next.wrapping_add(n as u16);
    }

    #[inline(always)]
    fn exchange(
        &mut self,
        pool: &mut PoolCache,
        out: &mut Burst,
        mut filled: impl FnMut(u64) -> Option<Received>,
    ) {
        let Some((ring, buffers)) = &mut self.ring else { return };
        let run = (self.next, ring.run(self.next));
        let filled = |desc: &Desc| filled(desc.done_word());
        let n = buffers.exchange(run, pool, out, filled, |desc, at| desc.put([at.0, 0]));
        self.next = self.next.wrapping_add(n as u16);
    }

    /// As [`take_run`](Self::take_run), where tags go, or went and have to be put back: frames the card has dealt with are
    /// not looked at.
    #[inline(never)]
    fn take_run_minding_tags(&mut self, pool: &mut PoolCache, out: &mut Burst, taken: &mut Taken) {
        if self.stripping == Stripping::Off {
            return self.exchange(pool, out, |word| match word & F::STRIPPED {
                0 => taken.whole::<F>(word),
                _ => None,
            });
        }
        let (first, mut n, mut untouched) = (out.len(), 0, 0u32);
        self.exchange(pool, out, |word| {
            let is_untouched = word & F::STRIPPED == 0;
            // Shorter ones may be no frames without their tag.
            if is_untouched && F::len_bytes(word) < vlan::TAGGED_BYTES {
                return None;
            }
            let whole = taken.whole::<F>(word)?;
            untouched |= u32::from(is_untouched) << n;
            n += 1;
            Some(whole)
        });
        taken.stripped(u64::from(n - untouched.count_ones()));
        while untouched != 0 {
            if let Some(frame) = out.get_mut(first + untouched.trailing_zeros() as usize) {
                let done = vlan::remove_tag(frame, pool);
                debug_assert!(done.is_ok(), "it has a whole header, and nobody else has it");
            }
            untouched &= untouched - 1;
        }
    }

    /// Makes a frame what it has to be with or without its tag, whatever the card did. What is counted is what was on the
    /// wire.
    fn settle_tag(
        &self,
        frame: &mut PacketBuf,
        word: u64,
        pool: &mut PoolCache,
        taken: &mut Taken,
    ) -> Result<(), DropReason> {
        let stripped = word & F::STRIPPED != 0;
        match self.stripping {
            Stripping::On if stripped => taken.stripped(1),
            Stripping::On => vlan::remove_tag(frame, pool)?,
            Stripping::Off if stripped => taken.bytes += vlan::put_back(frame, F::tag(word)),
            Stripping::Never if F::STRIPS_UNASKED && stripped => {
                taken.bytes += vlan::put_back(frame, F::tag(word))
            }
            Stripping::Off | Stripping::Never => {}
        }
        Ok(())
    }

    /// Takes one buffer, whatever is in it. False when there is none, or none to put in its place.
    #[inline(never)]
    fn take_one(&mut self, pool: &mut PoolCache, out: &mut Burst, taken: &mut Taken) -> bool {
        let Some((ring, buffers)) = &mut self.ring else { return false };
        let (index, word) = (self.next, ring.done_word(self.next));
        if word & F::DONE == 0 {
            return false;
        }
        let Some(buffer) = buffers.swap(index, pool, |at| ring.put(index, [at.0, 0])) else { return false };
        self.next = index.wrapping_add(1);
        if let Some(mut frame) = self.take_odd(buffer, word, pool) {
            taken.bytes += frame.total_len() as u64;
            frame.set_verified(taken.judge::<F>(word));
            match self.settle_tag(&mut frame, word, pool, taken) {
                Ok(()) => {
                    let pushed = out.push(frame);
                    debug_assert!(pushed.is_ok(), "the caller has looked for room");
                }
                Err(reason) => {
                    taken.bytes -= frame.total_len() as u64;
                    self.stats.dropped(reason, 1);
                    pool.free(frame);
                }
            }
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
            self.findings.right.add(taken.n_right);
            self.findings.wrong.add(taken.n_wrong);
            if taken.n_stripped > 0 {
                self.findings.stripped.add(taken.n_stripped);
            }
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

    fn strip_vlan(&mut self, on: bool) -> bool {
        self.stripping = match on {
            true => Stripping::On,
            false if self.stripping == Stripping::Never => Stripping::Never,
            false => Stripping::Off,
        };
        self.tags.ask_to_strip(self.queue, on);
        true
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl<F: RxFormat, B: Registers> Drop for Rx<F, B> {
    fn drop(&mut self) {
        if let Some((ring, buffers)) = self.ring.take() {
            self.shared.park(Parked::Rx(ring, buffers));
        }
    }
}
