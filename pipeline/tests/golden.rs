//! Eleven wirings with the frames that the original SPP let in and out, replayed through our components.
//!
//! `golden/packets.json` was recorded from the running system. Where ours must differ, the difference is a row
//! of [`DIFFERENCES`] with its reason; everything else must match frame by frame.

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::table::{Dst, TableBuilder, TableError};
use support::*;

/// A frame that came out: port, tags as recorded, length.
type Out = (String, Vec<String>, usize);

/// (case, frame sent, why, frames out of ours)
type Difference =
    (&'static str, &'static str, &'static str, &'static [(&'static str, &'static [&'static str], usize)]);

const MACS: &str = "cls: A->1, B->2, default->3";
const VLANS: &str = "cls: vlan100/A->1, vlan200/A->2, default->3";
const VLAN_DEFAULT: &str = "cls: vlan100/default->1, vlan100/B->2, default->3";
const SAME_MAC: &str = "cls: same MAC A on 1 and 2, default->3";
const EDGE_VLANS: &str = "cls: vlan 4095/A->1, vlan 0/A ->2, default->3";
const TX_OPS: &str = "cls: tx vlan add 300/pcp5 on vhost:1, tx vlan del on vhost:3; A->1, B->2, default->3";

const Q4: &str = "Q4: VLAN id 4095 is reserved: such frames are dropped, not looked up as untagged";
const Q4_ENTRY: &str = "Q4: an entry for VLAN 4095 is refused, it does not become an untagged one";
const Q5: &str = "Q5: a priority tag is no VLAN: the frame is looked up as untagged";
const Q5_ENTRY: &str =
    "Q5: an entry for VLAN 0 is one for untagged frames, so they and priority-tagged ones find it";
const B6: &str = "B6: each copy of a group frame has its own buffer: vhost:1's tag does not show on vhost:2";

const P0: &[&str] = &["8100:vid=0,pcp=0,dei=0"];
const P3: &[&str] = &["8100:vid=0,pcp=3,dei=0"];
const T300: &[&str] = &["8100:vid=300,pcp=5,dei=0"];
const S100: &[&str] = &["88a8:vid=100,pcp=0,dei=0"];

const DIFFERENCES: &[Difference] = &[
    (MACS, "v4095A", Q4, &[]),
    (MACS, "v4095U", Q4, &[]),
    (VLANS, "v4095A", Q4, &[]),
    (VLANS, "v4095U", Q4, &[]),
    (VLAN_DEFAULT, "v4095A", Q4, &[]),
    (VLAN_DEFAULT, "v4095U", Q4, &[]),
    (SAME_MAC, "v4095A", Q4, &[]),
    (SAME_MAC, "v4095U", Q4, &[]),
    (EDGE_VLANS, "v4095A", Q4, &[]),
    (EDGE_VLANS, "v4095U", Q4, &[]),
    (TX_OPS, "v4095A", Q4, &[]),
    (TX_OPS, "v4095U", Q4, &[]),
    (MACS, "v0A", Q5, &[("vhost:1", P3, 64)]),
    (MACS, "v0bc", Q5, &[("vhost:1", P0, 64), ("vhost:2", P0, 64), ("vhost:3", P0, 64)]),
    (SAME_MAC, "v0A", Q5, &[("vhost:2", P3, 64)]),
    (SAME_MAC, "v0bc", Q5, &[("vhost:1", P0, 64), ("vhost:2", P0, 64), ("vhost:3", P0, 64)]),
    (TX_OPS, "v0A", Q5, &[("vhost:1", T300, 64)]),
    (TX_OPS, "v0bc", Q5, &[("vhost:1", T300, 64), ("vhost:2", P0, 64), ("vhost:3", &[], 60)]),
    (TX_OPS, "bc", B6, &[("vhost:1", T300, 68), ("vhost:2", &[], 64), ("vhost:3", &[], 64)]),
    (TX_OPS, "mc", B6, &[("vhost:1", T300, 68), ("vhost:2", &[], 64), ("vhost:3", &[], 64)]),
    (EDGE_VLANS, "uA", Q5_ENTRY, &[("vhost:2", &[], 64)]),
    (EDGE_VLANS, "sA", Q5_ENTRY, &[("vhost:2", S100, 64)]),
    (EDGE_VLANS, "bc", Q4_ENTRY, &[("vhost:2", &[], 64), ("vhost:3", &[], 64)]),
    (EDGE_VLANS, "mc", Q4_ENTRY, &[("vhost:2", &[], 64), ("vhost:3", &[], 64)]),
];

/// The wiring of one case with rings as ports.
struct Wiring {
    engine: Engine,
    sources: Vec<(String, Source)>,
    sinks: Vec<(String, Sink)>,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn vlan_op(port: &Value) -> VlanOp {
    let number = |key: &str| port["vlan"][key].as_u64().unwrap();
    match text(&port["vlan"], "operation") {
        "add" => VlanOp::Add { vid: number("id") as u16, pcp: number("pcp") as u8 },
        "del" => VlanOp::Del,
        "none" => VlanOp::None,
        other => panic!("VLAN operation {other}"),
    }
}

/// Entries as they were made: (VLAN, destination, port). The recorded status shows them, except those that the
/// original hides (same MAC twice) or shows otherwise (VLAN 4095), which the case's name tells.
fn entries(case: &Value) -> Vec<(Option<u16>, Dst, String)> {
    let destination = |text: &str| if text == "default" { Dst::Default } else { Dst::Mac(mac(text)) };
    let name = text(case, "case");
    let mut entries = Vec::new();
    for entry in list(&case["status"], "classifier_table") {
        let (value, port) = (text(entry, "value"), text(entry, "port").to_owned());
        if name == EDGE_VLANS && port == "vhost:1" {
            entries.push((Some(4095), destination(value), port));
            continue;
        }
        entries.push(match value.split_once('/') {
            Some((vid, dst)) => (Some(vid.parse().unwrap()), destination(dst), port),
            None => (None, destination(value), port),
        });
    }
    if name == SAME_MAC {
        entries.push((None, Dst::Mac(mac("02:00:00:00:00:0a")), "vhost:1".to_owned()));
    }
    entries
}

fn wire(case: &Value, pool: &spp_drivers::dma::Pool) -> Wiring {
    let component_json = &list(&case["status"], "components")[0];
    let (mut sources, mut sinks) = (Vec::new(), Vec::new());
    let mut change = Change::default();
    let (mut rx, mut tx) = (Vec::new(), Vec::new());
    for (slot, port) in (0..).zip(list(component_json, "rx_port")) {
        let (outside, queue) = source(256);
        sources.push((text(port, "port").to_owned(), outside));
        change.rx_in.push((RxSlot(slot), queue));
        rx.push(rx_edge(slot, vlan_op(port)));
    }
    for (slot, port) in (0..).zip(list(component_json, "tx_port")) {
        let (outside, queue) = sink(256);
        sinks.push((text(port, "port").to_owned(), outside));
        change.tx_in.push((TxSlot(slot), queue));
        tx.push(tx_edge(slot, vlan_op(port), DROP));
    }
    let work = match text(component_json, "type") {
        "classifier" => {
            let mut builder = TableBuilder::new();
            for (vid, dst, port) in entries(case) {
                let output = sinks.iter().position(|sink| sink.0 == port).unwrap();
                let added = builder.add(vid, dst, output);
                assert_eq!(added.is_err(), vid == Some(4095), "{vid:?} {added:?}");
            }
            Work::Classify { rx, tx, table: builder.build() }
        }
        "forward" => Work::Forward { rx: rx.pop().unwrap(), tx: tx.pop().unwrap() },
        "merge" => Work::Merge { rx, tx: tx.pop().unwrap() },
        other => panic!("component {other}"),
    };
    let mut engine = Engine::new(pool);
    change.plan = plan(1, vec![component(text(component_json, "name"), work)]);
    engine.change(change);
    Wiring { engine, sources, sinks }
}

/// "8100:vid=100,pcp=3,dei=1" to (TPID, TCI).
fn parse_tag(text: &str) -> Tag {
    let (tpid, fields) = text.split_once(':').unwrap();
    let field: BTreeMap<&str, u16> =
        fields.split(',').map(|f| f.split_once('=').unwrap()).map(|(k, v)| (k, v.parse().unwrap())).collect();
    (u16::from_str_radix(tpid, 16).unwrap(), field["pcp"] << 13 | field["dei"] << 12 | field["vid"])
}

fn print_tag((tpid, tci): Tag) -> String {
    format!("{tpid:04x}:vid={},pcp={},dei={}", tci & 0xfff, tci >> 13, tci >> 12 & 1)
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

/// What ours must give for one sent frame.
fn expected(case: &str, sent: &Value) -> Vec<Out> {
    let id = text(sent, "id");
    if let Some(difference) = DIFFERENCES.iter().find(|d| d.0 == case && d.1 == id) {
        let own = |out: &(&str, &[&str], usize)| {
            (out.0.to_owned(), out.1.iter().map(|tag| tag.to_string()).collect(), out.2)
        };
        return difference.3.iter().map(own).collect();
    }
    recorded(sent)
}

fn recorded(sent: &Value) -> Vec<Out> {
    let mut outs: Vec<Out> = list(sent, "out")
        .iter()
        .map(|out| {
            (text(out, "port").to_owned(), strings(out, "tags"), out["len"].as_u64().unwrap() as usize)
        })
        .collect();
    outs.sort();
    outs
}

/// Payload, destination and source of what came out are those of what went in, whatever happened to tags.
fn assert_same_contents(input: &[u8], n_tags_in: usize, output: &[u8], n_tags_out: usize) {
    assert_eq!(input[..12], output[..12], "addresses");
    assert_eq!(input[12 + 4 * n_tags_in..], output[12 + 4 * n_tags_out..], "payload");
}

fn replay(case: &Value) -> usize {
    let pool = pool(1024);
    let mut cache = pool.cache();
    let name = text(case, "case");
    let mut wiring = wire(case, &pool);
    for (mark, sent) in list(case, "sent").iter().enumerate() {
        let id = text(sent, "id");
        let tags: Vec<Tag> = strings(&sent["frame"], "tags").iter().map(|t| parse_tag(t)).collect();
        let len = sent["frame"]["len"].as_u64().unwrap() as usize;
        let input = frame(mac(text(&sent["frame"], "dst")), &tags, len, mark as u32);
        assert_eq!(input.len(), len);
        // The one case with two inputs names them in the frame's id: p0, p2.
        let from = id.strip_prefix('p').map_or("vhost:0".to_owned(), |n| format!("vhost:{n}"));
        let source = wiring.sources.iter_mut().find(|source| source.0 == from).unwrap();
        assert!(source.1.send(&mut cache, &input));
        wiring.engine.turn();
        let mut outs: Vec<Out> = Vec::new();
        for (port, sink) in &mut wiring.sinks {
            for output in sink.drain(&mut cache) {
                let (tags_out, mark_out) = tags_and_mark(&output);
                assert_eq!(mark_out, mark as u32);
                assert_same_contents(&input, tags.len(), &output, tags_out.len());
                outs.push((port.clone(), tags_out.into_iter().map(print_tag).collect(), output.len()));
            }
        }
        outs.sort();
        assert_eq!(outs, expected(name, sent), "{name}: {id}");
    }
    drop((wiring, cache));
    assert_eq!(pool.counts().out, 0, "{name}: buffers come back");
    list(case, "sent").len()
}

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("golden/packets.json")).unwrap()
}

#[test]
fn recorded_wirings_give_the_recorded_frames_but_for_the_listed_differences() {
    let cases = cases();
    assert_eq!(cases.len(), 11);
    let n_frames: usize = cases.iter().map(replay).sum();
    assert!(n_frames > 150, "{n_frames}");
}

#[test]
fn every_listed_difference_is_one_and_names_its_reason() {
    let cases = cases();
    for (name, id, why, outs) in DIFFERENCES {
        let case = cases.iter().find(|case| text(case, "case") == *name).unwrap_or_else(|| panic!("{name}"));
        let sent = list(case, "sent").iter().find(|sent| text(sent, "id") == *id).unwrap();
        assert_ne!(recorded(sent), expected(name, sent), "{name}: {id} is no difference: {outs:?}");
        assert!(why.starts_with('Q') || why.starts_with('B'));
    }
}

#[test]
fn vlan_4095_has_no_entries() {
    let refused = TableBuilder::new().add(Some(4095), Dst::Default, 0);
    assert_eq!(refused, Err(TableError::BadVlan(4095)));
}
