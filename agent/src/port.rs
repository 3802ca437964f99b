//! What the keys say about each port, and what that asks for.
//!
//! Pure; the reconciler calls [`HostState::read`] and [`HostState::verdict`] on every pass.

use std::collections::BTreeMap;

use crate::dataplane::{Layout, Plug};
use crate::keys::{BindPort, BindPortError, Key, PortId, Request, SlotId, SlotValue, UP};
use crate::txn::Seen;
use crate::view::View;

/// The keys of one port, read.
#[derive(Debug, Default)]
pub(crate) struct PortKeys {
    /// The action key and its revision.
    pub action: Option<(Request, i64)>,
    /// The bind_port key and its revision.
    pub bind_port: Option<(Result<BindPort, BindPortError>, i64)>,
    /// The port_status key: does it say `up`?
    pub status: Option<bool>,
    /// The vhost keys that hold this port's id.
    pub slots: Vec<SlotId>,
}

impl PortKeys {
    pub fn seen(&self) -> Seen {
        Seen {
            action: self.action.as_ref().map(|(_, revision)| *revision),
            bind_port: self.bind_port.as_ref().map(|(_, revision)| *revision),
        }
    }

    pub fn request(&self) -> Option<Request> {
        self.action.as_ref().map(|(request, _)| *request)
    }

    /// The wiring bind_port asks for, if it is there and understood.
    pub fn plug(&self) -> Option<Plug> {
        match &self.bind_port {
            Some((Ok(bind_port), _)) => Some(bind_port.plug),
            _ => None,
        }
    }
}

/// All keys of the host, read.
#[derive(Debug, Default)]
pub(crate) struct HostState {
    pub ports: BTreeMap<PortId, PortKeys>,
    /// Every vhost key: what it says, since which revision.
    pub slots: BTreeMap<SlotId, (SlotValue, i64)>,
    /// Is there a configuration key? Without one the host's keys were wiped, not worked on.
    pub configured: bool,
}

/// What the keys of a port ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This wiring, and say `up` if somebody asked.
    Wire { plug: Plug, announce: bool },
    /// Nothing new; what is wired stays. The text says why.
    Keep(String),
    /// Nothing, and nothing may stay wired. The text says why.
    Drop(String),
    /// Unwire, give the vhost back, remove the keys.
    Unplug,
}

impl HostState {
    pub fn read(view: &View) -> HostState {
        let mut state = HostState::default();
        for (key, value, revision) in view.iter() {
            match key {
                Key::Configuration => state.configured = true,
                Key::Vhost(slot) => {
                    let value = SlotValue::parse(value);
                    if let SlotValue::Held(port) = &value {
                        state.port(port).slots.push(slot.clone());
                    }
                    state.slots.insert(slot.clone(), (value, revision));
                }
                Key::BindPort(port) => state.port(port).bind_port = Some((BindPort::parse(value), revision)),
                Key::PortStatus(port) => state.port(port).status = Some(value == UP.as_bytes()),
                Key::Action(port) => state.port(port).action = Some((Request::parse(value), revision)),
            }
        }
        state
    }

    fn port(&mut self, port: &PortId) -> &mut PortKeys {
        self.ports.entry(port.clone()).or_default()
    }

    /// The slot of a vhost that exists, and what its key says.
    pub fn slot_of(&self, vhost: u32, layout: &Layout) -> Option<(SlotId, Option<&(SlotValue, i64)>)> {
        let slot = SlotId { physnet: layout.get(&vhost)?.clone(), vhost };
        let value = self.slots.get(&slot);
        Some((slot, value))
    }

    /// What `port` asks for. The vhost key is the one truth about who has a vhost: the driver and we
    /// change it by compare only, so of two ports that name the same vhost the holder is served.
    ///
    /// An action key that has vanished (or says neither plug nor unplug) asks for nothing, so it
    /// takes nothing away either: the driver deletes no keys, we delete action only together with
    /// bind_port, hence a lone missing action is somebody's mistake or a watch that is ahead on
    /// another key. What is wired stays; after a restart it is wired again if port_status shows that
    /// it was. `wired` says whether this port is live now.
    pub fn verdict(&self, port: &PortId, wired: bool, layout: &Layout) -> Verdict {
        let Some(keys) = self.ports.get(port) else {
            return Verdict::Drop("it has no keys any more".into());
        };
        let request = keys.request();
        if request == Some(Request::Unplug) {
            return Verdict::Unplug;
        }
        let plug = match &keys.bind_port {
            None if request == Some(Request::Plug) => {
                return Verdict::Drop("plug asked for, but no bind_port".into());
            }
            None => return Verdict::Drop("it has no bind_port".into()),
            Some((Err(error), _)) => return Verdict::Keep(error.to_string()),
            Some((Ok(bind_port), _)) => bind_port.plug,
        };
        let vhost = plug.vhost;
        let Some((slot, value)) = self.slot_of(vhost, layout) else {
            return Verdict::Drop(format!("vhost {vhost} does not exist on this host"));
        };
        match value {
            Some((SlotValue::Held(holder), _)) if holder == port => {}
            Some((SlotValue::Held(holder), _)) => {
                return Verdict::Drop(format!("vhost {vhost} belongs to port {holder}"));
            }
            Some(_) => return Verdict::Keep(format!("it does not hold the key of vhost {vhost}")),
            None => return Verdict::Keep(format!("vhost {vhost} has no key under {}", slot.physnet)),
        }
        match request {
            Some(Request::Plug) => Verdict::Wire { plug, announce: true },
            _ if wired || keys.status == Some(true) => Verdict::Wire { plug, announce: false },
            Some(_) => Verdict::Keep("action says neither plug nor unplug".into()),
            None => Verdict::Keep("bound, not yet asked to plug".into()),
        }
    }
}
