//! A port whose halves a thread polls as a core would: frames from the guest come out of a channel,
//! frames for it go in by another.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::{FromGuest, PortConfig, PortState, PortStatus, Role, ToGuest, VhostPort};

use super::{bytes, packet_of};

const DEADLINE: Duration = Duration::from_secs(20);

pub struct Served {
    pub port: VhostPort,
    pub received: Receiver<Vec<u8>>,
    pub send: Sender<Vec<u8>>,
    pool: Pool,
    stop: Arc<AtomicBool>,
    core: JoinHandle<(ToGuest, FromGuest)>,
}

impl Served {
    pub fn listen(path: &Path) -> Served {
        Served::open(PortConfig::new("vhost:0", path, Role::Server))
    }

    pub fn open(config: PortConfig) -> Served {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 512 }).unwrap();
        let (port, mut to_guest, mut from_guest) = VhostPort::open(config, &pool).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (told, mut cache) = (stop.clone(), pool.cache());
        let (out, received) = channel();
        let (send, outgoing) = channel::<Vec<u8>>();
        let core = std::thread::spawn(move || {
            let mut burst = Burst::new();
            while !told.load(Ordering::Relaxed) {
                let mut n = from_guest.rx_burst(&mut cache, &mut burst);
                burst.iter().for_each(|packet| drop(out.send(bytes(packet))));
                burst.free_all(&mut cache);
                while let Ok(frame) = outgoing.try_recv() {
                    burst.push(packet_of(&mut cache, &frame)).unwrap();
                    n += to_guest.tx_burst(&mut cache, &mut burst);
                }
                to_guest.poll_control();
                burst.free_all(&mut cache);
                if n == 0 {
                    std::thread::yield_now();
                }
            }
            (to_guest, from_guest)
        });
        Served { port, received, send, pool, stop, core }
    }

    pub fn status(&self) -> PortStatus {
        self.port.status()
    }

    pub fn wait_until(&self, what: &str, done: impl Fn(&PortStatus) -> bool) -> PortStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if done(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "never {what}: {status:#?}");
            std::thread::yield_now();
        }
    }

    pub fn wait_for(&self, state: PortState) -> PortStatus {
        self.wait_until(&state.to_string(), |status| status.state == state)
    }

    /// The next frame from the guest.
    pub fn next(&self) -> Vec<u8> {
        let next = self.received.recv_timeout(DEADLINE);
        next.unwrap_or_else(|_| panic!("no frame: {:#?}", self.status()))
    }

    /// Stops core and port; every buffer must have come back.
    pub fn close(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (to_guest, from_guest) = self.core.join().unwrap();
        self.port.close(to_guest, from_guest);
        assert_eq!(self.pool.counts().out, 0);
    }
}
