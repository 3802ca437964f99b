//! The split walk against a model of the specification: every table of up to four descriptors, over every kind of link,
//! taken from every head, in one ring whose indices pass their wrap (virtio 1.2, 2.7.5).

mod support;

use spp_drivers::stats::DropReason;
use spp_vhost::FromGuest;
use support::*;

/// Where the indirect table lies, and the buffer it names.
const TABLE: u64 = BUFFERS + 0x8000;
const TABLE_BUFFER: u64 = BUFFERS + 0x9000;

/// Bytes of every buffer: a header's 12, and more.
const LEN: usize = 80;

/// What a descriptor may be.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The last of its chain.
    End,
    /// Goes on there, inside the table or not.
    Next(u16),
    /// Names a table of one descriptor.
    Indirect,
    /// Names a table, and goes on as well: forbidden.
    IndirectNext,
    /// A buffer for the device to write: nothing to be sent.
    Write,
}

fn kinds(size: u16) -> Vec<Kind> {
    let links = (0..=size).map(Kind::Next);
    [Kind::End, Kind::Indirect, Kind::IndirectNext, Kind::Write].into_iter().chain(links).collect()
}

/// The buffer of descriptor `i`, all of it.
fn buffer(i: u16) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend(frame(LEN - 12, 16 * i as u8));
    bytes
}

fn address(i: u16) -> u64 {
    BUFFERS + 0x1000 * u64::from(i)
}

/// What the specification makes of the chain at `head`: its bytes, or None for a chain that is none.
fn expected(kinds: &[Kind], head: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut seen = vec![false; kinds.len()];
    let mut at = head;
    loop {
        let kind = kinds.get(usize::from(at))?;
        if std::mem::replace(&mut seen[usize::from(at)], true) {
            return None;
        }
        match kind {
            Kind::End => {
                bytes.extend(buffer(at));
                return Some(bytes.split_off(12));
            }
            Kind::Next(next) => {
                bytes.extend(buffer(at));
                at = *next;
            }
            Kind::Indirect => {
                bytes.extend(buffer(9));
                return Some(bytes.split_off(12));
            }
            Kind::IndirectNext | Kind::Write => return None,
        }
    }
}

fn write(bench: &Bench<FromGuest>, i: u16, kind: Kind) {
    let (flags, next) = match kind {
        Kind::End => (0, 0),
        Kind::Next(next) => (NEXT, next),
        Kind::Write => (WRITE, 0),
        Kind::Indirect => (INDIRECT, 0),
        Kind::IndirectNext => (INDIRECT | NEXT, 0),
    };
    match kind {
        Kind::Indirect | Kind::IndirectNext => bench.memory.desc(DESC, i, TABLE, 16, flags, next),
        _ => bench.memory.desc(DESC, i, address(i), LEN as u32, flags, next),
    }
}

/// Offers every head of one table, and compares.
fn check(bench: &mut Bench<FromGuest>, table: &[Kind]) -> usize {
    for (i, kind) in table.iter().enumerate() {
        write(bench, i as u16, *kind);
    }
    for head in 0..bench.size {
        let dropped = bench.half.drops(DropReason::BadChain);
        bench.offer(head);
        let frame = expected(table, head);
        assert_eq!(bench.receive(), frame.iter().cloned().collect::<Vec<_>>(), "{table:?} from {head}");
        assert_eq!(bench.take_used(), [(head, 0)], "{table:?} from {head}");
        let n_dropped = bench.half.drops(DropReason::BadChain) - dropped;
        assert_eq!(n_dropped, u64::from(frame.is_none()), "{table:?} from {head}");
    }
    usize::from(bench.size)
}

#[test]
fn every_small_table_is_walked_from_every_head_as_the_specification_says() {
    let mut n_cases = 0;
    for size in [1, 2, 4] {
        let mut bench: Bench<FromGuest> = Bench::new(size, 65_530, features(false, false));
        for i in 0..size {
            bench.memory.write(address(i), &buffer(i));
        }
        bench.memory.write(TABLE_BUFFER, &buffer(9));
        bench.memory.desc(TABLE, 0, TABLE_BUFFER, LEN as u32, 0, 0);
        let kinds = kinds(size);
        let n_tables = kinds.len().pow(u32::from(size));
        for n in 0..n_tables {
            let digit = |i: u32| kinds[n / kinds.len().pow(i) % kinds.len()];
            let table: Vec<Kind> = (0..u32::from(size)).map(digit).collect();
            n_cases += check(&mut bench, &table);
        }
        assert_eq!(bench.fault(), None);
        bench.assert_no_leak();
    }
    // 6 tables of 1, 7² of 2 and 9⁴ of 4 descriptors.
    assert_eq!(n_cases, 6 + 2 * 49 + 4 * 6_561);
}

#[test]
fn available_index_is_believed_up_to_the_size_of_the_ring_ahead_and_no_further() {
    let distances = (0..=6).chain(0x7ffe..=0x8001).chain(u16::MAX - 6..=u16::MAX);
    for (size, ahead) in [1u16, 2, 4].into_iter().flat_map(|size| distances.clone().map(move |n| (size, n))) {
        let start = 65_533;
        let mut bench: Bench<FromGuest> = Bench::new(size, start, features(false, false));
        bench.avail = start.wrapping_add(ahead);
        bench.publish();
        bench.receive();
        assert_eq!(bench.fault().is_none(), ahead <= size, "{ahead} ahead in a ring of {size}");
        let n_used = if ahead <= size { usize::from(ahead) } else { 0 };
        assert_eq!(bench.take_used().len(), n_used, "{ahead} ahead in a ring of {size}");
        bench.assert_no_leak();
    }
}
