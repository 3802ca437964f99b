// UNSAFETY: turns slot numbers into slices of packet memory.
//! [`PacketBuf`]: one received or to-be-sent frame, owned by the CPU.
//!
//! Sixteen bytes, so that four fit a cache line of a ring between cores, and a plain
//! frame is described whole: no metadata line travels with it. Frames longer than one
//! buffer are chains; chain links and offload data live in a side table no device
//! can reach.

use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use super::handles::Handles;
use super::iova::Iova;
use super::pool::PoolShared;
use super::{DATA_ROOM, HEADROOM};
use crate::lent::{LentFrame, Notes};

const SLOT_MASK: u32 = 0x00ff_ffff;
const CHAINED: u32 = 1 << 31;
const OFFLOAD: u32 = Notes::WORK.0;
/// Other handles of the same segment may exist; see [`super::share`].
pub(super) const SHARED: u32 = 1 << 29;
/// A NIC has checked the frame's checksums.
const VERIFIED: u32 = Notes::VERIFIED.0;

/// Checksum and segmentation work a frame still needs, as virtio's header has it
/// (virtio 1.2, 5.1.6), without the buffer count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// VIRTIO_NET_HDR_F_* bits.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_*.
    pub gso_type: u8,
    /// Length of the headers in bytes.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

/// Side-table entry of one slot; belongs to the slot's owner. While the segment is shared, nobody
/// writes to it but for the count.
#[derive(Default)]
pub(super) struct Meta {
    next: Option<PacketBuf>,
    offload: Offload,
    origin: u16,
    handles: Handles,
}

const _: () = assert!(size_of::<Meta>() == 32);

/// A frame owned by the CPU. No `Clone`: giving it to a ring, a device slot or
/// [`PoolCache::free`](super::PoolCache::free) moves it away, and dropping it returns it to its
/// pool (correct anywhere, but slower than a core's cache).
pub struct PacketBuf {
    pool: NonNull<PoolShared>,
    /// Slot and flags (32 bits), offset of the first byte (16), length (16). One word, so that a packet moves in two
    /// registers: fields stored one by one and loaded as one a moment later wait for each other.
    word: u64,
}

const OFF_SHIFT: u32 = 32;
const LEN_SHIFT: u32 = 48;

const _: () = assert!(size_of::<PacketBuf>() == 16 && size_of::<Option<PacketBuf>>() == 16);

// SAFETY: a PacketBuf is the only owner of its slot, or one of several handles none of which writes to it
// (SHARED); PoolShared is Sync.
unsafe impl Send for PacketBuf {}

/// What a device says of a frame that it wrote into one fresh buffer; checked.
#[derive(Debug, Clone, Copy)]
pub struct Received(u64);

impl Received {
    /// A frame of `len` bytes, whose checksums the device has found right or not looked at. `None` when no buffer
    /// holds so much.
    #[inline(always)]
    pub fn new(len: usize, is_verified: bool) -> Option<Received> {
        let flags = u64::from(is_verified) * u64::from(VERIFIED);
        (len <= DATA_ROOM)
            .then_some(Received((len as u64) << LEN_SHIFT | (HEADROOM as u64) << OFF_SHIFT | flags))
    }
}

impl Default for Received {
    /// Nothing.
    #[inline(always)]
    fn default() -> Received {
        Received((HEADROOM as u64) << OFF_SHIFT)
    }
}

/// A frame does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

impl PacketBuf {
    #[inline(always)]
    pub(super) fn new(pool: NonNull<PoolShared>, slot: u32, off: u16) -> Self {
        debug_assert!(slot <= SLOT_MASK);
        PacketBuf { pool, word: u64::from(slot) | u64::from(off) << OFF_SHIFT }
    }

    /// The largest slot number.
    pub(super) const LAST_SLOT: u32 = SLOT_MASK;

    /// A frame that a device wrote into the buffer of `slot`, which is the caller's.
    #[inline(always)]
    pub(super) fn received(pool: NonNull<PoolShared>, slot: u32, received: Received) -> Self {
        debug_assert!(slot <= SLOT_MASK);
        PacketBuf { pool, word: received.0 | u64::from(slot) }
    }

    /// The buffer alone, which is the caller's to give back: of a frame that [frees alone](Self::frees_alone).
    #[inline(always)]
    pub(super) fn into_slot(self) -> u32 {
        debug_assert!(self.frees_alone());
        ManuallyDrop::new(self).slot()
    }

    #[inline(always)]
    pub(super) fn slot_flags(&self) -> u32 {
        self.word as u32
    }

    #[inline(always)]
    pub(super) fn set_flag(&mut self, flag: u32) {
        self.word |= u64::from(flag);
    }

    #[inline(always)]
    pub(super) fn clear_flag(&mut self, flag: u32) {
        self.word &= !u64::from(flag);
    }

    /// What `n` bytes more at the front add to the word: to the length what is taken from the offset. Both stay
    /// within their 16 bits, as every caller checks.
    #[inline(always)]
    fn moved(n: usize) -> u64 {
        ((n as u64) << LEN_SHIFT) - ((n as u64) << OFF_SHIFT)
    }

    /// Where the segment starts and how long it is: within the buffer, as every caller checks.
    #[inline(always)]
    fn set_extent(&mut self, off: usize, len: usize) {
        debug_assert!(off + len <= HEADROOM + DATA_ROOM);
        let slot_flags = u64::from(self.slot_flags());
        self.word = slot_flags | (off as u64) << OFF_SHIFT | (len as u64) << LEN_SHIFT;
    }

    #[inline(always)]
    pub(super) fn pool(&self) -> NonNull<PoolShared> {
        self.pool
    }

    #[inline(always)]
    pub(super) fn slot(&self) -> u32 {
        self.slot_flags() & SLOT_MASK
    }

    #[inline(always)]
    fn shared(&self) -> &PoolShared {
        // SAFETY: PoolOwner keeps the pool allocated while any of its packets is out.
        unsafe { self.pool.as_ref() }
    }

    /// Panics on a shared segment, whose entry nobody may write to: a bug of the caller's.
    #[inline(always)]
    fn meta(&mut self) -> &mut Meta {
        assert!(!self.is_shared(), "a shared segment is read only: make_own first");
        let cell = self.shared().meta(self.slot());
        // SAFETY: the entry belongs to the owner of the slot, which is self alone (not SHARED), borrowed mutably.
        unsafe { &mut *cell }
    }

    #[inline(always)]
    fn meta_ref(&self) -> &Meta {
        let cell = self.shared().meta(self.slot());
        // SAFETY: the entry belongs to the owner of the slot, which is self; while there are several, none writes.
        unsafe { &*cell }
    }

    /// The count of handles; means something only while the segment is shared.
    #[inline(always)]
    pub(super) fn handles(&self) -> &Handles {
        let cell = self.shared().meta(self.slot());
        // SAFETY: the side table lives as long as the pool; only the atomic itself is borrowed.
        unsafe { &(*cell).handles }
    }

    /// A second handle of the same bytes. Only for [`super::share`], which counts them.
    #[inline(always)]
    pub(super) fn alias(&self) -> PacketBuf {
        PacketBuf { pool: self.pool, word: self.word }
    }

    /// First byte of the frame (of this segment), for a device or a copy loop. Nothing may be written
    /// there while the segment is [shared](Self::is_shared).
    #[inline(always)]
    pub fn data_ptr(&self) -> NonNull<u8> {
        let buffer = self.shared().slot_ptr(self.slot());
        // SAFETY: off + len <= HEADROOM + DATA_ROOM is kept by every method that changes them.
        unsafe { buffer.add(self.headroom()) }
    }

    /// Where a device finds the first byte of this segment.
    #[inline(always)]
    pub fn iova(&self) -> Iova {
        self.shared().slot_iova(self.slot()).offset(self.headroom() as u64)
    }

    /// Length of this (first) segment in bytes.
    #[allow(clippy::len_without_is_empty)]
    #[inline(always)]
    pub fn len(&self) -> usize {
        (self.word >> LEN_SHIFT) as usize
    }

    /// Length of the whole frame in bytes.
    #[inline(always)]
    pub fn total_len(&self) -> usize {
        if self.is_chained() { self.segments().map(<[u8]>::len).sum() } else { self.len() }
    }

    /// This (first) segment for somebody to copy from, who does not care whose memory it is.
    #[inline(always)]
    pub fn lend(&self) -> LentFrame<'_> {
        // SAFETY: as in data(); nobody writes them while self is borrowed.
        let frame = unsafe { LentFrame::new(self.data_ptr(), self.len() as u32) };
        frame.noted(Notes(self.slot_flags() & (OFFLOAD | VERIFIED)))
    }

    /// Bytes of this (first) segment. The buffer is the CPU's: a device it was posted to has
    /// completed it, and no other device knows it.
    #[inline(always)]
    pub fn data(&self) -> &[u8] {
        // SAFETY: data_ptr is valid for len initialised bytes (memory starts zeroed), owned by self.
        unsafe { std::slice::from_raw_parts(self.data_ptr().as_ptr(), self.len()) }
    }

    /// As [`data`](Self::data), writable. Panics on a shared segment: [`make_own`](Self::make_own) comes first.
    #[inline(always)]
    pub fn data_mut(&mut self) -> &mut [u8] {
        assert!(!self.is_shared(), "a shared segment is read only: make_own first");
        // SAFETY: as in data(), self is borrowed mutably, and there is no other handle.
        unsafe { std::slice::from_raw_parts_mut(self.data_ptr().as_ptr(), self.len()) }
    }

    /// Bytes free behind the segment.
    #[inline(always)]
    pub fn tailroom(&self) -> usize {
        HEADROOM + DATA_ROOM - (self.headroom() + self.len())
    }

    /// Bytes free in front of the segment.
    #[inline(always)]
    pub fn headroom(&self) -> usize {
        usize::from((self.word >> OFF_SHIFT) as u16)
    }

    /// Sets the length of this segment, for bytes that a device or a copy loop wrote behind
    /// [`data_ptr`](Self::data_ptr). Refuses more than the buffer holds.
    #[inline(always)]
    pub fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > HEADROOM + DATA_ROOM - self.headroom() {
            return Err(NoRoom);
        }
        self.word = self.word & ((1 << LEN_SHIFT) - 1) | (len as u64) << LEN_SHIFT;
        Ok(())
    }

    /// As [`set_len`](Self::set_len), of a buffer that a device was given fresh: the frame starts at the usual headroom.
    #[inline(always)]
    pub fn set_received(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > DATA_ROOM {
            return Err(NoRoom);
        }
        self.set_extent(HEADROOM, len);
        Ok(())
    }

    /// Moves the start of an empty segment: `headroom` bytes stay free before it.
    #[inline(always)]
    pub fn reserve(&mut self, headroom: usize) -> Result<(), NoRoom> {
        if self.len() != 0 || headroom > HEADROOM + DATA_ROOM {
            return Err(NoRoom);
        }
        self.set_extent(headroom, 0);
        Ok(())
    }

    /// Writes `bytes` behind this segment.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let old = self.len();
        if bytes.len() > self.tailroom() {
            return Err(NoRoom);
        }
        self.set_extent(self.headroom(), old + bytes.len());
        self.data_mut()[old..].copy_from_slice(bytes);
        Ok(())
    }

    /// Grows the segment by `n` bytes at its front; their content is whatever was there.
    #[inline(always)]
    pub fn push_front(&mut self, n: usize) -> Result<(), NoRoom> {
        if n > self.headroom() {
            return Err(NoRoom);
        }
        self.word += Self::moved(n);
        Ok(())
    }

    /// Cuts `n` bytes off the front of the segment.
    #[inline(always)]
    pub fn pull_front(&mut self, n: usize) -> Result<(), NoRoom> {
        if n > self.len() {
            return Err(NoRoom);
        }
        self.word -= Self::moved(n);
        Ok(())
    }

    /// True when the frame goes on in another buffer.
    #[inline(always)]
    pub fn is_chained(&self) -> bool {
        self.slot_flags() & CHAINED != 0
    }

    /// Hangs `next` (a segment or a chain) behind this segment, which must be the last of its own chain.
    #[inline]
    pub fn chain(&mut self, next: PacketBuf) {
        debug_assert!(!self.is_chained(), "only the last segment takes a successor");
        self.meta().next = Some(next);
        self.set_flag(CHAINED);
    }

    /// Cuts the chain behind this segment and returns the rest.
    #[inline]
    pub fn unchain(&mut self) -> Option<PacketBuf> {
        if !self.is_chained() {
            return None;
        }
        self.clear_flag(CHAINED);
        self.meta().next.take()
    }

    /// The segment behind this one.
    #[inline]
    pub fn next_segment(&self) -> Option<&PacketBuf> {
        if self.is_chained() { self.meta_ref().next.as_ref() } else { None }
    }

    /// The last segment of the chain (self when there is no other).
    pub fn last_segment_mut(&mut self) -> &mut PacketBuf {
        let mut last = self;
        while last.is_chained() {
            last = last.meta().next.as_mut().expect("CHAINED is set together with next");
        }
        last
    }

    /// Segments as packet buffers, first to last.
    pub fn segment_bufs(&self) -> impl Iterator<Item = &PacketBuf> {
        std::iter::successors(Some(self), |segment| segment.next_segment())
    }

    /// Bytes of all segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.segment_bufs().map(PacketBuf::data)
    }

    /// Number of segments, at least 1.
    #[inline(always)]
    pub fn n_segments(&self) -> usize {
        if self.is_chained() { self.segment_bufs().count() } else { 1 }
    }

    /// [`is_chained`](Self::is_chained), of flags that may be several packets'.
    #[inline(always)]
    pub(super) fn is_chain(flags: u32) -> bool {
        flags & CHAINED != 0
    }

    /// [`has_offload`](Self::has_offload), of flags that may be several packets'.
    #[inline(always)]
    pub(super) fn is_work(flags: u32) -> bool {
        flags & OFFLOAD != 0
    }

    /// True when the frame needs checksum or segmentation work: one bit of what is at hand anyway.
    #[inline(always)]
    pub fn has_offload(&self) -> bool {
        self.slot_flags() & OFFLOAD != 0
    }

    /// True for a frame in one buffer without work: most of all traffic.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.slot_flags() & (CHAINED | OFFLOAD) == 0
    }

    /// True for a [plain](Self::is_plain) frame whose bytes nobody else reads.
    #[inline(always)]
    pub fn is_simple(&self) -> bool {
        self.slot_flags() & (CHAINED | OFFLOAD | SHARED) == 0
    }

    /// Checksum and segmentation work still to be done, if any.
    #[inline(always)]
    pub fn offload(&self) -> Option<Offload> {
        if self.slot_flags() & OFFLOAD == 0 { None } else { Some(self.meta_ref().offload) }
    }

    /// Sets or clears the offload data. Setting panics on a shared segment: [`make_own`](Self::make_own) comes first.
    pub fn set_offload(&mut self, offload: Option<Offload>) {
        match offload {
            Some(offload) => {
                self.meta().offload = offload;
                self.set_flag(OFFLOAD);
            }
            None => self.clear_flag(OFFLOAD),
        }
    }

    /// True when a NIC has checked the IP and transport checksums of the frame and found them right (what virtio calls
    /// DATA_VALID). A property of the handle: copies don't have it.
    #[inline(always)]
    pub fn is_verified(&self) -> bool {
        self.slot_flags() & VERIFIED != 0
    }

    /// Notes that hardware has found the checksums right. Whoever changes checksummed bytes takes it back.
    #[inline(always)]
    pub fn set_verified(&mut self, verified: bool) {
        match verified {
            true => self.set_flag(VERIFIED),
            false => self.clear_flag(VERIFIED),
        }
    }

    /// Who sent the frame, as [`set_origin`](Self::set_origin) had it; what it is before that is undefined.
    #[inline]
    pub fn origin(&self) -> u16 {
        self.meta_ref().origin
    }

    /// Notes who sent the frame, for the component that reads it next. The number travels in the side table;
    /// a buffer that comes from the pool has any. Panics on a shared segment.
    #[inline]
    pub fn set_origin(&mut self, origin: u16) {
        self.meta().origin = origin;
    }

    /// Hints the CPU to fetch the frame's first line: call it for packets that are looked at soon.
    #[inline(always)]
    pub fn prefetch(&self) {
        let line = self.data_ptr().as_ptr().cast::<i8>();
        // SAFETY: a prefetch has no effect but on caches, for any address.
        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line) }
    }

    /// Copies the whole frame into a new buffer chain from `pool`, offload data included. `None` when the pool is exhausted.
    pub fn duplicate(&self, pool: &mut super::PoolCache) -> Option<PacketBuf> {
        let mut head: Option<PacketBuf> = None;
        for segment in self.segment_bufs() {
            let Some(mut copy) = pool.alloc() else {
                head.into_iter().for_each(|partial| pool.free(partial));
                return None;
            };
            let fits = copy.reserve(segment.headroom()).and_then(|()| copy.append(segment.data()));
            fits.expect("all buffers have one size, and this one starts at the same offset");
            match &mut head {
                None => head = Some(copy),
                Some(first) => first.last_segment_mut().chain(copy),
            }
        }
        let mut head = head?;
        head.set_offload(self.offload());
        Some(head)
    }
}

impl PacketBuf {
    /// Neither chained nor shared: freeing it is returning its slot.
    #[inline(always)]
    pub(super) fn frees_alone(&self) -> bool {
        Self::all_free_alone(self.slot_flags())
    }

    /// As [`frees_alone`](Self::frees_alone), of several packets: their flags or'ed together.
    #[inline(always)]
    pub(super) fn all_free_alone(flags: u32) -> bool {
        flags & (CHAINED | SHARED) == 0
    }

    /// Ends this handle. True: its slot is to be returned, and what was chained behind it is in `rest`.
    /// False: other handles go on, and this one must only be forgotten.
    fn let_go(&mut self, rest: &mut Option<PacketBuf>) -> bool {
        if self.is_shared() && !self.release_share() {
            return false;
        }
        *rest = self.unchain();
        true
    }

    /// The segment alone and what was chained behind it; `None` when other handles of it go on.
    pub(super) fn into_parts(self) -> Option<(PacketBuf, Option<PacketBuf>)> {
        let (mut segment, mut rest) = (ManuallyDrop::new(self), None);
        segment.let_go(&mut rest).then(|| (ManuallyDrop::into_inner(segment), rest))
    }
}

impl Drop for PacketBuf {
    fn drop(&mut self) {
        let mut next = None;
        if self.let_go(&mut next) {
            self.shared().return_stray(self.slot());
        }
        // A chain is returned in a loop: recursion depth must not depend on a frame's length.
        while let Some(segment) = next.take() {
            let mut segment = ManuallyDrop::new(segment);
            if segment.let_go(&mut next) {
                segment.shared().return_stray(segment.slot());
            }
        }
    }
}

impl std::fmt::Debug for PacketBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PacketBuf {{ slot: {}, off: {}, len: {}, segments: {} }}",
            self.slot(),
            self.headroom(),
            self.len(),
            self.n_segments()
        )
    }
}

#[cfg(test)]
mod tests;
