//! The flag under loom: real event descriptors, and a modelled atomic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use rustix::event::{PollFd, PollFlags, poll};

use super::EventFlag;
use crate::mutation::{self, Mutation};
use crate::sync;

/// Two threads that each leave something and set the flag.
fn model() {
    let flag = Arc::new(EventFlag::new().unwrap());
    let left = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
    let setters = [0, 1].map(|n| {
        let (flag, left) = (flag.clone(), left.clone());
        thread::spawn(move || {
            left[n].store(true, Ordering::Relaxed);
            flag.set();
        })
    });
    while !left.iter().all(|l| l.load(Ordering::Relaxed)) {
        let mut fds = [PollFd::new(&*flag, PollFlags::IN)];
        sync::wait(None, |timeout| poll(&mut fds, timeout)).unwrap();
        flag.clear();
    }
    setters.into_iter().for_each(|s| s.join().unwrap());
}

#[test]
fn loom_whoever_is_woken_finds_what_was_left_for_it() {
    let explore = || {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
        let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
        println!("loom: event flag: {runs} executions");
    };
    explore();
    let bug = Some(Mutation::SignalClearedByStore);
    let found = mutation::with(bug, || catch_unwind(AssertUnwindSafe(explore)));
    assert!(found.is_err(), "a flag whose `set` is lost was not found");
}
