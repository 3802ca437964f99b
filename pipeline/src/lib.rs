//! From a node's configuration to packets moving between its NICs and guests.
//!
//! What is wanted, as data: [`config`], [`cores`], [`names`], [`topology`]; [`compile`] turns it into
//! what each core runs, and into the steps from one wiring to the next.
//!
//! The packet path, lowest first: [`frame`] (Ethernet and tags), [`table`] (who gets what),
//! `edge` (bursts in and out), the components `forwarder`, `merger`, `classifier` and `mirror`, [`plan`]
//! (all of it as data), [`engine`] (one core's turn), [`worker`] (its thread), [`idle`] (what that does
//! without packets).
//!
//! [`node`] owns the devices, ports, rings and workers and makes them follow the topology;
//! [`status`] and [`compat`] are what it says about itself.
#![forbid(unsafe_code)]

mod classifier;
pub mod compat;
pub mod compile;
pub mod config;
pub mod cores;
pub mod devices;
mod edge;
pub mod engine;
mod forwarder;
pub mod frame;
mod handover;
pub mod idle;
mod link;
mod local;
mod merger;
mod mirror;
pub mod names;
pub mod node;
mod offload;
pub mod plan;
pub mod stats;
pub mod status;
pub mod table;
mod tags;
pub mod topology;
pub mod worker;
