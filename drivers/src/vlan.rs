//! Tags of 802.1Q: put on, overwritten, taken off, in software.
//!
//! Called on the polling cores: by components, and by drivers whose card is asked to do the same and can't for one frame.
//! Frames come from the wire and from guests, so every length is checked; the buffer itself is ours alone. Only TPID
//! 0x8100 is a tag here: a frame that begins with 0x88a8 (802.1ad) counts as untagged, and of two tags only the outer is seen.
//!
//! | operation | untagged | tagged 0x8100 | 0x88a8 |
//! |---|---|---|---|
//! | add | tag inserted | VLAN id and priority overwritten, DEI cleared | 0x8100 tag inserted before it |
//! | del | unchanged | outer tag removed | unchanged |
//!
//! No FCS is written: buffers hold frames without one.

use crate::dma::{PacketBuf, PoolCache};
use crate::stats::DropReason;

/// What is done to the outer 802.1Q tag of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VlanOp {
    /// Nothing; the header is not even read.
    #[default]
    None,
    /// Tags the frame, or overwrites the tag it has.
    Add {
        /// VLAN id, 0..=4095.
        vid: u16,
        /// Priority, 0..=7.
        pcp: u8,
    },
    /// Removes one tag, if there is one.
    Del,
}

/// Length of an Ethernet header without tag, in bytes: the shortest frame a component passes on.
pub const ETHERNET_BYTES: usize = 14;

/// Length of a tag in bytes.
pub const TAG_BYTES: usize = 4;

/// Length of an Ethernet header with one tag, in bytes.
pub const TAGGED_BYTES: usize = ETHERNET_BYTES + TAG_BYTES;

/// What says that a tag follows, as on the wire.
pub const TPID: [u8; 2] = [0x81, 0x00];

const TPID_AT: usize = 12;
const VID_MASK: u16 = 0x0fff;

/// Brings the header of a chained frame into its first segment, if a sender split it there.
/// Whatever else was cut up stays so.
#[inline(always)]
pub fn gather_header(packet: &mut PacketBuf, pool: &mut PoolCache) {
    if packet.len() < TAGGED_BYTES && packet.is_chained() {
        gather_header_slow(packet, pool);
    }
}

#[cold]
fn gather_header_slow(packet: &mut PacketBuf, pool: &mut PoolCache) {
    if packet.own_chain(pool).is_err() {
        return; // without a copy the frame is judged by what its first segment holds
    }
    // Each round empties a segment or ends with a whole header, so rounds are bounded by the chain.
    while packet.len() < TAGGED_BYTES {
        let Some(mut rest) = packet.unchain() else { return };
        let n = (TAGGED_BYTES - packet.len()).min(rest.len());
        let mut moved = [0; TAGGED_BYTES];
        moved[..n].copy_from_slice(&rest.data()[..n]);
        let fits = packet.append(&moved[..n]).and_then(|()| rest.pull_front(n));
        let next = if rest.len() == 0 && fits.is_ok() { rest.unchain() } else { Some(rest) };
        if let Some(next) = next {
            packet.chain(next);
        }
        if fits.is_err() {
            return; // no tailroom: the frame is judged by what its first segment holds
        }
    }
}

/// Applies one operation to a frame, to this handle of it alone: what others read does not change. On error the frame
/// is unchanged and must be dropped for that reason.
#[inline(always)]
pub fn apply(op: VlanOp, packet: &mut PacketBuf, pool: &mut PoolCache) -> Result<(), DropReason> {
    match op {
        VlanOp::None => Ok(()),
        VlanOp::Add { vid, pcp } => add_tag(packet, tci(vid, pcp), pool),
        VlanOp::Del => remove_tag(packet, pool),
    }
}

/// The tag control information for a VLAN id and a priority, DEI clear.
#[inline(always)]
pub const fn tci(vid: u16, pcp: u8) -> u16 {
    (pcp as u16) << 13 | vid & VID_MASK
}

/// True when the outer tag is there and whole; `Runt` when the frame ends within its header.
#[inline(always)]
fn is_tagged(data: &[u8]) -> Result<bool, DropReason> {
    let header = data.first_chunk::<ETHERNET_BYTES>().ok_or(DropReason::Runt)?;
    match [header[12], header[13]] == TPID {
        true if data.len() < TAGGED_BYTES => Err(DropReason::Runt),
        tagged => Ok(tagged),
    }
}

/// Both addresses of a frame in two words: so they move in registers, and not in memory.
#[inline(always)]
fn addresses(header: &[u8; TAGGED_BYTES]) -> ([u8; 8], [u8; 4]) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *header;
    ([a, b, c, d, e, f, g, h], [i, j, k, l])
}

/// Tags a frame with this tag control information, or overwrites the tag it has. Errors as those of [`apply`].
#[inline(always)]
pub fn add_tag(packet: &mut PacketBuf, tci: u16, pool: &mut PoolCache) -> Result<(), DropReason> {
    if packet.is_simple()
        && packet.headroom() >= TAG_BYTES
        && let Some(header) = packet.data().first_chunk::<TAGGED_BYTES>()
        && header[TPID_AT..TPID_AT + 2] != TPID
    {
        let (([a, b, c, d, e, f, g, h], [i, j, k, l]), [m, n]) = (addresses(header), tci.to_be_bytes());
        packet.push_front(TAG_BYTES).map_err(|_| DropReason::NoRoomForTag)?;
        let tagged = packet.data_mut().first_chunk_mut::<16>().ok_or(DropReason::Runt)?;
        *tagged = [a, b, c, d, e, f, g, h, i, j, k, l, TPID[0], TPID[1], m, n];
        return Ok(());
    }
    add_tag_to_any(packet, tci, pool)
}

#[inline(never)]
fn add_tag_to_any(packet: &mut PacketBuf, tci: u16, pool: &mut PoolCache) -> Result<(), DropReason> {
    gather_header(packet, pool);
    let tagged = is_tagged(packet.data())?;
    let tci = tci.to_be_bytes();
    packet.make_own(pool).map_err(|_| DropReason::NoBuffer)?;
    if tagged {
        packet.data_mut()[TPID_AT + 2..TAGGED_BYTES - 2].copy_from_slice(&tci);
        return Ok(());
    }
    packet.push_front(TAG_BYTES).map_err(|_| DropReason::NoRoomForTag)?;
    let data = packet.data_mut();
    data.copy_within(TAG_BYTES..TAG_BYTES + TPID_AT, 0);
    data[TPID_AT..TPID_AT + 2].copy_from_slice(&TPID);
    data[TPID_AT + 2..TPID_AT + 4].copy_from_slice(&tci);
    shift_offload(packet, |at| at.saturating_add(TAG_BYTES as u16));
    Ok(())
}

/// Takes the outer tag off a frame that has one. Errors as those of [`apply`].
#[inline(always)]
pub fn remove_tag(packet: &mut PacketBuf, pool: &mut PoolCache) -> Result<(), DropReason> {
    if packet.is_simple()
        && let Some(header) = packet.data_mut().first_chunk_mut::<TAGGED_BYTES>()
    {
        if header[TPID_AT..TPID_AT + 2] != TPID {
            return Ok(());
        }
        let ([a, b, c, d, e, f, g, h], [i, j, k, l]) = addresses(header);
        header[TAG_BYTES..16].copy_from_slice(&[a, b, c, d, e, f, g, h, i, j, k, l]);
        return packet.pull_front(TAG_BYTES).map_err(|_| DropReason::Runt);
    }
    remove_tag_from_any(packet, pool)
}

#[inline(never)]
fn remove_tag_from_any(packet: &mut PacketBuf, pool: &mut PoolCache) -> Result<(), DropReason> {
    gather_header(packet, pool);
    if !is_tagged(packet.data())? {
        return Ok(());
    }
    packet.make_own(pool).map_err(|_| DropReason::NoBuffer)?;
    packet.data_mut().copy_within(0..TPID_AT, TAG_BYTES);
    packet.pull_front(TAG_BYTES).map_err(|_| DropReason::Runt)?;
    shift_offload(packet, |at| at.saturating_sub(TAG_BYTES as u16));
    Ok(())
}

/// Puts a tag back where a card took it off; how many bytes longer the frame is.
pub fn put_back(frame: &mut PacketBuf, tci: u16) -> u64 {
    if frame.len() < TPID_AT || frame.push_front(TAG_BYTES).is_err() {
        debug_assert!(false, "a buffer of a card has its whole headroom, and a frame its header");
        return 0;
    }
    let bytes = frame.data_mut();
    bytes.copy_within(TAG_BYTES..TAG_BYTES + TPID_AT, 0);
    bytes[TPID_AT..TPID_AT + 2].copy_from_slice(&TPID);
    bytes[TPID_AT + 2..TPID_AT + 4].copy_from_slice(&tci.to_be_bytes());
    TAG_BYTES as u64
}

/// Keeps checksum and segmentation positions where they were in the payload.
#[inline(always)]
fn shift_offload(packet: &mut PacketBuf, shift: impl Fn(u16) -> u16) {
    if let Some(mut offload) = packet.offload() {
        offload.csum_start = shift(offload.csum_start);
        if offload.hdr_len != 0 {
            offload.hdr_len = shift(offload.hdr_len);
        }
        packet.set_offload(Some(offload));
    }
}
