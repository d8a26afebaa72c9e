//! The step of a start at which it gives up rights: everything that takes them is open, and
//! nothing is bound or written yet.

use std::path::Path;

use rustix::fs::{Access as May, AtFlags, CWD, accessat};

use super::access::{Access, AccessError};
use super::options::ServeOptions;
use super::plan::check_served;
use super::preflight::{Checked, LOAD_READS, check_without_guests};
use super::sockets::bind_sockets;
use crate::daemon::DaemonError;
use crate::daemon::volume::early::EarlyView;
use crate::io::{IoEngine, open_disk};
use crate::sandbox::{Needs, Sandbox, SandboxError};

impl From<SandboxError> for DaemonError {
    fn from(error: SandboxError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<AccessError> for DaemonError {
    fn from(error: AccessError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Checks everything that `options` and the state file name, and enters the `sandbox` before the
/// sockets are bound: they belong to the user that the process is then. Those of `early` exist.
pub fn check(
    options: &ServeOptions,
    early: &[EarlyView],
    sandbox: Option<&Sandbox>,
) -> Result<Checked, DaemonError> {
    let checked = check_without_guests(options)?;
    check_served(options, &checked.plan)?;
    let access = Access::resolve(&checked.plan.state)?;
    let mut checked = confine(checked, sandbox, &access)?;
    checked.sockets = bind_sockets(options, &checked.plan, early, &access)?;
    checked.socket_access = access.views;
    Ok(checked)
}

/// Enters the sandbox.
///
/// # Errors
/// The kernel refuses, or the user cannot serve this volume; nothing was changed but the process.
fn confine(
    mut checked: Checked,
    sandbox: Option<&Sandbox>,
    access: &Access,
) -> Result<Checked, DaemonError> {
    let Some(sandbox) = sandbox else {
        return Ok(checked);
    };
    let changes_user = sandbox.changes_user();
    if changes_user {
        refuse_records(&checked)?;
    }
    // Its thread would keep the rights.
    drop(checked.disk);
    sandbox.enter(&needs(access))?;
    checked.disk = open_disk(IoEngine::Threads, checked.devices.clone(), LOAD_READS)
        .map_err(|e| DaemonError::system("start an I/O thread", e))?;
    if changes_user && let Some(state) = checked.state.path() {
        check_folder(state)?;
    }
    Ok(checked)
}

/// What a daemon needs whose sockets are for those whom `access` lets in.
pub const fn needs(access: &Access) -> Needs {
    Needs {
        groups: [access.views.group, access.control.group],
    }
}

/// The places of the records were looked for as another user, who alone may write there.
fn refuse_records(checked: &Checked) -> Result<(), DaemonError> {
    let mut deferring = checked.plan.snapshots.iter();
    let deferring = deferring.find(|snapshot| snapshot.spec.defer_entries == Some(true));
    match deferring {
        None => Ok(()),
        Some(snapshot) => Err(DaemonError::Refused(format!(
            "snapshot {}: its deferred entries are recorded in a folder of the user who starts the daemon: start it as \
             the user of --user without that option, or give defer-entries=no",
            snapshot.spec.name
        ))),
    }
}

/// The state file is replaced as a whole.
fn check_folder(state: &Path) -> Result<(), DaemonError> {
    let folder = state
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let may = May::WRITE_OK | May::EXEC_OK;
    accessat(CWD, folder, may, AtFlags::EACCESS).map_err(|e| {
        DaemonError::Refused(format!(
            "--user: the user cannot write in {}, where the state file {} is made: {e}; give the folder to the user, or \
             give --state a path in one of its folders",
            folder.display(),
            state.display()
        ))
    })
}
