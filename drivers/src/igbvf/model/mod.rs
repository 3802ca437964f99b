//! A virtual function of an 82576 or I350 in software, written from the datasheets: registers with their side effects,
//! queues, mailbox with the other side ([`pf`]), what the card lets through to it, statistics that wrap, MSI-X. Not
//! modelled: other functions and loop-back, groups by hash, anti-spoofing, moderation.

mod pf;

use std::sync::Arc;

use crate::intel::model as parts;
use crate::intel::model::advanced::Queues;
use crate::mac::MacAddr;
use crate::nic::model::{Card, DeviceMemory, Fault, Model};

pub use pf::Pf;

const BAR_BYTES: usize = 0x4000;
const VTCTRL_RST: u32 = 1 << 26;
/// The physical function checks everything.
const RXCSUM: u32 = 3 << 8;

/// The function.
pub struct IgbvfModel {
    card: Card,
    device_id: u16,
    /// All registers without side effects, by offset / 4.
    regs: Vec<u32>,
    /// The queues.
    pub queues: Queues,
    /// The other side of the mailbox.
    pub pf: Pf,
    cable: bool,
    vector_mask: u32,
}

impl IgbvfModel {
    /// A function whose physical function assigns this address to it.
    pub fn new(memory: Arc<dyn DeviceMemory>, device_id: u16, mac: MacAddr) -> Self {
        IgbvfModel {
            card: Card::new(memory),
            device_id,
            regs: vec![0; BAR_BYTES / 4],
            queues: Queues::new(1),
            pf: Pf::new(mac),
            cable: true,
            vector_mask: 0,
        }
    }

    fn reg(&self, offset: usize) -> u32 {
        self.regs[offset / 4]
    }

    /// 82576 4.2.2.2. Statistics go on.
    fn reset(&mut self) {
        self.queues.reset();
        self.regs[0x1000 / 4..].fill(0);
        self.vector_mask = 0;
        self.pf.function_reset();
    }

    /// The cable of the card is plugged or pulled: the physical function's driver tells all functions.
    pub fn set_cable(&mut self, plugged: bool) {
        if self.cable != plugged {
            self.cable = plugged;
            self.pf.ping();
            self.raise();
        }
    }

    /// The physical function is reset, and `done`.
    pub fn reset_pf(&mut self, done: bool) {
        if done {
            self.pf.end_reset();
        } else {
            self.queues.reset();
            self.pf.begin_reset();
        }
        self.raise();
    }

    /// A statistics register starts from here.
    pub fn preset(&mut self, offset: usize, value: u32) {
        self.regs[offset / 4] = value;
    }

    /// Vectors the driver asked for.
    pub fn vector_mask(&self) -> u32 {
        self.vector_mask
    }

    /// The mailbox's vector (82576 7.3.2.2).
    fn raise(&mut self) {
        let vector = self.reg(0x1740) & 0xff;
        let bit = 1 << (vector & 3);
        if vector & 0x80 != 0 && self.vector_mask & bit != 0 {
            self.card.interrupt((vector & 3) as usize);
            self.vector_mask &= !(self.reg(0x1530) & bit);
        }
    }

    fn count(&mut self, [frames, bytes]: [usize; 2], len: usize) {
        self.regs[frames / 4] = self.regs[frames / 4].wrapping_add(1);
        self.regs[bytes / 4] = self.regs[bytes / 4].wrapping_add(len as u32);
    }

    /// Whether the card gives a frame to this function, and with which tag taken off.
    fn admits(&self, frame: &[u8]) -> Option<Option<u16>> {
        let granted = &self.pf.granted;
        let tagged = frame.get(12..14)? == [0x81, 0] && frame.len() >= 18;
        let tag = tagged.then(|| u16::from_be_bytes([frame[14], frame[15]]));
        let vlan_fits = tag.is_none_or(|tag| granted.vlans.contains(&(tag & 0xfff)));
        let len = frame.len() + 4;
        let fits = match frame[..6] {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => true,
            [first, ..] if first & 1 == 1 => granted.multicast,
            _ => {
                let is = |mac: &MacAddr| mac.0 == frame[..6];
                granted.unicast || self.pf.mac.iter().any(is) || granted.more.iter().any(is)
            }
        };
        (granted.known && fits && vlan_fits && len <= granted.max_frame as usize).then_some(tag)
    }

    fn receive(&mut self) {
        while self.cable
            && let Some(frame) = self.card.wire.to_nic.pop_front()
        {
            let Some(tag) = self.admits(&frame) else { continue };
            let mut stored = frame.clone();
            if tag.is_some() {
                stored.drain(12..16);
            }
            let found = parts::checks(&stored, RXCSUM);
            if self.queues.deliver(&mut self.card, 0, &stored, found, tag) {
                self.count([0xf10, 0xf18], frame.len() + 4);
            } else if self.queues.is_on(false) {
                self.card.wire.to_nic.push_front(frame);
                return;
            }
        }
    }
}

impl Model for IgbvfModel {
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
        match offset {
            0x0008 => 2 << 6 | u32::from(self.cable) << 1 | 1,
            0x0800..0x0840 => self.pf.read((offset - 0x800) / 4),
            0x0c40 => self.pf.read_flags(),
            0x1524 => self.vector_mask,
            0x2800..0x2900 => self.queues.read(false, 0, offset & 0x3f),
            0x3800..0x3900 => self.queues.read(true, 0, offset & 0x3f),
            _ => self.reg(offset),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        match offset {
            0x0000 if value & VTCTRL_RST != 0 => {
                self.reset();
                self.pf.silent = self.card.fault == Some(Fault::NeverResets);
            }
            0x0800..0x0840 => self.pf.write((offset - 0x800) / 4, value),
            0x0c40 => self.pf.write_flags(value),
            0x1524 => self.vector_mask |= value,
            0x1528 => self.vector_mask &= !value,
            0x2800..0x2900 => self.queues.write(false, 0, offset & 0x3f, value),
            0x3800..0x3900 => self.queues.write(true, 0, offset & 0x3f, value),
            _ => self.regs[offset / 4] = value,
        }
    }

    fn step(&mut self) {
        self.queues.catch_up(&self.card);
        if self.card.fault == Some(Fault::Hang) {
            return;
        }
        if self.cable && self.pf.granted.known {
            for frame in self.queues.send(&self.card, 0, Some(0x8100)) {
                self.count([0xf14, 0xf34], frame.len() + 4);
                self.card.wire.from_nic.push(frame);
            }
        }
        self.receive();
    }

    fn n_vectors(&self) -> usize {
        3
    }
}
