//! The two things an agent works on: a watch as etcd has it, and a node that forwards frames.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::dataplane::{DataPlaneError, Place, Plug, Tap, Wiring};
use crate::keys::{Family, Key, PortId, TapId};
use crate::testing::{Store, layout};
use crate::view::Change;

/// A watch: etcd keeps the order within a family (each has a watcher of its own), not between them.
#[derive(Debug, Default)]
pub struct Watcher {
    queues: BTreeMap<u8, VecDeque<Change>>,
    /// How far the store's log is queued.
    n_queued: usize,
}

fn family(key: &Key) -> u8 {
    let place = Family::ALL.iter().position(|family| *family == key.family());
    place.expect("all families are among all") as u8
}

impl Watcher {
    /// From `revision` on.
    pub fn start(store: &Store, revision: i64) -> Watcher {
        let n_queued = store.log.partition_point(|change| change.revision < revision);
        Watcher { queues: BTreeMap::new(), n_queued }
    }

    fn queue(&mut self, store: &Store) {
        for change in &store.log[self.n_queued..] {
            self.queues.entry(family(&change.key)).or_default().push_back(change.clone());
        }
        self.n_queued = store.log.len();
        self.queues.retain(|_, queue| !queue.is_empty());
    }

    /// The families that have something to deliver.
    pub fn ready(&mut self, store: &Store) -> Vec<u8> {
        self.queue(store);
        self.queues.keys().copied().collect()
    }

    /// The next change of a family.
    pub fn deliver(&mut self, family: u8) -> Option<Change> {
        self.queues.get_mut(&family)?.pop_front()
    }

    /// A fault no etcd should have: a family's next change never comes.
    pub fn lose_one(&mut self, family: u8) {
        self.deliver(family);
    }
}

/// The node: what is wired, and where frames go.
#[derive(Debug, Default, Clone)]
pub struct NodeModel {
    pub wired: BTreeMap<u32, Plug>,
    pub taps: BTreeMap<u32, Tap>,
    /// Vhosts with a guest.
    pub guests: BTreeSet<u32>,
    /// Calls that changed something.
    pub n_changes: usize,
}

/// What the control node ever asked to be wired, by port, and to be copied, by tap flow.
#[derive(Debug, Default)]
pub struct Asked {
    pub plugs: BTreeMap<PortId, Vec<Plug>>,
    /// From and to whom.
    pub taps: BTreeMap<TapId, (PortId, PortId)>,
}

fn refuse<T>(why: String) -> Result<T, DataPlaneError> {
    Err(DataPlaneError(why))
}

impl NodeModel {
    pub fn wirings(&self) -> Vec<Wiring> {
        let plugs = self.wired.values().copied().map(Wiring::Plug);
        plugs.chain(self.taps.values().copied().map(Wiring::Tap)).collect()
    }

    pub fn awaited(&self) -> BTreeSet<u32> {
        self.wired.keys().copied().filter(|vhost| !self.guests.contains(vhost)).collect()
    }

    pub fn wire(&mut self, wiring: Wiring) -> Result<(), DataPlaneError> {
        match wiring {
            Wiring::Plug(plug) => self.plug(plug),
            Wiring::Tap(tap) => self.tap(tap),
        }
    }

    pub fn unwire(&mut self, place: Place) -> Result<(), DataPlaneError> {
        match place {
            Place::Mirror(mirror) => {
                self.n_changes += usize::from(self.taps.remove(&mirror).is_some());
                Ok(())
            }
            Place::Vhost(vhost) => match self.taps.values().find(|tap| tap.uses(vhost)) {
                Some(tap) => refuse(format!("in use by {tap}")),
                None => {
                    self.n_changes += usize::from(self.wired.remove(&vhost).is_some());
                    Ok(())
                }
            },
        }
    }

    /// As the node has it: one step from old to new wiring, or an error and no change. An entry of the
    /// classifier (network, VLAN, MAC) has one destination.
    pub fn plug(&mut self, plug: Plug) -> Result<(), DataPlaneError> {
        let network = &layout()[&plug.vhost];
        let taken = self.wired.values().find(|other| {
            other.vhost != plug.vhost
                && layout()[&other.vhost] == *network
                && (other.mac, other.vlan) == (plug.mac, plug.vlan)
        });
        if let Some(other) = taken {
            return refuse(format!("vhost {} has this entry already", other.vhost));
        }
        if self.wired.insert(plug.vhost, plug) != Some(plug) {
            self.n_changes += 1;
        }
        Ok(())
    }

    fn tap(&mut self, tap: Tap) -> Result<(), DataPlaneError> {
        if let Some(idle) = [tap.source, tap.service].iter().find(|vhost| !self.wired.contains_key(vhost)) {
            return refuse(format!("vhost {idle} is not wired"));
        }
        match self.taps.get(&tap.mirror) {
            Some(other) if *other != tap => return refuse(format!("at work: {other}")),
            Some(_) => {}
            None => self.n_changes += 1,
        }
        self.taps.insert(tap.mirror, tap);
        Ok(())
    }

    /// Where frames end up that should not: all that is wired is tried as traffic. `tenants` are the
    /// ports whose guests are behind the vhosts, `mirror_of` says which tap flow has a mirror.
    pub fn misdelivered(
        &self,
        asked: &Asked,
        tenants: &BTreeMap<u32, PortId>,
        mirror_of: impl Fn(u32) -> Option<TapId>,
    ) -> Option<String> {
        for (vhost, wired) in &self.wired {
            let tenant = tenants.get(vhost);
            let plugs = tenant.and_then(|tenant| asked.plugs.get(tenant));
            if !plugs.is_some_and(|plugs| plugs.contains(wired)) {
                return Some(format!("frames for {wired} reach the guest of {tenant:?}"));
            }
        }
        for tap in self.taps.values() {
            let ends = mirror_of(tap.mirror).and_then(|flow| asked.taps.get(&flow).cloned());
            let are = tenants.get(&tap.source).cloned().zip(tenants.get(&tap.service).cloned());
            if ends.is_none() || ends != are {
                return Some(format!("{tap}: copies between {are:?}, where {ends:?} was asked for"));
            }
        }
        None
    }
}
