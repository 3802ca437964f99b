//! From a node's configuration to packets moving between its NICs and guests.
//!
//! What is wanted, as data: [`config`], [`cores`], [`names`], [`topology`]; [`compile`] turns it into
//! what each core runs, and into the steps from one wiring to the next.
//!
//! The packet path, lowest first: [`frame`] (Ethernet and tags), [`table`] (who gets what),
//! the components [`forwarder`], [`merger`] and [`classifier`] on their [`edge`]s, [`plan`] (all of
//! it as data), [`engine`] (one core's turn), [`worker`] (its thread).
#![forbid(unsafe_code)]

pub mod compile;
pub mod config;
pub mod cores;
pub mod frame;
pub mod names;
pub mod plan;
pub mod stats;
pub mod table;
pub mod topology;
pub mod worker;
