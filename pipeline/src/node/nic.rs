//! A NIC of the node: its device, its life after faults, its counters over all of that life.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use spp_drivers::MacAddr;
use spp_drivers::dma::Pool;
use spp_drivers::port::{Device, Health, Link, PortError, Queues};
use spp_drivers::stats::SharedStats;

use super::switchboard::Parked;
use crate::names::PortName;
use crate::status::{Counters, NicStatus, link_text};

/// Pause before a device that failed right after its start is started again: doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A device that ran this long is restarted at once after its next fault.
const GOOD_RUN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running { since: Instant },
    Down { reason: String, retry_at: Instant },
    Gone { reason: String },
}

pub(super) struct Nic {
    number: u32,
    /// How errors call it.
    pub owner: String,
    device: Box<dyn Device>,
    state: State,
    pause: Duration,
    restarts: u64,
    link: Option<Link>,
    /// Addresses and VLANs the device was last told of.
    served: (BTreeSet<MacAddr>, BTreeSet<u16>),
    /// Queue pairs it is started with.
    n_queue_pairs: u16,
    /// Of its queue pairs while somebody has them.
    stats: Option<Vec<[SharedStats; 2]>>,
    /// What the queues before the last restart had counted.
    before: [Counters; 2],
}

impl Nic {
    /// A device that is open but not started. Its queue pairs are to be ports of their own.
    pub fn new(number: u32, owner: String, device: Box<dyn Device>, n_queue_pairs: u16) -> Nic {
        let state = State::Down { reason: "not started".to_owned(), retry_at: Instant::now() };
        Nic {
            number,
            owner,
            device,
            state,
            pause: FIRST_PAUSE,
            restarts: 0,
            link: None,
            served: Default::default(),
            n_queue_pairs,
            stats: None,
            before: Default::default(),
        }
    }

    /// Its queue pairs as ports.
    pub fn ports(&self) -> impl Iterator<Item = PortName> + use<> {
        let number = self.number;
        (0..self.n_queue_pairs).map(move |queue| PortName::phy(number, queue))
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// True from start to stop: somebody has its queues.
    pub fn has_queues(&self) -> bool {
        self.stats.is_some()
    }

    /// Starts the device, promiscuous as SPP has its NICs, and parks its queues.
    pub fn start(&mut self, pool: &Pool, parked: &mut Parked) -> Result<(), PortError> {
        if let Err(error) = self.device.set_promiscuous(true) {
            tracing::warn!(nic = %self.owner, %error, "not promiscuous: frames to guests may not come through");
        }
        let (wanted, offered) = (self.n_queue_pairs, self.device.info().n_queue_pairs);
        if wanted > offered {
            let what = format!("has {offered} queue pair(s), and the configuration names {wanted}");
            return Err(PortError::new(
                self.device.info().address,
                what,
                format!("attach phy:{0} to phy:{0}nq{1} at most", self.number, offered.saturating_sub(1)),
            ));
        }
        let queues = self.device.start(pool, wanted)?;
        if (queues.rx.len(), queues.tx.len()) != (wanted.into(), wanted.into()) {
            self.device.stop(queues);
            return Err(PortError::new(&self.owner, "started with other queues than it was asked for", ""));
        }
        let pairs = queues.rx.iter().zip(&queues.tx);
        self.stats = Some(pairs.map(|(rx, tx)| [rx.stats(), tx.stats()]).collect());
        parked.rx.extend(self.ports().zip(queues.rx));
        parked.tx.extend(self.ports().zip(queues.tx));
        self.state = State::Running { since: Instant::now() };
        Ok(())
    }

    /// Tells the device whose frames it has to let in. One that takes every frame has all of them anyway; a virtual function
    /// is refused that, and gets what it asked for by address and VLAN.
    pub fn serve(&mut self, served: (BTreeSet<MacAddr>, BTreeSet<u16>)) {
        if self.served == served {
            return;
        }
        let addresses: Vec<MacAddr> = served.0.iter().copied().collect();
        let vids: Vec<u16> = served.1.iter().copied().collect();
        for told in [self.device.set_unicast(&addresses), self.device.set_vlans(&vids)] {
            if let Err(error) = told {
                tracing::warn!(nic = %self.owner, %error, "filters not set: frames to guests may not come through");
            }
        }
        self.served = served;
    }

    /// Stops the device, with those of its queues that are parked.
    pub fn stop(&mut self, parked: &mut Parked) {
        let queues = Queues {
            rx: self.ports().filter_map(|port| parked.rx.remove(&port)).collect(),
            tx: self.ports().filter_map(|port| parked.tx.remove(&port)).collect(),
        };
        self.before = self.counters();
        self.stats = None;
        self.device.stop(queues);
    }

    /// Asks a running device for its link and health. After a fault it counts as down.
    pub fn check(&mut self) {
        let State::Running { since } = self.state else { return };
        self.watch_link();
        let (reason, gone) = match self.device.health() {
            Health::Ok => return,
            Health::NeedsRestart(reason) => (reason, false),
            Health::Gone(reason) => (reason, true),
        };
        tracing::error!(nic = %self.owner, reason, gone, "device fault");
        self.state = match gone {
            true => State::Gone { reason },
            false => State::Down { retry_at: self.next_try(since), reason },
        };
    }

    /// At once after a good run, later and later otherwise.
    fn next_try(&mut self, since: Instant) -> Instant {
        if since.elapsed() >= GOOD_RUN {
            self.pause = FIRST_PAUSE;
            return Instant::now();
        }
        let at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        at
    }

    fn watch_link(&mut self) {
        let link = self.device.link();
        if self.link.as_ref() != Some(&link) {
            tracing::info!(nic = %self.owner, link = link_text(&link), "link");
            self.link = Some(link);
        }
    }

    /// True when a stopped device is to be started again now.
    pub fn wants_restart(&self) -> bool {
        matches!(self.state, State::Down { retry_at, .. } if retry_at <= Instant::now())
    }

    /// Starts a stopped device again; true when it runs. On failure it is tried again later.
    pub fn restart(&mut self, pool: &Pool, parked: &mut Parked) -> bool {
        match self.start(pool, parked) {
            Ok(()) => {
                self.restarts += 1;
                tracing::info!(nic = %self.owner, restarts = self.restarts, "device restarted");
            }
            Err(error) => {
                let retry_at = self.next_try(Instant::now());
                tracing::warn!(nic = %self.owner, %error, "device does not start; trying again");
                self.state = State::Down { reason: error.to_string(), retry_at };
            }
        }
        self.is_running()
    }

    /// Received and sent, over all restarts.
    fn counters(&self) -> [Counters; 2] {
        let mut counters = self.before.clone();
        for pair in self.stats.iter().flatten() {
            for (sum, now) in counters.iter_mut().zip(pair) {
                sum.add(Counters::from(now.snapshot()));
            }
        }
        counters
    }

    pub fn status(&mut self) -> NicStatus {
        let info = self.device.info();
        let state = match &self.state {
            State::Running { .. } => "running".to_owned(),
            State::Down { reason, .. } => format!("restarting: {reason}"),
            State::Gone { reason } => format!("gone: {reason}"),
        };
        let link = match self.is_running() {
            true => self.device.link(),
            false => Link::Down { reason: "the device is not running".to_owned() },
        };
        let device = match self.is_running() {
            true => self.device.device_counters().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
            false => BTreeMap::new(),
        };
        let [rx, tx] = self.counters();
        NicStatus {
            port: PortName::Phy(self.number).to_string(),
            queue_pairs: self.n_queue_pairs,
            address: info.address,
            driver: info.driver.to_owned(),
            mac: self.device.mac(),
            state,
            link_up: link.is_up(),
            link: link_text(&link),
            restarts: self.restarts,
            rx,
            tx,
            device,
        }
    }
}
