// UNSAFETY: packets move from array to array by the run, beside the arrays' own lengths.
//! A burst: the unit in which packets move between queues and components.

use arrayvec::ArrayVec;

use crate::dma::{PacketBuf, PoolCache, Tally};
use crate::end::End;

/// Most packets in a burst. 32 is where DPDK, Snabb and VPP-sized caches agree; the
/// benches are run at 1, 4, 8 and 32.
pub const BURST: usize = 32;

/// Up to [`BURST`] packet buffers, owned, in order. Lives on the stack or in its component;
/// never allocates.
#[derive(Debug, Default)]
pub struct Burst(ArrayVec<PacketBuf, BURST>);

impl Burst {
    /// An empty burst.
    pub const fn new() -> Self {
        Burst(ArrayVec::new_const())
    }

    /// Packets that still fit.
    #[inline(always)]
    pub fn room(&self) -> usize {
        self.0.remaining_capacity()
    }

    /// Appends a packet, or gives it back when the burst is full.
    #[inline(always)]
    pub fn push(&mut self, packet: PacketBuf) -> Result<(), PacketBuf> {
        self.0.try_push(packet).map_err(|full| full.element())
    }

    /// The free end, for a loop that appends.
    #[inline(always)]
    pub fn end(&mut self) -> End<'_, PacketBuf> {
        End::of(&mut self.0)
    }

    /// Takes the first `n` packets out, in order; the rest move to the front.
    #[inline(always)]
    pub fn take_front(&mut self, n: usize) -> impl ExactSizeIterator<Item = PacketBuf> + '_ {
        self.0.drain(..n)
    }

    /// Takes packet `at` out of the middle; those behind it move up. For the rare one that is to be dropped.
    #[cold]
    pub fn remove(&mut self, at: usize) -> PacketBuf {
        self.0.remove(at)
    }

    /// Appends packets; there must be room.
    #[inline(always)]
    pub fn extend(&mut self, packets: impl Iterator<Item = PacketBuf>) {
        let mut end = self.end();
        for packet in packets {
            let pushed = end.push(packet);
            debug_assert!(pushed.is_ok(), "the caller has looked for room");
        }
    }

    /// Takes the last packet out.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<PacketBuf> {
        self.0.pop()
    }

    /// Takes every packet out, in order, by ones or by runs.
    #[inline(always)]
    pub fn take_runs(&mut self) -> Runs<'_> {
        let len = self.0.len();
        // SAFETY: no packets are left to the burst; Runs is their owner.
        unsafe { self.0.set_len(0) };
        Runs { burst: &mut self.0, at: 0, len }
    }

    /// Takes every packet out, in order.
    #[inline(always)]
    pub fn take_all(&mut self) -> impl ExactSizeIterator<Item = PacketBuf> + '_ {
        self.0.drain(..)
    }

    /// Moves every packet of `from`, in order, to the end of this burst.
    ///
    /// # Panics
    /// If they don't fit.
    #[inline(always)]
    pub fn append(&mut self, from: &mut Burst) {
        let (len, n) = (self.0.len(), from.0.len());
        assert!(n <= self.room(), "{n} packets don't fit behind {len}");
        // SAFETY: len <= BURST, so the place is one of the array's, or just behind it.
        let end = unsafe { self.0.as_mut_ptr().add(len) };
        // SAFETY: there is room for n, and two bursts borrowed mutably don't overlap; the lengths below make this a move.
        unsafe { end.copy_from_nonoverlapping(from.0.as_ptr(), n) };
        // SAFETY: its packets are here now; none are left to it.
        unsafe { from.0.set_len(0) };
        // SAFETY: the n places were just written, and len + n <= BURST.
        unsafe { self.0.set_len(len + n) };
    }

    /// Gives every packet back to the pool through this core's cache; tells how many there were.
    pub fn free_all(&mut self, pool: &mut PoolCache) -> usize {
        let n = self.0.len();
        self.0.drain(..).for_each(|packet| pool.free(packet));
        n
    }

    /// The bytes of all packets together.
    pub fn bytes(&self) -> u64 {
        Tally::of(self).bytes
    }
}

/// The packets of a burst on their way out: those in [at, len) are initialised, and its own.
pub struct Runs<'a> {
    burst: &'a mut ArrayVec<PacketBuf, BURST>,
    at: usize,
    len: usize,
}

impl Runs<'_> {
    /// Moves the next `n` packets to the end of `to`. False when there are fewer, or `to` has no room for them: they stay.
    #[inline(always)]
    pub fn move_to(&mut self, n: usize, to: &mut Burst) -> bool {
        if n > self.len - self.at || n > to.room() {
            return false;
        }
        let (from, end) = (self.at, to.0.len());
        // SAFETY: at <= len <= BURST.
        let from = unsafe { self.burst.as_ptr().add(from) };
        // SAFETY: end <= BURST.
        let place = unsafe { to.0.as_mut_ptr().add(end) };
        // SAFETY: n packets are left here, and there is room for n there; two bursts borrowed mutably don't overlap.
        unsafe { place.copy_from_nonoverlapping(from, n) };
        self.at += n;
        // SAFETY: the n places were just written, and there was room for them.
        unsafe { to.0.set_len(end + n) };
        true
    }
}

impl Iterator for Runs<'_> {
    type Item = PacketBuf;

    #[inline(always)]
    fn next(&mut self) -> Option<PacketBuf> {
        if self.at == self.len {
            return None;
        }
        // SAFETY: at < len <= BURST.
        let place = unsafe { self.burst.as_ptr().add(self.at) };
        self.at += 1;
        // SAFETY: the packet was in [at, len), and is not any more.
        Some(unsafe { place.read() })
    }
}

impl Drop for Runs<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl std::ops::Deref for Burst {
    type Target = [PacketBuf];
    #[inline(always)]
    fn deref(&self) -> &[PacketBuf] {
        &self.0
    }
}

impl std::ops::DerefMut for Burst {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [PacketBuf] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaSpace, Pool, PoolConfig};

    #[test]
    fn runs_ones_and_what_is_left_are_moved_once_each() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
        let mut cache = pool.cache();
        let (mut burst, mut first, mut second) = (Burst::new(), Burst::new(), Burst::new());
        assert_eq!(cache.alloc_burst(32, &mut burst), 32);
        let slots: Vec<_> = burst.iter().map(|packet| packet.iova()).collect();
        assert_eq!(cache.alloc_burst(30, &mut second), 30);
        let mut runs = burst.take_runs();
        assert!(runs.move_to(10, &mut first) && !runs.move_to(3, &mut second), "it has room for two");
        assert!(!runs.move_to(23, &mut first), "there are 22");
        first.push(runs.next().unwrap()).unwrap();
        assert!(runs.move_to(2, &mut second));
        drop(runs); // 19 packets with it
        assert!(burst.is_empty());
        assert!(first.iter().map(|packet| packet.iova()).eq(slots[..11].iter().copied()));
        assert!(second[30..].iter().map(|packet| packet.iova()).eq(slots[11..13].iter().copied()));
        drop((first, second, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn appended_burst_is_empty_and_the_end_is_as_long_as_what_was_pushed() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
        let mut cache = pool.cache();
        let (mut burst, mut more) = (Burst::new(), Burst::new());
        let mut end = burst.end();
        for _ in 0..3 {
            end.push(cache.alloc().unwrap()).unwrap();
        }
        assert_eq!(end.len(), 3);
        drop(end);
        assert_eq!(cache.alloc_burst(29, &mut more), 29);
        burst.append(&mut more);
        assert_eq!((burst.len(), more.len()), (32, 0));
        assert!(burst.end().push(cache.alloc().unwrap()).is_err(), "it is full");
        drop((burst, cache));
        assert_eq!(pool.counts().out, 0);
    }
}
