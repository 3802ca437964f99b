//! Writing a frame into guest buffers. Everything a port writes into a guest's buffers goes through [`scatter`] or
//! [`Place`](super::place::Place); everything it writes into rings goes through [`Layout`](super::walk::Layout).

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
    /// Where it lies, if it is in one piece.
    fn lend(&self) -> LentFrame<'_>;
    /// What stands in front of it.
    fn header(&self, to_guest: Offloads) -> Header;
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
    fn lend(&self) -> LentFrame<'_> {
        PacketBuf::lend(self)
    }

    #[inline(always)]
    fn header(&self, to_guest: Offloads) -> Header {
        net_hdr::to_guest(self, 1, to_guest)
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

    #[inline(always)]
    fn lend(&self) -> LentFrame<'_> {
        *self
    }

    #[inline(always)]
    fn header(&self, _to_guest: Offloads) -> Header {
        Header::in_one_buffer(0)
    }
}

/// True when a guest that does `to_guest` does what work the frame needs.
#[inline(always)]
pub(crate) fn work_is_taken(packet: &PacketBuf, to_guest: Offloads) -> bool {
    !packet.has_offload() || packet.offload().is_none_or(|work| to_guest.contains(work.needs()))
}

/// Writes `header` and the frame, of any shape, into buffers that are known to be long enough together.
#[inline(never)]
pub(crate) fn scatter(buffers: &[GuestSlice<'_>], header: &[u8], packet: &PacketBuf) {
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
