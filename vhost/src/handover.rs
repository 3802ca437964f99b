//! Hand-over between the port's control thread and its polling halves.
//!
//! Two SPSC rings per half: commands in, replies out. The half looks into its mailbox once per
//! burst (one load); everything it gives up (rings, memory, eventfds) travels back in the
//! reply, so that no core unmaps, closes or frees. The control thread waits for replies with a
//! deadline; what it has not got back stays alive. `tests/loom` tries every interleaving.

use std::time::Duration;

use crate::dirty::RingLog;
use spp_drivers::MacAddr;
use spp_drivers::spsc::{self, Consumer, Producer};

use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicUsize, Ordering, Patience};
use crate::vring::{CallFd, Ring, RingFault, RingMemory};

/// Commands a half may be behind.
const SLOTS: usize = 16;

/// How long the control thread waits for a half.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// What the control thread asks of a half.
pub enum Command {
    /// Poll this ring from now on. With its enable flag: a disabled ring is drained, so a ring that is
    /// enabled must never be seen without it.
    Start(Box<Ring>, bool),
    /// The ring's memory is mapped elsewhere now; the old mapping comes back.
    Remap(Box<RingMemory>),
    /// Use this eventfd from now on; the old one comes back.
    Call(Option<Arc<CallFd>>),
    /// SET_VRING_ENABLE.
    Enable(bool),
    /// Note every write to the guest's memory there from now on, or nowhere; the old log comes back.
    Log(Option<RingLog>),
    /// Announce this address on the guest's behalf.
    Announce(MacAddr),
    /// Give the ring back.
    Stop,
}

/// What comes back.
pub enum Reply {
    /// Done, and nothing to give back.
    Done,
    /// The memory used until now.
    Memory(Box<RingMemory>),
    /// The eventfd used until now.
    Call(Option<Arc<CallFd>>),
    /// The log used until now.
    Log(Option<RingLog>),
    /// The ring polled until now, if there was one.
    Ring(Option<Box<Ring>>),
}

/// The half did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAnswer;

/// What both sides of one ring can see.
#[derive(Default)]
pub struct RingState {
    fault: AtomicU8,
    running: AtomicBool,
}

impl RingState {
    /// Why the ring stopped, if it did.
    pub fn fault(&self) -> Option<RingFault> {
        RingFault::from_code(self.fault.load(Ordering::Acquire))
    }

    /// True while a half polls an enabled ring.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire) && self.fault().is_none()
    }
}

/// The control thread's end.
pub struct Handover {
    commands: Producer<Command>,
    replies: Consumer<Reply>,
    /// Commands not answered yet.
    outstanding: usize,
    /// Counts what was put into the half's mailboxes: a number it has not seen tells it to look. Only control writes it.
    bell: Arc<AtomicUsize>,
    state: Arc<RingState>,
}

/// The half's end, with the ring it polls.
pub struct Mailbox {
    commands: Consumer<Command>,
    replies: Producer<Reply>,
    ring: Option<Box<Ring>>,
    enabled: bool,
    announcement: Option<MacAddr>,
    state: Arc<RingState>,
}

/// A new pair. The half looks into its mailboxes when `bell` has moved on.
pub fn handover(bell: Arc<AtomicUsize>) -> (Handover, Mailbox) {
    let (commands_in, commands_out) = spsc::ring(SLOTS);
    let (replies_in, replies_out) = spsc::ring(SLOTS);
    let state = Arc::new(RingState::default());
    let control =
        Handover { commands: commands_in, replies: replies_out, outstanding: 0, bell, state: state.clone() };
    let mailbox = Mailbox {
        commands: commands_out,
        replies: replies_in,
        ring: None,
        enabled: false,
        announcement: None,
        state,
    };
    (control, mailbox)
}

impl Handover {
    /// The ring's shared state.
    pub fn state(&self) -> &Arc<RingState> {
        &self.state
    }

    /// Sends a command and waits for its reply. Late replies to earlier commands are dropped here, on the control thread.
    pub fn call(&mut self, command: Command) -> Result<Reply, NoAnswer> {
        let mut patience = Patience::new(DEADLINE);
        let mut command = Some(command);
        loop {
            if let Some(unsent) = command.take() {
                match self.commands.push(unsent) {
                    Ok(()) => {
                        self.outstanding += 1;
                        self.bell.fetch_add(1, Ordering::Release);
                    }
                    Err(full) => command = Some(full),
                }
            }
            while let Some(reply) = self.replies.pop() {
                self.outstanding -= 1;
                if self.outstanding == 0 && command.is_none() {
                    return Ok(reply);
                }
            }
            // Half gone: its ring went with it.
            if self.commands.is_abandoned() || patience.is_over() {
                return Err(NoAnswer);
            }
            patience.pause();
        }
    }
}

impl Mailbox {
    /// Obeys what the control thread asked. True when something is left, since nobody takes the answers.
    pub fn poll(&mut self) -> bool {
        while self.replies.room(1) > 0 {
            let Some(command) = self.commands.pop() else { break };
            let reply = self.execute(command);
            let sent = self.replies.push(reply);
            debug_assert!(sent.is_ok(), "there was room");
        }
        self.commands.available(1) > 0
    }

    fn execute(&mut self, command: Command) -> Reply {
        let reply = match (command, self.ring.as_mut()) {
            (Command::Start(ring, enabled), _) => {
                self.enabled = enabled;
                self.state.fault.store(0, Ordering::Release);
                Reply::Ring(self.ring.replace(ring))
            }
            (Command::Remap(mut memory), Some(ring)) => {
                ring.swap_memory(&mut memory);
                Reply::Memory(memory)
            }
            (Command::Remap(memory), None) => Reply::Memory(memory),
            (Command::Call(call), Some(ring)) => Reply::Call(ring.swap_call(call)),
            (Command::Call(call), None) => Reply::Call(call),
            (Command::Enable(enabled), _) => {
                self.enabled = enabled;
                Reply::Done
            }
            (Command::Log(log), Some(ring)) => Reply::Log(ring.swap_log(log)),
            (Command::Log(log), None) => Reply::Log(log),
            (Command::Announce(mac), _) => {
                self.announcement = Some(mac);
                Reply::Done
            }
            (Command::Stop, _) => {
                self.enabled = false;
                Reply::Ring(self.ring.take().inspect(|ring| ring.rest()))
            }
        };
        self.state.running.store(self.ring.is_some() && self.enabled, Ordering::Release);
        reply
    }

    /// The ring to work on, and whether it is enabled. `None` when there is none or it has failed.
    #[inline(always)]
    pub fn ring(&mut self) -> Option<(&mut Ring, bool)> {
        // The fault is ours to write, so a relaxed look is enough.
        if self.state.fault.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let enabled = self.enabled;
        self.ring.as_deref_mut().map(|ring| (ring, enabled))
    }

    /// An address to announce, asked for since the last time.
    #[inline(always)]
    pub fn announcement(&mut self) -> Option<MacAddr> {
        self.announcement.take()
    }

    /// Stops working on the ring until it is set up again.
    #[cold]
    pub fn fail(&mut self, fault: RingFault) {
        self.state.fault.store(fault as u8, Ordering::Release);
    }
}
