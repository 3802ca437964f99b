//! Descriptors: 16 bytes each, here as two little-endian words. Pure.

use crate::dma::{DATA_ROOM, Iova};
use crate::offload::Offload;

/// Generation bit of a transmit descriptor, in its second word.
pub(super) const TX_GEN: u64 = 1 << 14;
/// Of a transmit descriptor, in its second word: a tag is to be inserted.
pub(super) const TX_TAG: u64 = 1 << 47;
/// Generation bit of a receive descriptor.
pub(super) const RX_GEN: u64 = 1 << 31;
/// Generation bit of a completion.
pub(super) const DONE_GEN: u64 = 1 << 63;

/// Largest offset a checksum can be at.
const MAX_CSUM_OFFSET: u16 = 1024;
/// Most descriptors of a frame that is not cut.
pub(super) const MAX_SEGMENTS: usize = 16;

const EOP: u64 = 1 << 44;
const CQ: u64 = 1 << 45;
const OM_CSUM: u64 = 2 << 42;
const HLEN_SHIFT: u32 = 32;
const MSSCOF_SHIFT: u32 = 18;

/// One piece of a frame to send, without its generation. `work` is in the first piece alone.
#[inline(always)]
pub(super) fn tx_data(at: Iova, len_bytes: usize, last: bool, work: u64) -> [u64; 2] {
    let end = if last { EOP } else { 0 };
    [at.0, len_bytes as u64 | end | work]
}

/// Asks for a completion of this descriptor, which is the last of its frame, and of all before it.
#[inline(always)]
pub(super) fn tx_report([first, second]: [u64; 2]) -> [u64; 2] {
    [first, second | CQ]
}

/// The bits that make the device complete this checksum; `None` where it can't, and software does.
#[inline(always)]
pub(super) fn tx_checksum(work: &Offload) -> Option<u64> {
    let at = work.csum_start.checked_add(work.csum_offset)?;
    // TCP and UDP are all the device knows.
    let known = matches!(work.csum_offset, 6 | 16) && at <= MAX_CSUM_OFFSET && work.csum_start < 1024;
    let bits = OM_CSUM | u64::from(work.csum_start) << HLEN_SHIFT | u64::from(at) << MSSCOF_SHIFT;
    (known && !work.is_long()).then_some(bits)
}

/// The bits that make the device insert a tag with this control information.
#[inline(always)]
pub(super) fn tx_tag(tci: u16) -> u64 {
    TX_TAG | u64::from(tci) << 48
}

/// A buffer to receive into, without its generation: the beginning of a frame, or what follows.
#[inline(always)]
pub(super) fn rx_buffer(at: Iova, body: bool) -> [u64; 2] {
    [at.0, DATA_ROOM as u64 | u64::from(body) << 14]
}

/// What the device says of a frame's checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Unknown,
    Right,
    Wrong,
}

/// A completion, of either kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done(pub(super) [u64; 2]);

impl Done {
    /// Of a transmit descriptor.
    pub(super) const TX: u64 = 0;
    /// Of a receive descriptor.
    pub(super) const RX: u64 = 3;

    #[inline(always)]
    pub(super) fn kind(self) -> u64 {
        self.0[1] >> 56 & 0x7f
    }

    /// The descriptor that is done.
    #[inline(always)]
    pub(super) fn index(self) -> u16 {
        self.0[0] as u16 & 0xfff
    }

    /// Receive: the queue, plus the number of queues where the buffer is of the second ring.
    #[inline(always)]
    pub(super) fn queue(self) -> u16 {
        (self.0[0] >> 16) as u16 & 0x3ff
    }

    #[inline(always)]
    pub(super) fn is_first(self) -> bool {
        self.0[0] & 1 << 15 != 0
    }

    #[inline(always)]
    pub(super) fn is_last(self) -> bool {
        self.0[0] & 1 << 14 != 0
    }

    #[inline(always)]
    pub(super) fn len_bytes(self) -> usize {
        (self.0[1] & 0x3fff) as usize
    }

    #[inline(always)]
    pub(super) fn is_damaged(self) -> bool {
        self.0[1] & 1 << 14 != 0
    }

    /// In the completion that ends a frame: the tag that the device took off it.
    #[inline(always)]
    pub(super) fn stripped_tag(self) -> Option<u16> {
        const TS: u64 = 1 << 15;
        (self.0[1] & TS != 0).then_some((self.0[1] >> 16) as u16)
    }

    /// Meaningful in the completion that ends a frame.
    #[inline(always)]
    pub(super) fn checksum(self) -> Checksum {
        const CNC: u64 = 1 << 30;
        const TUC: u64 = 1 << 48;
        const UDP_OR_TCP: u64 = 3 << 49;
        const IPC: u64 = 1 << 51;
        const V6: u64 = 1 << 52;
        const V4: u64 = 1 << 53;
        const FRG: u64 = 1 << 54;
        let [first, second] = self.0;
        if first & CNC != 0 || second & (V4 | V6) == 0 {
            return Checksum::Unknown;
        }
        if second & V4 != 0 && second & IPC == 0 {
            return Checksum::Wrong;
        }
        match second & UDP_OR_TCP != 0 && second & FRG == 0 {
            false => Checksum::Unknown,
            true if second & TUC != 0 => Checksum::Right,
            true => Checksum::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{F_NEEDS_CSUM, GSO_TCPV4};

    #[test]
    fn transmit_descriptors_are_laid_out_as_defined() {
        assert_eq!(tx_data(Iova(0x1000), 60, false, 0), [0x1000, 60]);
        assert_eq!(tx_data(Iova(0x1000), 60, true, 0), [0x1000, 60 | 0x1000 << 32]);
        assert_eq!(tx_report([1, 60]), [1, 60 | 0x2000 << 32]);
    }

    #[test]
    fn checksums_within_reach_of_the_device_are_left_to_it() {
        let work = |csum_start, csum_offset| Offload {
            flags: F_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Offload::default()
        };
        assert_eq!(tx_checksum(&work(34, 16)), Some(2 << 42 | 34 << 32 | 50 << 18));
        assert_eq!(tx_checksum(&work(1018, 6)), Some(2 << 42 | 1018 << 32 | 1024 << 18));
        assert_eq!(tx_checksum(&work(1019, 6)), None);
        assert_eq!(tx_checksum(&work(34, 10)), None);
        assert_eq!(tx_checksum(&work(u16::MAX, 16)), None);
        assert_eq!(tx_checksum(&Offload { gso_type: GSO_TCPV4, ..work(34, 16) }), None);
    }

    #[test]
    fn completions_are_read_as_defined() {
        let done = Done([0x1234_5678_0003_c123, 3 << 56 | 1 << 63 | 1500]);
        assert_eq!((done.kind(), done.index(), done.queue(), done.len_bytes()), (3, 0x123, 3, 1500));
        assert!(done.is_first() && done.is_last() && !done.is_damaged());
        assert!(Done([0, 1 << 14]).is_damaged());
        assert_eq!(Done([0, 0x2064_8000 | 60]).stripped_tag(), Some(0x2064));
        assert_eq!(Done([0, 0x2064_0000 | 60]).stripped_tag(), None);
        assert_eq!(tx_tag(0x2064), 0x2064_8000 << 32);
    }

    #[test]
    fn checksums_are_right_only_where_all_there_are_were_checked() {
        let found = |cnc: u64, bits: u64| Done([cnc << 30, bits << 48]).checksum();
        const UDP_V4_RIGHT: u64 = 1 | 2 | 8 | 32;
        assert_eq!(found(0, UDP_V4_RIGHT), Checksum::Right);
        assert_eq!(found(1, UDP_V4_RIGHT), Checksum::Unknown, "not calculated");
        assert_eq!(found(0, UDP_V4_RIGHT & !1), Checksum::Wrong);
        assert_eq!(found(0, UDP_V4_RIGHT & !8), Checksum::Wrong, "IP header");
        assert_eq!(found(0, 8 | 32), Checksum::Unknown, "neither TCP nor UDP");
        assert_eq!(found(0, UDP_V4_RIGHT | 64), Checksum::Unknown, "a fragment");
        assert_eq!(found(0, 1 | 4 | 16), Checksum::Right, "TCP over IPv6 has no other");
        assert_eq!(found(0, 0), Checksum::Unknown);
    }
}
