//! `spp agent`: what etcd wants, what runs, what differs and why; and the agent started anew.

use serde_json::Value;

use crate::cli::{Agent, AgentRestart, AgentStatus};
use crate::client::Client;
use crate::fail::Failure;
use crate::output;

/// `spp agent ...`
pub fn run(command: &Agent) -> Result<(), Failure> {
    match command {
        Agent::Status(args) => status(args),
        Agent::Restart(args) => restart(args),
    }
}

fn restart(args: &AgentRestart) -> Result<(), Failure> {
    Client::new(&args.node.api).post("/v1/node/agent/restart").map(drop)
}

fn status(args: &AgentStatus) -> Result<(), Failure> {
    let agent = Client::new(&args.node.api).get("/v1/node/agent")?;
    if args.json {
        output::json(&agent)?;
    } else {
        output::line(&text(&agent))?;
    }
    verdict(&agent)
}

/// The exit code: is everything as etcd wants it?
fn verdict(agent: &Value) -> Result<(), Failure> {
    if agent["in_order"] == true {
        return Ok(());
    }
    let etcd = &agent["etcd"];
    if etcd["connected"] != true {
        let error = etcd["last_error"].as_str().unwrap_or("it is yet to be reached");
        let remedy = etcd["remedy"].as_str().map(|remedy| format!(" ({remedy})")).unwrap_or_default();
        return Err(Failure::failed(format!("no connection to etcd: {error}{remedy}")));
    }
    if agent["configuration_changed"] == true {
        return Err(Failure::failed("the configuration in etcd changed (restart spp to apply it)"));
    }
    if let Some(error) = agent["node_error"].as_str() {
        return Err(Failure::failed(format!("the node does not answer its agent: {error}")));
    }
    Err(Failure::failed("what runs is not what etcd wants (see the reasons above)"))
}

fn text(agent: &Value) -> String {
    let mut lines = vec![connection(&agent["etcd"])];
    let mut fact = |name: &str, value: &Value| {
        if let Some(text) = value.as_str() {
            lines.push(format!("{name}: {text}"));
        }
    };
    fact("last error", &agent["etcd"]["last_error"]);
    fact("remedy", &agent["etcd"]["remedy"]);
    fact("node error", &agent["node_error"]);
    if let Some(n) = agent["n_restarts"].as_u64().filter(|n| *n > 0) {
        let why = agent["last_restart"].as_str().unwrap_or("-");
        lines.push(format!("started anew {n} times, the last time: {why}"));
    }
    lines.extend(heartbeat(&agent["heartbeat"]));
    if agent["configuration_changed"] == true {
        lines.push("the configuration in etcd changed: restart spp to apply it".to_owned());
    }
    let ports = rows(&agent["ports"], ["port", "etcd wants", "runs", "state", "why"], |port| {
        [
            plain(&port["port"]),
            plug(&port["wanted"]),
            plug(&port["live"]),
            plain(&port["state"]),
            plain(&port["why"]),
        ]
    });
    let taps = rows(&agent["taps"], ["tap flow", "source", "service", "state", "why"], |tap| {
        [
            plain(&tap["tap"]),
            plain(&tap["source_port"]),
            plain(&tap["service_port"]),
            plain(&tap["state"]),
            plain(&tap["why"]),
        ]
    });
    lines.extend([ports, taps].into_iter().flatten());
    lines.join("\n")
}

fn connection(etcd: &Value) -> String {
    let connected = if etcd["connected"] == true { "connected to" } else { "not connected to" };
    let (revision, n) = (plain(&etcd["revision"]), plain(&etcd["n_connects"]));
    format!("{connected} {}, revision {revision}, connection number {n}", plain(&etcd["endpoint"]))
}

/// The reports to neutron, if any are wanted.
pub fn heartbeat(heartbeat: &Value) -> Option<String> {
    let broker = heartbeat["broker"].as_str()?;
    let connected = if heartbeat["connected"] == true { "connected to" } else { "not connected to" };
    let (n, last) = (plain(&heartbeat["n_reports"]), plain(&heartbeat["last_report"]));
    let line = format!("heartbeat: {connected} {broker}, {n} reports, last {last}");
    let error = heartbeat["last_error"].as_str();
    Some(error.map_or(line.clone(), |error| format!("{line}\n  last error: {error}")))
}

fn rows(list: &Value, headings: [&str; 5], row: impl Fn(&Value) -> [String; 5]) -> Option<String> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(list.iter().map(|item| row(item).to_vec()));
    Some(format!("\n{}", output::columns(&rows)))
}

fn plug(plug: &Value) -> String {
    if plug.is_null() {
        return "-".to_owned();
    }
    let vlan = plug["vlan"].as_u64().map_or("flat".to_owned(), |vlan| format!("VLAN {vlan}"));
    format!("vhost {} {} {vlan}", plain(&plug["vhost"]), plain(&plug["mac"]))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fail::Exit;

    fn agent() -> Value {
        serde_json::json!({
            "in_order": false,
            "etcd": {"connected": true, "endpoint": "http://a:2379", "revision": 7, "n_connects": 2,
                     "last_error": "etcd went away", "remedy": "look for it"},
            "configuration_changed": false, "node_error": null, "n_restarts": 1, "last_restart": "asked to",
            "heartbeat": {"broker": "amqp://b", "connected": false, "n_reports": 3, "last_report": "2026-11-22T10:16:43Z",
                          "last_error": "refused"},
            "ports": [{"port": "p1", "wanted": {"vhost": 1, "mac": "02:00:00:00:00:01", "vlan": 9}, "live": null,
                       "state": "refused", "why": "no such vhost"}],
            "taps": [{"tap": "t1", "source_port": "p1", "service_port": "p2", "state": "waiting", "why": "no p2"}],
        })
    }

    #[test]
    fn text_says_what_is_wanted_what_runs_and_why_they_differ() {
        let text = text(&agent());
        for part in [
            "connected to http://a:2379, revision 7, connection number 2",
            "last error: etcd went away",
            "remedy: look for it",
            "started anew 1 times, the last time: asked to",
            "heartbeat: not connected to amqp://b, 3 reports, last 2026-11-22T10:16:43Z\n  last error: refused",
            "vhost 1 02:00:00:00:00:01 VLAN 9",
            "no such vhost",
            "no p2",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn exit_code_is_1_unless_all_is_in_order() {
        let mut agent = agent();
        assert_eq!(verdict(&agent).unwrap_err().exit, Exit::Failed);
        agent["etcd"]["connected"] = false.into();
        let failure = verdict(&agent).unwrap_err();
        assert!(failure.message.contains("etcd went away (look for it)"), "{}", failure.message);
        agent["in_order"] = true.into();
        assert!(verdict(&agent).is_ok());
    }
}
