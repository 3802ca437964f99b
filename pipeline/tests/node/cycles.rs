//! Nothing grows, nothing leaks.

use crate::support::*;

#[test]
fn stopping_under_traffic_brings_every_buffer_back() {
    let site = Site::new();
    for _ in 0..3 {
        let mut node = site.one_nic();
        node.plug(&plug(0, Some(5))).unwrap();
        let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
        for id in 0..200 {
            wire.send(&frame(mac(0), Some(5), id));
            vm.send(&frame(mac(0xee), None, id));
        }
        let pool = node.pool().clone();
        drop(node);
        assert_eq!(pool.counts().out, 0);
    }
}

#[test]
fn counts_of_a_guest_add_up() {
    for site in Site::apart_and_fused() {
        let mut node = site.one_nic();
        node.plug(&plug(0, None)).unwrap();
        let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
        let sent = 20_000u64;
        let mut received = 0u64;
        for id in 0..sent {
            // The VM reads, but not always in time.
            send(&mut wire, &frame(mac(if id % 10 == 0 { 99 } else { 0 }), None, id as u32));
            if id % 300 == 0 {
                received += drain(&mut vm);
            }
        }
        eventually(&mut node, "all frames are accounted for", |node| {
            received += drain(&mut vm);
            let status = node.status();
            let vf = &status.vfs[0];
            let dropped: u64 =
                vf.components.iter().map(|component| component.drops.values().sum::<u64>()).sum();
            received + dropped + vf.vhosts[0].to_guest.total_drops() + vf.nic.rx.total_drops() == sent
        });
        assert_eq!(component_drops(&node.status(), "unknown_destination"), sent / 10);
    }
}

fn drain(vm: &mut spp_vhost::guest::Guest) -> u64 {
    let (mut n, mut buf) = (0, Vec::new());
    while vm.receive(&mut buf) {
        n += 1;
    }
    n
}
