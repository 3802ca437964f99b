//! The guest's two rings with their buffers. Names here are the guest's: `rx` is what the backend
//! calls `to_guest`. One thread owns both; nothing is allocated per frame.

use arrayvec::ArrayVec;
use spp_drivers::virtio::desc::{DESC_F_NEXT, DESC_F_WRITE, Descriptor, NetHdr};
use spp_drivers::virtio::ring::{RingFault, Segment};
use vmm_sys_util::eventfd::EventFd;

use super::config::TxLayout;
use super::memory::Span;
use super::ring::GuestRing;

/// Most pieces of a buffer, or buffers of a frame.
const MAX_PIECES: usize = 33;
/// Frame bytes in one buffer.
const DATA_BYTES: usize = 2048;
/// Room for an indirect table in front: the header and the pieces.
const TABLE_BYTES: usize = (MAX_PIECES + 1) * Descriptor::BYTES;
/// Distance of two buffers.
const STRIDE: usize = (TABLE_BYTES + NetHdr::BYTES + DATA_BYTES).next_multiple_of(64);

/// Bytes of buffers for a ring.
pub(super) const fn buffer_bytes(ring_size: u16) -> usize {
    ring_size as usize * STRIDE
}

/// A ring's doorbell and interrupt, and how often each was used.
pub(super) struct Bells {
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    pub(super) n_kicks: u64,
}

impl Bells {
    pub(super) fn new() -> std::io::Result<Self> {
        const NONBLOCK: i32 = rustix::event::EventfdFlags::NONBLOCK.bits() as i32;
        Ok(Bells { kick: EventFd::new(NONBLOCK)?, call: EventFd::new(NONBLOCK)?, n_kicks: 0 })
    }

    pub(super) fn kick(&mut self) {
        self.n_kicks += 1;
        // A full counter means that kicks are pending: the backend will look.
        let _ = self.kick.write(1);
    }
}

/// Descriptors of an indirect table, as parts of guest memory: address and length.
type Parts = ArrayVec<(u64, u32), { MAX_PIECES + 1 }>;

/// Bytes of one piece of a receive buffer; the first one starts with the header.
const PIECE_BYTES: usize = NetHdr::BYTES + DATA_BYTES;

/// How receive buffers look.
#[derive(Debug, Clone, Copy)]
pub(super) struct RxShape {
    pub mergeable: bool,
    /// Pieces of a buffer, at most [`MAX_PIECES`].
    pub n_pieces: usize,
    /// Pieces in an indirect table.
    pub indirect: bool,
}

impl RxShape {
    /// Buffers that take frames of `frame_bytes` each, or of 2 KiB when several are merged.
    pub fn new(mergeable: bool, indirect: bool, frame_bytes: usize) -> RxShape {
        let n_pieces = if mergeable { 1 } else { (NetHdr::BYTES + frame_bytes).div_ceil(PIECE_BYTES) };
        RxShape { mergeable, n_pieces: n_pieces.clamp(1, MAX_PIECES), indirect }
    }
}

/// The ring the backend sends into.
pub(super) struct GuestRx {
    pub(super) ring: GuestRing<u16>,
    pub(super) bells: Bells,
    buffers: Span,
    shape: RxShape,
    /// Buffers taken off the ring in this turn: number and length.
    done: Vec<(u16, u32)>,
    /// The frame being put together, and the buffers still to come for it.
    frame: Vec<u8>,
    /// What came before it.
    pub(super) header: NetHdr,
    missing: u16,
    pub(super) n_malformed: u64,
}

impl GuestRx {
    pub(super) fn new(ring: GuestRing<u16>, buffers: Span, bells: Bells, shape: RxShape) -> Self {
        let frame = Vec::with_capacity(usize::from(u16::MAX) + DATA_BYTES);
        let done = Vec::with_capacity(ring.size().into());
        let header = NetHdr::default();
        let mut rx = GuestRx { ring, bells, buffers, shape, done, frame, header, missing: 0, n_malformed: 0 };
        let n_buffers = rx.ring.size() / shape.n_pieces as u16;
        (0..n_buffers).for_each(|buffer| rx.post(buffer));
        rx.ring.publish();
        rx
    }

    /// Where piece `piece` of a buffer lies.
    fn piece_at(&self, buffer: u16, piece: usize) -> usize {
        (usize::from(buffer) * self.shape.n_pieces + piece) * STRIDE + TABLE_BYTES
    }

    fn post(&mut self, buffer: u16) {
        let pieces = 0..self.shape.n_pieces;
        let parts: Parts =
            pieces.map(|i| (self.buffers.gpa(self.piece_at(buffer, i)), PIECE_BYTES as u32)).collect();
        let posted = if self.shape.indirect {
            let table_at = self.piece_at(buffer, 0) - TABLE_BYTES;
            write_table(&self.buffers, table_at, &parts, DESC_F_WRITE, self.ring.is_packed());
            let room_bytes = (parts.len() * PIECE_BYTES) as u32;
            let table =
                Segment::indirect_writable(self.buffers.gpa(table_at), parts.len() as u16, room_bytes);
            self.ring.post(&[table], buffer)
        } else {
            let segments: ArrayVec<_, MAX_PIECES> =
                parts.iter().map(|&(addr, len)| Segment::writable(addr, len)).collect();
            self.ring.post(&segments, buffer)
        };
        debug_assert!(posted.is_ok(), "a buffer that came back left its descriptors free");
    }

    /// Takes up to `limit` buffers and hands each whole frame to `sink`; returns how many frames.
    pub(super) fn receive(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> Result<usize, RingFault> {
        let mut done = std::mem::take(&mut self.done);
        let taken = self.ring.reap(limit, |buffer, len| done.push((buffer, len)));
        let mut n_frames = 0;
        for (buffer, len) in done.drain(..) {
            if self.take_buffer(buffer, len as usize) {
                sink(&self.frame);
                n_frames += 1;
            }
            self.post(buffer);
        }
        self.done = done;
        if self.ring.publish() {
            self.bells.kick();
        }
        taken.map(|_| n_frames)
    }

    /// Copies one buffer to the frame; true when that was its last.
    fn take_buffer(&mut self, buffer: u16, len: usize) -> bool {
        let mut skip = 0;
        if self.missing == 0 {
            let mut header = [0; NetHdr::BYTES];
            self.buffers.read(self.piece_at(buffer, 0), &mut header);
            let header = NetHdr::parse(&header).expect("the array has the header's length");
            let n_buffers = if self.shape.mergeable { header.num_buffers } else { 1 };
            if len <= NetHdr::BYTES || n_buffers == 0 || n_buffers > self.ring.size() {
                self.n_malformed += 1;
                return false;
            }
            (self.missing, skip, self.header) = (n_buffers, NetHdr::BYTES, header);
            self.frame.clear();
        }
        self.missing -= 1;
        if self.frame.len() + len - skip > self.frame.capacity() {
            self.n_malformed += 1; // longer than any frame; the rest is passed over
            return false;
        }
        for (piece, start) in (0..len).step_by(PIECE_BYTES).enumerate() {
            let (skip, n) = (if piece == 0 { skip } else { 0 }, (len - start).min(PIECE_BYTES));
            let old = self.frame.len();
            self.frame.resize(old + n - skip, 0);
            self.buffers.read(self.piece_at(buffer, piece) + skip, &mut self.frame[old..]);
        }
        self.missing == 0
    }
}

/// Writes an indirect table; in a packed ring's only F_WRITE means anything, and the flags lie behind the id.
fn write_table(buffers: &Span, table_at: usize, parts: &Parts, flags: u16, packed: bool) {
    for (i, &(addr, len)) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        let entry = match packed {
            true => Descriptor { addr, len, flags: 0, next: flags },
            false if last => Descriptor { addr, len, flags, next: 0 },
            false => Descriptor { addr, len, flags: flags | DESC_F_NEXT, next: i as u16 + 1 },
        };
        buffers.write(table_at + i * Descriptor::BYTES, &entry.to_bytes());
    }
}

type Pieces = ArrayVec<u16, MAX_PIECES>;

/// The ring the guest sends with.
pub(super) struct GuestTx {
    pub(super) ring: GuestRing<Pieces>,
    pub(super) bells: Bells,
    buffers: Span,
    free: Vec<u16>,
    layout: TxLayout,
}

impl GuestTx {
    pub(super) fn new(ring: GuestRing<Pieces>, buffers: Span, bells: Bells, layout: TxLayout) -> Self {
        let free = (0..ring.size()).rev().collect();
        GuestTx { ring, bells, buffers, free, layout }
    }

    /// Takes back what the backend has read.
    pub(super) fn reap(&mut self) -> Result<usize, RingFault> {
        self.ring.reap(usize::MAX, |pieces, _| self.free.extend(pieces))
    }

    /// Posts one frame; false when the ring or the buffers are full, or the frame is empty or longer than 66 KiB.
    pub(super) fn post(&mut self, header: NetHdr, frame: &[u8]) -> bool {
        let n_pieces = frame.len().div_ceil(DATA_BYTES);
        if n_pieces == 0 || n_pieces > MAX_PIECES || n_pieces > self.free.len() {
            return false;
        }
        if self.layout != TxLayout::Indirect && self.ring.n_free() < n_pieces + 1 {
            return false;
        }
        let pieces: Pieces = self.free.drain(self.free.len() - n_pieces..).collect();
        let mut parts = Parts::new();
        let header_at = usize::from(pieces[0]) * STRIDE + TABLE_BYTES;
        self.buffers.write(header_at, &header.to_bytes());
        parts.push((self.buffers.gpa(header_at), NetHdr::BYTES as u32));
        for (&slot, bytes) in pieces.iter().zip(frame.chunks(DATA_BYTES)) {
            let at = usize::from(slot) * STRIDE + TABLE_BYTES + NetHdr::BYTES;
            self.buffers.write(at, bytes);
            parts.push((self.buffers.gpa(at), bytes.len() as u32));
        }
        self.post_parts(parts, pieces)
    }

    fn post_parts(&mut self, mut parts: Parts, pieces: Pieces) -> bool {
        let posted = match self.layout {
            TxLayout::Indirect => {
                let table_at = usize::from(pieces[0]) * STRIDE;
                write_table(&self.buffers, table_at, &parts, 0, self.ring.is_packed());
                let table = Segment::indirect(self.buffers.gpa(table_at), parts.len() as u16);
                self.ring.post(&[table], pieces)
            }
            TxLayout::HeaderApart => self.ring.post(&readable(&parts), pieces),
            TxLayout::OneDescriptor => {
                let (header, header_len) = parts.remove(0);
                parts[0] = (header, header_len + parts[0].1); // the frame follows its header in memory
                self.ring.post(&readable(&parts), pieces)
            }
        };
        match posted {
            Ok(()) => true,
            Err(pieces) => {
                self.free.extend(pieces);
                false
            }
        }
    }

    pub(super) fn publish(&mut self) {
        if self.ring.publish() {
            self.bells.kick();
        }
    }
}

fn readable(parts: &[(u64, u32)]) -> ArrayVec<Segment, { MAX_PIECES + 1 }> {
    parts.iter().map(|&(addr, len)| Segment::readable(addr, len)).collect()
}
