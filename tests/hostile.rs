//! The hostile frontend against a node: every attack of a guest and of a socket's holder, and a day's worth of
//! connections and plugs, with traffic beside them that must lose nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost_hostile::backend::{Backend, Role, Spec};
use vhost_hostile::frontend::{Frontend, Wish};
use vhost_hostile::message::PATIENCE;
use vhost_hostile::process::Holdings;
use vhost_hostile::ring::Layout;
use vhost_hostile::rows::{ROWS, Row, find};
use vhost_hostile::suite::{Report, Suite, Verdict};

/// Cycles that stand for a day.
const N_CYCLES: usize = 10_000;
/// Cycles after which nothing may grow any more.
const N_WARM: usize = 500;
/// Memory the node may have more at the end than after the first cycles: what allocators keep.
const GROWTH_KIB: u64 = 2048;

fn spec(role: Role) -> Spec {
    Spec::Spp { binary: PathBuf::from(env!("CARGO_BIN_EXE_spp")), role }
}

/// Each test keeps all CPUs busy: one at a time.
fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs rows, prints a line for each, and fails if any is bad.
fn run(name: &str, role: Role, rows: &[&'static Row]) {
    let _turn = turn();
    let mut suite = Suite::new(spec(role), false);
    let mut bad = Vec::new();
    let mut n_rows = 0;
    for row in rows {
        for layout in row.layouts {
            let report = suite.run(row, *layout).unwrap_or_else(|trouble| panic!("no node: {trouble}"));
            println!("{report}");
            n_rows += 1;
            if !is_good(&report) {
                println!("{}", suite.log());
                bad.push(report.to_string());
            }
        }
    }
    println!("hostile: {name}: {n_rows} rows, {} bad", bad.len());
    assert!(bad.is_empty(), "{bad:#?}");
}

/// Whatever a row attacks must be offered by us.
fn is_good(report: &Report) -> bool {
    report.verdict == Verdict::Ok
}

#[test]
fn every_attack_leaves_the_node_whole_and_the_neighbour_without_loss() {
    run("node listens", Role::Client, &ROWS.iter().collect::<Vec<_>>());
}

#[test]
fn attacks_by_coming_and_going_leave_a_node_that_connects_whole() {
    let rows = ["G07", "G10", "F02", "F14", "F17", "F18", "F19"];
    run("node connects", Role::Server, &rows.map(|id| find(id).expect("a row")));
}

/// A node without traffic, and what it holds.
struct Node {
    backend: Backend,
}

impl Node {
    fn start() -> Node {
        Node { backend: Backend::start(&spec(Role::Client)).expect("the node starts") }
    }

    fn holdings(&self) -> Holdings {
        self.backend.process.and_then(|process| process.holdings()).expect("the node lives")
    }

    /// Expects no more to be held than at `level`, within what allocators keep.
    fn assert_level(&self, level: Holdings, what: &str) {
        let process = self.backend.process.expect("a child");
        let now = self.holdings();
        println!("{what}: {level:?} at first, {now:?} now");
        if let Err(more) = process.returns_to(level, GROWTH_KIB, PATIENCE) {
            panic!("{what}: {more}");
        }
    }
}

#[test]
fn ten_thousand_connections_leave_no_memory_descriptor_or_thread_behind() {
    let _turn = turn();
    let node = Node::start();
    let ports = [&node.backend.victim, node.backend.neighbour.as_ref().expect("two ports")];
    let cycles = |n: usize| {
        // A guest on each port, side by side.
        std::thread::scope(|scope| {
            for port in ports {
                scope.spawn(move || {
                    for turn in 0..n / ports.len() {
                        let connection = port.connect(PATIENCE).expect("the node listens");
                        let layout = [Layout::Split, Layout::Packed][turn % 2];
                        Frontend::attach(connection, Wish::new(layout)).expect("rings run");
                    }
                });
            }
        });
    };
    cycles(N_WARM);
    std::thread::sleep(Duration::from_millis(200));
    let level = node.holdings();
    cycles(N_CYCLES);
    node.assert_level(level, "connections");
}

/// Speaks HTTP over one connection to the API.
struct Api(BufReader<UnixStream>);

impl Api {
    fn connect(path: &Path) -> Api {
        Api(BufReader::new(UnixStream::connect(path).expect("the API listens")))
    }

    /// The status code of one exchange.
    fn status(&mut self, method: &str, path: &str, body: &str) -> u16 {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).expect("the request goes out");
        let (mut line, mut length) = (String::new(), 0);
        self.0.read_line(&mut line).expect("an answer");
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        while line.trim() != "" {
            line.clear();
            self.0.read_line(&mut line).expect("a header");
            let lower = line.to_ascii_lowercase();
            length =
                lower.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().expect("a number"));
        }
        self.0.read_exact(&mut vec![0; length]).expect("the body");
        status
    }
}

#[test]
fn ten_thousand_plugs_leave_no_memory_descriptor_or_thread_behind() {
    let _turn = turn();
    let node = Node::start();
    let mut api = Api::connect(&node.backend.api_socket().expect("ours has an API"));
    let mut cycles = |n: usize| {
        for turn in 0..n {
            let (vhost, vlan) = (turn % 2, 1 + turn % 4094);
            let path = format!("/v1/node/plugs/{vhost}");
            let body = format!(r#"{{"mac_address": "fa:16:3e:00:00:0{}", "vlan_id": {vlan}}}"#, 1 + vhost);
            assert_eq!(api.status("PUT", &path, &body), 200, "plug {turn}");
            assert_eq!(api.status("DELETE", &path, ""), 204, "unplug {turn}");
        }
    };
    cycles(N_WARM);
    let level = node.holdings();
    cycles(N_CYCLES);
    node.assert_level(level, "plugs");
}
