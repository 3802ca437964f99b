//! Frames to work on, and an independent parser's opinion of what came out.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, Offload};
use crate::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};

/// How a TCP frame's headers look.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    pub ipv6: bool,
    /// TPIDs, outer first.
    pub tags: Vec<u16>,
    /// Bytes of IPv4 options.
    pub ip_options: usize,
    /// An IPv6 extension header of 8 bytes.
    pub extension: Option<u8>,
    /// Bytes of TCP options.
    pub tcp_options: usize,
}

impl Shape {
    /// Every kind of header in every place.
    pub fn all() -> Vec<Shape> {
        let tags = [vec![], vec![0x8100], vec![0x88a8, 0x8100]];
        let mut all = Vec::new();
        for tags in tags {
            for tcp_options in [0, 12, 40] {
                for ip_options in [0, 4, 40] {
                    all.push(Shape { tags: tags.clone(), ip_options, tcp_options, ..Shape::default() });
                }
                for extension in [None, Some(0), Some(60), Some(43)] {
                    all.push(Shape {
                        ipv6: true,
                        tags: tags.clone(),
                        extension,
                        tcp_options,
                        ..Shape::default()
                    });
                }
            }
        }
        all
    }
}

/// A frame with wrong checksums and lengths, as a guest's stack may leave them, and every flag that matters set.
/// Identification and sequence number are about to wrap.
pub fn tcp_frame(shape: &Shape, payload_bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a];
    for tpid in &shape.tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend([0x20, 100]);
    }
    if shape.ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0xab, 0xcd, shape.extension.unwrap_or(6), 64]);
        frame.extend((0..32).map(|i| 0x20 + i));
        if shape.extension.is_some() {
            frame.extend([6, 0, 1, 0, 0, 0, 0, 0]);
        }
    } else {
        let words = 5 + shape.ip_options as u8 / 4;
        frame.extend([0x08, 0x00, 0x40 | words, 0, 0xab, 0xcd, 0xff, 0xfe, 0x40, 0, 64, 6, 0x12, 0x34]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(std::iter::repeat_n(1, shape.ip_options));
    }
    let words = 5 + shape.tcp_options as u8 / 4;
    frame.extend([0x12, 0x34, 0x00, 0x50, 0xff, 0xff, 0xf0, 0x00, 1, 2, 3, 4, words << 4, 0x99]);
    frame.extend([0x40, 0x00, 0xde, 0xad, 0, 0]);
    frame.extend(std::iter::repeat_n(1, shape.tcp_options));
    frame.extend((0..payload_bytes).map(|i| (i * 7 + i / 251) as u8));
    frame
}

/// The header a guest's driver would put before [`tcp_frame`].
pub fn long_request(shape: &Shape, gso_size: u16) -> Offload {
    let network = 14 + 4 * shape.tags.len();
    let ip = if shape.ipv6 { 40 + 8 * usize::from(shape.extension.is_some()) } else { 20 + shape.ip_options };
    Offload {
        flags: F_NEEDS_CSUM,
        gso_type: if shape.ipv6 { GSO_TCPV6 } else { GSO_TCPV4 },
        hdr_len: (network + ip + 20 + shape.tcp_options) as u16,
        gso_size,
        csum_start: (network + ip) as u16,
        csum_offset: 16,
    }
}

pub fn cache(n_buffers: u32) -> (Pool, PoolCache) {
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers }).unwrap();
    let cache = pool.cache();
    (pool, cache)
}

/// A frame whose first buffer holds `first` bytes, and the others 1999 each.
pub fn chain(cache: &mut PoolCache, bytes: &[u8], first: usize) -> PacketBuf {
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    let mut packet = cache.alloc().unwrap();
    packet.append(head).unwrap();
    for piece in rest.chunks(1999) {
        let mut next = cache.alloc().unwrap();
        next.append(piece).unwrap();
        packet.last_segment_mut().chain(next);
    }
    packet
}

pub fn bytes(packet: &PacketBuf) -> Vec<u8> {
    packet.segments().collect::<Vec<_>>().concat()
}

/// A TCP frame as etherparse sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// Everything in front of the IP header.
    pub link: Vec<u8>,
    pub identification: Option<u16>,
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Parses a frame, whose lengths may be wrong: it is mended in a copy first.
pub fn see(frame: &[u8]) -> Seen {
    let network = super::layout::network(frame).unwrap().1;
    let mut mended = frame.to_vec();
    if frame[network] >> 4 == 6 {
        mended[network + 4..network + 6]
            .copy_from_slice(&((frame.len() - network - 40) as u16).to_be_bytes());
    } else {
        mended[network + 2..network + 4].copy_from_slice(&((frame.len() - network) as u16).to_be_bytes());
    }
    let sliced = SlicedPacket::from_ethernet(&mended).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP: {sliced:?}") };
    let identification = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => Some(ip.header().identification()),
        _ => None,
    };
    Seen {
        bytes: frame.to_vec(),
        link: frame[..network].to_vec(),
        identification,
        ports: (tcp.source_port(), tcp.destination_port()),
        sequence: tcp.sequence_number(),
        acknowledgement: tcp.acknowledgment_number(),
        flags: tcp.slice()[13],
        window: tcp.window_size(),
        options: tcp.options().to_vec(),
        payload: tcp.payload().to_vec(),
    }
}

impl Seen {
    /// Lengths and checksums as they stand in the frame are right.
    pub fn check_sums_and_lengths(&self, what: &str) {
        let sliced = SlicedPacket::from_ethernet(&self.bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("{what}: no TCP") };
        assert_eq!(tcp.payload().len(), self.payload.len(), "{what}: lengths");
        let checksum = match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum(), "{what}: IPv4 header");
                tcp.calc_checksum_ipv4(header.source, header.destination).unwrap()
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                tcp.calc_checksum_ipv6(header.source, header.destination).unwrap()
            }
            other => panic!("{what}: {other:?}"),
        };
        assert_eq!(tcp.checksum(), checksum, "{what}: TCP checksum");
    }
}
