//! The units of the package under a real systemd, which is booted in a container on this system's
//! own `/usr`. Needs root and systemd-nspawn.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use super::world::run;

const CONFIG: &str = "\
origin = \"/share/vm/disk.img\"
socket-path = \"/run/snapback/vm/disk.sock\"
control = \"/run/snapback/vm/control.sock\"
";
/// Runs the script when the system is up, and ends the system.
const CHECK: &str = "\
[Unit]
After=basic.target systemd-journald.service
Requires=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c '/bin/bash /share/check.sh >/share/result 2>&1'
ExecStopPost=/bin/systemctl --no-block poweroff
TimeoutStartSec=300
";

fn unit(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let unit = fs::read_to_string(folder.join(name)).unwrap();
    unit.replace("/usr/bin/snapback", "/program/snapback")
}

#[test]
fn the_unit_serves_restarts_reloads_and_stops() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: a container needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let share = folder.path().join("share");
    let units = folder.path().join("units");
    let config = folder.path().join("config");
    for folder in [&share.join("vm"), &units, &config] {
        fs::create_dir_all(folder).unwrap();
    }
    let disk = File::create(share.join("vm/disk.img")).unwrap();
    disk.set_len(4 << 20).unwrap();
    fs::write(config.join("vm.toml"), CONFIG).unwrap();
    fs::write(share.join("check.sh"), include_str!("systemd.sh")).unwrap();
    fs::write(units.join("check.service"), CHECK).unwrap();
    for name in ["snapback@.service", "snapback@.socket"] {
        fs::write(units.join(name), unit(name)).unwrap();
    }
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    for name in [
        "debian/postinst",
        "debian/prerm",
        "snapback.sysusers",
        "snapback.tmpfiles",
    ] {
        let to = share.join(name.trim_start_matches("debian/"));
        fs::copy(packaging.join(name), to).unwrap();
    }
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    let program = program.parent().unwrap();
    let machine = format!("snapback-test-{}", std::process::id());
    let mut container = Command::new("timeout");
    container
        .args([
            "--kill-after=10",
            "300",
            "systemd-nspawn",
            "--quiet",
            "--boot",
        ])
        .args([
            "--directory=/",
            "--volatile=yes",
            "--register=no",
            "--keep-unit",
        ])
        .args(["--private-network", "--console=read-only"])
        .arg(format!("--machine={machine}"))
        .arg(format!("--bind={}:/share", share.display()))
        .arg(format!("--bind={}:/etc/snapback", config.display()))
        .arg(format!("--bind-ro={}:/program", program.display()))
        .arg(format!(
            "--bind-ro={}:/run/systemd/system.control",
            units.display()
        ))
        .args(["systemd.firstboot=off", "systemd.unit=check.service"])
        .stdin(Stdio::null());
    let (_, output, error) = run(&mut container);
    let result = fs::read_to_string(share.join("result"));
    let result = result.unwrap_or_else(|e| panic!("{e}: {output}{error}"));
    assert!(result.ends_with("PASSED\n"), "{result}\n{error}");
}
