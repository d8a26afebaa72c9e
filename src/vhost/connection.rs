//! One connected front end, from its first message to its last.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::back_channel::{self, BackChannel};
use super::handler::Handler;
use super::lobby::Lobby;
use super::unaligned::{self, Unaligned};
use crate::event_flag::EventFlag;
use crate::wait_set::{Interest, WaitSet};

/// A message that has begun must be complete within this time.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of checks for the rest of a message.
const PART_PAUSE: Duration = Duration::from_millis(10);

/// A front end that is refused more often is broken and is disconnected, so that it does
/// not fill the log.
const REFUSALS_MAX: u32 = 32;

/// Bytes of a message header: request, flags, size of the payload.
const HEADER_LEN: usize = 12;
const HEADER_BYTES: u64 = 12;
/// Most bytes of payload.
const PAYLOAD_MAX: u64 = 4096;
/// The header's flag that asks for an acknowledgement.
const NEED_REPLY: u32 = 1 << 3;

/// Why a connection ended.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Ending {
    #[error("the front end has left")]
    Left,
    #[error("the view is stopped")]
    Stopped,
    #[error("the front end began a message and did not finish it, or did not read the answers, in {} s", MESSAGE_TIMEOUT.as_secs())]
    Stalled,
    #[error(
        "the guest's memory, or the log of its dirty pages, is gone: the front end has shortened the file that it gave for it"
    )]
    MemoryGone,
    #[error("{0}")]
    Protocol(String),
}

/// Serves the front end until it leaves or `stop` is set. The handler's rings are
/// still to be stopped, and the stream must stay open until they are. Those who wait in
/// the lobby are looked after meanwhile.
pub fn serve(
    stream: &UnixStream,
    handler: &Arc<Mutex<Handler>>,
    back_channel: &BackChannel,
    stop: &EventFlag,
    mut lobby: Option<&mut Lobby>,
) -> Ending {
    let gone = lock(handler).memory_gone();
    let prepared = stream
        .set_read_timeout(Some(MESSAGE_TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(MESSAGE_TIMEOUT)))
        .and_then(|()| {
            Ok((
                stream.try_clone()?,
                Waits::new(stream, stop, &gone, lobby.as_deref())?,
            ))
        });
    let (theirs, waits) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => return Ending::Protocol(e.to_string()),
    };
    let mut requests = BackendReqHandler::from_stream(theirs, Arc::clone(handler));
    let mut refusals = 0;
    loop {
        let (request, flags) = match next_message(stream, &waits, stop, lobby.as_deref_mut()) {
            Ok(header) => header,
            Err(ending) => return ending,
        };
        if request == u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
            // Before the front end gets its answer. If the message is refused, the
            // connection ends.
            back_channel.set(back_channel::peek(stream));
        }
        let acknowledged = flags & NEED_REPLY != 0 && acknowledges(handler);
        if request == u32::from(FrontendReq::SET_VRING_ADDR) {
            match refuse_unaligned(stream, handler, acknowledged) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(e) => return Ending::Protocol(e.to_string()),
            }
        }
        let result = requests.handle_request();
        let is_the_guests = lock(handler).take_guests_fault();
        match result {
            Ok(()) => {}
            Err(_) if stop.is_set() => return Ending::Stopped,
            Err(Error::Disconnected) => return Ending::Left,
            // The library goes by the features that were refused from now on: whether it
            // answers at all, and which messages it takes.
            Err(Error::ReqHandlerError(e)) if negotiates(request) => {
                return Ending::Protocol(e.to_string());
            }
            // A guest can set up its ring as it likes: it does not run, and VRING_ERR says so.
            Err(Error::ReqHandlerError(e)) if is_the_guests => lock(handler).refused(&e),
            // A front end that gets the refusal as an answer can continue.
            Err(Error::ReqHandlerError(e)) if acknowledged => {
                refusals += 1;
                if refusals > REFUSALS_MAX {
                    return Ending::Protocol(format!("{refusals} requests refused, the last: {e}"));
                }
                lock(handler).refused(&e);
            }
            Err(e) => return Ending::Protocol(format!("{}: {e}", Message(request))),
        }
    }
}

/// Newer than the library. A ring is stopped by GET_VRING_BASE, which drains it.
const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;

/// A message by its number, such as `SET_STATUS (message 39)`.
struct Message(u32);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(request) = self;
        if *request == GET_VRING_BASE_SKIP_DRAIN {
            return write!(f, "GET_VRING_BASE_SKIP_DRAIN, which was not offered");
        }
        let Ok(name) = FrontendReq::try_from(*request) else {
            return write!(f, "message {request}, which is unknown");
        };
        // The crate has the protocol's own names.
        fmt::Debug::fmt(&name, f)?;
        write!(f, " (message {request})")
    }
}

/// Refuses ring addresses that are not aligned; false if the next message has none.
fn refuse_unaligned(
    stream: &UnixStream,
    handler: &Mutex<Handler>,
    acknowledged: bool,
) -> io::Result<bool> {
    let Some(Unaligned { queue, reason }) = unaligned::take(stream)? else {
        return Ok(false);
    };
    let mut handler = lock(handler);
    handler.has_unaligned_addresses(queue);
    handler.refused(&reason);
    if acknowledged {
        unaligned::refuse(stream)?;
    }
    Ok(true)
}

/// Whether the request sets features.
fn negotiates(request: u32) -> bool {
    [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_PROTOCOL_FEATURES,
    ]
    .map(u32::from)
    .contains(&request)
}

fn lock(handler: &Mutex<Handler>) -> MutexGuard<'_, Handler> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}

fn acknowledges(handler: &Mutex<Handler>) -> bool {
    lock(handler).reply_ack()
}

/// Waits until the next message is complete and its answer has room, without taking it,
/// so that the thread never waits for the front end in the middle of a message. Returns
/// the request and the flags of its header.
fn next_message(
    stream: &UnixStream,
    waits: &Waits,
    stop: &EventFlag,
    lobby: Option<&mut Lobby>,
) -> Result<(u32, u32), Ending> {
    wait_for(&waits.for_a_message, None, lobby)?;
    // A poll returns at once for a part of a message, so this loop checks again.
    let begun = Instant::now();
    let mut gone = false;
    loop {
        let mut header = [0_u8; HEADER_LEN];
        match rustix::net::recv(stream, &mut header, RecvFlags::PEEK).map(|(_, len)| len) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => return Err(Ending::Left),
            Ok(HEADER_LEN) => {
                let [i, j, k, l, a, b, c, d, e, f, g, h] = header;
                let size = u64::from(u32::from_ne_bytes([e, f, g, h]));
                // The library refuses a longer message because of its header.
                let whole = HEADER_BYTES + size.min(PAYLOAD_MAX);
                let there = rustix::io::ioctl_fionread(stream)
                    .map_err(|e| Ending::Protocol(e.to_string()))?;
                if there >= whole {
                    wait_for(&waits.for_room, Some(MESSAGE_TIMEOUT), None)?;
                    let request = u32::from_ne_bytes([i, j, k, l]);
                    return Ok((request, u32::from_ne_bytes([a, b, c, d])));
                }
            }
            Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(e) => return Err(Ending::Protocol(e.to_string())),
        }
        if begun.elapsed() > MESSAGE_TIMEOUT {
            return Err(Ending::Stalled);
        }
        if gone {
            return Err(Ending::Left);
        }
        let pause = Timespec::try_from(PART_PAUSE).unwrap_or_default();
        let mut fds = [PollFd::new(stop, PollFlags::IN)];
        if poll(&mut fds, Some(&pause)) == Ok(1) {
            return Err(Ending::Stopped);
        }
        // Checked before the rest is read: what came before the end is still taken.
        let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
        gone = poll(&mut fds, Some(&Timespec::default())) == Ok(1);
    }
}

/// Bits of what ends a wait.
const STREAM: u32 = 0;
const STOP: u32 = 1;
const GONE: u32 = 2;
const LOBBY: u32 = 3;

/// What the thread waits for, beside a stop.
struct Waits {
    for_a_message: WaitSet,
    /// For an answer.
    for_room: WaitSet,
}

impl Waits {
    fn new(
        stream: &UnixStream,
        stop: &EventFlag,
        gone: &EventFlag,
        lobby: Option<&Lobby>,
    ) -> io::Result<Self> {
        let set = |interest| {
            let set = WaitSet::new()?;
            set.add(STREAM, stream, interest)?;
            set.add(STOP, stop, Interest::Readable)?;
            set.add(GONE, gone, Interest::Readable)?;
            io::Result::Ok(set)
        };
        let for_a_message = set(Interest::Readable)?;
        if let Some(lobby) = lobby {
            for_a_message.add_set(LOBBY, lobby.events())?;
        }
        Ok(Self {
            for_a_message,
            for_room: set(Interest::Writable)?,
        })
    }
}

/// Waits until the stream is ready, or at its end.
fn wait_for(
    set: &WaitSet,
    limit: Option<Duration>,
    mut lobby: Option<&mut Lobby>,
) -> Result<(), Ending> {
    loop {
        match set.wait(limit) {
            Ok(0) if limit.is_some() => return Err(Ending::Stalled),
            Ok(events) if events & 1 << STOP != 0 => return Err(Ending::Stopped),
            Ok(events) if events & 1 << GONE != 0 => return Err(Ending::MemoryGone),
            Ok(events) if events & 1 << STREAM != 0 => return Ok(()),
            Ok(_) => {
                if let Some(lobby) = &mut lobby {
                    lobby.look();
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Ending::Protocol(e.to_string())),
        }
    }
}
