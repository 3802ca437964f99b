//! Takes a virtio NIC through the life of a VFIO function and says what it saw: the lab's proof of `vfio` and `pci`
//! on a real kernel, and a first check on a machine with a new IOMMU.
//!
//! `vfio_probe list`, `vfio_probe bind|unbind ADDRESS STATE_DIR`, `vfio_probe open ADDRESS...`,
//! `vfio_probe hold ADDRESS` (until the kernel wants it back).

use std::error::Error;
use std::time::{Duration, Instant};

use spp_drivers::MacAddr;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::pci::sysfs::{self, BindOptions};
use spp_drivers::pci::{PciAddress, PciFunction, Registers};
use spp_drivers::vfio::{self, VfioBar, VfioFunction};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["list"] => list(),
        ["bind", address, state] => bind(address, state),
        ["unbind", address, state] => unbind(address, state),
        ["open", addresses @ ..] if !addresses.is_empty() => open(addresses),
        ["hold", address] => hold(address),
        _ => Err("vfio_probe list | bind|unbind ADDRESS STATE_DIR | open ADDRESS... | hold ADDRESS".into()),
    };
    if let Err(error) = done {
        println!("error: {error}");
        std::process::exit(1);
    }
}

fn list() -> Result<(), Box<dyn Error>> {
    for nic in sysfs::list_nics()? {
        println!("{nic:?}");
    }
    Ok(())
}

fn options(state: &str) -> BindOptions {
    BindOptions { force: false, state_dir: state.into() }
}

fn bind(address: &str, state: &str) -> Result<(), Box<dyn Error>> {
    println!("{:?}", sysfs::bind(address.parse()?, &options(state))?);
    Ok(())
}

fn unbind(address: &str, state: &str) -> Result<(), Box<dyn Error>> {
    println!("{:?}", sysfs::unbind(address.parse()?, &options(state))?);
    Ok(())
}

/// Twice, since the container comes and goes with the devices; the memory stays.
fn open(addresses: &[&str]) -> Result<(), Box<dyn Error>> {
    let space = DmaSpace::new();
    let pool = Pool::new(&space, PoolConfig { n_buffers: 1024 })?;
    for _ in 0..2 {
        let mut functions = Vec::new();
        for address in addresses {
            functions.push(vfio::open(&space, &address.parse::<PciAddress>()?)?);
        }
        let late = Pool::new(&space, PoolConfig { n_buffers: 64 })?;
        for function in &functions {
            show(function)?;
        }
        drop((functions, late));
    }
    println!("buffers out: {}", pool.counts().out);
    Ok(())
}

/// Keeps the function, with DMA on, until the kernel asks for it.
fn hold(address: &str) -> Result<(), Box<dyn Error>> {
    let space = DmaSpace::new();
    let pool = Pool::new(&space, PoolConfig { n_buffers: 1024 })?;
    let function = vfio::open(&space, &address.parse::<PciAddress>()?)?;
    show(&function)?;
    println!("held");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !function.removal_requested() {
        if Instant::now() > deadline {
            return Err("nobody wanted it back".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(function);
    println!("given back, buffers out: {}", pool.counts().out);
    Ok(())
}

fn show(function: &VfioFunction) -> Result<(), Box<dyn Error>> {
    function.set_bus_master(true)?;
    println!("{} reset: {}", function.address(), function.reset()?);
    function.set_bus_master(true)?;
    let (bar, offset) = device_config(function)?;
    let mut mac = MacAddr([0; 6]);
    for (i, byte) in mac.0.iter_mut().enumerate() {
        *byte = bar.read8(offset + i);
    }
    println!("{} mac: {mac}", function.address());
    let fits = bar.len_bytes() >= offset + 6 && !bar.is_poisoned();
    println!("{} bar: {}", function.address(), if fits { "mapped" } else { "poisoned" });
    println!("{} vectors: {}", function.address(), function.enable_msix(2)?.len());
    println!("{} vectors again: {}", function.address(), function.enable_msix(64)?.len());
    println!("{} removal requested: {}", function.address(), function.removal_requested());
    Ok(())
}

/// The device-specific configuration of a virtio function (virtio 1.2, 4.1.4): its BAR and the offset in it.
fn device_config(function: &VfioFunction) -> Result<(VfioBar, usize), Box<dyn Error>> {
    const VENDOR_CAPABILITY: u8 = 0x09;
    const DEVICE_CFG: u8 = 4;
    let mut at = [0];
    function.config_read(0x34, &mut at)?;
    while at[0] != 0 {
        let mut cap = [0; 16];
        function.config_read(u16::from(at[0]), &mut cap)?;
        if cap[0] == VENDOR_CAPABILITY && cap[3] == DEVICE_CFG {
            let offset = u32::from_le_bytes([cap[8], cap[9], cap[10], cap[11]]);
            return Ok((function.map_bar(cap[4])?, offset as usize));
        }
        at[0] = cap[1];
    }
    Err("no virtio device configuration".into())
}
