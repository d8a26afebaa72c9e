//! Carries a document out.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use super::document::{Document, Part};

/// For a whole document, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// # Errors
/// A command that fails, or prints something else than the document says.
pub fn run(document: &Document) -> Result<(), Failed> {
    if document.parts.is_empty() {
        return Ok(());
    }
    let folder = tempfile::Builder::new()
        .prefix("snapback-")
        .tempdir()
        .unwrap();
    let (work, output) = (folder.path().join("vm"), folder.path().join("output"));
    fs::create_dir(&work).unwrap();
    fs::create_dir(&output).unwrap();
    let errors = folder.path().join("errors");
    let script = script(document, &output).replace("\"/vm/", &format!("\"{}/", work.display()));
    let mut shell = start(&script, &work, &errors);
    let status = ended(&mut shell);
    // What the commands left running, and the shell if it is still there.
    let group = rustix::process::Pid::from_child(&shell);
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    let said = fs::read_to_string(errors).unwrap_or_default();
    match status {
        Some(status) if status.success() => {}
        Some(status) => {
            let printed = last_output(&output);
            return Err(format!("{}: {status}\n{printed}{said}", document.name).into());
        }
        None => {
            let _ = shell.wait();
            return Err(format!("{}: did not end\n{said}", document.name).into());
        }
    }
    shown(document, &output)
}

/// The script: before each part its standard output goes to a file of its own.
fn script(document: &Document, output: &Path) -> String {
    let mut script = include_str!("prelude.sh").to_owned();
    for part in &document.parts {
        if let Part::Run(line, commands) = part {
            let file = output.join(format!("{line:05}"));
            let place = format!("{}:{line}", document.name);
            let _ = writeln!(
                script,
                "exec >'{}'\ntrap 'echo \"{place}: $BASH_COMMAND\" >&2' ERR\n{commands}",
                file.display()
            );
        }
    }
    script
}

fn start(script: &str, work: &Path, errors: &Path) -> Child {
    let program = Path::new(assert_cmd::cargo::cargo_bin!("snapback"));
    let path = std::env::var("PATH").unwrap_or_default();
    let folder = program.parent().unwrap().display();
    Command::new("bash")
        .args(["-c", script])
        .current_dir(work)
        .env("PATH", format!("{folder}:{path}:/usr/sbin:/sbin"))
        .env("BOOK", std::env::current_exe().unwrap())
        .env("XDG_RUNTIME_DIR", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(errors).unwrap())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn ended(shell: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = shell.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = shell.kill();
    None
}

fn last_output(output: &Path) -> String {
    let names = fs::read_dir(output).unwrap();
    let last = names.map(|entry| entry.unwrap().path()).max();
    last.map(|path| fs::read_to_string(path).unwrap_or_default())
        .unwrap_or_default()
}

/// Compares what the commands printed with what the document shows.
fn shown(document: &Document, output: &Path) -> Result<(), Failed> {
    let mut printed = String::new();
    for part in &document.parts {
        match part {
            Part::Run(line, _) => {
                let file = output.join(format!("{line:05}"));
                printed = fs::read_to_string(file).unwrap_or_default();
            }
            Part::Shows(line, text) if !matches(text, &printed) => {
                let name = &document.name;
                return Err(
                    format!("{name}:{line}: shown is\n{text}printed was\n{printed}").into(),
                );
            }
            Part::Shows(..) => {}
        }
    }
    Ok(())
}

/// Whether `text` is `pattern`, in which `…` stands for anything within a line, and a line `…`
/// for any lines. How much space there is between words does not count.
fn matches(pattern: &str, text: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let pattern: Vec<String> = pattern.lines().map(words).collect();
    let text: Vec<String> = text.lines().map(words).collect();
    lines_match(&pattern, &text)
}

fn lines_match(pattern: &[String], text: &[String]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => {
            (0..=text.len()).any(|skipped| lines_match(rest, &text[skipped..]))
        }
        (Some((first, pattern)), Some((line, text))) => {
            line_matches(first, line) && lines_match(pattern, text)
        }
        _ => false,
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.is_empty()
}

/// The result of a document with this text.
fn outcome(text: &str) -> String {
    match Document::read("a.md", text).and_then(|document| run(&document)) {
        Ok(()) => "ok".to_owned(),
        Err(failed) => format!("{failed:?}"),
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        super::finds_nothing("a_document_fails_where_its_commands_do", || {
            let cases = [
                ("```sh\ntrue\n```\n", "ok"),
                ("```sh\nfalse | true\n```\n", "a.md:1: "),
                ("<!-- run: test -e gone -->\n", "a.md:1: test -e gone"),
                ("```sh\nA=1\n```\n```sh\ntest $A = 1\n```\n", "ok"),
                (
                    "```sh\necho a b\n```\n<!-- shows -->\n```text\na  c\n```\n",
                    "printed was",
                ),
                (
                    "```sh\nsleep 1000 &\necho a b\n```\n<!-- shows -->\n```text\na …\n```\n",
                    "ok",
                ),
            ];
            let wrong = cases.iter().filter_map(|(text, word)| {
                let outcome = outcome(text);
                (!outcome.contains(word)).then(|| format!("{text:?}: {outcome}, not {word}"))
            });
            wrong.collect()
        }),
        super::finds_nothing("what_is_shown_is_compared_line_by_line", || {
            let cases = [
                ("a\nb\n", "a\nb\n", true),
                ("a\n…\n", "a\nb\nc\n", true),
                ("a\n…\nd\n", "a\nb\nc\n", false),
                ("used …, … %\n", "used 1 MiB of 5, 20 %\n", true),
                ("used … %\n", "used 1 MiB of 5, 20\n", false),
                ("a\n", "a\nb\n", false),
            ];
            let wrong = cases.iter().filter(|(p, t, same)| matches(p, t) != *same);
            wrong.map(|case| format!("{case:?}")).collect()
        }),
    ]
}
