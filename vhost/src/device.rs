//! The vhost device behind one connection: features, memory, ring set-ups, and which of them
//! run. Owned by the port's control thread; knows messages only as method calls.

use std::fs::File;
use std::sync::Arc;

use crate::handover::{Command, Handover, NoAnswer, Reply};
use crate::memory::{GuestMap, MemoryError, RegionInfo};
use crate::setup::{RingPlan, RingSetup, SetupError, offered};
use crate::status::Board;
use crate::vring::layout::RingAddr;
use crate::vring::{CallFd, N_RINGS, Ring as RunningRing};

/// Why a request is refused. The frontend gets a failure reply if it asked for one; otherwise the
/// connection ends with these words.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A ring that isn't there.
    #[error("ring {0} does not exist: the port has one queue pair")]
    NoSuchRing(u32),
    /// A value that can't be.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Memory that can't be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A descriptor that can't be used.
    #[error("descriptor can't be used: {0}")]
    Descriptor(#[from] std::io::Error),
    /// The polling core is stuck.
    #[error("the core that polls this port did not answer in time")]
    NoAnswer,
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
    handover: Handover,
    name: &'static str,
}

impl Ring {
    /// Takes the ring back from its half; its index goes into the set-up.
    fn take_back(&mut self) -> Result<(), NoAnswer> {
        let Some(plan) = self.running.take() else { return Ok(()) };
        self.enabled = false;
        let reply = self.handover.call(Command::Stop)?;
        if let Reply::Ring(Some(ring)) = reply {
            self.setup.came_back(plan.base, ring.base());
        }
        Ok(())
    }

    /// Starts, restarts, enables or disables the ring so that the half does what the set-up says.
    fn settle(&mut self, features: Option<u64>, map: &Arc<GuestMap>) -> Result<(), NoAnswer> {
        let wanted = self.setup.plan(features);
        let enabled = features.is_some_and(|features| self.setup.is_enabled(features));
        if self.running != wanted {
            self.take_back()?;
            // Taking back may have moved the base.
            let Some(plan) = self.setup.plan(features) else { return Ok(()) };
            let Some(memory) = plan.map_ring(map) else { return Ok(()) };
            let ring = RunningRing::new(memory, plan.features, self.call.clone(), plan.base);
            (self.running, self.enabled) = (Some(plan), enabled);
            self.handover.call(Command::Start(Box::new(ring), enabled))?;
        }
        if self.running.is_some() && enabled != self.enabled {
            self.enabled = enabled;
            self.handover.call(Command::Enable(enabled))?;
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
        Some(format!("the {} ring waits for {what}", self.name))
    }
}

/// The device of one connection at a time.
pub(crate) struct Device {
    features: Option<u64>,
    /// SET_PROTOCOL_FEATURES.
    pub(crate) protocol_features: u64,
    map: Arc<GuestMap>,
    rings: [Ring; N_RINGS],
    board: Arc<Board>,
}

impl Device {
    pub fn new(handovers: [Handover; N_RINGS], board: Arc<Board>) -> Device {
        let mut names = ["guest's receive", "guest's transmit"].into_iter();
        let rings = handovers.map(|handover| Ring {
            setup: RingSetup::default(),
            call: None,
            running: None,
            enabled: false,
            handover,
            name: names.next().unwrap_or_default(),
        });
        Device { features: None, protocol_features: 0, map: Arc::default(), rings, board }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, Refusal> {
        self.rings.get_mut(index as usize).ok_or(Refusal::NoSuchRing(index))
    }

    /// Makes the halves do what the set-ups say, and tells the board.
    fn settle(&mut self) -> Result<(), Refusal> {
        let settled = self.rings.iter_mut().try_for_each(|ring| ring.settle(self.features, &self.map));
        self.report();
        Ok(settled?)
    }

    fn report(&self) {
        let mut progress = self.board.progress();
        progress.features = self.features;
        progress.memory = self.map.regions();
        progress.missing =
            self.rings.iter().find_map(|ring| ring.waits_for(self.features)).unwrap_or_default();
        for (size, ring) in progress.sizes.iter_mut().zip(&self.rings) {
            *size = ring.setup.size();
        }
    }

    pub fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !offered();
        if unknown != 0 {
            return Err(SetupError::NotOffered(unknown).into());
        }
        self.features = Some(features);
        self.settle()
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

    pub fn set_addr(&mut self, index: u32, addr: RingAddr) -> Result<(), Refusal> {
        self.ring(index)?.setup.set_addr(addr);
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

    /// Back to the start: the rings come back, memory is unmapped, set-ups are forgotten. `Err` when a half
    /// did not answer; what it holds comes back with its late reply.
    pub fn reset(&mut self) -> Result<(), Refusal> {
        let mut result = Ok(());
        for ring in &mut self.rings {
            result = ring.take_back().and(result);
            ring.setup = RingSetup::default();
            ring.call = None;
        }
        (self.features, self.protocol_features) = (None, 0);
        self.map = Arc::default();
        self.report();
        Ok(result?)
    }
}
