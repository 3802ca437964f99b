//! The world: one store, one node, one agent at a time, and time.

mod drivers;
mod invariants;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dataplane::{DataPlaneError, Live, Wiring};
use crate::keys::{HostKeys, PortId, Subject};
use crate::link::{Lost, Outcome};
use crate::machine::{Answer, Command, Machine};
use crate::reconcile::{Action, Reconciler, Timing};
use crate::status::StatusCell;
use crate::testing::{N_MIRRORS, Store, layout, name};
use crate::txn::KeyTxn;
use crate::view::Change;

use super::model::{Asked, NodeModel, Watcher};
use super::planted::Planted;

/// What becomes of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Works,
    /// The agent crashes before the command does anything; true: its node with it.
    CrashBefore(bool),
    /// The command does its work, nobody is there for the answer.
    CrashAfter(bool),
    /// The agent crashes; its transaction is on its way and arrives some commands of the next agent later.
    CrashInFlight,
    /// As [`Fate::CrashBefore`] and [`Fate::CrashAfter`], and nobody starts the agent again before the
    /// control node's next step.
    StaysDown(bool),
    /// The connection breaks before etcd gets it; a call into the node is refused.
    FailsBefore,
    /// It is done, and the answer lost; the node did it, and says it did not.
    FailsAfter,
}

/// Every way a command can end badly.
pub const FATES: [Fate; 9] = [
    Fate::CrashBefore(false),
    Fate::CrashBefore(true),
    Fate::CrashAfter(false),
    Fate::CrashAfter(true),
    Fate::CrashInFlight,
    Fate::StaysDown(false),
    Fate::StaysDown(true),
    Fate::FailsBefore,
    Fate::FailsAfter,
];

/// After how many commands of its successor a dead agent's transaction arrives.
const LATE_BY: usize = 3;

/// Commands an agent may need to come to rest, for four ports and all they can go through.
const REST_WITHIN: usize = 200;

/// How long the dust settles in [`World::settle`]: all graces are up and all that was lost is listed.
pub const SETTLE: Duration = Duration::from_secs(150);

pub struct World {
    pub now: Duration,
    pub store: Store,
    /// Is etcd there?
    pub etcd_up: bool,
    pub node: NodeModel,
    machine: Option<Machine>,
    n_agents: u64,
    connected: bool,
    watcher: Option<Watcher>,
    pub status: StatusCell,
    /// A dead agent's transaction, and after how many commands it arrives.
    late: Option<(KeyTxn, usize)>,
    /// Commands so far, in words, for the fault-free run and for the reader of a failure.
    pub trace: Vec<Command>,
    /// Which command is to fail how.
    pub fates: BTreeMap<usize, Fate>,
    /// Whose guest is behind each vhost, and all that each port ever asked for.
    tenants: BTreeMap<u32, PortId>,
    asked: Asked,
    /// Nobody but drivers and agent wrote keys: no slot can change hands behind the agent's back.
    pub honest: bool,
    /// When which port or tap flow was told `up`.
    pub ups: Vec<(Subject, Duration)>,
    pub n_given_back: usize,
    /// What is wrong with the agent, if anything.
    pub planted: Planted,
}

impl World {
    pub fn new() -> World {
        let mut world = World {
            now: Duration::from_secs(1),
            store: Store::new(),
            etcd_up: true,
            node: NodeModel::default(),
            machine: None,
            n_agents: 0,
            connected: false,
            watcher: None,
            status: StatusCell::default(),
            late: None,
            trace: Vec::new(),
            fates: BTreeMap::new(),
            tenants: BTreeMap::new(),
            asked: Asked::default(),
            honest: true,
            ups: Vec::new(),
            n_given_back: 0,
            planted: Planted::default(),
        };
        world.start_agent();
        world
    }

    // The agent.

    pub fn start_agent(&mut self) {
        if self.machine.is_none() {
            self.n_agents += 1;
            let keys = HostKeys::new(name("spp4"));
            let reconciler = Reconciler::new(layout(), Timing::default()).with_mirrors(N_MIRRORS);
            self.machine = Some(Machine::new(keys, reconciler, None, self.status.clone(), self.n_agents));
        }
    }

    pub fn crash(&mut self, node_too: bool) {
        if node_too {
            // Nothing is on its way for longer than a node takes to start again.
            self.late_arrival(LATE_BY);
        }
        self.machine = None;
        self.connected = false;
        self.watcher = None;
        if node_too {
            self.node = NodeModel::default();
            self.planted.node_died();
        }
    }

    /// All connections break.
    pub fn cut(&mut self) {
        if std::mem::take(&mut self.connected) {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.connected = false;
        self.watcher = None;
        if let Some(machine) = &mut self.machine {
            machine.lost(&Lost::WatchEnded("simulated".into()), "http://etcd".into(), self.now);
        }
    }

    fn answer(&mut self, answer: Answer) {
        let machine = self.machine.as_mut().expect("an agent that asked is there");
        if let Err(lost) = machine.answered(answer, self.now) {
            self.connected = false;
            self.watcher = None;
            machine.lost(&lost, "http://etcd".into(), self.now);
        }
    }

    /// The command the agent is at; None while it is down.
    pub fn command(&self) -> Option<Command> {
        self.machine.as_ref().map(Machine::next)
    }

    /// Carries out the agent's next command, as it is fated. A wait takes news if there is any, else it
    /// lasts until its end. False: the agent waits, for nothing that has happened yet, or is down.
    pub fn step(&mut self) -> bool {
        let Some(command) = self.command() else { return false };
        if let Command::Wait(_) = command {
            let ready = self.watcher.as_mut().map(|watcher| watcher.ready(&self.store)).unwrap_or_default();
            return ready.first().is_some_and(|family| {
                self.deliver(*family);
                true
            });
        }
        self.late_arrival(1);
        let fate = self.fates.get(&self.trace.len()).copied().unwrap_or(Fate::Works);
        self.trace.push(command.clone());
        self.step_fated(command, fate);
        self.check();
        true
    }

    /// One change from the watch, of this family.
    pub fn deliver(&mut self, family: u8) {
        if let Some(change) = self.watcher.as_mut().and_then(|watcher| watcher.deliver(family)) {
            self.answer(Answer::News(vec![change]));
        }
    }

    /// The same, twice in one message.
    pub fn deliver_doubled(&mut self, family: u8) {
        if let Some(change) = self.watcher.as_mut().and_then(|watcher| watcher.deliver(family)) {
            self.answer(Answer::News(vec![change.clone(), change]));
        }
    }

    /// Families the watch has news of, if the agent waits for any.
    pub fn news(&mut self) -> Vec<u8> {
        match self.command() {
            Some(Command::Wait(_)) => {
                self.watcher.as_mut().map(|watcher| watcher.ready(&self.store)).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    pub fn lose_news(&mut self, family: u8) {
        if let Some(watcher) = &mut self.watcher {
            watcher.lose_one(family);
        }
    }

    pub fn step_fated(&mut self, command: Command, fate: Fate) {
        match fate {
            Fate::Works => self.carry_out(command),
            Fate::CrashBefore(node_too) => {
                self.crash(node_too);
                self.start_agent();
            }
            Fate::CrashAfter(node_too) => {
                self.carry_out(command);
                self.crash(node_too);
                self.start_agent();
            }
            Fate::CrashInFlight => {
                if let (Command::Act(action), true) = (&command, self.etcd_up) {
                    // A call into the node ends before the next agent's first one begins.
                    match action.txn() {
                        Some(txn) => self.late = Some((txn.clone(), LATE_BY)),
                        None => self.carry_out(command),
                    }
                }
                self.crash(false);
                self.start_agent();
            }
            Fate::StaysDown(after) => {
                if after {
                    self.carry_out(command);
                }
                self.crash(false);
            }
            Fate::FailsBefore => match command {
                Command::Look => self.answer(Answer::Live(Err(DataPlaneError("no".into())))),
                Command::Act(action) if action.txn().is_none() => {
                    self.answer(Answer::Node(Err(DataPlaneError("no".into()))));
                }
                Command::Wait(_) => self.carry_out(command),
                _ => self.lose(),
            },
            Fate::FailsAfter => match command {
                Command::Act(action) => match action.txn() {
                    Some(txn) => {
                        drop(self.commit(txn));
                        self.lose();
                    }
                    None => {
                        let _ = self.call(&action);
                        self.answer(Answer::Node(Err(DataPlaneError("no answer".into()))));
                    }
                },
                Command::Look => self.answer(Answer::Live(Err(DataPlaneError("no answer".into())))),
                Command::Wait(_) => self.carry_out(command),
                _ => self.lose(),
            },
        }
    }

    fn carry_out(&mut self, command: Command) {
        let to_etcd = match &command {
            Command::Dial | Command::List | Command::Watch(_) | Command::Ping => true,
            Command::Act(action) => action.txn().is_some(),
            Command::Look | Command::Wait(_) => false,
        };
        if to_etcd && !self.etcd_up {
            return self.lose();
        }
        let answer = match command {
            Command::Dial => {
                self.connected = true;
                Answer::Dialled("http://etcd".into())
            }
            Command::List => Answer::Listed(self.planted.listing(self.store.listing(), self.n_agents)),
            Command::Watch(revision) if revision <= self.store.compacted => return self.lose(),
            Command::Watch(revision) => {
                self.watcher = Some(Watcher::start(&self.store, revision));
                Answer::Watching
            }
            Command::Ping => Answer::Revision(self.store.revision),
            Command::Look => Answer::Live(Ok(Live {
                wirings: self.planted.seen(self.node.wirings()),
                awaited: self.node.awaited(),
            })),
            Command::Act(action) => match action.txn() {
                Some(txn) => Answer::Txn(match self.commit(txn) {
                    Ok(revision) => Outcome::Done(revision),
                    Err(changes) => Outcome::Changed(changes),
                }),
                None => Answer::Node(self.call(&action)),
            },
            Command::Wait(until) => {
                self.now = self.now.max(until);
                Answer::Woken
            }
        };
        self.answer(answer);
    }

    fn call(&mut self, action: &Action) -> Result<(), DataPlaneError> {
        let Some(action) = self.planted.call(action.clone(), &self.node.wired) else { return Ok(()) };
        match action {
            Action::Wire { subject, wiring } => {
                if let (true, Wiring::Plug(plug)) = (self.honest, wiring) {
                    let holder = self.store.slot_value(plug.vhost);
                    assert_eq!(
                        holder,
                        Some(subject.id().as_str()),
                        "wired for one that does not hold the slot"
                    );
                }
                self.node.wire(wiring)
            }
            Action::Unwire { place, .. } => self.node.unwire(place),
            _ => unreachable!("a transaction"),
        }
    }

    fn commit(&mut self, txn: &KeyTxn) -> Result<i64, Vec<Change>> {
        let Some(txn) = &self.planted.txn(txn, self.now, &self.ups) else { return Ok(self.store.revision) };
        if self.store.allows(txn) {
            txn.ops.iter().for_each(|op| self.check_write(op));
        }
        self.store.txn(txn)
    }

    /// `n_commands` more have passed for the dead agent's transaction.
    fn late_arrival(&mut self, n_commands: usize) {
        match self.late.take() {
            Some((txn, left)) if left <= n_commands => drop(self.commit(&txn)),
            Some((txn, left)) => self.late = Some((txn, left - n_commands)),
            None => {}
        }
    }

    // Time.

    /// The agent works until it waits for nothing that has happened.
    pub fn pump(&mut self) {
        for n in 0.. {
            assert!(n < REST_WITHIN, "the agent does not come to rest: {:?}", self.tail());
            if !self.step() {
                return;
            }
        }
    }

    /// Lets `time` pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut n_wakes = 0;
        loop {
            self.pump();
            match self.command() {
                Some(Command::Wait(until)) if until <= end => {
                    // The shortest period is that of the pings; pauses of all kinds are longer on the average.
                    n_wakes += 1;
                    assert!(n_wakes < 100 + 3 * time.as_secs() as usize, "the agent does not sleep");
                    self.now = self.now.max(until);
                    self.answer(Answer::Woken);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// All faults are over; the agent gets all the time it needs.
    pub fn settle(&mut self) {
        self.fates.clear();
        self.etcd_up = true;
        self.start_agent();
        self.pump();
        self.late_arrival(LATE_BY);
        self.pass(SETTLE);
    }

    pub fn tail(&self) -> &[Command] {
        &self.trace[self.trace.len().saturating_sub(12)..]
    }
}
