//! The programs that are compared: they are started on processor 0, and stopped.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::files;
use super::load::{self, Job, Kind, Place};
use super::text;

/// A back end with its state before the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The daemon, at the origin's socket, with a number of snapshots.
    Origin { snapshots: usize, chunk: u64 },
    /// The same with one snapshot, whose COW file was allocated and never written.
    OriginAllocated { chunk: u64 },
    /// The daemon, at the socket of a snapshot.
    Snapshot { chunk: u64 },
    /// The same with `defer-entries`.
    Deferred { chunk: u64 },
    /// qemu-storage-daemon with the raw file; with `iothread`, in a thread that polls.
    Raw { iothread: bool },
    /// qemu-storage-daemon with an empty qcow2 overlay of the raw file.
    Overlay { cluster: u64, subclusters: bool },
    /// qemu-storage-daemon with its filter that copies old data to another raw file
    /// before it is overwritten. The copy is not durable.
    CopyBeforeWrite,
    /// No back end: fio on the file, with io_uring.
    Fio,
    /// No back end: as many first writes as the disk can do, one I/O after the other, with
    /// what fio measures of each.
    Limit { snapshots: usize, chunk: u64 },
}

impl Program {
    pub fn name(self) -> String {
        match self {
            Self::Origin { snapshots: 0, .. } => "snapback".into(),
            Self::Origin { snapshots, chunk } => {
                format!("snapback, {snapshots} × {}K", chunk >> 10)
            }
            Self::OriginAllocated { chunk } => {
                format!("snapback, 1 × {}K, COW allocated only", chunk >> 10)
            }
            Self::Limit { snapshots, chunk } => {
                format!("limit of the disk, {snapshots} × {}K", chunk >> 10)
            }
            Self::Snapshot { chunk } => format!("snapback, snapshot {}K", chunk >> 10),
            Self::Deferred { chunk } => format!("snapback, deferred {}K", chunk >> 10),
            Self::Raw { iothread: false } => "qsd raw".into(),
            Self::Raw { iothread: true } => "qsd raw, iothread".into(),
            Self::Overlay {
                cluster,
                subclusters,
            } => {
                let sub = if subclusters { " of 4K" } else { "" };
                format!("qsd qcow2 {}K{sub}", cluster >> 10)
            }
            Self::CopyBeforeWrite => "qsd copy-before-write".into(),
            Self::Fio => "fio (no back end)".into(),
        }
    }

    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Origin { .. }
                | Self::OriginAllocated { .. }
                | Self::Snapshot { .. }
                | Self::Deferred { .. }
        )
    }

    /// The programs that it needs.
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Origin { .. }
            | Self::OriginAllocated { .. }
            | Self::Snapshot { .. }
            | Self::Deferred { .. } => &[],
            Self::Fio | Self::Limit { .. } => &["fio"],
            Self::Overlay { .. } => &["qemu-storage-daemon", "qemu-img"],
            Self::Raw { .. } | Self::CopyBeforeWrite => &["qemu-storage-daemon"],
        }
    }

    /// Bytes that a first write copies.
    fn unit(self) -> u64 {
        match self {
            Self::Origin { chunk, .. }
            | Self::OriginAllocated { chunk }
            | Self::Snapshot { chunk }
            | Self::Deferred { chunk } => chunk,
            Self::Overlay {
                subclusters: true, ..
            } => 4096,
            Self::Overlay { cluster, .. } => cluster,
            Self::CopyBeforeWrite => 64 << 10,
            Self::Raw { .. } | Self::Fio | Self::Limit { .. } => 0,
        }
    }
}

/// The folder with the disks of a file system.
pub struct Disks {
    folder: PathBuf,
    /// A folder in memory.
    memory: PathBuf,
    size: u64,
}

impl Disks {
    /// Makes the disk.
    pub fn new(parent: &Path, size: u64) -> Self {
        let folder = parent.join(format!("snapback-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)
            .unwrap_or_else(|e| panic!("cannot create {}: {e}", folder.display()));
        files::disk(&folder.join("disk.img"), size);
        let memory = PathBuf::from(format!(
            "/dev/shm/snapback-bench-run-{}",
            std::process::id()
        ));
        let _ = fs::create_dir(&memory); // without it nothing is deferred
        Self {
            folder,
            memory,
            size,
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    fn room_size(&self) -> u64 {
        self.size + self.size / 64 + (8 << 20)
    }

    /// A file with room for all chunks of the disk, written in full once.
    pub fn room(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        if !path.exists() {
            files::zeroes(&path, self.room_size());
        }
        path
    }

    /// Starts a program with fresh snapshots or overlays.
    pub fn start(&self, program: Program) -> Backend {
        let socket = self.path("bench.sock");
        let _ = fs::remove_file(&socket);
        let mut command = pinned(match program {
            _ if program.is_ours() => env!("CARGO_BIN_EXE_snapback"),
            _ => "qemu-storage-daemon",
        });
        match program {
            Program::Origin { snapshots, chunk } => {
                self.daemon(&mut command, snapshots, chunk, "");
            }
            Program::Snapshot { chunk } => self.daemon(&mut command, 1, chunk, ",socket="),
            Program::Deferred { chunk } => {
                self.daemon(&mut command, 1, chunk, ",defer-entries,socket=");
            }
            Program::OriginAllocated { chunk } => {
                self.daemon(&mut command, 0, chunk, "");
                let cow = self.path("allocated.img");
                files::allocated(&cow, self.room_size());
                let snapshot = format!("name=s,cow={},chunk-size={chunk}", text(&cow));
                command.args(["--snapshot", &snapshot]);
            }
            Program::Fio | Program::Limit { .. } => unreachable!("fio is not a back end"),
            _ => {
                command.args(self.blocks(program));
                let mut export = format!(
                    "vhost-user-blk,id=e,node-name=top,writable=on,num-queues=2,\
                     addr.type=unix,addr.path={}",
                    text(&socket)
                );
                if program == (Program::Raw { iothread: true }) {
                    command.args(["--object", "iothread,id=t"]);
                    export += ",iothread=t";
                }
                command.args(["--export", &export]);
            }
        }
        let log = fs::File::create(self.path("backend.log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.name()));
        let mut backend = Backend { child, socket };
        backend.wait_for_socket(&self.path("backend.log"));
        backend
    }

    /// Starts a program, and lets the load touch every chunk once.
    pub fn start_copied(&self, program: Program) -> Backend {
        let backend = self.start(program);
        if program.unit() > 0 {
            let job = Job {
                kind: Kind::Write,
                place: Place::OnceEvery(program.unit()),
                block: 4096,
                depth: 32,
                queues: 1,
                polls: true,
                time: Duration::ZERO,
            };
            load::run(&backend.socket, &job);
        }
        backend
    }

    /// `view` is what makes the first snapshot the served one, without its socket; if it is
    /// empty, the origin is served.
    fn daemon(&self, command: &mut Command, snapshots: usize, chunk: u64, view: &str) {
        self.forget_snapshots();
        let origin = if view.is_empty() {
            "bench.sock"
        } else {
            "origin.sock"
        };
        command
            // For records, if `/run` is no memory.
            .env("XDG_RUNTIME_DIR", &self.memory)
            .args(["serve", "--log-level", "warn", "--origin"])
            .arg(self.path("disk.img"))
            .arg("--socket-path")
            .arg(self.path(origin));
        for number in 1..=snapshots {
            let cow = self.room(&format!("room{number}.img"));
            files::blank(&cow);
            let mut snapshot = format!("name=s{number},cow={},chunk-size={chunk}", text(&cow));
            if !view.is_empty() {
                snapshot += &format!("{view}{}", self.text("bench.sock"));
            }
            command.args(["--snapshot", &snapshot]);
        }
    }

    /// Makes the disk one that never had a snapshot.
    pub fn forget_snapshots(&self) {
        let _ = fs::remove_file(self.path("disk.img.snapback"));
        for attribute in ["user.snapback", "user.snapback.origin"] {
            let _ = rustix::fs::removexattr(self.path("disk.img"), attribute);
        }
    }

    /// The block graph of qemu-storage-daemon; its root is called `top`.
    fn blocks(&self, program: Program) -> Vec<OsString> {
        let file = |node: &str, name: &str| {
            format!(
                "driver=file,node-name={node},filename={},aio=io_uring,cache.direct=on",
                self.text(name)
            )
        };
        let mut nodes = Vec::new();
        match program {
            Program::Overlay {
                cluster,
                subclusters,
            } => {
                let room = self.room("room1.img");
                self.make_overlay(&room, cluster, subclusters);
                nodes.push(file("disk", "disk.img"));
                nodes.push("driver=raw,node-name=base,file=disk".into());
                nodes.push(file("room", "room1.img"));
                nodes.push("driver=qcow2,node-name=top,file=room,backing=base".into());
            }
            Program::CopyBeforeWrite => {
                self.target();
                nodes.push(file("disk", "disk.img"));
                nodes.push("driver=raw,node-name=base,file=disk".into());
                nodes.push(file("old", "target.img"));
                nodes.push("driver=raw,node-name=target,file=old".into());
                nodes.push("driver=copy-before-write,node-name=top,file=base,target=target".into());
            }
            _ => {
                nodes.push(file("disk", "disk.img"));
                nodes.push("driver=raw,node-name=top,file=disk".into());
            }
        }
        nodes
            .into_iter()
            .flat_map(|node| ["--blockdev".into(), OsString::from(node)])
            .collect()
    }

    /// A written file of the disk's size.
    fn target(&self) {
        let path = self.path("target.img");
        if !path.exists() {
            files::zeroes(&path, self.size);
        }
    }

    /// Makes an empty overlay inside a file that has been written in full.
    pub fn make_overlay(&self, room: &Path, cluster: u64, subclusters: bool) {
        let small = self.path("overlay.qcow2");
        let options = format!(
            "cluster_size={cluster},extended_l2={}",
            if subclusters { "on" } else { "off" }
        );
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-o", &options])
            .arg("-b")
            .arg(self.path("disk.img"))
            .arg(&small)
            .status()
            .unwrap();
        assert!(status.success(), "qemu-img create failed");
        // Cluster tables must be empty, so the beginning is zeroed far enough for them.
        files::blank(room);
        files::overlay(&small, room);
        fs::remove_file(small).unwrap();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.memory);
    }
}

/// A command that runs on processor 0, if there are several.
pub fn pinned(program: &str) -> Command {
    let several = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    if !several {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]);
    command
}

/// A running back end; it is ended when it is dropped.
pub struct Backend {
    child: Child,
    pub socket: PathBuf,
}

impl Backend {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_for_socket(&mut self, log: &Path) {
        let start = Instant::now();
        while !self.socket.exists() {
            let ended = self.child.try_wait().unwrap().is_some();
            if ended || start.elapsed() > Duration::from_secs(60) {
                let log = fs::read_to_string(log).unwrap_or_default();
                panic!("the back end has no socket: {log}");
            }
            sleep(Duration::from_millis(5));
        }
        // It listens soon after it has made the socket.
        sleep(Duration::from_millis(50));
    }
}

impl Backend {
    /// Lets it end by itself, so that everything is in its files.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
