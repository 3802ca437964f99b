//! Worker threads: one per core, pinned, running its plan for ever.
//!
//! [`Worker`] is the control thread's handle. A change goes to the thread through a ring, takes
//! effect between two bursts and comes back with the old plan and the halves that left; whoever
//! waits for that has a deadline.

use std::time::Duration;

use spp_drivers::dma::Pool;

use crate::plan::{Change, Done};
use crate::stats::Cycles;

/// Which core, and how.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// CPU number to be pinned to.
    pub core: usize,
    /// True: not pinned, and yields or sleeps when idle, so that any number of workers share the
    /// CPUs there are.
    pub fold: bool,
    /// Thread name; the kernel keeps 15 bytes of it. `spp-core-N` is usual.
    pub name: String,
}

/// What can go wrong with a worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The OS does not let the thread run there.
    #[error(
        "core {core}: {why} (choose cores from those online in /sys/devices/system/cpu/online and allowed by this \
         process's cpuset, or run with --fold-cores)"
    )]
    Core {
        /// The core asked for.
        core: usize,
        /// What the OS said.
        why: String,
    },
    /// No thread.
    #[error("core {core}: no thread: {source} (raise the limit on processes, ulimit -u)")]
    Thread {
        /// The core asked for.
        core: usize,
        /// What the OS said.
        source: std::io::Error,
    },
    /// The worker did not answer in time. It still owns what was sent to it; a later answer is kept
    /// for [`Worker::late`].
    #[error("core {core}: no acknowledgement of plan {generation} within {waited_ms} ms")]
    Timeout {
        /// The worker's core.
        core: usize,
        /// The plan sent.
        generation: u64,
        /// How long the caller waited.
        waited_ms: u64,
    },
    /// The thread has ended.
    #[error("core {core}: the worker thread has ended")]
    Gone {
        /// The worker's core.
        core: usize,
    },
}

/// The control thread's handle of a worker thread.
pub struct Worker {
    core: usize,
}

impl Worker {
    /// Starts the thread, pins it (unless folded) and checks that it runs where it should. Its packets come from `pool`.
    pub fn spawn(config: WorkerConfig, pool: &Pool) -> Result<Worker, WorkerError> {
        let _ = (config, pool);
        unimplemented!()
    }

    /// Its core.
    pub fn core(&self) -> usize {
        self.core
    }

    /// Hands over a plan with its halves and waits until it is in force.
    pub fn change(&mut self, change: Change, deadline: Duration) -> Result<Done, WorkerError> {
        let _ = (change, deadline);
        unimplemented!()
    }

    /// Acknowledgements that came after their caller had given up.
    pub fn late(&mut self) -> Vec<Done> {
        unimplemented!()
    }

    /// Where the core's cycles went since the start.
    pub fn busy(&self) -> Cycles {
        unimplemented!()
    }

    /// Ends the thread and returns every half it had.
    pub fn stop(self, deadline: Duration) -> Result<Done, WorkerError> {
        let _ = deadline;
        unimplemented!()
    }
}
