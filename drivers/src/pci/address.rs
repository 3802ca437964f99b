//! A PCI function's address.

use std::fmt;
use std::str::FromStr;

/// Domain, bus, device and function. Parses `0000:00:04.0` and the short `00:04.0` (domain 0);
/// prints the full form, as sysfs has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a PCI address (write it as 0000:00:04.0 or 00:04.0, hexadecimal)")]
pub struct NotAnAddress(pub String);

/// Hexadecimal digits only: no sign, no prefix, at most `max_digits` of them.
fn hex(text: &str, max_digits: usize) -> Option<u32> {
    let fits = (1..=max_digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if fits { u32::from_str_radix(text, 16).ok() } else { None }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = match text.split(':').count() {
        2 => (0, text),
        3 => text.split_once(':').and_then(|(domain, rest)| Some((hex(domain, 8)?, rest)))?,
        _ => return None,
    };
    let (bus, slot) = rest.split_once(':')?;
    let (device, function) = slot.split_once('.')?;
    let (bus, device, function) = (hex(bus, 2)?, hex(device, 2)?, hex(function, 1)?);
    if device > 0x1f || function > 7 {
        return None;
    }
    Some(PciAddress { domain, bus: bus as u8, device: device as u8, function: function as u8 })
}

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        parse(text.trim()).ok_or_else(|| NotAnAddress(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

impl serde::Serialize for PciAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full_forms_print_in_full() {
        let print = |text: &str| text.parse::<PciAddress>().unwrap().to_string();
        assert_eq!(print("00:04.0"), "0000:00:04.0");
        assert_eq!(print("0000:AF:1f.7"), "0000:af:1f.7");
        assert_eq!(print("10000:01:00.0"), "10000:01:00.0", "VMD domains have five digits");
    }

    #[test]
    fn anything_else_is_refused_with_the_right_form() {
        for bad in
            ["", "00:04", "00:20.0", "00:04.8", "g0:04.0", "+0:04.0", "0:0:0:4.0", "00:04.0x", "000:04.0"]
        {
            let error = bad.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("0000:00:04.0"), "{bad}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_text_is_refused_or_survives_printing(text in "[0-9a-fA-F:.+ ]{0,16}|.{0,16}") {
            if let Ok(address) = text.parse::<PciAddress>() {
                proptest::prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
