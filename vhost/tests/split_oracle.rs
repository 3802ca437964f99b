//! The ring walk against `virtio-queue`, the rust-vmm implementation, on random rings: the same
//! chains must be taken, with the same bytes, and the ring left the same. Indices start at 65,530.

mod support;

use proptest::prelude::*;
use spp_vhost::{FromGuest, ToGuest};
use support::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const START: u16 = 65_530;
const SIZE: u16 = 16;
const TABLE: u64 = BUFFERS + 0x8_0000;

/// One chain: lengths of its buffers, in the ring's own table or in an indirect one.
#[derive(Debug, Clone)]
struct Shape {
    lens: Vec<u32>,
    indirect: bool,
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let lens = prop::collection::vec(prop_oneof![1u32..20, 20u32..200, 200u32..3000], 1..5);
    let shape = (lens, any::<bool>()).prop_map(|(lens, indirect)| Shape { lens, indirect });
    prop::collection::vec(shape, 1..8)
}

/// The oracle's view of the same memory.
fn oracle_memory(memory: &Memory) -> GuestMemoryMmap {
    let part = |gpa: u64, offset: u64| {
        let file = FileOffset::new(memory.file.try_clone().unwrap(), offset);
        (GuestAddress(gpa), REGION as usize, Some(file))
    };
    GuestMemoryMmap::from_ranges_with_files([part(0, 0), part(REGION, 3 * REGION)]).unwrap()
}

fn oracle_queue(size: u16) -> Queue {
    let mut queue = Queue::new(size).unwrap();
    queue.set_size(size);
    queue.set_desc_table_address(Some(DESC as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_next_avail(START);
    queue.set_next_used(START);
    queue.set_ready(true);
    queue
}

/// Lays the chains out and offers them; returns how many fitted the descriptor table.
fn lay_out<H: Half + Send>(bench: &mut Bench<H>, shapes: &[Shape], flags: u16) -> usize {
    let (mut free, mut at) = (0u16, BUFFERS);
    for (n, shape) in shapes.iter().enumerate() {
        let needed = if shape.indirect { 1 } else { shape.lens.len() as u16 };
        if free + needed > SIZE {
            return n;
        }
        let table = if shape.indirect { TABLE + 0x1000 * n as u64 } else { DESC };
        let first = if shape.indirect { 0 } else { free };
        for (i, len) in shape.lens.iter().enumerate() {
            let last = i + 1 == shape.lens.len();
            let bytes: Vec<u8> = (0..*len).map(|b| (at + u64::from(b)) as u8 ^ (at >> 8) as u8).collect();
            bench.memory.write(at, &bytes);
            let next = first + i as u16;
            bench.memory.desc(table, next, at, *len, flags | if last { 0 } else { NEXT }, next + 1);
            at += u64::from(*len) + 3;
        }
        if shape.indirect {
            bench.memory.desc(DESC, free, table, 16 * shape.lens.len() as u32, INDIRECT, 0);
        }
        bench.offer(free);
        free += needed;
    }
    shapes.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn same_frames_are_received_as_by_the_oracle(shapes in shapes()) {
        let mut bench: Bench<FromGuest> = Bench::new(SIZE, START, features(false, false));
        let offered = lay_out(&mut bench, &shapes, 0);
        let memory = oracle_memory(&bench.memory);
        let mut queue = oracle_queue(SIZE);
        let mut expected = Vec::new();
        let mut heads = Vec::new();
        for mut chain in queue.iter(&memory).unwrap() {
            heads.push((chain.head_index(), 0));
            let mut frame = Vec::new();
            for descriptor in &mut chain {
                let mut part = vec![0; descriptor.len() as usize];
                memory.read_slice(&mut part, descriptor.addr()).unwrap();
                frame.extend(part);
            }
            // 12 bytes of header; shorter than an Ethernet header is a runt.
            if frame.len() >= 12 + 14 {
                expected.push(frame.split_off(12));
            }
        }
        prop_assert_eq!(heads.len(), offered);
        let mut received = bench.receive();
        received.extend(bench.receive());
        prop_assert_eq!(received, expected);
        prop_assert_eq!(bench.take_used(), heads);
        prop_assert_eq!(bench.used, queue.next_avail(), "both are at the same index");
        bench.assert_no_leak();
    }

    #[test]
    fn frames_written_are_what_the_oracle_would_read_back(shapes in shapes(), len in 60usize..4000) {
        let mut bench: Bench<ToGuest> = Bench::new(SIZE, START, features(true, false));
        let offered = lay_out(&mut bench, &shapes, WRITE);
        let memory = oracle_memory(&bench.memory);
        let mut queue = oracle_queue(SIZE);
        let chains: Vec<_> = queue.iter(&memory).unwrap().map(|chain| {
            let parts: Vec<_> = chain.clone().map(|d| (d.addr(), d.len() as usize)).collect();
            (chain.head_index(), parts)
        }).collect();
        prop_assert_eq!(chains.len(), offered);
        let capacity: usize = chains.iter().flat_map(|c| &c.1).map(|part| part.1).sum();
        let (n, left) = bench.send(&[len]);
        if capacity < 12 + len {
            // Less than the ring could hold: it waits for more, and nothing is taken.
            let all = offered == usize::from(SIZE);
            prop_assert_eq!((n, left), if all { (1, 0) } else { (0, 1) });
            prop_assert!(bench.take_used().is_empty());
        } else {
            prop_assert_eq!((n, left), (1, 0));
            let used = bench.take_used();
            let mut written: Vec<u8> = Vec::new();
            for (entry, (head, parts)) in used.iter().zip(&chains) {
                prop_assert_eq!(entry.0, *head, "chains are used in order");
                let mut bytes = Vec::new();
                for (addr, len) in parts {
                    let mut part = vec![0; *len];
                    memory.read_slice(&mut part, *addr).unwrap();
                    bytes.extend(part);
                }
                prop_assert!(entry.1 as usize <= bytes.len());
                written.extend(&bytes[..entry.1 as usize]);
            }
            let mut header = vec![0; 10];
            header.extend((used.len() as u16).to_le_bytes());
            prop_assert_eq!(&written[..12], &header[..]);
            prop_assert_eq!(&written[12..], &frame(len, 0)[..]);
        }
        bench.assert_no_leak();
    }
}
