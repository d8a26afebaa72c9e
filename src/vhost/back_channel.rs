//! The channel on which the back end speaks to its front end first (BACKEND_REQ in the
//! vhost-user specification). The crate `vhost` has no message for a changed configuration
//! on it, so the descriptor is kept here.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use vhost::vhost_user::message::BackendReq;

/// Version 1 of the protocol, no answer is asked for.
const FLAGS: u32 = 1;

/// A view's channel to the front end that is connected now, if that has one.
#[derive(Debug, Default)]
pub struct BackChannel(Mutex<Option<OwnedFd>>);

impl BackChannel {
    /// Replaces the channel. `None`: the front end has disconnected.
    pub fn set(&self, channel: Option<OwnedFd>) {
        *self.lock() = channel;
    }

    /// Asks the front end to read the configuration space again, and does not wait for it.
    /// False if there is no channel.
    ///
    /// # Errors
    /// The message cannot be sent now.
    pub fn config_changed(&self) -> io::Result<bool> {
        let channel = self.lock();
        let Some(channel) = &*channel else {
            return Ok(false);
        };
        let request: u32 = BackendReq::CONFIG_CHANGE_MSG.into();
        let header = [request, FLAGS, 0].map(u32::to_ne_bytes);
        let bytes = header.as_flattened();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::send(channel, bytes, flags)?;
        if sent == bytes.len() {
            Ok(true)
        } else {
            Err(io::Error::other("only a part of the message was taken"))
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The descriptor that comes with the next message on `stream`, as a copy; the message stays
/// where it is. `None` if there is none. (The crate `vhost` refuses what is not a Unix
/// stream.)
pub fn peek(stream: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(stream, &mut data, &mut ancillary, flags).ok()?;
    let mut messages = ancillary.drain();
    messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}
