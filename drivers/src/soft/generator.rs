//! `gen:`: an endless source of numbered frames, as fast as it is polled; what it is given it drops.
//!
//! A frame is an Ethernet header, an 802.1Q tag if one is asked for, the EtherType for
//! local experiments, a 64-bit sequence number from 0 (big-endian), and zeros.

use super::spec::Fields;
use super::{MAX_FRAME_BYTES, Sink, copy_in, one_queue_pair, queues};
use crate::burst::Burst;
use crate::dma::{Pool, PoolCache};
use crate::mac::MacAddr;
use crate::port::{Device, DeviceInfo, Link, PortError, Queues, RxQueue};
use crate::stats::{QueueStats, SharedStats};

const FORM: &str = "gen:len=64,dst=MAC[,vlan=ID][,src=MAC], len in bytes without FCS";

/// IEEE 802 EtherType for local experiments: no real host answers or forwards it.
const ETHERTYPE: u16 = 0x88b5;
const TPID: u16 = 0x8100;

/// Locally administered, when none is given.
const DEFAULT_SRC: MacAddr = MacAddr([0x02, 0x73, 0x70, 0x70, 0x00, 0x01]);

struct Generator {
    spec: String,
    src: MacAddr,
    template: Vec<u8>,
    sequence_at: usize,
}

pub(super) fn open(spec: &str, rest: &str) -> Result<Box<dyn Device>, PortError> {
    let fields = Fields::parse(spec, rest, &["len", "dst", "src", "vlan"], FORM)?;
    let (len, dst): (usize, MacAddr) = (fields.required("len")?, fields.required("dst")?);
    let src = fields.value("src")?.unwrap_or(DEFAULT_SRC);
    if src.is_group() {
        return Err(fields.error(format!("src={src} is a group address, which nobody sends from")));
    }
    let vlan: Option<u16> = fields.value("vlan")?;
    if vlan.is_some_and(|id| id > 4094) {
        return Err(fields.error("VLAN ids are 0 to 4094"));
    }
    let mut template = [dst.0, src.0].concat();
    if let Some(id) = vlan {
        template.extend(TPID.to_be_bytes());
        template.extend(id.to_be_bytes());
    }
    template.extend(ETHERTYPE.to_be_bytes());
    let sequence_at = template.len();
    let min_len = sequence_at + size_of::<u64>();
    if !(min_len..=MAX_FRAME_BYTES).contains(&len) {
        return Err(fields.error(format!("len={len}: {min_len} to {MAX_FRAME_BYTES} bytes are possible")));
    }
    template.resize(len, 0);
    Ok(Box::new(Generator { spec: spec.to_owned(), src, template, sequence_at }))
}

impl Device for Generator {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.spec.clone(),
            driver: "gen",
            max_frame_bytes: MAX_FRAME_BYTES as u32,
            n_queue_pairs: 1,
            numa_node: None,
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        Some(self.src)
    }

    fn link(&mut self) -> Link {
        Link::Up { speed_mbps: 0 }
    }

    fn set_promiscuous(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(())
    }

    fn start(&mut self, _pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        one_queue_pair(&self.spec, n_queue_pairs)?;
        let source = Source {
            template: self.template.clone(),
            sequence_at: self.sequence_at,
            sequence: 0,
            stats: QueueStats::shared(),
        };
        Ok(queues(source, Sink::new()))
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
    }
}

struct Source {
    template: Vec<u8>,
    sequence_at: usize,
    sequence: u64,
    stats: SharedStats,
}

impl RxQueue for Source {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        let mut n = 0;
        while out.room() > 0 {
            let Some(mut packet) = copy_in(pool, &self.template) else { break };
            let place = self.sequence_at..self.sequence_at + size_of::<u64>();
            packet.data_mut()[place].copy_from_slice(&self.sequence.to_be_bytes());
            self.sequence += 1;
            let pushed = out.push(packet);
            debug_assert!(pushed.is_ok(), "the loop runs while there is room");
            n += 1;
        }
        self.stats.moved(n, (n * self.template.len()) as u64);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frames, pool};
    use super::*;

    const DST: &str = "fa:16:3e:00:00:01";

    fn start(spec: &str, pool: &Pool) -> (Box<dyn Device>, Queues) {
        let mut device = super::super::open(spec).unwrap().unwrap();
        let queues = device.start(pool, 1).unwrap();
        (device, queues)
    }

    #[test]
    fn frames_are_valid_tagged_and_numbered_across_bursts() {
        let (pool, mut cache) = pool(128);
        let (mut device, mut queues) =
            start(&format!("gen:len=64,dst={DST},vlan=100,src=02:00:00:00:00:09"), &pool);
        for first in [0u64, 32] {
            let mut out = Burst::new();
            assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 32);
            for (n, frame) in frames(&out).iter().enumerate() {
                assert_eq!(frame.len(), 64);
                assert_eq!(frame[..6], [0xfa, 0x16, 0x3e, 0, 0, 1]);
                assert_eq!(frame[6..18], [2, 0, 0, 0, 0, 9, 0x81, 0, 0, 100, 0x88, 0xb5]);
                assert_eq!(frame[18..26], (first + n as u64).to_be_bytes());
            }
        }
        assert_eq!((queues.rx[0].stats().packets.get(), queues.rx[0].stats().bytes.get()), (64, 4096));
        device.stop(queues);
    }

    #[test]
    fn long_frames_are_chains_and_an_empty_pool_stops_the_source() {
        let (pool, mut cache) = pool(64);
        let (_device, mut queues) = start(&format!("gen:len=5000,dst={DST}"), &pool);
        let mut out = Burst::new();
        assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 21, "64 buffers are 21 chains of 3");
        assert!(out.iter().all(|packet| packet.n_segments() == 3 && packet.total_len() == 5000));
        out.free_all(&mut cache);
        assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 21, "and it goes on when buffers come back");
        assert_eq!(frames(&out)[0][14..22], 21u64.to_be_bytes(), "no number is skipped");
        drop((out, cache, queues));
        assert_eq!(pool.counts().out, 0);
    }
}
