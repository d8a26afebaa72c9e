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
    let mut remarks = plan.remarks.clone();
    look_at_sockets(&options, plan, &mut remarks)?;
    let new = plan.snapshots.iter().map(|s| Path::new(&s.spec.cow));
    for cow in new.filter(|cow| !cow.exists()) {
        look_at_folder("COW", cow)?;
    }
    if let Some(state) = checked.state.path() {
        look_at_folder("state file", state)?;
    }
    Ok(remarks)
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

/// The folder of `socket`, if it does not exist, but a unit of the package makes it when it starts
/// (`RuntimeDirectory=` in `packaging/snapback@.service`); and what to say about it.
fn made_by_the_unit(socket: &str) -> Option<String> {
    let folder = Path::new(socket).parent()?;
    let name = folder.strip_prefix("/run/snapback").ok()?;
    let is_of_unit = name.components().count() == 1 && !folder.exists();
    is_of_unit.then(|| {
        format!(
            "folder {} does not exist; the unit snapback@{} makes it, and a start without the unit would be refused",
            folder.display(),
            name.display()
        )
    })
}

/// What does not prevent the start of a unit is added to `remarks`.
fn look_at_sockets(
    options: &ServeOptions,
    plan: &Plan,
    remarks: &mut Vec<String>,
) -> Result<(), DaemonError> {
    let access = access::Access::resolve(&plan.state);
    let access = access.map_err(|e| DaemonError::Refused(e.to_string()))?;
    let refused = |e: &dyn std::fmt::Display| DaemonError::Refused(format!("socket {e}"));
    let mut told = |path: &str| {
        let remark = made_by_the_unit(path);
        remarks.extend(remark.clone().filter(|remark| !remarks.contains(remark)));
        remark.is_some()
    };
    let mut look = |path: &str| match told(path) {
        true => Ok(()),
        false => ViewSocket::look(Path::new(path)).map_err(|e| refused(&e)),
    };
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
        Some(path) if !told(&path.to_string_lossy()) => {
            ControlSocket::look(&path).map_err(|e| DaemonError::Refused(format!("control {e}")))
        }
        Some(_) | None => Ok(()),
    }
}
