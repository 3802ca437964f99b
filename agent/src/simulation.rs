//! Drivers, etcd, node and agent, interleaved at random step by step from one seed.
//!
//! The agent may crash between any two of its actions, alone or with its node; the watch lags per
//! family as etcd's does, may be cut, and is listed again; drivers give up anywhere, re-plug, unplug
//! and die. Always: `up` only while wired as asked, a slot is never given back while wired. In the
//! end: no slot leaked, no key left over, wiring and keys agree.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::dataplane::{Place, Plug, Wiring};
use crate::keys::{BindPort, FREE, Family, Key, PortId, UP};
use crate::reconcile::{Action, Reconciler, Timing};
use crate::testing::{Store, layout, name, plug, slot};
use crate::txn::{KeyOp, KeyTxn};
use crate::view::{Change, View};

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How far the driver is with a port.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    Idle,
    Took(u32),
    Bound,
    Asked,
}

struct World {
    random: Random,
    now: Duration,
    store: Store,
    drivers: BTreeMap<PortId, Step>,
    node: BTreeMap<Place, Wiring>,
    agent: Reconciler,
    view: View,
    /// What the watch has yet to deliver, per family, and how far the store's log is queued.
    queues: [VecDeque<Change>; Family::ALL.len()],
    n_queued: usize,
    n_up: u64,
    n_given_back: u64,
}

fn family(key: &Key) -> usize {
    Family::ALL.iter().position(|family| *family == key.family()).unwrap()
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            random: Random::new(seed),
            now: Duration::from_secs(1),
            store: Store::new(),
            drivers: (0..6).map(|i| (name(&format!("port{i}")), Step::Idle)).collect(),
            node: BTreeMap::new(),
            agent: Reconciler::new(layout(), Timing::default()),
            view: View::default(),
            queues: Default::default(),
            n_queued: 0,
            n_up: 0,
            n_given_back: 0,
        };
        world.relist();
        world
    }

    fn relist(&mut self) {
        self.queues = Default::default();
        self.n_queued = self.store.log.len();
        self.view.relist(self.store.listing());
        self.agent.restart_grace();
    }

    fn queue_news(&mut self) {
        for change in &self.store.log[self.n_queued..] {
            self.queues[family(&change.key)].push_back(change.clone());
        }
        self.n_queued = self.store.log.len();
    }

    fn deliver_one(&mut self, family: usize) {
        self.queue_news();
        if let Some(change) = self.queues[family].pop_front() {
            self.view.apply(change);
        }
    }

    fn deliver_all(&mut self) {
        self.queue_news();
        for queue in &mut self.queues {
            while let Some(change) = queue.pop_front() {
                self.view.apply(change);
            }
        }
    }

    fn random_plug(&mut self, vhost: u32) -> Plug {
        let vlan = self.random.one_in(2).then(|| 100 + self.random.below(2) as u16);
        plug(vhost, self.random.below(4) as u8 + 1, vlan)
    }

    /// One step of one driver, as the mechanism driver does it: bind in order, unplug if there is an
    /// action, give up anywhere.
    fn drive(&mut self) {
        let pick = self.random.below(self.drivers.len() as u64) as usize;
        let (port, step) = self.drivers.iter().nth(pick).map(|(port, step)| (port.clone(), *step)).unwrap();
        let next = match step {
            _ if self.random.one_in(12) => Step::Idle,
            Step::Idle => {
                let vhosts: Vec<u32> = layout().into_keys().collect();
                let bound = self.store.get(&Key::BindPort(port.clone())).is_some();
                let free =
                    vhosts.into_iter().find(|vhost| !bound && self.store.slot_value(*vhost) == Some(FREE));
                free.map_or(Step::Idle, |vhost| {
                    assert!(self.store.take(&port, vhost));
                    Step::Took(vhost)
                })
            }
            Step::Took(vhost) => {
                let plug = self.random_plug(vhost);
                self.store.bind(&port, &plug);
                Step::Bound
            }
            Step::Bound => {
                self.store.ask(&port, "plug");
                Step::Asked
            }
            Step::Asked => {
                if self.store.get(&Key::Action(port.clone())).is_some() {
                    self.store.ask(&port, "unplug");
                }
                Step::Idle
            }
        };
        self.drivers.insert(port, next);
    }

    /// Somebody's mistake: a bind_port rewritten in place, a key deleted by hand.
    fn meddle(&mut self) {
        let port = name(&format!("port{}", self.random.below(6)));
        match self.random.below(3) {
            0 => {
                let text = self.store.get(&Key::BindPort(port.clone())).map(str::to_owned);
                if let Some(bound) = text.and_then(|text| BindPort::parse(text.as_bytes()).ok()) {
                    let plug = self.random_plug(bound.plug.vhost);
                    self.store.bind(&port, &plug);
                }
            }
            1 => self.store.delete(&Key::Action(port)),
            _ => self.store.delete(&Key::PortStatus(port)),
        }
    }

    /// The agent plans with what it knows and acts, perhaps not to the end.
    fn agent_turn(&mut self, faults: bool) -> bool {
        let live: Vec<Wiring> = self.node.values().copied().collect();
        let plan = self.agent.plan(self.now, &self.view, &live);
        let idle = plan.actions.is_empty();
        for action in plan.actions {
            if faults && self.random.one_in(10) {
                self.crash();
                return idle;
            }
            if !self.act(action, faults) {
                break;
            }
        }
        idle
    }

    fn crash(&mut self) {
        self.agent = Reconciler::new(layout(), Timing::default());
        if self.random.one_in(2) {
            self.node.clear();
        }
        self.relist();
    }

    fn act(&mut self, action: Action, faults: bool) -> bool {
        let works = !(faults && self.random.one_in(10));
        let answer = || if works { Ok(()) } else { Err("refused".to_string()) };
        match action {
            Action::Wire { subject, wiring } => {
                if works {
                    self.node.insert(wiring.place(), wiring);
                }
                self.agent.wired(&subject, &wiring, answer(), self.now);
                works
            }
            Action::Unwire { place, .. } => {
                if works {
                    self.node.remove(&place);
                }
                self.agent.unwired(place, answer(), self.now);
                works
            }
            Action::PutUp { subject, txn } => {
                let done = self.txn(&txn);
                if done {
                    self.agent.said_up(&subject, self.now);
                }
                done
            }
            Action::Clean { txn, .. } | Action::Release { txn, .. } => self.txn(&txn),
        }
    }

    fn txn(&mut self, txn: &KeyTxn) -> bool {
        match self.store.txn(txn) {
            Ok(revision) => {
                txn.ops.iter().for_each(|op| self.check_write(op));
                self.view.apply_txn(txn, revision);
                true
            }
            Err(changes) => {
                for change in changes {
                    self.view.apply(change);
                }
                false
            }
        }
    }

    /// What must hold whenever the agent writes.
    fn check_write(&mut self, op: &KeyOp) {
        match op {
            KeyOp::Put(Key::PortStatus(port), value) => {
                assert_eq!(value, UP);
                self.n_up += 1;
                let bind_port = self.store.get(&Key::BindPort(port.clone())).expect("up without bind_port");
                let wanted = BindPort::parse(bind_port.as_bytes()).unwrap().plug;
                assert_eq!(self.store.get(&Key::Action(port.clone())), Some("plug"));
                assert_eq!(
                    self.node.get(&Place::Vhost(wanted.vhost)),
                    Some(&wanted.into()),
                    "up while not wired as asked"
                );
                assert_eq!(self.store.slot_value(wanted.vhost), Some(port.as_str()));
            }
            KeyOp::Put(Key::Vhost(slot), value) => {
                assert_eq!(value, FREE);
                self.n_given_back += 1;
                assert!(
                    !self.node.contains_key(&Place::Vhost(slot.vhost)),
                    "vhost {} given back while wired",
                    slot.vhost
                );
            }
            KeyOp::Put(key, _) => panic!("the agent puts {key:?}"),
            KeyOp::Delete(_) => {}
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..5 => self.drive(),
            5 => self.meddle(),
            6..12 => {
                let family = self.random.below(5) as usize;
                self.deliver_one(family);
            }
            12..17 => drop(self.agent_turn(true)),
            17 => self.relist(),
            18 if self.random.one_in(4) => self.crash(),
            _ => self.now += Duration::from_millis(self.random.below(20_000)),
        }
    }

    /// Drivers stand still; the agent gets all the news and all the time it needs.
    fn quiesce(&mut self) {
        for _ in 0..40 {
            self.deliver_all();
            for round in 0.. {
                assert!(round < 100, "the agent does not come to rest");
                if self.agent_turn(false) {
                    break;
                }
                self.deliver_all();
            }
            self.now += Duration::from_secs(10);
        }
    }

    fn check_rest(&self) {
        let mut wired = BTreeMap::new();
        for vhost in layout().into_keys() {
            let value = self.store.slot_value(vhost).expect("slots are never deleted");
            if value == FREE {
                continue;
            }
            let port = name(value);
            let bind_port =
                self.store.get(&Key::BindPort(port.clone())).expect("a slot leaked: no bind_port");
            let wanted = BindPort::parse(bind_port.as_bytes()).unwrap().plug;
            assert_eq!(wanted.vhost, vhost, "a slot leaked: its port is elsewhere");
            wired.insert(Place::Vhost(vhost), wanted.into());
            if self.store.get(&Key::Action(port.clone())).is_some() {
                assert_eq!(self.store.status(&port), Some(UP));
            }
        }
        assert_eq!(self.node, wired, "wiring and keys disagree");
        for port in self.drivers.keys().filter(|port| self.store.keys_of(port) > 0) {
            let mut vhosts = layout().into_keys().filter(|vhost| wired.contains_key(&Place::Vhost(*vhost)));
            let holds_one = vhosts.any(|vhost| self.store.slot_value(vhost) == Some(port.as_str()));
            // A driver so slow that its slot was collected before it bound has asked for what cannot
            // be; its request stays for it to take back.
            let asked = [Key::BindPort(port.clone()), Key::Action(port.clone())];
            let refused = asked.iter().all(|key| self.store.get(key).is_some());
            assert!(holds_one || refused, "keys of {port} left over");
        }
    }

    /// Every driver asks for the end of its port.
    fn drain(&mut self) {
        for port in self.drivers.keys().cloned().collect::<Vec<_>>() {
            self.store.ask(&port, "unplug");
        }
        self.quiesce();
        assert!(self.node.is_empty());
        for port in self.drivers.keys() {
            assert_eq!(self.store.keys_of(port), 0, "keys of {port} left over");
        }
        for vhost in layout().into_keys() {
            assert_eq!(self.store.get(&Key::Vhost(slot(vhost))), Some(FREE));
        }
    }
}

#[test]
fn whatever_the_order_nothing_leaks_and_up_is_true() {
    let seeds = match std::env::var("SPP_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("SPP_SIMULATION_SEED is a number")],
        Err(_) => (0..300).collect::<Vec<u64>>(),
    };
    let (mut n_up, mut n_given_back) = (0, 0);
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..400 {
                world.step();
            }
            world.quiesce();
            world.check_rest();
            world.drain();
            (world.n_up, world.n_given_back)
        });
        let (ups, given_back) = run.unwrap_or_else(|_| panic!("repeat with SPP_SIMULATION_SEED={seed}"));
        n_up += ups;
        n_given_back += given_back;
    }
    // The simulation does what it is about.
    assert!(n_up > 100 && n_given_back > 100, "{n_up} ups, {n_given_back} slots given back");
}
