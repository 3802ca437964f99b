//! A small etcd and a small driver for tests of the sans-IO half: keys with revisions and
//! transactions, and the driver's steps one by one.

use std::collections::BTreeMap;

use crate::dataplane::{Layout, Plug};
use crate::keys::{BindPort, FREE, Key, Name, PortId, SlotId, TapId};
use crate::txn::{Guard, KeyOp, KeyTxn};
use crate::view::{Change, KeyValue, Listing};

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Two physical networks with two vhosts each, as in the architecture document.
pub fn layout() -> Layout {
    [(0, "phys1"), (1, "phys1"), (2, "phys2"), (3, "phys2")].map(|(vhost, net)| (vhost, name(net))).into()
}

/// And two mirrors.
pub const N_MIRRORS: u32 = 2;

pub fn slot(vhost: u32) -> SlotId {
    SlotId { physnet: layout()[&vhost].clone(), vhost }
}

pub fn plug(vhost: u32, mac_last: u8, vlan: Option<u16>) -> Plug {
    let mac = format!("fa:16:3e:00:00:{mac_last:02x}").parse().unwrap();
    Plug { vhost, mac, vlan }
}

/// The keys of one host, with etcd's revisions and a log of changes.
#[derive(Clone)]
pub struct Store {
    keys: BTreeMap<Key, (Vec<u8>, i64)>,
    pub revision: i64,
    pub cluster_id: u64,
    pub log: Vec<Change>,
    /// Revisions up to this one can no longer be watched.
    pub compacted: i64,
}

impl Store {
    /// As `spp config put` leaves it.
    pub fn new() -> Store {
        let mut store =
            Store { keys: BTreeMap::new(), revision: 1, cluster_id: 1, log: Vec::new(), compacted: 0 };
        store.put(Key::Configuration, "[]");
        for vhost in layout().into_keys() {
            store.put(Key::Vhost(slot(vhost)), FREE);
        }
        for mirror in 0..N_MIRRORS {
            store.put(Key::Mirror(mirror), FREE);
        }
        store
    }

    pub fn put(&mut self, key: Key, value: impl AsRef<[u8]>) {
        self.revision += 1;
        self.write(key, Some(value.as_ref().to_vec()));
    }

    pub fn delete(&mut self, key: &Key) {
        self.revision += 1;
        self.write(key.clone(), None);
    }

    fn write(&mut self, key: Key, value: Option<Vec<u8>>) {
        match &value {
            Some(value) => drop(self.keys.insert(key.clone(), (value.clone(), self.revision))),
            None if self.keys.remove(&key).is_none() => return,
            None => {}
        }
        self.log.push(Change { key, value, revision: self.revision });
    }

    pub fn get(&self, key: &Key) -> Option<&str> {
        self.keys.get(key).and_then(|(value, _)| std::str::from_utf8(value).ok())
    }

    pub fn listing(&self) -> Listing {
        let kv = |(key, (value, revision)): (&Key, &(Vec<u8>, i64))| KeyValue {
            key: key.clone(),
            value: value.clone(),
            mod_revision: *revision,
        };
        Listing {
            keys: self.keys.iter().map(kv).collect(),
            revision: self.revision,
            cluster_id: self.cluster_id,
            n_odd_keys: 0,
        }
    }

    /// Do all guards hold?
    pub fn allows(&self, txn: &KeyTxn) -> bool {
        txn.guards.iter().all(|guard| match guard {
            Guard::Unchanged(key, revision) => self.keys.get(key).is_some_and(|(_, at)| at == revision),
            Guard::Absent(key) => !self.keys.contains_key(key),
            Guard::Value(key, value) => self.get(key) == Some(value),
        })
    }

    /// Carries a transaction out. The revision if it went through, else the guarded keys as they are.
    pub fn txn(&mut self, txn: &KeyTxn) -> Result<i64, Vec<Change>> {
        if !self.allows(txn) {
            return Err(txn.guarded_keys().map(|key| self.read(key)).collect());
        }
        self.revision += 1;
        for op in &txn.ops {
            match op {
                KeyOp::Put(key, value) => self.write(key.clone(), Some(value.clone().into_bytes())),
                KeyOp::Delete(key) => self.write(key.clone(), None),
            }
        }
        Ok(self.revision)
    }

    fn read(&self, key: &Key) -> Change {
        match self.keys.get(key) {
            Some((value, revision)) => {
                Change { key: key.clone(), value: Some(value.clone()), revision: *revision }
            }
            None => Change { key: key.clone(), value: None, revision: self.revision },
        }
    }

    // The driver's steps.

    /// Takes a slot by compare-and-swap.
    pub fn take(&mut self, port: &PortId, vhost: u32) -> bool {
        let free = self.get(&Key::Vhost(slot(vhost))) == Some(FREE);
        if free {
            self.put(Key::Vhost(slot(vhost)), port.as_str());
        }
        free
    }

    pub fn bind(&mut self, port: &PortId, plug: &Plug) {
        self.put(Key::BindPort(port.clone()), BindPort::write(plug));
    }

    pub fn ask(&mut self, port: &PortId, action: &str) {
        self.put(Key::Action(port.clone()), action);
    }

    /// All of the driver's bind.
    pub fn bind_all(&mut self, port: &PortId, plug: &Plug) {
        assert!(self.take(port, plug.vhost));
        self.bind(port, plug);
        self.ask(port, "plug");
    }

    pub fn status(&self, port: &PortId) -> Option<&str> {
        self.get(&Key::PortStatus(port.clone()))
    }

    pub fn slot_value(&self, vhost: u32) -> Option<&str> {
        self.get(&Key::Vhost(slot(vhost)))
    }

    // The TaaS driver's steps.

    /// Takes a mirror by compare-and-swap.
    pub fn take_mirror(&mut self, tap: &TapId, mirror: u32) -> bool {
        let free = self.mirror_value(mirror) == Some(FREE);
        if free {
            self.put(Key::Mirror(mirror), tap.as_str());
        }
        free
    }

    /// Says what is to be copied.
    pub fn describe_tap(&mut self, tap: &TapId, ends: (&str, &str), mirrors: [Option<u32>; 2]) {
        let [mirror_in, mirror_out] = mirrors.map(|id| id.map_or("null".into(), |id| id.to_string()));
        let (source, service) = ends;
        let text = format!(
            "{{\"service_port\": \"{service}\", \"source_port\": \"{source}\", \"mirror_in\": {mirror_in}, \
             \"mirror_out\": {mirror_out}}}"
        );
        self.put(Key::TapInfo(tap.clone()), text);
    }

    pub fn ask_tap(&mut self, tap: &TapId, action: &str) {
        self.put(Key::TapAction(tap.clone()), action);
    }

    /// All of the driver's tap_flow_create: frames of the first port go to the second as well.
    pub fn tap_all(&mut self, tap: &TapId, ends: (&str, &str), mirrors: [Option<u32>; 2]) {
        for mirror in mirrors.into_iter().flatten() {
            assert!(self.take_mirror(tap, mirror));
        }
        self.describe_tap(tap, ends, mirrors);
        self.ask_tap(tap, "plug");
    }

    pub fn tap_status(&self, tap: &TapId) -> Option<&str> {
        self.get(&Key::TapStatus(tap.clone()))
    }

    pub fn mirror_value(&self, mirror: u32) -> Option<&str> {
        self.get(&Key::Mirror(mirror))
    }

    /// Keys of any family but mirror that name the tap flow.
    pub fn keys_of_tap(&self, tap: &TapId) -> usize {
        let of =
            |key: &&Key| matches!(key, Key::TapInfo(t) | Key::TapStatus(t) | Key::TapAction(t) if t == tap);
        self.keys.keys().filter(of).count()
    }

    /// Keys of any family but vhost that name the port.
    pub fn keys_of(&self, port: &PortId) -> usize {
        let of =
            |key: &&Key| matches!(key, Key::BindPort(p) | Key::PortStatus(p) | Key::Action(p) if p == port);
        self.keys.keys().filter(of).count()
    }
}
