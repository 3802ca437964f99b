//! Where the headers of a frame begin and end: Ethernet with up to two tags, IPv4 or IPv6, TCP.
//!
//! Lengths come from the frame's own bytes, never from what a guest says about them beside the frame.
//! Polling cores call this for frames with offload work only.

const ETHERNET: usize = 14;
const TAG: usize = 4;
/// Tags looked behind: a VLAN's and a provider's.
const MAX_TAGS: usize = 2;
/// Extension headers looked behind; Linux sends none with TCP, so this is generous.
const MAX_EXTENSIONS: usize = 4;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(super) const TCP: u8 = 6;

/// The EtherType behind all tags, and where the network header begins. `None` when the frame ends before.
pub fn network(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = ETHERNET;
    for _ in 0..=MAX_TAGS {
        let ether_type = u16::from_be_bytes(*frame.get(at - 2..)?.first_chunk()?);
        match ether_type {
            0x8100 | 0x88a8 => at += TAG,
            _ => return Some((ether_type, at)),
        }
    }
    None
}

/// A TCP frame's headers, as offsets from the first byte of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpLayout {
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// First byte of the IP header.
    pub network: usize,
    /// First byte of the TCP header.
    pub transport: usize,
    /// First byte of the payload: the length of all headers.
    pub payload: usize,
}

impl TcpLayout {
    /// Finds the headers in the first bytes of a frame. `None` for anything but a whole, unfragmented TCP header behind
    /// IPv4 or IPv6.
    pub fn of(frame: &[u8]) -> Option<TcpLayout> {
        let (ether_type, network) = super::layout::network(frame)?;
        let (ipv6, transport) = match ether_type {
            IPV4 => (false, network + ipv4_header(&frame[network..])?),
            IPV6 => (true, network + ipv6_headers(&frame[network..])?),
            _ => return None,
        };
        let header_bytes = usize::from(*frame.get(transport + 12)? >> 4) * 4;
        let payload = transport + header_bytes;
        (header_bytes >= 20 && payload <= frame.len()).then_some(TcpLayout {
            ipv6,
            network,
            transport,
            payload,
        })
    }

    /// The longest IP packet whose length its header can say, as a length of the frame.
    pub(super) fn longest_frame(&self) -> usize {
        let outside = if self.ipv6 { self.network + 40 } else { self.network };
        outside + usize::from(u16::MAX)
    }
}

/// Length of an IPv4 header in front of TCP; fragments carry no TCP header one could work with.
fn ipv4_header(packet: &[u8]) -> Option<usize> {
    let header = packet.first_chunk::<20>()?;
    let len = usize::from(header[0] & 15) * 4;
    let whole = u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
    (header[0] >> 4 == 4 && len >= 20 && header[9] == TCP && whole).then_some(len)
}

/// Length of an IPv6 header with its extensions in front of TCP. With a routing header still under way the last
/// address is another one, so such frames are not ours to work on; nor are fragments.
fn ipv6_headers(packet: &[u8]) -> Option<usize> {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    const ROUTING: u8 = 43;
    let header = packet.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut next, mut at) = (header[6], 40);
    for _ in 0..=MAX_EXTENSIONS {
        if next == TCP {
            return Some(at);
        }
        let extension = packet.get(at..)?.first_chunk::<4>()?;
        let passable = match next {
            HOP_BY_HOP | DESTINATION => true,
            ROUTING => extension[3] == 0, // no segments left
            _ => false,
        };
        if !passable {
            return None;
        }
        (next, at) = (extension[0], at + 8 * (1 + usize::from(extension[1])));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Shape, tcp_frame};
    use super::*;

    #[test]
    fn headers_are_found_behind_tags_options_and_extensions() {
        for shape in Shape::all() {
            let frame = tcp_frame(&shape, 100);
            let found = TcpLayout::of(&frame).unwrap_or_else(|| panic!("{shape:?}"));
            assert_eq!((found.ipv6, found.payload), (shape.ipv6, frame.len() - 100), "{shape:?}");
            assert_eq!(found.network, 14 + 4 * shape.tags.len(), "{shape:?}");
            assert_eq!(found.transport, found.payload - 20 - shape.tcp_options, "{shape:?}");
        }
    }

    #[test]
    fn frame_cut_anywhere_in_its_headers_has_no_layout() {
        for shape in Shape::all() {
            let frame = tcp_frame(&shape, 0);
            for n in 0..frame.len() {
                assert_eq!(TcpLayout::of(&frame[..n]), None, "{shape:?} cut to {n}");
            }
        }
    }

    #[test]
    fn fragments_other_protocols_and_three_tags_have_no_layout() {
        let plain = tcp_frame(&Shape::default(), 100);
        for (at, byte) in [(20, 0x20), (21, 1), (23, 17), (14, 0x55), (14, 0x44), (12, 9), (46, 0x40)] {
            let mut frame = plain.clone();
            frame[at] = byte;
            assert_eq!(TcpLayout::of(&frame), None, "byte {at} = {byte:#x}");
        }
        let triple = Shape { tags: vec![0x8100, 0x8100, 0x8100], ..Shape::default() };
        assert_eq!(TcpLayout::of(&tcp_frame(&triple, 10)), None);
        let mut routed = tcp_frame(&Shape { ipv6: true, extension: Some(43), ..Shape::default() }, 10);
        assert!(TcpLayout::of(&routed).is_some());
        routed[14 + 40 + 3] = 1; // a segment left
        assert_eq!(TcpLayout::of(&routed), None);
    }
}
