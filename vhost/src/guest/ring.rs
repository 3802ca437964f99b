//! The guest's side of a ring in either layout. A guest's speed matters less than a backend's: the layout is looked
//! up per call.

use spp_drivers::virtio::ring::{Addresses, PackedRing, RingFault, Segment, SplitRing};

use super::memory::Span;

/// What was negotiated, as far as a ring cares, and where it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingChoice {
    pub packed: bool,
    pub in_order: bool,
    pub event_idx: bool,
    pub size: u16,
    /// Free-running (split); modulo the ring's size, with wrap counter 1 (packed).
    pub first_index: u16,
}

/// A ring of the guest's driver.
pub(super) enum GuestRing<T> {
    Split(SplitRing<Span, T>),
    Packed(PackedRing<Span, T>),
}

macro_rules! either {
    ($self:expr, $ring:ident => $body:expr) => {
        match $self {
            GuestRing::Split($ring) => $body,
            GuestRing::Packed($ring) => $body,
        }
    };
}

/// Bytes of a ring in either layout.
pub(super) const fn ring_bytes(size: u16) -> usize {
    let (split, packed) =
        (SplitRing::<Span, ()>::memory_bytes(size), PackedRing::<Span, ()>::memory_bytes(size));
    let bytes = if split > packed { split } else { packed };
    bytes.next_multiple_of(64)
}

impl<T> GuestRing<T> {
    pub fn new(memory: Span, choice: RingChoice) -> Self {
        let RingChoice { packed, in_order, event_idx, size, first_index } = choice;
        if packed {
            let ring = PackedRing::starting_at(memory, size, event_idx, first_index % size);
            GuestRing::Packed(if in_order { ring.in_order() } else { ring })
        } else {
            let ring = SplitRing::starting_at(memory, size, event_idx, first_index);
            GuestRing::Split(if in_order { ring.in_order() } else { ring })
        }
    }

    pub fn is_packed(&self) -> bool {
        matches!(self, GuestRing::Packed(_))
    }

    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    pub fn addresses(&self) -> Addresses {
        either!(self, ring => ring.addresses())
    }

    /// What SET_VRING_BASE says: all that was not taken back is to be done (again).
    pub fn base(&self) -> u32 {
        match self {
            GuestRing::Split(ring) => ring.used_idx().into(),
            GuestRing::Packed(ring) => u32::from(ring.used_place()) * 0x1_0001,
        }
    }

    pub fn n_free(&self) -> usize {
        either!(self, ring => ring.n_free())
    }

    pub fn outstanding(&self) -> u16 {
        either!(self, ring => ring.outstanding())
    }

    pub fn fault(&self) -> Option<RingFault> {
        either!(self, ring => ring.fault())
    }

    pub fn want_calls(&mut self, on: bool) {
        either!(self, ring => ring.want_calls(on));
    }

    pub fn post(&mut self, segments: &[Segment], token: T) -> Result<(), T> {
        either!(self, ring => ring.post(segments, token))
    }

    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    pub fn reap(&mut self, limit: usize, sink: impl FnMut(T, u32)) -> Result<usize, RingFault> {
        either!(self, ring => ring.reap(limit, sink))
    }
}
