//! From the wire to memory: filters, queues, descriptors and their write-back (82599 7.1).

use super::map::*;
use super::offload::{self, Layout};
use super::registers::srrctl;
use super::stats;
use super::{Fault, Memory, Model};

/// Bytes the packet buffer holds (82599: 512 KB).
const BUFFER_BYTES: usize = 512 * 1024;

/// A frame that passed the filters.
pub(super) struct Accepted {
    frame: Vec<u8>,
    queue: usize,
    rss: Option<(u8, u32)>,
}

impl Model {
    pub(super) fn step_rx(&mut self, memory: &dyn Memory) {
        while let Some(frame) = self.wire_in.pop_front() {
            self.arrive(frame);
        }
        // A queue without descriptors holds up those behind it, as one packet buffer does.
        while let Some(next) = self.buffered.pop_front() {
            let len = next.frame.len();
            if !self.deliver(memory, &next) {
                if self.reg(srrctl(next.queue)) >> 28 & 1 == 1 {
                    let counter = self.stat_of(RQSMR, next.queue);
                    self.stats.add(stats::qprdc(counter), 1);
                    self.buffered_bytes -= len;
                    continue;
                }
                self.buffered.push_front(next);
                return;
            }
            self.buffered_bytes -= len;
        }
    }

    /// A frame reaches the MAC.
    fn arrive(&mut self, frame: Vec<u8>) {
        if !self.link_up || self.reg(RXCTRL) & 1 == 0 {
            return;
        }
        let wire_len = frame.len() + 4;
        self.stats.add(stats::TPR, 1);
        self.stats.add(stats::TOR, wire_len as u64);
        if frame.len() < 60 {
            return self.stats.add(stats::RUC, 1);
        }
        if wire_len > self.max_frame(&frame) {
            return self.stats.add(stats::ROC, 1);
        }
        self.stats.add(stats::RXNFGPC, 1);
        if !self.passes(&frame) {
            return;
        }
        self.stats.add(stats::GPRC, 1);
        self.stats.add(stats::GORC, wire_len as u64);
        self.stats.size(true, wire_len);
        if frame[..6] == [0xff; 6] {
            self.stats.add(stats::BPRC, 1);
        } else if frame[0] & 1 == 1 {
            self.stats.add(stats::MPRC, 1);
        }
        if self.buffered_bytes + frame.len() > BUFFER_BYTES {
            return self.stats.add(stats::MPC0, 1);
        }
        let layout = offload::parse(&frame);
        let mrqc = self.reg(MRQC);
        let rss = match mrqc & 0xf {
            1 => offload::rss(&frame, &layout, &self.rss_key(), mrqc),
            _ => None,
        };
        let queue = rss.map_or(0, |(_, hash)| {
            let entry = (hash & 0x7f) as usize;
            (self.reg(RETA + entry / 4 * 4) >> (8 * (entry % 4)) & 0xf) as usize
        });
        self.buffered_bytes += frame.len();
        self.buffered.push_back(Accepted { frame, queue, rss });
    }

    /// Longest frame with FCS: 1518, or MAXFRS with jumbo frames on; a tag comes on top (8.2.3.22.8).
    fn max_frame(&self, frame: &[u8]) -> usize {
        let tag = if frame[12..14] == [0x81, 0] { 4 } else { 0 };
        let jumbo = self.reg(HLREG0) & HLREG0_JUMBOEN != 0;
        tag + if jumbo { (self.reg(MAXFRS) >> 16) as usize } else { 1518 }
    }

    /// Address and VLAN filters (7.1.1).
    fn passes(&self, frame: &[u8]) -> bool {
        let fctrl = self.reg(FCTRL);
        let address: [u8; 6] = frame[..6].try_into().expect("frames are at least 60 bytes");
        let unicast = address[0] & 1 == 0;
        let by_address = match (address == [0xff; 6], unicast) {
            (true, _) => fctrl & FCTRL_BAM != 0,
            (_, true) => fctrl & FCTRL_UPE != 0 || self.matches_exactly(address),
            (_, false) => fctrl & FCTRL_MPE != 0 || self.matches_exactly(address) || self.in_table(address),
        };
        if !by_address || self.reg(VLNCTRL) & VLNCTRL_VFE == 0 || frame[12..14] != [0x81, 0] {
            return by_address;
        }
        let vid = (usize::from(frame[14]) << 8 | usize::from(frame[15])) & 0xfff;
        self.reg(VFTA + vid / 32 * 4) >> (vid % 32) & 1 == 1
    }

    fn matches_exactly(&self, address: [u8; 6]) -> bool {
        (0..128).any(|i| {
            let at = if i < 16 { RAL_LOW } else { RAL } + 8 * i;
            let (low, high) = (self.reg(at).to_le_bytes(), self.reg(at + 4));
            let [a, b, ..] = high.to_le_bytes();
            high & RAH_AV != 0 && address == [low[0], low[1], low[2], low[3], a, b]
        })
    }

    /// The multicast table: 12 bits of the address, which ones says MCSTCTRL (8.2.3.7.7).
    fn in_table(&self, address: [u8; 6]) -> bool {
        let control = self.reg(MCSTCTRL);
        let high = usize::from(address[4]) | usize::from(address[5]) << 8;
        let vector = high >> [4, 3, 2, 0][(control & 3) as usize] & 0xfff;
        control & 4 != 0 && self.reg(MTA + vector / 32 * 4) >> (vector % 32) & 1 == 1
    }

    /// The statistics counter a queue is mapped to (RQSMR, TQSM).
    pub(super) fn stat_of(&self, table: usize, queue: usize) -> usize {
        (self.reg(table + queue / 4 * 4) >> (8 * (queue % 4)) & 0xf) as usize
    }

    /// Puts a frame into its queue's buffers; false when there are not enough.
    fn deliver(&mut self, memory: &dyn Memory, accepted: &Accepted) -> bool {
        let Accepted { queue, rss, .. } = *accepted;
        let base = rx(queue);
        let control = self.reg(base + 0x28);
        let len = self.reg(base + 8) / 16;
        if control & DCTL_ENABLE == 0 || len == 0 {
            return false;
        }
        let layout = offload::parse(&accepted.frame);
        let mut bytes = accepted.frame.clone();
        let tag = (layout.vlan && control & RXDCTL_VME != 0).then(|| {
            let tag = u16::from_be_bytes([bytes[14], bytes[15]]);
            bytes.drain(12..16);
            tag
        });
        let strips = (self.reg(HLREG0) & HLREG0_RXCRCSTRP != 0, self.reg(RDRXCTL) & RDRXCTL_CRCSTRIP != 0);
        match strips {
            (true, true) => {}
            (false, false) => bytes.extend(crc32(&accepted.frame).to_le_bytes()),
            _ => self.violation("HLREG0.RXCRCSTRP and RDRXCTL.CRCSTRIP differ"),
        }
        let split = self.reg(srrctl(queue));
        let room = ((split & 0x1f) as usize) * 1024;
        let kind = split >> 25 & 7;
        if room == 0 || kind > 1 {
            self.violation(format!(
                "SRRCTL of queue {queue} is {split:#x}: buffer size or type not modelled"
            ));
            return true;
        }
        let (head, tail) = (self.rx[queue].head, self.reg(base + 0x18));
        let available = (tail + len - head) % len;
        let needed = bytes.len().div_ceil(room) as u32;
        if available < needed {
            return false;
        }
        let whole = Whole { layout, rss, tag, frame: &accepted.frame };
        let pieces: Vec<&[u8]> = bytes.chunks(room).collect();
        for (i, piece) in pieces.iter().enumerate() {
            self.fill(memory, queue, piece, (i + 1 == pieces.len()).then_some(&whole), kind == 0);
        }
        self.n_tags[0] += u64::from(tag.is_some());
        self.stats.add(stats::RXDGPC, 1);
        self.stats.add(stats::RXDGBC, bytes.len() as u64);
        let counter = self.stat_of(RQSMR, queue);
        self.stats.add(stats::qprc(counter), 1);
        self.stats.add(stats::qbrc(counter), bytes.len() as u64);
        self.interrupts.queue_event(&self.regs, queue, false);
        true
    }

    /// Fills the buffer at the head and writes its descriptor back.
    fn fill(&mut self, memory: &dyn Memory, queue: usize, piece: &[u8], last: Option<&Whole>, legacy: bool) {
        let base = rx(queue);
        let len = self.reg(base + 8) / 16;
        let head = self.rx[queue].head % len;
        let ring = u64::from(self.reg(base + 4)) << 32 | u64::from(self.reg(base));
        let mut descriptor = [0; 16];
        let mapped = memory.read(ring + 16 * u64::from(head), &mut descriptor);
        let buffer = u64::from_le_bytes(descriptor[..8].try_into().expect("eight bytes"));
        if !mapped || !memory.write(buffer, piece) {
            self.violation(format!(
                "rx queue {queue}: buffer {buffer:#x} of descriptor {head} is not mapped"
            ));
        }
        let fault = self.fault.filter(|_| last.is_some());
        let mut status = 1 | if last.is_some() { 2 } else { 0 };
        let mut claimed = piece.len() as u16;
        let mut slot = head;
        match fault {
            Some(Fault::GarbageLength(lie)) => claimed = lie,
            Some(Fault::MissingEop) => status &= !2,
            Some(Fault::NeverPosted) => slot = self.reg(base + 0x18) % len,
            Some(Fault::IndexJump(jump)) => slot = (head + u32::from(jump)) % len,
            _ => {}
        }
        let in_completion = |f| {
            matches!(
                f,
                Fault::GarbageLength(_) | Fault::MissingEop | Fault::NeverPosted | Fault::IndexJump(_)
            )
        };
        if fault.is_some_and(in_completion) {
            self.fault = None;
        }
        let back = match (legacy, last) {
            (true, whole) => legacy_write_back(claimed, status, whole),
            (false, whole) => self.advanced_write_back(claimed, status, whole),
        };
        let at = ring + 16 * u64::from(slot);
        match self.fault {
            Some(Fault::LateWriteBack(steps)) => self.late.push((steps.max(1), at, back, queue)),
            _ => self.write_descriptor(memory, at, back, queue),
        }
        self.rx[queue].head = (head + 1) % len;
        self.set_reg(base + 0x10, (head + 1) % len);
    }

    /// 7.1.6.2.
    fn advanced_write_back(&self, len: u16, mut status: u32, whole: Option<&Whole>) -> [u8; 16] {
        let (mut words, mut errors) = ([0u32; 4], 0);
        if let Some(whole) = whole {
            let (ip, ip_bad, l4, l4_bad) = offload::verify(whole.frame, &whole.layout);
            status |= u32::from(ip) << 6 | u32::from(l4) << 5;
            errors |= u32::from(ip_bad) << 31 | u32::from(l4_bad) << 30;
            if whole.tag.is_some() {
                status |= 1 << 3;
            }
            words[0] = packet_type(&whole.layout) << 4;
            if let Some((kind, hash)) = whole.rss
                && self.reg(RXCSUM) & RXCSUM_PCSD != 0
            {
                words[0] |= u32::from(kind);
                words[1] = hash;
            }
        }
        words[2] = status | errors;
        words[3] = u32::from(len) | u32::from(whole.and_then(|w| w.tag).unwrap_or(0)) << 16;
        let mut bytes = [0; 16];
        bytes.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes
    }
}

/// What the last descriptor of a frame tells about all of it.
struct Whole<'a> {
    layout: Layout,
    rss: Option<(u8, u32)>,
    tag: Option<u16>,
    frame: &'a [u8],
}

/// Bits of PKTTYPE (7.1.6.2): IPv4, IPv6, TCP, UDP, SCTP.
fn packet_type(layout: &Layout) -> u32 {
    let l4 = match layout.l4 {
        Some((_, 6)) => 1 << 4,
        Some((_, 17)) => 1 << 5,
        Some((_, 132)) => 1 << 6,
        _ => 0,
    };
    u32::from(layout.ipv4) | u32::from(layout.ipv6) << 2 | l4
}

/// 7.1.5: length, checksum, status, errors, VLAN.
fn legacy_write_back(len: u16, mut status: u32, whole: Option<&Whole>) -> [u8; 16] {
    let mut bytes = [0; 16];
    if let Some(whole) = whole {
        let (ip, ip_bad, l4, l4_bad) = offload::verify(whole.frame, &whole.layout);
        status |= u32::from(ip) << 6 | u32::from(l4) << 5 | u32::from(whole.tag.is_some()) << 3;
        bytes[13] = u8::from(ip_bad) << 7 | u8::from(l4_bad) << 6;
        bytes[14..].copy_from_slice(&whole.tag.unwrap_or(0).to_le_bytes());
    }
    bytes[8..10].copy_from_slice(&len.to_le_bytes());
    bytes[12] = status as u8;
    bytes
}

/// The frame check sequence (802.3 3.2.9).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}
