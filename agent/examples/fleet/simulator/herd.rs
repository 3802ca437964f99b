//! How all agents come to etcd, counted in steps of 100 ms from what each says of itself.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, interval};

use super::FleetError;
use super::site::{Host, Site};

/// The step.
const TICK: Duration = Duration::from_millis(100);

/// How all agents came (back) to etcd.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Herd {
    /// From etcd's first answer until the last one listed and watched, in seconds.
    pub all_connected_s: f64,
    /// Most dials within 100 ms, in vain or not.
    pub peak_dials_per_100_ms: u64,
    /// Most agents that got to listing and watching within 100 ms.
    pub peak_connects_per_100_ms: u64,
    /// Agents that had to connect more than once.
    pub n_lost_again: u64,
    /// Dials in each 100 ms from the start (from etcd's death).
    pub dials: Vec<u64>,
    /// Agents that got to listing and watching, likewise.
    pub connects: Vec<u64>,
    /// The step in which etcd answered again.
    pub etcd_back_idx: usize,
}

/// All agents, from now on.
pub struct Watched<'a> {
    site: &'a Site,
    /// Connects of each agent before.
    before: Vec<u64>,
    began: Instant,
    etcd_back: Cell<Option<Instant>>,
}

impl<'a> Watched<'a> {
    pub fn begin(site: &'a Site) -> Watched<'a> {
        let before = connects(site);
        Watched { site, before, began: Instant::now(), etcd_back: Cell::new(None) }
    }

    pub fn etcd_is_back(&self) {
        self.etcd_back.set(Some(Instant::now()));
    }

    /// Waits until every agent has connected since the beginning, and counts.
    pub async fn all_connected_anew(&self, say: &dyn Fn(&str)) -> Herd {
        let sums = || (n_dials(self.site), connects(self.site).iter().sum::<u64>());
        let mut herd = Herd::default();
        let mut last = (n_dials(self.site), self.before.iter().sum());
        let mut ticks = interval(TICK);
        ticks.tick().await;
        while !self.all_are_back() {
            ticks.tick().await;
            let now = sums();
            herd.dials.push(now.0 - last.0);
            herd.connects.push(now.1 - last.1);
            last = now;
            if herd.dials.len() % 50 == 0 {
                say(&self.how_far());
            }
        }
        let etcd_back = self.etcd_back.get().unwrap_or(self.began);
        herd.etcd_back_idx = ((etcd_back - self.began).as_millis() / TICK.as_millis()) as usize;
        herd.all_connected_s = etcd_back.elapsed().as_secs_f64();
        herd.peak_dials_per_100_ms = herd.dials.iter().copied().max().unwrap_or_default();
        herd.peak_connects_per_100_ms = herd.connects.iter().copied().max().unwrap_or_default();
        let often = connects(self.site).into_iter().zip(&self.before).filter(|(now, then)| now - **then > 1);
        herd.n_lost_again = often.count() as u64;
        herd
    }

    fn all_are_back(&self) -> bool {
        self.back().all(|is_back| is_back)
    }

    /// Of each agent.
    fn back(&self) -> impl Iterator<Item = bool> {
        let is_back = |(host, before): (&Host, &u64)| {
            host.status.read(|status| status.etcd.connected && status.etcd.n_connects > *before)
        };
        self.site.hosts.iter().zip(&self.before).map(is_back)
    }

    /// How many are back, and what most of the others say.
    fn how_far(&self) -> String {
        let mut errors: BTreeMap<String, usize> = BTreeMap::new();
        for (host, _) in self.site.hosts.iter().zip(self.back()).filter(|(_, is_back)| !is_back) {
            let error = host.status.read(|status| status.etcd.last_error.clone());
            *errors.entry(error.unwrap_or_else(|| "nothing yet".into())).or_default() += 1;
        }
        let n_back = self.back().filter(|is_back| *is_back).count();
        let most = errors.into_iter().max_by_key(|(_, n)| *n).map(|(error, n)| format!("; {n} say: {error}"));
        format!("{n_back} of {} connected{}", self.before.len(), most.unwrap_or_default())
    }
}

/// Waits until every agent has connected once.
pub async fn all_connected(site: &Site, say: &dyn Fn(&str)) -> Result<Herd, FleetError> {
    let watched = Watched { before: vec![0; site.hosts.len()], ..Watched::begin(site) };
    Ok(watched.all_connected_anew(say).await)
}

fn connects(site: &Site) -> Vec<u64> {
    site.hosts.iter().map(|host| host.status.read(|status| status.etcd.n_connects)).collect()
}

fn n_dials(site: &Site) -> u64 {
    site.hosts.iter().map(|host| host.status.read(|status| status.etcd.n_dials)).sum()
}
