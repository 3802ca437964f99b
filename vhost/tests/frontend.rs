//! Whole ports against the built-in guest, over real sockets: both roles, every life change a
//! guest or frontend can make under traffic, and nothing left behind.

#[path = "support/echo.rs"]
mod echo_port;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use echo_port::*;
use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::Device;
use spp_vhost::guest::{MemoryLayout, MessageOrder, TxLayout};
use spp_vhost::{PortState, PortStatus, Role, Wire};

#[test]
fn frames_pass_in_both_roles_both_orders_and_every_layout() {
    for role in [Role::Client, Role::Server] {
        for order in [MessageOrder::Qemu, MessageOrder::VirtioUser] {
            for layout in [TxLayout::OneDescriptor, TxLayout::HeaderApart, TxLayout::Indirect] {
                let (_dir, path) = socket();
                let port = Echo::open(&path, role);
                let mut guest = attach(&path, other(role), |config| {
                    (config.order, config.tx_layout, config.first_index) = (order, layout, 65_530);
                });
                let status = port.wait_for(PortState::Running);
                assert!(status.features.contains(&"mrg_rxbuf") && status.detail.is_empty());
                echo(&mut guest, [60, 64, 1514, 9000, 14, 2048, 2049, 4096].into_iter().cycle().take(64));
                drop(guest);
                port.wait_for(PortState::Waiting);
                let status = port.close();
                assert_eq!((status.to_guest.packets, status.from_guest.packets), (64, 64));
                assert_eq!(status.to_guest.total_drops() + status.from_guest.total_drops(), 0);
            }
        }
    }
}

#[test]
fn guest_without_mergeable_buffers_is_served() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Client);
    let mut guest =
        attach(&path, Role::Server, |config| (config.mrg_rxbuf, config.event_idx) = (false, false));
    echo(&mut guest, [60, 1514, 64]);
    drop(guest);
    port.close();
}

#[test]
fn guest_is_called_only_when_it_asks() {
    for event_idx in [false, true] {
        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, |config| {
            (config.want_calls, config.event_idx) = (true, event_idx);
        });
        port.wait_for(PortState::Running);
        for _ in 0..3 {
            assert!(guest.send(&[7; 60]));
            assert!(guest.wait_for_call(DEADLINE), "event_idx {event_idx}");
            let mut frame = Vec::new();
            assert!(guest.receive(&mut frame));
        }
        drop(guest);
        let status = port.close();
        assert!(status.queues[0].to_guest.calls >= 3, "{status:#?}");

        let (_dir, path) = socket();
        let port = Echo::open(&path, Role::Client);
        let mut guest = attach(&path, Role::Server, |config| config.event_idx = event_idx);
        echo(&mut guest, [60; 8]);
        drop(guest);
        // By index, a call is due once in 65,536 frames even for a driver that polls.
        assert!(port.close().queues[0].to_guest.calls <= 1, "a guest that polls is left alone");
    }
}

#[test]
fn backend_that_restarts_goes_on_with_the_same_guest() {
    for role in [Role::Client, Role::Server] {
        let (_dir, path) = socket();
        let mut port = Echo::open(&path, role);
        let mut guest = attach(&path, other(role), |config| config.first_index = 65_500);
        for round in 0..4 {
            echo(&mut guest, [60; 40]);
            port.close();
            port = Echo::open(&path, role);
            guest.reconnect(DEADLINE).unwrap();
            port.wait_for(PortState::Running);
            assert_eq!(port.port.status().reconnects, 0, "round {round}");
        }
        echo(&mut guest, [60; 40]);
        drop(guest);
        port.close();
    }
}

#[test]
fn guest_that_reconnects_reboots_and_changes_its_driver_is_served_each_time() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Client);
    let mut guest = attach(&path, Role::Server, |_| {});
    echo(&mut guest, [60; 300]);
    guest.reconnect(DEADLINE).unwrap();
    echo(&mut guest, [1514; 300]);
    guest.reboot(|config| (config.ring_size, config.mrg_rxbuf) = (64, false)).unwrap();
    echo(&mut guest, [60; 300]);
    guest.reboot(|config| (config.ring_size, config.memory) = (1024, MemoryLayout::OneRegion)).unwrap();
    echo(&mut guest, [60; 300]);
    assert_eq!(port.port.status().reconnects, 1);
    drop(guest);
    port.close();
}

#[test]
fn stopped_rings_tell_their_index_and_go_on_there() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Client);
    let mut guest = attach(&path, Role::Server, |config| config.first_index = 65_530);
    echo(&mut guest, [60; 20]);
    let bases = guest.stop_rings().unwrap();
    assert_eq!(bases[1], 65_550 - 65_536, "the transmit ring's next index");
    assert_eq!(port.port.status().state, PortState::Negotiated);
    assert_eq!(guest.stop_rings().unwrap(), bases, "asked again, in any state");
    guest.start_rings().unwrap();
    echo(&mut guest, [60; 20]);
    drop(guest);
    port.close();
}

#[test]
fn disabled_transmit_ring_is_drained_and_dropped_by_name() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Client);
    let mut guest = attach(&path, Role::Server, |_| {});
    echo(&mut guest, [60]);
    guest.enable_ring(spp_vhost::guest::TX_RING, false).unwrap();
    for _ in 0..10 {
        assert!(guest.send(&[1; 60]));
    }
    port.wait_until("drained", |status| status.from_guest.drops.get("not_running") == Some(&10));
    assert_eq!(guest.in_flight(), 0);
    guest.enable_ring(spp_vhost::guest::TX_RING, true).unwrap();
    echo(&mut guest, [60; 5]);
    drop(guest);
    port.close();
}

#[test]
fn frames_of_an_earlier_connection_are_never_delivered_to_a_new_one() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Server);
    let mut guest = attach(&path, Role::Client, |_| {});
    for generation in 0..20u8 {
        let (mut frame, mut seen) = (Vec::new(), 0);
        let deadline = Instant::now() + DEADLINE;
        while seen < 400 {
            assert!(Instant::now() < deadline);
            if !guest.send(&[generation; 60]) {
                std::thread::yield_now();
            }
            while guest.receive(&mut frame) {
                assert!(frame.iter().all(|b| *b == generation), "an old life's frame in life {generation}");
                seen += 1;
            }
        }
        // Gone in the middle of a burst. What the core still holds is dropped while nobody is there.
        guest.disconnect();
        port.wait_for(PortState::Waiting);
        let deadline = Instant::now() + DEADLINE;
        while port.pending.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        guest = {
            drop(guest);
            attach(&path, Role::Client, |_| {})
        };
    }
    drop(guest);
    port.close();
}

#[test]
fn a_thousand_reconnects_leave_no_descriptor_thread_or_mapping_behind() {
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let guest_maps = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("memfd:")).count()
    };
    // Alone in a process: other tests' threads would be counted too.
    const CHILD: &str = "SPP_TEST_RECONNECT_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let test = "a_thousand_reconnects_leave_no_descriptor_thread_or_mapping_behind";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Server);
    let mut guest = attach(&path, Role::Client, |_| {});
    echo(&mut guest, [60]);
    let before = (count("fd"), count("task"), guest_maps());
    for _ in 0..1000 {
        guest.reconnect(DEADLINE).unwrap();
    }
    echo(&mut guest, [60; 8]);
    port.wait_for(PortState::Running);
    assert_eq!((count("fd"), count("task"), guest_maps()), before);
    assert_eq!(port.port.status().reconnects, 1000);
    drop(guest);
    port.close();
}

/// The connection after `n` reconnects has failed.
fn failed_after(status: &PortStatus, n: usize) -> bool {
    status.reconnects == n as u64 && matches!(status.state, PortState::Failed(_))
}

#[test]
fn half_a_message_then_silence_ends_the_connection_with_a_reason() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Server);
    for (n, bytes) in [&[1u8, 0, 0][..], &[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0][..]].iter().enumerate() {
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(bytes).unwrap();
        let status = port.wait_until("failed", |status| failed_after(status, n));
        assert!(status.state.to_string().contains("middle of a message"), "{}", status.state);
    }
    let mut guest = attach(&path, Role::Client, |_| {});
    echo(&mut guest, [60]);
    assert!(port.port.status().last_failure.is_some(), "remembered after recovery");
    drop(guest);
    port.close();
}

#[test]
fn malformed_headers_end_the_connection_and_the_next_peer_is_served() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Server);
    // Wrong version; reply flag; 4 GiB of payload.
    for (n, (flags, size)) in [(0u32, 0u32), (2, 0), (5, 0), (1, u32::MAX)].into_iter().enumerate() {
        let mut peer = UnixStream::connect(&path).unwrap();
        let words = [1u32, flags, size];
        peer.write_all(&words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
        port.wait_until("failed", |status| failed_after(status, n));
    }
    let mut guest = attach(&path, Role::Client, |_| {});
    echo(&mut guest, [60]);
    drop(guest);
    port.close();
}

/// Sends one request with need_reply and returns the answer's payload.
fn ask(peer: &mut UnixStream, request: u32, payload: &[u8]) -> u64 {
    use std::io::Read;
    let mut message = Vec::new();
    for word in [request, 1 | 8, payload.len() as u32] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(payload);
    peer.write_all(&message).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reply = [0; 20];
    peer.read_exact(&mut reply).unwrap();
    assert_eq!(&reply[..4], request.to_ne_bytes());
    u64::from_ne_bytes(reply[12..].try_into().unwrap())
}

#[test]
fn unknown_request_gets_a_failure_reply_and_the_connection_lives() {
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Server);
    let mut peer = UnixStream::connect(&path).unwrap();
    assert_ne!(ask(&mut peer, 1, &[]) & (1 << 32), 0, "VERSION_1 is offered");
    let offered = ask(&mut peer, 15, &[]);
    let names =
        "MQ, LOG_SHMFD, RARP, REPLY_ACK, NET_MTU, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS and nothing else";
    assert_eq!(offered, 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 13 | 1 << 15 | 1 << 16, "{names}");
    let few = 1u64 | 1 << 3 | 1 << 15;
    assert_eq!(ask(&mut peer, 16, &few.to_ne_bytes()), 0);
    for request in [6, 19, 20, 34, 39, 40, 99, u32::MAX] {
        assert_eq!(ask(&mut peer, request, &[0; 8]), 1, "request {request}");
    }
    assert_eq!(ask(&mut peer, 17, &[]), 16, "queue pairs, and the connection still lives");
    assert!(ask(&mut peer, 36, &[]) >= 64, "memory slots");
    // Early ENABLE is fine; a ring that is not there isn't.
    assert_eq!(ask(&mut peer, 18, &[0, 0, 0, 0, 1, 0, 0, 0]), 0);
    assert_eq!(ask(&mut peer, 18, &[31, 0, 0, 0, 1, 0, 0, 0]), 0);
    assert_eq!(ask(&mut peer, 18, &[32, 0, 0, 0, 1, 0, 0, 0]), 1);
    assert_eq!(ask(&mut peer, 8, &[1, 0, 1, 0, 0, 1, 0, 0]), 1, "ring 0x10001 is not ring 1");
    let status = port.port.status();
    assert_eq!(status.state, PortState::Connected);
    assert!(status.detail.contains("driver has not started"), "{}", status.detail);
    assert_eq!(ask(&mut peer, 2, &(1u64 << 32 | 1 << 30).to_ne_bytes()), 0);
    let status = port.port.status();
    assert_eq!(status.state, PortState::Negotiated);
    assert!(status.detail.contains("share=on"), "{}", status.detail);
    drop(peer);
    port.wait_for(PortState::Waiting);
    port.close();
}

#[test]
fn second_peer_is_turned_away_and_the_first_one_keeps_its_port() {
    use std::io::Read;
    let (_dir, path) = socket();
    let port = Echo::open(&path, Role::Server);
    let mut guest = attach(&path, Role::Client, |_| {});
    let mut second = UnixStream::connect(&path).unwrap();
    second.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "closed");
    echo(&mut guest, [60]);
    assert_eq!(port.port.status().reconnects, 0);
    drop(guest);
    port.close();
}

#[test]
fn port_closes_in_every_state_and_removes_its_socket() {
    let (_dir, path) = socket();
    Echo::open(&path, Role::Client).close();
    Echo::open(&path, Role::Server).close();
    assert!(!path.exists());
    let port = Echo::open(&path, Role::Server);
    let _idle = UnixStream::connect(&path).unwrap();
    port.wait_for(PortState::Connected);
    port.close();
    let port = Echo::open(&path, Role::Server);
    let mut guest = attach(&path, Role::Client, |_| {});
    echo(&mut guest, [60]);
    port.close();
    assert!(!path.exists());
}

#[test]
fn wire_is_a_nic_whose_link_follows_its_peer() {
    let (_dir, path) = socket();
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 256 }).unwrap();
    let mut wire = Wire::open(&path).unwrap();
    assert!(!wire.link().is_up());
    let mut queues = wire.start(&pool, 1).unwrap();
    let reason = format!("{:?}", wire.link());
    assert!(reason.contains("waiting"), "{reason}");
    let (mut cache, mut burst, target) = (pool.cache(), Burst::new(), path.clone());
    let guest = std::thread::spawn(move || {
        let mut guest = attach(&target, Role::Client, |_| {});
        echo(&mut guest, [60; 10]);
    });
    let mut was_up = false;
    let deadline = Instant::now() + DEADLINE;
    while !guest.is_finished() {
        assert!(Instant::now() < deadline);
        queues.rx[0].rx_burst(&mut cache, &mut burst);
        queues.tx[0].tx_burst(&mut cache, &mut burst);
        was_up |= wire.link().is_up();
    }
    guest.join().unwrap();
    assert!(was_up);
    wire.stop(queues);
    assert!(!wire.link().is_up());
    drop((burst, cache));
    assert_eq!(pool.counts().out, 0);
}
