//! Binding and unbinding a port from the control side, for fleets without OpenStack.
//!
//! The same keys and compares as neutron's mechanism driver, but for what it leaves to luck: a vhost is
//! taken, described and asked to be plugged in one transaction, so a crash leaves no half of it; the answer
//! is awaited from the transaction's revision on, so none is missed; who gets none takes everything back.
//! This half is sans-IO: it looks at the host's keys and says the next transaction. [`run`] has the rest.

mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use spp_drivers::MacAddr;

use crate::dataplane::Plug;
use crate::keys::{BindPort, FREE, Key, Name, PortId, Request, SlotId, SlotValue, Subject};
use crate::link::Lost;
use crate::state::{HostState, SubjectKeys};
use crate::txn::{Guard, KeyOp, KeyTxn};
use crate::view::View;

pub use run::{ControlNode, bind, unbind};

/// A port to be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindRequest {
    /// Any id that no other port of the host has.
    pub port: PortId,
    /// Which NIC's network.
    pub physnet: Name,
    /// The guest's address.
    pub mac: MacAddr,
    /// VLAN id 1..=4094; None on a flat network.
    pub vlan: Option<u16>,
}

/// Why a port was not bound or unbound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No member could be reached.
    #[error("no etcd at {endpoints}: {reason}")]
    Unreachable {
        /// All that were tried.
        endpoints: String,
        /// What the last one said.
        reason: Lost,
    },
    /// No `spp config put` was done for this host.
    #[error("host {0} has no configuration in etcd: write one with spp config put")]
    NoConfiguration(Name),
    /// No NIC of this network.
    #[error("host {host} has no physical network {physnet}: it has {known}")]
    NoSuchNetwork {
        /// The host.
        host: Name,
        /// What was asked for.
        physnet: Name,
        /// What there is.
        known: String,
    },
    /// The port has keys already.
    #[error("port {0} is bound already: unbind it first")]
    AlreadyBound(PortId),
    /// All vhosts are in use.
    #[error("host {host} has no free vhost on {physnet}: all {n} are in use")]
    NoFreeVhost {
        /// The host.
        host: Name,
        /// The network.
        physnet: Name,
        /// How many it has.
        n: usize,
    },
    /// Somebody else unplugged the port, or took its vhost, before it was up.
    #[error("port {0} was unplugged by somebody else before it was up")]
    TakenBack(PortId),
    /// The agent did not say `up`; what was written is taken back.
    #[error("the agent of {host} did not say up in time, nothing stays bound: does spp run there?")]
    NotUp {
        /// The host.
        host: Name,
    },
    /// Stopped by a signal; what was written is taken back.
    #[error("stopped, nothing stays bound")]
    Stopped,
    /// What was written could not be taken back.
    #[error("{why}; taking it back failed too ({reason}): run spp unbind")]
    NotTakenBack {
        /// Why it had to be taken back.
        why: Box<BindError>,
        /// Why that failed.
        reason: String,
    },
    /// The unplug is written and stays so; the agent did not do it in time.
    #[error("the agent of {host} did not unplug in time: it will as soon as spp runs there")]
    NotUnplugged {
        /// The host.
        host: Name,
    },
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Step<T> {
    /// Carry this out and say how it went.
    Try(KeyTxn),
    /// Look again when a key has changed.
    Wait,
    /// Finished.
    Done(T),
}

/// How far a bind is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    /// Nothing written.
    Choosing,
    /// Perhaps written: the answer has not come.
    Tried(SlotId),
    /// Written; the agent is to answer.
    Asked(SlotId),
}

/// One bind, from the choice of a vhost to `up`.
#[derive(Debug)]
struct Bind {
    host: Name,
    request: BindRequest,
    subject: Subject,
    progress: Progress,
}

impl Bind {
    fn new(host: Name, request: BindRequest) -> Bind {
        let subject = Subject::Port(request.port.clone());
        Bind { host, request, subject, progress: Progress::Choosing }
    }

    fn step(&mut self, view: &View) -> Result<Step<SlotId>, BindError> {
        let state = HostState::read(view);
        let keys = state.subjects.get(&self.subject);
        let (slot, answered) = match &self.progress {
            Progress::Choosing => return self.choose(&state, keys),
            Progress::Tried(slot) => (slot.clone(), false),
            Progress::Asked(slot) => (slot.clone(), true),
        };
        match keys.filter(|keys| self.is_ours(keys, &slot)) {
            Some(keys) if keys.status == Some(true) => Ok(Step::Done(slot)),
            Some(_) => {
                self.progress = Progress::Asked(slot);
                Ok(Step::Wait)
            }
            None if answered => Err(BindError::TakenBack(self.request.port.clone())),
            None => {
                self.progress = Progress::Choosing;
                self.choose(&state, keys)
            }
        }
    }

    /// The transaction of [`Step::Try`] was answered.
    fn answered(&mut self, done: bool) {
        if let Progress::Tried(slot) = &self.progress {
            self.progress = if done { Progress::Asked(slot.clone()) } else { Progress::Choosing };
        }
    }

    /// The first free vhost in the order of the keys' text (10 before 2), as the driver has it.
    fn choose(&mut self, state: &HostState, keys: Option<&SubjectKeys>) -> Result<Step<SlotId>, BindError> {
        if !state.configured {
            return Err(BindError::NoConfiguration(self.host.clone()));
        }
        if keys.is_some_and(|keys| keys.action.is_some() || keys.info.is_some() || !keys.slots.is_empty()) {
            return Err(BindError::AlreadyBound(self.request.port.clone()));
        }
        let slots = state.slots.iter().filter_map(|(key, (value, _))| match key {
            Key::Vhost(slot) => Some((slot, value)),
            _ => None,
        });
        let of_network: Vec<_> =
            slots.clone().filter(|(slot, _)| slot.physnet == self.request.physnet).collect();
        if of_network.is_empty() {
            let known: BTreeSet<&str> = slots.map(|(slot, _)| slot.physnet.as_str()).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            let (host, physnet) = (self.host.clone(), self.request.physnet.clone());
            let known = if known.is_empty() { "none".into() } else { known };
            return Err(BindError::NoSuchNetwork { host, physnet, known });
        }
        let free = of_network.iter().filter(|(_, value)| **value == SlotValue::Free);
        let Some((slot, _)) = free.min_by_key(|(slot, _)| slot.vhost.to_string()) else {
            let (host, physnet) = (self.host.clone(), self.request.physnet.clone());
            return Err(BindError::NoFreeVhost { host, physnet, n: of_network.len() });
        };
        let slot = (*slot).clone();
        self.progress = Progress::Tried(slot.clone());
        Ok(Step::Try(self.take(slot)))
    }

    fn take(&self, slot: SlotId) -> KeyTxn {
        let info = BindPort::write(&self.plug(&slot));
        let vhost = Key::Vhost(slot);
        let guards = vec![
            Guard::Value(vhost.clone(), FREE.into()),
            Guard::Absent(self.subject.info()),
            Guard::Absent(self.subject.action()),
        ];
        let ops = vec![
            KeyOp::Put(vhost, self.request.port.to_string()),
            KeyOp::Put(self.subject.info(), info),
            KeyOp::Put(self.subject.action(), "plug".into()),
            // An `up` from another life of this port must not be taken for the answer.
            KeyOp::Delete(self.subject.status()),
        ];
        KeyTxn::new(guards, ops)
    }

    fn plug(&self, slot: &SlotId) -> Plug {
        Plug { vhost: slot.vhost, mac: self.request.mac, vlan: self.request.vlan }
    }

    /// Do the keys say what we wrote?
    fn is_ours(&self, keys: &SubjectKeys, slot: &SlotId) -> bool {
        keys.request() == Some(Request::Plug)
            && keys.plug() == Some(self.plug(slot))
            && keys.slots == [Key::Vhost(slot.clone())]
    }

    /// Asks the agent to take back what we wrote; [`Step::Done`] when nothing of ours is there.
    fn ask_back(&self, view: &View) -> Step<()> {
        let (Progress::Tried(slot) | Progress::Asked(slot)) = &self.progress else { return Step::Done(()) };
        let state = HostState::read(view);
        match state.subjects.get(&self.subject) {
            Some(keys) if self.is_ours(keys, slot) => Step::Try(unplug(&self.subject, keys)),
            Some(keys) if self.is_being_undone(keys, slot) => Step::Wait,
            _ => Step::Done(()),
        }
    }

    /// Takes back what the agent, who is not there, was asked to. If it comes back it finds no keys, and
    /// unwires what it may have wired.
    fn take_back(&self, view: &View) -> Option<KeyTxn> {
        let state = HostState::read(view);
        let keys = state.subjects.get(&self.subject)?;
        Some(KeyTxn::clean(&self.subject, &keys.slots, keys.seen()))
    }

    fn is_being_undone(&self, keys: &SubjectKeys, slot: &SlotId) -> bool {
        keys.request() == Some(Request::Unplug) && keys.plug() == Some(self.plug(slot))
    }
}

fn unplug(subject: &Subject, keys: &SubjectKeys) -> KeyTxn {
    let seen = keys.seen();
    let guards =
        vec![Guard::as_seen(subject.action(), seen.action), Guard::as_seen(subject.info(), seen.info)];
    KeyTxn::new(guards, vec![KeyOp::Put(subject.action(), "unplug".into())])
}

/// One unbind, until no key names the port.
#[derive(Debug)]
struct Unbind {
    subject: Subject,
    /// The vhosts it held when first seen.
    vhosts: Option<Vec<u32>>,
    asked: bool,
}

impl Unbind {
    fn new(port: PortId) -> Unbind {
        Unbind { subject: Subject::Port(port), vhosts: None, asked: false }
    }

    /// Done with the vhosts that were given back.
    fn step(&mut self, view: &View) -> Step<Vec<u32>> {
        let state = HostState::read(view);
        let keys = state.subjects.get(&self.subject);
        let vhosts = self.vhosts.get_or_insert_with(|| keys.map(vhosts).unwrap_or_default());
        let Some(keys) = keys else { return Step::Done(vhosts.clone()) };
        match keys.request() {
            Some(Request::Unplug) => {
                self.asked = true;
                Step::Wait
            }
            // Unplugged, and bound again by somebody before we looked.
            Some(Request::Plug) if self.asked => Step::Done(vhosts.clone()),
            None if self.asked => Step::Wait,
            _ => Step::Try(unplug(&self.subject, keys)),
        }
    }
}

fn vhosts(keys: &SubjectKeys) -> Vec<u32> {
    let vhost = |key: &Key| match key {
        Key::Vhost(slot) => Some(slot.vhost),
        _ => None,
    };
    keys.slots.iter().filter_map(vhost).collect()
}
