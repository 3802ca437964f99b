//! What lives that ended between two steps leave in the keys, collected after a grace.

use super::*;
use crate::keys::{Request, SlotValue};
use crate::state::holder;

impl Reconciler {
    /// Ports and tap flows whose keys are the rest of something.
    pub(super) fn leftover_subjects(&mut self, pass: &mut Pass) {
        for (subject, keys) in &pass.state.subjects {
            if self.wired_by(subject).next().is_some() || pass.any_wired(&keys.slots, &self.shape) {
                continue;
            }
            let wire = matches!(pass.verdicts[subject], Verdict::Wire { .. });
            let of_gone_port = || {
                let is_gone = |port| !pass.state.is_bound(port);
                keys.tap().is_some_and(|tap| is_gone(&tap.source_port) || is_gone(&tap.service_port))
            };
            let (key, revision, leftover) = match (&keys.info, &keys.action) {
                (_, Some((Request::Unplug, _))) => continue,
                (None, None) if keys.status.is_some() => {
                    let only_status = SubjectKeys { status: keys.status, ..SubjectKeys::default() };
                    pass.plan.actions.push(clean(subject, &only_status, Some("status without a request")));
                    continue;
                }
                (None, Some((_, revision))) => (subject.action(), *revision, "action without what it is for"),
                (Some((_, revision)), None) if !wire => (subject.info(), *revision, "request without action"),
                (Some((_, revision)), _) if of_gone_port() => {
                    (subject.info(), *revision, "tap of a port that is gone")
                }
                _ => continue,
            };
            if self.left_over_since(key, revision, pass) >= self.timing.leak_grace {
                pass.plan.actions.push(clean(subject, keys, Some(leftover)));
            }
        }
    }

    /// Slots whose owner is not bound to them: the driver died after taking one.
    pub(super) fn leftover_slots(&mut self, pass: &mut Pass) {
        for (slot, (value, revision)) in &pass.state.slots {
            let wired = pass.any_wired(std::slice::from_ref(slot), &self.shape);
            let owner;
            let (owner, leftover) = match value {
                _ if wired => continue,
                SlotValue::Free => continue,
                SlotValue::Garbled => (None, "held by nobody possible"),
                SlotValue::Held(id) => {
                    owner = holder(slot, id);
                    let keys = &pass.state.subjects[&owner];
                    let named = |key: &Key| match key {
                        Key::Vhost(slot) => keys.may_name(Place::Vhost(slot.vhost)),
                        Key::Mirror(mirror) => keys.may_name(Place::Mirror(*mirror)),
                        _ => None,
                    };
                    match (named(slot), &keys.action) {
                        (None, None) => (Some((&owner, keys.seen())), "held by an owner without keys"),
                        (Some(false), _) => (Some((&owner, keys.seen())), "held by an owner bound elsewhere"),
                        _ => continue,
                    }
                }
            };
            if self.left_over_since(slot.clone(), *revision, pass) >= self.timing.leak_grace {
                let txn = KeyTxn::release(slot, *revision, owner);
                pass.plan.actions.push(Action::Release { slot: slot.clone(), txn, leftover });
            }
        }
    }

    /// For how long the key has looked left over at this revision; plans again when the grace is up.
    fn left_over_since(&mut self, key: Key, revision: i64, pass: &mut Pass) -> Duration {
        let suspect = self.suspects.entry(key.clone()).or_insert((revision, pass.now));
        if suspect.0 != revision {
            *suspect = (revision, pass.now);
        }
        let since = suspect.1;
        pass.suspects.insert(key);
        for threshold in [self.timing.orphan_report, self.timing.leak_grace] {
            if pass.now < since + threshold {
                pass.plan.wake(since + threshold);
            }
        }
        pass.now - since
    }
}
