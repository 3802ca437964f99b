//! The control thread, and the handle through which other threads call its node.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::build::pin_to_masters;
use super::{Node, NodeError, NodeOptions};
use crate::config::NodeConfig;

/// Longest wait for an answer: more than any edit takes with every core at its deadline.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Calls that may wait at once.
const BACKLOG: usize = 256;

enum Order {
    Call(Box<dyn FnOnce(&mut Node) + Send>),
    Stop,
}

/// Why a call got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeGone {
    /// The node has been stopped.
    #[error("the node has stopped")]
    Stopped,
    /// The control thread is busy; the call may still be carried out.
    #[error("the node's control thread did not answer within {} s", CALL_DEADLINE.as_secs())]
    Late,
    /// The call panicked, which is a bug of ours.
    #[error("the call failed inside the node; see the log")]
    Panicked,
}

struct Shared {
    orders: SyncSender<Order>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    /// The last handle stops the node.
    fn drop(&mut self) {
        let _ = self.orders.try_send(Order::Stop);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Dropped on the control thread itself when a call holds the last handle.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// Calls a node from any thread. Cheap to clone; the node stops with the last handle.
#[derive(Clone)]
pub struct NodeHandle(Arc<Shared>);

impl NodeHandle {
    /// Moves a node to a control thread of its own.
    pub fn spawn(node: Node) -> NodeHandle {
        let (orders, inbox) = sync_channel(BACKLOG);
        let builder = std::thread::Builder::new().name("spp-control".to_owned());
        let thread =
            builder.spawn(move || control(node, &inbox)).expect("a process can start one more thread");
        NodeHandle(Arc::new(Shared { orders, thread: Mutex::new(Some(thread)) }))
    }

    /// Starts a node and moves it to its control thread.
    pub fn start(config: NodeConfig, options: NodeOptions) -> Result<NodeHandle, NodeError> {
        Node::start(config, options).map(NodeHandle::spawn)
    }

    /// Runs `work` on the control thread and waits for its result. Not to be called from within `work`.
    pub fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> R + Send + 'static,
    ) -> Result<R, NodeGone> {
        let (answer, result) = sync_channel(1);
        let work = move |node: &mut Node| {
            let done = catch_unwind(AssertUnwindSafe(|| work(node)));
            let _ = answer.send(done);
        };
        self.order(Order::Call(Box::new(work)))?;
        match result.recv_timeout(CALL_DEADLINE) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(NodeGone::Panicked),
            Err(RecvTimeoutError::Timeout) => Err(NodeGone::Late),
            Err(RecvTimeoutError::Disconnected) => Err(NodeGone::Stopped),
        }
    }

    fn order(&self, mut order: Order) -> Result<(), NodeGone> {
        let start = Instant::now();
        loop {
            match self.0.orders.try_send(order) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(NodeGone::Stopped),
                Err(TrySendError::Full(_)) if start.elapsed() >= CALL_DEADLINE => return Err(NodeGone::Late),
                Err(TrySendError::Full(back)) => order = back,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the node and waits until it has stopped. Calls that wait get [`NodeGone::Stopped`].
    pub fn shutdown(&self) {
        let _ = self.order(Order::Stop);
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the control thread had panicked");
        }
    }
}

/// The control thread's life.
fn control(mut node: Node, inbox: &Receiver<Order>) {
    if !node.options.fold_cores {
        pin_to_masters(&node.config);
    }
    let mut due = Instant::now();
    loop {
        match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Order::Call(work)) => {
                work(&mut node);
                // The call may have parked halves.
                due = due.min(Instant::now() + node.tick_interval());
            }
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= due {
            node.tick();
            due = Instant::now() + node.tick_interval();
        }
    }
}
