//! A command that must end.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Far more than any refusal takes.
const LIMIT: Duration = Duration::from_secs(60);

/// As [`Command::output`], but a command that goes on (a daemon that should have
/// refused to start) is killed and fails the test.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Read meanwhile, so that no full pipe keeps the command from its end.
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let all = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let stdout = std::thread::spawn(move || all(&mut stdout));
    let stderr = std::thread::spawn(move || all(&mut stderr));
    let start = Instant::now();
    let mut killed = false;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT && !killed {
            child.kill().unwrap();
            killed = true;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    };
    assert!(
        !killed,
        "{command:?} does not end within {LIMIT:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
