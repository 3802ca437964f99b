//! Waiting for a register, always with a deadline. Control thread only: it sleeps.

use std::time::{Duration, Instant};

/// Pause between two looks at the register.
const PAUSE: Duration = Duration::from_micros(50);

/// What a register reads as once its device has left the bus.
pub const GONE: u32 = u32::MAX;

/// A register did not become what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The device reads as all ones.
    #[error("{register} reads all ones: the device is gone")]
    Gone {
        /// Name in the datasheet.
        register: &'static str,
    },
    /// The deadline passed.
    #[error(
        "{register} & {mask:#010x} did not become {wanted:#010x} within {deadline:?}: it reads {read:#010x}"
    )]
    Late {
        /// Name in the datasheet.
        register: &'static str,
        /// Bits looked at.
        mask: u32,
        /// What they should be.
        wanted: u32,
        /// The whole register at the last look.
        read: u32,
        /// How long it was given.
        deadline: Duration,
    },
}

/// Looks until `read() & mask == wanted`. All ones mean that the device is gone, unless that is what is wanted of
/// a register of 32 bits.
pub fn until(
    read: impl Fn() -> u32,
    register: &'static str,
    mask: u32,
    wanted: u32,
    deadline: Duration,
) -> Result<(), WaitError> {
    let end = Instant::now() + deadline;
    loop {
        // Taken before the look, so that the last look is never older than the deadline.
        let is_last = Instant::now() >= end;
        let read = read();
        match read {
            _ if read & mask == wanted && (read != GONE || mask == GONE) => return Ok(()),
            GONE => return Err(WaitError::Gone { register }),
            _ if is_last => return Err(WaitError::Late { register, mask, wanted, read, deadline }),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn value_that_comes_late_is_waited_for() {
        let looks = Cell::new(0);
        let read = || {
            looks.set(looks.get() + 1);
            if looks.get() < 5 { 0x10 } else { 0x13 }
        };
        assert_eq!(until(read, "CTRL", 3, 3, Duration::from_secs(60)), Ok(()));
        assert_eq!(looks.get(), 5);
    }

    #[test]
    fn value_that_never_comes_names_register_mask_and_both_values() {
        let error = until(|| 0x40, "EECD", 0x200, 0x200, Duration::from_millis(1)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("EECD & 0x00000200 did not become 0x00000200"), "{text}");
        assert!(text.ends_with("it reads 0x00000040"), "{text}");
    }

    #[test]
    fn all_ones_are_a_device_that_is_gone_even_where_the_bits_would_fit() {
        let error = until(|| GONE, "STATUS", 2, 2, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error, WaitError::Gone { register: "STATUS" });
    }

    #[test]
    fn passed_deadline_still_gets_one_look() {
        assert_eq!(until(|| 1, "CTRL", 1, 1, Duration::ZERO), Ok(()));
    }
}
