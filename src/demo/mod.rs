//! `spp demo`: the main job on embedded defaults, with nothing but this binary.
//!
//! A node with a software wire, two guests behind real vhost-user sockets, one flat and one on a VLAN,
//! plugged through the API like anybody's; traffic both ways, every frame accounted for. [`world`] builds it,
//! [`traffic`] moves frames, [`ledger`] keeps the books, [`show`] shows them.

mod frames;
mod ledger;
mod show;
mod traffic;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use spp_drivers::MacAddr;
use spp_pipeline::status::NodeStatus;

use crate::cli::Demo;
use crate::fail::Failure;
use crate::output;
use ledger::{Flow, Ledger, Station};
use show::View;
use traffic::Traffic;
use world::World;

const WIRE: usize = 0;
const FLAT: usize = 1;
const TAGGED: usize = 2;
const VLAN: u16 = 100;
/// A VLAN nobody is plugged into.
const OTHER_VLAN: u16 = 200;
const STATIONS: [Station; 3] = [
    Station { name: "wire", mac: MacAddr([2, 0, 0, 0, 0, 1]) },
    Station { name: "flat guest", mac: MacAddr([2, 0, 0, 0, 0, 0xa]) },
    Station { name: "VLAN guest", mac: MacAddr([2, 0, 0, 0, 0, 0xb]) },
];
/// Sender, receiver, tag sent, tag that must arrive: guests never see tags, the wire sees VLAN 100.
const FLOWS: [(usize, usize, Option<u16>, Option<u16>); 4] = [
    (WIRE, FLAT, None, None),
    (FLAT, WIRE, None, None),
    (WIRE, TAGGED, Some(VLAN), None),
    (TAGGED, WIRE, None, Some(VLAN)),
];
/// Frames from the wire under a tag their receiver does not live under.
const STRAYS: [(usize, Option<u16>); 4] =
    [(FLAT, Some(VLAN)), (TAGGED, None), (TAGGED, Some(OTHER_VLAN)), (FLAT, Some(OTHER_VLAN))];
/// How long counters may take to show frames that are to be dropped.
const DROPS_DEADLINE: Duration = Duration::from_secs(5);
/// Frames sent each way after the guests are unplugged.
const N_AFTER_UNPLUG: u64 = 8;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Outcome {
    ok: bool,
    /// What is wrong, in words.
    faults: Vec<String>,
    seconds: f64,
    sent: u64,
    received: u64,
    /// Frames sent to be dropped; all were.
    dropped: Expected,
    #[serde(flatten)]
    ledger: Ledger,
    /// The node's status at the end of the traffic.
    node: NodeStatus,
}

/// `spp demo`
pub fn run(args: &Demo) -> Result<(), Failure> {
    let mut view = View::choose(args.json);
    let mut world = World::build(&mut view)?;
    let outcome = play(&mut world, &mut view, Duration::from_secs(args.seconds));
    world.end();
    let outcome = outcome?;
    if args.json {
        output::json(&outcome)?;
    } else {
        view.outcome(&outcome)?;
    }
    match outcome.ok {
        true => Ok(()),
        false => Err(Failure::failed(format!("the demo failed: {}", outcome.faults.join("; ")))),
    }
}

fn play(world: &mut World, view: &mut View, duration: Duration) -> Result<Outcome, Failure> {
    world.plug(FLAT, None)?;
    world.plug(TAGGED, Some(VLAN))?;
    world.wait_until_running()?;

    let mut ledger = Ledger::new(&STATIONS, &FLOWS);
    let mut dropped = Expected::default();
    let started = Instant::now();
    pass_traffic(world, view, &mut ledger, &mut dropped, duration)?;
    let seconds = started.elapsed().as_secs_f64();
    let node = settled(world, &mut ledger, &dropped)?;
    let mut faults = dropped.faults(&node);
    if world.interrupted() {
        faults.push("interrupted".to_owned());
    } else {
        faults.extend(check_unplug(world, &mut ledger, dropped)?);
    }
    ledger.close();
    faults.extend(ledger.faults());
    let sum = |of: fn(&Flow) -> u64| ledger.flows.iter().map(of).sum();
    let (sent, received) = (sum(|flow| flow.sent), sum(|flow| flow.received));
    Ok(Outcome { ok: faults.is_empty(), faults, seconds, sent, received, dropped, ledger, node })
}

/// Traffic for `duration`, a look at the node every second, then what is still on its way.
fn pass_traffic(
    world: &mut World,
    view: &mut View,
    ledger: &mut Ledger,
    dropped: &mut Expected,
    duration: Duration,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut before = (world.status()?, started);
    while started.elapsed() < duration && !world.interrupted() {
        let tick = (Instant::now() + Duration::from_secs(1)).min(started + duration);
        let mut traffic = Traffic::new(world.ports());
        for (to, vlan) in STRAYS {
            dropped.unknown_destination += u64::from(traffic.stray(ledger, WIRE, to, vlan));
        }
        traffic.run(ledger, tick);
        let now = (world.status()?, Instant::now());
        view.tick(ledger, started.elapsed(), &now.0, (&before.0, now.1 - before.1))?;
        before = now;
    }
    Traffic::new(world.ports()).drain(ledger);
    Ok(())
}

/// An unplugged guest is cut off both ways: what is sent now is dropped, with the right reason. One at a
/// time: with no guest left, frames from the wire too would be dropped as unplugged.
fn check_unplug(
    world: &mut World,
    ledger: &mut Ledger,
    mut dropped: Expected,
) -> Result<Vec<String>, Failure> {
    let mut faults = Vec::new();
    for (guest, vlan) in [(FLAT, None), (TAGGED, Some(VLAN))] {
        world.unplug(guest)?;
        let mut traffic = Traffic::new(world.ports());
        for _ in 0..N_AFTER_UNPLUG {
            dropped.unknown_destination += u64::from(traffic.stray(ledger, WIRE, guest, vlan));
            dropped.unplugged += u64::from(traffic.stray(ledger, guest, WIRE, None));
        }
        let node = settled(world, ledger, &dropped)?;
        faults.extend(dropped.faults(&node));
        world.plug(guest, vlan)?;
    }
    Ok(faults)
}

/// The node's status once it has counted the drops that are to come, or at the deadline. What
/// arrives meanwhile is booked.
fn settled(world: &mut World, ledger: &mut Ledger, dropped: &Expected) -> Result<NodeStatus, Failure> {
    let deadline = Instant::now() + DROPS_DEADLINE;
    loop {
        Traffic::new(world.ports()).listen(ledger, Duration::from_millis(20));
        let status = world.status()?;
        if dropped.faults(&status).is_empty() || Instant::now() > deadline {
            return Ok(status);
        }
    }
}

/// Drops that must be counted, and no others.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Expected {
    /// Frames from the wire for nobody here.
    unknown_destination: u64,
    /// Frames from guests that are not plugged.
    unplugged: u64,
}

impl Expected {
    fn faults(&self, node: &NodeStatus) -> Vec<String> {
        let mut counted = drops(node);
        let mut faults = Vec::new();
        for (reason, expected) in
            [("unknown_destination", self.unknown_destination), ("unplugged", self.unplugged)]
        {
            let n = counted.remove(reason).unwrap_or(0);
            if n != expected {
                faults.push(format!("{n} drops counted as {reason}, {expected} were to be"));
            }
        }
        faults.extend(counted.iter().map(|(reason, n)| format!("{n} frames dropped: {reason}")));
        faults
    }
}

/// All drops of a node by reason; the edges of a component repeat the component's.
fn drops(node: &NodeStatus) -> BTreeMap<&str, u64> {
    let mut sums = BTreeMap::new();
    for vf in &node.vfs {
        let components = vf.components.iter().map(|component| &component.drops);
        let vhosts = vf.vhosts.iter().flat_map(|vhost| [&vhost.to_guest.drops, &vhost.from_guest.drops]);
        let all = components.chain(vhosts).chain([&vf.nic.rx.drops, &vf.nic.tx.drops]);
        for (reason, n) in all.flatten() {
            *sums.entry(reason.as_str()).or_default() += n;
        }
    }
    sums
}
