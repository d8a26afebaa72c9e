//! `snapback serve`

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::metrics::Metrics;
use super::sandbox::SandboxArgs;
use super::serve_control::ControlOptions;
use super::snapshot_list::{self, Asked};
use super::socket_access::SocketAccessArgs;
use super::{CliError, Outcome, logging, output, values};
use crate::control::render::printable;
use crate::daemon::{
    self, BlockSizes, DaemonError, Endpoint, IoEngine, MergeWrites, Reload, ServeOptions,
};

/// Serve a disk and its snapshots to virtual machines, until SIGTERM or SIGINT.
///
/// Once the disk has had a snapshot, the state file records its sockets and snapshots: started again
/// with --origin alone, the daemon serves the same snapshots and continues a merge.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  Serve disk.img, and a snapshot of it at its own socket:
    snapback serve --origin disk.img --socket-path disk.sock \\
      --snapshot name=before,cow=before.cow,size=2G,socket=before.sock

  Guests on a golden image that nothing writes to: one daemon and one fork for each guest:
    snapback serve --origin golden.img --read-only \\
      --snapshot name=vm1,cow=vm1.cow,size=8G,socket=vm1.sock

  Migrate a guest (docs/migration.md): a second daemon for the QEMU that waits with -incoming:
    snapback serve --origin disk.img --socket-path new.sock --control new-c.sock --incoming c.sock

  Attach a guest (its memory must be shared):
    qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=m,size=1G,share=on \\
      -machine memory-backend=m -chardev socket,id=d,path=disk.sock \\
      -device vhost-user-blk-pci,chardev=d ...")]
pub struct Serve {
    /// The disk: a raw file or block device.
    #[arg(long, visible_alias = "blk-file", value_name = "FILE", value_parser = values::path,
        required_unless_present = "config")]
    origin: Option<String>,

    /// Read these options from a TOML file, with a key for each option and a table [[snapshot]] for
    /// each snapshot (docs/service.md). Options on the command line add to the file and cannot
    /// repeat its keys; relative paths in it are relative to its folder. SIGHUP reads it again.
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    config: Option<String>,

    /// Say whether a start would succeed, as far as can be told without locking or changing
    /// anything, and end: exit status 0 if it would, 1 if it would be refused, 2 for wrong usage.
    #[arg(long, conflicts_with = "incoming")]
    check: bool,

    /// Unix socket at which the disk is served.
    #[arg(long, value_name = "SOCK", value_parser = values::path, conflicts_with = "fd")]
    socket_path: Option<String>,

    /// Serve the disk at this open socket (connected or listening) instead.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,

    /// Connect to this Unix socket, at which the front end listens, instead (QEMU: a chardev with
    /// server=on). Tried again until there is a listener, and when the front end has left.
    #[arg(long, value_name = "SOCK", value_parser = values::path, conflicts_with_all = ["fd", "socket_path"])]
    connect: Option<String>,

    /// Open and serve the disk read-only.
    #[arg(long)]
    read_only: bool,

    /// Serial number that the guest reads, up to 20 characters.
    #[arg(long, value_name = "TEXT", value_parser = values::serial)]
    serial: Option<String>,

    #[command(flatten)]
    blocks: Blocks,

    #[command(flatten)]
    access: SocketAccessArgs,

    /// Number of queues that each view shows in its configuration space. Front ends that go by their
    /// own number, as QEMU does, can start up to 256 in any case.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    num_queues: u16,

    /// A snapshot: name=NAME,cow=FILE[,type=P|PO|N][,chunk-size=SIZE][,size=SIZE]
    /// [,socket=SOCK|,fd=N|,connect=SOCK][,read-only]
    /// [,discard-zeroes-cow][,discard-passdown-origin][,defer-entries].
    ///
    /// The snapshot is taken now, unless the state file contains it. A COW file that does not
    /// exist is created if a size is given. With read-only, guests cannot write to its socket;
    /// that is recorded until read-only=no is given. With defer-entries, the entry of a guest's
    /// first write to a chunk of the snapshot is durable at its next flush; until then it is in a
    /// record in /run/snapback, which the next start takes over. fd and connect are as --fd and
    /// --connect; they are not recorded. In a value, two commas stand for one.
    #[arg(long = "snapshot", value_name = "KEY=VALUE,...", value_parser = snapshot_list::parse)]
    snapshots: Vec<snapshot_list::Asked>,

    /// Merge this snapshot into the disk, beginning at the start of the daemon.
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    merge: Option<String>,

    /// How a guest's write to a chunk that is not merged yet is handled [default: wait, or as the
    /// merge in progress began].
    #[arg(long, value_name = "HOW", value_enum)]
    merge_writes: Option<MergeWritesName>,

    /// Unix socket for `snapback status`, `rollback` and the other verbs [default: NAME.control.sock in
    /// /run/snapback for root, in $XDG_RUNTIME_DIR/snapback for others].
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    control: Option<String>,

    /// Listen for these verbs at this open listening socket instead.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..), conflicts_with = "control")]
    control_fd: Option<RawFd>,

    #[command(flatten)]
    control_options: ControlOptions,

    #[command(flatten)]
    metrics: Metrics,

    #[command(flatten)]
    sandbox: SandboxArgs,

    /// Monitor socket (QMP) of the QEMU whose guest uses the disk: `snapback rollback` then stops
    /// and resets that guest itself. Recorded in the state file.
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    qmp: Option<String>,

    /// Remove the monitor socket of --qmp from the state file.
    #[arg(long, conflicts_with = "qmp")]
    no_qmp: bool,

    /// State file [default: FILE.snapback beside a file, in /var/lib/snapback for a device].
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    state: Option<String>,

    /// Wait for a guest that is migrated here from the daemon with this control socket.
    ///
    /// Front ends can connect at once to --socket-path, and to the socket of each --snapshot, but
    /// nothing is locked, read or written. When a guest starts to use the disk, the other daemon
    /// is asked to let go of it; it does so if its guests were migrated, and stops. Then this
    /// daemon starts, with the state file. If there is no daemon at SOCK any more, it starts as
    /// soon as the files are not locked.
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    incoming: Option<String>,

    /// How disk I/O is done.
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t)]
    io_engine: IoEngineName,

    /// How long a queue polls for the guest's next request, in microseconds, before it sleeps: at
    /// most this, and only while requests follow one another so closely. This saves the guest and
    /// the daemon a wake-up for each request, and costs up to one processor for each busy queue.
    /// 0: never, for hosts with fewer processors than busy guests. An idle queue never polls.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u8).range(0..=50))]
    poll_us: u8,

    /// Take guest memory of any kind from front ends. Otherwise only memory of this machine is
    /// taken: memfd, /dev/shm and other tmpfs, hugetlbfs. Pages of another file may never arrive
    /// (FUSE, a network): a request that waits for one cannot be ended, and neither can snapback.
    #[arg(long)]
    any_guest_memory: bool,

    /// Serve although the disk was changed since the last stop. Correct if it was only enlarged
    /// (each snapshot keeps its length), or if its content is the same (a copy). Otherwise the
    /// snapshots lack what was overwritten meanwhile.
    #[arg(long)]
    accept_changes: bool,

    /// Remove this snapshot from the state file and mark its store invalid.
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    forget: Vec<String>,

    /// With --forget: also if its COW cannot be marked invalid. Nothing then prevents the COW
    /// from being mistaken for a good snapshot.
    #[arg(long, requires = "forget")]
    force: bool,
}

/// The block sizes that guests see on all views.
#[derive(Args, Debug)]
struct Blocks {
    /// Logical block size of the disk and its snapshots: guests read and write multiples of it
    /// [default: the device's, 512 for a file]. A power of two up to 32K, not smaller than the
    /// device's; Linux takes up to 4K. A disk that has a partition table is not readable with
    /// another size. Recorded in the state file, like the three that follow.
    #[arg(long, value_name = "SIZE", value_parser = values::logical_block_size)]
    logical_block_size: Option<u32>,

    /// Physical block size: smaller writes cost more [default: the device's; for a file the block
    /// size of its file system, at most 4K]. A power of two up to 2M.
    #[arg(long, value_name = "SIZE", value_parser = values::physical_block_size)]
    physical_block_size: Option<u32>,

    /// The unit in which guests give space back [default: the device's or file system's, at least
    /// 4K]. A power of two up to 4M.
    #[arg(long, value_name = "SIZE", value_parser = values::discard_granularity)]
    discard_granularity: Option<u32>,

    /// The size of requests that suits the disk best, 0 for none [default: the device's, none for
    /// a file]. A multiple of the logical block size.
    #[arg(long, value_name = "SIZE", value_parser = values::io_size)]
    opt_io: Option<u32>,
}

impl Blocks {
    const fn sizes(&self) -> BlockSizes {
        BlockSizes {
            logical: self.logical_block_size,
            physical: self.physical_block_size,
            discard_granularity: self.discard_granularity,
            opt_io: self.opt_io,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MergeWritesName {
    /// It waits until its own chunk is merged, which takes three durable writes that all waiting
    /// writes share. New data is on the origin only.
    Wait,
    /// It is written to the COW, as in Linux, at the speed of a write without a merge. New data is
    /// on the COW until its chunk is merged.
    Redirect,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum IoEngineName {
    /// io_uring if the system permits it, otherwise threads.
    #[default]
    Auto,
    /// io_uring; without it the daemon does not start.
    #[value(name = "io_uring")]
    IoUring,
    /// Blocking calls on a pool of threads.
    Threads,
}

impl Serve {
    /// The disk, if it is named.
    pub fn disk(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Nothing is served.
    pub const fn is_check(&self) -> bool {
        self.check
    }

    /// `reload`: what SIGHUP does, if the options are those of a file.
    pub fn run(self, reload: Option<Reload>) -> Result<Outcome, CliError> {
        let is_check = self.check;
        let options = self.options().map_err(CliError::Usage)?;
        if is_check {
            return check(&options);
        }
        logging::abort_on_panic();
        daemon::serve(options, reload)?;
        Ok(Outcome::Done)
    }

    /// # Errors
    /// Options contradict one another.
    pub fn options(self) -> Result<ServeOptions, String> {
        self.refuse_contradictions()?;
        let origin = self.origin.ok_or(
            "the configuration names no disk: give it the key `origin`, or give --origin FILE",
        )?;
        let socket = self
            .socket_path
            .map(|path| Endpoint::Path(PathBuf::from(path)));
        let connect = self.connect.map(|path| Endpoint::Connect(path.into()));
        let endpoints = self.snapshots.iter().filter_map(|asked| {
            let endpoint = asked.endpoint.clone()?;
            Some((asked.spec.name.clone(), endpoint))
        });
        Ok(ServeOptions {
            endpoint: socket.or(connect).or(self.fd.map(Endpoint::Fd)),
            snapshot_endpoints: endpoints.collect(),
            read_only: self.read_only,
            serial: self.serial,
            blocks: self.blocks.sizes(),
            socket_access: self.access.of_views(),
            control_access: self.access.of_control(),
            num_queues: self.num_queues,
            snapshots: self.snapshots.into_iter().map(|asked| asked.spec).collect(),
            merge: self.merge,
            merge_writes: self.merge_writes.map(|name| match name {
                MergeWritesName::Wait => MergeWrites::Wait,
                MergeWritesName::Redirect => MergeWrites::Redirect,
            }),
            no_control: self.control_options.is_off(),
            listed_as: self.control_options.name(&origin),
            origin: PathBuf::from(origin),
            control_permission: self.control_options.access(),
            on_event: self.control_options.event_command()?,
            control: self.control.map(PathBuf::from),
            control_fd: self.control_fd,
            metrics: self.metrics.address()?,
            qmp: match self.no_qmp {
                true => Some(PathBuf::new()),
                false => self.qmp.map(PathBuf::from),
            },
            state: self.state.map(PathBuf::from),
            incoming: self.incoming.map(PathBuf::from),
            io_engine: match self.io_engine {
                IoEngineName::Auto => IoEngine::Auto,
                IoEngineName::IoUring => IoEngine::IoUring,
                IoEngineName::Threads => IoEngine::Threads,
            },
            polling: Duration::from_micros(self.poll_us.into()),
            any_memory: self.any_guest_memory,
            accept_changes: self.accept_changes,
            forget: self.forget,
            force: self.force,
            sandbox: self.sandbox.options(self.config.as_deref()),
            only_look: self.check,
            ..ServeOptions::default()
        })
    }

    /// Refuses options that contradict one another.
    fn refuse_contradictions(&self) -> Result<(), String> {
        self.check_descriptors()?;
        for (index, Asked { spec, .. }) in self.snapshots.iter().enumerate() {
            if self
                .snapshots
                .iter()
                .take(index)
                .any(|other| other.spec.name == spec.name)
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
        Ok(())
    }

    /// Each descriptor has one purpose.
    fn check_descriptors(&self) -> Result<(), String> {
        let snapshots = self
            .snapshots
            .iter()
            .filter_map(|asked| match asked.endpoint {
                Some(Endpoint::Fd(fd)) => Some(fd),
                _ => None,
            });
        let mut seen = Vec::new();
        for fd in self.fd.into_iter().chain(self.control_fd).chain(snapshots) {
            if seen.contains(&fd) {
                return Err(format!(
                    "descriptor {fd} is given twice: each socket needs a descriptor of its own"
                ));
            }
            seen.push(fd);
        }
        Ok(())
    }
}

/// `serve --check`.
fn check(options: &ServeOptions) -> Result<Outcome, CliError> {
    match daemon::look(options) {
        Ok(remarks) => {
            for remark in remarks {
                output::line(&format!("note: {remark}"))?;
            }
            output::line("a start would succeed, as far as can be told without one")?;
            Ok(Outcome::Done)
        }
        Err(error @ DaemonError::System { .. }) => Err(error.into()),
        Err(error) => {
            let error = printable(&error.to_string());
            output::line(&format!("a start would be refused: {error}"))?;
            Ok(Outcome::Faulty)
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
