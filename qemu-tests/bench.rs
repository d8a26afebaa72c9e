//! One test's place: a directory with its disks, sockets and logs, and the guest
//! images, which are built once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::disk;
use crate::guest::{Attach, Guest};

pub struct Bench {
    dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("snapback-")
            .tempdir()
            .unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text, for command lines.
    pub fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// A disk file in which every block has its own content.
    pub fn filled_disk(&self, name: &str, size: u64, seed: u64) -> PathBuf {
        let path = self.path(name);
        disk::make_filled(&path, size, seed);
        path
    }

    /// A disk file of zeros.
    pub fn blank_disk(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// `--snapshot` argument for a 96 MiB store `NAME.cow` served at `NAME.sock`.
    pub fn snapshot(&self, name: &str, chunk_size: &str) -> String {
        let (cow, socket) = (
            self.text(&format!("{name}.cow")),
            self.text(&format!("{name}.sock")),
        );
        format!("name={name},cow={cow},size=96M,chunk-size={chunk_size},socket={socket}")
    }

    /// `snapback serve` on `origin.img` with its view at `origin.sock`.
    pub fn serve(&self, more: &[&str]) -> Daemon {
        let origin = self.text("origin.img");
        let socket = self.text("origin.sock");
        let mut args = vec![
            "--origin",
            origin.as_str(),
            "--socket-path",
            socket.as_str(),
        ];
        args.extend(more);
        self.serve_only(&args)
    }

    /// `snapback serve` with just these options and a control socket.
    pub fn serve_only(&self, args: &[&str]) -> Daemon {
        Daemon::serve(self.dir.path(), args)
    }

    /// A guest with these disks as /dev/vda, /dev/vdb, ...
    pub fn boot(&self, name: &str, disks: &[Attach]) -> Guest {
        Guest::boot(self.dir.path(), name, disks, "")
    }

    /// A guest whose root file system is on its first disk.
    pub fn boot_from_disk(&self, name: &str, disks: &[Attach]) -> Guest {
        Guest::boot(self.dir.path(), name, disks, "root=/dev/vda")
    }

    /// Attaches the view that is served at `NAME.sock`.
    pub fn view(&self, name: &str) -> Attach {
        Attach::View(self.path(&format!("{name}.sock")))
    }
}

/// The directory with `vmlinuz`, `initramfs` and `root.img`; built if need be.
pub fn guest_images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/images/build-guest.sh");
        let output = Command::new(recipe)
            .env("CARGO_TARGET_DIR", target)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{recipe} failed (qemu-tests/install.sh installs what it needs):\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        target.join("guest")
    })
}

/// The last lines of a log, for a failing test's output.
pub fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
