//! The ring walkers, split and packed, both directions, over a guest that writes anything anywhere at
//! any time: while a burst runs, another thread goes on writing.
//!
//! Checked: no panic, no hang, every buffer back, and not one byte of the guest's file changed outside the
//! regions that were shared.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::offload::Offloads;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::handover::{Command, Handover, handover};
use spp_vhost::lanes::{Lane, LaneStats};
use spp_vhost::memory::{FrontendVa, GuestMap, RegionInfo};
use spp_vhost::vring::layout::RingAddr;
use spp_vhost::vring::{Ring, RingFeatures, RingMemory};
use spp_vhost::{FromGuest, ToGuest};

use crate::Input;

use file::File;

mod file {
    //! The guest's memory as a file, written with `pwrite`: coherent with its shared mappings, and no unsafe.

    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    pub struct File(pub std::fs::File);

    impl File {
        pub fn new(len: u64, fill: u8) -> File {
            let file = std::fs::File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).expect("a memfd"));
            ftruncate(&file, len).expect("a length");
            file.write_all_at(&vec![fill; len as usize], 0).expect("room");
            File(file)
        }

        pub fn write(&self, at: u64, bytes: &[u8]) {
            self.0.write_all_at(bytes, at).expect("inside the file");
        }

        pub fn read(&self, at: u64, len: u64) -> Vec<u8> {
            let mut bytes = vec![0; len as usize];
            self.0.read_exact_at(&mut bytes, at).expect("inside the file");
            bytes
        }
    }
}

/// Two shared regions, neighbours in guest addresses, with unshared file before, between and behind.
const REGIONS: [(u64, u64, u64); 2] = [(0, 0x8000, 0x4000), (0x8000, 0x4000, 0x10000)]; // gpa, len, offset
const FILE_BYTES: u64 = 0x18000;
const CANARY: u8 = 0xc7;
/// Frontend addresses are guest addresses plus this.
const VA: u64 = 0x7000_0000_0000;

const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x1800;
const TABLE: u64 = 0x2000;

/// Addresses a guest may like: rings themselves, a table, ends of regions, nowhere.
const ADDRESSES: [u64; 12] =
    [DESC, AVAIL, USED, TABLE, 0x3000, 0x4fff, 0x7ff0, 0x7fff, 0x8000, 0xbff8, 0xc000, u64::MAX - 7];
const LENGTHS: [u32; 10] = [0, 1, 10, 12, 26, 76, 1526, 2060, 0x9000, u32::MAX];

/// One write of a guest.
#[derive(Clone)]
struct Write {
    gpa: u64,
    bytes: Vec<u8>,
}

impl Write {
    fn apply(&self, file: &File) {
        let region = REGIONS.iter().find(|(gpa, len, _)| (*gpa..gpa + len).contains(&self.gpa));
        let Some((gpa, len, offset)) = region else { return };
        let room = (gpa + len - self.gpa) as usize;
        file.write(offset + self.gpa - gpa, &self.bytes[..self.bytes.len().min(room)]);
    }

    /// Descriptors in ring or table, indices, event fields, or any eight bytes.
    fn from(input: &mut Input<'_>, size: u16) -> Write {
        let at = |base: u64, unit: u64, input: &mut Input<'_>| base + unit * u64::from(input.u16() % size);
        match input.below(6) {
            0 | 1 => {
                let base = input.pick(&[DESC, DESC, TABLE]);
                let gpa = at(base, 16, input);
                let addr = input.pick(&ADDRESSES).wrapping_add(u64::from(input.u8()) * 16);
                let (third, fourth) = (input.u16() % (size + 1), input.u16() & 0x80ff);
                let mut bytes = addr.to_le_bytes().to_vec();
                bytes.extend(input.pick(&LENGTHS).to_le_bytes());
                // Split: flags, next. Packed: id, flags. Either way both orders are tried.
                bytes.extend(if input.u8() & 1 == 0 { third } else { fourth & 7 }.to_le_bytes());
                bytes.extend(if input.u8() & 1 == 0 { fourth } else { third }.to_le_bytes());
                Write { gpa, bytes }
            }
            2 => Write {
                gpa: at(AVAIL + 4, 2, input),
                bytes: (input.u16() % (size + 1)).to_le_bytes().to_vec(),
            },
            3 => Write { gpa: AVAIL + 2, bytes: input.u16().to_le_bytes().to_vec() },
            4 => Write { gpa: input.pick(&[AVAIL, USED, USED + 2]), bytes: input.bytes(4).to_vec() },
            _ => Write { gpa: u64::from(input.u16()) % 0xc000, bytes: input.bytes(8).to_vec() },
        }
    }
}

/// Either half.
enum Half {
    From(Box<FromGuest>),
    To(Box<ToGuest>),
}

impl Half {
    fn build(from_guest: bool, lane: Lane, bell: Arc<AtomicUsize>, pool: &Pool) -> Half {
        if from_guest {
            Half::From(Box::new(FromGuest::new([lane], bell, pool)))
        } else {
            Half::To(Box::new(ToGuest::new([lane], bell)))
        }
    }

    fn poll_control(&mut self) {
        match self {
            Half::From(half) => half.poll_control(),
            Half::To(half) => half.poll_control(),
        }
    }

    fn burst(&mut self, cache: &mut PoolCache, input: &mut Input<'_>) {
        let mut burst = Burst::new();
        match self {
            Half::From(half) => {
                half.rx_burst(cache, &mut burst);
            }
            Half::To(half) => {
                for _ in 0..input.below(32) {
                    let Some(mut packet) = cache.alloc() else { break };
                    let frame = [0x5a; 2048];
                    packet.append(&frame[..14 + usize::from(input.u8()) * 7]).expect("at most 2 KiB");
                    burst.push(packet).expect("room for 32");
                }
                half.tx_burst(cache, &mut burst);
            }
        }
        burst.free_all(cache);
    }
}

fn command(handover: &mut Handover, half: &mut Half, command: Command) {
    std::thread::scope(|scope| {
        let call = scope.spawn(move || handover.call(command));
        while !call.is_finished() {
            half.poll_control();
            std::thread::yield_now();
        }
        // The answer carries what the half had; it ends here, on the control side.
        assert!(call.join().expect("the control side").is_ok(), "a polled half answers");
    });
}

fn map(file: &File) -> Arc<GuestMap> {
    let regions = REGIONS.map(|(gpa, len_bytes, file_offset)| {
        let info = RegionInfo { gpa, len_bytes, frontend_va: VA + gpa, file_offset };
        (info, file.0.try_clone().expect("a descriptor"))
    });
    Arc::new(GuestMap::new(regions).expect("two good regions"))
}

fn ring(file: &File, input: &mut Input<'_>) -> (Ring, u16) {
    let bits = input.u8();
    let packed = bits & 1 != 0;
    let size = if packed { input.pick(&[1, 2, 3, 8, 31, 64]) } else { input.pick(&[1, 2, 4, 8, 32, 64]) };
    let features = RingFeatures {
        packed,
        in_order: bits & 2 != 0,
        mergeable: bits & 4 != 0,
        event_idx: bits & 8 != 0,
        indirect: bits & 16 != 0,
        header_bytes: if bits & 4 != 0 { 12 } else { input.pick(&[10, 12]) },
        from_guest: input.pick(&[Offloads::NONE, Offloads::ALL]),
        to_guest: input.pick(&[Offloads::NONE, Offloads::ALL]),
        max_frame_bytes: usize::MAX,
    };
    let base = input.pick(&[0, 65_530, 0x8000, 0x8000_8000, 0x8001_0001]) + u32::from(input.u8());
    let start = (base as u16).to_le_bytes().to_vec();
    Write { gpa: AVAIL + 2, bytes: start.clone() }.apply(file);
    Write { gpa: USED + 2, bytes: start }.apply(file);
    let addr =
        RingAddr { desc: FrontendVa(VA + DESC), avail: FrontendVa(VA + AVAIL), used: FrontendVa(VA + USED) };
    let memory = RingMemory::new(map(file), addr, size, packed).expect("aligned, in one region");
    (Ring::new(memory, features, None, base), size)
}

/// Runs bursts, during them the writes of a second thread as often as it can.
fn storm(half: &mut Half, cache: &mut PoolCache, file: &File, writes: &[Write], input: &mut Input<'_>) {
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                writes.iter().for_each(|write| write.apply(file));
            }
        });
        for _ in 0..8 {
            half.burst(cache, input);
        }
        end.store(true, Ordering::Relaxed);
    });
}

/// The target.
pub fn rings(data: &[u8]) {
    let mut input = Input::new(data);
    let file = File::new(FILE_BYTES, CANARY);
    for (_, len, offset) in REGIONS {
        file.write(offset, &vec![0; len as usize]);
    }
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 128 }).expect("a small pool");
    let mut cache = pool.cache();
    let bell = Arc::new(AtomicUsize::default());
    let (mut control, mailbox) = handover(bell.clone());
    let lane = Lane::new(mailbox, LaneStats::default());
    let mut half = Half::build(input.u8() & 1 != 0, lane, bell, &pool);
    let (ring, size) = ring(&file, &mut input);
    command(&mut control, &mut half, Command::Start(Box::new(ring), true));
    let mut n_storms = 0;
    while !input.is_empty() {
        match input.below(16) {
            0..12 => Write::from(&mut input, size).apply(&file),
            12 if n_storms < 2 => {
                n_storms += 1;
                let writes: Vec<Write> = (0..6).map(|_| Write::from(&mut input, size)).collect();
                storm(&mut half, &mut cache, &file, &writes, &mut input);
            }
            _ => half.burst(&mut cache, &mut input),
        }
    }
    command(&mut control, &mut half, Command::Stop);
    drop((half, cache));
    assert_eq!(pool.counts().out, 0, "a buffer is lost");
    assert_untouched(&file);
}

/// Everything outside the shared regions is as it was.
fn assert_untouched(file: &File) {
    let mut at = 0;
    let ends = REGIONS.iter().map(|(_, len, offset)| (*offset, offset + len));
    for (start, end) in ends.chain([(FILE_BYTES, FILE_BYTES)]) {
        assert!(
            file.read(at, start - at).iter().all(|byte| *byte == CANARY),
            "a write outside {at:#x}..{start:#x}"
        );
        at = end;
    }
}
