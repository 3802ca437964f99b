//! What the card does to frames on its way: parsing, checksums, RSS hash, segmentation (82599 7.1.2.8, 7.1.11, 7.2.4, 7.2.5).

/// Where the headers of a frame are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) vlan: bool,
    pub(super) l3: usize,
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
    pub(super) fragment: bool,
    /// TCP (6), UDP (17) or SCTP (132) header that is there in full.
    pub(super) l4: Option<(usize, u8)>,
    /// End of the IP datagram.
    pub(super) end: usize,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn parse(frame: &[u8]) -> Layout {
    let mut layout = Layout { l3: 14, ..Layout::default() };
    let mut kind = be16(frame, 12);
    if kind == Some(0x8100) {
        (layout.vlan, layout.l3, kind) = (true, 18, be16(frame, 16));
    }
    let Some(ip) = frame.get(layout.l3..) else { return layout };
    match kind {
        Some(0x0800) if ip.len() >= 20 && ip[0] >> 4 == 4 => {
            let header = usize::from(ip[0] & 15) * 4;
            let total = usize::from(be16(ip, 2).unwrap_or(0));
            if header < 20 || total < header || total > ip.len() {
                return layout;
            }
            layout.ipv4 = true;
            layout.end = layout.l3 + total;
            layout.fragment = be16(ip, 6).unwrap_or(0) & 0x3fff != 0;
            layout.l4 = Some((layout.l3 + header, ip[9]));
        }
        Some(0x86dd) if ip.len() >= 40 && ip[0] >> 4 == 6 => {
            let total = 40 + usize::from(be16(ip, 4).unwrap_or(0));
            if total > ip.len() {
                return layout;
            }
            layout.ipv6 = true;
            layout.end = layout.l3 + total;
            layout.l4 = Some((layout.l3 + 40, ip[6]));
        }
        _ => return layout,
    }
    layout.l4 = layout.l4.filter(|&(at, proto)| {
        let header = match proto {
            6 => 20,
            17 => 8,
            132 => 12,
            _ => return false,
        };
        !layout.fragment && at + header <= layout.end
    });
    layout
}

/// One's complement sum of 16-bit words, folded, on top of `seed`.
pub(super) fn sum(bytes: &[u8], seed: u32) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)));
    let mut total = words.fold(u64::from(seed), |sum, word| sum + u64::from(word));
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The pseudo header's sum: addresses, protocol, and `len`.
pub(super) fn pseudo(frame: &[u8], layout: &Layout, proto: u8, len: usize) -> u32 {
    let addresses = if layout.ipv4 { layout.l3 + 12..layout.l3 + 20 } else { layout.l3 + 8..layout.l3 + 40 };
    u32::from(sum(frame.get(addresses).unwrap_or(&[]), 0)) + u32::from(proto) + len as u32
}

/// What the card says about the checksums of a received frame: (IP looked at, IP wrong, L4 looked at, L4 wrong).
pub(super) fn verify(frame: &[u8], layout: &Layout) -> (bool, bool, bool, bool) {
    let mut verdict = (false, false, false, false);
    if layout.ipv4 {
        let header = usize::from(frame[layout.l3] & 15) * 4;
        verdict.0 = true;
        verdict.1 = sum(&frame[layout.l3..layout.l3 + header], 0) != 0xffff;
    }
    if let Some((at, proto @ (6 | 17))) = layout.l4 {
        let segment = &frame[at..layout.end];
        if proto == 17 && segment[6..8] == [0, 0] {
            return verdict;
        }
        verdict.2 = true;
        verdict.3 = sum(segment, pseudo(frame, layout, proto, segment.len())) != 0xffff;
    }
    verdict
}

/// Microsoft's Toeplitz hash, as RSS defines it (7.1.2.8.1).
pub(super) fn toeplitz(key: &[u8; 40], input: &[u8]) -> u32 {
    let mut hash = 0;
    let mut window = u64::from_be_bytes(key[..8].try_into().expect("eight bytes"));
    for (i, byte) in input.iter().enumerate() {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= (window >> 32) as u32;
            }
            window <<= 1;
        }
        window |= u64::from(key.get(i + 8).copied().unwrap_or(0));
    }
    hash
}

/// The RSS type and hash of a frame for the fields that MRQC (8.2.3.7.12) selects; `None` when none applies.
pub(super) fn rss(frame: &[u8], layout: &Layout, key: &[u8; 40], mrqc: u32) -> Option<(u8, u32)> {
    let ports = layout.l4.map(|(at, proto)| (proto, &frame[at..at + 4]));
    let addresses = match (layout.ipv4, layout.ipv6) {
        (true, _) => &frame[layout.l3 + 12..layout.l3 + 20],
        (_, true) => &frame[layout.l3 + 8..layout.l3 + 40],
        _ => return None,
    };
    // (MRQC bit, RSS type) with ports for TCP and UDP, then without.
    let with_ports = match (layout.ipv4, ports.map(|(proto, _)| proto)) {
        (true, Some(6)) => Some((16, 1)),
        (false, Some(6)) => Some((21, 3)),
        (true, Some(17)) => Some((22, 7)),
        (false, Some(17)) => Some((23, 8)),
        _ => None,
    };
    if let (Some((bit, kind)), Some((_, ports))) = (with_ports, ports)
        && mrqc >> bit & 1 == 1
    {
        return Some((kind, toeplitz(key, &[addresses, ports].concat())));
    }
    let (bit, kind) = if layout.ipv4 { (17, 2) } else { (20, 5) };
    (mrqc >> bit & 1 == 1).then(|| (kind, toeplitz(key, addresses)))
}

/// A transmit context descriptor (7.2.3.2.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) mac_len: usize,
    pub(super) ip_len: usize,
    pub(super) vlan: u16,
    pub(super) ipv4: bool,
    /// 0 UDP, 1 TCP, 2 SCTP.
    pub(super) l4: u8,
    pub(super) l4_len: usize,
    pub(super) mss: usize,
}

impl Context {
    pub(super) fn parse(words: [u32; 4]) -> Context {
        Context {
            ip_len: (words[0] & 0x1ff) as usize,
            mac_len: (words[0] >> 9 & 0x7f) as usize,
            vlan: (words[0] >> 16) as u16,
            ipv4: words[2] >> 10 & 1 == 1,
            l4: (words[2] >> 11 & 3) as u8,
            l4_len: (words[3] >> 8 & 0xff) as usize,
            mss: (words[3] >> 16) as usize,
        }
    }

    /// Place of the L4 checksum behind the start of its header.
    fn checksum_at(&self) -> usize {
        if self.l4 == 1 { 16 } else { 6 }
    }
}

/// Inserts the checksums asked for; the L4 field holds the pseudo header's sum. False when the headers named are not there.
#[must_use]
pub(super) fn insert(frame: &mut [u8], context: &Context, ip: bool, l4: bool) -> bool {
    let l3 = context.mac_len;
    let l4_at = l3 + context.ip_len;
    if ip && context.ipv4 {
        let Some(header) = frame.get_mut(l3..l4_at).filter(|header| header.len() >= 20) else { return false };
        header[10..12].fill(0);
        let value = !sum(header, 0);
        header[10..12].copy_from_slice(&value.to_be_bytes());
    }
    if l4 && context.l4 < 2 {
        let at = context.checksum_at();
        let Some(segment) = frame.get_mut(l4_at..).filter(|segment| segment.len() >= at + 2) else {
            return false;
        };
        let value = match !sum(segment, 0) {
            0 if context.l4 == 0 => 0xffff,
            value => value,
        };
        segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    true
}

/// Cuts a frame into segments of `context.mss` payload bytes each (7.2.4). `masks` take TCP flags out of the first, the
/// middle and the last segments. `None` when the headers named are not there.
pub(super) fn segment(frame: &[u8], context: &Context, masks: [u16; 3]) -> Option<Vec<Vec<u8>>> {
    let l3 = context.mac_len;
    let l4 = l3 + context.ip_len;
    let headers = l4 + context.l4_len;
    let minimum = if context.l4 == 1 { 20 } else { 8 };
    if context.mss == 0 || headers >= frame.len() || context.l4_len < minimum || context.ip_len < 20 {
        return None;
    }
    let n_pieces = frame[headers..].len().div_ceil(context.mss);
    let sequence = u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().expect("four bytes"));
    let id = be16(frame, l3 + 4)?;
    let pieces = frame[headers..].chunks(context.mss).enumerate().map(|(i, piece)| {
        let mut out = [&frame[..headers], piece].concat();
        let ip_len = out.len() - l3;
        if context.ipv4 {
            out[l3 + 2..l3 + 4].copy_from_slice(&(ip_len as u16).to_be_bytes());
            out[l3 + 4..l3 + 6].copy_from_slice(&id.wrapping_add(i as u16).to_be_bytes());
        } else {
            out[l3 + 4..l3 + 6].copy_from_slice(&(ip_len as u16 - 40).to_be_bytes());
        }
        let l4_bytes = (out.len() - l4) as u16;
        if context.l4 == 1 {
            let sequence = sequence.wrapping_add((i * context.mss) as u32);
            out[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            let mask = match i {
                _ if i + 1 == n_pieces => masks[2],
                0 => masks[0],
                _ => masks[1],
            };
            out[l4 + 13] &= mask as u8;
        } else {
            out[l4 + 4..l4 + 6].copy_from_slice(&l4_bytes.to_be_bytes());
        }
        // The driver's seed has no length in it: the card adds that of each segment.
        let at = l4 + context.checksum_at();
        let seed = sum(&out[at..at + 2], u32::from(l4_bytes));
        out[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        insert(&mut out, context, true, true).then_some(out)
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verification suite's key and two of its rows (Microsoft, "Verifying the RSS hash calculation").
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn toeplitz_hash_matches_the_published_rows() {
        let input = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&KEY, &input), 0x51cc_c178);
        assert_eq!(toeplitz(&KEY, &input[..8]), 0x323e_8fc2);
    }

    fn tcp_frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x50, 0x19, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|i| i as u8));
        frame
    }

    #[test]
    fn segments_carry_right_lengths_sequence_numbers_and_checksums() {
        let mut frame = tcp_frame(2500);
        let context = Context { mac_len: 14, ip_len: 20, ipv4: true, l4: 1, l4_len: 20, mss: 1000, vlan: 0 };
        let seed = sum(&frame[26..34], 6);
        frame[50..52].copy_from_slice(&seed.to_be_bytes());
        let pieces = segment(&frame, &context, [0xff6, 0xff6, 0xf7f]).unwrap();
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
        for (i, piece) in pieces.iter().enumerate() {
            let layout = parse(piece);
            assert_eq!(layout.end, piece.len());
            assert_eq!(verify(piece, &layout), (true, false, true, false), "segment {i}");
            assert_eq!(piece[40..42], ((256 + i as u16 * 1000).to_be_bytes()));
            assert_eq!(piece[47] & 9, if i == 2 { 9 } else { 0 }, "FIN and PSH only in the last");
        }
    }
}
