//! The `spp` binary.
fn main() {}
