//! Descriptors that come with a request (SCM_RIGHTS): a client that has opened a COW with its own
//! rights sends it with the first bytes of the request that names the COW.
//!
//! A descriptor lives as long as its connection, or until the request takes it, so that none waits
//! longer than a connection may, and there are no more than connections.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::api::{ApiError, ErrorKind};

/// Descriptors that are taken of one message; the kernel closes the others.
const TAKEN_MAX: usize = 1;

/// What has come with the request of one connection.
#[derive(Clone, Debug, Default)]
pub struct Passed(Arc<Mutex<Came>>);

#[derive(Debug, Default)]
enum Came {
    #[default]
    Nothing,
    One(OwnedFd),
    More,
}

impl Passed {
    fn add(&self, descriptor: OwnedFd) {
        let mut came = self.lock();
        *came = match *came {
            Came::Nothing => Came::One(descriptor),
            Came::One(_) | Came::More => Came::More,
        };
    }

    /// The descriptor of the COW at `cow`, if the client has sent one. `cow`: `None` if the request
    /// names none.
    ///
    /// # Errors
    /// More than one came, or one for which there is no COW.
    pub fn take(&self, cow: Option<&str>) -> Result<Option<OwnedFd>, ApiError> {
        let refuse = |what: &str| {
            let message = format!(
                "{what}: send one descriptor, that of the COW, with a request that takes a snapshot, \
                 and none with others"
            );
            Err(ApiError::new(ErrorKind::BadRequest, message))
        };
        match (std::mem::take(&mut *self.lock()), cow) {
            (Came::Nothing, _) => Ok(None),
            (Came::One(descriptor), Some(_)) => Ok(Some(descriptor)),
            (Came::One(_), None) => refuse("a descriptor came with a request that names no COW"),
            (Came::More, _) => refuse("more than one descriptor came with this request"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Came> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from `stream`, with the descriptors that come.
    pub fn poll_read(
        &self,
        stream: &UnixStream,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(stream.poll_read_ready(context))?;
            let room = into.initialize_unfilled();
            match stream.try_io(Interest::READABLE, || self.receive(stream.as_fd(), room)) {
                Ok(count) => {
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn receive(&self, stream: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TAKEN_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(room)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = recvmsg(stream, &mut parts, &mut control, flags)?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                descriptors.for_each(|descriptor| self.add(descriptor));
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            *self.lock() = Came::More;
        }
        Ok(message.bytes)
    }
}

/// A client's connection whose first bytes carry a descriptor, if it has one.
#[derive(Debug)]
pub struct Carrying {
    stream: UnixStream,
    carried: Option<OwnedFd>,
}

impl Carrying {
    pub const fn new(stream: UnixStream, carried: Option<OwnedFd>) -> Self {
        Self { stream, carried }
    }
}

fn send(stream: BorrowedFd<'_>, bytes: &[u8], carried: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [carried];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        flags,
    )?)
}

impl AsyncRead for Carrying {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Carrying {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, carried } = &mut *self;
        let Some(descriptor) = carried else {
            return Pin::new(stream).poll_write(context, bytes);
        };
        loop {
            ready!(stream.poll_write_ready(context))?;
            let send = || send(stream.as_fd(), bytes, descriptor.as_fd());
            match stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    *carried = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
