//! The entries of a store as they are, valid or not.

use std::path::Path;

use serde::Serialize;

use super::info::{HeaderFields, read_header};
use super::view::params;
use super::{OfflineError, Opened};
use crate::io::{BlockFile, OpenOptions};
use crate::store::{self, LoadParams, Survey};

/// Entries that follow one another in the log, the origin and the COW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Slot of the first in the log.
    pub slot: u64,
    /// Chunks.
    pub old: u64,
    pub new: u64,
    pub count: u64,
}

/// A store, opened to be dumped.
pub struct Dump {
    pub header: HeaderFields,
    /// Bytes of the file or device.
    pub size: u64,
    opened: Opened,
    params: LoadParams,
    cow: std::path::PathBuf,
}

/// How the dump ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpEnd {
    pub entries: u64,
    /// Bytes after the log's end that are not zero.
    pub stale_bytes: u64,
    /// Why the dump ended early; `None` if it is complete.
    pub problem: Option<String>,
}

impl Dump {
    /// Opens the store at `cow`. No process may write it meanwhile.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn open(cow: &Path) -> Result<Self, OfflineError> {
        let file = BlockFile::open(cow, OpenOptions::read_only())?;
        let (size, params) = (file.size(), params(&file, None));
        let mut opened = Opened::new(cow, file)?;
        Ok(Self {
            header: read_header(cow, &mut opened)?,
            size,
            opened,
            params,
            cow: cow.to_owned(),
        })
    }

    /// Passes the entries to `emit`, in runs, in the order of the log.
    ///
    /// # Errors
    /// The store cannot be read, or the errors of `emit`.
    pub fn runs<E: From<OfflineError>>(
        mut self,
        emit: &mut dyn FnMut(Run) -> Result<(), E>,
    ) -> Result<DumpEnd, E> {
        let mut last: Option<Run> = None;
        let mut result = Ok(());
        let survey = store::survey(
            &mut self.opened.disk,
            self.opened.device,
            &self.params,
            &mut |slot, entry, _| {
                if let Some(run) = &mut last
                    && run.old.checked_add(run.count) == Some(entry.old)
                    && run.new.checked_add(run.count) == Some(entry.new)
                {
                    run.count += 1;
                    return;
                }
                let run = Run {
                    slot: slot as u64,
                    old: entry.old,
                    new: entry.new,
                    count: 1,
                };
                if let (Some(run), Ok(())) = (last.replace(run), &result) {
                    result = emit(run);
                }
            },
        )
        .map_err(OfflineError::store(&self.cow))?;
        result?;
        if let Some(run) = last {
            emit(run)?;
        }
        Ok(DumpEnd::new(survey))
    }
}

impl DumpEnd {
    fn new(survey: Survey) -> Self {
        let nothing = |problem: Option<String>| Self {
            entries: 0,
            stale_bytes: 0,
            problem,
        };
        match survey {
            Survey::NoHeader(error) => nothing(Some(error.to_string())),
            Survey::Invalid { .. } => nothing(Some(
                "the store is invalid for good; its entries mean nothing".to_owned(),
            )),
            Survey::New => nothing(None),
            Survey::Log {
                entries,
                junk,
                missing_area,
                ..
            } => Self {
                entries: entries as u64,
                stale_bytes: junk.map_or(0, |junk| junk.bytes.end - junk.bytes.start),
                problem: missing_area.map(|error| error.to_string()),
            },
        }
    }
}
