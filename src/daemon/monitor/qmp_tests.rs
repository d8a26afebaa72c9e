use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use super::*;

pub const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

pub fn calm() -> Arc<AtomicBool> {
    Arc::default()
}

/// A monitor that says what a test has it say, to one client after the other.
pub struct Monitor {
    pub folder: tempfile::TempDir,
    pub listener: UnixListener,
}

impl Monitor {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        Self { folder, listener }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// Serves the next client with `talk`.
    pub fn serve(&self, talk: impl FnOnce(&mut Client) + Send + 'static) -> JoinHandle<()> {
        let listener = self.listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            talk(&mut Client(BufReader::new(stream)));
        })
    }
}

/// The client, as the monitor sees it.
pub struct Client(BufReader<UnixStream>);

impl Client {
    pub fn say(&mut self, text: &str) {
        let _ = self.0.get_mut().write_all(format!("{text}\r\n").as_bytes());
    }

    /// The next command; `None` when the client has left.
    pub fn command(&mut self) -> Option<(String, Value)> {
        let mut line = String::new();
        if self.0.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        let mut command: Value = serde_json::from_str(&line).unwrap();
        let name = command["execute"].as_str().unwrap().to_owned();
        Some((name, command["id"].take()))
    }

    pub fn answer(&mut self, id: &Value, value: Value) {
        self.say(&json!({ "return": value, "id": id }).to_string());
    }

    pub fn greet(&mut self) {
        self.say(GREETING);
        let (name, id) = self.command().unwrap();
        assert_eq!(name, "qmp_capabilities");
        self.answer(&id, json!({}));
    }

    /// Until the client leaves.
    pub fn wait(&mut self) {
        while self.command().is_some() {}
    }
}

fn event(name: &str) -> String {
    json!({ "event": name, "timestamp": {}, "data": {} }).to_string()
}

#[test]
fn a_command_gets_its_own_answer_among_events_and_late_answers() {
    let monitor = Monitor::new();
    let thread = monitor.serve(|client| {
        client.say(&event("NIC_RX_FILTER_CHANGED"));
        client.greet();
        let (name, id) = client.command().unwrap();
        assert_eq!(name, "query-status");
        client.say(&event("STOP"));
        client.answer(&json!(1), json!({ "status": "an earlier command's" }));
        client.say("");
        client.answer(&id, json!({ "status": "running" }));
        client.say(&event("RESET"));
        client.wait();
    });
    let mut qmp = Qmp::connect(&monitor.path(), &calm()).unwrap();
    assert_eq!(qmp.run("query-status").unwrap()["status"], "running");
    assert_eq!(qmp.event(&["RESET", "SHUTDOWN"]).unwrap(), "RESET");
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_daemon_that_stops_does_not_wait_for_a_monitor_that_hangs() {
    let monitor = Monitor::new();
    let hurry = calm();
    let theirs = Arc::clone(&hurry);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        theirs.store(true, Ordering::Release);
    });
    let start = Instant::now();
    let error = Qmp::connect(&monitor.path(), &hurry).unwrap_err();
    assert!(matches!(error, QmpError::NoGreeting(_)), "{error}");
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn what_the_monitor_refuses_is_said_in_its_words() {
    let monitor = Monitor::new();
    let thread = monitor.serve(|client| {
        client.greet();
        let (_, id) = client.command().unwrap();
        let error = json!({ "class": "GenericError", "desc": "no such thing" });
        client.say(&json!({ "error": error, "id": id }).to_string());
        client.wait();
    });
    let mut qmp = Qmp::connect(&monitor.path(), &calm()).unwrap();
    let error = qmp.run("stop").unwrap_err().to_string();
    assert_eq!(error, "QEMU refused `stop`: no such thing");
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn what_is_no_monitor_is_said_to_be_none() {
    type Talk = fn(&mut Client);
    let talks: [(Talk, &str); 6] = [
        (|client| client.say("SSH-2.0-OpenSSH"), "not JSON"),
        (|client| client.say("[1]"), "not an object"),
        (|client| client.say(r#"{"hello": 1}"#), "not a greeting"),
        (|_| {}, "closed the connection"),
        (
            |client| {
                // Longer than any line that QEMU sends.
                let much = vec![b' '; 2 * LINE_MAX];
                let _ = client.0.get_mut().write_all(&much);
            },
            "too long",
        ),
        (
            |client| {
                client.say(GREETING);
                let (_, id) = client.command().unwrap();
                client.say(&json!({ "id": id }).to_string());
                client.wait();
            },
            "without `return`",
        ),
    ];
    for (talk, word) in talks {
        let monitor = Monitor::new();
        let thread = monitor.serve(talk);
        let error = Qmp::connect(&monitor.path(), &calm())
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{word}: {error}");
        thread.join().unwrap();
    }
}

#[test]
fn a_monitor_that_cannot_be_reached_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let missing = Qmp::connect(&path, &calm()).unwrap_err().to_string();
    drop(UnixListener::bind(&path).unwrap());
    let dead = Qmp::connect(&path, &calm()).unwrap_err().to_string();
    for error in [missing, dead] {
        let option = format!("-qmp unix:{}", path.display());
        assert!(error.contains(&option), "{error}");
    }
}

#[test]
fn a_monitor_that_is_busy_or_hangs_is_given_up() {
    // It serves another client: nobody accepts this one.
    let monitor = Monitor::new();
    let start = Instant::now();
    let error = Qmp::connect(&monitor.path(), &calm()).unwrap_err();
    assert!(matches!(error, QmpError::NoGreeting(_)), "{error}");
    assert!(error.to_string().contains("one client at a time"));
    assert!(start.elapsed() >= PATIENCE);
    // It talks of other things only.
    let monitor = Monitor::new();
    let thread = monitor.serve(|client| {
        client.greet();
        let stop = Instant::now() + 2 * PATIENCE + Duration::from_secs(1);
        while Instant::now() < stop {
            client.say(&event("RTC_CHANGE"));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut qmp = Qmp::connect(&monitor.path(), &calm()).unwrap();
    let error = qmp.run("stop").unwrap_err();
    assert!(
        matches!(error, QmpError::Slow { command: "stop" }),
        "{error}"
    );
    let error = qmp.event(&["RESET"]).unwrap_err();
    assert!(
        matches!(error, QmpError::NoEvent { event: "RESET" }),
        "{error}"
    );
    drop(qmp);
    thread.join().unwrap();
}
