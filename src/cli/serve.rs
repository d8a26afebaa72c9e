//! `snapback serve`

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CliError, Outcome, logging, snapshot_list, values};
use crate::control::api::SnapshotSpec;
use crate::daemon::{self, Endpoint, ServeOptions};
use crate::engine::MergeWrites;
use crate::io::IoEngine;

/// Serve a disk and its snapshots to virtual machines, until SIGTERM or SIGINT.
///
/// What the daemon was told is kept in the state file: started again with
/// --origin alone, it serves the same snapshots and goes on with a merge.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  Serve disk.img, and a snapshot of it at a socket of its own:
    snapback serve --origin disk.img --socket-path disk.sock --control c.sock \\
      --snapshot name=before,cow=before.cow,size=2G,socket=before.sock

  Guests on an image that nobody writes: a daemon and a fork for each of them:
    snapback serve --origin golden.img --read-only \\
      --snapshot name=vm1,cow=vm1.cow,size=8G,socket=vm1.sock

  Let QEMU use it:
    qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=m,size=1G,share=on \\
      -machine memory-backend=m -chardev socket,id=d,path=disk.sock \\
      -device vhost-user-blk-pci,chardev=d ...")]
pub struct Serve {
    /// The disk: a raw file or block device.
    #[arg(long, visible_alias = "blk-file", value_name = "FILE", value_parser = values::path)]
    origin: String,

    /// Unix socket to serve the disk at.
    #[arg(long, value_name = "SOCK", value_parser = values::path, conflicts_with = "fd")]
    socket_path: Option<String>,

    /// Serve the disk at this open socket (connected or listening) instead.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,

    /// Open and serve the disk read-only.
    #[arg(long)]
    read_only: bool,

    /// Serial number that the guest reads, up to 20 characters.
    #[arg(long, value_name = "TEXT", value_parser = values::serial)]
    serial: Option<String>,

    /// Queues that a guest can use on each view.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=64))]
    num_queues: u16,

    /// A snapshot: name=NAME,cow=FILE[,type=P|PO|N][,chunk-size=SIZE][,size=SIZE][,socket=SOCK][,read-only]
    /// [,discard-zeroes-cow][,discard-passdown-origin].
    ///
    /// Made now unless the state file knows it. A COW file that is not there is
    /// created if a size is given. With read-only guests cannot write at its
    /// socket; that is remembered until read-only=no is said. Two commas are one comma in a value.
    #[arg(long = "snapshot", value_name = "KEY=VALUE,...", value_parser = snapshot_list::parse)]
    snapshots: Vec<SnapshotSpec>,

    /// Merge this snapshot into the disk, from the start.
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    merge: Option<String>,

    /// What a guest's write to a chunk that is not merged yet does [default: wait,
    /// or what the merge under way began with].
    #[arg(long, value_name = "HOW", value_enum)]
    merge_writes: Option<MergeWritesName>,

    /// Unix socket for `snapback status`, `rollback` and the other verbs.
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    control: Option<String>,

    /// Monitor socket (QMP) of the QEMU that serves the disk's guest: `snapback rollback` then stops
    /// and resets that guest itself. Remembered.
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    qmp: Option<String>,

    /// Forget the monitor socket that --qmp named.
    #[arg(long, conflicts_with = "qmp")]
    no_qmp: bool,

    /// State file [default: FILE.snapback beside a file, below /var/lib/snapback for a device].
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    state: Option<String>,

    /// How to do disk I/O.
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t)]
    io_engine: IoEngineName,

    /// Serve although the disk was changed since the last stop. Right if it was only
    /// enlarged (each snapshot keeps its length), or if its content is the same (a copy);
    /// what else was overwritten meanwhile is missing in the snapshots.
    #[arg(long)]
    accept_changes: bool,

    /// Give up this snapshot of the state file; it is marked invalid.
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    forget: Vec<String>,

    /// With --forget: also if its COW cannot be marked invalid. Nothing keeps the
    /// COW from being taken for a good snapshot then.
    #[arg(long, requires = "forget")]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MergeWritesName {
    /// It waits; its chunk is merged next.
    Wait,
    /// It goes to the COW, as in Linux.
    Redirect,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum IoEngineName {
    /// io_uring if the system allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or do not start.
    #[value(name = "io_uring")]
    IoUring,
    /// Blocking calls on threads.
    Threads,
}

impl Serve {
    pub fn run(self) -> Result<Outcome, CliError> {
        let options = self.options().map_err(CliError::Usage)?;
        logging::abort_on_panic();
        daemon::serve(options)?;
        Ok(Outcome::Done)
    }

    fn options(self) -> Result<ServeOptions, String> {
        for (index, spec) in self.snapshots.iter().enumerate() {
            if self
                .snapshots
                .iter()
                .take(index)
                .any(|other| other.name == spec.name)
            {
                return Err(format!(
                    "--snapshot: two snapshots are named `{}`: choose another name",
                    spec.name
                ));
            }
            if self.forget.contains(&spec.name) {
                return Err(format!(
                    "snapshot `{}` is both in --snapshot and in --forget: leave one of them out",
                    spec.name
                ));
            }
        }
        if let Some(name) = self
            .merge
            .as_ref()
            .filter(|name| self.forget.contains(name))
        {
            return Err(format!(
                "snapshot `{name}` is both in --merge and in --forget: leave one of them out"
            ));
        }
        if self.merge.is_some() && self.read_only {
            return Err(
                "--merge writes the disk and --read-only forbids it: leave one of them out"
                    .to_owned(),
            );
        }
        let socket = self
            .socket_path
            .map(|path| Endpoint::Path(PathBuf::from(path)));
        Ok(ServeOptions {
            origin: PathBuf::from(self.origin),
            endpoint: socket.or(self.fd.map(Endpoint::Fd)),
            read_only: self.read_only,
            serial: self.serial,
            num_queues: self.num_queues,
            snapshots: self.snapshots,
            merge: self.merge,
            merge_writes: self.merge_writes.map(|name| match name {
                MergeWritesName::Wait => MergeWrites::Wait,
                MergeWritesName::Redirect => MergeWrites::Redirect,
            }),
            control: self.control.map(PathBuf::from),
            qmp: match self.no_qmp {
                true => Some(PathBuf::new()),
                false => self.qmp.map(PathBuf::from),
            },
            state: self.state.map(PathBuf::from),
            io_engine: match self.io_engine {
                IoEngineName::Auto => IoEngine::Auto,
                IoEngineName::IoUring => IoEngine::IoUring,
                IoEngineName::Threads => IoEngine::Threads,
            },
            accept_changes: self.accept_changes,
            forget: self.forget,
            force: self.force,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        serve: Serve,
    }

    fn options(arguments: &[&str]) -> Result<ServeOptions, String> {
        let arguments = std::iter::once("serve").chain(arguments.iter().copied());
        Only::try_parse_from(arguments)
            .map_err(|e| e.to_string())?
            .serve
            .options()
    }

    #[test]
    fn the_issue_command_means_what_it_says() {
        let options = options(&[
            "--origin",
            "/d/disk.img",
            "--socket-path",
            "/d/a.sock",
            "--control",
            "/d/c.sock",
            "--snapshot",
            "name=s1,cow=/d/s1.cow,size=256M,chunk-size=4K,socket=/d/s1.sock",
            "--merge",
            "s1",
            "--merge-writes",
            "redirect",
            "--io-engine",
            "io_uring",
        ])
        .unwrap();
        assert_eq!(options.origin, PathBuf::from("/d/disk.img"));
        assert_eq!(
            options.endpoint,
            Some(Endpoint::Path(PathBuf::from("/d/a.sock")))
        );
        assert_eq!(options.control, Some(PathBuf::from("/d/c.sock")));
        assert_eq!(options.merge.as_deref(), Some("s1"));
        assert_eq!(options.merge_writes, Some(MergeWrites::Redirect));
        assert_eq!(options.io_engine, IoEngine::IoUring);
        assert_eq!(options.num_queues, 64);
        let spec = options.snapshots.first().unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.size, spec.chunk_size),
            ("s1", Some(256 << 20), Some(4096))
        );
        assert_eq!(spec.socket.as_deref(), Some("/d/s1.sock"));
    }

    #[test]
    fn defaults_ask_for_nothing_unusual() {
        let options = options(&["--blk-file", "/d/disk.img", "--fd", "5"]).unwrap();
        assert_eq!(options.endpoint, Some(Endpoint::Fd(5)));
        assert_eq!(options.io_engine, IoEngine::Auto);
        assert_eq!(options.merge_writes, None);
        assert!(!options.read_only && !options.accept_changes);
        assert!(options.forget.is_empty() && options.snapshots.is_empty());
    }

    #[test]
    fn contradictions_are_refused_with_the_way_out() {
        let base = ["--origin", "/d"];
        for (more, word) in [
            (
                &["--fd", "5", "--socket-path", "/s"][..],
                "cannot be used with",
            ),
            (&["--fd", "2"], "3.."),
            (
                &["--snapshot", "name=a,cow=/1", "--snapshot", "name=a,cow=/2"],
                "two snapshots are named `a`",
            ),
            (
                &["--snapshot", "name=a,cow=/1", "--forget", "a"],
                "--forget",
            ),
            (&["--merge", "a", "--forget", "a"], "--merge"),
            (&["--merge", "a", "--read-only"], "--read-only"),
            (&["--num-queues", "0"], "1..=64"),
        ] {
            let error = options(&[&base, more].concat()).unwrap_err();
            assert!(error.contains(word), "{more:?}: {error}");
        }
    }
}
