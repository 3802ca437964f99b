//! P7: the classifier's table, against rte_hash with the same keys in the same order.

use std::hint::black_box;
use std::time::{Duration, Instant};

use spp_drivers::{BURST, MacAddr, tsc};
use spp_pipeline::table::{Dst, ELSEWHERE, Place, Route, Table, TableBuilder};

use crate::cpu::{self, Watched};
use crate::dpdk;
use crate::runner::{Case, Plan, Reading, Result, Side};
use crate::testpmd::{Talker, eal};

/// Keys looked up in a cycle.
const LOOKUPS: usize = 65_536;
/// A prime: neighbours in the order of look-ups are not neighbours in the table.
const STEP: usize = 7919;

/// Entries and VLANs.
const SIZES: &[(usize, usize)] =
    &[(2, 1), (1000, 1), (1000, 100), (100_000, 1), (100_000, 100), (100_000, 4000)];

/// Cycles per look-up.
pub fn measure(plan: &Plan, done: &mut dyn FnMut(Case)) {
    for &(n_entries, n_vlans) in SIZES {
        if plan.quick && n_vlans == 1 && n_entries > 2 {
            continue;
        }
        let name = format!("look-up, {n_entries} entries, {n_vlans} VLANs");
        let case = Case::new("P7", name, "cycles", Some(1.2)).less_is_better();
        let ours: Box<dyn Side> = Box::new(Ours::new(plan, n_entries, n_vlans));
        done(case.measure(plan, Ok(ours), baseline(plan, n_entries, n_vlans)));
    }
}

/// A VLAN id above an address as in [`MacAddr::to_u64`], in the 8 bytes that the baseline's keys have.
#[derive(Clone, Copy)]
struct Key(u64);

impl Key {
    fn new(vid: u16, mac: MacAddr) -> Key {
        Key(u64::from(vid) << 48 | mac.to_u64())
    }

    #[inline(always)]
    fn vid(self) -> u16 {
        (self.0 >> 48) as u16
    }

    #[inline(always)]
    fn dst(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

/// As a classifier does: all look-ups of a burst first, then their results.
#[inline(always)]
fn look_up(table: &Table, keys: &[Key]) -> [u16; BURST] {
    let mut outputs = [ELSEWHERE; BURST];
    if table.is_far() {
        let mut places = [Place::default(); BURST];
        for (place, key) in places.iter_mut().zip(keys) {
            *place = table.fetch(key.vid(), key.dst());
        }
        let mut any = 0;
        for (output, place) in outputs.iter_mut().zip(&places) {
            *output = table.route_fetched(*place);
            any |= *output;
        }
        if any == ELSEWHERE {
            again(table, keys, &mut outputs);
        }
    } else {
        for (output, key) in outputs.iter_mut().zip(keys) {
            *output = one(table, *key);
        }
    }
    outputs
}

/// Those that were not found.
#[inline(never)]
fn again(table: &Table, keys: &[Key], outputs: &mut [u16; BURST]) {
    for (output, key) in outputs.iter_mut().zip(keys) {
        if *output == ELSEWHERE {
            *output = one(table, *key);
        }
    }
}

#[inline(always)]
fn one(table: &Table, key: Key) -> u16 {
    match table.route(key.vid(), key.dst()) {
        Route::One(output) => output,
        _ => ELSEWHERE,
    }
}

struct Ours {
    table: Table,
    keys: Vec<Key>,
    cpu: usize,
}

impl Ours {
    fn new(plan: &Plan, n_entries: usize, n_vlans: usize) -> Ours {
        let mac = |i: usize| MacAddr([0xfa, 0x16, 0x3e, (i >> 16) as u8, (i >> 8) as u8, i as u8]);
        let vid = |i: usize| if n_vlans > 1 { 1 + (i % n_vlans) as u16 } else { 0 };
        let mut builder = TableBuilder::new();
        for i in 0..n_entries {
            builder.add(Some(vid(i)), Dst::Mac(mac(i)), i % 8).expect("VLAN ids below 4095");
        }
        let keys = (0..LOOKUPS).map(|i| i * STEP % n_entries).map(|n| Key::new(vid(n), mac(n))).collect();
        Ours { table: builder.build(), keys, cpu: plan.backend_cpu }
    }

    fn run(&self, window: Duration) -> Result<Reading> {
        cpu::pin(self.cpu)?;
        let tid = cpu::tid();
        let watched = Watched::thread(std::process::id(), tid);
        let (mut n, mut missed, mut at, mut sum) = (0u64, 0u64, 0, 0u64);
        let (start, first) = (Instant::now(), tsc::now());
        while start.elapsed() < window {
            for _ in 0..16 {
                let outputs = black_box(look_up(&self.table, &self.keys[at..at + BURST]));
                for output in outputs {
                    missed += u64::from(output == ELSEWHERE);
                    sum += u64::from(output);
                }
                n += BURST as u64;
                at = (at + BURST) % LOOKUPS;
            }
        }
        black_box(sum);
        let cycles = (tsc::now() - first) as f64;
        if missed > 0 {
            return Err(format!("{missed} entries were not found"));
        }
        Ok(Reading { value: cycles / n as f64, cycles_per_packet: None, cpu_share: watched.share() })
    }
}

impl Side for Ours {
    fn sample(&mut self, window: Duration) -> Result<Reading> {
        let run = || self.run(window);
        std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| "the look-ups panicked".to_owned())?
    }
}

struct Baseline {
    talker: Talker,
    thread: Watched,
}

fn baseline(plan: &Plan, n_entries: usize, n_vlans: usize) -> Result<Box<dyn Side>> {
    let eal = eal(&format!("0@{}", plan.backend_cpu), 128);
    let talker = dpdk::start("hash", eal, &[n_entries, n_vlans].map(|n| n.to_string()))?;
    let thread = Watched::thread(talker.pid(), talker.pid());
    Ok(Box::new(Baseline { talker, thread }))
}

impl Side for Baseline {
    fn sample(&mut self, window: Duration) -> Result<Reading> {
        self.thread.restart();
        self.talker.say(&window.as_millis().to_string())?;
        let line = self.talker.wait_for(" ")?;
        let value = line.split(' ').next().and_then(|n| n.parse().ok()).ok_or("hash.c said nonsense")?;
        Ok(Reading { value, cycles_per_packet: None, cpu_share: self.thread.share() })
    }
}
