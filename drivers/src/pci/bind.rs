//! Giving a NIC to `vfio-pci` and giving it back to the driver it had.
//!
//! Works through `driver_override` and `drivers_probe`, so that no other device of the same
//! id is caught. The old driver's name is kept in a state directory, one file per NIC. Command line only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::PciAddress;
use super::sysfs::Sysfs;

/// Where old drivers are remembered by default.
pub const STATE_DIR: &str = "/var/lib/spp/nics";

const VFIO: &str = "vfio-pci";

/// How to bind.
#[derive(Debug, Clone)]
pub struct BindOptions {
    /// Bind even the NIC that carries the default route.
    pub force: bool,
    /// Directory for the old driver's name.
    pub state_dir: PathBuf,
}

impl Default for BindOptions {
    fn default() -> Self {
        BindOptions { force: false, state_dir: STATE_DIR.into() }
    }
}

/// What [`bind`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It had `vfio-pci` already; nothing was changed.
    Already,
    /// It was taken from this driver (`None`: it had none).
    From(Option<String>),
}

/// What [`unbind`] did: the driver the NIC has now, `None` when it had none before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbound(pub Option<String>);

/// Why a NIC was not bound or unbound. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No such function.
    #[error("there is no PCI device {0} (`spp nic list` shows the NICs)")]
    NotFound(PciAddress),
    /// Not a network card.
    #[error("{0} is not a network card (`spp nic list` shows the NICs)")]
    NotANic(PciAddress),
    /// The module is not loaded.
    #[error("the kernel has no vfio-pci driver loaded (run `modprobe vfio-pci`)")]
    NoVfio,
    /// No IOMMU.
    #[error("{0} is in no IOMMU group ({NO_IOMMU_REMEDY})")]
    NoIommu(PciAddress),
    /// It would cut the machine off.
    #[error(
        "{address} ({interfaces}) carries this machine's default route; binding it would cut the machine off (use --force if that is meant)"
    )]
    DefaultRoute {
        /// The NIC.
        address: PciAddress,
        /// Its interfaces.
        interfaces: String,
    },
    /// Not ours to give back.
    #[error("{address} is not bound to vfio-pci but to {driver}: nothing to give back")]
    NotBound {
        /// The NIC.
        address: PciAddress,
        /// What it is bound to.
        driver: String,
    },
    /// A process has it open.
    #[error("{0} is in use by a running process (stop spp, or take the NIC out of its configuration)")]
    InUse(PciAddress),
    /// The kernel did not do as told.
    #[error("the kernel bound {address} to {now}, not to {wanted} (see `dmesg`)")]
    Refused {
        /// The NIC.
        address: PciAddress,
        /// Its driver now.
        now: String,
        /// The driver it should have.
        wanted: String,
    },
    /// A file could not be written or read.
    #[error("{path}: {source}{}", permission_remedy(.source))]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How to get an IOMMU.
pub(crate) const NO_IOMMU_REMEDY: &str = "enable the IOMMU: VT-d or AMD-Vi in the firmware, \
     and intel_iommu=on or amd_iommu=on on the kernel command line";

fn permission_remedy(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { " (run it as root)" } else { "" }
}

/// Gives the NIC to `vfio-pci`.
pub fn bind(address: PciAddress, options: &BindOptions) -> Result<Bound, BindError> {
    Sysfs::default().bind(address, options, &write)
}

/// Gives the NIC back to the driver it had before [`bind`].
pub fn unbind(address: PciAddress, options: &BindOptions) -> Result<Unbound, BindError> {
    Sysfs::default().unbind(address, options, &write)
}

/// Writes one line to a file of sysfs. A parameter, so that tests can play the kernel's part.
pub(super) type Write = dyn Fn(&Path, &str) -> io::Result<()>;

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |source| BindError::Io { path, source }
}

fn or_none(driver: Option<String>) -> String {
    driver.unwrap_or_else(|| "no driver".to_owned())
}

impl Sysfs {
    pub(super) fn bind(
        &self,
        address: PciAddress,
        options: &BindOptions,
        write: &Write,
    ) -> Result<Bound, BindError> {
        self.check_nic(address)?;
        let old = self.kernel_driver(address);
        if old.as_deref() == Some(VFIO) {
            return Ok(Bound::Already);
        }
        self.check_can_bind(address, options.force)?;
        remember(&options.state_dir, address, old.as_deref())?;
        let moved = self.move_to(address, VFIO, write);
        if let Err(error) = moved {
            self.give_back(address, old.as_deref(), write);
            forget(&options.state_dir, address)?;
            return Err(error);
        }
        Ok(Bound::From(old))
    }

    fn check_nic(&self, address: PciAddress) -> Result<(), BindError> {
        if !self.exists(address) {
            return Err(BindError::NotFound(address));
        }
        if self.is_nic(address) { Ok(()) } else { Err(BindError::NotANic(address)) }
    }

    fn check_can_bind(&self, address: PciAddress, force: bool) -> Result<(), BindError> {
        if !self.sys.join("bus/pci/drivers").join(VFIO).exists() {
            return Err(BindError::NoVfio);
        }
        if self.iommu_group(address).is_none() {
            return Err(BindError::NoIommu(address));
        }
        let names: Vec<String> = self.interfaces(address).into_iter().map(|i| i.name).collect();
        let routed = self.default_route_interfaces();
        if !force && names.iter().any(|name| routed.contains(name)) {
            return Err(BindError::DefaultRoute { address, interfaces: names.join(", ") });
        }
        Ok(())
    }

    /// Takes the function from its driver and lets the kernel give it to `driver`.
    fn move_to(&self, address: PciAddress, driver: &str, write: &Write) -> Result<(), BindError> {
        let dir = self.device_dir(address);
        let to = |path: PathBuf, text: &str| write(&path, text).map_err(at(&path));
        to(dir.join("driver_override"), driver)?;
        if dir.join("driver").exists() {
            to(dir.join("driver/unbind"), &address.to_string())?;
        }
        to(self.sys.join("bus/pci/drivers_probe"), &address.to_string())?;
        let now = self.kernel_driver(address);
        if now.as_deref() == Some(driver) {
            return Ok(());
        }
        Err(BindError::Refused { address, now: or_none(now), wanted: driver.to_owned() })
    }

    /// After a failure: the old state again, as far as the kernel lets us.
    fn give_back(&self, address: PciAddress, old: Option<&str>, write: &Write) {
        let dir = self.device_dir(address);
        let mut results = vec![write(&dir.join("driver_override"), "\n")];
        if old.is_some() && self.kernel_driver(address).as_deref() != old {
            results.push(write(&self.sys.join("bus/pci/drivers_probe"), &address.to_string()));
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%address, %error, "the NIC could not be given back to its driver");
        }
    }

    pub(super) fn unbind(
        &self,
        address: PciAddress,
        options: &BindOptions,
        write: &Write,
    ) -> Result<Unbound, BindError> {
        self.check_nic(address)?;
        let driver = self.kernel_driver(address);
        if driver.as_deref() != Some(VFIO) {
            return Err(BindError::NotBound { address, driver: or_none(driver) });
        }
        if self.is_in_use(address) {
            return Err(BindError::InUse(address));
        }
        let old = recall(&options.state_dir, address)?;
        let dir = self.device_dir(address);
        let to = |path: PathBuf, text: &str| write(&path, text).map_err(at(&path));
        to(dir.join("driver_override"), "\n")?;
        to(dir.join("driver/unbind"), &address.to_string())?;
        // Not bound by us: the kernel's own choice is the best guess.
        if old != Some(None) {
            to(self.sys.join("bus/pci/drivers_probe"), &address.to_string())?;
        }
        let (now, wanted) = (self.kernel_driver(address), old.flatten());
        if let Some(wanted) = wanted.filter(|wanted| now.as_deref() != Some(wanted)) {
            return Err(BindError::Refused { address, now: or_none(now), wanted });
        }
        forget(&options.state_dir, address)?;
        Ok(Unbound(now))
    }

    /// The kernel would make us wait until the user of the device lets go.
    fn is_in_use(&self, address: PciAddress) -> bool {
        let Some(group) = self.iommu_group(address) else { return false };
        let group = self.dev.join("vfio").join(group.to_string());
        fs::File::open(group).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Writes the old driver's name (an empty line for none) before anything is changed.
fn remember(dir: &Path, address: PciAddress, old: Option<&str>) -> Result<(), BindError> {
    fs::create_dir_all(dir).map_err(at(dir))?;
    let (file, part) = (dir.join(address.to_string()), dir.join(format!("{address}.part")));
    fs::write(&part, format!("{}\n", old.unwrap_or_default())).map_err(at(&part))?;
    fs::rename(&part, &file).map_err(at(&file))
}

/// `None`: nothing is known; `Some(None)`: it had no driver.
fn recall(dir: &Path, address: PciAddress) -> Result<Option<Option<String>>, BindError> {
    let file = dir.join(address.to_string());
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(Some(text.trim().to_owned()).filter(|driver| !driver.is_empty()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BindError::Io { path: file, source }),
    }
}

fn forget(dir: &Path, address: PciAddress) -> Result<(), BindError> {
    let file = dir.join(address.to_string());
    match fs::remove_file(&file) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BindError::Io { path: file, source }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Machine;
    use super::*;

    const NIC: &str = "0000:00:04.0";

    fn nic() -> PciAddress {
        NIC.parse().unwrap()
    }

    fn machine() -> (Machine, BindOptions) {
        let machine = Machine::new();
        machine.function(NIC, 0x1af4, 0x1041, 0x020000, Some("virtio-pci"), Some(3));
        machine.interface("eth0", NIC, "virtio0/net");
        machine.driver("vfio-pci");
        let options = BindOptions { force: false, state_dir: machine.root().join("state") };
        (machine, options)
    }

    fn driver(machine: &Machine) -> Option<String> {
        machine.sysfs().kernel_driver(nic())
    }

    #[test]
    fn nic_is_bound_and_given_back_to_its_old_driver() {
        let (machine, options) = machine();
        let sysfs = machine.sysfs();
        let bound = sysfs.bind(nic(), &options, &machine.kernel()).unwrap();
        assert_eq!(bound, Bound::From(Some("virtio-pci".into())));
        assert_eq!(driver(&machine).as_deref(), Some("vfio-pci"));
        assert_eq!(sysfs.bind(nic(), &options, &machine.kernel()).unwrap(), Bound::Already);
        let unbound = sysfs.unbind(nic(), &options, &machine.kernel()).unwrap();
        assert_eq!(unbound, Unbound(Some("virtio-pci".into())));
        assert_eq!(driver(&machine).as_deref(), Some("virtio-pci"));
        assert!(!options.state_dir.join(NIC).exists(), "nothing is remembered any more");
        let error = sysfs.unbind(nic(), &options, &machine.kernel()).unwrap_err();
        assert!(matches!(error, BindError::NotBound { .. }), "{error}");
    }

    #[test]
    fn nic_without_a_driver_has_none_again_after_unbinding() {
        let (machine, options) = machine();
        machine.function("0000:00:06.0", 0x8086, 0x10d3, 0x020000, None, Some(4));
        let (address, sysfs) = ("00:06.0".parse().unwrap(), machine.sysfs());
        assert_eq!(sysfs.bind(address, &options, &machine.kernel()).unwrap(), Bound::From(None));
        assert_eq!(sysfs.unbind(address, &options, &machine.kernel()).unwrap(), Unbound(None));
        assert_eq!(sysfs.kernel_driver(address), None);
    }

    #[test]
    fn default_route_nic_is_refused_unless_forced() {
        for ipv6 in [false, true] {
            let (machine, mut options) = machine();
            machine.virtual_interface("br0", &["eth0"]);
            if ipv6 {
                machine.default_route_v6("br0")
            } else {
                machine.default_route_v4("br0")
            }
            let error = machine.sysfs().bind(nic(), &options, &machine.kernel()).unwrap_err();
            assert!(matches!(error, BindError::DefaultRoute { .. }), "{error}");
            assert!(error.to_string().contains("eth0") && error.to_string().contains("--force"), "{error}");
            assert_eq!(driver(&machine).as_deref(), Some("virtio-pci"));
            options.force = true;
            machine.sysfs().bind(nic(), &options, &machine.kernel()).unwrap();
        }
    }

    #[test]
    fn missing_pieces_are_named_with_the_remedy() {
        let (machine, options) = machine();
        let sysfs = machine.sysfs();
        machine.function("0000:00:07.0", 0x8086, 0x10d3, 0x020000, Some("e1000e"), None);
        machine.function("0000:00:08.0", 0x8086, 0x2922, 0x010601, Some("ahci"), Some(9));
        for (address, words) in
            [("00:07.0", "intel_iommu=on"), ("00:08.0", "not a network card"), ("00:09.0", "no PCI device")]
        {
            let error = sysfs.bind(address.parse().unwrap(), &options, &machine.kernel()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        std::fs::remove_dir_all(machine.root().join("sys/bus/pci/drivers/vfio-pci")).unwrap();
        let error = sysfs.bind(nic(), &options, &machine.kernel()).unwrap_err();
        assert!(error.to_string().contains("modprobe vfio-pci"), "{error}");
    }

    #[test]
    fn kernel_that_refuses_leaves_the_nic_with_its_old_driver() {
        let (machine, options) = machine();
        machine.refuse("vfio-pci");
        let error = machine.sysfs().bind(nic(), &options, &machine.kernel()).unwrap_err();
        assert!(matches!(error, BindError::Refused { .. }), "{error}");
        assert_eq!(driver(&machine).as_deref(), Some("virtio-pci"));
        assert!(!options.state_dir.join(NIC).exists());
    }

    #[test]
    fn file_that_may_not_be_written_says_run_as_root() {
        let (machine, options) = machine();
        let denied = |_: &Path, _: &str| Err(io::ErrorKind::PermissionDenied.into());
        let error = machine.sysfs().bind(nic(), &options, &denied).unwrap_err();
        assert!(error.to_string().contains("run it as root"), "{error}");
    }
}
