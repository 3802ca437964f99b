//! A file over UDP, for the lab's guests: `lab_datagrams receive PORT FILE` there, `lab_datagrams send HOST PORT FILE`
//! here. Datagrams are numbered and acknowledged one by one, and sent again when no acknowledgement comes, so that
//! what arrives can be compared whole although UDP may lose: a datagram changed on the way with its checksum right shows, one
//! with a wrong checksum is counted by the kernel that drops it.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Bytes of the file in a datagram, behind its number and how many there are. An odd one: sums have a last byte.
const PIECE_BYTES: usize = 1391;
/// Datagrams under way.
const WINDOW: usize = 32;
/// Without an acknowledgement for this long, what is under way is sent again.
const AGAIN: Duration = Duration::from_millis(200);
/// The receiver stays for this long after the last datagram, to acknowledge what is sent again.
const LINGER: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(120);

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["receive", port, file] => receive(port, file),
        ["send", host, port, file] => send(host, port, file),
        _ => Err(io::Error::other("receive PORT FILE | send HOST PORT FILE")),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

fn receive(port: &str, file: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    let mut pieces: Vec<Option<Vec<u8>>> = Vec::new();
    let mut missing = usize::MAX;
    let mut buffer = [0; 2048];
    socket.set_read_timeout(Some(GIVE_UP))?;
    while missing > 0 {
        let (len, from) = socket.recv_from(&mut buffer)?;
        let (Some(at), Some(total)) = (number(&buffer[..len], 0), number(&buffer[..len], 4)) else {
            continue;
        };
        if pieces.is_empty() {
            pieces.resize(total, None);
            missing = total;
        }
        if pieces[at].is_none() {
            pieces[at] = Some(buffer[8..len].to_vec());
            missing -= 1;
        }
        socket.send_to(&buffer[..4], from)?;
    }
    std::fs::write(file, pieces.into_iter().flatten().flatten().collect::<Vec<u8>>())?;
    socket.set_read_timeout(Some(LINGER))?;
    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
        socket.send_to(&buffer[..4], from)?;
    }
    Ok(())
}

fn send(host: &str, port: &str, file: &str) -> io::Result<()> {
    let bytes = std::fs::read(file)?;
    let total = bytes.len().div_ceil(PIECE_BYTES);
    let datagrams = bytes
        .chunks(PIECE_BYTES)
        .enumerate()
        .map(|(at, piece)| [&(at as u32).to_be_bytes(), &(total as u32).to_be_bytes(), piece].concat());
    let datagrams: Vec<Vec<u8>> = datagrams.collect();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(format!("{host}:{port}"))?;
    socket.set_read_timeout(Some(AGAIN))?;
    let (mut acknowledged, mut first, mut next, mut again) = (vec![false; total], 0, 0, 0);
    let end = Instant::now() + GIVE_UP;
    let mut buffer = [0; 8];
    while first < total {
        while next < total && next < first + WINDOW {
            // An error here is one of earlier datagrams (nobody listens yet): they are sent again.
            let _ = socket.send(&datagrams[next]);
            next += 1;
        }
        match socket.recv(&mut buffer) {
            Ok(len) => {
                if let Some(done) = number(&buffer[..len], 0).and_then(|at| acknowledged.get_mut(at)) {
                    *done = true;
                }
            }
            Err(_) if Instant::now() > end => return Err(io::Error::other("no acknowledgements")),
            Err(_) => {
                again += next - first;
                next = first;
            }
        }
        first += acknowledged[first..].iter().take_while(|done| **done).count();
        next = next.max(first);
    }
    println!("{total} datagrams, {again} of them again");
    Ok(())
}
