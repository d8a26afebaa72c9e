//! The targets' bodies on every input that is stored in `fuzz/corpus/`.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;

use super::socket::Served;
use crate::mutation::{self, Mutation};
use crate::offline::Verdict;
use crate::vhost::parts::Ending;

type Seeds = Vec<(String, Vec<u8>)>;

/// Runs the stored inputs. The seeds must be among them; `SNAPBACK_WRITE_SEEDS=1` stores
/// them.
fn replay(target: &str, seeds: Seeds, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folder = corpus.join(target);
    if std::env::var("SNAPBACK_WRITE_SEEDS").is_ok() {
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in &seeds {
            fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
    let mut inputs = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        println!("{}", path.display());
        body(&bytes);
        inputs.insert(bytes);
    }
    for (name, bytes) in seeds {
        assert!(inputs.contains(&bytes), "{name} is not in the corpus");
    }
}

#[test]
fn stored_rings_are_processed_as_an_independent_decoder_says() {
    replay("ring", super::seeds::ring(), super::ring);
}

#[test]
fn stored_inflight_regions_replay_what_was_under_way_and_nothing_twice() {
    let seeds = super::seeds::inflight();
    replay("inflight", seeds, super::inflight);
}

/// Messages behind one that ends the connection test nothing.
fn front_ends_are_served_to_their_end() {
    for (name, bytes) in super::seeds::socket() {
        let Served { ending, starts, .. } = super::socket::serve_one(&bytes);
        println!("{name}: {starts} starts, then: {ending}");
        let kept = ["log-", "unaligned-", "ring-of-", "reset"];
        if name.ends_with("-shorten-0") || kept.iter().any(|start| name.starts_with(start)) {
            assert_eq!(ending, Ending::Left, "{name}");
            assert!(starts > 0, "{name}");
        }
        if name == "all-features" {
            assert!(matches!(ending, Ending::Protocol(_)), "{name}: {ending}");
        }
    }
}

/// Runs the test of this name again, in a process of its own; in that one, returns true.
fn is_alone(name: &str) -> bool {
    const ALONE: &str = "SNAPBACK_TEST_ALONE";
    if std::env::var(ALONE).is_ok() {
        return true;
    }
    let name = format!("fuzzing::corpus_tests::{name}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", &name, "--nocapture"])
        .env(ALONE, "1");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let cried = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{said}\n{cried}");
    false
}

/// Alone, because it counts the descriptors of the process.
#[test]
fn stored_messages_are_handled_and_leave_no_descriptor_and_no_mapping() {
    if is_alone("stored_messages_are_handled_and_leave_no_descriptor_and_no_mapping") {
        replay("socket", super::seeds::socket(), super::socket);
        front_ends_are_served_to_their_end();
    }
}

/// Alone, because a merge takes over the signals of the process.
#[test]
fn stored_cow_files_are_judged_alike_by_all_verbs_and_show_what_they_hold() {
    if is_alone("stored_cow_files_are_judged_alike_by_all_verbs_and_show_what_they_hold") {
        let seeds = super::file_seeds::store();
        let outcomes = seeds.iter().map(|(_, bytes)| super::store::judge(bytes));
        let outcomes: Vec<_> = outcomes.collect();
        for verdict in [
            Verdict::Good,
            Verdict::New,
            Verdict::Stale,
            Verdict::Invalid,
            Verdict::Damaged,
        ] {
            assert!(outcomes.iter().any(|o| o.verdict == verdict), "{verdict:?}");
        }
        assert!(outcomes.iter().filter(|o| o.merged).count() > 12);
        replay("store", seeds, super::store);
    }
}

#[test]
fn stored_state_files_are_refused_or_read_the_same_again() {
    let seeds = super::file_seeds::state();
    for (name, bytes) in &seeds {
        let folder = super::folder::Folder::new();
        let is_one = ["blank", "oldest", "full", "odd-paths"].contains(&name.as_str());
        assert_eq!(
            crate::daemon::reread(folder.path(), bytes),
            is_one,
            "{name}"
        );
    }
    replay("state", seeds, super::state);
}

#[test]
fn stored_requests_change_something_once_or_are_refused_in_words() {
    replay("request", super::file_seeds::request(), super::request);
}

#[test]
fn stored_configurations_are_refused_with_their_place_or_mean_the_same_in_other_words() {
    let seeds = super::file_seeds::config();
    for (name, bytes) in &seeds {
        let folder = super::folder::Folder::new();
        let text = std::str::from_utf8(bytes).unwrap();
        let is_one = ["example", "empty", "kinds", "snapshots", "value"].contains(&name.as_str());
        let read = crate::cli::read_config(folder.path(), text);
        assert!(read == is_one || name == "example-all", "{name}");
    }
    replay("config", seeds, super::config);
}

/// Whether the seeds find this bug.
fn is_found(bug: Mutation, seeds: Seeds, body: fn(&[u8])) -> bool {
    mutation::with(Some(bug), || {
        let mut runs = seeds.iter();
        runs.any(|(_, bytes)| catch_unwind(|| body(bytes)).is_err())
    })
}

#[test]
fn seeded_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in [
        Mutation::ResumedAtTheTold,
        Mutation::OriginWriteBeforeCopy,
        Mutation::PublishedBeforeWritten,
    ] {
        if !is_found(bug, super::seeds::ring(), super::ring) {
            missed.push(bug);
        }
    }
    let bug = Mutation::TakenNotRecorded;
    if !is_found(bug, super::seeds::inflight(), super::inflight) {
        missed.push(bug);
    }
    for bug in [Mutation::JunkKept, Mutation::RepetitionsKept] {
        let mut seeds = super::file_seeds::store();
        // Nothing is merged: that takes over the signals of the process.
        seeds.iter_mut().for_each(|(_, bytes)| bytes[4] &= !1);
        if !is_found(bug, seeds, super::store) {
            missed.push(bug);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
