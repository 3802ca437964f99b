//! Reconnecting under load, in both socket roles: frames flow again each time. How long it took is printed, not
//! asserted: that is a matter of the machine.

#[path = "support/echo.rs"]
mod echo_port;

use std::time::{Duration, Instant};

use echo_port::*;
use spp_vhost::Role;

#[test]
fn frames_flow_again_after_every_reconnect_under_load() {
    for role in [Role::Client, Role::Server] {
        let (_dir, path) = socket();
        let port = Echo::open(&path, role);
        let mut guest = attach(&path, other(role), |_| {});
        let mut times = Vec::new();
        for round in 0..30u8 {
            let (mut back, mut n) = (Vec::new(), 0);
            let deadline = Instant::now() + DEADLINE;
            // In the middle of traffic: some frames are on their way in both directions.
            while n < 200 {
                assert!(Instant::now() < deadline, "round {round}: {:#?}", port.port.status());
                guest.send(&[round; 60]);
                while guest.receive(&mut back) {
                    n += 1;
                }
            }
            let gone = Instant::now();
            guest.reconnect(DEADLINE).unwrap();
            // A frame of its own, so that one that was still on its way does not count.
            let mark = [round ^ 0x80; 61];
            while back != mark {
                assert!(Instant::now() < deadline, "round {round}: {:#?}", port.port.status());
                guest.send(&mark);
                if !guest.receive(&mut back) {
                    std::thread::yield_now();
                }
            }
            times.push(gone.elapsed());
        }
        times.sort();
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        let within = times.iter().filter(|time| **time <= Duration::from_millis(100)).count();
        println!(
            "{role:?}: median {median:?}, longest {longest:?}, {within} of {} within 100 ms",
            times.len()
        );
        assert_eq!(port.port.status().reconnects, 30);
        drop(guest);
        port.close();
    }
}
