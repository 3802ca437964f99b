//! The guest's two rings with their buffers. Names here are the guest's: `rx` is what the backend
//! calls `to_guest`. One thread owns both; nothing is allocated per frame.

use arrayvec::ArrayVec;
use spp_drivers::BURST;
use spp_drivers::virtio::desc::{DESC_F_NEXT, Descriptor, NetHdr};
use spp_drivers::virtio::ring::{RingFault, Segment, SplitRing};
use vmm_sys_util::eventfd::EventFd;

use super::config::TxLayout;
use super::memory::Span;

/// Most buffers a frame takes.
const MAX_PIECES: usize = 8;
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

/// Bytes of a ring.
pub(super) const fn ring_bytes(ring_size: u16) -> usize {
    SplitRing::<Span, ()>::memory_bytes(ring_size).next_multiple_of(64)
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

/// The ring the backend sends into.
pub(super) struct GuestRx {
    pub(super) ring: SplitRing<Span, u16>,
    pub(super) bells: Bells,
    buffers: Span,
    mergeable: bool,
    /// The frame being put together, and the buffers still to come for it.
    frame: Vec<u8>,
    missing: u16,
    pub(super) n_malformed: u64,
}

impl GuestRx {
    pub(super) fn new(ring: SplitRing<Span, u16>, buffers: Span, bells: Bells, mergeable: bool) -> Self {
        let frame = Vec::with_capacity(usize::from(u16::MAX) + DATA_BYTES);
        let mut rx = GuestRx { ring, bells, buffers, mergeable, frame, missing: 0, n_malformed: 0 };
        (0..rx.ring.size()).for_each(|slot| rx.post(slot));
        rx.ring.publish();
        rx
    }

    fn post(&mut self, slot: u16) {
        let gpa = self.buffers.gpa(usize::from(slot) * STRIDE);
        let whole = [Segment::writable(gpa, (NetHdr::BYTES + DATA_BYTES) as u32)];
        let posted = self.ring.post(&whole, slot);
        debug_assert!(posted.is_ok(), "a buffer that came back left its descriptor free");
    }

    /// Takes up to [`BURST`] buffers and hands each whole frame to `sink`; returns how many frames.
    pub(super) fn receive(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> Result<usize, RingFault> {
        let mut done = ArrayVec::<(u16, u32), BURST>::new();
        let taken = self.ring.reap(limit.min(BURST), |slot, len| done.push((slot, len)));
        let mut n_frames = 0;
        for &(slot, len) in &done {
            if self.take_buffer(slot, len as usize) {
                sink(&self.frame);
                n_frames += 1;
            }
            self.post(slot);
        }
        if self.ring.publish() {
            self.bells.kick();
        }
        taken.map(|_| n_frames)
    }

    /// Copies one buffer to the frame; true when that was its last.
    fn take_buffer(&mut self, slot: u16, len: usize) -> bool {
        let at = usize::from(slot) * STRIDE;
        let mut skip = 0;
        if self.missing == 0 {
            let mut header = [0; NetHdr::BYTES];
            self.buffers.read(at, &mut header);
            let header = NetHdr::parse(&header).expect("the array has the header's length");
            let pieces = if self.mergeable { header.num_buffers } else { 1 };
            if len <= NetHdr::BYTES || pieces == 0 || pieces > self.ring.size() {
                self.n_malformed += 1;
                return false;
            }
            (self.missing, skip) = (pieces, NetHdr::BYTES);
            self.frame.clear();
        }
        self.missing -= 1;
        let old = self.frame.len();
        if old + len - skip > self.frame.capacity() {
            self.n_malformed += 1; // longer than any frame; the rest is passed over
            return false;
        }
        self.frame.resize(old + len - skip, 0);
        self.buffers.read(at + skip, &mut self.frame[old..]);
        self.missing == 0
    }
}

type Pieces = ArrayVec<u16, MAX_PIECES>;

/// The ring the guest sends with.
pub(super) struct GuestTx {
    pub(super) ring: SplitRing<Span, Pieces>,
    pub(super) bells: Bells,
    buffers: Span,
    free: Vec<u16>,
    layout: TxLayout,
}

impl GuestTx {
    pub(super) fn new(ring: SplitRing<Span, Pieces>, buffers: Span, bells: Bells, layout: TxLayout) -> Self {
        let free = (0..ring.size()).rev().collect();
        GuestTx { ring, bells, buffers, free, layout }
    }

    /// Takes back what the backend has read.
    pub(super) fn reap(&mut self) -> Result<usize, RingFault> {
        self.ring.reap(usize::MAX, |pieces, _| self.free.extend(pieces))
    }

    /// Posts one frame; false when the ring or the buffers are full, or the frame is empty or longer than 16 KiB.
    pub(super) fn post(&mut self, frame: &[u8]) -> bool {
        let n_pieces = frame.len().div_ceil(DATA_BYTES);
        if n_pieces == 0 || n_pieces > MAX_PIECES || n_pieces > self.free.len() {
            return false;
        }
        if self.layout != TxLayout::Indirect && self.ring.n_free() < n_pieces + 1 {
            return false;
        }
        let pieces: Pieces = self.free.drain(self.free.len() - n_pieces..).collect();
        let mut parts = ArrayVec::<(u64, u32), { MAX_PIECES + 1 }>::new();
        let header_at = usize::from(pieces[0]) * STRIDE + TABLE_BYTES;
        self.buffers.write(header_at, &NetHdr::default().to_bytes());
        parts.push((self.buffers.gpa(header_at), NetHdr::BYTES as u32));
        for (&slot, bytes) in pieces.iter().zip(frame.chunks(DATA_BYTES)) {
            let at = usize::from(slot) * STRIDE + TABLE_BYTES + NetHdr::BYTES;
            self.buffers.write(at, bytes);
            parts.push((self.buffers.gpa(at), bytes.len() as u32));
        }
        self.post_parts(parts, pieces)
    }

    fn post_parts(&mut self, mut parts: ArrayVec<(u64, u32), { MAX_PIECES + 1 }>, pieces: Pieces) -> bool {
        let posted = match self.layout {
            TxLayout::Indirect => {
                let table_at = usize::from(pieces[0]) * STRIDE;
                self.write_table(table_at, &parts);
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

    fn write_table(&self, table_at: usize, parts: &[(u64, u32)]) {
        for (i, &(addr, len)) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let (flags, next) = if last { (0, 0) } else { (DESC_F_NEXT, i as u16 + 1) };
            let entry = Descriptor { addr, len, flags, next };
            self.buffers.write(table_at + i * Descriptor::BYTES, &entry.to_bytes());
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
