// UNSAFETY: includes the sources of the ring and the depot, which are unsafe for the reasons given there.
//! What threads share, compiled from the same sources against loom: the ring, the depot of free buffers and the count of shared
//! packets of `spp-drivers`, and the hand-over of vrings and guest memory of `spp-vhost`, with stand-ins for what is handed over.
//!
//! Loom runs a model again and again until every interleaving and every value that a
//! relaxed load may see has been tried, and reports a slot touched from two threads at once.

// The hand-over finds the ring under its crate's name.
extern crate self as spp_drivers;

#[path = "../../../drivers/src/dma/depot.rs"]
pub mod depot;
#[path = "../../../drivers/src/dma/handles.rs"]
pub mod handles;
#[path = "../../../vhost/src/handover.rs"]
pub mod handover;
#[path = "../../../drivers/src/prefetch.rs"]
pub mod prefetch;
#[path = "../../../drivers/src/spsc.rs"]
pub mod spsc;
pub mod sync;
pub mod vring;

/// What an announcement names; nothing here makes one.
#[derive(Debug, Clone, Copy)]
pub struct MacAddr(pub [u8; 6]);

/// The log of a migration, as in `vhost/src/dirty.rs`: memory of the frontend's that a core marks.
pub mod dirty {
    /// A reference to its mapping.
    pub struct RingLog(pub crate::sync::Arc<crate::vring::Map>);
}

/// A ring whose indices are about to wrap.
pub fn ring_near_wrap<T: Send>(capacity: usize) -> (spsc::Producer<T>, spsc::Consumer<T>) {
    spsc::ring_from(capacity, usize::MAX)
}

/// Runs `model` in all interleavings with up to three preemptions: where such bugs show, if there are any.
pub fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
