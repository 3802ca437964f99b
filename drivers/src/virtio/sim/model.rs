//! The model's registers and what they do: status machine, features, queues, configuration.

use std::collections::VecDeque;
use std::sync::Arc;

use super::SimIommu;
use super::queue::SimQueue;
use super::{Fault, QUEUE_RX, QUEUE_TX};
use crate::virtio::desc::NetHdr;
use crate::virtio::regs::{feature, status};

pub(super) const COMMON: usize = 0;
pub(super) const DEVICE: usize = 0x2000;
pub(super) const NOTIFY: usize = 0x3000;
pub(super) const NOTIFY_MULTIPLIER: usize = 4;
const N_QUEUES: usize = 3;

pub(super) struct Model {
    pub(super) memory: Arc<SimIommu>,
    pub(super) offered: u64,
    pub(super) accepted: u64,
    selects: [u32; 2],
    pub(super) status: u8,
    generation: u8,
    queue_select: usize,
    pub(super) ring_size: u16,
    pub(super) queues: [SimQueue; N_QUEUES],
    config_vector: u16,
    /// MAC, status, queue pairs, MTU.
    pub(super) config: [u8; 12],
    /// Configuration that takes over in the middle of the next read of the old one.
    pub(super) config_behind: Option<[u8; 12]>,
    pub(super) interrupts: u64,
    pub(super) fault: Option<Fault>,
    pub(super) bus_master: bool,
    pub(super) receive_modes: [Option<bool>; 2],
    pub(super) wire_in: VecDeque<Vec<u8>>,
    pub(super) wire_out: Vec<Vec<u8>>,
}

impl Model {
    pub(super) fn new(memory: Arc<SimIommu>, mac: [u8; 6]) -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[6] = 1;
        config[8] = 1;
        Model {
            memory,
            offered: feature::USED & !feature::MTU,
            accepted: 0,
            selects: [0; 2],
            status: 0,
            generation: 0,
            queue_select: 0,
            ring_size: 256,
            queues: std::array::from_fn(|_| SimQueue::new(256)),
            config_vector: 0xffff,
            config,
            config_behind: None,
            interrupts: 0,
            fault: None,
            bus_master: false,
            receive_modes: [None; 2],
            wire_in: VecDeque::new(),
            wire_out: Vec::new(),
        }
    }

    fn reset(&mut self) {
        self.status = 0;
        self.accepted = 0;
        self.config_vector = 0xffff;
        self.receive_modes = [None; 2];
        for queue in &mut self.queues {
            let fresh = SimQueue::new(self.ring_size);
            let old = std::mem::replace(queue, fresh);
            queue.doorbells = old.doorbells;
        }
    }

    /// Reads `len` bytes of the BAR as a little-endian number.
    pub(super) fn read(&mut self, offset: usize, len: usize) -> u32 {
        if self.fault == Some(Fault::Gone) {
            return u32::MAX;
        }
        if (DEVICE..DEVICE + self.config.len()).contains(&offset) {
            let bytes = self.config.get(offset - DEVICE..offset - DEVICE + len).unwrap_or(&[0xff; 4]);
            let value = bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
            if let Some(next) = self.config_behind.take() {
                self.config = next;
                self.generation = self.generation.wrapping_add(1);
            }
            if self.fault == Some(Fault::RestlessConfig) {
                self.generation = self.generation.wrapping_add(1);
            }
            return value;
        }
        let queue = self.queues.get(self.queue_select).cloned().unwrap_or_default();
        let half = |place: u64, offset: usize| (place >> (8 * (offset & 4))) as u32;
        match offset - COMMON {
            0 => self.selects[0],
            4 if self.selects[0] < 2 => (self.offered >> (32 * self.selects[0])) as u32,
            8 => self.selects[1],
            12 if self.selects[1] < 2 => (self.accepted >> (32 * self.selects[1])) as u32,
            16 => u32::from(self.config_vector),
            18 => N_QUEUES as u32,
            20 => u32::from(self.status),
            21 => u32::from(self.generation),
            22 => self.queue_select as u32,
            24 => u32::from(queue.size),
            26 => u32::from(queue.vector),
            28 => u32::from(queue.enabled),
            30 => self.queue_select as u32,
            at @ (32 | 36) => half(queue.at[0], at),
            at @ (40 | 44) => half(queue.at[1], at),
            at @ (48 | 52) => half(queue.at[2], at),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: usize, value: u32) {
        if self.fault == Some(Fault::Gone) {
            return;
        }
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
            (28, Some(queue)) => queue.enabled = value == 1,
            (at @ 32..56, Some(queue)) => {
                let (place, shift) = (&mut queue.at[(at - 32) / 8], 8 * (at & 4));
                *place = *place & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            if self.fault != Some(Fault::NeverResets) {
                self.reset();
            }
            return;
        }
        self.status = value | self.status & status::NEEDS_RESET;
        let agreed = self.accepted & !self.offered == 0 && self.fault != Some(Fault::RefusesFeatures);
        if value & status::FEATURES_OK != 0 && !agreed {
            self.status &= !status::FEATURES_OK;
        }
    }

    fn doorbell(&mut self, index: usize, value: u32) {
        let Some(queue) = self.queues.get_mut(index).filter(|_| value as usize == index) else { return };
        queue.doorbells += 1;
        if index == 2 {
            self.serve_control();
        }
    }

    fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && self.status & status::NEEDS_RESET == 0 && self.bus_master
    }

    /// The fault to show on the next completion; most show once.
    fn next_fault(&mut self) -> Option<Fault> {
        match self.fault {
            Some(Fault::Hang) => self.fault,
            Some(fault) if fault.is_in_a_completion() => self.fault.take(),
            _ => None,
        }
    }

    fn serve_control(&mut self) {
        let memory = self.memory.clone();
        while let Some(chain) = self.queues[2].take(&memory).filter(|_| self.status & status::DRIVER_OK != 0)
        {
            let command = chain.read(&memory);
            let known = matches!(command[..], [0, 0 | 1, 0 | 1]);
            if known {
                self.receive_modes[usize::from(command[1])] = Some(command[2] == 1);
            }
            let len = chain.write(&memory, &[u8::from(!known)]);
            let fault = self.fault.filter(|fault| *fault == Fault::Hang);
            self.queues[2].complete(&memory, chain.head, len, fault);
        }
    }

    /// Sends what the driver has posted, and receives what waits on the wire, as far as buffers go.
    pub(super) fn step(&mut self) {
        if !self.is_live() {
            return;
        }
        self.step_tx();
        while let Some(frame) = self.wire_in.pop_front() {
            if !self.receive(&frame) {
                self.wire_in.push_front(frame);
                return;
            }
        }
    }

    fn step_tx(&mut self) {
        let memory = self.memory.clone();
        while let Some(chain) = self.queues[QUEUE_TX].take(&memory) {
            let fault = self.next_fault();
            let mut bytes = chain.read(&memory);
            self.wire_out.push(bytes.split_off(NetHdr::BYTES.min(bytes.len())));
            self.queues[QUEUE_TX].complete(&memory, chain.head, 0, fault);
        }
    }

    fn receive(&mut self, frame: &[u8]) -> bool {
        let memory = self.memory.clone();
        let mergeable = self.accepted & feature::MRG_RXBUF != 0;
        let (mut chains, mut room) = (Vec::new(), 0);
        let needed = NetHdr::BYTES + frame.len();
        while room < needed && (mergeable || chains.is_empty()) {
            let Some(chain) = self.queues[QUEUE_RX].take(&memory) else { break };
            room += chain.room();
            chains.push(chain);
        }
        if room < needed {
            chains.iter().for_each(|_| self.queues[QUEUE_RX].untake());
            return !mergeable && !chains.is_empty(); // too long for one buffer: the device drops it
        }
        let fault = self.next_fault();
        let num_buffers = match fault {
            Some(Fault::NumBuffers(lie)) => lie,
            _ => chains.len() as u16,
        };
        let mut bytes = NetHdr { num_buffers, ..NetHdr::default() }.to_bytes().to_vec();
        bytes.extend_from_slice(frame);
        let mut rest = &bytes[..];
        for chain in chains {
            let (now, later) = rest.split_at(rest.len().min(chain.room()));
            let len = chain.write(&memory, now);
            self.queues[QUEUE_RX].complete(&memory, chain.head, len, fault);
            rest = later;
        }
        true
    }

    /// The configuration changes as a whole; true when an interrupt is due.
    pub(super) fn change_config(&mut self, config: [u8; 12]) -> bool {
        self.config = config;
        self.generation = self.generation.wrapping_add(1);
        self.interrupts += 1;
        self.config_vector == 0
    }
}
