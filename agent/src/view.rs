//! What this host's keys are known to say: fed by listings, watch events and our own transactions.
//!
//! Pure state, owned by the agent's task. Every entry carries the revision it is known for, and only
//! newer knowledge replaces it: so a watch event that arrives after our own later transaction, or a
//! listing that was overtaken by an event, never brings an old value back.

use std::collections::BTreeMap;

use crate::keys::{Key, Name, SlotValue};
use crate::status::VhostCount;
use crate::txn::{KeyOp, KeyTxn};

/// One key and what a listing or a read found there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Which key.
    pub key: Key,
    /// Its value.
    pub value: Vec<u8>,
    /// Store revision of its last change.
    pub mod_revision: i64,
}

/// All keys of the host at one revision.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The keys, in any order.
    pub keys: Vec<KeyValue>,
    /// Store revision of the listing.
    pub revision: i64,
    /// The cluster that answered; a restored backup comes back with another id.
    pub cluster_id: u64,
    /// Keys among the host's that are ignored because no port or vhost can have their names.
    pub n_odd_keys: u64,
}

/// One change, from a watch or from reading a key again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: Key,
    /// Its new value; None: there is no such key at this revision.
    pub value: Option<Vec<u8>>,
    /// Store revision of the change (of the read, for a key that is not there).
    pub revision: i64,
}

/// How a listing relates to what was known before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// The same history, further on: a key that is missing was deleted.
    Continued,
    /// The store went back or is another one (restored backup, wiped member): a key that is missing
    /// proves nothing.
    Broken,
}

#[derive(Debug, Clone)]
struct Entry {
    /// None: known to be absent. Remembered until the next listing.
    value: Option<Vec<u8>>,
    revision: i64,
}

/// The known keys of the host.
#[derive(Debug, Default)]
pub struct View {
    entries: BTreeMap<Key, Entry>,
    /// Revision of the last listing: nothing up to here can be news.
    listed: i64,
    revision: i64,
    cluster_id: u64,
}

impl View {
    /// Highest revision anything here is known for; 0 before the first listing.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// How a listing relates to what is known.
    pub fn history(&self, listing: &Listing) -> History {
        let another = self.cluster_id != 0 && self.cluster_id != listing.cluster_id;
        let back = listing.revision < self.revision;
        if another || back { History::Broken } else { History::Continued }
    }

    /// Takes a listing, which is complete and, in the same history, at least as new as all else here.
    pub fn relist(&mut self, listing: Listing) {
        let entry = |kv: KeyValue| (kv.key, Entry { value: Some(kv.value), revision: kv.mod_revision });
        self.entries = listing.keys.into_iter().map(entry).collect();
        self.listed = listing.revision;
        self.revision = listing.revision;
        self.cluster_id = listing.cluster_id;
    }

    /// Takes a change, unless something newer is known already. True if it was news.
    pub fn apply(&mut self, change: Change) -> bool {
        self.revision = self.revision.max(change.revision);
        let known =
            self.entries.get(&change.key).map_or(self.listed, |entry| entry.revision.max(self.listed));
        if change.revision <= known {
            return false;
        }
        self.entries.insert(change.key, Entry { value: change.value, revision: change.revision });
        true
    }

    /// Takes over what a transaction of ours that succeeded at `revision` has written.
    pub fn apply_txn(&mut self, txn: &KeyTxn, revision: i64) {
        for op in &txn.ops {
            let (key, value) = match op {
                KeyOp::Put(key, value) => (key.clone(), Some(value.clone().into_bytes())),
                KeyOp::Delete(key) => (key.clone(), None),
            };
            self.apply(Change { key, value, revision });
        }
    }

    /// Value and revision of a key; None when there is no such key.
    pub fn get(&self, key: &Key) -> Option<(&[u8], i64)> {
        let entry = self.entries.get(key)?;
        Some((entry.value.as_deref()?, entry.revision))
    }

    /// Vhosts of each physical network: how many have a key, and how many of those are nobody's.
    pub fn vhost_counts(&self) -> BTreeMap<Name, VhostCount> {
        let mut counts: BTreeMap<Name, VhostCount> = BTreeMap::new();
        for (key, value, _) in self.iter() {
            let Key::Vhost(slot) = key else { continue };
            let count = counts.entry(slot.physnet.clone()).or_default();
            count.total += 1;
            count.free += u32::from(SlotValue::parse(value) == SlotValue::Free);
        }
        counts
    }

    /// All keys that exist, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &[u8], i64)> {
        self.entries.iter().filter_map(|(key, entry)| Some((key, entry.value.as_deref()?, entry.revision)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action() -> Key {
        Key::Action(Name::new("p").unwrap())
    }

    fn change(value: Option<&str>, revision: i64) -> Change {
        Change { key: action(), value: value.map(|v| v.into()), revision }
    }

    fn listing(revision: i64, cluster_id: u64, keys: &[(&str, i64)]) -> Listing {
        let keys = keys.iter().map(|&(value, mod_revision)| KeyValue {
            key: action(),
            value: value.into(),
            mod_revision,
        });
        Listing { keys: keys.collect(), revision, cluster_id, n_odd_keys: 0 }
    }

    fn value(view: &View) -> Option<&str> {
        view.get(&action()).map(|(value, _)| std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn a_late_event_does_not_bring_back_what_our_transaction_deleted() {
        let mut view = View::default();
        view.relist(listing(10, 1, &[("plug", 9)]));
        let txn = KeyTxn::new(vec![], vec![KeyOp::Delete(action())]);
        view.apply_txn(&txn, 12);
        view.apply(change(Some("unplug"), 11));
        assert_eq!(value(&view), None);
        view.apply(change(Some("plug"), 13));
        assert_eq!(value(&view), Some("plug"));
    }

    #[test]
    fn a_late_event_does_not_undo_what_a_listing_has_shown() {
        let mut view = View::default();
        view.relist(listing(10, 1, &[]));
        assert!(!view.apply(change(Some("plug"), 9)));
        assert_eq!(value(&view), None);
        assert!(view.apply(change(Some("plug"), 11)));
        assert!(!view.apply(change(Some("plug"), 11)));
    }

    #[test]
    fn a_listing_removes_what_it_does_not_have() {
        let mut view = View::default();
        view.relist(listing(10, 1, &[("plug", 9)]));
        view.relist(listing(20, 1, &[]));
        assert_eq!(value(&view), None);
        assert_eq!(view.revision(), 20);
    }

    #[test]
    fn a_lower_revision_or_another_cluster_breaks_the_history() {
        let mut view = View::default();
        assert_eq!(view.history(&listing(10, 1, &[])), History::Continued);
        view.relist(listing(10, 1, &[("plug", 9)]));
        assert_eq!(view.history(&listing(10, 1, &[])), History::Continued);
        assert_eq!(view.history(&listing(11, 2, &[])), History::Broken);
        view.apply(change(Some("unplug"), 12));
        assert_eq!(view.history(&listing(11, 1, &[])), History::Broken);
        view.relist(listing(8, 1, &[("plug", 3)]));
        assert_eq!(value(&view), Some("plug"));
    }
}
