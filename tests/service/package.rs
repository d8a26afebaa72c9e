//! The package, made by `cargo deb` of this build: installed, used as docs/first-service.md says,
//! upgraded under a guest, removed and purged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::container::{Container, Files};
use super::front_end::common::stamps;
use super::front_end::disk::Disk;
use super::front_end::guest::{Guest, Resume};
use super::front_end::ring::Shape;
use super::generate::generate;
use super::world::run;

const SECTORS: u64 = 8 << 11;
/// Requests of the guest before the upgrade, and after it.
const REQUESTS: u64 = 300;
/// After this something hangs.
const HANGS: Duration = Duration::from_secs(500);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn must(command: &mut Command) -> String {
    let (code, output, error) = run(command);
    assert_eq!(code, Some(0), "{command:?}: {output}{error}");
    output
}

/// `cargo deb` without a build.
fn package(to: &Path) {
    let made = repository().join("target/package");
    generate("man", &made.join("man"));
    generate("completions", &made.join("completions"));
    let tools = repository().join("target/tools/bin");
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("cargo");
    command
        .current_dir(repository())
        .env("PATH", format!("{}:{path}", tools.display()))
        .args(["deb", "--no-build", "--offline", "--profile", "dev"])
        .args(["--fast", "-Z", "gz", "--compress-system", "--output"])
        .arg(to);
    let (code, _, error) = run(&mut command);
    let install = "qemu-tests/install.sh installs cargo-deb";
    assert_eq!(code, Some(0), "{install}: {error}");
}

/// The package at `old` as a later version.
fn upgraded(old: &Path, new: &Path, folder: &Path) {
    must(Command::new("dpkg-deb").arg("-R").args([old, folder]));
    let control = folder.join("DEBIAN/control");
    let fields = fs::read_to_string(&control).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let later = fields.replace(
        &format!("\nVersion: {version}-1\n"),
        &format!("\nVersion: {version}-2\n"),
    );
    assert_ne!(fields, later);
    fs::write(control, later).unwrap();
    must(
        Command::new("dpkg-deb")
            .args(["-Znone", "-b"])
            .args([folder, new]),
    );
}

/// The commands of the page, block by block.
fn page(folder: &Path) {
    let page = fs::read_to_string(repository().join("docs/first-service.md")).unwrap();
    let blocks = page.split("\n```sh\n").skip(1);
    fs::create_dir(folder).unwrap();
    for (number, block) in (1..).zip(blocks) {
        let commands = block.split("\n```\n").next().unwrap();
        fs::write(folder.join(format!("{number}")), format!("{commands}\n")).unwrap();
    }
}

/// The process that serves the disk `name`.
fn server(name: &str) -> Option<PathBuf> {
    let end = format!("serve\0--config\0/etc/snapback/{name}.toml\0");
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut processes = processes.map(|process| process.path());
    processes.find(|process| {
        fs::read_to_string(process.join("cmdline")).is_ok_and(|line| line.ends_with(&end))
    })
}

struct World {
    container: Container,
    booted: Child,
    name: String,
    guest: Guest,
    /// The guest has connected once.
    is_attached: bool,
    restarts: u64,
}

impl World {
    /// Waits for a file of the script, while the guest goes on.
    fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        let mut process = None;
        while !is(self) {
            let ended = self.booted.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > HANGS {
                let result = fs::read_to_string(self.container.share("result"));
                panic!("{ended:?} before {what}: {result:?}");
            }
            process = process.or_else(|| server(&self.name));
            if self.is_attached {
                self.go_on(&mut process);
            } else {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// A moment of the guest, which connects again when `process`, its back end, has ended.
    fn go_on(&mut self, process: &mut Option<PathBuf>) {
        self.guest.look();
        if let Some(gone) = process.take_if(|_| self.guest.lost()) {
            while gone.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.guest.back_end_is_gone();
            self.guest.connect(|| {}).unwrap();
            self.restarts += 1;
        }
        if !self.guest.pump(true) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn completes(&mut self, more: u64) {
        let enough = self.guest.completed + more;
        self.until("enough requests", |w| w.guest.completed >= enough);
    }

    fn step(&self, name: &str) {
        fs::write(self.container.share(name), "").unwrap();
    }

    /// Everything under way ends, and the whole disk is as the guest knows it.
    fn sweep(&mut self) {
        let start = Instant::now();
        let drain = |guest: &mut Guest, submit: bool, done: &dyn Fn(&Guest) -> bool| {
            while !done(guest) {
                assert!(start.elapsed() < HANGS, "{:?}", guest.faults);
                if !guest.pump(submit) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        drain(&mut self.guest, false, &|guest| guest.under_way() == 0);
        self.guest.check_free_pages();
        self.guest.disk.sweep = Some(0);
        drain(&mut self.guest, true, &|guest| {
            guest.disk.sweep == Some(SECTORS) && guest.under_way() == 0
        });
        assert!(!self.guest.faults.any(), "{:?}", self.guest.faults);
    }
}

/// A container with the packages, the page and a disk; and the disk's guest.
fn prepared(name: &str) -> Option<(Container, Guest)> {
    let container = Container::new(include_str!("package.sh"))?;
    for folder in [container.share("vm"), container.path("srv")] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(container.share("name"), name).unwrap();
    page(&container.share("page"));
    // The names that the page has.
    let old = container.share("snapback_0.1.0-1_amd64.deb");
    package(&old);
    let new = container.share("snapback_0.2.0-1_amd64.deb");
    upgraded(&old, &new, &container.path("unpacked"));
    let mut content = vec![0; SECTORS as usize * 512];
    stamps::fill(&mut content, 0);
    fs::write(container.share("vm/disk.img"), &content).unwrap();
    let disk = Disk::new(1, 0, (0..SECTORS).collect());
    let shape = Shape {
        queues: 2,
        depth: 16,
        indirect: true,
        event_idx: true,
    };
    let socket = container.share("vm/disk.sock");
    let mut guest = Guest::new("guest", &socket, shape, Resume::Used, disk);
    guest.with_region = true;
    Some((container, guest))
}

#[test]
fn the_package_serves_guests_from_its_installation_to_its_purge() {
    let name = format!("guest{}", std::process::id());
    let Some((container, guest)) = prepared(&name) else {
        return;
    };
    let srv = container.path("srv");
    let mut boot = container.boot(Files::Changeable, &[(&*srv, "/srv")]);
    let log = fs::File::create(container.path("log")).unwrap();
    boot.stdout(log.try_clone().unwrap()).stderr(log);
    let mut world = World {
        booted: boot.stdin(Stdio::null()).spawn().unwrap(),
        container,
        name,
        guest,
        is_attached: false,
        restarts: 0,
    };
    world.until("a disk is served", |w| {
        w.container.share("serving").exists()
    });
    world.guest.connect(|| {}).unwrap();
    world.is_attached = true;
    world.completes(REQUESTS);
    world.step("loaded");
    world.until("the upgrade", |w| w.container.share("upgraded").exists());
    world.until("the restart", |w| w.restarts == 1);
    world.completes(REQUESTS);
    world.sweep();
    world.guest.frontend = None;
    world.step("left");
    let status = world.booted.wait().unwrap();
    let log = fs::read_to_string(world.container.path("log")).unwrap_or_default();
    world.container.passed(&format!("{status}\n{log}"));
    let journal = fs::read_to_string(world.container.share("journal.json")).unwrap();
    events_have_their_fields(&journal);
    assert_eq!(
        stamps_of(&world.container.share("vm/disk.img")),
        world.guest.disk.shadow
    );
}

fn stamps_of(disk: &Path) -> Vec<u64> {
    let content = fs::read(disk).unwrap();
    let sectors = content.chunks(512);
    sectors
        .map(|sector| stamps::read(sector).unwrap())
        .collect()
}

/// Entries of events of the page's disk, as `journalctl -o json` shows them.
fn events_have_their_fields(journal: &str) {
    let entries: Vec<BTreeMap<String, Value>> = journal
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let field = |entry: &BTreeMap<String, Value>, name: &str| {
        entry
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let events: Vec<_> = entries
        .iter()
        .filter(|entry| field(entry, "VOLUME") == "/srv/vm1.img" && entry.contains_key("KIND"))
        .collect();
    let mut numbers = Vec::new();
    for event in &events {
        assert_eq!(
            field(event, "_SYSTEMD_UNIT"),
            "snapback@vm1.service",
            "{event:?}"
        );
        assert_eq!(field(event, "PRIORITY"), "6", "{event:?}");
        let said = format!(
            "event kind=\"{}\" seq={}",
            field(event, "KIND"),
            field(event, "SEQ")
        );
        assert!(field(event, "MESSAGE").starts_with(&said), "{event:?}");
        numbers.push(field(event, "SEQ").parse::<u64>().unwrap());
    }
    assert!(numbers.len() > 5, "{events:?}");
    for kind in ["snapshot-added", "handover", "merge-done"] {
        let of_kind = events.iter().find(|event| field(event, "KIND") == kind);
        let event = of_kind.unwrap_or_else(|| panic!("{kind}: {events:?}"));
        assert_eq!(field(event, "SNAPSHOT"), "before", "{event:?}");
    }
}
