//! The demo's frames: each says who sent it to whom, and which one it is.
//!
//! Ethernet header, perhaps a VLAN tag, EtherType 0x88b5 (local experiments, IEEE 802 9.2.3), a mark,
//! sender, receiver, sequence number, and a filling that follows from the number: whatever is
//! altered, cut or swapped on the way is seen by [`read`].

use spp_drivers::MacAddr;

const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const TPID_8021Q: [u8; 2] = [0x81, 0x00];
const MARK: &[u8; 8] = b"spp-demo";
/// Header, mark, sender, receiver, sequence number.
const FIXED_BYTES: usize = 14 + MARK.len() + 2 + 8;
/// Frame lengths in turn, without tag: the shortest, the longest, and between.
const LENGTHS: [usize; 4] = [60, 1514, 128, 590];

/// Where a frame comes from and goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Station that sends.
    pub from: u8,
    /// Station that is to receive.
    pub to: u8,
    /// Number of the frame within this flow, from 0.
    pub seq: u64,
}

/// The addresses of a frame, and its VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Receiver's address.
    pub dst: MacAddr,
    /// Sender's address.
    pub src: MacAddr,
    /// VLAN id of the tag, if there is one.
    pub vlan: Option<u16>,
}

/// Why a frame is none of the demo's, or no longer what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Not a frame of the demo.
    Foreign,
    /// Its length does not fit its number.
    Length,
    /// Its filling does not fit its number.
    Content,
}

/// Writes a frame into `out`, replacing what is there.
pub fn write(out: &mut Vec<u8>, header: &Header, label: Label) {
    out.clear();
    out.extend_from_slice(&header.dst.0);
    out.extend_from_slice(&header.src.0);
    if let Some(vlan) = header.vlan {
        out.extend_from_slice(&TPID_8021Q);
        out.extend_from_slice(&vlan.to_be_bytes());
    }
    out.extend_from_slice(&ETHERTYPE);
    out.extend_from_slice(MARK);
    out.extend_from_slice(&[label.from, label.to]);
    out.extend_from_slice(&label.seq.to_le_bytes());
    out.extend_from_slice(filling(label.seq));
}

/// Reads a frame back and checks it whole.
pub fn read(frame: &[u8]) -> Result<(Header, Label), Damage> {
    let (dst, rest) = frame.split_first_chunk::<6>().ok_or(Damage::Foreign)?;
    let (src, mut rest) = rest.split_first_chunk::<6>().ok_or(Damage::Foreign)?;
    let mut vlan = None;
    if let Some(tagged) = rest.strip_prefix(&TPID_8021Q) {
        let (tci, inner) = tagged.split_first_chunk::<2>().ok_or(Damage::Foreign)?;
        vlan = Some(u16::from_be_bytes(*tci) & 0x0fff);
        rest = inner;
    }
    let rest =
        rest.strip_prefix(&ETHERTYPE).and_then(|rest| rest.strip_prefix(MARK)).ok_or(Damage::Foreign)?;
    let ([from, to], rest) = rest.split_first_chunk::<2>().ok_or(Damage::Foreign)?;
    let (seq, fill) = rest.split_first_chunk::<8>().ok_or(Damage::Foreign)?;
    let seq = u64::from_le_bytes(*seq);
    let expected = filling(seq);
    if fill.len() != expected.len() {
        return Err(Damage::Length);
    }
    if fill != expected {
        return Err(Damage::Content);
    }
    let header = Header { dst: MacAddr(*dst), src: MacAddr(*src), vlan };
    Ok((header, Label { from: *from, to: *to, seq }))
}

/// What follows the number: as long as its turn says, counting up from the number.
fn filling(seq: u64) -> &'static [u8] {
    static COUNT: [u8; 2048] = {
        let mut bytes = [0; 2048];
        let mut i = 0;
        while i < bytes.len() {
            bytes[i] = i as u8;
            i += 1;
        }
        bytes
    };
    let length = LENGTHS[(seq % LENGTHS.len() as u64) as usize] - FIXED_BYTES;
    &COUNT[usize::from(seq as u8)..][..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(vlan: Option<u16>, seq: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let header = Header { dst: MacAddr([2, 0, 0, 0, 0, 1]), src: MacAddr([2, 0, 0, 0, 0, 2]), vlan };
        write(&mut out, &header, Label { from: 3, to: 4, seq });
        out
    }

    #[test]
    fn frames_of_all_lengths_are_read_back_with_their_tag() {
        for seq in (0..8).chain([u64::MAX]) {
            for vlan in [None, Some(1), Some(4094)] {
                let (header, label) = read(&frame(vlan, seq)).unwrap();
                assert_eq!((header.vlan, label), (vlan, Label { from: 3, to: 4, seq }));
            }
        }
        assert_eq!(frame(None, 0).len(), 60);
        assert_eq!(frame(Some(7), 1).len(), 1518);
    }

    #[test]
    fn every_altered_byte_behind_the_addresses_is_noticed() {
        let sent = frame(None, 2);
        for i in 12..sent.len() {
            let mut got = sent.clone();
            got[i] ^= 0x40;
            assert_ne!(read(&got), read(&sent), "byte {i}");
        }
        assert_eq!(read(&sent[..sent.len() - 1]), Err(Damage::Length));
        assert_eq!(read(&sent[..20]), Err(Damage::Foreign));
        assert_eq!(read(&[]), Err(Damage::Foreign));
    }
}
