//! One static binary: it names no loader, and runs where there is nothing but itself.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn skip(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}

#[test]
fn ldd_calls_the_binary_static() {
    let output = match Command::new("ldd").arg(env!("CARGO_BIN_EXE_spp")).output() {
        Ok(output) => output,
        Err(error) => return skip("ldd_calls_the_binary_static", &format!("no ldd here: {error}")),
    };
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(text.contains("statically linked") || text.contains("not a dynamic executable"), "{text}");
}

/// Runs the binary as the only file of its root directory; None without the privilege for that.
fn in_empty_root(root: &Path, args: &[&str]) -> Option<Output> {
    let mut chroot = if rustix::process::geteuid().is_root() {
        Command::new("chroot")
    } else {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "chroot"]);
        unshare
    };
    let output = chroot
        .arg(root)
        .arg("/spp")
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output();
    let output = output.ok()?;
    // chroot and unshare say so themselves when they may not.
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let not_allowed = text.starts_with("chroot: cannot change root") || text.starts_with("unshare: ");
    (!not_allowed).then_some(output)
}

#[test]
fn binary_runs_alone_in_an_empty_root() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::copy(env!("CARGO_BIN_EXE_spp"), root.path().join("spp")).expect("a copy");
    let run = |args: &[&str]| in_empty_root(root.path(), args);
    let Some(version) = run(&["--version"]) else {
        return skip("binary_runs_alone_in_an_empty_root", "no privilege to change root");
    };
    let text = |output: &Output| [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert_eq!(text(&version), format!("spp {}\n", env!("CARGO_PKG_VERSION")));

    let cores = run(&["cores", "0xfe", "--json"]).expect("it ran before");
    assert!(cores.status.success(), "{}", text(&cores));
    let demo = run(&["demo", "--seconds", "1", "--json"]).expect("it ran before");
    assert!(demo.status.success(), "{}", text(&demo));
    let result: Value = serde_json::from_slice(&demo.stdout).expect("JSON");
    assert_eq!(result["ok"], true);
}

/// Minutes to build, so that it is measured where somebody did: CI does.
#[test]
fn binary_to_deliver_is_smaller_than_12_mib_and_works() {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("x86_64-unknown-linux-gnu/dist/spp");
    let Ok(file) = binary.metadata() else {
        let reason = "not built: cargo build --profile dist --bin spp";
        return skip("binary_to_deliver_is_smaller_than_12_mib_and_works", reason);
    };
    let bytes = file.len();
    assert!(bytes < 12 << 20, "{:.2} MiB", bytes as f64 / f64::from(1 << 20));
    let demo = Command::new(&binary).args(["demo", "--seconds", "1", "--json"]).output().expect("it starts");
    let result: Value = serde_json::from_slice(&demo.stdout).expect("JSON");
    assert_eq!(result["ok"], true);
}
