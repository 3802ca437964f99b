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
    /// 82576, I350, I210, I211.
    Igb,
    /// Virtual functions of the 82576 and the I350.
    Igbvf,
    /// 82599, X540, X550.
    Ixgbe,
    /// vmxnet3.
    Vmxnet3,
}

impl Family {
    /// The driver's name, as `spp nic list` and status show it.
    pub const fn driver(self) -> &'static str {
        match self {
            Family::VirtioNet => "virtio-net",
            Family::E1000 => "e1000",
            Family::E1000e => "e1000e",
            Family::Igb => "igb",
            Family::Igbvf => "igbvf",
            Family::Ixgbe => "ixgbe",
            Family::Vmxnet3 => "vmxnet3",
        }
    }
}

const INTEL: u16 = 0x8086;
const VIRTIO: u16 = 0x1af4;
const VMWARE: u16 = 0x15ad;

/// Vendor, device, driver, what it is.
pub const TABLE: &[(u16, u16, Family, &str)] = &[
    (VIRTIO, 0x1041, Family::VirtioNet, "virtio-net"),
    (VIRTIO, 0x1000, Family::VirtioNet, "virtio-net, transitional"),
    (VMWARE, 0x07b0, Family::Vmxnet3, "vmxnet3"),
    (INTEL, 0x100e, Family::E1000, "82540EM"),
    (INTEL, 0x100f, Family::E1000, "82545EM"),
    (INTEL, 0x10d3, Family::E1000e, "82574L"),
    (INTEL, 0x10c9, Family::Igb, "82576"),
    (INTEL, 0x10e6, Family::Igb, "82576, fibre"),
    (INTEL, 0x10e7, Family::Igb, "82576, backplane"),
    (INTEL, 0x10e8, Family::Igb, "82576, quad copper"),
    (INTEL, 0x1526, Family::Igb, "82576 ET2, quad copper"),
    (INTEL, 0x150a, Family::Igb, "82576NS"),
    (INTEL, 0x1518, Family::Igb, "82576NS, backplane"),
    (INTEL, 0x150d, Family::Igb, "82576, quad backplane"),
    (INTEL, 0x1521, Family::Igb, "I350"),
    (INTEL, 0x1522, Family::Igb, "I350, fibre"),
    (INTEL, 0x1523, Family::Igb, "I350, backplane"),
    (INTEL, 0x1524, Family::Igb, "I350, SGMII"),
    (INTEL, 0x1546, Family::Igb, "I350, DA4"),
    (INTEL, 0x1533, Family::Igb, "I210"),
    (INTEL, 0x1536, Family::Igb, "I210, fibre"),
    (INTEL, 0x1537, Family::Igb, "I210, backplane"),
    (INTEL, 0x1538, Family::Igb, "I210, SGMII"),
    (INTEL, 0x157b, Family::Igb, "I210, without flash"),
    (INTEL, 0x157c, Family::Igb, "I210, backplane, without flash"),
    (INTEL, 0x1539, Family::Igb, "I211"),
    (INTEL, 0x10ca, Family::Igbvf, "82576, virtual function"),
    (INTEL, 0x1520, Family::Igbvf, "I350, virtual function"),
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
