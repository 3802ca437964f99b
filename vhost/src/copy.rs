// UNSAFETY: copies between packet buffers and memory that guests may write at any time.
//! Copying frames. Most are short, and a call of the C library's function, which first finds out how short, takes
//! longer than their bytes do. Polling cores call this; it owns nothing.

use std::ptr::NonNull;

/// Asks the CPU to fetch a line and to take it from all other CPUs.
#[inline(always)]
pub(crate) fn prefetch_write(line: *const u8) {
    // SAFETY: a prefetch has no effect but on caches, for any address. As an instruction by itself: the intrinsic
    // becomes one for reading where the target is not known to have this one, which does nothing then.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

/// Copies `n` bytes.
///
/// # Safety
/// `from` can be read for `n` bytes, `to` can be written for `n`, and they don't overlap. Others may write `from`
/// meanwhile: the copy is then some mix of old and new.
#[inline(always)]
pub(crate) unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, n: usize) {
    // SAFETY: the caller's promise.
    if !unsafe { copy_short(from, to, n) } {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), n) }
    }
}

/// Copies `n` bytes if that takes no call: a loop without calls keeps what it needs in registers (together with
/// [`DescTable`](crate::vring::layout::DescTable) 132 to 121 instructions a packet from a guest, 181 to 155 to one: `spp-stages --count
/// guest` under callgrind). False, and nothing done, for lengths other than 32 to 128.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
pub(crate) unsafe fn copy_short(from: NonNull<u8>, to: NonNull<u8>, n: usize) -> bool {
    match n {
        // SAFETY: the caller's promise, and n is between the block and twice the block.
        32..=64 => unsafe { copy_ends::<32>(from, to, n) },
        // SAFETY: as above.
        65..=128 => unsafe { copy_ends::<64>(from, to, n) },
        _ => return false,
    }
    true
}

/// Copies `n` bytes from one guest's memory into another's, or the same one's: then a guest may have named one place twice.
///
/// # Safety
/// As [`copy`], but they may overlap, and others may write either meanwhile.
#[inline(always)]
pub(crate) unsafe fn copy_between_guests(from: NonNull<u8>, to: NonNull<u8>, n: usize) {
    if overlap(from, to, n) {
        // SAFETY: the caller's promise; this one may be used where both overlap.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), n) }
    } else {
        // SAFETY: the caller's promise, and they don't overlap.
        unsafe { copy(from, to, n) }
    }
}

/// As [`copy_between_guests`], under the conditions of [`copy_short`]; false, and nothing done, also where both overlap.
///
/// # Safety
/// As [`copy_between_guests`].
#[inline(always)]
pub(crate) unsafe fn copy_short_between_guests(from: NonNull<u8>, to: NonNull<u8>, n: usize) -> bool {
    // SAFETY: the caller's promise, and they don't overlap.
    !overlap(from, to, n) && unsafe { copy_short(from, to, n) }
}

#[inline(always)]
fn overlap(a: NonNull<u8>, b: NonNull<u8>, n: usize) -> bool {
    a.addr().get().abs_diff(b.addr().get()) < n
}

/// Copies the first and the last `BLOCK` bytes, without a loop. Bytes in both are copied twice, which of the two
/// copies stays does not matter: nobody has looked at either.
///
/// # Safety
/// As [`copy`], and `BLOCK <= n <= 2 * BLOCK`.
#[inline(always)]
unsafe fn copy_ends<const BLOCK: usize>(from: NonNull<u8>, to: NonNull<u8>, n: usize) {
    // SAFETY: BLOCK <= n.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), BLOCK) };
    // SAFETY: within n bytes of `from`.
    let from_end = unsafe { from.add(n - BLOCK) };
    // SAFETY: within n bytes of `to`.
    let to_end = unsafe { to.add(n - BLOCK) };
    // SAFETY: the last BLOCK of n bytes of each.
    unsafe { std::ptr::copy_nonoverlapping(from_end.as_ptr(), to_end.as_ptr(), BLOCK) };
}

#[cfg(test)]
mod tests {
    use super::{copy, copy_between_guests};
    use std::ptr::NonNull;

    #[test]
    fn every_length_is_copied_whole_and_not_a_byte_more() {
        let from: Vec<u8> = (0..300u32).map(|n| n as u8 | 1).collect();
        for n in 0..from.len() {
            let mut to = vec![0u8; from.len() + 1];
            let ends = (NonNull::from(&from[..]).cast(), NonNull::from(&mut to[..]).cast());
            // SAFETY: both are longer than n bytes, and two vectors.
            unsafe { copy(ends.0, ends.1, n) };
            assert_eq!(to[..n], from[..n]);
            assert!(to[n..].iter().all(|byte| *byte == 0), "{n}");
        }
    }

    #[test]
    fn frame_that_lies_across_its_own_destination_arrives_whole() {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (0, 63), (100, 0), (0, 100), (0, 99)] {
            for n in [1, 14, 40, 64, 100] {
                let mut bytes: Vec<u8> = (0..200).collect();
                let before = bytes.clone();
                let start = NonNull::from(&mut bytes[..]).cast::<u8>();
                // SAFETY: within the vector.
                let source = unsafe { start.add(from) };
                // SAFETY: within the vector.
                let target = unsafe { start.add(to) };
                // SAFETY: both have n bytes to the vector's end.
                unsafe { copy_between_guests(source, target, n) };
                assert_eq!(bytes[to..to + n], before[from..from + n], "{n} bytes from {from} to {to}");
            }
        }
    }
}
