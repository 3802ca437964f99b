//! The API of a running `spp run`, on software devices: spp-ctl's paths, codes and texts, and the CLI on top.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

/// A running `spp run --config`, ended when dropped.
struct Node {
    dir: TempDir,
    process: Child,
    log: mpsc::Receiver<String>,
}

impl Node {
    /// Starts a node with this configuration and waits until it is up.
    fn start(config: &Value, more: &[&str]) -> Node {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("node.json"), config.to_string()).expect("a file");
        let mut node = Node::spawn(dir, more);
        node.wait_for("the node is up");
        node
    }

    fn spawn(dir: TempDir, more: &[&str]) -> Node {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        command.args(["run", "--fold-cores", "--config"]).arg(dir.path().join("node.json"));
        command.arg("--vhost-dir").arg(dir.path());
        command.arg("--api").arg(format!("unix:{}", dir.path().join("api.sock").display()));
        let mut process = command.args(more).stderr(Stdio::piped()).spawn().expect("spp starts");
        let stderr = BufReader::new(process.stderr.take().expect("stderr is piped"));
        let (lines, log) = mpsc::channel();
        // Ends with the process: stderr closes.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        Node { dir, process, log }
    }

    /// The first log line with `part` in it.
    fn wait_for(&mut self, part: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line =
                self.log.recv_timeout(left).unwrap_or_else(|e| panic!("{part:?} is not in the log: {e}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let stream = UnixStream::connect(self.socket()).expect("the API listens");
        exchange(stream, method, path, &[], body)
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"))
    }

    /// A request that must succeed without an answer.
    fn change(&self, method: &str, path: &str, body: Value) {
        let answer = self.request(method, path, &body.to_string());
        assert_eq!(answer, (204, String::new()), "{method} {path} {body}");
    }

    /// A CLI command against this node.
    fn spp(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        let api = format!("unix:{}", self.socket().display());
        command.args(args).args(["--api", &api]).output().expect("spp runs")
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.process.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "spp does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One HTTP exchange: status and body.
fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let host = if more.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\n{host}{more}Connection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).expect("the request goes out");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer comes back");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (status, body.to_owned())
}

/// The document's form: one NIC, two vhosts, the components dealt out.
fn standard() -> Value {
    json!([{"num_vhost": 2, "pci_address": "null:", "physical_network": "phys1", "core_mask": "0xfe"}])
}

/// One vf without components, two worker cores.
fn empty() -> Value {
    json!({"vf": [{"num_vhost": 2, "pci_address": "null:", "physical_network": "phys1", "core_mask": "0x7", "components": []}]})
}

#[test]
fn vf_status_has_spp_ctls_keys_and_the_dealt_components() {
    let node = Node::start(&standard(), &[]);
    let vf = node.get("/v1/vfs/1");
    let keys: Vec<&String> = vf.as_object().expect("a dict").keys().collect();
    let mut expected = ["client-id", "ports", "master-lcore", "components", "classifier_table"];
    expected.sort_unstable();
    let mut keys = keys;
    keys.sort_unstable();
    assert_eq!(keys, expected);
    let components = vf["components"].as_array().expect("components");
    assert_eq!(components.len(), 6);
    let none = json!({"operation": "none", "id": 0, "pcp": 0});
    let first = json!({"core": 2, "name": "forward_0_tx", "type": "forward",
        "rx_port": [{"port": "ring:0", "vlan": none}], "tx_port": [{"port": "vhost:0", "vlan": none}]});
    assert_eq!(components[0], first);
}

#[test]
fn processes_and_cores_are_listed_as_spp_ctl_does() {
    let node = Node::start(&standard(), &[]);
    assert_eq!(node.get("/v1/processes"), json!([{"type": "primary"}, {"type": "vf", "client-id": 1}]));
    let usage = node.get("/v1/cpu_usage");
    assert_eq!(usage[0], json!({"proc-type": "primary", "master-lcore": 1, "lcores": [1]}));
    assert_eq!(usage[1]["client-id"], 1);
    let layout = node.get("/v1/cpu_layout");
    assert!(layout[0]["cores"][0]["lcores"].is_array(), "{layout}");
    let primary = node.get("/v1/primary/status");
    assert_eq!(primary["phy_ports"][0]["id"], 0);
    assert_eq!(primary["ring_ports"].as_array().map(Vec::len), Some(4));
    assert_eq!(node.request("DELETE", "/v1/primary/status", ""), (204, String::new()));
}

#[test]
fn components_ports_and_entries_are_made_and_unmade_with_204() {
    let node = Node::start(&empty(), &[]);
    node.change("POST", "/v1/vfs/1/components", json!({"name": "c", "core": 1, "type": "classifier"}));
    let ports = "/v1/vfs/1/components/c/ports";
    node.change("PUT", ports, json!({"action": "attach", "port": "phy:0", "dir": "rx"}));
    let tag = json!({"operation": "add", "id": 100, "pcp": 3});
    node.change("PUT", ports, json!({"action": "attach", "port": "vhost:0", "dir": "tx", "vlan": tag}));
    let entry =
        json!({"action": "add", "type": "mac", "mac_address": "02:00:00:00:00:0a", "port": "vhost:0"});
    node.change("PUT", "/v1/vfs/1/classifier_table", entry);
    let vf = node.get("/v1/vfs/1");
    assert_eq!(vf["components"][0]["tx_port"], json!([{"port": "vhost:0", "vlan": tag}]));
    let shown = json!([{"type": "mac", "value": "02:00:00:00:00:0A", "port": "vhost:0"}]);
    assert_eq!(vf["classifier_table"], shown);

    let entry =
        json!({"action": "del", "type": "mac", "mac_address": "02:00:00:00:00:0a", "port": "vhost:0"});
    node.change("PUT", "/v1/vfs/1/classifier_table", entry);
    node.change("PUT", ports, json!({"action": "detach", "port": "vhost:0", "dir": "tx"}));
    node.change("DELETE", "/v1/vfs/1/components/c", Value::Null);
    node.change("DELETE", "/v1/vfs/1/components/never-there", Value::Null);
    let vf = node.get("/v1/vfs/1");
    assert_eq!(vf["components"], json!([{"core": 1, "type": "unuse"}, {"core": 2, "type": "unuse"}]));
    assert_eq!(vf["classifier_table"], json!([]));
}

/// Method, path, body, status, text.
type Refusal = (&'static str, &'static str, &'static str, u16, &'static str);

const REFUSALS: &[Refusal] = &[
    ("POST", "/v1/vfs/1/components", "name=x", 400, "Not in json format."),
    ("POST", "/v1/vfs/1/components", "", 400, "Not in json format."),
    ("POST", "/v1/vfs/1/components", "{}", 400, "key(name) required."),
    (
        "POST",
        "/v1/vfs/1/components",
        r#"{"name":"x","core":2,"type":"mirror"}"#,
        400,
        "invalid key(type): mirror.",
    ),
    (
        "POST",
        "/v1/vfs/1/components",
        r#"{"name":"merger","core":2,"type":"merge"}"#,
        400,
        "command error: Invalid value (component name)",
    ),
    (
        "POST",
        "/v1/vfs/1/components",
        r#"{"name":"a name of more than thirty-one bytes","core":2,"type":"merge"}"#,
        400,
        "command error: Invalid value (component name)",
    ),
    (
        "POST",
        "/v1/vfs/1/components",
        r#"{"name":"x","core":99,"type":"merge"}"#,
        400,
        "command error: error occur",
    ),
    (
        "POST",
        "/v1/vfs/1/components",
        r#"{"name":"x","core":-1,"type":"merge"}"#,
        400,
        "command error: Invalid value (core)",
    ),
    // The master core hung SPP for ever.
    (
        "POST",
        "/v1/vfs/1/components",
        r#"{"name":"x","core":1,"type":"merge"}"#,
        400,
        "command error: Invalid value (core)",
    ),
    ("PUT", "/v1/vfs/1/components/merger/ports", r#"{"action":"attach"}"#, 400, "key(port) required."),
    (
        "PUT",
        "/v1/vfs/1/components/merger/ports",
        r#"{"action":"attach","port":"ring","dir":"rx"}"#,
        400,
        "invalid key(port): ring.",
    ),
    (
        "PUT",
        "/v1/vfs/1/components/nobody/ports",
        r#"{"action":"attach","port":"ring:0","dir":"rx"}"#,
        400,
        "command error: Invalid value (component name)",
    ),
    (
        "PUT",
        "/v1/vfs/1/components/merger/ports",
        r#"{"action":"attach","port":"ring:99","dir":"rx"}"#,
        400,
        "command error: Invalid value (port)",
    ),
    (
        "PUT",
        "/v1/vfs/1/components/merger/ports",
        r#"{"action":"attach","port":"phy:7","dir":"rx"}"#,
        400,
        "command error: Invalid value (port rxtx)",
    ),
    (
        "PUT",
        "/v1/vfs/1/components/merger/ports",
        r#"{"action":"attach","port":"vhost:0","dir":"rx"}"#,
        400,
        "command error: Invalid value (port)",
    ),
    (
        "PUT",
        "/v1/vfs/1/classifier_table",
        r#"{"action":"add","type":"mac","port":"ring:0","mac_address":"x"}"#,
        400,
        "invalid key(mac_address): x.",
    ),
    (
        "PUT",
        "/v1/vfs/1/classifier_table",
        r#"{"action":"add","type":"vlan","vlan":4096,"port":"ring:0","mac_address":"default"}"#,
        400,
        "command error: Invalid value (vlan id)",
    ),
    (
        "PUT",
        "/v1/vfs/1/classifier_table",
        r#"{"action":"del","type":"mac","port":"ring:0","mac_address":"default"}"#,
        400,
        "command error: Invalid value (port)",
    ),
    ("GET", "/v1/vfs/2", "", 404, "sec_id 2 not found."),
    ("POST", "/v1/vfs/2/components", "not even JSON", 404, "sec_id 2 not found."),
    ("GET", "/v1/nfvs/1", "", 404, "sec_id 1 not found."),
    ("GET", "/v1/mirrors/1", "", 404, "sec_id 1 not found."),
    ("GET", "/v1/vfs", "", 404, "Not found: '/'"),
    ("GET", "/v1/vfs/x", "", 404, "Not found: '/x'"),
    ("GET", "/v1/nothing", "", 404, "Not found: '/nothing'"),
    ("POST", "/v1/vfs/1", "", 405, "Method not allowed."),
    ("PUT", "/v1/processes", "", 405, "Method not allowed."),
    ("PUT", "/v1/node/plugs/0", "{}", 400, "key(mac_address) required."),
    (
        "PUT",
        "/v1/node/plugs/0",
        r#"{"mac_address":"02:00:00:00:00:01","vlan_id":"x"}"#,
        400,
        "invalid key(vlan_id): x.",
    ),
];

#[test]
fn bad_input_gets_spp_ctls_text_and_leaves_everything_as_it_was() {
    let node = Node::start(&standard(), &[]);
    let plug = json!({"mac_address": "02:00:00:00:00:0a", "vlan_id": 100});
    assert_eq!(node.request("PUT", "/v1/node/plugs/1", &plug.to_string()).0, 200);
    let before = (node.get("/v1/vfs/1"), node.get("/v1/node/plugs"));
    for (method, path, body, status, text) in REFUSALS {
        let answer = node.request(method, path, body);
        assert_eq!(answer, (*status, (*text).to_owned()), "{method} {path} {body}");
    }
    let cannot: &[(&str, &str)] =
        &[("DELETE", "/v1/vfs/1"), ("DELETE", "/v1/primary"), ("PUT", "/v1/primary/launch")];
    for (method, path) in cannot {
        let (status, reason) = node.request(method, path, "{}");
        assert!(status == 403 && reason.len() > 20, "{method} {path}: {status} {reason}");
    }
    let no_guest: &[&str] = &[
        r#"{"mac_address":"01:00:5e:00:00:01"}"#,
        r#"{"mac_address":"00:00:00:00:00:00"}"#,
        r#"{"mac_address":"02:00:00:00:00:01","vlan_id":4095}"#,
        r#"{"mac_address":"02:00:00:00:00:01","vlan_id":0}"#,
    ];
    for body in no_guest {
        assert_eq!(node.request("PUT", "/v1/node/plugs/0", body).0, 400, "{body}");
    }
    assert_eq!(node.request("PUT", "/v1/node/plugs/7", r#"{"mac_address":"02:00:00:00:00:01"}"#).0, 400);
    assert_eq!((node.get("/v1/vfs/1"), node.get("/v1/node/plugs")), before);
}

#[test]
fn plug_and_unplug_from_the_shell_show_in_status_and_in_json() {
    let node = Node::start(&standard(), &[]);
    let plugged =
        node.spp(&["plug", "--vhost", "1", "--mac", "FA:16:3E:00:00:02", "--vlan", "100", "--json"]);
    assert!(plugged.status.success(), "{plugged:?}");
    let expected = json!({"vhost_id": 1, "mac_address": "fa:16:3e:00:00:02", "vlan_id": 100});
    assert_eq!(serde_json::from_slice::<Value>(&plugged.stdout).expect("JSON"), expected);

    let table = json!([{"type": "vlan", "value": "100/FA:16:3E:00:00:02", "port": "ring:2"}]);
    assert_eq!(node.get("/v1/vfs/1")["classifier_table"], table);
    let human = String::from_utf8(node.spp(&["status"]).stdout).expect("text");
    assert!(human.contains("fa:16:3e:00:00:02 VLAN 100") && human.contains("merger"), "{human}");
    let status: Value = serde_json::from_slice(&node.spp(&["status", "--json"]).stdout).expect("JSON");
    assert_eq!(status["vfs"][0]["vhosts"][1]["plug"]["vlan"], 100);

    let refused = node.spp(&["plug", "--vhost", "9", "--mac", "02:00:00:00:00:01"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let text = String::from_utf8(refused.stderr).expect("text");
    assert!(text.starts_with("spp: ") && text.contains("vhost:9") && text.lines().count() == 1, "{text}");

    assert!(node.spp(&["unplug", "--vhost", "1"]).status.success());
    assert!(node.spp(&["unplug", "--vhost", "1"]).status.success());
    assert_eq!(node.get("/v1/node/plugs"), json!([]));
}

#[test]
fn nic_stats_shows_one_nic_for_people_and_in_json_and_names_those_there_are() {
    let node = Node::start(&standard(), &[]);
    let stats: Value =
        serde_json::from_slice(&node.spp(&["nic", "stats", "phy:0", "--json"]).stdout).expect("JSON");
    assert_eq!((&stats["port"], &stats["rx"]["packets"]), (&json!("phy:0"), &json!(0)));
    assert!(stats["device"].is_object() && stats["link"].is_string(), "{stats}");
    let human = String::from_utf8(node.spp(&["nic", "stats", "phy:0"]).stdout).expect("text");
    assert!(human.starts_with("phy:0: ") && human.contains("rx packets"), "{human}");
    let refused = node.spp(&["nic", "stats", "phy:7"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let text = String::from_utf8(refused.stderr).expect("text");
    assert!(text.contains("no NIC phy:7") && text.contains("phy:0"), "{text}");
}

#[test]
fn loopback_tcp_serves_tools_and_refuses_web_pages() {
    let mut node = Node::spawn_standard(&["--api", "tcp:127.0.0.1:0"]);
    let line = node.wait_for("tcp:127.0.0.1:");
    let address = line.split("tcp:").nth(1).expect("an address").trim().to_owned();
    node.wait_for("the node is up");
    let ask = |headers: &[(&str, &str)]| {
        let stream = TcpStream::connect(&address).unwrap_or_else(|e| panic!("{address}: {e}"));
        exchange(stream, "GET", "/v1/processes", headers, "").0
    };
    assert_eq!(ask(&[("Content-Type", "text/plain")]), 200);
    assert_eq!(ask(&[("Origin", "http://example.net")]), 403);
    assert_eq!(ask(&[("Host", "example.net")]), 403);
}

impl Node {
    fn spawn_standard(more: &[&str]) -> Node {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("node.json"), standard().to_string()).expect("a file");
        Node::spawn(dir, more)
    }
}

#[test]
fn second_node_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let node = Node::start(&standard(), &[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
    command.args(["run", "--fold-cores", "--config"]).arg(node.dir.path().join("node.json"));
    let second =
        command.arg("--api").arg(format!("unix:{}", node.socket().display())).output().expect("spp runs");
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).expect("text");
    assert!(text.contains("served by another process"), "{text}");
    assert!(node.spp(&["status"]).status.success());
}

#[test]
fn sigterm_and_sigint_stop_cleanly_and_remove_the_sockets() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut node = Node::start(&standard(), &["--vhost-mode", "server"]);
        assert!(node.dir.path().join("sock1").exists());
        node.signal(signal);
        assert_eq!(node.wait_for_end().code(), Some(0), "{signal:?}");
        let left: Vec<_> = std::fs::read_dir(node.dir.path()).expect("a directory").flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let gone = node.spp(&["status"]);
        assert_eq!(gone.status.code(), Some(3), "{gone:?}");
    }
}

#[test]
fn configurations_that_cannot_be_used_exit_5_with_one_line() {
    let vf = |mask: &str, address: &str| {
        json!([{"num_vhost": 2, "pci_address": address, "physical_network": "p", "core_mask": mask}])
            .to_string()
    };
    let cases = [
        "{".to_owned(),
        "[]".to_owned(),
        vf("xfe", "null:"),
        vf("0xe", "null:"),
        vf("0xfe", "nowhere"),
        vf("0xfe", "tap"),
    ];
    for config in cases {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("node.json"), &config).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        command.args(["run", "--fold-cores", "--config"]).arg(dir.path().join("node.json"));
        let ended =
            command.arg("--api").arg(format!("unix:{}/a", dir.path().display())).output().expect("spp runs");
        let text = String::from_utf8(ended.stderr).expect("text");
        assert_eq!(ended.status.code(), Some(5), "{config}: {text}");
        assert!(text.starts_with("spp: ") && text.lines().count() == 1, "{config}: {text}");
    }
}
