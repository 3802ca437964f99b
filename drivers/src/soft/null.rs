//! `null:`: receives nothing, drops what it is given.

use super::spec::form_error;
use super::{MAX_FRAME_BYTES, NoRx, Sink, one_queue_pair, queues};
use crate::dma::Pool;
use crate::mac::MacAddr;
use crate::port::{Device, DeviceInfo, Link, PortError, Queues};

struct Null;

pub(super) fn open(spec: &str, rest: &str) -> Result<Box<dyn Device>, PortError> {
    if rest.is_empty() {
        return Ok(Box::new(Null));
    }
    Err(form_error(spec, format!("{rest:?} is too much"), "null:"))
}

impl Device for Null {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: "null:".to_owned(),
            driver: "null",
            max_frame_bytes: MAX_FRAME_BYTES as u32,
            n_queue_pairs: 1,
            numa_node: None,
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        None
    }

    fn link(&mut self) -> Link {
        Link::Up { speed_mbps: 0 }
    }

    fn set_promiscuous(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(())
    }

    fn start(&mut self, _pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        one_queue_pair("null:", n_queue_pairs)?;
        Ok(queues(NoRx::new(), Sink::new()))
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{burst, pool};
    use crate::burst::Burst;
    use crate::stats::DropReason;

    #[test]
    fn sink_frees_and_counts_chains_and_plain_frames() {
        let (pool, mut cache) = pool(64);
        let mut device = super::open("null:", "").unwrap();
        let mut queues = device.start(&pool, 1).unwrap();
        let mut out = Burst::new();
        assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 0);
        let mut given = burst(&mut cache, &[&[1; 60], &[2; 5000], &[3; 1514]]);
        assert_eq!(queues.tx[0].tx_burst(&mut cache, &mut given), 3);
        assert!(given.is_empty());
        assert_eq!(queues.tx[0].stats().drops(DropReason::Sink), 3);
        device.stop(queues);
        drop(cache);
        assert_eq!(pool.counts().out, 0);
    }
}
