//! What the system does to a daemon, and takes back.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::common::random::Random;
use crate::common::volume::Volume;
use crate::place::{Full, Place};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The process gets no processor for this time.
    Stopped(Duration),
    /// It may open no further descriptor for this time.
    NoDescriptors(Duration),
    /// Its file system has no space, also for its log, until the verbs are through.
    NoSpace,
}

impl Fault {
    /// Mostly none.
    pub fn draw(random: &mut Random) -> Self {
        let time = Duration::from_millis(random.between(1, 40));
        match random.below(8) {
            0 => Self::Stopped(time),
            1 => Self::NoDescriptors(time),
            2 => Self::NoSpace,
            _ => Self::None,
        }
    }

    /// Lets the daemon meet it, and go on, but for a file system that stays full until what is
    /// returned is dropped.
    pub fn meet(self, volume: &Volume, place: Option<&Place>) -> Option<Full> {
        let pid = Pid::from_raw(volume.pid().try_into().unwrap()).unwrap();
        match self {
            Self::None => {}
            Self::NoSpace => return place.map(Place::fill),
            Self::Stopped(time) => {
                kill_process(pid, Signal::STOP).unwrap();
                std::thread::sleep(time);
                kill_process(pid, Signal::CONT).unwrap();
            }
            Self::NoDescriptors(time) => {
                // The limit that no one may raise is the daemon's from its parent.
                let limit = |current| Rlimit {
                    current: Some(current),
                    ..getrlimit(Resource::Nofile)
                };
                let open = std::fs::read_dir(format!("/proc/{}/fd", volume.pid()));
                let open = open.unwrap().count() as u64;
                let before = prlimit(Some(pid), Resource::Nofile, limit(open)).unwrap();
                // These clients wait to be accepted.
                let clients =
                    ["c.sock", "a.sock"].map(|name| UnixStream::connect(volume.path(name)));
                std::thread::sleep(time);
                prlimit(Some(pid), Resource::Nofile, before).unwrap();
                assert!(clients.iter().all(Result::is_ok), "{clients:?}");
            }
        }
        None
    }
}
