//! The control node's steps, as its drivers do them. Each brings an agent back that stayed down, right after it.

use crate::dataplane::Plug;
use crate::keys::Key;
use crate::testing::name;

use super::World;

impl World {
    pub fn take(&mut self, port: &str, vhost: u32) -> bool {
        let taken = self.store.take(&name(port), vhost);
        if taken {
            self.tenants.insert(vhost, name(port));
            // A new tenancy: what was asked in an earlier one gives no right to this vhost.
            self.asked.plugs.entry(name(port)).or_default().retain(|plug| plug.vhost != vhost);
        }
        self.start_agent();
        taken
    }

    pub fn bind(&mut self, port: &str, plug: Plug) {
        self.asked.plugs.entry(name(port)).or_default().push(plug);
        self.store.bind(&name(port), &plug);
        self.start_agent();
    }

    pub fn ask(&mut self, port: &str, action: &str) {
        self.store.ask(&name(port), action);
        self.start_agent();
    }

    /// The driver's whole bind, the agent working between its steps.
    pub fn bind_all(&mut self, port: &str, plug: Plug) {
        assert!(self.take(port, plug.vhost), "vhost {} is not free", plug.vhost);
        self.pump();
        self.bind(port, plug);
        self.pump();
        self.ask(port, "plug");
        self.pump();
    }

    /// The TaaS driver's whole tap_flow_create, the agent working between its steps. False: no mirror.
    pub fn tap_all(&mut self, tap: &str, ends: (&str, &str), mirrors: [Option<u32>; 2]) -> bool {
        for mirror in mirrors.into_iter().flatten() {
            if !self.store.take_mirror(&name(tap), mirror) {
                return false;
            }
            self.start_agent();
            self.pump();
        }
        self.asked.taps.insert(name(tap), (name(ends.0), name(ends.1)));
        self.store.describe_tap(&name(tap), ends, mirrors);
        self.start_agent();
        self.pump();
        self.ask_tap(tap, "plug");
        self.pump();
        true
    }

    pub fn ask_tap(&mut self, tap: &str, action: &str) {
        self.store.ask_tap(&name(tap), action);
        self.start_agent();
    }

    /// The driver's unbind: only if there is an action.
    pub fn unbind(&mut self, port: &str) {
        if self.store.get(&Key::Action(name(port))).is_some() {
            self.ask(port, "unplug");
        }
        self.start_agent();
        self.pump();
    }
}
