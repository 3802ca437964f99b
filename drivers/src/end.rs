// UNSAFETY: a loop that fills a list counts in a register, beside the list's own length.
//! The free end of a list of a burst's length, for loops that append to it. Any thread.

use arrayvec::ArrayVec;

use crate::burst::BURST;

/// The free end of a list: where it is stays in a register while a loop appends, and is the list's length again when this is
/// dropped: an append loads and stores no length.
pub struct End<'a, T> {
    list: &'a mut ArrayVec<T, BURST>,
    /// Where the next element goes.
    next: *mut T,
    /// Behind the last one there is room for.
    stop: *mut T,
}

impl<'a, T> End<'a, T> {
    /// Of this list.
    #[inline(always)]
    pub fn of(list: &'a mut ArrayVec<T, BURST>) -> Self {
        const { assert!(size_of::<T>() > 0, "places are told apart by their addresses") };
        let (first, len) = (list.as_mut_ptr(), list.len());
        // SAFETY: len <= BURST, which is how long the array is.
        let next = unsafe { first.add(len) };
        // SAFETY: just behind the array.
        let stop = unsafe { first.add(BURST) };
        End { list, next, stop }
    }

    /// Elements in the list, with those appended.
    #[allow(clippy::len_without_is_empty)]
    #[inline(always)]
    pub fn len(&self) -> usize {
        // SAFETY: both are in the one array or just behind it.
        let room = unsafe { self.stop.offset_from_unsigned(self.next) };
        BURST - room
    }

    /// Appends one; a full list gives it back.
    #[inline(always)]
    pub fn push(&mut self, element: T) -> Result<(), T> {
        if self.next == self.stop {
            return Err(element);
        }
        // SAFETY: before stop, so it is the array's own place, borrowed mutably; what is there is no element, since it is
        // beyond the list's length.
        unsafe { self.next.write(element) };
        // SAFETY: at most stop.
        self.next = unsafe { self.next.add(1) };
        Ok(())
    }
}

impl<T> Drop for End<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        let len = self.len();
        // SAFETY: push() has initialised every place below len, which is at most BURST.
        unsafe { self.list.set_len(len) };
    }
}
