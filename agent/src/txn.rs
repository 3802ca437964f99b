//! A transaction on this host's keys, as plain data: what must still hold, and what is written then.
//!
//! Built by the reconciler, carried out by [`crate::link`]. Keys are typed, so no transaction can
//! name a key of another host.

use crate::keys::{FREE, Key, PortId, SlotId, UP};

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key was last changed at this revision.
    Unchanged(Key, i64),
    /// There is no such key.
    Absent(Key),
    /// The key has this value.
    Value(Key, String),
}

impl Guard {
    /// The key the condition is about.
    pub fn key(&self) -> &Key {
        match self {
            Guard::Unchanged(key, _) | Guard::Absent(key) | Guard::Value(key, _) => key,
        }
    }

    /// The key is as it was seen: at this revision, or not there.
    pub fn as_seen(key: Key, revision: Option<i64>) -> Guard {
        match revision {
            Some(revision) => Guard::Unchanged(key, revision),
            None => Guard::Absent(key),
        }
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOp {
    /// Set the key.
    Put(Key, String),
    /// Remove the key, if it is there.
    Delete(Key),
}

/// All writes happen when all guards hold, none otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTxn {
    /// What must hold.
    pub guards: Vec<Guard>,
    /// What is written.
    pub ops: Vec<KeyOp>,
}

/// Revisions of a port's action and bind_port keys that a decision was based on; None: not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Revision of the action key.
    pub action: Option<i64>,
    /// Revision of the bind_port key.
    pub bind_port: Option<i64>,
}

impl Seen {
    fn guards(self, port: &PortId) -> Vec<Guard> {
        vec![
            Guard::as_seen(Key::Action(port.clone()), self.action),
            Guard::as_seen(Key::BindPort(port.clone()), self.bind_port),
        ]
    }
}

impl KeyTxn {
    /// A transaction from its parts.
    pub fn new(guards: Vec<Guard>, ops: Vec<KeyOp>) -> KeyTxn {
        KeyTxn { guards, ops }
    }

    /// Says `up`, if the port still asks for what was done and still has its vhost.
    pub fn put_up(port: &PortId, slot: &SlotId, seen: Seen) -> KeyTxn {
        let mut guards = seen.guards(port);
        guards.push(Guard::Value(Key::Vhost(slot.clone()), port.to_string()));
        KeyTxn::new(guards, vec![KeyOp::Put(Key::PortStatus(port.clone()), UP.into())])
    }

    /// Gives back every slot the port holds and removes its keys, if nobody has changed them since.
    pub fn clean(port: &PortId, slots: &[SlotId], seen: Seen) -> KeyTxn {
        let mut guards = seen.guards(port);
        let held = slots.iter().map(|slot| Key::Vhost(slot.clone()));
        guards.extend(held.clone().map(|key| Guard::Value(key, port.to_string())));
        let mut ops: Vec<KeyOp> = held.map(|key| KeyOp::Put(key, FREE.into())).collect();
        ops.extend([
            KeyOp::Delete(Key::BindPort(port.clone())),
            KeyOp::Delete(Key::Action(port.clone())),
            KeyOp::Delete(Key::PortStatus(port.clone())),
        ]);
        KeyTxn::new(guards, ops)
    }

    /// Gives one slot back whose value has not changed since `revision`. With an owner named, its
    /// bind_port must be as seen too.
    pub fn release(slot: &SlotId, revision: i64, owner: Option<(&PortId, Seen)>) -> KeyTxn {
        let key = Key::Vhost(slot.clone());
        let mut guards = vec![Guard::Unchanged(key.clone(), revision)];
        if let Some((port, seen)) = owner {
            guards.extend(seen.guards(port));
        }
        KeyTxn::new(guards, vec![KeyOp::Put(key, FREE.into())])
    }

    /// The keys the guards are about: read again when the transaction did not go through.
    pub fn guarded_keys(&self) -> impl Iterator<Item = &Key> {
        self.guards.iter().map(Guard::key)
    }
}
