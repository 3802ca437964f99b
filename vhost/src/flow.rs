//! Which queue a frame belongs to: a hash of its flow, the same for both directions, read from our own copy of the
//! frame. Pure; called by the core that sends to a guest with several queues.

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// By protocol, whether its header starts with source and destination port: TCP, UDP, DCCP, SCTP, UDP-Lite.
const HAS_PORTS: [bool; 256] = {
    let mut has = [false; 256];
    (has[6], has[17], has[33], has[132], has[136]) = (true, true, true, true, true);
    has
};

/// From the start of a frame to the ports behind an IPv4 header without options.
const IPV4_BYTES: usize = 14 + 20 + 4;

/// A frame's flow: addresses and ports of both ends for TCP, UDP and the like, addresses for any other IP packet and
/// for fragments (whose later ones have no ports), MAC addresses for what is no IP. Swapping the ends changes nothing.
#[inline(always)]
pub fn hash(frame: &[u8]) -> u32 {
    match frame.first_chunk().and_then(plain_ipv4) {
        Some(ends) => finish(ends),
        None => hash_any(frame),
    }
}

/// The ends of what most frames are: IPv4 with ports, and neither tag nor option nor fragment. Nothing need be looked for in
/// such: sending to four queues takes 298 instructions and 57 ticks a packet, not 444 and 138 (`spp-stages "4 queues"`).
#[inline(always)]
fn plain_ipv4(start: &[u8; IPV4_BYTES]) -> Option<u64> {
    let two = |at: usize| u64::from(u16::from_le_bytes([start[at], start[at + 1]]));
    let four = |at: usize| two(at) | two(at + 2) << 16;
    let (protocol, fragment) = (start[23], start[20] & 0x3f | start[21]);
    let is_plain = start[12..15] == [8, 0, 0x45] && fragment == 0 && HAS_PORTS[usize::from(protocol)];
    is_plain.then(|| both(two(34), two(36), both(four(26), four(30), protocol.into())))
}

/// Of any frame.
#[inline(never)]
fn hash_any(frame: &[u8]) -> u32 {
    let (mut at, mut ethertype) = (12, word(frame, 12));
    for _ in 0..2 {
        if ethertype.is_some_and(|t| ETHERTYPE_VLAN.contains(&t)) {
            at += 4;
            ethertype = word(frame, at);
        }
    }
    let packet = frame.get(at + 2..).unwrap_or_default();
    let ip = match ethertype {
        Some(ETHERTYPE_IPV4) => ipv4(packet),
        Some(ETHERTYPE_IPV6) => ipv6(packet),
        _ => None,
    };
    finish(ip.unwrap_or_else(|| both(number(frame, 0, 6), number(frame, 6, 6), 0)))
}

/// Picks one of `n` queues: a multiplication instead of a division.
#[inline(always)]
pub fn pick(hash: u32, n: usize) -> usize {
    ((u64::from(hash) * n as u64) >> 32) as usize
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// `n` bytes (up to 8) as a number; what lies beyond the frame reads as zeros.
#[inline(always)]
fn number(bytes: &[u8], at: usize, n: usize) -> u64 {
    let mut wide = [0; 8];
    let there = bytes.get(at..).unwrap_or_default();
    let n = n.min(there.len());
    wide[..n].copy_from_slice(&there[..n]);
    u64::from_le_bytes(wide)
}

/// The two ends of a flow as one number that does not tell which is which.
#[inline(always)]
fn both(a: u64, b: u64, rest: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (sum, xor) = (a.wrapping_add(b), a ^ b);
    (sum.wrapping_mul(ODD) ^ xor.rotate_left(32)).wrapping_add(rest).wrapping_mul(ODD)
}

/// Spreads what is left of patterns over all bits (the finaliser of MurmurHash3).
#[inline(always)]
fn finish(mut n: u64) -> u32 {
    n ^= n >> 33;
    n = n.wrapping_mul(0xff51_afd7_ed55_8ccd);
    n ^= n >> 33;
    n = n.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (n >> 32) as u32
}

#[inline(always)]
fn ipv4(packet: &[u8]) -> Option<u64> {
    let header_bytes = usize::from(*packet.first()? & 0xf) * 4;
    let protocol = *packet.get(9)?;
    let addresses = both(number(packet, 12, 4), number(packet, 16, 4), protocol.into());
    // More fragments follow, or this is one.
    let fragment = word(packet, 6)? & 0x3fff != 0;
    let has_ports = !fragment && HAS_PORTS[usize::from(protocol)] && header_bytes >= 20;
    Some(if has_ports { with_ports(packet, header_bytes, addresses) } else { addresses })
}

#[inline(always)]
fn ipv6(packet: &[u8]) -> Option<u64> {
    let protocol = *packet.get(6)?;
    let end = |at| number(packet, at, 8) ^ number(packet, at + 8, 8).rotate_left(29);
    let addresses = both(end(8), end(24), protocol.into());
    Some(if HAS_PORTS[usize::from(protocol)] { with_ports(packet, 40, addresses) } else { addresses })
}

#[inline(always)]
fn with_ports(packet: &[u8], at: usize, addresses: u64) -> u64 {
    both(number(packet, at, 2), number(packet, at + 2, 2), addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame between two ends: last byte of MAC and address, port.
    fn frame(v6: bool, vlans: usize, protocol: u8, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, to.0, 2, 0, 0, 0, 0, from.0];
        for vid in 0..vlans {
            bytes.extend([0x81, 0, 0, vid as u8 + 1]);
        }
        if v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, protocol, 64]);
            for end in [from.0, to.0] {
                bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]);
            }
        } else {
            bytes.extend([8, 0, 0x45, 0, 0, 28, 1, 2, 0, 0, 64, protocol, 0, 0]);
            bytes.extend([10, 0, 0, from.0, 10, 0, 0, to.0]);
        }
        bytes.extend(from.1.to_be_bytes());
        bytes.extend(to.1.to_be_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn both_directions_of_a_flow_have_one_hash() {
        for v6 in [false, true] {
            for vlans in 0..3 {
                for port in 0..200 {
                    let there = frame(v6, vlans, 6, (1, 1000 + port), (2, 80));
                    let back = frame(v6, vlans, 6, (2, 80), (1, 1000 + port));
                    assert_eq!(hash(&there), hash(&back), "{v6} {vlans} {port}");
                }
            }
        }
    }

    #[test]
    fn flows_that_differ_in_a_port_spread_evenly() {
        for n_queues in [2usize, 3, 4, 16] {
            for v6 in [false, true] {
                let mut count = vec![0; n_queues];
                for port in 0..4096 {
                    count[pick(hash(&frame(v6, 1, 17, (1, port), (2, 53))), n_queues)] += 1;
                }
                let fair = 4096 / n_queues;
                assert!(count.iter().all(|n| *n > fair * 3 / 4 && *n < fair * 5 / 4), "{count:?}");
            }
        }
    }

    #[test]
    fn fragments_and_other_protocols_go_by_addresses_alone() {
        let of = |fragment: u16, protocol, port| {
            let mut bytes = frame(false, 0, protocol, (1, port), (2, 80));
            bytes[20..22].copy_from_slice(&fragment.to_be_bytes());
            hash(&bytes)
        };
        for fragment in [0x2000, 0x2001, 0x00b9] {
            assert_eq!(of(fragment, 17, 5), of(fragment, 17, 6), "{fragment:#x}");
        }
        assert_ne!(of(0x4000, 17, 5), of(0x4000, 17, 6), "don't-fragment is no fragment");
        assert_eq!(of(0, 1, 5), of(0, 1, 6), "ICMP has no ports");
    }

    #[test]
    fn short_way_and_long_way_come_to_the_same() {
        for protocol in 0..=u8::MAX {
            for (at, bits) in
                [(0, 0), (12, 0x81), (14, 1), (14, 0x10), (20, 0x20), (20, 0x40), (21, 1), (23, 0)]
            {
                let mut bytes = frame(false, 0, protocol, (1, 1000), (2, 80));
                bytes[at] ^= bits;
                assert_eq!(hash(&bytes), hash_any(&bytes), "protocol {protocol}, byte {at} by {bits:#x}");
                let cut = &bytes[..IPV4_BYTES - 1];
                assert_eq!(hash(cut), hash_any(cut), "protocol {protocol}, cut");
            }
        }
    }

    #[test]
    fn frames_cut_anywhere_have_a_hash() {
        for v6 in [false, true] {
            let whole = frame(v6, 2, 6, (1, 1), (2, 2));
            (0..whole.len()).for_each(|n| assert!(pick(hash(&whole[..n]), 7) < 7));
        }
        assert!(pick(u32::MAX, 16) == 15 && pick(0, 16) == 0);
    }
}
