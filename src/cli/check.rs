//! `snapback check`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Outcome, output};
use crate::control::render;
use crate::offline::{self, Check as Found, DamageKind, Verdict};
use crate::size;

/// Look for damage in a COW store, and say what a repair would cost.
///
/// Finds all that Linux or this program would refuse, and what Linux would accept and serve
/// wrongly. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback check before.cow
  snapback check before.cow --origin disk.img --json

EXIT STATUS
  0 if the store is good (or nothing was made there yet), 1 if it is damaged, invalid, or holds
  stale bytes that Linux might take for entries.")]
pub struct Check {
    /// The COW file or device; nobody may be using it.
    cow: PathBuf,

    /// Also check that the store fits this disk.
    #[arg(long, value_name = "FILE")]
    origin: Option<PathBuf>,

    /// Print JSON, a stable interface.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub fn run(self) -> Result<Outcome, CliError> {
        let found = offline::check(&self.cow, self.origin.as_deref())?;
        if self.json {
            output::json(&found)?;
        } else {
            output::text(&human(&found))?;
        }
        Ok(match found.verdict {
            Verdict::Good | Verdict::New => Outcome::Done,
            Verdict::Stale | Verdict::Invalid | Verdict::Damaged => Outcome::No,
        })
    }
}

fn human(found: &Found) -> String {
    let mut rows = vec![
        (
            "file",
            format!(
                "{}, {}",
                render::printable(&found.cow),
                size::human(found.size)
            ),
        ),
        ("verdict", verdict_word(found.verdict).to_owned()),
    ];
    if matches!(
        found.verdict,
        Verdict::Good | Verdict::Stale | Verdict::Damaged
    ) {
        rows.push(("entries", found.entries.to_string()));
    }
    for damage in &found.damage {
        rows.push((
            "damage",
            format!("{} {}", damage.count, kind_words(damage.kind)),
        ));
        rows.extend(damage.examples.iter().map(|text| ("", text.clone())));
        let more = damage.count.saturating_sub(damage.examples.len() as u64);
        if more > 0 {
            rows.push(("", format!("and {more} more")));
        }
    }
    if found.repeated_entries > 0 {
        rows.push((
            "note",
            format!(
                "{} repeated entries, which change nothing; dropped before the next use",
                found.repeated_entries
            ),
        ));
    }
    rows.push(("repair", found.repair.text.clone()));
    rows.iter()
        .map(|(what, value)| format!("{what:<8}  {value}\n"))
        .collect()
}

const fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::New => "new (nothing made here yet)",
        Verdict::Stale => "stale bytes after the log",
        Verdict::Invalid => "invalid, for good",
        Verdict::Damaged => "damaged",
    }
}

const fn kind_words(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::FileSize => "wrong size of the file",
        DamageKind::Header => "wrong header",
        DamageKind::MissingArea => "metadata area missing at the end of the file",
        DamageKind::BeyondStore => "with a copy beyond the end of the file",
        DamageKind::Metadata => "with a copy where the metadata is",
        DamageKind::BeyondOrigin => "for chunks beyond the end of the origin",
        DamageKind::TwoCopies => "times two copies of one chunk",
        DamageKind::SharedCopy => "times two chunks in one copy",
    }
}
