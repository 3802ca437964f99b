//! Guest memory that changes under traffic, over a real socket: SET_MEM_TABLE again, ADD_MEM_REG and
//! REM_MEM_REG, while a core polls both rings.

mod support;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::{PortConfig, PortState, Role, VhostPort};
use support::*;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const FEATURES: u64 = 1 << 32 | 1 << 30;
const DEADLINE: Duration = Duration::from_secs(20);
const SIZE: u16 = 256;

fn region_of(memory: &Memory, second: bool) -> VhostUserMemoryRegionInfo {
    let (gpa, offset) = if second { (REGION, 3 * REGION) } else { (0, 0) };
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: REGION,
        userspace_addr: VA + gpa,
        mmap_offset: offset,
        mmap_handle: memory.file.as_raw_fd(),
    }
}

/// Only the transmit ring is used by the test; both exist.
fn set_up(frontend: &mut Frontend, memory: &Memory) {
    frontend.get_features().unwrap();
    frontend.get_protocol_features().unwrap();
    let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_owner().unwrap();
    frontend.set_features(FEATURES).unwrap();
    frontend.set_mem_table(&[region_of(memory, false)]).unwrap();
    for ring in 0..2 {
        frontend.set_vring_num(ring, SIZE).unwrap();
        frontend.set_vring_base(ring, 0).unwrap();
        // The receive ring lies apart, and stays empty.
        let shift = if ring == 0 { 0x4_0000 } else { 0 };
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: VA + DESC + shift,
            avail_ring_addr: VA + AVAIL + if ring == 0 { 0x1000 } else { 0 },
            used_ring_addr: VA + USED + if ring == 0 { 0x1_0000 } else { 0 },
            log_addr: None,
        };
        frontend.set_vring_addr(ring, &config).unwrap();
        frontend.set_vring_kick(ring, &EventFd::new(0).unwrap()).unwrap();
        frontend.set_vring_enable(ring, true).unwrap();
    }
}

#[test]
fn memory_changes_under_traffic_lose_no_frame_and_leave_no_mapping() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock0");
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 512 }).unwrap();
    let config = PortConfig::new("vhost:0", &path, Role::Server);
    let (port, mut to_guest, mut from_guest) = VhostPort::open(config, &pool).unwrap();
    let memory = Memory::new();
    let guest = Memory::over(&memory);
    let done = Arc::new(AtomicBool::new(false));
    let flag = done.clone();
    let control = std::thread::spawn(move || {
        let mut frontend = Frontend::from_stream(UnixStream::connect(&path).unwrap(), 2);
        set_up(&mut frontend, &memory);
        for round in 0..200 {
            let second = region_of(&memory, true);
            match round % 4 {
                0 => frontend.add_mem_region(&second).map(drop).unwrap(),
                1 => frontend.remove_mem_region(&second).unwrap(),
                // The same file mapped anew, with both regions and then with one.
                2 => frontend.set_mem_table(&[region_of(&memory, false), second]).map(drop).unwrap(),
                _ => frontend.set_mem_table(&[region_of(&memory, false)]).map(drop).unwrap(),
            }
        }
        // A table that does not hold the rings stops them; the next one that does starts them again.
        frontend.set_mem_table(&[region_of(&memory, true)]).unwrap();
        frontend.set_mem_table(&[region_of(&memory, false)]).unwrap();
        assert!(
            frontend.add_mem_region(&region_of(&memory, false)).is_err(),
            "twice the same: refused, with a reply"
        );
        flag.store(true, Ordering::Release);
        // Stays connected until the traffic is over.
        frontend
    });
    // The guest and the core, in turns: offer a frame, receive it, count.
    let mut cache = pool.cache();
    let (mut burst, mut avail, mut received) = (Burst::new(), 0u16, 0u64);
    let deadline = Instant::now() + DEADLINE;
    // Before it is enabled the ring would be drained.
    while port.status().state != PortState::Running {
        assert!(Instant::now() < deadline, "{:#?}", port.status());
        from_guest.poll_control();
        to_guest.poll_control();
    }
    let mut last_turns = 100;
    while last_turns > 0 {
        assert!(Instant::now() < deadline, "{:#?}", port.status());
        if done.load(Ordering::Acquire) {
            last_turns -= 1;
        }
        let slot = u64::from(avail % SIZE);
        let frame = frame(60 + received as usize % 1000, received as u8);
        guest.write(BUFFERS + 12, &frame);
        guest.desc(DESC, avail % SIZE, BUFFERS, 12 + frame.len() as u32, 0, 0);
        guest.write(AVAIL + 4 + 2 * slot, &(avail % SIZE).to_le_bytes());
        avail = avail.wrapping_add(1);
        guest.write(AVAIL + 2, &avail.to_le_bytes());
        while burst.is_empty() {
            assert!(Instant::now() < deadline, "frame {received}: {:#?}", port.status());
            from_guest.rx_burst(&mut cache, &mut burst);
            to_guest.poll_control();
            if burst.is_empty() {
                std::thread::yield_now();
            }
        }
        assert_eq!((burst.len(), bytes(&burst[0])), (1, frame), "frame {received}");
        burst.free_all(&mut cache);
        received += 1;
    }
    let frontend = control.join().unwrap();
    let status = port.status();
    assert_eq!((status.state, status.from_guest.total_drops()), (PortState::Running, 0));
    assert_eq!(status.from_guest.packets, received);
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:guest").count();
    assert_eq!(mapped(), 2, "the guest's own mapping, and one region of the port's");
    drop(frontend);
    port.close(to_guest, from_guest);
    assert_eq!(mapped(), 1);
}
