//! Writing a frame into guest buffers. Everything a port writes into a guest's buffers goes through [`fill`]; everything
//! it writes into rings goes through [`Layout`](super::walk::Layout).

use spp_drivers::dma::PacketBuf;

use crate::memory::GuestSlice;
use crate::net_hdr::Header;

/// Writes the first `header_bytes` of `header`, then the frame's one segment, into a buffer that is known to be long enough.
#[inline(always)]
pub(crate) fn fill_plain(buffer: &GuestSlice<'_>, header: Header, header_bytes: usize, packet: &PacketBuf) {
    buffer.write_words(header.front, header.back, header_bytes);
    buffer.skip(header_bytes).write(packet.data());
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
