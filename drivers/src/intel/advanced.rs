//! Advanced descriptors of the 82576 (7.1.5, 7.2.2) and the 82599 (7.1.6, 7.2.3.2.3), with what differs between them.

use super::desc::{Checksum, RxFormat, TxFormat};
use crate::dma::Iova;
use crate::offload::{F_NEEDS_CSUM, Offload, Offloads};

/// Written back: status 0..20, errors 20..32, length 32..48, VLAN tag 48..64. The families put the errors at different
/// bits: `DAMAGE` are those of a frame that is damaged, `WRONG` those of a wrong checksum.
pub enum AdvancedRx<const DAMAGE: u64, const WRONG: u64> {}

/// As the 82576 and its successors write it (82576 7.1.5.2): CE, SE, SEQ, CXE and RXE, the last in bit 31; L4E in bit 29
/// and IPE in bit 30.
pub type GigabitRx = AdvancedRx<{ 0x97 << 24 }, { 3 << 29 }>;

/// As the 82599 and its successors write it (82599 7.1.6.2): RXE in bit 29; L4E in bit 30 and IPE in bit 31.
pub type TenGigabitRx = AdvancedRx<{ 1 << 29 }, { 3 << 30 }>;

impl<const DAMAGE: u64, const WRONG: u64> RxFormat for AdvancedRx<DAMAGE, WRONG> {
    const DONE: u64 = 1;
    const LAST: u64 = 1 << 1;
    const DAMAGED: u64 = DAMAGE;
    const STRIPPED: u64 = 1 << 3;

    #[inline(always)]
    fn len_bytes(word: u64) -> usize {
        usize::from((word >> 32) as u16)
    }

    #[inline(always)]
    fn checksum(word: u64) -> Checksum {
        const L4CS: u64 = 1 << 5;
        // Only a right IP header says nothing about what is in the packet.
        match () {
            () if word & WRONG != 0 => Checksum::Wrong,
            () if word & L4CS != 0 => Checksum::Right,
            () => Checksum::Unknown,
        }
    }
}

/// Data and context descriptors.
pub enum AdvancedTx {}

const DTYP_CONTEXT: u64 = 2 << 20;
const DTYP_DATA: u64 = 3 << 20;
const EOP: u64 = 1 << 24;
const IFCS: u64 = 1 << 25;
const RS: u64 = 1 << 27;
const DEXT: u64 = 1 << 29;
/// Insert the context's tag.
const VLE: u64 = 1 << 30;
/// POPTS.TXSM: complete the checksum of the transport layer.
const TXSM: u64 = 1 << 41;
/// Length of the whole frame.
const PAYLEN_SHIFT: u32 = 46;
const TUCMD_IPV4: u64 = 1 << 10;
const TUCMD_TCP: u64 = 1 << 11;

impl TxFormat for AdvancedTx {
    const OFFLOADS: Offloads = Offloads::CSUM;
    /// 82599 7.2.1.1: shorter ones are not to be given to the card, which pads the rest.
    const MIN_FRAME_BYTES: usize = 17;
    /// 82599 7.2.1.1: 40 with a context.
    const MAX_SEGMENTS: usize = 38;

    #[inline(always)]
    fn data(at: Iova, len_bytes: usize, total_bytes: usize, last: bool, checksum: bool) -> [u64; 2] {
        let end = if last { EOP } else { 0 };
        let work = if checksum { TXSM } else { 0 };
        let total = (total_bytes as u64) << PAYLEN_SHIFT;
        [at.0, len_bytes as u64 | DTYP_DATA | DEXT | IFCS | end | work | total]
    }

    #[inline(always)]
    fn report([first, second]: [u64; 2]) -> [u64; 2] {
        [first, second | RS]
    }

    fn context(work: &Offload) -> Option<[u64; 2]> {
        if work.flags & F_NEEDS_CSUM == 0 || work.is_long() {
            return None;
        }
        // The card wants the lengths of both headers in front, of which only the sum is known. No IP checksum is asked
        // for, so a split that is wrong in rare cases (38: a tag, or four bytes of IPv4 options) changes nothing.
        let (mac_len, ip_len, ipv4) = match work.csum_start {
            34 => (14, 20, TUCMD_IPV4),
            38 => (18, 20, TUCMD_IPV4),
            54 => (14, 40, 0),
            58 => (18, 40, 0),
            _ => return None,
        };
        let transport = match work.csum_offset {
            16 => TUCMD_TCP,
            6 => 0,
            _ => return None,
        };
        Some([ip_len | mac_len << 9, DTYP_CONTEXT | DEXT | ipv4 | transport])
    }

    #[inline(always)]
    fn tagged([at, word]: [u64; 2], _tag: u16) -> [u64; 2] {
        [at, word | VLE]
    }

    #[inline(always)]
    fn tag_context(own: Option<[u64; 2]>, tag: u16) -> Option<[u64; 2]> {
        let [lengths, kind] = own.unwrap_or([14 << 9, DTYP_CONTEXT | DEXT]);
        Some([lengths | u64::from(tag) << 16, kind])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_status_are_where_the_datasheets_have_them() {
        let word = 0x0000_0040_0000_0003;
        assert_eq!(GigabitRx::len_bytes(word), 64);
        assert_eq!(TenGigabitRx::len_bytes(word), 64);
        assert_eq!(word & (GigabitRx::DONE | GigabitRx::LAST | GigabitRx::DAMAGED), 3);
        assert_eq!(word & (TenGigabitRx::DONE | TenGigabitRx::LAST | TenGigabitRx::DAMAGED), 3);
    }

    #[test]
    fn checksum_errors_are_no_damage_on_either_speed() {
        assert_eq!(0x6000_0000 & GigabitRx::DAMAGED, 0);
        assert_ne!(0x8000_0000 & GigabitRx::DAMAGED, 0, "RXE");
        assert_eq!(0xc000_0000 & TenGigabitRx::DAMAGED, 0);
        assert_ne!(0x2000_0000 & TenGigabitRx::DAMAGED, 0, "RXE");
    }

    #[test]
    fn checksums_are_right_only_where_the_transport_layer_was_checked() {
        for checksum in [GigabitRx::checksum, TenGigabitRx::checksum] {
            assert_eq!(checksum(0x03), Checksum::Unknown);
            assert_eq!(checksum(0x43), Checksum::Unknown, "IP alone");
            assert_eq!(checksum(0x63), Checksum::Right);
        }
        assert_eq!(GigabitRx::checksum(0x2000_0063), Checksum::Wrong);
        assert_eq!(GigabitRx::checksum(0x4000_0043), Checksum::Wrong);
        assert_eq!(TenGigabitRx::checksum(0x4000_0063), Checksum::Wrong);
        assert_eq!(TenGigabitRx::checksum(0x8000_0043), Checksum::Wrong);
    }

    #[test]
    fn data_descriptors_say_where_the_frame_ends_and_how_long_it_is() {
        let [at, word] = AdvancedTx::data(Iova(4096), 60, 60, true, false);
        assert_eq!((at, word), (4096, 60 | DTYP_DATA | DEXT | IFCS | EOP | 60 << 46));
        let [_, more] = AdvancedTx::data(Iova(4096), 2048, 9000, false, true);
        assert_eq!(more, 2048 | DTYP_DATA | DEXT | IFCS | TXSM | 9000 << 46);
        assert_eq!(AdvancedTx::report([1, more])[1], more | RS);
    }

    #[test]
    fn tag_is_in_the_context_beside_the_lengths() {
        let bare = AdvancedTx::tag_context(None, 0xa064);
        assert_eq!(bare, Some([0xa064 << 16 | 14 << 9, DTYP_CONTEXT | DEXT]));
        let own = [20 | 14 << 9, DTYP_CONTEXT | DEXT | TUCMD_IPV4];
        assert_eq!(AdvancedTx::tag_context(Some(own), 1), Some([1 << 16 | own[0], own[1]]));
        assert_eq!(AdvancedTx::tagged([4096, 60], 1), [4096, 60 | VLE]);
    }

    #[test]
    fn context_is_made_for_tcp_and_udp_behind_plain_headers_only() {
        let work = |csum_start, csum_offset| Offload {
            flags: F_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Offload::default()
        };
        let context = AdvancedTx::context(&work(34, 16));
        assert_eq!(context, Some([20 | 14 << 9, DTYP_CONTEXT | DEXT | TUCMD_IPV4 | TUCMD_TCP]));
        assert_eq!(AdvancedTx::context(&work(58, 6)), Some([40 | 18 << 9, DTYP_CONTEXT | DEXT]));
        assert_eq!(AdvancedTx::context(&work(74, 6)), None, "IPv4 with many options: software does it");
        assert_eq!(AdvancedTx::context(&work(34, 10)), None);
        assert_eq!(AdvancedTx::context(&Offload::default()), None, "nothing to complete");
    }
}
