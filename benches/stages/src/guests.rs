//! The two halves of a vhost port, against the built-in guest on a real socket; and those of two ports, from guest to guest.

use std::collections::VecDeque;
use std::time::Duration;

use spp_drivers::Burst;
use spp_drivers::dma::{PacketBuf, Pool, PoolCache};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::guest::{Guest, GuestConfig};
use spp_vhost::{FromGuest, PortConfig, PortState, Role, ToGuest, VhostPort};
use tempfile::TempDir;

use crate::ring::{packet, pool};
use crate::stage::{Row, Stage, frame};

const DEADLINE: Duration = Duration::from_secs(60);

/// So many frames on their way that none is in the first cache when its turn comes.
const COLD: usize = 1024;

/// What the guest negotiates.
pub type Choose = fn(&mut GuestConfig);

/// The rows of this module.
pub fn rows() -> Vec<Row> {
    const SPLIT: Choose = |guest| (guest.mrg_rxbuf, guest.event_idx) = (false, false);
    const MERGEABLE: Choose = |guest| (guest.mrg_rxbuf, guest.event_idx) = (true, false);
    const IN_ORDER: Choose =
        |guest| (guest.mrg_rxbuf, guest.event_idx, guest.in_order) = (false, false, true);
    const PACKED: Choose = |guest| (guest.mrg_rxbuf, guest.event_idx, guest.packed) = (false, false, true);
    const PACKED_IN_ORDER: Choose = |guest| {
        PACKED(guest);
        guest.in_order = true;
    };
    let to = |name, len, choose: Choose| Row::new(name, move |_| Vhost::new(Way::To, len, choose));
    let from = |name, len, choose: Choose| Row::new(name, move |_| Vhost::new(Way::From, len, choose));
    let once = |name, len, choose: Choose| Row::new(name, move |_| Once::new(len, choose));
    vec![
        once("guest to guest, split, 64 B", 64, SPLIT),
        once("guest to guest, split, 1500 B", 1500, SPLIT),
        once("guest to guest, packed, 64 B", 64, PACKED),
        to("to_guest, split, 64 B", 64, SPLIT),
        to("to_guest, split, mergeable, 64 B", 64, MERGEABLE),
        to("to_guest, split, in order, 64 B", 64, IN_ORDER),
        to("to_guest, split, 1500 B", 1500, SPLIT),
        to("to_guest, packed, 64 B", 64, PACKED),
        Row::new("to_guest, 4 queues, split, 64 B", |burst| Spread::new(burst, 64)),
        Row::new("to_guest, 4 queues, split, one flow, 64 B", |burst| Spread::new(burst, 1)),
        Row::new("to_guest, 4 queues, split, 64 B, cold", |_| Spread::new(COLD, 64)).timed_only(),
        from("from_guest, split, 64 B", 64, SPLIT),
        from("from_guest, split, in order, 64 B", 64, IN_ORDER),
        from("from_guest, split, 1500 B", 1500, SPLIT),
        from("from_guest, packed, 64 B", 64, PACKED),
        from("from_guest, packed, in order, 64 B", 64, PACKED_IN_ORDER),
    ]
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    To,
    From,
}

/// A guest and its port.
pub struct Attached {
    pub guest: Guest,
    /// Taken when the row is over.
    pub port: Option<VhostPort>,
    _dir: TempDir,
}

/// A port whose rings run.
pub fn attach(pool: &Pool, choose: Choose) -> (Attached, ToGuest, FromGuest) {
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let socket = dir.path().join("sock0");
    let config = PortConfig::new("vhost:0", &socket, Role::Server);
    let (port, mut to_guest, mut from_guest) = VhostPort::open(config, pool).expect("the path is ours");
    let mut config = GuestConfig::new(&socket, Role::Client);
    choose(&mut config);
    // The halves answer the port's control thread while the guest talks to it.
    let attaching = std::thread::spawn(move || Guest::attach(config, DEADLINE));
    while !attaching.is_finished() || port.status().state != PortState::Running {
        to_guest.poll_control();
        from_guest.poll_control();
        std::thread::sleep(Duration::from_micros(200));
    }
    let guest = attaching.join().expect("it does not panic").expect("the port speaks vhost-user");
    (Attached { guest, port: Some(port), _dir: dir }, to_guest, from_guest)
}

struct Vhost {
    way: Way,
    frame: Vec<u8>,
    end: Attached,
    to_guest: ToGuest,
    from_guest: FromGuest,
    burst: Burst,
    cache: PoolCache,
}

impl Vhost {
    fn new(way: Way, len: usize, choose: Choose) -> Vhost {
        let (pool, cache) = pool(2048);
        let (end, to_guest, from_guest) = attach(&pool, choose);
        let frame = frame([2; 6], None, len);
        Vhost { way, frame, end, to_guest, from_guest, burst: Burst::new(), cache }
    }
}

impl Stage for Vhost {
    fn feed(&mut self, burst: usize) {
        match self.way {
            Way::From => {
                let sent = self.end.guest.send_burst((0..burst).map(|_| &self.frame[..]));
                assert_eq!(sent, burst, "the ring was drained");
            }
            Way::To => {
                for _ in 0..burst {
                    let pushed = self.burst.push(packet(&mut self.cache, &self.frame));
                    assert!(pushed.is_ok(), "at most 32 are asked for");
                }
            }
        }
    }

    fn work(&mut self) {
        match self.way {
            Way::To => self.to_guest.tx_burst(&mut self.cache, &mut self.burst),
            Way::From => self.from_guest.rx_burst(&mut self.cache, &mut self.burst),
        };
    }

    fn drain(&mut self) -> usize {
        match self.way {
            Way::To => self.end.guest.receive_burst(64, |_| ()),
            Way::From => self.burst.free_all(&mut self.cache),
        }
    }
}

/// From one guest to another, copied once.
struct Once {
    from: Vhost,
    to: Vhost,
}

impl Once {
    fn new(len: usize, choose: Choose) -> Once {
        Once { from: Vhost::new(Way::From, len, choose), to: Vhost::new(Way::To, len, choose) }
    }
}

impl Stage for Once {
    fn feed(&mut self, burst: usize) {
        self.from.feed(burst);
    }

    fn work(&mut self) {
        let passed = self.from.from_guest.rx_into(&mut self.to.to_guest);
        assert!(passed.is_some(), "plain frames, and room for them");
    }

    fn drain(&mut self) -> usize {
        self.to.drain()
    }
}

/// To a guest with four queues.
struct Spread {
    to: Vhost,
    n_flows: usize,
    /// Frames that were written some time ago.
    store: VecDeque<PacketBuf>,
    n_made: usize,
    received: Vec<u8>,
}

impl Spread {
    fn new(in_flight: usize, n_flows: usize) -> Spread {
        let choose: Choose = |guest| (guest.mrg_rxbuf, guest.event_idx, guest.n_pairs) = (false, false, 4);
        let to = Vhost::new(Way::To, 64, choose);
        let mut spread = Spread { to, n_flows, store: VecDeque::new(), n_made: 0, received: Vec::new() };
        (0..in_flight).for_each(|_| spread.make());
        spread
    }

    /// Another frame, from another port.
    fn make(&mut self) {
        let bytes = udp(&self.to.frame, 1024 + (self.n_made % self.n_flows) as u16);
        self.store.push_back(packet(&mut self.to.cache, &bytes));
        self.n_made += 1;
    }
}

/// A frame made one of UDP over IPv4, from `port`.
fn udp(frame: &[u8], port: u16) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    // Version and header length, protocol, addresses, source port.
    (bytes[14], bytes[23]) = (0x45, 17);
    bytes[20..22].fill(0);
    bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    bytes[34..36].copy_from_slice(&port.to_be_bytes());
    bytes
}

impl Stage for Spread {
    fn feed(&mut self, burst: usize) {
        for packet in self.store.drain(..burst) {
            let pushed = self.to.burst.push(packet);
            assert!(pushed.is_ok(), "at most 32 are asked for");
        }
        (0..burst).for_each(|_| self.make());
    }

    fn work(&mut self) {
        self.to.work();
    }

    fn drain(&mut self) -> usize {
        let (guest, received) = (&mut self.to.end.guest, &mut self.received);
        std::iter::from_fn(|| guest.receive(received).then_some(())).count()
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let Vhost { end, to_guest, from_guest, .. } = self;
        end.guest.disconnect();
        if let Some(port) = end.port.take() {
            port.close_with(|| {
                to_guest.poll_control();
                from_guest.poll_control();
            });
        }
    }
}
