//! `spp run`: from a configuration to a running node, until a signal.
//!
//! The API is served first, so that a wrong `--api` ends the command before a device is touched, and so
//! that `spp status` has an answer while etcd is waited for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spp_agent::{
    AgentConfig, Configuration, Endpoints, HeartbeatConfig, Layout, Name, NodeKey, StatusCell, heartbeat,
    node_key, wait_for_configuration,
};
use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::{NodeError, NodeGone, NodeHandle, NodeOptions};
use spp_vhost::Role;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{Api, listen};
use crate::cli::{ApiAddress, DEFAULT_API, Run, VhostMode};
use crate::fail::{Failure, chain};
use crate::{glue, logging, systemd};

/// How long open API requests may take to end at the end.
const API_STOP_DEADLINE: Duration = Duration::from_secs(1);
/// How soon a node that ended by itself is noticed.
const NODE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the node; returns after a signal, or when it can't be run.
pub fn run(args: &Run) -> Result<(), Failure> {
    logging::start(args.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Failure::failed(format!("can't start threads: {e}")))?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn serve(args: &Run) -> Result<(), Failure> {
    let mut stop = stop_on_signals()?;
    let source = Source::of(args)?;
    let signs = match &source {
        Source::Etcd { endpoints, host } => {
            Signs { node_key: args.signs.node_key(endpoints, host)?, heartbeat: args.signs.heartbeat(host)? }
        }
        Source::File(..) => Signs::default(),
    };
    let agent = matches!(source, Source::Etcd { .. }).then(StatusCell::default);
    let api = Api::new(agent.clone());
    let (end_api, api_ends) = watch::channel(false);
    let mut servers = serve_api(args, &api, api_ends).await?;
    systemd::notify("READY=1\nSTATUS=Waiting for the configuration.");

    let result = node_life(args, source, signs, &api, agent, &mut stop).await;
    systemd::notify("STOPPING=1");
    end_api.send_replace(true);
    let _ =
        tokio::time::timeout(API_STOP_DEADLINE, async { while servers.join_next().await.is_some() {} }).await;
    result
}

/// Becomes true with the first SIGTERM or SIGINT; the second ends the process at once.
fn stop_on_signals() -> Result<watch::Receiver<bool>, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("can't handle signals: {e}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        either(&mut term, &mut int).await;
        tracing::info!("stopping; a second signal forces it");
        stop.send_replace(true);
        either(&mut term, &mut int).await;
        tracing::warn!("forced to stop");
        std::process::exit(1);
    });
    Ok(stopped)
}

async fn either(a: &mut Signal, b: &mut Signal) {
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
    }
}

async fn serve_api(args: &Run, api: &Api, ends: watch::Receiver<bool>) -> Result<JoinSet<()>, Failure> {
    let default: ApiAddress = DEFAULT_API.parse().expect("the default parses");
    let addresses = if args.api.is_empty() { vec![default] } else { args.api.clone() };
    let mut bound = Vec::new();
    for address in &addresses {
        bound.push(listen::bind(address, args.api_allow_remote).await.map_err(Failure::failed)?);
    }
    let mut servers = JoinSet::new();
    for socket in bound {
        tracing::info!(api = %socket.address(), "serving the API");
        let (router, ends) = (api.router(), ends.clone());
        servers.spawn(async move {
            if let Err(error) = socket.serve(router, ends).await {
                tracing::error!(%error, "the API ended");
            }
        });
    }
    Ok(servers)
}

/// How others are told that the node is alive, once it is up.
#[derive(Default)]
struct Signs {
    node_key: Option<NodeKey>,
    heartbeat: Option<HeartbeatConfig>,
}

/// Where the configuration comes from.
enum Source {
    File(NodeConfig, Layout),
    Etcd { endpoints: Endpoints, host: Name },
}

impl Source {
    fn of(args: &Run) -> Result<Source, Failure> {
        match (&args.config, &args.etcd, &args.host) {
            (Some(path), ..) => read_file(path),
            (None, Some(endpoints), Some(host)) => {
                Ok(Source::Etcd { endpoints: args.access.to(endpoints)?, host: host.clone() })
            }
            _ => {
                Err(Failure::usage("give --etcd URL and --host NAME, or --config FILE (see spp run --help)"))
            }
        }
    }
}

fn read_file(path: &Path) -> Result<Source, Failure> {
    let json = std::fs::read(path)
        .map_err(|e| Failure::bad_config(format!("can't read the configuration {}: {e}", path.display())))?;
    let config = NodeConfig::parse(&json)
        .map_err(|e| Failure::bad_config(format!("{}: {}", path.display(), chain(&e))))?;
    let layout = glue::layout(&config)?;
    Ok(Source::File(config, layout))
}

/// A configuration that can be used, from etcd. A bad one is reported once, and another waited for.
async fn from_etcd(endpoints: &Endpoints, host: &Name) -> (NodeConfig, Layout, Configuration) {
    let mut refused = None;
    loop {
        let found = wait_for_configuration(endpoints, host, refused).await;
        let parsed = NodeConfig::parse(&found.json).map_err(|e| Failure::bad_config(chain(&e)));
        match parsed.and_then(|config| glue::layout(&config).map(|layout| (config, layout))) {
            Ok((config, layout)) => return (config, layout, found),
            Err(failure) => {
                tracing::error!(revision = found.revision, "{}: waiting for another one", failure.message);
                systemd::notify("STATUS=The configuration can't be used, waiting for another one.");
                refused = Some(found.revision);
            }
        }
    }
}

/// Gets the configuration, starts the node, serves it until `stop`, stops it.
async fn node_life(
    args: &Run,
    source: Source,
    signs: Signs,
    api: &Api,
    agent: Option<StatusCell>,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Failure> {
    let (config, layout, etcd) = match source {
        Source::File(config, layout) => (config, layout, None),
        Source::Etcd { endpoints, host } => {
            let found = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                found = from_etcd(&endpoints, &host) => found,
            };
            (found.0, found.1, Some(AgentConfig::new(endpoints, host, Some(found.2))))
        }
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let n_mirrors = config.mirrors.len() as u32;
    let node = start(config, options(args)).await?;
    api.node_is_up(node.clone());
    systemd::notify("STATUS=Running.");
    tracing::info!("the node is up");

    let stopped = || {
        let mut stop = stop.clone();
        async move {
            let _ = stop.wait_for(|stop| *stop).await;
        }
    };
    let serving = async {
        match (etcd, agent) {
            (Some(config), Some(status)) => {
                let wired = glue::WiredNode::new(node.clone(), layout, n_mirrors);
                let agent = spp_agent::run(config, Arc::new(wired), status.clone(), stopped());
                let node_key = async {
                    if let Some(config) = signs.node_key {
                        node_key::keep(config, status.clone(), stopped()).await;
                    }
                };
                let heartbeat = async {
                    if let Some(config) = signs.heartbeat {
                        heartbeat::run(config, status.clone(), stopped()).await;
                    }
                };
                tokio::join!(agent, node_key, heartbeat);
            }
            _ => stopped().await,
        }
    };
    tokio::select! {
        () = serving => {}
        () = ended_by_itself(&node) => {
            return Err(Failure::failed("the node's control thread has ended, see the log: start spp again"));
        }
    }
    let ended = tokio::task::spawn_blocking(move || node.shutdown()).await;
    ended.map_err(|e| Failure::failed(format!("the node did not stop cleanly: {e}")))?;
    tracing::info!("stopped");
    Ok(())
}

/// Resolves when the node is gone although nobody stopped it: a supervisor then starts a new one.
async fn ended_by_itself(node: &NodeHandle) {
    loop {
        tokio::time::sleep(NODE_CHECK_INTERVAL).await;
        let node = node.clone();
        let alive = tokio::task::spawn_blocking(move || node.call(|_| ())).await;
        if matches!(alive, Ok(Err(NodeGone::Stopped))) {
            return;
        }
    }
}

async fn start(config: NodeConfig, options: NodeOptions) -> Result<NodeHandle, Failure> {
    let started = tokio::task::spawn_blocking(move || NodeHandle::start(config, options)).await;
    let started = started.map_err(|e| Failure::failed(format!("the node can't start: {e}")))?;
    started.map_err(|error| match error {
        NodeError::Config(_) | NodeError::Cores(_) => Failure::bad_config(chain(&error)),
        _ => Failure::failed(chain(&error)),
    })
}

fn options(args: &Run) -> NodeOptions {
    NodeOptions {
        vhost_dir: args.vhost_dir.clone(),
        vhost_role: match args.vhost_mode {
            VhostMode::Client => Role::Client,
            VhostMode::Server => Role::Server,
        },
        state_dir: Some(args.state_dir.clone()),
        fold_cores: args.fold_cores,
        share_ways: true,
        idle: args.idle,
        gate_unplugged: true,
        local_switching: !args.no_local_switching,
        ..NodeOptions::default()
    }
}
