//! What no process that serves needs at any time.

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};
use rustix::thread::set_no_new_privs;

use super::SandboxError;

/// Files are for the user of the process only, unless they are given a mode.
const UMASK: u32 = 0o077;

pub fn apply() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(SandboxError::system("refuse new privileges"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(SandboxError::system("forbid core dumps"))?;
    forbid_dumps()?;
    umask(Mode::from_raw_mode(UMASK));
    Ok(())
}

/// The memory of guests is mapped, and must be neither in a core dump, which the limit above does
/// not prevent if a program receives it, nor readable by other processes of the same user.
pub fn forbid_dumps() -> Result<(), SandboxError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SandboxError::system("forbid dumps of the memory"))
}
