//! A guest moves from one daemon to a second one, which waits for it (`--incoming`): with the
//! messages that QEMU sends at the end of a migration.

use std::process::Child;
use std::thread::JoinHandle;

use snapback::control::Client;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use super::listening::listens;
use super::raw::{CONFIG_WCE, FLUSH, PROTOCOL, Raw, Ring, VERSION_1};
use super::*;

const FEATURES: u64 = VERSION_1 | PROTOCOL | FLUSH | CONFIG_WCE;
const LOG_ALL: u64 = 1 << 26;
const WRITEBACK: u32 = 32;
const OUT: u32 = 1;
const IN: u32 = 0;

/// A guest with one ring.
struct Mover {
    raw: Raw,
    ring: Ring,
}

impl Mover {
    fn start(socket: &Path) -> Self {
        let mut raw = Raw::connect(socket, FEATURES);
        raw.negotiate(VhostUserProtocolFeatures::LOG_SHMFD);
        let ring = raw.start(0);
        Self { raw, ring }
    }

    fn turn_cache_off(&mut self) {
        let flags = VhostUserConfigFlags::WRITABLE;
        let set = self.raw.frontend.set_config(WRITEBACK, flags, &[0]);
        set.unwrap();
    }

    fn cache_is_on(&mut self) -> bool {
        let flags = VhostUserConfigFlags::empty();
        let read = self.raw.frontend.get_config(WRITEBACK, 1, flags, &[0]);
        read.unwrap().1 == [1]
    }

    fn request(&mut self, kind: u32, sector: u64) -> u8 {
        self.raw.request(&self.ring, 0, kind, sector, 4096);
        self.raw.run(&mut self.ring, &[0]);
        self.raw.status(&self.ring, 0)
    }

    fn log(&mut self, on: bool) {
        if on {
            let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let file = std::fs::File::from(file);
            file.set_len(4096).unwrap();
            let log = VhostUserDirtyLogRegion {
                mmap_size: 4096,
                mmap_offset: 0,
                mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&file),
            };
            self.raw.frontend.set_log_base(0, Some(log)).unwrap();
        }
        let features = if on { FEATURES | LOG_ALL } else { FEATURES };
        self.raw.frontend.set_features(features).unwrap();
    }

    /// The ring stops, as at a pause.
    fn stop(&mut self) -> u16 {
        self.raw.enable(&self.ring, false);
        self.raw.frontend.get_vring_base(0).unwrap() as u16
    }

    fn go_on(&mut self, base: u16) {
        self.raw.set_up_again(&self.ring, base);
        self.raw.enable(&self.ring, true);
    }

    /// The guest's memory at the destination: it has the same content.
    fn arrive(&self, socket: &Path) -> Arriving {
        let mut raw = Raw::connect_only(socket, FEATURES);
        raw.negotiate(VhostUserProtocolFeatures::LOG_SHMFD);
        raw.file = self.raw.file.try_clone().unwrap();
        raw.memory = self.raw.memory.clone();
        raw.set_memory();
        let ring = raw.ring_like(&self.ring);
        Arriving { raw, ring }
    }
}

/// A guest whose ring has not started at the destination.
struct Arriving {
    raw: Raw,
    ring: Ring,
}

impl Arriving {
    fn capacity(&mut self) -> u64 {
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();
        let (_, bytes) = self.raw.frontend.get_config(0, 8, flags, &[0; 8]).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Whether the ring starts.
    fn begin(&mut self, base: u16) -> bool {
        self.raw.enable(&self.ring, false);
        self.raw.set_up_again(&self.ring, base);
        self.raw.frontend.set_vring_enable(0, true).is_ok()
    }

    fn begins(mut self, base: u16) -> Mover {
        assert!(self.begin(base));
        let Self { raw, mut ring } = self;
        ring.avail = base;
        Mover { raw, ring }
    }

    fn begins_in_a_thread(self, base: u16) -> JoinHandle<Mover> {
        std::thread::spawn(move || self.begins(base))
    }
}

/// A second daemon on the same disk.
struct Destination {
    child: Option<Child>,
    control: PathBuf,
}

impl Destination {
    fn wait_for_guest(world: &World, more: &[&str]) -> Self {
        let all = [
            "--socket-path",
            "b.sock",
            "--control",
            "d.sock",
            "--incoming",
            "c.sock",
        ];
        let mut command = world.command(&[&all, more].concat());
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let destination = Self {
            child: Some(child),
            control: world.path("d.sock"),
        };
        destination.listens(world, "b.sock");
        destination
    }

    fn listens(&self, world: &World, socket: &str) {
        let process = self.child.as_ref().unwrap().id();
        world.until("it listens", |_| listens(process, socket));
    }

    fn client(&self) -> Client {
        Client::new(&self.control).unwrap()
    }

    fn is_serving(&self) -> bool {
        self.control.exists()
    }

    fn terminate(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The daemon ends by itself.
fn ends(world: &mut World) {
    let status = world.daemon.take().unwrap().wait().unwrap();
    assert!(status.success(), "{status}");
}

/// A daemon with a snapshot, and a guest that has written once.
fn source() -> (World, Mover, Vec<u8>) {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s1")).unwrap();
    let mut guest = Mover::start(&world.path("a.sock"));
    assert_eq!(guest.request(OUT, 8), 0);
    (world, guest, before)
}

#[test]
fn a_migrated_guest_goes_on_at_the_second_daemon_and_the_first_one_ends() {
    let (mut world, mut guest, before) = source();
    let state = fs::read(world.path("disk.img.snapback")).unwrap();
    let mut destination = Destination::wait_for_guest(&world, &[]);
    let mut arriving = guest.arrive(&world.path("b.sock"));
    assert_eq!(arriving.capacity(), BYTES as u64 / 512);
    // Until the guest comes, nothing is touched.
    assert_eq!(fs::read(world.path("disk.img.snapback")).unwrap(), state);
    assert_eq!(guest.request(OUT, 16), 0);
    assert!(!destination.is_serving());

    guest.log(true);
    let base = guest.stop();
    let mut moved = arriving.begins(base);
    ends(&mut world);
    assert_eq!(moved.request(OUT, 24), 0);
    assert_eq!(moved.request(IN, 0), 0);

    world.until("the second daemon answers", |_| {
        destination.client().status().is_ok()
    });
    let status = destination.client().status().unwrap();
    assert_eq!(status.snapshots[0].state, State::Active);
    let views: Vec<bool> = status.views.iter().map(|view| view.attached).collect();
    assert_eq!(views, [true, false]);
    assert_eq!(world.state()["socket"], "b.sock");
    let mut reader = Guest::connect(&world.path("s1.sock"));
    assert_same(&reader.read_all(BYTES), &before, "the snapshot");
    drop((reader, moved, guest));
    destination.terminate();
    assert_eq!(world.state()["running"], false);
    assert!(world.origin() != before);
}

/// A guest does not say again at the destination that its cache is off.
#[test]
fn a_write_cache_that_was_turned_off_stays_off_at_the_second_daemon() {
    let (mut world, mut guest, _) = source();
    let mut destination = Destination::wait_for_guest(&world, &[]);
    let arriving = guest.arrive(&world.path("b.sock"));
    // After the second daemon has looked at the state file.
    guest.turn_cache_off();
    assert_eq!(guest.request(OUT, 16), 0);
    guest.log(true);
    let base = guest.stop();
    let mut moved = arriving.begins(base);
    ends(&mut world);
    assert!(!moved.cache_is_on());
    assert_eq!(moved.request(OUT, 24), 0);
    drop((moved, guest));
    destination.terminate();
    let recorded = &world.state()["write_through_sockets"];
    assert!(recorded.to_string().contains("b.sock"), "{recorded}");
}

#[test]
fn a_guest_that_runs_or_was_only_paused_keeps_its_disk() {
    let (mut world, mut guest, _) = source();
    let destination = Destination::wait_for_guest(&world, &[]);
    let mut arriving = guest.arrive(&world.path("b.sock"));
    assert!(!arriving.begin(1), "it runs");
    assert_eq!(guest.request(OUT, 16), 0);
    let base = guest.stop();
    assert!(!arriving.begin(base), "it is paused");
    guest.go_on(base);
    assert_eq!(guest.request(OUT, 24), 0);

    // A migration that failed.
    guest.log(true);
    let base = guest.stop();
    guest.log(false);
    guest.go_on(base);
    assert_eq!(guest.request(OUT, 32), 0);
    let base = guest.stop();
    assert!(!arriving.begin(base), "it was not migrated");
    guest.go_on(base);

    // Some front ends always ask for a log, and give none until they migrate.
    let asks = FEATURES | LOG_ALL;
    guest.raw.frontend.set_features(asks).unwrap();
    let base = guest.stop();
    assert!(!arriving.begin(base), "there was no log");
    guest.go_on(base);
    assert!(!destination.is_serving());

    guest.log(true);
    let base = guest.stop();
    assert_eq!(arriving.begins(base).request(IN, 0), 0);
    ends(&mut world);
}

#[test]
fn a_snapshots_guest_moves_too() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let mut spec = world.snapshot("s1");
    spec.discard_zeroes_cow = Some(true);
    world.client().add_snapshot(&spec).unwrap();
    let mut guest = Mover::start(&world.path("s1.sock"));
    assert_eq!(guest.request(OUT, 8), 0);
    let mut destination =
        Destination::wait_for_guest(&world, &["--snapshot", "name=s1,cow=s1.cow,socket=t.sock"]);
    destination.listens(&world, "t.sock");
    let arriving = guest.arrive(&world.path("t.sock"));
    guest.log(true);
    let base = guest.stop();
    let mut moved = arriving.begins(base);
    ends(&mut world);
    assert_eq!(moved.request(OUT, 24), 0);
    drop(moved);
    destination.terminate();
}

#[test]
fn the_disk_of_a_daemon_that_has_died_is_taken_over() {
    let (mut world, mut guest, _) = source();
    let mut destination = Destination::wait_for_guest(&world, &[]);
    let arriving = guest.arrive(&world.path("b.sock"));
    guest.log(true);
    let base = guest.stop();
    world.kill();
    let mut moved = arriving.begins(base);
    assert_eq!(moved.request(OUT, 24), 0);
    drop(moved);
    destination.terminate();
}

#[test]
fn a_guest_waits_until_whoever_has_the_disk_ends() {
    let (mut world, mut guest, _) = source();
    // As a daemon that was told by hand.
    fs::remove_file(world.path("c.sock")).unwrap();
    let mut destination = Destination::wait_for_guest(&world, &[]);
    let arriving = guest.arrive(&world.path("b.sock"));
    guest.log(true);
    let base = guest.stop();
    let moved = arriving.begins_in_a_thread(base);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!moved.is_finished() && !destination.is_serving());
    drop(guest);
    world.terminate();
    assert_eq!(moved.join().unwrap().request(OUT, 24), 0);
    destination.terminate();
}

#[test]
fn a_daemon_that_waits_ends_at_once_and_has_touched_nothing() {
    let (mut world, mut guest, _) = source();
    for asks in [false, true] {
        let before = everything(world.folder.path());
        let mut destination = Destination::wait_for_guest(&world, &[]);
        let mut arriving = guest.arrive(&world.path("b.sock"));
        if asks {
            // Nobody answers, and the disk stays locked.
            fs::rename(world.path("c.sock"), world.path("away.sock")).unwrap();
            let base = guest.stop();
            let thread = std::thread::spawn(move || assert!(!arriving.begin(base)));
            std::thread::sleep(Duration::from_millis(100));
            destination.terminate();
            thread.join().unwrap();
            fs::rename(world.path("away.sock"), world.path("c.sock")).unwrap();
            guest.go_on(base);
        } else {
            drop(arriving);
            destination.terminate();
        }
        assert!(!world.path("b.sock").exists());
        assert_eq!(everything(world.folder.path()), before);
        assert_eq!(guest.request(OUT, 16), 0);
    }
    drop(guest);
    world.terminate();
}

#[test]
fn a_volume_with_a_transient_snapshot_is_kept() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let mut spec = world.snapshot("t");
    spec.store_type = StoreType::N;
    world.client().add_snapshot(&spec).unwrap();
    let told = world.client().release().unwrap_err().to_string();
    assert!(told.contains("snapshot t is transient"), "{told}");
    world.client().remove_snapshot("t").unwrap();
    world.client().release().unwrap();
    ends(&mut world);
}

/// The daemon stopped so fast that it did not answer any more.
#[test]
fn whoever_ends_the_daemon_is_answered() {
    let mut world = World::new();
    for _ in 0..10 {
        world.start(&["--socket-path", "a.sock"]);
        world.client().release().unwrap();
        ends(&mut world);
    }
}

#[test]
fn without_a_socket_for_a_guest_nothing_is_waited_for() {
    let world = World::new();
    let told = world.refuse(&["--incoming", "c.sock"]);
    assert!(told.contains("no socket is named"), "{told}");
}

/// Looks all the time whether QEMU could write one of the files.
struct Prober {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: JoinHandle<(usize, usize)>,
}

impl Prober {
    fn start(paths: Vec<PathBuf>) -> Self {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let theirs = stop.clone();
        let thread = std::thread::spawn(move || {
            let open = |path: &PathBuf| fs::File::open(path).unwrap();
            let files: Vec<fs::File> = paths.iter().map(open).collect();
            let (mut looks, mut free) = (0, 0);
            while !theirs.load(std::sync::atomic::Ordering::Relaxed) {
                free += files.iter().filter(|file| !is_locked(file)).count();
                looks += 1;
            }
            (looks, free)
        });
        Self { stop, thread }
    }

    fn assert_always_locked(self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (looks, free) = self.thread.join().unwrap();
        assert!(looks > 100, "{looks} looks");
        assert_eq!(free, 0, "of {looks} looks");
    }
}

/// Whether there is a lock against writers, as QEMU looks for it.
fn is_locked(file: &fs::File) -> bool {
    // SAFETY: `flock` is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    lock.l_start = 201;
    lock.l_len = 1;
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    // SAFETY: the descriptor is open, and nothing else uses `lock`.
    let looked = unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &raw mut lock) };
    assert_eq!(looked, 0);
    i32::from(lock.l_type) != libc::F_UNLCK
}

/// Migrates the guest of the daemon while QEMU would like to have its files.
fn moves_without_a_gap(world: &mut World, more: &[&str]) {
    world.start(&[&["--socket-path", "a.sock"], more].concat());
    world.client().add_snapshot(&world.snapshot("s1")).unwrap();
    let mut guest = Mover::start(&world.path("a.sock"));
    assert_eq!(guest.request(OUT, 8), 0);
    let mut destination = Destination::wait_for_guest(world, more);
    let arriving = guest.arrive(&world.path("b.sock"));
    let prober = Prober::start(vec![world.path("disk.img"), world.path("s1.cow")]);
    guest.log(true);
    let base = guest.stop();
    let mut moved = arriving.begins(base);
    ends(world);
    assert_eq!(moved.request(OUT, 24), 0);
    prober.assert_always_locked();
    // What the second daemon has taken ends with it.
    drop((moved, guest));
    destination.terminate();
    world.start(more);
}

#[test]
fn the_files_of_a_migrated_guest_are_locked_at_every_moment() {
    moves_without_a_gap(&mut World::new(), &[]);
}

/// The kernel lets one daemon have it, so that the second one cannot even open it before.
#[test]
fn a_device_of_a_migrated_guest_is_locked_at_every_moment() {
    let mut world = World::new();
    let disk = world.path("disk.img");
    fs::rename(&disk, world.path("backing.img")).unwrap();
    let mut losetup = Command::new("losetup");
    losetup
        .args(["--find", "--show"])
        .arg(world.path("backing.img"));
    let device = match losetup.output() {
        Ok(made) if made.status.success() => String::from_utf8(made.stdout).unwrap(),
        _ => return eprintln!("skipped: loop devices are not allowed here"),
    };
    std::os::unix::fs::symlink(device.trim(), &disk).unwrap();
    let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        moves_without_a_gap(&mut world, &["--state", "state"]);
    }));
    drop(world);
    let detached = Command::new("losetup").args(["-d", device.trim()]).status();
    assert!(detached.unwrap().success());
    moved.unwrap();
}
