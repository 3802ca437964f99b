//! The driver side of a split virtqueue (virtio 1.2, 2.7) in batches.
//!
//! [`SplitRing`] is used by a NIC's queue half (memory: a DMA region, addresses: IOVAs) and by
//! the built-in vhost-user guest (memory: the guest's, addresses: guest-physical). One thread
//! owns a ring. `area` is the only part that touches shared memory; the rest is safe.

mod area;
mod split;

pub use area::{Addresses, RingArea, RingMemory};
pub use split::{RingFault, Segment, SplitRing};

/// Largest ring (virtio 1.2, 2.7): indices are 16 bits wide and free-running.
pub const MAX_RING_SIZE: u16 = 1 << 15;
