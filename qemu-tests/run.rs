//! Boot tests by `snapback run`: the guest says how they end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bench::{Bench, guest_images, tail};
use crate::daemon::PROGRAM;
use crate::disk::{MIB, Sums};
use crate::machine::kernel;

/// The guest says on its console whether its test has passed. `$0` is the console's log.
const SCRIPT: &str = r#""$@"; grep -q PASSED "$0""#;
const PATIENCE: Duration = Duration::from_secs(120);

/// A boot test under way.
struct BootTest<'a> {
    bench: &'a Bench,
    name: &'a str,
    run: Child,
}

impl Drop for BootTest<'_> {
    fn drop(&mut self) {
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

impl<'a> BootTest<'a> {
    fn start(bench: &'a Bench, name: &'a str) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(["run", "--keep", "on-failure", "--timeout", "4m"])
            .arg("--image")
            .arg(bench.path("golden.img"))
            .arg("--cow")
            .arg(bench.path(&format!("{name}.cow")))
            .args(["--", "sh", "-c", SCRIPT])
            .arg(bench.path(&format!("{name}.console")))
            .args(["qemu-system-x86_64", "-machine", "q35"])
            .args(["-accel", "tcg", "-cpu", "max", "-nodefaults"])
            .args(["-display", "none", "{memory=768M}", "{disk}"])
            .args(kernel(&guest_images().join("initramfs"), ""))
            .arg("-serial")
            .arg(format!("file:{}", bench.text(&format!("{name}.console"))))
            .arg("-chardev")
            .arg(format!(
                "socket,id=port,path={},server=on,wait=off",
                bench.text(&format!("{name}.port"))
            ))
            .args(["-serial", "chardev:port"])
            .stdin(Stdio::null());
        Self {
            bench,
            name,
            run: command.spawn().unwrap(),
        }
    }

    /// Has the guest run a command, with which it ends. Returns the exit status of the run.
    fn end_with(mut self, command: &str) -> Option<i32> {
        let path = self.bench.path(&format!("{}.port", self.name));
        let start = Instant::now();
        let mut port = loop {
            match UnixStream::connect(&path) {
                Ok(port) => break port,
                Err(e) => assert!(start.elapsed() < PATIENCE, "QEMU does not start: {e}"),
            }
            sleep(Duration::from_millis(50));
        };
        port.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lines = BufReader::new(port.try_clone().unwrap()).lines();
        let ready = lines.find(|line| line.as_ref().unwrap().starts_with("READY "));
        assert!(ready.is_some(), "{}", self.console());
        port.write_all(format!("1 {command}\n").as_bytes()).unwrap();
        let status = loop {
            if let Some(status) = self.run.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < 2 * PATIENCE, "{}", self.console());
            sleep(Duration::from_millis(50));
        };
        println!("{}: {status}", self.name);
        status.code()
    }

    fn console(&self) -> String {
        tail(&self.bench.path(&format!("{}.console", self.name)))
    }
}

#[test]
fn a_boot_test_keeps_the_changes_of_a_failure_and_drops_those_of_a_success() {
    let bench = Bench::new();
    let golden = bench.filled_disk("golden.img", 64 * MIB, 23);
    let before = Sums::of_file(&golden);
    let (failing, passing) = (
        BootTest::start(&bench, "failing"),
        BootTest::start(&bench, "passing"),
    );
    let change = |name: &str| {
        format!(
            "mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && echo I am {name} >/mnt/name && umount /mnt && sync"
        )
    };
    let end = |name: &str, word: &str| {
        let change = change(name);
        format!("{change}; echo {word} >/dev/ttyS0; sleep 1; poweroff -f")
    };
    assert_eq!(failing.end_with(&end("failing", "FAILED")), Some(1));
    assert_eq!(passing.end_with(&end("passing", "PASSED")), Some(0));

    Sums::of_file(&golden).assert_same(&before, "the golden image with what it was");
    assert!(!bench.path("passing.cow").exists());
    let full = bench.text("full.img");
    let snapback = |args: &[&str]| {
        let output = Command::new(PROGRAM).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let cow = bench.text("failing.cow");
    snapback(&["info", &cow]);
    snapback(&[
        "export",
        "--origin",
        golden.to_str().unwrap(),
        "--cow",
        &cow,
        &full,
    ]);
    let read = Command::new("debugfs")
        .args(["-R", "cat /name", &full])
        .output();
    assert_eq!(read.unwrap().stdout, b"I am failing\n");
}
