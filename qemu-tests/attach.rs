//! Guests come, write, pause, reboot, leave and come back on an origin view.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::bench::{Bench, guest_images};
use crate::daemon::PROGRAM;
use crate::disk::{MIB, Sums};
use crate::guest::Attach;

const MAKE_FILES: &str = "mkdir -p /mnt/d && for i in 1 2 3 4 5 6 7 8; do \
     dd if=/dev/urandom of=/mnt/d/$i bs=64k count=$((i * 4)) 2>/dev/null || exit 1; done; \
     cd /mnt && sha256sum d/* >list && sync";
const CHECK_FILES: &str = "cd /mnt && sha256sum -c list | grep -c ': OK'";

/// What takes longer does not happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// `e2fsck` of a disk file on the host: any complaint is a failure.
fn check_file_system(path: &Path) {
    // Not in every user's PATH.
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new("e2fsck")
        .env("PATH", search)
        .args(["-f", "-n"])
        .arg(path)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    println!(
        "e2fsck -fn of the origin on the host: {}, {}",
        output.status,
        report.lines().last().unwrap_or("")
    );
    assert!(output.status.success(), "{report}");
}

#[test]
fn a_file_system_on_the_origin_view_is_whole_in_guest_and_on_host() {
    let bench = Bench::new();
    let origin = bench.blank_disk("origin.img", 128 * MIB);
    let daemon = bench.serve(&[]);
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
    guest.run(MAKE_FILES);
    guest.run("umount /mnt && e2fsck -fn /dev/vda");
    guest.run("mount -o ro /dev/vda /mnt");
    let whole = guest.run(CHECK_FILES);
    println!(
        "files whose sha256 is right in the guest: {} of 8",
        whole.trim()
    );
    assert_eq!(whole.trim(), "8");
    guest.run("cd / && umount /mnt");
    let seen = guest.sums("/dev/vda");
    guest.assert_no_io_error();
    guest.quit();
    seen.assert_same(
        &Sums::of_file(&origin),
        "the view in the guest with the origin file",
    );
    daemon.terminate();
    check_file_system(&origin);
}

#[test]
fn a_reboot_finds_what_was_flushed() {
    let bench = Bench::new();
    bench.blank_disk("origin.img", 128 * MIB);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
    guest.run(MAKE_FILES);
    for how in ["reboot -f", "echo b >/proc/sysrq-trigger"] {
        guest.send(how);
        guest.wait_boot();
        guest.run("mount /dev/vda /mnt");
        let whole = guest.run(CHECK_FILES);
        println!("after `{how}`: {} of 8 files are right", whole.trim());
        assert_eq!(whole.trim(), "8");
    }
    guest.run("cd / && umount /mnt && e2fsck -fn /dev/vda");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    check_file_system(&bench.path("origin.img"));
}

#[test]
fn a_front_end_may_leave_or_die_and_another_comes() {
    let bench = Bench::new();
    bench.blank_disk("origin.img", 128 * MIB);
    let snapshot = bench.snapshot("s1", "4K");
    let daemon = bench.serve(&["--snapshot", &snapshot]);
    let attached = || {
        let views = daemon.status().views;
        views
            .iter()
            .any(|view| view.snapshot.is_none() && view.attached)
    };
    assert!(
        !attached(),
        "the status shows a front end before there is one"
    );

    let mut first = bench.boot("first", &[bench.view("origin")]);
    assert!(attached(), "the status shows no front end");
    first.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
    first.run(MAKE_FILES);
    first.quit();
    let left = Instant::now();
    while attached() {
        let waited = left.elapsed();
        assert!(
            waited < PATIENCE,
            "the status shows a front end that has left"
        );
        std::thread::sleep(Duration::from_millis(20));
    }

    let mut second = bench.boot("second", &[bench.view("origin")]);
    second.run("mount /dev/vda /mnt");
    assert_eq!(second.run(CHECK_FILES).trim(), "8");
    second.run("(while :; do dd if=/dev/urandom of=/mnt/noise bs=1M count=8 conv=fsync; done) >/dev/null 2>&1 &");
    second.run("sleep 1");
    second.kill();

    let mut third = bench.boot("third", &[bench.view("origin")]);
    third.run("mount /dev/vda /mnt");
    let whole = third.run(CHECK_FILES);
    println!(
        "files that the first guest wrote and the third reads right: {} of 8",
        whole.trim()
    );
    assert_eq!(whole.trim(), "8");
    third.run("cd / && umount /mnt && e2fsck -fn /dev/vda");
    third.assert_no_io_error();
    third.quit();
    daemon.terminate();
    check_file_system(&bench.path("origin.img"));
}

#[test]
fn a_guest_boots_from_the_view_and_from_its_rolled_back_root() {
    let bench = Bench::new();
    std::fs::copy(guest_images().join("root.img"), bench.path("origin.img")).unwrap();
    let daemon = bench.serve(&[]);
    let mut guest = bench.boot_from_disk("g", &[bench.view("origin")]);
    let root = guest.run("grep ' / ' /proc/mounts | grep ext4");
    println!("root of the guest: {}", root.trim());
    guest.run("echo before >/etc/release && sync");
    let cow = bench.text("before.cow");
    daemon.run(&["snapshot", "before", "--cow", &cow, "--size", "96M"]);

    guest.run(
        "echo after >/etc/release; rm -r /bin/e2fsck /bin/mke2fs /modules /lib/libc.so.6; sync",
    );
    guest.run("dd if=/dev/zero of=/junk bs=1M count=16 conv=fsync");
    assert_ne!(
        guest.try_run("dmsetup version").0,
        0,
        "the wreck is not wrecked"
    );
    daemon.run(&["rollback", "before", "--at-reset"]);
    guest.reset();

    let release = guest.run("cat /etc/release");
    println!(
        "/etc/release after the rollback and the reset: {}",
        release.trim()
    );
    assert_eq!(release.trim(), "before");
    guest.run("dmsetup version && test -e /bin/e2fsck && test ! -e /junk");
    daemon.wait_merged();
    guest.run("mount -o remount,ro / && sync");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    check_file_system(&bench.path("origin.img"));
}

/// `server=on,wait=on`: QEMU does not start before it is connected.
#[test]
fn a_qemu_that_listens_is_served_and_so_is_the_next_one() {
    let bench = Bench::new();
    bench.blank_disk("origin.img", 128 * MIB);
    let (origin, socket) = (bench.text("origin.img"), bench.text("q.sock"));
    let daemon = bench.serve_only(&["--origin", &origin, "--connect", &socket]);
    let listening = || [Attach::Listening(bench.path("q.sock"))];
    let mut guest = bench.boot("g", &listening());
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
    guest.run(MAKE_FILES);
    guest.send("reboot -f");
    guest.wait_boot();
    guest.run("mount /dev/vda /mnt");
    assert_eq!(guest.run(CHECK_FILES).trim(), "8", "after a reboot");
    guest.run("cd / && umount /mnt");
    guest.quit();
    let mut guest = bench.boot("g2", &listening());
    guest.run("mount /dev/vda /mnt");
    assert_eq!(guest.run(CHECK_FILES).trim(), "8", "in another machine");
    guest.run("cd / && umount /mnt && e2fsck -fn /dev/vda");
    guest.assert_no_io_error();
    guest.quit();
    daemon.terminate();
    check_file_system(&bench.path("origin.img"));
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The firmware waits for its first sector; with private memory, for ever.
#[test]
fn a_guest_whose_memory_is_private_to_qemu_is_noticed_and_no_other_is() {
    let bench = Bench::new();
    bench.blank_disk("origin.img", 16 * MIB);
    let daemon = bench.serve(&[]);
    let socket = bench.text("origin.sock");
    let log = || std::fs::read_to_string(bench.path("snapback.log")).unwrap();
    let mut asked = 0;
    for (memory, is_shared) in [
        ("memory-backend-memfd,share=on", true),
        ("memory-backend-memfd,share=off", false),
        ("memory-backend-ram", false),
    ] {
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "128M", "-display", "none"])
            .args(["-nodefaults", "-machine", "q35,memory-backend=m"])
            .args(["-object", &format!("{memory},id=m,size=128M")])
            .args(["-chardev", &format!("socket,id=d,path={socket}")])
            .args(["-device", "vhost-user-blk-pci,chardev=d,bootindex=1"])
            .spawn()
            .unwrap();
        let mut qemu = Killed(qemu);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = &daemon.status().views[0];
            let is_hinted = view.hint.as_deref().is_some_and(|h| h.contains("share=on"));
            let hinted = is_hinted || log().matches("share=on missing").count() > asked;
            if hinted || (is_shared && view.io.reads > 0) {
                assert_eq!(hinted, !is_shared, "{memory}: {}", log());
                println!("{memory}: the daemon asks for share=on: {hinted}");
                break;
            }
            assert_eq!(qemu.0.try_wait().unwrap(), None, "{memory}");
            assert!(Instant::now() < deadline, "{memory}: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(qemu);
        while daemon.status().views[0].attached {
            assert!(Instant::now() < deadline, "{memory}: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(daemon.status().views[0].hint, None);
        asked += usize::from(!is_shared);
        // Said once for each.
        assert_eq!(log().matches("share=on missing").count(), asked);
    }
    daemon.terminate();
}

/// `--fd` with a connection that somebody else has made to QEMU.
#[test]
fn a_connection_to_qemu_is_served_that_was_made_before() {
    let bench = Bench::new();
    bench.blank_disk("origin.img", 128 * MIB);
    let origin = bench.text("origin.img");
    let listener = UnixListener::bind(bench.path("origin.sock")).unwrap();
    let runtime = bench.path("");
    let daemon = std::thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 </dev/null", PROGRAM])
            .args(["--blk-file", &origin, "--fd", "3"])
            .env("XDG_RUNTIME_DIR", &runtime)
            .stdin(OwnedFd::from(connection))
            .spawn()
            .unwrap()
    });
    let mut guest = bench.boot("g", &[bench.view("origin")]);
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
    guest.run(MAKE_FILES);
    assert_eq!(guest.run(CHECK_FILES).trim(), "8");
    guest.run("cd / && umount /mnt && e2fsck -fn /dev/vda");
    guest.assert_no_io_error();
    guest.quit();
    // It was the only one that the daemon was started for.
    let status = daemon.join().unwrap().wait().unwrap();
    assert!(status.success(), "{status}");
    check_file_system(&bench.path("origin.img"));
}
