//! [`VirtioNet`]: a virtio-net device behind any [`PciFunction`], on the port trait.
//!
//! The control half; it lives on the control thread. Its queue halves (`rx`, `tx`) move to cores. Whatever the
//! device was given comes back only after it is known to be stopped: rings of halves that are dropped early are
//! parked until then.

use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, MAX_ADDRESSES};
use super::counters::{self, Checksums, Events};
use super::ctrl::{CommandError, Control};
use super::desc::NetHdr;
use super::features;
use super::init::{NetConfig, Regs};
use super::queue::{Doorbell, Layout, Parked, Ring, Shared};
use super::regs::{feature, status};
use super::rx::{Rx, RxParts};
use super::tx::{Tx, TxParts};
use crate::dma::{DATA_ROOM, DmaSpace, Pool, PoolCache};
use crate::mac::MacAddr;
use crate::nic::fault::Fault;
use crate::nic::filters::{self, Wanted};
use crate::nic::interrupt::Interrupt;
use crate::nic::watchdog::TX_LIMIT;
use crate::pci::PciFunction;
use crate::port::{Device, DeviceInfo, HEALTH_INTERVAL, Health, Link, PortError, Queues, RxQueue, TxQueue};
use crate::stats::{DropReason, QueueStats, SharedStats};

const DRIVER: &str = "virtio-net";
/// Ethernet header and two VLAN tags.
const OVERHEAD_BYTES: u32 = 14 + 8;
/// Largest payload when the device names none.
const JUMBO_MTU: u32 = 9000;
/// Looks at the link between two that a missed interrupt can't prevent: one second.
const LOOKS_PER_POLL: u32 = (1000 / HEALTH_INTERVAL.as_millis()) as u32;

/// Opens the device: maps its registers, resets it, reads its address. No DMA yet.
pub fn open<F: PciFunction>(function: F, space: &DmaSpace) -> Result<VirtioNet<F>, PortError> {
    // Registers answer only with memory decoding on; the reset comes before anything is mapped for DMA by us.
    function.set_bus_master(true)?;
    let regs = Regs::map(&function)?;
    regs.reset()?;
    let n_queue_pairs = regs.max_queue_pairs()?;
    let features = regs.acceptable(n_queue_pairs)?;
    let config = regs.net_config(features)?;
    function.set_bus_master(false)?;
    let own = config.mac.filter(|mac| mac.is_station());
    let mac = own.unwrap_or_else(MacAddr::random);
    if own.is_none() {
        tracing::warn!(device = function.address(), %mac, "the device has no valid MAC address: it gets a random one");
    }
    let stats = || (0..n_queue_pairs).map(|_| QueueStats::shared()).collect();
    Ok(VirtioNet {
        running: None,
        regs,
        function,
        space: space.clone(),
        config,
        features,
        n_queue_pairs,
        mac,
        wanted: Wanted::default(),
        interrupt: None,
        looks: 0,
        rx_stats: stats(),
        tx_stats: stats(),
        checksums: (0..n_queue_pairs).map(|_| Arc::default()).collect(),
        tx_limit: TX_LIMIT,
        unanswered: None,
        events: Events { invalid_mac: u64::from(own.is_none()), ..Events::default() },
    })
}

/// What a start yields.
struct Started<F: PciFunction> {
    queues: Queues,
    control: Option<Control<F::Bar>>,
}

struct Running<F: PciFunction> {
    control: Option<Control<F::Bar>>,
    shared: Arc<Shared>,
}

/// A virtio-net device. Made by [`open`].
pub struct VirtioNet<F: PciFunction> {
    running: Option<Running<F>>,
    regs: Regs<F::Bar>,
    function: F,
    space: DmaSpace,
    config: NetConfig,
    features: u64,
    /// It can have so many.
    n_queue_pairs: u16,
    mac: MacAddr,
    wanted: Wanted,
    /// Fires when the device configuration changed; `None` without MSI-X.
    interrupt: Option<Interrupt>,
    looks: u32,
    rx_stats: Vec<SharedStats>,
    tx_stats: Vec<SharedStats>,
    checksums: Vec<Arc<Checksums>>,
    tx_limit: Duration,
    /// A command that was never answered: nothing more can be asked for before the next start.
    unanswered: Option<CommandError>,
    events: Events,
}

impl<F: PciFunction> VirtioNet<F> {
    /// How long sent frames may stay with a device that completes nothing before it counts as hung (5 s
    /// unless told). From the next start on.
    pub fn set_tx_limit(&mut self, limit: Duration) {
        self.tx_limit = limit;
    }

    /// Features in use (virtio 1.2, 5.1.3).
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What stopped the device, if anything did since its start.
    pub fn fault(&self) -> Option<Fault> {
        self.running.as_ref().and_then(|running| running.shared.fault())
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn max_frame_bytes(&self) -> u32 {
        let mtu = self.config.mtu.map_or(JUMBO_MTU, u32::from);
        let whole = mtu + OVERHEAD_BYTES;
        // Without mergeable buffers a received frame has to fit one buffer.
        if self.has(feature::MRG_RXBUF) { whole } else { whole.min(DATA_ROOM as u32) }
    }

    fn error(&self, what: impl Into<String>, remedy: &str) -> PortError {
        PortError::new(self.function.address(), what, remedy)
    }

    fn short_pool(&self) -> PortError {
        self.error("the packet pool can't fill the receive ring", "give the pool more buffers")
    }

    /// The start proper. On an error the caller resets the device and drops what is parked.
    fn bring_up(&mut self, shared: &Arc<Shared>, pool: &Pool, n: u16) -> Result<Started<F>, PortError> {
        self.features = self.regs.negotiate(n)?;
        self.config = self.regs.net_config(self.features)?;
        shared.set_link(self.config.link_up);
        let layout = Layout::of(self.features);
        let mut cache = pool.cache();
        let (mut queues, mut bells) = (Queues::default(), Vec::new());
        for pair in 0..n {
            let (ring, bell) = self.regs.queue(2 * pair, layout, &self.space)?;
            bells.push(bell.clone());
            queues.rx.push(self.rx_half(pair, ring, bell, shared, &mut cache)?);
            let (ring, bell) = self.regs.queue(2 * pair + 1, layout, &self.space)?;
            queues.tx.push(self.tx_half(pair, ring, bell, shared));
        }
        let control = self.control(layout, shared, pool)?;
        if self.interrupt.is_some() && !self.regs.route_config_changes() {
            self.interrupt = None;
        }
        self.function.set_bus_master(true)?;
        self.regs.driver_ok()?;
        bells.iter().for_each(Doorbell::ring);
        Ok(Started { queues, control })
    }

    fn rx_half(
        &self,
        queue: u16,
        ring: Ring,
        doorbell: Doorbell<F::Bar>,
        shared: &Arc<Shared>,
        cache: &mut PoolCache,
    ) -> Result<Box<dyn RxQueue>, PortError> {
        let index = usize::from(queue);
        let parts = RxParts {
            queue,
            doorbell,
            shared: shared.clone(),
            stats: self.rx_stats[index].clone(),
            checksums: self.checksums[index].clone(),
            mergeable: self.has(feature::MRG_RXBUF),
            takes: features::left_by_device(self.features),
        };
        let half: Option<Box<dyn RxQueue>> = match ring {
            Ring::Split(ring) => Rx::new(ring, parts, cache).map(|half| Box::new(half) as _),
            Ring::Packed(ring) => Rx::new(ring, parts, cache).map(|half| Box::new(half) as _),
        };
        half.ok_or_else(|| self.short_pool())
    }

    fn tx_half(
        &self,
        queue: u16,
        ring: Ring,
        doorbell: Doorbell<F::Bar>,
        shared: &Arc<Shared>,
    ) -> Box<dyn TxQueue> {
        let parts = TxParts {
            queue,
            doorbell,
            shared: shared.clone(),
            stats: self.tx_stats[usize::from(queue)].clone(),
            max_frame_bytes: self.max_frame_bytes() as usize,
            does: features::done_by_device(self.features),
            limit: self.tx_limit,
        };
        match ring {
            Ring::Split(ring) => Box::new(Tx::new(ring, parts)),
            Ring::Packed(ring) => Box::new(Tx::new(ring, parts)),
        }
    }

    /// The control queue comes behind all the others a device can have (virtio 1.2, 5.1.2).
    fn control(
        &self,
        layout: Layout,
        shared: &Arc<Shared>,
        pool: &Pool,
    ) -> Result<Option<Control<F::Bar>>, PortError> {
        if !self.has(feature::CTRL_VQ) {
            return Ok(None);
        }
        let Some(virtqueue) = self.config.max_queue_pairs.checked_mul(2) else {
            let claimed = self.config.max_queue_pairs;
            return Err(self.error(format!("it claims {claimed} queue pairs"), ""));
        };
        let (ring, bell) = self.regs.queue(virtqueue, layout, &self.space)?;
        Control::new(ring, bell, shared.clone(), pool).ok_or_else(|| self.short_pool()).map(Some)
    }

    /// Stops all DMA, by the device's own reset, or by taking its bus away.
    fn silence(&mut self) -> bool {
        let reset = self.regs.reset();
        let off = self.function.set_bus_master(false);
        if let (Err(reset), Err(off)) = (&reset, &off) {
            let gone = self.regs.is_gone();
            tracing::warn!(device = self.function.address(), %reset, %off, gone, "virtio-net can't be stopped");
            return gone;
        }
        true
    }

    /// After the halves are gone: stops the device, then gives its buffers back to the pool.
    fn shut(&mut self) {
        let Some(Running { control, shared }) = self.running.take() else { return };
        drop(control);
        let silent = self.silence();
        let hung = match shared.fault() {
            Some(Fault::TxHang { queue, .. }) => Some(queue),
            _ => None,
        };
        for mut parked in shared.take_parked() {
            if !silent {
                std::mem::forget(parked); // the device may still write: its memory is never reused
                continue;
            }
            let n_out = parked.ring.take_back();
            if let Parked { tx: Some((queue, stats)), .. } = &parked
                && hung == Some(*queue)
            {
                stats.dropped(DropReason::TxTimeout, n_out);
            }
        }
    }

    /// Gives a command to a device that runs and has the feature it belongs to. One that is not answered stops the port.
    fn command(&mut self, command: &Command) -> Result<(), CommandError> {
        let Some(control) = self.running.as_mut().and_then(|running| running.control.as_mut()) else {
            return Ok(());
        };
        let done = control.run(command);
        if let Err(error @ (CommandError::Late { .. } | CommandError::Broken { .. })) = &done
            && self.unanswered.is_none()
        {
            self.unanswered = Some(error.clone());
        }
        done
    }

    /// Tells the device which frames it lets in. Without CTRL_RX it passes everything (virtio 1.2, 5.1.6.5.1).
    fn program_filters(&mut self) -> Result<(), CommandError> {
        if !self.has(feature::CTRL_RX) || self.running.is_none() {
            return Ok(());
        }
        // The device knows its own address besides those of the table.
        let program = filters::program(Some(self.mac), &self.wanted, MAX_ADDRESSES + 1);
        let others = program.exact.get(1..).unwrap_or_default();
        let mut fell_back = program.fell_back;
        match self.command(&Command::mac_table(others)) {
            Ok(()) => {}
            Err(CommandError::Refused { .. }) if others.is_empty() => {}
            Err(CommandError::Refused { .. }) => fell_back |= !program.promiscuous,
            Err(error) => return Err(error),
        }
        self.events.promiscuous_fallbacks += u64::from(fell_back);
        self.command(&Command::promiscuous(program.promiscuous || fell_back))?;
        self.command(&Command::all_multicast(program.all_multicast))
    }

    fn refilter(&mut self) -> Result<(), PortError> {
        self.program_filters().map_err(|error| self.error(error.to_string(), "").caused_by(error))
    }

    /// Switches all pairs on: by flow where the device can, else as it likes.
    fn spread(&mut self, n: u16) -> Result<(), CommandError> {
        if n < 2 {
            return Ok(());
        }
        if let Some(limits) = self.config.rss {
            match self.command(&Command::rss(n, limits)) {
                Err(CommandError::Refused { .. }) if self.has(feature::MQ) => self.events.rss_refusals += 1,
                done => return done,
            }
        }
        self.command(&Command::queue_pairs(n))
    }

    /// What a device that has just started is told over its control queue.
    fn configure(&mut self, n: u16) -> Result<(), PortError> {
        self.unanswered = None;
        let done = self.program_filters().and_then(|()| self.spread(n));
        done.map_err(|error| self.error(error.to_string(), "").caused_by(error))
    }

    /// True when the configuration may have changed since the last look.
    fn config_may_have_changed(&mut self) -> bool {
        let Some(interrupt) = &self.interrupt else { return true };
        self.looks = self.looks.wrapping_add(1);
        if interrupt.fired() {
            self.events.link_interrupts += 1;
            return true;
        }
        self.looks.is_multiple_of(LOOKS_PER_POLL)
    }

    /// Why its status reads as all ones.
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

impl<F: PciFunction> Device for VirtioNet<F> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.function.address().to_owned(),
            driver: DRIVER,
            max_frame_bytes: self.max_frame_bytes(),
            n_queue_pairs: self.n_queue_pairs,
            numa_node: self.function.numa_node(),
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        Some(self.mac)
    }

    fn link(&mut self) -> Link {
        if self.running.is_none() {
            return Link::Down { reason: "not started".into() };
        }
        if self.config_may_have_changed() {
            match self.regs.net_config(self.features) {
                Ok(config) => {
                    self.events.config_changes += u64::from(config != self.config);
                    self.config = config;
                }
                Err(error) => return Link::Down { reason: error.what },
            }
        }
        if let Some(running) = &self.running {
            running.shared.set_link(self.config.link_up);
        }
        match self.config.link_up {
            true => Link::Up { speed_mbps: self.config.speed_mbps },
            false => Link::Down { reason: "the device reports no carrier".into() },
        }
    }

    fn set_promiscuous(&mut self, on: bool) -> Result<(), PortError> {
        self.wanted.promiscuous = on;
        self.refilter()
    }

    fn set_unicast(&mut self, addresses: &[MacAddr]) -> Result<(), PortError> {
        self.wanted.unicast = addresses.to_vec();
        self.refilter()
    }

    fn set_all_multicast(&mut self, on: bool) -> Result<(), PortError> {
        self.wanted.all_multicast = on;
        self.refilter()
    }

    fn start(&mut self, pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        if self.running.is_some() {
            return Err(self.error("it is started already", "stop it first"));
        }
        if n_queue_pairs == 0 || n_queue_pairs > self.n_queue_pairs {
            let has = self.n_queue_pairs;
            return Err(self.error(format!("{n_queue_pairs} queue pairs wanted, it has {has}"), ""));
        }
        self.function.set_bus_master(true)?; // memory decoding, for registers
        if self.regs.is_gone() {
            self.regs = Regs::map(&self.function)?;
        }
        if self.interrupt.is_none() {
            self.interrupt = self.function.enable_msix(1)?.into_iter().next().map(Interrupt::new);
        }
        self.regs.reset()?;
        let shared = Arc::new(Shared::new(DRIVER));
        let brought_up = self.bring_up(&shared, pool, n_queue_pairs);
        self.running = Some(Running { control: None, shared });
        let Started { queues, control } = match brought_up {
            Ok(up) => up,
            Err(error) => {
                self.shut();
                return Err(error);
            }
        };
        if let Some(running) = &mut self.running {
            running.control = control;
        }
        if let Err(error) = self.configure(n_queue_pairs) {
            self.stop(queues);
            return Err(error);
        }
        self.events.starts += 1;
        Ok(queues)
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
        self.shut();
    }

    fn health(&mut self) -> Health {
        if self.function.removal_requested() {
            return Health::Gone("the kernel wants the device back".into());
        }
        let now = self.regs.status();
        if now == status::GONE && self.regs.is_gone() {
            return self.vanished();
        }
        if self.running.is_none() {
            return Health::Ok;
        }
        let asks = (now & status::NEEDS_RESET != 0).then(|| "the device asks for a reset".to_owned());
        let fault = self.fault().map(|fault| fault.to_string());
        let unanswered = self.unanswered.as_ref().map(ToString::to_string);
        match fault.or(asks).or(unanswered) {
            Some(reason) => {
                self.events.faults += 1;
                Health::NeedsRestart(reason)
            }
            None => Health::Ok,
        }
    }

    fn device_counters(&mut self) -> Vec<(&'static str, u64)> {
        let mut rows = counters::rows(&self.events, &self.checksums);
        rows.push(("driver_features", self.features));
        rows
    }
}

impl<F: PciFunction> Drop for VirtioNet<F> {
    fn drop(&mut self) {
        self.shut();
    }
}

const _: () = assert!(NetHdr::BYTES <= crate::dma::HEADROOM);
