//! QEMU as its monitor shows it: a machine that can be stopped, reset and let
//! run, and a step at which it fails.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::machine::{FIRMWARE, Machine};

/// What a command comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refuse,
    /// Nothing is done and nothing said.
    Hang,
    /// It is done, but the answer does not arrive.
    DoneUnheard,
    Close,
    /// Of a reset: QEMU ends.
    Shutdown,
    /// Of a reset: the monitor never reports it.
    Silent,
}

/// What the tests look at and set.
#[derive(Default)]
pub struct Inside {
    pub machine: Option<Machine>,
    /// `None`: it runs.
    pub paused: Option<&'static str>,
    pub fault: Option<(&'static str, Fault)>,
    /// `stop` stops another machine than the one on the disk.
    pub another: bool,
    /// Commands that were carried out or failed.
    pub log: Vec<String>,
    reset: bool,
    client: Option<UnixStream>,
}

pub struct Monitor {
    pub path: PathBuf,
    pub inside: Arc<Mutex<Inside>>,
}

impl Monitor {
    /// The monitor of `machine`, which runs.
    pub fn of(machine: Machine, folder: &Path) -> Self {
        let path = folder.join("qmp.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let inside = Arc::new(Mutex::new(Inside {
            machine: Some(machine),
            ..Inside::default()
        }));
        let theirs = Arc::clone(&inside);
        std::thread::spawn(move || {
            // One client at a time, as QEMU has it.
            for stream in listener.incoming() {
                serve(stream.unwrap(), &theirs);
            }
        });
        Self { path, inside }
    }

    pub fn text(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    pub fn fail(&self, command: &'static str, fault: Fault) {
        self.inside.lock().unwrap().fault = Some((command, fault));
    }

    /// What was asked of it since the last call, but for the opening.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.inside.lock().unwrap().log)
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        act(self.inside.lock().unwrap().machine.as_mut().unwrap())
    }

    pub fn paused(&self) -> bool {
        self.inside.lock().unwrap().paused.is_some()
    }

    /// Tells its client of an event.
    pub fn tell(&self, event: &str) {
        let inside = self.inside.lock().unwrap();
        say(inside.client.as_ref().unwrap(), &json!({ "event": event }));
    }

    /// No client is connected.
    pub fn is_free(&self) -> bool {
        self.inside.lock().unwrap().client.is_none()
    }

    /// The connection breaks off.
    pub fn hang_up(&self) {
        let inside = self.inside.lock().unwrap();
        let client = inside.client.as_ref().unwrap();
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn say(mut stream: &UnixStream, value: &Value) {
    let _ = stream.write_all(format!("{value}\r\n").as_bytes());
}

fn serve(stream: UnixStream, inside: &Mutex<Inside>) {
    inside.lock().unwrap().client = Some(stream.try_clone().unwrap());
    converse(&stream, inside);
    inside.lock().unwrap().client = None;
}

fn converse(stream: &UnixStream, inside: &Mutex<Inside>) {
    let greets = inside.lock().unwrap().fault != Some(("greeting", Fault::Hang));
    if greets {
        say(
            stream,
            &json!({ "QMP": { "version": {}, "capabilities": [] } }),
        );
    }
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap_or(0) > 0 {
        let command: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let name = command["execute"].as_str().unwrap();
        let mut inside = inside.lock().unwrap();
        if name != "qmp_capabilities" {
            inside.log.push(name.to_owned());
        }
        let fault = inside.fault.filter(|(at, _)| *at == name).map(|(_, f)| f);
        match fault {
            Some(Fault::Hang) => continue,
            Some(Fault::Close) => return,
            Some(Fault::Refuse) => {
                let error = json!({ "class": "GenericError", "desc": "not today" });
                say(stream, &json!({ "error": error, "id": command["id"] }));
                continue;
            }
            _ => {}
        }
        let value = inside.obey(name, fault, stream);
        if fault != Some(Fault::DoneUnheard) {
            say(stream, &json!({ "return": value, "id": command["id"] }));
        }
    }
}

impl Inside {
    fn obey(&mut self, name: &str, fault: Option<Fault>, client: &UnixStream) -> Value {
        let another = self.another;
        let machine = self.machine.as_mut().filter(|_| !another);
        match name {
            "query-status" => {
                let status = self.paused.unwrap_or("running");
                return json!({ "status": status, "running": self.paused.is_none() });
            }
            "stop" => {
                self.paused = Some("paused");
                machine.map(Machine::stop);
                say(client, &json!({ "event": "STOP" }));
            }
            "system_reset" if fault == Some(Fault::Shutdown) => {
                say(client, &json!({ "event": "SHUTDOWN" }));
            }
            "system_reset" => {
                machine.map(Machine::stop);
                self.reset = true;
                if self.paused.is_some() {
                    self.paused = Some("prelaunch");
                }
                if fault != Some(Fault::Silent) {
                    say(client, &json!({ "event": "RESET" }));
                }
            }
            "cont" => {
                self.paused = None;
                say(client, &json!({ "event": "RESUME" }));
                match (machine, std::mem::take(&mut self.reset)) {
                    (Some(machine), true) => machine.begin(FIRMWARE),
                    (Some(machine), false) => machine.go_on(),
                    (None, _) => {}
                }
            }
            _ => {}
        }
        json!({})
    }
}
