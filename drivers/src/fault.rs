// UNSAFETY: a signal handler that replaces pages of mappings whose backing vanished.
//! A guard against SIGBUS: foreign memory may vanish under our feet, and that must not kill the node.
//!
//! A VM's memory file can be truncated by whoever owns it, and the BAR of a device disappears when
//! the device is unplugged or its memory decoding goes off. Touching such a page raises SIGBUS.
//! Mappings registered with [`guard`] survive it: the handler puts an anonymous page in place of
//! the missing one, marks the mapping poisoned and lets the thread go on; the owner looks at
//! [`Guard::is_poisoned`] once per burst (one load) and winds the mapping up. Any other
//! SIGBUS goes to whoever handled it before.
//!
//! Registering is for set-up threads; the handler runs on whichever thread faulted and
//! uses neither locks nor memory allocation.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

use libc::{c_int, c_void, siginfo_t};

/// Mappings that can be guarded at a time.
pub const MAX_GUARDS: usize = 4096;

const PAGE_BYTES: usize = 4096;

/// What a vanished page reads as from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fill {
    /// Zeros: an empty descriptor, an index that stands still. For guest memory.
    Zeros = 0,
    /// All ones, as a PCI function that is gone answers. For BARs.
    Ones = 1,
}

/// Why a mapping can't be guarded.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The registry is full.
    #[error("more than {MAX_GUARDS} foreign mappings at a time")]
    Full,
    /// The kernel refused the handler.
    #[error("no SIGBUS handler can be installed: {0}")]
    Handler(std::io::Error),
}

/// One guarded mapping, read by the handler under a sequence count.
struct Entry {
    /// Taken by a guard; only its taker writes the rest.
    taken: AtomicBool,
    /// Even while the mapping is registered, odd while the entry is free or changing.
    version: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    fill: AtomicU32,
    poisoned: AtomicBool,
}

impl Entry {
    const fn free() -> Entry {
        Entry {
            taken: AtomicBool::new(false),
            version: AtomicU32::new(1),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            fill: AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    fn fill_in(&self, start: usize, len: usize, fill: Fill) {
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.fill.store(fill as u32, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    fn clear(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        // The next taker's writes must not be seen under the even version that ended here.
        fence(Ordering::Release);
        self.taken.store(false, Ordering::Release);
    }

    /// The mapping, when it is registered and holds `address`. An entry that changes meanwhile is
    /// not the one that faulted: whoever owns that one is not dropping it now.
    fn covering(&self, address: usize) -> Option<(usize, usize, Fill)> {
        let version = self.version.load(Ordering::Acquire);
        if version % 2 == 1 {
            return None;
        }
        let (start, len) = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        let fill =
            if self.fill.load(Ordering::Relaxed) == Fill::Ones as u32 { Fill::Ones } else { Fill::Zeros };
        fence(Ordering::Acquire);
        let steady = self.version.load(Ordering::Relaxed) == version;
        (steady && address.wrapping_sub(start) < len).then_some((start, len, fill))
    }
}

struct Registry<const N: usize> {
    entries: [Entry; N],
    /// Entries ever used: the handler looks no further.
    high_water: AtomicUsize,
}

impl<const N: usize> Registry<N> {
    const fn new() -> Self {
        Registry { entries: [const { Entry::free() }; N], high_water: AtomicUsize::new(0) }
    }

    fn register(&self, start: usize, len: usize, fill: Fill) -> Option<&Entry> {
        let free =
            |e: &Entry| e.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let index = self.entries.iter().position(free)?;
        let entry = &self.entries[index];
        entry.fill_in(start, len, fill);
        self.high_water.fetch_max(index + 1, Ordering::Release);
        Some(entry)
    }

    fn find(&self, address: usize) -> Option<(&Entry, usize, usize, Fill)> {
        let used = self.high_water.load(Ordering::Acquire);
        self.entries[..used].iter().find_map(|entry| {
            let (start, len, fill) = entry.covering(address)?;
            Some((entry, start, len, fill))
        })
    }
}

static REGISTRY: Registry<MAX_GUARDS> = Registry::new();

/// A registered mapping. Drop it before unmapping the memory, and only when no thread touches the memory any more.
pub struct Guard(&'static Entry);

impl Guard {
    /// True once a page of the mapping has vanished and been replaced: what was read since
    /// may be filler. Never turns false again.
    #[inline(always)]
    pub fn is_poisoned(&self) -> bool {
        self.0.poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("poisoned", &self.is_poisoned()).finish()
    }
}

/// Guards the mapping of `len` bytes at `start` (page-aligned, one whole mapping). Set-up only.
///
/// The mapping stays the caller's: it must live, unshared with anything but volatile or atomic
/// access, until the guard is dropped, since the handler replaces its pages in place.
pub fn guard(start: NonNull<u8>, len: usize, fill: Fill) -> Result<Guard, FaultError> {
    assert!((start.as_ptr() as usize).is_multiple_of(PAGE_BYTES), "mappings start on a page");
    install_once()?;
    let len = len.next_multiple_of(PAGE_BYTES);
    REGISTRY.register(start.as_ptr() as usize, len, fill).map(Guard).ok_or(FaultError::Full)
}

/// Who handled SIGBUS before us. Written before our handler is in place.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install_once() -> Result<(), FaultError> {
    static INSTALLED: OnceLock<Result<(), c_int>> = OnceLock::new();
    let done = INSTALLED.get_or_init(|| install().map_err(|e| e.raw_os_error().unwrap_or(0)));
    done.map_err(|errno| FaultError::Handler(std::io::Error::from_raw_os_error(errno)))
}

fn install() -> std::io::Result<()> {
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null action only asks for the present one, written to a struct of our own.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) };
    if asked != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: zero is a valid sigaction, and the kernel has overwritten it.
    PREVIOUS.get_or_init(|| unsafe { previous.assume_init() });
    // SAFETY: an all-zero sigaction is valid: default handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: on_sigbus is async-signal-safe and has the signature SA_SIGINFO asks for.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: errno is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { errno.read() };
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, which nobody changes.
    let about = unsafe { &*info };
    let code = about.si_code;
    // SAFETY: si_addr is set for every SIGBUS the kernel itself raises (code > 0), and is plain data otherwise.
    let address = unsafe { about.si_addr() } as usize;
    // Sent by a process (code <= 0), not by a fault: never ours.
    let handled = code > 0 && heal(address);
    if !handled {
        pass_on(signal, code, info, context);
    }
    // SAFETY: as above.
    unsafe { errno.write(saved) };
}

/// Puts a filler page where `address` faulted. False when the address is not guarded or the kernel refuses.
fn heal(address: usize) -> bool {
    let Some((entry, start, len, fill)) = REGISTRY.find(address) else { return false };
    // Before the page shows: who reads filler finds the mark set.
    entry.poisoned.store(true, Ordering::SeqCst);
    let page = address & !(PAGE_BYTES - 1);
    // A huge page can't be replaced in part, and a process has a limited number of mappings:
    // then the whole mapping goes at once. It is poisoned anyway.
    replace(page, PAGE_BYTES, fill) || replace(start, len, fill)
}

/// Replaces `len` bytes at `at` by filler in one step, so that no other thread sees a half-filled page.
fn replace(at: usize, len: usize, fill: Fill) -> bool {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    if fill == Fill::Zeros {
        // SAFETY: the range lies in a registered mapping, which its owner gave us leave to replace.
        let new = unsafe { libc::mmap(at as *mut c_void, len, access, flags | libc::MAP_FIXED, -1, 0) };
        return new != libc::MAP_FAILED;
    }
    // SAFETY: a fresh mapping wherever the kernel likes.
    let new = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
    if new == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the fresh mapping is len bytes long, and nobody else knows it.
    unsafe { std::ptr::write_bytes(new.cast::<u8>(), 0xff, len) };
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: moves the fresh mapping over a range of a registered mapping, as above.
    let moved = unsafe { libc::mremap(new, len, len, how, at as *mut c_void) };
    if moved == libc::MAP_FAILED {
        // SAFETY: the fresh mapping was not moved and is still ours alone.
        unsafe { libc::munmap(new, len) };
        return false;
    }
    true
}

/// Gives the signal to the handler that was there before us.
fn pass_on(signal: c_int, code: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    let with_info = previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: an all-zero sigaction is valid: the default action, which ends the process.
        let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: sets the default action; a fault happens again on return.
        unsafe { libc::sigaction(signal, &default, std::ptr::null_mut()) };
        if code <= 0 {
            // SAFETY: raise is async-signal-safe; the signal is delivered when this handler returns.
            unsafe { libc::raise(signal) };
        }
    } else if with_info {
        // SAFETY: installed with SA_SIGINFO by its owner, so it has this signature.
        let call: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { std::mem::transmute(handler) };
        call(signal, info, context);
    } else {
        // SAFETY: installed without SA_SIGINFO by its owner, so it has this signature.
        let call: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
        call(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::{MmapOptions, MmapRaw};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::fs::File;

    fn mapped(len: usize, flags: MemfdFlags) -> std::io::Result<(File, MmapRaw)> {
        let file = File::from(memfd_create(c"spp-fault-test", flags | MemfdFlags::CLOEXEC)?);
        ftruncate(&file, len as u64)?;
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        Ok((file, map))
    }

    fn start(map: &MmapRaw) -> NonNull<u8> {
        NonNull::new(map.as_mut_ptr()).unwrap()
    }

    fn read(map: &MmapRaw, at: usize) -> u8 {
        assert!(at < map.len());
        // SAFETY: inside the mapping; volatile, since the memory is foreign.
        unsafe { map.as_ptr().wrapping_add(at).read_volatile() }
    }

    fn write(map: &MmapRaw, at: usize, value: u8) {
        assert!(at < map.len());
        // SAFETY: inside the mapping; volatile, since the memory is foreign.
        unsafe { map.as_mut_ptr().wrapping_add(at).write_volatile(value) }
    }

    #[test]
    fn truncated_guest_memory_reads_as_zeros_and_is_poisoned() {
        let (file, map) = mapped(4 * PAGE_BYTES, MemfdFlags::empty()).unwrap();
        let guard = guard(start(&map), map.len(), Fill::Zeros).unwrap();
        write(&map, 10, 7);
        write(&map, 2 * PAGE_BYTES + 1, 9);
        assert!(!guard.is_poisoned());
        ftruncate(&file, PAGE_BYTES as u64).unwrap();
        assert_eq!(read(&map, 2 * PAGE_BYTES + 1), 0);
        assert!(guard.is_poisoned());
        write(&map, 3 * PAGE_BYTES, 5);
        assert_eq!((read(&map, 3 * PAGE_BYTES), read(&map, 10)), (5, 7), "pages that are there stay");
    }

    #[test]
    fn vanished_registers_read_as_all_ones() {
        let (file, map) = mapped(2 * PAGE_BYTES, MemfdFlags::empty()).unwrap();
        let guard = guard(start(&map), map.len(), Fill::Ones).unwrap();
        ftruncate(&file, 0).unwrap();
        assert_eq!((read(&map, 0), read(&map, 2 * PAGE_BYTES - 1)), (0xff, 0xff));
        assert!(guard.is_poisoned());
    }

    /// Lets the kernel find a 2 MiB page although none is set aside, as long as this lives. Only root may.
    struct OneMoreHugePage(u64);

    impl OneMoreHugePage {
        const ALLOWED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";

        fn allow() -> Option<OneMoreHugePage> {
            let before: u64 = std::fs::read_to_string(Self::ALLOWED).ok()?.trim().parse().ok()?;
            std::fs::write(Self::ALLOWED, (before + 1).to_string()).ok()?;
            Some(OneMoreHugePage(before))
        }
    }

    impl Drop for OneMoreHugePage {
        fn drop(&mut self) {
            let _ = std::fs::write(Self::ALLOWED, self.0.to_string());
        }
    }

    #[test]
    fn truncated_huge_pages_are_replaced_whole() {
        let huge = 2 << 20;
        let _one_more = OneMoreHugePage::allow();
        let (file, map) = match mapped(huge, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
            Ok(pair) => pair,
            Err(error) => {
                println!("SKIPPED: truncated_huge_pages_are_replaced_whole: no free 2 MiB page: {error}");
                return;
            }
        };
        let guard = guard(start(&map), map.len(), Fill::Zeros).unwrap();
        write(&map, 5, 5);
        ftruncate(&file, 0).unwrap();
        assert_eq!((read(&map, 5), read(&map, huge - 1)), (0, 0));
        assert!(guard.is_poisoned());
    }

    #[test]
    fn many_threads_fault_on_one_mapping_and_all_go_on() {
        let n_pages = 256;
        let (file, map) = mapped(n_pages * PAGE_BYTES, MemfdFlags::empty()).unwrap();
        let guard = guard(start(&map), map.len(), Fill::Zeros).unwrap();
        ftruncate(&file, 0).unwrap();
        let sums: Vec<u64> = std::thread::scope(|scope| {
            let sum = || (0..n_pages).map(|page| u64::from(read(&map, page * PAGE_BYTES))).sum();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(sum)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(sums, [0; 4]);
        assert!(guard.is_poisoned());
    }

    #[test]
    fn unguarded_fault_still_kills_the_process() {
        use std::os::unix::process::ExitStatusExt;
        const CHILD: &str = "SPP_TEST_FAULT_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let (_other_file, other) = mapped(PAGE_BYTES, MemfdFlags::empty()).unwrap();
            let _guard = guard(start(&other), other.len(), Fill::Zeros).unwrap();
            let (file, map) = mapped(PAGE_BYTES, MemfdFlags::empty()).unwrap();
            ftruncate(&file, 0).unwrap();
            println!("read {}", read(&map, 0));
            return;
        }
        let test = "fault::tests::unguarded_fault_still_kills_the_process";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }

    #[test]
    fn registry_finds_live_mappings_only_and_reuses_entries() {
        let registry = Registry::<2>::new();
        let first = registry.register(0x1000, 0x1000, Fill::Zeros).unwrap();
        registry.register(0x8000, 0x2000, Fill::Ones).unwrap();
        assert!(registry.register(0x20000, 1, Fill::Zeros).is_none(), "two entries, both taken");
        assert!(matches!(registry.find(0x9fff), Some((_, 0x8000, 0x2000, Fill::Ones))));
        assert!(registry.find(0xa000).is_none() && registry.find(0xfff).is_none());
        assert!(registry.find(0x1000).is_some());
        first.poisoned.store(true, Ordering::Relaxed);
        first.clear();
        assert!(registry.find(0x1000).is_none());
        let again = registry.register(0x1000, 0x1000, Fill::Ones).unwrap();
        assert!(!again.poisoned.load(Ordering::Relaxed), "a new mapping starts clean");
    }
}
