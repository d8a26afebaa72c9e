//! A real systemd, booted in a container on this system's own files. Needs root and systemd-nspawn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs the script when the system is up, and ends the system.
const CHECK: &str = "\
[Unit]
After=basic.target systemd-journald.service
Requires=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c '/bin/bash /share/check.sh >/share/result 2>&1'
ExecStopPost=/bin/systemctl --no-block poweroff
TimeoutStartSec=600
";

const LANDLOCK: &str = "landlock_create_ruleset landlock_add_rule landlock_restrict_self";

/// The system's files in the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// `/usr` is read-only; the rest is empty.
    Usr,
    /// All of the root file system, with changes that are lost at the end.
    Changeable,
}

pub struct Container {
    folder: tempfile::TempDir,
}

impl Container {
    /// A container that will run `script`; `None` without the rights for one.
    pub fn new(script: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: a container needs root");
            return None;
        }
        let container = Self {
            folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        };
        for folder in ["root", "share", "units"] {
            fs::create_dir(container.path(folder)).unwrap();
        }
        fs::write(container.share("check.sh"), script).unwrap();
        fs::write(container.path("units/check.service"), CHECK).unwrap();
        Some(container)
    }

    /// In the folder of this container, outside of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file that the container has in `/share`.
    pub fn share(&self, name: &str) -> PathBuf {
        self.path("share").join(name)
    }

    /// A unit of the container.
    pub fn unit(&self, name: &str, text: &str) {
        fs::write(self.path("units").join(name), text).unwrap();
    }

    /// What boots it, and returns when the script has ended. `binds`: more folders, from outside to
    /// inside.
    pub fn boot(&self, files: Files, binds: &[(&Path, &str)]) -> Command {
        let root = self.path("root");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "600"]);
        if files == Files::Changeable {
            // `/` itself is refused.
            let mount = "mount --bind / \"$0\" && exec \"$@\"";
            command.args(["unshare", "--mount", "sh", "-c", mount]);
            command.arg(&root);
        }
        command.args(["systemd-nspawn", "--quiet", "--boot"]);
        match files {
            Files::Usr => command.args(["--directory=/", "--volatile=yes"]),
            Files::Changeable => command
                .arg(format!("--directory={}", root.display()))
                .arg("--volatile=overlay"),
        };
        let machine = format!("snapback-test-{}-{}", std::process::id(), files as u8);
        command
            .args(["--register=no", "--keep-unit", "--private-network"])
            .arg("--console=read-only")
            // As outside of a container.
            .arg(format!("--system-call-filter={LANDLOCK}"))
            .arg(format!("--machine={machine}"))
            .arg(format!("--bind={}:/share", self.path("share").display()));
        for (from, to) in binds {
            command.arg(format!("--bind={}:{to}", from.display()));
        }
        command
            .arg(format!(
                "--bind-ro={}:/run/systemd/system.control",
                self.path("units").display()
            ))
            .args(["systemd.firstboot=off", "systemd.unit=check.service"])
            .stdin(Stdio::null());
        command
    }

    /// Panics unless the script has come to its end. `output`: what the container printed.
    pub fn passed(&self, output: &str) {
        let result = fs::read_to_string(self.share("result"));
        let result = result.unwrap_or_else(|e| panic!("{e}: {output}"));
        assert!(result.ends_with("PASSED\n"), "{result}\n{output}");
    }
}
