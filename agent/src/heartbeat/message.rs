//! The bytes of one report, as neutron's own agents send them through oslo.messaging.
//!
//! Pure text, no I/O: what changes from report to report (time, ids) is handed in. The receiving side
//! is `report_state` of neutron's `AgentExtRpcCallback`, version 1.2, no namespace, a cast.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::keys::Name;
use crate::status::VhostCount;

/// Where reports go: neutron-server consumes this queue.
pub const ROUTING_KEY: &str = "q-reports-plugin";

/// What the mechanism driver looks for among neutron's agents.
pub const AGENT_TYPE: &str = "SPP neutron agent";

const BINARY: &str = "neutron-spp-agent";

/// The version of the interface that is asked for. The server takes any up to its own.
const RPC_VERSION: &str = "1.2";

/// Longest `configurations` neutron's database has room for, in bytes as JSON.
const CONFIGURATIONS_MAX_BYTES: usize = 4000;

/// What makes one message differ from all others.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// The time of the report, since the epoch, UTC. Neutron ignores reports of before its own start.
    pub time: Duration,
    /// Of the report; for neutron's log.
    pub report: Uuid,
    /// Of the message: a second one with the same id is dropped.
    pub message: Uuid,
    /// Of the request; for neutron's log.
    pub request: Uuid,
}

impl Stamp {
    /// A new one for now.
    pub fn now() -> Stamp {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Stamp { time, report: Uuid::new_v4(), message: Uuid::new_v4(), request: Uuid::new_v4() }
    }
}

/// `2026-11-22T10:16:43.260349`: UTC, microseconds, no zone.
pub fn timestamp(since_epoch: Duration) -> String {
    let second = i64::try_from(since_epoch.as_secs()).ok();
    let at = second.and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok());
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (month, micros) = (u8::from(at.month()), since_epoch.subsec_micros());
    format!(
        "{:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{micros:06}",
        at.year(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// What is reported of this node.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// This host's name: the one neutron binds ports on.
    pub host: &'a Name,
    /// Our version.
    pub version: &'a str,
    /// The first since start or reconnect.
    pub start: bool,
    /// The agent has its etcd.
    pub etcd_connected: bool,
    /// Vhosts of each physical network.
    pub vhosts: &'a BTreeMap<Name, VhostCount>,
}

impl Report<'_> {
    /// The body of the AMQP message.
    pub fn body(&self, stamp: Stamp) -> Vec<u8> {
        let message = json(&self.call(stamp));
        json(&Envelope { version: "2.0", message: &message }).into_bytes()
    }

    fn call(&self, stamp: Stamp) -> Call<'_> {
        let agent_state = AgentState {
            binary: BINARY,
            host: self.host.as_str(),
            topic: "N/A",
            configurations: self.configurations(),
            agent_type: AGENT_TYPE,
            start_flag: self.start,
            uuid: stamp.report.hyphenated().to_string(),
        };
        Call {
            method: "report_state",
            args: Args { agent_state: Nested { agent_state }, time: timestamp(stamp.time) },
            version: RPC_VERSION,
            unique_id: stamp.message.simple().to_string(),
            is_admin: true,
            request_id: format!("req-{}", stamp.request.hyphenated()),
            user: None,
            project_id: None,
        }
    }

    /// More networks than neutron has room for are left out, all of them.
    fn configurations(&self) -> Configurations<'_> {
        let full = Configurations {
            spp_version: self.version,
            etcd_connected: self.etcd_connected,
            vhosts: Some(self.vhosts),
        };
        let fits = json(&full).len() <= CONFIGURATIONS_MAX_BYTES;
        if fits { full } else { Configurations { vhosts: None, ..full } }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain text, numbers and maps with text keys")
}

#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(rename = "oslo.version")]
    version: &'a str,
    #[serde(rename = "oslo.message")]
    message: &'a str,
}

#[derive(Serialize)]
struct Call<'a> {
    method: &'a str,
    args: Args<'a>,
    version: &'a str,
    #[serde(rename = "_unique_id")]
    unique_id: String,
    // Who is no administrator may not report.
    #[serde(rename = "_context_is_admin")]
    is_admin: bool,
    #[serde(rename = "_context_request_id")]
    request_id: String,
    #[serde(rename = "_context_user")]
    user: Option<&'a str>,
    #[serde(rename = "_context_project_id")]
    project_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Args<'a> {
    agent_state: Nested<'a>,
    time: String,
}

#[derive(Serialize)]
struct Nested<'a> {
    agent_state: AgentState<'a>,
}

#[derive(Serialize)]
struct AgentState<'a> {
    binary: &'a str,
    host: &'a str,
    topic: &'a str,
    configurations: Configurations<'a>,
    agent_type: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    start_flag: bool,
    uuid: String,
}

#[derive(Serialize)]
struct Configurations<'a> {
    spp_version: &'a str,
    etcd_connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhosts: Option<&'a BTreeMap<Name, VhostCount>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            time: Duration::new(1_795_342_603, 260_349_999),
            report: Uuid::from_u128(0x11111111_2222_4333_8444_555555555555),
            message: Uuid::from_u128(0xaaaaaaaa_bbbb_4ccc_8ddd_eeeeeeeeeeee),
            request: Uuid::from_u128(0x66666666_7777_4888_8999_000000000000),
        }
    }

    #[test]
    fn first_report_has_these_bytes() {
        let host = Name::new("compute1").unwrap();
        let vhosts = [(Name::new("phys1").unwrap(), VhostCount { total: 2, free: 1 })].into();
        let report =
            Report { host: &host, version: "0.1.0", start: true, etcd_connected: true, vhosts: &vhosts };
        let golden = concat!(
            r#"{"oslo.version":"2.0","oslo.message":"{"#,
            r#"\"method\":\"report_state\",\"args\":{\"agent_state\":{\"agent_state\":{"#,
            r#"\"binary\":\"neutron-spp-agent\",\"host\":\"compute1\",\"topic\":\"N/A\","#,
            r#"\"configurations\":{\"spp_version\":\"0.1.0\",\"etcd_connected\":true,"#,
            r#"\"vhosts\":{\"phys1\":{\"total\":2,\"free\":1}}},"#,
            r#"\"agent_type\":\"SPP neutron agent\",\"start_flag\":true,"#,
            r#"\"uuid\":\"11111111-2222-4333-8444-555555555555\"}},"#,
            r#"\"time\":\"2026-11-22T10:16:43.260349\"},\"version\":\"1.2\","#,
            r#"\"_unique_id\":\"aaaaaaaabbbb4ccc8dddeeeeeeeeeeee\",\"_context_is_admin\":true,"#,
            r#"\"_context_request_id\":\"req-66666666-7777-4888-8999-000000000000\","#,
            r#"\"_context_user\":null,\"_context_project_id\":null}"}"#,
        );
        assert_eq!(String::from_utf8(report.body(stamp())).unwrap(), golden);
    }

    #[test]
    fn later_reports_have_no_start_flag() {
        let host = Name::new("h").unwrap();
        let vhosts = BTreeMap::new();
        let report =
            Report { host: &host, version: "1", start: false, etcd_connected: false, vhosts: &vhosts };
        assert!(!String::from_utf8(report.body(stamp())).unwrap().contains("start_flag"));
    }

    #[test]
    fn configurations_stay_within_neutrons_column() {
        let host = Name::new("h").unwrap();
        let count = VhostCount { total: 1000, free: 1000 };
        let vhosts =
            (0..200).map(|i| (Name::new(&format!("physical-network-{i}")).unwrap(), count)).collect();
        let report = Report { host: &host, version: "1", start: true, etcd_connected: true, vhosts: &vhosts };
        let body = String::from_utf8(report.body(stamp())).unwrap();
        assert!(body.len() < 1000 && body.contains("spp_version"), "{body}");
    }

    #[test]
    fn times_are_utc_with_microseconds() {
        assert_eq!(timestamp(Duration::ZERO), "1970-01-01T00:00:00.000000");
        assert_eq!(timestamp(Duration::from_micros(951_827_696_000_007)), "2000-02-29T12:34:56.000007");
        assert_eq!(timestamp(Duration::MAX), "1970-01-01T00:00:00.999999");
    }

    #[test]
    fn no_two_stamps_share_an_id() {
        let (a, b) = (Stamp::now(), Stamp::now());
        assert!(a.message != b.message && a.report != b.report && a.request != b.request);
    }
}
