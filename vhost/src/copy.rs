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

/// Asks the CPU to fetch a line.
#[inline(always)]
pub(crate) fn prefetch(line: *const u8) {
    // SAFETY: a prefetch has no effect but on caches, for any address.
    unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line.cast()) }
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
    use super::copy;
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
}
