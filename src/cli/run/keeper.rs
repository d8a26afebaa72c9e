//! `snapback run-disk`: the process that serves one fork for `snapback run`, and that cleans
//! up if `snapback run` is killed. Not for users.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

use super::message::{Message, Target};
use crate::cli::outcome::{CliError, Outcome};
use crate::cli::{logging, output};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::{self, DaemonError, ServeOptions};
use crate::sandbox::{self, SandboxOptions};

/// The name of the snapshot.
const NAME: &str = "fork";
/// Bytes for the header and the first entries, unless chunks are very large.
const MARGIN: u64 = 4 << 20;
/// Attempts to find a name that is free.
const ATTEMPTS: u32 = 100;

/// Serve a fork for `snapback run`.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback run-disk --image golden.img    (only `snapback run` starts it)")]
pub struct RunDisk {
    #[arg(long)]
    image: PathBuf,
    #[arg(long)]
    cow: Option<PathBuf>,
    #[arg(long)]
    persistent: bool,
    #[arg(long)]
    exclusive: bool,
    #[arg(long)]
    size: Option<u64>,
    #[arg(long)]
    chunk_size: Option<u64>,
}

impl RunDisk {
    /// Order: 1 the folder is made and reported → 2 the COW is made → 3 the death of `snapback
    /// run` is watched for → 4 the fork is served, which is reported → 5 the files go, but for
    /// a COW that is kept.
    pub fn run(self) -> Result<Outcome, CliError> {
        logging::abort_on_panic();
        // Before the thread that watches is started.
        sandbox::begin(&SandboxOptions::default()).map_err(DaemonError::from)?;
        let folder = make_folder()?;
        output::line(&format!("folder {}", folder.display()))?;
        let cow = self.cow.clone().unwrap_or_else(|| folder.join("cow"));
        let served = self.make_cow(&cow).and_then(|()| {
            let files = Arc::new(Files {
                folder: folder.clone(),
                cow: cow.clone(),
                kept: AtomicBool::new(false),
            });
            let served = watch(files.clone())
                .and_then(|()| Ok(daemon::serve(self.options(&folder, &cow), None)?));
            if !files.kept.load(Ordering::Acquire) {
                files.remove();
            }
            served
        });
        let _ = fs::remove_dir_all(&folder);
        served.map(|()| Outcome::Done)
    }

    /// An empty file. It takes space only for what is written.
    fn make_cow(&self, cow: &Path) -> Result<(), CliError> {
        let failed = |e: io::Error| {
            CliError::Failed(match e.kind() {
                io::ErrorKind::AlreadyExists => format!(
                    "COW {} exists already: choose another name, or remove it",
                    cow.display()
                ),
                _ => format!(
                    "COW {} cannot be made: {e}; --cow and --size choose another place and size",
                    cow.display()
                ),
            })
        };
        let size = match self.size {
            Some(size) => size,
            None => room_for_all(&self.image)?,
        };
        let file = File::create_new(cow).map_err(failed)?;
        file.set_len(size).map_err(|e| {
            let _ = fs::remove_file(cow);
            failed(e)
        })
    }

    fn options(&self, folder: &Path, cow: &Path) -> ServeOptions {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        ServeOptions {
            origin: self.image.clone(),
            read_only: true,
            exclusive: self.exclusive,
            snapshots: vec![SnapshotSpec {
                name: NAME.to_owned(),
                cow: text(cow),
                store_type: if self.persistent {
                    StoreType::PO
                } else {
                    StoreType::N
                },
                chunk_size: self.chunk_size,
                size: None,
                socket: Some(text(&folder.join("disk.sock"))),
                discard_zeroes_cow: None,
                defer_entries: None,
                discard_passdown_origin: None,
                read_only: None,
            }],
            control: Some(folder.join("control.sock")),
            sandbox: SandboxOptions {
                removed: Some(folder.to_owned()),
                ..SandboxOptions::default()
            },
            ..ServeOptions::default()
        }
    }
}

/// Bytes of a COW that can hold a copy of all chunks of the image, with their entries and the
/// header, and is not so full then that the daemon warns.
fn room_for_all(image: &Path) -> Result<u64, CliError> {
    let failed =
        |e: io::Error| CliError::Failed(format!("image {}: cannot open it: {e}", image.display()));
    let mut file = File::open(image).map_err(failed)?;
    // The length of a device is where its end is.
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(failed)?;
    let room = size.saturating_add(size / 2).saturating_add(MARGIN);
    Ok(room / 512 * 512)
}

/// A new folder that only this user can open.
fn make_folder() -> Result<PathBuf, CliError> {
    let parent = std::env::temp_dir();
    let failed = |path: &Path, e: io::Error| {
        CliError::Failed(format!(
            "folder {}: cannot make it: {e}; TMPDIR can name another place",
            path.display()
        ))
    };
    for attempt in 0..ATTEMPTS {
        let name = format!("snapback-run-{}-{attempt}", std::process::id());
        let path = parent.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(&path, e)),
        }
    }
    Err(failed(&parent, io::ErrorKind::AlreadyExists.into()))
}

/// What has to be removed.
struct Files {
    folder: PathBuf,
    cow: PathBuf,
    /// The COW is needed.
    kept: AtomicBool,
}

impl Files {
    fn remove(&self) {
        let _ = fs::remove_file(&self.cow);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Follows what `snapback run` says, on a thread of its own.
fn watch(files: Arc<Files>) -> Result<(), CliError> {
    let thread = std::thread::Builder::new().name("run".into());
    let started = thread.spawn(move || {
        let mut target = None;
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match Message::read(&line) {
                Some(Message::Started(started)) => target = Some(started),
                Some(Message::Keep) => {
                    files.kept.store(true, Ordering::Release);
                    let _ = kill_process(getpid(), Signal::TERM);
                    return;
                }
                Some(Message::Drop) => {
                    files.remove();
                    std::process::exit(0);
                }
                None => {}
            }
        }
        if let Some(target) = target {
            kill(target);
        }
        files.remove();
        std::process::exit(2);
    });
    started
        .map(drop)
        .map_err(|e| CliError::Failed(format!("cannot start a thread: {e}")))
}

/// What was started may have ended before.
fn kill(target: Target) {
    let _ = match target {
        Target::Group(id) => Pid::from_raw(id).map(|id| kill_process_group(id, Signal::KILL)),
        Target::Process(id) => Pid::from_raw(id).map(|id| kill_process(id, Signal::KILL)),
    };
}
