//! A built-in guest: a virtio-net driver over a vhost-user frontend, in this process.
//!
//! It plays the VM in `spp demo` and in tests: real socket, real memory table, real rings, and
//! the orders of messages that QEMU and virtio-user use. One thread owns a [`Guest`]; it polls,
//! and never blocks but in [`Guest::attach`], [`Guest::reconnect`] and [`Guest::wait_for_call`].

mod config;
mod memory;
mod queues;
mod ring;
mod session;

use std::time::{Duration, Instant};

use spp_drivers::virtio::desc::NetHdr;
use spp_drivers::virtio::ring::RingFault;
use vmm_sys_util::poll::PollContext;

pub use config::{GuestConfig, GuestError, MessageOrder, TxLayout};
pub use memory::MemoryLayout;

use crate::Role;
use memory::GuestMemory;
use queues::{Bells, GuestRx, GuestTx, RxShape, buffer_bytes};
use ring::{GuestRing, RingChoice, ring_bytes};
use session::*;

/// The guest's first receive ring (the backend's `to_guest`). That of queue pair `n` is `2 * n`.
pub const RX_RING: usize = 0;
/// The guest's first transmit ring (the backend's `from_guest`).
pub const TX_RING: usize = 1;

/// What a guest has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestCounters {
    /// Frames received.
    pub received: u64,
    /// Frames given to the backend.
    pub sent: u64,
    /// Received buffers with an impossible header.
    pub malformed: u64,
    /// Kicks of either ring.
    pub kicks: u64,
}

struct Pair {
    rx: GuestRx,
    tx: GuestTx,
}

struct Device {
    memory: GuestMemory,
    pairs: Vec<Pair>,
}

/// A guest whose rings run, or ran until its backend went away.
pub struct Guest {
    config: GuestConfig,
    endpoint: Endpoint,
    session: Option<Session>,
    features: u64,
    device: Device,
    fault: Option<RingFault>,
    counters: GuestCounters,
}

fn wanted_features(config: &GuestConfig) -> u64 {
    let mut wanted = F_VERSION_1;
    for (on, bit) in [
        (config.mrg_rxbuf, F_MRG_RXBUF),
        (config.event_idx, F_EVENT_IDX),
        (config.tx_layout == TxLayout::Indirect, F_INDIRECT_DESC),
        (config.packed, F_RING_PACKED),
        (config.in_order, F_IN_ORDER),
        (config.offloads, F_OFFLOADS),
        (config.n_pairs > 1, F_MQ),
    ] {
        wanted |= if on { bit } else { 0 };
    }
    wanted
}

impl Device {
    fn new(config: &GuestConfig, features: u64) -> Result<Device, GuestError> {
        let (size, packed) = (config.ring_size, features & F_RING_PACKED != 0);
        if size == 0 || size > 1 << 15 || !(packed || size.is_power_of_two()) {
            return Err(GuestError::Config(format!("ring size {size} is not a power of two up to 32768")));
        }
        let n_pairs = usize::from(config.n_pairs.max(1));
        let need = 2 * n_pairs * (buffer_bytes(size) + ring_bytes(size) + 4096);
        let mut memory = GuestMemory::new(config.memory, need).map_err(GuestError::Memory)?;
        let pairs =
            (0..n_pairs).map(|_| Pair::new(config, features, &mut memory)).collect::<Result<_, _>>()?;
        Ok(Device { memory, pairs })
    }

    fn ring_setups(&self) -> Vec<RingSetup<'_>> {
        fn setup<'a, T>(index: usize, ring: &GuestRing<T>, bells: &'a Bells) -> RingSetup<'a> {
            let (at, size, base) = (ring.addresses(), ring.size(), ring.base());
            let (desc, avail, used) = (at.desc, at.avail, at.used);
            RingSetup { index, size, base, desc, avail, used, kick: &bells.kick, call: &bells.call }
        }
        let both = |(n, pair)| {
            let Pair { rx, tx }: &Pair = pair;
            [setup(2 * n + RX_RING, &rx.ring, &rx.bells), setup(2 * n + TX_RING, &tx.ring, &tx.bells)]
        };
        self.pairs.iter().enumerate().flat_map(both).collect()
    }

    fn kick_all(&mut self) {
        for pair in &mut self.pairs {
            pair.rx.bells.kick();
            pair.tx.bells.kick();
        }
    }
}

impl Pair {
    fn new(config: &GuestConfig, features: u64, memory: &mut GuestMemory) -> Result<Pair, GuestError> {
        let size = config.ring_size;
        // Region 0 has the receive buffers if they fit, the last one all else: both are used.
        let mut carve =
            |len, prefer| memory.carve(len, prefer).expect("the regions were sized for all spans");
        let (rx_buffers, tx_buffers) = (carve(buffer_bytes(size), 0), carve(buffer_bytes(size), 1));
        let (rx_memory, tx_memory) = (carve(ring_bytes(size), 0), carve(ring_bytes(size), 1));
        let choice = RingChoice {
            packed: features & F_RING_PACKED != 0,
            in_order: features & F_IN_ORDER != 0,
            event_idx: features & F_EVENT_IDX != 0,
            size,
            first_index: config.first_index,
        };
        let mut rx_ring = GuestRing::new(rx_memory, choice);
        rx_ring.want_calls(config.want_calls);
        let tx_ring = GuestRing::new(tx_memory, choice);
        let indirect = features & F_INDIRECT_DESC != 0;
        let layout = match config.tx_layout {
            TxLayout::Indirect if !indirect => TxLayout::HeaderApart,
            layout => layout,
        };
        let shape = RxShape::new(features & F_MRG_RXBUF != 0, indirect, config.rx_frame_bytes);
        if usize::from(size) < shape.n_pieces {
            return Err(GuestError::Config(format!("a ring of {size} holds no receive buffer")));
        }
        let bells = || Bells::new().map_err(GuestError::EventFd);
        let rx = GuestRx::new(rx_ring, rx_buffers, bells()?, shape);
        let tx = GuestTx::new(tx_ring, tx_buffers, bells()?, layout);
        Ok(Pair { rx, tx })
    }
}

impl Guest {
    /// Waits for the backend until `deadline`, negotiates, and starts both rings.
    pub fn attach(config: GuestConfig, deadline: Duration) -> Result<Guest, GuestError> {
        let endpoint = Endpoint::open(&config)?;
        let session = Session::greet(endpoint.meet(&config, deadline)?, &config)?;
        let features = wanted_features(&config) & session.offered();
        let device = Device::new(&config, features)?;
        let (session, counters) = (Some(session), GuestCounters::default());
        let mut guest = Guest { config, endpoint, session, features, device, fault: None, counters };
        guest.set_up()?;
        Ok(guest)
    }

    fn set_up(&mut self) -> Result<(), GuestError> {
        if let Some(session) = &mut self.session {
            session.set_up(self.features, &self.device.memory.table(), &self.device.ring_setups())?;
        }
        // What was posted before a backend came (or came back) must be looked at.
        self.device.kick_all();
        Ok(())
    }

    /// Drops the connection, waits for a backend again and replays everything; rings go on at their
    /// used index, so that what the old backend had not finished is done by the new one.
    pub fn reconnect(&mut self, deadline: Duration) -> Result<(), GuestError> {
        self.session = None;
        let session = Session::greet(self.endpoint.meet(&self.config, deadline)?, &self.config)?;
        let offered = session.offered();
        if self.features & !offered != 0 {
            return Err(GuestError::Feature { offered, missing: "a feature the guest already uses" });
        }
        self.reap_all();
        self.session = Some(session);
        self.set_up()
    }

    /// A guest reboot: stops the rings, forgets them, and starts with new memory. `change` may alter
    /// the driver's choices (features, ring size, layout).
    pub fn reboot(&mut self, change: impl FnOnce(&mut GuestConfig)) -> Result<(), GuestError> {
        self.stop_rings()?;
        change(&mut self.config);
        let offered = self.session.as_ref().map_or(self.features, Session::offered);
        self.features = wanted_features(&self.config) & offered;
        self.device = Device::new(&self.config, self.features)?;
        self.fault = None;
        self.set_up()
    }

    /// Stops all rings (GET_VRING_BASE); returns where the backend would go on with each.
    pub fn stop_rings(&mut self) -> Result<Vec<u32>, GuestError> {
        let Some(session) = &mut self.session else { return Ok(Vec::new()) };
        let bases = (0..2 * self.device.pairs.len()).map(|index| session.stop_ring(index));
        let bases = bases.collect::<Result<_, _>>()?;
        self.reap_all();
        Ok(bases)
    }

    /// Starts rings that were stopped, at their used index.
    pub fn start_rings(&mut self) -> Result<(), GuestError> {
        if let Some(session) = &mut self.session {
            self.device.ring_setups().iter().try_for_each(|ring| session.start_ring(ring))?;
        }
        self.device.kick_all();
        Ok(())
    }

    /// SET_VRING_ENABLE for one ring ([`RX_RING`] or [`TX_RING`], plus twice the queue pair).
    pub fn enable_ring(&mut self, ring: usize, on: bool) -> Result<(), GuestError> {
        self.session.as_mut().map_or(Ok(()), |session| session.enable_ring(ring, on))
    }

    /// Closes the socket as a dying VM does; [`reconnect`](Self::reconnect) opens it again.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// True while the backend holds its end of the socket.
    pub fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_alive)
    }

    /// Negotiated virtio features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The first lie the backend told about a ring.
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// What was done so far.
    pub fn counters(&self) -> GuestCounters {
        let sum = |of: fn(&Pair) -> u64| self.device.pairs.iter().map(of).sum();
        GuestCounters {
            malformed: sum(|pair| pair.rx.n_malformed),
            kicks: sum(|pair| pair.rx.bells.n_kicks + pair.tx.bells.n_kicks),
            ..self.counters
        }
    }

    /// Frames sent that the backend has not given back as far as seen.
    pub fn in_flight(&mut self) -> usize {
        self.reap_all();
        self.device.pairs.iter().map(|pair| usize::from(pair.tx.ring.outstanding())).sum()
    }

    fn reap_all(&mut self) {
        for pair in &mut self.device.pairs {
            if let Err(fault) = pair.tx.reap() {
                self.fault.get_or_insert(fault);
            }
        }
    }

    /// Queue pairs.
    pub fn n_pairs(&self) -> usize {
        self.device.pairs.len()
    }

    /// Sends one frame of up to 66 KiB on the first queue; false when the ring is full.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_burst([frame]) == 1
    }

    /// As [`send`](Self::send), on a queue of one's choice.
    pub fn send_on(&mut self, pair: usize, frame: &[u8]) -> bool {
        self.send_burst_on(pair, [frame]) == 1
    }

    /// Sends frames on the first queue until one does not fit, and publishes them at once; returns how many went.
    pub fn send_burst<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> usize {
        self.send_burst_on(0, frames)
    }

    fn send_burst_on<'a>(&mut self, pair: usize, frames: impl IntoIterator<Item = &'a [u8]>) -> usize {
        let tx = &mut self.device.pairs[pair].tx;
        if let Err(fault) = tx.reap() {
            self.fault.get_or_insert(fault);
        }
        if self.fault.is_some() {
            return 0;
        }
        let n = frames.into_iter().take_while(|frame| tx.post(NetHdr::default(), frame)).count();
        tx.publish();
        self.counters.sent += n as u64;
        n
    }

    /// As [`send`](Self::send), with a header of one's own: work left to the backend, or lies.
    pub fn send_with(&mut self, header: NetHdr, frame: &[u8]) -> bool {
        self.reap_all();
        let tx = &mut self.device.pairs[0].tx;
        let sent = self.fault.is_none() && tx.post(header, frame);
        tx.publish();
        self.counters.sent += u64::from(sent);
        sent
    }

    /// The header of the frame last received on the first queue.
    pub fn received_header(&self) -> NetHdr {
        self.device.pairs[0].rx.header
    }

    /// Takes one frame of any queue into `buf` (cleared first); false when there is none.
    pub fn receive(&mut self, buf: &mut Vec<u8>) -> bool {
        (0..self.n_pairs()).any(|pair| self.receive_on(pair, buf))
    }

    /// As [`receive`](Self::receive), from a queue of one's choice.
    pub fn receive_on(&mut self, pair: usize, buf: &mut Vec<u8>) -> bool {
        buf.clear();
        // A frame of several buffers may take several turns; each turn takes what is there.
        while self.device.pairs[pair].rx.ring.fault().is_none() {
            let before = self.device.pairs[pair].rx.ring.base();
            if self.receive_burst_on(pair, 1, |frame| buf.extend_from_slice(frame)) == 1 {
                return true;
            }
            if self.device.pairs[pair].rx.ring.base() == before {
                return false;
            }
        }
        false
    }

    /// Takes up to `limit` buffers of the first queue and hands each frame they complete to `sink`; returns how many
    /// frames.
    pub fn receive_burst(&mut self, limit: usize, sink: impl FnMut(&[u8])) -> usize {
        self.receive_burst_on(0, limit, sink)
    }

    fn receive_burst_on(&mut self, pair: usize, limit: usize, sink: impl FnMut(&[u8])) -> usize {
        match self.device.pairs[pair].rx.receive(limit, sink) {
            Ok(n) => {
                self.counters.received += n as u64;
                n
            }
            Err(fault) => {
                self.fault.get_or_insert(fault);
                0
            }
        }
    }

    /// Sleeps until the backend calls for a received frame; false at the deadline. Needs `want_calls`.
    pub fn wait_for_call(&mut self, deadline: Duration) -> bool {
        let call = &self.device.pairs[0].rx.bells.call;
        let Ok(context) = PollContext::<u32>::new() else { return false };
        if context.add(call, 0).is_err() {
            return false;
        }
        let end = Instant::now() + deadline;
        while call.read().is_err() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || context.wait_timeout(left).is_err() {
                return false;
            }
        }
        true
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.config.role == Role::Server {
            let _ = std::fs::remove_file(&self.config.path);
        }
    }
}

#[cfg(test)]
mod tests;
