//! Tag operations of edges that a queue half does by itself: a NIC's, whose card strips and inserts tags.
//!
//! Called by the worker thread when a plan comes into force, never for a packet. A half that takes an edge's operation leaves the
//! edge without one, so that the components' loops know nothing of it. What a frame looks like on the wire or to a component does
//! not depend on who does it, nor on the moment it changes hands: a frame that waits at an output belongs to the operation of the
//! plan it came under.

use spp_drivers::dma::PoolCache;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::vlan;

use crate::edge::{RxHalf, Slots, TxHalf};
use crate::plan::{CorePlan, RxEdge, TxEdge, VlanOp};

/// Gives the operations of a plan that is about to come into force to the halves that can do them, and takes back those it no
/// longer has.
pub(crate) fn share_out(plan: &mut CorePlan, slots: &mut Slots, pool: &mut PoolCache) {
    for (slot, half) in slots.rx.iter_mut().enumerate().filter(|(_, half)| half.strips) {
        let edges = plan.components.iter_mut().flat_map(|component| component.work.rx_edges_mut());
        match edges.into_iter().find(|edge| usize::from(edge.slot.0) == slot) {
            Some(edge) if edge.vlan == VlanOp::Del => edge.vlan = VlanOp::None,
            _ => strip_no_more(half),
        }
    }
    for (slot, half) in slots.tx.iter_mut().enumerate().filter(|(_, half)| half.inserts != VlanOp::None) {
        let edges = plan.components.iter_mut().flat_map(|component| component.work.tx_edges_mut());
        match edges.into_iter().find(|edge| usize::from(edge.slot.0) == slot) {
            // As before, for what waits too.
            Some(edge) if edge.vlan == half.inserts => edge.vlan = VlanOp::None,
            _ => insert_no_more(half, pool),
        }
    }
    for component in &mut plan.components {
        component.work.rx_edges_mut().iter_mut().for_each(|edge| offer_rx(edge, slots));
        component.work.tx_edges_mut().iter_mut().for_each(|edge| offer_tx(edge, slots));
    }
}

fn offer_rx(edge: &mut RxEdge, slots: &mut Slots) {
    if edge.vlan != VlanOp::Del {
        return;
    }
    let Some(half) = slots.rx.get_mut(usize::from(edge.slot.0)).filter(|half| !half.strips) else { return };
    half.strips = half.queue.as_mut().is_some_and(|queue| queue.strip_vlan(true));
    if half.strips {
        edge.vlan = VlanOp::None;
    }
}

fn offer_tx(edge: &mut TxEdge, slots: &mut Slots) {
    let VlanOp::Add { vid, pcp } = edge.vlan else { return };
    let Some(half) = slots.tx.get_mut(usize::from(edge.slot.0)) else { return };
    // What waits has been through another plan's operation: it must not meet this one.
    if half.inserts != VlanOp::None || !half.pending.is_empty() {
        return;
    }
    if half.queue.as_mut().is_some_and(|queue| queue.insert_vlan(Some(vlan::tci(vid, pcp)))) {
        half.inserts = std::mem::take(&mut edge.vlan);
    }
}

fn strip_no_more(half: &mut RxHalf) {
    half.strips = false;
    let done = half.queue.as_mut().is_none_or(|queue| queue.strip_vlan(false));
    debug_assert!(done, "a half can always do nothing");
}

/// What waits gets in software what it would have got on its way out.
fn insert_no_more(half: &mut TxHalf, pool: &mut PoolCache) {
    let op = std::mem::take(&mut half.inserts);
    let Some(queue) = &mut half.queue else { return };
    let done = queue.insert_vlan(None);
    debug_assert!(done, "a half can always do nothing");
    for mut packet in std::mem::take(&mut *half.pending).take_all() {
        match vlan::apply(op, &mut packet, pool) {
            Ok(()) => half.pending.push(packet).unwrap_or_else(|packet| pool.free(packet)),
            Err(reason) => {
                pool.free(packet);
                queue.stats().dropped(reason, 1);
            }
        }
    }
}

/// Takes the queue out of its slot, for whoever gets it next as it was when it came.
pub(crate) fn leave_rx(half: &mut RxHalf) -> Option<Box<dyn RxQueue>> {
    if half.strips {
        strip_no_more(half);
    }
    half.queue.take()
}

/// As [`leave_rx`]. Nothing waits any more.
pub(crate) fn leave_tx(half: &mut TxHalf, pool: &mut PoolCache) -> Option<Box<dyn TxQueue>> {
    if half.inserts != VlanOp::None {
        insert_no_more(half, pool);
    }
    half.queue.take()
}
