//! Every combination of ring features, negotiated over a socket and used by the built-in guest: frames of all lengths
//! there and back, over the wrap of indices and rings.

#[path = "support/echo.rs"]
mod echo_port;

use echo_port::*;
use spp_vhost::guest::{Guest, GuestConfig, MemoryLayout, MessageOrder, TxLayout};
use spp_vhost::{PortState, Role};

/// The features of one run, by name.
#[derive(Debug, Clone, Copy)]
struct Case {
    packed: bool,
    indirect: bool,
    mergeable: bool,
    in_order: bool,
    event_idx: bool,
}

fn cases() -> impl Iterator<Item = Case> {
    (0..32).map(|bits| Case {
        packed: bits & 1 != 0,
        indirect: bits & 2 != 0,
        mergeable: bits & 4 != 0,
        in_order: bits & 8 != 0,
        event_idx: bits & 16 != 0,
    })
}

impl Case {
    fn choose(&self, config: &mut GuestConfig) {
        config.packed = self.packed;
        config.tx_layout = if self.indirect { TxLayout::Indirect } else { TxLayout::HeaderApart };
        config.mrg_rxbuf = self.mergeable;
        config.in_order = self.in_order;
        config.event_idx = self.event_idx;
        config.rx_frame_bytes = 9000;
        // Split: six frames before 65,536. Packed: six descriptors before the end of the ring.
        config.first_index = 65_530;
        config.ring_size = 64;
    }

    fn names(&self) -> Vec<&'static str> {
        let all = [
            (self.packed, "ring_packed"),
            (self.indirect, "indirect_desc"),
            (self.mergeable, "mrg_rxbuf"),
            (self.in_order, "in_order"),
            (self.event_idx, "event_idx"),
        ];
        all.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect()
    }
}

/// 60 to 9000 bytes, every length of the first forty and last thirty, and around each buffer's end.
fn lens() -> Vec<usize> {
    let around = |n: usize| n - 14..n + 3;
    let mut lens: Vec<_> = (60..100).chain(8970..=9000).collect();
    for end in [1514, 2048, 2060, 4096, 4120, 6180, 8192] {
        lens.extend(around(end));
    }
    // Short and long ones mixed, the same way each time.
    let n = lens.len();
    (0..n).map(|i| lens[i * 7 % n]).collect()
}

#[test]
fn every_combination_of_ring_features_carries_every_length() {
    let lens = lens();
    assert_ne!(lens.len() % 7, 0, "every length is in it");
    for case in cases() {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, |config| case.choose(config));
        let status = port.wait_for(PortState::Running);
        let ring_features =
            ["ring_packed", "indirect_desc", "mrg_rxbuf", "in_order", "event_idx"].into_iter();
        let negotiated: Vec<_> = ring_features.filter(|name| status.features.contains(name)).collect();
        assert_eq!(negotiated, case.names(), "{case:?}");
        println!("{case:?}");
        echo_window(&mut guest, &lens, 24);
        echo_window(&mut guest, &lens, 1);
        drop(guest);
        let status = port.close();
        let n = 2 * lens.len() as u64;
        assert_eq!((status.to_guest.packets, status.from_guest.packets), (n, n), "{case:?}");
        assert_eq!(status.to_guest.total_drops() + status.from_guest.total_drops(), 0, "{case:?}");
    }
}

#[test]
fn packed_ring_of_any_size_wraps_where_it_ends() {
    for ring_size in [7, 33, 100, 255] {
        for in_order in [false, true] {
            let (_dir, path) = socket();
            let port = Echo::open(&path, Role::Server);
            let mut guest = attach(&path, Role::Client, |config| {
                (config.packed, config.in_order, config.ring_size) = (true, in_order, ring_size);
                (config.first_index, config.order) = (ring_size - 1, MessageOrder::VirtioUser);
                config.memory = MemoryLayout::OneRegion;
            });
            echo_window(&mut guest, &[60, 1514, 64, 2048, 60, 60, 60].repeat(40), 8);
            drop(guest);
            port.close();
        }
    }
}

#[test]
fn stopped_packed_rings_tell_slots_and_wrap_counters_and_go_on_there() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Client);
    let mut guest = attach(&path, Role::Server, |config| {
        (config.packed, config.ring_size, config.first_index) = (true, 64, 60);
    });
    for lap in 0..5u32 {
        echo(&mut guest, [60; 20]);
        let bases = guest.stop_rings().unwrap();
        let at = 60 + 20 * (lap + 1);
        let half = (at % 64) | if at / 64 % 2 == 0 { 0x8000 } else { 0 };
        assert_eq!(bases[1], half | half << 16, "after {} frames", 20 * (lap + 1));
        assert_eq!(guest.stop_rings().unwrap(), bases, "asked again, in any state");
        guest.start_rings().unwrap();
    }
    drop(guest);
    port.close();
}

#[test]
fn packed_guest_reconnects_reboots_and_changes_its_layout() {
    for in_order in [false, true] {
        let (_dir, path) = socket();
        let mut port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, |config| {
            (config.packed, config.in_order, config.first_index) = (true, in_order, 250);
        });
        for _ in 0..4 {
            echo(&mut guest, [60; 75]);
            guest.reconnect(DEADLINE).unwrap();
            echo(&mut guest, [1514; 75]);
            port.close();
            port = Echo::open(&path, Role::Client);
            guest.reconnect(DEADLINE).unwrap();
        }
        // Kernel driver to virtio-user and back: other features, other layout, other size.
        for packed in [false, true, false] {
            guest.reboot(|config| (config.packed, config.ring_size) = (packed, 128)).unwrap();
            echo(&mut guest, [60; 300]);
        }
        drop(guest);
        port.close();
    }
}

#[test]
fn packed_guest_is_called_only_when_it_asks() {
    for event_idx in [false, true] {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest: Guest = attach(&path, Role::Server, |config| {
            (config.packed, config.ring_size, config.first_index) = (true, 8, 6);
            (config.want_calls, config.event_idx) = (true, event_idx);
        });
        port.wait_for(PortState::Running);
        for n in 0..20 {
            assert!(guest.send(&[7; 60]));
            assert!(guest.wait_for_call(DEADLINE), "event_idx {event_idx}, frame {n}");
            let mut frame = Vec::new();
            assert!(guest.receive(&mut frame));
        }
        drop(guest);
        assert!(port.close().queues[0].to_guest.calls >= 20);

        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, |config| {
            (config.packed, config.event_idx) = (true, event_idx);
        });
        echo(&mut guest, [60; 600]);
        assert!(guest.counters().kicks <= 6, "we poll, so a driver has nothing to kick for");
        drop(guest);
        assert_eq!(port.close().queues[0].to_guest.calls, 0, "a guest that polls is left alone");
    }
}
