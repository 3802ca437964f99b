//! A hostile vhost-user frontend: every attack that a guest, or the holder of the socket, can make on a
//! vhost-user network backend, as named rows, against ours or any other.
//!
//! It speaks the protocol and drives the rings by itself, so that it shares no mistake with the backend.

pub mod arena;
pub mod backend;
pub mod frontend;
pub mod line;
pub mod memory;
pub mod message;
pub mod process;
pub mod ring;
pub mod rows;
pub mod suite;
pub mod traffic;
