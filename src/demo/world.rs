//! What the demo plays with: a node, its API, and three built-in guests, all in a directory of its own.
//!
//! Built and taken down by the command's thread; the guests belong to it too.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::{NodeHandle, NodeOptions};
use spp_pipeline::status::NodeStatus;
use spp_vhost::Role;
use spp_vhost::guest::{Guest, GuestConfig};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::show::View;
use super::traffic::{Port, STATION_RING};
use super::{FLAT, STATIONS, TAGGED};
use crate::api::{Api, NodeReport, listen};
use crate::cli::ApiAddress;
use crate::client::Client;
use crate::fail::{Failure, chain};

/// How long anything may take to come up.
const DEADLINE: Duration = Duration::from_secs(10);
/// A master, two forwarders for each guest, a classifier and a merger; folded onto the CPUs there are.
const CORE_MASK: &str = "0xfe";

/// Everything the demo built.
pub struct World {
    /// By station number; dropped before the node is stopped.
    stations: Vec<Guest>,
    node: NodeHandle,
    api: ApiAddress,
    end_api: watch::Sender<bool>,
    runtime: Runtime,
    interrupted: Arc<AtomicBool>,
    _dir: WorkDir,
}

impl World {
    /// Starts the node, serves its API, and connects the wire and the guests.
    pub fn build(view: &mut View) -> Result<World, Failure> {
        let dir = WorkDir::new()?;
        let wire = dir.path().join("wire.sock");
        let api = ApiAddress::Unix(dir.path().join("api.sock"));
        view.step(&format!("a node on a software wire, its sockets in {}", dir.path().display()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|e| Failure::failed(format!("can't start threads: {e}")))?;
        let interrupted = watch_signals(&runtime)?;
        let node = start_node(&wire, dir.path())?;
        let end_api = serve_api(&runtime, &api, &node)?;

        view.step("two guests and the wire's other end, each behind its vhost-user socket")?;
        let attach = |file: &str, role| {
            let mut config = GuestConfig::new(dir.path().join(file), role);
            config.ring_size = STATION_RING;
            Guest::attach(config, DEADLINE).map_err(|e| Failure::failed(format!("{file}: {}", chain(&e))))
        };
        let guests =
            [attach("wire.sock", Role::Client), attach("sock0", Role::Server), attach("sock1", Role::Server)];
        let stations = guests.into_iter().collect::<Result<Vec<_>, _>>();
        let stations = match stations {
            Ok(stations) => stations,
            Err(failure) => {
                node.shutdown();
                return Err(failure);
            }
        };
        Ok(World { stations, node, api, end_api, runtime, interrupted, _dir: dir })
    }

    /// Plugs a guest's station, as `spp plug` does.
    pub fn plug(&mut self, station: usize, vlan: Option<u16>) -> Result<(), Failure> {
        let mut body = json!({"mac_address": STATIONS[station].mac});
        if let Some(vlan) = vlan {
            body["vlan_id"] = vlan.into();
        }
        let path = format!("/v1/node/plugs/{}", vhost(station));
        Client::new(&self.api).put(&path, &body).map(drop)
    }

    /// Unplugs a guest's station, as `spp unplug` does.
    pub fn unplug(&mut self, station: usize) -> Result<(), Failure> {
        Client::new(&self.api).delete(&format!("/v1/node/plugs/{}", vhost(station))).map(drop)
    }

    /// The node's status, as `spp status` gets it.
    pub fn status(&self) -> Result<NodeStatus, Failure> {
        let report = Client::new(&self.api).get("/v1/node")?;
        let report: Result<NodeReport, _> = serde_json::from_value(report);
        report
            .map(|report| report.node)
            .map_err(|e| Failure::failed(format!("the status can't be read: {e}")))
    }

    /// Waits until every port passes frames.
    pub fn wait_until_running(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status()?;
            let vf = &status.vfs[0];
            let idle = vf.vhosts.iter().find(|vhost| vhost.state != "running");
            let idle = idle.map(|vhost| format!("{} is {} {}", vhost.port, vhost.state, vhost.detail));
            let idle = idle.or((!vf.nic.link_up).then(|| format!("the wire is {}", vf.nic.link)));
            match idle {
                None => return Ok(()),
                Some(what) if Instant::now() > deadline => return Err(Failure::failed(what)),
                Some(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Where each station sends and receives, by station number.
    pub fn ports(&mut self) -> Vec<&mut dyn Port> {
        self.stations.iter_mut().map(|guest| guest as &mut dyn Port).collect()
    }

    /// True after SIGINT or SIGTERM.
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Takes everything down: guests, node, API, files.
    pub fn end(self) {
        drop(self.stations);
        self.node.shutdown();
        self.end_api.send_replace(true);
        self.runtime.shutdown_timeout(Duration::from_millis(500));
    }
}

/// Vhost id of a guest's station.
fn vhost(station: usize) -> usize {
    debug_assert!([FLAT, TAGGED].contains(&station));
    station - FLAT
}

fn start_node(wire: &Path, dir: &Path) -> Result<NodeHandle, Failure> {
    let config = json!([{
        "num_vhost": STATIONS.len() - 1,
        "pci_address": format!("vhost-user:{}", wire.display()),
        "physical_network": "demo",
        "core_mask": CORE_MASK,
    }]);
    let config = NodeConfig::parse(config.to_string().as_bytes()).map_err(|e| Failure::failed(chain(&e)))?;
    let options = NodeOptions {
        vhost_dir: dir.to_owned(),
        vhost_role: Role::Client,
        fold_cores: true,
        share_ways: true,
        gate_unplugged: true,
        ..NodeOptions::default()
    };
    NodeHandle::start(config, options).map_err(|e| Failure::failed(chain(&e)))
}

fn serve_api(
    runtime: &Runtime,
    address: &ApiAddress,
    node: &NodeHandle,
) -> Result<watch::Sender<bool>, Failure> {
    let (end, ends) = watch::channel(false);
    let bound = runtime.block_on(listen::bind(address, false)).map_err(Failure::failed)?;
    let api = Api::new(None);
    api.node_is_up(node.clone());
    runtime.spawn(bound.serve(api.router(), ends));
    Ok(end)
}

fn watch_signals(runtime: &Runtime) -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let _context = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal = signal(kind).map_err(|e| Failure::failed(format!("can't handle signals: {e}")))?;
        let flag = flag.clone();
        runtime.spawn(async move {
            signal.recv().await;
            flag.store(true, Ordering::Relaxed);
        });
    }
    Ok(flag)
}

/// A directory only this user can enter; removed with all that is in it.
struct WorkDir(PathBuf);

impl WorkDir {
    fn new() -> Result<WorkDir, Failure> {
        let base = std::env::temp_dir();
        let path = base.join(format!("spp-demo-{}", std::process::id()));
        let made = std::fs::create_dir_all(&base)
            .and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(&path));
        let remedy = "set TMPDIR to a directory you can write to";
        made.map_err(|e| Failure::failed(format!("can't make {}: {e} ({remedy})", path.display())))?;
        Ok(WorkDir(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
