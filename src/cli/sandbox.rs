//! The options of `serve` that say which rights the daemon gives up.

use clap::{Args, ValueEnum};

use crate::sandbox::{Mode, SandboxOptions, User};

/// Which rights the daemon gives up.
#[derive(Args, Debug)]
pub struct SandboxArgs {
    /// Whether the daemon gives up the rights that it does not need, before it serves anybody
    /// (docs/sandbox.md).
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    sandbox: ModeName,

    /// Become this user, and this group instead of the user's own, by name or number, once the disk,
    /// the COWs and the state file are open. Started as root only. The user must be able to write in
    /// the folders of the state file and of the sockets.
    #[arg(long, value_name = "USER[:GROUP]", value_parser = User::parse)]
    user: Option<User>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ModeName {
    /// As far as the kernel can.
    #[default]
    On,
    /// It keeps all rights, for debuggers and core dumps.
    Off,
}

impl SandboxArgs {
    pub fn options(self) -> SandboxOptions {
        SandboxOptions {
            mode: match self.sandbox {
                ModeName::On => Mode::On,
                ModeName::Off => Mode::Off,
            },
            user: self.user,
        }
    }
}
