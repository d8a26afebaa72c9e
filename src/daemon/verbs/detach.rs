//! Ending a socket that a merge has left behind: the view of a snapshot that followed its
//! merge serves the origin from then on.

use crate::control::api::{ApiError, ErrorKind};
use crate::control::events::EventKind;
use crate::daemon::volume::{LiveVolume, conflict, lock, not_recorded};

impl LiveVolume {
    /// Ends the view at `socket`, and removes the socket.
    ///
    /// Order: 1 it is such a socket, and no guest uses it → 2 it leaves the state file, so that
    /// no later start opens it again → 3 the view is closed.
    pub fn detach_socket(&self, socket: &str) -> Result<(), ApiError> {
        let _turn = lock(&self.ops);
        self.await_leaving_guests();
        self.check_detachable(socket)?;
        lock(&self.state)
            .update(|s| {
                s.followed_sockets.retain(|path| path != socket);
                s.read_only_sockets.retain(|path| path != socket);
                s.set_write_cache(socket, true);
            })
            .map_err(|e| not_recorded(&e))?;
        let view = {
            let mut tables = lock(&self.tables);
            let mut views = tables.origin_views.iter();
            let place = views.position(|v| v.socket.as_deref() == Some(socket));
            place.map(|place| tables.origin_views.remove(place))
        };
        if let Some(view) = view {
            view.stop();
        }
        tracing::info!(%socket, "the socket is closed");
        let socket = socket.to_owned();
        self.events
            .publish(None, EventKind::SocketClosed { socket });
        Ok(())
    }

    fn check_detachable(&self, socket: &str) -> Result<(), ApiError> {
        let state = lock(&self.state);
        let tables = lock(&self.tables);
        let own = |s: &crate::daemon::volume::Snapshot| s.spec.socket.as_deref() == Some(socket);
        if let Some(snapshot) = tables.snapshots.iter().find(|s| own(s)) {
            let name = &snapshot.spec.name;
            return Err(conflict(format!(
                "{socket} is the socket of snapshot {name}: it ends with the snapshot, by snapback remove {name}"
            )));
        }
        let followed = &state.state().followed_sockets;
        if state.state().socket.as_deref() == Some(socket) {
            return Err(conflict(format!(
                "{socket} is the disk's own socket, which is served until the daemon stops; a start with another \
                 --socket-path replaces it"
            )));
        }
        if !followed.iter().any(|path| path == socket) {
            let known = match followed.as_slice() {
                [] => "there are none".to_owned(),
                some => format!("there are: {}", some.join(", ")),
            };
            return Err(ApiError::new(
                ErrorKind::NotFound,
                format!(
                    "{socket} is no socket that a merge with --follow has left to the disk; {known}"
                ),
            ));
        }
        let mut views = tables.origin_views.iter();
        let view = views.find(|v| v.socket.as_deref() == Some(socket));
        match view.filter(|v| v.is_attached()) {
            Some(_) => Err(conflict(format!(
                "a guest is attached to the disk at {socket}: shut it down first, or take its disk away in its virtual \
                 machine monitor"
            ))),
            None => Ok(()),
        }
    }

    /// Which sockets a merged snapshot has left, for the error about a name that is not known.
    pub fn left_sockets(&self) -> Option<String> {
        let followed = lock(&self.state).state().followed_sockets.clone();
        let first = followed.first()?;
        Some(format!(
            "a merge with --follow has left to the disk: {}; snapback detach {first} ends such a socket",
            followed.join(", ")
        ))
    }
}
