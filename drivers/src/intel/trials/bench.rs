//! A card of Intel's in software with the true driver on it, and the frames that trials send through both.

use std::sync::Arc;

use crate::burst::Burst;
use crate::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use crate::intel::nic::{Chip, IntelNic};
use crate::mac::MacAddr;
use crate::nic::model::{DeviceMemory, Fault, Handle, Model, ModelBar, ModelFunction};
use crate::port::{Device, Health, PortError, Queues};
use crate::stats::DropReason;

/// The card's address.
pub const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

/// One kind of card under trial: its model, its driver, and where the models differ.
pub trait Subject: Sized + 'static {
    /// The card in software.
    type Model: Model;
    /// The driver's part that is only for this family.
    type Chip: Chip<Bar = ModelBar<Self::Model>>;
    /// Driver's name.
    const DRIVER: &'static str;
    /// Queue pairs it is tried with.
    const N_PAIRS: u16;
    /// Tail registers of the first queues, receiving and sending.
    const TAILS: [usize; 2];
    /// Where interrupts are masked by writing.
    const MASKS: &'static [usize];
    /// Interrupts as [`masks`](Subject::masks) has them while the link's alone are on.
    const LINK_MASKS: [u32; 2];
    /// Changes of the link that interrupt, of two.
    const LINK_INTERRUPTS: u64;
    /// The register that chooses the descriptor format, as its error begins.
    const FORMAT: &'static str;
    /// How the error of a reset that never ends reads.
    const RESET_LATE: &'static str = "CTRL & 0x04000000 did not become 0x00000000";
    /// A frame's worth of a good octets counter besides the frame itself: the FCS, where it is counted.
    const COUNTED_FCS: u64 = 4;

    /// A card with this address.
    fn model(memory: Arc<dyn DeviceMemory>, mac: MacAddr) -> Self::Model;
    /// Its driver.
    fn open(function: ModelFunction<Self::Model>, space: &DmaSpace) -> Result<Nic<Self>, PortError>;
    /// The cable is plugged or pulled.
    fn set_cable(model: &mut Self::Model, plugged: bool);
    /// A statistics register starts from here.
    fn preset(model: &mut Self::Model, offset: usize, value: u32);
    /// Descriptors the card has of the first ring of a direction.
    fn available(model: &Self::Model, tx: bool) -> u32;
    /// Receiver and transmitter are on.
    fn is_enabled(model: &Self::Model) -> [bool; 2];
    /// Interrupts the driver asked for, in two registers.
    fn masks(model: &Self::Model) -> [u32; 2];
    /// All interrupts are on, as the driver before left them.
    fn unmask(model: &mut Self::Model);
    /// Frames the card took a tag off, and frames it inserted one in.
    fn n_tags(model: &Self::Model) -> [u64; 2];
    /// The register that chooses the descriptor format takes no writes.
    fn stick_format(model: &mut Self::Model, stuck: bool);
}

/// The driver of a subject.
pub type Nic<S> = IntelNic<ModelFunction<<S as Subject>::Model>, <S as Subject>::Chip>;

/// A card, its driver, and what is needed to use them.
pub struct Bench<S: Subject> {
    /// The driver.
    pub nic: Nic<S>,
    /// The card.
    pub model: Handle<S::Model>,
    /// Buffers.
    pub pool: Pool,
    /// Buffers of this core.
    pub cache: PoolCache,
    /// Its queue halves.
    pub queues: Queues,
    n_pairs: u16,
}

/// A frame to `dst`, of an experimental type, with its number in it.
pub fn frame_to(dst: MacAddr, n: usize, len: usize) -> Vec<u8> {
    let mut frame = [&dst.0[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5], &(n as u32).to_be_bytes()].concat();
    frame.extend((frame.len()..len.max(frame.len())).map(|at| (at + n) as u8));
    frame.truncate(len);
    frame
}

/// As [`frame_to`], for the card.
pub fn frame(n: usize, len: usize) -> Vec<u8> {
    frame_to(MAC, n, len)
}

impl<S: Subject> Bench<S> {
    /// Opened, not started.
    pub fn unstarted() -> Self {
        let space = DmaSpace::new();
        let (function, model) = crate::nic::model::new(&space, |memory| S::model(memory, MAC));
        let nic = S::open(function, &space).unwrap();
        Bench::of(nic, model, &space)
    }

    /// With a driver that is opened.
    pub fn of(nic: Nic<S>, model: Handle<S::Model>, space: &DmaSpace) -> Self {
        let pool = Pool::new(space, PoolConfig { n_buffers: 4096 }).unwrap();
        let cache = pool.cache();
        Bench { nic, model, pool, cache, queues: Queues::default(), n_pairs: 1 }
    }

    /// Started, with one queue pair.
    pub fn new() -> Self {
        Bench::with_queues(1)
    }

    /// Started, with so many.
    pub fn with_queues(n_pairs: u16) -> Self {
        let mut bench = Bench::unstarted();
        bench.n_pairs = n_pairs;
        bench.start();
        bench
    }

    /// Starts it.
    pub fn start(&mut self) {
        self.queues = self.nic.start(&self.pool, self.n_pairs).unwrap();
    }

    /// Stops it.
    pub fn stop(&mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
    }

    /// Stops it, ends its faults, starts it.
    pub fn restart(&mut self) {
        self.stop();
        self.model.set_fault(None);
        self.start();
    }

    /// A packet of these bytes.
    pub fn packet(&mut self, bytes: &[u8]) -> PacketBuf {
        crate::soft::copy_in(&mut self.cache, bytes).unwrap()
    }

    /// Sends frames in bursts, the device working in between, until all are gone.
    pub fn send(&mut self, n: usize, len: usize) {
        let mut burst = Burst::new();
        let mut made = 0;
        for _ in 0..10 * n + 10 {
            while made < n && burst.room() > 0 {
                let packet = self.packet(&frame(made, len));
                burst.push(packet).unwrap();
                made += 1;
            }
            self.queues.tx[0].tx_burst(&mut self.cache, &mut burst);
            self.model.step();
            if made == n && burst.is_empty() {
                return;
            }
        }
        panic!("{} frames not taken", burst.len());
    }

    /// What one look at a queue brings.
    pub fn poll(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.queues.rx[queue].rx_burst(&mut self.cache, &mut burst);
        let frames: Vec<_> = burst.take_all().collect();
        frames
            .into_iter()
            .map(|packet| {
                let bytes = packet.segments().collect::<Vec<_>>().concat();
                self.cache.free(packet);
                bytes
            })
            .collect()
    }

    /// All that arrives in so many steps.
    pub fn receive(&mut self, steps: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for _ in 0..steps {
            self.model.step();
            frames.extend(self.poll(0));
        }
        frames
    }

    /// One frame comes in while the device misbehaves; what the driver makes of it.
    pub fn receive_with(&mut self, fault: Fault) -> Vec<Vec<u8>> {
        self.model.set_fault(Some(fault));
        self.model.inject(&frame(0, 64));
        self.receive(3)
    }

    /// Drops of the first receive queue.
    pub fn rx_drops(&self, reason: DropReason) -> u64 {
        self.queues.rx[0].stats().drops(reason)
    }

    /// Drops of the first transmit queue.
    pub fn tx_drops(&self, reason: DropReason) -> u64 {
        self.queues.tx[0].stats().drops(reason)
    }

    /// Descriptors of a ring that can be the card's: all but one.
    pub fn most_taken(&self) -> usize {
        usize::from(self.nic.limits().ring_size) - 1
    }

    /// A counter of the card or its driver.
    pub fn counter(&mut self, name: &str) -> u64 {
        self.nic.device_counters().into_iter().find(|c| c.0 == name).unwrap().1
    }

    /// Why it has to be started anew.
    pub fn reason(&mut self) -> String {
        match self.nic.health() {
            Health::NeedsRestart(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Frames of all kinds pass both ways.
    pub fn works(&mut self) {
        self.model.transmitted();
        for n in [1, 31, 32, 33] {
            (0..n).for_each(|i| self.model.inject(&frame(i, 60 + i)));
            let wanted: Vec<_> = (0..n).map(|i| frame(i, 60 + i)).collect();
            assert_eq!(self.receive(4), wanted);
            self.send(n, 100);
            assert_eq!(self.model.transmitted(), (0..n).map(|i| frame(i, 100)).collect::<Vec<_>>());
        }
    }

    /// Nothing is lost, nothing was touched that is not ours.
    pub fn finish(mut self) {
        self.stop();
        assert_eq!(self.model.stray_accesses(), [] as [u64; 0]);
        drop(self.nic);
        drop(self.cache);
        assert_eq!(self.pool.counts().out, 0);
    }
}
