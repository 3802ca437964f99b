//! Components that share a core.

use spp_pipeline::names::{ComponentKind, PortName};
use spp_pipeline::node::Node;
use spp_pipeline::plan::VlanOp;
use spp_pipeline::topology::Direction;

use crate::support::*;

/// The fused rings, by number.
fn fused(node: &mut Node) -> Vec<usize> {
    let rings = node.status().rings;
    rings.iter().enumerate().filter(|(_, ring)| ring.fused).map(|(number, _)| number).collect()
}

#[test]
fn ring_is_fused_while_its_components_share_a_core_and_no_frame_is_lost_when_one_moves() {
    let [apart, site] = Site::apart_and_fused();
    assert_eq!(fused(&mut apart.one_nic()), [0usize; 0]);
    let mut node = site.one_nic();
    assert_eq!(fused(&mut node), [0, 1, 2, 3]);
    node.plug(&plug(0, Some(5))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let mut next = 0;
    for core in [3, 2, 4, 2] {
        // What the guest sends meanwhile waits in its own queue; what is in the node is in the ring.
        let sent = next..next + 100;
        sent.clone().for_each(|id| send(&mut vm, &frame(mac(0xee), None, id)));
        node.component_stop(1, "forward_0_rx").unwrap();
        node.component_start(1, "forward_0_rx", core, ComponentKind::Forward).unwrap();
        let port = |node: &mut Node, port, direction| {
            node.port_attach(1, "forward_0_rx", port, direction, VlanOp::None).unwrap();
        };
        port(&mut node, PortName::Ring(1), Direction::Tx);
        port(&mut node, PortName::Vhost(0), Direction::Rx);
        let expected: &[usize] = if core == 2 { &[0, 1, 2, 3] } else { &[0, 2, 3] };
        assert_eq!(fused(&mut node), expected);
        for id in sent.clone() {
            assert_eq!(receive_id(&mut wire), (Some(5), id));
        }
        next = sent.end;
    }
    let rings = node.status().rings;
    assert_eq!((rings[1].packets, rings[1].depth), (u64::from(next), 0), "a fused ring counts too");
    let pool = node.pool().clone();
    drop(node);
    assert_eq!(pool.counts().out, 0);
}
