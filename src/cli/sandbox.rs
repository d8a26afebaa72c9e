//! The options of `serve` that say which rights the daemon gives up.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values;
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

    /// Let the daemon use this folder as well, in which snapshots that are taken later can have their
    /// COWs and sockets, or this device, which can become a COW. Without it, the daemon can open only the
    /// files of its volume: those in the folders of the disk, of its state file, and of the COWs and sockets at
    /// the start, and COWs that the command line opens for it. Repeatable.
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    allow_path: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ModeName {
    /// User, capabilities, system calls, and files, as far as the kernel can limit them.
    #[default]
    On,
    /// It keeps all rights, for debuggers and core dumps.
    Off,
    /// The same, and the daemon does not start if the kernel cannot do a part of it.
    Require,
}

impl SandboxArgs {
    /// `configuration`: the file of --config.
    pub fn options(self, configuration: Option<&str>) -> SandboxOptions {
        SandboxOptions {
            mode: match self.sandbox {
                ModeName::On => Mode::On,
                ModeName::Off => Mode::Off,
                ModeName::Require => Mode::Require,
            },
            user: self.user,
            allowed: self.allow_path.into_iter().map(PathBuf::from).collect(),
            configuration: configuration.map(PathBuf::from),
            removed: None,
        }
    }
}
