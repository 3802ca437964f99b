//! Fuzz targets as plain functions of bytes. Each returns normally whatever the bytes are, or has
//! found a bug: a panic, a lost buffer, a write outside what was shared.
//!
//! `fuzz/` runs them under libFuzzer (`cargo +nightly fuzz run rings`); `tests/` runs each on a
//! few thousand inputs from a seeded generator with every `cargo test`.

#![forbid(unsafe_code)]

pub mod bounded;
mod input;
mod offload;
mod rings;
mod session;
mod text;

pub use input::Input;
pub use offload::offload;
pub use rings::rings;
pub use session::{open_descriptors, session};
pub use text::text;
