//! Frames with checksum or segmentation work on their way through components: left alone where the receiver does the
//! work, done in software where it doesn't. etherparse says whether what came out is right.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use spp_drivers::Burst;
use spp_drivers::dma::{Pool, PoolCache};
use spp_drivers::offload::{F_NEEDS_CSUM, GSO_TCPV4, Offload, Offloads};
use spp_drivers::port::TxQueue;
use spp_drivers::ring_port::RingTx;
use spp_drivers::stats::SharedStats;
use spp_pipeline::engine::{Activity, Engine};
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use support::*;

const A: &str = "02:00:00:00:00:0a";
const B: &str = "02:00:00:00:00:0b";
const TCP: Offload = Offload {
    flags: F_NEEDS_CSUM,
    gso_type: GSO_TCPV4,
    hdr_len: 54,
    gso_size: 1448,
    csum_start: 34,
    csum_offset: 16,
};
const UDP: Offload =
    Offload { flags: F_NEEDS_CSUM, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 34, csum_offset: 6 };

/// An output whose receiver does some of the work, and that takes `room` frames before it is full.
struct Picky {
    inner: RingTx,
    takes: Offloads,
    room: Arc<AtomicUsize>,
}

impl TxQueue for Picky {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let n = from.len().min(self.room.load(Ordering::Relaxed));
        assert!(from.iter().take(n).all(|p| p.offload().is_none_or(|w| self.takes.contains(w.needs()))));
        let mut taken = Burst::new();
        from.take_front(n).for_each(|packet| taken.push(packet).unwrap());
        assert_eq!(self.inner.tx_burst(pool, &mut taken), n, "the test's ring is long enough");
        self.room.fetch_sub(n, Ordering::Relaxed);
        n
    }

    fn offloads(&mut self) -> Offloads {
        self.takes
    }

    fn stats(&self) -> SharedStats {
        self.inner.stats()
    }
}

/// IPv4 from 10.0.0.1 to 10.0.0.2, with the transport's open checksum: the sum of its pseudo-header.
fn ipv4(dst: &str, protocol: u8, transport: &[u8], check_at: usize) -> Vec<u8> {
    let mut bytes = mac(dst).0.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 0xee, 0x08, 0x00, 0x45, 0]);
    bytes.extend(((20 + transport.len()) as u16).to_be_bytes());
    bytes.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let header = etherparse::Ipv4Header::from_slice(&bytes[14..34]).unwrap().0;
    bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    bytes.extend(transport);
    let mut sum = 0x0a00 + 1 + 0x0a00 + 2 + u32::from(protocol) + transport.len() as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    bytes[34 + check_at..36 + check_at].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

fn tcp(dst: &str, payload: usize) -> Vec<u8> {
    let mut transport =
        vec![0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4, 0x50, 0x18, 0x40, 0, 0, 0, 0, 0];
    transport.extend((0..payload).map(|i| (i % 253) as u8));
    ipv4(dst, 6, &transport, 16)
}

fn udp(dst: &str, payload: &[u8]) -> Vec<u8> {
    let mut transport = vec![0x12, 0x34, 0x12, 0x35];
    transport.extend(((8 + payload.len()) as u16).to_be_bytes());
    transport.extend([0, 0]);
    transport.extend(payload);
    ipv4(dst, 17, &transport, 6)
}

/// VLAN id and TCP or UDP payload of a frame, all of whose lengths and checksums are right.
fn checked(frame: &[u8]) -> (Option<u16>, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4: {sliced:?}") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let payload = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let expected = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
            assert_eq!(tcp.checksum(), expected);
            tcp.payload().to_vec()
        }
        TransportSlice::Udp(udp) => {
            let expected =
                udp.to_header().calc_checksum_ipv4_raw(header.source, header.destination, udp.payload());
            assert_eq!(udp.checksum(), expected.unwrap());
            udp.payload().to_vec()
        }
        other => panic!("{other:?}"),
    };
    let vid = sliced.vlan_ids().first().map(|vid| vid.value());
    (vid, payload)
}

/// One component between a ring and a picky output.
struct Bench {
    pool: Pool,
    cache: PoolCache,
    engine: Engine,
    source: Source,
    sinks: Vec<Sink>,
    rooms: Vec<Arc<AtomicUsize>>,
    stats: Arc<ComponentStats>,
}

impl Bench {
    fn new(work: Work, takes: &[Offloads]) -> Bench {
        let pool = pool(1024);
        let (source, queue) = source(256);
        let mut change = Change { rx_in: vec![(RxSlot(0), queue)], ..Change::default() };
        let (mut sinks, mut rooms) = (Vec::new(), Vec::new());
        for (slot, &takes) in takes.iter().enumerate() {
            let (tx, rx) = spp_drivers::ring_port::packet_ring(2048);
            let room = Arc::new(AtomicUsize::new(usize::MAX));
            change
                .tx_in
                .push((TxSlot(slot as u16), Box::new(Picky { inner: tx, takes, room: room.clone() })));
            sinks.push(Sink(rx));
            rooms.push(room);
        }
        let component = component("c", work);
        let stats = component.stats.clone();
        change.plan = plan(1, vec![component]);
        let mut engine = Engine::new(&pool);
        engine.change(change);
        Bench { cache: pool.cache(), pool, engine, source, sinks, rooms, stats }
    }

    fn forward(takes: Offloads, vlan: VlanOp, full: WhenFull) -> Bench {
        Bench::new(Work::Forward { rx: rx_edge(0, vlan), tx: tx_edge(0, VlanOp::None, full) }, &[takes])
    }

    fn send(&mut self, frame: &[u8], work: Option<Offload>) {
        let mut packet = packet(&mut self.cache, frame);
        packet.set_offload(work);
        let mut burst = Burst::new();
        burst.push(packet).unwrap();
        assert_eq!(self.source.0.tx_burst(&mut self.cache, &mut burst), 1);
    }

    fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.engine.turn();
        }
    }

    fn out(&mut self, sink: usize) -> Vec<(Vec<u8>, Option<Offload>)> {
        let mut all = Vec::new();
        loop {
            let mut burst = Burst::new();
            let rx: &mut dyn spp_drivers::port::RxQueue = &mut self.sinks[sink].0;
            if rx.rx_burst(&mut self.cache, &mut burst) == 0 {
                return all;
            }
            all.extend(burst.iter().map(|packet| (bytes(packet), packet.offload())));
            burst.free_all(&mut self.cache);
        }
    }

    /// What came out, each frame checked and without work: VLAN and payload.
    fn checked(&mut self, sink: usize) -> Vec<(Option<u16>, Vec<u8>)> {
        let out = self.out(sink).into_iter();
        out.map(|(frame, work)| {
            assert_eq!(work, None);
            checked(&frame)
        })
        .collect()
    }

    /// In + made = out + drops + held, and no buffer is lost.
    fn close(self) {
        let s = self.stats.snapshot();
        assert_eq!(s.rx_packets + s.copies, s.tx_packets + s.total_drops() + s.held, "{s:?}");
        drop((self.engine, self.source, self.sinks, self.cache));
        assert_eq!(self.pool.counts().out, 0);
    }
}

fn pieces(payload: &[u8], size: usize, vid: Option<u16>) -> Vec<(Option<u16>, Vec<u8>)> {
    payload.chunks(size).map(|piece| (vid, piece.to_vec())).collect()
}

#[test]
fn receiver_that_does_the_work_gets_frame_and_request_untouched() {
    let mut bench = Bench::forward(Offloads::ALL, VlanOp::None, WAIT);
    let (long, short) = (tcp(A, 60_000), udp(A, b"short"));
    bench.send(&long, Some(TCP));
    bench.send(&short, Some(UDP));
    bench.turns(2);
    assert_eq!(bench.out(0), [(long, Some(TCP)), (short, Some(UDP))]);
    assert_eq!((bench.stats.segmented.get(), bench.stats.checksummed.get()), (0, 0));
    bench.close();
}

#[test]
fn receiver_without_offloads_gets_right_segments_and_checksums_in_order() {
    for takes in [Offloads::NONE, Offloads::CSUM, Offloads::CSUM.with(Offloads::TSO6)] {
        let mut bench = Bench::forward(takes, VlanOp::None, WAIT);
        let (long, short) = (tcp(A, 60_000), udp(A, b"short"));
        let payload = long[54..].to_vec();
        bench.send(&short, None);
        bench.send(&long, Some(TCP));
        bench.send(&short, Some(UDP));
        bench.turns(4);
        let out = bench.out(0);
        assert_eq!(out.len(), 2 + 60_000usize.div_ceil(1448));
        let cut: Vec<_> = out[1..out.len() - 1].iter().map(|(frame, _)| checked(frame)).collect();
        assert_eq!(cut, pieces(&payload, 1448, None));
        assert_eq!(out[0], (short.clone(), None), "a frame without work is not looked at");
        let done = if takes == Offloads::NONE { 1 } else { 0 };
        assert_eq!(out.last().unwrap().1.is_none(), done == 1, "{takes:?}");
        assert_eq!((bench.stats.segmented.get(), bench.stats.checksummed.get()), (1, done), "{takes:?}");
        bench.close();
    }
}

#[test]
fn udp_sum_of_zero_is_written_as_all_ones() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::None, WAIT);
    // The payload that makes the sum come out as zero is found by trying.
    for word in 0..=u16::MAX {
        let frame = udp(A, &word.to_be_bytes());
        let sum: u32 = frame[34..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        if (sum & 0xffff) + (sum >> 16) == 0xffff {
            bench.send(&frame, Some(UDP));
            bench.turns(1);
            let out = bench.out(0);
            assert_eq!(out[0].0[40..42], [0xff, 0xff]);
            checked(&out[0].0);
            return bench.close();
        }
    }
    panic!("there is always one");
}

#[test]
fn tag_put_on_or_taken_off_on_the_way_is_in_every_segment() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::Add { vid: 100, pcp: 0 }, WAIT);
    let (long, short) = (tcp(A, 5000), udp(A, b"short"));
    bench.send(&long, Some(TCP));
    bench.send(&short, Some(UDP));
    bench.turns(2);
    let mut expected = pieces(&long[54..], 1448, Some(100));
    expected.push((Some(100), b"short".to_vec()));
    assert_eq!(bench.checked(0), expected);
    bench.close();

    let mut bench = Bench::forward(Offloads::NONE, VlanOp::Del, WAIT);
    let mut tagged = long.clone();
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    bench.send(&tagged, Some(Offload { csum_start: 38, hdr_len: 58, ..TCP }));
    bench.turns(2);
    assert_eq!(bench.checked(0), pieces(&long[54..], 1448, None));
    bench.close();
}

#[test]
fn queue_that_takes_a_few_frames_at_a_time_gets_each_segment_once_in_order() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::None, WAIT);
    let frames: Vec<_> = (0..3).map(|i| tcp(A, 20_000 + i)).collect();
    frames.iter().for_each(|frame| bench.send(frame, Some(TCP)));
    bench.send(&udp(A, b"last"), Some(UDP));
    bench.rooms[0].store(0, Ordering::Relaxed);
    let mut out = Vec::new();
    for room in (0..6).cycle().take(200) {
        bench.rooms[0].store(room, Ordering::Relaxed);
        bench.turns(1);
        out.extend(bench.checked(0));
    }
    let mut expected: Vec<_> = frames.iter().flat_map(|frame| pieces(&frame[54..], 1448, None)).collect();
    expected.push((None, b"last".to_vec()));
    assert_eq!(out, expected);
    assert_eq!(bench.stats.segmented.get(), 3);
    bench.close();
}

#[test]
fn turn_makes_a_bounded_number_of_segments_and_the_next_goes_on() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::None, DROP);
    let frame = tcp(A, 60_000);
    bench.send(&frame, Some(Offload { gso_size: 48, ..TCP }));
    let mut n_turns = 0;
    let mut out = Vec::new();
    while out.len() < 1250 {
        assert_eq!(bench.engine.turn(), Activity::Useful, "turn {n_turns}");
        let some = bench.checked(0);
        assert!(some.len() <= 65, "{} in one turn", some.len());
        out.extend(some);
        n_turns += 1;
    }
    assert_eq!(out, pieces(&frame[54..], 48, None));
    assert!(n_turns >= 19, "{n_turns}");
    assert_eq!(bench.stats.snapshot().total_drops(), 0, "a pause is no refusal, even where nothing may wait");
    bench.close();
}

#[test]
fn full_output_drops_the_rest_of_a_long_frame_after_its_time() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::None, wait_for(std::time::Duration::ZERO));
    bench.send(&tcp(A, 20_000), Some(TCP));
    bench.rooms[0].store(5, Ordering::Relaxed);
    bench.turns(1);
    assert_eq!(bench.stats.held(), 1, "the rest of the frame");
    std::thread::sleep(std::time::Duration::from_millis(1));
    bench.turns(2);
    assert_eq!(bench.checked(0).len(), 5);
    assert_eq!(bench.stats.snapshot().drops["guest_ring_full"], 1);
    bench.close();
}

#[test]
fn copies_to_several_outputs_are_each_worked_on_as_their_receiver_needs() {
    let edges = vec![tx_edge(0, VlanOp::None, DROP), tx_edge(1, VlanOp::None, DROP)];
    let work = Work::Classify {
        rx: vec![rx_edge(0, VlanOp::None)],
        tx: edges,
        table: table(&[(None, A, 0), (None, B, 1)]),
    };
    let mut bench = Bench::new(work, &[Offloads::ALL, Offloads::NONE]);
    let frame = udp("ff:ff:ff:ff:ff:ff", b"to all");
    bench.send(&frame, Some(UDP));
    bench.turns(1);
    assert_eq!(bench.out(0), [(frame, Some(UDP))]);
    assert_eq!(bench.checked(1), [(None, b"to all".to_vec())]);
    bench.close();
}

#[test]
fn dry_pool_drops_the_long_frame_by_name_and_keeps_nothing() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::None, WAIT);
    bench.send(&tcp(A, 20_000), Some(TCP));
    bench.send(&udp(A, b"after it"), Some(UDP));
    let hoard: Vec<_> = std::iter::from_fn(|| bench.cache.alloc()).collect();
    // The engine's own cache is empty at first, and the depot is dry.
    bench.turns(2);
    assert_eq!(bench.stats.snapshot().drops["no_buffer"], 1);
    drop(hoard);
    assert_eq!(bench.checked(0), [(None, b"after it".to_vec())]);
    bench.close();
}

#[test]
fn request_its_frame_does_not_fit_any_more_is_dropped_by_name() {
    let mut bench = Bench::forward(Offloads::NONE, VlanOp::None, WAIT);
    bench.send(&udp(A, b"no TCP at all"), Some(TCP));
    bench.send(&udp(A, b"short"), Some(Offload { csum_start: 4000, ..UDP }));
    bench.send(&udp(A, b"short"), Some(UDP));
    bench.turns(2);
    assert_eq!(bench.stats.snapshot().drops["bad_offload"], 2);
    assert_eq!(bench.checked(0), [(None, b"short".to_vec())]);
    bench.close();
}
