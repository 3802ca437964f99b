//! What the agent needs of the node it wires: plug and unplug, tap and untap, what is live, what exists.
//!
//! Called from the agent's task through tokio's blocking pool, one call at a time, so an
//! implementation may block for as long as a change takes to reach its core.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::keys::Name;

pub use spp_pipeline::topology::Plug;

/// Which of a guest's frames a tap copies, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TapDirection {
    /// Those on their way to the guest.
    In,
    /// Those the guest has sent.
    Out,
}

/// A mirror at work: what passes at one vhost in one direction is copied to another vhost. A tap flow
/// of both directions is two of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tap {
    /// The mirror, by its place in the configuration.
    pub mirror: u32,
    /// What is copied.
    pub direction: TapDirection,
    /// The vhost whose frames are copied.
    pub source: u32,
    /// The vhost that gets the copies.
    pub service: u32,
}

impl Tap {
    /// Is `vhost` at either end?
    pub fn uses(&self, vhost: u32) -> bool {
        self.source == vhost || self.service == vhost
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.direction == TapDirection::In { "to" } else { "from" };
        write!(
            f,
            "mirror {}: frames {word} vhost {} also to vhost {}",
            self.mirror, self.source, self.service
        )
    }
}

/// What there is a limited number of: each has at most one wiring and one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A vhost, by id.
    Vhost(u32),
    /// A mirror, by id.
    Mirror(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Vhost(id) => write!(f, "vhost {id}"),
            Place::Mirror(id) => write!(f, "mirror {id}"),
        }
    }
}

/// One piece of wiring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Wiring {
    /// A guest's place in its network.
    Plug(Plug),
    /// A mirror at work.
    Tap(Tap),
}

impl Wiring {
    /// What it occupies.
    pub fn place(&self) -> Place {
        match self {
            Wiring::Plug(plug) => Place::Vhost(plug.vhost),
            Wiring::Tap(tap) => Place::Mirror(tap.mirror),
        }
    }
}

impl fmt::Display for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wiring::Plug(plug) => plug.fmt(f),
            Wiring::Tap(tap) => tap.fmt(f),
        }
    }
}

impl From<Plug> for Wiring {
    fn from(plug: Plug) -> Wiring {
        Wiring::Plug(plug)
    }
}

impl From<Tap> for Wiring {
    fn from(tap: Tap) -> Wiring {
        Wiring::Tap(tap)
    }
}

/// Why the node did not do what was asked. The text is for operators: it ends up in the log and in
/// `spp status`; the agent tries again with growing pauses whatever the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DataPlaneError(pub String);

/// The node as the agent sees it.
pub trait DataPlane: Send + Sync + 'static {
    /// Wires a vhost, replacing whatever wiring it has in one step. Returns once the entry is live
    /// on its core: the agent tells the control node so right after.
    fn plug(&self, plug: &Plug) -> Result<(), DataPlaneError>;

    /// Undoes the wiring of a vhost. A vhost that is not wired is fine.
    fn unplug(&self, vhost: u32) -> Result<(), DataPlaneError>;

    /// What is wired now.
    fn plugs(&self) -> Result<Vec<Plug>, DataPlaneError>;

    /// Wired vhosts whose guest is yet to come. A driver that is told `up` has its guest started: for these it
    /// may not have heard. A node that can't tell awaits none.
    fn awaited(&self) -> Result<BTreeSet<u32>, DataPlaneError> {
        Ok(BTreeSet::new())
    }

    /// Which vhost ids exist, and under which physical network. Asked once, at start.
    fn layout(&self) -> Layout;

    /// How many mirrors there are; their ids count from 0. Asked once, at start.
    fn n_mirrors(&self) -> u32 {
        0
    }

    /// Puts an idle mirror to work between two wired vhosts. Returns once copies are made.
    fn tap(&self, tap: &Tap) -> Result<(), DataPlaneError> {
        Err(DataPlaneError(format!("this node has no mirror {}", tap.mirror)))
    }

    /// Makes a mirror idle. Returns once no copy is made any more. A mirror that is idle is fine.
    fn untap(&self, _mirror: u32) -> Result<(), DataPlaneError> {
        Ok(())
    }

    /// Which mirrors are at work.
    fn taps(&self) -> Result<Vec<Tap>, DataPlaneError> {
        Ok(Vec::new())
    }
}

/// What a node shows when it is looked at.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// All that is wired.
    pub wirings: Vec<Wiring>,
    /// Wired vhosts whose guest is yet to come.
    pub awaited: BTreeSet<u32>,
}

/// Physical network of every vhost id of the node.
pub type Layout = BTreeMap<u32, Name>;

/// Calls a [`DataPlane`] from async code: on the blocking pool, in turn, each with a deadline.
#[derive(Clone)]
pub(crate) struct Caller {
    dataplane: Arc<dyn DataPlane>,
    turn: Arc<tokio::sync::Mutex<()>>,
    deadline: Duration,
}

impl Caller {
    pub(crate) fn new(dataplane: Arc<dyn DataPlane>, deadline: Duration) -> Caller {
        Caller { dataplane, turn: Arc::default(), deadline }
    }

    /// Runs `call`. A call that misses the deadline keeps its turn until it returns, so that calls
    /// behind a node that hangs fail too instead of piling up threads.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn DataPlane) -> Result<T, DataPlaneError> + Send + 'static,
    ) -> Result<T, DataPlaneError> {
        let work = async {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            let dataplane = Arc::clone(&self.dataplane);
            let done = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                call(&*dataplane)
            });
            done.await.unwrap_or_else(|_| Err(DataPlaneError("the node gave up on the call".into())))
        };
        let late = |_| Err(DataPlaneError(format!("the node did not answer within {:?}", self.deadline)));
        tokio::time::timeout(self.deadline, work).await.unwrap_or_else(late)
    }

    pub(crate) async fn wire(&self, wiring: Wiring) -> Result<(), DataPlaneError> {
        let wire = move |node: &dyn DataPlane| match &wiring {
            Wiring::Plug(plug) => node.plug(plug),
            Wiring::Tap(tap) => node.tap(tap),
        };
        self.call(wire).await
    }

    pub(crate) async fn unwire(&self, place: Place) -> Result<(), DataPlaneError> {
        let unwire = move |node: &dyn DataPlane| match place {
            Place::Vhost(vhost) => node.unplug(vhost),
            Place::Mirror(mirror) => node.untap(mirror),
        };
        self.call(unwire).await
    }

    /// All that is wired, and who is yet to come.
    pub(crate) async fn look(&self) -> Result<Live, DataPlaneError> {
        let look = |node: &dyn DataPlane| {
            let plugs = node.plugs()?.into_iter().map(Wiring::Plug);
            let wirings = plugs.chain(node.taps()?.into_iter().map(Wiring::Tap)).collect();
            Ok(Live { wirings, awaited: node.awaited()? })
        };
        self.call(look).await
    }

    pub(crate) async fn layout(&self) -> Result<(Layout, u32), DataPlaneError> {
        self.call(|node| Ok((node.layout(), node.n_mirrors()))).await
    }
}
