//! The guest against rust-vmm's own backend and queue code: an echo that sends every frame back.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const PIECE: usize = 2060;

/// Sends what the guest transmits back to it, in as many buffers as it takes.
struct Echo {
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    event_idx: bool,
    waiting: Vec<Vec<u8>>,
}

impl Echo {
    fn collect(&mut self, vring: &VringMutex) {
        let Some(memory) = self.memory.as_ref().map(|m| m.memory()) else { return };
        let mut state = vring.get_mut();
        let chains: Vec<_> = state.get_queue_mut().iter(memory.clone()).unwrap().collect();
        for chain in chains {
            let (head, mut bytes) = (chain.head_index(), Vec::new());
            for descriptor in chain {
                let old = bytes.len();
                bytes.resize(old + descriptor.len() as usize, 0);
                memory.read_slice(&mut bytes[old..], descriptor.addr()).unwrap();
            }
            state.get_queue_mut().add_used(&*memory, head, 0).unwrap();
            self.waiting.push(bytes.split_off(12));
        }
    }

    fn give_back(&mut self, vring: &VringMutex) {
        let Some(memory) = self.memory.as_ref().map(|m| m.memory()) else { return };
        let mut state = vring.get_mut();
        while let Some(frame) = self.waiting.first() {
            let n_pieces = (frame.len() + 12).div_ceil(PIECE);
            let mut bytes = vec![0; 10];
            bytes.extend((n_pieces as u16).to_le_bytes());
            bytes.extend(frame);
            let chains: Vec<_> = state.get_queue_mut().iter(memory.clone()).unwrap().take(n_pieces).collect();
            if chains.len() < n_pieces {
                let taken = state.get_queue().next_avail().wrapping_sub(chains.len() as u16);
                state.get_queue_mut().set_next_avail(taken);
                return;
            }
            for (chain, piece) in chains.into_iter().zip(bytes.chunks(PIECE)) {
                let head = chain.head_index();
                let descriptor = chain.into_iter().next().unwrap();
                memory.write_slice(piece, descriptor.addr()).unwrap();
                state.get_queue_mut().add_used(&*memory, head, piece.len() as u32).unwrap();
            }
            self.waiting.remove(0);
        }
        if state.get_queue_mut().needs_notification(&*memory).unwrap() {
            state.signal_used_queue().unwrap();
        }
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        1024
    }
    fn features(&self) -> u64 {
        F_VERSION_1 | F_MRG_RXBUF | F_EVENT_IDX | F_INDIRECT_DESC | 1 << 30
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }
    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }
    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> std::io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }
    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> std::io::Result<()> {
        if !vrings[TX_RING].get_ref().get_queue().ready() || !vrings[RX_RING].get_ref().get_queue().ready() {
            return Ok(());
        }
        loop {
            vrings[TX_RING].disable_notification().unwrap();
            vrings[RX_RING].disable_notification().unwrap();
            self.collect(&vrings[TX_RING]);
            self.give_back(&vrings[RX_RING]);
            let more_tx = vrings[TX_RING].enable_notification().unwrap();
            let more_rx = vrings[RX_RING].enable_notification().unwrap();
            if !more_tx && (!more_rx || self.waiting.is_empty()) {
                return Ok(());
            }
        }
    }
}

/// A backend that listens at `path` for one connection.
fn echo_backend(path: PathBuf) -> JoinHandle<()> {
    let mut listener = Listener::new(&path, true).unwrap();
    std::thread::spawn(move || {
        let echo = Echo { memory: None, event_idx: false, waiting: Vec::new() };
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("echo".into(), Arc::new(Mutex::new(echo)), memory).unwrap();
        daemon.start(&mut listener).unwrap();
        let _ = daemon.wait();
    })
}

fn frame(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n * 7 + i * 3) as u8).collect()
}

/// Sends `lens.len()` frames and takes them back in order.
fn echo_all(guest: &mut Guest, lens: &[usize]) {
    let (mut sent, mut got, mut buf) = (0, 0, Vec::new());
    let end = Instant::now() + DEADLINE;
    while got < lens.len() {
        if sent < lens.len() && sent < got + 64 && guest.send(&frame(sent, lens[sent])) {
            sent += 1;
        }
        if guest.receive(&mut buf) {
            assert_eq!(buf, frame(got, lens[got]), "frame {got}");
            got += 1;
        }
        assert_eq!(guest.fault(), None);
        assert!(Instant::now() < end, "sent {sent}, got {got} of {}", lens.len());
    }
}

fn config(dir: &tempfile::TempDir) -> GuestConfig {
    let mut config = GuestConfig::new(dir.path().join("s"), Role::Client);
    config.order = MessageOrder::VirtioUser;
    config
}

#[test]
fn frames_come_back_in_order_over_the_index_wrap_in_every_layout() {
    for tx_layout in [TxLayout::OneDescriptor, TxLayout::HeaderApart, TxLayout::Indirect] {
        for memory in [MemoryLayout::OneRegion, MemoryLayout::TwoRegionsOneFile, MemoryLayout::TwoFiles] {
            let dir = tempfile::tempdir().unwrap();
            let backend = echo_backend(dir.path().join("s"));
            let mut config = GuestConfig { tx_layout, memory, first_index: 65_530, ..config(&dir) };
            config.event_idx = memory != MemoryLayout::OneRegion;
            let mut guest = Guest::attach(config, DEADLINE).unwrap();
            let lens: Vec<_> = (0..300).map(|i| [64, 65, 1500, 2048][i % 4]).collect();
            echo_all(&mut guest, &lens);
            assert_eq!(guest.counters().received, 300);
            drop(guest);
            backend.join().unwrap();
        }
    }
}

#[test]
fn long_frames_take_several_buffers_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let backend = echo_backend(dir.path().join("s"));
    let mut guest = Guest::attach(GuestConfig { ring_size: 64, ..config(&dir) }, DEADLINE).unwrap();
    echo_all(&mut guest, &[4000, 64, 2049, 9000, 16_384, 60]);
    assert!(!guest.send(&[0; 33 * 2048 + 1]), "more than 33 buffers");
    drop(guest);
    backend.join().unwrap();
}

#[test]
fn new_backend_goes_on_where_the_old_one_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let backend = echo_backend(path.clone());
    let mut guest = Guest::attach(config(&dir), DEADLINE).unwrap();
    echo_all(&mut guest, &[64; 100]);
    guest.disconnect();
    assert!(!guest.is_connected());
    backend.join().unwrap();
    assert!(guest.send(&frame(0, 77)), "the ring takes frames while nobody is there");
    let backend = echo_backend(path);
    guest.reconnect(DEADLINE).unwrap();
    assert!(guest.is_connected());
    let mut buf = Vec::new();
    let end = Instant::now() + DEADLINE;
    while !guest.receive(&mut buf) {
        assert!(Instant::now() < end, "the frame sent in between arrives");
    }
    assert_eq!(buf, frame(0, 77));
    echo_all(&mut guest, &[128; 100]);
    drop(guest);
    backend.join().unwrap();
}

#[test]
fn reboot_starts_fresh_rings_with_other_features() {
    let dir = tempfile::tempdir().unwrap();
    let backend = echo_backend(dir.path().join("s"));
    let mut guest = Guest::attach(config(&dir), DEADLINE).unwrap();
    echo_all(&mut guest, &[64; 10]);
    guest.reboot(|config| config.mrg_rxbuf = false).unwrap();
    assert_eq!(guest.features() & F_MRG_RXBUF, 0);
    echo_all(&mut guest, &[64; 10]);
    drop(guest);
    backend.join().unwrap();
}

#[test]
fn missing_backend_is_reported_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let result = Guest::attach(config(&dir), Duration::from_millis(20));
    assert!(matches!(result, Err(GuestError::NoBackend { .. })));
}

#[test]
fn ring_size_that_is_no_power_of_two_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let backend = echo_backend(dir.path().join("s"));
    let result = Guest::attach(GuestConfig { ring_size: 100, ..config(&dir) }, DEADLINE);
    assert!(matches!(result, Err(GuestError::Config(_))));
    drop(result);
    backend.join().unwrap();
}
