//! A guest's offload request on a guest's frame: judged, then worked off in full. Checked: no panic, whatever was
//! accepted can be done, segments add up to the payload, every buffer back.

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::offload::accept::accept;
use spp_drivers::offload::checksum::complete;
use spp_drivers::offload::segment::Tso;
use spp_drivers::offload::{Offload, Offloads};

use crate::Input;

/// Mostly a TCP or UDP frame over IPv4 or IPv6, with any bytes changed.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = vec![0x02; 12];
    let ipv6 = input.u8() & 1 != 0;
    for _ in 0..input.below(3) {
        frame.extend([0x81, 0x00, 0x00, 0x64]);
    }
    frame.extend(if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    let protocol = input.pick(&[6, 6, 17, 0]);
    let len = usize::from(input.u16()) % 9000;
    if ipv6 {
        frame.extend([0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, 64]);
        frame.extend([0x20; 32]);
    } else {
        frame.extend([0x45, 0, ((len + 20) >> 8) as u8, (len + 20) as u8, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    }
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x98, 0x20, 0, 0, 0, 0, 0]);
    frame.resize(frame.len() + len, 0x61);
    for _ in 0..input.below(4) {
        let at = usize::from(input.u16()) % frame.len().min(100);
        frame[at] = input.u8();
    }
    frame.truncate(14 + usize::from(input.u16()).max(if input.u8() & 7 == 0 { 0 } else { 9100 }));
    frame
}

fn request(input: &mut Input<'_>) -> Offload {
    Offload {
        flags: input.pick(&[0, 1, 1, 1, 3, 255]),
        gso_type: input.pick(&[0, 0, 1, 1, 4, 4, 0x81, 3, 0x84]),
        hdr_len: input.u16(),
        gso_size: input.pick(&[0, 1, 47, 48, 536, 1448, 9000, 65_535]),
        csum_start: input.pick(&[0, 13, 14, 34, 38, 42, 54, 58, 1000, 65_535]),
        csum_offset: input.pick(&[0, 6, 16, 16, 1000, 65_535]),
    }
}

fn packet(cache: &mut PoolCache, bytes: &[u8], first: usize) -> Option<PacketBuf> {
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    let mut packet = cache.alloc()?;
    packet.append(head).expect("at most one buffer");
    for part in rest.chunks(2048) {
        let mut next = cache.alloc()?;
        next.append(part).expect("at most one buffer");
        packet.last_segment_mut().chain(next);
    }
    Some(packet)
}

/// Works a long frame off in pieces of `limit` segments; returns the payload bytes that came out.
fn segment_all(packet: PacketBuf, offload: &Offload, cache: &mut PoolCache, limit: usize) -> usize {
    let mut packet = Some(packet);
    let mut payload = 0;
    let headers = usize::from(offload.hdr_len);
    while let Some(mut rest) = packet.take() {
        let current = rest.offload().expect("a long frame has its request");
        let tso = Tso::of(&rest, &current).expect("an accepted frame can be measured");
        let mut out = Burst::new();
        let n = tso.copy(&rest, cache, limit, &mut out);
        payload += out.iter().map(|segment| segment.total_len() - headers).sum::<usize>();
        out.free_all(cache);
        let stuck = n == 0 && tso.n_copies() > 0;
        if tso.advance(&mut rest, cache, n) || stuck {
            payload += rest.total_len() - headers;
            cache.free(rest);
        } else {
            packet = Some(rest);
        }
    }
    payload
}

/// The target.
pub fn offload(data: &[u8]) {
    let mut input = Input::new(data);
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 128 }).expect("a small pool");
    let mut cache = pool.cache();
    let (first, limit) = (input.pick(&[2048, 2048, 14, 60, 200]), 1 + input.below(32));
    let request = request(&mut input);
    let bytes = frame(&mut input);
    if let Some(mut packet) = packet(&mut cache, &bytes, first) {
        match accept(&request, &packet, Offloads::ALL) {
            Ok(Some(offload)) if offload.is_long() => {
                packet.set_offload(Some(offload));
                let payload = bytes.len() - usize::from(offload.hdr_len);
                assert_eq!(segment_all(packet, &offload, &mut cache, limit), payload);
            }
            Ok(Some(offload)) => {
                complete(&mut packet, &offload).expect("an accepted checksum can be completed");
                assert_eq!(packet.total_len(), bytes.len());
                cache.free(packet);
            }
            Ok(None) | Err(_) => cache.free(packet),
        }
    }
    drop(cache);
    assert_eq!(pool.counts().out, 0, "a buffer is lost");
}
