//! Ethernet and 802.1Q headers of frames in packet buffers: what the classifier looks at.
//!
//! Called by components on the polling cores. Frames come from the wire and from guests, so every
//! length is checked; the buffer itself is ours alone. How tags are put on and taken off is with the drivers
//! ([`spp_drivers::vlan`]), some of which have their card do it.

use spp_drivers::dma::PacketBuf;
use spp_drivers::stats::DropReason;

use spp_drivers::vlan::TPID;
pub use spp_drivers::vlan::{ETHERNET_BYTES, TAG_BYTES, TAGGED_BYTES, apply, gather_header};

/// VLAN id 4095 is reserved: no frame may carry it (802.1Q 9.6).
pub const VID_RESERVED: u16 = 4095;

const VID_MASK: u16 = 0x0fff;
const MAC_MASK: u64 = 0xffff_ffff_ffff;

/// What the classifier looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Destination, as [`spp_drivers::MacAddr::to_u64`] gives it.
    pub dst: u64,
    /// VLAN id of the outer tag, or 0: untagged and priority-tagged frames are the same here (802.1Q 6.9).
    pub vid: u16,
}

/// All headers are on their way before the first is read.
#[inline(always)]
pub fn fetch_headers(packets: &[PacketBuf]) {
    packets.iter().for_each(PacketBuf::prefetch);
}

/// Reads the header of a frame whose first segment is `data`.
#[inline(always)]
pub fn parse(data: &[u8]) -> Result<Header, DropReason> {
    let Some(header) = data.first_chunk() else { return parse_short(data) };
    match parse_whole(header) {
        Header { vid: VID_RESERVED, .. } => Err(DropReason::ReservedVlan),
        header => Ok(header),
    }
}

/// The same of a frame long enough for a tag. The VLAN may be the [reserved](VID_RESERVED) one, which is in no table.
#[inline(always)]
pub fn parse_whole(header: &[u8; TAGGED_BYTES]) -> Header {
    let dst = header.first_chunk().map_or(0, |first| u64::from_le_bytes(*first)) & MAC_MASK;
    let is_tagged = [header[12], header[13]] == TPID;
    let vid = if is_tagged { u16::from_be_bytes([header[14], header[15]]) & VID_MASK } else { 0 };
    Header { dst, vid }
}

/// A frame too short for a tag: 14 to 17 bytes are a frame when untagged.
#[cold]
fn parse_short(data: &[u8]) -> Result<Header, DropReason> {
    let header = data.first_chunk::<ETHERNET_BYTES>().ok_or(DropReason::Runt)?;
    if [header[12], header[13]] == TPID {
        return Err(DropReason::Runt);
    }
    let [a, b, c, d, e, f, ..] = *header;
    Ok(Header { dst: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), vid: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::VlanOp;
    use spp_drivers::MacAddr;
    use spp_drivers::dma::{DmaSpace, HEADROOM, Offload, Pool, PoolCache, PoolConfig};

    const TPID_AT: usize = 12;

    const DST: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];

    fn cache() -> PoolCache {
        Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap().cache()
    }

    /// Addresses, then `words` (tags and type) in wire order, then 46 bytes counting up.
    fn frame(words: &[u16]) -> Vec<u8> {
        let mut bytes = DST.to_vec();
        bytes.extend([2, 0, 0, 0, 0, 1]);
        words.iter().for_each(|word| bytes.extend(word.to_be_bytes()));
        bytes.extend(0..46);
        bytes
    }

    fn packet(cache: &mut PoolCache, bytes: &[u8]) -> PacketBuf {
        let mut packet = cache.alloc().unwrap();
        packet.append(bytes).unwrap();
        packet
    }

    /// A chain whose segments hold `sizes` bytes each, the last one the rest.
    fn chain(cache: &mut PoolCache, bytes: &[u8], sizes: &[usize]) -> PacketBuf {
        let mut rest = bytes;
        let mut segments = sizes.iter().map(|&n| {
            let (now, later) = rest.split_at(n);
            rest = later;
            packet(cache, now)
        });
        let mut head = segments.next().unwrap();
        let others: Vec<_> = segments.collect();
        others.into_iter().for_each(|s| head.last_segment_mut().chain(s));
        let last = packet(cache, rest);
        head.last_segment_mut().chain(last);
        head
    }

    fn bytes(packet: &PacketBuf) -> Vec<u8> {
        packet.segments().flatten().copied().collect()
    }

    fn applied(op: VlanOp, words: &[u16]) -> Vec<u8> {
        let mut cache = cache();
        let mut packet = packet(&mut cache, &frame(words));
        apply(op, &mut packet, &mut cache).unwrap();
        bytes(&packet)
    }

    const ADD: VlanOp = VlanOp::Add { vid: 300, pcp: 5 };
    const ADDED: u16 = 5 << 13 | 300;

    #[test]
    fn add_tags_untagged_frames_and_overwrites_tagged_ones() {
        assert_eq!(applied(ADD, &[0x0800]), frame(&[0x8100, ADDED, 0x0800]));
        // Q9: the frame's own priority 3 and DEI give way to the configured priority, no second tag.
        assert_eq!(applied(ADD, &[0x8100, 3 << 13 | 1 << 12 | 100, 0x0800]), frame(&[0x8100, ADDED, 0x0800]));
        assert_eq!(applied(ADD, &[0x8100, 0, 0x0800]), frame(&[0x8100, ADDED, 0x0800]));
    }

    #[test]
    fn add_puts_a_tag_before_a_provider_tag() {
        assert_eq!(applied(ADD, &[0x88a8, 100, 0x0800]), frame(&[0x8100, ADDED, 0x88a8, 100, 0x0800]));
    }

    #[test]
    fn only_the_outer_of_two_tags_is_changed() {
        let qinq = [0x8100, 100, 0x8100, 200, 0x0800];
        assert_eq!(applied(ADD, &qinq), frame(&[0x8100, ADDED, 0x8100, 200, 0x0800]));
        assert_eq!(applied(VlanOp::Del, &qinq), frame(&[0x8100, 200, 0x0800]));
    }

    #[test]
    fn del_removes_one_tag_if_there_is_one() {
        assert_eq!(applied(VlanOp::Del, &[0x8100, 100, 0x0800]), frame(&[0x0800]));
        assert_eq!(applied(VlanOp::Del, &[0x0800]), frame(&[0x0800]));
        assert_eq!(applied(VlanOp::Del, &[0x88a8, 100, 0x0800]), frame(&[0x88a8, 100, 0x0800]));
    }

    #[test]
    fn none_does_not_read_the_frame() {
        let mut cache = cache();
        let mut empty = cache.alloc().unwrap();
        assert_eq!(apply(VlanOp::None, &mut empty, &mut cache), Ok(()));
    }

    #[test]
    fn tag_operations_write_nothing_behind_the_frame() {
        // Q10: no FCS is put after the data.
        for (op, words) in
            [(ADD, &[0x0800][..]), (ADD, &[0x8100, 1, 0x0800]), (VlanOp::Del, &[0x8100, 1, 0x0800])]
        {
            let mut cache = cache();
            let mut packet = packet(&mut cache, &frame(words));
            let len = packet.len();
            packet.append(&[0xa5; 64]).unwrap();
            packet.set_len(len).unwrap();
            apply(op, &mut packet, &mut cache).unwrap();
            let len = packet.len();
            packet.set_len(len + 64).unwrap();
            assert_eq!(packet.data()[len..], [0xa5; 64], "{op:?}");
        }
    }

    #[test]
    fn frame_without_headroom_is_refused_unchanged() {
        let mut cache = cache();
        let mut packet = packet(&mut cache, &frame(&[0x0800]));
        packet.push_front(HEADROOM - 3).unwrap();
        packet.data_mut()[TPID_AT..ETHERNET_BYTES].copy_from_slice(&[8, 0]);
        let before = bytes(&packet);
        assert_eq!(apply(ADD, &mut packet, &mut cache), Err(DropReason::NoRoomForTag));
        assert_eq!(bytes(&packet), before);
        // Overwriting needs no room.
        packet.data_mut()[TPID_AT..ETHERNET_BYTES].copy_from_slice(&TPID);
        assert_eq!(apply(ADD, &mut packet, &mut cache), Ok(()));
    }

    #[test]
    fn frames_of_1_to_13_bytes_are_runts_for_every_reader() {
        let whole = frame(&[0x0800]);
        for n in 0..ETHERNET_BYTES {
            let mut cache = cache();
            let mut packet = packet(&mut cache, &whole[..n]);
            assert_eq!(parse(packet.data()), Err(DropReason::Runt), "{n}");
            assert_eq!(apply(ADD, &mut packet, &mut cache), Err(DropReason::Runt), "{n}");
            assert_eq!(apply(VlanOp::Del, &mut packet, &mut cache), Err(DropReason::Runt), "{n}");
            assert_eq!(bytes(&packet), &whole[..n]);
        }
    }

    #[test]
    fn frames_of_14_to_17_bytes_are_whole_when_untagged_and_runts_when_tagged() {
        let (untagged, tagged) = (frame(&[0x0800]), frame(&[0x8100, 100, 0x0800]));
        for n in ETHERNET_BYTES..TAGGED_BYTES {
            let mut cache = cache();
            let mut packet = packet(&mut cache, &untagged[..n]);
            let dst = MacAddr(DST).to_u64();
            assert_eq!(parse(packet.data()), Ok(Header { dst, vid: 0 }), "{n}");
            apply(ADD, &mut packet, &mut cache).unwrap();
            assert_eq!(packet.len(), n + TAG_BYTES);
            assert_eq!(parse(packet.data()), Ok(Header { dst, vid: 300 }), "{n}");
            let mut cut = packet_of(&tagged[..n]);
            assert_eq!(parse(cut.1.data()), Err(DropReason::Runt), "{n}");
            assert_eq!(apply(ADD, &mut cut.1, &mut cut.0), Err(DropReason::Runt), "{n}");
            assert_eq!(apply(VlanOp::Del, &mut cut.1, &mut cut.0), Err(DropReason::Runt), "{n}");
        }
        let mut whole = packet_of(&tagged[..TAGGED_BYTES]);
        apply(VlanOp::Del, &mut whole.1, &mut whole.0).unwrap();
        assert_eq!(whole.1.len(), ETHERNET_BYTES);
    }

    fn packet_of(bytes: &[u8]) -> (PoolCache, PacketBuf) {
        let mut cache = cache();
        let packet = packet(&mut cache, bytes);
        (cache, packet)
    }

    #[test]
    fn vlan_id_is_read_from_the_outer_0x8100_tag_only() {
        let vid = |words: &[u16]| parse(&frame(words)).map(|h| h.vid);
        assert_eq!(vid(&[0x0800]), Ok(0));
        assert_eq!(vid(&[0x8100, 7 << 13 | 1 << 12 | 4094, 0x0800]), Ok(4094));
        assert_eq!(vid(&[0x8100, 3 << 13, 0x0800]), Ok(0), "Q5: a priority tag is no VLAN");
        assert_eq!(vid(&[0x8100, 4095, 0x0800]), Err(DropReason::ReservedVlan), "Q4");
        assert_eq!(vid(&[0x88a8, 100, 0x0800]), Ok(0), "Q6");
        assert_eq!(vid(&[0x8100, 100, 0x8100, 200, 0x0800]), Ok(100));
        assert_eq!(parse(&frame(&[0x0800])).unwrap().dst, MacAddr(DST).to_u64());
    }

    #[test]
    fn chained_frames_keep_their_bytes_wherever_they_are_cut() {
        let (plain, tagged) = (frame(&[0x0800]), frame(&[0x8100, 100, 0x0800]));
        for cut in 0..20 {
            for sizes in [vec![cut], vec![cut, 0], vec![cut, 1, 1, 0, 2], vec![0, cut]] {
                let mut cache = cache();
                let mut p = chain(&mut cache, &plain, &sizes);
                gather_header(&mut p, &mut cache);
                assert_eq!(parse(p.data()).unwrap().vid, 0, "{sizes:?}");
                apply(ADD, &mut p, &mut cache).unwrap();
                assert_eq!(bytes(&p), frame(&[0x8100, ADDED, 0x0800]), "{sizes:?}");
                apply(VlanOp::Del, &mut p, &mut cache).unwrap();
                assert_eq!(bytes(&p), plain, "{sizes:?}");
                let mut p = chain(&mut cache, &tagged, &sizes);
                apply(ADD, &mut p, &mut cache).unwrap();
                assert_eq!(bytes(&p), frame(&[0x8100, ADDED, 0x0800]), "{sizes:?}");
            }
        }
    }

    #[test]
    fn tag_operations_change_only_the_handle_they_are_done_on() {
        for (op, words) in
            [(ADD, &[0x0800][..]), (ADD, &[0x8100, 1, 0x0800]), (VlanOp::Del, &[0x8100, 1, 0x0800])]
        {
            for sizes in [&[][..], &[14], &[5, 1], &[40]] {
                let mut cache = cache();
                let whole = frame(words);
                let mut changed = if sizes.is_empty() {
                    packet(&mut cache, &whole)
                } else {
                    chain(&mut cache, &whole, sizes)
                };
                let kept = changed.share();
                apply(op, &mut changed, &mut cache).unwrap();
                assert_eq!(bytes(&changed), applied(op, words), "{op:?} {sizes:?}");
                assert_eq!(bytes(&kept), whole, "{op:?} {sizes:?}");
            }
        }
    }

    #[test]
    fn shared_frame_is_not_changed_when_there_is_no_buffer_for_a_copy() {
        let mut cache = cache();
        let mut p = packet(&mut cache, &frame(&[0x0800]));
        let _other = p.share();
        let _all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(apply(ADD, &mut p, &mut cache), Err(DropReason::NoBuffer));
        assert_eq!(apply(VlanOp::Del, &mut p, &mut cache), Ok(()), "there is no tag to remove");
        assert_eq!(bytes(&p), frame(&[0x0800]));
    }

    #[test]
    fn checksum_positions_move_with_the_tag() {
        let mut cache = cache();
        let mut packet = packet(&mut cache, &frame(&[0x0800]));
        let offload =
            Offload { csum_start: 34, csum_offset: 16, hdr_len: 54, gso_size: 1448, ..Offload::default() };
        packet.set_offload(Some(offload));
        apply(ADD, &mut packet, &mut cache).unwrap();
        assert_eq!(packet.offload(), Some(Offload { csum_start: 38, hdr_len: 58, ..offload }));
        apply(VlanOp::Del, &mut packet, &mut cache).unwrap();
        assert_eq!(packet.offload(), Some(offload));
    }
}
