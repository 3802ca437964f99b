//! Command and completion rings: which descriptors are whose, by generation. Owned by queue halves.
//!
//! A ring starts as zeros and its first lap has generation 1: nothing in it is the device's, or done, before it is written.

use std::sync::atomic::{Ordering, fence};

use super::desc::{DONE_GEN, Done};
use crate::dma::{DmaError, DmaSpace};
use crate::nic::ring::DescRing;

/// A ring of zeros, and how far an index is to be shifted to get its lap.
fn zeros(space: &DmaSpace, what: &str, size: u16) -> Result<(DescRing, u32), DmaError> {
    let ring = DescRing::new(space, what, size)?;
    (0..size).for_each(|index| ring.put(index, [0; 2]));
    Ok((ring, size.trailing_zeros()))
}

/// A ring on which the driver posts buffers. What it pushes is the device's with [`publish`](Self::publish): the first of
/// the new descriptors keeps the old generation until then, and the device stops in front of it.
pub(super) struct CommandRing {
    ring: DescRing,
    lap_shift: u32,
    gen_bit: u64,
    /// Next to fill, first not published, and oldest that the device has not completed; all run free.
    fill: u16,
    published: u16,
    done: u16,
    /// The first descriptor that is not published, as it is to be.
    held: [u64; 2],
}

impl CommandRing {
    pub(super) fn new(space: &DmaSpace, what: &str, size: u16, gen_bit: u64) -> Result<Self, DmaError> {
        let (ring, lap_shift) = zeros(space, what, size)?;
        Ok(CommandRing { ring, lap_shift, gen_bit, fill: 0, published: 0, done: 0, held: [0; 2] })
    }

    pub(super) fn iova(&self) -> u64 {
        self.ring.iova().0
    }

    pub(super) fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Descriptors that may be pushed; one always stays unused, so that a full ring differs from an empty one.
    #[inline(always)]
    pub(super) fn n_free(&self) -> u16 {
        self.ring.mask() - self.n_out()
    }

    /// Descriptors pushed and not completed.
    #[inline(always)]
    pub(super) fn n_out(&self) -> u16 {
        self.fill.wrapping_sub(self.done)
    }

    /// Where the next one goes.
    #[inline(always)]
    pub(super) fn fill_slot(&self) -> u16 {
        self.fill & self.ring.mask()
    }

    /// The oldest that is out.
    #[inline(always)]
    pub(super) fn done_slot(&self) -> u16 {
        self.done & self.ring.mask()
    }

    /// The device is through with the oldest.
    #[inline(always)]
    pub(super) fn complete(&mut self) {
        debug_assert!(self.n_out() > 0, "only what is out can be done");
        self.done = self.done.wrapping_add(1);
    }

    #[inline(always)]
    fn owned(&self, index: u16, [first, second]: [u64; 2]) -> [u64; 2] {
        let owner = if index >> self.lap_shift & 1 == 0 { self.gen_bit } else { 0 };
        [first, second | owner]
    }

    /// Writes one. The caller has made sure that there is room.
    #[inline(always)]
    pub(super) fn push(&mut self, words: [u64; 2]) {
        let [first, second] = self.owned(self.fill, words);
        if self.fill == self.published {
            self.held = [first, second];
            self.ring.put(self.fill, [first, second ^ self.gen_bit]);
        } else {
            self.ring.put(self.fill, [first, second]);
        }
        self.fill = self.fill.wrapping_add(1);
    }

    /// Writes the last one pushed again. It must not be published yet.
    #[inline(always)]
    pub(super) fn amend_last(&mut self, words: [u64; 2]) {
        let index = self.fill.wrapping_sub(1);
        let words = self.owned(index, words);
        if index == self.published {
            self.held = words;
        } else {
            self.ring.put(index, words);
        }
    }

    /// Gives the device what was pushed.
    #[inline(always)]
    pub(super) fn publish(&mut self) {
        if self.fill != self.published {
            fence(Ordering::Release);
            self.ring.put(self.published, self.held);
            self.published = self.fill;
        }
    }
}

/// A ring on which the device says what it is through with.
pub(super) struct CompletionRing {
    ring: DescRing,
    lap_shift: u32,
    next: u16,
}

impl CompletionRing {
    pub(super) fn new(space: &DmaSpace, what: &str, size: u16) -> Result<Self, DmaError> {
        let (ring, lap_shift) = zeros(space, what, size)?;
        Ok(CompletionRing { ring, lap_shift, next: 0 })
    }

    pub(super) fn iova(&self) -> u64 {
        self.ring.iova().0
    }

    pub(super) fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The next completion, if the device has written it: a copy.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<Done> {
        let second = self.ring.done_word(self.next);
        let is_odd_lap = self.next >> self.lap_shift & 1 != 0;
        let is_set = second & DONE_GEN != 0;
        (is_set != is_odd_lap).then(|| Done([self.ring.first_word(self.next), second]))
    }

    /// On to the next.
    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmxnet3::desc::RX_GEN;

    /// As a device sees it.
    fn is_owned(ring: &CommandRing, index: u16) -> bool {
        let odd = index >> ring.lap_shift & 1 != 0;
        (ring.ring.done_word(index) & RX_GEN != 0) != odd
    }

    #[test]
    fn pushed_descriptors_are_the_devices_when_published_also_at_the_wrap_of_all_indices() {
        let mut ring = CommandRing::new(&DmaSpace::new(), "test", 32, RX_GEN).unwrap();
        // 65,530 is in an odd lap: the ring holds what the lap before left.
        (ring.fill, ring.published, ring.done) = (65_530, 65_530, 65_530);
        for round in 0..5_u16 {
            let first = ring.fill;
            (0..20_u16).for_each(|n| ring.push([u64::from(n), 5]));
            assert!(round == 0 || !is_owned(&ring, first), "the device stops in front of the first");
            ring.publish();
            assert!((0..20).all(|n| is_owned(&ring, first.wrapping_add(n))), "round {round}");
            assert_eq!(
                (ring.n_out(), ring.n_free(), ring.fill_slot()),
                (20, 11, first.wrapping_add(20) & 31)
            );
            (0..20).for_each(|_| ring.complete());
        }
        assert_eq!(ring.n_free(), 31);
    }

    #[test]
    fn last_descriptor_can_be_written_again_before_it_is_published() {
        let mut ring = CommandRing::new(&DmaSpace::new(), "test", 32, RX_GEN).unwrap();
        ring.push([1, 1]);
        ring.amend_last([1, 7]);
        ring.publish();
        assert_eq!(ring.ring.done_word(0), 7 | RX_GEN);
        ring.push([2, 2]);
        ring.push([3, 3]);
        ring.amend_last([3, 9]);
        ring.publish();
        assert_eq!((ring.ring.done_word(1), ring.ring.done_word(2)), (2 | RX_GEN, 9 | RX_GEN));
    }

    #[test]
    fn completions_are_seen_once_each_lap_by_their_generation() {
        let mut ring = CompletionRing::new(&DmaSpace::new(), "test", 8).unwrap();
        assert!(ring.peek().is_none(), "zeros are not done");
        for index in 0..100_u16 {
            let odd = index >> 3 & 1 != 0;
            ring.ring.put(index, [u64::from(index), if odd { 0 } else { DONE_GEN }]);
            assert_eq!(ring.peek().map(Done::index), Some(index));
            ring.advance();
            assert!(ring.peek().is_none(), "{index}");
        }
    }
}
