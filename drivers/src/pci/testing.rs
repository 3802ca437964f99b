//! A made-up machine for tests: a tree like `/sys` and `/proc`, and the kernel's reaction to what is written there.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::bind::Write;
use super::sysfs::Sysfs;

pub(crate) struct Machine(tempfile::TempDir);

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Machine(tempfile::tempdir().unwrap());
        for dir in ["sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/class/net", "sys/kernel/iommu_groups"]
        {
            fs::create_dir_all(machine.root().join(dir)).unwrap();
        }
        machine.write("proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\n");
        machine.write("proc/net/ipv6_route", "");
        machine
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.root())
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn append(&self, path: &str, text: &str) {
        let old = fs::read_to_string(self.root().join(path)).unwrap();
        self.write(path, &format!("{old}{text}\n"));
    }

    pub(crate) fn driver(&self, name: &str) {
        fs::create_dir_all(self.root().join("sys/bus/pci/drivers").join(name)).unwrap();
    }

    /// A PCI function; `driver` has it now and is what the kernel picks for it by itself.
    pub(crate) fn function(
        &self,
        address: &str,
        vendor: u16,
        device: u16,
        class: u32,
        driver: Option<&str>,
        group: Option<u32>,
    ) {
        let dir = format!("sys/devices/pci0000:00/{address}");
        for (file, value) in [
            ("vendor", format!("0x{vendor:04x}\n")),
            ("device", format!("0x{device:04x}\n")),
            ("class", format!("0x{class:06x}\n")),
            ("numa_node", "-1\n".into()),
            ("driver_override", "(null)\n".into()),
            ("natural", driver.unwrap_or_default().into()),
        ] {
            self.write(&format!("{dir}/{file}"), &value);
        }
        let dir = self.root().join(dir);
        symlink(&dir, self.root().join("sys/bus/pci/devices").join(address)).unwrap();
        if let Some(driver) = driver {
            self.driver(driver);
            symlink(self.root().join("sys/bus/pci/drivers").join(driver), dir.join("driver")).unwrap();
        }
        if let Some(group) = group {
            let group = self.root().join(format!("sys/kernel/iommu_groups/{group}"));
            fs::create_dir_all(group.join("devices")).unwrap();
            symlink(&dir, group.join("devices").join(address)).unwrap();
            symlink(&group, dir.join("iommu_group")).unwrap();
        }
    }

    /// A network interface on a function.
    pub(crate) fn interface(&self, name: &str, address: &str, below: &str) {
        self.class_net(name, &format!("sys/devices/pci0000:00/{address}/{below}/{name}"));
    }

    /// A network interface on others.
    pub(crate) fn virtual_interface(&self, name: &str, lower: &[&str]) {
        let dir = format!("sys/devices/virtual/net/{name}");
        self.class_net(name, &dir);
        for lower in lower {
            let to = self.root().join("sys/class/net").join(lower);
            symlink(to, self.root().join(&dir).join(format!("lower_{lower}"))).unwrap();
        }
    }

    fn class_net(&self, name: &str, dir: &str) {
        let dir = self.root().join(dir);
        fs::create_dir_all(&dir).unwrap();
        symlink(dir, self.root().join("sys/class/net").join(name)).unwrap();
    }

    pub(crate) fn default_route_v4(&self, interface: &str) {
        self.append("proc/net/route", &format!("{interface} 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0"));
    }

    pub(crate) fn default_route_v6(&self, interface: &str) {
        let zero = "0".repeat(32);
        let row = format!("{zero} 00 {zero} 00 fe80{} 00000400 1 0 00000003 {interface}", "0".repeat(28));
        self.append("proc/net/ipv6_route", &row);
    }

    /// The driver's probe fails from now on.
    pub(crate) fn refuse(&self, driver: &str) {
        self.write(&format!("sys/bus/pci/drivers/{driver}/refuses"), "");
    }

    /// What the kernel does on a write.
    pub(crate) fn kernel(&self) -> Box<Write> {
        let sys = self.root().join("sys");
        Box::new(move |path: &Path, text: &str| react(&sys, path, text))
    }
}

fn react(sys: &Path, path: &Path, text: &str) -> io::Result<()> {
    match path.file_name().unwrap().to_str().unwrap() {
        "unbind" => fs::remove_file(sys.join("bus/pci/devices").join(text).join("driver")),
        "drivers_probe" => probe(sys, &sys.join("bus/pci/devices").join(text)),
        _ => fs::write(path, text),
    }
}

fn probe(sys: &Path, device: &Path) -> io::Result<()> {
    let wanted = fs::read_to_string(device.join("driver_override"))?;
    let natural = fs::read_to_string(device.join("natural"))?;
    let name = match wanted.trim() {
        "" | "(null)" => natural.trim(),
        name => name,
    };
    let driver = sys.join("bus/pci/drivers").join(name);
    if name.is_empty() || !driver.exists() || driver.join("refuses").exists() {
        return Ok(());
    }
    symlink(driver, device.join("driver"))
}
