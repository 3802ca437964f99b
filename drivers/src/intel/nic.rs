//! [`IntelNic`]: any of Intel's cards on the port trait. What differs between them is in their [`Chip`]; what is here
//! is the life of a device: start and stop, filters restored, link, faults, counters, buffers that come back only
//! after the device is known to be stopped. Control thread only.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::desc::{RxFormat, TxFormat};
use super::rx::{Findings, Rx, RxParts};
use super::tx::{Tx, TxParts};
use super::{Parked, Shared};
use crate::dma::{DmaSpace, Pool};
use crate::mac::MacAddr;
use crate::nic::counters::{Counters, Row};
use crate::nic::fault::Fault;
use crate::nic::filters::{self, Program, Wanted};
use crate::nic::interrupt::Interrupt;
use crate::nic::regs::{Block, Doorbell};
use crate::nic::ring::DescRing;
use crate::nic::tags::{Switch, Tags};
use crate::nic::wait::WaitError;
use crate::nic::watchdog::TX_LIMIT;
use crate::pci::{PciFunction, Registers};
use crate::port::{Device, DeviceInfo, HEALTH_INTERVAL, Health, Link, PortError, Queues};
use crate::stats::{Counter, DropReason, QueueStats, SharedStats};

/// Looks at the link between two that a missed interrupt can't prevent: one second.
const LOOKS_PER_POLL: u32 = (1000 / HEALTH_INTERVAL.as_millis()) as u32;

/// What is the same for all cards of a chip.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Driver name in status.
    pub driver: &'static str,
    /// Longest frame in bytes, without FCS.
    pub max_frame_bytes: u32,
    /// Queue pairs.
    pub n_queue_pairs: u16,
    /// Exact unicast filters, that of its own address among them.
    pub n_exact_filters: usize,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// MSI-X vectors it wants; 0: the link is polled. Any of them tells of the link.
    pub n_vectors: usize,
}

/// Where a queue's ring is, for [`Chip::rx_queue`] and [`Chip::tx_queue`].
#[derive(Debug, Clone, Copy)]
pub struct RingPlace {
    /// Number of the queue.
    pub queue: u16,
    /// Address of the first descriptor, a multiple of 4096.
    pub iova: u64,
    /// A multiple of 128.
    pub len_bytes: u32,
}

/// One kind of card: its registers and how to bring it up. The methods are called in this order at a start: `reset`,
/// `init`, `rx_queue` and `tx_queue` for each pair, `filter`, `enable`.
pub trait Chip: Sized + Send + 'static {
    /// The register block.
    type Bar: Registers;
    /// Its receive descriptors.
    type Rx: RxFormat;
    /// Its transmit descriptors.
    type Tx: TxFormat;
    /// How it strips and inserts VLAN tags.
    const TAGS: Switch;

    /// What it can do.
    fn limits(&self) -> Limits;
    /// Its registers.
    fn regs(&self) -> &Block<Self::Bar>;
    /// Its statistics.
    fn counters(&self) -> &'static [Row];

    /// Stops all DMA, masks all interrupts, and sets all registers to their defaults.
    fn reset(&mut self) -> Result<(), WaitError>;
    /// Its own address; `None` when it has no valid one.
    fn mac(&self) -> Option<MacAddr>;
    /// Everything but the queues, for `n_queue_pairs` of them; receiver and transmitter stay off.
    fn init(&mut self, n_queue_pairs: u16) -> Result<(), WaitError>;
    /// Makes a receive queue known; its tail register.
    fn rx_queue(&mut self, place: RingPlace) -> Result<Doorbell<Self::Bar>, WaitError>;
    /// Makes a transmit queue known; its tail register.
    fn tx_queue(&mut self, place: RingPlace) -> Result<Doorbell<Self::Bar>, WaitError>;
    /// Programs the filters; also while it runs.
    fn filter(&mut self, program: &Program);
    /// Makes these receive queues strip VLAN tags, and no others, one bit for each; also while it runs. A card is [init](Self::init)
    /// with none. Of a chip with [one switch](Switch::One) it is all or none. In force when this returns.
    fn strip_tags(&mut self, queues: u32);
    /// Starts receiver and transmitter, and with `vectors` MSI-X vectors in use their interrupts.
    fn enable(&mut self, vectors: usize) -> Result<(), WaitError>;
    /// The link now.
    fn link(&mut self) -> Link;
    /// Why it has to be started anew, if something outside of it took away what it had been set up with.
    fn trouble(&mut self) -> Option<&'static str> {
        None
    }
    /// What it counts itself.
    fn own_counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// After the link's vector fired: makes it fire again at the next change.
    fn acknowledge(&mut self);
    /// True when its registers read as all ones.
    fn is_gone(&self) -> bool;
    /// Goes on with a new mapping of its registers: the old one is void.
    fn remap<F: PciFunction<Bar = Self::Bar>>(&mut self, function: &F) -> Result<(), PortError>;
}

/// A locally administered address.
fn random_mac() -> MacAddr {
    let random = RandomState::new().build_hasher().finish().to_le_bytes();
    let [a, b, c, d, e, f, ..] = random;
    MacAddr([a & 0xfc | 2, b, c, d, e, f])
}

#[derive(Default)]
struct Events {
    starts: u64,
    link_interrupts: u64,
    faults: u64,
    promiscuous_fallbacks: u64,
    invalid_mac: u64,
}

/// A card of kind `C` at the PCI function `F`. Made by the families' `open`.
pub struct IntelNic<F: PciFunction, C: Chip<Bar = F::Bar>> {
    running: Option<Arc<Shared>>,
    chip: C,
    function: F,
    space: DmaSpace,
    mac: MacAddr,
    wanted: Wanted,
    /// The link's vectors; none when it is polled.
    interrupts: Vec<Interrupt>,
    link: Link,
    looks: u32,
    rx_stats: Vec<SharedStats>,
    tx_stats: Vec<SharedStats>,
    findings: Vec<Arc<Findings>>,
    inserted: Vec<Arc<Counter>>,
    /// What the halves want of tags, and the queues that strip them.
    tags: Arc<Tags>,
    stripping: u32,
    counters: Counters,
    tx_limit: Duration,
    events: Events,
}

impl<F: PciFunction, C: Chip<Bar = F::Bar>> IntelNic<F, C> {
    /// Resets the card and reads its address. No DMA yet. Registers answer only with memory decoding on, which the
    /// caller has switched on ([`PciFunction::set_bus_master`]) to make the chip.
    pub fn open(function: F, mut chip: C, space: &DmaSpace) -> Result<Self, PortError> {
        let failed =
            |e: WaitError| PortError::new(function.address(), format!("reset: {e}"), "").caused_by(e);
        chip.reset().map_err(failed)?;
        function.set_bus_master(false)?;
        let own = chip.mac();
        let mac = own.unwrap_or_else(random_mac);
        if own.is_none() {
            tracing::warn!(device = function.address(), %mac, "no valid MAC address in its EEPROM: it gets a random one");
        }
        let limits = chip.limits();
        let stats = || (0..limits.n_queue_pairs).map(|_| QueueStats::shared()).collect();
        let rows = chip.counters();
        Ok(IntelNic {
            running: None,
            function,
            space: space.clone(),
            mac,
            wanted: Wanted::default(),
            interrupts: Vec::new(),
            link: Link::Down { reason: "not started".into() },
            looks: 0,
            rx_stats: stats(),
            tx_stats: stats(),
            findings: (0..limits.n_queue_pairs).map(|_| Arc::default()).collect(),
            inserted: (0..limits.n_queue_pairs).map(|_| Arc::default()).collect(),
            tags: Arc::new(Tags::new(C::TAGS, 1)),
            stripping: 0,
            counters: Counters::new(rows),
            tx_limit: TX_LIMIT,
            events: Events { invalid_mac: u64::from(own.is_none()), ..Events::default() },
            chip,
        })
    }

    /// How long sent frames may stay with a device that completes nothing before it counts as hung (5 s
    /// unless told). From the next start on.
    pub fn set_tx_limit(&mut self, limit: Duration) {
        self.tx_limit = limit;
    }

    /// What stopped the device, if anything did since its start.
    pub fn fault(&self) -> Option<Fault> {
        self.running.as_ref().and_then(|shared| shared.fault())
    }

    /// What it can do.
    pub fn limits(&self) -> Limits {
        self.chip.limits()
    }

    fn error(&self, what: impl Into<String>, remedy: &str) -> PortError {
        PortError::new(self.function.address(), what, remedy)
    }

    fn late(&self, doing: &str, error: WaitError) -> PortError {
        self.error(format!("{doing}: {error}"), "").caused_by(error)
    }

    /// The start proper. On an error the caller stops the card and drops what is parked.
    fn bring_up(&mut self, shared: &Arc<Shared>, pool: &Pool, n: u16) -> Result<Queues, PortError> {
        self.chip.reset().map_err(|e| self.late("reset", e))?;
        self.chip.init(n).map_err(|e| self.late("initialisation", e))?;
        (self.tags, self.stripping) = (Arc::new(Tags::new(C::TAGS, n)), 0);
        let mut cache = pool.cache();
        let (mut rx, mut tx) = (Vec::new(), Vec::new());
        for queue in 0..n {
            rx.push(self.rx_half(queue, shared, &mut cache)?);
            tx.push(self.tx_half(queue, shared, &cache)?);
        }
        self.program_filters();
        let read = |offset| self.chip.regs().read_at(offset);
        self.counters.rebase(read);
        self.function.set_bus_master(true)?;
        self.chip.enable(self.n_vectors()).map_err(|e| self.late("enabling", e))?;
        rx.iter_mut().for_each(Rx::start);
        let mut queues = Queues::default();
        rx.into_iter().for_each(|half| queues.rx.push(Box::new(half)));
        tx.into_iter().for_each(|half| queues.tx.push(Box::new(half)));
        Ok(queues)
    }

    fn n_vectors(&self) -> usize {
        self.interrupts.len()
    }

    fn ring(&self, what: &str) -> Result<DescRing, PortError> {
        let ring = DescRing::new(&self.space, what, self.chip.limits().ring_size);
        ring.map_err(|e| self.error("no memory for a ring", "").caused_by(e))
    }

    fn place(queue: u16, ring: &DescRing) -> RingPlace {
        RingPlace { queue, iova: ring.iova().0, len_bytes: ring.len_bytes() }
    }

    fn rx_half(
        &mut self,
        queue: u16,
        shared: &Arc<Shared>,
        cache: &mut crate::dma::PoolCache,
    ) -> Result<Rx<C::Rx, F::Bar>, PortError> {
        let ring = self.ring("rx-ring")?;
        let tail = self.chip.rx_queue(Self::place(queue, &ring));
        let tail = tail.map_err(|e| self.late("receive queue", e))?;
        let index = usize::from(queue);
        let (stats, findings) = (self.rx_stats[index].clone(), self.findings[index].clone());
        let (shared, tags) = (shared.clone(), self.tags.clone());
        let parts = RxParts { queue, ring, tail, shared, stats, findings, tags };
        let short =
            || self.error("the packet pool can't fill the receive ring", "give the pool more buffers");
        Rx::new(parts, cache).ok_or_else(short)
    }

    fn tx_half(
        &mut self,
        queue: u16,
        shared: &Arc<Shared>,
        cache: &crate::dma::PoolCache,
    ) -> Result<Tx<C::Tx, F::Bar>, PortError> {
        let ring = self.ring("tx-ring")?;
        let tail = self.chip.tx_queue(Self::place(queue, &ring));
        let tail = tail.map_err(|e| self.late("transmit queue", e))?;
        let stats = self.tx_stats[usize::from(queue)].clone();
        let max_frame_bytes = self.chip.limits().max_frame_bytes as usize;
        let (shared, limit) = (shared.clone(), self.tx_limit);
        let (tags, inserted) = (self.tags.clone(), self.inserted[usize::from(queue)].clone());
        let parts = TxParts { queue, ring, tail, shared, stats, max_frame_bytes, limit, tags, inserted };
        Ok(Tx::new(parts, cache))
    }

    fn program_filters(&mut self) {
        let program = filters::program(Some(self.mac), &self.wanted, self.chip.limits().n_exact_filters);
        self.events.promiscuous_fallbacks += u64::from(program.fell_back);
        self.chip.filter(&program);
    }

    /// Programs the filters of a card that runs; one that doesn't gets them at its start.
    fn refilter(&mut self) {
        if self.running.is_some() {
            self.program_filters();
        }
    }

    /// Stops all DMA, by the device's own reset, or by taking its bus away.
    fn silence(&mut self) -> bool {
        let reset = self.chip.reset();
        let off = self.function.set_bus_master(false);
        if let (Err(reset), Err(off)) = (&reset, &off) {
            let gone = self.chip.is_gone();
            tracing::warn!(device = self.function.address(), %reset, %off, gone, "the NIC can't be stopped");
            return gone;
        }
        true
    }

    /// After the halves are gone: stops the device, then gives its buffers back to the pool.
    fn shut(&mut self) {
        let Some(shared) = self.running.take() else { return };
        let read = |offset| self.chip.regs().read_at(offset);
        self.counters.collect(read);
        let silent = self.silence();
        let hung = match shared.fault() {
            Some(Fault::TxHang { queue, .. }) => self.tx_stats.get(usize::from(queue)).cloned(),
            _ => None,
        };
        for parked in shared.take_parked() {
            if !silent {
                std::mem::forget(parked); // the device may still write: its memory is never reused
                continue;
            }
            if let (Parked::Tx(_, unsent), Some(stats)) = (&parked, &hung) {
                stats.dropped(DropReason::TxTimeout, unsent.len());
            }
        }
    }

    /// Why all registers read as ones.
    #[cold]
    fn vanished(&mut self) -> Health {
        let mut vendor = [0xff; 2];
        if self.function.config_read(0, &mut vendor).is_err() || vendor == [0xff; 2] {
            return Health::Gone("its registers and its config space read all ones: it was unplugged".into());
        }
        self.events.faults += 1;
        Health::NeedsRestart("its registers read all ones, but it is there: memory decoding was off".into())
    }

    /// Sets the card to what the halves want of VLAN tags.
    fn switch_tags(&mut self) {
        let wanted = self.tags.wanted(self.stripping);
        if wanted != self.stripping {
            self.chip.strip_tags(wanted);
            self.stripping = wanted;
        }
        self.tags.switched(wanted);
    }

    /// True when the link may have changed since the last look.
    fn link_may_have_changed(&mut self) -> bool {
        if self.interrupts.is_empty() {
            return true;
        }
        self.looks += 1;
        // Each is looked at: that is what makes it ready to fire again.
        if self.interrupts.iter().fold(false, |any, vector| vector.fired() | any) {
            self.chip.acknowledge();
            self.events.link_interrupts += 1;
            return true;
        }
        self.looks.is_multiple_of(LOOKS_PER_POLL)
    }
}

impl<F: PciFunction, C: Chip<Bar = F::Bar>> Device for IntelNic<F, C> {
    fn info(&self) -> DeviceInfo {
        let Limits { driver, max_frame_bytes, n_queue_pairs, .. } = self.chip.limits();
        DeviceInfo {
            address: self.function.address().to_owned(),
            driver,
            max_frame_bytes,
            n_queue_pairs,
            numa_node: self.function.numa_node(),
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        Some(self.mac)
    }

    fn link(&mut self) -> Link {
        let Some(shared) = self.running.clone() else {
            return Link::Down { reason: "not started".into() };
        };
        self.switch_tags();
        if self.link_may_have_changed() {
            self.link = self.chip.link();
            shared.set_link(self.link.is_up());
        }
        self.link.clone()
    }

    fn set_promiscuous(&mut self, on: bool) -> Result<(), PortError> {
        self.wanted.promiscuous = on;
        self.refilter();
        Ok(())
    }

    fn set_unicast(&mut self, addresses: &[MacAddr]) -> Result<(), PortError> {
        self.wanted.unicast = addresses.to_vec();
        self.refilter();
        Ok(())
    }

    fn set_all_multicast(&mut self, on: bool) -> Result<(), PortError> {
        self.wanted.all_multicast = on;
        self.refilter();
        Ok(())
    }

    fn set_vlans(&mut self, vids: &[u16]) -> Result<(), PortError> {
        self.wanted.vlans = vids.to_vec();
        self.refilter();
        Ok(())
    }

    fn start(&mut self, pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        if self.running.is_some() {
            return Err(self.error("it is started already", "stop it first"));
        }
        let limits = self.chip.limits();
        if n_queue_pairs == 0 || n_queue_pairs > limits.n_queue_pairs {
            let has = limits.n_queue_pairs;
            return Err(self.error(format!("{n_queue_pairs} queue pairs wanted, it has {has}"), ""));
        }
        self.function.set_bus_master(true)?; // memory decoding, for registers
        if self.chip.is_gone() {
            self.chip.remap(&self.function)?;
        }
        if self.interrupts.is_empty() && limits.n_vectors > 0 {
            let vectors = self.function.enable_msix(limits.n_vectors)?;
            let all = vectors.len() == limits.n_vectors;
            self.interrupts = vectors.into_iter().filter(|_| all).map(Interrupt::new).collect();
        }
        let shared = Arc::new(Shared::new(limits.driver));
        let brought_up = self.bring_up(&shared, pool, n_queue_pairs);
        self.running = Some(shared.clone());
        if brought_up.is_err() {
            self.shut();
            return brought_up;
        }
        self.events.starts += 1;
        self.link = self.chip.link();
        shared.set_link(self.link.is_up());
        brought_up
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
        self.shut();
    }

    fn health(&mut self) -> Health {
        if self.function.removal_requested() {
            return Health::Gone("the kernel wants the device back".into());
        }
        if self.chip.is_gone() {
            return self.vanished();
        }
        let trouble = self.running.as_ref().and_then(|_| self.chip.trouble());
        let reason = self.fault().map(|fault| fault.to_string()).or(trouble.map(String::from));
        match reason {
            Some(reason) => {
                self.events.faults += 1;
                Health::NeedsRestart(reason)
            }
            None => Health::Ok,
        }
    }

    fn device_counters(&mut self) -> Vec<(&'static str, u64)> {
        if self.running.is_some() {
            let read = |offset| self.chip.regs().read_at(offset);
            self.counters.collect(read);
        }
        let sum = |of: fn(&Findings) -> &Counter| self.findings.iter().map(|f| of(f).get()).sum::<u64>();
        let Events { starts, link_interrupts, faults, promiscuous_fallbacks, invalid_mac } = self.events;
        let mut counters: Vec<_> = self.counters.sums().collect();
        counters.extend([
            ("rx_checksums_right", sum(|f| &f.right)),
            ("rx_checksums_wrong", sum(|f| &f.wrong)),
            ("rx_tags_stripped", sum(|f| &f.stripped)),
            ("tx_tags_inserted", self.inserted.iter().map(|n| n.get()).sum()),
            ("starts", starts),
            ("link_interrupts", link_interrupts),
            ("fault_reports", faults),
            ("promiscuous_fallbacks", promiscuous_fallbacks),
            ("invalid_mac", invalid_mac),
        ]);
        counters.extend(self.chip.own_counters());
        counters
    }
}

impl<F: PciFunction, C: Chip<Bar = F::Bar>> Drop for IntelNic<F, C> {
    fn drop(&mut self) {
        self.shut();
    }
}
