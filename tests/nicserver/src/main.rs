//! `nic_server`: the 82599 model as a device process for QEMU's `vfio-user-pci`.
//!
//! Three threads: the socket's (register access, mappings, interrupts' eventfds), the card's (rings, frames, interrupts)
//! and the wire's (one frame per datagram). Commands come as datagrams and are answered by a line on standard output.

mod config;
mod dma;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use config::Config;
use dma::Maps;
use spp_drivers::ixgbe::model::{BAR_BYTES, Card, Fault, Model, Module, N_VECTORS};
use vfio_bindings::bindings::vfio::vfio_region_info;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

const CONFIG_REGION: u32 = 7;
const MSIX_REGION_BYTES: u64 = 0x4000;
const MSIX_IRQ: u32 = 2;

/// Serves the model of an 82599 to QEMU.
#[derive(Parser)]
struct Args {
    /// Socket for QEMU's vfio-user-pci
    #[arg(long)]
    socket: PathBuf,
    /// PCI device id below vendor 8086, hexadecimal
    #[arg(long, value_parser = hex)]
    device: u16,
    /// Address in the card's EEPROM
    #[arg(long, value_parser = mac, default_value = "02:00:00:82:59:90")]
    mac: [u8; 6],
    /// Our end of the wire: one frame per datagram
    #[arg(long)]
    wire_here: PathBuf,
    /// The wire's far end
    #[arg(long)]
    wire_there: PathBuf,
    /// Where commands come in
    #[arg(long)]
    control: PathBuf,
}

fn hex(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 16).map_err(|e| e.to_string())
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let parsed = text.parse::<spp_drivers::MacAddr>();
    parsed.map(|mac| mac.0).map_err(|e| e.to_string())
}

struct Shared {
    model: Mutex<Model>,
    wake: Condvar,
    maps: Maps,
    vectors: Mutex<Vec<Option<File>>>,
    /// The wire's far end.
    there: Mutex<PathBuf>,
}

impl Shared {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn vectors(&self) -> MutexGuard<'_, Vec<Option<File>>> {
        self.vectors.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The card's own thread: works, sends what leaves, raises interrupts; sleeps while there is nothing.
fn run_card(shared: &Shared, wire: &UnixDatagram) {
    let mut last = Instant::now();
    let mut model = shared.model();
    loop {
        let now = Instant::now();
        model.advance_us(now.duration_since(last).as_micros() as u64);
        last = now;
        model.step(&shared.maps);
        let (sent, fires) = (model.take_sent(), model.take_interrupts());
        if sent.is_empty() && fires == 0 {
            let pause = Duration::from_millis(1);
            let waited = shared.wake.wait_timeout(model, pause);
            model = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
            continue;
        }
        drop(model);
        let there =
            shared.there.lock().map_or_else(|poisoned| poisoned.into_inner().clone(), |path| path.clone());
        for frame in &sent {
            let _ = wire.send_to(frame, &there); // nobody there: the frame is lost, as on a wire
        }
        let vectors = shared.vectors();
        for vector in (0..N_VECTORS).filter(|v| fires >> v & 1 == 1) {
            if let Some(event) = vectors.get(vector).and_then(Option::as_ref) {
                let _ = rustix::io::write(event, &1u64.to_ne_bytes());
            }
        }
        drop(vectors);
        model = shared.model();
    }
}

fn run_wire(shared: &Shared, wire: &UnixDatagram) {
    let mut bytes = vec![0; 65_536];
    while let Ok(len) = wire.recv(&mut bytes) {
        shared.model().inject(&bytes[..len]);
        shared.wake.notify_one();
    }
}

/// One command: what to do, and the line that answers.
fn command(model: &mut Model, text: &str) -> String {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        ["cable", on @ ("in" | "out")] => model.set_cable(on == "in"),
        ["module", "none"] => model.set_module(None),
        ["module", "sr"] => model.set_module(Some(Module::IntelSr)),
        ["module", "foreign"] => model.set_module(Some(Module::ForeignSr)),
        ["fault", "tx-hang"] => model.set_fault(Some(Fault::TxHang)),
        ["fault", "garbage-length"] => model.set_fault(Some(Fault::GarbageLength(0xffff))),
        ["fault", "gone"] => model.set_fault(Some(Fault::Gone)),
        ["fault", "none"] => model.set_fault(None),
        ["state"] => {}
        _ => return format!("unknown command: {text}"),
    }
    format!(
        "{text}: resets {}, bus master {}, waiting {}, violations {:?}",
        model.n_resets(),
        model.bus_master(),
        model.waiting(),
        model.violations()
    )
}

fn run_control(shared: &Shared, control: &UnixDatagram) {
    let mut bytes = vec![0; 4096];
    while let Ok(len) = control.recv(&mut bytes) {
        let text = String::from_utf8_lossy(&bytes[..len]);
        let answer = match text.strip_prefix("wire ") {
            Some(path) => {
                *shared.there.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = path.into();
                format!("wire leads to {path}")
            }
            None => command(&mut shared.model(), &text),
        };
        println!("{answer}");
        shared.wake.notify_one();
    }
}

struct Backend {
    shared: Arc<Shared>,
    config: Config,
}

impl Backend {
    fn apply_command(&mut self) {
        self.shared.model().set_bus_master(self.config.bus_master());
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        match region {
            0 => {
                let mut model = self.shared.model();
                for (i, word) in data.chunks_mut(4).enumerate() {
                    let value = model.read(offset as usize + 4 * i).to_le_bytes();
                    word.copy_from_slice(&value[..word.len()]);
                }
            }
            CONFIG_REGION => self.config.read(offset as usize, data),
            _ => {}
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            0 => {
                let mut model = self.shared.model();
                for (i, word) in data.chunks_exact(4).enumerate() {
                    let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    model.write(offset as usize + 4 * i, value);
                }
                self.shared.wake.notify_one();
            }
            CONFIG_REGION => {
                if self.config.write(offset as usize, data).reset {
                    return self.reset();
                }
                self.apply_command();
            }
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        iova: u64,
        len: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        // Memory without a file (a ROM, a BAR of another device) can't be reached by a model in another process.
        fd.map_or(Ok(()), |file| self.shared.maps.map(iova, len, &file, offset))
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, iova: u64, len: u64) -> io::Result<()> {
        self.shared.maps.unmap(iova, len);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.config.reset();
        self.apply_command();
        self.shared.model().reset();
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, _: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        if index != MSIX_IRQ {
            return Ok(());
        }
        let mut vectors = self.shared.vectors();
        if count == 0 {
            vectors.iter_mut().for_each(|vector| *vector = None);
        }
        let mut fds = fds.into_iter();
        for vector in vectors.iter_mut().skip(start as usize).take(count as usize) {
            *vector = fds.next();
        }
        Ok(())
    }
}

fn regions() -> Vec<ServerRegion> {
    let size = |index| match index {
        0 => BAR_BYTES as u64,
        4 => MSIX_REGION_BYTES,
        CONFIG_REGION => config::BYTES as u64,
        _ => 0,
    };
    let region = |index| ServerRegion {
        region_info: vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags: if size(index) > 0 { 3 } else { 0 },
            index,
            cap_offset: 0,
            size: size(index),
            offset: 0,
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    (0..9).map(region).collect()
}

fn irqs() -> Vec<IrqInfo> {
    let irq = |index| IrqInfo {
        index,
        flags: if index == MSIX_IRQ { 9 } else { 0 }, // eventfd, no resize
        count: if index == MSIX_IRQ { u32::from(config::N_VECTORS) } else { 0 },
    };
    (0..5).map(irq).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let shared = Arc::new(Shared {
        model: Mutex::new(Model::new(Card::of_id(args.device, args.mac))),
        wake: Condvar::new(),
        maps: Maps::default(),
        vectors: Mutex::new((0..N_VECTORS).map(|_| None).collect()),
        there: Mutex::new(args.wire_there),
    });
    let wire = UnixDatagram::bind(&args.wire_here)?;
    let control = UnixDatagram::bind(&args.control)?;
    let (for_card, for_wire, for_control) = (shared.clone(), shared.clone(), shared.clone());
    let card_wire = wire.try_clone()?;
    thread::spawn(move || run_card(&for_card, &card_wire));
    thread::spawn(move || run_wire(&for_wire, &wire));
    thread::spawn(move || run_control(&for_control, &control));
    let server = Server::new(&args.socket, true, irqs(), regions()).map_err(|e| format!("{e:?}"))?;
    println!("serving 8086:{:04x}", args.device);
    let mut backend = Backend { shared, config: Config::new(args.device) };
    loop {
        if let Err(error) = server.run(&mut backend) {
            println!("connection ended: {error:?}");
        }
        backend.reset()?;
        backend.shared.maps.clear();
    }
}
