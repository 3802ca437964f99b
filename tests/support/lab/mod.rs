//! The lab: virtual machines under software emulation, in which `spp` meets software that is not ours.
//!
//! A test asks [`Lab::find`] for the pieces (QEMU, Debian's kernel, a static busybox: `.ci/setup --tests`
//! provides them), describes a [`machine::Builder`], boots it and gives it shell scripts to run. Everything here
//! runs on the test's own threads; a [`machine::Machine`], a [`process::Daemon`] and a [`netns::NetNs`] own their processes and
//! end them when dropped. `docs/lab.md` says how it fits together.
#![allow(dead_code)] // every test file that includes this module uses another part of it

pub mod echo;
pub mod frame;
pub mod initramfs;
pub mod inside;
pub mod machine;
pub mod netns;
pub mod node;
pub mod process;
pub mod qmp;
pub mod status;
pub mod testpmd;
pub mod transfer;
pub mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a lab test needs from the machine it runs on.
#[derive(Debug, Clone)]
pub struct Lab {
    /// QEMU's system emulator.
    pub qemu: PathBuf,
    /// Debian's kernel image.
    pub vmlinuz: PathBuf,
    /// The `lib/modules/<version>` directory of that kernel, with its `modules.dep`.
    pub modules: PathBuf,
    /// A statically linked busybox.
    pub busybox: PathBuf,
}

impl Lab {
    /// Looks for the pieces; the error is the reason to print behind `SKIPPED: <test name>:`.
    pub fn find() -> Result<Lab, String> {
        const REMEDY: &str = "run .ci/setup --tests";
        let qemu = program("qemu-system-x86_64").ok_or_else(|| format!("no QEMU here, {REMEDY}"))?;
        let busybox = program("busybox").ok_or_else(|| format!("no busybox here, {REMEDY}"))?;
        let kernel = target_dir().join("lab/kernel");
        if !kernel.join("complete").exists() {
            return Err(format!("no kernel in {}, {REMEDY}", kernel.display()));
        }
        Ok(Lab { qemu, vmlinuz: kernel.join("vmlinuz"), modules: kernel.join("modules"), busybox })
    }

    /// The same, and programs of the host's that scripts will run.
    pub fn with(programs: &[&str]) -> Result<Lab, String> {
        let missing = programs.iter().find(|name| program(name).is_none());
        match missing {
            Some(name) => Err(format!("no {name} here, run .ci/setup --tests")),
            None => Lab::find(),
        }
    }
}

/// Cargo's target directory, found the way `.ci/setup` finds it.
fn target_dir() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Builds an example of `spp-drivers`, which runs inside the lab.
pub fn driver_example(name: &str) -> PathBuf {
    build(&["-p", "spp-drivers", "--example", name], name)
}

/// Builds a program for the lab's guests; cargo says where it went.
pub fn build(what: &[&str], name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--message-format=json", "--quiet"])
        .args(what)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    };
    lines.lines().find_map(executable).expect("cargo names the executable")
}

/// The first executable of that name in `PATH`, or in the places a user's `PATH` may lack.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The release build of `spp`, brought up to date once per test binary; `SPP_BIN` names another one instead.
///
/// # Panics
/// If it does not build.
pub fn spp_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("SPP_BIN") {
            return path.into();
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--release", "--bin", "spp", "--quiet"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the release build of spp failed");
        let path = target_dir().join("x86_64-unknown-linux-gnu/release/spp");
        assert!(path.is_file(), "no binary at {}", path.display());
        path
    })
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// With `what` and the last refusal when `deadline` passes.
pub fn wait_for<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match probe() {
            Ok(answer) => return answer,
            Err(refusal) if Instant::now() >= end => {
                panic!("gave up waiting for {what} after {deadline:?}; last seen: {refusal}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Says that a test cannot run here, in the form the test command counts.
pub fn skipped(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}
