//! Attacks by coming and going: resets, switches, connections, and the descriptors that come along.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};

use crate::arena::{Arena, Ended, Trouble, done, over};
use crate::frontend::{RX, TX, feature, memory_table, ring_fd, single_region};
use crate::line::Line;
use crate::memory::{REGIONS, Region, memfd};
use crate::message::{Answer, NEED_REPLY, VERSION, message, request, words32, words64};
use crate::traffic::{Flow, frame};

pub fn g24(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let n = if arena.is_strict() || arena.thorough { 1000 } else { 200 };
    for _ in 0..n {
        for _ in 0..8 {
            let number = arena.next_number();
            frontend.send(&frame(Flow::FromVictim, number, 300));
        }
        arena.provoke(&mut frontend, 4, 300);
        frontend.reset()?;
    }
    done(format!("{n} resets"), frontend)
}

pub fn g25(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.features = feature::MQ | feature::CTRL_VQ)?;
    let answer = frontend.connection.ask(request::GET_QUEUE_NUM, &[], &[])?;
    let pairs = if frontend.features & feature::MQ != 0 { answer.word().unwrap_or(1).clamp(1, 2) } else { 1 };
    if pairs == 2 {
        drop(frontend);
        frontend = arena.victim_with(|wish| {
            (wish.features, wish.pairs) = (feature::MQ | feature::CTRL_VQ, 2);
        })?;
    }
    let last = 2 * (pairs as usize - 1);
    for turn in 0..1000 {
        frontend.enable(last + RX, turn % 2 == 1)?;
        frontend.enable(last + TX, turn % 3 == 1)?;
        let number = arena.next_number();
        frontend.send(&frame(Flow::FromVictim, number, 100));
        if turn % 8 == 0 {
            arena.provoke(&mut frontend, 2, 300);
        }
        while frontend.receive().is_some() {}
    }
    frontend.enable(last + RX, true)?;
    frontend.enable(last + TX, true)?;
    done(format!("1000 switches of pair {}", pairs - 1), frontend)
}

/// A descriptor by name, with the other end that keeps it what it is.
type Oddity = (&'static str, OwnedFd, Option<OwnedFd>);

/// Descriptors that are no eventfds.
fn oddities() -> Result<Vec<Oddity>, Trouble> {
    let io = |e: rustix::io::Errno| Trouble::Socket(e.into());
    let (pipe, pipe_end) = rustix::pipe::pipe().map_err(io)?;
    let (closed, _) = rustix::pipe::pipe().map_err(io)?;
    let (full_end, full) = rustix::pipe::pipe().map_err(io)?;
    rustix::io::ioctl_fionbio(&full, true).map_err(io)?;
    while rustix::io::write(&full, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).map_err(io)?;
    let directory = rustix::fs::open("/", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
    let (socket, peer) = std::os::unix::net::UnixStream::pair()?;
    Ok(vec![
        ("a pipe's read end", pipe, Some(pipe_end)),
        ("a pipe nobody writes", closed, None),
        ("a full pipe", full, Some(full_end)),
        ("a directory", directory, None),
        ("a socket", socket.into(), Some(peer.into())),
        ("memory", memfd(4096)?, None),
    ])
}

pub fn f17(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    for (what, fd, _other_end) in oddities()? {
        for index in [RX, TX] {
            line.order(request::SET_VRING_KICK, &words64(&[index as u64]), &[fd.as_fd()])?;
            line.order(request::SET_VRING_ERR, &words64(&[index as u64]), &[fd.as_fd()])?;
            let payload = words64(&[index as u64]);
            line.must_refuse(format!("{what} as call"), request::SET_VRING_CALL, &payload, &[fd.as_fd()])?;
        }
        for _ in 0..8 {
            line.frontend()?.send(&[0; 100]);
        }
        arena.neighbour_goes_on(32)?;
    }
    line.hang_up();
    stopped_calls(arena, &mut line)?;
    let (words, frontend) = line.end();
    match frontend {
        Some(frontend) => done(words, frontend),
        None => over(words),
    }
}

/// An eventfd whose counter is kept full and whose descriptor is made blocking behind the backend's back: who
/// writes to it waits for ever.
fn stopped_calls(arena: &Arena<'_>, line: &mut Line<'_, '_>) -> Result<(), Trouble> {
    let io = |e: rustix::io::Errno| Trouble::Socket(e.into());
    let frontend = line.frontend()?;
    let full = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io)?;
    for index in [RX, TX] {
        if ring_fd(&mut frontend.connection, request::SET_VRING_CALL, index, &full)? == Answer::Closed {
            line.hang_up();
            return Ok(());
        }
        // Calls are wanted for everything.
        frontend.rings[index].write_event(0);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::fcntl_setfl(&full, OFlags::NONBLOCK);
                // Emptied first: the counter takes no more than fits beside what it holds.
                let _ = rustix::io::read(&full, &mut [0u8; 8]);
                let _ = rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes());
                let _ = rustix::fs::fcntl_setfl(&full, OFlags::empty());
                std::thread::sleep(Duration::from_millis(5));
            }
            // Whoever waits is let go, so that the row ends for a backend that did.
            let _ = rustix::fs::fcntl_setfl(&full, OFlags::NONBLOCK);
            let _ = rustix::io::read(&full, &mut [0u8; 8]);
        });
        let mut attack = || {
            for _ in 0..50 {
                frontend.rings[TX].take_all();
                frontend.send(&frame(Flow::FromVictim, 0, 100));
                arena.traffic.inject(1, 100);
                while frontend.receive().is_some() {}
                std::thread::sleep(Duration::from_millis(1));
            }
            arena.neighbour_goes_on(256)
        };
        let result = attack();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    // A fresh one, so that the driver can go on.
    let call = frontend.calls[RX].try_clone()?;
    for index in [RX, TX] {
        ring_fd(&mut frontend.connection, request::SET_VRING_CALL, index, &call)?;
    }
    Ok(())
}

pub fn f18(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let mut turned_away = 0;
    for _ in 0..50 {
        if let Some(Ok(second)) = arena.backend.victim.connect_again() {
            let mut second = crate::message::Connection::new(second)?;
            let _ = second.tell(request::SET_OWNER, &[], &[]);
            turned_away += u32::from(second.wait_for_end(arena.patience()));
        }
    }
    if arena.is_strict() {
        if turned_away < 50 && arena.backend.victim.connect_again().is_some() {
            return Err(Trouble::Wrong(format!("{turned_away} of 50 second peers were turned away")));
        }
        arena.pass(&mut frontend)?;
    }
    drop(frontend);
    let mut connected = 0;
    for turn in 0..300u32 {
        let Ok(connection) = arena.backend.victim.connect(arena.patience()) else { break };
        connected += 1;
        if turn % 3 > 0 {
            let _ = connection.tell(request::GET_FEATURES, &[], &[]);
        }
        if turn % 3 > 1 {
            let _ = connection.tell(request::SET_OWNER, &[], &[]);
        }
    }
    over(format!("{turned_away} second peers turned away, {connected} quick connections"))
}

pub fn f19(arena: &mut Arena<'_>) -> Ended {
    let file = memfd(1 << 20)?;
    let extra = Region { gpa: 1 << 40, len_bytes: 1 << 20, frontend_va: 1 << 45, file_offset: 0 };
    let mut last_words: Vec<(Vec<u8>, usize)> = Vec::new();
    let table = memory_table(&REGIONS);
    let whole = message(request::SET_MEM_TABLE, VERSION, table.len() as u32, &table);
    for cut in [1, 11, 12, 13, 40, whole.len() - 1, whole.len()] {
        last_words.push((whole[..cut].to_vec(), 2));
    }
    let add = message(request::ADD_MEM_REG, VERSION | NEED_REPLY, 40, &single_region(&extra));
    last_words.push((add.clone(), 1));
    last_words.push((add[..20].to_vec(), 1));
    for index in [RX, TX] {
        let base = message(request::GET_VRING_BASE, VERSION, 8, &words32(&[index as u32, 0]));
        last_words.push((base.clone(), 0));
        last_words.push((base[..15].to_vec(), 0));
        last_words.push((base.repeat(20), 0));
    }
    last_words.push((Vec::new(), 0));
    let rounds = if arena.thorough { 20 } else { 2 };
    for _ in 0..rounds {
        for (bytes, n_fds) in &last_words {
            let mut frontend = arena.victim()?;
            for _ in 0..16 {
                let number = arena.next_number();
                frontend.send(&frame(Flow::FromVictim, number, 300));
            }
            arena.provoke(&mut frontend, 8, 300);
            let fd = if *n_fds == 2 { frontend.memory.as_fd() } else { file.as_fd() };
            let _ = frontend.connection.send_bytes(bytes, &vec![fd; *n_fds]);
        }
    }
    over(format!("{} disconnects", rounds * last_words.len()))
}
