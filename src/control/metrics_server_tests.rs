//! Clients that do harm. The bounds are shorter than those of the program, so that they are reached.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use rustix::net::sockopt;

use super::*;
use crate::control::metrics::{Family, Value, labels};
use crate::control::server::tests::FakeVolume;

/// No test waits longer for a server that has to answer or to close.
const PATIENCE: Duration = Duration::from_secs(120);
/// More than the sockets of a client that does not read take, with a window as small as below.
const LARGE: usize = 4 << 20;
const WINDOW: usize = 4096;

struct Served {
    volume: Arc<FakeVolume>,
    address: SocketAddr,
    _server: MetricsServer,
}

fn serve(bounds: Bounds) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let volume = Arc::new(FakeVolume::default());
    let shared = Arc::clone(&volume) as Arc<dyn Volume>;
    Served {
        volume,
        address,
        _server: MetricsServer::start_with(listener, shared, bounds).unwrap(),
    }
}

impl Served {
    /// The text of the metrics has at least so many bytes.
    fn text_of(&self, bytes: usize) {
        let mut family = Family::gauge("snapback_test", "For a test");
        let long = "x".repeat(bytes);
        family
            .samples
            .push((labels([("text", &long)]), Value::Integer(1)));
        *self.volume.families.lock().unwrap() = vec![family];
    }

    fn connect(&self, text: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text).unwrap();
        stream
    }

    /// An ordinary scrape, by a client that reads.
    #[track_caller]
    fn is_served(&self) {
        let answer = rest(self.connect(GET));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:.80}");
        assert!(answer.ends_with("# EOF\n"), "it was cut");
    }
}

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

/// What comes until the server closes. If it does not, this fails.
#[track_caller]
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("the server does not close"),
        // It closes a connection with bytes that it has not read.
        Ok(_) | Err(_) => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn clients_that_say_nothing_or_half_or_do_not_read_lose_their_places() {
    let bounds = Bounds {
        connections: 3,
        head: Duration::from_secs(1),
        connection: Duration::from_secs(5),
    };
    let served = serve(bounds);
    served.text_of(LARGE);
    let start = Instant::now();
    // All places are taken by clients that read the beginning of an answer.
    let mut slow: Vec<TcpStream> = (0..3).map(|_| served.connect(b"")).collect();
    for stream in &mut slow {
        sockopt::set_socket_recv_buffer_size(&*stream, WINDOW).unwrap();
        stream.write_all(GET).unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
    }
    served.text_of(16);
    let half = &b"GET /metrics HTTP/1.1\r\nHost:"[..];
    // These wait, and take the places that become free.
    let later: Vec<TcpStream> = [&b""[..], half, b"", half, &half[..1]]
        .iter()
        .map(|text| served.connect(text))
        .collect();
    served.is_served();
    // Otherwise nobody had to wait for those that do not read.
    assert!(start.elapsed() >= bounds.connection);
    drop(slow);
    for stream in later {
        let answer = rest(stream);
        assert!(!answer.contains("200"), "{answer}");
    }
}

#[test]
fn a_client_that_sends_its_head_byte_by_byte_has_the_time_of_one_head() {
    let served = serve(Bounds {
        connections: 1,
        head: Duration::from_secs(1),
        connection: Duration::from_secs(3600),
    });
    let mut slow = served.connect(b"GET /metrics HTTP/1.1\r\nX: ");
    let dribble = std::thread::spawn(move || {
        // Ends when the server has closed.
        while slow.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    served.is_served();
    dribble.join().unwrap();
}

#[test]
fn garbage_and_endless_requests_are_refused_before_they_take_memory() {
    let served = serve(BOUNDS);
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        // The greeting of TLS.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ] {
        let answer = rest(served.connect(garbage));
        let shown = String::from_utf8_lossy(garbage);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{shown:?}: {answer}"
        );
    }
    for begin in [
        "GET /",
        "GET /metrics HTTP/1.1\r\nX: ",
        "GET /metrics HTTP/1.1\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
    ] {
        let mut stream = served.connect(begin.as_bytes());
        let mut sent = 0;
        // What is not read stays in the sockets, and then the connection is closed.
        while stream.write_all(&[b'x'; 65536]).is_ok() {
            sent += 65536;
            assert!(sent < 256 << 20, "{begin}: all of it is taken");
        }
        served.is_served();
    }
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(2000));
    let answer = rest(served.connect(many.as_bytes()));
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    served.is_served();
}
