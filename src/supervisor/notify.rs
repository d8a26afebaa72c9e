//! Messages to the service manager. One that cannot be sent is no reason to fail: the manager then
//! acts as on a process that says nothing.

use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use sd_notify::NotifyState;

const SOCKET: &str = "NOTIFY_SOCKET";
/// Longest text of a state in bytes; a message has to fit into a datagram.
const STATUS_MAX: usize = 1024;

/// Whether the manager listens.
pub fn is_notified() -> bool {
    env::var_os(SOCKET).is_some_and(|path| !path.is_empty())
}

/// Front ends can connect. `text` says what the process does.
pub fn ready(text: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(short(text))]);
}

/// What the process does, in one line.
pub fn status(text: &str) {
    send(&[NotifyState::Status(short(text))]);
}

/// The process has begun to stop.
pub fn stopping() {
    let text = "stopping: requests are finished and made durable";
    send(&[NotifyState::Stopping, NotifyState::Status(text)]);
}

/// The process reads its configuration again, until [`ready`].
pub fn reloading() {
    let mut message = vec![NotifyState::Reloading];
    message.extend(NotifyState::monotonic_usec_now().ok());
    send(&message);
}

/// The process is alive.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often the manager expects [`watchdog`], if it does.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| is_notified() && !interval.is_zero())
}

fn send(message: &[NotifyState<'_>]) {
    if is_notified()
        && let Err(error) = sd_notify::notify(message)
    {
        tracing::debug!(%error, "the service manager cannot be notified");
    }
}

fn short(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    let end = (0..=STATUS_MAX.min(line.len())).rev();
    let end = end.into_iter().find(|at| line.is_char_boundary(*at));
    line.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Sends `text` with a descriptor.
pub fn send_with(text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let path = env::var_os(SOCKET).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(&path)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let parts = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_line_that_fits_a_message() {
        assert_eq!(short("a\nREADY=1"), "a");
        let long = "é".repeat(STATUS_MAX);
        assert_eq!(short(&long).len(), STATUS_MAX);
        assert_eq!(short(&format!("a{long}")).len(), STATUS_MAX - 1);
    }
}
