//! Who is at the other end of a connection.

use tokio::net::UnixStream;

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// `None`: in a name space of processes that this one cannot see.
    pub pid: Option<i32>,
}

impl Peer {
    /// # Errors
    /// The kernel does not name the peer.
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let found = stream.peer_cred()?;
        Ok(Self {
            uid: found.uid(),
            pid: found.pid().filter(|pid| *pid > 0),
        })
    }
}
