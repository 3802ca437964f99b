//! Descriptor formats: what differs between the families in the two 64-bit words of a descriptor. A format is a
//! type without values; the queue halves are compiled once for each, so nothing is decided per packet.
//!
//! All receive formats take the buffer's address in the first word and zero in the second, and all have done bit,
//! end of frame, errors and length in the second word when the device has written it.

use crate::dma::Iova;
use crate::offload::{Offload, Offloads};

/// What the hardware found of a frame's IP and transport checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Not looked at: no IP, a fragment, a protocol the card doesn't know.
    Unknown,
    /// All there are were right.
    Right,
    /// At least one was wrong.
    Wrong,
}

/// How the card writes a receive descriptor back. Masks are of the second word.
pub trait RxFormat: Send + 'static {
    /// The descriptor is written.
    const DONE: u64;
    /// The frame ends in its buffer.
    const LAST: u64;
    /// The frame is damaged (CRC, symbol, sequence, length): never passed on.
    const DAMAGED: u64;

    /// Bytes in the buffer; whatever the device says.
    fn len_bytes(word: u64) -> usize;

    /// Meaningful in the descriptor with [`LAST`](Self::LAST).
    fn checksum(word: u64) -> Checksum;

    /// In the same descriptor: the card took a VLAN tag off the frame (VP).
    const STRIPPED: u64;
    /// Cards of this format may take tags off that nobody asked to be taken off.
    const STRIPS_UNASKED: bool = false;

    /// The tag (TCI) that was taken off.
    fn tag(word: u64) -> u16 {
        (word >> 48) as u16
    }
}

/// How the card takes transmit descriptors.
pub trait TxFormat: Send + 'static {
    /// Work the card does.
    const OFFLOADS: Offloads;
    /// In the second word, written back into a descriptor that asked for a [`report`](Self::report).
    const DONE: u64 = 1 << 32;
    /// Shortest frame the card takes; shorter ones get zeros behind.
    const MIN_FRAME_BYTES: usize;
    /// Most descriptors of one frame.
    const MAX_SEGMENTS: usize;

    /// One piece of a frame of `total_bytes`. `checksum`: complete it as the context before says.
    fn data(at: Iova, len_bytes: usize, total_bytes: usize, last: bool, checksum: bool) -> [u64; 2];

    /// Asks for the descriptor to be written back once it is sent, and all before it.
    fn report(words: [u64; 2]) -> [u64; 2];

    /// The context descriptor that makes the card complete this checksum; `None` when it can't, and software does.
    fn context(work: &Offload) -> Option<[u64; 2]>;

    /// A data descriptor of a frame that gets this tag.
    fn tagged(words: [u64; 2], tag: u16) -> [u64; 2];

    /// The context that such a frame needs: its own, if any, and the tag. None where data descriptors say it all.
    fn tag_context(own: Option<[u64; 2]>, tag: u16) -> Option<[u64; 2]>;
}
