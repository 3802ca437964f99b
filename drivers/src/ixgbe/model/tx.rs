//! From memory to the wire: descriptors, offloads, completion (82599 7.2).

use super::map::*;
use super::offload::{self, Context};
use super::stats;
use super::{Fault, Memory, Model};

/// A frame the hardware puts together from at most this many descriptors (7.2.1.1).
const MAX_DESCRIPTORS: usize = 40;
/// Most bytes of one packet to be segmented.
const MAX_TSO_BYTES: usize = 256 * 1024;

const CMD_EOP: u32 = 1 << 24;
const CMD_IFCS: u32 = 1 << 25;
const CMD_RS: u32 = 1 << 27;
const CMD_DEXT: u32 = 1 << 29;
const CMD_VLE: u32 = 1 << 30;
const CMD_TSE: u32 = 1 << 31;
const POPTS_IXSM: u32 = 1 << 8;
const POPTS_TXSM: u32 = 1 << 9;

impl Model {
    pub(super) fn step_tx(&mut self, memory: &dyn Memory) {
        if self.reg(DMATXCTL) & 1 == 0 || self.fault == Some(Fault::TxHang) {
            return;
        }
        for queue in 0..N_QUEUES {
            let base = tx(queue);
            if self.reg(base + 0x28) & DCTL_ENABLE != 0 && self.reg(base + 8) != 0 {
                while self.reg(base + 0x10) != self.reg(base + 0x18) && self.send_one(memory, queue) {}
            }
        }
    }

    /// Works off the descriptors of one frame; false when its last one is not posted yet.
    fn send_one(&mut self, memory: &dyn Memory, queue: usize) -> bool {
        let base = tx(queue);
        let len = self.reg(base + 8) / 16;
        let (head, tail) = (self.reg(base + 0x10) % len, self.reg(base + 0x18));
        let ring = u64::from(self.reg(base + 4)) << 32 | u64::from(self.reg(base));
        let (mut at, mut bytes, mut first) = (head, Vec::new(), None);
        let mut written = Vec::new();
        loop {
            if at == tail {
                return false;
            }
            let mut raw = [0; 16];
            if !memory.read(ring + 16 * u64::from(at), &mut raw) {
                self.violation(format!("tx queue {queue}: descriptor {at} is not mapped"));
            }
            let words: [u32; 4] = std::array::from_fn(|i| {
                u32::from_le_bytes(raw[4 * i..4 * i + 4].try_into().expect("four bytes"))
            });
            let command = words[2];
            if command & CMD_RS != 0 {
                written.push(at);
            }
            let is_context = command & CMD_DEXT != 0 && command >> 20 & 0xf == 2;
            at = (at + 1) % len;
            if is_context {
                self.contexts[queue][(words[3] >> 4 & 1) as usize] = Context::parse(words);
                if first.is_none() {
                    continue;
                }
                self.violation(format!("tx queue {queue}: context inside a frame"));
            }
            first.get_or_insert(words);
            let piece = (command & 0xffff) as usize;
            let old = bytes.len();
            bytes.resize(old + piece, 0);
            let from = u64::from(words[1]) << 32 | u64::from(words[0]);
            if piece == 0 {
                self.violation(format!("tx queue {queue}: descriptor of no bytes"));
            } else if !memory.read(from, &mut bytes[old..]) {
                self.violation(format!("tx queue {queue}: {piece} bytes at {from:#x} are not mapped"));
            }
            if command & CMD_EOP != 0 {
                break;
            }
            if (at + len - head) % len > MAX_DESCRIPTORS as u32 + 2 || bytes.len() > MAX_TSO_BYTES {
                self.violation(format!("tx queue {queue}: frame of too many descriptors"));
                break;
            }
        }
        if let Some(words) = first {
            self.emit(queue, bytes, words);
        }
        self.set_reg(base + 0x10, at);
        self.complete(memory, queue, ring, &written);
        true
    }

    fn complete(&mut self, memory: &dyn Memory, queue: usize, ring: u64, written: &[u32]) {
        let base = tx(queue);
        if written.is_empty() {
            return;
        }
        let head_back = self.reg(base + 0x38);
        if head_back & 1 == 1 {
            let to = u64::from(self.reg(base + 0x3c)) << 32 | u64::from(head_back & !3);
            let head = self.reg(base + 0x10);
            if !memory.write(to, &head.to_le_bytes()) {
                self.violation(format!("tx queue {queue}: head write-back {to:#x} is not mapped"));
            }
        } else {
            // The whole descriptor is written: nothing of what the driver put there is left but DD.
            let mut back = [0; 16];
            back[12] = 1;
            for slot in written {
                self.write_descriptor(memory, ring + 16 * u64::from(*slot), back, queue);
            }
        }
        self.interrupts.queue_event(&self.regs, queue, true);
    }

    /// Offloads, then the wire.
    fn emit(&mut self, queue: usize, mut frame: Vec<u8>, words: [u32; 4]) {
        let [_, _, command, olinfo] = words;
        if command & CMD_IFCS == 0 {
            self.violation(format!("tx queue {queue}: frame without IFCS"));
        }
        if command & CMD_DEXT == 0 {
            // Legacy: tag in the descriptor; the checksum it can insert starts at CSS and goes to CSO (7.2.3.2.2).
            if command & 1 << 26 != 0 {
                let (start, to) = ((olinfo >> 8 & 0xff) as usize, (command >> 16 & 0xff) as usize);
                let value = !offload::sum(frame.get(start..).unwrap_or(&[]), 0);
                if let Some(place) = frame.get_mut(to..to + 2) {
                    place.copy_from_slice(&value.to_be_bytes());
                }
            }
            let tag = (command & CMD_VLE != 0).then_some((olinfo >> 16) as u16);
            return self.put_on_wire(queue, frame, tag);
        }
        let context = self.contexts[queue][(olinfo >> 4 & 1) as usize];
        let tag = (command & CMD_VLE != 0).then_some(context.vlan);
        let (ip, l4) = (olinfo & POPTS_IXSM != 0, olinfo & POPTS_TXSM != 0);
        if command & CMD_TSE != 0 {
            let low = self.reg(DTXTCPFLGL);
            let masks = [low as u16 & 0xfff, (low >> 16) as u16 & 0xfff, self.reg(DTXTCPFLGH) as u16 & 0xfff];
            let headers = context.mac_len + context.ip_len + context.l4_len;
            if (olinfo >> 14) as usize + headers != frame.len() {
                self.violation(format!("tx queue {queue}: PAYLEN is not the payload to be segmented"));
            }
            match offload::segment(&frame, &context, masks) {
                Some(pieces) => pieces.into_iter().for_each(|piece| self.put_on_wire(queue, piece, tag)),
                None => self.violation(format!("tx queue {queue}: segmentation with {context:?}")),
            }
            return;
        }
        if (olinfo >> 14) as usize != frame.len() {
            let payload = olinfo >> 14;
            self.violation(format!("tx queue {queue}: PAYLEN {payload} of {} bytes", frame.len()));
        }
        if (ip || l4) && !offload::insert(&mut frame, &context, ip, l4) {
            self.violation(format!("tx queue {queue}: checksums with {context:?}"));
        }
        self.put_on_wire(queue, frame, tag);
    }

    fn put_on_wire(&mut self, queue: usize, mut frame: Vec<u8>, tag: Option<u16>) {
        if frame.len() < 17 {
            return self.violation(format!("tx queue {queue}: frame of {} bytes", frame.len()));
        }
        if let Some(tag) = tag {
            let kind = (self.reg(DMATXCTL) >> 16) as u16;
            let [a, b, c, d] = [kind.to_be_bytes(), tag.to_be_bytes()].concat()[..] else { return };
            frame.splice(12..12, [a, b, c, d]);
            self.n_tags[1] += 1;
        }
        if self.reg(HLREG0) & HLREG0_TXPADEN != 0 && frame.len() < 60 {
            frame.resize(60, 0);
        }
        let (len, wire_len) = (frame.len(), frame.len() + 4);
        let counter = self.stat_of(TQSM, queue);
        self.stats.add(stats::qptc(counter), 1);
        self.stats.add(stats::qbtc(counter), len as u64);
        self.stats.add(stats::TXDGPC, 1);
        self.stats.add(stats::TXDGBC, len as u64);
        if !self.link_up {
            return; // the MAC drops what it can't send
        }
        self.stats.add(stats::TPT, 1);
        self.stats.add(stats::GPTC, 1);
        self.stats.add(stats::GOTC, wire_len as u64);
        self.stats.size(false, wire_len);
        if frame[..6] == [0xff; 6] {
            self.stats.add(stats::BPTC, 1);
        } else if frame[0] & 1 == 1 {
            self.stats.add(stats::MPTC, 1);
        }
        self.sent.push(frame);
    }
}
