//! A real terminal: a shell in tmux, which `qemu-tests/install.sh` installs.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::stdout;

/// A terminal with a shell in it.
pub struct Terminal {
    dir: tempfile::TempDir,
}

impl Terminal {
    /// Of this many columns and lines. `variables` are set in the shell.
    pub fn new(width: u16, height: u16, variables: &[(&str, &str)]) -> Self {
        let terminal = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let program = assert_cmd::cargo::cargo_bin!("snapback");
        let path = format!(
            "{}:{}",
            program.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let (width, height) = (width.to_string(), height.to_string());
        let mut command = vec!["env", "-u", "NO_COLOR", "-u", "SNAPBACK_CONTROL"];
        let set = [
            ("LC_ALL", "C.UTF-8"),
            ("PS1", "$ "),
            ("PATH", &path),
            ("XDG_RUNTIME_DIR", crate::NO_DAEMONS),
        ];
        let set = set.iter().chain(variables);
        let set: Vec<String> = set.map(|(name, value)| format!("{name}={value}")).collect();
        command.extend(set.iter().map(String::as_str));
        command.push("sh");
        let start = ["new-session", "-d", "-x", &width, "-y", &height];
        terminal.tmux(&[&start[..], &command].concat());
        terminal.until("the shell's prompt", |screen| screen.contains('$'));
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output: Output = Command::new("tmux")
            .arg("-u")
            .arg("-S")
            .arg(self.dir.path().join("tmux"))
            .args(["-f", "/dev/null"])
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .output()
            .expect("tmux is missing: run qemu-tests/install.sh");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {arguments:?}: {error}");
        stdout(&output)
    }

    /// Types `line` and Enter.
    pub fn enter(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.key("Enter");
    }

    /// Presses a key: `q`, `C-c`, …
    pub fn key(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    pub fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// What it shows.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the codes for colours and such.
    pub fn coloured(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// A program has the screen for itself, which is not the shell's.
    pub fn is_taken(&self) -> bool {
        self.tmux(&["display-message", "-p", "#{alternate_on}"])
            .trim()
            == "1"
    }

    /// The program that the shell runs.
    pub fn child_of_the_shell(&self) -> i32 {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(path).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The first screen for which `condition` is true.
    #[track_caller]
    pub fn until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if condition(&screen) {
                return screen;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "not within a minute: {what}\n{screen}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let server = self.dir.path().join("tmux");
        let _ = Command::new("tmux")
            .arg("-S")
            .arg(server)
            .arg("kill-server")
            .output();
    }
}
