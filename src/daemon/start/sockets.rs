//! The sockets of a volume, bound before it is served.

use std::path::Path;

use super::inherited;
use super::options::{Endpoint, ServeOptions};
use super::plan::Plan;
use crate::control::ControlSocket;
use crate::daemon::DaemonError;
use crate::daemon::volume::views;
use crate::vhost::ViewSocket;

/// Bound sockets that are not served yet; their files are removed if this is dropped.
#[derive(Default)]
pub struct Sockets {
    pub origin: Option<ViewSocket>,
    pub followed: Vec<(String, ViewSocket)>,
    /// By snapshot name.
    pub snapshots: Vec<(String, ViewSocket)>,
    pub control: Option<ControlSocket>,
}

pub fn bind_sockets(options: &ServeOptions, plan: &Plan) -> Result<Sockets, DaemonError> {
    let bind =
        |path: &str| views::bind(path).map_err(|e| DaemonError::Refused(format!("socket {e}")));
    let origin = match (&options.endpoint, &plan.state.socket) {
        (Some(Endpoint::Fd(fd)), _) => {
            let fd = inherited::take(*fd)
                .map_err(|e| DaemonError::Refused(format!("--fd {fd}: {e}")))?;
            Some(ViewSocket::from_fd(fd).map_err(|e| DaemonError::Refused(format!("--fd: {e}")))?)
        }
        (Some(Endpoint::Path(_)) | None, Some(path)) => Some(bind(path)?),
        (Some(Endpoint::Path(_)) | None, None) => None,
    };
    let mut sockets = Sockets {
        origin,
        ..Sockets::default()
    };
    for path in &plan.state.followed_sockets {
        // The user may have chosen one of them for the origin.
        if plan.state.socket.as_ref() != Some(path) {
            sockets.followed.push((path.clone(), bind(path)?));
        }
    }
    for planned in &plan.snapshots {
        if let Some(path) = &planned.spec.socket {
            sockets
                .snapshots
                .push((planned.spec.name.clone(), bind(path)?));
        }
    }
    if let Some(path) = &plan.state.control {
        let bound = ControlSocket::bind(Path::new(path))
            .map_err(|e| DaemonError::Refused(format!("control {e}")))?;
        sockets.control = Some(bound);
    }
    Ok(sockets)
}
