//! What the agent needs of the node it wires: plug, unplug, what is live, what exists.
//!
//! Called from the agent's task through tokio's blocking pool, one call at a time, so an
//! implementation may block for as long as a change takes to reach its core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::keys::Name;

pub use spp_pipeline::topology::Plug;

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

    /// Which vhost ids exist, and under which physical network. Asked once, at start.
    fn layout(&self) -> Layout;
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

    pub(crate) async fn plug(&self, plug: Plug) -> Result<(), DataPlaneError> {
        self.call(move |node| node.plug(&plug)).await
    }

    pub(crate) async fn unplug(&self, vhost: u32) -> Result<(), DataPlaneError> {
        self.call(move |node| node.unplug(vhost)).await
    }

    pub(crate) async fn plugs(&self) -> Result<Vec<Plug>, DataPlaneError> {
        self.call(|node| node.plugs()).await
    }

    pub(crate) async fn layout(&self) -> Result<Layout, DataPlaneError> {
        self.call(|node| Ok(node.layout())).await
    }
}
