//! A PCI function whose registers take no writes while a driver is measured: a write to a card is posted, over for the
//! processor before the card has seen it, and what a model does about a doorbell is no cost of the driver.
//! Reads go straight through; queue halves do none.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use spp_drivers::pci::{PciFunction, Registers};
use spp_drivers::port::PortError;

/// Most writes of one turn to one BAR.
const WRITES: usize = 8;

/// Writes that wait. The bench plays driver and card in one thread, so no access needs any order.
#[derive(Default)]
struct Waiting {
    is_on: AtomicBool,
    n: AtomicUsize,
    /// The value in the lower half, the offset in the upper one, and [`NARROW`].
    writes: [AtomicU64; WRITES],
}

/// A write of 16 bits, not 32.
const NARROW: u64 = 1 << 63;

impl Waiting {
    /// True if the write waits now.
    #[inline(always)]
    fn take(&self, flag: u64, offset: usize, value: u32) -> bool {
        if !self.is_on.load(Ordering::Relaxed) {
            return false;
        }
        let n = self.n.load(Ordering::Relaxed);
        assert!(n < WRITES, "a turn writes to few registers");
        self.writes[n].store(flag | (offset as u64) << 32 | u64::from(value), Ordering::Relaxed);
        self.n.store(n + 1, Ordering::Relaxed);
        true
    }

    fn deliver(&self, bar: &impl Registers) {
        self.is_on.store(false, Ordering::Relaxed);
        for write in &self.writes[..self.n.swap(0, Ordering::Relaxed)] {
            let word = write.load(Ordering::Relaxed);
            let (offset, value) = ((word & !NARROW) >> 32, word as u32);
            match word & NARROW {
                0 => bar.write32(offset as usize, value),
                _ => bar.write16(offset as usize, value as u16),
            }
        }
    }
}

/// The BARs that were mapped: each with what holds its writes back and what delivers them.
type Bars = Arc<Mutex<Vec<(Arc<Waiting>, Box<dyn Fn() + Send>)>>>;

/// The hand on what waits.
#[derive(Clone, Default)]
pub struct Post(Bars);

impl Post {
    /// Writes wait from now on.
    pub fn hold(&self) {
        self.0
            .lock()
            .expect("nobody panicked")
            .iter()
            .for_each(|bar| bar.0.is_on.store(true, Ordering::Relaxed));
    }

    /// The card sees all writes since [`hold`](Self::hold), and further ones at once.
    pub fn deliver(&self) {
        self.0.lock().expect("nobody panicked").iter().for_each(|bar| bar.1());
    }
}

/// The function.
pub struct Posted<F> {
    function: F,
    post: Post,
}

impl<F> Posted<F> {
    /// Over a function; the writes of all BARs go through `post`.
    pub fn new(function: F, post: &Post) -> Posted<F> {
        Posted { function, post: post.clone() }
    }
}

/// One of its BARs.
#[derive(Clone)]
pub struct PostedBar<B> {
    bar: B,
    waiting: Arc<Waiting>,
}

impl<B: Registers> Registers for PostedBar<B> {
    fn len_bytes(&self) -> usize {
        self.bar.len_bytes()
    }
    fn read8(&self, offset: usize) -> u8 {
        self.bar.read8(offset)
    }
    fn read16(&self, offset: usize) -> u16 {
        self.bar.read16(offset)
    }
    fn read32(&self, offset: usize) -> u32 {
        self.bar.read32(offset)
    }
    fn write8(&self, offset: usize, value: u8) {
        self.bar.write8(offset, value);
    }
    #[inline(always)]
    fn write16(&self, offset: usize, value: u16) {
        if !self.waiting.take(NARROW, offset, value.into()) {
            self.bar.write16(offset, value);
        }
    }
    #[inline(always)]
    fn write32(&self, offset: usize, value: u32) {
        if !self.waiting.take(0, offset, value) {
            self.bar.write32(offset, value);
        }
    }
}

impl<F: PciFunction> PciFunction for Posted<F> {
    type Bar = PostedBar<F::Bar>;

    fn address(&self) -> &str {
        self.function.address()
    }
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), PortError> {
        self.function.config_read(offset, buf)
    }
    fn config_write(&self, offset: u16, bytes: &[u8]) -> Result<(), PortError> {
        self.function.config_write(offset, bytes)
    }
    fn map_bar(&self, index: u8) -> Result<Self::Bar, PortError> {
        let bar = PostedBar { bar: self.function.map_bar(index)?, waiting: Arc::default() };
        let PostedBar { bar: card, waiting } = bar.clone();
        let held = waiting.clone();
        let deliver = Box::new(move || waiting.deliver(&card));
        self.post.0.lock().expect("nobody panicked").push((held, deliver));
        Ok(bar)
    }
    fn set_bus_master(&self, on: bool) -> Result<(), PortError> {
        self.function.set_bus_master(on)
    }
    fn reset(&self) -> Result<bool, PortError> {
        self.function.reset()
    }
    fn enable_msix(&self, n: usize) -> Result<Vec<OwnedFd>, PortError> {
        self.function.enable_msix(n)
    }
    fn numa_node(&self) -> Option<u32> {
        self.function.numa_node()
    }
}
