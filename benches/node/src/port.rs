//! Our backend for the vhost rows: one pinned thread that polls vhost ports, as testpmd's forwarding thread does.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{Passed, RxQueue, TxQueue};
use spp_drivers::{Burst, tsc};
use spp_vhost::{FromGuest, PortConfig, PortState, Role, ToGuest, VhostPort};

use crate::cpu::{self, Watched};
use crate::runner::Result;

/// What a measured program between two ends can do.
pub trait Backend {
    /// Forwards from now on.
    fn go(&mut self) -> Result<()>;
    /// Counts cycles from here.
    fn mark(&mut self) -> Result<()>;
    /// Cycles per packet since the mark, in turns that had packets.
    fn cycles_per_packet(&mut self) -> Result<Option<f64>>;
    /// Leaves its CPU alone.
    fn halt(&mut self) -> Result<()>;
    /// Its polling threads.
    fn threads(&self) -> Vec<Watched>;
}

/// What the thread does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Job {
    /// One port: everything back with its addresses swapped.
    MacSwap,
    /// Two ports: from each to the other, untouched, as a forward component does it: past the packet buffers.
    Cross,
    /// The same through packet buffers, as it is done where more than that is asked of a frame.
    CrossBuffered,
}

impl Job {
    /// Ports it takes.
    pub fn n_ports(self) -> usize {
        if self == Job::MacSwap { 1 } else { 2 }
    }
}

#[derive(Default)]
struct Shared {
    on: AtomicBool,
    quit: AtomicBool,
    n_running: AtomicUsize,
    packets: AtomicU64,
    ticks: AtomicU64,
}

/// The thread's handle.
pub struct Ours {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tid: u32,
    mark: (u64, u64),
}

type Port = (VhostPort, ToGuest, FromGuest);

impl Ours {
    /// Listens on a socket for each port of the job.
    pub fn start(cpu: usize, job: Job, sockets: &[PathBuf]) -> Result<Ours> {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 8192 }).map_err(|e| e.to_string())?;
        let open = |path: &PathBuf| {
            let config = PortConfig::new("vhost", path, Role::Server);
            VhostPort::open(config, &pool).map_err(|error| error.to_string())
        };
        let ports = sockets.iter().map(open).collect::<Result<Vec<Port>>>()?;
        let (shared, (tell, told)) = (Arc::new(Shared::default()), mpsc::channel());
        let (theirs, cache) = (shared.clone(), pool.cache());
        let body = move || {
            let pinned = cpu::pin(cpu).map(|()| cpu::tid());
            let go = pinned.is_ok();
            if tell.send(pinned).is_ok() && go {
                poll(&theirs, job, ports, cache);
            }
        };
        let thread = std::thread::Builder::new().name("bench-backend".to_owned()).spawn(body);
        let thread = Some(thread.map_err(|error| error.to_string())?);
        let tid = told.recv().map_err(|_| "the backend's thread died")??;
        Ok(Ours { shared, thread, tid, mark: (0, 0) })
    }

    /// Waits until all ports run.
    pub fn wait_running(&self, n_ports: usize) -> Result<()> {
        for _ in 0..10_000 {
            if self.shared.n_running.load(Ordering::Relaxed) == n_ports {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err("the frontend did not start its rings within 10 s".to_owned())
    }

    fn counted(&self) -> (u64, u64) {
        (self.shared.packets.load(Ordering::Relaxed), self.shared.ticks.load(Ordering::Relaxed))
    }
}

impl Backend for Ours {
    fn go(&mut self) -> Result<()> {
        self.shared.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn mark(&mut self) -> Result<()> {
        self.mark = self.counted();
        Ok(())
    }

    fn cycles_per_packet(&mut self) -> Result<Option<f64>> {
        let ((packets, ticks), (packets_then, ticks_then)) = (self.counted(), self.mark);
        let n = packets - packets_then;
        Ok((n > 0).then(|| (ticks - ticks_then) as f64 / n as f64))
    }

    fn halt(&mut self) -> Result<()> {
        self.shared.on.store(false, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    fn threads(&self) -> Vec<Watched> {
        vec![Watched::thread(std::process::id(), self.tid)]
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn poll(shared: &Shared, job: Job, mut ports: Vec<Port>, mut cache: PoolCache) {
    while !shared.quit.load(Ordering::Relaxed) {
        if !shared.on.load(Ordering::Relaxed) {
            for (_, to, from) in &mut ports {
                to.poll_control();
                from.poll_control();
            }
            let running = ports.iter().filter(|(port, ..)| port.status().state == PortState::Running);
            shared.n_running.store(running.count(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let (mut packets, mut ticks) = (0, 0);
        for _ in 0..256 {
            let n = match (job, &mut ports[..]) {
                (Job::MacSwap, [(_, to, from)]) => turn(from, to, &mut cache, swap, &mut ticks),
                (Job::Cross, [(_, to_a, from_a), (_, to_b, from_b)]) => {
                    let n = pass(from_a, to_b, &mut cache, &mut ticks);
                    n + pass(from_b, to_a, &mut cache, &mut ticks)
                }
                (Job::CrossBuffered, [(_, to_a, from_a), (_, to_b, from_b)]) => {
                    let n = turn(from_a, to_b, &mut cache, |_| (), &mut ticks);
                    n + turn(from_b, to_a, &mut cache, |_| (), &mut ticks)
                }
                _ => 0,
            };
            packets += n as u64;
        }
        shared.packets.fetch_add(packets, Ordering::Relaxed);
        shared.ticks.fetch_add(ticks, Ordering::Relaxed);
    }
    ports.into_iter().for_each(|(port, to, from)| port.close(to, from));
}

/// One burst past the packet buffers; what can't go there goes through them.
#[inline(always)]
fn pass(from: &mut FromGuest, to: &mut ToGuest, cache: &mut PoolCache, ticks: &mut u64) -> usize {
    let start = tsc::now();
    match from.rx_into(to) {
        Some(Passed { packets: 0, .. }) => 0,
        Some(Passed { packets, .. }) => {
            *ticks += tsc::now() - start;
            packets
        }
        None => turn(from, to, cache, |_| (), ticks),
    }
}

/// One burst. Like testpmd's modes it drops what the other side does not take.
#[inline(always)]
fn turn(
    from: &mut FromGuest,
    to: &mut ToGuest,
    cache: &mut PoolCache,
    work: impl Fn(&mut PacketBuf),
    ticks: &mut u64,
) -> usize {
    let start = tsc::now();
    let mut burst = Burst::new();
    let n = from.rx_burst(cache, &mut burst);
    if n > 0 {
        burst.iter_mut().for_each(work);
        to.tx_burst(cache, &mut burst);
        burst.free_all(cache);
        *ticks += tsc::now() - start;
    }
    n
}

#[inline(always)]
fn swap(packet: &mut PacketBuf) {
    if let Some((dst, rest)) = packet.data_mut().split_first_chunk_mut::<6>()
        && let Some(src) = rest.first_chunk_mut::<6>()
    {
        std::mem::swap(dst, src);
    }
}
