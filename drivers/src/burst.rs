//! A burst: the unit in which packets move between queues and components.

use arrayvec::ArrayVec;

use crate::dma::{PacketBuf, PoolCache};

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

    /// Takes the first `n` packets out, in order; the rest move to the front.
    #[inline(always)]
    pub fn take_front(&mut self, n: usize) -> impl Iterator<Item = PacketBuf> + '_ {
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
        self.0.extend(packets);
    }

    /// Takes the last packet out.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<PacketBuf> {
        self.0.pop()
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
        self.0.extend(from.0.drain(..));
    }

    /// Gives every packet back to the pool through this core's cache; tells how many there were.
    pub fn free_all(&mut self, pool: &mut PoolCache) -> usize {
        let n = self.0.len();
        self.0.drain(..).for_each(|packet| pool.free(packet));
        n
    }

    /// The bytes of all packets together.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|packet| packet.total_len() as u64).sum()
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
