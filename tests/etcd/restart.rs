//! The agent restarts, the node does not: not one frame is lost, and what etcd says meanwhile is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;
use spp_vhost::Role;
use spp_vhost::guest::{Guest, GuestConfig};

use super::binary::{Spp, put_mappings};
use super::*;

/// Frames of one direction on their way at most: less than any ring holds.
const WINDOW: u64 = 64;
const WIRE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 0xa0, 0xda, 0xdb];

/// Numbered frames both ways between the wire and a guest, each of which must arrive, in order.
struct Traffic {
    stop: Arc<AtomicBool>,
    received: Arc<[AtomicU64; 2]>,
    thread: JoinHandle<Result<[u64; 2], String>>,
}

fn frame(to: [u8; 6], from: [u8; 6], number: u64) -> Vec<u8> {
    // Ethertype 0x88b5: for experiments on one's own network.
    let mut frame = [&to[..], &from[..], &[0x88, 0xb5], &number.to_be_bytes()].concat();
    frame.resize(60, 0);
    frame
}

impl Traffic {
    fn start(mut wire: Guest, mut guest: Guest) -> Traffic {
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 2]));
        let (stopped, counts) = (stop.clone(), received.clone());
        let thread = std::thread::spawn(move || {
            let (mut sent, mut seen) = ([0u64; 2], [0u64; 2]);
            let mut last_news = std::time::Instant::now();
            let mut bytes = Vec::new();
            loop {
                let ending = stopped.load(Ordering::Relaxed);
                if ending && sent == seen {
                    return Ok(seen);
                }
                let before = (sent, seen);
                let ends = [(WIRE_MAC, GUEST_MAC), (GUEST_MAC, WIRE_MAC)];
                for (way, (from, to)) in ends.into_iter().enumerate() {
                    let (near, far) =
                        if way == 0 { (&mut wire, &mut guest) } else { (&mut guest, &mut wire) };
                    while !ending && sent[way] - seen[way] < WINDOW && near.send(&frame(to, from, sent[way]))
                    {
                        sent[way] += 1;
                    }
                    while far.receive(&mut bytes) {
                        if bytes[..] != frame(to, from, seen[way])[..] {
                            return Err(format!("way {way}: not frame {}: {bytes:02x?}", seen[way]));
                        }
                        seen[way] += 1;
                        counts[way].store(seen[way], Ordering::Relaxed);
                    }
                }
                if (sent, seen) != before {
                    last_news = std::time::Instant::now();
                } else if last_news.elapsed() > support::DEADLINE {
                    return Err(format!("stuck: sent {sent:?}, seen {seen:?}"));
                } else {
                    std::thread::yield_now();
                }
            }
        });
        Traffic { stop, received, thread }
    }

    /// Until this many more have arrived each way.
    async fn pass(&self, n: u64) {
        let now = || [0, 1].map(|way: usize| self.received[way].load(Ordering::Relaxed));
        let goal = now().map(|count| count + n);
        until("frames arrive both ways", || async {
            self.thread.is_finished() || now().iter().zip(goal).all(|(now, goal)| *now >= goal)
        })
        .await;
    }

    /// Frames received each way; all that were sent.
    fn end(self) -> [u64; 2] {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic").expect("no frame is lost, doubled, damaged or out of order")
    }
}

fn agent(spp: &Spp<'_>) -> Value {
    let output = spp.cli(&["agent", "status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

async fn attach(config: GuestConfig) -> Guest {
    let guest = tokio::task::spawn_blocking(|| Guest::attach(config, support::DEADLINE));
    guest.await.unwrap().expect("the node is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_restarts_without_losing_a_frame() {
    const TEST: &str = "agent_restarts_without_losing_a_frame";
    let Some(etcd) = Etcd::start(TEST).await else { return };
    let mut driver = Driver::new(etcd.client().await, HOST);
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.sock");
    let mappings = format!("vhost-user:{}#phys1#2#0xfe", wire.display());
    assert_eq!(put_mappings(&etcd.url(), &mappings), Some(0));
    let spp = Spp::run(&etcd.url(), dir.path());
    let wire = attach(GuestConfig::new(wire, Role::Client)).await;
    let guest = attach(GuestConfig::new(dir.path().join("sock0"), Role::Server)).await;
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;

    let traffic = Traffic::start(wire, guest);
    traffic.pass(1000).await;
    for round in 1..=5u64 {
        // What is asked for while the agent is away is done, what is wired is left alone.
        assert!(spp.cli(&["agent", "restart"]).status.success());
        let late = format!("late{round}");
        driver.bind(&late, ("phys1", 1), "fa:16:3e:00:00:02", Some(7)).await;
        driver.until_up(&late).await;
        until("the agent was started anew", || async { agent(&spp)["n_restarts"] == round }).await;
        traffic.pass(1000).await;
        driver.unbind(&late).await;
        driver.until_gone(&late).await;
    }
    until("all is as etcd wants it", || async { spp.cli(&["agent", "status"]).status.code() == Some(0) })
        .await;
    let status = agent(&spp);
    assert_eq!((&status["in_order"], &status["last_restart"]), (&true.into(), &"asked to".into()));
    assert_eq!(status["ports"][0]["port"], PORT);
    assert_eq!(status["ports"][0]["wanted"], status["ports"][0]["live"]);

    // Nor when etcd itself goes away and comes back; the status says so meanwhile.
    let mut etcd = etcd;
    etcd.kill();
    until("the agent notices", || async { agent(&spp)["etcd"]["connected"] == false }).await;
    let away = spp.cli(&["agent", "status"]);
    assert_eq!(away.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&away.stderr).into_owned();
    assert!(complaint.starts_with("spp: no connection to etcd: "), "{complaint}");
    assert!(agent(&spp)["etcd"]["last_error"].is_string());
    assert!(spp.cli(&["agent", "restart"]).status.success());
    traffic.pass(1000).await;
    etcd.run().await;
    until("the agent is back", || async { agent(&spp)["in_order"] == true }).await;
    let seen = traffic.end();
    assert!(seen.iter().all(|&n| n >= 7000), "{seen:?}");
    assert_eq!(spp.stop().await, Some(0));
}
