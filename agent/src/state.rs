//! What the keys say about each port and tap flow, and what that asks for.
//!
//! Pure; the reconciler calls [`HostState::read`] and the verdicts on every pass.

use std::collections::BTreeMap;

use crate::dataplane::{Layout, Place, Plug, Tap, TapDirection, Wiring};
use crate::keys::{BindPort, InfoError, Key, Name, PortId, Request, SlotId, SlotValue, Subject, TapInfo, UP};
use crate::txn::Seen;
use crate::view::View;

/// What a bind_port or tap_info key asks for.
#[derive(Debug)]
pub(crate) enum Info {
    Port(BindPort),
    Tap(TapInfo),
}

/// The keys of one port or tap flow, read.
#[derive(Debug, Default)]
pub(crate) struct SubjectKeys {
    /// The action key and its revision.
    pub action: Option<(Request, i64)>,
    /// The info key and its revision.
    pub info: Option<(Result<Info, InfoError>, i64)>,
    /// The status key: does it say `up`?
    pub status: Option<bool>,
    /// The vhost (mirror) keys that hold its id.
    pub slots: Vec<Key>,
}

impl SubjectKeys {
    pub fn seen(&self) -> Seen {
        Seen {
            action: self.action.as_ref().map(|(_, revision)| *revision),
            info: self.info.as_ref().map(|(_, revision)| *revision),
        }
    }

    pub fn request(&self) -> Option<Request> {
        self.action.as_ref().map(|(request, _)| *request)
    }

    /// What is asked for, if that is there and understood.
    fn understood(&self) -> Option<&Info> {
        self.info.as_ref()?.0.as_ref().ok()
    }

    /// The wiring bind_port asks for.
    pub fn plug(&self) -> Option<Plug> {
        match self.understood()? {
            Info::Port(bind_port) => Some(bind_port.plug),
            Info::Tap(_) => None,
        }
    }

    /// What tap_info asks for.
    pub fn tap(&self) -> Option<&TapInfo> {
        match self.understood()? {
            Info::Tap(tap) => Some(tap),
            Info::Port(_) => None,
        }
    }

    /// The info key has numbers written as text.
    pub fn lenient(&self) -> bool {
        match self.understood() {
            Some(Info::Port(bind_port)) => bind_port.lenient,
            Some(Info::Tap(tap)) => tap.lenient,
            None => false,
        }
    }

    /// Does the info key name this place? One that is not understood may.
    pub fn may_name(&self, place: Place) -> Option<bool> {
        Some(match (&self.info.as_ref()?.0, place) {
            (Err(_), _) => true,
            (Ok(Info::Port(bind_port)), Place::Vhost(vhost)) => bind_port.plug.vhost == vhost,
            (Ok(Info::Tap(tap)), Place::Mirror(mirror)) => tap.mirrors().any(|id| id == mirror),
            _ => false,
        })
    }
}

/// Which vhosts and mirrors the node has, and what their keys are.
#[derive(Debug)]
pub(crate) struct Shape {
    pub layout: Layout,
    pub n_mirrors: u32,
}

impl Shape {
    /// The key that says who has this place. None: there is no such place.
    pub fn slot(&self, place: Place) -> Option<Key> {
        match place {
            Place::Vhost(vhost) => {
                let physnet = self.layout.get(&vhost)?.clone();
                Some(Key::Vhost(SlotId { physnet, vhost }))
            }
            Place::Mirror(mirror) => (mirror < self.n_mirrors).then_some(Key::Mirror(mirror)),
        }
    }

    /// The place whose key this is. None: a slot of no place of this node.
    pub fn place(&self, slot: &Key) -> Option<Place> {
        let place = match slot {
            Key::Vhost(slot) => Place::Vhost(slot.vhost),
            Key::Mirror(mirror) => Place::Mirror(*mirror),
            _ => return None,
        };
        (self.slot(place)? == *slot).then_some(place)
    }
}

/// Who holds a slot that has this id in it.
pub(crate) fn holder(slot: &Key, id: &Name) -> Subject {
    match slot {
        Key::Mirror(_) => Subject::Tap(id.clone()),
        _ => Subject::Port(id.clone()),
    }
}

/// All keys of the host, read.
#[derive(Debug, Default)]
pub(crate) struct HostState {
    pub subjects: BTreeMap<Subject, SubjectKeys>,
    /// Every vhost and mirror key: what it says, since which revision.
    pub slots: BTreeMap<Key, (SlotValue, i64)>,
    /// Is there a configuration key? Without one the host's keys were wiped, not worked on.
    pub configured: bool,
}

/// What the keys of a port or tap flow ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This wiring, and say `up` if somebody asked.
    Wire { wirings: Vec<Wiring>, announce: bool },
    /// Nothing new; what is wired stays. The text says why.
    Keep(String),
    /// Nothing yet, and nothing may stay wired. The text says what it waits for.
    Wait(String),
    /// Nothing, and nothing may stay wired. The text says why.
    Drop(String),
    /// Unwire, give the slots back, remove the keys.
    Unplug,
}

impl HostState {
    pub fn read(view: &View) -> HostState {
        let mut state = HostState::default();
        for (key, value, revision) in view.iter() {
            let port = |id: &Name| Subject::Port(id.clone());
            let tap = |id: &Name| Subject::Tap(id.clone());
            match key {
                Key::Configuration => state.configured = true,
                Key::Vhost(_) | Key::Mirror(_) => state.read_slot(key, value, revision),
                Key::BindPort(id) => {
                    let info = BindPort::parse(value).map(Info::Port);
                    state.of(port(id)).info = Some((info, revision));
                }
                Key::TapInfo(id) => {
                    let info = TapInfo::parse(value).map(Info::Tap);
                    state.of(tap(id)).info = Some((info, revision));
                }
                Key::PortStatus(id) => state.of(port(id)).status = Some(value == UP.as_bytes()),
                Key::TapStatus(id) => state.of(tap(id)).status = Some(value == UP.as_bytes()),
                Key::Action(id) => state.of(port(id)).action = Some((Request::parse(value), revision)),
                Key::TapAction(id) => state.of(tap(id)).action = Some((Request::parse(value), revision)),
            }
        }
        state
    }

    fn read_slot(&mut self, slot: &Key, value: &[u8], revision: i64) {
        let value = SlotValue::parse(value);
        if let SlotValue::Held(id) = &value {
            self.of(holder(slot, id)).slots.push(slot.clone());
        }
        self.slots.insert(slot.clone(), (value, revision));
    }

    fn of(&mut self, subject: Subject) -> &mut SubjectKeys {
        self.subjects.entry(subject).or_default()
    }

    /// Has the port keys of its own, not just a slot that says its name?
    pub fn is_bound(&self, port: &PortId) -> bool {
        self.subjects.get(&Subject::Port(port.clone())).is_some_and(|keys| keys.info.is_some())
    }

    /// Is there a tap flow at either end of which is this port?
    pub fn is_tapped(&self, port: &PortId) -> bool {
        let mut taps = self.subjects.values().filter_map(SubjectKeys::tap);
        taps.any(|tap| tap.source_port == *port || tap.service_port == *port)
    }

    /// What a port asks for. The vhost key is the one truth about who has a vhost: the driver and we
    /// change it by compare only, so of two ports that name the same vhost the holder is served.
    ///
    /// An action key that has vanished (or says neither plug nor unplug) asks for nothing, so it
    /// takes nothing away either: the driver deletes no keys, we delete action only together with
    /// bind_port, hence a lone missing action is somebody's mistake or a watch that is ahead on
    /// another key. What is wired stays; after a restart it is wired again if port_status shows that
    /// it was. `wired` says whether this port is live now.
    pub fn port_verdict(&self, port: &Subject, wired: bool, shape: &Shape) -> Verdict {
        let verdict = || {
            let (keys, info) = self.asked(port)?;
            let Info::Port(bind_port) = info else { unreachable!("a port's info is a bind_port") };
            self.check_holder(port, Place::Vhost(bind_port.plug.vhost), shape)?;
            Ok(wire(vec![bind_port.plug.into()], keys, wired))
        };
        verdict().unwrap_or_else(|otherwise| otherwise)
    }

    /// What a tap flow asks for; the same rules, with its mirrors for the vhost. `vhost_of` says where a
    /// port is wired.
    pub fn tap_verdict(
        &self,
        tap: &Subject,
        wired: bool,
        shape: &Shape,
        vhost_of: impl Fn(&PortId) -> Option<u32>,
    ) -> Verdict {
        let verdict = || {
            let (keys, info) = self.asked(tap)?;
            let Info::Tap(info) = info else { unreachable!("a tap flow's info is a tap_info") };
            for mirror in info.mirrors() {
                self.check_holder(tap, Place::Mirror(mirror), shape)?;
            }
            let end = |what, port| {
                vhost_of(port).ok_or_else(|| Verdict::Wait(format!("its {what} port {port} is not wired")))
            };
            let source = end("source", &info.source_port)?;
            let service = end("service", &info.service_port)?;
            let directions = [(TapDirection::In, info.mirror_in), (TapDirection::Out, info.mirror_out)];
            let wiring = |(direction, mirror): (TapDirection, Option<u32>)| {
                Some(Wiring::Tap(Tap { mirror: mirror?, direction, source, service }))
            };
            Ok(wire(directions.into_iter().filter_map(wiring).collect(), keys, wired))
        };
        verdict().unwrap_or_else(|otherwise| otherwise)
    }

    /// The info of a subject that is to be wired, or what is to become of it otherwise.
    fn asked(&self, subject: &Subject) -> Result<(&SubjectKeys, &Info), Verdict> {
        let Some(keys) = self.subjects.get(subject) else {
            return Err(Verdict::Drop("it has no keys any more".into()));
        };
        let request = keys.request();
        if request == Some(Request::Unplug) {
            return Err(Verdict::Unplug);
        }
        let word = subject.info().family().word();
        match &keys.info {
            None if request == Some(Request::Plug) => {
                Err(Verdict::Drop(format!("plug asked for, but no {word}")))
            }
            None => Err(Verdict::Drop(format!("it has no {word}"))),
            Some((Err(error), _)) => Err(Verdict::Keep(format!("{word} {error}"))),
            Some((Ok(info), _)) => Ok((keys, info)),
        }
    }

    /// Does the subject hold the key of this place?
    fn check_holder(&self, subject: &Subject, place: Place, shape: &Shape) -> Result<(), Verdict> {
        let Some(slot) = shape.slot(place) else {
            return Err(Verdict::Drop(format!("{place} does not exist on this host")));
        };
        match self.slots.get(&slot) {
            Some((SlotValue::Held(id), _)) if id == subject.id() => Ok(()),
            Some((SlotValue::Held(id), _)) => {
                Err(Verdict::Drop(format!("{place} belongs to {}", holder(&slot, id))))
            }
            Some(_) => Err(Verdict::Keep(format!("it does not hold the key of {place}"))),
            None => Err(Verdict::Keep(format!("{place} has no key of its own"))),
        }
    }
}

/// The verdict on a subject whose keys are in order.
fn wire(wirings: Vec<Wiring>, keys: &SubjectKeys, wired: bool) -> Verdict {
    match keys.request() {
        Some(Request::Plug) => Verdict::Wire { wirings, announce: true },
        _ if wired || keys.status == Some(true) => Verdict::Wire { wirings, announce: false },
        Some(_) => Verdict::Keep("action says neither plug nor unplug".into()),
        None => Verdict::Keep("bound, not yet asked to plug".into()),
    }
}
