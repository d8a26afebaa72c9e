//! Bytes of a front end's messages, with descriptors of several kinds → the handler of a
//! connection. All messages are on the socket before the connection is served, so that it
//! ends with the last of them; workers run on a small volume meanwhile.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg};

use super::input::Input;
use super::message::{Message, message};
use super::volume::{Means, View, Volume};
use crate::event_flag::EventFlag;
use crate::vhost::parts::{BackChannel, Ending, Handler, ViewContext, serve};
use crate::vhost::{Start, ViewConfig, ViewHooks};
use crate::virtio_blk::ConfigSpace;

/// Messages of one connection: their answers fit into the socket.
const MESSAGES: usize = 40;
/// Descriptors that a message can carry, one more than the protocol allows.
const DESCRIPTORS: usize = 9;
/// Bytes of each piece of guest memory.
pub const MEMORY: u64 = 0x1_0000;

/// What a front end passes besides bytes. The guest's memory is the same in each message.
struct Descriptors {
    memory: File,
    region: File,
    event: File,
}

impl Descriptors {
    fn new() -> Self {
        let memfd = |name, flags| File::from(memfd_create(name, flags).unwrap());
        let memory = memfd("fuzz-memory", MemfdFlags::CLOEXEC);
        memory.set_len(MEMORY).unwrap();
        super::message::fill(|at, bytes| memory.write_all_at(bytes, at).unwrap());
        let region = memfd(
            "fuzz-region",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        );
        region.set_len(MEMORY).unwrap();
        fcntl_add_seals(&region, SealFlags::SHRINK).unwrap();
        let event = File::from(eventfd(8, EventfdFlags::NONBLOCK).unwrap());
        Self {
            memory,
            region,
            event,
        }
    }

    fn open(&self, kind: u8) -> OwnedFd {
        let copy = |file: &File| OwnedFd::from(file.try_clone().unwrap());
        match kind % 10 {
            0 => copy(&self.memory),
            1 => copy(&self.event),
            2 => copy(&self.region),
            3 => eventfd(0, EventfdFlags::empty()).unwrap(),
            4 => rustix::pipe::pipe().unwrap().0,
            5 => rustix::pipe::pipe().unwrap().1,
            6 => {
                // Shorter than any region.
                let file = memfd_create("fuzz-short", MemfdFlags::CLOEXEC).unwrap();
                File::from(file.try_clone().unwrap()).set_len(100).unwrap();
                file
            }
            7 => UnixStream::pair().unwrap().0.into(),
            8 => File::open("/dev/null").unwrap().into(),
            _ => File::open("/").unwrap().into(),
        }
    }
}

/// Counts what the handler does, and shortens the guest's memory when it is told to.
struct Counter {
    starts: AtomicUsize,
    shorten: Option<File>,
}

impl ViewHooks for Counter {
    fn attached(&self) {}
    fn detached(&self) {}

    fn rings_start(&self, _: Start) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        if let Some(memory) = &self.shorten {
            memory.set_len(0x3000).unwrap();
        }
    }
}

fn send(stream: &UnixStream, message: &Message, descriptors: &Descriptors) -> bool {
    let fds: Vec<OwnedFd> = message
        .fds
        .iter()
        .map(|kind| descriptors.open(*kind))
        .collect();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(
        stream,
        &[IoSlice::new(&message.bytes)],
        &mut ancillary,
        flags,
    )
    .is_ok()
}

/// Open descriptors, and mappings of what a front end passes.
pub fn resources() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|line| line.contains("/memfd:"));
    (fds, shared.count())
}

/// How a connection ended, and how often rings were started.
pub struct Served {
    pub ending: Ending,
    pub starts: usize,
    /// Messages that were sent.
    sent: usize,
}

/// Serves one connection.
fn connect(input: &mut Input<'_>, means: Means, volume: &Volume) -> Served {
    let descriptors = Descriptors::new();
    let (theirs, ours) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1 << 20).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 1 << 20).unwrap();
    let shorten = input.byte() == 1;
    let hooks = Arc::new(Counter {
        starts: AtomicUsize::new(0),
        shorten: shorten.then(|| descriptors.memory.try_clone().unwrap()),
    });
    let mut sent = 0;
    while !input.is_empty() && sent < MESSAGES {
        sent += 1;
        if !send(&theirs, &message(input), &descriptors) {
            break;
        }
    }
    drop(descriptors);
    rustix::net::shutdown(&theirs, Shutdown::Write).unwrap();
    let device = volume.device(512);
    let back_channel = Arc::<BackChannel>::default();
    let handler = Handler::new(ViewContext {
        space: Arc::new(ConfigSpace::new(device.clone())),
        config: Arc::new(ViewConfig {
            name: "fuzz".into(),
            device,
            max_queues: 2,
            write_through: false,
            any_memory: false,
        }),
        backend: Arc::new(means),
        hooks: Arc::<Counter>::clone(&hooks),
        back_channel: Arc::clone(&back_channel),
        leave: Arc::new(EventFlag::new().unwrap()),
        log: Arc::default(),
        watched: None,
        counters: Arc::default(),
        last_left: false,
    });
    let handler = Arc::new(Mutex::new(handler.unwrap()));
    let stop = EventFlag::new().unwrap();
    let ending = serve(&ours, &handler, &back_channel, &stop, None);
    let mut rings = handler.lock().unwrap();
    if ending == Ending::Left {
        rings.hang_up();
    } else {
        rings.stop_all();
    }
    drop(rings);
    let starts = hooks.starts.load(Ordering::Relaxed);
    Served {
        ending,
        starts,
        sent,
    }
}

/// One run.
pub fn run(bytes: &[u8]) {
    let Served {
        ending,
        starts,
        sent,
    } = serve_one(bytes);
    assert_ne!(ending, Ending::Stopped);
    assert_ne!(ending, Ending::Stalled, "a whole message is waited for");
    assert!(starts <= 4 * sent, "{starts} starts by {sent} messages");
}

/// Serves one connection, and looks at what is left of it.
pub fn serve_one(bytes: &[u8]) -> Served {
    let mut input = Input(bytes);
    let views = [
        View::Origin,
        View::OriginWithSnapshot,
        View::Snapshot,
        View::ReadOnly,
    ];
    let mut volume = Volume::new(input.choose(&views), 0);
    volume.turn();
    let before = resources();
    let served = connect(&mut input, volume.means(), &volume);
    assert_eq!(resources(), before, "descriptors or mappings are left");
    while volume.turn() {}
    let (shown, other) = volume.shown();
    let first = super::volume::initial();
    if volume.view == View::ReadOnly {
        assert!(shown == first, "a read-only disk has changed");
    }
    if let Some(other) = other {
        assert!(other == first, "another view has changed");
    }
    served
}
