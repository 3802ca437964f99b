//! The etcd keys this node shares with the control node: names, values, who writes what.
//!
//! Pure text and bytes, no I/O; called by the reconciler, the etcd link and `spp config`. Owns the
//! spelling of every key. A [`HostKeys`] can only spell and read keys of its own host, which is how
//! the agent never touches another host's.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

mod info;

pub use info::{BindPort, InfoError, TapInfo};

/// Below which prefix the keys are, unless the operator says otherwise.
pub const DEFAULT_PREFIX: &str = "/spp";

/// What stands between the prefix and the family.
const BRANCH: &str = "/openstack/";

/// The value of a vhost or mirror key nobody uses: these four bytes.
pub const FREE: &str = "None";

/// The value of a port_status key of a port that is wired.
pub const UP: &str = "up";

/// Longest name (host, port id, physical network), in bytes.
const NAME_MAX_BYTES: usize = 255;

/// Everything shared with the control node lives below this: the operator's prefix and `/openstack/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(Arc<str>);

/// Why a text can be no prefix of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no prefix of etcd keys: write /NAME or /NAME/NAME, of the characters A-Z a-z 0-9 . _ - : @ +"
)]
pub struct PrefixError(String);

/// Checks a prefix of keys: path elements behind slashes, a last slash is dropped.
pub fn prefix(text: &str) -> Result<String, PrefixError> {
    let malformed = || PrefixError(text.chars().take(64).collect());
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let elements = trimmed.strip_prefix('/').ok_or_else(malformed)?;
    if elements.split('/').all(|element| Name::new(element).is_ok()) {
        Ok(trimmed.to_string())
    } else {
        Err(malformed())
    }
}

impl Default for Root {
    fn default() -> Root {
        Root(format!("{DEFAULT_PREFIX}{BRANCH}").into())
    }
}

impl std::str::FromStr for Root {
    type Err = PrefixError;

    /// Reads the operator's prefix, such as `/spp`.
    fn from_str(text: &str) -> Result<Root, PrefixError> {
        Ok(Root(format!("{}{BRANCH}", prefix(text)?).into()))
    }
}

/// A key family: the word after the [`Root`].
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
    /// `mirror/<host>/<mirror id>`: `None` or the id of the tap flow that has it. Created by `spp config
    /// put`; the TaaS driver swaps `None` -> tap flow id, we swap it back.
    Mirror,
    /// `tap_info/<host>/<tap flow id>`: ports and mirrors of a tap as JSON. Written by the TaaS driver;
    /// read and deleted by us.
    TapInfo,
    /// `tap_action/<host>/<tap flow id>`: `plug` or `unplug`. As [`Family::Action`], by the TaaS driver.
    TapAction,
    /// `tap_status/<host>/<tap flow id>`: `up`. Written and deleted by us; watched by the TaaS driver.
    TapStatus,
}

impl Family {
    /// All families, in the order of the table above. The agent lists and watches them all.
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

/// The id TaaS gave a tap flow (a UUID in practice).
pub type TapId = Name;

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
    /// [`Family::Mirror`]
    Mirror(u32),
    /// [`Family::TapInfo`]
    TapInfo(TapId),
    /// [`Family::TapAction`]
    TapAction(TapId),
    /// [`Family::TapStatus`]
    TapStatus(TapId),
}

impl Key {
    /// Its family.
    pub fn family(&self) -> Family {
        match self {
            Key::Configuration => Family::Configuration,
            Key::Vhost(_) => Family::Vhost,
            Key::BindPort(_) => Family::BindPort,
            Key::PortStatus(_) => Family::PortStatus,
            Key::Action(_) => Family::Action,
            Key::Mirror(_) => Family::Mirror,
            Key::TapInfo(_) => Family::TapInfo,
            Key::TapAction(_) => Family::TapAction,
            Key::TapStatus(_) => Family::TapStatus,
        }
    }
}

/// Whom keys are about. Both have the same four: what is asked for (info), what is to be done about it
/// (action), our answer (status), and the slots they hold (a port one vhost, a tap flow one or two mirrors).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A port of neutron's.
    Port(PortId),
    /// A tap flow of TaaS's.
    Tap(TapId),
}

impl Subject {
    /// Neutron's or TaaS's id for it.
    pub fn id(&self) -> &Name {
        match self {
            Subject::Port(id) | Subject::Tap(id) => id,
        }
    }

    /// Its action key.
    pub fn action(&self) -> Key {
        match self {
            Subject::Port(port) => Key::Action(port.clone()),
            Subject::Tap(tap) => Key::TapAction(tap.clone()),
        }
    }

    /// Its bind_port or tap_info key.
    pub fn info(&self) -> Key {
        match self {
            Subject::Port(port) => Key::BindPort(port.clone()),
            Subject::Tap(tap) => Key::TapInfo(tap.clone()),
        }
    }

    /// Its port_status or tap_status key.
    pub fn status(&self) -> Key {
        match self {
            Subject::Port(port) => Key::PortStatus(port.clone()),
            Subject::Tap(tap) => Key::TapStatus(tap.clone()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Port(port) => write!(f, "port {port}"),
            Subject::Tap(tap) => write!(f, "tap {tap}"),
        }
    }
}

/// Spells and reads the keys of one host.
#[derive(Debug, Clone)]
pub struct HostKeys {
    root: Root,
    host: Name,
}

impl HostKeys {
    /// Keys of `host` where they usually are.
    pub fn new(host: Name) -> HostKeys {
        HostKeys::under(Root::default(), host)
    }

    /// Keys of `host` below `root`.
    pub fn under(root: Root, host: Name) -> HostKeys {
        HostKeys { root, host }
    }

    /// The host these keys belong to.
    pub fn host(&self) -> &Name {
        &self.host
    }

    /// What all keys of a family start with. Ends in a slash, so that `spp4` is no prefix of `spp40`;
    /// the configuration, which has no deeper level, is the whole key.
    pub fn prefix(&self, family: Family) -> String {
        match family {
            Family::Configuration => format!("{}{}/{}", self.root.0, family.word(), self.host),
            _ => format!("{}{}/{}/", self.root.0, family.word(), self.host),
        }
    }

    /// The full text of a key.
    pub fn spell(&self, key: &Key) -> String {
        let prefix = self.prefix(key.family());
        match key {
            Key::Configuration => prefix,
            Key::Vhost(slot) => format!("{prefix}{}/{}", slot.physnet, slot.vhost),
            Key::Mirror(mirror) => format!("{prefix}{mirror}"),
            Key::BindPort(id) | Key::PortStatus(id) | Key::Action(id) => format!("{prefix}{id}"),
            Key::TapInfo(id) | Key::TapAction(id) | Key::TapStatus(id) => format!("{prefix}{id}"),
        }
    }

    /// Reads a key. None when it is not one of this host's, or its name is odd.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let rest = |family| Some((family, key.strip_prefix(self.prefix(family).as_bytes())?));
        let (family, rest) = Family::ALL.into_iter().find_map(rest)?;
        Some(match family {
            Family::Configuration => rest.is_empty().then_some(Key::Configuration)?,
            Family::Vhost => Key::Vhost(parse_slot(rest)?),
            Family::Mirror => Key::Mirror(parse_id(rest)?),
            Family::BindPort => Key::BindPort(Name::from_bytes(rest)?),
            Family::PortStatus => Key::PortStatus(Name::from_bytes(rest)?),
            Family::Action => Key::Action(Name::from_bytes(rest)?),
            Family::TapInfo => Key::TapInfo(Name::from_bytes(rest)?),
            Family::TapAction => Key::TapAction(Name::from_bytes(rest)?),
            Family::TapStatus => Key::TapStatus(Name::from_bytes(rest)?),
        })
    }
}

/// `<physical network>/<vhost id>`.
fn parse_slot(rest: &[u8]) -> Option<SlotId> {
    let slash = rest.iter().position(|&b| b == b'/')?;
    let physnet = Name::from_bytes(&rest[..slash])?;
    Some(SlotId { physnet, vhost: parse_id(&rest[slash + 1..])? })
}

/// A vhost or mirror id in plain decimal, so that one slot has one spelling.
fn parse_id(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok()?;
    let id: u32 = digits.parse().ok()?;
    (id.to_string() == digits).then_some(id)
}

/// What a vhost or mirror key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotValue {
    /// Nobody has it.
    Free,
    /// This port or tap flow has it.
    Held(Name),
    /// Neither `None` nor anything that can be an id.
    Garbled,
}

impl SlotValue {
    /// Reads the value of a vhost or mirror key.
    pub fn parse(value: &[u8]) -> SlotValue {
        if value == FREE.as_bytes() {
            return SlotValue::Free;
        }
        Name::from_bytes(value).map_or(SlotValue::Garbled, SlotValue::Held)
    }
}

/// What an action or tap_action key says.
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

#[cfg(test)]
mod tests;
