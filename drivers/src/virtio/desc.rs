//! Layouts that driver and device share: the ring descriptor (virtio 1.2, 2.7.5) and the
//! header in front of every frame (virtio 1.2, 5.1.6). Pure: words and bytes in, words and bytes out.

/// The descriptor goes on in the one named by `next`.
pub const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer; otherwise it reads it.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// Avail flag: the driver wants no interrupts (virtio 1.2, 2.7.6).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Used flag: the device wants no doorbells (virtio 1.2, 2.7.8).
pub const USED_F_NO_NOTIFY: u16 = 1;

/// One descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the buffer is, as the device sees it.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// The descriptor that follows, if `DESC_F_NEXT`.
    pub next: u16,
}

impl Descriptor {
    /// Bytes of a descriptor in memory.
    pub const BYTES: usize = 16;

    /// As two little-endian words, in memory order.
    #[inline(always)]
    pub const fn to_words(self) -> [u64; 2] {
        let tail = self.len as u64 | (self.flags as u64) << 32 | (self.next as u64) << 48;
        [self.addr.to_le(), tail.to_le()]
    }

    /// From two words as read from memory.
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let tail = u64::from_le(words[1]);
        Descriptor {
            addr: u64::from_le(words[0]),
            len: tail as u32,
            flags: (tail >> 32) as u16,
            next: (tail >> 48) as u16,
        }
    }

    /// As bytes, for an indirect table.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [first, second] = self.to_words();
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&first.to_ne_bytes());
        bytes[8..].copy_from_slice(&second.to_ne_bytes());
        bytes
    }
}

/// The header in front of a frame, with VERSION_1 (virtio 1.2, 5.1.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetHdr {
    /// VIRTIO_NET_HDR_F_*.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_*.
    pub gso_type: u8,
    /// Length of the frame's headers.
    pub hdr_len: u16,
    /// Payload bytes a segment.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Buffers the frame takes, with MRG_RXBUF; written by the device.
    pub num_buffers: u16,
}

impl NetHdr {
    /// Bytes of the header in memory.
    pub const BYTES: usize = 12;

    /// In memory order.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the first 12 of `bytes`; `None` when there are fewer.
    #[inline(always)]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.first_chunk::<{ Self::BYTES }>()?;
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Some(NetHdr {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_words_round_trip_in_the_layout_of_the_specification() {
        let d = Descriptor { addr: 0x1122_3344_5566_7788, len: 0xa1b2_c3d4, flags: 5, next: 0xfffe };
        assert_eq!(Descriptor::from_words(d.to_words()), d);
        assert_eq!(
            d.to_bytes(),
            [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xd4, 0xc3, 0xb2, 0xa1, 5, 0, 0xfe, 0xff]
        );
    }

    #[test]
    fn net_header_round_trips_in_the_layout_of_the_specification() {
        let h = NetHdr {
            flags: 1,
            gso_type: 2,
            hdr_len: 0x0403,
            gso_size: 0x0605,
            csum_start: 0x0807,
            csum_offset: 0x0a09,
            num_buffers: 0x0c0b,
        };
        assert_eq!(h.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(NetHdr::parse(&h.to_bytes()), Some(h));
        assert_eq!(NetHdr::parse(&[0; 11]), None);
    }
}
