//! Sends every frame of some NICs back to its sender: the lab's proof of the drivers on devices that are not ours,
//! and a first check on a new machine.
//!
//! `nic_echo DIR ADDRESS...`: binds the NICs to vfio-pci, runs until `DIR/stop` exists, starts NIC n anew for each
//! `DIR/restart-n` it finds, has it filter addresses from `DIR/filter-n` on, switches its registers off for `DIR/vanish-n`,
//! says on standard output what changed, and gives the NICs back. A UDP frame to port 4242
//! leaves with its checksum undone, for the NIC to complete, or for software where the NIC can't. One to port 4243 is
//! answered to the socket it came from. Once there was a file `DIR/retag-n` NIC n (until it is started anew) sends all frames back with
//! one tag in place of the one they may have: the card does it, or software what the card can't. `ADDRESS/N` starts the NIC with N pairs of queues.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::offload::{F_NEEDS_CSUM, Offload, Offloads, checksum};
use spp_drivers::pci::sysfs::{self, BindOptions};
use spp_drivers::pci::{PciAddress, PciFunction};
use spp_drivers::port::{Device, HEALTH_INTERVAL, Health, Link, PortError, Queues};
use spp_drivers::vfio::{self, VfioBar, VfioFunction};
use spp_drivers::{MacAddr, nic, vlan};

/// Each NIC has a pool of its own, in three huge pages: both rings of the longest there are, and what the loop holds.
const BUFFERS: u32 = 2560;
const IPV4_UDP: [u8; 3] = [8, 0, 0x45];
/// IPv4 header without options.
const UDP_AT: usize = 34;
const UDP_CHECK: usize = 6;
/// An address besides a NIC's own, for those that have to ask for it.
const FURTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);
/// The one VLAN that a virtual function asks for.
const VLAN: u16 = 100;
/// The tag that frames are sent back with: that VLAN, priority 5.
const RETAG: u16 = vlan::tci(VLAN, 5);
const MARKED_PORT: [u8; 2] = 4242u16.to_be_bytes();
const ANSWERED_PORT: [u8; 2] = 4243u16.to_be_bytes();

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [dir, addresses @ ..] if !addresses.is_empty() => run(Path::new(dir), addresses),
        _ => Err("nic_echo DIR ADDRESS[/N]...".into()),
    };
    if let Err(error) = done {
        println!("error: {error}");
        std::process::exit(1);
    }
}

struct Echo {
    pool: Pool,
    cache: PoolCache,
    nic: Box<dyn Device>,
    queues: Queues,
    link: Option<Link>,
    /// Starts it anew.
    restart: PathBuf,
    /// Ends its promiscuity.
    filter: PathBuf,
    /// Sends frames back with another tag.
    retag: PathBuf,
    /// It does: whether the queues strip, and whether they insert.
    by_card: Option<[bool; 2]>,
    name: String,
    n_pairs: u16,
}

fn address_and_pairs(word: &str) -> Result<(PciAddress, u16), Box<dyn Error>> {
    let (address, n_pairs) = word.split_once('/').unwrap_or((word, "1"));
    Ok((address.parse()?, n_pairs.parse()?))
}

fn run(dir: &Path, addresses: &[String]) -> Result<(), Box<dyn Error>> {
    let options = BindOptions { force: false, state_dir: dir.into() };
    let addresses = addresses.iter().map(|word| address_and_pairs(word)).collect::<Result<Vec<_>, _>>()?;
    let space = DmaSpace::new();
    let (mut echoes, mut pools) = (Vec::new(), Vec::new());
    for (n, (address, n_pairs)) in addresses.iter().enumerate() {
        let pool = Pool::new(&space, PoolConfig { n_buffers: BUFFERS })?;
        pools.push(pool.clone());
        sysfs::bind(*address, &options)?;
        let function = vfio::open(&space, address)?;
        let vanish = dir.join(format!("vanish-{n}"));
        let mut nic = nic::open(Vanishing { function, vanish }, &space)?;
        nic.set_promiscuous(true)?;
        nic.set_unicast(&[FURTHER])?;
        nic.set_vlans(&[VLAN])?;
        let [restart, filter, retag] =
            ["restart", "filter", "retag"].map(|order| dir.join(format!("{order}-{n}")));
        let name = format!("nic {n}");
        println!("{name}: {} mac {:?}", nic.info().driver, nic.mac());
        let (cache, queues, n_pairs) = (pool.cache(), Queues::default(), *n_pairs);
        let (link, by_card) = (None, None);
        let mut echo =
            Echo { pool, cache, nic, queues, link, restart, filter, retag, by_card, name, n_pairs };
        echo.start()?;
        echoes.push(echo);
    }
    let mut next_look = Instant::now();
    let mut burst = Burst::new();
    loop {
        echoes.iter_mut().for_each(|echo| echo.turn(&mut burst));
        if Instant::now() < next_look {
            continue;
        }
        next_look = Instant::now() + HEALTH_INTERVAL;
        for echo in &mut echoes {
            echo.look()?;
        }
        if dir.join("stop").exists() {
            break;
        }
    }
    for mut echo in echoes {
        echo.stop();
    }
    println!("buffers out: {}", pools.iter().map(|pool| pool.counts().out).sum::<u32>());
    for (address, _) in addresses {
        let before = sysfs::unbind(address, &options)?.0;
        println!("unbound: {address}, now {before:?}");
    }
    Ok(())
}

/// Command register (PCI 3.0, 6.2.2).
const COMMAND: u16 = 4;
const COMMAND_MEMORY: u8 = 1 << 1;

/// A function whose memory decoding goes off behind its driver when a file says so: its mapped registers are gone.
struct Vanishing {
    function: VfioFunction,
    vanish: PathBuf,
}

impl PciFunction for Vanishing {
    type Bar = VfioBar;

    fn address(&self) -> &str {
        self.function.address()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), PortError> {
        self.function.config_read(offset, buf)
    }

    fn config_write(&self, offset: u16, bytes: &[u8]) -> Result<(), PortError> {
        self.function.config_write(offset, bytes)
    }

    fn map_bar(&self, index: u8) -> Result<VfioBar, PortError> {
        self.function.map_bar(index)
    }

    fn set_bus_master(&self, on: bool) -> Result<(), PortError> {
        self.function.set_bus_master(on)
    }

    fn reset(&self) -> Result<bool, PortError> {
        self.function.reset()
    }

    fn enable_msix(&self, n: usize) -> Result<Vec<OwnedFd>, PortError> {
        self.function.enable_msix(n)
    }

    fn numa_node(&self) -> Option<u32> {
        self.function.numa_node()
    }

    /// Drivers ask this whenever they look after the device's health.
    fn removal_requested(&self) -> bool {
        if std::fs::remove_file(&self.vanish).is_ok() {
            let mut command = [0];
            let read = self.function.config_read(COMMAND, &mut command);
            let off = read.and_then(|()| self.config_write(COMMAND, &[command[0] & !COMMAND_MEMORY]));
            println!("{}: memory decoding off: {off:?}", self.address());
        }
        self.function.removal_requested()
    }
}

impl Echo {
    fn start(&mut self) -> Result<(), Box<dyn Error>> {
        self.queues = self.nic.start(&self.pool, self.n_pairs)?;
        (self.link, self.by_card) = (None, None);
        println!("{}: started", self.name);
        Ok(())
    }

    fn stop(&mut self) {
        for (name, value) in self.nic.device_counters().into_iter().filter(|c| c.1 > 0) {
            println!("{}: counter {name} {value}", self.name);
        }
        for half in &self.queues.rx {
            println!("{}: rx {:?}", self.name, half.stats().snapshot());
        }
        for half in &self.queues.tx {
            println!("{}: tx {:?}", self.name, half.stats().snapshot());
        }
        self.nic.stop(std::mem::take(&mut self.queues));
    }

    /// From now on frames go back with another tag; who sees to it.
    fn ask_for_tags(&mut self) {
        let Queues { rx, tx } = &mut self.queues;
        let strips = rx.iter_mut().fold(true, |all, half| half.strip_vlan(true) & all);
        let inserts = tx.iter_mut().fold(true, |all, half| half.insert_vlan(Some(RETAG)) & all);
        self.by_card = Some([strips, inserts]);
        self.nic.link();
        println!("{}: retags, queues strip {strips}, insert {inserts}", self.name);
    }

    /// Echoes a burst.
    fn turn(&mut self, burst: &mut Burst) {
        let Echo { queues: Queues { rx, tx }, cache, by_card, .. } = self;
        let [strips, inserts] = by_card.unwrap_or([true; 2]);
        for (rx, tx) in rx.iter_mut().zip(tx) {
            if rx.rx_burst(cache, burst) == 0 {
                tx.poll_control();
                continue;
            }
            let offloads = tx.offloads();
            for packet in burst.iter_mut() {
                let untagged = if strips { Ok(()) } else { vlan::remove_tag(packet, cache) };
                turn_round(packet, offloads);
                let tagged = if inserts { Ok(()) } else { vlan::add_tag(packet, RETAG, cache) };
                assert_eq!((untagged, tagged), (Ok(()), Ok(())), "whole frames of our own");
            }
            while !burst.is_empty() {
                tx.tx_burst(cache, burst);
            }
        }
    }

    /// Link and health.
    fn look(&mut self) -> Result<(), Box<dyn Error>> {
        let now = self.nic.link();
        if self.link.as_ref() != Some(&now) {
            println!("{}: link {now:?}", self.name);
            self.link = Some(now);
        }
        if std::fs::remove_file(&self.filter).is_ok() {
            self.nic.set_promiscuous(false)?;
            println!("{}: filters", self.name);
        }
        if std::fs::remove_file(&self.retag).is_ok() {
            self.ask_for_tags();
        }
        let mut again = std::fs::remove_file(&self.restart).is_ok();
        match self.nic.health() {
            Health::Ok => {}
            Health::NeedsRestart(reason) => {
                println!("{}: fault: {reason}", self.name);
                again = true;
            }
            Health::Gone(reason) => return Err(reason.into()),
        }
        if again {
            self.stop();
            self.start()?;
        }
        Ok(())
    }
}

/// Swaps the addresses.
fn turn_round(packet: &mut PacketBuf, offloads: Offloads) {
    let frame = packet.data_mut();
    let (dst, src) = frame[..12].split_at_mut(6);
    dst.swap_with_slice(src);
    let port = frame.first_chunk::<{ UDP_AT + 4 }>().map(|head| [head[UDP_AT + 2], head[UDP_AT + 3]]);
    match port.filter(|_| frame[12..].starts_with(&IPV4_UDP)) {
        Some(MARKED_PORT) => undo_checksum(packet, offloads),
        Some(ANSWERED_PORT) => answer(frame),
        _ => {}
    }
}

/// Swaps what else says who sent a UDP frame to whom; the checksums stay as right, or as undone, as they were.
fn answer(frame: &mut [u8]) {
    let (before, ports) = frame.split_at_mut(UDP_AT);
    let (from, to) = before[UDP_AT - 8..].split_at_mut(4);
    from.swap_with_slice(to);
    let (from, to) = ports[..4].split_at_mut(2);
    from.swap_with_slice(to);
}

/// Leaves the checksum of a UDP frame undone: the sum of the pseudo-header in its place (virtio 1.2, 5.1.6.2).
fn undo_checksum(packet: &mut PacketBuf, offloads: Offloads) {
    let frame = packet.data_mut();
    let word = |at: usize| u32::from(frame[at]) << 8 | u32::from(frame[at + 1]);
    let mut sum = word(26) + word(28) + word(30) + word(32) + 17 + word(UDP_AT + 4);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[UDP_AT + UDP_CHECK..UDP_AT + UDP_CHECK + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    let work = Offload {
        flags: F_NEEDS_CSUM,
        csum_start: UDP_AT as u16,
        csum_offset: UDP_CHECK as u16,
        ..Offload::default()
    };
    packet.set_offload(Some(work));
    if !offloads.contains(Offloads::CSUM) {
        let done = checksum::complete(packet, &work);
        assert!(done.is_ok(), "the place lies in the frame");
    }
}
