//! Parts of software models of NICs: memory as the device sees it, the wire, faults on command, and what makes a
//! register file a PCI function. A family's model implements [`Model`] over a [`Card`]; the true driver runs over
//! [`ModelFunction`], and the test has its hand on the model through a [`Handle`].
//!
//! Nothing happens by itself: a model moves in register accesses and in [`Handle::step`], so that tests are
//! deterministic; [`Handle::run`] steps it in a thread of its own instead.

mod function;
mod memory;

pub use function::{Handle, ModelBar, ModelFunction, Running, new};
pub use memory::{DeviceMemory, ModelMemory};

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Something a broken or malicious device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next received descriptor says this many bytes.
    GarbageLength(u16),
    /// No received descriptor ends a frame any more.
    MissingEnd,
    /// The next completion is written into the descriptor this far ahead of the one it belongs to.
    IndexJump(u16),
    /// The next completion sets its done bit before the rest of the descriptor is written, which comes with the next step.
    LateWriteBack,
    /// The next received frame is marked as damaged.
    Damaged,
    /// Nothing is completed any more.
    Hang,
    /// All registers read all ones; config space answers.
    Deaf,
    /// All registers and config space read all ones.
    Gone,
    /// A reset never finishes.
    NeverResets,
}

/// The wire at the model's port.
#[derive(Default)]
pub struct Wire {
    /// Frames (without FCS) that arrive, oldest first; those the card has no descriptor for wait.
    pub to_nic: VecDeque<Vec<u8>>,
    /// Frames that left.
    pub from_nic: Vec<Vec<u8>>,
}

/// What all models have.
pub struct Card {
    /// What the device reaches.
    pub memory: Arc<dyn DeviceMemory>,
    /// The command register lets it.
    pub bus_master: bool,
    /// Its wire.
    pub wire: Wire,
    /// How it misbehaves.
    pub fault: Option<Fault>,
    /// MSI-X vectors, as the driver enabled them.
    pub vectors: Vec<OwnedFd>,
    /// Register writes so far, by offset: doorbells are counted with these.
    pub writes: std::collections::HashMap<usize, u64>,
}

impl Card {
    /// A card on `memory`.
    pub fn new(memory: Arc<dyn DeviceMemory>) -> Self {
        Card {
            memory,
            bus_master: false,
            wire: Wire::default(),
            fault: None,
            vectors: Vec::new(),
            writes: Default::default(),
        }
    }

    /// DMA read; zeros where the device may not read.
    pub fn read<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if self.bus_master {
            self.memory.read(iova, &mut bytes);
        }
        bytes
    }

    /// DMA read of a packet.
    pub fn read_bytes(&self, iova: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        if self.bus_master {
            self.memory.read(iova, &mut bytes);
        }
        bytes
    }

    /// DMA write.
    pub fn write(&self, iova: u64, bytes: &[u8]) {
        if self.bus_master {
            self.memory.write(iova, bytes);
        }
    }

    /// Both words of the descriptor at `iova`.
    pub fn read_descriptor(&self, iova: u64) -> [u64; 2] {
        [self.read::<8>(iova), self.read::<8>(iova + 8)].map(u64::from_le_bytes)
    }

    /// Writes a descriptor back, the word with the done bit last.
    pub fn write_descriptor(&self, iova: u64, [first, second]: [u64; 2]) {
        if self.bus_master {
            self.memory.write(iova, &first.to_le_bytes());
            self.memory.write_last(iova + 8, second);
        }
    }

    /// Signals an MSI-X vector.
    pub fn interrupt(&self, vector: usize) {
        if let Some(event) = self.vectors.get(vector) {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    /// Takes the fault if it is this kind of thing that happens once.
    pub fn take_fault(&mut self, is_it: impl Fn(Fault) -> bool) -> Option<Fault> {
        let hit = self.fault.filter(|fault| is_it(*fault))?;
        self.fault = None;
        Some(hit)
    }
}

/// A device in software: one BAR of 32-bit registers, or two, and what it does with them.
pub trait Model: Send + 'static {
    /// The common parts.
    fn card(&mut self) -> &mut Card;
    /// Config space, without the command register.
    fn config(&self) -> [u8; 256];
    /// Number and length of its BAR.
    fn bar(&self) -> (u8, usize);
    /// A second BAR: its number, its length, and where [`read`](Self::read) and [`write`](Self::write) number its
    /// registers from.
    fn second_bar(&self) -> Option<(u8, usize, usize)> {
        None
    }
    /// Reads a register, with its side effects.
    fn read(&mut self, offset: usize) -> u32;
    /// Writes a register, with its side effects.
    fn write(&mut self, offset: usize, value: u32);
    /// Writes a register of 8 or 16 bits. Most cards have none, and a driver that thinks so has a bug.
    fn write_narrow(&mut self, offset: usize, _value: u32) {
        panic!("narrow write at {offset:#x}");
    }
    /// Works off what the driver and the wire have for it.
    fn step(&mut self);
    /// MSI-X vectors it has.
    fn n_vectors(&self) -> usize;
    /// Function-level reset; false where it has none.
    fn function_reset(&mut self) -> bool {
        false
    }
}
