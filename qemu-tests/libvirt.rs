//! README's recipe for libvirt, and the tables of docs/libvirt.md, with a libvirt of the test's
//! own: in namespaces, with its own configuration, sockets and state.
//!
//! QEMU runs as the user `libvirt-qemu`, so the guest has its disk only because of
//! `--socket-group`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bench::{Bench, guest_images, tail};
use crate::daemon::Daemon;
use crate::disk::Sums;
use crate::guest::Guest;

const DOMAIN: &str = include_str!("../packaging/libvirt.xml");
const README: &str = include_str!("../README.md");
const ROLLBACK: &str = include_str!("../docs/rollback.md");
const GUIDE: &str = include_str!("../docs/libvirt.md");

/// Ends with all that it started when its first process is killed. `sh` takes care of the
/// processes that lose their parents.
const INSTANCE: &str = r#"set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
for folder in /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run; do
    mkdir -p $folder
    mount -t tmpfs -o mode=755 private $folder
done
mkdir /run/libvirt
cat >/etc/libvirt/qemu.conf
virtlogd &
libvirtd &
wait
"#;

/// A libvirt that nobody else sees.
struct Libvirt {
    unshare: Child,
    /// The first process in its namespaces.
    inside: String,
    log: PathBuf,
}

impl Libvirt {
    fn start(bench: &Bench) -> Self {
        let configuration = bench.path("qemu.conf");
        fs::write(&configuration, block(GUIDE, "ini", "cgroup_controllers")).unwrap();
        let log = bench.path("libvirt.log");
        let output = File::create(&log).unwrap();
        let unshare = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", INSTANCE])
            .stdin(File::open(configuration).unwrap())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut libvirt = Self {
            unshare,
            inside: String::new(),
            log,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let process = libvirt.unshare.id();
        let children = format!("/proc/{process}/task/{process}/children");
        loop {
            libvirt.inside = fs::read_to_string(&children).unwrap().trim().to_owned();
            if !libvirt.inside.is_empty() && libvirt.ask("list --all").0 {
                return libvirt;
            }
            assert!(
                Instant::now() < deadline,
                "libvirt does not answer (qemu-tests/install.sh installs it): {}",
                tail(&libvirt.log)
            );
            sleep(Duration::from_millis(100));
        }
    }

    /// Whether virsh did it, and what it said; its arguments are one line.
    fn ask(&self, line: &str) -> (bool, String) {
        let output = Command::new("timeout")
            .args(["90", "nsenter", "--mount", "--pid", "-t", &self.inside])
            .args(["virsh", "-c", "qemu:///system"])
            .args(line.split(' '))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        (output.status.success(), said)
    }

    #[track_caller]
    fn virsh(&self, line: &str) -> String {
        println!("$ virsh {line}");
        let (done, said) = self.ask(line);
        assert!(done, "virsh {line}: {said}\n{}", tail(&self.log));
        said
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// The code block of a document that has `word` in it, without its fence.
fn block<'a>(document: &'a str, language: &str, word: &str) -> &'a str {
    let fence = format!("```{language}\n");
    let blocks = document.split(fence.as_str()).skip(1);
    let mut blocks = blocks.map(|rest| rest.split("```").next().unwrap());
    let found = blocks.find(|block| block.contains(word));
    found.unwrap_or_else(|| panic!("no block of {language} with {word}"))
}

/// README's domain, emulated, with less memory, here, and with the monitor of docs/rollback.md and
/// serial ports to speak to the guest.
fn domain(bench: &Bench) -> String {
    let monitor = block(ROLLBACK, "xml", "snapback.qmp");
    let ports = "\
    <serial type='file'><source path='/run/vm/guest.console'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='/run/vm/guest.port'/><target port='1'/></serial>
  </devices>";
    let with_ports = format!(
        "{ports}\n{}",
        monitor.replace(
            "</qemu:commandline>",
            "<qemu:arg value='-qmp'/><qemu:arg value='unix:/run/vm/guest.qmp,server=on,wait=off'/>\n\
             </qemu:commandline>"
        )
    );
    let namespace = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'";
    assert!(
        ROLLBACK.contains(namespace),
        "docs/rollback.md: {namespace}"
    );
    let mut domain = DOMAIN.to_owned();
    for (from, to) in [
        (
            "<domain type='kvm'>",
            format!("<domain type='qemu' {namespace}>"),
        ),
        (
            "<memory unit='MiB'>4096<",
            "<memory unit='MiB'>768<".to_owned(),
        ),
        ("  </devices>", with_ports),
    ] {
        assert_eq!(domain.matches(from).count(), 1, "{from} in the domain");
        domain = domain.replace(from, &to);
    }
    domain.replace("/run/vm", &folder(bench))
}

/// In the place of `/run/vm`.
fn folder(bench: &Bench) -> String {
    let path = bench.text("");
    path.trim_end_matches('/').to_owned()
}

/// This test needs the superuser, as does a libvirt that runs QEMU as another user. Returns true
/// once it has run through sudo.
fn ran_through_sudo(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let status = Command::new("sudo")
        .args(["-n", "-E"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .status();
    let status = status.expect("sudo is there: libvirt needs the superuser");
    assert!(status.success(), "as root: {status}");
    true
}

/// All of the disk.
const WRECK: &str = "dd if=/dev/zero of=/dev/vda bs=1M count=64 oflag=direct 2>/dev/null";

#[test]
fn readmes_domain_is_rolled_back_and_keeps_its_disk_over_all_that_libvirt_does() {
    if ran_through_sudo(
        "libvirt::readmes_domain_is_rolled_back_and_keeps_its_disk_over_all_that_libvirt_does",
    ) {
        return;
    }
    assert!(
        README.contains(&format!("```xml\n{DOMAIN}```")),
        "README has another domain than packaging/libvirt.xml"
    );
    let bench = Bench::new();
    let origin = bench.path("origin.img");
    fs::copy(guest_images().join("boot.img"), &origin).unwrap();
    // Others can pass, as through /run/vm, and QEMU makes its sockets here.
    fs::set_permissions(bench.path(""), Permissions::from_mode(0o777)).unwrap();
    let before = Sums::of_file(&origin);
    let (origin, socket) = (bench.text("origin.img"), bench.text("disk.sock"));
    let served = ["--origin", &origin, "--socket-path", &socket];
    let daemon = bench.serve_only(&[&served[..], &["--socket-group", "libvirt-qemu"]].concat());
    let take = |daemon: &Daemon, name: &str| {
        let cow = bench.text(&format!("{name}.cow"));
        daemon.run(&["snapshot", name, "--cow", &cow, "--size", "96M"]);
    };
    take(&daemon, "before");

    let libvirt = Libvirt::start(&bench);
    let xml = bench.path("domain.xml");
    fs::write(&xml, domain(&bench)).unwrap();
    libvirt.virsh(&format!("define --validate {}", xml.display()));
    libvirt.virsh("start vm1");
    let mut guest = Guest::started_elsewhere(&bench.path(""), "guest");
    guest.wait_boot();
    let same = |guest: &mut Guest, when: &str| {
        let seen = guest.sums("/dev/vda");
        seen.assert_same(&before, &format!("the disk {when} with the one before"));
    };
    same(&mut guest, "at the start");
    let queues = guest.run("ls -d /sys/block/vda/mq/*");
    assert_eq!(queues.lines().count(), 2, "{queues}");

    what_libvirt_refuses(&libvirt);
    what_apparmor_lacks(&libvirt, &bench);

    guest.run(WRECK);
    daemon.run(&["rollback", "before"]);
    libvirt.virsh("reset vm1");
    guest.wait_boot();
    same(&mut guest, "after the rollback");
    daemon.wait_merged();
    // With the monitor of docs/rollback.md, in one command.
    take(&daemon, "again");
    guest.run(WRECK);
    daemon.run(&["rollback", "again", "--qmp", &bench.text("snapback.qmp")]);
    guest.wait_boot();
    same(&mut guest, "after the rollback by monitor");
    daemon.wait_merged();

    // The next daemon knows the group.
    take(&daemon, "last");
    daemon.terminate();
    let daemon = bench.serve_only(&["--origin", &origin]);
    same(&mut guest, "after a restart of the daemon");
    what_libvirt_does(&libvirt, &bench, &mut guest, &same);
    daemon.run(&["resize", "128M"]);
    guest.run(&until("[ $(cat /sys/block/vda/size) = 262144 ]"));
    guest.assert_no_io_error();
    libvirt.virsh("destroy vm1");
    drop(guest);
    daemon.terminate();
}

/// A shell command that waits for `condition`.
fn until(condition: &str) -> String {
    format!("for i in $(seq 300); do {condition} && exit 0; sleep 0.1; done; exit 1")
}

/// Each row of the table in docs/libvirt.md.
fn what_libvirt_refuses(libvirt: &Libvirt) {
    let mut rows = 0;
    for line in GUIDE.lines().filter(|line| line.starts_with("| `virsh ")) {
        let cells: Vec<&str> = line
            .split('|')
            .map(|c| c.trim().trim_matches('`'))
            .collect();
        let command = cells[1].strip_prefix("virsh ").unwrap();
        println!("$ virsh {command}");
        let (done, said) = libvirt.ask(command);
        assert!(!done && said.contains(cells[2]), "virsh {command}: {said}");
        rows += 1;
    }
    assert!(rows >= 12, "{rows} rows in the table of docs/libvirt.md");
}

/// The profile that libvirt would write with AppArmor, as docs/libvirt.md says.
fn what_apparmor_lacks(libvirt: &Libvirt, bench: &Bench) {
    let domain = libvirt.virsh("dumpxml vm1");
    let (_, uuid) = domain.split_once("<uuid>").unwrap();
    let (uuid, _) = uuid.split_once("</uuid>").unwrap();
    let description = bench.path("defined.xml");
    fs::write(&description, &domain).unwrap();
    let output = Command::new("/usr/lib/libvirt/virt-aa-helper")
        .args(["--create", "--dryrun", "-u", &format!("libvirt-{uuid}")])
        .stdin(File::open(description).unwrap())
        .output()
        .unwrap();
    let profile = [output.stdout, output.stderr].concat();
    let profile = String::from_utf8_lossy(&profile);
    let allowed = |name: &str| profile.contains(&bench.text(name));
    assert!(
        allowed("guest.port") && allowed("guest.console"),
        "{profile}"
    );
    assert!(
        !allowed("disk.sock") && !allowed("snapback.qmp"),
        "{profile}"
    );
}

fn what_libvirt_does(
    libvirt: &Libvirt,
    bench: &Bench,
    guest: &mut Guest,
    same: &dyn Fn(&mut Guest, &str),
) {
    libvirt.virsh("suspend vm1");
    libvirt.virsh("resume vm1");
    libvirt.virsh("reboot vm1");
    // As a guest does that obeys the power button: libvirt then resets it.
    guest.send("poweroff -f");
    guest.wait_boot();
    same(guest, "after a reboot");

    libvirt.virsh("managedsave vm1");
    libvirt.virsh("start vm1");
    drop(guest.moved_to(Guest::started_elsewhere(&bench.path(""), "guest")));
    same(guest, "after managedsave");

    libvirt.virsh("detach-disk vm1 vda --live");
    guest.run(&until("[ ! -e /dev/vda ]"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while libvirt.virsh("domblklist vm1").contains("vda") {
        assert!(Instant::now() < deadline, "libvirt keeps the disk");
        sleep(Duration::from_millis(200));
    }
    let (_, disk) = DOMAIN.split_once("    <disk").unwrap();
    let (disk, _) = disk.split_once("</disk>").unwrap();
    let disk = format!("<disk{disk}</disk>").replace("/run/vm", &folder(bench));
    fs::write(bench.path("disk.xml"), disk).unwrap();
    libvirt.virsh(&format!(
        "attach-device vm1 {} --live",
        bench.text("disk.xml")
    ));
    guest.run(&until("[ -e /dev/vda ]"));
    same(guest, "plugged in again");
}
