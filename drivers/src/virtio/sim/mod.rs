//! A virtio-net PCI device in software, for tests and benches: the true driver runs over it.
//!
//! [`SimNic`] is what the driver opens; [`SimHandle`] is the hand on the model: the wire, the link, and lies on
//! command. Everything happens in calls of the handle and in register writes, so a test is deterministic.

mod model;
mod queue;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::event::{EventfdFlags, eventfd};

pub use crate::nic::model::ModelMemory as SimIommu;

use crate::dma::DmaSpace;
use crate::mac::MacAddr;
use crate::pci::{PciFunction, Registers};
use crate::port::PortError;
use crate::virtio::regs::status;
use model::{COMMON, DEVICE, Model, NOTIFY, NOTIFY_MULTIPLIER};

/// Queue number: from the wire to the driver.
pub const QUEUE_RX: usize = 0;
/// Queue number: from the driver to the wire.
pub const QUEUE_TX: usize = 1;

const BAR: u8 = 4;
const BAR_BYTES: usize = 0x4000;

/// Something a broken or malicious device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next completion says this many bytes.
    GarbageLength(u32),
    /// The next completion names this descriptor.
    ForeignId(u32),
    /// The used index moves this far at the next completion.
    IndexJump(u16),
    /// The used index moves before its entry is written, which never happens.
    LateEntry,
    /// The next received frame claims this many buffers.
    NumBuffers(u16),
    /// Nothing is completed any more.
    Hang,
    /// All registers read all ones.
    Gone,
    /// A reset never finishes.
    NeverResets,
    /// No features are good enough.
    RefusesFeatures,
    /// The configuration changes with each look at it.
    RestlessConfig,
}

impl Fault {
    fn is_in_a_completion(self) -> bool {
        use Fault::*;
        matches!(self, GarbageLength(_) | ForeignId(_) | IndexJump(_) | LateEntry | NumBuffers(_))
    }
}

type SharedModel = Arc<Mutex<Model>>;

fn lock(model: &SharedModel) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The model as a PCI function.
pub struct SimNic {
    model: SharedModel,
    interrupt: Arc<Mutex<Option<OwnedFd>>>,
}

/// Its one BAR.
#[derive(Clone)]
pub struct SimBar(SharedModel);

/// The test's hand on the model.
#[derive(Clone)]
pub struct SimHandle {
    model: SharedModel,
    iommu: Arc<SimIommu>,
    interrupt: Arc<Mutex<Option<OwnedFd>>>,
}

/// A new device whose memory accesses go through `space`.
pub fn new(space: &DmaSpace, mac: MacAddr) -> (SimNic, SimHandle) {
    let iommu = Arc::new(SimIommu::default());
    let attached = space.attach(iommu.clone());
    assert!(attached.is_ok(), "a model attaches to a fresh address space");
    let model = Arc::new(Mutex::new(Model::new(iommu.clone(), mac.0)));
    let interrupt = Arc::new(Mutex::new(None));
    let nic = SimNic { model: model.clone(), interrupt: interrupt.clone() };
    (nic, SimHandle { model, iommu, interrupt })
}

impl SimHandle {
    /// A frame arrives on the wire; it reaches the driver at the next [`step`](Self::step) with buffers.
    pub fn inject(&self, frame: &[u8]) {
        lock(&self.model).wire_in.push_back(frame.to_vec());
    }

    /// The device works off both queues.
    pub fn step(&self) {
        lock(&self.model).step();
    }

    /// Frames that left on the wire since the last call.
    pub fn transmitted(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.model).wire_out)
    }

    /// Frames on the wire that wait for buffers of the driver.
    pub fn waiting_on_wire(&self) -> usize {
        lock(&self.model).wire_in.len()
    }

    /// From now on the device lies so, or no longer.
    pub fn set_fault(&self, fault: Option<Fault>) {
        lock(&self.model).fault = fault;
    }

    /// Features it offers, from the next negotiation on.
    pub fn offer(&self, features: u64) {
        lock(&self.model).offered = features;
    }

    /// Features the driver accepted.
    pub fn accepted(&self) -> u64 {
        lock(&self.model).accepted
    }

    /// `device_status` as it is.
    pub fn status(&self) -> u8 {
        lock(&self.model).status
    }

    /// Whether the function may do DMA.
    pub fn bus_master(&self) -> bool {
        lock(&self.model).bus_master
    }

    /// Entries of the rings, from the next reset on.
    pub fn set_ring_size(&self, size: u16) {
        lock(&self.model).ring_size = size;
    }

    /// Largest payload it names, with F_MTU.
    pub fn set_mtu(&self, mtu: u16) {
        lock(&self.model).config[10..].copy_from_slice(&mtu.to_le_bytes());
    }

    /// The cable is plugged or pulled: configuration change and interrupt.
    pub fn set_link(&self, up: bool) {
        let mut model = lock(&self.model);
        let mut config = model.config;
        config[6] = u8::from(up);
        if model.change_config(config) {
            self.interrupt();
        }
    }

    /// The address changes in the middle of the driver's next look at the configuration.
    pub fn change_mac_during_next_read(&self, mac: MacAddr) {
        let mut model = lock(&self.model);
        let mut config = model.config;
        config[..6].copy_from_slice(&mac.0);
        model.config_behind = Some(config);
    }

    /// The device asks for a reset.
    pub fn need_reset(&self) {
        lock(&self.model).status |= status::NEEDS_RESET;
    }

    /// Doorbells rung for a queue so far.
    pub fn doorbells(&self, queue: usize) -> u64 {
        lock(&self.model).queues[queue].doorbells
    }

    /// Asks for no doorbells of a running queue, or for doorbells again.
    pub fn suppress_doorbells(&self, queue: usize, on: bool) {
        let model = lock(&self.model);
        model.queues[queue].suppress_doorbells(&model.memory, on);
    }

    /// What the driver said last about (promiscuous, all multicast).
    pub fn receive_modes(&self) -> [Option<bool>; 2] {
        lock(&self.model).receive_modes
    }

    /// Accesses outside of what the driver mapped.
    pub fn stray_accesses(&self) -> Vec<u64> {
        self.iommu.stray_accesses()
    }

    fn interrupt(&self) {
        if let Some(event) = &*self.interrupt.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}

impl Registers for SimBar {
    fn len_bytes(&self) -> usize {
        BAR_BYTES
    }
    fn read8(&self, offset: usize) -> u8 {
        lock(&self.0).read(offset, 1) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        lock(&self.0).read(offset, 2) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        lock(&self.0).read(offset, 4)
    }
    fn write8(&self, offset: usize, value: u8) {
        lock(&self.0).write(offset, value.into())
    }
    fn write16(&self, offset: usize, value: u16) {
        lock(&self.0).write(offset, value.into())
    }
    fn write32(&self, offset: usize, value: u32) {
        lock(&self.0).write(offset, value)
    }
}

/// Config space: ids, and the capabilities of a modern device with MSI-X among them.
fn config_space() -> [u8; 256] {
    let mut config = [0; 256];
    config[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
    config[6] = 1 << 4;
    config[0x34] = 0x98;
    config[0x98..0x9a].copy_from_slice(&[0x11, 0x84]);
    let mut cap = |at: usize, next: u8, kind: u8, offset: usize, len: u32| {
        config[at..at + 5].copy_from_slice(&[9, next, 20, kind, BAR]);
        config[at + 8..at + 12].copy_from_slice(&(offset as u32).to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    };
    cap(0x84, 0x70, 5, 0, 0); // access through config space: not used
    cap(0x70, 0x60, 2, NOTIFY, 0x1000);
    cap(0x60, 0x50, 4, DEVICE, 0x1000);
    cap(0x50, 0x40, 3, 0x1000, 0x1000);
    cap(0x40, 0, 1, COMMON, 0x1000);
    config[0x80..0x84].copy_from_slice(&(NOTIFY_MULTIPLIER as u32).to_le_bytes());
    config
}

impl PciFunction for SimNic {
    type Bar = SimBar;

    fn address(&self) -> &str {
        "sim:virtio-net"
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), PortError> {
        let outside = || PortError::new(self.address(), "config read beyond 256 bytes", "");
        let at = usize::from(offset);
        buf.copy_from_slice(config_space().get(at..at + buf.len()).ok_or_else(outside)?);
        Ok(())
    }

    fn config_write(&self, _offset: u16, _bytes: &[u8]) -> Result<(), PortError> {
        Ok(())
    }

    fn map_bar(&self, index: u8) -> Result<SimBar, PortError> {
        let absent = || PortError::new(self.address(), format!("it has no BAR {index}"), "");
        (index == BAR).then(|| SimBar(self.model.clone())).ok_or_else(absent)
    }

    fn set_bus_master(&self, on: bool) -> Result<(), PortError> {
        let mut model = lock(&self.model);
        if model.fault == Some(Fault::Gone) {
            return Err(PortError::new(self.address(), "the device is gone", ""));
        }
        model.bus_master = on;
        Ok(())
    }

    fn reset(&self) -> Result<bool, PortError> {
        Ok(false)
    }

    fn enable_msix(&self, n: usize) -> Result<Vec<OwnedFd>, PortError> {
        let failed = |e: rustix::io::Errno| PortError::new("sim:virtio-net", format!("no eventfd: {e}"), "");
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(failed)?;
        let ours = event
            .try_clone()
            .map_err(|e| failed(rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO)))?;
        *self.interrupt.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(ours);
        Ok(if n == 0 { Vec::new() } else { vec![event] })
    }

    fn numa_node(&self) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests;
