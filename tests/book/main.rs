//! The documents' commands are carried out.
//!
//! Each document is one script: its `sh` blocks run in their order, in one shell and one empty
//! folder, with the program of this build; a path that begins with `"/vm/` is in it. Comments, which readers do not see, say what is
//! different:
//!
//! - `<!-- run: COMMANDS -->` runs as well: what a reader has already, what a guest does, and
//!   checks. Functions for it are in `prelude.sh`.
//! - `<!-- test: FILE::NAME -->` before a block: this test runs the commands, because they need
//!   more than a shell.
//! - `<!-- all by: FILE::NAME -->` says this of all blocks of the document.
//! - `<!-- not run: REASON -->` before a block: nobody runs it.
//! - `<!-- shows -->` before a block of text: the commands before it print that. `…` stands for
//!   anything within a line, and by itself for any lines.
#![allow(
    unsafe_code, // The guest's memory.
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod chunk_sizes;
#[path = "../common/guest.rs"]
#[allow(dead_code)]
mod common_guest;
mod document;
mod guest;
#[path = "../common/random.rs"]
#[allow(dead_code)]
mod random;
mod runner;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use document::Document;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "guest") {
        guest::run(&arguments[2..]);
        return ExitCode::SUCCESS;
    }
    let mut trials = document::trials();
    trials.extend(runner::trials());
    trials.extend(chunk_sizes::trials());
    for (name, text) in documents() {
        trials.push(Trial::test(name.clone(), move || {
            let document = Document::read(&name, &text)?;
            runner::run(&document)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The documents for users, with their texts.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(root.join(&name)).unwrap();
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// A trial that compares what `body` finds with nothing.
fn finds_nothing(name: &str, body: fn() -> Vec<String>) -> Trial {
    Trial::test(name, move || {
        let found = body();
        if found.is_empty() {
            return Ok(());
        }
        Err(Failed::from(found.join("\n")))
    })
}
