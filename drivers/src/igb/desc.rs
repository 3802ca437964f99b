//! Descriptor formats: the advanced ones in both directions, which other families share.

pub use crate::intel::advanced::{AdvancedTx, GigabitRx};
