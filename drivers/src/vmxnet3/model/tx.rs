//! How the device sends.

use super::Vmxnet3Model;
use super::queue::{Active, Tx, count};
use crate::intel::model::{insert_tag, internet_checksum};
use crate::nic::model::Fault;

impl Vmxnet3Model {
    /// Sends what the queues have whose doorbells were rung.
    pub(super) fn send(&mut self, active: &mut Active) {
        for queue in &mut active.tx {
            if std::mem::take(&mut queue.rung) && queue.error.is_none() {
                while let Some(n) = self.frame_of(queue) {
                    self.send_frame(queue, n);
                }
            }
        }
    }

    /// Descriptors of the next frame, once all of them are there.
    fn frame_of(&self, queue: &Tx) -> Option<u32> {
        for ahead in 0..17 {
            let [_, second] = self.card.read_descriptor(queue.commands.at(ahead));
            if second >> 14 & 1 != queue.commands.generation(ahead) {
                return None;
            }
            if second >> 44 & 1 == 1 {
                return Some(ahead + 1);
            }
        }
        panic!("no end within the 16 descriptors that a frame may have");
    }

    fn send_frame(&mut self, queue: &mut Tx, n: u32) {
        let (mut frame, mut work, mut last) = (Vec::new(), 0, (0, 0));
        for piece in 0..n {
            let [at, second] = self.card.read_descriptor(queue.commands.at(0));
            let len = match (second & 0x3fff) as usize {
                0 => 1 << 14,
                len => len,
            };
            frame.extend(self.card.read_bytes(at, len));
            if piece == 0 {
                work = second;
            } else {
                assert_eq!(second >> 32 & 0xffff_8fff, 0, "work is told with the first piece alone");
            }
            last = (queue.commands.slot(), second);
            queue.commands.next += 1;
        }
        match work >> 42 & 3 {
            0 => {}
            2 => complete_checksum(&mut frame, (work >> 32 & 0x3ff) as usize, (work >> 18 & 0x3fff) as usize),
            mode => panic!("offload mode {mode} is not expected"),
        }
        if work >> 47 & 1 == 1 {
            insert_tag(&mut frame, 0x8100, (work >> 48) as u16);
            self.n_tags[1] += 1;
        }
        count(&mut queue.stats, &frame);
        self.card.wire.from_nic.push(frame);
        let (mut slot, asks) = (last.0, last.1 >> 45 & 1 == 1);
        if !asks {
            return;
        }
        if let Some(Fault::IndexJump(ahead)) =
            self.card.take_fault(|fault| matches!(fault, Fault::IndexJump(_)))
        {
            slot += u64::from(ahead);
        }
        let words = [slot & 0xfff, queue.completions.generation(0) << 63];
        let at = queue.completions.at(0);
        queue.completions.next += 1;
        self.complete(at, words);
    }
}

/// The field has the sum of the pseudo-header already.
fn complete_checksum(frame: &mut [u8], start: usize, at: usize) {
    let sum = match internet_checksum(&frame[start..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
