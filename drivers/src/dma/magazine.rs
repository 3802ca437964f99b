//! A stack of free slots, as [`PoolCache`](super::PoolCache) holds two and the depot holds many. Owned by one thread at
//! a time.

/// Slots in a magazine: with one, so that each packet asks the depot, a frame from a guest takes 257 instructions and 88 ticks, not
/// 117 and 17, one to a guest 262 and 66, not 137 and 22 (`spp-stages guest`, bursts of 32, nobody else at the depot).
pub(super) const MAGAZINE: usize = 64;

/// Up to [`MAGAZINE`] slots of one pool. Of those beyond `len` somebody else is the owner.
pub(super) struct Magazine {
    slots: [u32; MAGAZINE],
    len: usize,
}

impl Default for Magazine {
    fn default() -> Self {
        Magazine { slots: [0; MAGAZINE], len: 0 }
    }
}

impl FromIterator<u32> for Magazine {
    /// # Panics
    /// If there are more than [`MAGAZINE`]. Set-up only.
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        let mut magazine = Magazine::default();
        slots.into_iter().for_each(|slot| assert!(magazine.push(slot), "a magazine holds {MAGAZINE} slots"));
        magazine
    }
}

impl Magazine {
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        MAGAZINE - self.len
    }

    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<u32> {
        let left = self.len.checked_sub(1)?;
        let slot = *self.slots.get(left)?;
        self.len = left;
        Some(slot)
    }

    /// False when there is no room: the slot stays the caller's.
    #[inline(always)]
    pub(super) fn push(&mut self, slot: u32) -> bool {
        let Some(entry) = self.slots.get_mut(self.len) else { return false };
        *entry = slot;
        self.len += 1;
        true
    }

    /// False when they don't all fit: they stay the caller's.
    #[inline(always)]
    pub(super) fn push_all(&mut self, slots: impl ExactSizeIterator<Item = u32>) -> bool {
        let Some(entries) = self.slots.get_mut(self.len..self.len + slots.len()) else { return false };
        self.len += entries.len();
        entries.iter_mut().zip(slots).for_each(|(entry, slot)| *entry = slot);
        true
    }

    /// All of them, to be taken one by one.
    #[inline(always)]
    pub(super) fn stock(&mut self) -> Stock<'_> {
        let left = self.len;
        Stock { slots: &self.slots, len: &mut self.len, left }
    }
}

/// What a magazine has, on loan to a loop: what is left is counted in a register, and in the magazine when the loan ends.
pub(super) struct Stock<'a> {
    slots: &'a [u32; MAGAZINE],
    len: &'a mut usize,
    left: usize,
}

impl<'a> Stock<'a> {
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.left
    }

    /// Takes `n` out at once, the next one last; fewer when there are fewer.
    #[inline(always)]
    pub(super) fn take_top(&mut self, n: usize) -> &'a [u32] {
        let rest = self.left.saturating_sub(n);
        let top = self.slots.get(rest..self.left).unwrap_or_default();
        self.left = rest;
        top
    }
}

impl Iterator for Stock<'_> {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        let left = self.left.checked_sub(1)?;
        let slot = *self.slots.get(left)?;
        self.left = left;
        Some(slot)
    }
}

impl Drop for Stock<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.len = self.left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_slot_in_is_first_out_and_a_full_magazine_takes_none() {
        let mut magazine: Magazine = (0..62).collect();
        assert!(magazine.push(62) && !magazine.push_all([63, 64].into_iter()) && magazine.push(63));
        assert!(!magazine.push(64));
        assert_eq!((magazine.len(), magazine.room(), magazine.pop()), (64, 0, Some(63)));
        assert!(magazine.push_all([7].into_iter()));
        assert_eq!(magazine.stock().by_ref().take(2).collect::<Vec<_>>(), [7, 62]);
        assert_eq!(magazine.len(), 62, "two were taken");
        assert_eq!(magazine.stock().take_top(2), [60, 61]);
        assert_eq!(magazine.len(), 60, "and two more");
        assert_eq!(magazine.stock().take_top(99).len(), 60);
        assert_eq!((magazine.pop(), magazine.len()), (None, 0));
    }
}
