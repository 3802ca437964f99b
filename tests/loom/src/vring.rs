// UNSAFETY: opens loom's cells, which is how loom learns who touches what.
//! Stand-ins for what travels through the hand-over. What matters of a mapping here is who touches it:
//! loom fails a model in which a core reads it while, or after, it is unmapped.

use loom::cell::UnsafeCell;

use crate::dirty::RingLog;
use crate::sync::Arc;

/// A mapping of guest memory.
#[derive(Default)]
pub struct Map {
    mapped: UnsafeCell<Unmapped>,
}

#[derive(Default)]
struct Unmapped(bool);

// SAFETY: every access goes through the cell, and loom fails the model when two of them meet.
unsafe impl Sync for Map {}

impl Map {
    /// As a burst does: it reads and writes through the mapping.
    pub fn touch(&self) {
        // SAFETY: loom checks that nobody else has the cell open for writing; that is the point.
        let unmapped = self.mapped.with(|map| unsafe { (*map).0 });
        assert!(!unmapped, "a core touched memory that is gone");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: loom checks that nobody has the cell open; that is the point.
        self.mapped.with_mut(|map| unsafe { (*map).0 = true });
    }
}

/// A ring's memory: a reference to the mapping it lies in.
pub struct RingMemory(pub Arc<Map>);

/// A running ring.
pub struct Ring {
    /// Where it lies.
    pub memory: RingMemory,
    /// Where its writes are noted.
    pub log: Option<RingLog>,
}

impl Ring {
    /// As in `vhost/src/vring/walk.rs`.
    pub fn swap_memory(&mut self, memory: &mut RingMemory) {
        std::mem::swap(&mut self.memory, memory);
    }

    /// As in `vhost/src/vring/walk.rs`.
    pub fn swap_call(&mut self, call: Option<Arc<CallFd>>) -> Option<Arc<CallFd>> {
        call
    }

    /// As in `vhost/src/vring/walk.rs`: marks at once.
    pub fn swap_log(&mut self, log: Option<RingLog>) -> Option<RingLog> {
        let old = std::mem::replace(&mut self.log, log);
        if let Some(log) = &self.log {
            log.0.touch();
        }
        old
    }

    /// As in `vhost/src/vring/walk.rs`: the last touch of a ring that stops.
    pub fn rest(&self) {
        self.memory.0.touch();
    }
}

/// An eventfd; nothing here uses one.
pub struct CallFd;

/// Why a ring stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RingFault {
    /// Any.
    Fault = 1,
}

impl RingFault {
    /// As in `vhost/src/vring/mod.rs`.
    pub fn from_code(code: u8) -> Option<RingFault> {
        (code == 1).then_some(RingFault::Fault)
    }
}
