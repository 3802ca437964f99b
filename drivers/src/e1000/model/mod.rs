//! An 8254x or 82574 in software, written from the datasheets: registers with their side effects, descriptor fetch
//! and write-back, address filters, hashing, checksums, statistics, link, EEPROM and PHY. Not modelled: flow control,
//! VLAN filters, multicast table, TSO, delays, manageability.

mod rx;
#[cfg(test)]
mod tests;
mod tx;

use std::sync::Arc;

use crate::intel::model::stats::{self, Stats};
use crate::intel::model::{self as parts, Phy, Ring};
use crate::mac::MacAddr;
use crate::nic::model::{Card, DeviceMemory, Fault, Model};

const CTRL_RST: u32 = 1 << 26;
const CTRL_SLU: u32 = 1 << 6;
/// VLAN mode: both directions, all queues.
const CTRL_VME: u32 = 1 << 30;
const VET: usize = 0x38;
const CTRL_MASTER_DISABLE: u32 = 1 << 2;
const LSC: u32 = 1 << 2;
const OTHER: u32 = 1 << 24;
const BAR_BYTES: usize = 0x2_0000;

/// Which chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chip {
    /// 82545EM.
    I82545,
    /// 82574L.
    I82574,
}

/// The card.
pub struct E1000Model {
    card: Card,
    chip: Chip,
    /// All registers without side effects, by offset / 4.
    regs: Vec<u32>,
    rx: [Ring; 2],
    tx: [Ring; 2],
    /// Per transmit queue: the context last loaded, and the bytes of the frame so far.
    contexts: [[u64; 2]; 2],
    gathered: [Vec<u8>; 2],
    eeprom: [u16; 64],
    phy: Phy,
    stats: Stats,
    cable: bool,
    causes: u32,
    mask: u32,
    /// The half of a write-back that was put off.
    late: Option<(u64, [u64; 2])>,
    /// RFCTL takes no writes.
    pub stuck_format: bool,
    /// Frames a tag was taken off, and those one was inserted in.
    pub n_tags: [u64; 2],
}

impl E1000Model {
    /// A card with this address in its EEPROM.
    pub fn new(memory: Arc<dyn DeviceMemory>, chip: Chip, mac: MacAddr) -> Self {
        let mut eeprom = [0; 64];
        for (word, pair) in eeprom.iter_mut().zip(mac.0.chunks(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        let mut model = E1000Model {
            card: Card::new(memory),
            chip,
            regs: vec![0; BAR_BYTES / 4],
            rx: Default::default(),
            tx: Default::default(),
            contexts: Default::default(),
            gathered: Default::default(),
            eeprom,
            phy: Phy::default(),
            stats: Stats::default(),
            cable: true,
            causes: 0,
            mask: 0,
            late: None,
            stuck_format: false,
            n_tags: [0; 2],
        };
        model.reset();
        model
    }

    fn reg(&self, offset: usize) -> u32 {
        self.regs[offset / 4]
    }

    /// 8254x 13.4.1: everything to its default; the EEPROM's address into the first receive address.
    fn reset(&mut self) {
        self.regs.fill(0);
        self.stats = Stats::default();
        self.rx = Default::default();
        self.tx = Default::default();
        self.gathered = Default::default();
        (self.causes, self.mask, self.late) = (0, 0, None);
        let words = self.eeprom.map(u32::from);
        self.regs[0x5400 / 4] = words[0] | words[1] << 16;
        self.regs[0x5404 / 4] = words[2] | 1 << 31;
    }

    /// The word of the EEPROM; its address comes into force with the next reset.
    pub fn set_mac(&mut self, mac: MacAddr) {
        for (word, pair) in self.eeprom.iter_mut().zip(mac.0.chunks(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        self.reset();
    }

    /// The kernel's driver was here and switched the PHY off.
    pub fn power_phy_down(&mut self) {
        self.phy.power_down();
    }

    /// The cable is plugged or pulled.
    pub fn set_cable(&mut self, plugged: bool) {
        if self.cable != plugged {
            self.cable = plugged;
            self.raise(LSC);
        }
    }

    fn raise(&mut self, cause: u32) {
        self.causes |= cause | if self.chip == Chip::I82574 { OTHER } else { 0 };
        let ivar = self.reg(0xe4) >> 16 & 0xf;
        if self.chip == Chip::I82574 && self.mask & OTHER != 0 && self.mask & cause != 0 && ivar & 8 != 0 {
            self.card.interrupt((ivar & 7) as usize);
        }
    }

    fn link_is_up(&self) -> bool {
        self.cable && self.reg(0) & CTRL_SLU != 0 && self.phy.is_on()
    }

    /// Interrupts the driver asked for.
    pub fn mask(&self) -> u32 {
        self.mask
    }

    /// All of them are on.
    pub fn unmask(&mut self) {
        self.mask = u32::MAX;
    }

    /// The receiver or the transmitter is on.
    pub fn is_enabled(&self) -> [bool; 2] {
        [self.reg(0x100) & 2 != 0, self.reg(0x400) & 2 != 0]
    }

    /// Descriptors the card has of a ring.
    pub fn available(&self, tx: bool, queue: usize) -> u32 {
        if tx { self.tx[queue].available() } else { self.rx[queue].available() }
    }

    /// A statistics register starts from here.
    pub fn preset(&mut self, offset: usize, value: u32) {
        self.stats.preset(offset, value);
    }

    /// The frame hash of 82574 7.1.11 over IPv4 addresses, and the queue that follows from it.
    fn queue_of(&self, frame: &[u8]) -> usize {
        if self.chip == Chip::I82545 || self.reg(0x5818) & 3 != 1 {
            return 0;
        }
        let key = (0..10).map(|i| self.reg(0x5c80 + 4 * i));
        let entry = parts::hash(frame, key).map_or(0, |hash| (hash & 0x7f) as usize);
        (self.reg(0x5c00 + entry / 4 * 4) >> (8 * (entry % 4) + 7) & 1) as usize
    }

    fn ring_register(&mut self, offset: usize) -> Option<(&mut Ring, usize)> {
        let queue = offset >> 8 & 1;
        match offset & !0x1ff {
            0x2800 => Some((&mut self.rx[queue], offset & 0xff)),
            0x3800 => Some((&mut self.tx[queue], offset & 0xff)),
            _ => None,
        }
    }
}

impl Model for E1000Model {
    fn card(&mut self) -> &mut Card {
        &mut self.card
    }

    fn config(&self) -> [u8; 256] {
        let mut config = [0; 256];
        let id = if self.chip == Chip::I82574 { 0x10d3u16 } else { 0x100f };
        config[..2].copy_from_slice(&0x8086u16.to_le_bytes());
        config[2..4].copy_from_slice(&id.to_le_bytes());
        config
    }

    fn bar(&self) -> (u8, usize) {
        (0, BAR_BYTES)
    }

    fn read(&mut self, offset: usize) -> u32 {
        if let Some((ring, register)) = self.ring_register(offset) {
            match register {
                0x08 => return ring.len_bytes,
                0x10 => return ring.head,
                0x18 => return ring.tail,
                _ => {}
            }
        }
        match offset {
            0x08 => {
                let disabled = self.reg(0) & CTRL_MASTER_DISABLE != 0;
                let master = if self.chip == Chip::I82574 && !disabled { 1 << 19 } else { 0 };
                2 << 6 | u32::from(self.link_is_up()) << 1 | 1 | master
            }
            0x10 => 1 << 9 | 1 << 8,
            0xc0 => std::mem::take(&mut self.causes),
            0xd0 => self.mask,
            _ if stats::RANGE.contains(&offset) => self.stats.read(offset),
            _ => self.reg(offset),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        if let Some((ring, register)) = self.ring_register(offset) {
            match register {
                0x00 => ring.set_base_low(value),
                0x04 => ring.set_base_high(value),
                0x08 => ring.len_bytes = value & 0xf_ff80,
                0x10 => ring.head = value & 0xffff,
                0x18 => ring.tail = value & 0xffff,
                _ => self.regs[offset / 4] = value,
            }
            return;
        }
        let never_resets = self.card.fault == Some(Fault::NeverResets);
        match offset {
            0x00 if value & CTRL_RST != 0 && !never_resets => self.reset(),
            0x14 => {
                let (shift, done) = if self.chip == Chip::I82574 { (2, 2) } else { (8, 16) };
                let word = self.eeprom.get((value as u16 >> shift) as usize).copied().unwrap_or(u16::MAX);
                self.regs[offset / 4] = u32::from(word) << 16 | value & 0xfffc | done;
            }
            0x20 => self.regs[offset / 4] = self.phy.access(value),
            0xc0 => self.causes &= !value,
            0xc8 => self.raise(value),
            0xd0 => self.mask |= value,
            0xd8 => self.mask &= !value,
            0x08 | 0x10 => {}
            _ if stats::RANGE.contains(&offset) => {}
            0x5008 if self.stuck_format => {}
            _ => self.regs[offset / 4] = value,
        }
    }

    fn step(&mut self) {
        if let Some((at, words)) = self.late.take() {
            self.card.write_descriptor(at, words);
        }
        if self.card.fault == Some(Fault::Hang) {
            return;
        }
        for queue in 0..2 {
            self.send(queue);
        }
        self.receive();
    }

    fn n_vectors(&self) -> usize {
        if self.chip == Chip::I82574 { 5 } else { 0 }
    }
}
