//! The ring against a small device of its own: every completion, wrap and lie, from index 65,530.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const SIZE: u16 = 8;
const START: u16 = 65_530;

#[repr(align(64))]
pub struct Line([AtomicU32; 16]);

/// Ring memory on the heap that the test keeps a handle of.
#[derive(Clone)]
pub struct Heap(Arc<[Line]>);

impl Heap {
    pub fn new() -> Self {
        let n_lines = SplitRing::<Heap, ()>::memory_bytes(SIZE).div_ceil(64);
        Heap((0..n_lines).map(|_| Line(Default::default())).collect())
    }

    pub fn word(&self, offset: usize) -> &AtomicU32 {
        &self.0[offset / 64].0[offset % 64 / 4]
    }

    fn read16(&self, offset: usize) -> u16 {
        (self.word(offset & !3).load(Ordering::Relaxed) >> (8 * (offset & 2))) as u16
    }

    pub fn write16(&self, offset: usize, value: u16) {
        let (word, shift) = (self.word(offset & !3), 8 * (offset & 2));
        let rest = word.load(Ordering::Relaxed) & !(0xffff << shift);
        word.store(rest | u32::from(value) << shift, Ordering::Relaxed);
    }
}

// SAFETY: the lines live in an Arc'd slice of atomics; the test accesses them as atomics only.
unsafe impl RingMemory for Heap {
    fn as_ptr(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr().cast_mut().cast()).expect("a slice is not null")
    }
    fn len_bytes(&self) -> usize {
        self.0.len() * 64
    }
    fn device_address(&self) -> u64 {
        0
    }
}

/// The other side: what it read, and what it claims.
struct Device {
    heap: Heap,
    avail: usize,
    used: usize,
    seen: u16,
    used_idx: u16,
}

impl Device {
    fn take(&mut self) -> Vec<u16> {
        let idx = self.heap.read16(self.avail + 2);
        let mut heads = Vec::new();
        while self.seen != idx {
            heads.push(self.heap.read16(self.avail + 4 + 2 * usize::from(self.seen % SIZE)));
            self.seen = self.seen.wrapping_add(1);
        }
        heads
    }

    fn entry(&mut self, id: u32, len: u32) {
        let at = self.used + 4 + 8 * usize::from(self.used_idx % SIZE);
        self.heap.word(at).store(id, Ordering::Relaxed);
        self.heap.word(at + 4).store(len, Ordering::Relaxed);
        self.used_idx = self.used_idx.wrapping_add(1);
    }

    fn publish(&self) {
        self.heap.write16(self.used + 2, self.used_idx);
    }

    fn complete(&mut self, id: u32, len: u32) {
        self.entry(id, len);
        self.publish();
    }

    fn chain(&self, head: u16) -> Vec<(u64, u32, u16)> {
        let (mut at, mut out) = (head, Vec::new());
        loop {
            let base = usize::from(at) * 16;
            let word = |i: usize| u64::from(self.heap.word(base + 4 * i).load(Ordering::Relaxed));
            let d = Descriptor::from_words([word(0) | word(1) << 32, word(2) | word(3) << 32]);
            out.push((d.addr, d.len, d.flags & !DESC_F_NEXT));
            if d.flags & DESC_F_NEXT == 0 {
                return out;
            }
            at = d.next;
        }
    }
}

fn ring(event_idx: bool) -> (SplitRing<Heap, u64>, Device) {
    let heap = Heap::new();
    let ring = SplitRing::starting_at(heap.clone(), SIZE, event_idx, START);
    let a = ring.addresses();
    let device =
        Device { heap, avail: a.avail as usize, used: a.used as usize, seen: START, used_idx: START };
    (ring, device)
}

fn writable(n: u64) -> [Segment; 1] {
    [Segment::writable(0x1000 * n, 100)]
}

fn collect(ring: &mut SplitRing<Heap, u64>, limit: usize) -> Vec<(u64, u32)> {
    let mut got = Vec::new();
    ring.reap(limit, |token, len| got.push((token, len))).unwrap();
    got
}

#[test]
fn tokens_come_back_with_their_lengths_over_the_index_wrap() {
    let (mut ring, mut device) = ring(false);
    for round in 0..40u64 {
        let n = 1 + round % u64::from(SIZE);
        for i in 0..n {
            ring.post(&writable(i), round * 100 + i).unwrap();
        }
        assert!(device.take().is_empty(), "nothing is visible before it is published");
        ring.publish();
        let heads = device.take();
        assert_eq!(heads.len() as u64, n);
        for (i, head) in heads.iter().enumerate() {
            assert_eq!(device.chain(*head), [(0x1000 * i as u64, 100, DESC_F_WRITE)]);
            device.complete(u32::from(*head), i as u32);
        }
        let expected: Vec<_> = (0..n).map(|i| (round * 100 + i, i as u32)).collect();
        assert_eq!(collect(&mut ring, 100), expected);
        assert_eq!((ring.n_free(), ring.outstanding()), (usize::from(SIZE), 0));
    }
}

#[test]
fn full_ring_gives_the_token_back_and_changes_nothing() {
    let (mut ring, mut device) = ring(false);
    for i in 0..7 {
        ring.post(&writable(i), i).unwrap();
    }
    let two = [Segment::readable(1, 1), Segment::readable(2, 2)];
    assert_eq!(ring.post(&two, 99), Err(99), "one descriptor is free, two are needed");
    ring.post(&writable(7), 7).unwrap();
    assert_eq!(ring.post(&writable(8), 8), Err(8));
    ring.publish();
    assert_eq!(device.take().len(), 8);
}

#[test]
fn out_of_order_completions_of_chains_free_all_their_descriptors() {
    let (mut ring, mut device) = ring(false);
    for _ in 0..20 {
        let three = [Segment::readable(1, 12), Segment::readable(2, 20), Segment::writable(3, 30)];
        ring.post(&three, 1).unwrap();
        ring.post(&writable(9), 2).unwrap();
        ring.post(&three[..2], 3).unwrap();
        ring.publish();
        let heads = device.take();
        assert_eq!(device.chain(heads[0]), [(1, 12, 0), (2, 20, 0), (3, 30, DESC_F_WRITE)]);
        for pick in [2, 0, 1] {
            device.complete(u32::from(heads[pick]), 30);
        }
        let expected = [(3, 0), (1, 30), (2, 30)];
        assert_eq!(collect(&mut ring, 8), expected, "a length means nothing where the device only reads");
        assert_eq!(ring.n_free(), usize::from(SIZE));
    }
}

#[test]
fn limit_leaves_completions_for_the_next_call() {
    let (mut ring, mut device) = ring(false);
    (0..8).for_each(|i| ring.post(&writable(i), i).unwrap());
    ring.publish();
    device.take().into_iter().for_each(|head| device.complete(u32::from(head), 1));
    assert_eq!(collect(&mut ring, 3), [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(collect(&mut ring, 100).len(), 5);
}

#[test]
fn id_out_of_range_stops_the_ring() {
    let (mut ring, mut device) = ring(false);
    ring.post(&writable(1), 1).unwrap();
    ring.publish();
    device.complete(u32::from(SIZE), 1);
    let fault = RingFault::IdOutOfRange { id: u32::from(SIZE), ring_size: SIZE };
    assert_eq!(ring.reap(8, |_, _| panic!("nothing is handed out")), Err(fault));
    device.complete(0, 1);
    assert_eq!(ring.reap(8, |_, _| panic!("nothing is handed out")), Err(fault), "and it stays stopped");
}

#[test]
fn id_with_high_bits_is_out_of_range_and_not_masked() {
    let (mut ring, mut device) = ring(false);
    ring.post(&writable(1), 1).unwrap();
    ring.publish();
    device.complete(0x1_0000, 1);
    assert!(matches!(ring.reap(8, |_, _| ()), Err(RingFault::IdOutOfRange { id: 0x1_0000, .. })));
}

#[test]
fn id_never_posted_stops_the_ring() {
    let (mut ring, mut device) = ring(false);
    ring.post(&writable(1), 1).unwrap();
    ring.publish();
    device.complete(5, 1);
    assert_eq!(ring.reap(8, |_, _| panic!("nothing is out there")), Err(RingFault::NeverPosted { id: 5 }));
}

#[test]
fn id_completed_twice_stops_the_ring() {
    let (mut ring, mut device) = ring(false);
    ring.post(&writable(1), 1).unwrap();
    ring.post(&writable(2), 2).unwrap();
    ring.publish();
    let head = u32::from(device.take()[0]);
    device.complete(head, 1);
    device.complete(head, 1);
    let mut got = Vec::new();
    let result = ring.reap(8, |token, _| got.push(token));
    assert_eq!((got, result), (vec![1], Err(RingFault::NeverPosted { id: head as u16 })));
}

#[test]
fn middle_of_a_chain_is_not_a_head() {
    let (mut ring, mut device) = ring(false);
    ring.post(&[Segment::writable(1, 1), Segment::writable(2, 2)], 1).unwrap();
    ring.publish();
    device.complete(1, 1);
    assert_eq!(ring.reap(8, |_, _| ()), Err(RingFault::NeverPosted { id: 1 }));
}

#[test]
fn length_beyond_the_buffer_stops_the_ring_and_keeps_the_buffer() {
    let (mut ring, mut device) = ring(false);
    ring.post(&writable(1), 1).unwrap();
    ring.publish();
    device.complete(0, 101);
    let fault = RingFault::LengthOverflow { id: 0, len_bytes: 101, room_bytes: 100 };
    assert_eq!(ring.reap(8, |_, _| panic!("nothing is handed out")), Err(fault));
    assert_eq!(ring.take_back().collect::<Vec<_>>(), [1]);
}

#[test]
fn used_index_beyond_what_is_out_stops_the_ring() {
    for jump in [3, SIZE + 1, 40_000, u16::MAX] {
        let (mut ring, device) = ring(false);
        ring.post(&writable(1), 1).unwrap();
        ring.post(&writable(2), 2).unwrap();
        ring.publish();
        device.heap.write16(device.used + 2, START.wrapping_add(jump));
        let fault = RingFault::IndexJump { from: START, to: START.wrapping_add(jump), outstanding: 2 };
        assert_eq!(ring.reap(8, |_, _| panic!("nothing is read")), Err(fault));
    }
}

#[test]
fn doorbell_is_wanted_unless_the_device_says_no() {
    let (mut ring, device) = ring(false);
    assert!(!ring.publish(), "nothing new, no doorbell");
    ring.post(&writable(1), 1).unwrap();
    assert!(ring.publish());
    device.heap.write16(device.used, USED_F_NO_NOTIFY);
    ring.post(&writable(2), 2).unwrap();
    assert!(!ring.publish());
}

#[test]
fn event_index_decides_the_doorbell_over_the_wrap() {
    let (mut ring, mut device) = ring(true);
    let event = device.used + 4 + 8 * usize::from(SIZE);
    let mut wanted_at = START.wrapping_add(3);
    device.heap.write16(event, wanted_at);
    let (mut rings, mut idx) = (Vec::new(), START);
    for _ in 0..12 {
        ring.post(&writable(1), 1).unwrap();
        let rang = ring.publish();
        idx = idx.wrapping_add(1);
        if rang {
            rings.push(idx);
            wanted_at = wanted_at.wrapping_add(4);
            device.heap.write16(event, wanted_at);
        }
        device.take().into_iter().for_each(|head| device.complete(u32::from(head), 1));
        collect(&mut ring, 8);
    }
    let at = |n: u16| START.wrapping_add(n);
    assert_eq!(rings, [at(4), at(8), at(12)], "index 65534 and on: the entry after the event");
}

#[test]
fn polling_driver_asks_for_no_interrupts_in_either_form() {
    let (mut plain, device) = ring(false);
    assert_eq!(device.heap.read16(device.avail), AVAIL_F_NO_INTERRUPT);
    plain.want_calls(true);
    assert_eq!(device.heap.read16(device.avail), 0);
    let (mut with_event, mut device) = ring(true);
    let used_event = device.avail + 4 + 2 * usize::from(SIZE);
    assert_eq!(device.heap.read16(used_event), START.wrapping_add(0x8000), "half way round");
    with_event.post(&writable(1), 1).unwrap();
    with_event.publish();
    device.complete(0, 1);
    collect(&mut with_event, 8);
    let event = device.heap.read16(used_event);
    assert_eq!(event, START.wrapping_add(0x8001), "kept half way round");
    // A device that published 1 entry and reads the event only now does not find it passed (virtio 1.2, 2.7.7.1).
    assert!(START.wrapping_add(1).wrapping_sub(event).wrapping_sub(1) >= 1);
    with_event.want_calls(true);
    assert_eq!(device.heap.read16(used_event), START.wrapping_add(1));
}

#[test]
fn buffers_still_out_are_taken_back_once() {
    let (mut ring, mut device) = ring(false);
    (0..5).for_each(|i| ring.post(&writable(i), i).unwrap());
    ring.publish();
    let heads = device.take();
    device.complete(u32::from(heads[1]), 0);
    collect(&mut ring, 8);
    assert_eq!(ring.take_back().collect::<Vec<_>>(), [0, 2, 3, 4]);
    assert_eq!(ring.take_back().count(), 0);
}

#[test]
fn unused_descriptors_are_all_ones_before_the_device_starts() {
    let (_ring, device) = ring(false);
    assert_eq!(device.heap.word(0).load(Ordering::Relaxed), u32::MAX);
    assert_eq!(device.heap.word(16 * usize::from(SIZE) - 4).load(Ordering::Relaxed), u32::MAX);
}
