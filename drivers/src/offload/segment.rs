//! Cutting a long TCP frame into segments, a few at a time, without a state beside the frame.
//!
//! [`Tso::copy`] writes the next segments into new buffers and leaves the frame alone; [`Tso::advance`] then takes as
//! many as were sent off the frame's front. What is left is a long frame again, with its sequence number
//! and identification moved on, until it is one segment itself and goes as it is. So a receiver
//! that is full half-way costs nothing but the copies that are thrown away.
//!
//! | field | first | in between | last |
//! |---|---|---|---|
//! | IPv4 identification | n | n + i | n + i |
//! | sequence number | s | s + i * size | s + i * size |
//! | CWR | as the frame | 0 | 0 |
//! | FIN, PSH | 0 | 0 | as the frame |

use arrayvec::ArrayVec;

use super::checksum::{Sum, sum_from};
use super::layout::{TCP, TcpLayout};
use super::{F_NEEDS_CSUM, Offload};
use crate::Burst;
use crate::dma::{DATA_ROOM, PacketBuf, PoolCache};
use crate::stats::DropReason;

/// Buffers of the longest segment: 64 KiB and headers, with a part of a buffer at its end.
const MOST_BUFFERS: usize = 65_536 / DATA_ROOM + 2;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A long frame's measures.
#[derive(Debug, Clone, Copy)]
pub struct Tso {
    headers: TcpLayout,
    /// Payload bytes in the frame, at least 1.
    payload: usize,
    /// Payload bytes a segment, at least 1.
    size: usize,
}

impl Tso {
    /// Measures a frame. [`DropReason::BadOffload`] when it is no TCP frame or its headers are not in its first buffer.
    pub fn of(packet: &PacketBuf, offload: &Offload) -> Result<Tso, DropReason> {
        let headers = TcpLayout::of(packet.data()).ok_or(DropReason::BadOffload)?;
        let total = packet.total_len();
        if offload.gso_size == 0 || total <= headers.payload || total > headers.longest_frame() {
            return Err(DropReason::BadOffload);
        }
        Ok(Tso { headers, payload: total - headers.payload, size: usize::from(offload.gso_size) })
    }

    /// Segments that have to be copied: all but the last.
    pub fn n_copies(&self) -> usize {
        (self.payload - 1) / self.size
    }

    /// Copies up to `limit` segments from the front to the end of `out`, with all headers right. Returns how many: fewer
    /// when there are no more to copy, `out` is full, or the pool is dry.
    pub fn copy(&self, packet: &PacketBuf, pool: &mut PoolCache, limit: usize, out: &mut Burst) -> usize {
        let n = self.n_copies().min(limit).min(out.room());
        let headers = &packet.data()[..self.headers.payload];
        let mut source = Source::behind(packet, self.headers.payload);
        for index in 0..n {
            let Some(mut segment) = source.segment(headers, self.size, pool) else { return index };
            let last = self.headers.payload + self.size;
            patch(&mut segment, &self.headers, last, Place { index, size: self.size, last: false });
            let checksum = pseudo_header(segment.data(), &self.headers, last);
            finish(&mut segment, &self.headers, checksum);
            let pushed = out.push(segment);
            debug_assert!(pushed.is_ok(), "n is at most the room");
        }
        n
    }

    /// Takes the first `n` segments (at most [`n_copies`](Self::n_copies)) off the frame. What is left is a long frame,
    /// or, when it is one segment, a frame without work; true then. All of it must be the caller's own
    /// ([`PacketBuf::own_chain`]).
    pub fn advance(&self, packet: &mut PacketBuf, pool: &mut PoolCache, n: usize) -> bool {
        let n = n.min(self.n_copies());
        cut_payload(packet, pool, self.headers.payload, n * self.size);
        let left = self.payload - n * self.size;
        let total = self.headers.payload + left;
        let one = left <= self.size;
        patch(packet, &self.headers, total, Place { index: n, size: self.size, last: true });
        let checksum = pseudo_header(packet.data(), &self.headers, total);
        if one {
            finish(packet, &self.headers, checksum);
            packet.set_offload(None);
        } else {
            let at = self.headers.transport + 16;
            packet.data_mut()[at..at + 2].copy_from_slice(&checksum.partial());
            let offload = packet.offload().unwrap_or_default();
            packet.set_offload(Some(Offload { flags: F_NEEDS_CSUM, ..offload }));
        }
        one
    }
}

/// Which segment of the frame headers are for.
struct Place {
    index: usize,
    size: usize,
    /// Holds the frame's end.
    last: bool,
}

/// Writes the fields in which segments differ, for a frame of `total` bytes that has the headers of the whole.
fn patch(packet: &mut PacketBuf, headers: &TcpLayout, total: usize, place: Place) {
    let data = &mut packet.data_mut()[..headers.payload];
    let (network, tcp) = data[headers.network..].split_at_mut(headers.transport - headers.network);
    if headers.ipv6 {
        let payload_bytes = (total - headers.network - 40) as u16;
        network[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
    } else {
        let id = u16::from_be_bytes([network[4], network[5]]).wrapping_add(place.index as u16);
        network[2..4].copy_from_slice(&((total - headers.network) as u16).to_be_bytes());
        network[4..6].copy_from_slice(&id.to_be_bytes());
        network[10..12].fill(0);
        let checksum = Sum::default().with(network).finish();
        network[10..12].copy_from_slice(&checksum);
    }
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let moved = (place.index * place.size) as u32;
    tcp[4..8].copy_from_slice(&sequence.wrapping_add(moved).to_be_bytes());
    if !place.last {
        tcp[13] &= !(FIN | PSH);
    }
    if place.index > 0 {
        tcp[13] &= !CWR;
    }
}

/// The sum of addresses, protocol and length (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo_header(data: &[u8], headers: &TcpLayout, total: usize) -> Sum {
    let network = &data[headers.network..];
    let addresses = if headers.ipv6 { &network[8..40] } else { &network[12..20] };
    // Below 2^16: the frame's length was checked against the IP header's.
    let transport_bytes = (total - headers.transport) as u16;
    Sum::default().with(addresses).add_u16(u16::from(TCP)).add_u16(transport_bytes)
}

/// Completes the TCP checksum on top of the pseudo-header's sum.
fn finish(packet: &mut PacketBuf, headers: &TcpLayout, pseudo: Sum) {
    let at = headers.transport + 16;
    packet.data_mut()[at..at + 2].fill(0);
    let checksum = sum_from(packet, headers.transport, pseudo).finish();
    packet.data_mut()[at..at + 2].copy_from_slice(&checksum);
}

/// Removes `n` bytes behind the headers; fewer than the payload has.
fn cut_payload(packet: &mut PacketBuf, pool: &mut PoolCache, headers_bytes: usize, mut n: usize) {
    let here = packet.len() - headers_bytes;
    if n < here {
        packet.data_mut().copy_within(..headers_bytes, n);
        let cut = packet.pull_front(n);
        debug_assert!(cut.is_ok(), "n is less than the segment");
        return;
    }
    n -= here;
    let mut rest = packet.unchain();
    let cut = packet.set_len(headers_bytes);
    debug_assert!(cut.is_ok(), "the segment shrinks");
    while let Some(mut segment) = rest {
        if n < segment.len() {
            let cut = segment.pull_front(n);
            debug_assert!(cut.is_ok(), "n is less than the segment");
            packet.chain(segment);
            return;
        }
        n -= segment.len();
        rest = segment.unchain();
        pool.free(segment);
    }
}

/// The payload yet to be copied.
struct Source<'p> {
    /// Rest of the buffer being read.
    now: &'p [u8],
    next: Option<&'p PacketBuf>,
}

impl<'p> Source<'p> {
    fn behind(packet: &'p PacketBuf, headers_bytes: usize) -> Self {
        Source { now: &packet.data()[headers_bytes..], next: packet.next_segment() }
    }

    /// A new frame of `headers` and the next `size` bytes; `None`, and nothing kept, when the pool is dry.
    fn segment(&mut self, headers: &[u8], size: usize, pool: &mut PoolCache) -> Option<PacketBuf> {
        let mut full: ArrayVec<PacketBuf, MOST_BUFFERS> = ArrayVec::new();
        let mut packet = pool.alloc()?;
        let fits = packet.append(headers);
        debug_assert!(fits.is_ok(), "headers came out of one buffer");
        let mut missing = size;
        while missing > 0 {
            if self.now.is_empty() {
                let Some(next) = self.next else { break };
                (self.now, self.next) = (next.data(), next.next_segment());
                continue;
            }
            if packet.tailroom() == 0 {
                match pool.alloc() {
                    Some(more) if !full.is_full() => full.push(std::mem::replace(&mut packet, more)),
                    other => {
                        other.into_iter().chain([packet]).chain(full).for_each(|part| pool.free(part));
                        return None;
                    }
                }
            }
            let n = missing.min(self.now.len()).min(packet.tailroom());
            let (piece, rest) = self.now.split_at(n);
            let fits = packet.append(piece);
            debug_assert!(fits.is_ok(), "n is at most the room");
            (self.now, missing) = (rest, missing - n);
        }
        // Linked from the back, so that no link is walked.
        while let Some(mut before) = full.pop() {
            before.chain(packet);
            packet = before;
        }
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Seen, Shape, bytes, cache, chain, long_request, see, tcp_frame};
    use super::super::{GSO_ECN, Offloads, accept::accept};
    use super::*;
    use proptest::prelude::*;

    /// Cuts a frame into all its segments, `step` at a time, of which every other time only half are sent.
    fn cut_up(frame: &[u8], request: Offload, first: usize, step: usize) -> Vec<Vec<u8>> {
        let (pool, mut cache) = cache(256);
        let mut packet = chain(&mut cache, frame, first);
        let accepted = accept(&request, &packet, Offloads::ALL).unwrap().unwrap();
        packet.set_offload(Some(accepted));
        let mut segments = Vec::new();
        for round in 0.. {
            let tso = Tso::of(&packet, &packet.offload().unwrap()).unwrap();
            let mut out = Burst::new();
            let n = tso.copy(&packet, &mut cache, step, &mut out);
            assert_eq!((n, out.len()), (tso.n_copies().min(step).min(32), n));
            let sent = if round % 2 == 1 { n.div_ceil(2) } else { n };
            segments.extend(out.iter().take(sent).map(bytes));
            out.free_all(&mut cache);
            if tso.advance(&mut packet, &mut cache, sent) {
                break;
            }
        }
        assert_eq!(packet.offload(), None);
        segments.push(bytes(&packet));
        cache.free(packet);
        drop(cache);
        assert_eq!(pool.counts().out, 0);
        segments
    }

    /// Checks segments against the frame they came from by an independent parser.
    fn check(frame: &[u8], segments: &[Vec<u8>], size: usize, what: &str) {
        let whole = see(frame);
        let n = whole.payload.len().div_ceil(size);
        assert_eq!(segments.len(), n, "{what}");
        for (i, (segment, payload)) in segments.iter().zip(whole.payload.chunks(size)).enumerate() {
            let what = format!("{what}, segment {i} of {n}");
            let seen = see(segment);
            seen.check_sums_and_lengths(&what);
            let only_first = if i == 0 { CWR } else { 0 };
            let only_last = if i + 1 == n { FIN | PSH } else { 0 };
            let expected = Seen {
                payload: payload.to_vec(),
                sequence: whole.sequence.wrapping_add((i * size) as u32),
                identification: whole.identification.map(|id| id.wrapping_add(i as u16)),
                flags: whole.flags & (!(FIN | PSH | CWR) | only_first | only_last),
                bytes: seen.bytes.clone(),
                ..whole.clone()
            };
            assert_eq!(seen, expected, "{what}");
        }
    }

    #[test]
    fn segments_of_every_shape_satisfy_an_independent_parser() {
        for shape in Shape::all() {
            for (payload, size) in
                [(9000, 1448), (2896, 1448), (2897, 1448), (65_000, 8948), (300, 48), (4000, 2047)]
            {
                let frame = tcp_frame(&shape, payload);
                let request = Offload {
                    gso_type: long_request(&shape, 0).gso_type | GSO_ECN,
                    ..long_request(&shape, size)
                };
                let segments = cut_up(&frame, request, 2048, 32);
                check(&frame, &segments, usize::from(size), &format!("{shape:?} {payload} by {size}"));
            }
        }
    }

    #[test]
    fn frame_that_is_one_segment_leaves_whole_with_its_checksums() {
        let shape = Shape::default();
        for payload in [1, 1447, 1448] {
            let frame = tcp_frame(&shape, payload);
            let segments = cut_up(&frame, long_request(&shape, 1448), 2048, 32);
            check(&frame, &segments, 1448, "one");
        }
    }

    #[test]
    fn longest_frame_of_64_kib_is_cut_to_its_last_byte() {
        let shape = Shape { tags: vec![0x8100], ..Shape::default() };
        let frame = tcp_frame(&shape, 65_535 - 40);
        let segments = cut_up(&frame, long_request(&shape, 1448), 2048, 7);
        assert_eq!(segments.len(), 46);
        check(&frame, &segments, 1448, "64 KiB");
    }

    #[test]
    fn what_is_left_half_way_is_a_frame_a_guest_could_have_sent() {
        let shape = Shape::default();
        let (_pool, mut cache) = cache(64);
        let frame = tcp_frame(&shape, 10_000);
        let mut packet = chain(&mut cache, &frame, 2048);
        packet.set_offload(Some(long_request(&shape, 1000)));
        let tso = Tso::of(&packet, &packet.offload().unwrap()).unwrap();
        assert!(!tso.advance(&mut packet, &mut cache, 4));
        let left = packet.offload().unwrap();
        assert_eq!(accept(&left, &packet, Offloads::ALL), Ok(Some(Offload { hdr_len: 54, ..left })));
        let (whole, rest) = (see(&frame), see(&bytes(&packet)));
        assert_eq!(rest.payload, whole.payload[4000..]);
        assert_eq!(rest.sequence, whole.sequence.wrapping_add(4000));
        // The receiver of a long frame completes its checksum: then it is right.
        super::super::checksum::complete(&mut packet, &left).unwrap();
        see(&bytes(&packet)).check_sums_and_lengths("the rest");
    }

    #[test]
    fn dry_pool_gives_fewer_segments_and_keeps_no_part_of_the_one_it_could_not_finish() {
        let shape = Shape::default();
        let (pool, mut cache) = cache(64);
        let mut packet = chain(&mut cache, &tcp_frame(&shape, 60_000), 2048);
        packet.set_offload(Some(long_request(&shape, 9000)));
        let tso = Tso::of(&packet, &packet.offload().unwrap()).unwrap();
        let free = 64 - packet.n_segments();
        let mut hoard: Vec<_> = (0..free - 13).map(|_| cache.alloc().unwrap()).collect();
        let mut out = Burst::new();
        assert_eq!(tso.copy(&packet, &mut cache, 32, &mut out), 2, "13 buffers hold two segments of five");
        let spare: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(spare.len(), 3);
        hoard.clear();
        drop((out, packet, spare, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn frame_that_is_no_tcp_or_has_its_headers_cut_up_is_refused() {
        let shape = Shape::default();
        let (_pool, mut cache) = cache(64);
        let request = long_request(&shape, 1000);
        let mut udp = tcp_frame(&shape, 3000);
        udp[23] = 17;
        let packet = chain(&mut cache, &udp, 2048);
        assert_eq!(Tso::of(&packet, &request).err(), Some(DropReason::BadOffload));
        let packet = chain(&mut cache, &tcp_frame(&shape, 3000), 53);
        assert_eq!(Tso::of(&packet, &request).err(), Some(DropReason::BadOffload));
        let packet = chain(&mut cache, &tcp_frame(&shape, 3000), 54);
        assert!(Tso::of(&packet, &request).is_ok());
        assert_eq!(Tso::of(&packet, &Offload { gso_size: 0, ..request }).err(), Some(DropReason::BadOffload));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_payload_size_and_cut_gives_right_segments(
            payload in 1usize..20_000,
            size in 48u16..10_000,
            first in 90usize..2048,
            step in 1usize..40,
            shape in 0..Shape::all().len(),
        ) {
            let shape = &Shape::all()[shape];
            let frame = tcp_frame(shape, payload);
            let segments = cut_up(&frame, long_request(shape, size), first.max(frame.len() - payload), step);
            check(&frame, &segments, usize::from(size), "any");
        }

        /// Headers with a few bytes changed: cut up without panic as long as they are accepted, and no buffer is lost.
        #[test]
        fn mutated_headers_are_cut_up_or_refused_without_panic(
            shape in 0..Shape::all().len(),
            payload in 1usize..9000,
            size in any::<u16>(),
            changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
            cut in proptest::option::of(0usize..200),
            fields in proptest::option::of(any::<(u8, u16, u16)>()),
        ) {
            let shape = &Shape::all()[shape];
            let mut frame = tcp_frame(shape, payload);
            let n = frame.len();
            changes.iter().for_each(|&(at, byte)| frame[at % n] = byte);
            frame.truncate(cut.unwrap_or(n));
            let mut request = long_request(shape, size);
            if let Some((gso_type, start, offset)) = fields {
                request = Offload { gso_type, csum_start: start % 128, csum_offset: offset % 64, ..request };
            }
            let (pool, mut cache) = cache(256);
            let mut packet = chain(&mut cache, &frame, 2048);
            // Accepted or not: the cutter must bear whatever stands in the side table.
            packet.set_offload(Some(request));
            for _ in 0..4 {
                let Some(offload) = packet.offload() else { break };
                let Ok(tso) = Tso::of(&packet, &offload) else { break };
                let mut out = Burst::new();
                let n = tso.copy(&packet, &mut cache, 32, &mut out);
                out.free_all(&mut cache);
                tso.advance(&mut packet, &mut cache, n);
            }
            drop((packet, cache));
            prop_assert_eq!(pool.counts().out, 0);
        }
    }
}
