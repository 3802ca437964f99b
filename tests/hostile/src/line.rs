//! A connection that comes back: for rows that send one wrong message after the other, each of which the backend
//! may answer, refuse, or hang up on.

use std::os::fd::BorrowedFd;

use crate::arena::{Arena, Trouble};
use crate::frontend::Frontend;
use crate::message::{Answer, request};

/// The connection, and how often what happened on it.
pub struct Line<'a, 's> {
    arena: &'a Arena<'s>,
    /// Whether rings run before each message, or nothing is set up.
    running: bool,
    frontend: Option<Frontend>,
    n_done: u32,
    n_refused: u32,
    n_closed: u32,
}

impl<'a, 's> Line<'a, 's> {
    /// A line on which the frontend has only greeted the backend.
    pub fn greeted(arena: &'a Arena<'s>) -> Line<'a, 's> {
        Line { arena, running: false, frontend: None, n_done: 0, n_refused: 0, n_closed: 0 }
    }

    /// A line on which rings run.
    pub fn running(arena: &'a Arena<'s>) -> Line<'a, 's> {
        Line { running: true, ..Line::greeted(arena) }
    }

    /// The frontend, connected anew if need be.
    pub fn frontend(&mut self) -> Result<&mut Frontend, Trouble> {
        if self.frontend.is_none() {
            let fresh = if self.running { self.arena.victim() } else { self.arena.greeted() };
            self.frontend = Some(fresh?);
        }
        Ok(self.frontend.as_mut().expect("just connected"))
    }

    /// Sends a message; whatever comes of it is all right.
    pub fn order(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, Trouble> {
        let answer = self.frontend()?.connection.order(request, payload, fds)?;
        self.note(&answer);
        Ok(answer)
    }

    /// Sends a message that has an answer of its own.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Result<Answer, Trouble> {
        let answer = self.frontend()?.connection.ask(request, payload, &[])?;
        self.note(&answer);
        Ok(answer)
    }

    /// Sends bytes, then sees whether the connection is still good.
    pub fn bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, Trouble> {
        let connection = &mut self.frontend()?.connection;
        // An error here means that the backend hung up, which asking finds out as well.
        let _ = connection.send_bytes(bytes, fds);
        let answer = connection.ask(request::GET_FEATURES, &[], &[])?;
        self.note(&answer);
        Ok(answer)
    }

    fn note(&mut self, answer: &Answer) {
        match answer {
            Answer::Done(_) => self.n_done += 1,
            Answer::Refused => self.n_refused += 1,
            Answer::Closed => {
                self.n_closed += 1;
                self.frontend = None;
            }
        }
    }

    /// Sends a message that must not be obeyed.
    pub fn must_refuse(
        &mut self,
        what: impl std::fmt::Display,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Trouble> {
        let answer = self.order(request, payload, fds)?;
        if self.arena.is_strict() && !answer.is_no() {
            return Err(Trouble::Wrong(format!("request {request} with {what} was obeyed")));
        }
        Ok(())
    }

    /// Forgets the connection, so that the next message starts afresh.
    pub fn hang_up(&mut self) {
        self.frontend = None;
    }

    /// What happened, in words, and the frontend if it is still connected.
    pub fn end(self) -> (String, Option<Frontend>) {
        let counts = [(self.n_refused, "refused"), (self.n_closed, "closed"), (self.n_done, "obeyed")];
        let said = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
        (said.collect::<Vec<_>>().join(", "), self.frontend.filter(|_| self.running))
    }
}
