//! Carries binds and unbinds out against etcd: one async call each, as `spp bind` and `spp unbind` make; a
//! [`ControlNode`] makes many, over one connection.
//!
//! A lost connection is dialled again at the next member until the deadline, except that nothing is waited for
//! when no member answers at all.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Bind, BindError, BindRequest, Step, Unbind};
use crate::connect::{Dialer, Endpoints, Pool};
use crate::keys::{HostKeys, Name, PortId, SlotId};
use crate::link::{Link, Lost, Outcome, Watch};
use crate::schedule::Backoff;
use crate::txn::KeyTxn;
use crate::view::View;

/// How often the member is asked something while an answer is awaited, so that a dead connection is noticed.
const PING_EVERY: Duration = Duration::from_secs(3);

/// How long the agent has to take a bind back before we do.
const AGENT_TAKES_BACK: Duration = Duration::from_secs(2);

/// Longest time for taking a bind back.
const TAKE_BACK_DEADLINE: Duration = Duration::from_secs(8);

/// [`ControlNode::bind`], once.
pub async fn bind(
    endpoints: &Endpoints,
    host: &Name,
    request: BindRequest,
    deadline: Duration,
    stop: impl Future<Output = ()>,
) -> Result<SlotId, BindError> {
    let desk = Desk::new(Dialer::new(endpoints.clone()), host);
    bind_at(desk, Bind::new(host.clone(), request), deadline, stop).await
}

/// [`ControlNode::unbind`], once.
pub async fn unbind(
    endpoints: &Endpoints,
    host: &Name,
    port: &PortId,
    deadline: Duration,
) -> Result<Vec<u32>, BindError> {
    let desk = Desk::new(Dialer::new(endpoints.clone()), host);
    unbind_at(desk, host, port, deadline).await
}

/// Binds and unbinds ports of any hosts over one connection to etcd. Clones share it.
#[derive(Debug, Clone)]
pub struct ControlNode {
    endpoints: Endpoints,
    pool: Pool,
}

impl ControlNode {
    /// Dials with the first call.
    pub fn new(endpoints: Endpoints) -> ControlNode {
        ControlNode { endpoints, pool: Pool::default() }
    }

    /// Binds a port: takes a vhost, asks for the plug, returns once the agent says `up`. After `deadline`, or
    /// when `stop` resolves, what was written is taken back.
    pub async fn bind(
        &self,
        host: &Name,
        request: BindRequest,
        deadline: Duration,
        stop: impl Future<Output = ()>,
    ) -> Result<SlotId, BindError> {
        let desk = Desk::new(self.dialer(), host);
        bind_at(desk, Bind::new(host.clone(), request), deadline, stop).await
    }

    /// Unbinds a port: asks for the unplug, returns once none of its keys is left. The vhosts it had; a port that
    /// is not bound is fine.
    pub async fn unbind(
        &self,
        host: &Name,
        port: &PortId,
        deadline: Duration,
    ) -> Result<Vec<u32>, BindError> {
        unbind_at(Desk::new(self.dialer(), host), host, port, deadline).await
    }

    fn dialer(&self) -> Dialer {
        Dialer::new(self.endpoints.clone()).with_pool(self.pool.clone())
    }
}

async fn unbind_at(
    mut desk: Desk,
    host: &Name,
    port: &PortId,
    deadline: Duration,
) -> Result<Vec<u32>, BindError> {
    let mut unbind = Unbind::new(port.clone());
    match timeout(deadline, desk.unbind(&mut unbind)).await {
        Ok(result) => result,
        Err(_) => Err(BindError::NotUnplugged { host: host.clone() }),
    }
}

async fn bind_at(
    mut desk: Desk,
    mut bind: Bind,
    deadline: Duration,
    stop: impl Future<Output = ()>,
) -> Result<SlotId, BindError> {
    let host = bind.host.clone();
    let until = Instant::now() + deadline;
    let why = tokio::select! {
        result = timeout_at(until, desk.bind(&mut bind)) => match result {
            Ok(result) => return result,
            Err(_) => BindError::NotUp { host },
        },
        () = stop => BindError::Stopped,
    };
    match timeout(TAKE_BACK_DEADLINE, desk.take_back(&bind)).await {
        Ok(Ok(())) => Err(why),
        Ok(Err(reason)) => Err(BindError::NotTakenBack { why: why.into(), reason: reason.to_string() }),
        Err(_) => Err(BindError::NotTakenBack { why: why.into(), reason: "etcd does not answer".into() }),
    }
}

/// Where keys are read and written: a connection that is built up again when it breaks.
struct Desk {
    dialer: Dialer,
    keys: HostKeys,
    pauses: Backoff,
    n_tries_left: usize,
    open: Option<Open>,
}

/// A connection, and the host's keys as they are.
struct Open {
    link: Link,
    view: View,
    watch: Watch,
}

impl Desk {
    fn new(dialer: Dialer, host: &Name) -> Desk {
        let endpoints = dialer.endpoints();
        Desk {
            keys: endpoints.keys(host.clone()),
            pauses: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
            // Names may have an address of either family.
            n_tries_left: 2 * endpoints.len(),
            open: None,
            dialer,
        }
    }

    async fn bind(&mut self, bind: &mut Bind) -> Result<SlotId, BindError> {
        loop {
            let open = self.connected().await?;
            let worked = match bind.step(&open.view)? {
                Step::Done(slot) => return Ok(slot),
                Step::Try(txn) => open.txn(&txn).await.map(|done| bind.answered(done)),
                Step::Wait => open.news().await,
            };
            self.check(worked)?;
        }
    }

    async fn unbind(&mut self, unbind: &mut Unbind) -> Result<Vec<u32>, BindError> {
        loop {
            let open = self.connected().await?;
            let worked = match unbind.step(&open.view) {
                Step::Done(vhosts) => return Ok(vhosts),
                Step::Try(txn) => open.txn(&txn).await.map(drop),
                Step::Wait => open.news().await,
            };
            self.check(worked)?;
        }
    }

    async fn take_back(&mut self, bind: &Bind) -> Result<(), BindError> {
        // The call that was cut short may have left the connection in the middle of something.
        self.open = None;
        self.n_tries_left = usize::MAX;
        let agent_has_until = Instant::now() + AGENT_TAKES_BACK;
        loop {
            let open = self.connected().await?;
            let worked = match bind.ask_back(&open.view) {
                Step::Done(()) => return Ok(()),
                Step::Try(txn) => open.txn(&txn).await.map(drop),
                Step::Wait => match timeout_at(agent_has_until, open.news()).await {
                    Ok(news) => news,
                    Err(_) => match bind.take_back(&open.view) {
                        Some(txn) => open.txn(&txn).await.map(drop),
                        None => return Ok(()),
                    },
                },
            };
            self.check(worked)?;
        }
    }

    /// The connection; dialled if there is none.
    async fn connected(&mut self) -> Result<&mut Open, BindError> {
        while self.open.is_none() {
            match Open::dial(&self.dialer, &self.keys).await {
                Ok(open) => {
                    self.open = Some(open);
                    self.n_tries_left = usize::MAX;
                    self.pauses.reset();
                }
                Err(reason) if self.n_tries_left <= 1 || reason.denied() => {
                    return Err(self.unreachable(reason));
                }
                Err(_) => {
                    self.n_tries_left -= 1;
                    self.dialer.failed();
                    sleep(self.pauses.pause_with_jitter()).await;
                }
            }
        }
        Ok(self.open.as_mut().expect("the loop above ends with a connection"))
    }

    /// After a failure that another connection may mend: dials anew.
    fn check(&mut self, worked: Result<(), Lost>) -> Result<(), BindError> {
        let Err(reason) = worked else { return Ok(()) };
        if reason.denied() {
            return Err(self.unreachable(reason));
        }
        self.open = None;
        self.dialer.failed();
        Ok(())
    }

    fn unreachable(&self, reason: Lost) -> BindError {
        BindError::Unreachable { endpoints: self.dialer.endpoints().to_string(), reason }
    }
}

impl Open {
    async fn dial(dialer: &Dialer, keys: &HostKeys) -> Result<Open, Lost> {
        let mut link = Link::dial(dialer, keys.clone()).await?;
        let mut view = View::default();
        view.relist(link.list().await?);
        let watch = link.watch(view.revision() + 1).await?;
        Ok(Open { link, view, watch })
    }

    /// True when it went through; else the view knows why not.
    async fn txn(&mut self, txn: &KeyTxn) -> Result<bool, Lost> {
        match self.link.txn(txn).await? {
            Outcome::Done(revision) => {
                self.view.apply_txn(txn, revision);
                Ok(true)
            }
            Outcome::Changed(changes) => {
                for change in changes {
                    self.view.apply(change);
                }
                Ok(false)
            }
        }
    }

    /// Waits until some key of the host has changed.
    async fn news(&mut self) -> Result<(), Lost> {
        loop {
            match timeout(PING_EVERY, self.watch.next()).await {
                Ok(changes) => {
                    for change in changes? {
                        self.view.apply(change);
                    }
                    return Ok(());
                }
                Err(_) => drop(self.link.configuration().await?),
            }
        }
    }
}
