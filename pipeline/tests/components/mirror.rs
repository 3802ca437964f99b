//! Mirrors.

use super::*;

#[test]
fn mirror_sends_every_frame_to_both_outputs_without_a_copy_of_its_bytes() {
    let mut m = Bench::new(mirror(VlanOp::None, VlanOp::None), 128);
    let frames = [60, 1500, 4000, 9000].map(|len| frame(mac(BROADCAST), &[tag(7)], len, len as u32));
    for _ in 0..8 {
        frames.iter().for_each(|frame| m.send(0, frame));
    }
    let before = m.pool.counts().free;
    m.turns(2);
    assert_eq!(m.pool.counts().free, before, "no buffer was taken");
    let expected: Vec<_> = frames.iter().cycle().take(32).cloned().collect();
    for sink in [1, 0] {
        assert_eq!(m.sinks[sink].drain(&mut m.cache), expected);
    }
    let s = m.stats.snapshot();
    assert_eq!((s.rx_packets, s.copies, s.tx_packets), (32, 32, 64));
    m.close();
}

#[test]
fn mirror_drops_only_copies_when_the_copys_output_is_full() {
    // Q16: the original of SPP leaks a buffer for each of these.
    let mut m = Bench::new(mirror(VlanOp::None, VlanOp::None), 8);
    let mut originals = Vec::new();
    for mark in 0..100 {
        m.send_marks(0, mark..mark + 1);
        m.turns(1);
        originals.extend(m.marks(0));
    }
    assert_eq!(originals, (0..100).collect::<Vec<_>>());
    assert_eq!((m.tx_stats[1].drops(DropReason::RingFull), m.tx_stats[0].snapshot().total_drops()), (92, 0));
    assert_eq!(m.marks(1), (0..8).collect::<Vec<_>>());
    m.close();
}

#[test]
fn mirror_takes_nothing_while_the_originals_output_is_full_and_loses_nothing() {
    let mut m = Bench::new(mirror(VlanOp::None, VlanOp::None), 8);
    m.send_marks(0, 0..100);
    let (mut originals, mut copies) = (Vec::new(), Vec::new());
    m.turns(50);
    assert_eq!(m.stats.snapshot().rx_packets, 32, "one burst waits, the rest is in the input");
    for _ in 0..40 {
        originals.extend(m.marks(0));
        copies.extend(m.marks(1));
        m.turns(1);
    }
    assert_eq!(originals, (0..100).collect::<Vec<_>>());
    assert!(copies.is_sorted());
    assert_eq!(copies.len() as u64 + m.tx_stats[1].drops(DropReason::RingFull), 100);
    m.close();
}

#[test]
fn tag_put_on_one_output_of_a_mirror_is_not_seen_on_the_other() {
    let add = VlanOp::Add { vid: 300, pcp: 5 };
    for (original, copy) in [(add, VlanOp::None), (VlanOp::None, add), (add, VlanOp::Del), (VlanOp::Del, add)]
    {
        for len in [60, 1500, 5000] {
            let mut m = Bench::new(mirror(original, copy), 64);
            let plain = frame(mac(A), &[tag(7)], len, 1);
            (0..10).for_each(|_| m.send(0, &plain));
            m.turns(2);
            for (sink, op) in [(0, original), (1, copy)] {
                let tags = match op {
                    VlanOp::None => vec![tag(7)],
                    VlanOp::Del => vec![],
                    VlanOp::Add { .. } => vec![(0x8100, 5 << 13 | 300)],
                };
                let frames = m.sinks[sink].drain(&mut m.cache);
                assert_eq!(frames.len(), 10);
                for frame in frames {
                    assert_eq!(tags_and_mark(&frame), (tags.clone(), 1));
                    let payload = 12 + 4 * tags.len();
                    assert_eq!(frame[payload..], plain[16..], "{original:?} {copy:?} {len}");
                }
            }
            m.close();
        }
    }
}

#[test]
fn mirror_that_runs_out_of_buffers_for_a_tag_drops_that_handle_only() {
    let mut m = Bench::new(mirror(VlanOp::Add { vid: 1, pcp: 0 }, VlanOp::None), 64);
    m.send_marks(0, 0..10);
    let all: Vec<_> = std::iter::from_fn(|| m.cache.alloc()).collect();
    m.turns(2);
    drop(all);
    assert_eq!(m.marks(1), (0..10).collect::<Vec<_>>());
    let dropped = m.stats.drops(DropReason::NoBuffer);
    assert_eq!(m.marks(0).len() as u64 + dropped, 10);
    assert!(dropped > 0);
    m.close();
}
