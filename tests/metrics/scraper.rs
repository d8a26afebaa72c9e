//! Requests for metrics, byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use super::exposition::{Exposition, parse};
use super::world::World;

/// Status, head and body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

pub fn ask(mut stream: impl Read + Write, first_line: &str, more: &str) -> Answer {
    let request = format!("{first_line} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

pub fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

pub fn control(world: &World) -> UnixStream {
    let stream = UnixStream::connect(world.path("c.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

/// A scrape of the control socket.
#[track_caller]
pub fn scrape(world: &World) -> Exposition {
    let answer = ask(control(world), "GET /metrics", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    parse(&answer.body).unwrap()
}

/// Starts the daemon with a port for metrics of the system's choice.
pub fn start_with_port(world: &mut World, metrics: &str, arguments: &[&str]) -> SocketAddr {
    let mut command = world.command(arguments);
    command.args(["--control", "c.sock", "--metrics", metrics]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    world.daemon = Some(child);
    let address = lines.map(Result::unwrap).find_map(|line| {
        let rest = line.strip_prefix("metrics at http://")?.to_owned();
        rest.strip_suffix("/metrics")?.parse().ok()
    });
    address.expect("the daemon says where metrics are served")
}
