//! An interrupt vector's eventfd, looked at without blocking. Control thread only: polling cores take no interrupts.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

/// One vector.
pub struct Interrupt(OwnedFd);

impl Interrupt {
    /// Of the eventfd that [`PciFunction::enable_msix`](crate::pci::PciFunction::enable_msix) gave for the vector.
    pub fn new(event: OwnedFd) -> Self {
        Interrupt(event)
    }

    /// True when it fired since the last call.
    pub fn fired(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&now)), Ok(1)) {
            return false;
        }
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn vector_fires_once_for_all_signals_since_the_last_look() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let device = event.try_clone().unwrap();
        let interrupt = Interrupt::new(event);
        assert!(!interrupt.fired());
        for _ in 0..3 {
            rustix::io::write(&device, &1u64.to_ne_bytes()).unwrap();
        }
        assert!(interrupt.fired());
        assert!(!interrupt.fired());
    }
}
