//! The driver side of a virtqueue in batches: split (virtio 1.2, 2.7) and packed (2.8).
//!
//! [`SplitRing`] and [`PackedRing`] are used by a NIC's queue half (memory: a DMA region, addresses: IOVAs) and by
//! the built-in vhost-user guest (memory: the guest's, addresses: guest-physical). One thread owns a ring. [`DriverRing`]
//! is what both have in common, for code that is compiled for each. `area` and `packed_area` are the only parts that touch shared memory; the rest is safe.

mod area;
mod packed;
mod packed_area;
mod split;

pub use area::{Addresses, RingArea, RingMemory};
pub use packed::PackedRing;
pub use split::{RingFault, Segment, SplitRing};

/// Largest ring (virtio 1.2, 2.7): indices are 16 bits wide and free-running.
pub const MAX_RING_SIZE: u16 = 1 << 15;

/// The driver side of a ring in either layout. Queue halves are compiled for each, so that no layout is looked up per
/// packet.
pub trait DriverRing<T>: Send {
    /// Entries of the ring.
    fn size(&self) -> u16;
    /// Descriptors free.
    fn n_free(&self) -> usize;
    /// Buffers the device has and has not completed as far as we have looked.
    fn outstanding(&self) -> u16;
    /// See [`SplitRing::post`].
    fn post(&mut self, segments: &[Segment], token: T) -> Result<(), T>;
    /// See [`SplitRing::publish`].
    fn publish(&mut self) -> bool;
    /// See [`SplitRing::reap`].
    fn reap(&mut self, limit: usize, sink: impl FnMut(T, u32)) -> Result<usize, RingFault>;
}

macro_rules! driver_ring {
    ($ring:ident) => {
        impl<M: RingMemory, T: Send> DriverRing<T> for $ring<M, T> {
            #[inline(always)]
            fn size(&self) -> u16 {
                $ring::size(self)
            }
            #[inline(always)]
            fn n_free(&self) -> usize {
                $ring::n_free(self)
            }
            #[inline(always)]
            fn outstanding(&self) -> u16 {
                $ring::outstanding(self)
            }
            #[inline(always)]
            fn post(&mut self, segments: &[Segment], token: T) -> Result<(), T> {
                $ring::post(self, segments, token)
            }
            #[inline(always)]
            fn publish(&mut self) -> bool {
                $ring::publish(self)
            }
            #[inline(always)]
            fn reap(&mut self, limit: usize, sink: impl FnMut(T, u32)) -> Result<usize, RingFault> {
                $ring::reap(self, limit, sink)
            }
        }
    };
}
driver_ring!(SplitRing);
driver_ring!(PackedRing);
