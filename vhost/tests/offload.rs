//! What a guest's header asks for and what a guest is told, with rings made by hand: requests are judged by the frame they
//! came with, and frames with work reach only guests that negotiated it.

#[path = "support/echo.rs"]
mod echo_port;
mod support;

use echo_port::{DEADLINE, Echo, attach, socket};
use spp_drivers::Burst;
use spp_drivers::dma::Tally;
use spp_drivers::offload::{F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, Offload, Offloads};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::DropReason;
use spp_drivers::virtio::desc::NetHdr;
use spp_vhost::guest::TxLayout;
use spp_vhost::vring::RingFeatures;
use spp_vhost::{FromGuest, PortState, Role, ToGuest};
use support::*;

const START: u16 = 65_530;

/// What every test asks for unless it says otherwise: a TCP frame over IPv4, cut to 1400 bytes of payload.
const LONG: NetHdr = NetHdr {
    flags: F_NEEDS_CSUM,
    gso_type: GSO_TCPV4,
    hdr_len: 54,
    gso_size: 1400,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

fn work(header: NetHdr) -> Offload {
    let NetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, .. } = header;
    Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset }
}

/// Headers of TCP over IPv4, and payload.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a, 0x08, 0x00, 0x45];
    frame.resize(54, 0);
    (frame[23], frame[46]) = (6, 0x50);
    frame.extend((0..payload).map(|i| i as u8));
    frame
}

fn with(from_guest: Offloads, to_guest: Offloads, mergeable: bool) -> RingFeatures {
    RingFeatures { from_guest, to_guest, ..features(mergeable, false) }
}

fn from_guest(negotiated: Offloads) -> Bench<FromGuest> {
    Bench::new(256, START, with(negotiated, Offloads::NONE, false))
}

fn to_guest(negotiated: Offloads, mergeable: bool) -> Bench<ToGuest> {
    Bench::new(256, START, with(Offloads::NONE, negotiated, mergeable))
}

/// Puts header and frame into descriptors of the given lengths, the last of which takes the rest, and offers them.
fn offer(bench: &mut Bench<FromGuest>, header: NetHdr, frame: &[u8], lens: &[usize]) {
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(frame);
    bench.memory.write(BUFFERS, &bytes);
    let mut at = 0;
    for (index, len) in lens.iter().copied().chain([usize::MAX]).enumerate() {
        let len = len.min(bytes.len() - at);
        let last = at + len == bytes.len();
        let flags = if last { 0 } else { NEXT };
        bench.memory.desc(DESC, index as u16, BUFFERS + at as u64, len as u32, flags, index as u16 + 1);
        at += len;
        if last {
            break;
        }
    }
    bench.offer(0);
}

/// One burst: each frame's bytes and work.
fn receive(bench: &mut Bench<FromGuest>) -> Vec<(Vec<u8>, Option<Offload>)> {
    let mut burst = Burst::new();
    bench.half.rx_burst(&mut bench.cache, &mut burst);
    let frames = burst.iter().map(|packet| (bytes(packet), packet.offload())).collect();
    burst.free_all(&mut bench.cache);
    frames
}

#[test]
fn long_frame_is_taken_with_its_request_however_the_chain_is_cut() {
    let frame = tcp(60_000);
    for lens in [&[][..], &[12], &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], &[5, 3, 40, 1000], &[9], &[66, 4096]]
    {
        let mut bench = from_guest(Offloads::ALL);
        offer(&mut bench, NetHdr { hdr_len: 0xffff, ..LONG }, &frame, lens);
        assert_eq!(receive(&mut bench), [(frame.clone(), Some(work(LONG)))], "{lens:?}");
        assert_eq!(bench.take_used(), [(0, 0)]);
        bench.assert_alive();
        bench.assert_no_leak();
    }
}

#[test]
fn checksum_request_of_a_frame_in_one_piece_is_kept_and_flags_of_devices_are_not() {
    let mut bench = from_guest(Offloads::CSUM);
    let header = NetHdr { flags: 0xff, gso_type: 0, hdr_len: 7, gso_size: 9, ..LONG };
    offer(&mut bench, header, &tcp(100), &[]);
    let asked = Offload { flags: F_NEEDS_CSUM, hdr_len: 0, gso_size: 0, ..work(header) };
    assert_eq!(receive(&mut bench), [(tcp(100), Some(asked))]);
    bench.assert_no_leak();
}

#[test]
fn header_without_work_leaves_the_frame_plain_whatever_else_it_says() {
    let mut bench = from_guest(Offloads::ALL);
    let noise = NetHdr {
        flags: 0xfe,
        gso_type: 0,
        hdr_len: 1,
        gso_size: 2,
        csum_start: 3,
        csum_offset: 4,
        num_buffers: 5,
    };
    offer(&mut bench, noise, &tcp(100), &[]);
    assert_eq!(receive(&mut bench), [(tcp(100), None)]);
    bench.assert_no_leak();
}

#[test]
fn g14_g15_request_that_its_frame_does_not_bear_out_drops_the_chain_by_name() {
    let csum = NetHdr { gso_type: 0, ..LONG };
    let cases = [
        ("start in L2", NetHdr { csum_start: 13, ..csum }, 100),
        ("start past the end", NetHdr { csum_start: 155, ..csum }, 100),
        ("field past the end", NetHdr { csum_start: 34, csum_offset: 119, ..csum }, 100),
        ("sum of both overflows", NetHdr { csum_start: 0xfff0, csum_offset: 0xfff0, ..csum }, 100),
        ("long without checksum", NetHdr { flags: 0, ..LONG }, 9000),
        ("size 0", NetHdr { gso_size: 0, ..LONG }, 9000),
        ("size 1", NetHdr { gso_size: 1, ..LONG }, 9000),
        ("IPv6 of IPv4", NetHdr { gso_type: GSO_TCPV6, ..LONG }, 9000),
        ("UDP", NetHdr { gso_type: 3, ..LONG }, 9000),
        ("start elsewhere", NetHdr { csum_start: 54, ..LONG }, 9000),
        ("headers only", LONG, 0),
        ("unknown type", NetHdr { gso_type: 0x7f, ..LONG }, 9000),
    ];
    for (what, header, payload) in cases {
        for lens in [&[][..], &[12], &[3, 20]] {
            let mut bench = from_guest(Offloads::ALL);
            offer(&mut bench, header, &tcp(payload), lens);
            assert_eq!(receive(&mut bench), [], "{what}");
            assert_eq!(bench.take_used(), [(0, 0)], "{what}: the chain goes back");
            assert_eq!(bench.half.drops(DropReason::BadOffload), 1, "{what}");
            assert_eq!(bench.fault(), None, "{what}");
            bench.assert_alive();
            bench.assert_no_leak();
        }
    }
}

#[test]
fn work_that_was_not_negotiated_drops_the_chain_by_name() {
    let ecn = NetHdr { gso_type: GSO_TCPV4 | GSO_ECN, ..LONG };
    let tso4 = Offloads::CSUM.with(Offloads::TSO4);
    for (header, negotiated) in
        [(LONG, Offloads::CSUM), (LONG, Offloads::CSUM.with(Offloads::TSO6)), (ecn, tso4)]
    {
        let mut bench = from_guest(negotiated);
        offer(&mut bench, header, &tcp(3000), &[]);
        assert_eq!(receive(&mut bench), []);
        assert_eq!(bench.half.drops(DropReason::BadOffload), 1, "{header:?} {negotiated:?}");
        bench.assert_alive();
        bench.assert_no_leak();
    }
}

#[test]
fn header_of_a_guest_that_negotiated_no_work_means_nothing() {
    let mut bench = from_guest(Offloads::NONE);
    offer(&mut bench, LONG, &tcp(3000), &[]);
    assert_eq!(receive(&mut bench), [(tcp(3000), None)]);
    bench.assert_no_leak();
}

/// A frame with work in pool buffers.
fn packet_with(bench: &mut Bench<ToGuest>, frame: &[u8], header: NetHdr) -> spp_drivers::dma::PacketBuf {
    let mut parts = frame.chunks(2048);
    let mut packet = bench.cache.alloc().unwrap();
    packet.append(parts.next().unwrap()).unwrap();
    for part in parts {
        let mut next = bench.cache.alloc().unwrap();
        next.append(part).unwrap();
        packet.last_segment_mut().chain(next);
    }
    packet.set_offload(Some(work(header)));
    packet
}

/// Posts receive buffers of `len` bytes each; descriptor i is buffer i.
fn post(bench: &mut Bench<ToGuest>, n: u16, len: u32) {
    for i in 0..n {
        bench.memory.desc(DESC, i, BUFFERS + u64::from(i) * u64::from(len), len, WRITE, 0);
        bench.put_head(i);
    }
    bench.publish();
}

#[test]
fn guest_that_takes_long_frames_gets_header_and_payload_as_they_were_sent() {
    let frame = tcp(60_000);
    // In one buffer, and merged from many.
    for (n, len, mergeable) in [(1, 65_000, false), (60, 1536, true)] {
        let mut bench = to_guest(Offloads::ALL, mergeable);
        post(&mut bench, n, len);
        let mut burst = Burst::new();
        burst.push(packet_with(&mut bench, &frame, LONG)).unwrap();
        assert_eq!(bench.half.tx_burst(&mut bench.cache, &mut burst), 1);
        let used = bench.take_used();
        let n_used = used.len() as u16;
        let header = NetHdr { num_buffers: n_used, ..LONG };
        let read = bench.memory.read(BUFFERS, 12 + frame.len());
        assert_eq!(NetHdr::parse(&read), Some(header));
        assert_eq!(read[12..], frame);
        assert_eq!(used.iter().map(|used| used.1 as usize).sum::<usize>(), 12 + frame.len());
        assert_eq!(n_used, if mergeable { 40 } else { 1 });
        bench.assert_no_leak();
    }
}

#[test]
fn short_frame_with_an_open_checksum_is_announced_as_such() {
    let mut bench = to_guest(Offloads::CSUM, false);
    post(&mut bench, 2, 2048);
    let mut burst = Burst::new();
    let header = NetHdr { gso_type: 0, hdr_len: 0, gso_size: 0, ..LONG };
    burst.push(packet_with(&mut bench, &tcp(100), header)).unwrap();
    burst.push(packet(&mut bench.cache, 60, 1)).unwrap();
    assert_eq!(bench.half.tx_burst(&mut bench.cache, &mut burst), 2);
    let told = |at: u64| NetHdr::parse(&bench.memory.read(at, 12)).unwrap();
    assert_eq!(told(BUFFERS), NetHdr { num_buffers: 1, ..header });
    assert_eq!(told(BUFFERS + 2048), NetHdr { num_buffers: 1, ..NetHdr::default() });
    bench.assert_no_leak();
}

#[test]
fn frame_with_work_the_guest_did_not_negotiate_stays_with_the_sender() {
    for (negotiated, header) in [
        (Offloads::NONE, NetHdr { gso_type: 0, ..LONG }),
        (Offloads::CSUM, LONG),
        (Offloads::CSUM.with(Offloads::TSO6), LONG),
        (Offloads::CSUM.with(Offloads::TSO4), NetHdr { gso_type: GSO_TCPV4 | GSO_ECN, ..LONG }),
    ] {
        for payload in [100, 9000] {
            let mut bench = to_guest(negotiated, true);
            assert_eq!(bench.half.offloads(), negotiated);
            post(&mut bench, 32, 2048);
            let mut burst = Burst::new();
            burst.push(packet(&mut bench.cache, 60, 1)).unwrap();
            burst.push(packet_with(&mut bench, &tcp(payload), header)).unwrap();
            burst.push(packet(&mut bench.cache, 60, 2)).unwrap();
            assert_eq!(bench.half.tx_burst(&mut bench.cache, &mut burst), 1);
            assert_eq!((burst.len(), burst[0].offload()), (2, Some(work(header))));
            assert_eq!(bench.take_used(), [(0, 72)]);
            burst.free_all(&mut bench.cache);
            bench.assert_no_leak();
        }
    }
}

#[test]
fn long_frame_for_a_guest_with_short_buffers_that_does_not_merge_is_dropped_by_name() {
    let mut bench = to_guest(Offloads::ALL, false);
    post(&mut bench, 32, 1536);
    let mut burst = Burst::new();
    burst.push(packet_with(&mut bench, &tcp(3000), LONG)).unwrap();
    assert_eq!(bench.half.tx_burst(&mut bench.cache, &mut burst), 1);
    assert_eq!(bench.half.drops(DropReason::Oversize), 1);
    assert!(bench.take_used().is_empty(), "its buffers are still there for others");
    bench.assert_no_leak();
}

#[test]
fn half_without_a_ring_asks_for_no_work_to_be_done() {
    let mut bench = to_guest(Offloads::NONE, false);
    bench.command(spp_vhost::handover::Command::Stop);
    assert_eq!(bench.half.offloads(), Offloads::ALL);
    let mut burst = Burst::new();
    burst.push(packet_with(&mut bench, &tcp(3000), LONG)).unwrap();
    assert_eq!(bench.half.tx_burst(&mut bench.cache, &mut burst), 1);
    assert_eq!(bench.half.drops(DropReason::NotRunning), 1);
    bench.assert_no_leak();
}

#[test]
fn long_frame_of_a_guest_comes_back_through_a_whole_port_as_it_was_sent() {
    for (packed, tx_layout) in
        [(false, TxLayout::OneDescriptor), (false, TxLayout::Indirect), (true, TxLayout::HeaderApart)]
    {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, |config| {
            (config.offloads, config.packed, config.tx_layout) = (true, packed, tx_layout);
        });
        let status = port.wait_for(PortState::Running);
        for name in ["csum", "host_tso4", "host_tso6", "host_ecn", "guest_csum", "guest_tso4", "guest_tso6"] {
            assert!(status.features.contains(&name), "{name}: {status:#?}");
        }
        let (frame, mut got) = (tcp(60_000), Vec::new());
        assert!(guest.send_with(NetHdr { hdr_len: 0, ..LONG }, &frame));
        assert!(guest.send_with(NetHdr { gso_size: 0, ..LONG }, &frame), "a lie, which is dropped");
        assert!(guest.send(&frame[..60]));
        let end = std::time::Instant::now() + DEADLINE;
        while !guest.receive(&mut got) {
            assert!(std::time::Instant::now() < end, "{:#?}", port.port.status());
        }
        assert_eq!(guest.received_header(), NetHdr { num_buffers: 30, ..LONG });
        assert_eq!(got, frame);
        while !guest.receive(&mut got) {
            assert!(std::time::Instant::now() < end, "{:#?}", port.port.status());
        }
        assert_eq!(guest.received_header(), NetHdr { num_buffers: 1, ..NetHdr::default() });
        assert_eq!(got, frame[..60]);
        drop(guest);
        assert_eq!(port.close().from_guest.drops["bad_offload"], 1);
    }
}

#[test]
fn frames_longer_than_the_mtu_are_dropped_by_name_both_ways_and_long_frames_pass() {
    const MAX: usize = 1518;
    let limited = |from, to| RingFeatures { max_frame_bytes: MAX, ..with(from, to, true) };
    for offloads in [Offloads::NONE, Offloads::ALL] {
        let mut bench: Bench<FromGuest> = Bench::new(256, START, limited(offloads, Offloads::NONE));
        let plain = NetHdr { flags: 0, gso_type: 0, gso_size: 0, ..LONG };
        for (payload, lens) in
            [(MAX - 54, &[][..]), (MAX - 54, &[12, 700]), (MAX - 53, &[]), (MAX - 53, &[12]), (6000, &[])]
        {
            offer(&mut bench, plain, &tcp(payload), lens);
            let passes = payload == MAX - 54;
            let expected = if passes { vec![(tcp(payload), None)] } else { vec![] };
            assert_eq!(receive(&mut bench), expected, "{payload} {lens:?}");
            assert_eq!(bench.take_used(), [(0, 0)]);
        }
        assert_eq!(bench.half.drops(DropReason::Oversize), 3);
        if offloads == Offloads::ALL {
            offer(&mut bench, LONG, &tcp(9000), &[]);
            assert_eq!(receive(&mut bench), [(tcp(9000), Some(work(LONG)))], "it will be cut");
        }
        bench.assert_alive();
        bench.assert_no_leak();

        let mut bench: Bench<ToGuest> = Bench::new(256, START, limited(Offloads::NONE, offloads));
        (0..64).for_each(|index| {
            bench.memory.desc(DESC, index, BUFFERS + 0x1000 * u64::from(index), 4096, WRITE, 0);
            bench.put_head(index);
        });
        bench.publish();
        assert_eq!(bench.send(&[60, MAX, MAX + 1, 6000, MAX + 1, 64]), (6, 0), "none holds up the others");
        let lens: Vec<_> = bench.take_used().iter().map(|used| used.1).collect();
        assert_eq!(lens, [72, MAX as u32 + 12, 76]);
        assert_eq!(bench.half.drops(DropReason::Oversize), 3);
        bench.assert_no_leak();
    }
}

#[test]
fn frames_that_a_nic_has_checked_are_told_of_at_every_length_and_only_to_who_takes_unchecked_ones() {
    // 20, 64 and 128 bytes, and lengths that take a call to copy; the ring's end lies among them.
    const LENS: [usize; 6] = [20, 32, 64, 128, 129, 1500];
    for (negotiated, told) in [(Offloads::CSUM, F_DATA_VALID), (Offloads::NONE, 0)] {
        let mut bench = to_guest(negotiated, false);
        let mut burst = Burst::new();
        for (i, len) in LENS.into_iter().enumerate() {
            let i = i as u16;
            bench.memory.desc(DESC, i, BUFFERS + 0x800 * u64::from(i), 0x800, WRITE, 0);
            bench.put_head(i);
            let mut packet = packet(&mut bench.cache, len, i as u8);
            packet.set_verified(i.is_multiple_of(2));
            assert!(burst.push(packet).is_ok());
        }
        bench.publish();
        assert_eq!(bench.half.tx_burst(&mut bench.cache, &mut burst), LENS.len());
        for (i, len) in LENS.into_iter().enumerate() {
            let at = BUFFERS + 0x800 * i as u64;
            let flags = if i % 2 == 0 { told } else { 0 };
            assert_eq!(bench.memory.read(at, 12), [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "{len} bytes");
            assert_eq!(bench.memory.read(at + 12, len), frame(len, i as u8), "{len} bytes");
        }
        let used: Vec<_> = LENS.iter().zip(0u16..).map(|(len, i)| (i, 12 + *len as u32)).collect();
        assert_eq!(bench.take_used(), used);
        bench.assert_no_leak();
    }
}

#[test]
fn what_is_said_of_a_burst_is_what_its_packets_say() {
    let plain = NetHdr::default();
    let kinds: [(NetHdr, usize, &[usize]); 4] =
        [(plain, 100, &[]), (plain, 100, &[12]), (plain, 3000, &[]), (LONG, 3000, &[])];
    for negotiated in [Offloads::NONE, Offloads::ALL] {
        for (header, payload, lens) in kinds {
            let mut bench = from_guest(negotiated);
            let mut burst = Burst::new();
            assert!(burst.push(packet(&mut bench.cache, 60, 1)).is_ok(), "one was there before");
            offer(&mut bench, header, &tcp(payload), lens);
            let tally = bench.half.rx_tallied(&mut bench.cache, &mut burst);
            assert_eq!(tally, Tally::of(&burst[1..]), "{header:?} {payload} {lens:?}");
            burst.free_all(&mut bench.cache);
            bench.assert_no_leak();
        }
    }
}

#[test]
fn header_of_a_legacy_driver_is_two_bytes_shorter_both_ways() {
    const LEGACY: usize = 10;
    for len in [60, 128, 1500] {
        let legacy = RingFeatures { header_bytes: LEGACY, ..features(false, false) };
        let mut to: Bench<ToGuest> = Bench::new(256, START, legacy);
        to.memory.desc(DESC, 0, BUFFERS, 0x800, WRITE, 0);
        to.offer(0);
        assert_eq!(to.send(&[len]), (1, 0));
        assert_eq!(to.memory.read(BUFFERS, LEGACY), [0; LEGACY]);
        assert_eq!(to.memory.read(BUFFERS + LEGACY as u64, len), frame(len, 0));
        assert_eq!(to.take_used(), [(0, (LEGACY + len) as u32)]);
        to.assert_no_leak();

        let mut from: Bench<FromGuest> = Bench::new(256, START, legacy);
        from.memory.write(BUFFERS + LEGACY as u64, &frame(len, 7));
        from.memory.desc(DESC, 0, BUFFERS, (LEGACY + len) as u32, 0, 0);
        from.offer(0);
        assert_eq!(receive(&mut from), [(frame(len, 7), None)]);
        from.assert_no_leak();
    }
}
