//! A transaction on this host's keys, as plain data: what must still hold, and what is written then.
//!
//! Built by the reconciler, carried out by [`crate::link`]. Keys are typed, so no transaction can
//! name a key of another host.

use crate::keys::{FREE, Key, Subject, UP};

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

/// Revisions of a subject's action and info keys that a decision was based on; None: not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Revision of the action (tap_action) key.
    pub action: Option<i64>,
    /// Revision of the bind_port (tap_info) key.
    pub info: Option<i64>,
}

impl Seen {
    fn guards(self, subject: &Subject) -> Vec<Guard> {
        vec![Guard::as_seen(subject.action(), self.action), Guard::as_seen(subject.info(), self.info)]
    }
}

impl KeyTxn {
    /// A transaction from its parts.
    pub fn new(guards: Vec<Guard>, ops: Vec<KeyOp>) -> KeyTxn {
        KeyTxn { guards, ops }
    }

    /// Says `up`, if it still asks for what was done and still has its slots.
    pub fn put_up(subject: &Subject, slots: &[Key], seen: Seen) -> KeyTxn {
        let mut guards = seen.guards(subject);
        guards.extend(slots.iter().map(|slot| held_by(slot, subject)));
        KeyTxn::new(guards, vec![KeyOp::Put(subject.status(), UP.into())])
    }

    /// Gives back every slot it holds and removes its keys, if nobody has changed them since.
    pub fn clean(subject: &Subject, slots: &[Key], seen: Seen) -> KeyTxn {
        let mut guards = seen.guards(subject);
        guards.extend(slots.iter().map(|slot| held_by(slot, subject)));
        let mut ops: Vec<KeyOp> = slots.iter().map(|slot| KeyOp::Put(slot.clone(), FREE.into())).collect();
        ops.extend([subject.info(), subject.action(), subject.status()].map(KeyOp::Delete));
        KeyTxn::new(guards, ops)
    }

    /// Gives one slot back whose value has not changed since `revision`. With an owner named, its
    /// action and info must be as seen too.
    pub fn release(slot: &Key, revision: i64, owner: Option<(&Subject, Seen)>) -> KeyTxn {
        let mut guards = vec![Guard::Unchanged(slot.clone(), revision)];
        if let Some((subject, seen)) = owner {
            guards.extend(seen.guards(subject));
        }
        KeyTxn::new(guards, vec![KeyOp::Put(slot.clone(), FREE.into())])
    }

    /// The keys the guards are about: read again when the transaction did not go through.
    pub fn guarded_keys(&self) -> impl Iterator<Item = &Key> {
        self.guards.iter().map(Guard::key)
    }
}

fn held_by(slot: &Key, subject: &Subject) -> Guard {
    Guard::Value(slot.clone(), subject.id().to_string())
}
