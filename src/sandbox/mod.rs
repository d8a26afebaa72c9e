//! What a process that serves gives up, so that a guest, front end or client that has found a
//! bug in it gains little. `docs/sandbox.md` says what and why.
//!
//! ```text
//!  mod ─► user, rights, basics
//! ```
//!
//! Order: 1 [`begin`], before anything is opened and before there is another thread → 2 what
//! needs the rights of the start is opened → 3 [`Sandbox::enter`], while no other thread has to
//! keep anything: each later thread inherits what is left.
//!
//! What a process may do is a property of the process, so that this module has state of the
//! process.

mod basics;
mod rights;
mod user;

use std::io;
use std::sync::OnceLock;

use rustix::thread::CapabilitySet;

pub use user::User;

/// Whether rights are given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    On,
    /// For those who look for a fault with tools that need the rights.
    Off,
}

/// What the command line says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxOptions {
    pub mode: Mode,
    /// The user that the process becomes.
    pub user: Option<User>,
}

/// Why the process does not have the sandbox that was asked for. The messages explain the
/// variants.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(
        "--user {user}: only root can become another user: start snapback as root, or as that user without --user"
    )]
    NotRoot { user: String },
    #[error("--user needs the sandbox: leave --sandbox off out")]
    UserWithoutSandbox,
    #[error(
        "cannot {step}: {source}; --sandbox off starts without the sandbox, to look for the reason"
    )]
    System {
        step: &'static str,
        source: io::Error,
    },
}

impl SandboxError {
    fn system<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            step,
            source: source.into(),
        }
    }
}

/// The capabilities that are left; empty until [`Sandbox::enter`].
static LEFT: OnceLock<CapabilitySet> = OnceLock::new();

/// A process that has begun to give up rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    options: SandboxOptions,
}

/// What the process still needs when it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Groups that sockets are given to.
    pub groups: [Option<u32>; 2],
}

/// Gives up what nothing needs, also not the start: new privileges, core dumps, files for others.
/// `None`: the sandbox is off. To be called before another thread is started.
///
/// # Errors
/// The user cannot be taken, or the kernel refuses.
pub fn begin(options: &SandboxOptions) -> Result<Option<Sandbox>, SandboxError> {
    if options.mode == Mode::Off {
        return match options.user {
            Some(_) => Err(SandboxError::UserWithoutSandbox),
            None => Ok(None),
        };
    }
    if let Some(user) = &options.user {
        user.check()?;
    }
    basics::apply()?;
    Ok(Some(Sandbox {
        options: options.clone(),
    }))
}

impl Sandbox {
    /// Becomes the user that was asked for, if one was, and gives up the capabilities that
    /// `needs` does not name. A second call changes nothing.
    ///
    /// # Errors
    /// The kernel refuses. The process must not serve then.
    pub fn enter(&self, needs: &Needs) -> Result<(), SandboxError> {
        if LEFT.get().is_some() {
            return Ok(());
        }
        let left = rights::give_up(self.options.user.as_ref(), needs)?;
        // A change of the user allows dumps again.
        basics::forbid_dumps()?;
        let _ = LEFT.set(left);
        tracing::info!(
            "sandbox: user {}, {}",
            rights::user(),
            rights::in_words(left)
        );
        Ok(())
    }

    /// The process will be another user.
    pub fn changes_user(&self) -> bool {
        self.options.user.as_ref().is_some_and(User::is_another)
    }
}
