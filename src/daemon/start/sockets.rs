//! The sockets of a volume, bound before it is served.

use std::io::{self, Write};
use std::path::Path;

use super::inherited;
use super::options::{Endpoint, ServeOptions};
use super::plan::Plan;
use crate::control::ControlSocket;
use crate::daemon::DaemonError;
use crate::daemon::volume::early::EarlyView;
use crate::daemon::volume::views::{self, Entrance};
use crate::vhost::ViewSocket;

/// Sockets of a volume that is not served yet; their files are removed if this is dropped.
#[derive(Default)]
pub struct Sockets {
    pub origin: Option<Entrance>,
    pub followed: Vec<(String, Entrance)>,
    /// By snapshot name.
    pub snapshots: Vec<(String, Entrance)>,
    pub control: Option<ControlSocket>,
}

impl Sockets {
    /// Adds views to which front ends are connected already.
    pub fn add_early(&mut self, views: Vec<EarlyView>) {
        for view in views {
            match view.snapshot.clone() {
                None => self.origin = Some(Entrance::Early(view)),
                Some(name) => self.snapshots.push((name, Entrance::Early(view))),
            }
        }
    }
}

/// The socket of the origin's view that the options name.
pub fn bind_endpoint(endpoint: &Endpoint) -> Result<ViewSocket, DaemonError> {
    match endpoint {
        Endpoint::Fd(fd) => {
            let fd = inherited::take(*fd)
                .map_err(|e| DaemonError::Refused(format!("--fd {fd}: {e}")))?;
            ViewSocket::from_fd(fd).map_err(|e| DaemonError::Refused(format!("--fd: {e}")))
        }
        Endpoint::Path(path) => bind(&path.to_string_lossy()),
    }
}

/// A socket at a path.
pub fn bind(path: &str) -> Result<ViewSocket, DaemonError> {
    views::bind(path).map_err(|e| DaemonError::Refused(format!("socket {e}")))
}

/// Binds all sockets but those of `early`, which exist.
pub fn bind_sockets(
    options: &ServeOptions,
    plan: &Plan,
    early: &[EarlyView],
) -> Result<Sockets, DaemonError> {
    let mut sockets = Sockets::default();
    let is_early = |name: Option<&str>| early.iter().any(|view| view.snapshot.as_deref() == name);
    if !is_early(None) {
        sockets.origin = match (&options.endpoint, &plan.state.socket) {
            (Some(fd @ Endpoint::Fd(_)), _) => Some(Entrance::Bound(bind_endpoint(fd)?)),
            (Some(Endpoint::Path(_)) | None, Some(path)) => Some(Entrance::Bound(bind(path)?)),
            (Some(Endpoint::Path(_)) | None, None) => None,
        };
    }
    for path in &plan.state.followed_sockets {
        // The user may have chosen one of them for the origin.
        if plan.state.socket.as_ref() != Some(path) {
            let socket = Entrance::Bound(bind(path)?);
            sockets.followed.push((path.clone(), socket));
        }
    }
    for planned in &plan.snapshots {
        let name = &planned.spec.name;
        if let Some(path) = &planned.spec.socket
            && !is_early(Some(name))
        {
            let socket = Entrance::Bound(bind(path)?);
            sockets.snapshots.push((name.clone(), socket));
        }
    }
    if let Some(path) = &plan.state.control {
        let bound = ControlSocket::bind(Path::new(path))
            .map_err(|e| DaemonError::Refused(format!("control {e}")))?;
        sockets.control = Some(bound);
    }
    Ok(sockets)
}

/// Reports on standard output that front ends can connect. It is no error if nobody
/// reads it.
pub fn announce(what: &str, at: Option<&str>) {
    let mut out = io::stdout().lock();
    let _ = match at {
        Some(path) => writeln!(out, "{what} at {path}"),
        None => writeln!(out, "{what} at the given descriptor"),
    };
    let _ = out.flush();
}
