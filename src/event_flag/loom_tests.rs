//! The flag under loom: real event descriptors, and a modelled atomic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use rustix::event::{PollFd, PollFlags, poll};

use super::EventFlag;
use crate::mutation::{self, Mutation};
use crate::sync;

/// Two threads that each leave something and set the flag. The waiter reads the counter
/// back, or is woken by each write (`edge`).
fn model(edge: bool) {
    let flag = Arc::new(EventFlag::new().unwrap());
    let set = Set::new(&flag);
    let left = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
    let setters = [0, 1].map(|n| {
        let (flag, left) = (flag.clone(), left.clone());
        thread::spawn(move || {
            left[n].store(true, Ordering::Relaxed);
            flag.set();
        })
    });
    while !left.iter().all(|l| l.load(Ordering::Relaxed)) {
        if edge {
            let mut events = [epoll::Event { events: 0, data: 0 }];
            sync::wait(None, |_| epoll::wait(set.0, 0, &mut events)).unwrap();
            flag.lower();
        } else {
            let mut fds = [PollFd::new(&*flag, PollFlags::IN)];
            sync::wait(None, |timeout| poll(&mut fds, timeout)).unwrap();
            flag.clear();
        }
    }
    setters.into_iter().for_each(|s| s.join().unwrap());
}

/// An edge-triggered epoll instance that holds a flag.
struct Set(RawFd);

impl Set {
    fn new(flag: &EventFlag) -> Self {
        let set = epoll::create(true).unwrap();
        let written = epoll::Events::EPOLLIN | epoll::Events::EPOLLET;
        let event = epoll::Event::new(written, 0);
        let add = epoll::ControlOptions::EPOLL_CTL_ADD;
        epoll::ctl(set, add, flag.as_fd().as_raw_fd(), event).unwrap();
        Self(set)
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        epoll::close(self.0).unwrap();
    }
}

#[test]
fn loom_whoever_is_woken_finds_what_was_left_for_it() {
    for edge in [false, true] {
        prove(edge);
    }
}

fn prove(edge: bool) {
    let explore = || {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model(edge);
        });
        let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
        println!("loom: event flag, edge {edge}: {runs} executions");
    };
    explore();
    let bug = Some(Mutation::SignalClearedByStore);
    let found = mutation::with(bug, || catch_unwind(AssertUnwindSafe(explore)));
    assert!(found.is_err(), "a flag whose `set` is lost was not found");
}
