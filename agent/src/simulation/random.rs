//! Long lives from seeds: drivers, faults, outages and time in any order.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dataplane::Plug;
use crate::keys::{BindPort, FREE, Key, UP};
use crate::testing::{Store, layout, name, plug};

use super::planted::Bug;
use super::world::{FATES, World};

const N_PORTS: u64 = 6;
const N_STEPS: usize = 300;

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

struct Life {
    random: Random,
    world: World,
    drivers: BTreeMap<String, Step>,
    /// Tap flows so far, each with an id of its own, as TaaS has it.
    n_taps: u64,
    /// Somebody makes mistakes, or restores backups: what the agent cannot know then is not asked of it.
    meddled: bool,
    backup: Option<Store>,
    restored: bool,
}

impl Life {
    fn new(seed: u64) -> Life {
        let mut random = Random::new(seed);
        let meddled = random.one_in(2);
        let mut world = World::new();
        world.honest = !meddled;
        let drivers = (0..N_PORTS).map(|i| (format!("port{i}"), Step::Idle)).collect();
        Life { random, world, drivers, n_taps: 0, meddled, backup: None, restored: false }
    }

    fn random_plug(&mut self, vhost: u32) -> Plug {
        let vlan = self.random.one_in(2).then(|| 100 + self.random.below(2) as u16);
        plug(vhost, self.random.below(4) as u8 + 1, vlan)
    }

    /// One step of one driver, as the mechanism driver does it: bind in order, unplug if there is an
    /// action, give up anywhere.
    fn drive(&mut self) {
        let port = format!("port{}", self.random.below(N_PORTS));
        let step = self.drivers[&port];
        let world = &mut self.world;
        let next = match step {
            _ if self.random.one_in(12) => Step::Idle,
            Step::Idle => {
                let bound = world.store.get(&Key::BindPort(name(&port))).is_some();
                let free =
                    layout().into_keys().find(|vhost| !bound && world.store.slot_value(*vhost) == Some(FREE));
                free.map_or(Step::Idle, |vhost| {
                    assert!(world.take(&port, vhost));
                    Step::Took(vhost)
                })
            }
            Step::Took(vhost) => {
                let plug = self.random_plug(vhost);
                self.world.bind(&port, plug);
                Step::Bound
            }
            Step::Bound => {
                world.ask(&port, "plug");
                Step::Asked
            }
            Step::Asked => {
                if world.store.get(&Key::Action(name(&port))).is_some() {
                    world.ask(&port, "unplug");
                }
                Step::Idle
            }
        };
        self.drivers.insert(port, next);
    }

    /// A tap flow between two ports, whatever their state; or the end of the last one.
    fn tap(&mut self) {
        let port = |n: u64| format!("port{n}");
        if self.random.one_in(3) {
            let last = format!("tap{}", self.n_taps);
            if self.world.store.get(&Key::TapAction(name(&last))).is_some() {
                self.world.ask_tap(&last, "unplug");
            }
            return;
        }
        self.n_taps += 1;
        let source = self.random.below(N_PORTS);
        let service = (source + 1 + self.random.below(N_PORTS - 1)) % N_PORTS;
        let mirrors = [[Some(0), None], [None, Some(1)], [Some(0), Some(1)]][self.random.below(3) as usize];
        self.world.tap_all(&format!("tap{}", self.n_taps), (&port(source), &port(service)), mirrors);
    }

    /// Somebody's mistake: a bind_port rewritten in place, a key deleted or garbled by hand, a slot freed.
    fn meddle(&mut self) {
        let port = format!("port{}", self.random.below(N_PORTS));
        let vhost = self.random.below(layout().len() as u64) as u32;
        let store = &mut self.world.store;
        match self.random.below(6) {
            0 => {
                let text = store.get(&Key::BindPort(name(&port))).map(str::to_owned);
                if let Some(bound) = text.and_then(|text| BindPort::parse(text.as_bytes()).ok()) {
                    let plug = self.random_plug(bound.plug.vhost);
                    self.world.bind(&port, plug);
                }
            }
            1 => store.delete(&Key::Action(name(&port))),
            2 => store.delete(&Key::PortStatus(name(&port))),
            3 => store.delete(&Key::BindPort(name(&port))),
            4 => store.put(Key::Action(name(&port)), "?"),
            _ => store.put(Key::Vhost(crate::testing::slot(vhost)), FREE),
        }
    }

    /// A guest comes or goes.
    fn guest(&mut self) {
        let vhost = self.random.below(layout().len() as u64) as u32;
        let guests = &mut self.world.node.guests;
        if !guests.remove(&vhost) {
            guests.insert(vhost);
        }
    }

    /// Something happens to etcd.
    fn outage(&mut self) {
        match self.random.below(6) {
            0 => self.world.cut(),
            1 => self.world.etcd_up = !self.world.etcd_up,
            2 => self.world.store.compacted = self.world.store.revision,
            3 if self.meddled => self.backup = Some(self.world.store.clone()),
            4 if self.meddled => self.restore(),
            _ => {}
        }
        if !self.world.etcd_up {
            self.world.cut();
        }
    }

    /// `etcdctl snapshot restore`: the keys of then, in a cluster of another id. Drivers go on from there.
    fn restore(&mut self) {
        let Some(mut backup) = self.backup.take() else { return };
        self.world.cut();
        backup.cluster_id = self.world.store.cluster_id + 1;
        self.world.store = backup;
        self.restored = true;
    }

    fn step(&mut self) {
        match self.random.below(25) {
            0..6 => self.drive(),
            6 if self.meddled => self.meddle(),
            7 => self.outage(),
            8..14 => self.news(),
            14..20 => {
                for _ in 0..=self.random.below(6) {
                    if !self.world.step() {
                        break;
                    }
                }
            }
            20 | 21 => self.fated_step(),
            23 if self.random.one_in(4) => self.guest(),
            24 => self.tap(),
            22 if self.random.one_in(8) => self.world.crash(self.random.0 & 1 == 0),
            _ => {
                let time = Duration::from_millis(self.random.below(20_000));
                self.world.pass(time);
            }
        }
        if self.random.one_in(4) {
            self.world.start_agent();
        }
    }

    /// One change of any family: families lag behind each other; some come twice, some not at all.
    fn news(&mut self) {
        let ready = self.world.news();
        if ready.is_empty() {
            return;
        }
        let family = ready[self.random.below(ready.len() as u64) as usize];
        match self.random.below(20) {
            0 => self.world.lose_news(family),
            1 => self.world.deliver_doubled(family),
            _ => self.world.deliver(family),
        }
    }

    fn fated_step(&mut self) {
        let fate = FATES[self.random.below(FATES.len() as u64) as usize];
        let at = self.world.trace.len();
        self.world.fates.insert(at, fate);
        self.world.step();
    }

    /// Keys and wiring agree, and nothing is left that nobody asks for.
    fn check_rest(&self) {
        let store = &self.world.store;
        let mut wired = BTreeMap::new();
        for vhost in layout().into_keys() {
            let value = store.slot_value(vhost).expect("slots are never deleted");
            if value == FREE {
                continue;
            }
            if self.restored && self.world.node.wired.contains_key(&vhost) {
                // Wiring stays that the backup knows nothing of, or otherwise.
                wired.insert(vhost, self.world.node.wired[&vhost]);
                continue;
            }
            let port = name(value);
            let bind_port = store.get(&Key::BindPort(port.clone())).expect("a slot leaked: no bind_port");
            let wanted = BindPort::parse(bind_port.as_bytes()).unwrap().plug;
            assert_eq!(wanted.vhost, vhost, "a slot leaked: its port is elsewhere");
            match store.get(&Key::Action(port.clone())) {
                Some("plug") if self.world.node.wired.get(&vhost) == Some(&wanted) => {
                    assert_eq!(store.status(&port), Some(UP));
                }
                // Two ports with one address on one network: the second cannot be wired.
                Some("plug") => {
                    let same = |other: &&Plug| (other.mac, other.vlan) == (wanted.mac, wanted.vlan);
                    assert!(
                        self.world.node.wired.values().any(|other| same(&other)),
                        "{port} is not wired: {:?}",
                        self.world.status.get()
                    );
                    continue;
                }
                _ => {}
            }
            wired.insert(vhost, wanted);
        }
        if self.meddled {
            return;
        }
        for vhost in self.world.node.wired.keys() {
            assert!(wired.contains_key(vhost), "vhost {vhost} is wired for nobody");
        }
        for port in self.drivers.keys().map(|port| name(port)).filter(|port| store.keys_of(port) > 0) {
            let holds_one = layout().into_keys().any(|v| store.slot_value(v) == Some(port.as_str()));
            // A driver so slow that its slot was collected before it bound has asked for what cannot
            // be; its request stays for it to take back.
            let asked = [Key::BindPort(port.clone()), Key::Action(port.clone())];
            let refused = asked.iter().all(|key| store.get(key).is_some());
            assert!(holds_one || refused, "keys of {port} left over");
        }
    }

    /// Every driver asks for the end of its port; then nothing may be left.
    fn drain(&mut self) {
        for port in self.drivers.keys().cloned().collect::<Vec<_>>() {
            self.world.ask(&port, "unplug");
        }
        for tap in 1..=self.n_taps {
            self.world.ask_tap(&format!("tap{tap}"), "unplug");
        }
        self.world.settle();
        if self.restored {
            // Wiring whose keys the backup did not have is nobody's to unplug, until an agent starts that
            // knows no other history.
            self.world.crash(false);
            self.world.settle();
        }
        self.world.assert_pristine();
    }
}

fn seeds(n: u64) -> Vec<u64> {
    match std::env::var("SPP_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("SPP_SIMULATION_SEED is a number")],
        Err(_) => (0..n).collect(),
    }
}

/// The whole life of this seed: how often `up` was said, and how many slots were given back.
pub fn live_through(seed: u64, bug: Option<Bug>) -> (usize, usize) {
    let mut life = Life::new(seed);
    life.world.planted.bug = bug;
    for _ in 0..N_STEPS {
        life.step();
    }
    life.world.settle();
    life.check_rest();
    life.drain();
    (life.world.ups.len(), life.world.n_given_back)
}

#[test]
fn whatever_the_order_nothing_leaks_and_up_is_true() {
    let (mut n_up, mut n_given_back) = (0, 0);
    for seed in seeds(1500) {
        let run = std::panic::catch_unwind(|| live_through(seed, None));
        let (ups, given_back) = run.unwrap_or_else(|_| panic!("repeat with SPP_SIMULATION_SEED={seed}"));
        n_up += ups;
        n_given_back += given_back;
    }
    // The simulation does what it is about.
    assert!(n_up > 10 && n_given_back > 10, "{n_up} ups, {n_given_back} slots given back");
}
