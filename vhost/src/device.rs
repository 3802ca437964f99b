//! The vhost device behind one connection: features, memory, ring set-ups, and which of them
//! run. Owned by the port's control thread; knows messages only as method calls.

use std::fs::File;
use std::sync::Arc;

use crate::dirty::{DirtyLog, LogError, RingLog};
use crate::handover::{Command, Handover, NoAnswer, Reply};
use crate::memory::{GuestMap, MemoryError, RegionInfo};
use crate::offer::Offer;
use crate::setup::{LOG_ALL, RingPlan, RingSetup, SetupError};
use crate::status::Board;
use crate::vring::layout::RingAddr;
use crate::vring::{CallFd, FROM_GUEST, MAX_PAIRS, N_RINGS, Ring as RunningRing};
use spp_drivers::MacAddr;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

/// VIRTIO_CONFIG_S_DRIVER_OK (virtio 1.2, 2.1): the driver is set up.
const DRIVER_OK: u8 = 4;
/// VIRTIO_CONFIG_S_FEATURES_OK: features are agreed upon.
const FEATURES_OK: u8 = 8;
/// VIRTIO_CONFIG_S_NEEDS_RESET: the device can't go on.
const NEEDS_RESET: u8 = 0x40;
/// VIRTIO_CONFIG_S_FAILED: the driver has given up.
const FAILED: u8 = 0x80;
/// Smallest MTU (virtio 1.2, 5.1.4.1).
const MIN_MTU: u64 = 68;

/// Why a request is refused. The frontend gets a failure reply if it asked for one; otherwise the
/// connection ends with these words.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A ring that isn't there.
    #[error("ring {0} does not exist: a port has {MAX_PAIRS} queue pairs")]
    NoSuchRing(u32),
    /// A value that can't be.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A dirty log that can't be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Memory that can't be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A descriptor that can't be used.
    #[error("descriptor can't be used: {0}")]
    Descriptor(#[from] std::io::Error),
    /// The polling core is stuck.
    #[error("the core that polls this port did not answer in time")]
    NoAnswer,
    /// Protocol features that were never offered.
    #[error("protocol features {0:#x} were never offered")]
    Protocol(u64),
    /// A value that means nothing.
    #[error("{0} with value {1}")]
    BadValue(&'static str, u64),
    /// Something not offered.
    #[error("{0} is not offered")]
    NotOffered(&'static str),
}

impl From<NoAnswer> for Refusal {
    fn from(_: NoAnswer) -> Self {
        Refusal::NoAnswer
    }
}

/// One ring, as the control thread sees it.
struct Ring {
    setup: RingSetup,
    call: Option<Arc<CallFd>>,
    /// What the half polls now.
    running: Option<RingPlan>,
    /// What the half was last told.
    enabled: bool,
    /// Where the half notes its writes.
    logs_to: Option<RingLog>,
    /// SET_VRING_ADDR: where the frontend wants writes to the used ring noted.
    used_logged_at: Option<u64>,
    handover: Handover,
    name: String,
}

impl Ring {
    /// Ring `index` of a port, nothing known about it yet.
    fn new(index: usize, handover: Handover) -> Ring {
        let side = ["receive", "transmit"][index % 2];
        let name = format!("guest's {side} ring of queue {}", index / 2);
        Ring {
            setup: RingSetup::default(),
            call: None,
            running: None,
            enabled: false,
            logs_to: None,
            used_logged_at: None,
            handover,
            name,
        }
    }

    /// Takes the ring back from its half; its index goes into the set-up.
    fn take_back(&mut self) -> Result<(), NoAnswer> {
        let Some(plan) = self.running.take() else { return Ok(()) };
        (self.enabled, self.logs_to) = (false, None);
        let reply = self.handover.call(Command::Stop)?;
        if let Reply::Ring(Some(ring)) = reply {
            self.setup.came_back(plan.base, ring.base());
        }
        Ok(())
    }

    /// Starts, restarts, enables or disables the ring so that the half does what the set-up says.
    /// Its writes are noted in `log` meanwhile.
    fn settle(
        &mut self,
        features: Option<u64>,
        map: &Arc<GuestMap>,
        log: Option<&Arc<DirtyLog>>,
    ) -> Result<(), NoAnswer> {
        let wanted = self.setup.plan(features);
        let log = log.map(|log| RingLog { log: log.clone(), used_at: self.used_logged_at });
        let enabled = features.is_some_and(|features| self.setup.is_enabled(features));
        if self.running != wanted {
            self.take_back()?;
            // Taking back may have moved the base.
            let Some(plan) = self.setup.plan(features) else { return Ok(()) };
            let Some(memory) = plan.map_ring(map) else { return Ok(()) };
            let mut ring = RunningRing::new(memory, plan.features, self.call.clone(), plan.base);
            ring.swap_log(log.clone());
            (self.running, self.enabled, self.logs_to) = (Some(plan), enabled, log.clone());
            self.handover.call(Command::Start(Box::new(ring), enabled))?;
        }
        if self.running.is_some() && enabled != self.enabled {
            self.enabled = enabled;
            self.handover.call(Command::Enable(enabled))?;
        }
        let same = match (&log, &self.logs_to) {
            (Some(new), Some(old)) => new.is_same(old),
            (new, old) => new.is_none() && old.is_none(),
        };
        if self.running.is_some() && !same {
            self.logs_to.clone_from(&log);
            self.handover.call(Command::Log(log))?;
        }
        Ok(())
    }

    /// Moves a running ring to a new map, or stops it when the map does not hold it.
    fn move_to(&mut self, map: &Arc<GuestMap>) -> Result<(), NoAnswer> {
        let Some(plan) = self.running else { return Ok(()) };
        match plan.map_ring(map) {
            Some(memory) => self.handover.call(Command::Remap(Box::new(memory))).map(drop),
            None => self.take_back(),
        }
    }

    /// What it waits for, in words; empty when it runs.
    fn waits_for(&self, features: Option<u64>) -> Option<String> {
        if self.running.is_some() && self.enabled {
            return None;
        }
        let what = match (self.setup.missing(features), self.running) {
            (Some(missing), _) => missing,
            (None, Some(_)) => "to be enabled",
            (None, None) => "addresses inside the guest's memory",
        };
        Some(format!("the {} waits for {what}", self.name))
    }
}

/// The device of one connection at a time.
pub(crate) struct Device {
    offer: Offer,
    features: Option<u64>,
    /// SET_PROTOCOL_FEATURES.
    pub(crate) protocol_features: u64,
    /// SET_STATUS.
    status: u8,
    /// NET_SET_MTU.
    mtu: Option<u16>,
    map: Arc<GuestMap>,
    /// SET_LOG_BASE, while a migration runs.
    log: Option<Arc<DirtyLog>>,
    /// Rings ran after LOG_ALL was asked for and before there was a log.
    missed_writes: bool,
    /// All that there could be, by index.
    rings: Vec<Ring>,
    board: Arc<Board>,
}

impl Device {
    /// `handovers`: by ring index.
    pub fn new(handovers: Vec<Handover>, board: Arc<Board>) -> Device {
        assert_eq!(handovers.len(), N_RINGS, "every ring there could be");
        let rings =
            handovers.into_iter().enumerate().map(|(index, handover)| Ring::new(index, handover)).collect();
        Device {
            offer: Offer::implemented(),
            features: None,
            protocol_features: 0,
            status: 0,
            mtu: None,
            map: Arc::default(),
            log: None,
            missed_writes: false,
            rings,
            board,
        }
    }

    /// A connection begins; this is what its frontend is offered.
    pub fn begin(&mut self, offer: Offer) {
        self.offer = offer;
        self.report();
    }

    pub fn offer(&self) -> Offer {
        self.offer
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, Refusal> {
        self.rings.get_mut(index as usize).ok_or(Refusal::NoSuchRing(index))
    }

    /// Whether the driver is set up, as far as it tells us: rings run only then.
    fn driver_is_ready(&self) -> bool {
        let tells = self.protocol_features & Protocol::STATUS.bits() != 0;
        !tells || self.status & (DRIVER_OK | FAILED) == DRIVER_OK
    }

    /// Makes the halves do what the set-ups say, and tells the board.
    fn settle(&mut self) -> Result<(), Refusal> {
        let features = self.features.filter(|_| self.driver_is_ready());
        let wanted = self.features.is_some_and(|features| features & LOG_ALL != 0);
        let log = self.log.as_ref().filter(|_| wanted);
        let settled = self.rings.iter_mut().try_for_each(|ring| ring.settle(features, &self.map, log));
        let unlogged = wanted && log.is_none() && self.rings.iter().any(|ring| ring.running.is_some());
        self.missed_writes |= unlogged;
        self.report();
        Ok(settled?)
    }

    fn report(&self) {
        let mut progress = self.board.progress();
        progress.features = self.features;
        progress.mtu = self.mtu;
        progress.memory = self.map.regions();
        progress.missing = self.waits_for();
        for (size, ring) in progress.sizes.iter_mut().zip(&self.rings) {
            *size = ring.setup.size();
        }
    }

    /// What the port waits for, in words for the operator; empty when all rings run.
    fn waits_for(&self) -> String {
        // The first queue pair is all that has to be there.
        let rings = self.rings[..2].iter().find_map(|ring| ring.waits_for(self.features));
        let (Some(rings), failed) = (rings, self.status & FAILED != 0) else { return String::new() };
        match self.features {
            None => {
                "connected, but the guest's driver has not started: the VM boots, or has no driver for it"
                    .into()
            }
            Some(_) if self.map.is_empty() => {
                "connected, but the guest's memory is not shared: start the VM with share=on".into()
            }
            Some(_) if failed => "the guest's driver has given up on the device".into(),
            Some(_) if !self.driver_is_ready() => "the guest's driver has not said that it is ready".into(),
            Some(_) => rings,
        }
    }

    pub fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !self.offer.features;
        if unknown != 0 {
            return Err(SetupError::NotOffered(unknown).into());
        }
        self.features = Some(features);
        let settled = self.settle();
        if features & LOG_ALL == 0 {
            // The migration is over, or cancelled: no ring logs any more, and the log is unmapped.
            (self.log, self.missed_writes) = (None, false);
        }
        settled
    }

    /// SET_LOG_BASE: where pages we write are noted from now on, once LOG_ALL is asked for.
    pub fn set_log(&mut self, file: &File, len_bytes: u64, offset: u64) -> Result<(), Refusal> {
        let log = Arc::new(DirtyLog::new(file, len_bytes, offset)?);
        log.check_covers(&self.map)?;
        if std::mem::take(&mut self.missed_writes) {
            log.mark_all(&self.map);
        }
        // Unmapped here, when all halves have given it back.
        let _old = self.log.replace(log);
        self.settle()
    }

    pub fn set_protocol_features(&mut self, features: u64) -> Result<(), Refusal> {
        // REPLY_ACK is the message codec's, and always there.
        let unknown = features & !(self.offer.protocol | Protocol::REPLY_ACK.bits());
        if unknown != 0 {
            return Err(Refusal::Protocol(unknown));
        }
        self.protocol_features = features;
        self.settle()
    }

    /// SET_STATUS: 0 resets the device (its memory, its call descriptors and its enabled rings stay
    /// what they are: frontends tell them once, not after each reset); FEATURES_OK is taken
    /// only behind acceptable features; DRIVER_OK lets the rings run.
    pub fn set_status(&mut self, value: u64) -> Result<(), Refusal> {
        let mut status = u8::try_from(value).map_err(|_| Refusal::BadValue("SET_STATUS", value))?;
        if status == 0 {
            let stopped = self.stop_all();
            (self.features, self.status) = (None, 0);
            self.report();
            return stopped;
        }
        if self.features.is_none() {
            status &= !FEATURES_OK;
        }
        self.status = status & !NEEDS_RESET;
        self.settle()
    }

    /// GET_STATUS.
    pub fn status(&self) -> u8 {
        let failed = self.board.fault().is_some();
        self.status | if failed { NEEDS_RESET } else { 0 }
    }

    /// NET_SET_MTU: what the frontend told the driver.
    pub fn set_mtu(&mut self, mtu: u64) -> Result<(), Refusal> {
        let valid = |mtu: &u16| u64::from(*mtu) >= MIN_MTU && *mtu < u16::MAX;
        let bad = Refusal::BadValue("NET_SET_MTU", mtu);
        let mtu = u16::try_from(mtu).ok().filter(valid).ok_or(bad)?;
        self.mtu = Some(mtu);
        self.rings.iter_mut().for_each(|ring| ring.setup.set_mtu(mtu));
        self.settle()
    }

    /// SEND_RARP: the guest has moved here and can't announce itself.
    pub fn announce(&mut self, mac: MacAddr) -> Result<(), Refusal> {
        if mac.is_group() || mac.to_u64() == 0 {
            return Err(Refusal::BadValue("SEND_RARP", mac.to_u64()));
        }
        Ok(self.rings[FROM_GUEST].handover.call(Command::Announce(mac)).map(drop)?)
    }

    /// Replaces the guest's memory. The old map is dropped here, once both halves have left it.
    fn set_map(&mut self, map: GuestMap) -> Result<(), Refusal> {
        let map = Arc::new(map);
        // Kept until both halves have answered, whatever happens in between.
        let _old = std::mem::replace(&mut self.map, map);
        for ring in &mut self.rings {
            ring.move_to(&self.map)?;
        }
        self.settle()
    }

    pub fn set_memory(&mut self, regions: Vec<(RegionInfo, File)>) -> Result<(), Refusal> {
        self.set_map(GuestMap::new(regions)?)
    }

    pub fn add_memory(&mut self, region: RegionInfo, file: &File) -> Result<(), Refusal> {
        self.set_map(self.map.with(region, file)?)
    }

    pub fn remove_memory(&mut self, region: RegionInfo) -> Result<(), Refusal> {
        self.set_map(self.map.without(region)?)
    }

    pub fn set_size(&mut self, index: u32, size: u32) -> Result<(), Refusal> {
        let features = self.features;
        self.ring(index)?.setup.set_size(size, features)?;
        self.settle()
    }

    /// SET_VRING_ADDR; `logged_at` is where the frontend wants writes to the used ring logged, if it does.
    pub fn set_addr(&mut self, index: u32, addr: RingAddr, logged_at: Option<u64>) -> Result<(), Refusal> {
        let ring = self.ring(index)?;
        ring.setup.set_addr(addr);
        ring.used_logged_at = logged_at;
        self.settle()
    }

    pub fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        let features = self.features;
        self.ring(index)?.setup.set_base(base, features)?;
        self.settle()
    }

    /// GET_VRING_BASE: stops the ring, in any state, and tells where it goes on.
    pub fn stop_ring(&mut self, index: u32) -> Result<u32, Refusal> {
        let features = self.features;
        let ring = self.ring(index)?;
        ring.take_back()?;
        let base = ring.setup.stop(features);
        self.report();
        Ok(base)
    }

    /// Stops every ring as GET_VRING_BASE does: set-ups stay.
    pub fn stop_all(&mut self) -> Result<(), Refusal> {
        let mut result = Ok(());
        for ring in &mut self.rings {
            result = ring.take_back().and(result);
            ring.setup.stop(self.features);
        }
        self.report();
        Ok(result?)
    }

    pub fn kick(&mut self, index: u32) -> Result<(), Refusal> {
        self.ring(index)?.setup.kick();
        self.settle()
    }

    pub fn set_call(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let call = file.map(CallFd::new).transpose()?.map(Arc::new);
        let ring = self.ring(index)?;
        ring.call = call.clone();
        if ring.running.is_some() {
            ring.handover.call(Command::Call(call))?;
        }
        Ok(())
    }

    pub fn check_ring(&mut self, index: u32) -> Result<(), Refusal> {
        self.ring(index).map(drop)
    }

    pub fn enable(&mut self, index: u32, enabled: bool) -> Result<(), Refusal> {
        self.ring(index)?.setup.enable(enabled);
        self.settle()
    }

    /// RESET_DEVICE: rings come back and are forgotten, features and status too. Memory stays, and so do call
    /// descriptors: they belong to the frontend, which does not tell them again.
    pub fn reset_device(&mut self) -> Result<(), Refusal> {
        let mut result = Ok(());
        for ring in &mut self.rings {
            result = ring.take_back().and(result);
            ring.setup = RingSetup::default();
            ring.used_logged_at = None;
        }
        (self.features, self.status, self.mtu) = (None, 0, None);
        (self.log, self.missed_writes) = (None, false);
        self.report();
        Ok(result?)
    }

    /// The connection is over: nothing of it remains, memory is unmapped. `Err` when a half did not
    /// answer; what it holds comes back with its late reply.
    pub fn reset(&mut self) -> Result<(), Refusal> {
        let result = self.reset_device();
        self.rings.iter_mut().for_each(|ring| ring.call = None);
        self.protocol_features = 0;
        self.map = Arc::default();
        self.report();
        result
    }
}
