//! A daemon whose system calls can be made to fail or to wait.

use serde_json::Value;

use super::inject::{Injector, filtered};
use super::*;

/// A daemon whose system calls can be made to fail, and what it writes to stderr.
pub struct Failing {
    pub world: World,
    pub faults: Injector,
}

impl Failing {
    pub fn start(mut world: World) -> Self {
        let log = fs::File::create(world.path("log")).unwrap();
        let mut command = world.command(&["--socket-path", "a.sock", "--control", "c.sock"]);
        command.stdout(Stdio::null()).stderr(log);
        let daemon = filtered(&mut command).spawn().unwrap();
        let faults = Injector::attach(&daemon, &[]);
        world.daemon = Some(daemon);
        world.until("the daemon answers", |w| w.client().status().is_ok());
        Self { world, faults }
    }

    pub fn verb(&self, arguments: &[&str]) -> Output {
        Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .current_dir(self.world.folder.path())
            .env("XDG_RUNTIME_DIR", self.world.folder.path())
            .args(arguments)
            .args(["--control", "c.sock"])
            .output()
            .unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.world.path("log")).unwrap()
    }

    /// The events of this kind so far.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let page = self.world.client().events(0, None).unwrap();
        let events = page.events.into_iter();
        events.filter(|e| e["kind"] == kind).collect()
    }

    pub fn until_event(&self, kind: &str) -> Value {
        self.world.until(kind, |_| !self.events(kind).is_empty());
        self.events(kind).remove(0)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
