//! The receiver: filters, queues, legacy and extended descriptors (8254x 3.2, 82574 7.1).

use super::{Chip, E1000Model};
use crate::intel::model::internet_checksum;
use crate::nic::model::Fault;

const BUFFER_BYTES: usize = 2048;
const DD: u64 = 1;
const EOP: u64 = 2;
const UDPCS: u64 = 1 << 4;
const TCPCS: u64 = 1 << 5;
const IPCS: u64 = 1 << 6;
/// Error bits, in both formats' error byte.
const CE: u64 = 1;
const TCPE: u64 = 1 << 5;
const IPE: u64 = 1 << 6;

impl E1000Model {
    /// Delivers frames on the wire as long as there are descriptors for them.
    pub(super) fn receive(&mut self) {
        if self.reg(0x100) & 2 == 0 {
            return;
        }
        while self.link_is_up()
            && let Some(frame) = self.card.wire.to_nic.pop_front()
        {
            if !self.admits(&frame) {
                continue;
            }
            let queue = self.queue_of(&frame);
            if (self.rx[queue].available() as usize) < frame.len().div_ceil(BUFFER_BYTES).max(1) {
                self.card.wire.to_nic.push_front(frame);
                return;
            }
            self.count_frame(frame.len() + 4, 0x405c, [0x4074, 0x4088, 0x40c0, 0x40d0]);
            match frame[..6] {
                [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => self.count(0x4078, 1),
                [first, ..] if first & 1 == 1 => self.count(0x407c, 1),
                _ => {}
            }
            self.deliver(queue, &frame);
        }
    }

    /// 82574 7.1.2: unicast exact or promiscuous, multicast promiscuous, broadcast.
    fn admits(&self, frame: &[u8]) -> bool {
        let rctl = self.reg(0x100);
        if frame.len() < 14 || (frame.len() > 1518 && rctl & 1 << 5 == 0) {
            return false;
        }
        match frame[..6] {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => rctl & 1 << 15 != 0,
            [first, ..] if first & 1 == 1 => rctl & 1 << 4 != 0,
            _ if rctl & 1 << 3 != 0 => true,
            _ => (0..16).any(|n| {
                let (low, high) = (self.reg(0x5400 + 8 * n), self.reg(0x5404 + 8 * n));
                let address = [low.to_le_bytes(), high.to_le_bytes()].concat();
                high >> 31 == 1 && address[..6] == frame[..6]
            }),
        }
    }

    fn deliver(&mut self, queue: usize, frame: &[u8]) {
        let (checks, errors) = self.checksums(frame);
        let n = frame.len().div_ceil(BUFFER_BYTES).max(1);
        for (index, piece) in frame.chunks(BUFFER_BYTES).enumerate() {
            let [buffer, _] = self.card.read_descriptor(self.rx[queue].at(0));
            self.card.write(buffer, piece);
            let mut status = DD | if index + 1 == n { EOP | checks } else { 0 };
            let mut errors = if index + 1 == n { errors } else { 0 };
            let mut len = piece.len() as u64;
            let mut ahead = 0;
            if self.card.fault == Some(Fault::MissingEnd) {
                status &= !EOP;
            }
            let mut late = false;
            let once = |f| {
                !matches!(f, Fault::MissingEnd | Fault::Hang | Fault::NeverResets | Fault::Deaf | Fault::Gone)
            };
            match self.card.take_fault(once) {
                Some(Fault::GarbageLength(n)) => len = n.into(),
                Some(Fault::IndexJump(n)) => ahead = n.into(),
                Some(Fault::Damaged) => errors |= CE,
                Some(Fault::LateWriteBack) => late = true,
                _ => {}
            }
            let extended = self.chip == Chip::I82574 && self.reg(0x5008) & 1 << 15 != 0;
            let words = match extended {
                true => [0, status | errors << 24 | len << 32],
                false => [buffer, len | (status & !UDPCS) << 32 | errors << 40],
            };
            let at = self.rx[queue].at(ahead);
            if late {
                // The done bit alone; the rest comes with the next step.
                let bare = if extended { status } else { status << 32 };
                self.card.write_descriptor(at, [0, bare]);
                self.late = Some((at, words));
            } else {
                self.card.write_descriptor(at, words);
            }
            self.rx[queue].advance(1);
        }
    }

    /// Status and error bits for what RXCSUM asks to be checked.
    fn checksums(&self, frame: &[u8]) -> (u64, u64) {
        let rxcsum = self.reg(0x5000);
        if frame.len() < 34 || frame[12..15] != [8, 0, 0x45] || rxcsum & 1 << 8 == 0 {
            return (0, 0);
        }
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let mut errors = if internet_checksum(&frame[14..34]) == 0 { 0 } else { IPE };
        let (protocol, Some(segment)) = (frame[23], frame.get(34..14 + total)) else { return (IPCS, errors) };
        if rxcsum & 1 << 9 == 0 || !matches!(protocol, 6 | 17) || frame[20] & 0x3f != 0 || frame[21] != 0 {
            return (IPCS, errors);
        }
        let pseudo =
            [&frame[26..34], &[0, protocol], &(segment.len() as u16).to_be_bytes(), segment].concat();
        errors |= if internet_checksum(&pseudo) == 0 { 0 } else { TCPE };
        let udp_only = protocol == 17 && self.chip == Chip::I82574;
        (IPCS | if udp_only { UDPCS } else { TCPCS }, errors)
    }
}
