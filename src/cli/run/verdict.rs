//! How a command ended, and what that means for the changes of its disks.

use std::fmt;

/// What is done with the changes of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Drop,
    Keep,
    Commit,
}

/// When changes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    OnFailure,
    OnSuccess,
    Always,
}

impl Fate {
    pub const fn of(success: bool, keep: When, commit: bool) -> Self {
        match (success, keep) {
            (true, _) if commit => Self::Commit,
            (true, When::OnSuccess | When::Always) | (false, When::OnFailure | When::Always) => {
                Self::Keep
            }
            (true, When::Never | When::OnFailure) | (false, When::Never | When::OnSuccess) => {
                Self::Drop
            }
        }
    }
}

/// How the command's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Exited(u8),
    /// By this signal.
    Killed(u8),
    TimedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub how: How,
    /// The first signal that asked this process to end.
    pub interrupted: Option<u8>,
}

impl End {
    /// A command that was interrupted has no success, whatever it says: QEMU exits with 0 when
    /// it gets SIGTERM.
    pub fn is_success(&self, success: &[u8]) -> bool {
        matches!(self.how, How::Exited(status) if success.contains(&status))
            && self.interrupted.is_none()
    }

    /// The exit status of `snapback run`.
    pub fn status(&self, success: &[u8]) -> u8 {
        match (self.how, self.interrupted) {
            (How::Exited(status), Some(signal)) if success.contains(&status) => by_signal(signal),
            (How::Exited(status), _) => status,
            (How::Killed(signal), _) => by_signal(signal),
            (How::TimedOut, _) => 124,
        }
    }
}

const fn by_signal(signal: u8) -> u8 {
    128_u8.saturating_add(signal)
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.how {
            How::Exited(status) => write!(f, "exited with {status}")?,
            How::Killed(signal) => write!(f, "was ended by signal {signal}")?,
            How::TimedOut => write!(f, "took too long and was ended")?,
        }
        match self.interrupted {
            Some(signal) => write!(f, ", after signal {signal} to snapback"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn exited(status: u8) -> End {
        End {
            how: How::Exited(status),
            interrupted: None,
        }
    }

    #[test]
    fn changes_are_kept_when_they_were_asked_for() {
        for (keep, on_success, on_failure) in [
            (When::Never, Fate::Drop, Fate::Drop),
            (When::OnFailure, Fate::Drop, Fate::Keep),
            (When::OnSuccess, Fate::Keep, Fate::Drop),
            (When::Always, Fate::Keep, Fate::Keep),
        ] {
            assert_eq!(Fate::of(true, keep, false), on_success, "{keep:?}");
            assert_eq!(Fate::of(false, keep, false), on_failure, "{keep:?}");
        }
        assert_eq!(Fate::of(true, When::OnFailure, true), Fate::Commit);
        assert_eq!(Fate::of(false, When::OnFailure, true), Fate::Keep);
        assert_eq!(Fate::of(false, When::Never, true), Fate::Drop);
    }

    #[test]
    fn the_status_is_the_commands_unless_an_interruption_would_pass_for_success() {
        assert_eq!(exited(0).status(&[0]), 0);
        assert_eq!(exited(33).status(&[33]), 33);
        assert!(exited(33).is_success(&[0, 33]) && !exited(1).is_success(&[0, 33]));
        let killed = End {
            how: How::Killed(9),
            interrupted: None,
        };
        assert_eq!((killed.status(&[0]), killed.is_success(&[0])), (137, false));
        let late = End {
            how: How::TimedOut,
            interrupted: None,
        };
        assert_eq!((late.status(&[0]), late.is_success(&[0])), (124, false));
        let stopped = End {
            interrupted: Some(15),
            ..exited(0)
        };
        assert_eq!(
            (stopped.status(&[0]), stopped.is_success(&[0])),
            (143, false)
        );
        let failed = End {
            interrupted: Some(15),
            ..exited(3)
        };
        assert_eq!(failed.status(&[0]), 3);
    }
}
