//! The files that the process may open: landlock, as far as the kernel has it.
//!
//! Landlock asks for a path's right when it is opened, so that what is open already is not
//! concerned. It follows the files: a folder that is moved keeps its rights, and a new one at its
//! place has none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    make_bitflags,
};

use super::SandboxError;

/// What is known of landlock here: Linux 6.12 has all of it, and from 5.13 on a part.
const KNOWN: ABI = ABI::V6;

/// Which files the process needs from now on, by their paths. What does not exist is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Folders in which files and sockets are made, read, written, renamed and removed.
    pub folders: Vec<PathBuf>,
    /// Folders in which sockets are made and removed.
    pub sockets: Vec<PathBuf>,
    /// Folders in which folders are removed that are empty.
    pub vacated: Vec<PathBuf>,
    /// Files, devices, and folders of them, that are read and written.
    pub written: Vec<PathBuf>,
    /// Files, and folders of them, that are read.
    pub read: Vec<PathBuf>,
}

/// Where a process that serves reads what the system says of itself and its devices.
const SYSTEM: [&str; 2] = ["/proc", "/sys"];
/// The names of devices are listed.
const DEVICES: &str = "/dev";

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const LIST: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadDir});
const WRITE: BitFlags<AccessFs> = make_bitflags!(
    AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | IoctlDev}
);
const SOCKETS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
const FOLDER: BitFlags<AccessFs> = make_bitflags!(
    AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | IoctlDev | MakeReg | MakeSock | RemoveFile}
);
const VACATED: BitFlags<AccessFs> = make_bitflags!(AccessFs::{RemoveDir});
/// What there is of a file that is no folder.
const OF_FILES: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev});

/// How far the kernel enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    Fully,
    /// It knows some of the rights only.
    Partly,
    No,
}

/// The rules, for threads that were there before, and the folders in which files can be made.
static FENCE: OnceLock<(RulesetCreated, Vec<PathBuf>)> = OnceLock::new();

/// From now on this thread, and those that it starts, can open only `files`.
pub fn restrict(files: &Files) -> Result<Enforced, SandboxError> {
    let failed = |e: RulesetError| {
        SandboxError::system("limit the files (landlock)")(std::io::Error::other(e.to_string()))
    };
    let rules = build(files).map_err(failed)?;
    let ours = rules
        .try_clone()
        .map_err(SandboxError::system("limit the files (landlock)"))?;
    let RestrictionStatus { ruleset, .. } = ours.restrict_self().map_err(failed)?;
    let real = |path: &PathBuf| std::fs::canonicalize(path).ok();
    let enforced = match ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => return Ok(Enforced::No),
    };
    let folders = files.folders.iter().chain(&files.written);
    let folders: BTreeSet<PathBuf> = folders.filter_map(real).collect();
    let _ = FENCE.set((rules, folders.into_iter().collect()));
    Ok(enforced)
}

/// The same for a thread that was started before [`restrict`]; once for each.
pub fn catch_up() -> Result<(), SandboxError> {
    let step = "limit the files of a thread (landlock)";
    let Some((rules, _)) = FENCE.get() else {
        return Ok(());
    };
    let rules = rules.try_clone().map_err(SandboxError::system(step))?;
    let restricted = rules.restrict_self();
    restricted
        .map(drop)
        .map_err(|e| SandboxError::system(step)(std::io::Error::other(e.to_string())))
}

/// The folders below which files can be made, if the file at `path` is not below one.
pub fn outside(path: &Path) -> Option<&'static [PathBuf]> {
    let (_, folders) = FENCE.get()?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let real = std::fs::canonicalize(path)
        .or_else(|_| std::fs::canonicalize(folder.unwrap_or(Path::new("."))));
    match real {
        Ok(real) if !folders.iter().any(|folder| real.starts_with(folder)) => Some(folders),
        // Something else is wrong with it.
        Ok(_) | Err(_) => None,
    }
}

fn build(files: &Files) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        // Neither bound nor connected: the port of metrics is bound before.
        .handle_access(AccessNet::from_all(KNOWN))?
        // The socket of the service manager may be an abstract one; signals go to this process only,
        // or from a thread that is not under these rules.
        .scope(Scope::Signal)?
        .create()?;
    let system = SYSTEM.map(PathBuf::from);
    let devices = [PathBuf::from(DEVICES)];
    let all = [
        (&files.folders[..], FOLDER),
        (&files.sockets, SOCKETS),
        (&files.vacated, VACATED),
        (&files.written, WRITE),
        (&files.read, READ),
        (&system, READ),
        (&devices, LIST),
    ];
    for (paths, access) in all {
        for path in paths {
            let Ok(found) = PathFd::new(path) else {
                continue;
            };
            let access = match path.is_dir() {
                true => access,
                false => access & OF_FILES,
            };
            rules = rules.add_rule(PathBeneath::new(found, access))?;
        }
    }
    Ok(rules)
}
