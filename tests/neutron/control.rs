//! The control node: a Python process with networking-spp's drivers, told what neutron would tell them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::host::venv;
use crate::support::server::Etcd;

/// Longest wait for an answer: more than the drivers' own 20 and 30 s.
const DEADLINE: Duration = Duration::from_secs(100);

/// The running drivers; killed when dropped.
pub struct Control {
    process: Child,
    stdin: ChildStdin,
    answers: Receiver<Value>,
    arrived: BTreeMap<u64, Value>,
    next_id: u64,
}

/// A command under way.
#[must_use]
pub struct Ticket(u64);

impl Control {
    /// Starts the drivers against `etcd`. None without their virtual environment: the test is skipped.
    pub fn start(test: &str, etcd: &Etcd) -> Option<Control> {
        let venv = venv();
        if !venv.join("complete").exists() {
            println!("SKIPPED: {test}: networking-spp is not in {}: run .ci/setup --tests", venv.display());
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/neutron/control.py");
        let mut process = Command::new(venv.join("bin/python"))
            .arg(script)
            .arg(etcd.port().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let stdin = process.stdin.take().expect("it is piped");
        let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let answer = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        let mut control = Control { process, stdin, answers, arrived: BTreeMap::new(), next_id: 0 };
        let versions = control.call(json!({"do": "versions"})).expect("the drivers are there");
        println!("{test}: {versions}");
        Some(control)
    }

    /// Has a command carried out, without waiting.
    pub fn send(&mut self, mut command: Value) -> Ticket {
        let id = self.next_id;
        self.next_id += 1;
        command["id"] = id.into();
        writeln!(self.stdin, "{command}").expect("the drivers run");
        Ticket(id)
    }

    /// How it went: its result, or the name of the exception.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Value, String> {
        while !self.arrived.contains_key(&ticket.0) {
            let answer = self.answers.recv_timeout(DEADLINE).expect("the drivers answer");
            self.arrived.insert(answer["id"].as_u64().expect("an id"), answer);
        }
        let answer = self.arrived.remove(&ticket.0).expect("it has arrived");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["result"].clone()),
        }
    }

    pub fn call(&mut self, command: Value) -> Result<Value, String> {
        let ticket = self.send(command);
        self.wait(ticket)
    }

    /// ML2 asks to bind: the vhost id the driver answers with, None if it does not bind.
    pub fn bind(&mut self, bind: Value) -> Option<u32> {
        let ticket = self.send(bind);
        self.bound(ticket)
    }

    /// The vhost id a bind under way ends with.
    pub fn bound(&mut self, ticket: Ticket) -> Option<u32> {
        let binding = self.wait(ticket).expect("the driver does not raise");
        let details = binding.get("vif_details")?;
        assert_eq!(binding["vif_type"], "vhostuser");
        assert_eq!(binding["segment"], "segment");
        assert_eq!(details["vhostuser_mode"], "server");
        let socket = details["vhostuser_socket"].as_str().expect("a socket");
        Some(socket.strip_prefix("/tmp/sock").expect("in /tmp").parse().expect("a vhost id"))
    }

    /// ML2 has deleted a port.
    pub fn delete(&mut self, host: &str, port: &str) {
        let delete = json!({"do": "delete", "host": host, "port": port, "vif_type": "vhostuser"});
        self.call(delete).expect("the driver does not raise");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port on a network of `physnet`: with a VLAN id of type vlan, else flat.
pub fn bind(host: &str, port: &str, mac: &str, physnet: &str, vlan: Option<u16>) -> Value {
    let network_type = if vlan.is_some() { "vlan" } else { "flat" };
    let segment = json!({
        "id": "segment", "network_type": network_type, "physical_network": physnet, "segmentation_id": vlan,
    });
    json!({"do": "bind", "host": host, "port": port, "mac": mac, "segments": [segment]})
}
