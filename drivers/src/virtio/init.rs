//! From a PCI function to a working device, in the order of the specification (virtio 1.2, 3.1.1):
//! reset, status, features, queues, DRIVER_OK. Control thread only; every wait has a deadline.

use std::time::Duration;

use super::caps::{self, Place};
use super::command::RssLimits;
use super::features;
use super::queue::{Doorbell, Layout, Ring};
use super::regs::{Block, NO_VECTOR, common, feature, net, status};
use crate::dma::DmaSpace;
use crate::mac::MacAddr;
use crate::nic::wait;
use crate::pci::{PciFunction, Registers};
use crate::port::PortError;

/// Longest a device may take to reset.
const RESET_DEADLINE: Duration = Duration::from_secs(1);
/// Largest ring we ask for.
const MAX_RING: u16 = 1024;
/// Most pairs of queues we use.
const MAX_QUEUE_PAIRS: u16 = 64;
/// A configuration that changes this often while it is read is no configuration.
const MAX_GENERATIONS: u32 = 100;

/// What the device says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NetConfig {
    pub(super) mac: Option<MacAddr>,
    pub(super) link_up: bool,
    /// 0: unknown.
    pub(super) speed_mbps: u32,
    pub(super) mtu: Option<u16>,
    /// As the device says it; at least 1.
    pub(super) max_queue_pairs: u16,
    pub(super) rss: Option<RssLimits>,
}

/// The register blocks of one device.
pub(super) struct Regs<B: Registers> {
    address: String,
    common: Block<B>,
    net: Block<B>,
    /// The device's configuration is this long.
    net_bytes: usize,
    notify_bar: B,
    notify: Place,
    notify_multiplier: u32,
}

impl<B: Registers> Regs<B> {
    /// Finds and maps the blocks (virtio 1.2, 4.1.4).
    pub(super) fn map<F: PciFunction<Bar = B>>(function: &F) -> Result<Self, PortError> {
        let address = function.address().to_owned();
        let bad = |what: &str| PortError::new(&address, format!("not a modern virtio device: {what}"), "");
        let mut config = [0; 256];
        function.config_read(0, &mut config)?;
        let places = caps::find(&config).map_err(bad)?;
        let block = |place: Place, len_bytes: usize, name: &str| {
            let outside = || bad(&format!("its {name} block lies outside BAR {}", place.bar));
            if (place.len as usize) < len_bytes {
                return Err(bad(&format!("its {name} block has only {} bytes", place.len)));
            }
            Block::new(function.map_bar(place.bar)?, place.offset as usize, len_bytes).ok_or_else(outside)
        };
        let notify_bar = function.map_bar(places.notify.bar)?;
        let notify_end = u64::from(places.notify.offset) + u64::from(places.notify.len);
        if notify_end > notify_bar.len_bytes() as u64 {
            return Err(bad("its doorbells lie outside their BAR"));
        }
        let net_bytes = (places.device.len as usize).clamp(net::LEN_BYTES, net::LEN_BYTES_RSS);
        Ok(Regs {
            common: block(places.common, common::LEN_BYTES, "common configuration")?,
            net: block(places.device, net_bytes, "device configuration")?,
            net_bytes,
            notify_bar,
            notify: places.notify,
            notify_multiplier: places.notify_multiplier,
            address,
        })
    }

    fn error(&self, what: impl Into<String>) -> PortError {
        PortError::new(&self.address, what, "")
    }

    pub(super) fn status(&self) -> u8 {
        self.common.read(common::DEVICE_STATUS)
    }

    /// True when the registers answer like an empty slot.
    pub(super) fn is_gone(&self) -> bool {
        self.status() == status::GONE && self.common.read(common::NUM_QUEUES) == u16::MAX
    }

    fn add_status(&self, bits: u8) {
        self.common.write(common::DEVICE_STATUS, self.status() | bits);
    }

    /// 3.1.1 step 1: the device forgets everything and touches no memory once the status reads 0.
    pub(super) fn reset(&self) -> Result<(), PortError> {
        if self.is_gone() {
            return Err(self.error("the device is gone: its registers read all ones"));
        }
        self.common.write(common::DEVICE_STATUS, 0);
        let look = || match self.status() {
            status::GONE => wait::GONE,
            now => now.into(),
        };
        wait::until(look, common::DEVICE_STATUS.name, 0xff, 0, RESET_DEADLINE)
            .map_err(|late| self.error(format!("reset: {late}")).caused_by(late))
    }

    /// What the device offers and its configuration has room for.
    pub(super) fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.common.write(common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read(common::DEVICE_FEATURE))
        };
        let mut offered = half(0) | half(1) << 32;
        if self.net_bytes < net::LEN_BYTES_SPEED {
            offered &= !feature::SPEED_DUPLEX;
        }
        if self.net_bytes < net::LEN_BYTES_RSS {
            offered &= !feature::RSS;
        }
        offered
    }

    /// What could be agreed upon, before anything is.
    pub(super) fn acceptable(&self, n_queue_pairs: u16) -> Result<u64, PortError> {
        let mut offered = self.offered();
        let has_rss = offered & feature::RSS != 0;
        if has_rss && self.net_config(offered)?.rss.is_none() {
            offered &= !feature::RSS;
        }
        Ok(features::choose(offered, n_queue_pairs))
    }

    /// Pairs of queues the device can have.
    pub(super) fn max_queue_pairs(&self) -> Result<u16, PortError> {
        let has = self.acceptable(u16::MAX)?;
        if has & (feature::MQ | feature::RSS) == 0 {
            return Ok(1);
        }
        // NUM_QUEUES says no more before several pairs are negotiated: QEMU has three then.
        Ok(self.net_config(has)?.max_queue_pairs.min(MAX_QUEUE_PAIRS))
    }

    /// 3.1.1 steps 2 to 6, for this many pairs: returns the features both sides have.
    pub(super) fn negotiate(&self, n_queue_pairs: u16) -> Result<u64, PortError> {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let offered = self.offered();
        if offered & feature::VERSION_1 == 0 {
            return Err(self.error(format!("it offers {offered:#x}, without VERSION_1 (a legacy device)")));
        }
        let accepted = self.acceptable(n_queue_pairs)?;
        for select in [0u32, 1] {
            self.common.write(common::DRIVER_FEATURE_SELECT, select);
            self.common.write(common::DRIVER_FEATURE, (accepted >> (32 * select)) as u32);
        }
        self.add_status(status::FEATURES_OK);
        if self.status() & status::FEATURES_OK == 0 {
            return Err(self.error(format!("it refuses the features {accepted:#x} out of {offered:#x}")));
        }
        Ok(accepted)
    }

    /// The device configuration, read as a whole: again when it changed meanwhile (virtio 1.2, 2.5.3).
    pub(super) fn net_config(&self, features: u64) -> Result<NetConfig, PortError> {
        for _ in 0..MAX_GENERATIONS {
            let before = self.common.read(common::CONFIG_GENERATION);
            let config = self.net_config_once(features);
            if self.common.read(common::CONFIG_GENERATION) == before {
                return Ok(config);
            }
        }
        Err(self.error("its configuration never stands still"))
    }

    fn net_config_once(&self, features: u64) -> NetConfig {
        let has = |any_of: u64| features & any_of != 0;
        let mac = || {
            let words = [self.net.read(net::MAC_0), self.net.read(net::MAC_2), self.net.read(net::MAC_4)];
            let [[a, b], [c, d], [e, f]] = words.map(u16::to_le_bytes);
            MacAddr([a, b, c, d, e, f])
        };
        let speed = || Some(self.net.read(net::SPEED)).filter(|speed| *speed <= net::SPEED_MAX);
        let rss = || RssLimits {
            max_key_bytes: self.net.read(net::RSS_MAX_KEY_SIZE),
            max_table: self.net.read(net::RSS_MAX_TABLE),
            hash_types: self.net.read(net::HASH_TYPES),
        };
        NetConfig {
            mac: has(feature::MAC).then(mac),
            link_up: !has(feature::STATUS) || self.net.read(net::STATUS) & net::S_LINK_UP != 0,
            speed_mbps: has(feature::SPEED_DUPLEX).then(speed).flatten().unwrap_or(0),
            mtu: has(feature::MTU).then(|| self.net.read(net::MTU)),
            max_queue_pairs: match has(feature::MQ | feature::RSS) {
                true => self.net.read(net::MAX_VIRTQUEUE_PAIRS).max(1),
                false => 1,
            },
            rss: has(feature::RSS).then(rss).filter(|limits| limits.are_sound()),
        }
    }

    /// 3.1.1 step 7 for one virtqueue (4.1.5.1.3): an empty ring in new memory, known to the device.
    pub(super) fn queue(
        &self,
        virtqueue: u16,
        layout: Layout,
        space: &DmaSpace,
    ) -> Result<(Ring, Doorbell<B>), PortError> {
        self.common.write(common::QUEUE_SELECT, virtqueue);
        let max = self.common.read(common::QUEUE_SIZE);
        if max == 0 || max == u16::MAX {
            return Err(self.error(format!("it has no queue {virtqueue}")));
        }
        let size = MAX_RING.min(1 << max.ilog2());
        let memory = space
            .allocate("virtio-ring", layout.memory_bytes(size))
            .map_err(|e| self.error("no memory for a ring").caused_by(e))?;
        let ring = layout.ring(memory, size);
        self.common.write(common::QUEUE_SIZE, size);
        self.common.write(common::QUEUE_MSIX_VECTOR, NO_VECTOR);
        let at = ring.addresses();
        for (low, high, address) in [
            (common::QUEUE_DESC_LOW, common::QUEUE_DESC_HIGH, at.desc),
            (common::QUEUE_DRIVER_LOW, common::QUEUE_DRIVER_HIGH, at.avail),
            (common::QUEUE_DEVICE_LOW, common::QUEUE_DEVICE_HIGH, at.used),
        ] {
            self.common.write(low, address as u32);
            self.common.write(high, (address >> 32) as u32);
        }
        let offset =
            u64::from(self.common.read(common::QUEUE_NOTIFY_OFF)) * u64::from(self.notify_multiplier);
        if offset + 2 > u64::from(self.notify.len) {
            return Err(self.error(format!("the doorbell of queue {virtqueue} lies outside the doorbells")));
        }
        let offset = self.notify.offset as usize + offset as usize;
        self.common.write(common::QUEUE_ENABLE, 1);
        Ok((ring, Doorbell { bar: self.notify_bar.clone(), offset, virtqueue }))
    }

    /// Routes configuration changes to MSI-X vector 0; false when the device has no resources for it.
    pub(super) fn route_config_changes(&self) -> bool {
        self.common.write(common::CONFIG_MSIX_VECTOR, 0);
        self.common.read(common::CONFIG_MSIX_VECTOR) == 0
    }

    /// 3.1.1 step 8: the device is live.
    pub(super) fn driver_ok(&self) -> Result<(), PortError> {
        self.add_status(status::DRIVER_OK);
        match self.status() {
            status::GONE => Err(self.error("the device went away while it was started")),
            now if now & status::NEEDS_RESET != 0 => Err(self.error("the device asks for a reset at once")),
            _ => Ok(()),
        }
    }
}
