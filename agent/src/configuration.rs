//! The configuration key: waiting for it before there is a node, writing and removing it.
//!
//! Called by `spp run --etcd` before the agent starts, and by `spp config put|show|destroy`.

use std::time::Duration;

use serde::Serialize;

use crate::connect::{Dialer, Endpoints};
use crate::keys::{FREE, Family, Key, Name, SlotValue};
use crate::link::{Link, Lost, Outcome};
use crate::schedule::Backoff;
use crate::txn::{Guard, KeyOp, KeyTxn};
use crate::view::Listing;

/// How often a missing configuration is looked for.
const POLL: Duration = Duration::from_millis(250);

/// Operations per transaction: etcd takes 128.
const TXN_MAX_OPS: usize = 100;

/// The configuration of a host as it stands in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The value, as written.
    pub json: Vec<u8>,
    /// Store revision of its last change.
    pub revision: i64,
}

/// Waits until etcd can be reached and has a configuration for `host`; with `other_than`, one of
/// another revision than that (because the one of that revision was no good). Says what it waits for
/// once, not each time. Drop the future to stop waiting.
pub async fn wait_for_configuration(
    endpoints: &Endpoints,
    host: &Name,
    other_than: Option<i64>,
) -> Configuration {
    let keys = endpoints.keys(host.clone());
    let mut dialer = Dialer::new(endpoints.clone());
    let mut pauses = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut said_unreachable = false;
    let mut said_missing = false;
    loop {
        let mut poll = async |dialer: &Dialer| -> Result<Configuration, Lost> {
            let mut link = Link::dial(dialer, keys.clone()).await?;
            loop {
                let (found, _) = link.configuration().await?;
                if std::mem::take(&mut said_unreachable) {
                    tracing::info!(etcd = %dialer.endpoint(), "etcd answers");
                }
                if let Some((json, revision)) = found.filter(|(_, revision)| Some(*revision) != other_than) {
                    return Ok(Configuration { json, revision });
                }
                if !std::mem::replace(&mut said_missing, true) && other_than.is_none() {
                    let key = keys.prefix(Family::Configuration);
                    tracing::warn!(%key, "etcd has no configuration for this host: waiting for `spp config put`");
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match poll(&dialer).await {
            Ok(configuration) => return configuration,
            Err(lost) => {
                if !std::mem::replace(&mut said_unreachable, true) {
                    tracing::warn!(etcd = %dialer.endpoint(), reason = %lost, "no etcd: waiting for it");
                }
            }
        }
        dialer.failed();
        tokio::time::sleep(pauses.pause_with_jitter()).await;
    }
}

/// Why a configuration could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No member could be reached.
    #[error("no etcd at {endpoints}: {reason}")]
    Unreachable {
        /// Who was asked.
        endpoints: String,
        /// What the last one said.
        reason: Lost,
    },
    /// The value is not JSON.
    #[error("the configuration is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// The new configuration has no such vhosts or mirrors, and ports or taps use them.
    #[error("in use and not in the new configuration: {}; unplug these first, or use --force", list(.0))]
    InUse(Vec<(Key, String)>),
    /// Somebody else wrote the same keys meanwhile.
    #[error("the keys of this host changed meanwhile: try again")]
    Changed,
}

fn list(slots: &[(Key, String)]) -> String {
    let one = |(slot, value): &(Key, String)| match slot {
        Key::Vhost(slot) => format!("vhost {} of {} by {value}", slot.vhost, slot.physnet),
        Key::Mirror(mirror) => format!("mirror {mirror} by {value}"),
        _ => unreachable!("slots are vhosts and mirrors"),
    };
    slots.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What [`config_put`] did to the vhost and mirror keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutReport {
    /// Written as `None`.
    pub freed: Vec<Key>,
    /// In use, left alone.
    pub kept: Vec<Key>,
    /// Not in the new configuration, removed.
    pub removed: Vec<Key>,
}

/// Writes the configuration of `host`, and each of `slots` (vhost and mirror keys): `None`, unless a port
/// or tap has it, which only `force` takes away. Slots that are not among them are removed, or a driver
/// would hand them out; one in use is an error without `force`. The configuration is written last.
pub async fn config_put(
    endpoints: &Endpoints,
    host: &Name,
    json: &str,
    slots: &[Key],
    force: bool,
) -> Result<PutReport, ConfigError> {
    serde_json::from_str::<serde::de::IgnoredAny>(json)?;
    let (mut link, listing) = reach(endpoints, host).await?;
    let (mut steps, report) = plan_put(&listing, slots, force)?;
    steps.push((None, KeyOp::Put(Key::Configuration, json.into())));
    for chunk in steps.chunks(TXN_MAX_OPS) {
        let guards = chunk.iter().filter_map(|(guard, _)| guard.clone()).collect();
        let txn = KeyTxn::new(guards, chunk.iter().map(|(_, op)| op.clone()).collect());
        match link.txn(&txn).await {
            Ok(Outcome::Done(_)) => {}
            Ok(Outcome::Changed(_)) => return Err(ConfigError::Changed),
            Err(reason) => return Err(unreachable(endpoints, reason)),
        }
    }
    Ok(report)
}

type Step = (Option<Guard>, KeyOp);

fn plan_put(listing: &Listing, slots: &[Key], force: bool) -> Result<(Vec<Step>, PutReport), ConfigError> {
    let mut report = PutReport::default();
    let mut steps: Vec<Step> = Vec::new();
    let mut in_use = Vec::new();
    for kv in &listing.keys {
        let slot = &kv.key;
        if !matches!(slot, Key::Vhost(_) | Key::Mirror(_)) {
            continue;
        }
        let free = SlotValue::parse(&kv.value) == SlotValue::Free;
        let unchanged = Some(Guard::Unchanged(slot.clone(), kv.mod_revision));
        match (slots.contains(slot), free) {
            (true, true) => {}
            (true, false) if !force => report.kept.push(slot.clone()),
            (true, false) => {
                steps.push((unchanged, KeyOp::Put(slot.clone(), FREE.into())));
                report.freed.push(slot.clone());
            }
            (false, false) if !force => {
                in_use.push((slot.clone(), String::from_utf8_lossy(&kv.value).chars().take(64).collect()));
            }
            (false, _) => {
                steps.push((unchanged, KeyOp::Delete(slot.clone())));
                report.removed.push(slot.clone());
            }
        }
    }
    if !in_use.is_empty() {
        return Err(ConfigError::InUse(in_use));
    }
    for slot in slots {
        if !listing.keys.iter().any(|kv| kv.key == *slot) {
            steps.push((Some(Guard::Absent(slot.clone())), KeyOp::Put(slot.clone(), FREE.into())));
            report.freed.push(slot.clone());
        }
    }
    Ok((steps, report))
}

/// One key of a host, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownKey {
    /// The full key.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// All keys of `host`, of every family.
pub async fn config_show(endpoints: &Endpoints, host: &Name) -> Result<Vec<ShownKey>, ConfigError> {
    let (mut link, _) = reach(endpoints, host).await?;
    let keys = link.dump(&Family::ALL).await.map_err(|reason| unreachable(endpoints, reason))?;
    Ok(keys.into_iter().map(|(key, value)| ShownKey { key, value }).collect())
}

/// Removes all keys of `host`, of every family, in one transaction. How many there were.
pub async fn config_destroy(endpoints: &Endpoints, host: &Name) -> Result<i64, ConfigError> {
    let (mut link, _) = reach(endpoints, host).await?;
    link.delete_families(&Family::ALL).await.map_err(|reason| unreachable(endpoints, reason))
}

fn unreachable(endpoints: &Endpoints, reason: Lost) -> ConfigError {
    ConfigError::Unreachable { endpoints: endpoints.to_string(), reason }
}

/// The first member that answers, and the host's keys. Every member gets two tries, for names with
/// an address of either family. Of several failures the one that says what to do is reported.
async fn reach(endpoints: &Endpoints, host: &Name) -> Result<(Link, Listing), ConfigError> {
    let mut dialer = Dialer::new(endpoints.clone());
    let mut tries_left = 2 * endpoints.len();
    let mut told: Option<Lost> = None;
    loop {
        let attempt = async {
            let mut link = Link::dial(&dialer, endpoints.keys(host.clone())).await?;
            let listing = link.list().await?;
            Ok::<_, Lost>((link, listing))
        };
        match attempt.await {
            Ok(reached) => return Ok(reached),
            Err(reason) if reason.denied() => return Err(unreachable(endpoints, reason)),
            Err(reason) => {
                tries_left -= 1;
                dialer.failed();
                if tries_left == 0 {
                    return Err(unreachable(endpoints, told.unwrap_or(reason)));
                }
                told = told.or_else(|| Some(reason).filter(Lost::has_remedy));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{N_MIRRORS, Store, name, slot};

    fn slots() -> Vec<Key> {
        let vhosts = (0..4).map(|vhost| Key::Vhost(slot(vhost)));
        vhosts.chain((0..N_MIRRORS).map(Key::Mirror)).collect()
    }

    #[test]
    fn put_on_an_empty_host_creates_every_slot_unless_somebody_else_did() {
        let listing = Listing { keys: vec![], revision: 1, cluster_id: 1, n_odd_keys: 0 };
        let (steps, report) = plan_put(&listing, &slots(), false).unwrap();
        assert_eq!(report.freed, slots());
        assert_eq!(steps.len(), 6);
        assert!(steps.iter().all(|(guard, op)| {
            matches!(guard, Some(Guard::Absent(_))) && matches!(op, KeyOp::Put(_, value) if value == FREE)
        }));
    }

    #[test]
    fn put_leaves_slots_in_use_alone_unless_forced() {
        let mut store = Store::new();
        assert!(store.take(&name("a"), 1));
        let (steps, report) = plan_put(&store.listing(), &slots(), false).unwrap();
        assert_eq!((steps.len(), report.kept), (0, vec![Key::Vhost(slot(1))]));
        let (steps, report) = plan_put(&store.listing(), &slots(), true).unwrap();
        assert_eq!((steps.len(), report.freed), (1, vec![Key::Vhost(slot(1))]));
    }

    #[test]
    fn put_removes_slots_it_does_not_have_but_none_in_use_unless_forced() {
        let mut store = Store::new();
        let fewer = &slots()[..3];
        let gone = [Key::Vhost(slot(3)), Key::Mirror(0), Key::Mirror(1)];
        let (_, report) = plan_put(&store.listing(), fewer, false).unwrap();
        assert_eq!(report.removed, gone);
        assert!(store.take(&name("a"), 3) && store.take_mirror(&name("t"), 1));
        let error = plan_put(&store.listing(), fewer, false).unwrap_err();
        assert!(error.to_string().contains("vhost 3 of phys2 by a, mirror 1 by t"), "{error}");
        assert_eq!(plan_put(&store.listing(), fewer, true).unwrap().1.removed, gone);
    }
}
