//! The names operators use: ports `phy:0`, `vhost:0`, `ring:0`, component types and component names.
//!
//! Pure text and numbers; called from set-up and from the API, never from a polling core.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A port of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PortName {
    /// The node's n-th NIC.
    Phy(u32),
    /// The vhost-user port with this id, counted over all NICs of the node.
    Vhost(u32),
    /// A packet ring between two components.
    Ring(u32),
    /// The ring by which a NIC's guests reach each other, by the NIC's number. Made by the node, never attached by name.
    Local(u32),
}

impl PortName {
    /// The ring that carries packets towards the guest of a vhost.
    pub const fn ring_to_guest(vhost: u32) -> PortName {
        PortName::Ring(2 * vhost)
    }

    /// The ring that carries packets from the guest of a vhost.
    pub const fn ring_from_guest(vhost: u32) -> PortName {
        PortName::Ring(2 * vhost + 1)
    }
}

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

impl FromStr for PortName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<PortName, NameError> {
        let bad = || NameError(format!("{:?} is not a port: write phy:N, vhost:N or ring:N", clip(text)));
        let (kind, number) = text.split_once(':').ok_or_else(bad)?;
        if number.is_empty() || !number.bytes().all(|c| c.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u32 = number.parse().map_err(|_| bad())?;
        match kind {
            "phy" => Ok(PortName::Phy(number)),
            "vhost" => Ok(PortName::Vhost(number)),
            "ring" => Ok(PortName::Ring(number)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortName::Phy(n) => write!(f, "phy:{n}"),
            PortName::Vhost(n) => write!(f, "vhost:{n}"),
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
        for text in ["phy:0", "vhost:33", "ring:4294967295"] {
            assert_eq!(text.parse::<PortName>().unwrap().to_string(), text);
        }
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
            "phy:0nq1",
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
