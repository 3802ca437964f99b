//! The Internet checksum (RFC 1071) over packet buffers, and completing one that a guest left open.
//!
//! Sums are taken in the machine's byte order, four bytes at a time; the result is the same but for a swap,
//! which writing it in the machine's order undoes.

use super::{F_NEEDS_CSUM, Offload};
use crate::dma::PacketBuf;
use crate::stats::DropReason;

/// `csum_offset` of UDP, where a checksum of zero means "none".
const UDP_CHECK: u16 = 6;

/// A running sum. Pieces may have any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    acc: u64,
    /// An odd number of bytes so far: the next piece begins in the middle of a word.
    odd: bool,
}

impl Sum {
    /// Adds the bytes that follow.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Sum {
        let sum = fold(sum_of(bytes));
        self.acc += u64::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= bytes.len() & 1 != 0;
        self
    }

    /// Adds a number of 16 bits in network order, at an even place.
    #[must_use]
    pub fn add_u16(self, word: u16) -> Sum {
        debug_assert!(!self.odd, "numbers stand at even places");
        self.with(&word.to_be_bytes())
    }

    /// The sum itself, as it goes into a header whose checksum is still open.
    pub fn partial(self) -> [u8; 2] {
        fold(self.acc).to_ne_bytes()
    }

    /// The checksum.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.acc)).to_ne_bytes()
    }
}

/// No overflow: 2^32 words would be needed.
fn sum_of(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let mut rest = [0; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    let last = u64::from(u32::from_ne_bytes(rest));
    words.map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum::<u64>() + last
}

/// Adds the carries in.
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sum of the frame's bytes from `start` on.
pub(super) fn sum_from(packet: &PacketBuf, start: usize, mut sum: Sum) -> Sum {
    let mut skip = start;
    for segment in packet.segments() {
        sum = sum.with(&segment[skip.min(segment.len())..]);
        skip = skip.saturating_sub(segment.len());
    }
    sum
}

/// Completes the checksum that `offload` asks for, if it does; afterwards the frame has no work left.
/// A place outside the frame's first buffer is refused, and the frame stays as it was. The frame must be the
/// caller's own ([`PacketBuf::make_own`]).
pub fn complete(packet: &mut PacketBuf, offload: &Offload) -> Result<(), DropReason> {
    if offload.flags & F_NEEDS_CSUM != 0 {
        let start = usize::from(offload.csum_start);
        let at = start + usize::from(offload.csum_offset);
        if at + 2 > packet.len() {
            return Err(DropReason::BadOffload);
        }
        // The open checksum holds the sum of the pseudo-header, so it counts as it is.
        let mut checksum = sum_from(packet, start, Sum::default()).finish();
        if checksum == [0, 0] && offload.csum_offset == UDP_CHECK {
            checksum = [0xff, 0xff];
        }
        packet.data_mut()[at..at + 2].copy_from_slice(&checksum);
    }
    packet.set_offload(None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bytes, cache, chain};
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written down.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn sum_is_that_of_rfc_1071_however_the_bytes_are_cut(
            data in proptest::collection::vec(any::<u8>(), 0..3000),
            cuts in proptest::collection::vec(0usize..3000, 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
            cuts.sort_unstable();
            let (mut sum, mut from) = (Sum::default(), 0);
            for cut in cuts.into_iter().chain([data.len()]) {
                sum = sum.with(&data[from..cut]);
                from = cut;
            }
            prop_assert_eq!(u16::from_be_bytes(sum.finish()), plain(&data));
        }

        #[test]
        fn completed_checksum_makes_the_sum_come_out_whatever_the_frame(
            data in proptest::collection::vec(any::<u8>(), 20..6000),
            first in 20usize..2000,
            start in 0u16..6000,
            offset in 0u16..6000,
        ) {
            let (_pool, mut cache) = cache(64);
            let mut packet = chain(&mut cache, &data, first);
            let before = bytes(&packet);
            let offload =
                Offload { flags: F_NEEDS_CSUM, csum_start: start, csum_offset: offset, ..Offload::default() };
            packet.set_offload(Some(offload));
            let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
            let inside = at + 2 <= packet.len();
            let done = complete(&mut packet, &offload);
            prop_assert_eq!(done, if inside { Ok(()) } else { Err(DropReason::BadOffload) });
            let after = bytes(&packet);
            if inside {
                prop_assert_eq!(packet.offload(), None);
                let mut expected = before.clone();
                let mut sum = plain(&before[start..]);
                // A field at an odd place from the start is summed with its bytes swapped; only the frame's own
                // arithmetic is asked for there.
                if sum == 0 && offset == 6 {
                    sum = 0xffff;
                }
                expected[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                prop_assert_eq!(after, expected);
            } else {
                prop_assert_eq!(packet.offload(), Some(offload));
                prop_assert_eq!(after, before);
            }
        }
    }

    #[test]
    fn request_that_only_says_the_data_is_valid_is_cleared_and_nothing_written() {
        let (_pool, mut cache) = cache(64);
        let mut packet = chain(&mut cache, &[7; 60], 60);
        let offload = Offload { flags: super::super::F_DATA_VALID, ..Offload::default() };
        packet.set_offload(Some(offload));
        assert_eq!(complete(&mut packet, &offload), Ok(()));
        assert_eq!((packet.offload(), packet.data()), (None, &[7; 60][..]));
    }
}
