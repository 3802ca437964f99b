//! How the device receives.

use super::Vmxnet3Model;
use super::queue::{Active, Rx, count};
use crate::intel::model::{checks, hash, strip_tag};
use crate::nic::model::{Card, Fault};

const RX_DONE: u64 = 3 << 56;

/// A buffer the driver posted, if the next but `ahead` of this ring is one.
fn posted(card: &Card, queue: &Rx, ring: usize, ahead: u32) -> Option<(u64, usize)> {
    let commands = &queue.commands[ring];
    let [at, second] = card.read_descriptor(commands.at(ahead));
    let is_owned = second >> 31 & 1 == commands.generation(ahead);
    let len = (second & 0x3fff) as usize;
    if is_owned {
        assert_eq!((second >> 14 & 1) as usize, ring, "beginnings in the first ring, the rest in the second");
        assert!(len >= 128, "buffers have at least 128 bytes");
    }
    is_owned.then_some((at, len))
}

/// What a completion says of checksums.
fn findings(frame: &[u8]) -> (u64, u64) {
    const NOT_CALCULATED: u64 = 1 << 30;
    let found = checks(frame, 3 << 8);
    let Some(ip) = found.ip else { return (NOT_CALCULATED, 0) };
    let (l4, right) = match found.l4 {
        Some((17, right)) => (1 << 49, right),
        Some((_, right)) => (1 << 50, right),
        None => (0, false),
    };
    (0, 1 << 53 | u64::from(ip) << 51 | l4 | u64::from(right) << 48)
}

/// A frame off the wire, and what the driver gets of it.
struct Arrived<'a> {
    frame: &'a [u8],
    bytes: Vec<u8>,
    tag: Option<u16>,
}

impl Arrived<'_> {
    fn new(frame: &[u8], strips: bool) -> Arrived<'_> {
        let mut bytes = frame.to_vec();
        let tag = if strips { strip_tag(&mut bytes, 0x8100) } else { None };
        Arrived { frame, bytes, tag }
    }
}

impl Vmxnet3Model {
    /// Takes frames off the wire while there are buffers for them.
    pub(super) fn receive(&mut self, active: &mut Active) {
        if !self.has_cable {
            return;
        }
        while let Some(frame) = self.card.wire.to_nic.pop_front() {
            if !self.admits(active, &frame) {
                continue;
            }
            let index = match &active.spread {
                Some(spread) => hash(&frame, spread.key.iter().copied())
                    .map_or(0, |hash| usize::from(spread.table[hash as usize % spread.table.len()])),
                None => 0,
            };
            let n_queues = active.rx.len() as u64;
            let arrived = Arrived::new(&frame, active.strips);
            if !self.deliver(&mut active.rx[index], [index as u64, n_queues], active.max_buffers, &arrived) {
                self.card.wire.to_nic.push_front(frame);
                return;
            }
            self.n_tags[0] += u64::from(arrived.tag.is_some());
        }
    }

    /// False when there are not enough buffers.
    fn deliver(
        &mut self,
        queue: &mut Rx,
        [index, n_queues]: [u64; 2],
        max_buffers: u32,
        Arrived { frame, bytes, tag }: &Arrived,
    ) -> bool {
        let Some(head) = posted(&self.card, queue, 0, 0) else { return false };
        let (mut buffers, mut room) = (vec![head], head.1);
        while room < bytes.len() {
            let Some(body) = posted(&self.card, queue, 1, buffers.len() as u32 - 1) else { return false };
            room += body.1;
            buffers.push(body);
        }
        if buffers.len() as u32 > max_buffers {
            queue.stats[9] += 1;
            return true;
        }
        count(&mut queue.stats, frame);
        let damaged = self.card.take_fault(|fault| fault == Fault::Damaged).is_some();
        let n = buffers.len();
        let mut rest = &bytes[..];
        for (piece, (at, len)) in buffers.into_iter().enumerate() {
            let (bytes, more) = rest.split_at(len.min(rest.len()));
            rest = more;
            self.card.write(at, bytes);
            let (is_first, is_last) = (piece == 0, piece + 1 == n);
            let (len, flags) = (bytes.len() as u64, [is_first, is_last, damaged]);
            self.finish(queue, [index, n_queues], len, flags, (frame, *tag));
        }
        true
    }

    fn finish(
        &mut self,
        queue: &mut Rx,
        [index, n_queues]: [u64; 2],
        mut len: u64,
        [is_first, mut is_last, damaged]: [bool; 3],
        (frame, tag): (&[u8], Option<u16>),
    ) {
        let ring = usize::from(!is_first);
        let mut slot = queue.commands[ring].slot();
        match self.card.fault {
            Some(Fault::GarbageLength(garbage)) => len = u64::from(garbage & 0x3fff),
            Some(Fault::IndexJump(ahead)) => slot += u64::from(ahead),
            Some(Fault::MissingEnd) => is_last = false,
            _ => {}
        }
        self.card.take_fault(|fault| matches!(fault, Fault::GarbageLength(_) | Fault::IndexJump(_)));
        let (not_calculated, findings) = if is_last { findings(frame) } else { (0, 0) };
        let first = slot & 0xfff
            | u64::from(is_last) << 14
            | u64::from(is_first) << 15
            | (index + if is_first { 0 } else { n_queues }) << 16
            | not_calculated;
        let generation = queue.completions.generation(0) << 63;
        let tag = tag.filter(|_| is_last).map_or(0, |tag| 1 << 15 | u64::from(tag) << 16);
        let second = len | u64::from(damaged && is_last) << 14 | tag | findings | RX_DONE | generation;
        let at = queue.completions.at(0);
        queue.commands[ring].next += 1;
        queue.completions.next += 1;
        self.complete(at, [first, second]);
    }
}
