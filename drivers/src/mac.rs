//! An Ethernet MAC address: parse, print, classify.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::str::FromStr;

/// Six bytes in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// True for multicast and broadcast: the group bit of the first byte (IEEE 802, 8.2.2).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for an address a NIC can have as its own.
    pub const fn is_station(self) -> bool {
        !self.is_group() && self.to_u64() != 0
    }

    /// A locally administered address of one station, for a NIC that has none.
    pub fn random() -> MacAddr {
        let random = RandomState::new().build_hasher().finish().to_le_bytes();
        let [a, b, c, d, e, f, ..] = random;
        MacAddr([a & 0xfc | 2, b, c, d, e, f])
    }

    /// The address in the low 48 bits of a word, first byte on the wire lowest: one
    /// compare instead of six, and a key for tables.
    pub const fn to_u64(self) -> u64 {
        let b = self.0;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0])
    }
}

/// What is wrong with the text of a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a MAC address: write six bytes in hex, like fa:16:3e:00:00:01")]
pub struct MacParseError {
    text: String,
}

impl FromStr for MacAddr {
    type Err = MacParseError;

    /// Accepts six colon- or dash-separated bytes of one or two hex digits each.
    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let bad = || MacParseError { text: text.chars().take(64).collect() };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0u8; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            let plain = part.bytes().all(|c| c.is_ascii_hexdigit());
            if part.is_empty() || part.len() > 2 || !plain {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(MacAddr(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trips_in_lower_case() {
        let mac: MacAddr = "FA:16:3E:a0:da:DB".parse().unwrap();
        assert_eq!(mac.to_string(), "fa:16:3e:a0:da:db");
        assert_eq!("2:0:0:0:0:a".parse::<MacAddr>().unwrap().0, [2, 0, 0, 0, 0, 10]);
        assert_eq!("02-00-00-00-00-0a".parse::<MacAddr>().unwrap().0, [2, 0, 0, 0, 0, 10]);
    }

    #[test]
    fn malformed_mac_texts_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:0a:0b",
            "0200.0000.000a",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:+a",
            "02::00:00:00:0a",
            "020000000a",
            "02-00:00:00:00:0a",
            "default",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn group_bit_tells_multicast_from_unicast() {
        assert!(MacAddr::BROADCAST.is_group());
        assert!(MacAddr([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(!MacAddr([2, 0, 0, 0, 0, 1]).is_group());
    }
}
