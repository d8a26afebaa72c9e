//! Finding all damage of a store without changing it.

use std::path::Path;

use serde::Serialize;

use super::damage::{Damage, DamageKind, Verdict};
use super::info::{HeaderFields, read_header};
use super::repair::{Loss, Repair};
use super::view::{check_two, params};
use super::{Known, OfflineError, Opened};
use crate::io::{BlockFile, OpenError, OpenOptions};
use crate::size::in_words;
use crate::store::{self, Holes, Log, StoreError, Survey};
use crate::units::SECTOR_SIZE;

/// The progress is told each time that this many entries were read.
const PROGRESS_STEP: u64 = 1 << 16;

/// Most examples of each kind of damage.
const EXAMPLES: usize = 5;

/// What `check` found: a stable interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub cow: String,
    /// Bytes of the file or device.
    pub size: u64,
    pub verdict: Verdict,
    /// `null` if the file is too small to have one.
    pub header: Option<HeaderFields>,
    /// Entries found, good and bad.
    pub entries: u64,
    pub damage: Vec<Damage>,
    /// Bytes after the log's end that are not zero, unless they are only copies of an
    /// entry of the log.
    pub stale_bytes: u64,
    /// Entries whose copy lies in a hole of the file and reads as zeroes: zeroed
    /// chunks and sparse copies do, and files that were cut and made longer again.
    pub entries_in_holes: u64,
    /// What the holes mean; `null` if there are none that matter.
    pub warning: Option<String>,
    /// Why the verdict is `invalid` although the header is not: a state file.
    pub recorded: Option<String>,
    /// Entries that repeat another, in the log or behind its end, as a change of the log
    /// that was cut short leaves them: harmless, also for Linux.
    pub repeated_entries: u64,
    /// Bytes of the origin, if it was given.
    pub origin_size: Option<u64>,
    /// What a repair would cost.
    pub repair: Repair,
}

/// Checks all of the store at `cow`, and with `origin` whether the store fits it. No
/// process may write them meanwhile. Takes little more memory than the entries. `known`:
/// what a state file records of the store.
///
/// # Errors
/// A file is in use, or cannot be opened or read. Damage is not an error.
pub fn check(
    cow: &Path,
    origin: Option<&Path>,
    known: Option<&Known>,
) -> Result<Check, OfflineError> {
    check_showing(cow, origin, known, |_| {})
}

/// As [`check`]; `progress` gets the number of entries that were read. How many there are is
/// only known at the end.
///
/// # Errors
/// As [`check`].
pub fn check_showing(
    cow: &Path,
    origin: Option<&Path>,
    known: Option<&Known>,
    mut progress: impl FnMut(u64),
) -> Result<Check, OfflineError> {
    let origin = origin
        .map(|path| BlockFile::open(path, OpenOptions::read_only()))
        .transpose()?;
    let file = match BlockFile::open(cow, OpenOptions::read_only()) {
        Err(error @ (OpenError::TooSmall { size, .. } | OpenError::OddSize { size, .. })) => {
            let recorded = known.and_then(Known::forbids);
            return Ok(odd_size(cow, size, &error, origin.as_ref(), recorded));
        }
        file => file?,
    };
    if let Some(origin) = &origin {
        check_two(origin, &file)?;
    }
    let (size, params) = (file.size(), params(&file, origin.as_ref()));
    let mut opened = Opened::new(cow, file)?;
    let header = read_header(cow, &mut opened)?;
    let mut found = Found::default();
    let mut entries = Log::default();
    let survey = store::survey(
        &mut opened.disk,
        opened.device,
        &params,
        &mut |slot, entry, error| {
            entries.push(entry);
            let read = entries.len() as u64;
            if read.is_multiple_of(PROGRESS_STEP) {
                progress(read);
            }
            if let Some(error) = error {
                found.loss.entry(slot);
                found.add(&error);
            }
        },
    )
    .map_err(OfflineError::store(cow))?;
    let holes = holes(&survey, &opened, &entries);
    let (mut verdict, stale_bytes) = found.judge(survey, &entries);
    let recorded = known.and_then(Known::forbids);
    if recorded.is_some() {
        verdict = Verdict::Invalid;
    }
    let loss = found.loss.count();
    Ok(Check {
        cow: cow.display().to_string(),
        size,
        verdict,
        header: Some(header),
        entries: entries.len() as u64,
        repair: Repair::new(
            verdict,
            &found.damage,
            loss,
            entries.len() as u64,
            stale_bytes,
        ),
        damage: found.damage,
        stale_bytes,
        repeated_entries: found.repeated,
        entries_in_holes: holes.entries,
        warning: holes.warning().filter(|_| verdict != Verdict::Invalid),
        recorded,
        origin_size: origin.map(|origin| origin.size()),
    })
}

/// The holes in which entries have their copies, if there is a log.
fn holes(survey: &Survey, opened: &Opened, entries: &Log) -> Holes {
    match (survey, opened.file()) {
        (Survey::Log { layout, .. }, Some(file)) => Holes::find(&file, *layout, entries),
        (Survey::Log { .. }, None)
        | (Survey::NoHeader(_) | Survey::New | Survey::Invalid { .. }, _) => Holes::default(),
    }
}

/// The result for a file whose size is refused when it is opened.
fn odd_size(
    cow: &Path,
    size: u64,
    error: &OpenError,
    origin: Option<&BlockFile>,
    recorded: Option<String>,
) -> Check {
    let mut found = Found::default();
    found.note(DamageKind::FileSize, || {
        let whole = size.next_multiple_of(SECTOR_SIZE);
        let (error, cow) = (error.to_string(), format!("{}: ", cow.display()));
        match error.strip_prefix(&cow) {
            Some(rest) => format!("the file {rest}"),
            None => format!("the file has {}, not {}", in_words(size), in_words(whole)),
        }
    });
    let verdict = match recorded {
        Some(_) => Verdict::Invalid,
        None => Verdict::Damaged,
    };
    Check {
        cow: cow.display().to_string(),
        size,
        verdict,
        header: None,
        entries: 0,
        repair: Repair::new(verdict, &found.damage, 0, 0, 0),
        damage: found.damage,
        stale_bytes: 0,
        repeated_entries: 0,
        entries_in_holes: 0,
        warning: None,
        recorded,
        origin_size: origin.map(BlockFile::size),
    }
}

#[derive(Default)]
struct Found {
    damage: Vec<Damage>,
    loss: Loss,
    repeated: u64,
}

impl Found {
    fn add(&mut self, error: &StoreError) {
        let kind = match error {
            StoreError::NotData { .. } => DamageKind::Metadata,
            StoreError::BeyondOrigin { .. } => DamageKind::BeyondOrigin,
            StoreError::TwoCopies { .. } => DamageKind::TwoCopies,
            StoreError::SharedCopy { .. } => DamageKind::SharedCopy,
            StoreError::Truncated { .. } => DamageKind::BeyondStore,
            StoreError::Io { .. }
            | StoreError::NotAStore { .. }
            | StoreError::HeaderChunkSize { .. }
            | StoreError::ChunkBelowBlock { .. }
            | StoreError::Version { .. }
            | StoreError::TooSmall { .. } => DamageKind::Header,
        };
        self.note(kind, || error.to_string());
    }

    fn note(&mut self, kind: DamageKind, text: impl FnOnce() -> String) {
        let known = self.damage.iter().position(|damage| damage.kind == kind);
        let place = known.unwrap_or_else(|| {
            self.damage.push(Damage {
                kind,
                count: 0,
                examples: Vec::new(),
            });
            self.damage.len() - 1
        });
        let Some(damage) = self.damage.get_mut(place) else {
            return;
        };
        damage.count += 1;
        if damage.examples.len() < EXAMPLES {
            damage.examples.push(text());
        }
    }

    /// Compares the entries with each other and gives the verdict on everything.
    fn judge(&mut self, survey: Survey, entries: &Log) -> (Verdict, u64) {
        let (junk, missing_area) = match survey {
            Survey::New => return (Verdict::New, 0),
            Survey::Invalid { .. } => return (Verdict::Invalid, 0),
            Survey::NoHeader(error) => {
                self.note(DamageKind::Header, || error.to_string());
                return (Verdict::Damaged, 0);
            }
            Survey::Log {
                junk, missing_area, ..
            } => (junk, missing_area),
        };
        if let Some(error) = missing_area {
            self.note(DamageKind::MissingArea, || error.to_string());
        }
        // The closure returns no error, so this cannot fail.
        let _ = store::for_each_repeat(entries, &mut |repeat| {
            match repeat.conflict() {
                Some(error) => {
                    self.loss.entry(repeat.first);
                    self.loss.entry(repeat.second);
                    self.add(&error);
                }
                None => self.repeated += 1,
            }
            Ok(())
        });
        let copies = junk.as_ref().map_or(0, |junk| junk.copies(entries.iter()));
        self.repeated += copies;
        let stale_bytes = match junk {
            Some(junk) if copies == 0 => junk.bytes.end - junk.bytes.start,
            Some(_) | None => 0,
        };
        let verdict = match (self.damage.is_empty(), stale_bytes) {
            (false, _) => Verdict::Damaged,
            (true, 0) => Verdict::Good,
            (true, _) => Verdict::Stale,
        };
        (verdict, stale_bytes)
    }
}
