//! The buffers a device has, one for each descriptor of a ring: [`RxBuffers`] wait to be filled, [`TxBuffers`] to be
//! sent. Owned by the queue half.
//!
//! What a half remembers of a plain buffer is its slot number, four bytes. So runs are exchanged in one loop, and
//! freed without looking at one packet after the other: an 82599 takes 98 instructions a packet for receive and send, and took
//! 187 with an `Option<PacketBuf>` for each descriptor (`benches/instructions.txt`, bursts of 32).

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::HEADROOM;
use super::buf::{PacketBuf, Received};
use super::iova::Iova;
use super::pool::{PoolCache, PoolOwner, iova_of};
use crate::burst::Burst;

/// A free descriptor.
const NONE: u32 = u32::MAX;
/// The frame is in the side table: a chain, a frame with offload work, a shared one, or one of another pool.
const ASIDE: u32 = u32::MAX - 1;
/// Slot numbers end here.
const LAST_SLOT: u32 = PacketBuf::LAST_SLOT;
const _: () = assert!(LAST_SLOT < ASIDE);

/// Empty buffers that a device fills. Every descriptor always has one.
pub struct RxBuffers {
    pool: Arc<PoolOwner>,
    slots: Box<[u32]>,
    mask: usize,
}

impl RxBuffers {
    /// A buffer for each of `n` descriptors, a power of two; `post` learns where they are. `None` when the pool has too
    /// few.
    pub fn new(n: u16, cache: &mut PoolCache, mut post: impl FnMut(u16, Iova)) -> Option<RxBuffers> {
        assert!(n.is_power_of_two(), "a ring of {n} descriptors");
        let mut posted =
            RxBuffers { pool: cache.owner().clone(), slots: Box::default(), mask: usize::from(n) - 1 };
        let mut slots = Vec::with_capacity(usize::from(n));
        for index in 0..n {
            let Some(buffer) = cache.alloc() else {
                posted.slots = slots.into_boxed_slice(); // which go home with it
                return None;
            };
            post(index, buffer.iova());
            slots.push(buffer.into_slot());
        }
        posted.slots = slots.into_boxed_slice();
        Some(posted)
    }

    /// Takes frames out of filled buffers, in order, to the end of `out`, and posts a fresh buffer in place of each.
    /// `descs` are the descriptors from number `first` on; `filled` says what the device wrote of one, or `None`, which
    /// ends the run; `post` tells a descriptor where its new buffer is. How many: none beyond the end of `descs`, and no
    /// more than `out` has room for and the pool buffers.
    #[inline(always)]
    pub fn exchange<D>(
        &mut self,
        (first, descs): (u16, &[D]),
        cache: &mut PoolCache,
        out: &mut Burst,
        mut filled: impl FnMut(&D) -> Option<Received>,
        mut post: impl FnMut(&D, Iova),
    ) -> usize {
        let Some(entries) = self.slots.get_mut(usize::from(first) & self.mask..) else { return 0 };
        if !cache.is_of(&self.pool) {
            debug_assert!(false, "a ring has buffers of one pool");
            return 0;
        }
        let (pool, first_iova) = (self.pool.ptr(), self.pool.first_iova());
        let (room, mut stock, mut end) = (out.room(), cache.stock_at_hand(), out.end());
        let n_most = room.min(stock.len()).min(entries.len()).min(descs.len());
        let n_before = end.len();
        for (entry, desc) in entries[..n_most].iter_mut().zip(&descs[..n_most]) {
            let Some(received) = filled(desc) else { break };
            let Some(fresh) = stock.next() else { break };
            let full = std::mem::replace(entry, fresh);
            post(desc, iova_of(first_iova, fresh).offset(HEADROOM as u64));
            let pushed = end.push(PacketBuf::received(pool, full, received));
            debug_assert!(pushed.is_ok(), "there is room");
        }
        end.len() - n_before
    }

    /// Takes one buffer out, empty as it seems, and posts a fresh one in its place. `None` when the pool has none.
    #[inline]
    pub fn swap(&mut self, index: u16, cache: &mut PoolCache, post: impl FnOnce(Iova)) -> Option<PacketBuf> {
        let entry = self.slots.get_mut(usize::from(index) & self.mask)?;
        if !cache.is_of(&self.pool) {
            debug_assert!(false, "a ring has buffers of one pool");
            return None;
        }
        let fresh = cache.alloc()?;
        post(fresh.iova());
        let slot = std::mem::replace(entry, fresh.into_slot());
        Some(PacketBuf::new(self.pool.ptr(), slot, HEADROOM as u16))
    }
}

impl Drop for RxBuffers {
    fn drop(&mut self) {
        self.slots.iter().for_each(|&slot| drop(PacketBuf::new(self.pool.ptr(), slot, HEADROOM as u16)));
    }
}

/// Frames that a device sends. A frame is with its last descriptor.
pub struct TxBuffers {
    pool: Arc<PoolOwner>,
    slots: Box<[u32]>,
    aside: Box<[Option<PacketBuf>]>,
    mask: usize,
}

impl TxBuffers {
    /// None yet, for `n` descriptors, a power of two. Frames of the cache's pool are posted fastest.
    pub fn new(n: u16, cache: &PoolCache) -> TxBuffers {
        assert!(n.is_power_of_two(), "a ring of {n} descriptors");
        TxBuffers {
            pool: cache.owner().clone(),
            slots: (0..n).map(|_| NONE).collect(),
            aside: (0..n).map(|_| None).collect(),
            mask: usize::from(n) - 1,
        }
    }

    /// Moves plain frames (in one buffer of the pool, without work, unshared) of lengths within `lens` from the front of
    /// a burst, up to the first other one, to `descs`, the descriptors from number `first` on; `post` tells each where
    /// its frame is and how long. How many: at most `n_most`, and none beyond the end of `descs`.
    #[inline(always)]
    pub fn post_plain<D>(
        &mut self,
        (first, descs): (u16, &[D]),
        n_most: usize,
        lens: RangeInclusive<usize>,
        from: &mut Burst,
        mut post: impl FnMut(&D, Iova, usize),
    ) -> usize {
        let Some(entries) = self.slots.get_mut(usize::from(first) & self.mask..) else { return 0 };
        let (pool, first_iova) = (self.pool.ptr(), self.pool.first_iova());
        let span = lens.end().saturating_sub(*lens.start());
        let n_most = n_most.min(entries.len()).min(descs.len()).min(from.len());
        let mut n = 0;
        for (desc, frame) in descs[..n_most].iter().zip(&from[..n_most]) {
            let len = frame.len();
            if !frame.is_simple() || frame.pool() != pool || len.wrapping_sub(*lens.start()) > span {
                break;
            }
            post(desc, iova_of(first_iova, frame.slot()).offset(frame.headroom() as u64), len);
            n += 1;
        }
        for (entry, frame) in entries.iter_mut().zip(from.take_front(n)) {
            debug_assert!(*entry == NONE, "a free descriptor has no frame");
            *entry = frame.into_slot();
        }
        n
    }

    /// Any frame, or none, goes to descriptor `index`.
    pub fn put(&mut self, index: u16, frame: Option<PacketBuf>) {
        let at = usize::from(index) & self.mask;
        let (Some(entry), Some(aside)) = (self.slots.get_mut(at), self.aside.get_mut(at)) else { return };
        debug_assert!(*entry == NONE, "a free descriptor has no frame");
        *entry = match frame {
            None => NONE,
            Some(frame) => {
                *aside = Some(frame);
                ASIDE
            }
        };
    }

    /// Frees the frames of `n` descriptors from `first` on, which the device has sent.
    #[inline(always)]
    pub fn free(&mut self, first: u16, n: u16, cache: &mut PoolCache) {
        let start = usize::from(first) & self.mask;
        let (wrapped, to_end) = self.slots.split_at(start);
        let n_here = usize::from(n).min(to_end.len());
        let n_wrapped = (usize::from(n) - n_here).min(wrapped.len());
        self.free_run(start, n_here, cache);
        if n_wrapped > 0 {
            self.free_run(0, n_wrapped, cache);
        }
    }

    #[inline(always)]
    fn free_run(&mut self, start: usize, n: usize, cache: &mut PoolCache) {
        let Some(run) = self.slots.get_mut(start..start + n) else { return };
        let all_slots = run.iter().fold(0, |all, &slot| all | slot) <= LAST_SLOT;
        if all_slots && cache.is_of(&self.pool) {
            cache.put_slots(run);
            run.fill(NONE);
        } else {
            self.free_odd(start, n, cache);
        }
    }

    /// A run with free descriptors and frames aside in it.
    #[inline(never)]
    fn free_odd(&mut self, start: usize, n: usize, cache: &mut PoolCache) {
        for at in start..start + n {
            if let Some(frame) = self.take(at) {
                cache.free(frame);
            }
        }
    }

    /// As [`free`](Self::free), where there is no cache at hand.
    pub fn send_home(&mut self, first: u16, n: u16) {
        (0..n).for_each(|i| drop(self.take(usize::from(first.wrapping_add(i)) & self.mask)));
    }

    fn take(&mut self, at: usize) -> Option<PacketBuf> {
        match std::mem::replace(self.slots.get_mut(at)?, NONE) {
            NONE => None,
            ASIDE => self.aside.get_mut(at)?.take(),
            slot => Some(PacketBuf::new(self.pool.ptr(), slot, HEADROOM as u16)),
        }
    }

    /// Frames the device has.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|&&slot| slot != NONE).count()
    }

    /// True when the device has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for TxBuffers {
    fn drop(&mut self) {
        (0..self.slots.len()).for_each(|at| drop(self.take(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaSpace, Offload, Pool, PoolConfig};

    fn pool() -> Pool {
        Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 256 }).unwrap()
    }

    fn frame(cache: &mut PoolCache, len: usize) -> PacketBuf {
        let mut frame = cache.alloc().unwrap();
        frame.set_len(len).unwrap();
        frame
    }

    #[test]
    fn filled_buffers_come_out_in_order_and_fresh_ones_stand_in_their_place() {
        let pool = pool();
        let (mut cache, mut at) = (pool.cache(), vec![Iova(0); 16]);
        let mut posted = RxBuffers::new(16, &mut cache, |i, iova| at[usize::from(i)] = iova).unwrap();
        let before = at.clone();
        let (mut out, received) =
            (Burst::new(), [60, 61, 62, 63].map(|len| Received::new(len, len == 61).unwrap()));
        // 65,534 is descriptor 14: two fit before the end of the ring.
        let mut left = received.into_iter();
        let mut exchange = |first: u16, descs: &[usize]| {
            let (filled, post) = (|_: &usize| left.next(), |&i: &usize, iova| at[i] = iova);
            posted.exchange((first, descs), &mut cache, &mut out, filled, post)
        };
        assert_eq!(exchange(65_534, &[14, 15]), 2);
        assert_eq!(exchange(0, &[0, 1, 2]), 2, "the third is not filled");
        let got: Vec<_> = out.iter().map(|f| (f.iova(), f.len(), f.is_verified())).collect();
        let wanted = [(14, 60, false), (15, 61, true), (0, 62, false), (1, 63, false)];
        assert_eq!(got, wanted.map(|(i, len, verified)| (before[i], len, verified)));
        assert!([14, 15, 0, 1].iter().all(|&i| at[i] != before[i]) && at[2..14] == before[2..14]);
        assert_eq!(pool.counts().out, 64, "16 posted, 4 received, the rest in the cache's magazine");
        drop((out, posted, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn pool_without_buffers_exchanges_none() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
        let mut cache = pool.cache();
        let mut posted = RxBuffers::new(64, &mut cache, |_, _| {}).unwrap();
        let (mut out, filled) = (Burst::new(), |_: &()| Received::new(60, false));
        assert_eq!(
            posted.exchange((0, &[()]), &mut cache, &mut out, filled, |_, _| panic!("nothing is posted")),
            0
        );
        assert!(RxBuffers::new(8, &mut cache, |_, _| {}).is_none());
        drop((posted, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn more_than_a_buffer_holds_is_no_received_frame() {
        assert!(Received::new(crate::dma::DATA_ROOM, false).is_some());
        assert!(Received::new(crate::dma::DATA_ROOM + 1, false).is_none());
    }

    #[test]
    fn plain_frames_and_others_are_freed_once_across_the_end_of_the_ring() {
        let pool = pool();
        let other_pool = self::pool();
        let (mut cache, mut others) = (pool.cache(), other_pool.cache());
        let mut posted = TxBuffers::new(16, &cache);
        let mut burst = Burst::new();
        for len in [60, 70, 80] {
            burst.push(frame(&mut cache, len)).unwrap();
        }
        let (mut chain, mut work) = (frame(&mut cache, 60), frame(&mut cache, 60));
        chain.chain(frame(&mut cache, 60));
        work.set_offload(Some(Offload::default()));
        let foreign = frame(&mut others, 60);
        for odd in [chain, work, foreign] {
            let mut alone = Burst::new();
            alone.push(odd).unwrap();
            assert_eq!(
                posted.post_plain((0, &[()]), 1, 60..=80, &mut alone, |_, _, _| panic!("it is not plain")),
                0
            );
            posted.put(3, alone.pop());
            posted.free(3, 1, &mut cache);
        }
        let mut seen = Vec::new();
        let mut post = |n_most, from: &mut Burst| {
            let first = 65_534_u16.wrapping_add(seen.len() as u16);
            let descs: Vec<u16> = (0..16).skip(usize::from(first & 15)).collect();
            posted.post_plain((first, &descs), n_most, 60..=70, from, |&i, _, len| seen.push((i, len)))
        };
        assert_eq!(post(1, &mut burst), 1, "no more than may be");
        assert_eq!(post(9, &mut burst), 1, "to the end of the ring");
        assert_eq!(post(9, &mut burst), 0, "the third is too long");
        burst[0].set_len(65).unwrap();
        assert_eq!(post(9, &mut burst), 1);
        assert_eq!(seen, [(14, 60), (15, 70), (0, 65)]);
        posted.put(1, Some(frame(&mut cache, 90)));
        posted.put(2, None);
        assert_eq!(posted.len(), 4);
        posted.free(65_534, 5, &mut cache);
        assert!(posted.is_empty());
        posted.put(3, Some(frame(&mut cache, 90)));
        drop((posted, cache, others));
        assert_eq!((pool.counts().out, other_pool.counts().out), (0, 0));
    }
}
