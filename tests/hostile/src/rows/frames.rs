//! Frames and their headers: odd shapes, odd sizes, odd contents.

use std::time::Duration;

use crate::arena::{Arena, Ended, Trouble, done};
use crate::backend::Way;
use crate::frontend::{Frontend, HEADER_BYTES, RX, TX, feature, until};
use crate::memory::SCRATCH;
use crate::ring::{Desc, write_table};
use crate::traffic::{Flow, VICTIM_MAC, WIRE_MAC, frame, read_frame};

/// Frames the guest sends in pieces of these lengths, header included; each is laid out apart from the others.
fn pieces(frontend: &Frontend, bytes: &[u8], lengths: &[usize]) -> Vec<Desc> {
    let (mut rest, mut at) = (bytes, SCRATCH.plus(0x8000));
    let mut chain = Vec::new();
    for len in lengths {
        let (piece, more) = rest.split_at((*len).min(rest.len()));
        frontend.memory.write(at, piece);
        chain.push(Desc::read(at.gpa(), piece.len() as u32));
        (rest, at) = (more, at.plus(0x100));
    }
    frontend.memory.write(at, rest);
    if !rest.is_empty() {
        chain.push(Desc::read(at.gpa(), rest.len() as u32));
    }
    chain
}

/// A header of zeros and a good frame from the attacked guest.
fn with_header(number: u64, len: usize) -> Vec<u8> {
    [vec![0; HEADER_BYTES], frame(Flow::FromVictim, number, len)].concat()
}

/// Waits for good frames of the attacked guest to come out, in order. True when exactly these did.
fn come_out(arena: &Arena<'_>, frontend: &mut Frontend, numbers: &[u64]) -> bool {
    let mut seen = Vec::new();
    until(arena.patience().max(Duration::from_millis(500)), || {
        if arena.traffic.has_wire() {
            seen.extend(arena.traffic.seen_at_wire());
        }
        while let Some(bytes) = frontend.receive() {
            let own = read_frame(&bytes).filter(|(flow, _)| *flow == Flow::FromVictim);
            seen.extend(own.map(|(_, number)| number));
        }
        seen.len() >= numbers.len()
    });
    seen == numbers
}

pub fn g03(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    arena.traffic.seen_at_wire();
    for lengths in [vec![1; 72], vec![4, 4], vec![1, 10, 1], vec![5, 5, 2, 1], vec![11, 2]] {
        let number = arena.next_number();
        let chain = pieces(&frontend, &with_header(number, 60), &lengths);
        arena.transmit(&mut frontend, &chain)?;
        let whole = come_out(arena, &mut frontend, &[number]);
        if arena.is_strict() && !whole {
            return Err(Trouble::Wrong(format!("a frame in pieces of {lengths:?} did not come out")));
        }
    }
    done("delivered whole", frontend)
}

pub fn g04(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let at = SCRATCH.gpa();
    let mut chains: Vec<Vec<Desc>> = [0, 1, 11, 12, 13, 25].map(|len| vec![Desc::read(at, len)]).to_vec();
    chains.push(vec![Desc::read(at, 12), Desc::read(at, 0)]);
    chains.extend((1..=13).map(|len| vec![Desc::read(at, 12), Desc::read(at + 64, len)]));
    for chain in &chains {
        arena.transmit(&mut frontend, chain)?;
    }
    done(arena.expect_drops(Way::FromGuest, &["runt"], chains.len() as u64)?, frontend)
}

pub fn g05(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    runts(arena, &mut frontend, 144)?;
    drop(frontend);
    // Without merged buffers no frame fits: each costs itself, not its neighbours.
    let mut frontend =
        arena.victim_with(|wish| (wish.buffers, wish.without) = (false, feature::MRG_RXBUF))?;
    runts(arena, &mut frontend, 0)?;
    done(arena.expect_drops(Way::ToGuest, &["oversize"], 2)?, frontend)
}

/// Posts receive buffers of 5 bytes and has two frames of 60 sent into them, which must become `wanted` bytes there;
/// what lies behind the buffers must stay what it was.
fn runts(arena: &mut Arena<'_>, frontend: &mut Frontend, wanted: u32) -> Result<(), Trouble> {
    frontend.memory.fill(SCRATCH, 0x4000, 0xcc);
    for i in 0..64 {
        frontend.rings[RX].push(&[Desc::write(SCRATCH.plus(0x100 * i).gpa(), 5)]);
    }
    frontend.kick(RX);
    arena.provoke(frontend, 2, 60);
    arena.neighbour_goes_on(32)?;
    let mut written = 0;
    until(arena.patience(), || {
        written += frontend.rings[RX].take_all().iter().map(|used| used.len).sum::<u32>();
        written >= wanted
    });
    for i in 0..64 {
        if frontend.memory.read(SCRATCH.plus(0x100 * i + 5), 11) != [0xcc; 11] {
            return Err(Trouble::Harm(format!("bytes behind receive buffer {i} are overwritten")));
        }
    }
    match arena.is_strict() && written != wanted {
        true => Err(Trouble::Wrong(format!("two frames of 72 bytes became {written}, not {wanted}"))),
        false => Ok(()),
    }
}

/// Sends frames whose headers ask for what can't be done.
fn bad_offloads(arena: &mut Arena<'_>, headers: &[[u8; HEADER_BYTES]]) -> Ended {
    let offloads =
        feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::GUEST_TSO4;
    let mut frontend = arena.victim_with(|wish| wish.features = offloads)?;
    for header in headers {
        for (len, first) in [(60, 0x45), (1514, 0x45), (4000, 0x60), (4000, 0x45)] {
            let number = arena.next_number();
            let mut bytes = frame(Flow::FromVictim, number, len);
            // What looks like IP is read further than what does not.
            bytes[12..14].copy_from_slice(&if first == 0x45 { [8, 0] } else { [0x86, 0xdd] });
            (bytes[14], bytes[20], bytes[23]) = (first, 6, 6);
            until(arena.patience(), || frontend.send_with(header, &bytes));
        }
    }
    let sent = 4 * headers.len();
    frontend.drain(arena.patience());
    let dropped = arena.drops(Way::FromGuest);
    let words = match (arena.is_strict(), frontend.features & feature::CSUM != 0) {
        (false, _) => "survived".into(),
        (true, false) => "header ignored: offloads are not offered".into(),
        (true, true) => format!("{dropped} of {sent} dropped"),
    };
    done(words, frontend)
}

/// A header of the fields of virtio 1.2, 5.1.6.
fn header(flags: u8, gso: u8, hdr_len: u16, gso_size: u16, start: u16, offset: u16) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    (bytes[0], bytes[1]) = (flags, gso);
    for (at, value) in [(2, hdr_len), (4, gso_size), (6, start), (8, offset)] {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

const NEEDS_CSUM: u8 = 1;

pub fn g14(arena: &mut Arena<'_>) -> Ended {
    let places = [(60, 0), (58, 1), (0, 0), (13, 16), (34, u16::MAX), (u16::MAX, 1), (u16::MAX, u16::MAX)];
    let more = [(5000, 16), (34, 5000), (1513, 1), (1514, 0)];
    let headers: Vec<_> =
        places.iter().chain(&more).map(|(s, o)| header(NEEDS_CSUM, 0, 0, 0, *s, *o)).collect();
    bad_offloads(arena, &headers)
}

pub fn g15(arena: &mut Arena<'_>) -> Ended {
    let mut headers = Vec::new();
    for gso in [1, 3, 4, 5, 0x81, 0x7f, 0xff] {
        for (hdr_len, size) in [(54, 0), (54, 1), (54, u16::MAX), (0, 1460), (u16::MAX, 1460), (1400, 8)] {
            headers.push(header(NEEDS_CSUM, gso, hdr_len, size, 34, 16));
            headers.push(header(0, gso, hdr_len, size, 0, 0));
        }
    }
    bad_offloads(arena, &headers)
}

pub fn g17(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    arena.provoke(&mut frontend, 1000, 1500);
    arena.provoke(&mut frontend, 50, 9000);
    arena.neighbour_goes_on(256)?;
    for i in 0..frontend.rings[RX].size {
        frontend.rings[RX].push(&[Desc::write(SCRATCH.plus(u64::from(i)).gpa(), 1)]);
    }
    frontend.kick(RX);
    arena.provoke(&mut frontend, 200, 9000);
    arena.neighbour_goes_on(256)?;
    done("the neighbour goes on", frontend)
}

pub fn g27(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.features = feature::IN_ORDER)?;
    arena.traffic.seen_at_wire();
    let mut numbers = Vec::new();
    let shapes: [&[usize]; 6] = [&[], &[12], &[1, 1, 1], &[12, 9, 9, 9, 9, 9], &[72], &[30; 3]];
    for turn in 0..60u64 {
        let number = arena.next_number();
        let mut chain = pieces(&frontend, &with_header(number, 60), shapes[turn as usize % shapes.len()]);
        // Every piece lies in a place of its own, so that several chains can be under way; and every
        // seventh goes by way of a table.
        for (i, desc) in chain.iter_mut().enumerate() {
            let to = SCRATCH.plus(0x2_0000 + 0x1000 * (turn % 16) + 0x80 * i as u64);
            let from = SCRATCH.plus(0x8000 + 0x100 * i as u64);
            frontend.memory.write(to, &frontend.memory.read(from, desc.len as usize));
            desc.addr = to.gpa();
        }
        if turn % 7 == 6 {
            let table = SCRATCH.plus(0x2_0800 + 0x1000 * (turn % 16));
            write_table(&frontend.memory, table, arena.layout, &chain);
            chain = vec![Desc::table(table.gpa(), 16 * chain.len() as u32)];
        }
        frontend.rings[TX].push(&chain);
        numbers.push(number);
        if turn % 16 == 15 || turn == 59 {
            frontend.kick(TX);
            let whole = come_out(arena, &mut frontend, &numbers);
            if arena.is_strict() && !whole {
                return Err(Trouble::Wrong(format!("frames {numbers:?} did not come out in order")));
            }
            arena.comes_back(&mut frontend, TX)?;
            numbers.clear();
        }
    }
    let negotiated = frontend.features & feature::IN_ORDER != 0;
    done(if negotiated { "all in order" } else { "all in order (not negotiated)" }, frontend)
}

pub fn g29(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    for turn in 0..10u64 {
        let at = SCRATCH.plus(0x1000 * turn);
        frontend.memory.fill(at, 2048, 0xcc);
        frontend.rings[RX].push(&[Desc::write(at.gpa(), 2048)]);
        frontend.kick(RX);
        arena.provoke(&mut frontend, 1, [1514, 300, 60, 60, 128][turn as usize % 5]);
        let mut returned = None;
        until(arena.patience(), || {
            returned = frontend.rings[RX].take();
            returned.is_some()
        });
        let Some(len) = returned.map(|used| used.len as usize) else {
            match arena.is_strict() {
                true => return Err(Trouble::Wrong("no frame came".into())),
                false => break,
            }
        };
        let beyond = frontend.memory.read(at.plus(len as u64), 2048 - len.min(2048));
        if beyond.iter().any(|byte| *byte != 0xcc) {
            return Err(Trouble::Harm(format!("bytes behind a frame of {len} bytes are written")));
        }
        let bytes = frontend.memory.read(at, len.min(2048));
        if arena.is_strict() && bytes[..HEADER_BYTES] != [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] {
            return Err(Trouble::Wrong(format!("a plain frame's header is {:x?}", &bytes[..HEADER_BYTES])));
        }
        // What is delivered is what was sent, to the last byte: nothing of another frame is in it.
        if read_frame(&bytes[HEADER_BYTES..]).is_none() {
            return Err(Trouble::Harm(format!("a frame of {len} bytes is not as it was sent")));
        }
    }
    done("nothing behind the frame", frontend)
}

pub fn g30(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let mut odd = Vec::new();
    let tagged = |tags: &[[u8; 4]], len: usize| {
        let mut bytes = [WIRE_MAC, VICTIM_MAC].concat();
        tags.iter().for_each(|tag| bytes.extend_from_slice(tag));
        bytes.resize(bytes.len().max(len), 0);
        bytes
    };
    let tag = [0x81, 0, 0x0f, 0xff];
    for len in 12..20 {
        odd.push(tagged(&[tag], 16)[..len.min(16)].to_vec());
        odd.push(tagged(&[], len));
    }
    for tags in [vec![tag; 2], vec![[0x88, 0xa8, 0, 5], tag], vec![tag; 8], vec![tag; 300]] {
        odd.push(tagged(&tags, 0));
        odd.push(tagged(&tags, 60));
    }
    for source in [[0; 6], [0, 0, 0, 0, 0, 1], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        let mut bytes = tagged(&[], 60);
        bytes[6..12].copy_from_slice(&source);
        odd.push(bytes.clone());
        bytes[..6].copy_from_slice(&source);
        odd.push(bytes);
    }
    for bytes in &odd {
        until(arena.patience(), || frontend.send(bytes));
    }
    // A flood to a group, a few at a time: what is under way is bounded by the ring.
    let mut group = tagged(&[], 200);
    group[..6].copy_from_slice(&[1, 0, 0x5e, 1, 2, 3]);
    for _ in 0..2000 {
        if !until(arena.patience(), || frontend.send(&group)) {
            break;
        }
    }
    frontend.drain(arena.patience());
    arena.unharmed(frontend)
}
