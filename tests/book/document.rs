//! What a document says shall be run.

use std::fs;
use std::path::Path;

use libtest_mimic::{Failed, Trial};

/// A part of the script that a document is.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Commands that the reader sees, or not, and the line at which they begin.
    Run(usize, String),
    /// What the commands before print.
    Shows(usize, String),
}

#[derive(Debug)]
pub struct Document {
    pub name: String,
    pub parts: Vec<Part>,
}

impl Document {
    /// # Errors
    /// A block that neither runs nor says who runs it, or a mark that cannot be right.
    pub fn read(name: &str, text: &str) -> Result<Self, Failed> {
        let mut reader = Reader {
            parts: Vec::new(),
            mark: None,
            all_elsewhere: false,
        };
        let mut lines = text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            let number = at + 1;
            let trimmed = line.trim_start();
            let found = if let Some(kind) = trimmed.strip_prefix("```") {
                let indent = line.len() - trimmed.len();
                let body = block(&mut lines, indent);
                reader.block(number, kind.trim(), body)
            } else if let Some(first) = trimmed.strip_prefix("<!-- ") {
                reader.comment(number, &comment(first, &mut lines))
            } else if !trimmed.is_empty() && reader.mark.is_some() {
                Err("a mark has no block".to_owned())
            } else {
                Ok(())
            };
            found.map_err(|what| format!("{name}:{number}: {what}"))?;
        }
        Ok(Self {
            name: name.to_owned(),
            parts: reader.parts,
        })
    }
}

/// The lines of a block, up to its closing fence.
fn block<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>, indent: usize) -> String {
    let mut body = String::new();
    for (_, line) in lines {
        if line.trim() == "```" {
            break;
        }
        body += line.get(indent..).unwrap_or_default();
        body.push('\n');
    }
    body
}

/// The text of a comment, up to its end.
fn comment<'a>(first: &'a str, lines: &mut impl Iterator<Item = (usize, &'a str)>) -> String {
    let mut text = String::new();
    let mut line = first;
    loop {
        if let Some(last) = line.trim_end().strip_suffix("-->") {
            return text + last.trim_end();
        }
        text += line;
        text.push('\n');
        match lines.next() {
            Some((_, next)) => line = next,
            None => return text,
        }
    }
}

/// What the comment before a block says of it.
enum Mark {
    Elsewhere,
    Shows,
}

struct Reader {
    parts: Vec<Part>,
    mark: Option<Mark>,
    all_elsewhere: bool,
}

impl Reader {
    fn block(&mut self, number: usize, kind: &str, body: String) -> Result<(), String> {
        match (kind, self.mark.take()) {
            ("sh", None) if self.all_elsewhere => Ok(()),
            ("sh", None) if leaves_the_folder(&body) => Err(
                "`…` and paths of the system cannot be run: name the test that runs this, or say why \
                 none does"
                    .into(),
            ),
            ("sh", None) => {
                self.parts.push(Part::Run(number, body));
                Ok(())
            }
            ("sh", Some(Mark::Elsewhere)) | (_, None) => Ok(()),
            ("text", Some(Mark::Shows)) if !self.parts.is_empty() => {
                self.parts.push(Part::Shows(number, body));
                Ok(())
            }
            _ => Err("this mark is not for such a block".into()),
        }
    }

    fn comment(&mut self, number: usize, text: &str) -> Result<(), String> {
        let word = |word: &str| text.strip_prefix(word);
        if let Some(commands) = word("run:") {
            self.parts
                .push(Part::Run(number, format!("{}\n", commands.trim())));
        } else if let Some(test) = word("test: ") {
            exists(test)?;
            self.mark = Some(Mark::Elsewhere);
        } else if let Some(test) = word("all by: ") {
            exists(test)?;
            self.all_elsewhere = true;
        } else if let Some(reason) = word("not run: ") {
            if reason.len() < 10 {
                return Err("no reason".into());
            }
            self.mark = Some(Mark::Elsewhere);
        } else if text == "shows" {
            self.mark = Some(Mark::Shows);
        } else {
            return Err(format!("the comment `{text}` means nothing"));
        }
        Ok(())
    }
}

/// A document may change nothing outside its folder, which `/vm` stands for.
fn leaves_the_folder(commands: &str) -> bool {
    let words = commands.split(|c: char| c.is_whitespace() || "=\"'(),".contains(c));
    let is_system = |word: &str| word.starts_with('/') && !word.starts_with("/vm/");
    commands.contains('…') || words.into_iter().any(is_system)
}

/// `test` is `FILE::NAME`, or a script.
fn exists(test: &str) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (file, name) = test.split_once("::").unwrap_or((test, ""));
    let text = fs::read_to_string(root.join(file)).map_err(|e| format!("{file}: {e}"))?;
    let is_script = name.is_empty() && text.starts_with("#!");
    if is_script || !name.is_empty() && text.contains(&format!("fn {name}(")) {
        return Ok(());
    }
    Err(format!("there is no test {test}"))
}

pub fn trials() -> Vec<Trial> {
    vec![
        super::finds_nothing("blocks_and_comments_are_read_in_their_order", || {
            let text = "\
Words.\n\n<!-- run:\ntruncate -s 1M disk.img\n-->\n\n1. Step:\n\n   ```sh\n   snapback info\n   ```\n\
<!-- shows -->\n```text\nstate …\n```\n```json\n{}\n```\n\
<!-- test: tests/book/document.rs::exists -->\n\n```sh\nqemu …\n```\n";
            let read = Document::read("a.md", text).unwrap();
            let parts = [
                Part::Run(3, "truncate -s 1M disk.img\n".to_owned()),
                Part::Run(9, "snapback info\n".to_owned()),
                Part::Shows(13, "state …\n".to_owned()),
            ];
            let differs = read.parts != parts;
            differs
                .then(|| format!("{:?}", read.parts))
                .into_iter()
                .collect()
        }),
        super::finds_nothing("a_block_that_nobody_runs_is_found", || {
            let wrong = [
                ("```sh\nqemu …\n```\n", "cannot be run"),
                ("```sh\nrm -r a /etc/b\n```\n", "cannot be run"),
                (
                    "<!-- test: tests/book/document.rs::gone -->\n```sh\n```\n",
                    "no test",
                ),
                (
                    "<!-- test: tests/gone.rs::gone -->\n```sh\n```\n",
                    "gone.rs",
                ),
                ("<!-- not run: no -->\n```sh\n```\n", "no reason"),
                ("<!-- shows -->\n```text\n```\n", "not for such a block"),
                ("<!-- shows -->\n\nWords.\n", "has no block"),
                ("<!-- note -->\n", "means nothing"),
            ];
            let missed = wrong.iter().filter_map(|(text, word)| {
                let found = Document::read("a.md", text)
                    .err()
                    .map_or_else(String::new, |failed| format!("{failed:?}"));
                (!found.contains(word)).then(|| format!("{text:?}: {found:?}, not {word:?}"))
            });
            missed.collect()
        }),
    ]
}
