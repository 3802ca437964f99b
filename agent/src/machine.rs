//! The agent without its I/O: what to do next, given all that was answered so far.
//!
//! [`Machine::next`] names one [`Command`], its owner carries it out and tells the [`Answer`], or that
//! the connection is gone; there is never more than one command under way. The agent's task does
//! that with a real etcd and a real node, the simulation with models of both, so what is simulated
//! is what runs. Everything in here may be lost between any two commands: it follows again from the
//! keys and the node.

use std::collections::VecDeque;
use std::time::Duration;

use crate::configuration::Configuration;
use crate::dataplane::{DataPlaneError, Live};
use crate::journal::Journal;
use crate::keys::{HostKeys, Key};
use crate::link::{Lost, Outcome};
use crate::reconcile::{Action, Reconciler};
use crate::schedule::Backoff;
use crate::status::StatusCell;
use crate::view::{Change, History, Listing, View};

/// How often the member is pinged: a connection that died without a word is found this soon.
const PING_EVERY: Duration = Duration::from_secs(3);

/// How often everything is listed again although the watch runs: a change the watch failed to
/// deliver is found this soon.
pub(crate) const RELIST_EVERY: Duration = Duration::from_secs(60);

/// Plans carried out in a row before the watch is looked at again.
const MAX_ROUNDS: usize = 16;

/// The pause after that many plans in a row.
const BREATH: Duration = Duration::from_millis(50);

/// A connection that held this long was a good one: the next outage starts with short pauses.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// How soon a node that did not answer is asked again.
const NODE_RETRY: Duration = Duration::from_secs(1);

/// First and longest pause before etcd is dialled again. The pauses are random up to these, so that the
/// nodes of a site, which all lose a restarted etcd in the same instant, come back spread out.
const REDIAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));

/// One thing for the owner to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Build up a connection.
    Dial,
    /// All watched keys at one revision.
    List,
    /// Watch from this revision on.
    Watch(i64),
    /// The store's revision: also shows that the member is there and has its quorum.
    Ping,
    /// What is wired?
    Look,
    /// Carry this out: a transaction if it has one, else a call into the node.
    Act(Action),
    /// Nothing before this time, unless the watch delivers something.
    Wait(Duration),
}

/// What came of a [`Command`]. A connection that fails is told by [`Machine::lost`] instead.
#[derive(Debug)]
pub enum Answer {
    /// To [`Command::Dial`]: connected to this member.
    Dialled(String),
    /// To [`Command::List`].
    Listed(Listing),
    /// To [`Command::Watch`].
    Watching,
    /// To [`Command::Ping`].
    Revision(i64),
    /// To [`Command::Look`].
    Live(Result<Live, DataPlaneError>),
    /// To an action that is a transaction.
    Txn(Outcome),
    /// To an action that is a call into the node.
    Node(Result<(), DataPlaneError>),
    /// To [`Command::Wait`]: the watch delivered.
    News(Vec<Change>),
    /// To [`Command::Wait`]: the time has come.
    Woken,
}

/// Where the agent is.
#[derive(Debug)]
enum Phase {
    /// Without a connection until then.
    Away(Duration),
    Dialling,
    /// `fresh`: the connection is new, and its watch yet to be started.
    Listing {
        fresh: bool,
    },
    /// The listing breaks with history: what is wired now must be known before it is believed.
    Broken {
        fresh: bool,
        listing: Listing,
    },
    StartingWatch,
    Pinging,
    /// Asking what is wired, to plan.
    Looking,
    /// In the middle of a plan.
    Acting(VecDeque<Action>),
    /// Nothing to do before this time.
    Idle(Duration),
}

/// The agent's mind.
#[derive(Debug)]
pub struct Machine {
    reconciler: Reconciler,
    view: View,
    journal: Journal,
    started_with: Option<Configuration>,
    phase: Phase,
    pauses: Backoff,
    random: u64,
    connected_at: Option<Duration>,
    n_rounds: usize,
    ping_at: Duration,
    relist_at: Duration,
}

impl Machine {
    /// Of the host with these keys; `seed` spreads its pauses.
    pub fn new(
        keys: HostKeys,
        reconciler: Reconciler,
        started_with: Option<Configuration>,
        status: StatusCell,
        seed: u64,
    ) -> Machine {
        Machine {
            reconciler,
            view: View::default(),
            journal: Journal::new(keys, status),
            started_with,
            phase: Phase::Dialling,
            pauses: Backoff::new(REDIAL.0, REDIAL.1),
            random: seed | 1,
            connected_at: None,
            n_rounds: 0,
            ping_at: Duration::ZERO,
            relist_at: Duration::ZERO,
        }
    }

    /// What to do now. Asked twice without an answer in between, it says the same.
    pub fn next(&self) -> Command {
        match &self.phase {
            Phase::Away(until) => Command::Wait(*until),
            Phase::Dialling => Command::Dial,
            Phase::Listing { .. } => Command::List,
            Phase::StartingWatch => Command::Watch(self.view.revision() + 1),
            Phase::Pinging => Command::Ping,
            Phase::Broken { .. } | Phase::Looking => Command::Look,
            Phase::Acting(actions) => {
                Command::Act(actions.front().expect("a plan under way has an action left").clone())
            }
            Phase::Idle(wake_at) => Command::Wait((*wake_at).min(self.ping_at)),
        }
    }

    /// Takes the answer to [`Machine::next`]. An error means that the connection is of no use any more:
    /// drop it, and say so with [`Machine::lost`].
    pub fn answered(&mut self, answer: Answer, now: Duration) -> Result<(), Lost> {
        let phase = std::mem::replace(&mut self.phase, Phase::Looking);
        self.phase = match (phase, answer) {
            (Phase::Away(_), Answer::Woken) => Phase::Dialling,
            (Phase::Dialling, Answer::Dialled(endpoint)) => {
                self.journal.dialled(endpoint);
                Phase::Listing { fresh: true }
            }
            (Phase::Listing { fresh }, Answer::Listed(listing)) => self.listed(listing, fresh, now),
            (Phase::Broken { fresh, listing }, Answer::Live(live)) => {
                let (before, revision) = (self.view.revision(), listing.revision);
                let live = live.map_err(|error| {
                    self.journal.node_failed(&error);
                    Lost::WentBack { before, now: revision }
                })?;
                self.reconciler.history_broken(revision, &live.wirings);
                self.take(listing, fresh, now)
            }
            (Phase::StartingWatch, Answer::Watching) => {
                self.connected_at = Some(now);
                self.ping_at = now + PING_EVERY;
                self.journal.connected(self.view.revision());
                self.look_anew()
            }
            (Phase::Pinging, Answer::Revision(revision)) => {
                let before = self.view.revision();
                if revision < before {
                    return Err(Lost::WentBack { before, now: revision });
                }
                self.ping_at = now + PING_EVERY;
                self.look_anew()
            }
            (Phase::Looking, Answer::Live(live)) => self.plan(live, now),
            (Phase::Acting(mut actions), answer) => {
                let action = actions.pop_front().expect("a plan under way has an action left");
                let as_planned = self.acted(action, answer, now);
                if as_planned && !actions.is_empty() { Phase::Acting(actions) } else { Phase::Looking }
            }
            (Phase::Idle(_), Answer::News(changes)) => {
                for change in changes {
                    self.view.apply(change);
                }
                self.look_anew()
            }
            (Phase::Idle(_), Answer::Woken) if now < self.ping_at => self.look_anew(),
            (Phase::Idle(_), Answer::Woken) if now < self.relist_at => Phase::Pinging,
            (Phase::Idle(_), Answer::Woken) => Phase::Listing { fresh: false },
            (phase, answer) => unreachable!("{answer:?} answers nothing asked in {phase:?}"),
        };
        Ok(())
    }

    /// The connection is gone, or could not be built up. True: it had stood, the same member is worth
    /// another try.
    pub fn lost(&mut self, lost: &Lost, endpoint: String, now: Duration) -> bool {
        self.journal.lost(lost, endpoint);
        let stood = self.connected_at.take();
        if stood.is_some_and(|at| now.saturating_sub(at) >= GOOD_SESSION) {
            self.pauses.reset();
        }
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.phase = Phase::Away(now + self.pauses.random_pause((self.random >> 32) as u32));
        stood.is_some()
    }

    /// The node could not be asked for its layout; the machine is yet to be made.
    pub(crate) const NODE_RETRY: Duration = NODE_RETRY;

    /// Has it nothing to do but to wait for news or time?
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle(_))
    }

    /// A new look at everything, with all rounds ahead.
    fn look_anew(&mut self) -> Phase {
        self.n_rounds = 0;
        Phase::Looking
    }

    fn listed(&mut self, listing: Listing, fresh: bool, now: Duration) -> Phase {
        if self.view.history(&listing) == History::Broken {
            self.journal.history_broken(self.view.revision(), listing.revision);
            return Phase::Broken { fresh, listing };
        }
        self.take(listing, fresh, now)
    }

    fn take(&mut self, listing: Listing, fresh: bool, now: Duration) -> Phase {
        self.journal.odd_keys(listing.n_odd_keys);
        self.view.relist(listing);
        self.relist_at = now + RELIST_EVERY;
        if fresh {
            self.reconciler.restart_grace();
            return Phase::StartingWatch;
        }
        self.ping_at = now + PING_EVERY;
        self.look_anew()
    }

    fn plan(&mut self, live: Result<Live, DataPlaneError>, now: Duration) -> Phase {
        let live = match live {
            Ok(live) => live,
            Err(error) => {
                self.journal.node_failed(&error);
                return Phase::Idle(now + NODE_RETRY);
            }
        };
        self.reconciler.guests_awaited(live.awaited);
        let plan = self.reconciler.plan(now, &self.view, &live.wirings);
        let changed = self.configuration_changed();
        self.journal.publish(&plan, &self.view, changed, now);
        if plan.actions.is_empty() {
            return Phase::Idle(plan.wake_at.unwrap_or(now + RELIST_EVERY));
        }
        self.n_rounds += 1;
        if self.n_rounds > MAX_ROUNDS {
            return Phase::Idle(now + BREATH);
        }
        Phase::Acting(plan.actions.into())
    }

    /// Takes an action's answer. False: things are not as planned, plan again.
    fn acted(&mut self, action: Action, answer: Answer, now: Duration) -> bool {
        let done = match answer {
            Answer::Txn(outcome) => self.transacted(&action, outcome),
            Answer::Node(result) => {
                self.journal.called(&action, &result, now);
                let done = result.is_ok();
                let result = result.map_err(|error| error.to_string());
                match &action {
                    Action::Wire { subject, wiring } => self.reconciler.wired(subject, wiring, result, now),
                    Action::Unwire { place, .. } => self.reconciler.unwired(*place, result, now),
                    _ => unreachable!("{action:?} is no call into the node"),
                }
                return done;
            }
            answer => unreachable!("{answer:?} answers no action"),
        };
        self.journal.transacted(&action, done, now);
        if let (true, Action::PutUp { subject, .. }) = (done, &action) {
            self.reconciler.said_up(subject, now);
        }
        done
    }

    fn transacted(&mut self, action: &Action, outcome: Outcome) -> bool {
        let txn = action.txn().expect("only transactions are answered as such");
        match outcome {
            Outcome::Done(revision) => self.view.apply_txn(txn, revision),
            Outcome::Changed(changes) => {
                for change in changes {
                    self.view.apply(change);
                }
                return false;
            }
        }
        true
    }

    /// Is the configuration another than the node was built from? Its revision then; None within: gone.
    fn configuration_changed(&self) -> Option<Option<i64>> {
        let started_with = self.started_with.as_ref()?;
        match self.view.get(&Key::Configuration) {
            Some((json, revision)) => (json != started_with.json).then_some(Some(revision)),
            None => Some(None),
        }
    }
}
