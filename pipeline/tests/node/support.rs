//! A node in a directory of its own, the guests behind its sockets, and frames.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use spp_drivers::MacAddr;
use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::{Node, NodeOptions};
use spp_pipeline::status::NodeStatus;
use spp_pipeline::topology::Plug;
use spp_vhost::Role;
use spp_vhost::guest::{Guest, GuestConfig};

/// Far above anything a working node needs, also on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long to look for a frame that must not come, after one that was sent later has come.
const GRACE: Duration = Duration::from_millis(50);

pub struct Site {
    pub dir: tempfile::TempDir,
    /// All components on one core, so that their rings are fused.
    pub on_one_core: bool,
}

impl Site {
    pub fn new() -> Site {
        Site { dir: tempfile::tempdir().unwrap(), on_one_core: false }
    }

    /// One with a core for each component, and one with a core for all.
    pub fn apart_and_fused() -> [Site; 2] {
        [Site::new(), Site { on_one_core: true, ..Site::new() }]
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A mapping whose NIC is the wire `name`.
    pub fn wire_mapping(&self, name: &str, rest: &str) -> String {
        format!("vhost-user:{}#{rest}", self.path(name).display())
    }

    pub fn options(&self) -> NodeOptions {
        NodeOptions { vhost_dir: self.dir.path().to_owned(), fold_cores: true, ..NodeOptions::default() }
    }

    /// One wire `wire0` with two vhosts.
    pub fn one_nic(&self) -> Node {
        let mut config = NodeConfig::from_mappings(&self.wire_mapping("wire0", "phys1#2#0xfe")).unwrap();
        if self.on_one_core {
            let mut components = config.components(0).unwrap();
            components.iter_mut().for_each(|component| component.core = 2);
            config.vfs[0].components = Some(components);
        }
        Node::start(config, self.options()).unwrap()
    }

    /// The machine at the other end of a wire.
    pub fn wire(&self, name: &str) -> Guest {
        Guest::attach(GuestConfig::new(self.path(name), Role::Client), DEADLINE).unwrap()
    }

    /// The VM behind a vhost: it listens, as OpenStack's do. The node's control side must be served meanwhile.
    pub fn guest(&self, node: &mut Node, vhost: u32) -> Guest {
        self.guest_with(node, vhost, |_| ())
    }

    /// As [`guest`](Self::guest), configured.
    pub fn guest_with(&self, node: &mut Node, vhost: u32, change: impl FnOnce(&mut GuestConfig)) -> Guest {
        let mut config = GuestConfig::new(self.path(&format!("sock{vhost}")), Role::Server);
        change(&mut config);
        let guest = std::thread::spawn(move || Guest::attach(config, DEADLINE));
        eventually(node, "the guest is attached", |_| guest.is_finished());
        let guest = guest.join().unwrap().unwrap();
        let name = format!("vhost:{vhost}");
        eventually(node, "the port runs", |node| {
            let status = node.status();
            let mut ports = status.vfs.iter().flat_map(|vf| &vf.vhosts);
            ports.any(|port| port.port == name && port.state == "running")
        });
        guest
    }
}

/// Ticks the node until `done`.
pub fn eventually(node: &mut Node, what: &str, mut done: impl FnMut(&mut Node) -> bool) {
    let start = Instant::now();
    while !done(node) {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}\n{:#?}", node.status());
        node.tick();
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

pub fn plug(vhost: u32, vlan: Option<u16>) -> Plug {
    Plug { vhost, mac: mac(vhost as u8), vlan }
}

/// A 64-byte frame to `dst` with a tag or without, that carries `id`.
pub fn frame(dst: MacAddr, vlan: Option<u16>, id: u32) -> Vec<u8> {
    let mut frame = dst.0.to_vec();
    frame.extend(mac(0xee).0);
    if let Some(vid) = vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(vid.to_be_bytes());
    }
    frame.extend([0x88, 0xb5]);
    frame.extend(id.to_be_bytes());
    frame.resize(64, 0x5a);
    frame
}

/// The tag of a frame and the id it carries.
pub fn parse(frame: &[u8]) -> (Option<u16>, u32) {
    let tagged = frame[12..14] == [0x81, 0x00];
    let at = if tagged { 18 } else { 14 };
    let vid = tagged.then(|| u16::from_be_bytes([frame[14], frame[15]]) & 0xfff);
    (vid, u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()))
}

pub fn send(guest: &mut Guest, frame: &[u8]) {
    let start = Instant::now();
    while !guest.send(frame) {
        assert!(start.elapsed() < DEADLINE, "the ring stays full");
        std::thread::yield_now();
    }
}

/// The next frame.
pub fn receive(guest: &mut Guest) -> Vec<u8> {
    let (start, mut buf) = (Instant::now(), Vec::new());
    while !guest.receive(&mut buf) {
        assert!(start.elapsed() < DEADLINE, "no frame came");
        std::thread::sleep(Duration::from_micros(50));
    }
    buf
}

/// The id and tag of the next frame.
pub fn receive_id(guest: &mut Guest) -> (Option<u16>, u32) {
    parse(&receive(guest))
}

/// Nothing more comes.
pub fn assert_silent(guest: &mut Guest) {
    std::thread::sleep(GRACE);
    let mut buf = Vec::new();
    assert!(!guest.receive(&mut buf), "unexpected frame {:?}", parse(&buf));
}

/// Drops for one reason, over all components.
pub fn component_drops(status: &NodeStatus, reason: &str) -> u64 {
    let components = status.vfs.iter().flat_map(|vf| &vf.components);
    components.filter_map(|component| component.drops.get(reason)).sum()
}
