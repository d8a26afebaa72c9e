//! The targets' bodies on every input that is stored in `fuzz/corpus/`.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;

use super::socket::Served;
use crate::mutation::{self, Mutation};
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

/// In a process of its own, because it counts the descriptors of the process.
#[test]
fn stored_messages_are_handled_and_leave_no_descriptor_and_no_mapping() {
    const ALONE: &str = "SNAPBACK_TEST_ALONE";
    const NAME: &str = "stored_messages_are_handled_and_leave_no_descriptor_and_no_mapping";
    if std::env::var(ALONE).is_ok() {
        replay("socket", super::seeds::socket(), super::socket);
        return front_ends_are_served_to_their_end();
    }
    let name = format!("fuzzing::corpus_tests::{NAME}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", &name, "--nocapture"])
        .env(ALONE, "1");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let cried = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{said}\n{cried}");
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
    assert!(missed.is_empty(), "{missed:?}");
}
