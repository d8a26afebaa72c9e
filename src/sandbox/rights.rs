//! The user, its groups, and capabilities.

use nix::unistd::{Gid, setgroups, setresgid, setresuid};
use rustix::process::{Resource, Rlimit, getegid, geteuid, getgid, getrlimit, getuid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::user::User;
use super::{Needs, SandboxError};

/// Becomes `user`, and keeps of the capabilities only what a daemon needs. Returns what is left.
///
/// Order: 1 the limit of locked memory, and the bounding set, which take capabilities to change → 2
/// groups, then the user, which take others → 3 all sets of capabilities.
pub fn give_up(user: Option<&User>, needs: &Needs) -> Result<CapabilitySet, SandboxError> {
    let had = capabilities(None).map_err(SandboxError::system("read the capabilities"))?;
    let is_limited = had.effective.contains(CapabilitySet::IPC_LOCK) && !unlimit_rings();
    let keep = match user {
        Some(_) => CapabilitySet::empty(),
        None if is_limited => (needed(needs) | CapabilitySet::IPC_LOCK) & had.permitted,
        None => needed(needs) & had.permitted,
    };
    if had.effective.contains(CapabilitySet::SETPCAP) {
        let step = "limit the capabilities of later programs";
        for capability in CapabilitySet::all().difference(keep).iter() {
            match remove_capability_from_bounding_set(capability) {
                // The kernel is older than the capability.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(SandboxError::system(step)(error)),
            }
        }
    }
    if let Some(user) = user {
        become_user(user, needs)?;
    }
    match clear_ambient_capability_set() {
        // Before Linux 4.3 there are none.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => {
            return Err(SandboxError::system("give up ambient capabilities")(error));
        }
    }
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    // A filter of system calls, such as that of a unit, may forbid the call that changes nothing.
    if capabilities(None).ok() != Some(sets) {
        set_capabilities(None, sets).map_err(SandboxError::system("give up capabilities"))?;
    }
    Ok(keep)
}

/// Some kernels count rings (io_uring) as locked memory, of which all processes of a user together have
/// few MiB, unless they have the capability. Whether the limit is gone.
fn unlimit_rings() -> bool {
    let none = Rlimit {
        current: None,
        maximum: None,
    };
    getrlimit(Resource::Memlock) == none || setrlimit(Resource::Memlock, none).is_ok()
}

/// Disks, COWs and their folders belong to whoever made them, so that a daemon of root needs a
/// capability to replace the state file and to make COWs; another one to give a socket that is
/// made later to its group.
fn needed(needs: &Needs) -> CapabilitySet {
    let own = getegid().as_raw();
    let gives = needs.groups.iter().flatten().any(|group| *group != own);
    match gives {
        true => CapabilitySet::DAC_OVERRIDE | CapabilitySet::CHOWN,
        false => CapabilitySet::DAC_OVERRIDE,
    }
}

/// The groups of the sockets stay, so that later sockets can be given to them.
fn become_user(user: &User, needs: &Needs) -> Result<(), SandboxError> {
    let (uid, gid) = (user.uid(), user.gid());
    if user.is_another() {
        let mut groups: Vec<Gid> = needs
            .groups
            .iter()
            .flatten()
            .map(|g| Gid::from_raw(*g))
            .collect();
        groups.dedup();
        setgroups(&groups).map_err(SandboxError::system("give up supplementary groups"))?;
        setresgid(gid, gid, gid).map_err(SandboxError::system("take the group of --user"))?;
        setresuid(uid, uid, uid).map_err(SandboxError::system("become the user of --user"))?;
    }
    let is = (getuid(), geteuid(), getgid(), getegid());
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    let is = (is.0.as_raw(), is.1.as_raw(), is.2.as_raw(), is.3.as_raw());
    match is == (uid, uid, gid, gid) {
        true => Ok(()),
        false => Err(SandboxError::system("become the user of --user")(
            std::io::Error::from(std::io::ErrorKind::PermissionDenied),
        )),
    }
}

/// The user, for the log.
pub fn user() -> String {
    let uid = geteuid().as_raw();
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => format!("{} ({uid})", user.name),
        Ok(None) | Err(_) => uid.to_string(),
    }
}

pub fn in_words(left: CapabilitySet) -> String {
    let names: Vec<String> = left
        .iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect();
    match names.is_empty() {
        true => "no capabilities".to_owned(),
        false => format!("capabilities {}", names.join(", ")),
    }
}
