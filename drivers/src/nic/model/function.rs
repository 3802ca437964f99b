//! A model as a PCI function, its BAR, and the test's hand on it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::{Fault, Model, ModelMemory};
use crate::dma::DmaSpace;
use crate::pci::{PciFunction, Registers};
use crate::port::PortError;

type Held<M> = Arc<Mutex<M>>;

fn lock<M>(model: &Held<M>) -> MutexGuard<'_, M> {
    model.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What the driver opens.
pub struct ModelFunction<M>(Held<M>);

/// One of the model's BARs.
pub struct ModelBar<M> {
    model: Held<M>,
    /// Where the model numbers its registers from.
    base: usize,
    len_bytes: usize,
}

/// The test's hand on the model.
pub struct Handle<M> {
    model: Held<M>,
    memory: Arc<ModelMemory>,
}

/// A new device whose memory accesses go through `space`.
pub fn new<M: Model>(
    space: &DmaSpace,
    make: impl FnOnce(Arc<ModelMemory>) -> M,
) -> (ModelFunction<M>, Handle<M>) {
    let memory = Arc::new(ModelMemory::default());
    let attached = space.attach(memory.clone());
    assert!(attached.is_ok(), "a model attaches to a fresh address space");
    let model = Arc::new(Mutex::new(make(memory.clone())));
    (ModelFunction(model.clone()), Handle { model, memory })
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle { model: self.model.clone(), memory: self.memory.clone() }
    }
}

impl<M: Model> Handle<M> {
    /// The model itself. The driver waits meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, M> {
        lock(&self.model)
    }

    /// A frame (without FCS) arrives on the wire; it reaches the driver at the next step with descriptors.
    pub fn inject(&self, frame: &[u8]) {
        self.lock().card().wire.to_nic.push_back(frame.to_vec());
    }

    /// The device works off what there is.
    pub fn step(&self) {
        self.lock().step();
    }

    /// Frames that left on the wire since the last call.
    pub fn transmitted(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lock().card().wire.from_nic)
    }

    /// Frames on the wire that wait for descriptors.
    pub fn waiting_on_wire(&self) -> usize {
        self.lock().card().wire.to_nic.len()
    }

    /// From now on the device misbehaves so, or no longer.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().card().fault = fault;
    }

    /// Whether the function may do DMA.
    pub fn bus_master(&self) -> bool {
        self.lock().card().bus_master
    }

    /// Writes to a register so far.
    pub fn writes_to(&self, offset: usize) -> u64 {
        self.lock().card().writes.get(&offset).copied().unwrap_or(0)
    }

    /// Accesses outside of what the driver mapped.
    pub fn stray_accesses(&self) -> Vec<u64> {
        self.memory.stray_accesses()
    }

    /// Steps the device in a thread of its own until the result is dropped.
    pub fn run(&self) -> Running {
        let (model, stop) = (self.model.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                lock(&model).step();
                std::thread::yield_now();
            }
        });
        Running { stop, thread: Some(thread) }
    }
}

/// A device that runs in a thread of its own until this is dropped.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the model panicked");
        }
    }
}

impl<M> Clone for ModelBar<M> {
    fn clone(&self) -> Self {
        ModelBar { model: self.model.clone(), base: self.base, len_bytes: self.len_bytes }
    }
}

impl<M: Model> ModelBar<M> {
    /// Writes and counts, if the device hears it.
    fn change(&self, offset: usize, write: impl FnOnce(&mut M)) {
        let mut model = lock(&self.model);
        if !matches!(model.card().fault, Some(Fault::Deaf | Fault::Gone)) {
            *model.card().writes.entry(self.base + offset).or_default() += 1;
            write(&mut model);
        }
    }
}

impl<M: Model> Registers for ModelBar<M> {
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    fn read8(&self, offset: usize) -> u8 {
        (self.read32(offset & !3) >> (8 * (offset & 3))) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        (self.read32(offset & !3) >> (8 * (offset & 2))) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.len_bytes && offset.is_multiple_of(4), "read at {offset:#x}");
        let mut model = lock(&self.model);
        match model.card().fault {
            Some(Fault::Deaf | Fault::Gone) => u32::MAX,
            _ => model.read(self.base + offset),
        }
    }
    fn write8(&self, offset: usize, value: u8) {
        self.change(offset, |model| model.write_narrow(self.base + offset, value.into()));
    }
    fn write16(&self, offset: usize, value: u16) {
        self.change(offset, |model| model.write_narrow(self.base + offset, value.into()));
    }
    fn write32(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= self.len_bytes && offset.is_multiple_of(4), "write at {offset:#x}");
        self.change(offset, |model| model.write(self.base + offset, value));
    }
}

impl<M: Model> PciFunction for ModelFunction<M> {
    type Bar = ModelBar<M>;

    fn address(&self) -> &str {
        "model:0"
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), PortError> {
        let mut model = lock(&self.0);
        let mut config = model.config();
        if model.card().fault == Some(Fault::Gone) {
            config.fill(0xff);
        }
        let outside = || PortError::new(self.address(), "config read beyond 256 bytes", "");
        let at = usize::from(offset);
        buf.copy_from_slice(config.get(at..at + buf.len()).ok_or_else(outside)?);
        Ok(())
    }

    fn config_write(&self, _offset: u16, _bytes: &[u8]) -> Result<(), PortError> {
        Ok(())
    }

    fn map_bar(&self, index: u8) -> Result<ModelBar<M>, PortError> {
        let (number, len_bytes) = lock(&self.0).bar();
        let bars = [Some((number, len_bytes, 0)), lock(&self.0).second_bar()];
        let absent = || PortError::new(self.address(), format!("it has no BAR {index}"), "");
        let (_, len_bytes, base) =
            bars.into_iter().flatten().find(|bar| bar.0 == index).ok_or_else(absent)?;
        Ok(ModelBar { model: self.0.clone(), base, len_bytes })
    }

    fn set_bus_master(&self, on: bool) -> Result<(), PortError> {
        let mut model = lock(&self.0);
        let card = model.card();
        if card.fault == Some(Fault::Gone) {
            return Err(PortError::new("model:0", "the device is gone", ""));
        }
        card.bus_master = on;
        Ok(())
    }

    fn reset(&self) -> Result<bool, PortError> {
        Ok(lock(&self.0).function_reset())
    }

    fn enable_msix(&self, n: usize) -> Result<Vec<OwnedFd>, PortError> {
        let failed = |e: std::io::Error| PortError::new("model:0", format!("no eventfd: {e}"), "");
        let mut model = lock(&self.0);
        let n = n.min(model.n_vectors());
        let event =
            || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(std::io::Error::from);
        let events: Vec<OwnedFd> = (0..n).map(|_| event()).collect::<Result<_, _>>().map_err(failed)?;
        let ours = events.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>().map_err(failed)?;
        model.card().vectors = ours;
        Ok(events)
    }

    fn numa_node(&self) -> Option<u32> {
        None
    }
}
