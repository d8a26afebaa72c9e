//! The same work again and again, in one life of a daemon: it must not grow by it.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::load::Load;
use crate::model::{End, HANG, Model, socket_of, under_load};

/// Bytes by which the memory of the last third of the cycles may exceed that of the middle third.
const SLACK: u64 = 2 << 20;
/// At least so many cycles, in thirds: the first ones fill buffers.
const CYCLES: u64 = 9;

/// What a daemon holds between two cycles.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: u64,
    threads: u64,
    /// Resident bytes that are its own.
    memory: u64,
}

impl Held {
    fn by(pid: u32) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            descriptors: descriptors as u64,
            threads: field("Threads:"),
            memory: field("RssAnon:") << 10,
        }
    }
}

/// Of the largest, so that a moment's garbage does not count as growth.
fn least(held: &[Held], of: fn(&Held) -> u64) -> u64 {
    held.iter().map(of).min().unwrap()
}

fn has_grown(middle: &[Held], last: &[Held]) -> bool {
    let grows = |of, slack| least(last, of) > least(middle, of) + slack;
    grows(|held| held.descriptors, 0)
        || grows(|held| held.threads, 0)
        || grows(|held| held.memory, SLACK)
}

impl Model {
    /// For about a tenth of `seconds` more: snapshots are taken, served, written to and removed,
    /// and front ends come and leave in the middle, until it is known whether anything grows.
    pub fn work_steadily(&mut self, seconds: u64) {
        let mut held = Vec::new();
        for _ in 0..CYCLES.max(seconds / 10) {
            self.cycle();
            held.push(Held::by(self.volume.pid()));
        }
        self.counts.steady = held.len() as u64;
        let third = held.len() / 3;
        println!("steady: {:?} ... {:?}", held[third], held[held.len() - 1]);
        // What the last calls opened and started may be there for a while; what leaks stays.
        let start = Instant::now();
        while has_grown(&held[third..2 * third], &held[2 * third..]) {
            assert!(start.elapsed() < HANG, "it grows: {held:?}");
            std::thread::sleep(Duration::from_millis(100));
            held.push(Held::by(self.volume.pid()));
        }
    }

    fn cycle(&mut self) {
        let (name, writer) = self.next("t");
        let taken = format!(
            "snapshot {name} --cow {name}.cow --size 8M --chunk-size 4K --socket-path {name}.sock --discard-zeroes-cow"
        );
        let taken: Vec<&str> = taken.split(' ').collect();
        self.verbs.must(&self.volume, &taken);
        let shadow = self.origin.shadow.clone();
        let mut load = Load::new(&name, writer, self.random.next(), shadow).with_zeroing();
        let sockets = [None, Some(name.as_str())].map(|of| socket_of(&self.volume, of));
        let [origin, own] = sockets;
        let loads = vec![(&mut self.origin, origin), (&mut load, own.clone())];
        under_load(&mut self.volume, loads, |_, going| {
            going(60);
            End::Dropped
        });
        self.counts.drops += 1;
        self.wait_detached();
        load.attach(&own);
        self.counts.doubts += load.settle();
        load.detach();
        self.verify(End::Dropped);
        self.verbs.must(&self.volume, &["remove", &name]);
        fs::remove_file(self.volume.path(&format!("{name}.cow"))).unwrap();
    }
}
