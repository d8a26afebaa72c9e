//! The step of a start at which it gives up rights: everything that takes them is open, and
//! nothing is bound or written yet.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access as May, AtFlags, CWD, accessat};

use super::access::{Access, AccessError};
use super::options::ServeOptions;
use super::plan::check_served;
use super::preflight::{Checked, LOAD_READS, check_without_guests};
use super::sockets::bind_sockets;
use crate::control::ControlSocket;
use crate::control::registry::Noted;
use crate::daemon::DaemonError;
use crate::daemon::cow;
use crate::daemon::state::VolumeState;
use crate::daemon::volume::early::EarlyView;
use crate::io::{IoEngine, open_disk};
use crate::sandbox::{Files, Needs, Sandbox, SandboxError, SandboxOptions};

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
///
/// # Errors
/// The start is refused, or the user of the sandbox cannot serve this volume; nothing was changed but
/// the process.
pub fn check(
    options: &ServeOptions,
    early: &[EarlyView],
    sandbox: Option<&Sandbox>,
) -> Result<Checked, DaemonError> {
    let mut checked = check_without_guests(options)?;
    check_served(options, &checked.plan)?;
    let access = Access::resolve(&checked.plan.state)?;
    let changes_user = sandbox.is_some_and(Sandbox::changes_user);
    if changes_user {
        refuse_records(&checked)?;
    }
    if let Some(sandbox) = sandbox {
        refuse_missing(&sandbox.options().allowed)?;
    }
    // Its thread would keep the rights.
    drop(checked.disk);
    if let Some(sandbox) = sandbox {
        sandbox.enter(&needs(&access))?;
    }
    let state_file = checked.state.path();
    if changes_user && let Some(state_file) = state_file {
        check_folder(state_file)?;
    }
    checked.sockets = bind_sockets(options, &checked.plan, early, &access)?;
    checked.socket_access = access.views;
    // Nothing is refused any more, so that the folders that this takes can be made.
    if let Some(sandbox) = sandbox {
        let mut files = files(state_file, &checked.plan.state, options, sandbox);
        // What is made in the folder of the user's daemons is removed at the end.
        let own = checked
            .sockets
            .control
            .as_ref()
            .and_then(ControlSocket::place);
        let noted = checked.sockets.noted.as_ref().map(Noted::path);
        let listed = own.as_deref().into_iter().chain(noted);
        files.sockets.extend(listed.map(beside));
        sandbox.limit(&files)?;
    }
    checked.disk = open_disk(IoEngine::Threads, checked.devices.clone(), LOAD_READS)
        .map_err(|e| DaemonError::system("start an I/O thread", e))?;
    Ok(checked)
}

/// What a daemon needs whose sockets are for those whom `access` lets in.
pub const fn needs(access: &Access) -> Needs {
    Needs {
        groups: [access.views.group, access.control.group],
    }
}

/// What the daemon opens by a path while it serves, and at its end.
fn files(
    state_file: Option<&Path>,
    state: &VolumeState,
    options: &ServeOptions,
    sandbox: &Sandbox,
) -> Files {
    let mut files = Files {
        folders: cow::record_folders(),
        // For its mark.
        read: vec![options.origin.clone()],
        ..Files::default()
    };
    if let Some(path) = state_file {
        let folder = folder_of(path);
        // Rights are for what there is. A folder that cannot be made now could not be made later.
        let _ = std::fs::create_dir_all(&folder);
        files.folders.push(folder);
    }
    if !options.read_only && !is_device(&options.origin) {
        files.folders.push(folder_of(&options.origin));
    }
    let specs = || {
        let pending = state.rollback_at_reset.as_ref();
        let kept = pending.and_then(|rollback| rollback.keep.as_ref());
        let snapshots = state.snapshots.iter().map(|record| &record.spec);
        snapshots.chain(kept)
    };
    for spec in specs() {
        let cow = Path::new(&spec.cow);
        match is_device(cow) {
            true => files.written.push(cow.to_owned()),
            false => files.folders.push(folder_of(cow)),
        }
    }
    let sockets = specs().map(|spec| &spec.socket);
    let sockets = sockets.chain([&state.socket, &state.control]).flatten();
    let sockets = sockets.chain(&state.followed_sockets);
    files
        .sockets
        .extend(sockets.map(|path| folder_of(Path::new(path))));
    let SandboxOptions {
        allowed,
        configuration,
        removed,
        ..
    } = sandbox.options();
    let (folders, others): (Vec<_>, Vec<_>) = allowed.iter().cloned().partition(|p| p.is_dir());
    files.folders.extend(folders);
    files.written.extend(others);
    // Editors replace it.
    files.read.extend(configuration.as_deref().map(folder_of));
    files.vacated.extend(removed.as_deref().map(folder_of));
    files
}

fn refuse_missing(allowed: &[PathBuf]) -> Result<(), DaemonError> {
    match allowed.iter().find(|path| !path.exists()) {
        None => Ok(()),
        Some(missing) => Err(DaemonError::Refused(format!(
            "--allow-path {}: there is no such folder or device: make it first, or leave the option out",
            missing.display()
        ))),
    }
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// The folder that has the file at `path`, or the one that a link there leads to.
fn folder_of(path: &Path) -> PathBuf {
    beside(&std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()))
}

/// The folder that has what is at `path`, which may be a link.
fn beside(path: &Path) -> PathBuf {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_owned)
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
    let folder = folder_of(state);
    let may = May::WRITE_OK | May::EXEC_OK;
    accessat(CWD, &folder, may, AtFlags::EACCESS).map_err(|e| {
        DaemonError::Refused(format!(
            "--user: the user cannot write in {}, where the state file {} is made: {e}; give the folder to the user, or \
             give --state a path in one of its folders",
            folder.display(),
            state.display()
        ))
    })
}
