//! What the bodies of `/v1/vfs/...` mean: checked in spp-ctl's order, refused in its words.
//!
//! Pure. spp-ctl refuses what it can't read (`invalid key(K): V.`), the process it talks to refuses what
//! can't be (`command error: Invalid value (WHAT)`); here both are one process and the texts stay two.

use serde_json::Value;
use spp_pipeline::names::{ComponentKind, PortName};
use spp_pipeline::plan::VlanOp;
use spp_pipeline::table::Dst;
use spp_pipeline::topology::{Direction, Entry};

use super::body::Body;
use super::error::{ApiError, ApiResult};

/// `POST components`
#[derive(Debug, PartialEq, Eq)]
pub struct ComponentStart {
    /// Name.
    pub name: String,
    /// Core to run on.
    pub core: usize,
    /// Type.
    pub kind: ComponentKind,
}

/// `PUT components/{name}/ports`
#[derive(Debug, PartialEq, Eq)]
pub enum PortChange {
    /// Attach, with a tag operation.
    Attach(PortName, Direction, VlanOp),
    /// Detach.
    Detach(PortName, Direction),
}

/// `PUT classifier_table`
#[derive(Debug, PartialEq, Eq)]
pub enum TableChange {
    /// Add the entry.
    Add(Entry),
    /// Remove it.
    Del(Entry),
}

/// Reads the body of `POST components`.
pub fn component_start(body: &Body) -> ApiResult<ComponentStart> {
    body.require(&["name", "core", "type"])?;
    let name = body.text("name")?.to_owned();
    let core = body.read("core", Value::as_i64)?;
    let kind = body.read("type", |value| value.as_str()?.parse().ok())?;
    // The process takes its own cores only; what no core can be is another text there.
    let core = usize::try_from(core).map_err(|_| ApiError::command_invalid("core"))?;
    Ok(ComponentStart { name, core, kind })
}

/// Reads the body of `PUT components/{name}/ports`.
pub fn port_change(body: &Body) -> ApiResult<PortChange> {
    body.require(&["action", "port", "dir"])?;
    let attach = body.word("action", &[("attach", true), ("detach", false)])?;
    let port = body.read("port", port_syntax)?;
    let direction = body.word("dir", &[("rx", Direction::Rx), ("tx", Direction::Tx)])?;
    let vlan = if attach { vlan_op(body)? } else { VlanOp::None };
    let port = supported(port)?;
    Ok(if attach { PortChange::Attach(port, direction, vlan) } else { PortChange::Detach(port, direction) })
}

/// Reads the body of `PUT classifier_table`.
pub fn table_change(body: &Body) -> ApiResult<TableChange> {
    body.require(&["action", "type", "port", "mac_address"])?;
    let add = body.word("action", &[("add", true), ("del", false)])?;
    let tagged = body.word("type", &[("mac", false), ("vlan", true)])?;
    let port = body.read("port", port_syntax)?;
    let dst = destination(body)?;
    let vid = if tagged { Some(vlan_id(body)?) } else { None };
    let entry = Entry { vid, dst, port: supported(port)? };
    Ok(if add { TableChange::Add(entry) } else { TableChange::Del(entry) })
}

/// A port as spp-ctl reads it: one of its types, a number, perhaps a queue.
fn port_syntax(value: &Value) -> Option<&str> {
    const TYPES: [&str; 8] = ["phy", "vhost", "ring", "pcap", "nullpmd", "tap", "memif", "pipe"];
    let text = value.as_str()?;
    let (kind, rest) = text.split_once(':')?;
    let (number, queue) = rest.split_once("nq").unwrap_or((rest, "0"));
    let is_number = |t: &str| !t.is_empty() && t.bytes().all(|c| c.is_ascii_digit());
    (TYPES.contains(&kind) && is_number(number) && is_number(queue)).then_some(text)
}

/// A port as a vf knows it.
fn supported(port: &str) -> ApiResult<PortName> {
    port.parse().map_err(|_| ApiError::command_invalid("port"))
}

fn vlan_op(body: &Body) -> ApiResult<VlanOp> {
    let Some(vlan) = body.get("vlan") else { return Ok(VlanOp::None) };
    let invalid = || ApiError::key_invalid("vlan", vlan);
    match vlan.get("operation").and_then(Value::as_str).ok_or_else(invalid)? {
        "none" => Ok(VlanOp::None),
        "del" => Ok(VlanOp::Del),
        "add" => {
            let number = |key| vlan.get(key).and_then(Value::as_i64).ok_or_else(invalid);
            let (id, pcp) = (number("id")?, number("pcp")?);
            let vid = u16::try_from(id).map_err(|_| ApiError::command_invalid("port vid"))?;
            let pcp = u8::try_from(pcp).map_err(|_| ApiError::command_invalid("port pcp"))?;
            Ok(VlanOp::Add { vid, pcp })
        }
        _ => Err(invalid()),
    }
}

fn destination(body: &Body) -> ApiResult<Dst> {
    let text = body.text("mac_address")?;
    if text == "default" {
        return Ok(Dst::Default);
    }
    let eui64 = text.split([':', '-']).filter(|byte| u8::from_str_radix(byte, 16).is_ok()).count() == 8;
    if eui64 {
        return Err(ApiError::command_invalid("mac address"));
    }
    body.read("mac_address", |value| value.as_str()?.parse().ok()).map(Dst::Mac)
}

/// A VLAN id: a number, or its digits as text.
fn vlan_id(body: &Body) -> ApiResult<u16> {
    let number = body.read("vlan", |value| value.as_i64().or_else(|| value.as_str()?.parse().ok()))?;
    u16::try_from(number).map_err(|_| ApiError::command_invalid("vlan id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Body {
        Body::parse(text.as_bytes()).unwrap()
    }

    /// Each row: a body, and the text it is refused with.
    fn check<T: std::fmt::Debug>(read: fn(&Body) -> ApiResult<T>, rows: &[(&str, &str)]) {
        for (json, text) in rows {
            assert_eq!(read(&body(json)).unwrap_err().text, *text, "{json}");
        }
    }

    #[test]
    fn component_bodies_are_refused_in_spp_ctls_words() {
        check(
            component_start,
            &[
                (r#"{}"#, "key(name) required."),
                (r#"{"name": "c", "type": "merge"}"#, "key(core) required."),
                (r#"{"name": "c", "core": 2}"#, "key(type) required."),
                (r#"{"name": 1, "core": 2, "type": "merge"}"#, "invalid key(name): 1."),
                (r#"{"name": "c", "core": "2", "type": "merge"}"#, "invalid key(core): 2."),
                (r#"{"name": "c", "core": 2, "type": "mirror"}"#, "invalid key(type): mirror."),
                (r#"{"name": "c", "core": -1, "type": "merge"}"#, "command error: Invalid value (core)"),
            ],
        );
        let started =
            component_start(&body(r#"{"name": "c", "core": 2, "type": "classifier_mac"}"#)).unwrap();
        assert_eq!(started.kind, ComponentKind::Classifier);
    }

    #[test]
    fn port_bodies_are_refused_in_spp_ctls_words() {
        check(
            port_change,
            &[
                (r#"{"port": "phy:0", "dir": "rx"}"#, "key(action) required."),
                (r#"{"action": "attach", "dir": "rx"}"#, "key(port) required."),
                (r#"{"action": "attach", "port": "phy:0"}"#, "key(dir) required."),
                (r#"{"action": "add", "port": "phy:0", "dir": "rx"}"#, "invalid key(action): add."),
                (r#"{"action": "attach", "port": "phy0", "dir": "rx"}"#, "invalid key(port): phy0."),
                (r#"{"action": "attach", "port": "eth:0", "dir": "rx"}"#, "invalid key(port): eth:0."),
                (r#"{"action": "attach", "port": "phy:0", "dir": "up"}"#, "invalid key(dir): up."),
                (
                    r#"{"action": "attach", "port": "tap:0", "dir": "rx"}"#,
                    "command error: Invalid value (port)",
                ),
                (
                    r#"{"action": "attach", "port": "ring:0nq1", "dir": "rx"}"#,
                    "command error: Invalid value (port)",
                ),
                (
                    r#"{"action": "attach", "port": "phy:0", "dir": "rx", "vlan": {"operation": "pop"}}"#,
                    r#"invalid key(vlan): {"operation":"pop"}."#,
                ),
                (
                    r#"{"action": "attach", "port": "phy:0", "dir": "rx", "vlan": {"operation": "add", "id": "5", "pcp": 1}}"#,
                    r#"invalid key(vlan): {"operation":"add","id":"5","pcp":1}."#,
                ),
                (
                    r#"{"action": "attach", "port": "phy:0", "dir": "rx", "vlan": {"operation": "add", "id": 70000, "pcp": 1}}"#,
                    "command error: Invalid value (port vid)",
                ),
                (
                    r#"{"action": "attach", "port": "phy:0", "dir": "rx", "vlan": {"operation": "add", "id": 5, "pcp": -1}}"#,
                    "command error: Invalid value (port pcp)",
                ),
            ],
        );
    }

    #[test]
    fn tag_operation_is_read_on_attach_only() {
        let with_vlan = |action: &str| {
            let vlan = r#"{"operation": "add", "id": 100, "pcp": 3}"#;
            port_change(&body(&format!(
                r#"{{"action": "{action}", "port": "ring:1", "dir": "rx", "vlan": {vlan}}}"#
            )))
        };
        let add = VlanOp::Add { vid: 100, pcp: 3 };
        assert_eq!(with_vlan("attach"), Ok(PortChange::Attach(PortName::Ring(1), Direction::Rx, add)));
        assert_eq!(with_vlan("detach"), Ok(PortChange::Detach(PortName::Ring(1), Direction::Rx)));
    }

    #[test]
    fn table_bodies_are_refused_in_spp_ctls_words() {
        check(
            table_change,
            &[
                (r#"{"type": "mac"}"#, "key(action) required."),
                (r#"{"action": "add"}"#, "key(type) required."),
                (r#"{"action": "add", "type": "mac"}"#, "key(port) required."),
                (r#"{"action": "add", "type": "mac", "port": "ring:0"}"#, "key(mac_address) required."),
                (
                    r#"{"action": "put", "type": "mac", "port": "ring:0", "mac_address": "default"}"#,
                    "invalid key(action): put.",
                ),
                (
                    r#"{"action": "add", "type": "ip", "port": "ring:0", "mac_address": "default"}"#,
                    "invalid key(type): ip.",
                ),
                (
                    r#"{"action": "add", "type": "mac", "port": "ring:0", "mac_address": "02:00"}"#,
                    "invalid key(mac_address): 02:00.",
                ),
                (
                    r#"{"action": "add", "type": "mac", "port": "ring:0", "mac_address": "02:00:00:00:00:00:00:01"}"#,
                    "command error: Invalid value (mac address)",
                ),
                (
                    r#"{"action": "add", "type": "vlan", "port": "ring:0", "mac_address": "default"}"#,
                    "key(vlan) required.",
                ),
                (
                    r#"{"action": "add", "type": "vlan", "port": "ring:0", "mac_address": "default", "vlan": "x"}"#,
                    "invalid key(vlan): x.",
                ),
                (
                    r#"{"action": "add", "type": "vlan", "port": "ring:0", "mac_address": "default", "vlan": -1}"#,
                    "command error: Invalid value (vlan id)",
                ),
            ],
        );
        let json =
            r#"{"action": "del", "type": "vlan", "port": "ring:0", "mac_address": "default", "vlan": "7"}"#;
        let entry = Entry { vid: Some(7), dst: Dst::Default, port: PortName::Ring(0) };
        assert_eq!(table_change(&body(json)), Ok(TableChange::Del(entry)));
    }

    #[test]
    fn bodies_with_any_byte_replaced_are_read_or_refused() {
        let bodies = [
            r#"{"name": "c", "core": 2, "type": "merge"}"#,
            r#"{"action": "attach", "port": "phy:0nq1", "dir": "rx", "vlan": {"operation": "add", "id": 5, "pcp": 1}}"#,
            r#"{"action": "add", "type": "vlan", "port": "ring:0", "mac_address": "02:00:00:00:00:01", "vlan": "7"}"#,
        ];
        let mut n_read = 0;
        for good in bodies {
            for at in 0..good.len() {
                for byte in [0, b'"', b':', b'9', b'-', b'n', b'{', b'e', 0x80, 0xff] {
                    let mut bytes = good.as_bytes().to_vec();
                    bytes[at] = byte;
                    let Ok(body) = Body::parse(&bytes) else { continue };
                    n_read += 1;
                    let refusals =
                        [component_start(&body).err(), port_change(&body).err(), table_change(&body).err()];
                    assert!(
                        refusals.iter().flatten().all(|refusal| refusal.status.is_client_error()),
                        "{body:?}"
                    );
                }
            }
        }
        assert!(n_read > 100, "most replacements inside texts are still JSON, {n_read} were");
    }
}
