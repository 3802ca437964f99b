//! `spp config put|show|destroy`: a host's keys in etcd.

use serde_json::json;
use spp_agent::{ConfigError, SlotId, config_destroy, config_put, config_show};
use spp_pipeline::config::{Form, NodeConfig};

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
    let config = NodeConfig::from_mappings(&args.mappings).map_err(|e| bad(&e))?;
    let form = if args.list_form { Form::List } else { Form::Dict };
    let json = config.to_json(form).map_err(|e| bad(&e))?;
    let slots = glue::layout(&config)?.into_iter().map(|(vhost, physnet)| SlotId { physnet, vhost });
    let slots: Vec<SlotId> = slots.collect();
    let keys = &args.keys;
    let report =
        config_put(&keys.endpoints()?, &keys.host, &json, &slots, args.force).await.map_err(failure)?;
    let warnings = config.warnings();
    for warning in &warnings {
        output::complain(&format!("warning: {warning}"));
    }
    let ids = |slots: &[SlotId]| slots.iter().map(|slot| slot.vhost).collect::<Vec<_>>();
    let (freed, kept, removed) = (ids(&report.freed), ids(&report.kept), ids(&report.removed));
    if keys.json {
        return output::json(&json!({
            "host": keys.host.as_str(), "configuration": json, "vhosts_free": freed,
            "vhosts_in_use": kept, "vhosts_removed": removed, "warnings": warnings,
        }));
    }
    output::line(&format!(
        "configuration of {} written: {}",
        keys.host.as_str(),
        counted(slots.len(), "vhost")
    ))?;
    let groups = [("now free", &freed), ("left to the ports that use them", &kept), ("removed", &removed)];
    for (what, ids) in groups.iter().filter(|(_, ids)| !ids.is_empty()) {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        output::line(&format!("  {what}: {}", ids.join(", ")))?;
    }
    Ok(())
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
