//! What a packet costs in a driver on a device: sends all that a NIC receives out of it again, and counts ticks of the
//! time-stamp counter, as testpmd does in io mode. Two NICs at the two ends of a cable keep their frames going round.
//!
//! `nic_forward DIR N_SAMPLES ADDRESS...`: binds the NICs to vfio-pci, sends a burst out of each, forwards, prints a
//! line for each sample (`packets`, `ticks`, `bursts`, each followed by its number), and gives the NICs back.

use std::error::Error;
use std::time::{Duration, Instant};

use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::pci::PciAddress;
use spp_drivers::pci::sysfs::{self, BindOptions};
use spp_drivers::port::{Device, Queues};
use spp_drivers::{BURST, Burst, nic, tsc, vfio};

const BUFFERS: u32 = 8192;
const SAMPLE_PACKETS: u64 = 100_000;
const FRAME_BYTES: usize = 64;
const DEADLINE: Duration = Duration::from_secs(60);
/// Turns without a frame after which the clock is looked at.
const IDLE_TURNS: u32 = 1 << 16;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [dir, n_samples, addresses @ ..] if !addresses.is_empty() => run(dir, n_samples, addresses),
        _ => Err("nic_forward DIR N_SAMPLES ADDRESS...".into()),
    };
    if let Err(error) = done {
        println!("error: {error}");
        std::process::exit(1);
    }
}

struct Port {
    cache: PoolCache,
    queues: Queues,
    burst: Burst,
    nic: Box<dyn Device>,
}

/// What one sample adds up to.
#[derive(Default)]
struct Sum {
    packets: u64,
    ticks: u64,
    bursts: u64,
}

fn run(dir: &str, n_samples: &str, addresses: &[String]) -> Result<(), Box<dyn Error>> {
    let n_samples: u32 = n_samples.parse()?;
    let options = BindOptions { force: false, state_dir: dir.into() };
    let addresses = addresses.iter().map(|word| word.parse()).collect::<Result<Vec<PciAddress>, _>>()?;
    let space = DmaSpace::new();
    let pool = Pool::new(&space, PoolConfig { n_buffers: BUFFERS })?;
    let mut ports = Vec::new();
    for address in &addresses {
        sysfs::bind(*address, &options)?;
        ports.push(Port::open(address, &space, &pool)?);
    }
    wait_for_links(&mut ports)?;
    ports.iter_mut().try_for_each(Port::send_first)?;
    for _ in 0..n_samples {
        let sum = sample(&mut ports)?;
        println!("packets {} ticks {} bursts {}", sum.packets, sum.ticks, sum.bursts);
    }
    for mut port in ports {
        port.nic.stop(std::mem::take(&mut port.queues));
    }
    for address in &addresses {
        sysfs::unbind(*address, &options)?;
    }
    Ok(())
}

fn wait_for_links(ports: &mut [Port]) -> Result<(), Box<dyn Error>> {
    let end = Instant::now() + DEADLINE;
    while !ports.iter_mut().all(|port| port.nic.link().is_up()) {
        if Instant::now() > end {
            return Err("a link does not come up".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn sample(ports: &mut [Port]) -> Result<Sum, Box<dyn Error>> {
    let (mut sum, mut n_idle) = (Sum::default(), 0u32);
    let end = Instant::now() + DEADLINE;
    while sum.packets < SAMPLE_PACKETS {
        let before = sum.packets;
        ports.iter_mut().for_each(|port| port.turn(&mut sum));
        if sum.packets == before {
            n_idle += 1;
            if n_idle.is_multiple_of(IDLE_TURNS) && Instant::now() > end {
                return Err("no frames come round".into());
            }
        }
    }
    Ok(sum)
}

impl Port {
    fn open(address: &PciAddress, space: &DmaSpace, pool: &Pool) -> Result<Port, Box<dyn Error>> {
        let mut nic = nic::open(vfio::open(space, address)?, space)?;
        nic.set_promiscuous(true)?;
        let queues = nic.start(pool, 1)?;
        Ok(Port { cache: pool.cache(), queues, burst: Burst::new(), nic })
    }

    /// A burst that goes round from then on.
    fn send_first(&mut self) -> Result<(), Box<dyn Error>> {
        let mut frame = [0; FRAME_BYTES];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0xfe]);
        frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 0xfd, 0x88, 0xb5]);
        for _ in 0..BURST {
            let mut packet = self.cache.alloc().ok_or("the pool is empty")?;
            packet.append(&frame).map_err(|_| "a frame fits a buffer")?;
            self.burst.push(packet).map_err(|_| "a burst fits")?;
        }
        self.queues.tx[0].tx_burst(&mut self.cache, &mut self.burst);
        Ok(())
    }

    /// Receives and sends; counted only when there was something, as testpmd does.
    fn turn(&mut self, sum: &mut Sum) {
        let Port { cache, queues: Queues { rx, tx }, burst, .. } = self;
        let (Some(rx), Some(tx)) = (rx.first_mut(), tx.first_mut()) else { return };
        let start = tsc::now();
        let n = rx.rx_burst(cache, burst);
        if burst.is_empty() {
            return;
        }
        tx.tx_burst(cache, burst);
        sum.ticks += tsc::now() - start;
        sum.packets += n as u64;
        sum.bursts += 1;
    }
}
