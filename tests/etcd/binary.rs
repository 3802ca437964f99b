//! The whole binary: `spp run --etcd` on a software NIC, driven through etcd only, looked at through its CLI.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::*;

/// `spp run` for [`HOST`], killed when dropped.
pub struct Spp<'a> {
    dir: &'a Path,
    process: Child,
}

impl<'a> Spp<'a> {
    pub fn run(url: &str, dir: &'a Path) -> Spp<'a> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        command.args(["run", "--etcd", url, "--host", HOST, "--fold-cores", "--log-level", "error"]);
        command.arg("--vhost-dir").arg(dir).args(["--api", &api(dir)]);
        Spp { dir, process: command.stderr(Stdio::null()).spawn().expect("spp starts") }
    }

    pub fn cli(&self, args: &[&str]) -> Output {
        spp(&[args, &["--api", &api(self.dir)]].concat())
    }

    /// What is plugged into a vhost, once the node is up.
    pub fn plug_of(&self, vhost: usize) -> Option<Value> {
        let output = self.cli(&["status", "--json"]);
        let status: Value =
            output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())?;
        Some(status["vfs"][0]["vhosts"][vhost]["plug"].clone())
    }

    /// SIGTERM; the exit code.
    pub async fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        until("spp ends", || {
            let ended = self.process.try_wait().expect("it is our child").is_some();
            async move { ended }
        })
        .await;
        self.process.wait().expect("it is our child").code()
    }
}

impl Drop for Spp<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn api(dir: &Path) -> String {
    format!("unix:{}", dir.join("api.sock").display())
}

pub fn spp(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spp")).args(args).output().expect("spp runs")
}

pub fn put_mappings(url: &str, mappings: &str) -> Option<i32> {
    spp(&["config", "put", "--etcd", url, "--host", HOST, mappings]).status.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_serves_binds_from_configuration_to_kill_and_restart() {
    const TEST: &str = "binary_serves_binds_from_configuration_to_kill_and_restart";
    let Some(etcd) = Etcd::start(TEST).await else { return };
    let mut driver = Driver::new(etcd.client().await, HOST);
    let dir = tempfile::tempdir().unwrap();
    let node = Spp::run(&etcd.url(), dir.path());

    // Without a configuration it waits; with one it is built.
    until("the API waits for a configuration", || async {
        let status = node.cli(&["status"]);
        String::from_utf8_lossy(&status.stderr).contains("waits for its configuration")
    })
    .await;
    assert_eq!(put_mappings(&etcd.url(), "null:#phys1#2#xfe"), Some(5));
    assert_eq!(put_mappings(&etcd.url(), "null:#phys1#2#0xfe"), Some(0));
    driver.bind(PORT, ("phys1", 0), MAC, Some(100)).await;
    driver.until_up(PORT).await;
    let plug = serde_json::json!({"mac": MAC, "vlan": 100});
    assert_eq!(node.plug_of(0), Some(plug.clone()));
    let by_hand = node.cli(&["plug", "--vhost", "1", "--mac", "02:00:00:00:00:01"]);
    assert_eq!(by_hand.status.code(), Some(4), "{by_hand:?}");

    // Killed, and a bind while it is away: the next one serves both.
    drop(node);
    driver.bind("late", ("phys1", 1), "fa:16:3e:00:00:02", None).await;
    let node = Spp::run(&etcd.url(), dir.path());
    driver.until_up("late").await;
    until("the first port is wired again", || async { node.plug_of(0) == Some(plug.clone()) }).await;

    driver.unbind(PORT).await;
    driver.until_gone(PORT).await;
    assert_eq!(node.plug_of(0), Some(Value::Null));
    let mut keys = values(&mut driver.client, "/").await;
    keys.retain(|(key, _)| !key.contains("/configuration/") && !key.contains("late"));
    let vhost = |n: u32, value: &str| (format!("/spp/openstack/vhost/{HOST}/phys1/{n}"), value.to_owned());
    assert_eq!(keys, [vhost(0, "None"), vhost(1, "late")]);
    assert_eq!(node.stop().await, Some(0));
    assert!(!dir.path().join("api.sock").exists());
}
