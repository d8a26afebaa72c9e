//! `serve --on-event`: a program that is run for each event.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest::Guest;
use crate::world::World;

/// Runs `script` with a shell, because it is asked to.
fn start(script: &str, more: &[&str]) -> World {
    let shell = ["--on-event", "/bin/sh", "--on-event-arg", "-c"];
    World::start(&[&shell[..], &["--on-event-arg", script], more].concat())
}

fn lines(world: &World, file: &str) -> Vec<String> {
    let text = fs::read_to_string(world.path(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn snapshot(world: &World, name: &str) {
    let path = format!("/v1/snapshots/{name}");
    let spec = world.spec(name, 1 << 20);
    world.ask("PUT", &path, &spec).assert(204);
}

#[test]
fn each_event_runs_the_program_which_gets_the_event_and_nothing_else() {
    // The shell itself has no file open besides the three.
    let script = "read -r event; echo \"$event\" >> events; \
        echo \"$SNAPBACK_EVENT $SNAPBACK_EVENT_SEQ $SNAPBACK_EVENT_SNAPSHOT\" >> names; \
        echo \"$SNAPBACK_CONTROL\" > control; \
        for n in 3 4 5 6 7 8 9 $(seq 10 200); do \
          if [ -e /proc/$$/fd/$n ]; then readlink /proc/$$/fd/$n >> open; fi; done; \
        grep SigBlk /proc/self/status > signals; \
        test \"$SNAPBACK_EVENT\" != snapshot-added || { echo to stdout; exit 3; }";
    let mut world = start(script, &[]);
    // The daemon has received descriptors of its guest.
    let guest = Guest::connect(&world.path("a.sock"), 2, 1);
    snapshot(&world, "s1");
    world.ask("DELETE", "/v1/snapshots/s1", "").assert(204);
    world.until("the last event is there", |w| {
        lines(w, "names")
            .iter()
            .any(|line| line.starts_with("snapshot-removed"))
    });
    drop(guest);
    world.terminate();
    let mut told = Vec::new();
    for line in lines(&world, "events") {
        let event: Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        told.push(format!(
            "{} {} {}",
            text("kind"),
            event["seq"],
            text("snapshot")
        ));
    }
    assert_eq!(lines(&world, "names"), told);
    let kinds: Vec<&str> = told.iter().map(|t| t.split(' ').next().unwrap()).collect();
    assert_eq!(kinds[0], "started", "{told:?}");
    assert!(kinds.contains(&"stopping"), "{told:?}");
    assert!(told.iter().any(|line| line.ends_with(" s1")), "{told:?}");
    // In order, each once.
    let seqs: Vec<String> = (1..=told.len()).map(|n| n.to_string()).collect();
    let found: Vec<&str> = told.iter().map(|t| t.split(' ').nth(1).unwrap()).collect();
    assert_eq!(found, seqs);
    assert_eq!(lines(&world, "open"), Vec::<String>::new());
    assert_eq!(lines(&world, "signals"), ["SigBlk:\t0000000000000000"]);
    let control = world.path("c.sock").to_str().unwrap().to_owned();
    assert_eq!(lines(&world, "control"), [control]);
    let log = world.log();
    assert!(log.contains("it ended with exit status: 3"), "{log}");
    assert!(log.lines().any(|line| line == "to stdout"), "{log}");
}

/// Processes that `pid` has not reaped, or that still run.
fn children(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default())
        .collect()
}

/// The process that runs the commands of the daemon, its only child.
fn launcher(world: &World) -> u32 {
    let found = children(world.daemon.as_ref().unwrap().id());
    found.trim().parse().unwrap_or_else(|_| panic!("{found}"))
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_program_that_does_not_end_is_killed_and_delays_nothing() {
    let script = "echo $$ >> began; case $SNAPBACK_EVENT in \
        snapshot-added) sleep 1000 & echo $! > sleeper; wait;; esac; echo $SNAPBACK_EVENT >> ended";
    // On a busy machine a shell needs some time for the others.
    let mut world = start(script, &["--on-event-timeout", "5"]);
    snapshot(&world, "s1");
    world.until("the program sleeps", |w| !lines(w, "sleeper").is_empty());
    // Nothing waits for it.
    let start = Instant::now();
    world.ask("DELETE", "/v1/snapshots/s1", "").assert(204);
    world.ask("GET", "/v1/status", "").assert(200);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    world.until("the next event comes", |w| {
        lines(w, "ended").contains(&"snapshot-removed".to_owned())
    });
    assert!(!lines(&world, "ended").contains(&"snapshot-added".to_owned()));
    let log = world.log();
    assert!(
        log.contains("did not end within 5 s and was killed"),
        "{log}"
    );
    let sleeper = lines(&world, "sleeper")[0].clone();
    world.until("its children are killed, too", |_| !is_alive(&sleeper));
    world.until("all are reaped", |w| children(launcher(w)).is_empty());
}

#[test]
fn a_stop_of_the_daemon_does_not_wait_for_a_program() {
    let mut world = start(
        "echo $$ > began; exec sleep 1000",
        &["--on-event-timeout", "900"],
    );
    world.until("the program runs", |w| !lines(w, "began").is_empty());
    let launcher = launcher(&world).to_string();
    let took = world.terminate();
    assert!(took < Duration::from_secs(30), "{took:?}");
    let pid = lines(&world, "began")[0].clone();
    world.until("it is killed", |_| !is_alive(&pid));
    world.until("nothing is left behind", |_| !is_alive(&launcher));
}

#[test]
fn a_program_that_runs_when_the_daemon_is_killed_ends_by_itself() {
    let script = "echo $$ > began; while ! test -e go; do sleep 0.05; done; echo done > ended";
    let mut world = start(script, &["--on-event-timeout", "900"]);
    world.until("the program runs", |w| !lines(w, "began").is_empty());
    let launcher = launcher(&world).to_string();
    let mut daemon = world.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    fs::write(world.path("go"), "").unwrap();
    world.until("it has ended", |w| lines(w, "ended") == ["done"]);
    world.until("nothing is left behind", |_| !is_alive(&launcher));
}

#[test]
fn the_end_of_the_process_that_runs_the_programs_is_a_line_in_the_log() {
    let mut world = start("exit 0", &[]);
    let pid = i32::try_from(launcher(&world)).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    snapshot(&world, "s1");
    world.until("it is reported", |w| {
        w.log().contains("no more commands are run on events")
    });
    world.ask("GET", "/v1/status", "").assert(200);
}

/// The log of events is the queue: what does not fit is counted.
#[test]
fn events_that_a_slow_program_misses_are_counted() {
    let script = "read -r event; echo \"$event\" >> events; \
        test -e go || while ! test -e go; do sleep 0.05; done";
    let mut world = start(script, &["--on-event-timeout", "900"]);
    world.until("the first event is there", |w| {
        !lines(w, "events").is_empty()
    });
    // More than are kept of front ends.
    world.until("there are more events than are kept of front ends", |w| {
        for _ in 0..8 {
            drop(UnixStream::connect(w.path("a.sock")).unwrap());
        }
        let page = w.ask("GET", "/v1/events", "").json();
        page["newest"].as_u64() > Some(300)
    });
    snapshot(&world, "s1");
    fs::write(world.path("go"), "").unwrap();
    world.until("the count is there", |w| {
        lines(w, "events")
            .iter()
            .any(|line| line.contains("\"lost\""))
    });
    let events = lines(&world, "events");
    let lost = events
        .iter()
        .find(|line| line.contains("\"lost\""))
        .unwrap();
    let lost: Value = serde_json::from_str(lost).unwrap();
    // Between the first event and the next one that is still there.
    let before = events
        .iter()
        .take_while(|line| !line.contains("\"lost\""))
        .count() as u64;
    assert_eq!(
        lost["seq"],
        lost["count"].as_u64().unwrap() + before,
        "{lost}"
    );
}

#[test]
fn a_program_that_is_gone_is_a_line_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    fs::copy("/bin/true", &program).unwrap();
    let mut world = World::start(&["--on-event", program.to_str().unwrap()]);
    fs::remove_file(&program).unwrap();
    snapshot(&world, "s1");
    let told = format!("cannot run {}", program.display());
    world.until("it is reported", |w| w.log().contains(&told));
    world.ask("GET", "/v1/status", "").assert(200);
}
