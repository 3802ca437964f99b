//! `spp config put|show|destroy`: a host's keys in etcd.

use serde_json::json;
use spp_agent::{ConfigError, Key, SlotId, config_destroy, config_put, config_show};
use spp_pipeline::config::{Form, MirrorConfig, NodeConfig};
use spp_pipeline::names::PortName;

use crate::cli::{Config, ConfigDestroy, ConfigPut, ConfigShow};
use crate::fail::{Exit, Failure, chain};
use crate::{glue, output};

/// Runs one of the three.
pub fn run(command: &Config) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::failed(format!("can't start: {e}")))?;
    match command {
        Config::Put(args) => runtime.block_on(put(args)),
        Config::Show(args) => runtime.block_on(show(args)),
        Config::Destroy(args) => runtime.block_on(destroy(args)),
    }
}

async fn put(args: &ConfigPut) -> Result<(), Failure> {
    let bad = |error: &dyn std::error::Error| Failure::bad_config(chain(error));
    let mut config = NodeConfig::from_mappings(&args.mappings).map_err(|e| bad(&e))?;
    config.mirrors = mirrors(&args.mirrors, config.n_rings());
    let form = if args.list_form { Form::List } else { Form::Dict };
    let json = config.to_json(form).map_err(|e| bad(&e))?;
    let config = NodeConfig::parse(json.as_bytes()).map_err(|e| bad(&e))?;
    let vhosts = glue::layout(&config)?.into_iter().map(|(vhost, physnet)| SlotId { physnet, vhost });
    let mut slots: Vec<Key> = vhosts.map(Key::Vhost).collect();
    let n_vhosts = slots.len();
    slots.extend((0..config.mirrors.len() as u32).map(Key::Mirror));
    let keys = &args.keys;
    let report =
        config_put(&keys.endpoints()?, &keys.host, &json, &slots, args.force).await.map_err(failure)?;
    let warnings = config.warnings();
    for warning in &warnings {
        output::complain(&format!("warning: {warning}"));
    }
    let (freed, kept, removed) =
        (vhosts_of(&report.freed), vhosts_of(&report.kept), vhosts_of(&report.removed));
    if keys.json {
        return output::json(&json!({
            "host": keys.host.as_str(), "configuration": json, "vhosts_free": freed,
            "vhosts_in_use": kept, "vhosts_removed": removed, "mirrors": config.mirrors.len(), "warnings": warnings,
        }));
    }
    output::line(&format!(
        "configuration of {} written: {}, {}",
        keys.host.as_str(),
        counted(n_vhosts, "vhost"),
        counted(config.mirrors.len(), "mirror")
    ))?;
    let groups = [("now free", &freed), ("left to the ports that use them", &kept), ("removed", &removed)];
    for (what, ids) in groups.iter().filter(|(_, ids)| !ids.is_empty()) {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        output::line(&format!("  {what}: {}", ids.join(", ")))?;
    }
    Ok(())
}

/// A mirror on each of these cores, with the two rings after those there are.
fn mirrors(cores: &[usize], n_rings: u32) -> Vec<MirrorConfig> {
    let rings = (n_rings..).step_by(2);
    let mirror = |(&core, ring): (&usize, u32)| MirrorConfig {
        core,
        ports: [PortName::Ring(ring), PortName::Ring(ring + 1)],
    };
    cores.iter().zip(rings).map(mirror).collect()
}

fn vhosts_of(slots: &[Key]) -> Vec<u32> {
    let vhost = |slot: &Key| match slot {
        Key::Vhost(slot) => Some(slot.vhost),
        _ => None,
    };
    slots.iter().filter_map(vhost).collect()
}

async fn show(args: &ConfigShow) -> Result<(), Failure> {
    let keys = config_show(&args.keys.endpoints()?, &args.keys.host).await.map_err(failure)?;
    if args.keys.json {
        return output::json(&keys);
    }
    if keys.is_empty() {
        return output::line(&format!("{} has no keys", args.keys.host.as_str()));
    }
    keys.iter().try_for_each(|key| output::line(&format!("{} {}", key.key, key.value)))
}

async fn destroy(args: &ConfigDestroy) -> Result<(), Failure> {
    let n = config_destroy(&args.keys.endpoints()?, &args.keys.host).await.map_err(failure)?;
    if args.keys.json {
        return output::json(&json!({"host": args.keys.host.as_str(), "keys_removed": n}));
    }
    output::line(&format!("{} of {} removed", counted(n as usize, "key"), args.keys.host.as_str()))
}

fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn failure(error: ConfigError) -> Failure {
    let exit = match &error {
        ConfigError::Unreachable { reason, .. } if reason.denied() => Exit::Refused,
        ConfigError::Unreachable { .. } => Exit::Unreachable,
        ConfigError::NotJson(_) => Exit::BadConfig,
        ConfigError::InUse(_) => Exit::Refused,
        ConfigError::Changed => Exit::Failed,
    };
    Failure { exit, message: chain(&error) }
}
