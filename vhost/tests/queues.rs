//! Several queue pairs: frames to the guest go by flow and keep their order in it, frames from the guest are taken
//! fairly, queues come and go under traffic, and components share or split them.

#[path = "support/echo.rs"]
mod echo_port;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use echo_port::*;
use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::guest::{Guest, GuestConfig, MessageOrder, TX_RING};
use spp_vhost::{FromGuest, MAX_PAIRS, PortConfig, PortState, Role, ToGuest, VhostPort, flow};

const FLOW_AT: usize = 34;
const NUMBER_AT: usize = 42;

/// Frame `number` of a UDP flow: 60 to 123 bytes.
fn frame(flow: u16, number: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(flow.to_be_bytes());
    bytes.extend([0, 53, 0, 26, 0, 0]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(60 + number as usize % 64, flow as u8);
    bytes
}

/// Flow and number of a frame, which must be whole.
fn read(bytes: &[u8]) -> (u16, u32) {
    let flow = u16::from_be_bytes(bytes[FLOW_AT..FLOW_AT + 2].try_into().unwrap());
    let number = u32::from_be_bytes(bytes[NUMBER_AT..NUMBER_AT + 4].try_into().unwrap());
    assert_eq!(bytes, frame(flow, number));
    (flow, number)
}

fn with_queues(n_pairs: u16, packed: bool) -> impl FnOnce(&mut GuestConfig) {
    move |config| {
        (config.n_pairs, config.packed, config.in_order) = (n_pairs, packed, packed);
        (config.ring_size, config.first_index) = (64, 65_530);
        config.order = MessageOrder::VirtioUser;
    }
}

#[test]
fn flows_keep_to_one_queue_and_their_order() {
    const N_FLOWS: u16 = 64;
    const N_EACH: u32 = 200;
    for (n_pairs, packed) in [(2, false), (4, false), (4, true), (16, false), (16, true)] {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, with_queues(n_pairs, packed));
        let status = port.wait_until("all queues", |status| status.n_queues_running == usize::from(n_pairs));
        assert!(status.features.contains(&"mq"));
        let (mut sent, mut next, mut back) = ([0; N_FLOWS as usize], [0; N_FLOWS as usize], Vec::new());
        let deadline = Instant::now() + DEADLINE;
        while next.iter().any(|n| *n < N_EACH) {
            assert!(Instant::now() < deadline, "sent {sent:?}, got {next:?}: {:#?}", port.port.status());
            for flow in 0..N_FLOWS {
                let n = &mut sent[usize::from(flow)];
                // Each flow is sent on one queue, as a guest's stack does; a few at a time are under way.
                let pair = usize::from(flow % n_pairs);
                if *n < N_EACH && *n < next[usize::from(flow)] + 8 && guest.send_on(pair, &frame(flow, *n)) {
                    *n += 1;
                }
            }
            for pair in 0..usize::from(n_pairs) {
                while guest.receive_on(pair, &mut back) {
                    let (flow, number) = read(&back);
                    assert_eq!(pair, flow::pick(flow::hash(&back), n_pairs.into()), "queue of flow {flow}");
                    assert_eq!(number, next[usize::from(flow)], "order of flow {flow}");
                    next[usize::from(flow)] += 1;
                }
            }
        }
        assert_eq!(guest.fault(), None);
        drop(guest);
        let status = port.close();
        let n = u64::from(N_EACH) * u64::from(N_FLOWS);
        assert_eq!((status.to_guest.packets, status.from_guest.packets), (n, n));
        assert_eq!(status.to_guest.total_drops() + status.from_guest.total_drops(), 0);
    }
}

/// A port polled by the test itself.
struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    pool: Pool,
    cache: PoolCache,
    port: VhostPort,
    to_guest: Vec<ToGuest>,
    from_guest: Vec<FromGuest>,
}

impl Bench {
    fn open(n_sets: usize) -> Bench {
        let (dir, path) = socket();
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 4096 }).unwrap();
        let config = PortConfig::new("vhost:0", &path, Role::Server);
        let (port, to_guest, from_guest) = VhostPort::open_split(config, &pool, n_sets).unwrap();
        Bench { _dir: dir, path, cache: pool.cache(), pool, port, to_guest, from_guest }
    }

    fn serve(&mut self) {
        self.to_guest.iter_mut().for_each(|half| half.poll_control());
        self.from_guest.iter_mut().for_each(|half| half.poll_control());
    }

    /// Runs what waits for the port's answers while they are given.
    fn while_served<T: Send>(&mut self, work: impl FnOnce(&Path) -> T + Send) -> T {
        let path = self.path.clone();
        std::thread::scope(|scope| {
            let work = scope.spawn(move || work(&path));
            while !work.is_finished() {
                self.serve();
                std::thread::yield_now();
            }
            work.join().unwrap()
        })
    }

    fn attach(&mut self, change: impl FnOnce(&mut GuestConfig) + Send) -> Guest {
        let guest = self.while_served(|path| attach(path, Role::Client, change));
        let deadline = Instant::now() + DEADLINE;
        while self.port.status().n_queues_running < guest.n_pairs() {
            assert!(Instant::now() < deadline, "{:#?}", self.port.status());
            self.serve();
        }
        guest
    }

    fn receive(&mut self, set: usize) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.from_guest[set].rx_burst(&mut self.cache, &mut burst);
        let frames = burst.iter().map(|packet| packet.data().to_vec()).collect();
        burst.free_all(&mut self.cache);
        frames
    }

    fn send(&mut self, set: usize, frames: &[Vec<u8>]) -> usize {
        let mut burst = Burst::new();
        for frame in frames {
            let mut packet = self.cache.alloc().unwrap();
            packet.append(frame).unwrap();
            burst.push(packet).unwrap();
        }
        let n = self.to_guest[set].tx_burst(&mut self.cache, &mut burst);
        burst.free_all(&mut self.cache);
        n
    }

    fn close(self) {
        let Bench { pool, cache, port, mut to_guest, mut from_guest, .. } = self;
        port.close_with(|| {
            to_guest.iter_mut().for_each(|half| half.poll_control());
            from_guest.iter_mut().for_each(|half| half.poll_control());
        });
        drop(cache);
        assert_eq!(pool.counts().out, 0);
    }
}

#[test]
fn queues_from_the_guest_are_served_in_turns() {
    for packed in [false, true] {
        let mut bench = Bench::open(1);
        let mut guest = bench.attach(|config| {
            with_queues(4, packed)(config);
            config.ring_size = 1024;
        });
        // Queue 0 is full, queue 3 has a handful: it must not wait for the others.
        for (pair, n) in [(0u16, 900), (1, 200), (2, 64), (3, 5)] {
            (0..n).for_each(|number| assert!(guest.send_on(pair.into(), &frame(pair, number))));
        }
        let mut order = Vec::new();
        for _ in 0..8 {
            order.extend(bench.receive(0).iter().map(|bytes| read(bytes).0));
        }
        let taken = |queue: u16, of: &[u16]| of.iter().filter(|flow| **flow == queue).count();
        let of: Vec<_> = (0..4).map(|queue| taken(queue, &order)).collect();
        assert_eq!(of[3], 5, "{of:?}");
        assert_eq!(of[2], 64, "{of:?}");
        assert!(of[0].abs_diff(of[1]) <= 64, "{of:?}");
        let deadline = Instant::now() + DEADLINE;
        while order.len() < 1169 {
            order.extend(bench.receive(0).iter().map(|bytes| read(bytes).0));
            assert!(Instant::now() < deadline);
        }
        let status = bench.port.status();
        let of: Vec<_> = status.queues.iter().map(|queue| queue.from_guest.packets).collect();
        assert_eq!(of, [900, 200, 64, 5]);
        drop(guest);
        bench.close();
    }
}

#[test]
fn full_queue_keeps_its_frames_back_and_the_others_get_theirs() {
    let mut bench = Bench::open(1);
    let guest = bench.attach(with_queues(4, false));
    // The guest takes nothing: 64 frames fit each ring.
    let slow = (0..).find(|flow| flow::pick(flow::hash(&frame(*flow, 0)), 4) == 2).unwrap();
    let mut sent = 0;
    while bench.send(0, &vec![frame(slow, 0); 32]) == 32 {
        sent += 32;
        assert!(sent <= 64);
    }
    let burst: Vec<_> = (0..32).map(|flow| frame(flow, 0)).collect();
    let n_slow = burst.iter().filter(|bytes| flow::pick(flow::hash(bytes), 4) == 2).count();
    assert_eq!(bench.send(0, &burst), 32 - n_slow, "{n_slow} of them wait");
    let status = bench.port.status();
    assert_eq!(status.queues[2].to_guest.packets, 64);
    assert_eq!(status.to_guest.total_drops(), 0);
    drop(guest);
    bench.close();
}

#[test]
fn split_port_has_each_queue_in_the_half_of_its_number() {
    for packed in [false, true] {
        let mut bench = Bench::open(2);
        let mut guest = bench.attach(with_queues(4, packed));
        for pair in 0..4u16 {
            (0..10).for_each(|number| assert!(guest.send_on(pair.into(), &frame(pair, number))));
        }
        for set in 0..2 {
            let mut frames = bench.receive(set);
            frames.extend(bench.receive(set));
            let mut flows: Vec<_> = frames.iter().map(|bytes| read(bytes).0).collect();
            flows.sort_unstable();
            flows.dedup();
            assert_eq!((frames.len(), flows), (20, vec![set as u16, set as u16 + 2]));
            let burst: Vec<_> = (0..32).map(|flow| frame(flow, 0)).collect();
            assert_eq!(bench.send(set, &burst), 32);
            let mut back = Vec::new();
            let got: Vec<_> = (0..4)
                .map(|pair| std::iter::from_fn(|| guest.receive_on(pair, &mut back).then_some(())).count())
                .collect();
            assert_eq!(got[set] + got[set + 2], 32);
            assert!(got[set] > 0 && got[set + 2] > 0, "{got:?}");
        }
        drop(guest);
        bench.close();
    }
}

/// Moves the queues; parked halves are served meanwhile.
fn deal(bench: &mut Bench, wanted: [usize; MAX_PAIRS]) {
    let deadline = Instant::now() + DEADLINE;
    while !bench.port.gather([wanted; 2]) {
        assert!(Instant::now() < deadline, "the queues are not given up");
        bench.serve();
    }
    assert!(bench.port.hand_out());
    bench.serve();
}

#[test]
fn queues_move_between_halves_under_traffic_without_losing_or_reordering_a_frame() {
    for packed in [false, true] {
        let mut bench = Bench::open(1);
        let mut guest = bench.attach(with_queues(4, packed));
        let more = bench.port.add_halves();
        assert_eq!(more.number, 1);
        let live = [bench.to_guest[0].live(), more.to_guest.live()];
        bench.to_guest.push(more.to_guest);
        bench.from_guest.push(more.from_guest);
        assert!(live[0].load(Ordering::Acquire) && !live[1].load(Ordering::Acquire));
        let (mut sent, mut got, mut back) = ([0u32; 4], [0u32; 4], Vec::new());
        for round in 0..200usize {
            // Frames lie in the guest's rings while their queue moves.
            for (pair, sent) in sent.iter_mut().enumerate() {
                for _ in 0..5 {
                    assert!(guest.send_on(pair, &frame(pair as u16, *sent)));
                    *sent += 1;
                }
            }
            let with_second = |queue: usize| round >> (queue % 4) & 1;
            deal(&mut bench, std::array::from_fn(with_second));
            assert_eq!(live[0].load(Ordering::Acquire), (0..4).any(|queue| with_second(queue) == 0));
            for set in 0..2 {
                for bytes in
                    std::iter::repeat_with(|| bench.receive(set)).take(2).flatten().collect::<Vec<_>>()
                {
                    let (flow, number) = read(&bytes);
                    assert_eq!(with_second(flow.into()), set, "half of queue {flow}");
                    assert_eq!(number, std::mem::replace(&mut got[usize::from(flow)], number + 1));
                }
                let burst: Vec<_> = (0..8).map(|flow| frame(flow, round as u32)).collect();
                let n_queues = (0..4).filter(|queue| with_second(*queue) == set).count();
                assert_eq!(bench.send(set, &burst), 8);
                let mut taken = 0;
                for pair in 0..4 {
                    while guest.receive_on(pair, &mut back) {
                        assert_eq!(with_second(pair), set);
                        read(&back);
                        taken += 1;
                    }
                }
                assert_eq!(taken, if n_queues == 0 { 0 } else { 8 });
            }
        }
        assert_eq!(got, sent);
        let counted = bench.port.status().from_guest.packets;
        assert_eq!(counted, sent.iter().map(|n| u64::from(*n)).sum::<u64>(), "all halves count");
        drop(guest);
        bench.close();
    }
}

#[test]
fn queue_wanted_back_before_its_half_looked_goes_where_it_was_wanted_last() {
    let mut bench = Bench::open(2);
    let guest = bench.attach(with_queues(2, false));
    for round in 0..100 {
        // Nobody polls: requests pile up, but no more than there is room for.
        assert!(!bench.port.gather([[round % 2; MAX_PAIRS]; 2]) && !bench.port.hand_out());
    }
    deal(&mut bench, [1; MAX_PAIRS]);
    assert_eq!(bench.send(1, &[frame(1, 1)]), 1);
    assert_eq!(bench.port.status().to_guest.packets, 1);
    drop(guest);
    bench.close();
}

#[test]
fn half_whose_queue_the_guest_does_not_use_drops_by_name() {
    let mut bench = Bench::open(4);
    let mut guest = bench.attach(with_queues(2, false));
    assert_eq!(bench.send(3, &[frame(1, 1)]), 1);
    assert_eq!(bench.port.status().to_guest.drops.get("not_running"), Some(&1));
    assert_eq!(bench.send(1, &[frame(1, 1)]), 1);
    let mut back = Vec::new();
    assert!(guest.receive_on(1, &mut back));
    drop(guest);
    bench.close();
}

#[test]
fn queues_switched_on_and_off_under_traffic_lose_only_what_is_sent_on_a_disabled_one() {
    for packed in [false, true] {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, with_queues(4, packed));
        let running = |n| move |status: &spp_vhost::PortStatus| status.n_queues_running == n;
        port.wait_until("four queues", running(4));
        let (mut number, mut back) = (0, Vec::new());
        let mut exchange = |guest: &mut Guest, pairs: usize| {
            let mut expected = Vec::new();
            for flow in 0..32u16 {
                number += 1;
                assert!(guest.send_on(usize::from(flow) % pairs, &frame(flow, number)));
                expected.push((flow, number));
            }
            let deadline = Instant::now() + DEADLINE;
            while !expected.is_empty() {
                assert!(Instant::now() < deadline, "{expected:?}: {:#?}", port.port.status());
                if guest.receive(&mut back) {
                    let got = read(&back);
                    assert!(expected.contains(&got), "{got:?}");
                    expected.retain(|one| *one != got);
                }
            }
        };
        for round in 0..100 {
            // One pair, two, three, four, as a guest's `ethtool -L` does it.
            let n = 1 + round % 4;
            for pair in 1..4 {
                guest.enable_ring(2 * pair, pair < n).unwrap();
                guest.enable_ring(2 * pair + TX_RING, pair < n).unwrap();
            }
            port.wait_until("as many queues as are enabled", running(n));
            exchange(&mut guest, n);
        }
        guest.enable_ring(3 * 2 + TX_RING, false).unwrap();
        (0..10).for_each(|n| assert!(guest.send_on(3, &frame(3, n))));
        port.wait_until("drained", |status| status.from_guest.drops.get("not_running") == Some(&10));
        assert_eq!(guest.in_flight(), 0);
        exchange(&mut guest, 3);
        drop(guest);
        let status = port.close();
        assert_eq!(status.to_guest.total_drops(), 0, "{status:#?}");
    }
}

#[test]
fn sixteen_queues_reconnect_reboot_and_stop() {
    for packed in [false, true] {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, with_queues(16, packed));
        for round in 0..5 {
            port.wait_until("sixteen queues", |status| status.n_queues_running == 16);
            for pair in 0..16 {
                let (mut back, sent) = (Vec::new(), frame(round * 100 + pair, round.into()));
                assert!(guest.send_on(pair.into(), &sent));
                let deadline = Instant::now() + DEADLINE;
                while !guest.receive(&mut back) {
                    assert!(Instant::now() < deadline, "{:#?}", port.port.status());
                }
                assert_eq!(back, sent);
            }
            match round {
                0 | 1 => guest.reconnect(DEADLINE).unwrap(),
                2 => guest.reboot(|config| config.ring_size = 128).unwrap(),
                _ => {
                    assert_eq!(guest.stop_rings().unwrap().len(), 32);
                    port.wait_for(PortState::Negotiated);
                    guest.start_rings().unwrap();
                }
            }
        }
        drop(guest);
        port.close();
    }
}
