//! Descriptor formats: legacy (8254x 3.2.3, 3.3.3), extended receive (82574 7.1.5), context and data (82574 7.2.4).

use crate::dma::Iova;
use crate::intel::desc::{Checksum, RxFormat, TxFormat};
use crate::offload::{F_NEEDS_CSUM, Offload, Offloads};

/// Legacy receive descriptors: length 0..16, checksum, status 32..40, errors 40..48.
pub enum LegacyRx {}

const fn legacy_checksum(status: u64, errors: u64) -> Checksum {
    /// Status: nothing of what follows means anything.
    const IXSM: u64 = 1 << 2;
    const TCPCS: u64 = 1 << 5;
    const IPCS: u64 = 1 << 6;
    const TCPE: u64 = 1 << 5;
    const IPE: u64 = 1 << 6;
    if status & IXSM != 0 || status & (TCPCS | IPCS) == 0 {
        return Checksum::Unknown;
    }
    if (status & TCPCS != 0 && errors & TCPE != 0) || (status & IPCS != 0 && errors & IPE != 0) {
        return Checksum::Wrong;
    }
    // Only a right IP header says nothing about what is in the packet.
    if status & TCPCS != 0 { Checksum::Right } else { Checksum::Unknown }
}

impl RxFormat for LegacyRx {
    const DONE: u64 = 1 << 32;
    const LAST: u64 = 1 << 33;
    /// CE, SE, SEQ, CXE, RXE (8254x 3.2.3.3).
    const DAMAGED: u64 = 0x97 << 40;
    const STRIPPED: u64 = 1 << 35;

    #[inline(always)]
    fn len_bytes(word: u64) -> usize {
        usize::from(word as u16)
    }

    #[inline(always)]
    fn checksum(word: u64) -> Checksum {
        legacy_checksum(word >> 32 & 0xff, word >> 40 & 0xff)
    }
}

/// Extended receive descriptors, written back: status 0..20, errors 20..32, length 32..48, VLAN tag 48..64.
pub enum ExtendedRx {}

impl RxFormat for ExtendedRx {
    const DONE: u64 = 1 << 0;
    const LAST: u64 = 1 << 1;
    /// CE, SE, SEQ, CXE, RXE (82574 7.1.5.2).
    const DAMAGED: u64 = 0x97 << 24;
    const STRIPPED: u64 = 1 << 3;

    #[inline(always)]
    fn len_bytes(word: u64) -> usize {
        usize::from((word >> 32) as u16)
    }

    #[inline(always)]
    fn checksum(word: u64) -> Checksum {
        /// UDPCS: counts like TCPCS.
        const UDPCS: u64 = 1 << 4;
        let status = word & 0xff;
        legacy_checksum(status | (status & UDPCS) << 1, word >> 24 & 0xff)
    }
}

/// Transmit descriptors of all chips: legacy ones, and for frames whose checksum the card completes a context and
/// data descriptors. Both may follow each other in one ring.
pub enum Tx {}

/// Command bits of both kinds, in the second word.
const EOP: u64 = 1 << 24;
const IFCS: u64 = 1 << 25;
const RS: u64 = 1 << 27;
const DEXT: u64 = 1 << 29;
/// Insert the tag of bits 48 to 63.
const VLE: u64 = 1 << 30;
/// Descriptor type of data descriptors; contexts have 0.
const DTYP_DATA: u64 = 1 << 20;
/// Data: complete the checksum of the transport layer.
const TXSM: u64 = 1 << 41;
/// Context: the checksum is TCP's.
const TUCMD_TCP: u64 = 1 << 24;
/// Where TCP has its checksum.
const TCP_CHECK: u16 = 16;

impl TxFormat for Tx {
    const OFFLOADS: Offloads = Offloads::CSUM;
    /// 82574 7.2.1: shorter ones than 17 bytes are not to be given to the card, which pads the rest.
    const MIN_FRAME_BYTES: usize = 17;
    const MAX_SEGMENTS: usize = 34;

    #[inline(always)]
    fn data(at: Iova, len_bytes: usize, _total_bytes: usize, last: bool, checksum: bool) -> [u64; 2] {
        let end = if last { EOP } else { 0 };
        let kind = if checksum { DEXT | DTYP_DATA | TXSM } else { 0 };
        [at.0, len_bytes as u64 | IFCS | end | kind]
    }

    #[inline(always)]
    fn report([first, second]: [u64; 2]) -> [u64; 2] {
        [first, second | RS]
    }

    fn context(work: &Offload) -> Option<[u64; 2]> {
        if work.flags & F_NEEDS_CSUM == 0 || work.is_long() {
            return None;
        }
        // TUCSS, TUCSO (8 bits each), TUCSE: 0 for the end of the frame. The IP fields are not used.
        let start = u8::try_from(work.csum_start).ok()?;
        let place = u8::try_from(work.csum_start.checked_add(work.csum_offset)?).ok()?;
        let tcp = if work.csum_offset == TCP_CHECK { TUCMD_TCP } else { 0 };
        Some([u64::from(start) << 32 | u64::from(place) << 40, DEXT | tcp])
    }

    /// Meant in the last descriptor of a frame (82574 7.2); in the others it means nothing.
    #[inline(always)]
    fn tagged([at, word]: [u64; 2], tag: u16) -> [u64; 2] {
        [at, word | VLE | u64::from(tag) << 48]
    }

    #[inline(always)]
    fn tag_context(own: Option<[u64; 2]>, _tag: u16) -> Option<[u64; 2]> {
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_status_are_where_the_datasheet_has_them() {
        let legacy = 0x0000_0003_0000_0040;
        assert_eq!(LegacyRx::len_bytes(legacy), 64);
        assert_eq!(legacy & (LegacyRx::DONE | LegacyRx::LAST | LegacyRx::DAMAGED), legacy & !0xffff);
        let extended = 0x0000_0040_0000_0003;
        assert_eq!(ExtendedRx::len_bytes(extended), 64);
        assert_eq!(extended & ExtendedRx::DAMAGED, 0);
        assert_ne!(1 << 24 & ExtendedRx::DAMAGED, 0, "CE");
        assert_eq!(0x6000_0000 & ExtendedRx::DAMAGED, 0, "checksum errors are no damage");
    }

    #[test]
    fn checksums_are_right_only_where_the_transport_layer_was_checked() {
        let of = |status: u64, errors: u64| ExtendedRx::checksum(status | errors << 24);
        assert_eq!(of(0x03, 0), Checksum::Unknown);
        assert_eq!(of(0x43, 0), Checksum::Unknown, "IP alone");
        assert_eq!(of(0x63, 0), Checksum::Right);
        assert_eq!(of(0x53, 0), Checksum::Right, "UDP");
        assert_eq!(of(0x67, 0), Checksum::Unknown, "IXSM");
        assert_eq!(of(0x63, 0x20), Checksum::Wrong);
        assert_eq!(of(0x43, 0x40), Checksum::Wrong);
        assert_eq!(LegacyRx::checksum(0x0000_2063_0000_0000), Checksum::Wrong);
    }

    #[test]
    fn context_takes_any_place_it_has_bits_for() {
        let work = |csum_start, csum_offset| Offload {
            flags: F_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Offload::default()
        };
        assert_eq!(Tx::context(&work(34, 16)), Some([34 << 32 | 50 << 40, DEXT | TUCMD_TCP]));
        assert_eq!(Tx::context(&work(38, 6)), Some([38 << 32 | 44 << 40, DEXT]));
        assert_eq!(Tx::context(&work(256, 6)), None);
        assert_eq!(Tx::context(&work(250, 6)), None);
        assert_eq!(Tx::context(&Offload::default()), None, "nothing to complete");
    }

    #[test]
    fn tag_is_in_the_data_descriptor() {
        assert_eq!(Tx::tagged([4096, 60 | EOP], 0xa064), [4096, 60 | EOP | VLE | 0xa064 << 48]);
        let own = Some([34 << 32, DEXT]);
        assert_eq!((Tx::tag_context(own, 1), Tx::tag_context(None, 1)), (own, None));
        assert_eq!(LegacyRx::tag(0xa064 << 48), 0xa064);
    }

    #[test]
    fn data_descriptors_say_where_the_frame_ends() {
        assert_eq!(Tx::data(Iova(4096), 60, 60, true, false), [4096, 60 | EOP | IFCS]);
        let [_, more] = Tx::data(Iova(4096), 2048, 9000, false, true);
        assert_eq!(more, 2048 | IFCS | DEXT | DTYP_DATA | TXSM);
        assert_eq!(Tx::report([1, more])[1], more | RS);
    }
}
