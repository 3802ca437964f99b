//! Taps as the TaaS service driver asks for them, and the frames that are copied.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spp_vhost::Role;
use spp_vhost::guest::{Guest, GuestConfig};

use crate::control::{Control, bind};
use crate::host::Host;
use crate::support::server::Etcd;
use crate::support::until;
use crate::{mac, port};

/// Longest wait for a frame or a guest; only a hang gets there.
const DEADLINE: Duration = Duration::from_secs(60);

/// The host's wire is a vhost-user device at this path under its directory.
pub fn wire_mapping(dir: &std::path::Path, n_vhost: u32) -> String {
    format!("vhost-user:{}#phys1#{n_vhost}#0x1ff", dir.join("wire").display())
}

/// The other end of one of the host's vhost-user sockets.
pub fn attach(host: &Host, file: &str, role: Role) -> Guest {
    Guest::attach(GuestConfig::new(host.vhost_dir().join(file), role), DEADLINE).expect("it is attached")
}

fn tap_command(word: &str, direction: &str) -> Value {
    let hosts: BTreeMap<String, &str> = [1, 2].map(|n| (port(n), "spp4")).into();
    json!({"do": word, "tap_flow": "flow", "tap_service": "service", "source": port(1),
           "direction": direction, "hosts": hosts})
}

/// Port 1 is tapped by a service at port 2.
fn declare_service(control: &mut Control) {
    let hosts: BTreeMap<String, &str> = [1, 2].map(|n| (port(n), "spp4")).into();
    let service = json!({"do": "tap_service", "tap_service": "service", "port": port(2), "hosts": hosts});
    control.call(service).unwrap();
}

async fn mirrors(host: &Host, etcd: &Etcd) -> Vec<String> {
    let keys = host.keys(etcd).await;
    keys.into_iter().filter(|(key, _)| key.starts_with("mirror/")).map(|(_, value)| value).collect()
}

/// What the node does, mirror by mirror.
fn taps(host: &Host) -> Vec<Value> {
    let status = host.status().expect("the node answers");
    let taps = status["agent"]["taps"].as_array().unwrap();
    taps.iter().flat_map(|tap| tap["live"].as_array().unwrap().clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taas_drivers_taps_come_and_go_with_their_flows_and_ports() {
    let test = "taas_drivers_taps_come_and_go_with_their_flows_and_ports";
    let Some(etcd) = Etcd::start(test).await else { return };
    let Some(mut control) = Control::start(test, &etcd) else { return };
    let mut host = Host::configured(&etcd, "spp4", "null:#phys1#3#0x1ff");
    assert!(host.config_put(&["--mirrors", "16,17", "null:#phys1#3#0x1ff"]).status.success());
    host.run().await;
    let before = host.keys(&etcd).await;
    for n in [1, 2] {
        assert_eq!(control.bind(bind("spp4", &port(n), &mac(n), "phys1", None)), Some(n as u32 - 1));
    }
    let bound = before.len() + 6;
    declare_service(&mut control);
    let live = |mirror: u32, direction: &str| json!({"mirror": mirror, "direction": direction, "source": 0, "service": 1});
    for (direction, expected) in [
        ("IN", vec![live(0, "in")]),
        ("OUT", vec![live(0, "out")]),
        ("BOTH", vec![live(0, "in"), live(1, "out")]),
    ] {
        control.call(tap_command("tap", direction)).unwrap();
        let keys = host.keys(&etcd).await;
        assert!(keys.contains(&("tap_status/flow".into(), "up".into())), "{direction}: {keys:?}");
        assert_eq!(taps(&host), expected, "{direction}");
        control.call(tap_command("untap", direction)).unwrap();
        until("the flow has no keys", || async { host.keys(&etcd).await.len() == bound }).await;
        assert_eq!(mirrors(&host, &etcd).await, ["None", "None"]);
        assert!(taps(&host).is_empty());
    }

    // A second flow finds no mirror, and the one it took first is free again.
    control.call(tap_command("tap", "IN")).unwrap();
    let mut second = tap_command("tap", "BOTH");
    second["tap_flow"] = "second".into();
    assert_eq!(control.call(second), Err("NoMirrorAvailable".into()));
    assert_eq!(mirrors(&host, &etcd).await, ["flow", "None"]);

    // Killed: the tap is back after the ports.
    host.kill();
    host.run().await;
    until("it is tapped again", || async { taps(&host) == [live(0, "in")] }).await;

    // The watching port is deleted, and with it the tap; the flow's own end then has nothing left to do.
    control.delete("spp4", &port(2));
    until("the tap and its port have no keys", || async { host.keys(&etcd).await.len() == bound - 3 }).await;
    assert!(taps(&host).is_empty());
    control.call(tap_command("untap", "IN")).unwrap();
    control.delete("spp4", &port(1));
    host.until_unused(&etcd).await;
    assert_eq!(host.keys(&etcd).await, before);
}

/// The wire and the guests of ports 1 (source) and 2 (service).
struct Traffic {
    wire: Guest,
    source: Guest,
    service: Guest,
    n_sent: u32,
}

impl Traffic {
    fn attach(host: &Host) -> Traffic {
        let wire = attach(host, "wire", Role::Client);
        Traffic {
            wire,
            source: attach(host, "sock0", Role::Server),
            service: attach(host, "sock1", Role::Server),
            n_sent: 0,
        }
    }

    /// One frame each way, and how many copies of them the service's guest got: to and from the source.
    fn ping(&mut self) -> [usize; 2] {
        let ids = [self.n_sent, self.n_sent + 1];
        self.n_sent += 2;
        let station = frame(&mac(1), ids[0]);
        send(&mut self.wire, &station);
        receive_until(&mut self.source, ids[0]);
        send(&mut self.source, &frame("02:00:00:00:00:ee", ids[1]));
        receive_until(&mut self.wire, ids[1]);
        // The service's own frame, sent last, comes last.
        let own = frame(&mac(2), u32::MAX);
        send(&mut self.wire, &own);
        let mut copies = receive_until(&mut self.service, u32::MAX);
        // The copy of what the source sent takes another way than its own frame.
        std::thread::sleep(Duration::from_millis(50));
        let mut buf = Vec::new();
        while self.service.receive(&mut buf) {
            copies.push(id(&buf));
        }
        ids.map(|id| copies.iter().filter(|copy| **copy == id).count())
    }
}

/// 64 bytes from the wire's station.
pub fn frame(to: &str, id: u32) -> Vec<u8> {
    let bytes = |text: &str| text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect::<Vec<_>>();
    let mut frame = bytes(to);
    frame.extend(bytes("02:00:00:00:00:ee"));
    frame.extend([0x88, 0xb5]);
    frame.extend(id.to_be_bytes());
    frame.resize(64, 0);
    frame
}

fn id(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

pub fn send(guest: &mut Guest, frame: &[u8]) {
    let start = Instant::now();
    while !guest.send(frame) {
        assert!(start.elapsed() < DEADLINE, "the ring stays full");
        std::thread::yield_now();
    }
}

/// Receives up to the frame with this id; the ids of those before it.
pub fn receive_until(guest: &mut Guest, last: u32) -> Vec<u32> {
    let (start, mut buf, mut before) = (Instant::now(), Vec::new(), Vec::new());
    loop {
        if guest.receive(&mut buf) {
            if id(&buf) == last {
                return before;
            }
            before.push(id(&buf));
        } else {
            assert!(start.elapsed() < DEADLINE, "frame {last} does not come");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taas_drivers_flow_copies_frames_to_the_services_guest() {
    let test = "taas_drivers_flow_copies_frames_to_the_services_guest";
    let Some(etcd) = Etcd::start(test).await else { return };
    let Some(mut control) = Control::start(test, &etcd) else { return };
    let mut host = Host::configured(&etcd, "spp4", "null:#phys1#3#0x1ff");
    let mapping = wire_mapping(host.vhost_dir(), 3);
    assert!(host.config_put(&["--mirrors", "16,17", &mapping]).status.success());
    host.run().await;
    for n in [1, 2] {
        assert_eq!(control.bind(bind("spp4", &port(n), &mac(n), "phys1", None)), Some(n as u32 - 1));
    }
    declare_service(&mut control);
    let mut traffic = Traffic::attach(&host);
    until("the guests' ports run", || async {
        let status = host.status().expect("the node answers");
        (0..2).all(|v| status["vfs"][0]["vhosts"][v]["state"] == "running")
    })
    .await;
    assert_eq!(traffic.ping(), [0, 0]);
    for (direction, copies) in [("IN", [1, 0]), ("OUT", [0, 1]), ("BOTH", [1, 1])] {
        control.call(tap_command("tap", direction)).unwrap();
        assert_eq!([traffic.ping(), traffic.ping()], [copies; 2], "{direction}");
        control.call(tap_command("untap", direction)).unwrap();
        until("the mirrors are free", || async { mirrors(&host, &etcd).await == ["None", "None"] }).await;
        assert_eq!(traffic.ping(), [0, 0], "after {direction}");
    }
    control.call(tap_command("tap", "BOTH")).unwrap();
    control.delete("spp4", &port(2));
    until("the tap is gone with its port", || async { mirrors(&host, &etcd).await == ["None", "None"] })
        .await;
    send(&mut traffic.wire, &frame(&mac(1), 1_000));
    receive_until(&mut traffic.source, 1_000);
    std::thread::sleep(Duration::from_millis(100));
    let mut buf = Vec::new();
    while traffic.service.receive(&mut buf) {
        assert_ne!(id(&buf), 1_000, "a copy after the tap's end");
    }
}
