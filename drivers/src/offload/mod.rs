//! Checksum and segmentation work that travels with a frame instead of being done: what virtio calls offloads.
//!
//! A guest leaves work undone and says so in front of its frame (virtio 1.2, 5.1.6.2). If whoever
//! receives the frame can do the work, the request is passed on and the payload is never looked at; if not,
//! it is done here, in software, just before the frame leaves. Pure functions over packet buffers: no queue,
//! no clock, no allocation. Polling cores call them; every byte they read was written by a guest.
//!
//! | module | question |
//! |---|---|
//! | [`accept`] | is what a guest asks for possible, and was it negotiated? |
//! | [`layout`] | where do the headers of this frame begin and end? |
//! | [`checksum`] | complete one checksum |
//! | [`segment`] | cut a long TCP frame into segments |

#![forbid(unsafe_code)]

pub mod accept;
pub mod checksum;
pub mod layout;
pub mod segment;
#[cfg(test)]
pub(crate) mod testing;

pub use crate::dma::Offload;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum at `csum_start + csum_offset` holds only the sum of the pseudo-header.
pub const F_NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the receiver need not check the checksums. Only devices may say so.
pub const F_DATA_VALID: u8 = 2;
/// VIRTIO_NET_HDR_GSO_NONE.
pub const GSO_NONE: u8 = 0;
/// VIRTIO_NET_HDR_GSO_TCPV4.
pub const GSO_TCPV4: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV6.
pub const GSO_TCPV6: u8 = 4;
/// VIRTIO_NET_HDR_GSO_ECN: the frame's CWR bit is set and belongs to the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// Fewest payload bytes a segment may be asked to have. Linux never goes below (TCP_MIN_SND_MSS); less would
/// let one frame of a guest become tens of thousands.
pub const MIN_GSO_SIZE: u16 = 48;

/// A set of kinds of work, as a receiver can do them or a frame needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u8);

impl Offloads {
    /// Nothing: everything is done in software before.
    pub const NONE: Offloads = Offloads(0);
    /// Completes one checksum, or does without.
    pub const CSUM: Offloads = Offloads(1);
    /// Takes long TCP frames over IPv4.
    pub const TSO4: Offloads = Offloads(2);
    /// Takes long TCP frames over IPv6.
    pub const TSO6: Offloads = Offloads(4);
    /// Takes long TCP frames whose CWR bit is set.
    pub const ECN: Offloads = Offloads(8);
    /// Everything, as a ring in our own memory takes it.
    pub const ALL: Offloads = Offloads(15);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }

    /// True when nothing of `other` is missing.
    pub const fn contains(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set without whatever rests on something that is missing from it: long frames rest on checksums, ECN on
    /// either kind of long frame (virtio 1.2, 5.1.3.1).
    #[must_use]
    pub const fn sound(self) -> Offloads {
        match self {
            _ if !self.contains(Offloads::CSUM) => Offloads::NONE,
            Offloads(bits) if bits & (Offloads::TSO4.0 | Offloads::TSO6.0) == 0 => Offloads::CSUM,
            all => all,
        }
    }
}

impl Offload {
    /// True when it asks for no work, whatever its other fields say.
    pub const fn is_nothing(&self) -> bool {
        self.flags & F_NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// True for a frame that is to be cut into segments.
    pub const fn is_long(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// What a receiver must be able to do to get the frame as it is.
    pub const fn needs(&self) -> Offloads {
        let long = match self.gso_type & !GSO_ECN {
            GSO_NONE => Offloads::NONE,
            GSO_TCPV4 => Offloads::TSO4,
            GSO_TCPV6 => Offloads::TSO6,
            _ => Offloads::ALL,
        };
        let ecn = if self.gso_type & GSO_ECN != 0 { Offloads::ECN } else { Offloads::NONE };
        Offloads::CSUM.with(long).with(ecn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_frames_without_checksums_are_no_sound_set() {
        let long = Offloads::TSO4.with(Offloads::TSO6).with(Offloads::ECN);
        assert_eq!(long.sound(), Offloads::NONE);
        assert_eq!(Offloads::ALL.sound(), Offloads::ALL);
        assert_eq!(Offloads::CSUM.with(Offloads::ECN).sound(), Offloads::CSUM);
    }

    #[test]
    fn needs_of_a_frame_name_all_its_work() {
        let needs = |gso_type| Offload { flags: F_NEEDS_CSUM, gso_type, ..Offload::default() }.needs();
        assert_eq!(needs(GSO_NONE), Offloads::CSUM);
        assert_eq!(needs(GSO_TCPV4), Offloads::CSUM.with(Offloads::TSO4));
        assert_eq!(needs(GSO_TCPV6 | GSO_ECN), Offloads::CSUM.with(Offloads::TSO6).with(Offloads::ECN));
    }
}
