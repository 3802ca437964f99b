//! Intel 82599, X540 and X550: 10 Gbit/s.

#[cfg(any(test, feature = "models"))]
pub mod model;
