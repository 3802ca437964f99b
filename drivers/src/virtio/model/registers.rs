//! The model's registers and what they do: status machine, features, queues, configuration (virtio 1.2, 4.1.4).

use super::queue::SimQueue;
use super::{Asked, COMMON, DEVICE, DEVICE_BYTES, Lie, N_QUEUES, NOTIFY, NOTIFY_MULTIPLIER, VirtioModel};
use crate::nic::model::Fault;
use crate::virtio::regs::{feature, status};

const COMMON_BYTES: usize = 56;

impl VirtioModel {
    fn reset(&mut self) {
        self.status = 0;
        self.accepted = 0;
        self.config_vector = 0xffff;
        self.asked = Asked { n_pairs: 1, ..Asked::default() };
        self.queues = std::array::from_fn(|_| SimQueue::new(self.ring_size));
    }

    /// 32 bits at an aligned offset: registers are narrower, and none of the common ones minds being read.
    pub(super) fn read_word(&mut self, offset: usize) -> u32 {
        if (DEVICE..DEVICE + DEVICE_BYTES).contains(&offset) {
            let value = word(&self.config, offset - DEVICE);
            if let Some(next) = self.config_behind.take() {
                self.config = next;
                self.generation = self.generation.wrapping_add(1);
            }
            if self.lie == Some(Lie::RestlessConfig) {
                self.generation = self.generation.wrapping_add(1);
            }
            return value;
        }
        match offset.checked_sub(COMMON) {
            Some(at) if at < COMMON_BYTES => word(&self.common(), at),
            _ => 0,
        }
    }

    fn common(&self) -> [u8; COMMON_BYTES] {
        let mut block = [0; COMMON_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let half = |features: u64, select: u32| match select {
            0 | 1 => (features >> (32 * select)) as u32,
            _ => 0,
        };
        put(0, &self.selects[0].to_le_bytes());
        put(4, &half(self.offered, self.selects[0]).to_le_bytes());
        put(8, &self.selects[1].to_le_bytes());
        put(12, &half(self.accepted, self.selects[1]).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        // As QEMU has it.
        let n_queues = if self.has(feature::MQ | feature::RSS) { N_QUEUES as u16 } else { 3 };
        put(18, &n_queues.to_le_bytes());
        put(20, &[self.status, self.generation]);
        put(22, &(self.queue_select as u16).to_le_bytes());
        let queue = self.queues.get(self.queue_select).cloned().unwrap_or_default();
        put(24, &queue.size.to_le_bytes());
        put(26, &queue.vector.to_le_bytes());
        put(28, &u16::from(queue.enabled).to_le_bytes());
        put(30, &(self.queue_select as u16).to_le_bytes());
        for (n, place) in queue.at.iter().enumerate() {
            put(32 + 8 * n, &place.to_le_bytes());
        }
        block
    }

    pub(super) fn write_register(&mut self, offset: usize, value: u32) {
        if offset >= NOTIFY {
            return self.doorbell((offset - NOTIFY) / NOTIFY_MULTIPLIER, value);
        }
        let select = self.queue_select;
        match (offset - COMMON, self.queues.get_mut(select)) {
            (0, _) => self.selects[0] = value,
            (8, _) => self.selects[1] = value,
            (12, _) if self.selects[1] < 2 => {
                let shift = 32 * self.selects[1];
                self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            (16, _) => self.config_vector = if value == 0 { 0 } else { 0xffff },
            (20, _) => self.write_status(value as u8),
            (22, _) => self.queue_select = value as usize,
            (24, Some(queue)) => queue.size = value as u16,
            (26, Some(queue)) => queue.vector = value as u16,
            (28, Some(queue)) => queue.enable(value == 1, self.accepted & feature::RING_PACKED != 0),
            (at @ 32..56, Some(queue)) => {
                let (place, shift) = (&mut queue.at[(at - 32) / 8], 8 * (at & 4));
                *place = *place & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            if self.card.fault != Some(Fault::NeverResets) {
                self.reset();
            }
            return;
        }
        self.status = value | self.status & status::NEEDS_RESET;
        let agreed = self.accepted & !self.offered == 0 && self.lie != Some(Lie::RefusesFeatures);
        if value & status::FEATURES_OK != 0 && !agreed {
            self.status &= !status::FEATURES_OK;
        }
    }

    fn doorbell(&mut self, index: usize, value: u32) {
        assert!(self.status & status::DRIVER_OK != 0, "a doorbell before DRIVER_OK (virtio 1.2, 3.1.1)");
        if value as usize == index && index == self.control_queue() {
            self.serve_control();
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(u32::MAX, u32::from_le_bytes)
}
