//! `snapback check`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::progress::Progress;
use super::{CliError, Outcome, output};
use crate::control::render;
use crate::daemon;
use crate::offline::{self, Check as Found, DamageKind, Verdict};
use crate::size;

/// Look for damage in a COW store, and report what a repair would cost.
///
/// Finds everything that Linux or this program would refuse, and what Linux would accept and
/// serve wrongly. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback check before.cow
  snapback check before.cow --origin disk.img --json

EXIT STATUS
  0 if the store is good (or no store was created there yet); 1 if it is damaged or invalid,
  if it holds stale bytes that Linux might take for entries, or if it may not be a correct
  snapshot of the disk.")]
pub struct Check {
    /// The COW file or device; no other process may have it open for writing.
    cow: PathBuf,

    /// Also check that the store fits this disk, and that both are as the last daemon left them.
    #[arg(long, value_name = "FILE")]
    origin: Option<PathBuf>,

    /// State file that may contain the store [default: that of the disk, those beside the COW, and
    /// those of devices].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Print JSON, whose format is stable.
    #[arg(long)]
    json: bool,
}

/// The report, and the reasons to doubt that store and disk belong together.
#[derive(Serialize)]
struct WithDoubts<'a> {
    #[serde(flatten)]
    found: &'a Found,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    doubts: &'a [String],
}

impl Check {
    pub fn run(self) -> Result<Outcome, CliError> {
        let (origin, state) = (self.origin.as_deref(), self.state.as_deref());
        let known = daemon::recorded(&self.cow, origin, state)?;
        let mut bar = Progress::new("checking");
        let found = offline::check_showing(&self.cow, origin, known.as_ref(), |entries| {
            bar.show_words(format!("{entries} entries read"));
        })?;
        bar.end();
        let doubts =
            origin.map_or_else(Vec::new, |origin| daemon::doubts(origin, &self.cow, state));
        if self.json {
            output::json(&WithDoubts {
                found: &found,
                doubts: &doubts,
            })?;
        } else {
            let rows = doubts
                .iter()
                .map(|text| format!("{:<8}  {text}\n", "doubt"));
            output::text(&format!("{}{}", human(&found), rows.collect::<String>()))?;
        }
        Ok(match found.verdict {
            _ if !doubts.is_empty() => Outcome::Faulty,
            Verdict::Good | Verdict::New => Outcome::Done,
            Verdict::Stale | Verdict::Invalid | Verdict::Damaged => Outcome::Faulty,
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
    rows.extend(found.recorded.iter().map(|why| ("why", why.clone())));
    rows.extend(found.warning.iter().map(|text| ("warning", text.clone())));
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
                "{} repeated entries, which are harmless; dropped before the next use",
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
        Verdict::New => "new (no store was created here yet)",
        Verdict::Stale => "stale bytes after the log",
        Verdict::Invalid => "invalid, permanently",
        Verdict::Damaged => "damaged",
    }
}

const fn kind_words(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::FileSize => "wrong size of the file",
        DamageKind::Header => "wrong header",
        DamageKind::MissingArea => "metadata area missing at the end of the file",
        DamageKind::BeyondStore => "with a copy beyond the end of the file",
        DamageKind::Metadata => "with a copy in the place of metadata",
        DamageKind::BeyondOrigin => "for chunks beyond the end of the origin",
        DamageKind::TwoCopies => "chunks with two copies",
        DamageKind::SharedCopy => "copies of two chunks",
    }
}
