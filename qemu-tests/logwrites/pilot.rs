//! The part that runs in the guest: the daemon on logged block devices, guests on
//! its views, and the verbs. Whatever a judge must know later goes into the
//! kernel's trace, between the block layer's own events.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use snapback::control::Client;
use snapback::control::api::State;

use super::plan::{CUT_AT, ORIGIN, Plan};
use super::queue::{Ask, Guest, Kind};
use super::random::Random;
use super::stamps::{self, SECTOR};

const CONTROL: &str = "/tmp/c.sock";
const PATIENCE: Duration = Duration::from_secs(100);
/// Bytes a second; the merge is slow at first.
const RATE: &str = "100K";

struct Flight {
    ask: Ask,
    /// Of a write: its number.
    number: u64,
}

/// A guest on a view, and what it knows of its disk.
struct Load {
    socket: &'static str,
    /// In all stamps, and in the trace.
    writer: u8,
    guest: Option<Guest>,
    flights: Vec<Option<Flight>>,
    /// What was acknowledged last, by sector.
    shadow: Vec<u64>,
    requests: u64,
    /// Its snapshot may become invalid.
    may_fail: bool,
    failed: bool,
    flushes: bool,
}

impl Load {
    fn new(socket: &'static str, writer: u8, shadow: Vec<u64>) -> Self {
        Self {
            socket,
            writer,
            guest: None,
            flights: Vec::new(),
            shadow,
            requests: 0,
            may_fail: false,
            failed: false,
            flushes: true,
        }
    }

    fn attach(&mut self) {
        let guest = Guest::connect(Path::new(self.socket), 2, 3);
        assert_eq!(guest.sectors(), ORIGIN);
        self.flights = (0..guest.slots()).map(|_| None).collect();
        self.guest = Some(guest);
    }

    fn detach(&mut self) {
        assert!(self.flights.iter().all(Option::is_none));
        self.guest = None;
    }
}

struct Pilot {
    trace: File,
    random: Random,
    client: Client,
    requests: u64,
}

pub fn run(seed: u64) {
    let plan = Plan::new(seed);
    let first: Vec<u64> = (0..ORIGIN).collect();
    let trace = File::options()
        .write(true)
        .open("/sys/kernel/tracing/trace_marker");
    let mut daemon = serve(&plan);
    let mut pilot = Pilot {
        trace: trace.unwrap(),
        random: Random::new(seed ^ 0x5eed),
        client: Client::new(Path::new(CONTROL)).unwrap(),
        requests: 0,
    };
    pilot.wait_up(&mut daemon);
    pilot.mark("ready");
    let mut origin = Load::new("/tmp/a.sock", 1, first.clone());
    let mut s1 = Load::new("/tmp/s1.sock", 2, first.clone());
    let mut s3 = Load::new("/tmp/s3.sock", 3, first);
    s3.may_fail = true;
    for load in [&mut origin, &mut s1, &mut s3] {
        load.attach();
    }
    pilot.requests(&mut [&mut origin, &mut s1, &mut s3], 180);

    // A cut under load. No flush of the guest's makes durable what is in it.
    origin.flushes = false;
    pilot.mark("take");
    let mut taking = verb(&[
        "snapshot",
        "s2",
        "--cow",
        "/dev/mapper/s2",
        "--chunk-size",
        &(plan.stores[1].chunk * 512).to_string(),
        "--socket-path",
        "/tmp/s2.sock",
    ]);
    pilot.during(&mut [&mut origin, &mut s1, &mut s3], &mut taking);
    pilot.mark("taken");
    origin.flushes = true;
    let mut s2 = Load::new("/tmp/s2.sock", 4, first_content("/tmp/s2.sock"));
    s2.attach();
    pilot.requests(&mut [&mut origin, &mut s1, &mut s2, &mut s3], 180);
    let begin = Instant::now();
    while pilot.state("s3") != State::Invalid {
        assert!(begin.elapsed() < PATIENCE, "s3 has room for all");
        pilot.requests(&mut [&mut origin, &mut s1, &mut s2, &mut s3], 20);
    }
    s3.detach_after(&mut pilot);

    // The handover: of a view whose guest goes on, or of one that waits.
    let mut merged = if plan.follow {
        origin.detach_after(&mut pilot);
        pilot.mark("hand");
        let mut asked = verb(&["merge", "s1", "--follow", "--rate", RATE]);
        pilot.during(&mut [&mut s1, &mut s2], &mut asked);
        s1
    } else {
        s1.detach_after(&mut pilot);
        pilot.drain(&mut origin);
        pilot.mark("hand");
        let mut asked = verb(&["rollback", "s1", "--now", "--rate", RATE]);
        pilot.during(&mut [&mut s2], &mut asked);
        origin.shadow = s1.shadow;
        origin
    };
    pilot.mark("handed");
    pilot.requests(&mut [&mut merged, &mut s2], 130);
    if let Err(error) = pilot.client.set_merge_rate(0) {
        assert!(pilot.client.status().unwrap().merge.is_none(), "{error}");
    }
    let begin = Instant::now();
    while pilot.client.status().unwrap().merge.is_some() {
        pilot.requests(&mut [&mut merged, &mut s2], 5);
        assert!(begin.elapsed() < PATIENCE, "the merge hangs");
    }
    pilot.mark("merged");
    pilot.requests(&mut [&mut merged, &mut s2], 60);
    merged.detach_after(&mut pilot);
    s2.detach_after(&mut pilot);
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success(), "the daemon's end");
    pilot.mark("stopped");
}

impl Load {
    fn detach_after(&mut self, pilot: &mut Pilot) {
        pilot.drain(self);
        self.detach();
    }
}

fn serve(plan: &Plan) -> Child {
    let snapshot = |number: usize| {
        let store = plan.stores[number];
        format!(
            "name={0},cow=/dev/mapper/{0},chunk-size={1},socket=/tmp/{0}.sock",
            store.name,
            store.chunk * 512
        )
    };
    Command::new("/bin/snapback")
        .args(["serve", "--origin", "/dev/mapper/origin"])
        .args(["--socket-path", "/tmp/a.sock", "--state", "/tmp/state"])
        .args(["--control", CONTROL, "--merge-writes", plan.policy])
        .args(["--io-engine", plan.engine])
        .args(["--snapshot", &snapshot(0), "--snapshot", &snapshot(2)])
        .stderr(File::create("/tmp/daemon.log").unwrap())
        .spawn()
        .unwrap()
}

fn verb(words: &[&str]) -> Child {
    let mut command = Command::new("/bin/snapback");
    command.args(words).args(["--control", CONTROL]);
    command.spawn().unwrap()
}

/// What a view shows at first, kept for the judge.
fn first_content(socket: &str) -> Vec<u64> {
    let mut found = Vec::new();
    Guest::connect(Path::new(socket), 1, 2).read_all(|_, data| {
        let stamps = data.chunks_exact(SECTOR).map(stamps::read);
        found.extend(stamps.map(|stamp| stamp.expect("a sector of one stamp")));
    });
    let bytes: Vec<u8> = found.iter().flat_map(|stamp| stamp.to_le_bytes()).collect();
    let results = File::options().write(true).open("/dev/vdc").unwrap();
    results.write_all_at(&bytes, CUT_AT).unwrap();
    results.sync_all().unwrap();
    found
}

impl Pilot {
    fn mark(&mut self, what: &str) {
        self.trace
            .write_all(format!("sb {what}").as_bytes())
            .unwrap();
    }

    fn wait_up(&self, daemon: &mut Child) {
        let begin = Instant::now();
        while self.client.status().is_err() {
            assert_eq!(daemon.try_wait().unwrap(), None, "the daemon ended");
            assert!(begin.elapsed() < PATIENCE, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn state(&self, name: &str) -> State {
        let status = self.client.status().unwrap();
        let mut snapshots = status.snapshots.iter();
        snapshots.find(|s| s.name == name).unwrap().state
    }

    /// Goes on until `count` more requests have ended.
    fn requests(&mut self, loads: &mut [&mut Load], count: u64) {
        let goal = self.requests + count;
        let begin = Instant::now();
        while self.requests < goal {
            assert!(begin.elapsed() < PATIENCE, "the requests hang");
            self.turn(loads, true);
        }
    }

    /// Goes on until a verb has ended, which must succeed.
    fn during(&mut self, loads: &mut [&mut Load], verb: &mut Child) {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = verb.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "a verb hangs");
            self.turn(loads, true);
        };
        assert!(status.success(), "a verb: {status}");
    }

    /// Waits for what is in flight.
    fn drain(&mut self, load: &mut Load) {
        let begin = Instant::now();
        while load.flights.iter().any(Option::is_some) {
            assert!(begin.elapsed() < PATIENCE, "the last requests hang");
            self.turn(&mut [&mut *load], false);
        }
    }

    fn turn(&mut self, loads: &mut [&mut Load], submit: bool) {
        let before = self.requests;
        for load in loads {
            if submit && !load.failed {
                for slot in 0..load.flights.len() {
                    if load.flights[slot].is_none() && self.random.below(3) == 0 {
                        self.submit(load, slot);
                    }
                }
                load.guest.as_mut().unwrap().kick();
            }
            let mut done = Vec::new();
            load.guest.as_mut().unwrap().reap(&mut done);
            for (slot, result) in done {
                self.complete(load, slot, result);
            }
        }
        if self.requests == before {
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    fn submit(&mut self, load: &mut Load, slot: usize) {
        let kind = match self.random.below(100) {
            0..12 if load.flushes => Kind::Flush,
            12..22 => Kind::Read,
            _ => Kind::Write,
        };
        let (mut sector, mut count) = (0, 0);
        if kind != Kind::Flush {
            count = match self.random.below(10) {
                0..5 => self.random.between(1, 8),
                5..8 => 8,
                _ => self.random.between(9, 48),
            };
            sector = self.random.below(ORIGIN - count);
            if count == 8 {
                sector = sector / 8 * 8;
            }
        }
        // As a file system, it has no write in flight with another request for
        // the same sectors.
        let meets = |flight: &Flight| {
            let theirs = flight.ask.sector..flight.ask.sector + (flight.ask.len / SECTOR) as u64;
            sector < theirs.end && theirs.start < sector + count
        };
        if load.flights.iter().flatten().any(meets) {
            return;
        }
        let ask = Ask {
            kind,
            sector,
            len: count as usize * SECTOR,
            offset: 0,
            cut: 0,
        };
        load.requests += 1;
        let (writer, number) = (load.writer, load.requests);
        let guest = load.guest.as_mut().unwrap();
        match kind {
            Kind::Write => {
                let stamp = stamps::stamp(writer, number);
                stamps::fill(&mut guest.memory(slot)[..ask.len], stamp);
                self.mark(&format!("w {writer} {number} {sector} {count}"));
            }
            Kind::Flush => self.mark(&format!("f {writer} {number}")),
            Kind::Read => {}
        }
        guest.submit(slot, &ask);
        load.flights[slot] = Some(Flight { ask, number });
    }

    fn complete(&mut self, load: &mut Load, slot: usize, result: i32) {
        self.requests += 1;
        let Flight { ask, number } = load.flights[slot].take().unwrap();
        if result != 0 {
            assert!(load.may_fail, "{}: {ask:?}: {result}", load.socket);
            load.failed = true;
            return;
        }
        let range = ask.sector as usize..ask.sector as usize + ask.len / SECTOR;
        let writer = load.writer;
        match ask.kind {
            Kind::Flush => self.mark(&format!("F {writer} {number}")),
            Kind::Write => {
                self.mark(&format!("a {writer} {number}"));
                let stamps = stamps::stamp(writer, number)..;
                for (known, stamp) in load.shadow[range].iter_mut().zip(stamps) {
                    *known = stamp;
                }
            }
            Kind::Read => {
                let data = &load.guest.as_mut().unwrap().memory(slot)[..ask.len];
                stamps::check(load.socket, ask.sector, data, &load.shadow[range]);
            }
        }
    }
}
