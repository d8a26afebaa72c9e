//! Front ends that connect to a view while another one is served. They wait for their
//! turn, and the daemon knows of them.
//!
//! They are looked after by the thread that serves the first one, between two of its
//! messages; so it is never held up, and neither is the stop of the view.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;

use super::descriptors;
use super::handler::ViewContext;
use crate::wait_set::{Interest, WaitSet};

/// Front ends that may wait; further ones are disconnected. (Those and the listener have
/// numbers in a [`WaitSet`].)
const MOST: usize = 8;
const LISTENER: u32 = 0;

pub struct Lobby {
    listener: UnixListener,
    view: ViewContext,
    /// The listener, and those who wait. Each is reported when something happens to it, so
    /// that a cause which lasts keeps nobody busy.
    set: WaitSet,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    /// Those among them that have sent something.
    count: Arc<AtomicUsize>,
}

struct Waiting {
    stream: UnixStream,
    number: u32,
    /// It has sent a message, so it is no probe that only looks whether somebody listens.
    is_front_end: bool,
}

impl Lobby {
    /// `count` will have the number of those who wait.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(
        listener: UnixListener,
        view: ViewContext,
        count: Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let set = WaitSet::new()?;
        set.add(LISTENER, &listener, Interest::Written)?;
        Ok(Self {
            listener,
            view,
            set,
            waiting: Vec::new(),
            count,
        })
    }

    /// Has an event when [`Self::look`] has something to do.
    pub const fn events(&self) -> &WaitSet {
        &self.set
    }

    /// The one that has waited longest.
    ///
    /// # Errors
    /// None waits, and the next one cannot be accepted, although there is one.
    pub fn first(&mut self) -> io::Result<Option<UnixStream>> {
        let _ = self.set.wait(Some(std::time::Duration::ZERO));
        self.waiting.retain(|one| !has_left(&one.stream));
        if self.waiting.is_empty() {
            self.admit()?;
        }
        let first = (!self.waiting.is_empty()).then(|| self.waiting.remove(0));
        self.note_count();
        let Some(first) = first else { return Ok(None) };
        self.set.remove(&first.stream)?;
        Ok(Some(first.stream))
    }

    /// Takes in who has connected, notices who has left, and reports who waits. Another
    /// front end is served meanwhile.
    pub fn look(&mut self) {
        // What happened is looked up below; this only takes the events.
        let _ = self.set.wait(Some(std::time::Duration::ZERO));
        if let Err(e) = self.admit() {
            self.warn(format_args!("cannot accept another front end: {e}"));
        }
        let before = self.waiting.iter().filter(|one| one.is_front_end).count();
        self.waiting.retain(|one| !has_left(&one.stream));
        let after = self.waiting.iter().filter(|one| one.is_front_end).count();
        if after < before {
            let name = &self.view.config.name;
            let line = format_args!("view {name}: a front end that waited has left");
            self.view.log.info(line);
        }
        let mut new = 0;
        for one in self.waiting.iter_mut().filter(|one| !one.is_front_end) {
            one.is_front_end = has_spoken(&one.stream);
            new += usize::from(one.is_front_end);
        }
        self.note_count();
        for _ in 0..new {
            self.warn(format_args!(
                "another front end waits until the one that is connected leaves"
            ));
            self.view.hooks.front_end_waits();
        }
    }

    /// Takes in all who have connected; those for whom there is no room are disconnected.
    fn admit(&mut self) -> io::Result<()> {
        while is_ready(&self.listener, PollFlags::IN) {
            let (stream, _) = self.listener.accept()?;
            descriptors::check(&stream)?;
            let numbers = (1..).take(MOST);
            let taken = |number: &u32| self.waiting.iter().any(|one| one.number == *number);
            let Some(number) = numbers.into_iter().find(|number| !taken(number)) else {
                self.warn(format_args!(
                    "a front end is disconnected, because {MOST} others wait already"
                ));
                continue;
            };
            self.set.add(number, &stream, Interest::Written)?;
            self.waiting.push(Waiting {
                stream,
                number,
                is_front_end: false,
            });
        }
        Ok(())
    }

    fn note_count(&self) {
        let count = self.waiting.iter().filter(|one| one.is_front_end).count();
        self.count.store(count, Ordering::Release);
    }

    fn warn(&self, line: std::fmt::Arguments<'_>) {
        let name = &self.view.config.name;
        self.view.log.warn(format_args!("view {name}: {line}"));
    }
}

fn is_ready(descriptor: &impl std::os::fd::AsFd, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(descriptor, events)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(1)
}

fn has_left(stream: &UnixStream) -> bool {
    is_ready(stream, PollFlags::RDHUP)
}

fn has_spoken(stream: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0_u8], flags).is_ok_and(|(_, len)| len > 0)
}
