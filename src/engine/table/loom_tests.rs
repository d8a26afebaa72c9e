//! The table alone: what a look-up may see while the only writer changes the table.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};

use super::ExceptionTable;
use crate::engine::loom_tests::{prove, spawn};
use crate::engine::registrations::{Registrations, WRITE, fence_change};
use crate::mutation::Mutation;

#[test]
fn loom_an_exception_that_is_seen_has_its_data_and_settled_has_all_of_it() {
    let model = || {
        let table = Arc::new(ExceptionTable::new(8));
        let data = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let (theirs, written) = (table.clone(), data.clone());
        let reader = spawn(move || {
            let seen = theirs.get(5);
            if seen.is_some() {
                assert_eq!(seen.cow_chunk(), Some(7));
                assert_eq!(written[0].load(Ordering::Relaxed), 1, "the copy");
            }
            if seen.is_settled() {
                assert_eq!(
                    written[1].load(Ordering::Relaxed),
                    1,
                    "the last reader's end"
                );
            }
        });
        data[0].store(1, Ordering::Relaxed);
        table.set(5, 7, false);
        data[1].store(1, Ordering::Relaxed);
        table.set(5, 7, true);
        reader.join().unwrap();
    };
    prove(
        "publication of an exception",
        None,
        model,
        &[Mutation::ExceptionRelaxed],
    );
}

/// In a model a region has 8 chunks, its first leaf is for 2, and leaves of two words
/// share a segment.
#[test]
fn loom_a_leaf_that_is_replaced_and_used_again_never_shows_another_regions_exceptions() {
    let model = || {
        let table = Arc::new(ExceptionTable::new(16));
        table.set(0, 10, true);
        table.set(1, 11, true);
        let theirs = table.clone();
        let reader = spawn(move || {
            assert_eq!(theirs.get(0).cow_chunk(), Some(10), "it was never changed");
            let third = theirs.get(2).cow_chunk();
            assert!([None, Some(12)].contains(&third), "{third:?}");
        });
        // The third needs a larger leaf; the first leaf's words become the other region's.
        table.set(2, 12, true);
        table.set(8, 20, true);
        table.set(10, 22, true);
        reader.join().unwrap();
        assert_eq!(table.get(0).cow_chunk(), Some(10));
        assert_eq!(table.get(10).cow_chunk(), Some(22));
    };
    let bugs = [
        Mutation::LeafNotRechecked,
        Mutation::LeafPublishedRelaxed,
        Mutation::LeafReusedRelaxed,
    ];
    prove("a leaf that is replaced", None, model, &bugs);
}

/// The look-up that decides a request against the change of a chunk whose leaf was
/// replaced just before: the change's scan finds the request, or the request sees the
/// change.
#[test]
fn loom_a_chunk_that_is_fenced_in_a_new_leaf_is_seen_or_the_request_is() {
    let model = || {
        let table = Arc::new(ExceptionTable::new(16));
        let registrations = Arc::new(Registrations::new(1, Arc::default()));
        table.set(0, 10, true);
        table.set(1, 11, true);
        let (theirs, registered) = (table.clone(), registrations.clone());
        let request = spawn(move || {
            registered.register(0, WRITE, 0, 1);
            theirs.get(0).is_fenced()
        });
        table.set(2, 12, true);
        table.fence(0);
        fence_change();
        let found = registrations.any(WRITE, |start, end| (start, end) == (0, 1));
        assert!(request.join().unwrap() || found);
    };
    let bugs = [Mutation::RegistrationUnfenced, Mutation::ChangeUnfenced];
    prove("a fence in a new leaf", None, model, &bugs);
}
