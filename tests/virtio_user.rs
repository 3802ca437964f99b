//! Interop with Debian's `dpdk-testpmd`: its virtio-user port is the guest, our vhost port the backend, no
//! VM and no huge pages. A million frames of each size each way, none lost, in both socket roles; fewer in every
//! ring layout virtio-user has.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::{BURST, Burst};
use spp_vhost::{FromGuest, PortConfig, PortState, Role, ToGuest, VhostPort};

/// The frames of one run.
#[derive(Debug, Clone, Copy)]
struct Run {
    n_frames: u64,
    lens: &'static [usize],
    n_queues: usize,
    /// Devargs of virtio-user beside its path and role.
    options: &'static str,
    /// What is to be negotiated among ring_packed, mrg_rxbuf and in_order.
    features: &'static [&'static str],
}

const PLAIN: Run = Run {
    n_frames: 1_000_000,
    lens: &[64, 1500],
    n_queues: 1,
    options: "queues=1,queue_size=256,packed_vq=0,mrg_rxbuf=1,in_order=0",
    features: &["mrg_rxbuf"],
};

/// Every layout virtio-user has, its vectorised paths included.
const LAYOUTS: &[(&str, &[&str])] = &[
    ("packed_vq=0,mrg_rxbuf=0,in_order=0", &[]),
    ("packed_vq=0,mrg_rxbuf=1,in_order=1", &["mrg_rxbuf", "in_order"]),
    ("packed_vq=0,mrg_rxbuf=0,in_order=1", &["in_order"]),
    ("packed_vq=0,mrg_rxbuf=0,in_order=1,vectorized=1", &["in_order"]),
    ("packed_vq=1,mrg_rxbuf=1,in_order=0", &["mrg_rxbuf", "ring_packed"]),
    ("packed_vq=1,mrg_rxbuf=0,in_order=0", &["ring_packed"]),
    ("packed_vq=1,mrg_rxbuf=1,in_order=1", &["mrg_rxbuf", "ring_packed", "in_order"]),
    ("packed_vq=1,mrg_rxbuf=0,in_order=1", &["ring_packed", "in_order"]),
    ("packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1", &["ring_packed", "in_order"]),
    ("packed_vq=1,mrg_rxbuf=1,in_order=0,queue_size=1024", &["mrg_rxbuf", "ring_packed"]),
];

const DEADLINE: Duration = Duration::from_secs(180);

/// A testpmd whose one port is virtio-user, driven through its prompt.
struct Testpmd {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Testpmd {
    fn start(socket: &Path, guest_listens: bool, options: &str, n_queues: usize) -> Testpmd {
        let server = if guest_listens { ",server=1" } else { "" };
        let vdev = format!("net_virtio_user0,path={},{options}{server}", socket.display());
        let prefix = format!("spp{}", std::process::id());
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "stdbuf", "-oL", "dpdk-testpmd", "--lcores", "0@0,1@1"])
            .args(["--no-pci", "--no-huge", "-m", "256", "--no-telemetry", "--file-prefix", &prefix])
            .args(["--vdev", &vdev, "--", "-i", "--no-mlockall", "--total-num-mbufs=8192"])
            .args([format!("--rxq={n_queues}"), format!("--txq={n_queues}")])
            .args(["--forward-mode=txonly", "--txonly-multi-flow"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv is in every Debian");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (tx, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| tx.send(line).is_ok()));
        Testpmd { child, input, lines, seen: Vec::new() }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("testpmd reads its prompt");
    }

    /// Waits for a line that contains `what`.
    fn wait_for(&mut self, what: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(what) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("testpmd never said '{what}': {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("testpmd ended: {:#?}", self.seen),
            }
        }
    }

    /// Packets and bytes of one direction ("RX" or "TX") of its port.
    fn counted(&mut self, direction: &str) -> (u64, u64) {
        self.type_line("show port stats 0");
        // By what only these lines have: "stop" prints other statistics with the same names. Both
        // lines are read, so that none is left for the next question.
        let lines = [self.wait_for("RX-missed:"), self.wait_for("TX-errors:")];
        let line = lines.iter().find(|line| line.contains(direction)).expect("one of the two");
        let field = |name: &str| {
            let after = line.split(&format!("{direction}-{name}:")).nth(1).unwrap_or_default();
            after.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        (field("packets"), field("bytes"))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The backend: a port and its halves, polled by the test itself.
struct Node {
    pool: Pool,
    cache: PoolCache,
    port: VhostPort,
    to_guest: ToGuest,
    from_guest: FromGuest,
}

impl Node {
    fn open(path: &Path, role: Role) -> Node {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 1024 }).unwrap();
        let config = PortConfig::new("vhost:0", path, role);
        let (port, to_guest, from_guest) = VhostPort::open(config, &pool).unwrap();
        Node { cache: pool.cache(), pool, port, to_guest, from_guest }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Node) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what} never came: {:#?}", self.port.status());
        }
    }

    /// Receives once and checks what came; returns the number of frames.
    fn receive(&mut self, len: usize) -> u64 {
        let mut burst = Burst::new();
        let n = self.from_guest.rx_burst(&mut self.cache, &mut burst) as u64;
        self.to_guest.poll_control();
        assert!(burst.iter().all(|packet| packet.total_len() == len), "frames arrive whole");
        burst.free_all(&mut self.cache);
        if n == 0 {
            std::thread::yield_now();
        }
        n
    }

    /// Sends `n` frames; what the guest has no room for yet is sent again.
    fn send(&mut self, n: u64, len: usize) {
        // UDP over IPv4, from a new port each time: another flow.
        let mut frame: Vec<u8> = (0..len).map(|i| i as u8).collect();
        frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17]);
        let (mut left, mut burst) = (n, Burst::new());
        let deadline = Instant::now() + DEADLINE;
        while left > 0 || !burst.is_empty() {
            while burst.len() < BURST && left > 0 {
                let Some(mut packet) = self.cache.alloc() else { break };
                frame[34..36].copy_from_slice(&(left as u16).to_be_bytes());
                packet.append(&frame).unwrap();
                burst.push(packet).unwrap();
                left -= 1;
            }
            if self.to_guest.tx_burst(&mut self.cache, &mut burst) == 0 {
                assert!(Instant::now() < deadline, "{left} frames not sent: {:#?}", self.port.status());
                self.from_guest.poll_control();
                std::thread::yield_now();
            }
        }
    }

    fn close(self) {
        let Node { pool, cache, port, to_guest, from_guest } = self;
        port.close(to_guest, from_guest);
        drop(cache);
        assert_eq!(pool.counts().out, 0, "every buffer came back");
    }
}

/// Each test keeps two CPUs busy, and testpmd's files are named after this process: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn exchange(test: &str, role: Role, run: Run) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock0");
    if Command::new("dpdk-testpmd").arg("--version").output().is_err() {
        println!("SKIPPED: {test}: dpdk-testpmd is not installed (Debian package dpdk-dev or dpdk)");
        return;
    }
    let mut node = Node::open(&socket, role);
    let mut guest = Testpmd::start(&socket, role == Role::Client, run.options, run.n_queues);
    node.until("running", |node| {
        node.to_guest.poll_control();
        node.from_guest.poll_control();
        std::thread::sleep(Duration::from_millis(1));
        node.port.status().n_queues_running == run.n_queues
    });
    let negotiated = node.port.status().features;
    let of_rings = |name: &&&str| ["ring_packed", "mrg_rxbuf", "in_order"].contains(*name);
    assert_eq!(negotiated.iter().filter(of_rings).copied().collect::<Vec<_>>(), run.features);
    for &len in run.lens {
        from_guest(&mut node, &mut guest, len, run.n_frames);
        to_guest(&mut node, &mut guest, len, run.n_frames);
    }
    let status = node.port.status();
    assert_eq!((status.to_guest.total_drops(), status.from_guest.total_drops()), (0, 0));
    assert_eq!((status.queues.len(), status.n_queues_running), (run.n_queues, run.n_queues));
    for (n, queue) in status.queues.iter().enumerate() {
        let fair = run.n_frames / run.n_queues as u64 / 2;
        assert!(queue.to_guest.packets > fair, "to queue {n}: {status:#?}");
        assert!(queue.from_guest.packets > fair, "from queue {n}: {status:#?}");
    }
    guest.type_line("quit");
    node.until("disconnect", |node| {
        node.receive(1500);
        node.to_guest.poll_control();
        node.port.status().state == PortState::Waiting
    });
    node.close();
}

fn from_guest(node: &mut Node, guest: &mut Testpmd, len: usize, n_frames: u64) {
    guest.type_line("stop");
    guest.type_line("clear port stats 0");
    guest.type_line("set fwd txonly");
    guest.type_line(&format!("set txpkts {len}"));
    guest.type_line("start");
    let mut received = 0;
    node.until("as many frames from the guest", |node| {
        received += node.receive(len);
        received >= n_frames
    });
    guest.type_line("stop");
    // What it still sends until it stops counts as well.
    let mut quiet_since = Instant::now();
    node.until("silence", |node| {
        let n = node.receive(len);
        received += n;
        if n > 0 {
            quiet_since = Instant::now();
        }
        quiet_since.elapsed() > Duration::from_secs(1)
    });
    let (sent, _) = guest.counted("TX");
    assert_eq!(received, sent, "every frame of {len} bytes the guest sent was received");
    println!("from_guest: {received} frames of {len} bytes, none lost");
}

fn to_guest(node: &mut Node, guest: &mut Testpmd, len: usize, n_frames: u64) {
    guest.type_line("clear port stats 0");
    guest.type_line("set fwd rxonly");
    guest.type_line("start");
    node.send(n_frames, len);
    let mut counted = (0, 0);
    node.until("all frames at the guest", |_| {
        counted = guest.counted("RX");
        std::thread::sleep(Duration::from_millis(20));
        counted.0 >= n_frames
    });
    assert_eq!(counted, (n_frames, n_frames * len as u64), "frames of {len} bytes");
    println!("to_guest: {n_frames} frames of {len} bytes, none lost");
}

#[test]
fn virtio_user_that_listens_exchanges_millions_of_frames_without_loss() {
    exchange("virtio_user_that_listens_exchanges_millions_of_frames_without_loss", Role::Client, PLAIN);
}

#[test]
fn virtio_user_that_connects_exchanges_millions_of_frames_without_loss() {
    exchange("virtio_user_that_connects_exchanges_millions_of_frames_without_loss", Role::Server, PLAIN);
}

#[test]
fn virtio_user_in_every_ring_layout_exchanges_frames_without_loss() {
    for &(options, features) in LAYOUTS {
        println!("{options}");
        let run = Run { n_frames: 100_000, lens: &[1500], n_queues: 1, options, features };
        exchange("virtio_user_in_every_ring_layout_exchanges_frames_without_loss", Role::Client, run);
    }
}

#[test]
fn virtio_user_with_four_queues_uses_them_all() {
    for (options, features) in [
        ("queues=4,cq=1,packed_vq=0,mrg_rxbuf=1,in_order=0", &["mrg_rxbuf"][..]),
        ("queues=4,cq=1,packed_vq=1,mrg_rxbuf=1,in_order=0", &["mrg_rxbuf", "ring_packed"]),
    ] {
        println!("{options}");
        let run = Run { n_frames: 100_000, lens: &[64], n_queues: 4, options, features };
        exchange("virtio_user_with_four_queues_uses_them_all", Role::Client, run);
    }
}
