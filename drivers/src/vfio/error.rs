//! Why a function can't be had through VFIO, and what the operator does about it.

use std::io;

use rustix::process::{Resource, getrlimit};
use vfio_ioctls::VfioError as Ioctl;

use crate::dma::DmaError;
use crate::pci::PciAddress;
use crate::pci::bind::NO_IOMMU_REMEDY;
use crate::pci::sysfs::Sysfs;
use crate::port::PortError;

/// Why opening a function failed.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// No such function.
    #[error("there is no such PCI device")]
    NotFound,
    /// The kernel's own driver has it, or none.
    #[error("bound to {driver}, not to vfio-pci")]
    NotBound {
        /// The driver, or "no driver".
        driver: String,
        /// The function.
        address: PciAddress,
    },
    /// No IOMMU.
    #[error("in no IOMMU group")]
    NoIommu,
    /// `/dev/vfio/vfio` can't be opened.
    #[error("/dev/vfio/vfio can't be opened: {0}")]
    Container(#[source] io::Error),
    /// The group's device file may not be opened.
    #[error("no permission to open /dev/vfio/{group}")]
    Permission {
        /// The IOMMU group.
        group: u32,
    },
    /// Another process has the group.
    #[error("/dev/vfio/{group} is in use by another process")]
    Busy {
        /// The IOMMU group.
        group: u32,
    },
    /// Other functions of the group are with kernel drivers.
    #[error("IOMMU group {group} is not viable: {} in the same group", others_text(.others))]
    NotViable {
        /// The IOMMU group.
        group: u32,
        /// Address and driver of the others.
        others: Vec<(String, String)>,
    },
    /// The IOMMU can't confine interrupts.
    #[error("the IOMMU has no interrupt remapping")]
    UnsafeInterrupts,
    /// A limit on locked memory.
    #[error("mapping packet memory for DMA hit the limit on locked memory ({})", limit_text(.limit_bytes))]
    Memlock {
        /// The limit now; `None`: unlimited, so the kernel itself is short of memory.
        limit_bytes: Option<u64>,
    },
    /// Packet memory could not be made visible.
    #[error("{0}")]
    Dma(#[source] DmaError),
    /// The kernel refused something else.
    #[error("{0}")]
    Other(#[source] Ioctl),
    /// The kernel refused one of our own requests.
    #[error("{what}: {source}")]
    Os {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn others_text(others: &[(String, String)]) -> String {
    let list: Vec<_> = others.iter().map(|(address, driver)| format!("{address} ({driver})")).collect();
    match list.len() {
        0 => "a device with a driver of the kernel is".to_owned(),
        1 => format!("{} is", list[0]),
        _ => format!("{} are", list.join(", ")),
    }
}

fn limit_text(limit_bytes: &Option<u64>) -> String {
    match limit_bytes {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "none set: the kernel is out of memory".to_owned(),
    }
}

impl VfioError {
    fn remedy(&self) -> String {
        match self {
            VfioError::NotFound => "`spp nic list` shows the NICs".to_owned(),
            VfioError::NotBound { address, .. } => format!("run `spp nic bind {address}`"),
            VfioError::NoIommu => NO_IOMMU_REMEDY.to_owned(),
            VfioError::Container(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "run spp as root, or give its user access to /dev/vfio/vfio".to_owned()
            }
            VfioError::Container(_) => "load the module: `modprobe vfio-pci`".to_owned(),
            VfioError::Permission { group } => {
                format!("run spp as root, or `chown` /dev/vfio/{group} to its user")
            }
            VfioError::Busy { .. } => "stop the other spp, VM or DPDK process that has it".to_owned(),
            VfioError::NotViable { others, .. } => match others.first() {
                Some((first, _)) => {
                    format!("bind all devices of the group to vfio-pci, `spp nic bind {first}` for a NIC, or use another slot")
                }
                None => "bind all devices of the group to vfio-pci, or use another slot".to_owned(),
            },
            VfioError::UnsafeInterrupts => {
                "enable interrupt remapping in the firmware; where the machine has none and its devices are trusted: \
                 echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
                    .to_owned()
            }
            VfioError::Memlock { limit_bytes: Some(_) } => {
                "raise it: `ulimit -l unlimited` in a shell, LimitMEMLOCK=infinity in a systemd unit".to_owned()
            }
            VfioError::Memlock { limit_bytes: None } => "free memory, or use fewer packet buffers".to_owned(),
            VfioError::Dma(_) | VfioError::Other(_) | VfioError::Os { .. } => String::new(),
        }
    }

    pub(super) fn into_port_error(self, address: PciAddress) -> PortError {
        PortError::new(address.to_string(), self.to_string(), self.remedy()).caused_by(self)
    }
}

/// What can be known before VFIO is asked: better words than the kernel's.
pub(super) fn check(sysfs: &Sysfs, address: PciAddress) -> Result<(), VfioError> {
    if !sysfs.exists(address) {
        return Err(VfioError::NotFound);
    }
    let driver = sysfs.kernel_driver(address);
    let group = sysfs.iommu_group(address);
    if group.is_none() {
        return Err(VfioError::NoIommu);
    }
    if driver.as_deref() != Some("vfio-pci") {
        let driver = driver.unwrap_or_else(|| "no driver".to_owned());
        return Err(VfioError::NotBound { driver, address });
    }
    Ok(())
}

/// What an error of `vfio-ioctls` means for this function.
pub(super) fn explain(error: Ioctl, sysfs: &Sysfs, address: PciAddress) -> VfioError {
    let group = sysfs.iommu_group(address).unwrap_or_default();
    match error {
        Ioctl::OpenContainer(source) => VfioError::Container(source),
        Ioctl::OpenGroup(source, _) => match source.kind() {
            io::ErrorKind::PermissionDenied => VfioError::Permission { group },
            io::ErrorKind::ResourceBusy => VfioError::Busy { group },
            _ => VfioError::Os { what: "the IOMMU group can't be opened", source },
        },
        Ioctl::GroupViable => VfioError::NotViable { group, others: sysfs.group_neighbours(address) },
        Ioctl::ContainerSetIOMMU(e) if e.errno() == libc::EPERM => VfioError::UnsafeInterrupts,
        Ioctl::IommuDmaMap(e) if e.errno() == libc::ENOMEM => VfioError::Memlock { limit_bytes: memlock() },
        other => VfioError::Other(other),
    }
}

/// The limit on locked memory of this process, in bytes.
fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// The words for a DMA mapping that failed, with the remedy: they end up in [`DmaError::Map`].
pub(super) fn map_reason(error: &Ioctl) -> String {
    match error {
        Ioctl::IommuDmaMap(e) if e.errno() == libc::ENOMEM => {
            let error = VfioError::Memlock { limit_bytes: memlock() };
            format!("{error} ({})", error.remedy())
        }
        Ioctl::IommuDmaMap(e) if e.errno() == libc::EINVAL => {
            format!("{e}: the address is outside of what the IOMMU can map, or in its interrupt window")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::Machine;
    use vmm_sys_util::errno::Error as Errno;

    const NIC: &str = "0000:00:04.0";

    fn machine(driver: Option<&str>, group: Option<u32>) -> Machine {
        let machine = Machine::new();
        machine.function(NIC, 0x1af4, 0x1041, 0x020000, driver, group);
        machine
    }

    fn words(error: VfioError) -> String {
        error.into_port_error(NIC.parse().unwrap()).to_string()
    }

    fn explained(error: Ioctl) -> String {
        words(explain(error, &machine(Some("vfio-pci"), Some(7)).sysfs(), NIC.parse().unwrap()))
    }

    #[test]
    fn unbound_nic_names_its_driver_and_the_command() {
        for (driver, named) in [(Some("virtio-pci"), "virtio-pci"), (None, "no driver")] {
            let error = check(&machine(driver, Some(7)).sysfs(), NIC.parse().unwrap()).unwrap_err();
            let words = words(error);
            assert!(words.contains(named) && words.contains("spp nic bind 0000:00:04.0"), "{words}");
        }
    }

    #[test]
    fn missing_iommu_says_how_to_enable_it() {
        let error = check(&machine(Some("vfio-pci"), None).sysfs(), NIC.parse().unwrap()).unwrap_err();
        assert!(words(error).contains("intel_iommu=on"));
    }

    #[test]
    fn missing_device_points_to_the_list() {
        let error = check(&Machine::new().sysfs(), NIC.parse().unwrap()).unwrap_err();
        assert!(words(error).contains("spp nic list"));
    }

    #[test]
    fn group_that_is_not_viable_names_the_others_and_no_bridge() {
        let machine = machine(Some("vfio-pci"), Some(7));
        machine.function("0000:00:05.0", 0x8086, 0x10d3, 0x020000, Some("e1000e"), None);
        machine.function("0000:00:1c.0", 0x8086, 0x3420, 0x060400, Some("pcieport"), None);
        for other in ["0000:00:05.0", "0000:00:1c.0"] {
            let device = machine.root().join("sys/bus/pci/devices").join(other);
            let group = machine.root().join("sys/kernel/iommu_groups/7/devices").join(other);
            std::os::unix::fs::symlink(device, group).unwrap();
        }
        let words = words(explain(Ioctl::GroupViable, &machine.sysfs(), NIC.parse().unwrap()));
        assert!(words.contains("0000:00:05.0 (e1000e) is in the same group"), "{words}");
        assert!(words.contains("group 7") && !words.contains("pcieport"), "{words}");
    }

    #[test]
    fn group_without_permission_names_its_file() {
        let words = explained(Ioctl::OpenGroup(io::ErrorKind::PermissionDenied.into(), "7".into()));
        assert!(words.contains("no permission to open /dev/vfio/7") && words.contains("root"), "{words}");
    }

    #[test]
    fn group_in_use_says_so() {
        let words = explained(Ioctl::OpenGroup(io::Error::from_raw_os_error(libc::EBUSY), "7".into()));
        assert!(words.contains("in use by another process"), "{words}");
    }

    #[test]
    fn missing_module_says_modprobe() {
        let words = explained(Ioctl::OpenContainer(io::ErrorKind::NotFound.into()));
        assert!(words.contains("modprobe vfio-pci"), "{words}");
    }

    #[test]
    fn iommu_without_interrupt_remapping_names_the_parameter() {
        let words = explained(Ioctl::ContainerSetIOMMU(Errno::new(libc::EPERM)));
        assert!(words.contains("allow_unsafe_interrupts"), "{words}");
    }

    #[test]
    fn locked_memory_limit_is_named_with_both_remedies() {
        let words = words(VfioError::Memlock { limit_bytes: Some(8 << 20) });
        assert!(words.contains("8192 KiB"), "{words}");
        assert!(words.contains("ulimit -l") && words.contains("LimitMEMLOCK=infinity"), "{words}");
        let reason = map_reason(&Ioctl::IommuDmaMap(Errno::new(libc::ENOMEM)));
        assert!(reason.contains("limit on locked memory"), "{reason}");
    }

    #[test]
    fn address_the_iommu_refuses_is_explained() {
        let reason = map_reason(&Ioctl::IommuDmaMap(Errno::new(libc::EINVAL)));
        assert!(reason.contains("outside of what the IOMMU can map"), "{reason}");
    }
}
