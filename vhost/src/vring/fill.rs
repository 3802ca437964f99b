//! Writing a frame into guest buffers. Everything a port writes into a guest's buffers goes through [`fill`]; everything
//! it writes into rings goes through [`Layout`](super::walk::Layout).

use spp_drivers::LentFrame;
use spp_drivers::dma::PacketBuf;
use spp_drivers::offload::Offloads;

use crate::memory::GuestSlice;
use crate::net_hdr::{self, Header};

/// A frame that may fit one buffer of a guest, wherever it lies.
pub(crate) trait Plain {
    /// Its bytes, if it is in one piece.
    fn len(&self) -> usize;
    /// True when it is in one piece and needs no work.
    fn is_plain(&self) -> bool;
    /// True when it is in one piece and needs no work but what is done by a guest that does `to_guest`.
    fn may_go(&self, to_guest: Offloads) -> bool;
    /// Asks the CPU to fetch its first line.
    fn prefetch(&self);
    /// True when there is nothing to say in front of it.
    fn is_silent(&self) -> bool;
    /// What stands in front of it.
    fn header(&self, to_guest: Offloads) -> Header;
    /// Copies it to the front of a buffer that is known to be long enough.
    fn write_to(&self, buffer: &GuestSlice<'_>);
    /// The same, if it takes no call; false if it does.
    fn write_short_to(&self, buffer: &GuestSlice<'_>) -> bool;
}

impl Plain for PacketBuf {
    #[inline(always)]
    fn len(&self) -> usize {
        PacketBuf::len(self)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        PacketBuf::is_plain(self)
    }

    #[inline(always)]
    fn may_go(&self, to_guest: Offloads) -> bool {
        !self.is_chained() && work_is_taken(self, to_guest)
    }

    #[inline(always)]
    fn prefetch(&self) {
        PacketBuf::prefetch(self);
    }

    #[inline(always)]
    fn is_silent(&self) -> bool {
        net_hdr::is_silent(self)
    }

    #[inline(always)]
    fn header(&self, to_guest: Offloads) -> Header {
        net_hdr::to_guest(self, 1, to_guest)
    }

    #[inline(always)]
    fn write_to(&self, buffer: &GuestSlice<'_>) {
        buffer.write(self.data());
    }

    #[inline(always)]
    fn write_short_to(&self, buffer: &GuestSlice<'_>) -> bool {
        buffer.write_short(self.data())
    }
}

impl Plain for LentFrame<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        LentFrame::len(self)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        true
    }

    #[inline(always)]
    fn may_go(&self, _to_guest: Offloads) -> bool {
        true
    }

    /// Who lends it has done so.
    #[inline(always)]
    fn prefetch(&self) {}

    #[inline(always)]
    fn is_silent(&self) -> bool {
        true
    }

    #[inline(always)]
    fn header(&self, _to_guest: Offloads) -> Header {
        Header::in_one_buffer()
    }

    #[inline(always)]
    fn write_to(&self, buffer: &GuestSlice<'_>) {
        buffer.write_lent(self);
    }

    #[inline(always)]
    fn write_short_to(&self, buffer: &GuestSlice<'_>) -> bool {
        buffer.write_short_lent(self)
    }
}

/// True when a guest that does `to_guest` does what work the frame needs.
#[inline(always)]
pub(crate) fn work_is_taken(packet: &PacketBuf, to_guest: Offloads) -> bool {
    !packet.has_offload() || packet.offload().is_none_or(|work| to_guest.contains(work.needs()))
}

/// Writes the first `header_bytes` of `header`, and the frame, into a buffer that is known to be long enough.
#[inline(always)]
pub(crate) fn fill_plain(buffer: &GuestSlice<'_>, header: Header, header_bytes: usize, frame: &impl Plain) {
    let Some((front, back)) = buffer.split(header_bytes, frame.len()) else {
        debug_assert!(false, "the caller has seen to its length");
        return;
    };
    frame.write_to(&back);
    front.write_words(header.front, header.back);
}

/// As [`fill_plain`], without a call: nearly all frames, but long ones. False, and nothing done, for the others.
#[inline(always)]
pub(crate) fn fill_short(buffer: &GuestSlice<'_>, header_bytes: usize, frame: &impl Plain) -> bool {
    let Some((front, back)) = buffer.split(header_bytes, frame.len()) else { return false };
    let filled = frame.is_silent() && frame.write_short_to(&back);
    if filled {
        let Header { front: first, back: last } = Header::in_one_buffer();
        front.write_words(first, last);
    }
    filled
}

/// As [`fill_plain`], a frame of any shape into buffers that are known to be long enough together.
#[inline(always)]
pub(crate) fn fill(buffers: &[GuestSlice<'_>], header: Header, header_bytes: usize, packet: &PacketBuf) {
    match (buffers, packet.is_chained()) {
        ([buffer], false) => fill_plain(buffer, header, header_bytes, packet),
        _ => scatter(buffers, &header.to_bytes()[..header_bytes], packet),
    }
}

#[inline(never)]
fn scatter(buffers: &[GuestSlice<'_>], header: &[u8], packet: &PacketBuf) {
    let mut writer = Writer { buffers, at: 0 };
    writer.write(header);
    packet.segments().for_each(|segment| writer.write(segment));
}

/// Writes bytes one after the other into a list of guest buffers.
struct Writer<'c, 'm> {
    buffers: &'c [GuestSlice<'m>],
    /// Bytes written into the first of `buffers`.
    at: usize,
}

impl Writer<'_, '_> {
    fn write(&mut self, mut bytes: &[u8]) {
        while let (Some(buffer), false) = (self.buffers.first(), bytes.is_empty()) {
            let n = buffer.skip(self.at).write(bytes);
            bytes = &bytes[n..];
            self.at += n;
            if self.at == buffer.len() {
                (self.buffers, self.at) = (&self.buffers[1..], 0);
            }
        }
    }
}
