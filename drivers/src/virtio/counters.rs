//! What the driver counts. virtio-net has no counters of its own, so these are events the control half saw, and what
//! the receiving halves found in front of frames.

use std::sync::Arc;

use crate::stats::Counter;

/// Events, counted by the control thread.
#[derive(Default)]
pub(super) struct Events {
    pub(super) starts: u64,
    pub(super) link_interrupts: u64,
    pub(super) config_changes: u64,
    pub(super) faults: u64,
    pub(super) promiscuous_fallbacks: u64,
    pub(super) rss_refusals: u64,
    pub(super) invalid_mac: u64,
}

/// What one receiving half found; it is the only writer.
#[derive(Default)]
pub(super) struct Checksums {
    /// Frames the device vouches for.
    pub(super) right: Counter,
    /// Frames that came with work undone.
    pub(super) undone: Counter,
}

/// (name, value) of all.
pub(super) fn rows(events: &Events, checksums: &[Arc<Checksums>]) -> Vec<(&'static str, u64)> {
    let sum = |of: fn(&Checksums) -> u64| checksums.iter().map(|c| of(c)).sum::<u64>();
    vec![
        ("rx_checksums_right", sum(|c| c.right.get())),
        ("rx_checksums_undone", sum(|c| c.undone.get())),
        ("starts", events.starts),
        ("link_interrupts", events.link_interrupts),
        ("config_changes", events.config_changes),
        ("fault_reports", events.faults),
        ("promiscuous_fallbacks", events.promiscuous_fallbacks),
        ("rss_refusals", events.rss_refusals),
        ("invalid_mac", events.invalid_mac),
    ]
}
