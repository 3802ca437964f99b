//! Ethernet frames as the wire's far end builds and reads them; pure functions.

use std::fmt;

/// An Ethernet address in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Mac).ok_or_else(|| format!("{text:?} is no address"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// IEEE 802's first EtherType for local experiments: no real host answers or forwards it.
pub const ETHERTYPE_EXPERIMENT: u16 = 0x88b5;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// One frame, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// VLAN id and priority of the outer 802.1Q tag, if there is one.
    pub vlan: Option<(u16, u8)>,
    /// EtherType behind the tag.
    pub ethertype: u16,
    /// Everything behind the EtherType, padding included.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of the lab's own EtherType: `payload_len_bytes` bytes that begin with `number` (big-endian).
    pub fn numbered(dst: Mac, src: Mac, vlan: Option<u16>, number: u32, payload_len_bytes: usize) -> Frame {
        let mut payload: Vec<u8> = (0..payload_len_bytes).map(|at| at as u8).collect();
        payload[..4].copy_from_slice(&number.to_be_bytes());
        Frame { dst, src, vlan: vlan.map(|id| (id, 0)), ethertype: ETHERTYPE_EXPERIMENT, payload }
    }

    /// The same frame on its way back: addresses swapped.
    pub fn swapped(&self) -> Frame {
        Frame { dst: self.src, src: self.dst, ..self.clone() }
    }

    /// The bytes on the wire, without frame check sequence.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.dst.0, self.src.0].concat();
        if let Some((id, priority)) = self.vlan {
            bytes.extend(ETHERTYPE_VLAN.to_be_bytes());
            bytes.extend((u16::from(priority) << 13 | id).to_be_bytes());
        }
        bytes.extend(self.ethertype.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Takes received bytes apart; nothing if they are no whole Ethernet header.
    pub fn parse(bytes: &[u8]) -> Option<Frame> {
        let be16 = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let mac = |at: usize| Some(Mac(bytes.get(at..at + 6)?.try_into().ok()?));
        let tagged = be16(12)? == ETHERTYPE_VLAN;
        let vlan = match tagged {
            true => be16(14).map(|tci| (tci & 0xfff, (tci >> 13) as u8)),
            false => None,
        };
        let type_at = if tagged { 16 } else { 12 };
        Some(Frame {
            dst: mac(0)?,
            src: mac(6)?,
            vlan,
            ethertype: be16(type_at)?,
            payload: bytes[type_at + 2..].to_vec(),
        })
    }
}
