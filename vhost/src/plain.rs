//! Plain frames from a guest: in one piece with their headers, and short enough for one buffer. Most of all traffic, so they
//! are found in a loop without calls that looks at each descriptor once.
//!
//! Called by the receiving half's core, for frames that are copied into buffers ([`crate::from_guest`]) or lent
//! ([`crate::lend`]). Owns nothing.

use arrayvec::ArrayVec;
use spp_drivers::dma::DATA_ROOM;
use spp_drivers::offload::Offloads;
use spp_drivers::{BURST, End};

use crate::from_guest::MIN_FRAME_BYTES;
use crate::memory::{Gpa, GuestSlice, Nearby, Translator};
use crate::vring::RingFeatures;
use crate::vring::layout::{F_INDIRECT, F_NEXT, F_WRITE};
use crate::vring::walk::{Head, Layout};

/// Plain frames, each with its header in front: `Shape::header_bytes` bytes that mean something only from a guest that
/// negotiated work. From others they are not read.
pub(crate) type PlainFrames<'m> = ArrayVec<GuestSlice<'m>, BURST>;

/// What makes a chain a plain frame.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub header_bytes: usize,
    /// With its header.
    shortest: u32,
    longest: u32,
    /// A header may say that its frame is not plain.
    pub has_work: bool,
}

impl Shape {
    pub fn new(features: &RingFeatures) -> Shape {
        let &RingFeatures { header_bytes, max_frame_bytes, from_guest, .. } = features;
        Shape {
            header_bytes,
            shortest: (header_bytes + MIN_FRAME_BYTES) as u32,
            longest: (header_bytes + DATA_ROOM.min(max_frame_bytes)) as u32,
            has_work: from_guest != Offloads::NONE,
        }
    }

    /// Header and frame of a chain of one direct descriptor, where `nearby` has them.
    #[inline(always)]
    fn plain<'m>(self, head: &Head, nearby: Nearby<'m>) -> Option<GuestSlice<'m>> {
        let descriptor = &head.first;
        if descriptor.flags & (F_NEXT | F_INDIRECT | F_WRITE) != 0 {
            return None;
        }
        nearby.slice(Gpa(descriptor.addr), descriptor.len)
    }

    /// The same, wherever it lies.
    #[inline(never)]
    fn plain_anywhere<'m>(self, head: &Head, memory: &mut Translator<'m>) -> Option<GuestSlice<'m>> {
        let descriptor = &head.first;
        let is_plain = descriptor.flags & (F_NEXT | F_INDIRECT | F_WRITE) == 0
            && (self.shortest..=self.longest).contains(&descriptor.len);
        if is_plain { memory.slice(Gpa(descriptor.addr), descriptor.len) } else { None }
    }

    /// What will be read of a frame first is on its way from here on: 4 to 11 cycles a packet of 90 to 110 (`spp-bench --row P1 --row
    /// P5`, 64 bytes, with and without in turns), nothing at 1500 bytes.
    #[inline(always)]
    fn fetch(self, frame: GuestSlice<'_>) {
        if self.has_work {
            frame.prefetch(0);
        }
        // In all drivers that align their buffers the header ends where the frame's first line starts.
        frame.prefetch(self.header_bytes);
    }
}

/// Finds the plain frames in front. Returns the first chain that is none.
#[inline(always)]
pub(crate) fn plain_frames<'m, L: Layout>(
    layout: &'m L,
    shape: Shape,
    entries: &[L::Entry],
    frames: &mut PlainFrames<'m>, // returned, half a KiB would be copied
) -> Option<Head> {
    let (mut memory, table) = (Translator::new(layout.map()), layout.table());
    let (mut rest, mut end) = (entries.iter(), End::of(frames));
    let mut push = |frame: GuestSlice<'m>| {
        shape.fetch(frame);
        let pushed = end.push(frame);
        debug_assert!(pushed.is_ok(), "there are at most as many entries");
    };
    loop {
        let nearby = memory.nearby(shape.shortest, shape.longest);
        // A loop without calls.
        let head = 'run: {
            for entry in rest.by_ref() {
                let head = L::head(table, *entry);
                match shape.plain(&head, nearby) {
                    Some(frame) => push(frame),
                    None => break 'run head,
                }
            }
            return None;
        };
        // Of another region, or no plain frame.
        match shape.plain_anywhere(&head, &mut memory) {
            Some(frame) => push(frame),
            None => return Some(head),
        }
    }
}
