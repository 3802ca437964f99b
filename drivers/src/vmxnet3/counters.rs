//! Counters of the device (`UPT1_TxStats`, `UPT1_RxStats`): ten of 64 bits for each queue, which the device writes into
//! the queue's description when it is asked to, and starts from zero at each activation. Summed by the control thread.

use super::area::Area;
use super::config::{QUEUE_BYTES, queue};
use crate::stats::Counter;

const TX_NAMES: [&str; 10] = [
    "TSOPktsTxOK",
    "TSOBytesTxOK",
    "ucastPktsTxOK",
    "ucastBytesTxOK",
    "mcastPktsTxOK",
    "mcastBytesTxOK",
    "bcastPktsTxOK",
    "bcastBytesTxOK",
    "pktsTxError",
    "pktsTxDiscard",
];
const RX_NAMES: [&str; 10] = [
    "LROPktsRxOK",
    "LROBytesRxOK",
    "ucastPktsRxOK",
    "ucastBytesRxOK",
    "mcastPktsRxOK",
    "mcastBytesRxOK",
    "bcastPktsRxOK",
    "bcastBytesRxOK",
    "pktsRxOutOfBuf",
    "pktsRxError",
];

/// What one receiving half found of checksums and tags; it is the only writer.
#[derive(Default)]
pub(super) struct Findings {
    /// Frames with all checksums right.
    pub(super) right: Counter,
    /// Frames with a wrong one; passed on.
    pub(super) wrong: Counter,
    /// Frames the device took a tag off, for good.
    pub(super) stripped: Counter,
}

/// Sums over all queues and all starts.
#[derive(Default)]
pub(super) struct Sums {
    tx: [u64; 10],
    rx: [u64; 10],
    /// What each counter of each queue read last.
    last: Vec<[u64; 10]>,
}

impl Sums {
    /// A device with so many queues starts, its counters at zero.
    pub(super) fn restart(&mut self, n_queues: usize) {
        self.last = vec![[0; 10]; n_queues];
    }

    /// Adds what the first `n_tx` queues, which send, and the others, which receive, counted since.
    pub(super) fn collect(&mut self, queues: &Area, n_tx: usize) {
        for (index, last) in self.last.iter_mut().enumerate() {
            let sums = if index < n_tx { &mut self.tx } else { &mut self.rx };
            for (row, (sum, last)) in sums.iter_mut().zip(last).enumerate() {
                let now = queues.load(index * QUEUE_BYTES + queue::STATS + row * 8);
                // One that went down started anew.
                *sum = sum.wrapping_add(now.checked_sub(*last).unwrap_or(now));
                *last = now;
            }
        }
    }

    /// (name, sum) of each.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        TX_NAMES.into_iter().zip(self.tx).chain(RX_NAMES.into_iter().zip(self.rx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::DmaSpace;

    #[test]
    fn counters_of_all_queues_and_starts_are_summed() {
        let queues = Area::new(&DmaSpace::new(), "test", 3 * QUEUE_BYTES).unwrap();
        let mut sums = Sums::default();
        let pkts = 2 * 8;
        let set = |index: usize, n: u64| queues.store(index * QUEUE_BYTES + queue::STATS + pkts, n);
        let get = |sums: &Sums, name| sums.rows().find(|row| row.0 == name).unwrap().1;
        for start in 1..=2 {
            sums.restart(3);
            (0..3).for_each(|index| set(index, 0));
            set(0, 5);
            set(1, 1 << 40);
            sums.collect(&queues, 1);
            set(2, 7);
            sums.collect(&queues, 1);
            assert_eq!(get(&sums, "ucastPktsTxOK"), 5 * start);
            assert_eq!(get(&sums, "ucastPktsRxOK"), ((1 << 40) + 7) * start);
        }
        set(0, 2);
        sums.collect(&queues, 1);
        assert_eq!(get(&sums, "ucastPktsTxOK"), 12, "one that went down started anew");
    }
}
