//! The model as a PCI function under the true driver, in this process.

use super::{BAR_BYTES, Fault, Model, N_VECTORS};
use crate::nic::model::{self, Card};

/// The card with what all models have: wire, faults, vectors.
pub struct Function {
    card: Card,
    /// The model itself, for what only this family has.
    pub chip: Model,
}

impl Function {
    /// Puts a card on its memory.
    pub fn new(card: Card, chip: Model) -> Self {
        Function { card, chip }
    }

    /// The common faults, as this card has them.
    fn translate(&mut self) {
        let fault = match self.card.fault {
            Some(model::Fault::GarbageLength(len)) => Fault::GarbageLength(len),
            Some(model::Fault::MissingEnd) => Fault::MissingEop,
            Some(model::Fault::IndexJump(by)) => Fault::IndexJump(by),
            Some(model::Fault::LateWriteBack) => Fault::LateWriteBack(1),
            Some(model::Fault::Hang) => Fault::Hang,
            Some(model::Fault::NeverResets) => Fault::NeverResets,
            _ => return,
        };
        self.chip.set_fault(Some(fault));
        if !matches!(fault, Fault::Hang | Fault::NeverResets | Fault::MissingEop) {
            self.card.fault = None;
        }
    }

    fn raise(&mut self) {
        let fires = self.chip.take_interrupts();
        (0..N_VECTORS).filter(|v| fires >> v & 1 == 1).for_each(|v| self.card.interrupt(v));
    }
}

impl model::Model for Function {
    fn card(&mut self) -> &mut Card {
        &mut self.card
    }

    fn config(&self) -> [u8; 256] {
        let mut config = [0; 256];
        config[..2].copy_from_slice(&[0x86, 0x80]);
        config[2..4].copy_from_slice(&self.chip.card().device_id.to_le_bytes());
        config
    }

    fn bar(&self) -> (u8, usize) {
        (0, BAR_BYTES)
    }

    fn read(&mut self, offset: usize) -> u32 {
        self.chip.read(offset)
    }

    fn write(&mut self, offset: usize, value: u32) {
        self.translate();
        self.chip.write(offset, value);
        self.chip.set_bus_master(self.card.bus_master);
        self.raise();
    }

    fn step(&mut self) {
        self.translate();
        self.chip.set_bus_master(self.card.bus_master);
        if self.chip.bus_master() {
            self.card.wire.to_nic.drain(..).for_each(|frame| self.chip.inject(&frame));
        }
        let memory = self.card.memory.clone();
        self.chip.step(&*memory);
        self.card.wire.from_nic.extend(self.chip.take_sent());
        self.raise();
    }

    fn n_vectors(&self) -> usize {
        N_VECTORS
    }

    fn function_reset(&mut self) -> bool {
        self.chip.reset();
        true
    }
}
