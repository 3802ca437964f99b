//! Lies about memory: tables, files, logs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource, Rlimit};

use super::rings::ended;
use crate::arena::{Arena, Ended, Trouble, over};
use crate::frontend::{Frontend, RX, TX, copies, feature, memory_table, ring_address, single_region};
use crate::line::Line;
use crate::memory::{GPA_END, REGIONS, Region, memfd};
use crate::message::{Answer, request, words64};
use crate::ring::Desc;

/// A region of one page at a place of its own.
const PAGE: Region =
    Region { gpa: 0x10_0000_0000, len_bytes: 4096, frontend_va: 0x7f80_0000_0000, file_offset: 0 };

pub fn f01(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::greeted(arena);
    let file = memfd(1 << 20)?;
    let changed = |change: fn(&mut Region)| {
        let mut region = PAGE;
        change(&mut region);
        region
    };
    let bad = [
        ("no length", changed(|r| r.len_bytes = 0)),
        ("an end beyond 2^64", changed(|r| r.file_offset = u64::MAX - 100)),
        ("an offset beyond the file", changed(|r| r.file_offset = 1 << 20)),
        ("an end beyond the file", changed(|r| r.len_bytes = (1 << 20) + 1)),
        ("an unaligned end beyond the file", changed(|r| (r.file_offset, r.len_bytes) = (100, 1 << 20))),
        ("guest addresses that wrap", changed(|r| r.gpa = u64::MAX - 100)),
        ("frontend addresses that wrap", changed(|r| r.frontend_va = u64::MAX - 100)),
        ("more than any file", changed(|r| r.len_bytes = u64::MAX / 2)),
    ];
    for (what, region) in bad {
        line.must_refuse(what, request::SET_MEM_TABLE, &memory_table(&[region]), &[file.as_fd()])?;
        line.must_refuse(what, request::ADD_MEM_REG, &single_region(&region), &[file.as_fd()])?;
    }
    bad_counts(&mut line, &file)?;
    for (what, fd) in unmappable()? {
        line.must_refuse(what, request::SET_MEM_TABLE, &memory_table(&[PAGE]), &[fd.as_fd()])?;
    }
    // Unaligned in the file, but all there: may be mapped, must not be misread.
    let unaligned = changed(|r| (r.file_offset, r.len_bytes) = (100, 5000));
    line.order(request::SET_MEM_TABLE, &memory_table(&[unaligned]), &[file.as_fd()])?;
    line.order(request::SET_MEM_TABLE, &memory_table(&[]), &[])?;
    ended(line)
}

/// Tables whose count is not that of their regions or descriptors.
fn bad_counts(line: &mut Line<'_, '_>, file: &OwnedFd) -> Result<(), Trouble> {
    let at = |i: u64| Region { gpa: PAGE.gpa + 8192 * i, ..PAGE };
    let two = [at(0), at(1)];
    let mut lie = memory_table(&two);
    for (what, count, n_fds) in [("count 9", 9u32, 2), ("count 2^32-1", u32::MAX, 2), ("count 0", 0, 2)] {
        lie[..4].copy_from_slice(&count.to_ne_bytes());
        line.must_refuse(what, request::SET_MEM_TABLE, &lie, &copies(file, n_fds))?;
    }
    for n_fds in [0, 1, 3, 8] {
        let fds = copies(file, n_fds);
        line.must_refuse(
            format!("{n_fds} files for 2 regions"),
            request::SET_MEM_TABLE,
            &memory_table(&two),
            &fds,
        )?;
    }
    let nine: Vec<Region> = (0..9).map(at).collect();
    line.order(request::SET_MEM_TABLE, &memory_table(&nine), &copies(file, 9))?;
    let half = memory_table(&two);
    line.must_refuse("half a table", request::SET_MEM_TABLE, &half[..half.len() / 2], &copies(file, 2))
}

/// Descriptors that are no memory.
fn unmappable() -> Result<Vec<(&'static str, OwnedFd)>, Trouble> {
    let io = |e: rustix::io::Errno| Trouble::Socket(e.into());
    let (pipe, _) = rustix::pipe::pipe().map_err(io)?;
    let directory = rustix::fs::open("/", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
    let file = memfd(1 << 20)?;
    let read_only = std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))?;
    let (socket, _) = std::os::unix::net::UnixStream::pair()?;
    Ok(vec![
        ("a pipe for memory", pipe),
        ("a directory for memory", directory),
        ("an eventfd for memory", eventfd(0, EventfdFlags::CLOEXEC).map_err(io)?),
        ("a socket for memory", socket.into()),
        ("read-only memory", read_only.into()),
    ])
}

pub fn f02(arena: &mut Arena<'_>) -> Ended {
    let mut said = String::new();
    // First a region with buffers in it, then the rings themselves.
    let mut frontend = arena.victim()?;
    let file = memfd(1 << 20)?;
    let extra = Region { len_bytes: 1 << 20, ..PAGE };
    let fds = [frontend.memory.as_fd(), frontend.memory.as_fd(), file.as_fd()];
    let table = memory_table(&[REGIONS[0], REGIONS[1], extra]);
    let answer = frontend.connection.order(request::SET_MEM_TABLE, &table, &fds)?;
    if arena.is_strict() && answer.is_no() {
        return Err(Trouble::Wrong(format!("three regions: {answer:?}")));
    }
    rustix::fs::ftruncate(&file, 0).map_err(std::io::Error::from)?;
    for turn in 0..64 {
        frontend.rings[TX].push(&[Desc::read(extra.gpa + 4096 * turn, 1000)]);
        frontend.rings[RX].push(&[Desc::write(extra.gpa + 4096 * turn, 2000)]);
    }
    frontend.kick(TX);
    arena.provoke(&mut frontend, 8, 300);
    said += &arena.expect_failed("vanished")?;
    arena.neighbour_goes_on(64)?;
    drop(frontend);
    let mut frontend = arena.victim()?;
    arena.provoke(&mut frontend, 64, 300);
    frontend.send(&[0; 200]);
    rustix::fs::ftruncate(&frontend.memory, 0).map_err(std::io::Error::from)?;
    // From here on nothing of ours may touch that memory either.
    arena.expect_failed("vanished")?;
    arena.neighbour_goes_on(64)?;
    drop(frontend);
    over(said)
}

pub fn f03(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let file = memfd(1 << 20)?;
    let overlapping = [
        ("the first region again", REGIONS[0]),
        ("a page inside a region", Region { gpa: REGIONS[1].gpa + 4096, ..PAGE }),
        ("a page across an end", Region { gpa: GPA_END - 100, ..PAGE }),
    ];
    for (what, region) in overlapping {
        line.must_refuse(what, request::ADD_MEM_REG, &single_region(&region), &[file.as_fd()])?;
    }
    for (what, region) in [
        ("a region nobody added", PAGE),
        ("a region of another length", Region { len_bytes: 4096, ..REGIONS[0] }),
    ] {
        line.must_refuse(what, request::REM_MEM_REG, &single_region(&region), &[])?;
    }
    line.must_refuse(
        "a region twice",
        request::SET_MEM_TABLE,
        &memory_table(&[PAGE, PAGE]),
        &copies(&file, 2),
    )?;
    // A region comes and goes while frames pass; and then the one in use goes.
    let frontend = line.frontend()?;
    for _ in 0..50 {
        let fd = [file.as_fd()];
        if frontend.connection.order(request::ADD_MEM_REG, &single_region(&PAGE), &fd)?.is_no() {
            break;
        }
        frontend.send(&[0; 100]);
        frontend.connection.order(request::REM_MEM_REG, &single_region(&PAGE), &[])?;
    }
    for region in REGIONS {
        line.frontend()?.send(&[0; 100]);
        line.order(request::REM_MEM_REG, &single_region(&region), &[])?;
        arena.neighbour_goes_on(16)?;
    }
    let (words, _) = line.end();
    over(words)
}

/// Asks for logging of `size` bytes at `offset` of `file`.
fn log_base(size: u64, offset: u64) -> Vec<u8> {
    words64(&[size, offset])
}

/// Bytes of a log that covers all the memory we share: a bit a page.
const LOG_BYTES: u64 = GPA_END / 4096 / 8;

pub fn f04(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let file = memfd(LOG_BYTES)?;
    let fd: &[BorrowedFd<'_>] = &[file.as_fd()];
    for (what, size, offset, fds) in [
        ("a log of every byte there is", u64::MAX, 0, fd),
        ("a log whose end wraps", 4096, u64::MAX - 100, fd),
        ("a log beyond its file", LOG_BYTES, 4096, fd),
        ("an empty log", 0, 0, fd),
        ("a log without a file", LOG_BYTES, 0, &[]),
    ] {
        line.must_refuse(what, request::SET_LOG_BASE, &log_base(size, offset), fds)?;
    }
    line.order(request::SET_LOG_BASE, &log_base(1, 0), fd)?;
    line.order(request::SET_LOG_BASE, &[0; 15], fd)?;
    for (what, fd) in unmappable()? {
        line.must_refuse(what, request::SET_LOG_BASE, &log_base(4096, 0), &[fd.as_fd()])?;
    }
    line.order(request::SET_LOG_FD, &[], fd)?;
    ended(line)
}

/// Switches logging on for all rings, with a log that has room for `log_bytes`; false when the backend won't.
fn start_log(frontend: &mut Frontend, log_bytes: u64, used_log: u64) -> Result<bool, Trouble> {
    let file = memfd(log_bytes.max(4096))?;
    let base = log_base(log_bytes, 0);
    if frontend.connection.order(request::SET_LOG_BASE, &base, &[file.as_fd()])?.is_no() {
        return Ok(false);
    }
    let features = frontend.features | feature::LOG_ALL;
    if frontend.connection.order(request::SET_FEATURES, &words64(&[features]), &[])?.is_no() {
        return Ok(false);
    }
    for index in [RX, TX] {
        let address = ring_address(index, &frontend.rings[index], 1, used_log);
        if frontend.connection.order(request::SET_VRING_ADDR, &address, &[])? == Answer::Closed {
            return Ok(false);
        }
    }
    Ok(true)
}

pub fn f05(arena: &mut Arena<'_>) -> Ended {
    let mut words = Vec::new();
    for (log_bytes, used_log) in [(64, 0), (LOG_BYTES, u64::MAX - 10), (LOG_BYTES - 100, GPA_END), (0, 0)] {
        let mut frontend = arena.victim()?;
        let started = start_log(&mut frontend, log_bytes, used_log)?;
        words.push(format!("{log_bytes} bytes {}", if started { "taken" } else { "refused" }));
        if started {
            // A receive buffer of no length, one far up, and plain traffic.
            frontend.rings[RX].push(&[Desc::write(GPA_END - 64, 0)]);
            arena.provoke(&mut frontend, 64, 1500);
            for _ in 0..16 {
                frontend.send(&[0; 200]);
            }
        }
        arena.neighbour_goes_on(32)?;
    }
    over(words.join(", "))
}

pub fn f24(arena: &mut Arena<'_>) -> Ended {
    let rounds = if arena.thorough { 20 } else { 3 };
    let mut most = 0;
    for _ in 0..rounds {
        let mut frontend = arena.greeted()?;
        for i in 0..1000 {
            let file = memfd(4096)?;
            let region = Region { gpa: PAGE.gpa + 8192 * i, ..PAGE };
            let answer =
                frontend.connection.order(request::ADD_MEM_REG, &single_region(&region), &[file.as_fd()]);
            match answer? {
                Answer::Done(_) => most = most.max(i + 1),
                Answer::Refused => {}
                Answer::Closed => frontend = arena.greeted()?,
            }
        }
    }
    starved(arena)?;
    over(format!("at most {most} regions; survived without descriptors"))
}

/// Messages with descriptors while the backend may open none.
fn starved(arena: &Arena<'_>) -> Result<(), Trouble> {
    let Some(pid) = arena.backend.process.map(|p| p.pid()) else { return Ok(()) };
    let (pid, file) = (Pid::from_raw(pid as i32), memfd(1 << 20)?);
    let mut frontend = arena.victim()?;
    let now = arena.backend.process.and_then(|p| p.holdings()).map_or(0, |held| held.fds as u64);
    let old = rustix::process::prlimit(
        pid,
        Resource::Nofile,
        Rlimit { current: Some(now), maximum: rustix::process::getrlimit(Resource::Nofile).maximum },
    )
    .map_err(std::io::Error::from)?;
    let attack = || -> Result<(), Trouble> {
        for _ in 0..20 {
            let at = |i: u64| Region { gpa: PAGE.gpa + 8192 * i, ..PAGE };
            let table = memory_table(&(0..8).map(at).collect::<Vec<_>>());
            if frontend.connection.order(request::SET_MEM_TABLE, &table, &copies(&file, 8))? == Answer::Closed
            {
                break;
            }
        }
        drop(frontend);
        // Connections now fail in the backend; it must not spin or end for that.
        for _ in 0..5 {
            let _ = arena.backend.victim.connect(Duration::from_millis(50));
        }
        arena.neighbour_goes_on(64)
    };
    let result = attack();
    rustix::process::prlimit(pid, Resource::Nofile, old).map_err(std::io::Error::from)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_covers_the_last_page_shared() {
        assert_eq!(LOG_BYTES * 8 * 4096, GPA_END);
    }
}
