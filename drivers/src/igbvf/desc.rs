//! Descriptor formats: the advanced ones. The physical function decides whether VLAN tags are taken off received frames
//! (Linux lets the card do so), so they are read from the descriptor and put back.

pub use crate::intel::advanced::AdvancedTx;
use crate::intel::advanced::GigabitRx;
use crate::intel::desc::{Checksum, RxFormat};

/// As [`GigabitRx`], with the tag. `SWAPS`: the card (I350) has the tag's bytes in the wrong order in frames that another
/// function of it sent (specification update).
pub enum VfRx<const SWAPS: bool> {}

impl<const SWAPS: bool> RxFormat for VfRx<SWAPS> {
    const DONE: u64 = GigabitRx::DONE;
    const LAST: u64 = GigabitRx::LAST;
    const DAMAGED: u64 = GigabitRx::DAMAGED;
    const STRIPPED: u64 = GigabitRx::STRIPPED;
    const STRIPS_UNASKED: bool = true;

    #[inline(always)]
    fn len_bytes(word: u64) -> usize {
        GigabitRx::len_bytes(word)
    }

    #[inline(always)]
    fn checksum(word: u64) -> Checksum {
        GigabitRx::checksum(word)
    }

    #[inline(always)]
    fn tag(word: u64) -> u16 {
        const LOOPED_BACK: u64 = 1 << 18;
        let tag = GigabitRx::tag(word);
        if SWAPS && word & LOOPED_BACK != 0 { tag.swap_bytes() } else { tag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_is_read_where_there_is_one() {
        let word = 0x2064 << 48 | 64 << 32 | 0x0b;
        assert_eq!(word & VfRx::<false>::STRIPPED, 8);
        assert_eq!(VfRx::<false>::tag(word), 0x2064);
        assert_eq!(VfRx::<true>::tag(word), 0x2064);
        assert_eq!(VfRx::<true>::tag(word | 1 << 18), 0x6420);
        assert_eq!(VfRx::<false>::tag(word | 1 << 18), 0x2064);
    }
}
