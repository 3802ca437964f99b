//! Plugging and unplugging for ever costs nothing. Alone in its process, whose threads and files it counts.

#[path = "node/support.rs"]
#[allow(dead_code)]
mod support;

use std::fs::read_dir;

use support::*;

/// Threads and open files of this process.
fn counts() -> (usize, usize) {
    (read_dir("/proc/self/task").unwrap().count(), read_dir("/proc/self/fd").unwrap().count())
}

#[test]
fn two_hundred_plugs_leave_memory_threads_and_files_as_they_were() {
    let site = Site::new();
    // The first interrupt opens what the process keeps for all others.
    let mut first = site.one_nic();
    drop(site.guest(&mut first, 0));
    drop(first);
    let before = counts();
    let mut node = site.one_nic();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let mut running = None;
    for round in 0..200u32 {
        let vlan = (round % 3 != 0).then_some(1 + round as u16 % 4094);
        node.plug(&plug(0, vlan)).unwrap();
        node.plug(&plug(1, None)).unwrap();
        send(&mut wire, &frame(mac(0), vlan, round));
        assert_eq!(receive_id(&mut vm), (None, round));
        send(&mut vm, &frame(mac(0xee), None, round));
        assert_eq!(receive_id(&mut wire), (vlan, round));
        node.unplug(0).unwrap();
        node.unplug(1).unwrap();
        let now = (counts(), node.pool().counts().capacity);
        assert_eq!(*running.get_or_insert(now), now, "round {round}");
    }
    let status = node.status();
    assert!(status.vfs[0].vhosts.iter().all(|vhost| vhost.plug.is_none() && vhost.reconnects == 0));
    let dropped: u64 =
        status.vfs[0].components.iter().map(|component| component.drops.values().sum::<u64>()).sum();
    assert_eq!(dropped, 0);
    let pool = node.pool().clone();
    drop((node, wire, vm));
    assert_eq!(pool.counts().out, 0, "every buffer is back");
    drop(pool);
    assert_eq!(counts(), before);
}
