//! The whole node on software devices and built-in guests: every socket, ring and thread is real,
//! only the NIC is a vhost-user wire.

mod cycles;
mod direct;
mod faults;
mod fused;
mod handle;
mod local;
mod long;
mod queues;
mod support;
mod taps;
mod traffic;
mod wiring;
