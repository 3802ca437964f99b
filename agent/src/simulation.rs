//! Drivers, etcd, node and agent in one deterministic world, where anything may fail at any step.
//!
//! The agent is the real one but for its sockets: [`crate::machine::Machine`]. Each of its commands, every
//! etcd operation and every call into the node, is a point where it can crash, alone or with its
//! node, or lose the connection, before or after the command has done its work, or while it is on
//! its way. [`rows`] has every crash point of every short life of a port, [`outages`] what etcd can
//! suffer, [`late_watch`] every start of the driver's watch, [`random`] long lives from seeds. [`world`] is the model, and checks after every step:
//!
//! * `up` is put only while the port's wiring is live and its request stands;
//! * a slot is given back only when nothing is wired there and nobody who holds it asks for it;
//! * what comes in for a port reaches that port's guest or nobody;
//! * no restart and no outage takes wiring away that is still asked for, without proof;
//! * the agent comes to rest within a bounded number of commands.
//!
//! [`planted`] has agents that are broken on purpose, each of which must trip one of these.

mod late_watch;
mod model;
mod outages;
mod planted;
mod random;
mod rows;
mod world;
