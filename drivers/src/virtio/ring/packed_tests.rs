//! The packed ring against a device that tells the truth, and one that lies; both layouts with completions that stand
//! for several buffers. The heap and its cells are those of the split ring's tests.

use std::sync::atomic::Ordering;

use super::*;
use crate::virtio::ring::SplitRing;
use crate::virtio::ring::split::tests::Heap;

const SIZE: u16 = 8;

fn ring() -> (PackedRing<Heap, u64>, Heap) {
    let heap = Heap::new();
    (PackedRing::starting_at(heap.clone(), SIZE, false, 6), heap)
}

/// Writes a used element into `slot` in the lap with wrap counter `wrap`.
fn use_slot(heap: &Heap, slot: u16, wrap: bool, id: u16, len: u32) {
    let flags = if wrap { F_AVAIL | F_USED } else { 0 };
    let at = 16 * usize::from(slot);
    heap.word(at + 8).store(len, Ordering::Relaxed);
    heap.word(at + 12).store(u32::from(id) | u32::from(flags) << 16, Ordering::Release);
}

fn id_at(heap: &Heap, slot: u16) -> u16 {
    heap.word(16 * usize::from(slot) + 12).load(Ordering::Relaxed) as u16
}

fn flags_at(heap: &Heap, slot: u16) -> u16 {
    (heap.word(16 * usize::from(slot) + 12).load(Ordering::Relaxed) >> 16) as u16
}

fn collect(ring: &mut PackedRing<Heap, u64>) -> Vec<(u64, u32)> {
    let mut got = Vec::new();
    ring.reap(100, |token, len| got.push((token, len))).unwrap();
    got
}

#[test]
fn buffers_are_visible_only_when_published_and_come_back_over_the_wrap() {
    let (mut ring, heap) = ring();
    let (mut at, mut wrap) = (6, true);
    for round in 0..40u64 {
        let n = 1 + round % u64::from(SIZE);
        for i in 0..n {
            ring.post(&[Segment::writable(0x1000 * i, 100)], round * 100 + i).unwrap();
        }
        let turn = if wrap { F_AVAIL } else { F_USED };
        assert_ne!(flags_at(&heap, at) & (F_AVAIL | F_USED), turn, "the first one is written last");
        assert!(ring.publish());
        assert_eq!(flags_at(&heap, at), turn | 2);
        for i in 0..n {
            use_slot(&heap, at, wrap, id_at(&heap, at), i as u32);
            at += 1;
            if at == SIZE {
                (at, wrap) = (0, !wrap);
            }
        }
        let expected: Vec<_> = (0..n).map(|i| (round * 100 + i, i as u32)).collect();
        assert_eq!(collect(&mut ring), expected);
        assert_eq!((ring.n_free(), ring.outstanding()), (usize::from(SIZE), 0));
    }
}

#[test]
fn lies_about_a_packed_ring_stop_it_once_and_for_all() {
    type Lie = (u16, u32, RingFault);
    let lies: [Lie; 3] = [
        (SIZE, 1, RingFault::IdOutOfRange { id: SIZE.into(), ring_size: SIZE }),
        (5, 0, RingFault::NeverPosted { id: 5 }),
        (0, 101, RingFault::LengthOverflow { id: 0, len_bytes: 101, room_bytes: 100 }),
    ];
    for (id, len, fault) in lies {
        let (mut ring, heap) = ring();
        ring.post(&[Segment::writable(1, 100)], 1).unwrap();
        ring.publish();
        use_slot(&heap, 6, true, id, len);
        assert_eq!(ring.reap(8, |_, _| panic!("nothing is handed out")), Err(fault));
        use_slot(&heap, 6, true, 0, 1);
        assert_eq!(ring.reap(8, |_, _| panic!("nothing is handed out")), Err(fault), "and it stays stopped");
        assert_eq!(ring.take_back().collect::<Vec<_>>(), [1]);
    }
}

#[test]
fn one_packed_completion_in_order_stands_for_all_before_it() {
    let heap = Heap::new();
    let mut ring = PackedRing::starting_at(heap.clone(), SIZE, false, 6).in_order();
    for token in 0..3 {
        ring.post(&[Segment::readable(1, 1), Segment::readable(2, 2)], token).unwrap();
    }
    ring.publish();
    // The id of the second chain, whose descriptors are in slots 0 and 1 of the next lap.
    use_slot(&heap, 6, true, id_at(&heap, 0), 0);
    assert_eq!(collect(&mut ring), [(0, 0), (1, 0)]);
    assert_eq!((ring.used_place(), ring.outstanding()), (2, 1));
    use_slot(&heap, 2, false, id_at(&heap, 2), 0);
    assert_eq!(collect(&mut ring), [(2, 0)]);
    // One that was not posted: none of those before it is the end.
    ring.post(&[Segment::readable(1, 1)], 9).unwrap();
    ring.publish();
    use_slot(&heap, 4, false, 7, 0);
    assert_eq!(ring.reap(8, |_, _| ()), Err(RingFault::NeverPosted { id: 7 }));
}

#[test]
fn one_split_completion_in_order_stands_for_all_before_it() {
    let heap = Heap::new();
    let mut ring = SplitRing::starting_at(heap.clone(), SIZE, false, 65_530).in_order();
    let used = ring.addresses().used as usize;
    let mut idx = 65_530u16;
    for round in 0..20u64 {
        for token in 0..3 {
            ring.post(&[Segment::readable(1, 1), Segment::readable(2, 2)], 10 * round + token).unwrap();
        }
        ring.publish();
        // Descriptors are used in ring order, so the third chain starts at the fifth of this round.
        let last = (6 * round + 4) as u32 % u32::from(SIZE);
        heap.word(used + 4 + 8 * usize::from(idx % SIZE)).store(last, Ordering::Relaxed);
        idx = idx.wrapping_add(3);
        heap.write16(used + 2, idx);
        let mut got = Vec::new();
        assert_eq!(ring.reap(100, |token, _| got.push(token)), Ok(3));
        assert_eq!(got, [10 * round, 10 * round + 1, 10 * round + 2]);
        assert_eq!((ring.n_free(), ring.outstanding()), (usize::from(SIZE), 0));
    }
}

#[test]
fn one_completion_in_order_is_taken_in_pieces_where_the_caller_has_no_more_room() {
    let heap = Heap::new();
    let mut packed = PackedRing::starting_at(heap.clone(), SIZE, false, 6).in_order();
    (0..5).for_each(|token| packed.post(&[Segment::writable(1, 100)], token).unwrap());
    packed.publish();
    use_slot(&heap, 6, true, id_at(&heap, 2), 7);
    let heap = Heap::new();
    let mut split = SplitRing::starting_at(heap.clone(), SIZE, false, 65_530).in_order();
    let used = split.addresses().used as usize;
    (0..5).for_each(|token| split.post(&[Segment::writable(1, 100)], token).unwrap());
    split.publish();
    let entry = used + 4 + 8 * usize::from(65_530 % SIZE);
    heap.word(entry).store(4, Ordering::Relaxed);
    heap.word(entry + 4).store(7, Ordering::Relaxed);
    heap.write16(used + 2, 65_535);

    let (mut from_packed, mut from_split) = (Vec::new(), Vec::new());
    for n in [2, 2, 1, 0] {
        assert_eq!(packed.reap(2, |token, len| from_packed.push((token, len))), Ok(n));
        assert_eq!(split.reap(2, |token, len| from_split.push((token, len))), Ok(n));
    }
    assert_eq!(from_packed, [(0, 100), (1, 100), (2, 100), (3, 100), (4, 7)]);
    assert_eq!(from_split, from_packed);
    assert_eq!((packed.n_free(), split.n_free()), (usize::from(SIZE), usize::from(SIZE)));
}

#[test]
fn completion_in_order_of_what_is_not_out_hands_nothing_out() {
    let heap = Heap::new();
    let mut packed = PackedRing::starting_at(heap.clone(), SIZE, false, 6).in_order();
    (0..5).for_each(|token| packed.post(&[Segment::readable(1, 1)], token).unwrap());
    packed.publish();
    use_slot(&heap, 6, true, 6, 0);
    let never = Err(RingFault::NeverPosted { id: 6 });
    assert_eq!(packed.reap(8, |_, _| panic!("nothing is handed out")), never);
    let heap = Heap::new();
    let mut split = SplitRing::starting_at(heap.clone(), SIZE, false, 65_530).in_order();
    let used = split.addresses().used as usize;
    (0..5).for_each(|token| split.post(&[Segment::readable(1, 1)], token).unwrap());
    split.publish();
    heap.word(used + 4 + 8 * usize::from(65_530 % SIZE)).store(6, Ordering::Relaxed);
    heap.write16(used + 2, 65_531);
    assert_eq!(split.reap(8, |_, _| panic!("nothing is handed out")), never);
}
