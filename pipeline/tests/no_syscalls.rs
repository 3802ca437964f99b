//! A busy polling thread makes no system calls: strace watches it while a guest's frames go round.

#![forbid(unsafe_code)]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::sched_getcpu;
use spp_pipeline::plan::*;
use spp_pipeline::worker::{Worker, WorkerConfig};
use spp_vhost::guest::{Guest, GuestConfig};
use spp_vhost::{PortConfig, Role, VhostPort};
use support::*;

const TEST: &str = "busy_polling_thread_makes_no_system_calls";
/// Round trips that are watched.
const FRAMES: u64 = 300;

fn thread_named(name: &str) -> u32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let is_it = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let task = tasks.into_iter().find(is_it).expect("the thread runs");
    task.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Sends frames one by one and waits for each; returns when `n` have come back.
fn go_round(guest: &mut Guest, n: u64) {
    let until = Instant::now() + 3 * DEADLINE;
    for _ in 0..n {
        assert!(guest.send(&frame(mac("02:00:00:00:00:0a"), &[], 64, 7)));
        while guest.receive_burst(32, |_| ()) == 0 {
            assert!(Instant::now() < until, "a frame did not come back");
            std::thread::yield_now();
        }
    }
}

#[test]
fn busy_polling_thread_makes_no_system_calls() {
    if Command::new("strace").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED: {TEST}: strace is not installed (Debian package strace)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (pool, socket) = (pool(1024), dir.path().join("sock0"));
    let config = PortConfig::new("vhost:0", &socket, Role::Server);
    let (port, to_guest, from_guest) = VhostPort::open(config, &pool).unwrap();
    let config = WorkerConfig {
        core: sched_getcpu(),
        fold: false,
        idle: Default::default(),
        name: "spp-core-syscl".into(),
    };
    let mut worker = Worker::spawn(config, &pool).unwrap();
    let forward = Work::Forward { rx: rx_edge(0, VlanOp::None), tx: tx_edge(0, VlanOp::None, WAIT) };
    let change = Change {
        plan: plan(1, vec![component("f", forward)]),
        rx_in: vec![(RxSlot(0), Box::new(from_guest))],
        tx_in: vec![(TxSlot(0), Box::new(to_guest))],
        ..Change::default()
    };
    worker.change(change, DEADLINE).unwrap();
    let mut guest = Guest::attach(GuestConfig::new(&socket, Role::Client), DEADLINE).unwrap();
    go_round(&mut guest, 10);

    // A thread that does make calls shows that they would be seen.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let talker = std::thread::Builder::new().name("talks".into()).spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(1))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {}
    });
    std::thread::sleep(Duration::from_millis(20));
    let (polling, talking) = (thread_named("spp-core-syscl"), thread_named("talks"));
    let log = dir.path().join("calls");
    let mut strace = Command::new("strace")
        .args(["-p", &polling.to_string(), "-p", &talking.to_string(), "-o"])
        .arg(&log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines_of = |tid: u32| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let of = format!("{tid} ");
        text.lines().filter(|line| line.starts_with(&of)).map(str::to_owned).collect::<Vec<_>>()
    };
    let until = Instant::now() + DEADLINE;
    while lines_of(talking).len() < 5 && strace.try_wait().unwrap().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let may_watch = strace.try_wait().unwrap().is_none();
    if may_watch {
        go_round(&mut guest, FRAMES);
        // Seen only when the file is flushed: wait until what the other thread did since is in it.
        let seen = lines_of(talking).len();
        while lines_of(talking).len() < seen + 5 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let calls = lines_of(polling);
        assert!(lines_of(talking).len() > 5, "strace saw the other thread's calls");
        // Being traced is no call; a line of its own says so (it starts with dashes or a plus).
        let calls: Vec<_> = calls.iter().filter(|line| line.contains('(')).collect();
        assert!(calls.is_empty(), "{calls:#?}");
        assert_eq!(guest.counters().received, FRAMES + 10);
    } else {
        println!("SKIPPED: {TEST}: strace may not watch threads here (kernel.yama.ptrace_scope)");
    }
    // It lets go of both threads when it is interrupted.
    let _ = Command::new("kill").args(["-INT", &strace.id().to_string()]).status();
    let _ = strace.wait();
    drop(stop);
    talker.unwrap().join().unwrap();
    drop(guest);
    port.close_with(|| std::thread::sleep(Duration::from_millis(1)));
    worker.stop(DEADLINE).unwrap();
}
