//! Machines that are reset, with their firmware: the rollback happens once, before the
//! firmware reads the disk, where the firmware shows itself.

use std::ffi::OsString;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Rig, check_files, make_files, suspend, unmount, wake_up};
use crate::bench::{Bench, guest_images};
use crate::guest::Guest;
use crate::machine::kernel;

/// In both boot loaders' files on `boot.img`; the kernel's command line then has it.
const MARK: &[u8] = b"mark=before";
const LATER: &str = "mark=later.";

/// With a disk that firmware boots from.
fn bootable() -> Bench {
    let bench = Bench::new();
    fs::copy(guest_images().join("boot.img"), bench.path("origin.img")).unwrap();
    bench
}

/// The socket of the monitor that is the daemon's.
fn monitor(bench: &Bench) -> String {
    bench.text("monitor.qmp")
}

/// QEMU's options for UEFI firmware with variables of its own.
fn uefi(bench: &Bench) -> Vec<OsString> {
    let variables = bench.path("ovmf-vars.fd");
    fs::copy(guest_images().join("ovmf-vars.fd"), &variables).unwrap();
    let code = guest_images().join("ovmf-code.fd");
    let drive = |options, path: &std::path::Path| {
        let text = format!("if=pflash,format=raw,{options}file={}", path.display());
        ["-drive".into(), OsString::from(text)]
    };
    [drive("readonly=on,", &code), drive("", &variables)].concat()
}

/// The same for firmware that does not look at the disk, as QEMU brings the kernel.
fn qboot() -> Vec<OsString> {
    direct(vec!["-bios".into(), "qboot.rom".into()])
}

fn direct(mut firmware: Vec<OsString>) -> Vec<OsString> {
    firmware.extend(kernel(&guest_images().join("initramfs"), ""));
    firmware
}

impl Rig {
    /// These options and a monitor for the daemon: the test uses the guest's own.
    fn with_monitor(&self, mut boot: Vec<OsString>) -> Vec<OsString> {
        boot.push("-qmp".into());
        boot.push(format!("unix:{},server=on,wait=off", monitor(&self.bench)).into());
        boot
    }

    fn start(&self, name: &str, boot: &[OsString]) -> Guest {
        Guest::start(&self.bench.path(""), name, &[self.view()], boot)
    }

    /// Writes another mark where the boot loaders read theirs.
    fn mark_later(&self, guest: &mut Guest) {
        let disk = fs::read(&self.origin).unwrap();
        let places = disk.windows(MARK.len()).enumerate();
        let places: Vec<usize> = places.filter(|p| p.1 == MARK).map(|p| p.0).collect();
        assert_eq!(places.len(), 2, "marks on the disk");
        for place in places {
            guest.run(&format!(
                "printf {LATER} | dd of=/dev/vda bs=1 seek={place} conv=notrunc,fsync 2>/dev/null"
            ));
        }
    }

    /// The loader that started this guest read the old disk.
    fn assert_booted_before(&self, guest: &mut Guest) {
        assert_eq!(mark(guest).as_bytes(), MARK);
        self.assert_rolled_back(guest);
    }
}

/// The mark of the loader's file that the guest was started with.
fn mark(guest: &mut Guest) -> String {
    let line = guest.run("cat /proc/cmdline");
    let mark = line.split_whitespace().find(|w| w.starts_with("mark="));
    println!("booted with {mark:?}");
    mark.unwrap_or_default().to_owned()
}

#[test]
fn a_reboot_under_seabios_boots_the_old_disk() {
    let rig = Rig::on(bootable(), &[]);
    let mut guest = rig.start("g", &[]);
    assert_eq!(mark(&mut guest).as_bytes(), MARK);
    rig.mark_later(&mut guest);
    guest.reset();
    assert_eq!(mark(&mut guest), LATER, "the loader does not read the mark");

    rig.ask_for_rollback();
    guest.send("reboot -f");
    guest.wait_boot();
    rig.assert_booted_before(&mut guest);
    rig.end(guest);
}

#[test]
fn a_reboot_under_ovmf_boots_the_old_disk() {
    let rig = Rig::on(bootable(), &[]);
    let mut guest = rig.start("g", &uefi(&rig.bench));
    assert_eq!(mark(&mut guest).as_bytes(), MARK);
    rig.mark_later(&mut guest);

    rig.ask_for_rollback();
    guest.send("reboot -f");
    guest.wait_boot();
    rig.assert_booted_before(&mut guest);
    rig.end(guest);
}

#[test]
fn a_reboot_with_qemus_kernel_is_seen_by_seabios_look_at_the_disk() {
    let rig = Rig::new();
    let mut guest = rig.guest_with_files();
    rig.ask_for_rollback();
    unmount(&mut guest);
    guest.send("reboot -f");
    guest.wait_boot();
    rig.assert_rolled_back(&mut guest);

    // What is written afterwards stays over the next reset.
    make_files(&mut guest);
    guest.reset();
    guest.run("mount /dev/vda /mnt");
    check_files(&mut guest);
    assert_eq!(rig.events("handover").len(), 1);
}

/// Cloud-hypervisor and QEMU's microvm start their guests so, too.
#[test]
fn a_reset_without_firmware_is_not_told_from_a_drivers_restart_unless_insisted_on() {
    let rig = Rig::new();
    let mut guest = rig.start("g", &qboot());
    make_files(&mut guest);
    rig.ask_for_rollback();
    unmount(&mut guest);
    rig.still_waits("driver-restart", || guest.reset());
    guest.run("mount /dev/vda /mnt");
    check_files(&mut guest);
    unmount(&mut guest);

    rig.daemon.run(&["rollback", "before", "--at-reset=any"]);
    rig.assert_pending();
    rig.reset_and_end(guest);
}

/// A new guest does not go on with what an old one knows, with firmware or without.
#[test]
fn a_machine_without_firmware_that_is_started_again_starts_with_the_old_disk() {
    let rig = Rig::new();
    let mut guest = rig.start("g", &qboot());
    make_files(&mut guest);
    rig.ask_for_rollback();
    unmount(&mut guest);
    guest.quit();
    rig.assert_pending();
    let mut guest = rig.start("next", &qboot());
    rig.assert_rolled_back(&mut guest);
    rig.end(guest);
}

#[test]
fn a_reset_under_ovmf_that_does_not_look_at_the_disk_is_told_by_qemus_monitor() {
    let rig = Rig::new();
    let monitor = monitor(&rig.bench);
    let boot = rig.with_monitor(direct(uefi(&rig.bench)));
    let mut guest = rig.start("g", &boot);
    make_files(&mut guest);
    rig.ask_for_rollback();
    unmount(&mut guest);
    rig.still_waits("driver-restart", || guest.reset());

    rig.daemon
        .run(&["rollback", "before", "--at-reset", "--qmp", &monitor]);
    rig.assert_pending();
    guest.run("mount /dev/vda /mnt");
    // The monitor tells of no reset, though QEMU resets its devices when a guest wakes up.
    rig.still_waits("driver-restart", || {
        suspend(&mut guest);
        wake_up(&mut guest);
        check_files(&mut guest);
    });
    unmount(&mut guest);
    guest.send("reboot -f");
    guest.wait_boot();
    rig.assert_rolled_back(&mut guest);
    rig.end(guest);
}

#[test]
fn with_qemus_monitor_one_command_rolls_a_writing_guest_back() {
    let rig = Rig::new();
    let monitor = monitor(&rig.bench);
    let boot = rig.with_monitor(direct(Vec::new()));
    let mut guest = rig.start("g", &boot);
    make_files(&mut guest);
    guest.run("(while :; do dd if=/dev/urandom of=/mnt/noise bs=1M count=8 conv=fsync; done) >/dev/null 2>&1 &");
    let answer = rig.daemon.run(&["rollback", "before", "--qmp", &monitor]);
    assert!(answer.contains("the guest was reset and runs"), "{answer}");
    guest.wait_boot();
    rig.assert_rolled_back(&mut guest);
    rig.end(guest);
}

/// QEMU's reset of a machine that is suspended to RAM makes its firmware wake the old
/// system up, which still has the old disk in memory.
#[test]
fn a_guest_that_is_suspended_to_ram_is_not_reset_until_it_is_awake() {
    let rig = Rig::new();
    let monitor = monitor(&rig.bench);
    let boot = rig.with_monitor(direct(Vec::new()));
    let mut guest = rig.start("g", &boot);
    make_files(&mut guest);

    suspend(&mut guest);
    let (status, _, error) = rig
        .daemon
        .try_run(&["rollback", "before", "--qmp", &monitor]);
    assert!(!status.success(), "a guest that sleeps was reset");
    assert!(error.contains("system_wakeup"), "{error}");
    assert_eq!(rig.events("handover").len(), 0);
    wake_up(&mut guest);
    check_files(&mut guest);
    unmount(&mut guest);
    rig.daemon.run(&["rollback", "before", "--qmp", &monitor]);
    guest.wait_boot();
    rig.assert_rolled_back(&mut guest);
    rig.end(guest);
}

/// The daemon knows the monitor from its start.
#[test]
fn with_qemus_monitor_a_guest_in_its_boot_loader_boots_the_old_disk() {
    let bench = bootable();
    let monitor = monitor(&bench);
    let rig = Rig::on(bench, &["--qmp", &monitor]);
    let mut guest = rig.start("g", &rig.with_monitor(Vec::new()));
    rig.mark_later(&mut guest);
    rig.stop_in_loader(&mut guest);
    let answer = rig.daemon.run(&["rollback", "before"]);
    assert!(answer.contains("paused as it was before"), "{answer}");
    guest.qmp.command("cont");
    guest.wait_boot();
    rig.assert_booted_before(&mut guest);
    rig.end(guest);
}

#[test]
fn a_second_reset_in_the_boot_loader_rolls_back_no_second_time() {
    let rig = Rig::on(bootable(), &[]);
    let mut guest = rig.start("g", &[]);
    rig.mark_later(&mut guest);
    rig.ask_for_rollback();
    rig.stop_in_loader(&mut guest);
    assert_eq!(rig.daemon.status().rollback_at_reset, None);
    assert_eq!(rig.events("handover").len(), 1);
    guest.qmp.command("system_reset");
    guest.qmp.command("cont");
    guest.wait_boot();
    rig.assert_booted_before(&mut guest);
    rig.end(guest);
}

#[test]
fn a_rollback_that_is_asked_for_in_the_boot_loader_waits_for_the_next_reset() {
    let rig = Rig::on(bootable(), &[]);
    let mut guest = rig.start("g", &[]);
    rig.mark_later(&mut guest);
    rig.stop_in_loader(&mut guest);
    let answer = rig.daemon.run(&["rollback", "before"]);
    assert!(answer.contains("boot loader"), "{answer}");
    rig.assert_pending();
    // This system was loaded from the present disk: it may not find itself on the old one.
    rig.still_waits("boot", || {
        guest.qmp.command("cont");
        guest.wait_boot();
    });
    assert_eq!(mark(&mut guest), LATER);
    guest.reset();
    rig.assert_booted_before(&mut guest);
    rig.end(guest);
}

impl Rig {
    /// Resets the machine and stops it while its boot loader reads the disk. A machine
    /// that was too fast on a busy host is reset again: that one has no rollback left.
    fn stop_in_loader(&self, guest: &mut Guest) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let resets = self.events("guest-reset").len();
            let boots = self.events("driver-started").len();
            guest.qmp.command("system_reset");
            while self.events("guest-reset").len() == resets {
                assert!(Instant::now() < deadline, "no reset is seen");
                sleep(Duration::from_millis(20));
            }
            guest.qmp.command("stop");
            if self.events("driver-started").len() == boots {
                return;
            }
            guest.qmp.command("cont");
            assert!(Instant::now() < deadline, "the boot loader is too fast");
        }
    }
}
