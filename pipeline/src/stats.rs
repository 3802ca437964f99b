//! Counters of a component and of a core: what went in, out and under, and where the cycles went.
//!
//! Written by the worker thread that runs the component, read by anyone. Packet counts are
//! gathered in plain variables during a turn and stored once at its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spp_drivers::BURST;
use spp_drivers::stats::{Counter, DropReason, N_REASONS};

use crate::engine::{Activity, N_ACTIVITIES};

/// Upper bounds of the buckets of [`ComponentSnapshot::bursts`], in packets.
pub const BURST_BUCKETS: [usize; 6] = [1, 4, 8, 16, 31, BURST];

/// Bucket of a burst of n packets: one look-up in place of a search.
const BUCKET_OF: [u8; BURST + 1] = {
    let mut table = [0; BURST + 1];
    let (mut n, mut bucket) = (0, 0);
    while n <= BURST {
        if n > BURST_BUCKETS[bucket] {
            bucket += 1;
        }
        table[n] = bucket as u8;
        n += 1;
    }
    table
};

/// Where the cycles of a component or of a core went, in TSC ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cycles {
    /// Turns that moved or dropped a packet.
    pub useful: u64,
    /// Turns that found nothing to do.
    pub idle: u64,
    /// Turns that moved nothing because the output was full.
    pub blocked: u64,
}

impl Cycles {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.useful + self.idle + self.blocked
    }
}

/// Shared form of [`Cycles`]; one writer.
#[derive(Debug, Default)]
pub(crate) struct CycleCounters([Counter; N_ACTIVITIES]);

impl CycleCounters {
    #[inline(always)]
    pub(crate) fn add(&self, activity: Activity, ticks: u64) {
        self.0[activity as usize].add(ticks);
    }

    /// Ticks of each [`Activity`].
    #[inline(always)]
    pub(crate) fn add_all(&self, ticks: [u64; N_ACTIVITIES]) {
        self.0.iter().zip(ticks).for_each(|(counter, ticks)| counter.add(ticks));
    }

    pub(crate) fn get(&self) -> Cycles {
        let ticks = |activity: Activity| self.0[activity as usize].get();
        Cycles {
            useful: ticks(Activity::Useful),
            idle: ticks(Activity::Idle),
            blocked: ticks(Activity::Blocked),
        }
    }
}

/// The counters of one component. They belong to the component, not to a plan: hand the same
/// `Arc` to each plan the component appears in. Always true between two turns:
/// `rx_packets + copies = tx_packets + drops + held`, plus what came or went with a plan change.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ComponentStats {
    /// Packets taken from all inputs.
    pub rx_packets: Counter,
    /// Packets handed to all outputs.
    pub tx_packets: Counter,
    /// Packets made of others: copies of group frames, of mirrors, and all but the last segment of a long frame.
    pub copies: Counter,
    /// Long frames cut into segments in software.
    pub segmented: Counter,
    /// Checksums completed in software.
    pub checksummed: Counter,
    /// Panics in its turns.
    pub panics: Counter,
    drops: [Counter; N_REASONS],
    held: AtomicU64,
    bursts: [Counter; BURST_BUCKETS.len()],
    pub(crate) cycles: CycleCounters,
    failed: AtomicBool,
}

impl ComponentStats {
    /// New counters at zero.
    pub fn shared() -> Arc<ComponentStats> {
        Arc::new(ComponentStats::default())
    }

    /// Drops for one reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Packets waiting for a full output now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// True after a panic in the component's turn, until the next plan.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Where its cycles went.
    pub fn cycles(&self) -> Cycles {
        self.cycles.get()
    }

    /// A copy for status.
    pub fn snapshot(&self) -> ComponentSnapshot {
        let counted = DropReason::ALL.iter().map(|&r| (r.name().to_owned(), self.drops(r)));
        ComponentSnapshot {
            rx_packets: self.rx_packets.get(),
            tx_packets: self.tx_packets.get(),
            copies: self.copies.get(),
            segmented: self.segmented.get(),
            checksummed: self.checksummed.get(),
            drops: counted.filter(|d| d.1 > 0).collect(),
            held: self.held(),
            bursts: self.bursts.each_ref().map(Counter::get),
            cycles: self.cycles(),
            failed: self.failed(),
        }
    }

    #[inline(always)]
    pub(crate) fn dropped(&self, reason: DropReason, n: u64) {
        self.drops[reason as usize].add(n);
    }

    #[inline(always)]
    pub(crate) fn received_burst(&self, n: usize) {
        self.bursts[usize::from(BUCKET_OF[n.min(BURST)])].add(1);
    }

    #[inline(always)]
    pub(crate) fn set_held(&self, held: u64) {
        self.held.store(held, Ordering::Relaxed);
    }

    pub(crate) fn set_failed(&self, failed: bool) {
        self.failed.store(failed, Ordering::Relaxed);
    }
}

/// The counters of a component as read at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ComponentSnapshot {
    /// Packets taken from all inputs.
    pub rx_packets: u64,
    /// Packets handed to all outputs.
    pub tx_packets: u64,
    /// Packets made of others: copies of group frames, of mirrors, and all but the last segment of a long frame.
    pub copies: u64,
    /// Long frames cut into segments in software, because their receiver can't.
    pub segmented: u64,
    /// Checksums completed in software, because their receiver can't.
    pub checksummed: u64,
    /// Drops by reason name; zeros are left out. Each is also counted at the edge it happened on.
    pub drops: BTreeMap<String, u64>,
    /// Packets waiting for a full output.
    pub held: u64,
    /// Bursts received, by size: see [`BURST_BUCKETS`].
    pub bursts: [u64; BURST_BUCKETS.len()],
    /// Where the cycles went.
    pub cycles: Cycles,
    /// The component panicked and is skipped until the next plan.
    pub failed: bool,
}

impl ComponentSnapshot {
    /// Drops for all reasons together.
    pub fn total_drops(&self) -> u64 {
        self.drops.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_are_counted_in_the_bucket_of_their_size() {
        let stats = ComponentStats::default();
        for n in [1, 2, 4, 5, 8, 9, 16, 17, 31, 32, 32] {
            stats.received_burst(n);
        }
        assert_eq!(stats.snapshot().bursts, [1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn snapshot_names_only_the_reasons_that_happened() {
        let stats = ComponentStats::default();
        stats.dropped(DropReason::Runt, 3);
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.drops, BTreeMap::from([("runt".to_owned(), 3)]));
        assert_eq!(snapshot.total_drops(), 3);
    }
}
