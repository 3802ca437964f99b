//! The transmitter: legacy, context and data descriptors (8254x 3.3, 82574 7.2).

use super::{CTRL_VME, E1000Model, VET};
use crate::intel::model::{insert_tag, internet_checksum};

const EOP: u64 = 1 << 24;
const RS: u64 = 1 << 27;
const DEXT: u64 = 1 << 29;
const DD: u64 = 1 << 32;
const VLE: u64 = 1 << 30;
const TXSM: u64 = 1 << 41;

/// What the last descriptor of a frame wants inserted.
fn tag_of(command: u64) -> Option<u16> {
    (command & VLE != 0).then_some((command >> 48) as u16)
}

impl E1000Model {
    /// Sends what queue `queue` has.
    pub(super) fn send(&mut self, queue: usize) {
        if self.reg(0x400) & 2 == 0 || !self.link_is_up() {
            return;
        }
        while self.tx[queue].available() > 0 {
            let at = self.tx[queue].at(0);
            let words @ [address, command] = self.card.read_descriptor(at);
            let is_context = command & DEXT != 0 && command >> 20 & 0xf == 0;
            if is_context {
                self.contexts[queue] = words;
            } else {
                let len = if command & DEXT != 0 { command & 0xf_ffff } else { command & 0xffff };
                let piece = self.card.read_bytes(address, len as usize);
                self.gathered[queue].extend(piece);
                if command & EOP != 0 {
                    self.transmit(queue, command & DEXT != 0 && command & TXSM != 0, tag_of(command));
                }
            }
            if command & RS != 0 {
                self.card.write_descriptor(at, [address, command | DD]);
            }
            self.tx[queue].advance(1);
        }
    }

    fn transmit(&mut self, queue: usize, checksum: bool, tag: Option<u16>) {
        let mut frame = std::mem::take(&mut self.gathered[queue]);
        if checksum {
            let [places, _] = self.contexts[queue];
            let (start, place) = ((places >> 32 & 0xff) as usize, (places >> 40 & 0xff) as usize);
            let sum = internet_checksum(frame.get(start..).unwrap_or_default());
            if let Some(field) = frame.get_mut(place..place + 2) {
                field.copy_from_slice(&sum.to_be_bytes());
            }
        }
        // In VLAN mode alone (8254x 9.2.1), with the type from VET.
        if let Some(tag) = tag.filter(|_| self.reg(0) & CTRL_VME != 0) {
            insert_tag(&mut frame, self.reg(VET) as u16, tag);
            self.n_tags[1] += 1;
        }
        if self.reg(0x400) & 8 != 0 && frame.len() < 60 {
            frame.resize(60, 0);
        }
        self.stats.sent(&frame);
        self.card.wire.from_nic.push(frame);
    }
}
