//! Every case of the contract, one by one, on a small etcd and a node that records.

mod history;
mod leftovers;
mod oddities;
mod plug;
mod taps;
mod unplug;

use std::collections::BTreeMap;

use super::*;
use crate::testing::{N_MIRRORS, Store, layout, name, plug};
use crate::view::History;

fn new_agent() -> Reconciler {
    Reconciler::new(layout(), Timing::default()).with_mirrors(N_MIRRORS)
}

const S: fn(u64) -> Duration = Duration::from_secs;

struct World {
    now: Duration,
    store: Store,
    view: View,
    node: BTreeMap<u32, Plug>,
    taps: BTreeMap<u32, Tap>,
    /// Every call the node got, in words.
    calls: Vec<String>,
    refuse: bool,
    refuse_unplug: bool,
    refuse_untap: bool,
    agent: Reconciler,
    n_up: usize,
    last: Plan,
}

impl World {
    fn new() -> World {
        World {
            now: S(100),
            store: Store::new(),
            view: View::default(),
            node: BTreeMap::new(),
            taps: BTreeMap::new(),
            calls: Vec::new(),
            refuse: false,
            refuse_unplug: false,
            refuse_untap: false,
            agent: new_agent(),
            n_up: 0,
            last: Plan::default(),
        }
    }

    fn live(&self) -> Vec<Wiring> {
        let plugs = self.node.values().copied().map(Wiring::Plug);
        plugs.chain(self.taps.values().copied().map(Wiring::Tap)).collect()
    }

    /// No tap without guests at both its ends.
    fn check_taps(&self) {
        for tap in self.taps.values() {
            assert!(self.node.contains_key(&tap.source) && self.node.contains_key(&tap.service), "{tap}");
        }
    }

    fn list(&mut self) {
        let listing = self.store.listing();
        if self.view.history(&listing) == History::Broken {
            self.agent.history_broken(listing.revision, &self.live());
        }
        self.view.relist(listing);
    }

    fn node_call(&mut self, call: String, change: impl FnOnce(&mut World)) -> Result<(), String> {
        let refused = self.refuse
            || (self.refuse_unplug && call.starts_with("unplug"))
            || (self.refuse_untap && call.starts_with("untap"));
        self.calls.push(call);
        if refused {
            return Err("no".into());
        }
        change(self);
        Ok(())
    }

    fn txn(&mut self, txn: &KeyTxn) -> bool {
        match self.store.txn(txn) {
            Ok(revision) => self.view.apply_txn(txn, revision),
            Err(changes) => {
                for change in changes {
                    self.view.apply(change);
                }
                return false;
            }
        }
        true
    }

    /// Carries one action out. False: plan again.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Wire { subject, wiring } => {
                let result = match wiring {
                    Wiring::Plug(plug) => {
                        self.node_call(format!("plug {plug}"), |w| _ = w.node.insert(plug.vhost, plug))
                    }
                    Wiring::Tap(tap) => {
                        self.node_call(format!("tap {tap}"), |w| _ = w.taps.insert(tap.mirror, tap))
                    }
                };
                self.agent.wired(&subject, &wiring, result.clone(), self.now);
                self.check_taps();
                result.is_ok()
            }
            Action::Unwire { place, .. } => {
                let result = match place {
                    Place::Vhost(vhost) => {
                        self.node_call(format!("unplug {vhost}"), |w| _ = w.node.remove(&vhost))
                    }
                    Place::Mirror(mirror) => {
                        self.node_call(format!("untap {mirror}"), |w| _ = w.taps.remove(&mirror))
                    }
                };
                self.agent.unwired(place, result.clone(), self.now);
                self.check_taps();
                result.is_ok()
            }
            Action::PutUp { subject, txn } => {
                let done = self.txn(&txn);
                if done {
                    self.n_up += 1;
                    self.agent.said_up(&subject, self.now);
                }
                done
            }
            Action::Clean { txn, .. } | Action::Release { txn, .. } => self.txn(&txn),
        }
    }

    /// Lists, then plans and acts until there is nothing to do.
    fn settle(&mut self) {
        self.list();
        for _ in 0..50 {
            let live = self.live();
            self.last = self.agent.plan(self.now, &self.view, &live);
            if self.last.actions.is_empty() {
                return;
            }
            for action in self.last.actions.clone() {
                if !self.act(action) {
                    break;
                }
            }
        }
        panic!("does not settle: {:?}", self.last.actions);
    }

    /// Lets time pass, waking as often as the plan asks to.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake_at) = self.last.wake_at.filter(|at| *at <= end) {
            assert!(wake_at > self.now, "asks to be woken in the past");
            self.now = wake_at;
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn report(&self, port: &str) -> &PortReport {
        self.last
            .ports
            .iter()
            .find(|report| report.port.as_ref().is_some_and(|p| p.as_str() == port))
            .unwrap()
    }

    fn assert_gone(&self, port: &str, vhost: u32) {
        assert_eq!(self.store.keys_of(&name(port)), 0);
        assert_ne!(self.store.slot_value(vhost), Some(port));
        assert!(!self.agent.owners.values().any(|owner| *owner == Subject::Port(name(port))));
    }
}
