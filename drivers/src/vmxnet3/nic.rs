//! [`Vmxnet3`]: the device behind any [`PciFunction`], on the port trait. Control thread only.
//!
//! Whatever the device was given comes back only after it is known to be stopped: rings of halves that are dropped early
//! are parked until then, and so is the configuration area.

use std::sync::Arc;
use std::time::Duration;

use super::area::Area;
use super::config::{self, Config, EVENT_VECTOR, N_VECTORS, QUEUE_BYTES, RingPlace, queue};
use super::counters::{Findings, Sums};
use super::desc::{RX_GEN, TX_GEN};
use super::init::Regs;
use super::regs::{command, event};
use super::ring::{CommandRing, CompletionRing};
use super::rx::{Rx, RxParts};
use super::tx::{Tx, TxParts};
use super::{Parked, Shared};
use crate::dma::{DmaError, DmaSpace, Pool, PoolCache};
use crate::mac::MacAddr;
use crate::nic::fault::{Fault, Side};
use crate::nic::filters::{self, Wanted};
use crate::nic::interrupt::Interrupt;
use crate::nic::tags::{Switch, Tags};
use crate::nic::wait::WaitError;
use crate::nic::watchdog::TX_LIMIT;
use crate::pci::PciFunction;
use crate::port::{Device, DeviceInfo, HEALTH_INTERVAL, Health, Link, PortError, Queues};
use crate::stats::{Counter, DropReason, QueueStats, SharedStats};

const DRIVER: &str = "vmxnet3";
/// Largest payload, Ethernet header and two VLAN tags.
const MAX_FRAME_BYTES: u32 = config::MTU + 14 + 8;
/// As many as the device has of transmit queues; of receive queues it has twice as many.
const N_QUEUE_PAIRS: u16 = 8;
/// Descriptors for the beginnings of frames and for what follows, and of a transmit ring. Hosts drop a frame that finds no
/// buffer, so there are as many for beginnings as a guest's own driver has.
const RX_RINGS: [u16; 2] = [1024, 256];
const TX_RING: u16 = 512;
/// Rings of queues that are there only because the device counts receive queues in powers of two.
const IDLE_RINGS: [u16; 2] = [32; 2];
/// It takes its own address alone, or everything.
const N_EXACT_FILTERS: usize = 1;
/// Looks at the link between two that a missed interrupt can't prevent: one second.
const LOOKS_PER_POLL: u32 = (1000 / HEALTH_INTERVAL.as_millis()) as u32;

/// Opens the device: maps its registers, resets it, reads its address. No DMA yet.
pub fn open<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Vmxnet3<F>, PortError> {
    function.set_bus_master(true)?; // memory decoding, for registers
    let regs = Regs::map(&function)?;
    let reset = regs.reset().and_then(|()| regs.negotiate());
    reset.map_err(|e| PortError::new(function.address(), format!("reset: {e}"), "").caused_by(e))?;
    function.set_bus_master(false)?;
    let own = regs.mac();
    let mac = own.unwrap_or_else(MacAddr::random);
    if own.is_none() {
        tracing::warn!(device = function.address(), %mac, "the device has no valid MAC address: it gets a random one");
    }
    let stats = || (0..N_QUEUE_PAIRS).map(|_| QueueStats::shared()).collect();
    Ok(Vmxnet3 {
        running: None,
        regs,
        function,
        space: space.clone(),
        mac,
        wanted: Wanted::default(),
        interrupt: None,
        link: Link::Down { reason: "not started".into() },
        link_event: false,
        stopped: None,
        looks: 0,
        rx_stats: stats(),
        tx_stats: stats(),
        findings: (0..N_QUEUE_PAIRS).map(|_| Arc::default()).collect(),
        inserted: (0..N_QUEUE_PAIRS).map(|_| Arc::default()).collect(),
        sums: Sums::default(),
        tx_limit: TX_LIMIT,
        events: Events { invalid_mac: u64::from(own.is_none()), ..Events::default() },
    })
}

#[derive(Default)]
struct Events {
    starts: u64,
    link_interrupts: u64,
    faults: u64,
    promiscuous_fallbacks: u64,
    invalid_mac: u64,
}

/// What exists from one start to its stop.
struct Running {
    shared: Arc<Shared>,
    config: Config,
    /// The configuration area, descriptions of queues, and how flows are spread.
    area: Area,
    queues: Arc<Area>,
    _rss: Option<Area>,
    /// What the halves want of tags, and the queues that asked for theirs to be stripped.
    tags: Arc<Tags>,
    stripping: u32,
}

/// A vmxnet3 device. Made by [`open`].
pub struct Vmxnet3<F: PciFunction> {
    running: Option<Running>,
    regs: Regs<F::Bar>,
    function: F,
    space: DmaSpace,
    mac: MacAddr,
    wanted: Wanted,
    /// Fires at events; `None` without MSI-X.
    interrupt: Option<Interrupt>,
    link: Link,
    /// The device has said that the link changed.
    link_event: bool,
    /// Why the device itself stopped a queue.
    stopped: Option<String>,
    looks: u32,
    rx_stats: Vec<SharedStats>,
    tx_stats: Vec<SharedStats>,
    findings: Vec<Arc<Findings>>,
    inserted: Vec<Arc<Counter>>,
    sums: Sums,
    tx_limit: Duration,
    events: Events,
}

impl<F: PciFunction> Vmxnet3<F> {
    /// How long sent frames may stay with a device that completes nothing before it counts as hung (5 s
    /// unless told). From the next start on.
    pub fn set_tx_limit(&mut self, limit: Duration) {
        self.tx_limit = limit;
    }

    /// What stopped the device, if anything did since its start.
    pub fn fault(&self) -> Option<Fault> {
        self.running.as_ref().and_then(|running| running.shared.fault())
    }

    fn error(&self, what: impl Into<String>, remedy: &str) -> PortError {
        PortError::new(self.function.address(), what, remedy)
    }

    fn late(&self, doing: &str, error: WaitError) -> PortError {
        self.error(format!("{doing}: {error}"), "").caused_by(error)
    }

    fn no_memory(&self, error: DmaError) -> PortError {
        self.error("no memory for rings", "").caused_by(error)
    }

    /// Memory for the configuration of `n` queue pairs. The device knows nothing of it yet.
    fn prepare(&self, n: u16) -> Result<Running, DmaError> {
        let n_rx = n.next_power_of_two();
        let area = Area::new(&self.space, "vmxnet3-config", config::SHARED_BYTES)?;
        let queues = Area::new(&self.space, "vmxnet3-queues", usize::from(n + n_rx) * QUEUE_BYTES)?;
        let rss = (n > 1).then(|| Area::new(&self.space, "vmxnet3-rss", config::RSS_BYTES)).transpose()?;
        if let Some(rss) = &rss {
            rss.write(0, &config::rss(n));
        }
        let config = Config {
            n_tx_queues: n as u8,
            n_rx_queues: n_rx as u8,
            queues_at: queues.iova(),
            rss_at: rss.as_ref().map(Area::iova),
            interrupts: self.interrupt.is_some(),
        };
        let shared = Arc::new(Shared::new(DRIVER));
        let tags = Arc::new(Tags::new(Switch::EachQueue, n));
        Ok(Running { shared, config, area, queues: Arc::new(queues), _rss: rss, tags, stripping: 0 })
    }

    /// The start proper. On an error the caller stops the device and drops what is parked.
    fn bring_up(&mut self, running: &Running, pool: &Pool, n: u16) -> Result<Queues, PortError> {
        let mut cache = pool.cache();
        let (mut rx, mut tx) = (Vec::new(), Vec::new());
        for queue in 0..n {
            tx.push(self.tx_half(running, queue).map_err(|e| self.no_memory(e))?);
            let half = self.rx_half(running, queue, &mut cache).map_err(|e| self.no_memory(e))?;
            let remedy = "give the pool more buffers";
            rx.push(half.ok_or_else(|| self.error("the packet pool can't fill the receive rings", remedy))?);
        }
        for queue in n..running.config.n_rx_queues.into() {
            self.idle_queue(running, queue).map_err(|e| self.no_memory(e))?;
        }
        let program = filters::program(Some(self.mac), &self.wanted, N_EXACT_FILTERS);
        self.events.promiscuous_fallbacks += u64::from(program.fell_back);
        running.area.write(0, &running.config.bytes(config::rx_mode(&program)));
        self.function.set_bus_master(true)?;
        self.regs.activate(running.area.iova(), self.mac).map_err(|e| self.late("activation", e))?;
        rx.iter().for_each(Rx::ring_doorbells);
        for update in [command::UPDATE_MAC_FILTERS, command::UPDATE_VLAN_FILTERS, command::UPDATE_RX_MODE] {
            self.regs.tell(update);
        }
        if self.interrupt.is_some() {
            self.regs.unmask(EVENT_VECTOR);
        }
        let mut queues = Queues::default();
        rx.into_iter().for_each(|half| queues.rx.push(Box::new(half)));
        tx.into_iter().for_each(|half| queues.tx.push(Box::new(half)));
        Ok(queues)
    }

    fn tx_half(&self, running: &Running, queue: u16) -> Result<Tx<F::Bar>, DmaError> {
        let commands = CommandRing::new(&self.space, "tx-ring", TX_RING, TX_GEN)?;
        let completions = CompletionRing::new(&self.space, "tx-done-ring", TX_RING)?;
        let described_at = usize::from(queue) * QUEUE_BYTES;
        running.queues.write(described_at, &config::tx_queue(place(&commands), done_place(&completions)));
        Ok(Tx::new(TxParts {
            queue,
            commands,
            completions,
            bell: self.regs.tx_doorbell(queue),
            queues: running.queues.clone(),
            described_at,
            shared: running.shared.clone(),
            stats: self.tx_stats[usize::from(queue)].clone(),
            max_frame_bytes: MAX_FRAME_BYTES as usize,
            limit: self.tx_limit,
            inserted: self.inserted[usize::from(queue)].clone(),
        }))
    }

    /// The rings of a receive queue, described to the device; and where.
    fn rx_rings(
        &self,
        running: &Running,
        queue: u16,
        [heads, bodies]: [u16; 2],
    ) -> Result<([CommandRing; 2], CompletionRing, usize), DmaError> {
        let ring = |what, size| CommandRing::new(&self.space, what, size, RX_GEN);
        let commands = [ring("rx-ring", heads)?, ring("rx-body-ring", bodies)?];
        let n_completions = (heads + bodies).next_power_of_two();
        let completions = CompletionRing::new(&self.space, "rx-done-ring", n_completions)?;
        let described_at = (usize::from(running.config.n_tx_queues) + usize::from(queue)) * QUEUE_BYTES;
        let described =
            config::rx_queue([place(&commands[0]), place(&commands[1])], done_place(&completions));
        running.queues.write(described_at, &described);
        Ok((commands, completions, described_at))
    }

    fn rx_half(
        &self,
        running: &Running,
        queue: u16,
        cache: &mut PoolCache,
    ) -> Result<Option<Rx<F::Bar>>, DmaError> {
        let (commands, completions, described_at) = self.rx_rings(running, queue, RX_RINGS)?;
        let index = usize::from(queue);
        let parts = RxParts {
            queue,
            n_queues: running.config.n_rx_queues.into(),
            commands,
            completions,
            bells: self.regs.rx_doorbells(queue),
            queues: running.queues.clone(),
            described_at,
            shared: running.shared.clone(),
            stats: self.rx_stats[index].clone(),
            findings: self.findings[index].clone(),
            tags: running.tags.clone(),
        };
        Ok(Rx::new(parts, cache))
    }

    /// A receive queue that no flow leads to, without buffers.
    fn idle_queue(&self, running: &Running, queue: u16) -> Result<(), DmaError> {
        let (commands, completions, _) = self.rx_rings(running, queue, IDLE_RINGS)?;
        let _rings = (commands.into(), completions);
        running.shared.park(Parked { side: Side::Rx, _rings, buffers: Vec::new() });
        Ok(())
    }

    /// Programs the filters of a device that runs; one that doesn't gets them at its start.
    fn refilter(&mut self) {
        let Some(running) = &self.running else { return };
        let program = filters::program(Some(self.mac), &self.wanted, N_EXACT_FILTERS);
        self.events.promiscuous_fallbacks += u64::from(program.fell_back);
        running.area.store32(config::RX_MODE, config::rx_mode(&program));
        self.regs.tell(command::UPDATE_RX_MODE);
    }

    /// Has the device take tags off as long as any queue wants that; where one doesn't, its half puts them back.
    fn switch_tags(&mut self) {
        let Some(running) = &mut self.running else { return };
        let wanted = running.tags.wanted(running.stripping);
        let before = std::mem::replace(&mut running.stripping, wanted);
        if (wanted != 0) != (before != 0) {
            running.area.store(config::FEATURES, running.config.features(wanted != 0));
            self.regs.tell(command::UPDATE_FEATURE);
        }
    }

    /// Stops all DMA, by the device's own reset, or by taking its bus away.
    fn silence(&mut self) -> bool {
        let reset = self.regs.reset();
        let off = self.function.set_bus_master(false);
        if let (Err(reset), Err(off)) = (&reset, &off) {
            let gone = self.regs.is_gone();
            tracing::warn!(device = self.function.address(), %reset, %off, gone, "vmxnet3 can't be stopped");
            return gone;
        }
        true
    }

    /// After the halves are gone: stops the device, then gives its buffers back to the pool.
    fn shut(&mut self) {
        self.collect();
        let Some(running) = self.running.take() else { return };
        if !self.silence() {
            std::mem::forget(running); // the device may still write: its memory is never reused
            return;
        }
        let hung = match running.shared.fault() {
            Some(Fault::TxHang { queue, .. }) => self.tx_stats.get(usize::from(queue)).cloned(),
            _ => None,
        };
        for Parked { side, buffers, .. } in running.shared.take_parked() {
            let n_out = buffers.into_iter().flat_map(Vec::from).flatten().count();
            if let (Side::Tx, Some(stats)) = (side, &hung) {
                stats.dropped(DropReason::TxTimeout, n_out);
            }
        }
    }

    /// Takes what the device has counted.
    fn collect(&mut self) {
        let Some(running) = self.running.as_ref().filter(|_| !self.regs.is_gone()) else { return };
        self.regs.tell(command::GET_STATS);
        self.sums.collect(&running.queues, running.config.n_tx_queues.into());
    }

    /// Looks at what the device has to tell, and acknowledges it. A few reads of memory where there is nothing.
    fn look_at_events(&mut self) {
        let Some(running) = &self.running else { return };
        if let Some(interrupt) = &self.interrupt
            && interrupt.fired()
        {
            self.events.link_interrupts += 1;
            self.link_event = true;
            self.regs.unmask(EVENT_VECTOR);
        }
        let events = running.area.load32(config::ECR);
        if events == 0 {
            return;
        }
        self.regs.acknowledge(events);
        self.link_event |= events & event::LINK != 0;
        if events & (event::RQERR | event::TQERR) != 0 && self.stopped.is_none() {
            self.regs.tell(command::GET_QUEUE_STATUS);
            self.stopped = Some(stopped_queue(running));
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
}

fn place(ring: &CommandRing) -> RingPlace {
    RingPlace { at: ring.iova(), size: ring.size() }
}

fn done_place(ring: &CompletionRing) -> RingPlace {
    RingPlace { at: ring.iova(), size: ring.size() }
}

/// Which queue the device has stopped, and why, in words.
#[cold]
fn stopped_queue(running: &Running) -> String {
    let n_tx = usize::from(running.config.n_tx_queues);
    for index in 0..n_tx + usize::from(running.config.n_rx_queues) {
        let at = index * QUEUE_BYTES;
        if running.queues.load32(at + queue::STOPPED) & 0xff == 0 {
            continue;
        }
        let error = running.queues.load32(at + queue::ERROR);
        let (side, number) = if index < n_tx { ("transmit", index) } else { ("receive", index - n_tx) };
        return format!("the device stopped {side} queue {number}: error {error:#010x}");
    }
    "the device reports that a queue failed, but not which".into()
}

impl<F: PciFunction> Device for Vmxnet3<F> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.function.address().to_owned(),
            driver: DRIVER,
            max_frame_bytes: MAX_FRAME_BYTES,
            n_queue_pairs: N_QUEUE_PAIRS,
            numa_node: self.function.numa_node(),
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        Some(self.mac)
    }

    fn link(&mut self) -> Link {
        self.look_at_events();
        self.switch_tags();
        let Some(running) = &self.running else {
            return Link::Down { reason: "not started".into() };
        };
        self.looks = self.looks.wrapping_add(1);
        let is_due = self.interrupt.is_none() || self.looks.is_multiple_of(LOOKS_PER_POLL);
        if std::mem::take(&mut self.link_event) || is_due {
            self.link = self.regs.link();
            running.shared.set_link(self.link.is_up());
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

    fn start(&mut self, pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        if self.running.is_some() {
            return Err(self.error("it is started already", "stop it first"));
        }
        if n_queue_pairs == 0 || n_queue_pairs > N_QUEUE_PAIRS {
            return Err(self.error(format!("{n_queue_pairs} queue pairs wanted, it has {N_QUEUE_PAIRS}"), ""));
        }
        self.function.set_bus_master(true)?; // memory decoding, for registers
        if self.regs.is_gone() {
            self.regs = Regs::map(&self.function)?;
        }
        if self.interrupt.is_none() {
            let vectors = self.function.enable_msix(N_VECTORS)?;
            let all = vectors.len() == N_VECTORS;
            self.interrupt = vectors.into_iter().next().filter(|_| all).map(Interrupt::new);
        }
        let reset = self.regs.reset().and_then(|()| self.regs.negotiate());
        if let Err(error) = reset {
            self.function.set_bus_master(false)?;
            return Err(self.late("reset", error));
        }
        (self.stopped, self.link_event) = (None, false);
        let running = self.prepare(n_queue_pairs).map_err(|e| self.no_memory(e))?;
        self.sums.restart(usize::from(running.config.n_tx_queues) + usize::from(running.config.n_rx_queues));
        let brought_up = self.bring_up(&running, pool, n_queue_pairs);
        let shared = running.shared.clone();
        self.running = Some(running);
        if brought_up.is_err() {
            self.shut();
            return brought_up;
        }
        self.events.starts += 1;
        self.link = self.regs.link();
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
        if self.regs.is_gone() {
            return self.vanished();
        }
        self.look_at_events();
        let fault = self.fault().map(|fault| fault.to_string());
        match fault.or_else(|| self.stopped.clone()) {
            Some(reason) => {
                self.events.faults += 1;
                Health::NeedsRestart(reason)
            }
            None => Health::Ok,
        }
    }

    fn device_counters(&mut self) -> Vec<(&'static str, u64)> {
        self.collect();
        let sum = |of: fn(&Findings) -> u64| self.findings.iter().map(|found| of(found)).sum::<u64>();
        let Events { starts, link_interrupts, faults, promiscuous_fallbacks, invalid_mac } = self.events;
        let mut counters: Vec<_> = self.sums.rows().collect();
        counters.extend([
            ("rx_checksums_right", sum(|c| c.right.get())),
            ("rx_checksums_wrong", sum(|c| c.wrong.get())),
            ("rx_tags_stripped", sum(|c| c.stripped.get())),
            ("tx_tags_inserted", self.inserted.iter().map(|n| n.get()).sum()),
            ("starts", starts),
            ("link_interrupts", link_interrupts),
            ("fault_reports", faults),
            ("promiscuous_fallbacks", promiscuous_fallbacks),
            ("invalid_mac", invalid_mac),
        ]);
        counters
    }
}

impl<F: PciFunction> Drop for Vmxnet3<F> {
    fn drop(&mut self) {
        self.shut();
    }
}
