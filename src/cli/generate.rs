//! `snapback generate`: what a package installs beside the program.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{CliError, Outcome};

/// Write the man pages, or the completions for shells, into a folder.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback generate man build/man
  snapback generate completions build/completions")]
pub struct Generate {
    /// What is written.
    #[arg(value_enum)]
    what: What,

    /// The folder, which is made if it does not exist.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// A page for the program and one for each verb, of section 1.
    Man,
    /// For bash, zsh and fish.
    Completions,
}

/// Shells that complete the command line.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

impl Generate {
    /// `command`: the whole command line.
    pub fn run(self, command: Command) -> Result<Outcome, CliError> {
        let written = fs::create_dir_all(&self.folder).and_then(|()| match self.what {
            What::Man => pages(command, &self.folder),
            What::Completions => completions(command, &self.folder),
        });
        written.map(|()| Outcome::Done).map_err(|e| {
            CliError::Failed(format!(
                "folder {}: {e}: choose a folder that you may write to",
                self.folder.display()
            ))
        })
    }
}

fn completions(mut command: Command, folder: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command, &name, folder)?;
    }
    Ok(())
}

fn pages(command: Command, folder: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    page(&command, folder)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page(verb, folder)?;
    }
    Ok(())
}

fn page(command: &Command, folder: &Path) -> io::Result<()> {
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let more = command.get_after_long_help().or(command.get_after_help());
    if let Some(more) = more {
        sections(&more.to_string(), &mut text)?;
    }
    fs::write(folder.join(man.get_filename()), text)
}

/// The sections at the end of a verb's help, line for line: a heading is a line of capitals.
fn sections(text: &str, page: &mut dyn Write) -> io::Result<()> {
    let mut is_open = false;
    for line in text.lines() {
        let is_heading = line.starts_with(|c: char| c.is_ascii_uppercase())
            && !line.contains(|c: char| c.is_ascii_lowercase());
        if is_heading || !is_open {
            let close = if is_open { ".fi\n" } else { "" };
            let heading = if is_heading { line } else { "NOTES" };
            writeln!(page, "{close}.SH {}\n.nf", literal(heading))?;
            is_open = true;
        }
        if !is_heading {
            writeln!(page, "{}", literal(line.strip_prefix("  ").unwrap_or(line)))?;
        }
    }
    if is_open {
        writeln!(page, ".fi")?;
    }
    Ok(())
}

/// A line that roff shows as it is.
fn literal(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_keeps_its_lines_and_its_backslashes() {
        let mut page = Vec::new();
        let text =
            "EXAMPLE\n  a disk:\n    snapback serve \\\n      --x\n.y\nEXIT STATUS\n  0  done";
        sections(text, &mut page).unwrap();
        let expected = ".SH EXAMPLE\n.nf\na disk:\n  snapback serve \\e\n    \\-\\-x\n\\&.y\n.fi\n\
                        .SH EXIT STATUS\n.nf\n0  done\n.fi\n";
        assert_eq!(String::from_utf8(page).unwrap(), expected);
    }
}
