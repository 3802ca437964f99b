//! The one table of PCI ids that spp drives.

/// A driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// virtio-net over modern PCI.
    VirtioNet,
    /// 8254x: legacy descriptors, one queue.
    E1000,
    /// 82574.
    E1000e,
    /// 82599, X540, X550.
    Ixgbe,
}

impl Family {
    /// The driver's name, as `spp nic list` and status show it.
    pub const fn driver(self) -> &'static str {
        match self {
            Family::VirtioNet => "virtio-net",
            Family::E1000 => "e1000",
            Family::E1000e => "e1000e",
            Family::Ixgbe => "ixgbe",
        }
    }
}

const INTEL: u16 = 0x8086;
const VIRTIO: u16 = 0x1af4;

/// Vendor, device, driver, what it is.
pub const TABLE: &[(u16, u16, Family, &str)] = &[
    (VIRTIO, 0x1041, Family::VirtioNet, "virtio-net"),
    (VIRTIO, 0x1000, Family::VirtioNet, "virtio-net, transitional"),
    (INTEL, 0x100e, Family::E1000, "82540EM"),
    (INTEL, 0x100f, Family::E1000, "82545EM"),
    (INTEL, 0x10d3, Family::E1000e, "82574L"),
    (INTEL, 0x10fb, Family::Ixgbe, "82599, SFP+"),
    (INTEL, 0x10f7, Family::Ixgbe, "82599, KX4"),
    (INTEL, 0x1517, Family::Ixgbe, "82599, KR"),
    (INTEL, 0x10f8, Family::Ixgbe, "82599, backplane"),
    (INTEL, 0x10f9, Family::Ixgbe, "82599, CX4"),
    (INTEL, 0x10fc, Family::Ixgbe, "82599, XAUI"),
    (INTEL, 0x151c, Family::Ixgbe, "82599, 10GBASE-T"),
    (INTEL, 0x1557, Family::Ixgbe, "82599EN, SFP+"),
    (INTEL, 0x154d, Family::Ixgbe, "82599, dual SFP+"),
    (INTEL, 0x154a, Family::Ixgbe, "82599, quad SFP+"),
    (INTEL, 0x1558, Family::Ixgbe, "82599, QSFP+"),
    (INTEL, 0x1528, Family::Ixgbe, "X540-T2"),
    (INTEL, 0x1560, Family::Ixgbe, "X540-T1"),
    (INTEL, 0x1563, Family::Ixgbe, "X550-T2"),
    (INTEL, 0x15d1, Family::Ixgbe, "X550-T1"),
];

/// The driver for a PCI id, if spp has one.
pub fn family(vendor: u16, device: u16) -> Option<Family> {
    TABLE.iter().find(|id| (id.0, id.1) == (vendor, device)).map(|id| id.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_in_the_table_twice() {
        for (n, id) in TABLE.iter().enumerate() {
            assert!(TABLE[n + 1..].iter().all(|other| (other.0, other.1) != (id.0, id.1)), "{id:x?}");
        }
    }

    #[test]
    fn ids_find_their_driver_and_strangers_none() {
        assert_eq!(family(0x8086, 0x10d3).map(Family::driver), Some("e1000e"));
        assert_eq!(family(0x8086, 0x1572), None);
    }
}
