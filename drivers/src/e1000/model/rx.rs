//! The receiver: filters, queues, legacy and extended descriptors (8254x 3.2, 82574 7.1).

use super::{CTRL_VME, Chip, E1000Model, VET};
use crate::intel::model::{self as parts, Checks};
use crate::nic::model::Fault;

const BUFFER_BYTES: usize = 2048;
const DD: u64 = 1;
const EOP: u64 = 2;
const VP: u64 = 1 << 3;
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
            self.stats.received(&frame);
            self.deliver(queue, &frame);
        }
    }

    /// 82574 7.1.2.
    fn admits(&self, frame: &[u8]) -> bool {
        let addresses = (0..16).map(|n| (self.reg(0x5400 + 8 * n), self.reg(0x5404 + 8 * n)));
        parts::admits(frame, self.reg(0x100), addresses)
    }

    fn deliver(&mut self, queue: usize, frame: &[u8]) {
        let (checks, errors) = self.checksums(frame);
        let mut frame = frame.to_vec();
        let vlan_mode = self.reg(0) & CTRL_VME != 0;
        let tag = vlan_mode.then(|| parts::strip_tag(&mut frame, self.reg(VET))).flatten();
        self.n_tags[0] += u64::from(tag.is_some());
        let n = frame.len().div_ceil(BUFFER_BYTES).max(1);
        for (index, piece) in frame.chunks(BUFFER_BYTES).enumerate() {
            let [buffer, _] = self.card.read_descriptor(self.rx[queue].at(0));
            self.card.write(buffer, piece);
            let mut status = DD | if index + 1 == n { EOP | checks | tag.map_or(0, |_| VP) } else { 0 };
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
            let tag = tag.filter(|_| status & VP != 0).map_or(0, |tag| u64::from(tag) << 48);
            let words = match extended {
                true => [0, status | errors << 24 | len << 32 | tag],
                false => [buffer, len | (status & !UDPCS) << 32 | errors << 40 | tag],
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
        let Checks { ip, l4 } = parts::checks(frame, self.reg(0x5000));
        let Some(ip_right) = ip else { return (0, 0) };
        let ip_error = if ip_right { 0 } else { IPE };
        let Some((protocol, l4_right)) = l4 else { return (IPCS, ip_error) };
        let udp_only = protocol == 17 && self.chip == Chip::I82574;
        let l4_error = if l4_right { 0 } else { TCPE };
        (IPCS | if udp_only { UDPCS } else { TCPCS }, ip_error | l4_error)
    }
}
