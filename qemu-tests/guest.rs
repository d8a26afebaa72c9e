//! A guest: QEMU with Debian's kernel and `images/guest/init`, which runs the
//! commands that arrive on its second serial port.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::bench::{guest_images, tail};
use crate::disk::Sums;
use crate::machine::{attach, kernel, queues};
use crate::qmp::Qmp;

/// Longest time that a guest command or a boot may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How the panic begins with which that ends.
pub const SILENT: &str = "the guest says nothing";

/// How a disk is attached.
pub enum Attach {
    /// A vhost-user-blk socket, of snapback.
    View(PathBuf),
    /// The same, with two queues; the guest has two processors then.
    TwoQueues(PathBuf),
    /// As `View`, but QEMU listens there and waits until it is connected.
    Listening(PathBuf),
    /// As `TwoQueues`, with so many of both.
    Queues(PathBuf, u16),
    /// A raw file, by QEMU's own driver.
    Raw(PathBuf),
    /// The same, and discards punch holes into it.
    RawDiscard(PathBuf),
}

pub struct Guest {
    /// `None`: another program started it, and ends it.
    qemu: Option<Child>,
    pub qmp: Qmp,
    port: UnixStream,
    received: Vec<u8>,
    boot_id: String,
    sequence: u64,
    /// The last that was sent.
    command: String,
    console: PathBuf,
    log: PathBuf,
}

/// What `disktool hammer` found at its end.
#[derive(Debug)]
pub struct Hammered {
    pub writes: u64,
    /// Blocks that hold the last write to them.
    pub kept: u64,
    /// Blocks that went back to an older content.
    pub reverted: u64,
    /// The longest that one write took.
    pub longest_ms: u64,
}

impl Guest {
    /// Starts QEMU and waits until the guest takes commands.
    pub fn boot(dir: &Path, name: &str, disks: &[Attach], kernel_options: &str) -> Self {
        let initramfs = guest_images().join("initramfs");
        Self::boot_from(&initramfs, dir, name, disks, kernel_options)
    }

    /// [`Self::boot`] with another initramfs.
    pub fn boot_from(
        initramfs: &Path,
        dir: &Path,
        name: &str,
        disks: &[Attach],
        kernel_options: &str,
    ) -> Self {
        Self::start(dir, name, disks, &kernel(initramfs, kernel_options))
    }

    /// Starts QEMU with the options that say what it boots, and waits until the
    /// guest takes commands.
    pub fn start(dir: &Path, name: &str, disks: &[Attach], boot: &[OsString]) -> Self {
        let mut guest = Self::spawn(dir, name, disks, boot);
        guest.wait_boot();
        guest
    }

    /// Starts QEMU for a guest that is migrated to it.
    pub fn incoming(dir: &Path, name: &str, disks: &[Attach]) -> Self {
        let mut options = kernel(&guest_images().join("initramfs"), "");
        options.extend(["-incoming".into(), "defer".into()]);
        Self::spawn(dir, name, disks, &options)
    }

    /// The guest runs here now, and takes commands here; returns what is left behind.
    pub fn moved_to(&mut self, there: Self) -> Self {
        let mut left = std::mem::replace(self, there);
        self.boot_id = std::mem::take(&mut left.boot_id);
        self.sequence = left.sequence;
        left
    }

    fn spawn(dir: &Path, name: &str, disks: &[Attach], boot: &[OsString]) -> Self {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let (monitor, port, console, log) =
            (file("qmp"), file("port"), file("console"), file("qemu.log"));
        let processors = disks.iter().map(queues).max().unwrap_or(1).to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-smp",
                &processors,
                "-nodefaults",
                "-display",
                "none",
            ])
            .args(["-object", "memory-backend-memfd,id=mem,size=768M,share=on"])
            .args(["-machine", "q35,memory-backend=mem"])
            .args(boot)
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-chardev")
            .arg(format!(
                "socket,id=port,path={},server=on,wait=off",
                port.display()
            ))
            .args(["-serial", "chardev:port"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        attach(&mut command, disks);
        let output = File::create(&log).unwrap();
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("qemu-system-x86_64 starts (qemu-tests/install.sh installs it)");
        let port = connect(&port, Some(&mut qemu), &log);
        let qmp = Qmp::new(connect(&monitor, Some(&mut qemu), &log));
        Self::connected(Some(qemu), qmp, port, console, log)
    }

    /// A guest that another program has started, with its sockets and its console where
    /// [`Self::start`] has them.
    pub fn started_elsewhere(dir: &Path, name: &str) -> Self {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let log = file("qemu.log");
        let port = connect(&file("port"), None, &log);
        let qmp = Qmp::new(connect(&file("qmp"), None, &log));
        Self::connected(None, qmp, port, file("console"), log)
    }

    fn connected(
        qemu: Option<Child>,
        qmp: Qmp,
        port: UnixStream,
        console: PathBuf,
        log: PathBuf,
    ) -> Self {
        port.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        println!("guest started, with its console at {}", console.display());
        Self {
            qemu,
            qmp,
            port,
            received: Vec::new(),
            boot_id: String::new(),
            sequence: 0,
            command: String::new(),
            console,
            log,
        }
    }

    /// Waits until the guest has started (again) and takes commands.
    pub fn wait_boot(&mut self) {
        let begin = Instant::now();
        loop {
            let line = self.line(begin + PATIENCE);
            match line.strip_prefix("READY ") {
                Some(boot_id) if boot_id != self.boot_id => {
                    self.boot_id = boot_id.to_owned();
                    println!("guest is up after {:.1} s", begin.elapsed().as_secs_f64());
                    return;
                }
                _ => continue,
            }
        }
    }

    /// Whether QEMU could not start a disk, because its back end ended at that very moment. QEMU
    /// does not try again until the guest does, which firmware never does: the machine waits for
    /// its disk until it is reset.
    pub fn lost_a_start(&self) -> bool {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        said.contains("vhost start failed")
    }

    /// Whether nothing comes from the guest for so long.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        let begin = Instant::now();
        while self.received.is_empty() && begin.elapsed() < time {
            self.receive(begin + PATIENCE);
        }
        self.received.is_empty()
    }

    /// Resets the machine and waits until the guest is up again.
    pub fn reset(&mut self) {
        self.qmp.command("system_reset");
        self.wait_boot();
    }

    /// Runs a shell command in the guest; panics unless it exits 0. Returns its output.
    pub fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command);
        assert_eq!(
            status, 0,
            "in the guest, `{command}` exits {status}:\n{output}"
        );
        output
    }

    /// Waits for the answer to a command that was sent.
    pub fn answer(&mut self) -> (i32, String) {
        self.answer_within(PATIENCE)
    }

    /// The same of a guest that sleeps and is woken by what arrives at its port. What
    /// arrives too early does not wake it, so something is sent once a second.
    pub fn answer_once_awake(&mut self) -> (i32, String) {
        let mut port = self.port.try_clone().unwrap();
        let (done, is_done) = mpsc::channel::<()>();
        let waker = spawn(move || {
            let pause = Duration::from_secs(1);
            while is_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                // The guest skips it at the beginning of the next command.
                port.write_all(b" ").unwrap();
            }
        });
        let answer = self.answer();
        drop(done);
        waker.join().unwrap();
        answer
    }

    /// Exit status and output of a shell command in the guest.
    pub fn try_run(&mut self, command: &str) -> (i32, String) {
        self.run_within(command, PATIENCE)
    }

    /// As `try_run`, for a command that takes less than `patience`.
    pub fn run_within(&mut self, command: &str, patience: Duration) -> (i32, String) {
        self.send(command);
        self.answer_within(patience)
    }

    fn answer_within(&mut self, patience: Duration) -> (i32, String) {
        let deadline = Instant::now() + patience;
        loop {
            let line = self.line(deadline);
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["=", sequence, status, length] if *sequence == self.sequence.to_string() => {
                    let length = length.parse().unwrap();
                    let output =
                        String::from_utf8_lossy(&self.bytes(length, deadline)).into_owned();
                    return (status.parse().unwrap(), output);
                }
                ["READY", boot_id] => {
                    assert_eq!(
                        *boot_id, self.boot_id,
                        "the guest restarted during `{}`",
                        self.command
                    );
                }
                // Of a command sent before, which was not waited for.
                ["=", older, ..] if older.parse().is_ok_and(|n: u64| n < self.sequence) => {}
                _ => panic!(
                    "the guest's answer to `{}` begins with {line:?}",
                    self.command
                ),
            }
        }
    }

    /// Sends a command that gives no answer, such as `reboot -f`.
    pub fn send(&mut self, command: &str) {
        assert!(
            !command.contains('\n') && command.len() < 2000,
            "one short line: {command}"
        );
        self.sequence += 1;
        command.clone_into(&mut self.command);
        self.port
            .write_all(format!("{} {command}\n", self.sequence).as_bytes())
            .unwrap();
    }

    /// The content of a whole disk as the guest reads it, past its page cache.
    pub fn sums(&mut self, device: &str) -> Sums {
        Sums::parse(&self.run(&format!(
            "sync; echo 3 >/proc/sys/vm/drop_caches; disktool sums {device}"
        )))
    }

    /// Starts writing to `count` blocks (4 KiB) of a disk from `first` on; the disk
    /// must hold what `fill` with this seed gives it.
    pub fn start_hammer(&mut self, device: &str, seed: u64, first: u64, count: u64) {
        self.run(&format!(
            "rm -f /tmp/stop /tmp/hammer.*; (disktool hammer {device} {seed} {first} {count} \
             >/tmp/hammer.out 2>&1; echo $? >/tmp/hammer.status) >/dev/null 2>&1 &"
        ));
        self.hammer_on(1);
    }

    /// Waits until the hammer has done at least `more` further writes.
    pub fn hammer_on(&mut self, more: u64) {
        let mut goal = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.run("cat /tmp/hammer.writes 2>/dev/null || echo 0");
            // The file is truncated before it is written: an empty one says nothing.
            if let Ok(writes) = text.trim().parse::<u64>()
                && writes >= *goal.get_or_insert(writes + more)
            {
                return;
            }
            let (ended, report) = self.try_run("test -e /tmp/hammer.status && cat /tmp/hammer.out");
            assert!(ended != 0, "the guest's writer stopped: {report}");
            assert!(
                Instant::now() < deadline,
                "the guest's writer hangs at {text}"
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// Stops the hammer, which then reads back and judges all that it wrote.
    pub fn stop_hammer(&mut self) -> Hammered {
        self.run("touch /tmp/stop; until [ -s /tmp/hammer.status ]; do sleep 0.1; done");
        let report = self.run("cat /tmp/hammer.out; exit $(cat /tmp/hammer.status)");
        println!("the guest's writer: {}", report.trim());
        let field = |name: &str| -> u64 {
            let found = report
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            found
                .and_then(|value| value.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in: {report}"))
        };
        Hammered {
            writes: field("writes="),
            kept: field("kept="),
            reverted: field("reverted="),
            longest_ms: field("longest_ms="),
        }
    }

    /// Starts several writers at once on `count` blocks (4 KiB) of a disk, which must
    /// hold what `fill` with this seed gives it.
    pub fn start_storm(&mut self, disk: &str, seed: u64, count: u64, threads: u64) {
        self.run(&format!(
            "rm -f /tmp/stop /tmp/{disk}.*; \
             (disktool storm /dev/{disk} {seed} 0 {count} {threads} /tmp/{disk}.writes \
             >/tmp/{disk}.out 2>&1; echo $? >/tmp/{disk}.status) >/dev/null 2>&1 &"
        ));
        self.storm_on(disk, 1);
    }

    /// Waits until the writers of a disk have done at least `more` further writes.
    pub fn storm_on(&mut self, disk: &str, more: u64) {
        let mut goal = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.run(&format!(
                "cat /tmp/{disk}.writes 2>/dev/null; test ! -e /tmp/{disk}.status || cat /tmp/{disk}.out"
            ));
            let mut lines = text.lines();
            let writes = lines
                .next()
                .and_then(|line| line.trim().parse::<u64>().ok());
            let report: Vec<&str> = lines.collect();
            assert!(report.is_empty(), "the guest's writers stopped: {report:?}");
            if let Some(writes) = writes
                && writes >= *goal.get_or_insert(writes + more)
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the guest's writers hang at {text}"
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Ends all storms, which then verify all that they wrote. Returns the longest time
    /// in milliseconds that a request on this disk took.
    pub fn stop_storm(&mut self, disk: &str) -> u64 {
        self.run(&format!(
            "touch /tmp/stop; until [ -s /tmp/{disk}.status ]; do sleep 0.1; done"
        ));
        let report = self.run(&format!(
            "cat /tmp/{disk}.out; exit $(cat /tmp/{disk}.status)"
        ));
        println!("the guest's writers on {disk}: {}", report.trim());
        let longest = report
            .split_whitespace()
            .find_map(|word| word.strip_prefix("longest_ms="));
        let longest = longest.and_then(|value| value.parse().ok());
        longest.unwrap_or_else(|| panic!("no longest_ms in: {report}"))
    }

    /// Panics if the guest's kernel has logged a failed request.
    pub fn assert_no_io_error(&mut self) {
        let (_, log) = self.try_run(
            "dmesg | grep -iE 'i/o error|ext4-fs error|hung task|blocked for more|is not a head'",
        );
        println!(
            "the guest's kernel logged {} I/O errors",
            log.lines().count()
        );
        assert!(log.is_empty(), "the guest noticed:\n{log}");
    }

    /// Ends QEMU in an orderly way, without telling the guest.
    pub fn quit(mut self) {
        self.qmp.command("quit");
        let status = self.qemu.as_mut().unwrap().wait().unwrap();
        assert!(status.success(), "QEMU: {status}");
    }

    /// Kills QEMU.
    pub fn kill(mut self) {
        let qemu = self.qemu.as_mut().unwrap();
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }

    fn line(&mut self, deadline: Instant) -> String {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            self.receive(deadline);
        }
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Vec<u8> {
        while self.received.len() < count {
            self.receive(deadline);
        }
        self.received.drain(..count).collect()
    }

    fn receive(&mut self, deadline: Instant) {
        let mut bytes = [0; 4096];
        match self.port.read(&mut bytes) {
            Ok(0) => panic!("QEMU closed the guest's serial port"),
            Ok(count) => self.received.extend_from_slice(&bytes[..count]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => panic!("the guest's serial port: {e}"),
        }
        assert!(
            Instant::now() < deadline,
            "{SILENT}; QEMU's threads:\n{}its console ends:\n{}",
            self.qemu
                .as_ref()
                .map(|qemu| threads(qemu.id()))
                .unwrap_or_default(),
            tail(&self.console)
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        if let Some(qemu) = &mut self.qemu {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        if std::thread::panicking() {
            println!("--- the guest's console ends:\n{}", tail(&self.console));
            println!("--- QEMU said:\n{}", tail(&self.log));
        }
    }
}

/// What each thread of a process waits for: tells a guest that hangs from an
/// emulator that does.
fn threads(process: u32) -> String {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else {
        return String::new();
    };
    let mut text = String::new();
    for task in tasks.flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (comm, stat, wchan) = (read("comm"), read("stat"), read("wchan"));
        let state = stat.rsplit(") ").next().and_then(|rest| rest.get(..1));
        let (comm, state) = (comm.trim(), state.unwrap_or("?"));
        let syscall = read("syscall");
        text += &format!("  {comm} {state} {wchan} {}\n", syscall.trim());
    }
    text
}

/// Connects to a socket that QEMU is about to open.
fn connect(path: &Path, mut qemu: Option<&mut Child>, log: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(e) => assert!(Instant::now() < deadline, "{}: {e}", path.display()),
        }
        if let Some(qemu) = &mut qemu
            && let Some(status) = qemu.try_wait().unwrap()
        {
            panic!("QEMU ended at once with {status}:\n{}", tail(log));
        }
        sleep(Duration::from_millis(20));
    }
}

/// A command lost its beginning when a child of the guest's first process ended while
/// it arrived, and the guest then seemed to hang.
#[test]
fn commands_arrive_whole_while_processes_end() {
    let bench = crate::bench::Bench::new();
    let mut guest = bench.boot("g", &[]);
    guest.run("(while :; do (sleep 0.002 &); done) >/dev/null 2>&1 &");
    let padding = "x".repeat(200);
    for number in 0..150 {
        let output = guest.run(&format!("echo {number} {padding}"));
        assert_eq!(output, format!("{number} {padding}\n"));
    }
    guest.quit();
}
