//! Brokers that hang, lie or flood: each costs an error with its reason, and nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::support::{Heartbeat, until};

/// Accepts connections and does `act` with each.
fn serve(act: impl Fn(TcpStream) + Send + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let act = act.clone();
            std::thread::spawn(move || act(stream));
        }
    });
    format!("rabbit://u:p@127.0.0.1:{port}/")
}

/// Threads the client library runs now.
fn n_library_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map_while(Result::ok);
    let is_its = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("lapin"))
    };
    tasks.filter(is_its).count()
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let header = [&[kind, 0, 0][..], &(payload.len() as u32).to_be_bytes()].concat();
    [&header, payload, &[0xce]].concat()
}

/// connection.start whose table holds tables in tables.
fn deep_start(depth: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..depth {
        let inner = table;
        table = [b"\x01tF".to_vec(), (inner.len() as u32).to_be_bytes().to_vec(), inner].concat();
    }
    let mut payload = vec![0, 10, 0, 10, 0, 9];
    payload.extend((table.len() as u32).to_be_bytes());
    payload.extend(table);
    payload.extend(b"\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US");
    frame(1, &payload)
}

/// All at once, since the one that only hangs takes a deadline's length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_hang_lie_or_flood_cost_an_error_and_no_thread() {
    let answer = |bytes: Vec<u8>| {
        serve(move |mut stream| {
            let _ = stream.write_all(&bytes);
            let _ = stream.read_to_end(&mut Vec::new());
        })
    };
    let cases = [
        (answer(Vec::new()), "opening the connection took longer than 10s"),
        (serve(drop), "the broker closed the connection"),
        (answer(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), "that is not AMQP 0-9-1"),
        (answer(b"AMQP\x00\x01\x00\x00".to_vec()), "that is not AMQP 0-9-1"),
        (answer(frame(1, &[0xff; 100])), "what no publisher gets"),
        (answer([1, 0, 0, 0xff, 0xff, 0xff, 0xff].to_vec()), "a frame of 4294967303 bytes"),
        (answer(deep_start(2000)), "a malformed table"),
        (answer(frame(8, &[]).repeat(2000)), "floods us with frames"),
    ];
    let heartbeats: Vec<_> = cases.iter().map(|(url, words)| (Heartbeat::start(url), *words)).collect();
    for (heartbeat, words) in &heartbeats {
        heartbeat.until_error(words).await;
        assert_eq!(heartbeat.get().n_reports, 0);
    }
    for (heartbeat, _) in heartbeats {
        heartbeat.stop().await;
    }
    until("the library's threads are gone", || async { n_library_threads() == 0 }).await;
}
