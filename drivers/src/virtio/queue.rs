//! A ring of this driver in the layout that was negotiated, and its doorbell. What queue halves leave behind when they are
//! dropped.

use std::sync::atomic::{Ordering, fence};

use super::regs::feature;
use super::ring::{Addresses, PackedRing, RingFault, Segment, SplitRing};
use crate::dma::{PacketBuf, Region};
use crate::nic::fault::{self, Fault, Side};
use crate::pci::Registers;
use crate::stats::SharedStats;

/// Split: DMA memory, packet buffers out.
pub(super) type Split = SplitRing<Region, PacketBuf>;
/// Packed, likewise.
pub(super) type Packed = PackedRing<Region, PacketBuf>;
/// What queue halves and control half share.
pub(super) type Shared = fault::Shared<Parked>;

/// How rings are laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    packed: bool,
    in_order: bool,
}

impl Layout {
    pub(super) fn of(features: u64) -> Layout {
        Layout { packed: features & feature::RING_PACKED != 0, in_order: features & feature::IN_ORDER != 0 }
    }

    pub(super) fn memory_bytes(self, size: u16) -> usize {
        if self.packed { Packed::memory_bytes(size) } else { Split::memory_bytes(size) }
    }

    /// An empty ring in `memory`, which has [`memory_bytes`](Self::memory_bytes).
    pub(super) fn ring(self, memory: Region, size: u16) -> Ring {
        match (self.packed, self.in_order) {
            (true, false) => Ring::Packed(Packed::new(memory, size, false)),
            (true, true) => Ring::Packed(Packed::new(memory, size, false).in_order()),
            (false, false) => Ring::Split(Split::new(memory, size, false)),
            (false, true) => Ring::Split(Split::new(memory, size, false).in_order()),
        }
    }
}

/// A ring in either layout, where its layout is looked up with each call: the control queue's, and any on its way.
pub(super) enum Ring {
    Split(Split),
    Packed(Packed),
}

macro_rules! either {
    ($self:expr, $ring:ident => $body:expr) => {
        match $self {
            Ring::Split($ring) => $body,
            Ring::Packed($ring) => $body,
        }
    };
}

impl Ring {
    pub(super) fn addresses(&self) -> Addresses {
        either!(self, ring => ring.addresses())
    }

    pub(super) fn post(&mut self, segments: &[Segment], buffer: PacketBuf) -> Result<(), PacketBuf> {
        either!(self, ring => ring.post(segments, buffer))
    }

    pub(super) fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    pub(super) fn reap(
        &mut self,
        limit: usize,
        sink: impl FnMut(PacketBuf, u32),
    ) -> Result<usize, RingFault> {
        either!(self, ring => ring.reap(limit, sink))
    }

    /// Gives all buffers that are out back to their pool; returns how many. Only for a device that is stopped.
    pub(super) fn take_back(&mut self) -> usize {
        either!(self, ring => ring.take_back().count())
    }
}

impl From<Split> for Ring {
    fn from(ring: Split) -> Ring {
        Ring::Split(ring)
    }
}

impl From<Packed> for Ring {
    fn from(ring: Packed) -> Ring {
        Ring::Packed(ring)
    }
}

/// A ring whose half is gone. It keeps its buffers until the device is known to be stopped.
pub(super) struct Parked {
    pub(super) ring: Ring,
    /// Of a transmit queue: its number and its counters.
    pub(super) tx: Option<(u16, SharedStats)>,
}

impl Parked {
    /// A ring that nothing was sent from.
    pub(super) fn other(ring: impl Into<Ring>) -> Parked {
        Parked { ring: ring.into(), tx: None }
    }
}

/// The fault of a port whose device lied about a ring.
pub(super) fn lie(side: Side, queue: u16, fault: RingFault) -> Fault {
    tracing::error!(?side, queue, %fault, "virtio-net");
    let (what, value) = fault.what_and_value();
    Fault::Garbage { side, queue, what, value }
}

/// The doorbell of one virtqueue (virtio 1.2, 4.1.5.2).
#[derive(Clone)]
pub(super) struct Doorbell<B> {
    pub(super) bar: B,
    pub(super) offset: usize,
    /// Number of the virtqueue.
    pub(super) virtqueue: u16,
}

impl<B: Registers> Doorbell<B> {
    /// Tells the device that there is something in the ring.
    #[inline(always)]
    pub(super) fn ring(&self) {
        fence(Ordering::Release);
        self.bar.write16(self.offset, self.virtqueue);
    }
}
