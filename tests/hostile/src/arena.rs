//! What a row has at hand: the attacked port, frames to provoke it with, and what the backend says it did.
//!
//! The same row runs against a backend that can be asked (then what it says must be right) and against one that
//! can't (then it must live, and the row goes on as well as it may).

use std::time::Duration;

use crate::backend::{Backend, View, Way};
use crate::frontend::{Frontend, FrontendError, RX, TX, Wish, until};
use crate::message::PATIENCE;
use crate::ring::{Desc, Layout};
use crate::traffic::{Flow, Traffic, frame, read_frame};

/// How a row ended well.
pub struct Done {
    /// What became of the attack, for the table.
    pub words: String,
    /// The frontend that attacked, still connected; its driver is reset and must work again.
    pub frontend: Option<Frontend>,
}

/// How a row ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The frontend could not go on.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The backend answered, and not as ours must.
    #[error("{0}")]
    Wrong(String),
    /// The backend did what none may, as leaking other guests' bytes.
    #[error("{0}")]
    Harm(String),
}

/// What a row returns.
pub type Ended = Result<Done, Trouble>;

/// A good end with the frontend still there.
pub fn done(words: impl Into<String>, frontend: Frontend) -> Ended {
    Ok(Done { words: words.into(), frontend: Some(frontend) })
}

/// A good end with the connection over.
pub fn over(words: impl Into<String>) -> Ended {
    Ok(Done { words: words.into(), frontend: None })
}

/// How long a chain may stay with a backend that can't be asked, before its driver is reset.
const BLIND_WAIT: Duration = Duration::from_millis(100);
/// How long a port may need for a few good frames before they are sent again.
const RESEND: Duration = Duration::from_secs(2);

/// The place of one row.
pub struct Arena<'s> {
    /// The backend.
    pub backend: &'s Backend,
    /// The neighbour's traffic.
    pub traffic: &'s Traffic,
    /// Split or packed.
    pub layout: Layout,
    /// Do in full what is otherwise done in part.
    pub thorough: bool,
    /// What the backend counted before the row.
    before: View,
    /// Numbers for good frames.
    number: &'s mut u64,
    random: u64,
}

impl<'s> Arena<'s> {
    /// A place for a row that begins now.
    pub fn new(
        backend: &'s Backend,
        traffic: &'s Traffic,
        layout: Layout,
        thorough: bool,
        number: &'s mut u64,
    ) -> Arena<'s> {
        let before = backend.view().unwrap_or_default();
        Arena { backend, traffic, layout, thorough, before, number, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// True when what the backend says can be held against it.
    pub fn is_strict(&self) -> bool {
        self.backend.speaks()
    }

    /// What a frontend wants by default.
    pub fn wish(&self) -> Wish {
        Wish::new(self.layout)
    }

    /// A frontend that runs.
    pub fn victim(&self) -> Result<Frontend, Trouble> {
        self.victim_with(|_| {})
    }

    /// A frontend that runs, with other wishes.
    pub fn victim_with(&self, change: impl FnOnce(&mut Wish)) -> Result<Frontend, Trouble> {
        let mut wish = self.wish();
        change(&mut wish);
        Ok(Frontend::attach(self.backend.victim.connect(PATIENCE)?, wish)?)
    }

    /// A frontend that has only agreed on protocol features.
    pub fn greeted(&self) -> Result<Frontend, Trouble> {
        Ok(Frontend::greet(self.backend.victim.connect(PATIENCE)?, self.wish())?)
    }

    /// A pseudo-random number below `n`, the same in every run.
    pub fn random(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n
    }

    /// Makes the backend send `n` frames of `len` bytes to the attacked guest.
    pub fn provoke(&mut self, frontend: &mut Frontend, n: usize, len: usize) {
        if self.traffic.has_wire() {
            return self.traffic.inject(n, len);
        }
        for _ in 0..n {
            let number = self.next_number();
            frontend.send(&frame(Flow::FromVictim, number, len));
        }
    }

    /// A number for a good frame.
    pub fn next_number(&mut self) -> u64 {
        *self.number += 1;
        *self.number
    }

    /// Transmits one chain and waits for it to come back. False when it did not, as where the ring has failed;
    /// a backend that can't be asked gets a driver's reset then.
    pub fn transmit(&self, frontend: &mut Frontend, chain: &[Desc]) -> Result<bool, Trouble> {
        if frontend.rings[TX].push(chain).is_none() {
            return Err(Trouble::Wrong("the transmit ring is full".into()));
        }
        frontend.kick(TX);
        self.comes_back(frontend, TX)
    }

    /// Posts one receive chain, has a frame sent into it, and waits for it to come back.
    pub fn receive_into(
        &mut self,
        frontend: &mut Frontend,
        chain: &[Desc],
        len: usize,
    ) -> Result<bool, Trouble> {
        if frontend.rings[RX].push(chain).is_none() {
            return Err(Trouble::Wrong("the receive ring is full".into()));
        }
        frontend.kick(RX);
        self.provoke(frontend, 1, len);
        self.comes_back(frontend, RX)
    }

    /// Waits until all chains of a ring came back.
    pub fn comes_back(&self, frontend: &mut Frontend, index: usize) -> Result<bool, Trouble> {
        let back = until(self.patience(), || {
            frontend.rings[index].take_all();
            frontend.rings[index].n_out() == 0
        });
        if !back && !self.is_strict() {
            frontend.reset()?;
        }
        Ok(back)
    }

    /// Sends good frames both ways through the attacked port.
    pub fn pass(&mut self, frontend: &mut Frontend) -> Result<(), Trouble> {
        pass(frontend, self.traffic, self.number)
    }

    /// Expects `n` drops more for any of `reasons` than before the row; in words.
    pub fn expect_drops(&self, way: Way, reasons: &[&str], n: u64) -> Result<String, Trouble> {
        if !self.is_strict() {
            return Ok("survived".into());
        }
        let before = self.before.drops(way, reasons);
        let mut now = View::default();
        let counted = until(PATIENCE, || {
            now = self.backend.view().unwrap_or_default();
            now.drops(way, reasons) >= before + n
        });
        match now.drops(way, reasons) - before {
            dropped if counted && dropped == n => Ok(format!("dropped {}", reasons.join("/"))),
            dropped => Err(Trouble::Wrong(format!(
                "{n} chains should be counted as {} {way:?}, but {dropped} are: {now:?} after {:?}",
                reasons.join("/"),
                self.before
            ))),
        }
    }

    /// Drops since the row began, of a backend that counts.
    pub fn drops(&self, way: Way) -> u64 {
        let total = |view: &View| view.drops[way as usize].values().sum::<u64>();
        self.backend.view().map_or(0, |now| total(&now) - total(&self.before))
    }

    /// How long to wait for what must come: less where it need not.
    pub fn patience(&self) -> Duration {
        if self.is_strict() { PATIENCE } else { BLIND_WAIT }
    }

    /// Expects the port to have failed, or a chain to have been dropped since the row began.
    pub fn expect_drop_or_failure(&self, way: Way) -> Result<String, Trouble> {
        if !self.is_strict() {
            std::thread::sleep(BLIND_WAIT);
            return Ok("survived".into());
        }
        let mut words = String::new();
        let happened = until(PATIENCE, || {
            let now = self.backend.view().unwrap_or_default();
            let (counted, before) = (&now.drops[way as usize], &self.before.drops[way as usize]);
            let new = counted.iter().find(|(reason, n)| before.get(*reason).is_none_or(|old| *n > old));
            if now.state.starts_with("failed: ") {
                words = now.state;
            } else if let Some((reason, _)) = new {
                words = format!("dropped {reason}");
            }
            !words.is_empty()
        });
        if happened { Ok(words) } else { Err(Trouble::Wrong("neither a drop nor a failure".into())) }
    }

    /// Expects the port to have failed, and says why.
    pub fn expect_failed(&self, part: &str) -> Result<String, Trouble> {
        self.expect_state(|state| state.starts_with("failed: ") && state.contains(part), part)
    }

    /// Expects the port to get into some state, and says which.
    pub fn expect_state(&self, so: impl Fn(&str) -> bool, what: &str) -> Result<String, Trouble> {
        if !self.is_strict() {
            return Ok("survived".into());
        }
        let mut state = String::new();
        let reached = until(PATIENCE, || {
            state = self.backend.view().unwrap_or_default().state;
            so(&state)
        });
        if reached { Ok(state) } else { Err(Trouble::Wrong(format!("the port is {state:?}, not {what:?}"))) }
    }

    /// Words for a row whose frames pass as if nothing had happened, checked by passing some.
    pub fn unharmed(&mut self, mut frontend: Frontend) -> Ended {
        match self.pass(&mut frontend) {
            Err(trouble) if self.is_strict() => Err(trouble),
            _ => done("harmless", frontend),
        }
    }

    /// Waits until the neighbour's traffic has gone on for `n` frames more each way, or is seen to stand.
    pub fn neighbour_goes_on(&self, n: u64) -> Result<(), Trouble> {
        if goes_on(self.traffic, self.traffic.arrived() + n) {
            Ok(())
        } else {
            Err(Trouble::Frontend(FrontendError::Silent("the neighbour's frames")))
        }
    }
}

/// Waits until the neighbour's traffic has reached `target` frames.
pub fn goes_on(traffic: &Traffic, target: u64) -> bool {
    !traffic.exists() || until(PATIENCE, || traffic.arrived() >= target)
}

/// Sends good frames both ways through a port, and again what did not arrive, until they do.
pub fn pass(frontend: &mut Frontend, traffic: &Traffic, number: &mut u64) -> Result<(), Trouble> {
    const LENGTHS: [usize; 3] = [60, 300, 1514];
    traffic.seen_at_wire();
    let first = *number + 1;
    let (mut out, mut back) = (0, 0);
    let end = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < end && (out < LENGTHS.len() || back < LENGTHS.len()) {
        (out, back) = (0, 0);
        let burst = *number + 1;
        for len in LENGTHS {
            *number += 1;
            frontend.send(&frame(Flow::FromVictim, *number, len));
            if traffic.has_wire() {
                traffic.inject(1, len);
            }
        }
        until(RESEND, || {
            while let Some(bytes) = frontend.receive() {
                let fresh = |n| n >= burst || traffic.has_wire();
                back += usize::from(read_frame(&bytes).is_some_and(|(_, n)| fresh(n)));
            }
            out += match traffic.has_wire() {
                true => traffic.seen_at_wire().iter().filter(|n| **n >= first).count(),
                false => LENGTHS.len(),
            };
            out >= LENGTHS.len() && back >= LENGTHS.len()
        });
    }
    match (out >= LENGTHS.len(), back >= LENGTHS.len()) {
        (true, true) => Ok(()),
        (false, _) => Err(FrontendError::Silent("a good frame from the guest").into()),
        (_, false) => Err(FrontendError::Silent("a good frame to the guest").into()),
    }
}
