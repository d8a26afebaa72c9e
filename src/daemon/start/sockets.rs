//! The sockets of a volume, bound before it is served.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::Path;

use super::access::Access;
use super::options::{Endpoint, ServeOptions};
use super::plan::Plan;
use super::{inherited, listing};
use crate::control::ControlSocket;
use crate::control::access::Access as Permission;
use crate::control::api::SnapshotSpec;
use crate::control::registry::Noted;
use crate::daemon::DaemonError;
use crate::daemon::volume::early::EarlyView;
use crate::daemon::volume::views::{self, Entrance};
use crate::socket_access::SocketAccess;
use crate::supervisor;
use crate::vhost::ViewSocket;

/// Sockets of a volume that is not served yet; their files are removed if this is dropped.
#[derive(Default)]
pub struct Sockets {
    pub origin: Option<Entrance>,
    pub followed: Vec<(String, Entrance)>,
    /// By snapshot name.
    pub snapshots: Vec<(String, Entrance)>,
    pub control: Option<ControlSocket>,
    /// The entry by which clients find a control socket that is at a place of its own.
    pub noted: Option<Noted>,
    /// Who may change something there.
    pub permission: Permission,
}

impl Sockets {
    /// Adds views to which front ends are connected already.
    pub fn add_early(&mut self, views: Vec<EarlyView>) {
        for view in views {
            match view.snapshot.clone() {
                None => self.origin = Some(Entrance::Early(Box::new(view))),
                Some(name) => self.snapshots.push((name, Entrance::Early(Box::new(view)))),
            }
        }
    }
}

/// The socket of a view that the options name, with what they call it: `--` or a snapshot's
/// name.
pub fn open_endpoint(
    endpoint: &Endpoint,
    what: &str,
    access: SocketAccess,
) -> Result<ViewSocket, DaemonError> {
    match endpoint {
        Endpoint::Fd(fd) => from_fd(*fd, &format!("{what}fd")),
        Endpoint::Connect(path) => connecting(path, &format!("{what}connect")),
        Endpoint::Path(path) => bind(&path.to_string_lossy(), access),
        Endpoint::Passed(name) => {
            let refused = |e: &dyn Display| {
                DaemonError::Refused(format!("the socket `{name}` of the service manager: {e}"))
            };
            let passed = supervisor::take(name).ok_or_else(|| refused(&"it was not passed"))?;
            ViewSocket::from_fd(passed.into()).map_err(|e| refused(&e))
        }
    }
}

/// A socket at a path.
pub fn bind(path: &str, access: SocketAccess) -> Result<ViewSocket, DaemonError> {
    views::bind(path, access).map_err(|e| DaemonError::Refused(format!("socket {e}")))
}

/// Binds all sockets but those of `early`, which exist.
pub fn bind_sockets(
    options: &ServeOptions,
    plan: &Plan,
    early: &[EarlyView],
    access: &Access,
) -> Result<Sockets, DaemonError> {
    let mut sockets = Sockets {
        permission: options.control_permission.clone(),
        ..Sockets::default()
    };
    let views = access.views;
    let is_early = |name: Option<&str>| early.iter().any(|view| view.snapshot.as_deref() == name);
    if !is_early(None) {
        sockets.origin = match (&options.endpoint, &plan.state.socket) {
            (Some(own @ (Endpoint::Fd(_) | Endpoint::Connect(_) | Endpoint::Passed(_))), _) => {
                Some(Entrance::Bound(open_endpoint(own, "--", views)?))
            }
            (Some(Endpoint::Path(_)) | None, Some(path)) => {
                Some(Entrance::Bound(bind(path, views)?))
            }
            (Some(Endpoint::Path(_)) | None, None) => None,
        };
    }
    for path in &plan.state.followed_sockets {
        // The user may have chosen one of them for the origin.
        if plan.state.socket.as_ref() != Some(path) {
            let socket = Entrance::Bound(bind(path, views)?);
            sockets.followed.push((path.clone(), socket));
        }
    }
    for planned in &plan.snapshots {
        let name = &planned.spec.name;
        if is_early(Some(name)) {
            continue;
        }
        let mut endpoints = options.snapshot_endpoints.iter();
        let endpoint = endpoints.find(|(of, _)| of == name).map(|(_, e)| e);
        let socket = match (endpoint, &planned.spec.socket) {
            (Some(own @ (Endpoint::Fd(_) | Endpoint::Connect(_) | Endpoint::Passed(_))), _) => {
                open_endpoint(own, &format!("snapshot {name}: "), views)?
            }
            (Some(Endpoint::Path(_)) | None, Some(path)) => bind(path, views)?,
            (Some(Endpoint::Path(_)) | None, None) => continue,
        };
        let socket = Entrance::Bound(socket);
        sockets.snapshots.push((name.clone(), socket));
    }
    if let Some(path) = &plan.state.control {
        let bound = ControlSocket::bind_for(Path::new(path), access.control)
            .map_err(|e| DaemonError::Refused(format!("control {e}")))?;
        sockets.control = Some(bound);
    }
    if let Some(fd) = options.control_fd {
        let refused = |e: String| DaemonError::Refused(format!("--control-fd {fd}: {e}"));
        let open = inherited::take(fd).map_err(|e| refused(e.to_string()))?;
        let bound = ControlSocket::from_fd(open).map_err(|e| refused(e.to_string()))?;
        sockets.control = Some(bound);
    }
    if options.control_passed
        && let Some(passed) = supervisor::take(CONTROL)
    {
        let refused = |e| DaemonError::Refused(format!("socket `{CONTROL}`: {e}"));
        sockets.control = Some(ControlSocket::from_fd(passed.into()).map_err(refused)?);
    }
    sockets.noted = listing::list(options, access.control, &mut sockets.control)?;
    refuse_left_over()?;
    Ok(sockets)
}

/// Names by which the service manager passes the sockets of the origin and of the control
/// interface; those of snapshots have the names of the snapshots.
const ORIGIN: &str = "origin";
const CONTROL: &str = "control";

/// The options, with the sockets that the service manager passes and that they do not name.
pub fn with_passed(mut options: ServeOptions) -> ServeOptions {
    if options.endpoint.is_none() && supervisor::is_passed(ORIGIN) {
        options.endpoint = Some(Endpoint::Passed(ORIGIN.to_owned()));
    }
    let has_control = options.control.is_some() || options.control_fd.is_some();
    options.control_passed = !has_control && !options.no_control && supervisor::is_passed(CONTROL);
    for name in supervisor::names() {
        let has_path = |spec: &SnapshotSpec| spec.name == name && spec.socket.is_some();
        let is_given = options.snapshot_endpoints.iter().any(|(of, _)| *of == name);
        let is_other = [ORIGIN, CONTROL].contains(&name.as_str());
        if !is_other && !is_given && !options.snapshots.iter().any(has_path) {
            let endpoint = Endpoint::Passed(name.clone());
            options.snapshot_endpoints.push((name, endpoint));
        }
    }
    options
}

/// A front end that connects to a socket that nobody serves waits for ever.
fn refuse_left_over() -> Result<(), DaemonError> {
    supervisor::drop_kept();
    for (name, path) in supervisor::left_over() {
        let path = path.unwrap_or_default();
        let (name, path) = (name.escape_debug(), path.display());
        if [ORIGIN, CONTROL].contains(&name.to_string().as_str()) {
            return Err(DaemonError::Refused(format!(
                "the service manager passes the socket `{name}` at {path}, and the options name another one: give the \
                 same path, or leave one of the two out"
            )));
        }
        tracing::warn!(
            "nothing is served at the socket `{name}` at {path}, which the service manager passes: there is no \
             snapshot of this name without a socket of its own"
        );
    }
    Ok(())
}

/// Reports on standard output that front ends can connect. It is no error if nobody
/// reads it.
pub fn announce(what: &str, place: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{what} {place}");
    let _ = out.flush();
}

/// The place of a socket that has no path.
pub const GIVEN: &str = "the given descriptor";

/// Where front ends find the view, or it finds them. `path`: of its own socket.
pub fn place(connects_to: Option<&Path>, path: Option<&str>) -> String {
    match connects_to {
        Some(theirs) => format!("connects to {}", theirs.display()),
        None => format!("at {}", path.unwrap_or(GIVEN)),
    }
}

/// `option`: what named the descriptor.
fn from_fd(fd: RawFd, option: &str) -> Result<ViewSocket, DaemonError> {
    let open =
        inherited::take(fd).map_err(|e| DaemonError::Refused(format!("{option} {fd}: {e}")))?;
    ViewSocket::from_fd(open).map_err(|e| DaemonError::Refused(format!("{option}: {e}")))
}

fn connecting(path: &Path, option: &str) -> Result<ViewSocket, DaemonError> {
    let refused = |e: String| DaemonError::Refused(format!("{option}: {e}"));
    let path = std::path::absolute(path).map_err(|e| refused(e.to_string()))?;
    ViewSocket::connecting(&path).map_err(|e| refused(e.to_string()))
}
