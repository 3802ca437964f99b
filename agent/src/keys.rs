//! The etcd keys this node shares with the control node: names, values, who writes what.
//!
//! Pure text and bytes, no I/O; called by the reconciler, the etcd link and `spp config`. Owns the
//! spelling of every key. A [`HostKeys`] can only spell and read keys of its own host, which is how
//! the agent never touches another host's.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use spp_drivers::MacAddr;

use crate::Plug;

/// Everything shared with the control node lives below this.
pub const ROOT: &str = "/spp/openstack/";

/// The value of a vhost or mirror key nobody uses: these four bytes.
pub const FREE: &str = "None";

/// The value of a port_status key of a port that is wired.
pub const UP: &str = "up";

/// Longest bind_port value worth parsing, in bytes; the real ones have about 80.
const BIND_PORT_MAX_BYTES: usize = 4096;

/// Longest name (host, port id, physical network), in bytes.
const NAME_MAX_BYTES: usize = 255;

/// A key family: the word after [`ROOT`].
///
/// The architecture document's table swaps the rows of bind_port and port_status (and of tap_info
/// and tap_status); the comments here say what the control node really does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `configuration/<host>`: the node as JSON. Written by `spp config put` (devstack); read by the
    /// driver and by us.
    Configuration,
    /// `vhost/<host>/<physical network>/<vhost id>`: `None` or the id of the port that has it.
    /// Created by `spp config put`; the driver swaps `None` -> port id, we swap it back.
    Vhost,
    /// `bind_port/<host>/<port id>`: MAC, vhost and VLAN as JSON. Written by the driver; read and
    /// deleted by us.
    BindPort,
    /// `port_status/<host>/<port id>`: `up`. Written and deleted by us; watched by the driver.
    PortStatus,
    /// `action/<host>/<port id>`: `plug` or `unplug`. Written by the driver; read by us, and deleted
    /// by us when the unplug is done.
    Action,
    /// `mirror/<host>/<mirror id>`: `None` or a tap flow id. Taken by the TaaS driver.
    Mirror,
    /// `tap_info/<host>/<tap flow id>`: ports and mirrors of a tap as JSON. Written by the TaaS driver.
    TapInfo,
    /// `tap_action/<host>/<tap flow id>`: `plug` or `unplug`. Written by the TaaS driver.
    TapAction,
    /// `tap_status/<host>/<tap flow id>`: `up`. Watched by the TaaS driver.
    TapStatus,
}

impl Family {
    /// All families, in the order of the table above.
    pub const ALL: [Family; 9] = [
        Family::Configuration,
        Family::Vhost,
        Family::BindPort,
        Family::PortStatus,
        Family::Action,
        Family::Mirror,
        Family::TapInfo,
        Family::TapAction,
        Family::TapStatus,
    ];

    /// The families the agent lists and watches.
    pub const WATCHED: [Family; 5] =
        [Family::Configuration, Family::Vhost, Family::BindPort, Family::PortStatus, Family::Action];

    /// The family's word in the key.
    pub const fn word(self) -> &'static str {
        match self {
            Family::Configuration => "configuration",
            Family::Vhost => "vhost",
            Family::BindPort => "bind_port",
            Family::PortStatus => "port_status",
            Family::Action => "action",
            Family::Mirror => "mirror",
            Family::TapInfo => "tap_info",
            Family::TapAction => "tap_action",
            Family::TapStatus => "tap_status",
        }
    }
}

/// Why a host name, port id or physical network cannot be part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be part of an etcd key: use 1 to 255 of the characters A-Z a-z 0-9 . _ - : @ +")]
pub struct NameError {
    text: String,
}

/// One path element of a key: no slash, no blank, no control or non-ASCII byte, so that a name can
/// neither escape its place in the key nor be mistaken for another. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `text` and takes it.
    pub fn new(text: &str) -> Result<Name, NameError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:@+".contains(&b);
        if text.is_empty() || text.len() > NAME_MAX_BYTES || !text.bytes().all(plain) {
            return Err(NameError { text: text.chars().take(64).collect() });
        }
        Ok(Name(text.into()))
    }

    fn from_bytes(bytes: &[u8]) -> Option<Name> {
        Name::new(std::str::from_utf8(bytes).ok()?).ok()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id neutron gave a port (a UUID in practice).
pub type PortId = Name;

/// The place of one vhost in the keys: which physical network's pool it belongs to, and its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId {
    /// Physical network of the NIC.
    pub physnet: Name,
    /// Vhost id, counted over all NICs of the host.
    pub vhost: u32,
}

/// A key of this host that the agent reads or writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// [`Family::Configuration`]
    Configuration,
    /// [`Family::Vhost`]
    Vhost(SlotId),
    /// [`Family::BindPort`]
    BindPort(PortId),
    /// [`Family::PortStatus`]
    PortStatus(PortId),
    /// [`Family::Action`]
    Action(PortId),
}

/// Spells and reads the keys of one host.
#[derive(Debug, Clone)]
pub struct HostKeys {
    host: Name,
}

impl HostKeys {
    /// Keys of `host`.
    pub fn new(host: Name) -> HostKeys {
        HostKeys { host }
    }

    /// The host these keys belong to.
    pub fn host(&self) -> &Name {
        &self.host
    }

    /// What all keys of a family start with. Ends in a slash, so that `spp4` is no prefix of `spp40`;
    /// the configuration, which has no deeper level, is the whole key.
    pub fn prefix(&self, family: Family) -> String {
        match family {
            Family::Configuration => format!("{ROOT}{}/{}", family.word(), self.host),
            _ => format!("{ROOT}{}/{}/", family.word(), self.host),
        }
    }

    /// The full text of a key.
    pub fn spell(&self, key: &Key) -> String {
        match key {
            Key::Configuration => self.prefix(Family::Configuration),
            Key::Vhost(slot) => format!("{}{}/{}", self.prefix(Family::Vhost), slot.physnet, slot.vhost),
            Key::BindPort(port) => format!("{}{port}", self.prefix(Family::BindPort)),
            Key::PortStatus(port) => format!("{}{port}", self.prefix(Family::PortStatus)),
            Key::Action(port) => format!("{}{port}", self.prefix(Family::Action)),
        }
    }

    /// Reads a key. None when it is not one of this host's watched families, or its name is odd.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        if key == self.prefix(Family::Configuration).as_bytes() {
            return Some(Key::Configuration);
        }
        let rest = |family| key.strip_prefix(self.prefix(family).as_bytes());
        if let Some(rest) = rest(Family::Vhost) {
            return parse_slot(rest).map(Key::Vhost);
        }
        if let Some(rest) = rest(Family::BindPort) {
            return Name::from_bytes(rest).map(Key::BindPort);
        }
        if let Some(rest) = rest(Family::PortStatus) {
            return Name::from_bytes(rest).map(Key::PortStatus);
        }
        Name::from_bytes(rest(Family::Action)?).map(Key::Action)
    }
}

/// `<physical network>/<vhost id>`; the id in plain decimal, so that one slot has one spelling.
fn parse_slot(rest: &[u8]) -> Option<SlotId> {
    let slash = rest.iter().position(|&b| b == b'/')?;
    let physnet = Name::from_bytes(&rest[..slash])?;
    let digits = std::str::from_utf8(&rest[slash + 1..]).ok()?;
    let vhost: u32 = digits.parse().ok()?;
    (vhost.to_string() == digits).then_some(SlotId { physnet, vhost })
}

/// What a vhost key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotValue {
    /// Nobody has it.
    Free,
    /// This port has it.
    Held(PortId),
    /// Neither `None` nor anything that can be a port id.
    Garbled,
}

impl SlotValue {
    /// Reads the value of a vhost key.
    pub fn parse(value: &[u8]) -> SlotValue {
        if value == FREE.as_bytes() {
            return SlotValue::Free;
        }
        Name::from_bytes(value).map_or(SlotValue::Garbled, SlotValue::Held)
    }
}

/// What an action key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Wire the port.
    Plug,
    /// Undo the wiring and give the vhost back.
    Unplug,
    /// Neither word.
    Unknown,
}

impl Request {
    /// Reads the value of an action key.
    pub fn parse(value: &[u8]) -> Request {
        match value {
            b"plug" => Request::Plug,
            b"unplug" => Request::Unplug,
            _ => Request::Unknown,
        }
    }
}

/// Why a bind_port value asks for nothing we can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindPortError {
    /// Longer than any honest value.
    #[error("bind_port has {0} bytes")]
    TooLong(usize),
    /// Not a JSON object.
    #[error("bind_port is not a JSON object: {0}")]
    NotJson(String),
    /// A field is missing.
    #[error("bind_port has no {0}")]
    Missing(&'static str),
    /// A field is of the wrong kind or out of range.
    #[error("bind_port has a bad {field}: {value}")]
    Bad {
        /// The field.
        field: &'static str,
        /// Its value, shortened.
        value: String,
    },
}

/// A bind_port value that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindPort {
    /// The wiring it asks for.
    pub plug: Plug,
    /// A number was given as text: accepted, and worth a log line, since the contract has integers.
    pub lenient: bool,
}

impl BindPort {
    /// Reads a bind_port value. Fields it does not know are ignored.
    pub fn parse(value: &[u8]) -> Result<BindPort, BindPortError> {
        if value.len() > BIND_PORT_MAX_BYTES {
            return Err(BindPortError::TooLong(value.len()));
        }
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(value).map_err(|e| BindPortError::NotJson(e.to_string()))?;
        let present = |field| fields.get(field).filter(|v| !v.is_null());
        let mut lenient = false;

        let vhost = present("vhost_id").ok_or(BindPortError::Missing("vhost_id"))?;
        let vhost = integer("vhost_id", vhost, 0..=u64::from(u32::MAX), &mut lenient)? as u32;
        let mac = present("mac_address").ok_or(BindPortError::Missing("mac_address"))?;
        let mac = station_mac(mac).ok_or_else(|| bad("mac_address", mac))?;
        let vlan = match present("vlan_id") {
            Some(vlan) => Some(integer("vlan_id", vlan, 1..=4094, &mut lenient)? as u16),
            None => None,
        };
        Ok(BindPort { plug: Plug { vhost, mac, vlan }, lenient })
    }
}

fn bad(field: &'static str, value: &serde_json::Value) -> BindPortError {
    BindPortError::Bad { field, value: value.to_string().chars().take(64).collect() }
}

/// The MAC of one station: a group address or all zeros cannot be a VM's.
fn station_mac(value: &serde_json::Value) -> Option<MacAddr> {
    let mac: MacAddr = value.as_str()?.parse().ok()?;
    (!mac.is_group() && mac.0 != [0; 6]).then_some(mac)
}

fn integer(
    field: &'static str,
    value: &serde_json::Value,
    range: std::ops::RangeInclusive<u64>,
    lenient: &mut bool,
) -> Result<u64, BindPortError> {
    let number = value.as_u64().or_else(|| {
        *lenient = true;
        value.as_str().filter(|s| s.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    });
    number.filter(|n| range.contains(n)).ok_or_else(|| bad(field, value))
}

#[cfg(test)]
mod tests;
