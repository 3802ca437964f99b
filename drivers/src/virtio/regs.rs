//! Registers of a modern virtio PCI device (virtio 1.2, 4.1.4) and of its network part (5.1.4). The
//! width and the access of a register are in its type: writing a read-only one does not compile.

use crate::nic::regs::registers;
pub use crate::nic::regs::{Block, Readable, Reg, Ro, Rw};

/// The common configuration (virtio 1.2, 4.1.4.3).
pub mod common {
    use super::*;

    /// Bytes of the block that we use.
    pub const LEN_BYTES: usize = 56;

    registers! {
        /// Which 32 feature bits `DEVICE_FEATURE` shows.
        DEVICE_FEATURE_SELECT: u32, Rw = 0, "device_feature_select";
        /// Features the device offers.
        DEVICE_FEATURE: u32, Ro = 4, "device_feature";
        /// Which 32 feature bits `DRIVER_FEATURE` takes.
        DRIVER_FEATURE_SELECT: u32, Rw = 8, "driver_feature_select";
        /// Features the driver accepts.
        DRIVER_FEATURE: u32, Rw = 12, "driver_feature";
        /// MSI-X vector of configuration changes.
        CONFIG_MSIX_VECTOR: u16, Rw = 16, "config_msix_vector";
        /// Queues the device has.
        NUM_QUEUES: u16, Ro = 18, "num_queues";
        /// The status machine; writing 0 resets.
        DEVICE_STATUS: u8, Rw = 20, "device_status";
        /// Changes whenever the device configuration did.
        CONFIG_GENERATION: u8, Ro = 21, "config_generation";
        /// Which queue the following registers mean.
        QUEUE_SELECT: u16, Rw = 22, "queue_select";
        /// Largest ring at reset, then the one in use; 0: no such queue.
        QUEUE_SIZE: u16, Rw = 24, "queue_size";
        /// MSI-X vector of the queue.
        QUEUE_MSIX_VECTOR: u16, Rw = 26, "queue_msix_vector";
        /// 1: the queue works.
        QUEUE_ENABLE: u16, Rw = 28, "queue_enable";
        /// Where its doorbell is, in units of the notify capability's multiplier.
        QUEUE_NOTIFY_OFF: u16, Ro = 30, "queue_notify_off";
        /// Descriptor table, low half.
        QUEUE_DESC_LOW: u32, Rw = 32, "queue_desc";
        /// Descriptor table, high half.
        QUEUE_DESC_HIGH: u32, Rw = 36, "queue_desc (high)";
        /// Avail ring, low half.
        QUEUE_DRIVER_LOW: u32, Rw = 40, "queue_driver";
        /// Avail ring, high half.
        QUEUE_DRIVER_HIGH: u32, Rw = 44, "queue_driver (high)";
        /// Used ring, low half.
        QUEUE_DEVICE_LOW: u32, Rw = 48, "queue_device";
        /// Used ring, high half.
        QUEUE_DEVICE_HIGH: u32, Rw = 52, "queue_device (high)";
    }
}

/// The network device's configuration (virtio 1.2, 5.1.4).
pub mod net {
    use super::*;

    /// Bytes of the block that we use.
    pub const LEN_BYTES: usize = 12;

    registers! {
        /// The address, with F_MAC: first two bytes.
        MAC_0: u16, Ro = 0, "mac[0]";
        /// The next two.
        MAC_2: u16, Ro = 2, "mac[2]";
        /// The last two.
        MAC_4: u16, Ro = 4, "mac[4]";
        /// Link, with F_STATUS.
        STATUS: u16, Ro = 6, "status";
        /// Largest payload, with F_MTU.
        MTU: u16, Ro = 10, "mtu";
    }

    /// `STATUS`: the link is up.
    pub const S_LINK_UP: u16 = 1;
}

/// Bits of `DEVICE_STATUS` (virtio 1.2, 2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// The device wants a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// What an absent device answers.
    pub const GONE: u8 = 0xff;
}

/// No MSI-X vector (virtio 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Feature bits we know (virtio 1.2, 5.1.3 and 6).
pub mod feature {
    /// The device says its largest payload.
    pub const MTU: u64 = 1 << 3;
    /// The device has an address.
    pub const MAC: u64 = 1 << 5;
    /// A received frame may take several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device says whether its link is up.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The control queue takes receive modes.
    pub const CTRL_RX: u64 = 1 << 18;
    /// Modern.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device's accesses go through the IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;

    /// All that the driver makes use of; nothing else is ever accepted.
    pub const USED: u64 = MTU | MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | VERSION_1 | ACCESS_PLATFORM;
}
