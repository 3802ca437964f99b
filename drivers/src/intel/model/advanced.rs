//! Queues with advanced descriptors as the 82576 and its virtual functions have them (82576 7.1.5, 7.2.2): the registers
//! of each, frames scattered into receive descriptors, frames gathered from transmit descriptors, and what can go wrong.

use super::{Checks, Ring, internet_checksum};
use crate::nic::model::{Card, Fault};

/// In both control registers: the queue is on.
const ENABLE: u32 = 1 << 25;
const SRRCTL: usize = 0x0c;
const DCTL: usize = 0x28;
/// Status of a received frame.
const DD: u64 = 1;
const EOP: u64 = 1 << 1;
const VP: u64 = 1 << 3;
const L4I: u64 = 1 << 5;
const IPCS: u64 = 1 << 6;
/// Errors of a received frame.
const CE: u64 = 1 << 24;
const L4E: u64 = 1 << 29;
const IPE: u64 = 1 << 30;
/// A transmit descriptor.
const TX_EOP: u64 = 1 << 24;
const TX_RS: u64 = 1 << 27;
const TX_DEXT: u64 = 1 << 29;
const TX_VLE: u64 = 1 << 30;
const TX_DD: u64 = 1 << 32;
const TX_TXSM: u64 = 1 << 41;

/// One queue of one direction.
#[derive(Default)]
struct Queue {
    ring: Ring,
    /// Its other registers, by offset / 4.
    regs: [u32; 16],
    /// Transmit: contexts as last loaded, and the bytes of the frame so far.
    contexts: [[u64; 2]; 2],
    gathered: Vec<u8>,
}

impl Queue {
    fn is_on(&self) -> bool {
        self.regs[DCTL / 4] & ENABLE != 0
    }

    fn room(&self) -> usize {
        let srrctl = self.regs[SRRCTL / 4];
        assert_eq!(srrctl >> 25 & 7, 1, "advanced descriptors, one buffer each");
        (srrctl & 0x7f) as usize * 1024
    }
}

/// All queues of a function.
#[derive(Default)]
pub struct Queues {
    rx: Vec<Queue>,
    tx: Vec<Queue>,
    /// The half of a write-back that was put off.
    late: Option<(u64, [u64; 2])>,
    /// SRRCTL takes no writes.
    pub stuck_format: bool,
    /// Queues never get enabled.
    pub never_enables: bool,
    /// Frames a tag was taken off, and those one was inserted in.
    pub n_stripped: u64,
    /// See `n_stripped`.
    pub n_inserted: u64,
}

impl Queues {
    /// `n` of each direction, off.
    pub fn new(n: usize) -> Self {
        let queues = || (0..n).map(|_| Queue::default()).collect();
        Queues { rx: queues(), tx: queues(), ..Queues::default() }
    }

    /// All registers to their defaults.
    pub fn reset(&mut self) {
        self.rx.iter_mut().chain(&mut self.tx).for_each(|queue| *queue = Queue::default());
        self.late = None;
    }

    fn queue(&mut self, tx: bool, index: usize) -> Option<&mut Queue> {
        if tx { self.tx.get_mut(index) } else { self.rx.get_mut(index) }
    }

    /// Reads the register at `offset` of a queue's block.
    pub fn read(&mut self, tx: bool, index: usize, offset: usize) -> u32 {
        let Some(queue) = self.queue(tx, index) else { return 0 };
        match offset {
            0x08 => queue.ring.len_bytes,
            0x10 => queue.ring.head,
            0x18 => queue.ring.tail,
            _ => queue.regs[(offset / 4) & 15],
        }
    }

    /// Writes the register at `offset` of a queue's block.
    pub fn write(&mut self, tx: bool, index: usize, offset: usize, value: u32) {
        let value = if offset == DCTL && self.never_enables { value & !ENABLE } else { value };
        if offset == SRRCTL && self.stuck_format {
            return;
        }
        let Some(queue) = self.queue(tx, index) else { return };
        match offset {
            0x00 => queue.ring.set_base_low(value),
            0x04 => queue.ring.set_base_high(value),
            0x08 => queue.ring.len_bytes = value & 0xf_ff80,
            0x10 => queue.ring.head = value & 0xffff,
            // A tail is not to be moved before the queue is on (82576 4.5.9).
            0x18 if value != 0 => {
                assert!(queue.is_on(), "the tail of a queue that is off");
                queue.ring.tail = value & 0xffff;
            }
            0x18 => queue.ring.tail = 0,
            _ => queue.regs[(offset / 4) & 15] = value,
        }
    }

    /// Whether any queue of a direction is on.
    pub fn is_on(&self, tx: bool) -> bool {
        (if tx { &self.tx } else { &self.rx }).iter().any(Queue::is_on)
    }

    /// Descriptors the card has of a ring.
    pub fn available(&self, tx: bool, index: usize) -> u32 {
        (if tx { &self.tx } else { &self.rx })[index].ring.available()
    }

    /// What was put off is done now.
    pub fn catch_up(&mut self, card: &Card) {
        if let Some((at, words)) = self.late.take() {
            card.write_descriptor(at, words);
        }
    }

    /// Writes a frame into the descriptors of a queue, with a tag that was taken off it. False, and nothing is done,
    /// when the queue is off or has too few.
    pub fn deliver(
        &mut self,
        card: &mut Card,
        index: usize,
        frame: &[u8],
        found: Checks,
        tag: Option<u16>,
    ) -> bool {
        let Some(queue) = self.rx.get_mut(index).filter(|queue| queue.is_on()) else { return false };
        let room = queue.room();
        let n = frame.len().div_ceil(room).max(1);
        if (queue.ring.available() as usize) < n {
            return false;
        }
        self.n_stripped += u64::from(tag.is_some());
        for (piece_index, piece) in frame.chunks(room).enumerate() {
            let [buffer, _] = card.read_descriptor(queue.ring.at(0));
            card.write(buffer, piece);
            let is_last = piece_index + 1 == n;
            let mut status = DD;
            if is_last && card.fault != Some(Fault::MissingEnd) {
                status |= EOP | status_of(found);
            }
            if let (true, Some(tag)) = (is_last, tag) {
                status |= VP | u64::from(tag) << 48;
            }
            let (mut len, mut ahead, mut late) = (piece.len() as u64, 0, false);
            match card.take_fault(happens_once) {
                Some(Fault::GarbageLength(n)) => len = n.into(),
                Some(Fault::IndexJump(n)) => ahead = n.into(),
                Some(Fault::Damaged) => status |= CE,
                Some(Fault::LateWriteBack) => late = true,
                _ => {}
            }
            let (at, words) = (queue.ring.at(ahead), [0, status | len << 32]);
            if late {
                // The done bit alone; the rest comes with the next step.
                card.write_descriptor(at, [0, status]);
                self.late = Some((at, words));
            } else {
                card.write_descriptor(at, words);
            }
            queue.ring.advance(1);
        }
        true
    }

    /// Sends what a queue has: the frames, their checksums completed, tags inserted with this type (none when the card is not
    /// in VLAN mode), short ones padded.
    pub fn send(&mut self, card: &Card, index: usize, tag_type: Option<u16>) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let Some(queue) = self.tx.get_mut(index).filter(|queue| queue.is_on()) else { return frames };
        while queue.ring.available() > 0 {
            let at = queue.ring.at(0);
            let words @ [address, command] = card.read_descriptor(at);
            assert!(command & TX_DEXT != 0, "an advanced descriptor");
            match command >> 20 & 0xf {
                2 => queue.contexts[(words[1] >> 36 & 1) as usize] = words,
                3 => {
                    queue.gathered.extend(card.read_bytes(address, (command & 0xffff) as usize));
                    if command & TX_EOP != 0 {
                        let (frame, tagged) = finish(queue, command, tag_type);
                        self.n_inserted += u64::from(tagged);
                        frames.push(frame);
                    }
                }
                other => panic!("descriptor type {other}"),
            }
            if command & TX_RS != 0 {
                card.write_descriptor(at, [0, TX_DD]);
            }
            queue.ring.advance(1);
        }
        frames
    }
}

/// The whole frame, as its last descriptor wants it.
fn finish(queue: &mut Queue, command: u64, tag_type: Option<u16>) -> (Vec<u8>, bool) {
    let mut frame = std::mem::take(&mut queue.gathered);
    assert_eq!(command >> 46, frame.len() as u64, "PAYLEN");
    let [lengths, kind] = queue.contexts[(command >> 36 & 1) as usize];
    if command & TX_TXSM != 0 {
        let start = (lengths >> 9 & 0x7f) as usize + (lengths & 0x1ff) as usize;
        let place = start + if kind >> 11 & 3 == 1 { 16 } else { 6 };
        let sum = internet_checksum(&frame[start..]);
        frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
    // 82576 7.4: the type from VET, the tag from the context.
    let tag_type = tag_type.filter(|_| command & TX_VLE != 0);
    if let Some(kind) = tag_type {
        super::insert_tag(&mut frame, kind, (lengths >> 16) as u16);
    }
    if frame.len() < 60 {
        frame.resize(60, 0);
    }
    (frame, tag_type.is_some())
}

fn happens_once(fault: Fault) -> bool {
    use Fault::*;
    matches!(fault, GarbageLength(_) | IndexJump(_) | Damaged | LateWriteBack)
}

fn status_of(found: Checks) -> u64 {
    let ip = match found.ip {
        None => 0,
        Some(right) => IPCS | if right { 0 } else { IPE },
    };
    let l4 = match found.l4 {
        None => 0,
        Some((_, right)) => L4I | if right { 0 } else { L4E },
    };
    ip | l4
}
