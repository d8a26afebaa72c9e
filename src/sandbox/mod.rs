//! What a process that serves gives up, so that a guest, front end or client that has found a
//! bug in it gains little. `docs/sandbox.md` says what and why.
//!
//! ```text
//!  mod ─► user, rights, files, basics
//!   └───► filter ─► calls, kind
//! ```
//!
//! Order: 1 [`begin`], before anything is opened and before there is another thread → 2 what
//! needs the rights of the start is opened → 3 [`Sandbox::enter`], while no other thread has to
//! keep anything: each later thread inherits what is left → 4 each thread says of what kind it is
//! ([`thread`]), and is left fewer system calls.
//!
//! What a process may do is a property of the process, so that this module has state of the
//! process.

mod basics;
mod calls;
mod files;
mod filter;
mod kind;
#[cfg(debug_assertions)]
mod probe;
mod rights;
mod user;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use files::{Files, catch_up};
pub use kind::Kind;
pub use user::User;

use files::Enforced;

/// Whether rights are given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    On,
    /// It fails if a part of it is missing on this system.
    Require,
    /// For those who look for a fault with tools that need the rights.
    Off,
}

/// What the command line says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxOptions {
    pub mode: Mode,
    /// The user that the process becomes.
    pub user: Option<User>,
    /// Folders and devices that may be used for COWs that are named later.
    pub allowed: Vec<PathBuf>,
    /// Files that may be read later, and the files beside them.
    pub configuration: Option<PathBuf>,
    /// A folder of the volume that is removed at the end.
    pub removed: Option<PathBuf>,
}

impl SandboxOptions {
    /// Whether [`begin`] would take them, as far as can be told without it.
    ///
    /// # Errors
    /// They contradict one another, or the process cannot become the user.
    pub fn check(&self) -> Result<(), SandboxError> {
        match &self.user {
            Some(_) if self.mode == Mode::Off => Err(SandboxError::UserWithoutSandbox),
            Some(user) => user.check(),
            None => Ok(()),
        }
    }
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
        "--sandbox require: this kernel limits files {how} (landlock): Linux 6.12 or later with landlock among its \
         security modules can; --sandbox on does with less"
    )]
    Files { how: &'static str },
    #[error(
        "--sandbox require: the system calls cannot be limited (seccomp): {source}; a kernel with CONFIG_SECCOMP_FILTER, \
         and a service manager that lets the daemon use it, can; --sandbox on does without"
    )]
    Calls { source: io::Error },
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

/// The process has become another user than it was started as.
static IS_ANOTHER_USER: OnceLock<bool> = OnceLock::new();

/// Whether the process has become another user than it was started as, which opens the files at the
/// next start.
pub fn is_another_user() -> bool {
    IS_ANOTHER_USER.get().is_some_and(|is| *is)
}

/// What [`Sandbox::enter`] has left, in words.
static LEFT: OnceLock<String> = OnceLock::new();

/// What is enforced, in words.
static ENFORCED: OnceLock<String> = OnceLock::new();

/// What is enforced, in words for people; `None`: nothing.
pub fn enforced() -> Option<&'static str> {
    ENFORCED.get().map(String::as_str)
}

/// What to do if a file at `path` cannot be made or opened because of the sandbox.
pub fn advice(path: &Path) -> Option<String> {
    let folders = files::outside(path)?;
    let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    Some(format!(
        "the sandbox lets this daemon use files only below {}: choose a place there, or start the daemon with --allow-path, \
         which names a further folder or device",
        folders.join(", ")
    ))
}

/// To be called by each thread when it begins, or when it has opened what it needs: leaves it the
/// system calls of its kind, if there is a sandbox.
pub fn thread(kind: Kind) {
    filter::narrow(kind);
    #[cfg(debug_assertions)]
    probe::probe();
}

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
    options.check()?;
    if options.mode == Mode::Off {
        return Ok(None);
    }
    basics::apply()?;
    Ok(Some(Sandbox {
        options: options.clone(),
    }))
}

impl Sandbox {
    /// Becomes the user that was asked for, if one was, and gives up the capabilities that
    /// `needs` does not name, then the system calls that no thread makes. A second call changes
    /// nothing.
    ///
    /// # Errors
    /// The kernel refuses, or cannot limit the system calls, and must. The process must not serve
    /// then.
    pub fn enter(&self, needs: &Needs) -> Result<(), SandboxError> {
        if LEFT.get().is_some() {
            return Ok(());
        }
        let _ = IS_ANOTHER_USER.set(self.changes_user());
        let left = rights::give_up(self.options.user.as_ref(), needs)?;
        // A change of the user allows dumps again.
        basics::forbid_dumps()?;
        // Users are looked up by libraries that are loaded for it.
        let words = format!("user {}, {}", rights::user(), rights::in_words(left));
        let calls = match filter::restrict() {
            Ok(()) => "limited".to_owned(),
            Err(source) if self.options.mode == Mode::Require => {
                return Err(SandboxError::Calls { source });
            }
            Err(error) => format!("not limited ({error})"),
        };
        let _ = LEFT.set(format!("{words}, system calls {calls}"));
        thread(Kind::Process);
        Ok(())
    }

    /// Can open only `files` from now on, as far as the kernel can limit that. To be called once,
    /// after [`Self::enter`].
    ///
    /// # Errors
    /// The kernel refuses, or cannot limit them, and must.
    pub fn limit(&self, files: &Files) -> Result<(), SandboxError> {
        let words = LEFT.get().map_or("", String::as_str);
        let how = match files::restrict(files)? {
            Enforced::Fully => "limited",
            Enforced::Partly if self.options.mode == Mode::Require => {
                return Err(SandboxError::Files {
                    how: "only in part",
                });
            }
            Enforced::Partly => "limited as far as this kernel can",
            Enforced::No if self.options.mode == Mode::Require => {
                return Err(SandboxError::Files { how: "not at all" });
            }
            Enforced::No => "not limited, because this kernel cannot",
        };
        let _ = ENFORCED.set(format!("{words}, files {how}"));
        Ok(())
    }

    /// What the options name besides the volume's own files.
    pub const fn options(&self) -> &SandboxOptions {
        &self.options
    }

    /// The process will be another user.
    pub fn changes_user(&self) -> bool {
        self.options.user.as_ref().is_some_and(User::is_another)
    }
}
