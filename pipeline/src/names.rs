//! The names operators use: ports `phy:0`, `vhost:0`, `ring:0`, component types and component names.
//!
//! Pure text and numbers; called from set-up and from the API, never from a polling core.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A port of a component. In order: NICs, vhosts, rings, each by number, then by queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PortName {
    /// The node's n-th NIC; of one with several queue pairs the first, which is written `phy:0nq0`, too.
    Phy(u32),
    /// A further queue pair of a NIC: `phy:0nq1`. Never 0.
    PhyQueue(u32, u16),
    /// The vhost-user port with this id, counted over all NICs of the node: its queues, but for those that
    /// are attached by their own names.
    Vhost(u32),
    /// One queue pair of a vhost-user port: `vhost:0nq1`.
    VhostQueue(u32, u16),
    /// A packet ring between two components.
    Ring(u32),
    /// The ring by which a NIC's guests reach each other, by the NIC's number. Made by the node, never attached by name.
    Local(u32),
}

impl PortName {
    /// Queue pair `queue` of a NIC.
    pub const fn phy(nic: u32, queue: u16) -> PortName {
        match queue {
            0 => PortName::Phy(nic),
            _ => PortName::PhyQueue(nic, queue),
        }
    }

    /// The NIC it is a queue of, if it is one's.
    pub const fn nic(self) -> Option<u32> {
        match self {
            PortName::Phy(nic) | PortName::PhyQueue(nic, _) => Some(nic),
            _ => None,
        }
    }

    /// True for what connects two components inside.
    pub const fn is_ring(&self) -> bool {
        matches!(self, PortName::Ring(_) | PortName::Local(_))
    }

    /// The vhost it is, or is a queue of.
    pub const fn vhost(self) -> Option<u32> {
        match self {
            PortName::Vhost(vhost) | PortName::VhostQueue(vhost, _) => Some(vhost),
            _ => None,
        }
    }

    /// Kind, number, and 0 or the queue and one.
    const fn rank(self) -> (u8, u32, u32) {
        match self {
            PortName::Phy(n) => (0, n, 0),
            PortName::PhyQueue(n, queue) => (0, n, queue as u32 + 1),
            PortName::Vhost(n) => (1, n, 0),
            PortName::VhostQueue(n, queue) => (1, n, queue as u32 + 1),
            PortName::Ring(n) => (2, n, 0),
            PortName::Local(n) => (3, n, 0),
        }
    }

    /// The ring that carries packets towards the guest of a vhost.
    pub const fn ring_to_guest(vhost: u32) -> PortName {
        PortName::Ring(2 * vhost)
    }

    /// The ring that carries packets from the guest of a vhost.
    pub const fn ring_from_guest(vhost: u32) -> PortName {
        PortName::Ring(2 * vhost + 1)
    }
}

impl Ord for PortName {
    fn cmp(&self, other: &PortName) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for PortName {
    fn partial_cmp(&self, other: &PortName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

impl FromStr for PortName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<PortName, NameError> {
        let bad = || {
            let what = "is not a port: write phy:N, vhost:N or ring:N, or one queue: phy:NnqQ, vhost:NnqQ";
            NameError(format!("{:?} {what}", clip(text)))
        };
        fn number<T: FromStr>(text: &str) -> Option<T> {
            let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        }
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        let (n, queue) = match rest.split_once("nq") {
            Some((n, queue)) => (n, Some(number::<u16>(queue).ok_or_else(bad)?)),
            None => (rest, None),
        };
        let n: u32 = number(n).ok_or_else(bad)?;
        match (kind, queue) {
            ("phy", queue) => Ok(PortName::phy(n, queue.unwrap_or(0))),
            ("vhost", None) => Ok(PortName::Vhost(n)),
            ("vhost", Some(queue)) => Ok(PortName::VhostQueue(n, queue)),
            ("ring", None) => Ok(PortName::Ring(n)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortName::Phy(n) => write!(f, "phy:{n}"),
            PortName::PhyQueue(n, queue) => write!(f, "phy:{n}nq{queue}"),
            PortName::Vhost(n) => write!(f, "vhost:{n}"),
            PortName::VhostQueue(n, queue) => write!(f, "vhost:{n}nq{queue}"),
            PortName::Ring(n) => write!(f, "ring:{n}"),
            PortName::Local(n) => write!(f, "local:{n}"),
        }
    }
}

impl TryFrom<String> for PortName {
    type Error = NameError;
    fn try_from(text: String) -> Result<PortName, NameError> {
        text.parse()
    }
}

impl From<PortName> for String {
    fn from(port: PortName) -> String {
        port.to_string()
    }
}

/// What a component does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentKind {
    /// One rx port to one tx port.
    Forward,
    /// Many rx ports to one tx port.
    Merge,
    /// One rx port to many tx ports, by VLAN and destination MAC.
    Classifier,
    /// One rx port to two tx ports, every packet to both. Made by taps, never by name.
    Mirror,
}

impl ComponentKind {
    /// Its name in the API and in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            ComponentKind::Forward => "forward",
            ComponentKind::Merge => "merge",
            ComponentKind::Classifier => "classifier",
            ComponentKind::Mirror => "mirror",
        }
    }
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ComponentKind {
    type Err = NameError;

    /// `classifier_mac` is what `classifier` was called until 2019; both are in use. A mirror can't be
    /// asked for by name: the configuration has a part of its own for them.
    fn from_str(text: &str) -> Result<ComponentKind, NameError> {
        match text {
            "forward" => Ok(ComponentKind::Forward),
            "merge" => Ok(ComponentKind::Merge),
            "classifier" | "classifier_mac" => Ok(ComponentKind::Classifier),
            _ => Err(NameError(format!(
                "{:?} is not a component type: write forward, merge, classifier or classifier_mac",
                clip(text)
            ))),
        }
    }
}

/// Longest component name in bytes.
pub const MAX_COMPONENT_NAME_BYTES: usize = 31;

/// Checks a component's name: 1 to 31 bytes of printable ASCII without blanks or slashes (it is part
/// of a path in the API).
pub fn check_component_name(name: &str) -> Result<(), NameError> {
    let fits = (1..=MAX_COMPONENT_NAME_BYTES).contains(&name.len());
    if fits && name.bytes().all(|c| c.is_ascii_graphic() && c != b'/') {
        return Ok(());
    }
    Err(NameError(format!(
        "{:?} is not a component name: 1 to {MAX_COMPONENT_NAME_BYTES} printable characters without blanks and slashes",
        clip(name)
    )))
}

/// The start of a text that comes from outside, short enough for one line of an error.
pub(crate) fn clip(text: &str) -> &str {
    const MAX: usize = 64;
    let mut end = text.len().min(MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_round_trip() {
        for text in ["phy:0", "phy:3nq1", "vhost:33", "vhost:0nq0", "vhost:33nq65535", "ring:4294967295"] {
            assert_eq!(text.parse::<PortName>().unwrap().to_string(), text);
        }
        assert_eq!("phy:7nq0".parse(), Ok(PortName::Phy(7)), "a NIC's first queue pair has two names");
    }

    #[test]
    fn ports_are_in_order_of_kind_number_and_queue() {
        let sorted =
            ["phy:0", "phy:0nq1", "phy:0nq10", "phy:1", "vhost:0", "vhost:0nq0", "vhost:0nq2", "vhost:1"];
        let mut ports: Vec<PortName> = sorted.iter().rev().map(|text| text.parse().unwrap()).collect();
        ports.sort_unstable();
        assert_eq!(ports.iter().map(PortName::to_string).collect::<Vec<_>>(), sorted);
        assert!(ports.iter().all(|port| *port < PortName::Ring(0) && PortName::Ring(9) < PortName::Local(0)));
    }

    #[test]
    fn malformed_port_names_are_refused() {
        for text in [
            "",
            "phy",
            "phy:",
            "phy:-1",
            "phy:+1",
            "phy:1 ",
            "phy:0nq",
            "phy:nq1",
            "phy:0 nq 1",
            "vhost:0nq-1",
            "vhost:0nq65536",
            "vhost:0nq1nq1",
            "ring:0nq1",
            "ring:4294967296",
            "tap:0",
            "PHY:0",
            "local:0",
        ] {
            assert!(text.parse::<PortName>().is_err(), "{text}");
        }
    }

    #[test]
    fn both_spellings_of_the_classifier_are_one_type() {
        assert_eq!("classifier_mac".parse::<ComponentKind>(), "classifier".parse());
        assert!("mirror".parse::<ComponentKind>().is_err());
    }

    #[test]
    fn component_names_of_0_and_32_bytes_are_refused() {
        assert!(check_component_name(&"x".repeat(31)).is_ok());
        for bad in ["", &"x".repeat(32), "a b", "a/b", "a\n", "ä"] {
            assert!(check_component_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn clipping_respects_characters() {
        assert_eq!(clip(&"ä".repeat(64)).len(), 64);
        assert_eq!(clip(&("x".to_owned() + &"ä".repeat(64))).len(), 63);
    }
}
