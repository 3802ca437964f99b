//! The agent's task: keeps a connection, keeps the view, carries plans out, for ever.
//!
//! One async task owns everything here. Nothing of what etcd does ends it: any failure is a lost
//! connection, a pause of at most 3 s, and a new listing. It may be dropped at any point and started
//! again; what it was about to do follows from the keys and the node. [`run`] does that when it fails.

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
use crate::schedule::Backoff;
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

/// Panics in a row after which what the agent knows is thrown away with it.
const PANICS_MAX: u32 = 3;

/// First and longest pause before the agent is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// An agent that worked this long was a good one: the next restart comes soon.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// Serves plug and unplug until `shutdown` resolves; then returns at once, whatever it was doing.
pub async fn run(
    config: AgentConfig,
    dataplane: Arc<dyn DataPlane>,
    status: StatusCell,
    shutdown: impl Future<Output = ()>,
) {
    // One for all lives: a call that a dead agent has made still has its turn before the next one's first.
    let node = Caller::new(dataplane, config.node_deadline);
    let life = || serve(config.clone(), node.clone(), status.clone());
    tokio::select! {
        biased;
        () = shutdown => tracing::info!("agent stops"),
        never = supervise(life, &status, RESTART) => match never {},
    }
}

/// Why an agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Somebody asked for it.
    Asked,
    /// It can't go on like this.
    Fatal(String),
}

/// One agent after the other, for ever. Whatever ends one costs no wiring: the next one finds out what
/// is wired and what is wanted, and repairs the differences.
async fn supervise<L: Future<Output = End>>(
    life: impl Fn() -> L,
    status: &StatusCell,
    (first, longest): (Duration, Duration),
) -> std::convert::Infallible {
    let mut pauses = Backoff::new(first, longest);
    loop {
        let began = Instant::now();
        let end = tokio::select! {
            () = status.restart_asked() => End::Asked,
            end = unless_it_panics(async { Ok(life().await) }) => {
                end.unwrap_or_else(|lost| End::Fatal(lost.to_string()))
            }
        };
        let (why, pause) = match end {
            End::Asked => {
                tracing::info!("the agent starts anew, as asked");
                ("asked to".to_string(), Duration::ZERO)
            }
            End::Fatal(why) => {
                if began.elapsed() >= GOOD_LIFE {
                    pauses.reset();
                }
                let pause = pauses.pause();
                tracing::error!(
                    why,
                    pause_ms = pause.as_millis() as u64,
                    "the agent failed and is started anew"
                );
                (why, pause)
            }
        };
        status.update(|status| {
            status.etcd.connected = false;
            status.n_restarts += 1;
            status.last_restart = Some(why);
        });
        tokio::time::sleep(pause).await;
    }
}

/// One life of an agent.
async fn serve(config: AgentConfig, node: Caller, status: StatusCell) -> End {
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
    let mut n_panics = 0;
    loop {
        let lost = match unless_it_panics(agent.session()).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        };
        match &lost {
            Lost::Panicked(why) if n_panics + 1 == PANICS_MAX => return End::Fatal(why.clone()),
            Lost::Panicked(_) => n_panics += 1,
            _ => n_panics = 0,
        }
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
            Command::Look => Answer::Live(self.node.look().await),
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

    #[tokio::test]
    async fn an_agent_that_panics_or_gives_up_is_started_again_and_counted() {
        let status = StatusCell::default();
        let n_lives = std::cell::Cell::new(0);
        let life = || async {
            n_lives.set(n_lives.get() + 1);
            match n_lives.get() {
                1 => panic!("life {}", 1),
                2 => End::Fatal("no way".into()),
                _ => std::future::pending().await,
            }
        };
        let pauses = (Duration::from_millis(1), Duration::from_millis(2));
        let until_asked = async {
            while n_lives.get() < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(status.get().n_restarts, 2);
            assert_eq!(status.get().last_restart.as_deref(), Some("no way"));
            status.ask_restart();
            while n_lives.get() < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            never = supervise(life, &status, pauses) => match never {},
            done = tokio::time::timeout(Duration::from_secs(20), until_asked) => done.expect("it is restarted"),
        }
        assert_eq!(status.get().n_restarts, 3);
        assert_eq!(status.get().last_restart.as_deref(), Some("asked to"));
    }
}
