//! The virtio-net driver over the device model.

use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::nic::model::Handle;
use spp_drivers::port::{Device, Queues};
use spp_drivers::virtio::{model, net};
use spp_drivers::{Burst, MacAddr};

use crate::ring::packet;
use crate::stage::{Row, Stage, frame};

/// The rows of this module.
pub fn rows() -> Vec<Row> {
    vec![
        Row::new("virtio-net driver, receive", |_| Nic::new(true)),
        Row::new("virtio-net driver, send", |_| Nic::new(false)),
    ]
}

struct Nic {
    receives: bool,
    model: Handle<model::VirtioModel>,
    queues: Queues,
    burst: Burst,
    cache: PoolCache,
    frame: Vec<u8>,
    // Last: they outlive the queues.
    _nic: Box<dyn Device>,
    _pool: Pool,
}

impl Nic {
    fn new(receives: bool) -> Nic {
        let space = DmaSpace::new();
        let (function, model) = model::new(&space, MacAddr([2, 0, 0, 0, 0, 1]));
        let mut nic = net::open(function, &space).expect("the model is a virtio-net device");
        let pool = Pool::new(&space, PoolConfig { n_buffers: 4096 }).expect("memory for the pool");
        let queues = nic.start(&pool, 1).expect("the model starts");
        model.step();
        let frame = frame([2, 0, 0, 0, 0, 1], None, 64);
        let (burst, cache) = (Burst::new(), pool.cache());
        Nic { receives, model, queues, burst, cache, frame, _nic: Box::new(nic), _pool: pool }
    }
}

impl Stage for Nic {
    fn feed(&mut self, burst: usize) {
        for _ in 0..burst {
            if self.receives {
                self.model.inject(&self.frame);
            } else {
                let pushed = self.burst.push(packet(&mut self.cache, &self.frame));
                assert!(pushed.is_ok(), "at most 32 are asked for");
            }
        }
        if self.receives {
            self.model.step();
        }
    }

    fn work(&mut self) {
        if self.receives {
            self.queues.rx[0].rx_burst(&mut self.cache, &mut self.burst);
        } else {
            self.queues.tx[0].tx_burst(&mut self.cache, &mut self.burst);
        }
    }

    fn drain(&mut self) -> usize {
        self.model.step();
        if self.receives { self.burst.free_all(&mut self.cache) } else { self.model.transmitted().len() }
    }
}
