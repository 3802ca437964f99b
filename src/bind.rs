//! `spp bind` and `spp unbind`: a port's place on a host, asked for through etcd as neutron does.

use std::future::Future;
use std::time::Duration;

use serde_json::json;
use spp_agent::{BindError, BindRequest, SlotId};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Bind, Unbind};
use crate::fail::{Exit, Failure, chain};
use crate::output;

/// `spp bind`; returns when the host's agent says that the port is up.
pub fn bind(args: &Bind) -> Result<(), Failure> {
    let request =
        BindRequest { port: args.port.clone(), physnet: args.phys.clone(), mac: args.mac, vlan: args.vlan };
    let keys = &args.keys;
    let wait = Duration::from_secs(args.wait_s);
    let endpoints = keys.endpoints()?;
    let slot = runtime()?.block_on(async {
        let stop = stopped()?;
        spp_agent::bind(&endpoints, &keys.host, request, wait, stop).await.map_err(failure)
    })?;
    print_bound(args, &slot)
}

fn print_bound(args: &Bind, slot: &SlotId) -> Result<(), Failure> {
    let socket = args.vhost_dir.join(format!("sock{}", slot.vhost));
    let socket = socket.display().to_string();
    if !args.keys.json {
        return output::line(&format!(
            "port {} bound: vhost {} of {}, socket {socket}",
            args.port, slot.vhost, args.keys.host
        ));
    }
    let mut bound = json!({
        "port_id": args.port, "host": args.keys.host, "physical_network": slot.physnet,
        "vhost_id": slot.vhost, "socket": socket, "mac_address": args.mac,
    });
    if let Some(vlan) = args.vlan {
        bound["vlan_id"] = vlan.into();
    }
    output::json(&bound)
}

/// `spp unbind`; returns when no key names the port any more.
pub fn unbind(args: &Unbind) -> Result<(), Failure> {
    let keys = &args.keys;
    let wait = Duration::from_secs(args.wait_s);
    let endpoints = keys.endpoints()?;
    let unbound = spp_agent::unbind(&endpoints, &keys.host, &args.port, wait);
    let vhosts = runtime()?.block_on(unbound).map_err(failure)?;
    if keys.json {
        return output::json(
            &json!({"port_id": args.port, "host": keys.host, "bound": false, "vhosts_free": vhosts}),
        );
    }
    let was = match &vhosts[..] {
        [] => "it had no vhost".to_owned(),
        [vhost] => format!("vhost {vhost} is free"),
        several => format!("vhosts {several:?} are free"),
    };
    output::line(&format!("port {} unbound: {was}", args.port))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::failed(format!("can't start: {e}")))
}

/// Resolves with the first SIGINT or SIGTERM.
fn stopped() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("can't handle signals: {e}")));
    let (mut int, mut term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
    })
}

fn failure(error: BindError) -> Failure {
    let exit = match &error {
        BindError::Unreachable { reason, .. } if reason.denied() => Exit::Refused,
        BindError::Unreachable { .. } => Exit::Unreachable,
        BindError::NoConfiguration(_)
        | BindError::NoSuchNetwork { .. }
        | BindError::AlreadyBound(_)
        | BindError::NoFreeVhost { .. } => Exit::Refused,
        BindError::TakenBack(_)
        | BindError::NotUp { .. }
        | BindError::Stopped
        | BindError::NotTakenBack { .. }
        | BindError::NotUnplugged { .. } => Exit::Failed,
    };
    Failure { exit, message: chain(&error) }
}
