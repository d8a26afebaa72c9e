//! Daemons that are found without the paths of their control sockets.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// For everything that takes a moment, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The disks and the runtime directory of one user.
struct User {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Drop for User {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl User {
    fn new() -> Self {
        let user = Self {
            folder: tempfile::tempdir().unwrap(),
            daemons: Vec::new(),
        };
        for disk in ["disk.img", "b/disk.img"] {
            let disk = user.path(disk);
            fs::create_dir_all(disk.parent().unwrap()).unwrap();
            fs::write(disk, vec![7; 1 << 20]).unwrap();
        }
        fs::create_dir(user.path("run")).unwrap();
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env_remove("SNAPBACK_CONTROL")
            .env_remove("SNAPBACK_LOG")
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The message of a verb that fails.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn serve(&mut self, arguments: &[&str]) {
        let log = File::create(self.path("log")).unwrap();
        let child = self
            .command(&["serve"])
            .args(arguments)
            .stdout(File::create(self.path("announced")).unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemons.push(child);
    }

    /// As [`Self::serve`]; returns when a client can connect to `socket`.
    #[track_caller]
    fn serve_at(&mut self, arguments: &[&str], socket: &str) {
        self.serve(arguments);
        let socket = self.path(socket);
        self.until(&socket.display().to_string(), |_| {
            UnixStream::connect(&socket).is_ok()
        });
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            let log = fs::read_to_string(self.path("log")).unwrap();
            assert!(start.elapsed() < PATIENCE, "{what}: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, daemon: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.daemons[daemon]), signal).unwrap();
    }

    #[track_caller]
    fn end(&mut self, daemon: usize, signal: Signal) {
        self.signal(daemon, signal);
        let status = self.daemons[daemon].wait().unwrap();
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
    }

    fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.done(&["list", "--json"])).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let all = self.list().into_iter();
        all.map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What is in the folder of entries.
    fn entries(&self) -> Vec<String> {
        let files = fs::read_dir(self.path("run/snapback")).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[test]
fn no_option_is_needed_for_the_only_daemon_and_names_choose_among_several() {
    let mut user = User::new();
    let none = user.fails(&["status"]);
    assert!(none.contains("no daemon of this user is running"), "{none}");
    assert!(none.contains("snapback serve --origin"), "{none}");
    assert_eq!(user.done(&["list"]), "no daemon is running\n");
    assert!(user.list().is_empty());

    // The only one. Its socket is only for its user.
    let first = ["--origin", "disk.img", "--socket-path", "a.sock"];
    let note = "printf %s \"$SNAPBACK_CONTROL\" >control; exec cat >/dev/null";
    let event = [
        "--on-event",
        "/bin/sh",
        "--on-event-arg=-c",
        "--on-event-arg",
    ];
    user.serve_at(
        &[&first[..], &event, &[note]].concat(),
        "run/snapback/disk.control.sock",
    );
    let control = user.text("run/snapback/disk.control.sock");
    assert!(is_socket(Path::new(&control)));
    let status = user.done(&["status"]);
    assert!(status.contains("disk.img"), "{status}");
    user.done(&["snapshot", "s", "--cow", "s.cow", "--size", "1M"]);
    user.until(
        "the control socket in the environment of --on-event",
        |user| fs::read_to_string(user.path("control")).is_ok_and(|path| path == control),
    );
    let announced = fs::read_to_string(user.path("announced")).unwrap();
    assert!(announced.contains(&format!("control at {control}\n")));
    // Nothing of it is in the state file: a default is none of the user's choices.
    let state = fs::read_to_string(user.path("disk.img.snapback")).unwrap();
    assert!(!state.contains("run/snapback"), "{state}");

    // A second one with the same disk's name, and a control socket of its own.
    let second = ["--origin", "b/disk.img", "--control", "c.sock"];
    user.serve_at(&second, "run/snapback/disk-2.control.sock");
    let link = fs::read_link(user.path("run/snapback/disk-2.control.sock")).unwrap();
    assert_eq!(link, user.path("c.sock"));
    let several = user.fails(&["status"]);
    assert!(several.contains("(disk, disk-2)"), "{several}");
    assert!(several.contains("--control NAME"), "{several}");
    for choice in ["disk-2", "c.sock"] {
        let status = user.done(&["status", "--control", choice]);
        assert!(status.contains("b/disk.img"), "{status}");
        let mut command = user.command(&["status"]);
        let output = command.env("SNAPBACK_CONTROL", choice).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), status);
    }
    let unknown = user.fails(&["status", "--control", "disk-3"]);
    assert!(unknown.contains("`snapback list`"), "{unknown}");
    let table = user.done(&["ls"]);
    for words in ["NAME", "disk-2", "1 (0 attached)", "serving", &control] {
        assert!(table.contains(words), "{table}");
    }
    let list = user.list();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0]["name"], "disk");
    assert_eq!(list[0]["pid"], user.daemons[0].id());
    assert_eq!(list[0]["snapshots"], serde_json::json!(["s"]));
    assert_eq!(list[1]["origin"], user.text("b/disk.img"));
    assert_eq!(list[1]["control"], user.text("c.sock"));
    assert_eq!(list[1]["state"], "serving");

    // One that does not answer is shown, and not waited for.
    user.signal(1, Signal::STOP);
    let list = user.list();
    user.signal(1, Signal::CONT);
    assert_eq!(list[1]["state"], "no-answer");
    assert_eq!(list[1]["pid"], Value::Null);
    assert_eq!(list[0]["state"], "serving");

    // A killed one is none, and its leftover goes.
    user.end(0, Signal::KILL);
    assert_eq!(user.entries(), ["disk-2.control.sock", "disk.control.sock"]);
    assert!(user.done(&["status"]).contains("b/disk.img"));
    assert_eq!(user.names(), ["disk-2"]);
    assert_eq!(user.entries(), ["disk-2.control.sock"]);
    // Its name is free, and a stop leaves nothing.
    user.serve_at(&["--origin", "disk.img"], "run/snapback/disk.control.sock");
    assert_eq!(user.names(), ["disk", "disk-2"]);
    user.end(2, Signal::TERM);
    user.end(1, Signal::TERM);
    assert_eq!(user.entries(), [""; 0]);
}

#[test]
fn a_name_that_was_chosen_is_had_or_the_start_is_refused() {
    let mut user = User::new();
    let first = ["--origin", "disk.img", "--control-name", "vm1"];
    user.serve_at(&first, "run/snapback/vm1.control.sock");
    let second = ["serve", "--origin", "b/disk.img", "--control-name", "vm1"];
    for more in [&[][..], &["--control", "c.sock"], &["--check"]] {
        let output = user.run(&[&second, more].concat());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!output.status.success());
        assert!(
            said.contains("--control-name vm1: a running daemon"),
            "{said}"
        );
    }
    assert_eq!(user.names(), ["vm1"]);
    assert!(!user.path("b/disk.img.snapback").exists());
    assert!(!user.path("c.sock").exists());
    let odd = user.fails(&["serve", "--origin", "disk.img", "--control-name", "a/b"]);
    assert!(odd.contains("daemon name `a/b`"), "{odd}");
}

#[test]
fn a_daemon_without_a_control_socket_serves_and_is_not_listed() {
    let mut user = User::new();
    let disk = ["--origin", "disk.img", "--socket-path", "a.sock"];
    user.serve_at(&[&disk[..], &["--no-control"]].concat(), "a.sock");
    assert!(user.list().is_empty());
    user.end(0, Signal::TERM);
    let both = [&["serve"][..], &disk, &["--no-control", "--control", "c"]].concat();
    assert!(user.fails(&both).contains("cannot be used with"));
    let alone = ["serve", "--origin", "disk.img"];
    let nothing = user.fails(&alone);
    assert!(nothing.contains("nothing to serve"), "{nothing}");

    // No folder can be made: the disk is more important. A name that was asked for is refused.
    fs::remove_dir_all(user.path("run")).unwrap();
    fs::write(user.path("run"), "a file").unwrap();
    let name = [&["serve"][..], &disk, &["--control-name", "vm1"]].concat();
    let refused = user.fails(&name);
    assert!(refused.contains("--control-name vm1: folder"), "{refused}");
    user.serve_at(&disk, "a.sock");
    let log = fs::read_to_string(user.path("log")).unwrap();
    assert!(log.contains("there is no control socket"), "{log}");
    user.end(1, Signal::TERM);
    // As that warning says.
    user.serve_at(&[&disk[..], &["--control", "c.sock"]].concat(), "c.sock");
    user.done(&["status", "--control", "c.sock"]);
    let log = fs::read_to_string(user.path("log")).unwrap();
    assert!(log.contains("will not show this daemon"), "{log}");
    user.end(2, Signal::TERM);
    user.command(&["list"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
}
