//! An 82576, I350, I210 or I211 in software, written from the datasheets: registers with their side effects, queues,
//! address filters, hashing, checksums, statistics, link, PHY behind its semaphore, MSI-X. Not modelled: flow control,
//! VLAN filters, multicast table, virtual machine queues, serial links, TSO, moderation, manageability.

use std::sync::Arc;

use super::Kind;
use crate::intel::model::advanced::Queues;
use crate::intel::model::stats::{self, Stats};
use crate::intel::model::{self as parts, Phy};
use crate::mac::MacAddr;
use crate::nic::model::{Card, DeviceMemory, Fault, Model};

const BAR_BYTES: usize = 0x2_0000;
const CTRL_RST: u32 = 1 << 26;
const CTRL_SLU: u32 = 1 << 6;
const CTRL_GIO_DIS: u32 = 1 << 2;
/// VLAN mode: both directions, all queues.
const CTRL_VME: u32 = 1 << 30;
const VET: usize = 0x38;
const RCTL: usize = 0x100;
const TCTL: usize = 0x400;
const ENABLE: u32 = 1 << 1;
const RCTL_SECRC: u32 = 1 << 26;
/// DVMOLR of a queue: strip the FCS.
const STRCRC: u32 = 1 << 31;
const LSC: u32 = 1 << 2;
/// Which port of the chip this is.
const PORT: u32 = 1;
const PHY_OF_THIS_PORT: u32 = 1 << 2;

/// The card.
pub struct IgbModel {
    card: Card,
    device_id: u16,
    kind: Kind,
    /// All registers without side effects, by offset / 4.
    regs: Vec<u32>,
    /// The queues.
    pub queues: Queues,
    stats: Stats,
    mac: MacAddr,
    phy: Phy,
    cable: bool,
    causes: u32,
    mask: u32,
    vector_causes: u32,
    vector_mask: u32,
    semaphore: u32,
    /// Firmware holds the PHY and never lets go.
    pub firmware_holds_phy: bool,
}

impl IgbModel {
    /// A card of this PCI device id, with this address in its EEPROM.
    pub fn new(memory: Arc<dyn DeviceMemory>, device_id: u16, mac: MacAddr) -> Self {
        let kind = Kind::of(device_id);
        let mut model = IgbModel {
            card: Card::new(memory),
            device_id,
            kind,
            regs: vec![0; BAR_BYTES / 4],
            queues: Queues::new(kind.n_queue_pairs().into()),
            stats: Stats::default(),
            mac,
            phy: Phy::default(),
            cable: true,
            causes: 0,
            mask: 0,
            vector_causes: 0,
            vector_mask: 0,
            semaphore: 0,
            firmware_holds_phy: false,
        };
        model.reset();
        model
    }

    fn reg(&self, offset: usize) -> u32 {
        self.regs[offset / 4]
    }

    /// 82576 4.2.1.6.1: everything to its default; the EEPROM's address into the first receive address.
    fn reset(&mut self) {
        self.regs.fill(0);
        self.queues.reset();
        self.stats = Stats::default();
        (self.causes, self.mask, self.vector_causes, self.vector_mask) = (0, 0, 0, 0);
        let MacAddr([a, b, c, d, e, f]) = self.mac;
        self.regs[0x5400 / 4] = u32::from_le_bytes([a, b, c, d]);
        self.regs[0x5404 / 4] = u32::from_le_bytes([e, f, 0, 0x80]);
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

    /// A statistics register starts from here.
    pub fn preset(&mut self, offset: usize, value: u32) {
        self.stats.preset(offset, value);
    }

    /// Receiver and transmitter are on.
    pub fn is_enabled(&self) -> [bool; 2] {
        let on = |register, tx| self.reg(register) & ENABLE != 0 && self.queues.is_on(tx);
        [on(RCTL, false), on(TCTL, true)]
    }

    /// Interrupts the driver asked for: causes, vectors.
    pub fn masks(&self) -> [u32; 2] {
        [self.mask, self.vector_mask]
    }

    /// 82576 7.3: a cause that is no queue's, and the message that comes of it.
    fn raise(&mut self, cause: u32) {
        self.causes |= cause;
        let vector = self.reg(0x1740) >> 8 & 0xff;
        if self.mask & cause == 0 || self.reg(0x1514) & 1 << 4 == 0 || vector & 0x80 == 0 {
            return;
        }
        let bit = 1 << (vector & 0x1f);
        self.vector_causes |= bit;
        if self.vector_mask & bit != 0 {
            self.card.interrupt((vector & 0x1f) as usize);
            self.vector_causes &= !(self.reg(0x152c) & bit);
            self.vector_mask &= !(self.reg(0x1530) & bit);
        }
    }

    fn link_is_up(&self) -> bool {
        self.cable && self.reg(0) & CTRL_SLU != 0 && self.phy.is_on()
    }

    /// The queue of a frame (82576 7.1.2.8).
    fn queue_of(&self, frame: &[u8]) -> usize {
        if self.reg(0x5818) & 7 != 2 {
            return 0;
        }
        let key = (0..10).map(|i| self.reg(0x5c80 + 4 * i));
        let entry = parts::hash(frame, key).map_or(0, |hash| (hash & 0x7f) as usize);
        (self.reg(0x5c00 + entry / 4 * 4) >> (8 * (entry % 4)) & 0xf) as usize
    }

    fn addresses(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..self.kind.n_exact_filters()).map(|n| {
            let at = if n < 16 { 0x5400 + 8 * n } else { 0x54e0 + 8 * (n - 16) };
            (self.reg(at), self.reg(at + 4))
        })
    }

    fn receive(&mut self) {
        if self.reg(RCTL) & ENABLE == 0 {
            return;
        }
        while self.link_is_up()
            && let Some(frame) = self.card.wire.to_nic.pop_front()
        {
            let too_long = frame.len() + 4 > self.reg(0x5004) as usize;
            if too_long || !parts::admits(&frame, self.reg(RCTL), self.addresses()) {
                continue;
            }
            let queue = self.queue_of(&frame);
            let found = parts::checks(&frame, self.reg(0x5000));
            let strips = self.reg(RCTL) & RCTL_SECRC != 0
                && (self.kind == Kind::I82576 || self.queues.read(false, queue, 0x38) & STRCRC != 0);
            let mut stored = frame.clone();
            let vlan_mode = self.reg(0) & CTRL_VME != 0;
            let tag = vlan_mode.then(|| parts::strip_tag(&mut stored, self.reg(VET))).flatten();
            stored.resize(stored.len() + if strips { 0 } else { 4 }, 0xfc);
            if self.queues.deliver(&mut self.card, queue, &stored, found, tag) {
                self.stats.received(&frame);
            } else if self.queues.read(false, queue, 0x0c) >> 31 == 1 {
                let n = self.queues.read(false, queue, 0x30);
                self.queues.write(false, queue, 0x30, n + 1);
            } else {
                self.card.wire.to_nic.push_front(frame);
                return;
            }
        }
    }

    fn send(&mut self) {
        if self.reg(TCTL) & ENABLE == 0 || !self.link_is_up() {
            return;
        }
        let tag_type = (self.reg(0) & CTRL_VME != 0).then_some(self.reg(VET) as u16);
        for queue in 0..self.kind.n_queue_pairs().into() {
            for frame in self.queues.send(&self.card, queue, tag_type) {
                self.stats.sent(&frame);
                self.card.wire.from_nic.push(frame);
            }
        }
    }

    /// Direction, queue and offset in the block of a queue register; the first four are also elsewhere.
    fn queue_register(offset: usize) -> Option<(bool, usize, usize)> {
        match offset {
            0x2800..0x2c00 => Some((false, offset >> 8 & 3, offset & 0x3f)),
            0x3800..0x3c00 => Some((true, offset >> 8 & 3, offset & 0x3f)),
            0xc000..0xc400 => Some((false, offset >> 6 & 0xf, offset & 0x3f)),
            0xe000..0xe400 => Some((true, offset >> 6 & 0xf, offset & 0x3f)),
            _ => None,
        }
    }

    fn status(&self) -> u32 {
        let master = if self.reg(0) & CTRL_GIO_DIS == 0 { 1 << 19 } else { 0 };
        2 << 6 | PORT << 2 | u32::from(self.link_is_up()) << 1 | 1 | master
    }
}

impl Model for IgbModel {
    fn card(&mut self) -> &mut Card {
        &mut self.card
    }

    fn config(&self) -> [u8; 256] {
        let mut config = [0; 256];
        config[..2].copy_from_slice(&0x8086u16.to_le_bytes());
        config[2..4].copy_from_slice(&self.device_id.to_le_bytes());
        config
    }

    fn bar(&self) -> (u8, usize) {
        (0, BAR_BYTES)
    }

    fn read(&mut self, offset: usize) -> u32 {
        if let Some((tx, queue, register)) = Self::queue_register(offset) {
            let value = self.queues.read(tx, queue, register);
            if !tx && register == 0x30 && matches!(self.kind, Kind::I82576 | Kind::I350) {
                self.queues.write(tx, queue, register, 0);
            }
            return value;
        }
        match offset {
            0x08 => self.status(),
            0x10 => 1 << 9 | 1 << 8,
            0xc0 | 0x1500 => std::mem::take(&mut self.causes),
            0xd0 | 0x1508 => self.mask,
            0x1524 => self.vector_mask,
            0x1580 => std::mem::take(&mut self.vector_causes),
            // The read that finds it clear takes it.
            0x5b50 => {
                let held = self.semaphore;
                self.semaphore |= 1;
                held
            }
            0x5b5c if self.firmware_holds_phy => self.reg(offset) | PHY_OF_THIS_PORT << 16,
            _ if stats::RANGE.contains(&offset) => self.stats.read(offset),
            _ => self.reg(offset),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        if let Some((tx, queue, register)) = Self::queue_register(offset) {
            return self.queues.write(tx, queue, register, value);
        }
        let never_resets = self.card.fault == Some(Fault::NeverResets);
        match offset {
            0x00 if value & CTRL_RST != 0 && !never_resets => self.reset(),
            0x20 => {
                assert!(self.reg(0x5b5c) & PHY_OF_THIS_PORT != 0, "the PHY is used by who holds it");
                self.regs[offset / 4] = self.phy.access(value);
            }
            0xc8 | 0x1504 => self.raise(value),
            0xd0 | 0x1508 => self.mask |= value,
            0xd8 | 0x150c => self.mask &= !value,
            0x1524 => self.vector_mask |= value,
            0x1528 => self.vector_mask &= !value,
            0x1580 => self.vector_causes &= !value,
            0x5b50 => self.semaphore = value & 3,
            0x08 | 0x10 | 0xc0 | 0x1500 => {}
            _ if stats::RANGE.contains(&offset) => {}
            _ => self.regs[offset / 4] = value,
        }
    }

    fn step(&mut self) {
        self.queues.catch_up(&self.card);
        if self.card.fault != Some(Fault::Hang) {
            self.send();
            self.receive();
        }
    }

    fn n_vectors(&self) -> usize {
        10
    }
}
