//! SIGKILL under load: what was acknowledged is there after a start from the
//! state file alone, and no snapshot has changed but by its own guest.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use snapback::control::api::{RollbackRequest, RollbackWhen, State};

use crate::common::guest::Guest;
use crate::common::load::{Load, Reins};
use crate::common::random::{self, Random};
use crate::common::volume::Volume;
use crate::common::{cut, stamps};
use crate::{snapshot, turn, until};

const SECTORS: u64 = (48 << 11) + 5;
/// No load makes as many before it is stopped.
const ENDLESS: u64 = 1 << 40;

/// Runs `loads` until each has made `requests`, kills the daemon in the middle of
/// it, and starts it again from the state file alone. Returns the sectors that
/// were in flight.
fn kill_under_load(
    volume: &mut Volume,
    loads: &mut [(Load, &str)],
    write_end: u64,
    requests: u64,
) -> usize {
    for (load, socket) in &mut *loads {
        load.attach(&volume.path(socket));
    }
    let reins: Vec<Reins> = loads.iter().map(|_| Reins::default()).collect();
    let all: Vec<&Reins> = reins.iter().collect();
    std::thread::scope(|scope| {
        for ((load, _), reins) in loads.iter_mut().zip(&reins) {
            reins.limit_writes(write_end);
            scope.spawn(|| load.run(ENDLESS, reins));
        }
        until("some requests", &all, || {
            all.iter().all(|r| r.done() >= requests)
        });
        volume.kill();
        all.iter().for_each(|r| r.dead());
    });
    volume.start(&[]);
    let mut doubts = 0;
    for (load, socket) in loads {
        load.attach(&volume.path(socket));
        doubts += load.settle();
        load.detach();
    }
    doubts
}

fn settle_all(volume: &Volume, loads: &mut [(Load, &str)]) {
    for (load, socket) in loads {
        load.attach(&volume.path(socket));
        assert_eq!(load.settle(), 0);
        load.detach();
    }
}

/// Takes snapshots under the load of the origin's guest, checks that each is a
/// cut, and removes them again but the last, `s2`, whose content is returned.
fn take_under_load(volume: &Volume, origin: &mut Load) -> Vec<u64> {
    let first = origin.shadow.clone();
    origin.attach(&volume.path("a.sock"));
    let reins = Reins::default();
    let cuts = std::thread::scope(|scope| {
        scope.spawn(|| origin.run(ENDLESS, &reins));
        let going = |more: u64| {
            let goal = reins.done() + more;
            until("the guest goes on", &[&reins], || reins.done() > goal);
        };
        let mut cuts = Vec::new();
        for name in ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "s2"] {
            going(500);
            let (cow, socket) = (format!("{name}.cow"), format!("{name}.sock"));
            let asked = Instant::now();
            volume.verb(&[
                "snapshot",
                name,
                "--cow",
                &cow,
                "--size",
                "64M",
                "--chunk-size",
                "64K",
                "--socket-path",
                &socket,
            ]);
            let answered = Instant::now();
            going(500);
            let mut found = Vec::new();
            Guest::connect(&volume.path(&socket), 1, 4).read_all(|_, data| {
                found.extend(data.chunks_exact(stamps::SECTOR).map(stamps::read));
            });
            cuts.push((name, found, asked, answered));
            let attached = || volume.status().views.iter().filter(|v| v.attached).count();
            until("its guest is gone", &[&reins], || attached() == 1);
            if name != "s2" {
                volume.verb(&["remove", name]);
            }
        }
        reins.drain();
        cuts
    });
    origin.detach();
    let mut last = Vec::new();
    for (name, found, asked, answered) in cuts {
        let (around, inside) = cut::check(&found, &first, &origin.writes, asked, answered);
        let compared = found.len();
        println!(
            "{name}, taken under load: {compared} sectors compared; {inside} of {around} writes around the cut are in"
        );
        last = found;
    }
    last.into_iter().map(Option::unwrap).collect()
}

#[test]
fn after_a_sigkill_under_load_every_view_has_what_was_acknowledged_and_no_more() {
    let _turn = turn();
    let (seed, start) = (random::seed(), Instant::now());
    let mut random = Random::new(seed);
    let mut volume = Volume::new(SECTORS);
    let s1 = snapshot(&volume, "s1", "4K");
    volume.start(&["--socket-path", "a.sock", "--snapshot", &s1]);
    let mut origin = Load::new("origin", 1, seed, volume.first_content());
    let s1 = Load::new("s1", 2, seed, volume.first_content());
    let second = take_under_load(&volume, &mut origin);
    let s2 = Load::new("s2, taken at run time", 3, seed, second);
    let mut loads = [(origin, "a.sock"), (s1, "s1.sock"), (s2, "s2.sock")];
    for round in 0..6 {
        let requests = random.between(1, 4000);
        let doubts = kill_under_load(&mut volume, &mut loads, 0, requests);
        println!("kill {round}: 3 views exact, {doubts} sectors were in flight");
    }
    let states: Vec<State> = volume.status().snapshots.iter().map(|s| s.state).collect();
    assert_eq!(states, [State::Active; 2]);
    volume.terminate();
    volume.check_origin(&loads[0].0.shadow);
    volume.start(&[]);
    settle_all(&volume, &mut loads);
    for (load, _) in &loads {
        println!("{}: {}", load.name, load.counts);
    }
    println!("seed {seed}: {:.1?}", start.elapsed());
}

/// The files that the state file notes as records of unflushed writes.
fn records(volume: &Volume) -> Vec<PathBuf> {
    let state = std::fs::read(volume.path("disk.img.snapback")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let snapshots = state["snapshots"].as_array().unwrap();
    let paths = snapshots
        .iter()
        .filter_map(|s| s["unflushed"]["path"].as_str());
    paths.map(PathBuf::from).collect()
}

#[test]
fn a_killed_daemon_loses_no_write_whose_entry_was_deferred() {
    let _turn = turn();
    let seed = random::seed();
    let mut random = Random::new(seed);
    let mut volume = Volume::new(SECTORS);
    let s1 = format!("{},defer-entries", snapshot(&volume, "s1", "4K"));
    volume.start(&["--socket-path", "a.sock", "--snapshot", &s1]);
    if records(&volume).is_empty() {
        println!("skipped: no memory for a record");
        return volume.terminate();
    }
    let origin = Load::new("origin", 1, seed, volume.first_content());
    let s1 = Load::new("s1", 2, seed, volume.first_content());
    let mut loads = [(origin, "a.sock"), (s1, "s1.sock")];
    for round in 0..12 {
        let noted = records(&volume);
        assert!(noted.len() == 1 && noted[0].exists(), "{noted:?}");
        let requests = random.between(1, 2000);
        let doubts = kill_under_load(&mut volume, &mut loads, 0, requests);
        println!("kill {round}: 2 views exact, {doubts} sectors were in flight");
    }
    let noted = records(&volume);
    volume.terminate();
    assert!(!noted[0].exists(), "a clean stop leaves a record");
    assert_eq!(records(&volume), Vec::<PathBuf>::new());
    volume.check_origin(&loads[0].0.shadow);
    volume.start(&[]);
    settle_all(&volume, &mut loads);
    println!("seed {seed}");
}

/// Rolls back to `m` with a slow merge, kills the daemon in its middle several
/// times, and lets it end.
fn killed_in_the_middle_of_a_merge(policy: &str) {
    let _turn = turn();
    let (seed, start) = (random::seed(), Instant::now());
    let mut random = Random::new(seed);
    let mut volume = Volume::new(SECTORS);
    let m = snapshot(&volume, "m", "4K");
    let other = snapshot(&volume, "other", "64K");
    volume.start(&[
        "--socket-path",
        "a.sock",
        "--merge-writes",
        policy,
        "--snapshot",
        &m,
        "--snapshot",
        &other,
    ]);
    let mut origin = Load::new("merge view", 1, seed, volume.first_content());
    let other = Load::new("other snapshot", 2, seed, volume.first_content());
    origin.attach(&volume.path("a.sock"));
    origin.overwrite(SECTORS - 7000);
    origin.detach();
    // A third snapshot has all of that, and the merge must copy it out.
    volume.verb(&[
        "snapshot",
        "late",
        "--cow",
        "late.cow",
        "--size",
        "64M",
        "--socket-path",
        "late.sock",
    ]);
    let late = Load::new("late snapshot", 3, seed, origin.shadow.clone());
    let request = RollbackRequest {
        snapshot: "m".into(),
        when: RollbackWhen::Now,
        keep: None,
        rate: Some(2 << 20),
        ..Default::default()
    };
    volume.client().rollback(&request).unwrap();
    origin.shadow = volume.first_content();
    let mut loads = [
        (origin, "a.sock"),
        (other, "other.sock"),
        (late, "late.sock"),
    ];
    let mut left = u64::MAX;
    for round in 0..5u64 {
        let requests = random.between(1, 1000);
        let write_end = SECTORS * (round + 1) / 8;
        let doubts = kill_under_load(&mut volume, &mut loads, write_end, requests);
        let merge = volume.status().merge.expect("it goes on by itself");
        assert!(!merge.paused && merge.error.is_none() && merge.chunks_left <= left);
        left = merge.chunks_left;
        println!(
            "{policy}: kill {round}: 3 views exact in the middle of the merge, {left} chunks left, {doubts} sectors were in flight"
        );
    }
    // At full speed it dies in the middle of batches.
    volume.client().set_merge_rate(0).unwrap();
    let mut lives = 0;
    while lives < 30 && volume.status().merge.is_some() {
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        volume.kill();
        volume.start(&[]);
        lives += 1;
    }
    volume.merged(Duration::from_secs(20));
    println!("{policy}: the merge ended after {lives} more kills at full speed");
    settle_all(&volume, &mut loads);
    volume.terminate();
    volume.check_origin(&loads[0].0.shadow);
    for (load, _) in &loads {
        println!("{policy}: {}: {}", load.name, load.counts);
    }
    println!("{policy}: seed {seed}: {:.1?}", start.elapsed());
}

#[test]
fn a_merge_killed_under_load_goes_on_by_itself_with_waiting_writes() {
    killed_in_the_middle_of_a_merge("wait");
}

#[test]
fn a_merge_killed_under_load_goes_on_by_itself_with_redirected_writes() {
    killed_in_the_middle_of_a_merge("redirect");
}
