//! Filters of system calls (seccomp): one for the process, and narrower ones for the threads that
//! do less.
//!
//! A call that is not on the list fails with EPERM and is not carried out. The process goes on:
//! another version of the C library may make a call that nobody has seen, and a daemon that is
//! killed stops the disks of all its guests, whereas an error is handled like that of any call, and
//! is logged by whoever made the call. Only the calls that nothing but an intruder makes, such as
//! the execution of a program, kill the process, which the kernel logs.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::Kind;
use super::calls::{
    ACCEPTING, CHANGING, CONNECTING, DEADLY, IOCTLS, LOG, LOOKING, MAKING, OPTIONS, PROCESS, RING,
    RUNTIME, SOCKETS, STORAGE, THREADS, WAITING,
};

/// Of the kinds that are narrower than the process. Unset if there is no sandbox.
static FILTERS: OnceLock<BTreeMap<Kind, BpfProgram>> = OnceLock::new();

type Calls = &'static [c_long];
type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Compiled<T> = Result<T, seccompiler::BackendError>;

/// The lists of a kind.
pub(super) const fn lists(kind: Kind) -> &'static [Calls] {
    match kind {
        Kind::Process => &[
            RUNTIME, LOG, THREADS, WAITING, STORAGE, RING, MAKING, PROCESS, LOOKING, CHANGING,
            SOCKETS, ACCEPTING, CONNECTING,
        ],
        Kind::Queue | Kind::Merger => &[RUNTIME, LOG, THREADS, WAITING, STORAGE, RING],
        Kind::Disk => &[RUNTIME, LOG, STORAGE],
        Kind::Idler => &[RUNTIME, LOG, WAITING],
        Kind::Events => &[RUNTIME, LOG, WAITING, SOCKETS],
        Kind::Monitor => &[RUNTIME, LOG, WAITING, SOCKETS, CONNECTING],
        Kind::Metrics => &[
            RUNTIME, LOG, THREADS, WAITING, PROCESS, LOOKING, SOCKETS, ACCEPTING,
        ],
    }
}

/// Limits this thread, and those that it starts, to the calls of the process.
///
/// # Errors
/// The kernel has no filters, forbids to set them, or is of a machine whose calls are not known.
pub fn restrict() -> io::Result<()> {
    let mut filters = BTreeMap::new();
    for kind in Kind::ALL {
        filters.insert(kind, allow(kind).map_err(io::Error::other)?);
    }
    filters.remove(&Kind::Process);
    put_on(&of_process().map_err(io::Error::other)?)?;
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Each is asked about every call, and the strictest answer counts.
fn of_process() -> Compiled<[BpfProgram; 3]> {
    Ok([deadly()?, hidden()?, allow(Kind::Process)?])
}

fn put_on(filters: &[BpfProgram]) -> io::Result<()> {
    filters
        .iter()
        .try_for_each(|filter| apply_filter(filter).map_err(io::Error::other))
}

/// Limits this thread to what its kind needs, if the process is limited.
pub fn narrow(kind: Kind) {
    let Some(filter) = FILTERS.get().and_then(|filters| filters.get(&kind)) else {
        return;
    };
    // The filter of the process holds in any case.
    if let Err(error) = apply_filter(filter) {
        tracing::warn!("the system calls of a thread cannot be limited further: {error}");
    }
}

/// What a kind may do; everything else fails.
fn allow(kind: Kind) -> Compiled<BpfProgram> {
    let lists = lists(kind);
    let calls = lists.iter().flat_map(|list| list.iter());
    let mut rules: Rules = calls.map(|call| (*call, Vec::new())).collect();
    let mut limit = |call: c_long, alternatives: Vec<SeccompRule>| {
        if let Some(rule) = rules.get_mut(&call) {
            *rule = alternatives;
        }
    };
    // Threads, but no processes.
    limit(libc::SYS_clone, rule(vec![has(0, libc::CLONE_THREAD)?])?);
    // No new code in memory.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        limit(call, rule(vec![lacks(2, libc::PROT_EXEC)?])?);
    }
    // Signals to this process only.
    let own = rustix::process::getpid().as_raw_pid();
    limit(libc::SYS_tgkill, rule(vec![is(0, own)?])?);
    // Limits are read, and not changed.
    limit(libc::SYS_prlimit64, rule(vec![is_null(2)?])?);
    // TCP ports are bound before.
    limit(libc::SYS_socket, any_of(0, &[libc::AF_UNIX])?);
    limit(libc::SYS_prctl, any_of(0, OPTIONS)?);
    limit(libc::SYS_ioctl, any_of(1, IOCTLS)?);
    if !lists.contains(&CHANGING) {
        // Files are read only.
        limit(
            libc::SYS_openat,
            rule(vec![lacks(2, libc::O_ACCMODE | libc::O_CREAT)?])?,
        );
    }
    compile(rules, errno(libc::EPERM), SeccompAction::Allow)
}

/// Calls that kill the process.
fn deadly() -> Compiled<BpfProgram> {
    let rules = DEADLY.iter().map(|call| (*call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

/// The flags of `clone3` are behind a pointer, where a filter cannot see them. The C library takes
/// `clone` if there is no such call.
fn hidden() -> Compiled<BpfProgram> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Allow, errno(libc::ENOSYS))
}

/// `action` for the calls of `rules`, and `otherwise` for all others.
fn compile(rules: Rules, otherwise: SeccompAction, action: SeccompAction) -> Compiled<BpfProgram> {
    let machine = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, action, machine)?.try_into()
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

fn rule(conditions: Vec<SeccompCondition>) -> Compiled<Vec<SeccompRule>> {
    Ok(vec![SeccompRule::new(conditions)?])
}

fn any_of(argument: u8, values: &[i32]) -> Compiled<Vec<SeccompRule>> {
    let one = |value: &i32| SeccompRule::new(vec![is(argument, *value)?]);
    values.iter().map(one).collect()
}

fn is(argument: u8, value: i32) -> Compiled<SeccompCondition> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn is_null(argument: u8) -> Compiled<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

/// All of `bits` are set.
fn has(argument: u8, bits: i32) -> Compiled<SeccompCondition> {
    let bits = u64::from(bits.cast_unsigned());
    let masked = SeccompCmpOp::MaskedEq(bits);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, masked, bits)
}

/// None of `bits` is set.
fn lacks(argument: u8, bits: i32) -> Compiled<SeccompCondition> {
    let masked = SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned()));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, masked, 0)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
