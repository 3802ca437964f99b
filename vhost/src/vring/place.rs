// UNSAFETY: copies frames into memory that a guest shares.
//! A frame and the buffer of the guest it goes into: found and checked for a whole burst, before any of it is copied.
//!
//! The core that sends calls this. Frames may be lent by another guest, which may write them meanwhile.

use std::marker::PhantomData;
use std::ptr::NonNull;

use spp_drivers::LentFrame;
use spp_drivers::offload::{F_DATA_VALID, Offloads};

use crate::copy::{copy, copy_short, prefetch, prefetch_write};
use crate::memory::GuestSlice;
use crate::net_hdr::{HEADER_BYTES, Header};

/// A frame, and one buffer with room for it behind a header of [`HEADER_BYTES`].
#[derive(Clone, Copy)]
pub(crate) struct Place<'b> {
    buffer: NonNull<u8>,
    frame: NonNull<u8>,
    frame_bytes: u32,
    /// The first bytes of the header, of which the others say that it is in one buffer; or [`SPECIAL`].
    front: u32,
    both: PhantomData<&'b ()>,
}

/// What a guest is told of frames without work: of one that a NIC has checked, that its checksums are right, if it takes frames with
/// checksums undone (GUEST_CSUM).
#[derive(Clone, Copy)]
pub(crate) struct Told(u32);

impl Told {
    /// A guest that takes these.
    pub fn of(to_guest: Offloads) -> Told {
        Told(if to_guest.contains(Offloads::CSUM) { u32::from(F_DATA_VALID) } else { 0 })
    }
}

/// There is more to say in the header, or a guest lends what lies where it is to go.
const SPECIAL: u32 = 1 << 31;

impl<'b> Place<'b> {
    /// `None` where there is no room.
    #[inline(always)]
    pub fn new(buffer: GuestSlice<'b>, frame: LentFrame<'b>, told: Told) -> Option<Place<'b>> {
        if buffer.len() < HEADER_BYTES + frame.len() {
            return None;
        }
        let is_special = frame.has_offload() | (frame.is_foreign() && overlaps(&buffer, &frame));
        let verified = u32::from(frame.is_verified()) * u32::from(F_DATA_VALID);
        let front = (u32::from(is_special) * SPECIAL) | (verified & told.0);
        let (frame, frame_bytes) = (frame.start(), frame.len() as u32);
        Some(Place { buffer: buffer.start(), frame, frame_bytes, front, both: PhantomData })
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub fn frame_bytes(&self) -> u32 {
        self.frame_bytes
    }

    /// Where the frame goes.
    #[inline(always)]
    fn target(&self) -> NonNull<u8> {
        // SAFETY: new() has seen to it that the buffer is longer than a header.
        unsafe { self.buffer.add(HEADER_BYTES) }
    }

    /// Asks the CPU for what is read and written first: the header's line, which most often stays as it is, and both of
    /// the frame's. Buffers are aligned for one of the first two.
    #[inline(always)]
    pub fn fetch(&self) {
        prefetch(self.buffer.as_ptr());
        prefetch_write(self.target().as_ptr());
        prefetch(self.frame.as_ptr());
    }

    /// Copies the frame and puts its header in front, if that [takes no call](copy_short): nearly all frames, but long ones and
    /// special ones. False, and nothing done, for the others.
    #[inline(always)]
    pub fn fill_short(&self) -> bool {
        if self.front & SPECIAL != 0 {
            return false;
        }
        // SAFETY: new() has seen to it that there is room for the frame, and that the two don't overlap if it is not special; it
        // is lent for as long as this lives. Its owner may change it meanwhile: nobody looks at the copy.
        let filled = unsafe { copy_short(self.frame, self.target(), self.frame_bytes as usize) };
        if filled {
            self.write_header(Header::in_one_buffer(self.front));
        }
        filled
    }

    /// As [`fill_short`](Self::fill_short), any frame, with its header.
    #[inline(always)]
    pub fn fill(&self, header: Header) {
        let n = self.frame_bytes as usize;
        if self.front & SPECIAL == 0 {
            // SAFETY: as in fill_short.
            unsafe { copy(self.frame, self.target(), n) };
        } else {
            // SAFETY: as in fill_short; this one may be used where the two overlap.
            unsafe { std::ptr::copy(self.frame.as_ptr(), self.target().as_ptr(), n) };
        }
        self.write_header(header);
    }

    /// Makes the header stand in front. One that stands there already is not written again: a guest that uses a buffer in
    /// turns for both directions then keeps its copy of the line (a fifth to a quarter more packets with DPDK's driver as guest;
    /// docs/performance.md).
    #[inline(always)]
    fn write_header(&self, header: Header) {
        let words = self.buffer.as_ptr().cast::<HeaderWords>();
        let wanted = HeaderWords(header.front.to_le(), header.back.to_le());
        // SAFETY: HEADER_BYTES mapped bytes, as new() has seen to, and HeaderWords has no alignment; volatile, as the guest may
        // write.
        let there = unsafe { words.read_volatile() };
        // As one number: 4 instructions, not 6.
        if (there.0 ^ wanted.0) | u64::from(there.1 ^ wanted.1) != 0 {
            // SAFETY: as above, no reference to them exists.
            unsafe { words.write(wanted) };
        }
    }

    /// What has been written when it is filled.
    #[inline(always)]
    pub fn buffer(&self) -> GuestSlice<'b> {
        // SAFETY: new() had a buffer with so many bytes.
        unsafe { GuestSlice::new(self.buffer, HEADER_BYTES as u32 + self.frame_bytes) }
    }
}

/// A header at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct HeaderWords(u64, u32);

const _: () = assert!(size_of::<HeaderWords>() == HEADER_BYTES);

/// Whether a frame lies where it is to go.
#[inline(always)]
fn overlaps(buffer: &GuestSlice<'_>, frame: &LentFrame<'_>) -> bool {
    let (a, b) = (buffer.start().addr().get(), frame.start().addr().get());
    a.abs_diff(b) < HEADER_BYTES + frame.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_that_lies_across_its_own_destination_arrives_whole() {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (0, 63), (100, 0), (0, 100), (0, 99)] {
            for n in [1, 14, 40, 64, 100] {
                let mut bytes: Vec<u8> = (0..212).map(|i| i as u8).collect();
                let sent = bytes[from..from + n].to_vec();
                let start = NonNull::from(&mut bytes[..]).cast::<u8>();
                // SAFETY: within the vector.
                let source = unsafe { start.add(from) };
                // SAFETY: within the vector.
                let target = unsafe { start.add(to) };
                // SAFETY: n bytes of the vector, which nobody else writes.
                let frame = unsafe { LentFrame::new(source, n as u32) };
                // SAFETY: bytes of the vector, to its end at most.
                let buffer = unsafe { GuestSlice::new(target, (HEADER_BYTES + n) as u32) };
                let place = Place::new(buffer, frame, Told::of(Offloads::NONE)).expect("there is room");
                if !place.fill_short() {
                    place.fill(Header::in_one_buffer(0));
                }
                let behind = to + HEADER_BYTES;
                assert_eq!(bytes[behind..behind + n], sent, "{n} bytes from {from} to {to}");
                assert_eq!(bytes[to..behind], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            }
        }
    }

    #[test]
    fn buffer_one_byte_too_short_is_no_place() {
        let mut bytes = [0u8; 100];
        let start = NonNull::from(&mut bytes[..]).cast::<u8>();
        // SAFETY: bytes of the array, which nobody else writes.
        let frame = unsafe { LentFrame::new(start, 40) };
        for (len, fits) in [(HEADER_BYTES + 39, false), (HEADER_BYTES + 40, true)] {
            // SAFETY: bytes of the array.
            let buffer = unsafe { GuestSlice::new(start, len as u32) };
            assert_eq!(Place::new(buffer, frame, Told::of(Offloads::ALL)).is_some(), fits);
        }
    }
}
