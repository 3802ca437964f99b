//! Which frames a NIC lets in: from what is wanted and what the card can hold to what to program. Pure.

use crate::mac::MacAddr;

/// What the node wants to receive besides the NIC's own address and broadcasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Everything on the wire.
    pub promiscuous: bool,
    /// Every group address. On unless told: guests join groups that nobody tells the NIC of.
    pub all_multicast: bool,
    /// Further unicast addresses.
    pub unicast: Vec<MacAddr>,
    /// VLANs, for a card that has to be told.
    pub vlans: Vec<u16>,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { promiscuous: false, all_multicast: true, unicast: Vec::new(), vlans: Vec::new() }
    }
}

/// What to program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Unicast promiscuous.
    pub promiscuous: bool,
    /// Multicast promiscuous.
    pub all_multicast: bool,
    /// Exact filters, the NIC's own address first.
    pub exact: Vec<MacAddr>,
    /// VLANs.
    pub vlans: Vec<u16>,
    /// More addresses were wanted than the card can hold, so it takes all.
    pub fell_back: bool,
}

/// Fits `wanted` into a card with `n_exact` exact filters. Duplicates and group addresses (which
/// `all_multicast` is for) take no filter.
pub fn program(own: Option<MacAddr>, wanted: &Wanted, n_exact: usize) -> Program {
    let mut exact: Vec<MacAddr> = Vec::new();
    for address in own.iter().chain(&wanted.unicast) {
        if address.0[0] & 1 == 0 && !exact.contains(address) {
            exact.push(*address);
        }
    }
    let fell_back = exact.len() > n_exact && !wanted.promiscuous;
    exact.truncate(n_exact);
    Program {
        promiscuous: wanted.promiscuous || fell_back,
        all_multicast: wanted.all_multicast || wanted.promiscuous,
        exact,
        vlans: wanted.vlans.clone(),
        fell_back,
    }
}

/// An address as the receive address registers of Intel's cards take it: low 32 bits, high 16 bits.
pub fn halves(MacAddr([a, b, c, d, e, f]): MacAddr) -> (u32, u32) {
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, n])
    }

    fn wanting(unicast: &[MacAddr]) -> Wanted {
        Wanted { unicast: unicast.to_vec(), ..Wanted::default() }
    }

    #[test]
    fn own_address_comes_first_and_duplicates_take_no_filter() {
        let got = program(Some(mac(1)), &wanting(&[mac(2), mac(1), mac(2), mac(3)]), 16);
        assert_eq!(got.exact, [mac(1), mac(2), mac(3)]);
        assert_eq!((got.promiscuous, got.all_multicast, got.fell_back), (false, true, false));
    }

    #[test]
    fn more_addresses_than_filters_fall_back_to_promiscuous() {
        let all: Vec<MacAddr> = (2..18).map(mac).collect();
        let got = program(Some(mac(1)), &wanting(&all), 16);
        assert_eq!((got.promiscuous, got.fell_back, got.exact.len()), (true, true, 16));
        let fits = program(Some(mac(1)), &wanting(&all[..15]), 16);
        assert_eq!((fits.promiscuous, fits.fell_back, fits.exact.len()), (false, false, 16));
    }

    #[test]
    fn wanted_promiscuous_is_no_fallback_and_takes_groups_too() {
        let wanted = Wanted {
            promiscuous: true,
            all_multicast: false,
            unicast: (2..40).map(mac).collect(),
            vlans: vec![],
        };
        let got = program(Some(mac(1)), &wanted, 16);
        assert_eq!((got.promiscuous, got.all_multicast, got.fell_back), (true, true, false));
    }

    #[test]
    fn group_addresses_take_no_unicast_filter() {
        let got = program(None, &wanting(&[MacAddr([1, 0, 0x5e, 0, 0, 1]), mac(2)]), 16);
        assert_eq!(got.exact, [mac(2)]);
    }

    #[test]
    fn halves_are_in_wire_order() {
        assert_eq!(halves(MacAddr([0x11, 0x22, 0x33, 0x44, 0x55, 0x66])), (0x4433_2211, 0x6655));
    }
}
