//! The drivers of all families, each over its model: a turn receives a burst and sends it, as a node that forwards does.
//! The model works between the turns, and sees the doorbells then.

use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::nic::model::{self, Card, Handle, Model, ModelFunction};
use spp_drivers::port::{Device, Link, Queues};
use spp_drivers::virtio::regs::feature;
use spp_drivers::{Burst, MacAddr};
use spp_drivers::{e1000, igb, igbvf, ixgbe, nic, virtio, vmxnet3};

use crate::posted::{Post, Posted};
use crate::stage::{Row, Stage, frame};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// Looks at the link until it is up: models take a step or a few.
const LOOKS: usize = 100;

/// The rows of this module.
pub fn rows() -> Vec<Row> {
    use e1000::model::{Chip, E1000Model};
    vec![
        row("e1000 driver, receive and send", |space| {
            model::new(space, |memory| E1000Model::new(memory, Chip::I82545, MAC))
        }),
        row("e1000e driver, receive and send", |space| {
            model::new(space, |memory| E1000Model::new(memory, Chip::I82574, MAC))
        }),
        row("igb driver, receive and send", |space| {
            model::new(space, |memory| igb::model::IgbModel::new(memory, 0x10c9, MAC))
        }),
        row("igbvf driver, receive and send", |space| {
            model::new(space, |memory| igbvf::model::IgbvfModel::new(memory, 0x10ca, MAC))
        }),
        row("ixgbe driver, receive and send", |space| {
            let chip = ixgbe::model::Model::new(ixgbe::model::Card::of_id(0x10fb, MAC.0));
            model::new(space, |memory| ixgbe::model::Function::new(Card::new(memory), chip))
        }),
        row("virtio-net driver, receive and send", |space| virtio::model::new(space, MAC)),
        row("virtio-net driver, packed, receive and send", |space| {
            let (function, card) = virtio::model::new(space, MAC);
            card.lock().offer(virtio::model::OFFERED | feature::RING_PACKED);
            (function, card)
        }),
        row("vmxnet3 driver, receive and send", |space| vmxnet3::model::new(space, MAC)),
    ]
}

fn row<M: Model>(name: &'static str, make: fn(&DmaSpace) -> (ModelFunction<M>, Handle<M>)) -> Row {
    Row::new(name, move |_| Nic::new(make))
}

struct Nic<M> {
    card: Handle<M>,
    post: Post,
    queues: Queues,
    burst: Burst,
    cache: PoolCache,
    frame: Vec<u8>,
    // Last: they outlive the queues.
    _nic: Box<dyn Device>,
    _pool: Pool,
}

impl<M: Model> Nic<M> {
    fn new(make: fn(&DmaSpace) -> (ModelFunction<M>, Handle<M>)) -> Nic<M> {
        let (space, post) = (DmaSpace::new(), Post::default());
        let (function, card) = make(&space);
        let mut nic =
            nic::open(Posted::new(function, &post), &space).expect("the model is a device of its family");
        let pool = Pool::new(&space, PoolConfig { n_buffers: 4096 }).expect("memory for the pool");
        let queues = nic.start(&pool, 1).expect("the model starts");
        let is_up = (0..LOOKS).any(|_| {
            card.step();
            matches!(nic.link(), Link::Up { .. })
        });
        assert!(is_up, "{:?}: the model's cable is plugged", nic.info());
        let (burst, cache) = (Burst::new(), pool.cache());
        Nic { card, post, queues, burst, cache, frame: frame(MAC.0, None, 64), _nic: nic, _pool: pool }
    }
}

impl<M: Model> Stage for Nic<M> {
    fn feed(&mut self, burst: usize) {
        (0..burst).for_each(|_| self.card.inject(&self.frame));
        self.card.step();
        self.post.hold();
    }

    fn work(&mut self) {
        self.queues.rx[0].rx_burst(&mut self.cache, &mut self.burst);
        self.queues.tx[0].tx_burst(&mut self.cache, &mut self.burst);
    }

    fn drain(&mut self) -> usize {
        self.post.deliver();
        self.card.step();
        self.card.transmitted().len()
    }
}
