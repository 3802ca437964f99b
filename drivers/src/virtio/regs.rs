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

    /// Bytes of the block that every device has.
    pub const LEN_BYTES: usize = 12;
    /// Bytes up to the end of the duplex mode.
    pub const LEN_BYTES_SPEED: usize = 17;
    /// Bytes of the block with all that belongs to RSS.
    pub const LEN_BYTES_RSS: usize = 24;

    registers! {
        /// The address, with F_MAC: first two bytes.
        MAC_0: u16, Ro = 0, "mac[0]";
        /// The next two.
        MAC_2: u16, Ro = 2, "mac[2]";
        /// The last two.
        MAC_4: u16, Ro = 4, "mac[4]";
        /// Link, with F_STATUS.
        STATUS: u16, Ro = 6, "status";
        /// Pairs of receive and transmit queues, with F_MQ or F_RSS.
        MAX_VIRTQUEUE_PAIRS: u16, Ro = 8, "max_virtqueue_pairs";
        /// Largest payload, with F_MTU.
        MTU: u16, Ro = 10, "mtu";
        /// Mbit/s, with F_SPEED_DUPLEX.
        SPEED: u32, Ro = 12, "speed";
        /// Longest hash key, with F_RSS.
        RSS_MAX_KEY_SIZE: u8, Ro = 17, "rss_max_key_size";
        /// Longest indirection table, with F_RSS.
        RSS_MAX_TABLE: u16, Ro = 18, "rss_max_indirection_table_length";
        /// Kinds of hash, with F_RSS.
        HASH_TYPES: u32, Ro = 20, "supported_hash_types";
    }

    /// `STATUS`: the link is up.
    pub const S_LINK_UP: u16 = 1;
    /// Fastest speed there is; `SPEED` above it is unknown (5.1.4.1).
    pub const SPEED_MAX: u32 = 0x7fff_ffff;
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
    /// The device completes checksums of frames it sends.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksums are undone, and believes those that were checked.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device says its largest payload.
    pub const MTU: u64 = 1 << 3;
    /// The device has an address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes long TCP frames over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes long TCP frames over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes long TCP frames with CWR set.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The device takes long TCP frames over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes long TCP frames over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes long TCP frames with CWR set.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A received frame may take several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device says whether its link is up.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The control queue takes receive modes and addresses.
    pub const CTRL_RX: u64 = 1 << 18;
    /// Several pairs of queues, spread by the device as it likes.
    pub const MQ: u64 = 1 << 22;
    /// Modern.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device's accesses go through the IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Rings are packed.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are completed in the order they were posted.
    pub const IN_ORDER: u64 = 1 << 35;
    /// The device is hardware and wants the platform's order of memory accesses: what x86 and our fences give.
    pub const ORDER_PLATFORM: u64 = 1 << 36;
    /// Several pairs of queues, spread by flow as the driver says.
    pub const RSS: u64 = 1 << 60;
    /// The device says its speed.
    pub const SPEED_DUPLEX: u64 = 1 << 63;

    /// All that the driver makes use of; nothing else is ever accepted.
    pub const USED: u64 = CSUM
        | GUEST_CSUM
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | MQ
        | VERSION_1
        | ACCESS_PLATFORM
        | RING_PACKED
        | IN_ORDER
        | ORDER_PLATFORM
        | RSS
        | SPEED_DUPLEX;
}
