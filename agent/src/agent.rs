//! The agent's task: keeps a connection, keeps the view, carries plans out, for ever.
//!
//! One async task owns everything here. Nothing of what etcd does ends it: any failure is a lost
//! connection, a pause of at most 2 s, and a new listing. It may be dropped at any point and started
//! again; what it was about to do follows from the keys and the node.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::configuration::Configuration;
use crate::connect::{Dialer, Endpoints};
use crate::dataplane::{Caller, DataPlane, DataPlaneError};
use crate::keys::{HostKeys, Name};
use crate::link::{Link, Lost, Watch};
use crate::machine::{Answer, Command, Machine};
use crate::reconcile::{Action, Reconciler, Timing};
use crate::status::StatusCell;

/// What the agent is to serve.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The etcd cluster.
    pub endpoints: Endpoints,
    /// This host's name in the keys.
    pub host: Name,
    /// The configuration the node was built from; a change at run time is reported.
    pub started_with: Option<Configuration>,
    /// The reconciler's times.
    pub timing: Timing,
    /// Longest time for one call into the node.
    pub node_deadline: Duration,
}

impl AgentConfig {
    /// With the usual times.
    pub fn new(endpoints: Endpoints, host: Name, started_with: Option<Configuration>) -> AgentConfig {
        let node_deadline = Duration::from_secs(10);
        AgentConfig { endpoints, host, started_with, timing: Timing::default(), node_deadline }
    }
}

/// Serves plug and unplug until `shutdown` resolves; then returns at once, whatever it was doing.
pub async fn run(
    config: AgentConfig,
    dataplane: Arc<dyn DataPlane>,
    status: StatusCell,
    shutdown: impl Future<Output = ()>,
) {
    tokio::select! {
        biased;
        () = shutdown => tracing::info!("agent stops"),
        never = serve(config, dataplane, status) => match never {},
    }
}

async fn serve(
    config: AgentConfig,
    dataplane: Arc<dyn DataPlane>,
    status: StatusCell,
) -> std::convert::Infallible {
    let node = Caller::new(dataplane, config.node_deadline);
    let started = Instant::now();
    let (layout, n_mirrors) = loop {
        match node.layout().await {
            Ok(found) => break found,
            Err(error) => status.update(|status| status.node_error = Some(error.to_string())),
        }
        tokio::time::sleep(Machine::NODE_RETRY).await;
    };
    let seed = RandomState::new().hash_one(0u8);
    let keys = config.endpoints.keys(config.host);
    let reconciler = Reconciler::new(layout, config.timing).with_mirrors(n_mirrors);
    let machine = Machine::new(keys.clone(), reconciler, config.started_with, status, seed);
    let dialer = Dialer::new(config.endpoints);
    let mut agent = Agent { machine, dialer, keys, node, started };
    loop {
        let lost = match unless_it_panics(agent.session()).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        };
        agent.lost(&lost);
    }
}

/// The machine and what it commands.
struct Agent {
    machine: Machine,
    dialer: Dialer,
    keys: HostKeys,
    node: Caller,
    started: Instant,
}

/// A connection with its watch.
#[derive(Default)]
struct Session {
    link: Option<Link>,
    watch: Option<Watch>,
}

impl Session {
    fn link(&mut self) -> &mut Link {
        self.link.as_mut().expect("the machine dials before it asks")
    }
}

impl Agent {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// One connection, from dialling to loss.
    async fn session(&mut self) -> Result<std::convert::Infallible, Lost> {
        let mut session = Session::default();
        loop {
            let command = self.machine.next();
            let answer = self.carry_out(command, &mut session).await?;
            let now = self.now();
            self.machine.answered(answer, now)?;
        }
    }

    async fn carry_out(&mut self, command: Command, session: &mut Session) -> Result<Answer, Lost> {
        Ok(match command {
            Command::Dial => {
                session.link = Some(Link::dial(&self.dialer, self.keys.clone()).await?);
                Answer::Dialled(self.dialer.endpoint())
            }
            Command::List => Answer::Listed(session.link().list().await?),
            Command::Watch(revision) => {
                session.watch = Some(session.link().watch(revision).await?);
                Answer::Watching
            }
            Command::Ping => Answer::Revision(session.link().configuration().await?.1),
            Command::Look => Answer::Live(self.node.wirings().await),
            Command::Act(action) => match action.txn() {
                Some(txn) => Answer::Txn(session.link().txn(txn).await?),
                None => Answer::Node(self.call(&action).await),
            },
            Command::Wait(until) => {
                let until = self.started + until;
                match &mut session.watch {
                    Some(watch) => tokio::select! {
                        news = watch.next() => Answer::News(news?),
                        () = tokio::time::sleep_until(until) => Answer::Woken,
                    },
                    None => {
                        tokio::time::sleep_until(until).await;
                        Answer::Woken
                    }
                }
            }
        })
    }

    /// Calls into the node for an action that is no transaction.
    async fn call(&mut self, action: &Action) -> Result<(), DataPlaneError> {
        match action {
            Action::Wire { wiring, .. } => self.node.wire(*wiring).await,
            Action::Unwire { place, .. } => self.node.unwire(*place).await,
            Action::PutUp { .. } | Action::Clean { .. } | Action::Release { .. } => {
                unreachable!("{action:?} is a transaction")
            }
        }
    }

    fn lost(&mut self, lost: &Lost) {
        let now = self.now();
        let stood = self.machine.lost(lost, self.dialer.endpoint(), now);
        if !stood || lost.member_fails() {
            self.dialer.failed();
        }
    }
}

/// A panic in the session (the client library has some for answers no etcd should give) ends the
/// connection like any other fault; keys and node are looked at anew afterwards.
async fn unless_it_panics<T>(session: impl Future<Output = Result<T, Lost>>) -> Result<T, Lost> {
    let mut session = std::pin::pin!(session);
    std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| session.as_mut().poll(context));
        catch_unwind(poll).unwrap_or_else(|panic| {
            let text =
                panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            Poll::Ready(Err(Lost::Panicked(text.unwrap_or("no reason given").to_string())))
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_in_a_session_is_a_lost_connection() {
        let session = async {
            tokio::task::yield_now().await;
            panic!("unknown event {}", 7);
            #[allow(unreachable_code)]
            Ok(())
        };
        let lost = unless_it_panics(session).await.unwrap_err();
        assert_eq!(lost.to_string(), "the session panicked: unknown event 7");
    }
}
