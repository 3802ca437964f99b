//! Worker threads: one per core, pinned, running its plan for ever.
//!
//! [`Worker`] is the control thread's handle. A change goes to the thread through a ring, takes
//! effect between two bursts and comes back with the old plan and the halves that left; whoever
//! waits for that has a deadline.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use spp_drivers::dma::Pool;
use spp_drivers::spsc::{self, Consumer, Producer};

use crate::engine::{Activity, Engine};
use crate::handover::{Parcel, SlotBook};
use crate::idle::{Idle, IdlePolicy};
use crate::plan::{Change, Done};
use crate::stats::{CycleCounters, Cycles};

/// Changes that can be under way to one worker; more wait with the control thread.
const MAILBOX_SLOTS: usize = 8;

/// Turns between two services (a power of two) of the halves' control sides. A turn takes 30 ns (idle) to some
/// 10 us (32 packets each way), so halves are served at least every millisecond.
const CONTROL_TURNS: u32 = 64;

/// How long a new thread may take to say that it runs.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// Which core, and how.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// CPU number to be pinned to.
    pub core: usize,
    /// True: not pinned, and yields or sleeps when idle, so that any number of workers share the
    /// CPUs there are.
    pub fold: bool,
    /// What it does when it is idle; a folded one yields and sleeps whatever this says.
    pub idle: IdlePolicy,
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
    mailbox: Producer<Box<Parcel>>,
    replies: Consumer<Box<Parcel>>,
    book: SlotBook,
    /// Packed, but the mailbox was full.
    unsent: VecDeque<Box<Parcel>>,
    /// Packed and not acknowledged.
    n_open: usize,
    late: Vec<Done>,
    cycles: Arc<CachePadded<CycleCounters>>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread, pins it (unless folded) and checks that it runs where it should. Its
    /// packets come from `pool`.
    pub fn spawn(config: WorkerConfig, pool: &Pool) -> Result<Worker, WorkerError> {
        let (mailbox, orders) = spsc::ring(MAILBOX_SLOTS);
        let (acks, replies) = spsc::ring(MAILBOX_SLOTS);
        let (started, start) = mpsc::sync_channel(1);
        let (core, fold, pool) = (config.core, config.fold, pool.clone());
        let policy = if fold { IdlePolicy::Fold } else { config.idle };
        let body = move || {
            let placed = if fold { Ok(()) } else { pin(core) };
            let engine = Engine::new(&pool);
            drop(pool);
            let go = placed.is_ok();
            let heard = started.send(placed.map(|()| engine.share_cycles()));
            if go && heard.is_ok() {
                serve(engine, orders, acks, policy);
            }
        };
        let thread = thread::Builder::new().name(config.name).spawn(body);
        let thread = thread.map_err(|source| WorkerError::Thread { core, source })?;
        let cycles = start.recv_timeout(START_DEADLINE).map_err(|_| WorkerError::Core {
            core,
            why: format!("its thread did not get to run within {} s", START_DEADLINE.as_secs()),
        })??;
        Ok(Worker {
            core,
            mailbox,
            replies,
            book: SlotBook::default(),
            unsent: VecDeque::new(),
            n_open: 0,
            late: Vec::new(),
            cycles,
            thread,
        })
    }

    /// Its core.
    pub fn core(&self) -> usize {
        self.core
    }

    /// Hands over a plan with its halves and waits until it is in force. After a timeout the worker
    /// still has what was sent, and [`late`](Self::late) returns what it gives back.
    /// Panics when a half would land on top of another, or a plan contradicts itself.
    pub fn change(&mut self, change: Change, deadline: Duration) -> Result<Done, WorkerError> {
        let parcel = self.book.pack(change, false);
        self.send_and_wait(parcel, deadline)
    }

    /// Acknowledgements that came after their caller had given up.
    pub fn late(&mut self) -> Vec<Done> {
        self.exchange();
        std::mem::take(&mut self.late)
    }

    /// Where the core's cycles went since the start.
    pub fn busy(&self) -> Cycles {
        self.cycles.get()
    }

    /// Ends the thread and returns every half it had; those of late acknowledgements too.
    pub fn stop(mut self, deadline: Duration) -> Result<Done, WorkerError> {
        let parcel = self.book.pack_end();
        let mut done = self.send_and_wait(parcel, deadline)?;
        for late in self.late.drain(..) {
            done.rx_out.extend(late.rx_out);
            done.tx_out.extend(late.tx_out);
        }
        // The acknowledgement was the thread's last act but returning.
        let _ = self.thread.join();
        Ok(done)
    }

    fn send_and_wait(&mut self, parcel: Box<Parcel>, deadline: Duration) -> Result<Done, WorkerError> {
        let generation = parcel.change.plan.generation;
        self.unsent.push_back(parcel);
        self.n_open += 1;
        let (start, mut pause) = (Instant::now(), Duration::from_micros(5));
        loop {
            let ended = self.thread.is_finished();
            self.exchange();
            if self.n_open == 0 {
                // Acknowledgements come in order: the last one is ours.
                return Ok(self.late.pop().expect("the last open parcel has just come back"));
            }
            if ended {
                return Err(WorkerError::Gone { core: self.core });
            }
            let waited = start.elapsed();
            if waited >= deadline {
                let waited_ms = waited.as_millis() as u64;
                return Err(WorkerError::Timeout { core: self.core, generation, waited_ms });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(500));
        }
    }

    /// Sends what waits and takes in what came back.
    fn exchange(&mut self) {
        // Never more under way than the ring of acknowledgements holds.
        while self.n_open - self.unsent.len() < MAILBOX_SLOTS {
            let Some(parcel) = self.unsent.pop_front() else { break };
            let sent = self.mailbox.push(parcel);
            assert!(sent.is_ok(), "the mailbox holds as many as may be under way");
        }
        while let Some(parcel) = self.replies.pop() {
            self.n_open -= 1;
            self.late.push(parcel.done);
        }
    }
}

/// The thread's life: turns, with a look into the mailbox before each.
fn serve(
    mut engine: Engine,
    mut orders: Consumer<Box<Parcel>>,
    mut acks: Producer<Box<Parcel>>,
    policy: IdlePolicy,
) {
    let mut idle = Idle::default();
    let mut turns = 0u32;
    loop {
        if let Some(mut parcel) = orders.pop() {
            engine.apply(&mut parcel);
            let last = parcel.last;
            // The control thread counts, so there is room unless it is gone.
            let taken = acks.push(parcel);
            if last || taken.is_err() {
                return;
            }
            idle = Idle::default();
        }
        let activity = engine.turn();
        turns = turns.wrapping_add(1);
        let mut service = turns & (CONTROL_TURNS - 1) == 0;
        match activity {
            Activity::Useful => idle = Idle::default(),
            _ => service |= idle.rest(policy, activity == Activity::Blocked),
        }
        if service {
            engine.poll_control();
            if acks.is_abandoned() {
                return;
            }
        }
    }
}

/// Pins the calling thread to one core and checks that the OS agrees.
fn pin(core: usize) -> Result<(), WorkerError> {
    let error = |why: String| WorkerError::Core { core, why };
    if core >= CpuSet::MAX_CPU {
        return Err(error(format!("CPU numbers end at {}", CpuSet::MAX_CPU - 1)));
    }
    let mut wanted = CpuSet::new();
    wanted.set(core);
    sched_setaffinity(None, &wanted).map_err(|os| match os {
        rustix::io::Errno::INVAL => error("it is offline, or this process may not use it".to_owned()),
        other => error(format!("the thread can't be pinned: {other}")),
    })?;
    let allowed = sched_getaffinity(None).map_err(|os| error(format!("its affinity can't be read: {os}")))?;
    if allowed != wanted || sched_getcpu() != core {
        return Err(error(format!("pinned there, but running on CPU {}", sched_getcpu())));
    }
    Ok(())
}
