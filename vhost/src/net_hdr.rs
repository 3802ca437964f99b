//! The header in front of every frame in a ring (virtio 1.2, 5.1.6): 12 bytes, or 10 for a
//! legacy driver without mergeable buffers.
//!
//! Polled halves call this. What a guest says in it is copied out once and judged by
//! [`offload::accept`](spp_drivers::offload::accept); what a guest is told comes from there.

use spp_drivers::dma::{Offload, PacketBuf};
use spp_drivers::offload::{F_DATA_VALID, Offloads};
use spp_drivers::virtio::desc::NetHdr;

use crate::memory::GuestSlice;

/// Bytes of the header with the number of buffers.
pub const HEADER_BYTES: usize = NetHdr::BYTES;
/// Bytes of the legacy header without it.
pub const LEGACY_HEADER_BYTES: usize = 10;

/// A header as its two little-endian words. It goes from registers into the guest's memory: bytes put together on the
/// stack would be loaded again, and such a load waits until every store before it has left the core, the last frame's
/// into lines of the guest's among them.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Flags, GSO type, length of the headers, segment size, start of the checksum.
    pub front: u64,
    /// Place of the checksum, number of buffers.
    pub back: u32,
}

impl Header {
    const NOTHING: Header = Header { front: 0, back: 0 };

    /// In front of a frame in one buffer, with `front` as its first four bytes and no other word to say.
    #[inline(always)]
    pub const fn in_one_buffer(front: u32) -> Header {
        Header { front: front as u64, back: 1 << 16 }
    }

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.front.to_le_bytes());
        bytes[8..].copy_from_slice(&self.back.to_le_bytes());
        bytes
    }
}

/// The header in front of a frame for the guest, in `n_buffers` chains. Legacy drivers get its first 10 bytes. A guest
/// that takes frames with checksums undone (GUEST_CSUM in `takes`) is also told of those a NIC has checked.
#[inline(always)]
pub fn to_guest(packet: &PacketBuf, n_buffers: u16, takes: Offloads) -> Header {
    let known = if is_silent(packet) { Header::NOTHING } else { what_is_known(packet, takes) };
    Header { back: known.back | u32::from(n_buffers) << 16, ..known }
}

/// True for the many frames with nothing to say: one test of two bits.
#[inline(always)]
pub fn is_silent(packet: &PacketBuf) -> bool {
    !packet.has_offload() && !packet.is_verified()
}

/// What the frame's receiver is left to do, or need not do again.
#[inline(never)]
fn what_is_known(packet: &PacketBuf, takes: Offloads) -> Header {
    let checked = packet.is_verified() && takes.contains(Offloads::CSUM);
    let nothing_left = Offload { flags: if checked { F_DATA_VALID } else { 0 }, ..Offload::default() };
    let Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } =
        packet.offload().unwrap_or(nothing_left);
    let bytes =
        NetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers: 0 }.to_bytes();
    let [a, b, c, d, e, f, g, h, back @ ..] = bytes;
    Header { front: u64::from_le_bytes([a, b, c, d, e, f, g, h]), back: u32::from_le_bytes(back) }
}

/// What the guest says in front of its frame, copied out of its memory once; wherever it cut the chain.
#[inline(always)]
pub fn from_guest(chain: &[GuestSlice<'_>]) -> Offload {
    let mut bytes = [0; HEADER_BYTES];
    let wanted = &mut bytes[..LEGACY_HEADER_BYTES];
    match chain {
        [first, ..] if first.len() >= LEGACY_HEADER_BYTES => {
            first.read(wanted);
        }
        _ => gather(chain, wanted),
    }
    let NetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, .. } =
        NetHdr::parse(&bytes).unwrap_or_default();
    Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset }
}

/// Of a header in pieces, each byte is read once too.
#[inline(never)]
fn gather(chain: &[GuestSlice<'_>], mut wanted: &mut [u8]) {
    for piece in chain {
        let n = piece.read(wanted);
        wanted = &mut wanted[n..];
    }
}

#[cfg(test)]
mod tests {
    use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};

    use super::*;

    #[test]
    fn checked_frames_are_data_valid_for_guests_that_negotiated_it_only() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
        let mut packet = pool.cache().alloc().unwrap();
        packet.append(&[0; 60]).unwrap();
        assert_eq!(to_guest(&packet, 1, Offloads::ALL).to_bytes()[0], 0);
        packet.set_verified(true);
        assert_eq!(to_guest(&packet, 1, Offloads::CSUM).to_bytes()[0], F_DATA_VALID);
        assert_eq!(to_guest(&packet, 1, Offloads::NONE).to_bytes()[0], 0);
        packet.set_verified(false);
        assert_eq!(to_guest(&packet, 1, Offloads::ALL).to_bytes()[0], 0);
    }
}
