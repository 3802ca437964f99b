//! Sends every frame of a virtio NIC back to its sender: the lab's proof of the virtio-net driver on a device
//! that is not ours, and a first check on a new machine.
//!
//! `virtio_echo ADDRESS DIR`: binds the NIC to vfio-pci, runs until `DIR/stop` exists, starts the device anew for
//! each `DIR/restart` it finds, and says on standard output what changed.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::pci::PciAddress;
use spp_drivers::pci::sysfs::{self, BindOptions};
use spp_drivers::port::{Device, HEALTH_INTERVAL, Health, Link};
use spp_drivers::vfio;
use spp_drivers::virtio::net;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [address, dir] => run(address, Path::new(dir)),
        _ => Err("virtio_echo ADDRESS DIR".into()),
    };
    if let Err(error) = done {
        println!("error: {error}");
        std::process::exit(1);
    }
}

fn run(address: &str, dir: &Path) -> Result<(), Box<dyn Error>> {
    let address: PciAddress = address.parse()?;
    sysfs::bind(address, &BindOptions { force: false, state_dir: dir.into() })?;
    let space = DmaSpace::new();
    let pool = Pool::new(&space, PoolConfig { n_buffers: 2048 })?;
    let mut nic = net::open(vfio::open(&space, &address)?, &space)?;
    nic.set_promiscuous(true)?;
    println!("mac: {:?}", nic.mac());
    loop {
        let again = echo(&mut nic, &pool, dir)?;
        println!("counters: {:?}", nic.device_counters());
        if !again {
            break;
        }
    }
    drop(nic);
    println!("buffers out: {}", pool.counts().out);
    Ok(())
}

/// One start of the device; true when it is to be started again.
fn echo(nic: &mut impl Device, pool: &Pool, dir: &Path) -> Result<bool, Box<dyn Error>> {
    let mut cache = pool.cache();
    let mut queues = nic.start(pool, 1)?;
    println!("started");
    let mut link = None;
    let mut next_look = Instant::now();
    let mut burst = Burst::new();
    let again = loop {
        queues.rx[0].rx_burst(&mut cache, &mut burst);
        for packet in burst.iter_mut() {
            let (addresses, _) = packet.data_mut().split_at_mut(12);
            let (dst, src) = addresses.split_at_mut(6);
            dst.swap_with_slice(src);
        }
        while !burst.is_empty() {
            queues.tx[0].tx_burst(&mut cache, &mut burst);
        }
        if Instant::now() < next_look {
            continue;
        }
        next_look = Instant::now() + HEALTH_INTERVAL.min(Duration::from_millis(50));
        let now: Link = nic.link();
        if link.as_ref() != Some(&now) {
            println!("link: {now:?}");
            link = Some(now);
        }
        match nic.health() {
            Health::Ok => {}
            Health::NeedsRestart(reason) => {
                println!("restart: {reason}");
                break true;
            }
            Health::Gone(reason) => return Err(reason.into()),
        }
        if dir.join("stop").exists() {
            break false;
        }
        if std::fs::remove_file(dir.join("restart")).is_ok() {
            break true;
        }
    };
    println!("rx: {:?}", queues.rx[0].stats().snapshot());
    println!("tx: {:?}", queues.tx[0].stats().snapshot());
    nic.stop(queues);
    Ok(again)
}
