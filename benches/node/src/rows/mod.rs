//! What is compared, one module for each group of rows.

pub mod idle;
pub mod latency;
pub mod ring;
pub mod start;
pub mod table;
pub mod vhost;
pub mod wiring;

use crate::runner::{Case, Plan};

/// Measures a row, hands over each case when it is done.
pub type Measure = fn(&Plan, &mut dyn FnMut(Case));

/// All rows.
pub const ROWS: [(&str, Measure); 11] = [
    ("P1", vhost::split),
    ("bare", vhost::bare_walk),
    ("P2", vhost::packed),
    ("P3", wiring::apart),
    ("P4", wiring::together),
    ("P5", vhost::guest_to_guest),
    ("P6", ring::measure),
    ("P7", table::measure),
    ("P8", latency::measure),
    ("P9", start::measure),
    ("idle", idle::measure),
];
