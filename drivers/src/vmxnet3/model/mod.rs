//! vmxnet3 in software: registers, commands, events, filters; queues are in [`rx`] and [`tx`]. Written from the same
//! definitions as the driver, apart from its formats.

mod queue;
mod rx;
mod tx;

use std::sync::Arc;

use crate::mac::MacAddr;
use crate::nic::model::{Card, DeviceMemory, Fault, Handle, Model, ModelFunction};
use queue::{Active, SHARED_MAGIC, Stats, u32_at};

/// Registers as this model numbers them: BAR 0 from 0, BAR 1 from here.
pub const BAR_1: usize = 0x1000;
const BAR_BYTES: usize = 0x1000;
const N_VECTORS: usize = 25;
/// Events in the configuration area.
const ECR: u64 = 696;
const RX_MODE: u64 = 120;
const FEATURES: u64 = 24;
const F_RXVLAN: u32 = 4;
const EVENT_TQERR: u32 = 2;
const EVENT_LINK: u32 = 4;

/// The device.
pub struct Vmxnet3Model {
    card: Card,
    /// Its own address, and the one in use.
    own: MacAddr,
    mac: MacAddr,
    has_cable: bool,
    speed_mbps: u32,
    /// Revisions it has, as bits.
    revisions: u32,
    result: u32,
    shared: u64,
    masked: [bool; N_VECTORS],
    active: Option<Active>,
    events: u32,
    refuses: bool,
    /// A completion whose rest is written with the next step.
    late: Option<(u64, [u64; 2])>,
    /// Frames it took a tag off, and frames it inserted one in.
    n_tags: [u64; 2],
}

/// A device with this address in `space`, and the test's hand on it.
pub fn new(
    space: &crate::dma::DmaSpace,
    mac: MacAddr,
) -> (ModelFunction<Vmxnet3Model>, Handle<Vmxnet3Model>) {
    crate::nic::model::new(space, |memory| Vmxnet3Model::new(memory, mac))
}

impl Vmxnet3Model {
    /// Powered on, the cable plugged.
    pub fn new(memory: Arc<dyn DeviceMemory>, mac: MacAddr) -> Self {
        Vmxnet3Model {
            card: Card::new(memory),
            own: mac,
            mac,
            has_cable: true,
            speed_mbps: 10_000,
            revisions: 1,
            result: 0,
            shared: 0,
            masked: [true; N_VECTORS],
            active: None,
            events: 0,
            refuses: false,
            late: None,
            n_tags: [0; 2],
        }
    }

    /// Frames it took a tag off, and frames it inserted one in.
    pub fn n_tags(&self) -> [u64; 2] {
        self.n_tags
    }

    /// The cable is plugged or pulled.
    pub fn set_cable(&mut self, plugged: bool) {
        if plugged != self.has_cable {
            self.has_cable = plugged;
            self.raise(EVENT_LINK);
        }
    }

    /// It takes no configuration from now on, or any.
    pub fn refuse_activation(&mut self, refuses: bool) {
        self.refuses = refuses;
    }

    /// Writes all over its configuration and the addresses and sizes in the descriptions of the first queues.
    pub fn scribble(&mut self) {
        let Some(active) = &self.active else { return };
        self.card.write(self.shared, &[0xff; ECR as usize]);
        self.card.write(active.tx[0].described_at + 16, &[0xff; 56]);
        self.card.write(active.rx[0].described_at + 16, &[0xff; 56]);
    }

    /// Revisions it offers, as bits.
    pub fn set_revisions(&mut self, revisions: u32) {
        self.revisions = revisions;
    }

    /// The device stops a transmit queue, as it does when the driver breaks a rule.
    pub fn stop_tx_queue(&mut self, queue: usize, error: u32) {
        if let Some(active) = &mut self.active {
            active.tx[queue].error = Some(error);
        }
        self.raise(EVENT_TQERR);
    }

    /// All vectors as a driver before may have left them: unmasked.
    pub fn unmask_all(&mut self) {
        self.masked.fill(false);
    }

    /// Vectors that may fire.
    pub fn unmasked(&self) -> Vec<usize> {
        (0..N_VECTORS).filter(|n| !self.masked[*n]).collect()
    }

    /// True between activation and reset.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// What the driver configured: transmit queues, receive queues.
    pub fn n_queues(&self) -> (usize, usize) {
        self.active.as_ref().map_or((0, 0), |active| (active.tx.len(), active.rx.len()))
    }

    /// Descriptors it has of the first ring of a direction.
    pub fn available(&self, tx: bool) -> usize {
        let Some(active) = &self.active else { return 0 };
        if tx { active.tx[0].available(&self.card) } else { active.rx[0].available(&self.card) }
    }

    /// It wants doorbells for receive buffers from now on, or none.
    pub fn want_rx_doorbells(&mut self, wanted: bool) {
        if let Some(active) = &self.active {
            self.card.write(active.rx[0].described_at, &[u8::from(wanted)]);
        }
    }

    /// It wants a doorbell for so many frames to send.
    pub fn set_tx_threshold(&mut self, n: u32) {
        if let Some(active) = &self.active {
            self.card.write(active.tx[0].described_at + 4, &n.to_le_bytes());
        }
    }

    /// A counter of the first queue of a direction starts from here.
    pub fn preset(&mut self, tx: bool, row: usize, value: u64) {
        if let Some(active) = &mut self.active {
            let stats: &mut Stats = if tx { &mut active.tx[0].stats } else { &mut active.rx[0].stats };
            stats[row] = value;
        }
    }

    /// Tells the driver of an event, in memory and by interrupt.
    fn raise(&mut self, event: u32) {
        let Some(active) = &self.active else { return };
        self.events |= event;
        self.card.write(self.shared + ECR, &self.events.to_le_bytes());
        let vector = usize::from(active.event_vector);
        if active.interrupts && !std::mem::replace(&mut self.masked[vector], true) {
            self.card.interrupt(vector);
        }
    }

    fn command(&mut self, command: u32) {
        self.result = match command {
            0xcafe_0000 => self.activate(),
            0xcafe_0001 => {
                if let Some(active) = &mut self.active {
                    active.quiet = true;
                }
                0
            }
            0xcafe_0002 => self.reset(),
            0xcafe_0003 => {
                let mode = u32_at(&self.card, self.shared + RX_MODE);
                self.active.iter_mut().for_each(|active| active.rx_mode = mode);
                0
            }
            0xcafe_0004 | 0xcafe_0005 => 0,
            0xcafe_0009 => {
                let features = u32_at(&self.card, self.shared + FEATURES);
                self.active.iter_mut().for_each(|active| active.strips = features & F_RXVLAN != 0);
                0
            }
            0xf00d_0000 => {
                self.active.iter().for_each(|active| active.write_status(&self.card));
                0
            }
            0xf00d_0001 => {
                self.active.iter().for_each(|active| active.write_stats(&self.card));
                0
            }
            0xf00d_0002 => u32::from(self.has_cable) | if self.has_cable { self.speed_mbps << 16 } else { 0 },
            0xf00d_0003 => u32::from_le_bytes([self.own.0[0], self.own.0[1], self.own.0[2], self.own.0[3]]),
            0xf00d_0004 => u32::from_le_bytes([self.own.0[4], self.own.0[5], 0, 0]),
            other => panic!("no such command: {other:#x}"),
        };
    }

    fn activate(&mut self) -> u32 {
        if self.refuses {
            return 1;
        }
        assert_eq!(u32_at(&self.card, self.shared), SHARED_MAGIC, "the configuration area's magic");
        self.active = Some(Active::read(&self.card, self.shared));
        0
    }

    fn reset(&mut self) -> u32 {
        self.active = None;
        (self.events, self.late) = (0, None);
        self.masked.fill(true);
        u32::from(self.card.fault == Some(Fault::NeverResets))
    }

    /// The receive filters.
    fn admits(&self, active: &Active, frame: &[u8]) -> bool {
        let is_tagged = frame.len() >= 16 && frame[12..14] == [0x81, 0];
        if is_tagged {
            let vid = u16::from_be_bytes([frame[14], frame[15]]) & 0xfff;
            if active.vlans[usize::from(vid / 8)] >> (vid % 8) & 1 == 0 {
                return false;
            }
        }
        match frame[..6] {
            _ if active.rx_mode & 16 != 0 => true,
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => active.rx_mode & 4 != 0,
            [first, ..] if first & 1 == 1 => active.rx_mode & 8 != 0,
            _ => active.rx_mode & 1 != 0 && frame[..6] == self.mac.0,
        }
    }

    /// Writes a completion, or the first half of one, as the fault on command has it.
    fn complete(&mut self, at: u64, words: [u64; 2]) {
        if self.card.take_fault(|fault| fault == Fault::LateWriteBack).is_some() {
            let generation = words[1] & 1 << 63;
            self.card.write_descriptor(at, [0, generation]);
            self.late = Some((at, words));
            return;
        }
        self.card.write_descriptor(at, words);
    }
}

impl Model for Vmxnet3Model {
    fn card(&mut self) -> &mut Card {
        &mut self.card
    }

    fn config(&self) -> [u8; 256] {
        let mut config = [0; 256];
        config[..4].copy_from_slice(&[0xad, 0x15, 0xb0, 0x07]);
        config
    }

    fn bar(&self) -> (u8, usize) {
        (0, BAR_BYTES)
    }

    fn second_bar(&self) -> Option<(u8, usize, usize)> {
        Some((1, BAR_BYTES, BAR_1))
    }

    fn read(&mut self, offset: usize) -> u32 {
        match offset.checked_sub(BAR_1) {
            Some(0x0) => self.revisions,
            Some(0x8) => 1,
            Some(0x20) => self.result,
            Some(0x28) => u32::from_le_bytes([self.mac.0[0], self.mac.0[1], self.mac.0[2], self.mac.0[3]]),
            Some(0x30) => u32::from_le_bytes([self.mac.0[4], self.mac.0[5], 0, 0]),
            _ => panic!("no register to read at {offset:#x}"),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        let Some(register) = offset.checked_sub(BAR_1) else { return self.write_pt(offset, value) };
        match register {
            0x0 | 0x8 => assert_eq!(value, 1, "the only revision there is"),
            0x10 => self.shared = self.shared & !0xffff_ffff | u64::from(value),
            0x18 => self.shared = self.shared & 0xffff_ffff | u64::from(value) << 32,
            0x20 => self.command(value),
            0x28 => self.mac.0[..4].copy_from_slice(&value.to_le_bytes()),
            0x30 => self.mac.0[4..].copy_from_slice(&value.to_le_bytes()[..2]),
            0x40 => {
                self.events &= !value;
                if self.active.is_some() {
                    self.card.write(self.shared + ECR, &self.events.to_le_bytes());
                }
            }
            _ => panic!("no register to write at {offset:#x}"),
        }
    }

    fn step(&mut self) {
        if let Some((at, words)) = self.late.take() {
            self.card.write_descriptor(at, words);
        }
        let Some(mut active) = self.active.take() else { return };
        if !active.quiet && self.card.bus_master && self.card.fault != Some(Fault::Hang) {
            self.send(&mut active);
            self.receive(&mut active);
        }
        self.active = Some(active);
    }

    fn n_vectors(&self) -> usize {
        N_VECTORS
    }
}

impl Vmxnet3Model {
    fn write_pt(&mut self, offset: usize, value: u32) {
        let (register, index) = (offset & !0x1ff, (offset & 0x1ff) / 8);
        assert!(offset.is_multiple_of(8), "registers are eight bytes apart: {offset:#x}");
        match register {
            0x0 => self.masked[index] = value & 1 == 1,
            0x600 => {
                let active = self.active.as_mut().filter(|active| index < active.tx.len());
                active.into_iter().for_each(|active| active.tx[index].rung = true);
            }
            0x800 | 0xa00 => {}
            _ => panic!("no register to write at {offset:#x}"),
        }
    }
}
