//! Every case of the contract, one by one, on a small etcd and a node that records.

mod history;
mod leftovers;
mod oddities;
mod plug;
mod unplug;

use std::collections::BTreeMap;

use super::*;
use crate::testing::{Store, layout, name, plug};
use crate::view::History;

const S: fn(u64) -> Duration = Duration::from_secs;

struct World {
    now: Duration,
    store: Store,
    view: View,
    node: BTreeMap<u32, Plug>,
    /// Every call the node got, in words.
    calls: Vec<String>,
    refuse: bool,
    refuse_unplug: bool,
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
            calls: Vec::new(),
            refuse: false,
            refuse_unplug: false,
            agent: Reconciler::new(layout(), Timing::default()),
            n_up: 0,
            last: Plan::default(),
        }
    }

    fn live(&self) -> Vec<Plug> {
        self.node.values().copied().collect()
    }

    fn list(&mut self) {
        let listing = self.store.listing();
        if self.view.history(&listing) == History::Broken {
            self.agent.history_broken(listing.revision, &self.live());
        }
        self.view.relist(listing);
    }

    fn node_call(
        &mut self,
        call: String,
        change: impl FnOnce(&mut BTreeMap<u32, Plug>),
    ) -> Result<(), String> {
        let refused = self.refuse || (self.refuse_unplug && call.starts_with("unplug"));
        self.calls.push(call);
        if refused {
            return Err("no".into());
        }
        change(&mut self.node);
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
            Action::Plug { port, plug } => {
                let result = self.node_call(format!("plug {plug}"), |node| _ = node.insert(plug.vhost, plug));
                self.agent.plugged(&port, &plug, result.clone(), self.now);
                result.is_ok()
            }
            Action::Unplug { vhost, .. } => {
                let result = self.node_call(format!("unplug {vhost}"), |node| _ = node.remove(&vhost));
                self.agent.unplugged(vhost, result.clone(), self.now);
                result.is_ok()
            }
            Action::PutUp { port, txn } => {
                let done = self.txn(&txn);
                if done {
                    self.n_up += 1;
                    self.agent.said_up(&port, self.now);
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
        assert!(!self.agent.owners.values().any(|owner| owner.as_str() == port));
    }
}
