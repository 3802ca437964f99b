//! neutron-server as far as reports go: oslo.messaging's RPC server in its own Python.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use super::DEADLINE;

/// The Python that has oslo.messaging, as `.ci/setup --tests` puts it below the target directory.
pub fn python() -> Option<PathBuf> {
    let below = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let venv =
        below.ancestors().map(|dir| dir.join("neutron")).find(|venv| venv.join("complete").exists())?;
    Some(venv.join("bin/python"))
}

/// Removes neutron's queue, which outlives its server, and leaves the exchange.
pub fn remove_queue(transport_url: &str) {
    let script =
        "import sys, kombu; kombu.Connection(sys.argv[1]).channel().queue_delete('q-reports-plugin')";
    let url = transport_url.replacen("rabbit://", "amqp://", 1);
    let status = Command::new(python().expect("looked for before")).args(["-c", script, &url]).status();
    assert!(status.unwrap().success());
}

/// A running server; killed when dropped.
pub struct Neutron {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Neutron {
    /// Listens at the broker of this transport_url.
    pub fn start(transport_url: &str) -> Neutron {
        let mut child = Command::new(python().expect("looked for before"))
            .args(["-c", include_str!("rpc_server.py"), transport_url])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else { continue };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let neutron = Neutron { child, lines };
        assert_eq!(neutron.next()["ready"], true);
        neutron
    }

    /// The next report.
    pub fn next(&self) -> Value {
        self.lines.recv_timeout(DEADLINE).expect("neutron gets a report")
    }

    /// The next report's agent_state.
    pub fn next_state(&self) -> Value {
        self.next()["args"]["agent_state"]["agent_state"].clone()
    }

    /// Reports up to one with a start_flag, which is returned.
    pub fn next_start(&self) -> Value {
        loop {
            let state = self.next_state();
            if state["start_flag"] == true {
                return state;
            }
        }
    }
}

impl Drop for Neutron {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
