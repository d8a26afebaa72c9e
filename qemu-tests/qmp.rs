//! QEMU's monitor: JSON commands over a Unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// Names of the events that no test has waited for yet, with the device that they name.
    events: Vec<String>,
}

impl Qmp {
    /// Takes a fresh connection through QEMU's greeting.
    pub fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
        };
        // What happens while we connect may be told before the greeting.
        let greeting = loop {
            let line = qmp.receive();
            if line.get("event").is_none() {
                break line;
            }
        };
        assert!(greeting.get("QMP").is_some(), "no QMP greeting: {greeting}");
        qmp.command("qmp_capabilities");
        qmp
    }

    /// Runs a command without arguments; panics if QEMU refuses it.
    pub fn command(&mut self, name: &str) -> Value {
        self.command_with(name, json!({}))
    }

    /// Runs a command with arguments; panics if QEMU refuses it.
    pub fn command_with(&mut self, name: &str, arguments: Value) -> Value {
        let mut line = json!({ "execute": name, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut answer = self.receive();
            if self.keep_event(&answer) {
                continue;
            }
            assert!(answer.get("error").is_none(), "QMP {name}: {answer}");
            return answer["return"].take();
        }
    }

    /// Waits for an event, which may have come already.
    pub fn wait_for(&mut self, event: &str) {
        loop {
            if let Some(at) = self.events.iter().position(|kept| kept == event) {
                self.events.drain(..=at);
                return;
            }
            let line = self.receive();
            self.keep_event(&line);
        }
    }

    fn keep_event(&mut self, line: &Value) -> bool {
        let event = line.get("event").and_then(Value::as_str);
        // Such as "DEVICE_DELETED disk0".
        let device = line["data"]["device"].as_str();
        let whole = |event: &str| device.map_or(event.into(), |device| format!("{event} {device}"));
        self.events.extend(event.map(whole));
        event.is_some()
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        let length = self
            .reader
            .read_line(&mut line)
            .expect("QEMU's monitor answers in a minute");
        assert!(length > 0, "QEMU closed its monitor");
        serde_json::from_str(&line).unwrap()
    }
}
