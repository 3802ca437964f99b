//! Checksums and long frames: what the device leaves undone on the way in, and does on the way out.

use super::*;
use crate::dma::Offload;
use crate::offload::testing::{Shape, long_request, tcp_frame};
use crate::offload::{F_DATA_VALID, F_NEEDS_CSUM, GSO_TCPV4, Offloads};

const SENDS: u64 = feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN;
const TAKES: u64 = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;

fn header(work: Offload) -> NetHdr {
    let Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = work;
    NetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers: 0 }
}

fn checksum_work() -> Offload {
    Offload { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Offload::default() }
}

impl Bench {
    /// One frame behind a header: (bytes, work, whether it is verified).
    fn receive_behind(&mut self, header: NetHdr, bytes: &[u8]) -> Option<(Vec<u8>, Option<Offload>, bool)> {
        self.model(|model| model.precede(header));
        self.sim.inject(bytes);
        self.sim.step();
        let mut burst = Burst::new();
        self.queues.rx[0].rx_burst(&mut self.cache, &mut burst);
        let packet = burst.take_all().next()?;
        let got = (packet.segments().collect::<Vec<_>>().concat(), packet.offload(), packet.is_verified());
        drop(packet);
        Some(got)
    }

    fn send_with(&mut self, bytes: &[u8], work: Offload) -> usize {
        let mut packet = self.packet(bytes);
        packet.set_offload(Some(work));
        let mut burst = Burst::new();
        burst.push(packet).unwrap();
        let n = self.queues.tx[0].tx_burst(&mut self.cache, &mut burst);
        burst.free_all(&mut self.cache);
        self.sim.step();
        n
    }
}

#[test]
fn checksum_left_undone_comes_as_work_and_one_checked_as_verified() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered | TAKES);
        let bytes = tcp_frame(&Shape::default(), 100);
        let got = bench.receive_behind(header(checksum_work()), &bytes).unwrap();
        assert_eq!(got, (bytes.clone(), Some(checksum_work()), false));
        let valid = NetHdr { flags: F_DATA_VALID, ..NetHdr::default() };
        assert_eq!(bench.receive_behind(valid, &bytes).unwrap(), (bytes.clone(), None, true));
        assert_eq!(bench.receive_behind(NetHdr::default(), &bytes).unwrap(), (bytes, None, false));
        assert_eq!((bench.counter("rx_checksums_undone"), bench.counter("rx_checksums_right")), (1, 1));
        bench.finish();
    }
}

#[test]
fn long_frame_comes_whole_with_its_work() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered | TAKES);
        for shape in Shape::all() {
            let bytes = tcp_frame(&shape, 20_000);
            let work = long_request(&shape, 1400);
            let got = bench.receive_behind(header(Offload { hdr_len: 0, ..work }), &bytes).unwrap();
            let hdr_len = (bytes.len() - 20_000) as u16;
            assert_eq!(got, (bytes, Some(Offload { hdr_len, ..work }), false), "{shape:?}");
        }
        bench.finish();
    }
}

#[test]
fn work_that_is_not_true_of_its_frame_or_not_negotiated_drops_the_frame_only() {
    for (features, header) in [
        (TAKES, NetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 200, ..NetHdr::default() }),
        (TAKES, NetHdr { flags: F_NEEDS_CSUM, csum_start: u16::MAX, csum_offset: 2, ..NetHdr::default() }),
        (TAKES, NetHdr { gso_type: GSO_TCPV4, gso_size: 1, ..header(checksum_work()) }),
        (TAKES, NetHdr { gso_type: 0x77, ..header(checksum_work()) }),
        (0, header(checksum_work())),
        (feature::GUEST_CSUM, header(long_request(&Shape::default(), 1400))),
    ] {
        let mut bench = Bench::new(OFFERED | features);
        let bytes = tcp_frame(&Shape::default(), 100);
        assert_eq!(bench.receive_behind(header, &bytes), None, "{header:?}");
        assert_eq!(bench.rx_drops(DropReason::BadOffload), 1, "{header:?}");
        bench.works();
        bench.finish();
    }
    let mut bench = Bench::new(OFFERED);
    let valid = NetHdr { flags: F_DATA_VALID, ..NetHdr::default() };
    let (_, work, verified) = bench.receive_behind(valid, &frame(0, 64)).unwrap();
    assert_eq!((work, verified), (None, false), "nobody asked the device for its opinion");
    bench.finish();
}

#[test]
fn work_the_device_does_goes_out_in_front_of_the_frame() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered | SENDS);
        assert_eq!(bench.queues.tx[0].offloads(), Offloads::ALL);
        let bytes = tcp_frame(&Shape::default(), 100);
        assert_eq!(bench.send_with(&bytes, checksum_work()), 1);
        let shape = Shape::default();
        let long = Offload { hdr_len: 54, ..long_request(&shape, 1400) };
        let long_bytes = tcp_frame(&shape, 60_000);
        assert_eq!(bench.send_with(&long_bytes, long), 1);
        bench.send(1, 64);
        assert_eq!(bench.sim.transmitted(), [bytes, long_bytes, frame(0, 64)]);
        let headers = bench.model(|model| model.tx_headers());
        assert_eq!(headers, [header(checksum_work()), header(long), NetHdr::default()]);
        bench.finish();
    }
}

#[test]
fn longest_frames_go_out_and_those_with_segments_too_long_are_dropped() {
    let mut bench = Bench::unstarted(OFFERED | SENDS | feature::MTU);
    bench.model(|model| model.set_mtu(1500));
    bench.start();
    let shape = Shape::default();
    let bytes = tcp_frame(&shape, 65_535 - 40);
    let work = |gso_size| Offload { hdr_len: 54, ..long_request(&shape, gso_size) };
    assert_eq!(bench.send_with(&bytes, work(1468)), 1);
    assert_eq!(bench.sim.transmitted().len(), 1);
    assert_eq!(bench.send_with(&bytes, work(1469)), 1);
    assert_eq!(bench.tx_drops(DropReason::Oversize), 1);
    bench.send(1, 1523);
    assert_eq!(bench.tx_drops(DropReason::Oversize), 2, "a plain one is no long one");
    bench.finish();
}

#[test]
fn work_the_device_does_not_do_stays_with_the_caller() {
    let shape = Shape::default();
    let long = Offload { hdr_len: 54, ..long_request(&shape, 1400) };
    for (features, work, taken) in [
        (0, checksum_work(), 0),
        (feature::CSUM, checksum_work(), 1),
        (feature::CSUM, long, 0),
        (feature::CSUM | feature::HOST_TSO6, long, 0),
        (feature::HOST_TSO4, long, 0),
        (feature::CSUM | feature::HOST_TSO4, long, 1),
    ] {
        let mut bench = Bench::new(OFFERED | features);
        assert_eq!(bench.send_with(&tcp_frame(&shape, 3000), work), taken, "{features:#x}");
        bench.works();
        bench.finish();
    }
}
