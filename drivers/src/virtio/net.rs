//! [`VirtioNet`]: a virtio-net device behind any [`PciFunction`], on the port trait.
//!
//! The control half; it lives on the control thread. Its queue halves (`rx`, `tx`) move to cores. Whatever the
//! device was given comes back only after it is known to be stopped: rings of halves that are dropped early are
//! parked until then.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::ctrl::{Control, RX_ALL_MULTICAST, RX_PROMISCUOUS};
use super::desc::NetHdr;
use super::init::{NetConfig, Regs};
use super::regs::{feature, status};
use super::rx::Rx;
use super::stats::{NetFault, Shared, Side};
use super::tx::Tx;
use crate::dma::{DATA_ROOM, DmaSpace, Pool};
use crate::mac::MacAddr;
use crate::pci::PciFunction;
use crate::port::{Device, DeviceInfo, Health, Link, PortError, Queues};
use crate::stats::{DropReason, QueueStats, SharedStats};
use crate::tsc;

const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1041;
const TRANSITIONAL: u16 = 0x1000;

const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
/// Without multiqueue (virtio 1.2, 5.1.2).
const CONTROL_QUEUE: u16 = 2;

/// Ethernet header and two VLAN tags.
const OVERHEAD_BYTES: u32 = 14 + 8;
/// Largest payload when the device names none.
const JUMBO_MTU: u32 = 9000;
/// How long sent frames may stay with a device that completes nothing.
const TX_LIMIT: Duration = Duration::from_secs(5);

/// True for a PCI id this driver serves: modern devices, and transitional ones by their modern side.
pub fn matches(vendor: u16, device: u16) -> bool {
    vendor == VENDOR && matches!(device, MODERN | TRANSITIONAL)
}

/// Opens the device: maps its registers, resets it, reads its address. No DMA yet.
pub fn open<F: PciFunction>(function: F, space: &DmaSpace) -> Result<VirtioNet<F>, PortError> {
    // Registers answer only with memory decoding on; the reset comes before anything is mapped for DMA by us.
    function.set_bus_master(true)?;
    let regs = Regs::map(&function)?;
    regs.reset()?;
    let features = regs.offered() & feature::USED;
    let config = regs.net_config(features)?;
    function.set_bus_master(false)?;
    Ok(VirtioNet {
        running: None,
        regs,
        function,
        space: space.clone(),
        config,
        features,
        promiscuous: false,
        interrupt: None,
        rx_stats: QueueStats::shared(),
        tx_stats: QueueStats::shared(),
        tx_limit: TX_LIMIT,
        events: Events::default(),
    })
}

#[derive(Default)]
struct Events {
    starts: u64,
    config_changes: u64,
    faults: u64,
}

/// What a start yields.
type Started<B> = (Queues, Option<Control<B>>);

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
    promiscuous: bool,
    /// Fires when the device configuration changed; `None` without MSI-X.
    interrupt: Option<OwnedFd>,
    rx_stats: SharedStats,
    tx_stats: SharedStats,
    tx_limit: Duration,
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
    pub fn fault(&self) -> Option<NetFault> {
        self.running.as_ref().and_then(|running| running.shared.fault())
    }

    fn max_frame_bytes(&self) -> u32 {
        let mtu = self.config.mtu.map_or(JUMBO_MTU, u32::from);
        let whole = mtu + OVERHEAD_BYTES;
        // Without mergeable buffers a received frame has to fit one buffer.
        if self.features & feature::MRG_RXBUF != 0 { whole } else { whole.min(DATA_ROOM as u32) }
    }

    fn error(&self, what: impl Into<String>, remedy: &str) -> PortError {
        PortError::new(self.function.address(), what, remedy)
    }

    /// The start proper. On an error the caller resets the device and drops what is parked.
    fn bring_up(&mut self, shared: &Arc<Shared>, pool: &Pool) -> Result<Started<F::Bar>, PortError> {
        self.features = self.regs.negotiate()?;
        self.config = self.regs.net_config(self.features)?;
        shared.set_link(self.config.link_up);
        let (rx_ring, rx_bell) = self.regs.queue(RX_QUEUE, &self.space)?;
        let (tx_ring, tx_bell) = self.regs.queue(TX_QUEUE, &self.space)?;
        let mergeable = self.features & feature::MRG_RXBUF != 0;
        let short = || {
            let remedy = "give the pool more buffers";
            PortError::new(self.function.address(), "the packet pool can't fill the receive ring", remedy)
        };
        let mut cache = pool.cache();
        let stats = self.rx_stats.clone();
        let mut rx =
            Rx::new(rx_ring, rx_bell, shared.clone(), stats, mergeable, &mut cache).ok_or_else(short)?;
        let (limit, max) = (tsc::ticks(self.tx_limit), self.max_frame_bytes() as usize);
        let tx = Tx::new(tx_ring, tx_bell, shared.clone(), self.tx_stats.clone(), max, limit);
        let control = if self.features & feature::CTRL_RX != 0 {
            let (ring, bell) = self.regs.queue(CONTROL_QUEUE, &self.space)?;
            Some(Control::new(ring, bell, shared.clone(), pool).ok_or_else(short)?)
        } else {
            None
        };
        if self.interrupt.is_some() && !self.regs.route_config_changes() {
            self.interrupt = None;
        }
        self.function.set_bus_master(true)?;
        self.regs.driver_ok()?;
        rx.start();
        Ok((Queues { rx: vec![Box::new(rx)], tx: vec![Box::new(tx)] }, control))
    }

    /// Stops all DMA, by the device's own reset, or by taking its bus away.
    fn silence(&mut self) -> bool {
        let reset = self.regs.reset();
        let off = self.function.set_bus_master(false);
        if let (Err(reset), Err(off)) = (&reset, &off) {
            let gone = self.regs.is_gone();
            tracing::warn!(%reset, %off, gone, "virtio-net can't be stopped");
            return gone;
        }
        true
    }

    /// After the halves are gone: stops the device, then gives its buffers back to the pool.
    fn shut(&mut self) {
        let Some(Running { control, shared }) = self.running.take() else { return };
        drop(control);
        let silent = self.silence();
        let hung = matches!(shared.fault(), Some(NetFault::TxHang { .. }));
        for (side, mut ring) in shared.take_parked() {
            if !silent {
                std::mem::forget(ring); // the device may still write: its memory is never reused
                continue;
            }
            let n_out = ring.take_back().count();
            if hung && side == Side::Tx {
                self.tx_stats.dropped(DropReason::TxTimeout, n_out);
            }
        }
    }

    fn apply_promiscuous(&mut self) -> Result<(), String> {
        let on = self.promiscuous;
        // Without CTRL_RX the device passes everything (virtio 1.2, 5.1.6.5.1).
        let Some(control) = self.running.as_mut().and_then(|running| running.control.as_mut()) else {
            return Ok(());
        };
        control.rx_mode(RX_PROMISCUOUS, on)?;
        control.rx_mode(RX_ALL_MULTICAST, true)
    }

    /// True when the configuration may have changed since the last call.
    fn config_changed(&mut self) -> bool {
        let Some(interrupt) = &self.interrupt else { return true };
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(interrupt, rustix::event::PollFlags::IN)];
        if !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1)) {
            return false;
        }
        let mut count = [0; 8];
        let _ = rustix::io::read(interrupt, &mut count);
        self.events.config_changes += 1;
        true
    }
}

impl<F: PciFunction> Device for VirtioNet<F> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.function.address().to_owned(),
            driver: "virtio-net",
            max_frame_bytes: self.max_frame_bytes(),
            n_queue_pairs: 1,
            numa_node: self.function.numa_node(),
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        self.config.mac
    }

    fn link(&mut self) -> Link {
        if self.running.is_none() {
            return Link::Down { reason: "not started".into() };
        }
        if self.config_changed() {
            match self.regs.net_config(self.features) {
                Ok(config) => self.config = config,
                Err(error) => return Link::Down { reason: error.what },
            }
        }
        if let Some(running) = &self.running {
            running.shared.set_link(self.config.link_up);
        }
        match self.config.link_up {
            true => Link::Up { speed_mbps: 0 },
            false => Link::Down { reason: "the device reports no carrier".into() },
        }
    }

    fn set_promiscuous(&mut self, on: bool) -> Result<(), PortError> {
        self.promiscuous = on;
        self.apply_promiscuous().map_err(|what| self.error(what, ""))
    }

    fn start(&mut self, pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        if self.running.is_some() {
            return Err(self.error("it is started already", "stop it first"));
        }
        if n_queue_pairs != 1 {
            return Err(self.error(format!("{n_queue_pairs} queue pairs wanted, it has one"), ""));
        }
        if self.interrupt.is_none() {
            self.interrupt = self.function.enable_msix(1)?.into_iter().next();
        }
        self.regs.reset()?;
        let shared = Arc::new(Shared::default());
        let brought_up = self.bring_up(&shared, pool);
        self.running = Some(Running { control: None, shared });
        let (queues, control) = match brought_up {
            Ok(up) => up,
            Err(error) => {
                self.shut();
                return Err(error);
            }
        };
        if let Some(running) = &mut self.running {
            running.control = control;
        }
        self.events.starts += 1;
        if let Err(what) = self.apply_promiscuous() {
            self.stop(queues);
            return Err(self.error(what, ""));
        }
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
            return Health::Gone("its registers read all ones: it was unplugged".into());
        }
        if self.running.is_none() {
            return Health::Ok;
        }
        let asks = (now & status::NEEDS_RESET != 0).then(|| "the device asks for a reset".to_owned());
        let fault = self.fault().map(|fault| fault.to_string());
        match fault.or(asks) {
            Some(reason) => {
                self.events.faults += 1;
                Health::NeedsRestart(reason)
            }
            None => Health::Ok,
        }
    }

    fn device_counters(&mut self) -> Vec<(&'static str, u64)> {
        let Events { starts, config_changes, faults } = self.events;
        vec![("starts", starts), ("config_changes", config_changes), ("fault_reports", faults)]
    }
}

impl<F: PciFunction> Drop for VirtioNet<F> {
    fn drop(&mut self) {
        self.shut();
    }
}

const _: () = assert!(NetHdr::BYTES <= crate::dma::HEADROOM);
