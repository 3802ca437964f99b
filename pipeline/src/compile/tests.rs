use proptest::prelude::*;

use super::*;
use crate::config::{MirrorConfig, NodeConfig};
use crate::topology::{Plug, Stage, Tap, Way};
use spp_drivers::MacAddr;

fn topology() -> Topology {
    let mut config = NodeConfig::from_mappings("00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02").unwrap();
    let mirror = |core, ring| MirrorConfig { core, ports: [PortName::Ring(ring), PortName::Ring(ring + 1)] };
    config.mirrors = vec![mirror(20, 8), mirror(21, 10), mirror(21, 12)];
    Topology::from_config(&config, true).unwrap()
}

fn wiring(topology: &Topology) -> Wiring {
    Wiring::compile(topology, &BTreeSet::new())
}

fn plug(vhost: u32, vlan: Option<u16>) -> Plug {
    Plug { vhost, mac: MacAddr([2, 0, 0, 0, 0, vhost as u8]), vlan }
}

/// The worker threads, as far as queue halves go: refuses what a real one would choke on.
#[derive(Default)]
struct Workers {
    on_core: BTreeMap<usize, BTreeSet<PortEnd>>,
    runs: Wiring,
}

impl Workers {
    fn take(&mut self, step: &Step) {
        let have = self.on_core.entry(step.core).or_default();
        for end in &step.take {
            assert!(have.remove(end), "{end:?} leaves core {} without having been there", step.core);
        }
        for end in &step.give {
            let elsewhere = self.on_core.iter().find(|(_, ends)| ends.contains(end));
            assert_eq!(elsewhere, None, "{end:?} would be on two cores");
            self.on_core.entry(step.core).or_default().insert(*end);
        }
        let needs: BTreeSet<PortEnd> = step.components.iter().flat_map(Running::ends).collect();
        assert_eq!(self.on_core[&step.core], needs, "a core has exactly what it polls");
        self.runs.apply(step);
    }
}

#[test]
fn default_topology_runs_one_component_on_each_core() {
    let wiring = wiring(&topology());
    assert_eq!(wiring.cores.len(), 12);
    assert!(wiring.cores.values().all(|components| components.len() == 1));
    assert_eq!(wiring.on(6)[0].name, "classifier");
}

#[test]
fn folded_topology_runs_each_way_of_a_nic_on_one_core_with_both_ends_of_its_rings() {
    let mut topology = topology();
    let folded = |topology: &Topology| Wiring::compile_folded(topology, &BTreeSet::new());
    let names = |wiring: &Wiring, core| wiring.on(core).iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let wiring = folded(&topology);
    assert_eq!(names(&wiring, 2), ["forward_0_tx", "forward_1_tx", "classifier"]);
    assert_eq!(names(&wiring, 3), ["forward_0_rx", "forward_1_rx", "merger"]);
    assert_eq!(wiring.cores.len(), 4, "two NICs");
    for core in wiring.cores.keys() {
        let ends = wiring.ends_on(*core);
        let rings = ends.iter().filter(|(_, port)| matches!(port, PortName::Ring(_)));
        assert_eq!(rings.clone().count(), 4);
        assert!(
            rings
                .clone()
                .all(|(_, ring)| [Direction::Rx, Direction::Tx].iter().all(|&d| ends.contains(&(d, *ring))))
        );
    }
    let forward = wiring.on(3)[0].id;
    assert_eq!(wiring.core_of(forward), Some(3));
    (0..2).for_each(|vhost| topology.plug(&plug(vhost, None)).unwrap());
    topology.tap(&Tap { mirror: 0, way: Way::Out, source: 0, dest: 1 }).unwrap();
    topology.set_tap_stage(0, Stage::On);
    let tapped = folded(&topology);
    assert_eq!(tapped.core_of(forward), Some(3), "a tap moves nothing but what goes through it");
}

#[test]
fn vlan_plug_opens_the_merger_then_the_forwarder_then_the_classifier() {
    let mut topology = topology();
    let before = wiring(&topology);
    topology.plug(&plug(0, Some(100))).unwrap();
    let steps = steps(&before, &wiring(&topology));
    let names: Vec<_> = steps.iter().map(|step| step.components[0].name.as_str()).collect();
    assert_eq!(names, ["merger", "forward_0_rx", "classifier"]);
    assert!(steps.iter().all(|step| step.take.is_empty() && step.give.is_empty()));
}

#[test]
fn unplug_closes_the_classifier_first_and_each_core_changes_once() {
    let mut topology = topology();
    topology.plug(&plug(0, Some(100))).unwrap();
    let before = wiring(&topology);
    topology.unplug(0).unwrap();
    let steps = steps(&before, &wiring(&topology));
    let names: Vec<_> = steps.iter().map(|step| step.components[0].name.as_str()).collect();
    assert_eq!(names, ["classifier", "forward_0_rx", "merger"]);
    // Tag and gate change together: no frame of the VLAN gets out untagged.
    let ring = steps[2].components[0].rx[0];
    assert_eq!((ring.closed, ring.vlan), (true, VlanOp::None));
}

#[test]
fn replug_to_another_vlan_takes_the_old_entry_out_before_the_new_tag_is_in() {
    let mut topology = topology();
    topology.plug(&plug(0, Some(100))).unwrap();
    let before = wiring(&topology);
    topology.plug(&plug(0, Some(200))).unwrap();
    let steps = steps(&before, &wiring(&topology));
    let names: Vec<_> = steps.iter().map(|step| step.components[0].name.as_str()).collect();
    assert_eq!(names, ["classifier", "merger", "classifier"]);
    assert!(steps[0].components[0].entries.is_empty());
}

/// The ports of a component of a core: those it takes from, those it sends to.
fn ports(wiring: &Wiring, core: usize) -> (String, String) {
    let [component] = wiring.on(core) else { return Default::default() };
    let text = |ports: &mut dyn Iterator<Item = PortName>| {
        ports.map(|port| port.to_string()).collect::<Vec<_>>().join(" ")
    };
    (text(&mut component.rx.iter().map(|rx| rx.port)), text(&mut component.tx.iter().map(|tx| tx.port)))
}

fn pair(rx: &str, tx: &str) -> (String, String) {
    (rx.to_owned(), tx.to_owned())
}

#[test]
fn tap_puts_a_mirror_in_front_of_the_forwarder_without_stopping_it() {
    let mut topology = topology();
    for vhost in [0, 3] {
        topology.plug(&plug(vhost, Some(100))).unwrap();
    }
    let before = wiring(&topology);
    let tap = Tap { mirror: 0, way: Way::In, source: 0, dest: 3 };
    topology.tap(&tap).unwrap();
    let open = wiring(&topology);
    assert_eq!(ports(&open, 2), pair("ring:9 ring:0", "vhost:0"));
    assert_eq!(ports(&open, 12), pair("ring:6 ring:8", "vhost:3"));
    assert_eq!(open.on(20), []);
    topology.set_tap_stage(0, Stage::On);
    let on = wiring(&topology);
    assert_eq!(ports(&on, 2), pair("ring:9", "vhost:0"));
    assert_eq!(ports(&on, 20), pair("ring:0", "ring:9 ring:8"));
    topology.set_tap_stage(0, Stage::Draining);
    let draining = wiring(&topology);
    assert_eq!(
        (ports(&draining, 20), ports(&draining, 2)),
        (pair("", "ring:9 ring:8"), pair("ring:9", "vhost:0"))
    );
    // No step leaves the forwarder without its place, where frames may wait for the guest.
    for (from, to) in [(&before, &open), (&open, &on), (&on, &draining), (&draining, &open), (&open, &before)]
    {
        for step in steps(from, to) {
            assert!(
                step.core != 2 || step.components.iter().any(|component| component.name == "forward_0_tx")
            );
            assert!(!step.take.contains(&(Direction::Tx, PortName::Vhost(0))));
        }
    }
    topology.untap(0);
    assert_eq!(wiring(&topology), before);
}

#[test]
fn taps_of_both_ways_and_on_top_of_each_other_leave_nothing_behind() {
    let mut topology = topology();
    for vhost in 0..4 {
        topology.plug(&plug(vhost, Some(100))).unwrap();
    }
    let before = wiring(&topology);
    for (mirror, way, dest) in [(0, Way::In, 3), (1, Way::Out, 3), (2, Way::Out, 1)] {
        topology.tap(&Tap { mirror, way, source: 0, dest }).unwrap();
        topology.set_tap_stage(mirror, Stage::On);
    }
    let on = wiring(&topology);
    assert_eq!(ports(&on, 3), pair("ring:13", "ring:1"));
    assert_eq!(ports(&on, 12), pair("ring:6 ring:8 ring:10", "vhost:3"));
    let mirrors: Vec<_> = on.on(21).iter().map(|mirror| mirror.rx[0].port.to_string()).collect();
    assert_eq!(mirrors, ["vhost:0", "ring:11"], "the second watches what the first passes on");
    // A plug with another VLAN keeps the taps; the first one goes, the second stays.
    topology.plug(&plug(0, Some(200))).unwrap();
    topology.untap(0);
    topology.untap(1);
    assert_eq!(ports(&wiring(&topology), 21), pair("vhost:0", "ring:13 ring:12"));
    topology.plug(&plug(0, Some(100))).unwrap();
    topology.unplug(1).unwrap();
    topology.plug(&plug(1, Some(100))).unwrap();
    assert_eq!((wiring(&topology), topology.taps().len()), (before, 0));
}

#[test]
fn taps_that_cannot_be_are_refused_in_words() {
    let mut topology = topology();
    for vhost in 0..3 {
        topology.plug(&plug(vhost, None)).unwrap();
    }
    let good = Tap { mirror: 0, way: Way::In, source: 0, dest: 1 };
    topology.tap(&good).unwrap();
    topology.tap(&good).unwrap();
    let free = Tap { mirror: 1, ..good };
    for (tap, words) in [
        (Tap { dest: 3, ..free }, "vhost:3 is not plugged"),
        (Tap { dest: 9, ..free }, "no vhost:9"),
        (Tap { dest: 0, ..free }, "can't watch itself"),
        (Tap { mirror: 3, ..good }, "there is no mirror 3"),
        (Tap { source: 2, ..good }, "mirror 0 is in use (mirror 0: packets to vhost:0 also to vhost:1)"),
    ] {
        let error = topology.tap(&tap).unwrap_err();
        assert!(error.what.contains(words), "{error}");
    }
    topology.component_stop(1, "forward_1_tx").unwrap();
    let error = topology.tap(&Tap { source: 1, dest: 2, ..free }).unwrap_err();
    assert!(error.what.contains("no forward or merge component sends to vhost:1"), "{error}");
    let ring = topology.port_attach(1, "merger", PortName::Ring(9), Direction::Rx, VlanOp::None).unwrap_err();
    assert!(ring.what.contains("set aside for mirror 0"), "{ring}");
    assert_eq!(topology.taps().len(), 1);
}

#[test]
fn nothing_to_do_is_no_step() {
    let wiring = wiring(&topology());
    assert_eq!(steps(&wiring, &wiring), []);
}

#[test]
fn missing_nic_stops_only_the_components_that_use_it() {
    let topology = topology();
    let missing = BTreeSet::from([PortName::Phy(0)]);
    let steps = steps(&wiring(&topology), &Wiring::compile(&topology, &missing));
    assert_eq!(steps.iter().map(|step| step.core).collect::<Vec<_>>(), [6, 7]);
    assert!(steps.iter().all(|step| step.components.is_empty() && !step.take.is_empty()));
}

#[test]
fn new_component_of_the_same_name_is_another_one() {
    let mut topology = topology();
    let before = wiring(&topology);
    topology.component_stop(1, "forward_0_tx").unwrap();
    topology.component_start(1, "forward_0_tx", 2, ComponentKind::Forward).unwrap();
    topology.port_attach(1, "forward_0_tx", PortName::Ring(0), Direction::Rx, VlanOp::None).unwrap();
    topology.port_attach(1, "forward_0_tx", PortName::Vhost(0), Direction::Tx, VlanOp::None).unwrap();
    assert_ne!(wiring(&topology).on(2)[0].id, before.on(2)[0].id);
}

#[derive(Debug, Clone)]
enum Edit {
    Start(u32, u8, usize, ComponentKind),
    Stop(u32, u8),
    Attach(u32, u8, PortName, Direction, VlanOp),
    Detach(u32, u8, PortName, Direction),
    Add(u32, Entry),
    Del(u32, Entry),
    Plug(Plug),
    Unplug(u32),
    Tap(Tap, u8),
    Untap(u32),
    NicDown(u32),
    NicUp(u32),
}

const NAMES: [&str; 9] =
    ["forward_0_tx", "forward_0_rx", "forward_1_tx", "forward_1_rx", "classifier", "merger", "x", "y", "z"];

fn port() -> impl Strategy<Value = PortName> {
    prop_oneof![
        (0..3u32).prop_map(PortName::Phy),
        (0..5u32).prop_map(PortName::Vhost),
        (0..5u32, 0..3u16).prop_map(|(vhost, queue)| PortName::VhostQueue(vhost, queue)),
        (0..9u32).prop_map(PortName::Ring)
    ]
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Rx), Just(Direction::Tx)]
}

fn vlan() -> impl Strategy<Value = VlanOp> {
    prop_oneof![Just(VlanOp::None), Just(VlanOp::Del), (1..4u16).prop_map(|vid| VlanOp::Add { vid, pcp: 0 })]
}

fn kind() -> impl Strategy<Value = ComponentKind> {
    prop_oneof![Just(ComponentKind::Forward), Just(ComponentKind::Merge), Just(ComponentKind::Classifier)]
}

fn entry() -> impl Strategy<Value = Entry> {
    let dst =
        (0..4u8).prop_map(|n| if n == 0 { Dst::Default } else { Dst::Mac(MacAddr([2, 0, 0, 0, 0, n])) });
    (proptest::option::of(1..3u16), dst, port()).prop_map(|(vid, dst, port)| Entry { vid, dst, port })
}

fn tap() -> impl Strategy<Value = Tap> {
    let way = prop_oneof![Just(Way::In), Just(Way::Out)];
    (0..4u32, way, 0..5u32, 0..5u32).prop_map(|(mirror, way, source, dest)| Tap { mirror, way, source, dest })
}

fn edit() -> impl Strategy<Value = Edit> {
    let (vf, name) = (|| 1..3u32, || 0..NAMES.len() as u8);
    prop_oneof![
        2 => (vf(), name(), 1..16usize, kind()).prop_map(|(v, n, c, k)| Edit::Start(v, n, c, k)),
        1 => (vf(), name()).prop_map(|(v, n)| Edit::Stop(v, n)),
        4 => (vf(), name(), port(), direction(), vlan()).prop_map(|(v, n, p, d, o)| Edit::Attach(v, n, p, d, o)),
        2 => (vf(), name(), port(), direction()).prop_map(|(v, n, p, d)| Edit::Detach(v, n, p, d)),
        2 => (vf(), entry()).prop_map(|(v, e)| Edit::Add(v, e)),
        1 => (vf(), entry()).prop_map(|(v, e)| Edit::Del(v, e)),
        2 => (0..5u32, proptest::option::of(0..3u16)).prop_map(|(v, vlan)| Edit::Plug(plug(v, vlan))),
        1 => (0..5u32).prop_map(Edit::Unplug),
        3 => (tap(), 0..3u8).prop_map(|(tap, stage)| Edit::Tap(tap, stage)),
        1 => (0..3u32).prop_map(Edit::Untap),
        1 => (0..2u32).prop_map(Edit::NicDown),
        1 => (0..2u32).prop_map(Edit::NicUp),
    ]
}

fn edited(topology: &mut Topology, missing: &mut BTreeSet<PortName>, edit: Edit) {
    let name = |n: u8| NAMES[usize::from(n)];
    let before = topology.clone();
    let result = match edit {
        Edit::Start(vf, n, core, kind) => topology.component_start(vf, name(n), core, kind),
        Edit::Stop(vf, n) => topology.component_stop(vf, name(n)),
        Edit::Attach(vf, n, port, direction, vlan) => {
            topology.port_attach(vf, name(n), port, direction, vlan)
        }
        Edit::Detach(vf, n, port, direction) => topology.port_detach(vf, name(n), port, direction),
        Edit::Add(vf, entry) => topology.table_add(vf, entry),
        Edit::Del(vf, entry) => topology.table_del(vf, entry),
        Edit::Plug(plug) => topology.plug(&plug),
        Edit::Unplug(vhost) => topology.unplug(vhost),
        Edit::Tap(tap, stage) => topology.tap(&tap).map(|()| {
            topology.set_tap_stage(tap.mirror, [Stage::Open, Stage::On, Stage::Draining][usize::from(stage)]);
        }),
        Edit::Untap(mirror) => {
            topology.untap(mirror);
            Ok(())
        }
        Edit::NicDown(n) => {
            missing.insert(PortName::Phy(n));
            Ok(())
        }
        Edit::NicUp(n) => {
            missing.remove(&PortName::Phy(n));
            Ok(())
        }
    };
    if result.is_err() {
        assert_eq!(*topology, before, "a refused edit changes nothing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any edits the cores run what a fresh start would run, and on the way no end of a
    /// port was ever on two cores.
    #[test]
    fn any_edits_end_in_the_wiring_of_a_fresh_start(edits in proptest::collection::vec((edit(), any::<bool>()), 1..60), folded in any::<bool>()) {
        let (mut topology, mut missing) = (topology(), BTreeSet::new());
        let mut workers = Workers::default();
        let compile = if folded { Wiring::compile_folded } else { Wiring::compile };
        for (edit, applied_at_once) in edits {
            edited(&mut topology, &mut missing, edit);
            if applied_at_once {
                let wanted = compile(&topology, &missing);
                steps(&workers.runs, &wanted).iter().for_each(|step| workers.take(step));
                prop_assert_eq!(&workers.runs, &wanted);
            }
        }
    }

    /// While steps are taken, no core lets through what neither the old nor the new wiring does.
    #[test]
    fn no_step_opens_what_both_wirings_keep_closed(edits in proptest::collection::vec(edit(), 1..40), more in proptest::collection::vec(edit(), 1..10), folded in any::<bool>()) {
        let (mut topology, mut missing) = (topology(), BTreeSet::new());
        let compile = if folded { Wiring::compile_folded } else { Wiring::compile };
        edits.into_iter().for_each(|edit| edited(&mut topology, &mut missing, edit));
        let old = compile(&topology, &missing);
        more.into_iter().for_each(|edit| edited(&mut topology, &mut missing, edit));
        let new = compile(&topology, &missing);
        let find = |wiring: &Wiring, id| wiring.cores.values().flatten().find(|c| c.id == id).cloned();
        for step in steps(&old, &new) {
            for component in &step.components {
                let (before, after) = (find(&old, component.id), find(&new, component.id));
                let known = |entry| [&before, &after].into_iter().flatten().any(|c: &Running| c.entries.contains(entry));
                prop_assert!(component.entries.iter().all(known));
                for rx in component.rx.iter().filter(|rx| !rx.closed) {
                    let open = |c: &Running| c.rx.iter().any(|other| other.port == rx.port && !other.closed);
                    prop_assert!([&before, &after].into_iter().flatten().any(open));
                }
            }
        }
    }
}

#[test]
fn forward_is_direct_between_two_guests_whose_frames_it_leaves_alone() {
    use PortName::{Phy, Ring, Vhost, VhostQueue};
    let add = VlanOp::Add { vid: 1, pcp: 0 };
    let is_direct = |kind, from, rx_vlan, to, tx_vlan| {
        let rx = Input { port: from, vlan: rx_vlan, closed: false, guest: None };
        let tx = Output { port: to, vlan: tx_vlan, guest: None, share: None };
        let name = "f".to_owned();
        Running { id: ComponentId(0), name, kind, rx: vec![rx], tx: vec![tx], entries: Vec::new() }
            .is_direct()
    };
    let (forward, none) = (ComponentKind::Forward, VlanOp::None);
    assert!(is_direct(forward, Vhost(0), none, Vhost(1), none));
    assert!(is_direct(forward, VhostQueue(0, 1), none, Vhost(0), none));
    for (from, to) in [(Vhost(0), Ring(1)), (Ring(1), Vhost(0)), (Phy(0), Vhost(0)), (Ring(0), Ring(1))] {
        assert!(!is_direct(forward, from, none, to, none), "{from} to {to}");
    }
    assert!(!is_direct(forward, Vhost(0), add, Vhost(1), none));
    assert!(!is_direct(forward, Vhost(0), none, Vhost(1), VlanOp::Del));
    assert!(!is_direct(ComponentKind::Merge, Vhost(0), none, Vhost(1), none));
}
