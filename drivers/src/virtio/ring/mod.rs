//! The driver side of a virtqueue in batches: split (virtio 1.2, 2.7) and packed (2.8).
//!
//! [`SplitRing`] is used by a NIC's queue half (memory: a DMA region, addresses: IOVAs) and by
//! the built-in vhost-user guest (memory: the guest's, addresses: guest-physical), [`PackedRing`] by that guest. One
//! thread owns a ring. `area` and `packed_area` are the only parts that touch shared memory; the rest is safe.

mod area;
mod packed;
mod packed_area;
mod split;

pub use area::{Addresses, RingArea, RingMemory};
pub use packed::PackedRing;
pub use split::{RingFault, Segment, SplitRing};

/// Largest ring (virtio 1.2, 2.7): indices are 16 bits wide and free-running.
pub const MAX_RING_SIZE: u16 = 1 << 15;
