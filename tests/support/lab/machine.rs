//! A virtual machine: boots in seconds, runs shell scripts, is gone when dropped.
//!
//! Scripts go in and results come out through one shared folder (9p), so no console has to be driven and a script's
//! exit status is exact. Emulation is slow and the host may be busy: deadlines are generous and only there so that
//! nothing hangs.

use super::netns::NetNs;
use super::process::{Daemon, last_lines};
use super::qmp::Qmp;
use super::wire::Wire;
use super::{Lab, initramfs, wait_for};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// A function of QEMU in which the threads of an emulated machine with a virtual IOMMU meet while firmware places
/// BARs: rarely, one finds the address space changed under it, and QEMU aborts.
const QEMU_RACE: &str = "iotlb_to_section";
/// Boots that may be lost to it.
const BOOTS_LOST: usize = 2;
const SCRIPT_DEADLINE: Duration = Duration::from_secs(180);

/// What a script inside left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

/// Describes a machine.
pub struct Builder<'a> {
    lab: &'a Lab,
    name: String,
    memory_mib: u32,
    n_cpus: u32,
    viommu: bool,
    counts_instructions: bool,
    host_root: bool,
    /// Another init than ours, and no shared folder.
    own_init: Option<&'a str>,
    modules: Vec<&'a str>,
    files: Vec<(String, PathBuf)>,
    /// Memory that can be plugged later, in MiB.
    spare_memory_mib: u32,
    n_root_ports: u32,
    devices: Vec<String>,
    netns: Option<&'a NetNs>,
}

impl<'a> Builder<'a> {
    /// A machine with one CPU and 256 MiB, no NIC.
    pub fn new(lab: &'a Lab, name: &str) -> Builder<'a> {
        Builder {
            lab,
            name: name.to_owned(),
            memory_mib: 256,
            n_cpus: 1,
            viommu: false,
            counts_instructions: false,
            host_root: false,
            own_init: None,
            modules: vec!["virtio_pci", "9pnet_virtio", "9p"],
            files: Vec::new(),
            spare_memory_mib: 0,
            n_root_ports: 0,
            devices: Vec::new(),
            netns: None,
        }
    }

    /// Memory, which is always shareable with vhost-user back ends.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Virtual CPUs.
    pub fn cpus(mut self, n_cpus: u32) -> Self {
        self.n_cpus = n_cpus;
        self
    }

    /// Adds an Intel IOMMU that guards every PCI device, and the modules for vfio-pci.
    pub fn viommu(mut self) -> Self {
        self.viommu = true;
        self.modules.extend(["vfio_iommu_type1", "vfio-pci"]);
        self
    }

    /// Time is the number of instructions the guest has executed, a nanosecond and a tick of its time-stamp counter
    /// each. Works with one CPU only.
    pub fn counts_instructions(mut self) -> Self {
        self.counts_instructions = true;
        self
    }

    /// Lets scripts see the host's root file system, read-only, with fresh `/tmp` and `/run`.
    pub fn host_root(mut self) -> Self {
        self.host_root = true;
        self
    }

    /// Runs this script as init, without a shared folder: no scripts can be given, and nothing hinders a migration.
    pub fn own_init(mut self, init: &'a str) -> Self {
        self.own_init = Some(init);
        self.modules = vec!["virtio_pci"];
        self
    }

    /// A kernel module to load, after what it needs.
    pub fn module(mut self, name: &'a str) -> Self {
        self.modules.push(name);
        self
    }

    /// A file to put into `bin/` of the initial root; scripts find it in their `PATH`.
    pub fn program(mut self, inside: &str, here: &Path) -> Self {
        self.files.push((inside.to_owned(), here.to_owned()));
        self
    }

    /// A program of the host's with the libraries it is linked to, in the places where its loader looks for them.
    pub fn linked_program(mut self, here: &Path) -> Self {
        let output = std::process::Command::new("ldd").arg(here).output().expect("ldd is in every Debian");
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = words.split_whitespace().filter(|word| word.starts_with('/'));
        for library in libraries {
            self = self.program(library.trim_start_matches('/'), Path::new(library));
        }
        let name = here.file_name().expect("a program has a name").to_string_lossy().into_owned();
        self.program(&format!("bin/{name}"), here)
    }

    /// Room for memory that is plugged while the machine runs: four slots, and this much in all.
    pub fn spare_memory_mib(mut self, spare_memory_mib: u32) -> Self {
        self.spare_memory_mib = spare_memory_mib;
        self
    }

    /// A virtio-net NIC behind the IOMMU, alone in its group: `0000:01:00.0`, the next one `0000:02:00.0`.
    pub fn virtio_nic(self, id: &str, mac: &str, wire: &Wire) -> Self {
        self.nic("virtio-net-pci,iommu_platform=on,disable-legacy=on,ats=on", id, mac, wire)
    }

    /// A NIC of any model, as [`virtio_nic`](Self::virtio_nic); `device` is QEMU's name with options.
    pub fn nic(self, device: &str, id: &str, mac: &str, wire: &Wire) -> Self {
        self.nic_at(device, id, mac, wire.netdev(id))
    }

    /// The same at the end of any cable; `netdev` is the value of QEMU's option, with this `id`.
    pub fn nic_at(mut self, device: &str, id: &str, mac: &str, netdev: String) -> Self {
        self.n_root_ports += 1;
        let (port, slot) = (format!("rp{}", self.n_root_ports), self.n_root_ports);
        self.qemu_args([
            "-device".to_owned(),
            format!("pcie-root-port,id={port},chassis={slot},slot={slot}"),
            "-netdev".to_owned(),
            netdev,
            "-device".to_owned(),
            format!("{device},netdev={id},mac={mac},bus={port},romfile="),
        ])
    }

    /// QEMU runs in this network namespace.
    pub fn netns(mut self, netns: &'a NetNs) -> Self {
        self.netns = Some(netns);
        self
    }

    /// More QEMU options.
    pub fn qemu_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.devices.extend(args.into_iter().map(Into::into));
        self
    }

    /// Starts the machine in `dir/<name>` and waits until it takes scripts.
    ///
    /// # Panics
    /// If it does not come up; the console's last lines are printed.
    pub fn boot(&self, dir: &Path) -> Machine {
        for _ in 0..BOOTS_LOST {
            let mut machine = self.start(dir);
            if !machine.falls_over_itself() {
                return machine;
            }
            println!("{}: QEMU ended by its own {QEMU_RACE} assertion; it is started again", self.name);
        }
        let mut machine = self.start(dir);
        machine.wait_up();
        machine
    }

    /// Starts the machine without waiting; [`Machine::wait_up`] does that.
    pub fn start(&self, dir: &Path) -> Machine {
        let dir = dir.join(&self.name);
        let share = dir.join("share");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&share).expect("the scratch directory is ours");
        let initrd = dir.join("initramfs");
        let archive = initramfs::build(
            self.own_init.unwrap_or(initramfs::INIT),
            &self.lab.busybox,
            &self.lab.modules,
            &self.modules,
            &self.files,
        )
        .expect("the pieces of the initial root are readable");
        fs::write(&initrd, archive).expect("the scratch directory is ours");
        let console = dir.join("console.log");
        let mut args = self.command_line(&initrd, &share, &console);
        args.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", dir.join("qmp").display())]);
        let (name, log) = (format!("{} (qemu)", self.name), dir.join("qemu.log"));
        let qemu = match self.netns {
            None => Daemon::start(&name, &self.lab.qemu, &args, &log),
            Some(netns) => netns.start(&name, &self.lab.qemu, &args, &log),
        };
        let qemu = qemu.expect("QEMU starts");
        Machine { name: self.name.clone(), qemu, console, share, qmp: dir.join("qmp"), n_scripts: 0 }
    }

    fn command_line(&self, initrd: &Path, share: &Path, console: &Path) -> Vec<String> {
        let irqchip = if self.viommu { ",kernel-irqchip=split" } else { "" };
        // On a busy host the emulated timer may look broken for the moment in which the kernel tries it.
        let mut kernel_args = "console=ttyS0 quiet panic=1 tsc=reliable no_timer_check".to_owned();
        if self.viommu {
            kernel_args += " intel_iommu=on iommu=pt";
        }
        if self.host_root {
            kernel_args += " lab.host";
        }
        let mut args: Vec<String> = [
            "-cpu",
            "max",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]
        .map(String::from)
        .to_vec();
        let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
        if self.counts_instructions {
            add("-accel", "tcg,thread=single".into());
            add("-icount", "shift=0,sleep=off".into());
        } else {
            add("-accel", "tcg,thread=multi".into());
        }
        add("-machine", format!("q35{irqchip},memory-backend=mem"));
        add("-object", format!("memory-backend-memfd,id=mem,size={}M,share=on", self.memory_mib));
        let spare = match self.spare_memory_mib {
            0 => String::new(),
            spare => format!(",slots=4,maxmem={}M", self.memory_mib + spare),
        };
        add("-m", format!("{}{spare}", self.memory_mib));
        add("-smp", self.n_cpus.to_string());
        add("-serial", format!("file:{}", console.display()));
        add("-kernel", self.lab.vmlinuz.display().to_string());
        add("-initrd", initrd.display().to_string());
        add("-append", kernel_args);
        if self.viommu {
            add("-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48".into());
        }
        if self.own_init.is_none() {
            add("-fsdev", format!("local,id=share,path={},security_model=none", share.display()));
            add("-device", "virtio-9p-pci,fsdev=share,mount_tag=share".into());
        }
        if self.host_root {
            add("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap".into());
            add("-device", "virtio-9p-pci,fsdev=host,mount_tag=host".into());
        }
        args.extend_from_slice(&self.devices);
        args
    }
}

/// A running machine.
pub struct Machine {
    name: String,
    qemu: Daemon,
    console: PathBuf,
    share: PathBuf,
    qmp: PathBuf,
    n_scripts: u32,
}

impl Machine {
    /// Waits until the machine takes scripts.
    ///
    /// # Panics
    /// If it ends first or takes too long.
    pub fn wait_up(&mut self) {
        assert!(!self.falls_over_itself(), "{}: QEMU ended by its own {QEMU_RACE} assertion", self.name);
    }

    /// As [`wait_up`](Self::wait_up), but true if QEMU ended by an assertion of its own that has nothing to do with us.
    fn falls_over_itself(&mut self) -> bool {
        let up = self.share.join("agent");
        let what = format!("{} to boot", self.name);
        wait_for(&what, BOOT_DEADLINE, || {
            if self.qemu.ended().is_some() && self.qemu.log().contains(QEMU_RACE) {
                return Ok(true);
            }
            self.assert_alive();
            up.exists().then_some(false).ok_or_else(|| "still booting".into())
        })
    }

    /// Runs a shell script inside and waits for its end. Background processes of the script must write to files.
    ///
    /// # Panics
    /// If the machine dies or the script hangs.
    pub fn run(&mut self, script: &str) -> Output {
        self.n_scripts += 1;
        let file = |suffix: &str| self.share.join(format!("{}.{suffix}", self.n_scripts));
        let (part, whole, rc, out) = (file("part"), file("sh"), file("rc"), file("out"));
        fs::write(&part, script).expect("the shared folder is ours");
        fs::rename(&part, &whole).expect("the shared folder is ours");
        let end = Instant::now() + SCRIPT_DEADLINE;
        loop {
            if let Ok(status) = fs::read_to_string(&rc) {
                let status = status.trim().parse().expect("init writes a number");
                let text = String::from_utf8_lossy(&fs::read(&out).unwrap_or_default()).into_owned();
                return Output { status, text };
            }
            self.assert_alive();
            assert!(
                Instant::now() < end,
                "{}: this script does not end: {script}\nso far: {}",
                self.name,
                fs::read_to_string(&out).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a script in which every command must succeed (`set -e`) and returns what it wrote.
    ///
    /// # Panics
    /// If it does not.
    pub fn sh(&mut self, script: &str) -> String {
        let output = self.run(&format!("set -e\n{script}"));
        assert!(
            output.status == 0,
            "{}: status {} from: {script}\n{}",
            self.name,
            output.status,
            output.text
        );
        output.text
    }

    /// Repeats a script until it succeeds.
    ///
    /// # Panics
    /// When `deadline` passes.
    pub fn wait_sh(&mut self, what: &str, deadline: Duration, script: &str) -> String {
        wait_for(what, deadline, || {
            let output = self.run(script);
            match output.status {
                0 => Ok(output.text),
                status => Err(format!("status {status}: {}", output.text)),
            }
        })
    }

    /// The serial console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The folder scripts see as their working directory.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// How QEMU ended, if it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.qemu.ended()
    }

    /// QEMU's control socket, which takes one connection at a time.
    pub fn qmp(&self) -> Qmp {
        wait_for("QEMU's control socket", BOOT_DEADLINE, || Qmp::connect(&self.qmp))
    }

    /// Resets the machine, whatever it does; [`wait_up`](Self::wait_up) tells when it takes scripts again. What
    /// scripts left in the shared folder is gone.
    pub fn reset(&mut self) {
        let mut qmp = self.qmp();
        qmp.run("stop", json!({}));
        for entry in fs::read_dir(&self.share).expect("the shared folder is ours") {
            fs::remove_file(entry.expect("it can be listed").path()).expect("scripts leave plain files");
        }
        self.n_scripts = 0;
        // QEMU was started to end where a machine would boot again.
        qmp.run("set-action", json!({"reboot": "reset"}));
        qmp.run("system_reset", json!({}));
        qmp.run("cont", json!({}));
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        self.qemu.kill();
    }

    fn assert_alive(&mut self) {
        if let Some(status) = self.qemu.ended() {
            panic!("{} ended by itself ({status}): {}", self.name, self.qemu.log());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- console of {}:\n{}", self.name, last_lines(&self.console(), 60));
        }
    }
}
