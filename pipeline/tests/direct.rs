//! A forward from one guest to another, with real ports and built-in guests: frames go past the packet buffers, and nothing
//! else is different from a forward through them.
#![forbid(unsafe_code)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use spp_drivers::dma::{PacketBuf, Pool};
use spp_drivers::offload::F_NEEDS_CSUM;
use spp_drivers::stats::{DropReason, SharedStats, StatsSnapshot};
use spp_drivers::virtio::desc::NetHdr;
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::stats::{ComponentSnapshot, ComponentStats};
use spp_vhost::guest::{Guest, GuestConfig};
use spp_vhost::{PortConfig, PortState, Role, VhostPort};
use support::*;

/// Two guests, their ports, and a core that forwards from the first to the second.
struct Host {
    guests: [Guest; 2],
    engine: Engine,
    pool: Pool,
    ports: Vec<VhostPort>,
    rx: SharedStats,
    tx: SharedStats,
    component: Arc<ComponentStats>,
    _dir: tempfile::TempDir,
}

type Choose = fn(&mut GuestConfig);

impl Host {
    fn new(direct: bool, closed: bool, choose: [Choose; 2]) -> Host {
        let (pool, dir) = (pool(512), tempfile::tempdir().unwrap());
        let (mut engine, mut change, mut ports) = (Engine::new(&pool), Change::default(), Vec::new());
        for n in 0..2u16 {
            let config =
                PortConfig::new(format!("vhost:{n}"), dir.path().join(format!("sock{n}")), Role::Server);
            let (port, to_guest, from_guest) = VhostPort::open(config, &pool).unwrap();
            change.tx_in.push((TxSlot(n), Box::new(to_guest)));
            change.rx_in.push((RxSlot(n), Box::new(from_guest)));
            ports.push(port);
        }
        let rx = RxEdge { closed, ..rx_edge(0, VlanOp::None) };
        let tx = tx_edge(1, VlanOp::None, WAIT);
        let stats = (rx.stats.clone(), tx.stats.clone());
        let work = if direct { Work::Direct { rx, tx } } else { Work::Forward { rx, tx } };
        let component = component("f", work);
        let counters = component.stats.clone();
        change.plan = plan(1, vec![component]);
        engine.change(change);
        let mut n = 0;
        let guests = choose.map(|choose| {
            let mut config = GuestConfig::new(dir.path().join(format!("sock{n}")), Role::Client);
            choose(&mut config);
            let attaching = std::thread::spawn(move || Guest::attach(config, DEADLINE));
            while !attaching.is_finished() || ports[n].status().state != PortState::Running {
                engine.poll_control();
                std::thread::sleep(Duration::from_micros(200));
            }
            n += 1;
            attaching.join().unwrap().unwrap()
        });
        Host { guests, engine, pool, ports, rx: stats.0, tx: stats.1, component: counters, _dir: dir }
    }

    fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.engine.turn();
        }
    }

    /// Turns until the second guest has `n` frames.
    fn receive(&mut self, n: usize) -> Vec<Vec<u8>> {
        let (mut frames, deadline) = (Vec::new(), Instant::now() + DEADLINE);
        while frames.len() < n {
            self.engine.turn();
            let mut frame = Vec::new();
            while self.guests[1].receive(&mut frame) {
                frames.push(frame.clone());
            }
            assert!(Instant::now() < deadline, "{} of {n} frames", frames.len());
        }
        frames
    }

    /// Takes every buffer of the pool that is not on its way.
    fn hoard(&self) -> Vec<PacketBuf> {
        let mut cache = self.pool.cache();
        std::iter::from_fn(|| cache.alloc()).collect()
    }

    /// Every counter there is, but for where bursts end.
    fn counters(&self) -> (Vec<StatsSnapshot>, ComponentSnapshot) {
        let status = self.ports.iter().map(VhostPort::status);
        let ports = status.flat_map(|status| [status.to_guest, status.from_guest]);
        let all = ports.chain([self.rx.snapshot(), self.tx.snapshot()]);
        let component = self.component.snapshot();
        let component =
            ComponentSnapshot { bursts: Default::default(), cycles: Default::default(), ..component };
        (all.map(|stats| StatsSnapshot { bursts: 0, ..stats }).collect(), component)
    }

    fn close(mut self) {
        drop(self.guests);
        let engine = &mut self.engine;
        self.ports.drain(..).for_each(|port| port.close_with(|| engine.poll_control()));
        drop(self.engine);
        assert_eq!(self.pool.counts().out, 0);
    }
}

const PLAIN: [Choose; 2] = [|_| (), |_| ()];
/// The sender leaves checksums open, the receiver takes none that are.
const UNEQUAL: [Choose; 2] = [|config| config.offloads = true, |_| ()];

fn frames() -> Vec<Vec<u8>> {
    let lens = [60, 64, 65, 129, 300, 1514, 2000];
    (0..60).map(|n| frame(mac("02:00:00:00:00:0b"), &[], lens[n % lens.len()], n as u32)).collect()
}

#[test]
fn frames_between_guests_need_no_buffer() {
    let mut host = Host::new(true, false, PLAIN);
    let hoard = host.hoard();
    let frames = frames();
    assert_eq!(host.guests[0].send_burst(frames.iter().map(Vec::as_slice)), frames.len());
    assert_eq!(host.receive(frames.len()), frames);
    drop(hoard);
    host.close();
    // Without buffers the other way moves nothing: that is how it is known that none was used.
    let mut host = Host::new(false, false, PLAIN);
    let hoard = host.hoard();
    assert_eq!(host.guests[0].send_burst(frames.iter().map(Vec::as_slice)), frames.len());
    host.turns(100);
    assert_eq!(host.tx.packets.get(), 0);
    drop(hoard);
    assert_eq!(host.receive(frames.len()), frames);
    host.close();
}

#[test]
fn counters_frames_and_drops_are_those_of_a_forward_through_buffers() {
    let mut ends = Vec::new();
    for direct in [false, true] {
        for (unequal, choose) in [(false, PLAIN), (true, UNEQUAL)] {
            let mut host = Host::new(direct, false, choose);
            let mut expected = Vec::new();
            for (n, frame) in frames().into_iter().enumerate() {
                // Some ask for a checksum over what follows byte 20, some for one that can't be.
                let asks = unequal && n % 5 == 0;
                let csum_start = if n % 10 == 0 { 20 } else { 9000 };
                let flags = if asks { F_NEEDS_CSUM } else { 0 };
                let header = NetHdr { flags, csum_start, csum_offset: 4, ..NetHdr::default() };
                assert!(host.guests[0].send_with(header, &frame));
                if !asks || n % 10 == 0 {
                    expected.push((asks, frame));
                }
            }
            let received = host.receive(expected.len());
            for ((asks, sent), got) in expected.iter().zip(&received) {
                // Nothing but the checksum is different.
                let (mut sent, mut got) = (sent.clone(), got.clone());
                if *asks {
                    assert_ne!(sent, got, "the checksum was made");
                    sent[24..26].fill(0);
                    got[24..26].fill(0);
                }
                assert_eq!(sent, got);
            }
            host.turns(10);
            ends.push((received, host.counters()));
            host.close();
        }
    }
    let (buffers, direct) = ends.split_at(2);
    assert_eq!(buffers, direct);
    assert_eq!(direct[1].1.0[1].drops.get("bad_offload"), Some(&6), "{:#?}", direct[1].1);
}

#[test]
fn closed_gate_drops_every_frame_as_unplugged() {
    let mut host = Host::new(true, true, PLAIN);
    let frames = frames();
    assert_eq!(host.guests[0].send_burst(frames.iter().map(Vec::as_slice)), frames.len());
    host.turns(10);
    assert_eq!(host.rx.drops(DropReason::Unplugged), frames.len() as u64);
    assert_eq!((host.tx.packets.get(), host.guests[1].receive(&mut Vec::new())), (0, false));
    host.close();
}

#[test]
#[should_panic(expected = "needs buffers")]
fn direct_forward_that_changes_tags_is_refused() {
    let work = Work::Direct { rx: rx_edge(0, VlanOp::Del), tx: tx_edge(0, VlanOp::None, WAIT) };
    let change = Change { plan: plan(1, vec![component("f", work)]), ..Change::default() };
    Engine::new(&pool(64)).change(change);
}
