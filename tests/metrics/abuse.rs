//! Clients of the port that do harm to a daemon: what they take, and that nobody else misses it. The
//! bounds of time are tried in `src/control/metrics_server_tests.rs`.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::scraper::{ask, scrape, start_with_port, tcp};
use super::world::World;

/// Fewer than may wait to be accepted.
const CLIENTS: usize = 100;
/// As `docs/metrics.md` says.
const AT_A_TIME: usize = 8;
/// More than that what clients can send at once takes: heads of 16 KiB, and answers.
const GROWTH_KIB: u64 = 16 << 10;

struct Process(u32);

impl Process {
    fn descriptors(&self) -> usize {
        let all = fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap();
        all.count()
    }

    /// As before what is to come: nothing has changed for a second.
    fn descriptors_at_rest(&self) -> usize {
        let (mut last, mut since) = (self.descriptors(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.descriptors();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// In KiB, or their number.
    fn field(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn bad_clients(address: SocketAddr) -> Vec<TcpStream> {
    let endless = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
    let full = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(15 << 10));
    let unread = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let kinds = [
        "",
        "GET /met",
        &full,
        &endless,
        unread,
        "\u{16}\u{3}\u{1}\r\n\r\n",
    ];
    let clients = kinds.iter().cycle().take(CLIENTS).map(|text| {
        let mut client = TcpStream::connect(address).unwrap();
        client.set_nonblocking(true).unwrap();
        // As much as is taken.
        let _ = client.write(text.as_bytes());
        client
    });
    clients.collect()
}

#[test]
fn bad_clients_of_the_port_take_nothing_from_others_and_leave_nothing() {
    let mut world = World::new();
    let arguments = ["--socket-path", "a.sock"];
    let address = start_with_port(&mut world, "127.0.0.1:0", &arguments);
    assert_eq!(ask(tcp(address), "GET /metrics", "").status, 200);
    scrape(&world);
    let process = Process(world.daemon.as_ref().unwrap().id());
    let (descriptors, threads) = (process.descriptors_at_rest(), process.field("Threads:"));
    let resident = process.field("VmHWM:");
    for _ in 0..3 {
        let clients = bad_clients(address);
        // The control socket has places of its own.
        for _ in 0..5 {
            scrape(&world);
            // One more for the connection of this scrape; that of the one before is closed in a
            // moment, and those of the clients stay.
            world.until("others have no more than their places", |_| {
                process.descriptors() <= descriptors + AT_A_TIME + 1
            });
        }
        drop(clients);
        assert_eq!(ask(tcp(address), "GET /metrics", "").status, 200);
    }
    world.until("all descriptors are closed", |_| {
        process.descriptors() <= descriptors
    });
    world.until("all threads have ended", |_| {
        process.field("Threads:") <= threads
    });
    let grown = process.field("VmHWM:") - resident;
    assert!(grown < GROWTH_KIB, "{grown} KiB more");
    // A stop does not wait for them, either.
    let clients = bad_clients(address);
    world.terminate_at_once();
    drop(clients);
}
