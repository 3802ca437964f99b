//! A whole port that sends every frame back, polled by a thread that plays the core, and the built-in guest in front
//! of it.

#![allow(dead_code)] // each test uses its part

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::guest::{Guest, GuestConfig};
use spp_vhost::{FromGuest, PortConfig, PortState, PortStatus, Role, ToGuest, VhostPort};

pub const DEADLINE: Duration = Duration::from_secs(20);

/// A port whose halves echo: what the guest sends comes back to it, polled by a thread that plays the core.
pub struct Echo {
    pub pool: Pool,
    pub port: VhostPort,
    pub core: JoinHandle<(ToGuest, FromGuest)>,
    pub stop: Arc<AtomicBool>,
    /// Frames neither delivered nor dropped: they wait in the core's hands.
    pub pending: Arc<AtomicU64>,
}

impl Echo {
    pub fn open(path: &Path, role: Role) -> Echo {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 1024 }).unwrap();
        let config = PortConfig::new("vhost:0", path, role);
        let (port, mut to_guest, mut from_guest) = VhostPort::open(config, &pool).unwrap();
        let (stop, pending) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, waiting, mut cache) = (stop.clone(), pending.clone(), pool.cache());
        let core = std::thread::spawn(move || {
            let mut burst = Burst::new();
            while !told.load(Ordering::Relaxed) {
                let n = if burst.is_empty() { from_guest.rx_burst(&mut cache, &mut burst) } else { 0 };
                // With nothing to send the other half's mailbox still wants a look.
                let sent = to_guest.tx_burst(&mut cache, &mut burst);
                from_guest.poll_control();
                waiting.store(burst.len() as u64, Ordering::Relaxed);
                if n + sent == 0 {
                    std::thread::yield_now();
                }
            }
            burst.free_all(&mut cache);
            (to_guest, from_guest)
        });
        Echo { pool, port, core, stop, pending }
    }

    pub fn wait_for(&self, state: PortState) -> PortStatus {
        self.wait_until(&state.to_string(), |status| status.state == state)
    }

    pub fn wait_until(&self, what: &str, done: impl Fn(&PortStatus) -> bool) -> PortStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.port.status();
            if done(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "never {what}: {status:#?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops core and port; every buffer must have come back.
    pub fn close(self) -> PortStatus {
        self.stop.store(true, Ordering::Relaxed);
        let (to_guest, from_guest) = self.core.join().unwrap();
        let status = self.port.status();
        self.port.close(to_guest, from_guest);
        assert_eq!(self.pool.counts().out, 0);
        status
    }
}

pub fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock0");
    (dir, path)
}

/// The guest's role on a socket where the backend has `role`.
pub fn other(role: Role) -> Role {
    if role == Role::Client { Role::Server } else { Role::Client }
}

pub fn attach(path: &Path, role: Role, change: impl FnOnce(&mut GuestConfig)) -> Guest {
    let mut config = GuestConfig::new(path, role);
    change(&mut config);
    Guest::attach(config, DEADLINE).unwrap()
}

/// Sends frames of these lengths one by one and expects each back unchanged.
pub fn echo(guest: &mut Guest, lens: impl IntoIterator<Item = usize>) {
    for (n, len) in lens.into_iter().enumerate() {
        let frame: Vec<u8> = (0..len).map(|i| (i + n) as u8).collect();
        assert!(guest.send(&frame));
        let (mut back, deadline) = (Vec::new(), Instant::now() + DEADLINE);
        while !guest.receive(&mut back) {
            assert!(Instant::now() < deadline, "frame {n} of {len} bytes never came back");
            std::thread::yield_now();
        }
        assert_eq!(back, frame, "frame {n}");
    }
    assert_eq!(guest.fault(), None);
    assert_eq!(guest.counters().malformed, 0);
}

/// Sends frames of these lengths, up to `window` at a time, and expects each back unchanged and in order.
pub fn echo_window(guest: &mut Guest, lens: &[usize], window: usize) {
    let frame = |n: usize| -> Vec<u8> { (0..lens[n]).map(|i| (i * 3 + n * 7 + (i >> 8)) as u8).collect() };
    let (mut sent, mut got, mut back) = (0, 0, Vec::new());
    let deadline = Instant::now() + DEADLINE;
    while got < lens.len() {
        while sent < lens.len() && sent < got + window && guest.send(&frame(sent)) {
            sent += 1;
        }
        while guest.receive(&mut back) {
            assert_eq!(back.len(), lens[got], "length of frame {got}");
            assert!(back == frame(got), "bytes of frame {got}");
            got += 1;
        }
        assert_eq!(guest.fault(), None);
        assert!(Instant::now() < deadline, "sent {sent}, got {got} of {}", lens.len());
        std::thread::yield_now();
    }
    assert_eq!(guest.counters().malformed, 0);
}
