//! Whether a start would succeed, as far as can be told without one.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::options::{Endpoint, ServeOptions};
use super::plan::{Plan, check_served};
use super::preflight::check_without_guests;
use super::sockets::open_endpoint;
use super::{access, listing};
use crate::control::ControlSocket;
use crate::daemon::DaemonError;
use crate::vhost::ViewSocket;

/// Looks at all that a start with `options` would open, and returns remarks for the user. Nothing
/// is locked, bound or written.
///
/// # Errors
/// The start would be refused, for the same reason.
pub fn look(options: &ServeOptions) -> Result<Vec<String>, DaemonError> {
    let options = ServeOptions {
        only_look: true,
        ..options.clone()
    };
    options.sandbox.check()?;
    let checked = check_without_guests(&options)?;
    let plan = &checked.plan;
    check_served(&options, plan)?;
    look_at_sockets(&options, plan)?;
    let new = plan.snapshots.iter().map(|s| Path::new(&s.spec.cow));
    for cow in new.filter(|cow| !cow.exists()) {
        look_at_folder("COW", cow)?;
    }
    if let Some(state) = checked.state.path() {
        look_at_folder("state file", state)?;
    }
    Ok(checked.plan.remarks)
}

/// A file can be made at `path`.
fn look_at_folder(what: &str, path: &Path) -> Result<(), DaemonError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    // The folder of the state files of devices is made if it does not exist.
    let there = folder.ancestors().find(|folder| folder.exists());
    let may = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, there.unwrap_or(folder), may, AtFlags::EACCESS).map_err(|e| {
        DaemonError::Refused(format!(
            "{what} {}: cannot be made: {e}: choose a path in a folder that may be written to",
            path.display()
        ))
    })
}

fn look_at_sockets(options: &ServeOptions, plan: &Plan) -> Result<(), DaemonError> {
    let access = access::Access::resolve(&plan.state);
    let access = access.map_err(|e| DaemonError::Refused(e.to_string()))?;
    let refused = |e: &dyn std::fmt::Display| DaemonError::Refused(format!("socket {e}"));
    let look = |path: &str| ViewSocket::look(Path::new(path)).map_err(|e| refused(&e));
    let given = |endpoint: Option<&Endpoint>, what: &str| match endpoint {
        Some(own @ (Endpoint::Fd(_) | Endpoint::Connect(_) | Endpoint::Passed(_))) => {
            open_endpoint(own, what, access.views).map(|_| true)
        }
        Some(Endpoint::Path(_)) | None => Ok(false),
    };
    if !given(options.endpoint.as_ref(), "--")?
        && let Some(path) = &plan.state.socket
    {
        look(path)?;
    }
    for path in &plan.state.followed_sockets {
        look(path)?;
    }
    for planned in &plan.snapshots {
        let name = &planned.spec.name;
        let mut endpoints = options.snapshot_endpoints.iter();
        let endpoint = endpoints.find(|(of, _)| of == name).map(|(_, e)| e);
        if !given(endpoint, &format!("snapshot {name}: "))?
            && let Some(path) = &planned.spec.socket
        {
            look(path)?;
        }
    }
    listing::look(options)?;
    match plan.state.control.as_ref().map(PathBuf::from) {
        Some(path) => {
            ControlSocket::look(&path).map_err(|e| DaemonError::Refused(format!("control {e}")))
        }
        None => Ok(()),
    }
}
