//! Judging a guest's request when its frame comes in: what passes here can be worked on later, by us or by a
//! receiver that trusts us.

use super::layout::{self, TcpLayout};
use super::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, MIN_GSO_SIZE, Offload, Offloads};
use crate::dma::PacketBuf;
use crate::stats::DropReason;

/// Last place a checksum may start: tags that are put on later move it, and it has 16 bits.
const LAST_CSUM_START: u16 = u16::MAX - 64;
/// `csum_offset` of TCP.
const TCP_CHECK: u16 = 16;

/// What is to be done with a frame that came with `request`, a copy of the header in front of it: nothing, or a request
/// that is true of this frame and within `negotiated`. Whatever else stands in the header (flags only devices may
/// set, the length of the headers) is not believed. `Err` is [`DropReason::BadOffload`].
#[inline]
pub fn accept(
    request: &Offload,
    frame: &PacketBuf,
    negotiated: Offloads,
) -> Result<Option<Offload>, DropReason> {
    if request.is_nothing() {
        return Ok(None);
    }
    accept_work(request, frame, negotiated).map(Some).ok_or(DropReason::BadOffload)
}

#[inline(never)]
fn accept_work(request: &Offload, frame: &PacketBuf, negotiated: Offloads) -> Option<Offload> {
    // Long frames need their checksum done as well (virtio 1.2, 5.1.6.2).
    let possible = request.flags & F_NEEDS_CSUM != 0 && negotiated.contains(request.needs());
    if !possible {
        return None;
    }
    let accepted = Offload { flags: F_NEEDS_CSUM, ..*request };
    if request.is_long() { accept_long(accepted, frame) } else { accept_checksum(accepted, frame) }
}

/// The checksum lies in the frame's first buffer, where all headers are, and neither starts nor ends in front of the
/// network header.
fn accept_checksum(request: Offload, frame: &PacketBuf) -> Option<Offload> {
    let (_, network) = layout::network(frame.data())?;
    let start = usize::from(request.csum_start);
    let end = start + usize::from(request.csum_offset) + 2;
    let sane = start >= network && request.csum_start <= LAST_CSUM_START && end <= frame.len();
    sane.then_some(Offload { gso_type: GSO_NONE, gso_size: 0, hdr_len: 0, ..request })
}

fn accept_long(request: Offload, frame: &PacketBuf) -> Option<Offload> {
    let headers = TcpLayout::of(frame.data())?;
    let family = if headers.ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
    let total = frame.total_len();
    let sane = request.gso_type & !GSO_ECN == family
        && request.gso_size >= MIN_GSO_SIZE
        && usize::from(request.csum_start) == headers.transport
        && request.csum_offset == TCP_CHECK
        && total > headers.payload
        && total <= headers.longest_frame();
    // Headers lie in one buffer of 2 KiB, so their length fits.
    sane.then_some(Offload { hdr_len: headers.payload as u16, ..request })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Shape, cache, chain, long_request, tcp_frame};
    use super::*;
    use proptest::prelude::*;

    fn judged(request: Offload, frame: &[u8]) -> Result<Option<Offload>, DropReason> {
        let (_pool, mut cache) = cache(128);
        let packet = chain(&mut cache, frame, 2048);
        accept(&request, &packet, Offloads::ALL)
    }

    const BAD: Result<Option<Offload>, DropReason> = Err(DropReason::BadOffload);

    #[test]
    fn header_without_work_is_no_work_whatever_its_other_fields_say() {
        let frame = tcp_frame(&Shape::default(), 10);
        let noise =
            Offload { flags: 0xfe, hdr_len: 9, gso_size: 1, csum_start: 7, csum_offset: 9, gso_type: 0 };
        assert_eq!(judged(noise, &frame), Ok(None));
        let (_pool, mut cache) = cache(64);
        let packet = chain(&mut cache, &frame, 2048);
        assert_eq!(accept(&noise, &packet, Offloads::NONE), Ok(None));
    }

    #[test]
    fn guest_can_not_vouch_for_its_data() {
        let frame = tcp_frame(&Shape::default(), 10);
        let request = Offload { flags: 0xff, csum_start: 34, csum_offset: 16, ..Offload::default() };
        let accepted = judged(request, &frame).unwrap().unwrap();
        assert_eq!(accepted, Offload { flags: F_NEEDS_CSUM, ..request });
    }

    #[test]
    fn checksum_outside_the_frame_or_in_its_addresses_and_tags_is_refused() {
        let request =
            |csum_start, csum_offset| Offload { flags: 1, csum_start, csum_offset, ..Offload::default() };
        let frame = tcp_frame(&Shape::default(), 10); // 64 bytes
        for (start, offset) in [(34, 16), (14, 0), (14, 48), (62, 0)] {
            assert!(judged(request(start, offset), &frame).is_ok(), "{start} {offset}");
        }
        for (start, offset) in [
            (0, 0),
            (13, 4),
            (13, u16::MAX),
            (14, 49),
            (63, 0),
            (64, 0),
            (65, 65),
            (u16::MAX, u16::MAX),
            (u16::MAX, 0),
            (34, u16::MAX),
            (34, u16::MAX - 34),
        ] {
            assert_eq!(judged(request(start, offset), &frame), BAD, "{start} {offset}");
        }
        let tagged = tcp_frame(&Shape { tags: vec![0x88a8, 0x8100], ..Shape::default() }, 10);
        assert_eq!(judged(request(14, 10), &tagged), BAD);
        assert_eq!(judged(request(21, 10), &tagged), BAD);
        assert!(judged(request(22, 10), &tagged).is_ok());
        // A tag in the last two bytes: there is no network header at all.
        assert_eq!(judged(request(14, 0), &tagged[..16]), BAD);
        let long = vec![8; 9000];
        assert!(judged(request(14, 2032), &long).is_ok());
        assert_eq!(judged(request(14, 2033), &long), BAD, "the first buffer ends at 2048");
    }

    #[test]
    fn long_frame_is_accepted_with_the_length_of_its_own_headers() {
        for shape in Shape::all() {
            let frame = tcp_frame(&shape, 9000);
            let lies = Offload { hdr_len: 9999, ..long_request(&shape, 1400) };
            let accepted = judged(lies, &frame).unwrap().unwrap();
            assert_eq!(accepted, Offload { hdr_len: (frame.len() - 9000) as u16, ..lies }, "{shape:?}");
        }
    }

    #[test]
    fn long_frame_that_contradicts_itself_is_refused() {
        let (v4, v6) = (Shape::default(), Shape { ipv6: true, ..Shape::default() });
        let good = long_request(&v4, 1400);
        let frame = tcp_frame(&v4, 9000);
        assert!(judged(good, &frame).is_ok());
        for (what, request) in [
            ("no checksum", Offload { flags: 0, ..good }),
            ("size 0", Offload { gso_size: 0, ..good }),
            ("size 1", Offload { gso_size: 1, ..good }),
            ("size 47", Offload { gso_size: 47, ..good }),
            ("checksum elsewhere", Offload { csum_offset: 6, ..good }),
            ("start in the payload", Offload { csum_start: 54, ..good }),
            ("start in L2", Offload { csum_start: 0, ..good }),
            ("IPv6 said of IPv4", Offload { gso_type: GSO_TCPV6, ..good }),
            ("UDP fragmentation", Offload { gso_type: 3, ..good }),
            ("UDP segmentation", Offload { gso_type: 5, ..good }),
            ("ECN of nothing", Offload { gso_type: GSO_ECN, ..good }),
            ("an unknown type", Offload { gso_type: 0x77, ..good }),
        ] {
            assert_eq!(judged(request, &frame), BAD, "{what}");
        }
        assert_eq!(judged(good, &frame[..54]), BAD, "no payload");
        assert_eq!(judged(good, &frame[..53]), BAD, "half a header");
        assert_eq!(judged(long_request(&v4, 1400), &tcp_frame(&v6, 9000)), BAD, "IPv4 said of IPv6");
        assert_eq!(judged(good, &tcp_frame(&v4, 65_536 - 40)), BAD, "more than an IP length can say");
        assert!(judged(good, &tcp_frame(&v4, 65_535 - 40)).is_ok());
    }

    #[test]
    fn work_that_was_not_negotiated_is_refused() {
        let shape = Shape::default();
        let (_pool, mut cache) = cache(64);
        let packet = chain(&mut cache, &tcp_frame(&shape, 3000), 2048);
        let long = long_request(&shape, 1400);
        let ecn = Offload { gso_type: long.gso_type | GSO_ECN, ..long };
        let short = Offload { gso_type: 0, ..long };
        let tso4 = Offloads::CSUM.with(Offloads::TSO4);
        for (request, negotiated, passes) in [
            (short, Offloads::NONE, false),
            (short, Offloads::CSUM, true),
            (long, Offloads::CSUM, false),
            (long, Offloads::CSUM.with(Offloads::TSO6), false),
            (long, tso4, true),
            (ecn, tso4, false),
            (ecn, tso4.with(Offloads::ECN), true),
        ] {
            assert_eq!(accept(&request, &packet, negotiated).is_ok(), passes, "{request:?} {negotiated:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Any header before any bytes: a decision, and what is accepted lies within the frame.
        #[test]
        fn any_header_before_any_frame_is_judged_without_panic(
            fields in any::<(u8, u8, u16, u16, u16, u16)>(),
            data in proptest::collection::vec(any::<u8>(), 0..300),
            small in any::<bool>(),
        ) {
            let (flags, gso_type, hdr_len, gso_size, mut csum_start, mut csum_offset) = fields;
            if small {
                (csum_start, csum_offset) = (csum_start % 200, csum_offset % 100);
            }
            let request = Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset };
            if let Ok(Some(accepted)) = judged(request, &data) {
                prop_assert!(usize::from(accepted.csum_start) + usize::from(accepted.csum_offset) + 2 <= data.len());
                prop_assert!(usize::from(accepted.hdr_len) <= data.len());
            }
        }
    }
}
