//! What each view must show, and the load on all of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common::guest::Guest;
use crate::common::load::{Load, Reins, Tolerance, Written};
use crate::common::random::Random;
use crate::common::stamps::{self, Found, SECTOR};
use crate::common::volume::Volume;
use crate::place::Place;
use crate::verbs::Verbs;

/// No load makes as many before it is stopped.
const ENDLESS: u64 = 1 << 40;
/// Nothing else may take as long.
pub const HANG: Duration = Duration::from_secs(60);

/// A snapshot with room for the whole disk, and its guest.
pub struct Snap {
    pub name: String,
    pub load: Load,
    /// Its store takes space as it fills, and it ends when there is none.
    pub sparse: bool,
}

impl Snap {
    pub fn cow(&self) -> String {
        format!("{}.cow", self.name)
    }
}

/// A snapshot of type P, PO or N (its name begins so) that is soon full.
pub struct Small {
    pub name: String,
    /// It was there after an episode; before, its taking may have failed.
    pub seen: bool,
}

/// The volume and what is known of it between two episodes.
pub struct Model {
    pub volume: Volume,
    pub random: Random,
    pub verbs: Verbs,
    pub origin: Load,
    pub snaps: Vec<Snap>,
    /// Snapshots whose stores are soon full; their views are not compared.
    pub small: Vec<Small>,
    /// The snapshot whose content the origin shows, until the merge ends.
    pub merging: Option<String>,
    pub counts: Counts,
    numbers: u64,
    /// Requests of the origin that had failed before this load.
    pub origin_failed: u64,
    /// Where the volume is; dropped after it.
    pub place: Option<Place>,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub episodes: u64,
    pub snapshots: u64,
    pub filled: u64,
    /// Snapshots with guests that ended because there was no space.
    pub ended: u64,
    pub handovers: u64,
    pub merges: u64,
    pub kills: u64,
    pub terms: u64,
    /// Front ends that left with requests in flight.
    pub drops: u64,
    pub resizes: u64,
    /// Rollbacks that were carried out by a reset.
    pub resets: u64,
    pub faults: u64,
    /// Of these, file systems without space.
    pub full: u64,
    /// Cycles of the steady work.
    pub steady: u64,
    pub offline: u64,
    pub doubts: usize,
}

/// How an episode under load ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Drained,
    /// The daemon is gone.
    Stopped,
    /// The front ends have left, with requests in flight.
    Dropped,
}

/// Lets all loads end, also when the script fails.
struct Release<'a>(&'a [Reins]);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(Reins::dead);
    }
}

pub fn socket_of(volume: &Volume, snapshot: Option<&str>) -> PathBuf {
    volume.path(&format!("{}.sock", snapshot.unwrap_or("a")))
}

/// Runs `script` while all `loads` run. It gets a way to wait for progress.
pub fn under_load(
    volume: &mut Volume,
    loads: Vec<(&mut Load, PathBuf)>,
    script: impl FnOnce(&mut Volume, &dyn Fn(u64)) -> End,
) -> End {
    let reins: Vec<Reins> = loads.iter().map(|_| Reins::default()).collect();
    let loads: Vec<&mut Load> = loads
        .into_iter()
        .map(|(load, socket)| {
            load.attach(&socket);
            load
        })
        .collect();
    std::thread::scope(|scope| {
        let release = Release(&reins);
        for (load, reins) in loads.into_iter().zip(&reins) {
            scope.spawn(move || {
                load.run(ENDLESS, reins);
                load.detach();
            });
        }
        let going = |more: u64| {
            let start = Instant::now();
            for reins in &reins {
                let goal = reins.done() + more;
                while reins.done() < goal && !reins.failed() {
                    assert!(start.elapsed() < HANG, "a guest does not go on");
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert!(!reins.failed(), "a guest has failed");
            }
        };
        let end = script(volume, &going);
        let order = match end {
            End::Drained => Reins::drain,
            End::Dropped => Reins::gone,
            End::Stopped => return end,
        };
        reins.iter().for_each(order);
        std::mem::forget(release);
        end
    })
}

impl Model {
    pub fn new(sectors: u64, seed: u64) -> Self {
        let place = Place::new();
        let folder = place.as_ref().map(Place::path);
        let volume = Volume::new_in(folder, sectors);
        Self {
            origin: Load::new("origin", 1, seed, volume.first_content()),
            volume,
            random: Random::new(seed),
            verbs: Verbs::default(),
            snaps: Vec::new(),
            small: Vec::new(),
            merging: None,
            counts: Counts::default(),
            numbers: 0,
            origin_failed: 0,
            place,
        }
    }

    /// A name and a writer's number that no other has now.
    pub fn next(&mut self, prefix: &str) -> (String, u8) {
        self.numbers += 1;
        let writer = 2 + (self.numbers % 250) as u8;
        (format!("{prefix}{}", self.numbers), writer)
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, more: &[&str]) {
        let engine = ["io_uring", "threads"][self.random.below(2) as usize];
        let policy = ["wait", "redirect"][self.random.below(2) as usize];
        let mut arguments = vec!["--io-engine", engine];
        arguments.extend(more);
        let fresh = !self.volume.path("disk.img.snapback").exists() && self.snaps.is_empty();
        if fresh {
            arguments.extend(["--socket-path", "a.sock"]);
        }
        if self.merging.is_none() {
            arguments.extend(["--merge-writes", policy]);
        }
        self.volume.start(&arguments);
    }

    /// Until no front end is connected.
    pub fn wait_detached(&self) {
        let start = Instant::now();
        while self.volume.status().views.iter().any(|v| v.attached) {
            assert!(start.elapsed() < HANG, "a front end does not leave");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads every view as a new guest and compares. Unless the guests ended in peace,
    /// writes may have been under way at the end, and are settled by this.
    pub fn verify(&mut self, end: End) {
        self.notice_the_size();
        let snaps = self.snaps.iter_mut().map(|s| (&mut s.load, Some(&s.name)));
        for (load, name) in std::iter::once((&mut self.origin, None)).chain(snaps) {
            load.attach(&socket_of(&self.volume, name.map(String::as_str)));
            let doubts = load.settle();
            assert!(end != End::Drained || doubts == 0, "{}", load.name);
            self.counts.doubts += doubts;
            load.detach();
        }
        self.wait_detached();
    }

    /// The disk may have been enlarged.
    pub fn notice_the_size(&mut self) {
        let sectors = self.volume.status().origin.sectors as usize;
        self.counts.resizes += u64::from(sectors > self.origin.shadow.len());
        self.origin.grown(sectors);
    }

    pub fn look(&self, snapshot: &str) -> Vec<Option<u64>> {
        let mut found = Vec::new();
        let mut guest = Guest::connect(&socket_of(&self.volume, Some(snapshot)), 1, 4);
        guest.read_all(|_, data| {
            found.extend(data.chunks_exact(SECTOR).map(stamps::read));
        });
        found
    }

    pub fn is_listed(&self, name: &str) -> bool {
        let status = self.volume.status();
        status.snapshots.iter().any(|s| s.name == name)
    }

    /// A merge that has ended is over for the model, too.
    pub fn notice_the_merge(&mut self) {
        let status = self.volume.status();
        if let Some(merge) = &status.merge {
            assert_eq!(merge.error, None);
        } else if let Some(merged) = self.merging.take() {
            self.counts.merges += 1;
            self.remove_file(&merged);
        }
    }

    /// Of a snapshot that is not there any more.
    pub fn remove_file(&self, snapshot: &str) {
        let _ = std::fs::remove_file(self.volume.path(&format!("{snapshot}.cow")));
    }

    /// What requests may fail while there is no space.
    pub fn tolerate(&mut self, no_space: bool) {
        let or_nothing = |what| if no_space { what } else { Tolerance::Nothing };
        self.origin.tolerates = or_nothing(Tolerance::Changes);
        for snap in self.snaps.iter_mut().filter(|snap| snap.sparse) {
            snap.load.tolerates = or_nothing(Tolerance::All);
        }
    }

    pub fn wait_merged(&mut self) {
        if self.merging.is_none() {
            return;
        }
        for word in ["--resume", "--rate=0"] {
            // It may end in between.
            self.verbs.ask(&self.volume, &["merge", word]);
        }
        let start = Instant::now();
        while self.merging.is_some() {
            assert!(start.elapsed() < HANG, "{:?}", self.volume.status());
            std::thread::sleep(Duration::from_millis(1));
            self.notice_the_merge();
        }
    }
}

/// A snapshot whose taking was cut short: each sector holds what was there when it
/// was asked for, or what a later write brought.
pub fn check_lenient(found: &[Option<u64>], first: &[u64], writes: &[Written], asked: Instant) {
    let mut allowed: HashMap<usize, Vec<u64>> = HashMap::new();
    let mut base = first.to_vec();
    for write in writes {
        let before = write.done.is_some_and(|done| done < asked);
        for (sector, stamp) in
            (write.sector as usize..).zip(write.stamp..write.stamp + write.sectors)
        {
            if before {
                base[sector] = stamp;
            } else {
                allowed.entry(sector).or_default().push(stamp);
            }
        }
    }
    for (sector, (found, base)) in found.iter().zip(&base).enumerate() {
        let later = allowed.get(&sector).map_or(&[][..], Vec::as_slice);
        let good = *found == Some(*base) || found.is_some_and(|f| later.contains(&f));
        assert!(
            good,
            "sector {sector} holds {}, not {}",
            Found(*found),
            Found(Some(*base))
        );
    }
}
