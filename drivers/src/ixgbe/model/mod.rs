//! An 82599 in software, written from the datasheet (331520) before the driver: registers with their side effects,
//! EEPROM, SFP+ module behind its bus, rings, offloads, statistics, MSI-X, and faults on command.
//!
//! It does no I/O: memory comes in through [`Memory`], frames through [`Model::inject`] and [`Model::take_sent`], time
//! through [`Model::advance_us`], and interrupts are asked for with [`Model::take_interrupts`]. So one model runs under our driver in
//! tests, stepped by hand, and behind a vfio-user socket under the kernel's and DPDK's drivers.
//!
//! Not modelled: flow director (it accepts filters that never match), RSC (it never merges), VMDq and SR-IOV, DCB, IPsec
//! and MACsec, FCoE, time stamps, header split, wake-up, pause frames.

mod eeprom;
mod function;
mod interrupt;
mod map;
mod offload;
mod registers;
mod rx;
mod stats;
#[cfg(test)]
mod tests;
mod tx;

use std::collections::VecDeque;

pub use crate::nic::model::DeviceMemory as Memory;
pub use eeprom::Module;
pub use function::Function;
use interrupt::Interrupts;
use map::N_QUEUES;
use stats::Stats;

/// Length of BAR 0, the registers.
pub const BAR_BYTES: usize = map::BAR_BYTES;
/// MSI-X vectors of the function.
pub const N_VECTORS: usize = 64;

/// What sits between the card and the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// A backplane (KX4, KR): link by negotiation.
    Backplane,
    /// An SFP+ cage with this in it.
    SfpPlus(Option<Module>),
    /// A copper PHY in the chip, run by firmware.
    BaseT,
}

/// Which card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// PCI device id, below vendor 8086.
    pub device_id: u16,
    /// Its address in the EEPROM.
    pub mac: [u8; 6],
    /// Its link.
    pub media: Media,
}

impl Card {
    /// The card of a PCI id, an SFP+ one with an SR module of the maker.
    pub fn of_id(device_id: u16, mac: [u8; 6]) -> Card {
        let media = match device_id {
            0x10f7 | 0x1517 | 0x10f8 | 0x10fc => Media::Backplane,
            0x1528 | 0x1560 | 0x1563 | 0x15d1 | 0x151c => Media::BaseT,
            _ => Media::SfpPlus(Some(Module::IntelSr)),
        };
        Card { device_id, mac, media }
    }
}

/// Something a broken or malicious card does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next received frame's last descriptor says this length.
    GarbageLength(u16),
    /// The next received frame never ends: its last descriptor lacks EOP.
    MissingEop,
    /// The next receive write-back goes to a descriptor the driver never posted (the one at the tail).
    NeverPosted,
    /// The next receive write-back skips this many descriptors.
    IndexJump(u16),
    /// Received data is in memory, but descriptors are written back only after this many further steps.
    LateWriteBack(u32),
    /// Sent frames are never completed.
    TxHang,
    /// Nothing moves any more.
    Hang,
    /// All registers read all ones.
    Gone,
    /// A reset never finishes.
    NeverResets,
    /// The EEPROM never answers.
    NoEeprom,
    /// The firmware holds all semaphores.
    FirmwareHoldsLock,
    /// A queue's enable bit never reads back as set.
    QueueNeverEnables,
}

/// One queue's place, as the card keeps it.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Descriptors worked off, where the card's own pointer differs from the head register only in tests.
    head: u32,
}

/// The card.
pub struct Model {
    card: Card,
    regs: Vec<u32>,
    eeprom: Vec<u16>,
    bus: eeprom::Bus,
    module: Option<[u8; 256]>,
    interrupts: Interrupts,
    stats: Stats,
    contexts: Vec<[offload::Context; 2]>,
    rx: Vec<Place>,
    wire_in: VecDeque<Vec<u8>>,
    /// Frames a tag was taken off, and those one was inserted in.
    pub n_tags: [u64; 2],
    /// Frames that passed the filters and wait for descriptors: the packet buffer.
    buffered: VecDeque<rx::Accepted>,
    buffered_bytes: usize,
    sent: Vec<Vec<u8>>,
    late: Vec<(u32, u64, [u8; 16], usize)>,
    fault: Option<Fault>,
    cable: bool,
    link_up: bool,
    bus_master: bool,
    violations: Vec<String>,
    n_resets: u64,
}

impl Model {
    /// A card after power-on, its cable plugged in.
    pub fn new(card: Card) -> Model {
        let mut model = Model {
            card,
            regs: vec![0; map::BAR_BYTES / 4],
            eeprom: eeprom::image(card.mac),
            bus: eeprom::Bus::default(),
            module: None,
            interrupts: Interrupts::default(),
            stats: Stats::default(),
            contexts: vec![Default::default(); N_QUEUES],
            rx: vec![Place::default(); N_QUEUES],
            wire_in: VecDeque::new(),
            n_tags: [0; 2],
            buffered: VecDeque::new(),
            buffered_bytes: 0,
            sent: Vec::new(),
            late: Vec::new(),
            fault: None,
            cable: true,
            link_up: false,
            bus_master: false,
            violations: Vec::new(),
            n_resets: 0,
        };
        if let Media::SfpPlus(module) = card.media {
            model.module = module.map(Module::bytes);
        }
        model.reset();
        model
    }

    /// Which card it is.
    pub fn card(&self) -> Card {
        self.card
    }

    /// Reset by the function's own reset (FLR), as by CTRL.RST.
    pub fn reset(&mut self) {
        if self.fault == Some(Fault::NeverResets) {
            return;
        }
        self.n_resets += 1;
        self.power_on_values();
        self.interrupts = Interrupts::default();
        self.contexts.fill(Default::default());
        self.rx.fill(Place::default());
        self.buffered.clear();
        self.buffered_bytes = 0;
        self.late.clear();
        self.update_link();
    }

    /// Resets since power-on.
    pub fn n_resets(&self) -> u64 {
        self.n_resets
    }

    /// The bus master bit of the function: without it no DMA and no interrupts.
    pub fn set_bus_master(&mut self, on: bool) {
        self.bus_master = on;
    }

    /// Whether the function may do DMA.
    pub fn bus_master(&self) -> bool {
        self.bus_master
    }

    /// A frame, without FCS, arrives on the wire.
    pub fn inject(&mut self, frame: &[u8]) {
        self.wire_in.push_back(frame.to_vec());
    }

    /// Frames that left on the wire since the last call, without FCS.
    pub fn take_sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sent)
    }

    /// Frames that wait on the wire or in the packet buffer.
    pub fn waiting(&self) -> usize {
        self.wire_in.len() + self.buffered.len()
    }

    /// The cable is plugged or pulled.
    pub fn set_cable(&mut self, plugged: bool) {
        self.cable = plugged;
        self.update_link();
    }

    /// A module goes into the SFP+ cage, or out of it.
    pub fn set_module(&mut self, module: Option<Module>) {
        self.card.media = Media::SfpPlus(module);
        self.module = module.map(Module::bytes);
        self.interrupts.set_other(map::EICR_GPI_SDP2);
        self.update_link();
    }

    /// From now on the card does so, or no longer.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// The fault not yet shown.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Changes one word of the EEPROM.
    pub fn set_eeprom_word(&mut self, at: usize, word: u16) {
        self.eeprom[at] = word;
    }

    /// What a driver did that the datasheet forbids, in words.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    fn violation(&mut self, what: impl Into<String>) {
        if self.violations.len() < 64 {
            self.violations.push(what.into());
        }
    }

    /// The card works: sends what is posted, receives what waits.
    pub fn step(&mut self, memory: &dyn Memory) {
        if !self.bus_master || matches!(self.fault, Some(Fault::Hang | Fault::Gone)) {
            return;
        }
        self.write_late(memory);
        self.step_tx(memory);
        self.step_rx(memory);
    }

    /// Whether work is left that needs no new frame and no new register write.
    pub fn has_work(&self) -> bool {
        !self.wire_in.is_empty() || !self.buffered.is_empty() || !self.late.is_empty()
    }

    fn write_late(&mut self, memory: &dyn Memory) {
        let mut due = Vec::new();
        self.late.retain_mut(|(steps, iova, bytes, queue)| {
            *steps -= 1;
            if *steps == 0 {
                due.push((*iova, *bytes, *queue));
            }
            *steps != 0
        });
        for (iova, bytes, queue) in due {
            self.write_descriptor(memory, iova, bytes, queue);
        }
    }

    fn write_descriptor(&mut self, memory: &dyn Memory, iova: u64, bytes: [u8; 16], queue: usize) {
        let (first, last) = bytes.split_at(8);
        let last = u64::from_le_bytes(last.try_into().expect("eight bytes"));
        if !(memory.write(iova, first) && memory.write_last(iova + 8, last)) {
            self.violation(format!("queue {queue}: descriptor at {iova:#x} is not mapped"));
        }
    }

    /// Time goes by; interrupt moderation (EITR) depends on it.
    pub fn advance_us(&mut self, us: u64) {
        self.interrupts.now_us += us;
    }

    /// MSI-X vectors that fire now, one bit each.
    pub fn take_interrupts(&mut self) -> u64 {
        if !self.bus_master || self.fault == Some(Fault::Gone) {
            return 0;
        }
        interrupt::take(&mut self.interrupts, &self.regs)
    }

    fn link_should_be_up(&self) -> bool {
        let module = match self.card.media {
            Media::SfpPlus(module) => matches!(module, Some(m) if m != Module::NotAModule),
            Media::Backplane | Media::BaseT => true,
        };
        let laser =
            !matches!(self.card.media, Media::SfpPlus(_)) || self.reg(map::ESDP) & map::ESDP_SDP3 == 0;
        let enabled = self.reg(map::AUTOC2) & map::AUTOC2_LINK_DISABLE == 0;
        self.cable && module && laser && enabled
    }

    fn update_link(&mut self) {
        let up = self.link_should_be_up();
        if up != self.link_up {
            self.link_up = up;
            self.interrupts.set_other(map::EICR_LSC);
        }
    }

    fn reg(&self, offset: usize) -> u32 {
        self.regs[offset / 4]
    }

    fn set_reg(&mut self, offset: usize, value: u32) {
        self.regs[offset / 4] = value;
    }
}
