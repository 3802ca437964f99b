//! The header in front of every frame in a ring (virtio 1.2, 5.1.6): 12 bytes, or 10 for a
//! legacy driver without mergeable buffers. No offload is offered, so nothing in it is used
//! but the number of buffers, which is written.

use spp_drivers::dma::PacketBuf;

/// Bytes of the header with the number of buffers.
pub const HEADER_BYTES: usize = 12;
/// Bytes of the legacy header without it.
pub const LEGACY_HEADER_BYTES: usize = 10;

/// The header in front of a frame for the guest, in `n_buffers` chains. Legacy drivers get its first 10 bytes.
#[inline(always)]
pub fn to_guest(_packet: &PacketBuf, n_buffers: u16) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    [bytes[10], bytes[11]] = n_buffers.to_le_bytes();
    bytes
}
