//! A bug in a port's control thread costs that port a connection, and nothing else.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};

use crate::guest::{Guest, GuestConfig};
use crate::protocol::tests::REQUEST_THAT_PANICS;
use crate::{FromGuest, PortConfig, PortState, Role, ToGuest, VhostPort};

const DEADLINE: Duration = Duration::from_secs(20);

struct Open {
    port: VhostPort,
    halves: (ToGuest, FromGuest),
}

impl Open {
    fn new(pool: &Pool, path: &Path) -> Open {
        let (port, to, from) = VhostPort::open(PortConfig::new("vhost:0", path, Role::Server), pool).unwrap();
        Open { port, halves: (to, from) }
    }

    fn poll(&mut self) {
        self.halves.0.poll_control();
        self.halves.1.poll_control();
    }

    fn wait_until(&mut self, done: impl Fn(&VhostPort) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(&self.port) {
            assert!(Instant::now() < deadline, "{:#?}", self.port.status());
            self.poll();
            std::thread::yield_now();
        }
    }
}

#[test]
fn panic_while_a_message_is_handled_fails_that_port_and_the_next_frontend_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 512 }).unwrap();
    let (path, other_path) = (dir.path().join("sock0"), dir.path().join("sock1"));
    let (mut open, mut other) = (Open::new(&pool, &path), Open::new(&pool, &other_path));
    let attach = |path: &Path| {
        let config = GuestConfig::new(path, Role::Client);
        std::thread::spawn(move || Guest::attach(config, DEADLINE).unwrap())
    };
    let bystander = attach(&other_path);
    other.wait_until(|_| bystander.is_finished());
    let bystander = bystander.join().unwrap();

    for n in 1..=3 {
        let guest = attach(&path);
        open.wait_until(|_| guest.is_finished());
        drop(guest.join().unwrap());
        open.wait_until(|port| port.status().state != PortState::Running);

        let words = [REQUEST_THAT_PANICS, 1, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(&bytes).unwrap();
        open.wait_until(|port| port.status().panics == n);
        open.wait_until(
            |port| matches!(&port.status().state, PortState::Failed(why) if why.contains("a bug")),
        );
        let status = open.port.status();
        assert!(status.last_failure.is_some_and(|why| why.contains("a request that panics")));
    }
    let guest = attach(&path);
    open.wait_until(|_| guest.is_finished());
    let guest = guest.join().unwrap();
    assert_eq!(open.port.status().state, PortState::Running);
    drop(guest);

    let status = other.port.status();
    assert_eq!((status.state, status.panics, status.reconnects), (PortState::Running, 0, 0));
    assert!(bystander.is_connected());
    drop(bystander);
    for Open { port, halves: (to, from) } in [open, other] {
        port.close(to, from);
    }
    assert_eq!(pool.counts().out, 0);
}
