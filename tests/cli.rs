//! The `spp` command as a shell sees it: exit codes, one-line errors, JSON beside every human output.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest a one-shot command may take; one that runs on has taken a wrong command line for a right one.
const DEADLINE: Duration = Duration::from_secs(60);

fn spp(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
    command.args(args).env_remove("SPP_API").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("spp starts");
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().expect("it is our child").is_none() {
        if Instant::now() >= deadline {
            child.kill().expect("it is our child");
            panic!("{args:?} did not end within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("it has ended")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

fn json(args: &[&str]) -> Value {
    let output = spp(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", stdout(&output)))
}

/// The exit code, and the one line behind `spp: `.
fn failure(args: &[&str]) -> (i32, String) {
    let output = spp(args);
    let text = String::from_utf8(output.stderr).expect("stderr is text");
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
    let line = text.strip_prefix("spp: ").unwrap_or_else(|| panic!("{args:?}: {text}"));
    assert_eq!(line.matches('\n').count(), 1, "{args:?}: {text}");
    (output.status.code().expect("it exits"), line.trim_end().to_owned())
}

#[test]
fn help_of_every_command_has_examples_and_exits_0() {
    let commands: &[&[&str]] = &[
        &["run"],
        &["status"],
        &["agent", "status"],
        &["agent", "restart"],
        &["plug"],
        &["unplug"],
        &["demo"],
        &["bind"],
        &["unbind"],
        &["config", "put"],
        &["config", "show"],
        &["config", "destroy"],
        &["cores"],
        &["nic", "list"],
        &["nic", "stats"],
        &["nic", "bind"],
        &["nic", "unbind"],
    ];
    for command in commands {
        let output = spp(&[command, &["--help"][..]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(stdout(&output).contains(&format!("Examples:\n  spp {}", command.join(" "))), "{command:?}");
    }
    assert_eq!(stdout(&spp(&["--version"])), format!("spp {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_command_lines_exit_2_with_one_line() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "see spp --help"),
        (&["nonsense"], "nonsense"),
        (&["run"], "--etcd"),
        (&["run", "--config", "f", "--etcd", "http://a", "--host", "h"], "--config"),
        (&["run", "--etcd", "ftp://a:2379", "--host", "h"], "https://HOST:PORT"),
        (&["run", "--etcd", "http://a:2379", "--etcd-ca", "/x", "--host", "h"], "write https://"),
        (&["run", "--config", "f", "--api", "0.0.0.0:7777"], "unix:/run/spp/api.sock"),
        (&["plug", "--vhost", "0"], "--mac <MAC>"),
        (&["plug", "--vhost", "0", "--mac", "01:00:5e:00:00:01"], "multicast"),
        (&["plug", "--vhost", "0", "--mac", "2:0:0:0:0:1", "--vlan", "4095"], "4095"),
        (&["unplug", "--vhost", "-1"], "-1"),
        (&["bind", "a/b", "--etcd", "a", "--host", "h", "--phys", "p", "--mac", "2:0:0:0:0:1"], "a/b"),
        (&["bind", "a", "--etcd", "a", "--host", "h", "--mac", "2:0:0:0:0:1"], "--phys <NAME>"),
        (&["bind", "a", "--etcd", "a", "--host", "h", "--phys", "p", "--mac", "1:0:5e:0:0:1"], "multicast"),
        (&["unbind", "a", "--etcd", "a"], "--host <NAME>"),
        (&["demo", "--seconds", "0"], "0"),
        (&["cores"], "<MASK>"),
        (&["cores", "0xfe", "--vhosts", "0"], "--vhosts"),
        (&["cores", "0xfe", "--vhosts", "2", "2"], "2 numbers for 1 masks"),
        (&["nic", "bind", "4"], "not a PCI address"),
        (&["config", "put", "--etcd", "ftp://x y", "--host", "h", "m"], "etcd endpoint"),
        (&["config", "put", "--etcd", "http://127.0.0.1:1", "--host", "a/b", "m"], "--host"),
        (&["config", "put", "--etcd", "http://127.0.0.1:1", "m"], "--host <NAME>"),
    ];
    for (args, part) in cases {
        let (code, line) = failure(args);
        assert_eq!(code, 2, "{args:?}: {line}");
        assert!(line.contains(part), "{args:?}: {line}");
    }
}

#[test]
fn cores_deals_the_documents_masks_as_the_document_does() {
    let report = json(&["cores", "0xfe", "0xfc02", "--vhosts", "2", "2", "--json"]);
    let names = |vf: usize| {
        let components = report["vfs"][vf]["components"].as_array().expect("components");
        components
            .iter()
            .map(|c| format!("{}:{}", c["core"], c["name"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let first =
        ["2:forward_0_tx", "3:forward_0_rx", "4:forward_1_tx", "5:forward_1_rx", "6:classifier", "7:merger"];
    assert_eq!(names(0), first);
    assert_eq!(names(1)[0], "10:forward_2_tx");
    let mappings = "00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02";
    assert_eq!(json(&["cores", mappings, "--json"]), report);
    let human = stdout(&spp(&["cores", "0xfe"]));
    assert!(human.contains("vf 1: mask 0xfe, 2 vhosts") && human.contains("forward_1_rx"), "{human}");
}

#[test]
fn masks_that_cannot_be_exit_5_and_name_the_reason() {
    let cases: &[(&[&str], &str)] = &[
        (&["cores", "xfc02"], "did you mean \"0xfc02\""),
        (&["cores", "0x0"], "no core"),
        (&["cores", "0x7e", "--vhosts", "2"], "has 6 cores"),
        (&["cores", "0xfe", "0xfc82", "--vhosts", "2", "2"], "core 7 belongs to both"),
        (&["cores", "00:04.0#phys1#2"], "mapping"),
    ];
    for (args, part) in cases {
        let (code, line) = failure(args);
        assert_eq!(code, 5, "{args:?}: {line}");
        assert!(line.contains(part), "{args:?}: {line}");
    }
}

#[test]
fn config_without_etcd_exits_3_and_bad_mappings_5_before_etcd_is_asked() {
    let etcd = ["--etcd", "http://127.0.0.1:1", "--host", "h"];
    for command in ["show", "destroy"] {
        let (code, line) = failure(&[&["config", command][..], &etcd].concat());
        assert_eq!(code, 3, "{line}");
        assert!(line.contains("http://127.0.0.1:1"), "{line}");
    }
    let put = |mappings| failure(&[&["config", "put"][..], &etcd, &[mappings]].concat());
    assert_eq!(put("00:04.0#phys1#2#0xfe").0, 3);
    let (code, line) = put("00:04.0#phys1#2#xfe");
    assert_eq!(code, 5, "{line}");
    assert!(line.contains("0xfe"), "{line}");
}

#[test]
fn nic_list_is_a_json_list_and_an_absent_nic_is_one_line() {
    assert!(json(&["nic", "list", "--json"]).is_array());
    assert_eq!(spp(&["nic", "list"]).status.code(), Some(0));
    let (code, line) = failure(&["nic", "bind", "fffe:1f:1f.7"]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("fffe:1f:1f.7"), "{line}");
}

#[test]
fn commands_to_a_node_that_is_not_there_exit_3() {
    let api = ["--api", "unix:/nonexistent/api.sock"];
    let commands: &[&[&str]] = &[
        &["status"],
        &["nic", "stats", "phy:0"],
        &["plug", "--vhost", "0", "--mac", "2:0:0:0:0:1"],
        &["unplug", "--vhost", "0"],
    ];
    for command in commands {
        let (code, line) = failure(&[command, &api[..]].concat());
        assert_eq!(code, 3, "{line}");
        assert!(line.contains("/nonexistent/api.sock") && line.contains("spp run"), "{line}");
    }
}

#[test]
fn demo_passes_every_frame_and_says_so_in_json() {
    let result = json(&["demo", "--seconds", "1", "--json"]);
    assert_eq!((&result["ok"], &result["faults"]), (&Value::Bool(true), &serde_json::json!([])));
    let flows = result["flows"].as_array().expect("flows");
    let received = flows.iter().map(|flow| flow["received"].as_u64().expect("a count"));
    assert_eq!(received.clone().sum::<u64>(), result["received"].as_u64().expect("a count"));
    assert!(flows.len() == 4 && received.min() > Some(0), "{result}");
    assert_eq!(result["sent"], result["received"]);
    let tags: Vec<_> =
        flows.iter().map(|flow| (flow["vlan_sent"].as_u64(), flow["vlan_expected"].as_u64())).collect();
    assert_eq!(tags, [(None, None), (None, None), (Some(100), None), (None, Some(100))]);
    assert!(result["dropped"]["unknown_destination"].as_u64() >= Some(4), "{result}");
    // The data plane's own counters agree with what the guests saw.
    let components = result["node"]["vfs"][0]["components"].as_array().expect("components");
    let of = |name: &str| components.iter().find(|c| c["name"] == name).expect("a component");
    assert_eq!(of("forward_0_tx")["rx_packets"], flows[0]["sent"]);
    assert_eq!(of("forward_1_rx")["tx_packets"], flows[3]["sent"]);
}

#[test]
fn demo_for_people_ends_with_its_verdict() {
    let output = spp(&["demo", "--seconds", "1"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["vhost:1", "VLAN 100", "classifier", "unknown_destination", "ok: every frame arrived once"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains('\x1b'), "no terminal, no escape sequences: {text}");
}
