//! The plan: what one core does, as immutable data.
//!
//! Compiled by the control thread from the topology, read by the worker. It names queue
//! halves by slot number; the halves themselves live on the worker and move in and out
//! with a [`Change`]. A plan owns no packets and no queues, so dropping one is always safe.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::{DropReason, SharedStats};
/// What an edge does to tags.
pub use spp_drivers::vlan::VlanOp;
use spp_vhost::{Live, MAX_PAIRS, flow};

use crate::stats::ComponentStats;
use crate::table::Table;

/// A receiving half's place on its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RxSlot(pub u16);

/// A sending half's place on its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TxSlot(pub u16);

/// A component's input.
pub struct RxEdge {
    /// Which half to poll. While the slot is empty the component does not poll.
    pub slot: RxSlot,
    /// Applied to each frame before anything else; by the half itself, where it can.
    pub vlan: VlanOp,
    /// The gate: while closed, frames are taken and dropped as `unplugged`.
    pub closed: bool,
    /// Whose packets these are.
    pub from: Origin,
    /// Packets taken, and drops that happened on this side of the component.
    pub stats: SharedStats,
}

/// Whose packets an input brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// The wire's, or several guests', or nobody's in particular.
    #[default]
    Any,
    /// Those of one plugged guest.
    Guest {
        /// Its vhost id.
        id: u16,
        /// Its VLAN, 0 for a flat network.
        vid: u16,
    },
    /// Those of guests to other guests of the same NIC; group frames carry their sender as
    /// [`origin`](spp_drivers::dma::PacketBuf::origin).
    Local,
}

/// A component's output.
pub struct TxEdge {
    /// Which half to send to.
    pub slot: TxSlot,
    /// Applied to each frame just before it is queued for sending, to this edge's own copy; by the half itself, where it can.
    pub vlan: VlanOp,
    /// What happens to frames the half does not take.
    pub full: WhenFull,
    /// The guest, by vhost id, whose packets go here and nobody else's.
    pub guest: Option<u16>,
    /// A classifier's outputs that take these packets in its place, by flow.
    pub sharing: Option<Box<Sharing>>,
    /// Packets the half took, and drops that happened on this side of the component.
    pub stats: SharedStats,
}

impl TxEdge {
    /// True when packets for this output go to its half and no other, without a look at them.
    #[inline(always)]
    pub(crate) fn takes_as_they_are(&self) -> bool {
        self.sharing.is_none() && self.vlan == VlanOp::None
    }
}

/// The outputs that share the packets of one guest.
pub struct Sharing {
    members: Box<[Member]>,
}

/// One of them.
pub struct Member {
    /// Its number among the outputs of the component.
    pub output: u16,
    /// Whether the guest takes packets that go there.
    pub live: Live,
}

/// Most outputs that share a guest.
const MAX_MEMBERS: usize = MAX_PAIRS + 1;

impl Sharing {
    /// Sharing between these.
    ///
    /// # Panics
    /// If there are none, or more than a port has queues.
    pub fn new(members: Vec<Member>) -> Sharing {
        assert!((1..=MAX_MEMBERS).contains(&members.len()), "outputs that share a guest: 1 to {MAX_MEMBERS}");
        Sharing { members: members.into() }
    }

    /// The output of a frame: its flow's, among those that lead to a queue the guest has enabled. With none enabled it is
    /// dropped at the end of the first.
    #[inline(never)]
    pub fn pick(&self, frame: &[u8]) -> u16 {
        let mut live: ArrayVec<u16, MAX_MEMBERS> = ArrayVec::new();
        let alive = self.members.iter().filter(|member| member.live.load(Ordering::Relaxed));
        live.extend(alive.map(|member| member.output));
        // Other bits of the hash than the port chooses among its queues by.
        let nth = || flow::pick(flow::hash(frame).rotate_left(16), live.len());
        match live.as_slice() {
            [] => self.members[0].output,
            [only] => *only,
            several => several[nth()],
        }
    }
}

/// What an output does with frames its queue does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Drops them at once: one slow output must not stop the others (classifier).
    Drop(DropReason),
    /// Keeps them and takes no more input until they are gone (merge, forward); drops them when
    /// the burst has waited this long.
    Wait {
        /// Longest wait, in TSC ticks.
        limit_ticks: u64,
        /// The reason given then.
        then: DropReason,
    },
}

/// What a component does.
// A byte that says which it is, so that a turn need not work it out from the capacity of a list: 6 instructions.
#[repr(u8)]
pub enum Work {
    /// One input to one output.
    Forward {
        /// Input.
        rx: RxEdge,
        /// Output.
        tx: TxEdge,
    },
    /// As `Forward`, from one guest to another: nothing is done to frames and nobody looks at them, so those that can go
    /// straight from the one's memory into the other's do, without a buffer.
    Direct {
        /// Input.
        rx: RxEdge,
        /// Output.
        tx: TxEdge,
    },
    /// Any number of inputs, from one up, to one output.
    Merge {
        /// Inputs, served round robin. With none the component does nothing.
        rx: Vec<RxEdge>,
        /// Output.
        tx: TxEdge,
    },
    /// As `Merge`, with a way inside for what one guest sends to another.
    MergeLocal {
        /// Inputs.
        rx: Vec<RxEdge>,
        /// The wire, and the local ring, which should drop when it is full.
        tx: [TxEdge; 2],
        /// The guests, by VLAN and address; its outputs are vhost ids.
        guests: Table,
    },
    /// The wire's packets, and those guests send to each other, to the outputs that a table chooses.
    Classify {
        /// Inputs.
        rx: Vec<RxEdge>,
        /// Outputs, in the order the table numbers them.
        tx: Vec<TxEdge>,
        /// Which frames go where. While it is empty, or `tx` is, the input is not polled.
        table: Table,
    },
    /// Every packet to two outputs.
    Mirror {
        /// Inputs; there is more than one only while taps change, and none while the last packets leave.
        rx: Vec<RxEdge>,
        /// The original's output, and the copy's, which should drop when it is full.
        tx: [TxEdge; 2],
    },
}

impl Work {
    /// The inputs.
    pub fn rx_edges(&self) -> &[RxEdge] {
        match self {
            Work::Forward { rx, .. } | Work::Direct { rx, .. } => std::slice::from_ref(rx),
            Work::Merge { rx, .. } | Work::MergeLocal { rx, .. } => rx,
            Work::Classify { rx, .. } | Work::Mirror { rx, .. } => rx,
        }
    }

    /// The outputs.
    pub fn tx_edges(&self) -> &[TxEdge] {
        match self {
            Work::Forward { tx, .. } | Work::Direct { tx, .. } | Work::Merge { tx, .. } => {
                std::slice::from_ref(tx)
            }
            Work::Classify { tx, .. } => tx,
            Work::Mirror { tx, .. } | Work::MergeLocal { tx, .. } => tx,
        }
    }

    pub(crate) fn rx_edges_mut(&mut self) -> &mut [RxEdge] {
        match self {
            Work::Forward { rx, .. } | Work::Direct { rx, .. } => std::slice::from_mut(rx),
            Work::Merge { rx, .. } | Work::MergeLocal { rx, .. } => rx,
            Work::Classify { rx, .. } | Work::Mirror { rx, .. } => rx,
        }
    }

    pub(crate) fn tx_edges_mut(&mut self) -> &mut [TxEdge] {
        match self {
            Work::Forward { tx, .. } | Work::Direct { tx, .. } | Work::Merge { tx, .. } => {
                std::slice::from_mut(tx)
            }
            Work::Classify { tx, .. } => tx,
            Work::Mirror { tx, .. } | Work::MergeLocal { tx, .. } => tx,
        }
    }

    /// `forward`, `merge`, `classifier_mac` or `mirror`, as configurations spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Forward { .. } | Work::Direct { .. } => "forward",
            Work::Merge { .. } | Work::MergeLocal { .. } => "merge",
            Work::Classify { .. } => "classifier_mac",
            Work::Mirror { .. } => "mirror",
        }
    }
}

/// One component on one core.
pub struct ComponentPlan {
    /// Its name, for humans.
    pub name: String,
    /// What it does.
    pub work: Work,
    /// Its counters; they outlive plans.
    pub stats: Arc<ComponentStats>,
}

/// A ring with both ends on one core: the components hand bursts over, and the ring only takes what piles up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fused {
    /// The sending half. Its ring has room for a burst at least.
    pub tx: TxSlot,
    /// The receiving half of the same ring.
    pub rx: RxSlot,
}

/// Everything one core does. Immutable once handed over.
#[derive(Default)]
pub struct CorePlan {
    /// Counts plans of the node, for status and acknowledgements.
    pub generation: u64,
    /// Run round robin, one turn each.
    pub components: Vec<ComponentPlan>,
    /// The rings between them.
    pub fused: Vec<Fused>,
}

impl CorePlan {
    /// Puts who sends into a fused ring before who receives from it, as far as the rings make no circle: a packet passes them
    /// all in one turn. Others keep their order.
    pub fn sort_by_flow(&mut self) {
        let mut left = std::mem::take(&mut self.components);
        while !left.is_empty() {
            let sends_to = |from: &ComponentPlan, to: &ComponentPlan| {
                let sends = |fused: &Fused| from.work.tx_edges().iter().any(|edge| edge.slot == fused.tx);
                let takes = |fused: &Fused| to.work.rx_edges().iter().any(|edge| edge.slot == fused.rx);
                self.fused.iter().any(|fused| sends(fused) && takes(fused))
            };
            let waits =
                |n: usize| (0..left.len()).any(|other| other != n && sends_to(&left[other], &left[n]));
            let next = (0..left.len()).find(|&n| !waits(n)).unwrap_or(0);
            self.components.push(left.remove(next));
        }
    }
}

/// A new plan and the queue halves that come and go with it. Halves not named stay where they
/// are, with the frames they hold.
#[derive(Default)]
pub struct Change {
    /// Replaces the plan in force.
    pub plan: CorePlan,
    /// Receiving halves that come.
    pub rx_in: Vec<(RxSlot, Box<dyn RxQueue>)>,
    /// Sending halves that come.
    pub tx_in: Vec<(TxSlot, Box<dyn TxQueue>)>,
    /// Receiving halves that go. They leave before others come, so a slot can be in both lists.
    pub rx_out: Vec<RxSlot>,
    /// Sending halves that go. Frames waiting for one are offered to it a last time.
    pub tx_out: Vec<TxSlot>,
}

/// The acknowledgement of a [`Change`]: no packet is or will be handled by the old plan.
#[derive(Default)]
pub struct Done {
    /// Generation of the plan now in force.
    pub generation: u64,
    /// Receiving halves that left.
    pub rx_out: Vec<(RxSlot, Box<dyn RxQueue>)>,
    /// Sending halves that left.
    pub tx_out: Vec<(TxSlot, Box<dyn TxQueue>)>,
    /// The plan that is no longer in force, freed by whoever drops this.
    pub old: CorePlan,
}

/// The highest slot numbers used, plus one.
pub(crate) struct SlotCounts {
    pub rx: usize,
    pub tx: usize,
}

impl Change {
    /// Slots the worker needs for this change.
    pub(crate) fn slots_needed(&self) -> SlotCounts {
        let works = || self.plan.components.iter().map(|component| &component.work);
        let rx_edges = works().flat_map(Work::rx_edges).map(|edge| edge.slot.0);
        let tx_edges = works().flat_map(Work::tx_edges).map(|edge| edge.slot.0);
        let rx = rx_edges.chain(self.rx_in.iter().map(|half| half.0.0)).max();
        let tx = tx_edges.chain(self.tx_in.iter().map(|half| half.0.0)).max();
        SlotCounts { rx: rx.map_or(0, |n| usize::from(n) + 1), tx: tx.map_or(0, |n| usize::from(n) + 1) }
    }

    /// Refuses plans that only a bug in the compiler of plans can make.
    pub(crate) fn assert_sound(&self) {
        for (n, one) in self.plan.fused.iter().enumerate() {
            let shares = |other: &Fused| one.tx == other.tx || one.rx == other.rx;
            assert!(!self.plan.fused[..n].iter().any(shares), "{one:?} has an end of another fused ring");
        }
        for ComponentPlan { name, work, .. } in &self.plan.components {
            if let Work::Direct { rx, tx } = work {
                assert!(
                    (rx.vlan, tx.vlan) == (VlanOp::None, VlanOp::None),
                    "{name}: who changes tags needs buffers"
                );
            }
            for vlan in work.rx_edges().iter().map(|e| e.vlan).chain(work.tx_edges().iter().map(|e| e.vlan)) {
                if let VlanOp::Add { vid, pcp } = vlan {
                    assert!(
                        vid < 4096 && pcp < 8,
                        "{name}: VLAN {vid} priority {pcp} can't be written in a tag"
                    );
                }
            }
            if let Work::Mirror { tx: [one, other], .. } | Work::MergeLocal { tx: [one, other], .. } = work {
                assert!(one.slot != other.slot, "{name}: its two outputs are one");
            }
            if let Work::Classify { tx, table, .. } = work {
                assert!(
                    table.n_tx() <= tx.len(),
                    "{name}: the table names output {} of {}",
                    table.n_tx(),
                    tx.len()
                );
            }
        }
    }
}
