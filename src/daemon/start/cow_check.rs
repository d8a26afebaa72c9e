//! Whether each snapshot of the plan has its own COW, with the content that it had.

use std::path::Path;
use std::sync::Arc;

use super::options::ServeOptions;
use super::plan::{PlannedSnapshot, Source};
use crate::control::api::SnapshotSpec;
use crate::daemon::DaemonError;
use crate::daemon::cow::error::CowError;
use crate::daemon::cow::{self, Fate, InspectedCow, OriginFacts, Purpose};
use crate::daemon::identity::{OriginIdentity, storage_of};
use crate::daemon::provenance::cow_verdict::{Verdict, belongs_elsewhere, judge};
use crate::daemon::provenance::golden;
use crate::daemon::provenance::placement::Placement;
use crate::daemon::state::VolumeState;
use crate::io::{Devices, Disk, Identity};

/// What the COWs are checked against, and what was found.
pub struct CowChecks<'a> {
    pub options: &'a ServeOptions,
    pub recorded: Option<&'a VolumeState>,
    pub placement: &'a Placement,
    pub origin: &'a OriginFacts,
    pub identity: &'a OriginIdentity,
    pub has_state_file: bool,
    /// The snapshot whose merge the start resumes or begins.
    pub merging: Option<String>,
    pub devices: &'a Arc<Devices>,
    /// The storage of the COWs that were checked, by snapshot.
    pub used: Vec<(String, Identity)>,
    /// Invalid snapshots without a COW, with the reason.
    pub absent: Vec<(String, String)>,
    pub remarks: Vec<String>,
}

impl CowChecks<'_> {
    /// Checks and opens one COW. `None`: an invalid snapshot without a COW.
    pub fn check(
        &mut self,
        planned: &PlannedSnapshot,
        disk: &mut dyn Disk,
    ) -> Result<Option<InspectedCow>, DaemonError> {
        let (name, cow) = (&planned.spec.name, &planned.spec.cow);
        let known_invalid = planned.source == Source::Recorded && !planned.valid;
        if known_invalid && let Some(why) = self.foreign(name) {
            self.absent.push((name.clone(), format!("COW {cow} {why}")));
            return Ok(None);
        }
        let verdict = self.verdict(planned)?;
        let inspected = match self.inspect(planned, disk) {
            // Nothing is left that could be taken for a snapshot.
            Err(error) if known_invalid && error.is_absence() => {
                self.absent.push((name.clone(), error.to_string()));
                return Ok(None);
            }
            Err(error) => return Err(refusal(planned, &error)),
            Ok(inspected) => inspected,
        };
        self.refuse_if_elsewhere(planned)?;
        self.check_unflushed(planned, &inspected)?;
        if inspected.is_valid() {
            let remark = accept(&planned.spec, verdict, self.options.accept_changes)?;
            self.remarks.extend(remark);
        }
        if !self.has_state_file && inspected.holds_entries() {
            let change = golden::change(Path::new(cow), self.identity);
            let remark = accept_image(self.options, planned, change)?;
            self.remarks.extend(remark);
        }
        if let Some(warning) = &inspected.warning {
            self.remarks
                .push(format!("snapshot {name}: COW {cow}: {warning}"));
        }
        let storage = storage_of(Path::new(cow));
        self.used.extend(storage.map(|i| (name.clone(), i)));
        if self.merging.as_ref() == Some(name) && !(planned.valid && inspected.is_valid()) {
            return Err(DaemonError::Refused(format!(
                "snapshot {name} cannot be merged: its store is invalid. If its merge has begun, the origin holds a part of \
                 it; to serve the origin as it is, pass --forget {name}"
            )));
        }
        Ok(Some(inspected))
    }

    /// What the file at a snapshot's COW path is. Refuses a file that is certainly not the
    /// snapshot's COW, because further checks would be about another snapshot.
    fn verdict(&self, planned: &PlannedSnapshot) -> Result<Verdict, DaemonError> {
        let (name, cow) = (&planned.spec.name, &planned.spec.cow);
        let recorded = self
            .recorded
            .and_then(|recorded| Some((recorded.snapshot(name)?, recorded)));
        let Some((record, recorded)) = recorded.filter(|_| planned.valid) else {
            return Ok(Verdict::Own);
        };
        match judge(record, recorded, self.placement) {
            Verdict::Foreign(why) => Err(DaemonError::Refused(format!(
                "snapshot {name} is known to this volume, but COW {cow} {why}. Without its own COW the snapshot would be \
                 wrong for good. Move its own COW back to this path, or give the snapshot up with snapback serve --forget \
                 {name}, which does not touch the file"
            ))),
            Verdict::Originals => Err(DaemonError::Refused(format!(
                "snapshot {name}: this is a copy, and COW {cow} is outside the copied folder, so the original uses it. Give \
                 the snapshot up in the copy with snapback serve --forget {name}, which does not touch the original's COW"
            ))),
            verdict @ (Verdict::Own | Verdict::OwnBut(_) | Verdict::Doubtful(_)) => Ok(verdict),
        }
    }

    /// Why the file at the COW path of a snapshot is certainly not its own.
    pub fn foreign(&self, name: &str) -> Option<String> {
        let recorded = self.recorded?;
        let record = recorded.snapshot(name)?;
        match judge(record, recorded, self.placement) {
            Verdict::Foreign(why) => Some(why),
            Verdict::Originals => Some("is used by the original of this copy".to_owned()),
            Verdict::Own | Verdict::OwnBut(_) | Verdict::Doubtful(_) => None,
        }
    }

    /// Refuses a COW that is new to this volume and in use by another one.
    fn refuse_if_elsewhere(&self, planned: &PlannedSnapshot) -> Result<(), DaemonError> {
        let (name, cow) = (&planned.spec.name, &planned.spec.cow);
        let volume = self.recorded.and_then(|state| state.volume.as_deref());
        let is_new = planned.source == Source::Options;
        match belongs_elsewhere(Path::new(cow), volume).filter(|_| is_new) {
            Some(why) => Err(DaemonError::Refused(format!(
                "snapshot {name}: COW {cow} {why}: give the snapshot a file or device of its own"
            ))),
            None => Ok(()),
        }
    }

    /// What a dead daemon has acknowledged must be found.
    fn check_unflushed(
        &mut self,
        planned: &PlannedSnapshot,
        inspected: &InspectedCow,
    ) -> Result<(), DaemonError> {
        let name = &planned.spec.name;
        let recorded = self.recorded.filter(|recorded| recorded.running);
        let noted = recorded.and_then(|recorded| recorded.snapshot(name)?.unflushed.as_ref());
        let Some(noted) = noted.filter(|_| planned.valid) else {
            return Ok(());
        };
        let lost = "what its guest wrote and did not flush before the last daemon died may be lost";
        let why = match inspected.fate(noted) {
            Fate::Found => return Ok(()),
            Fate::OtherBoot => {
                self.remarks.push(format!(
                    "snapshot {name}: the volume was not stopped, and the system was started since then, or is another one: \
                     {lost}, as after power loss"
                ));
                return Ok(());
            }
            Fate::Unreadable(why) => why,
        };
        if self.options.accept_changes {
            self.remarks.push(format!(
                "snapshot {name}: the record {why}: {lost}; accepted"
            ));
            return Ok(());
        }
        Err(DaemonError::Refused(format!(
            "snapshot {name}: the record of unflushed writes {why}, so that {lost}. Bring it back, or start as the user and \
             in the environment of the last daemon; or, if no guest has to go on where it was, start with --accept-changes"
        )))
    }

    fn inspect(
        &self,
        planned: &PlannedSnapshot,
        disk: &mut dyn Disk,
    ) -> Result<InspectedCow, CowError> {
        let purpose = match planned.source {
            Source::Recorded if !planned.valid => Purpose::KnownInvalid,
            Source::Recorded => Purpose::Known,
            Source::Options if planned.scratch => Purpose::Scratch,
            Source::Options => Purpose::AtStart,
        };
        cow::inspect(
            &planned.spec,
            (purpose, self.options.lock(), None),
            self.origin,
            &self.used,
            self.devices,
            disk,
        )
    }
}

/// Refuses a COW whose content may not be what it was, unless the user accepts it.
/// Returns a remark for the user.
fn accept(
    spec: &SnapshotSpec,
    verdict: Verdict,
    accept_changes: bool,
) -> Result<Option<String>, DaemonError> {
    let SnapshotSpec { name, cow, .. } = spec;
    match verdict {
        Verdict::OwnBut(what) => Ok(Some(format!("snapshot {name}: COW {cow} {what}"))),
        Verdict::Doubtful(why) if accept_changes => {
            Ok(Some(format!("snapshot {name}: COW {cow} {why}; accepted")))
        }
        Verdict::Doubtful(why) => Err(DaemonError::Refused(format!(
            "snapshot {name} is known to this volume, but COW {cow} {why}. Restore the COW as the daemon left it, or give \
             the snapshot up with snapback serve --forget {name}; or, if you know that it has the content that the daemon \
             left (a copy, or enlarged), start with --accept-changes"
        ))),
        Verdict::Own | Verdict::Foreign(_) | Verdict::Originals => Ok(None),
    }
}

/// Refuses a fork of an image that was changed, unless the user accepts it. Only the
/// fork's COW records the state of the image.
fn accept_image(
    options: &ServeOptions,
    planned: &PlannedSnapshot,
    change: Option<String>,
) -> Result<Option<String>, DaemonError> {
    let Some(change) = change else {
        return Ok(None);
    };
    let (name, origin) = (&planned.spec.name, options.origin.display());
    if options.accept_changes {
        return Ok(Some(format!(
            "snapshot {name}: the origin {origin} was changed since it was last used, accepted: {change}"
        )));
    }
    Err(DaemonError::Refused(format!(
        "snapshot {name}: the origin {origin} is not what it was when this snapshot was last used: {change}. The data that \
         the snapshot shares with it would be wrong. Restore the origin as it was (with its times: cp -p), or take the \
         snapshot anew on another COW; --accept-changes serves it if the content is known to be the same"
    )))
}

fn refusal(planned: &PlannedSnapshot, error: &CowError) -> DaemonError {
    let name = &planned.spec.name;
    let refused = match error {
        CowError::Open(error) if error.is_in_use() => DaemonError::InUse,
        _ => DaemonError::Refused,
    };
    refused(match planned.source {
        Source::Options => format!("snapshot {name}: {error}"),
        Source::Recorded if !planned.valid => format!(
            "snapshot {name} is invalid, and its COW cannot be marked so: {error}. Remove the cause, or drop the snapshot \
             with snapback serve --forget {name} --force and never use its COW again"
        ),
        Source::Recorded => format!(
            "snapshot {name} is known to this volume, but: {error}. Without its COW the origin must not be served, or the \
             snapshot would be wrong for good. Restore the COW, or give the snapshot up with snapback serve --forget {name}"
        ),
    })
}

/// A record may be dropped only after its store is marked invalid.
pub fn cannot_forget(name: &str, error: &CowError) -> DaemonError {
    DaemonError::Refused(format!(
        "snapshot {name} cannot be forgotten: {error}. Without its record the store would pass for a valid snapshot, which \
         it is not once the origin is written. Remove the cause, or remove the COW; to drop the record all the same add \
         --force, and never use the COW again"
    ))
}

/// Refuses two COWs that are to be created at one path: neither exists, so their storage
/// cannot be compared.
pub fn check_absent_twice(snapshots: &[PlannedSnapshot]) -> Result<(), DaemonError> {
    for (index, planned) in snapshots.iter().enumerate() {
        let mut before = snapshots.iter().take(index);
        if let Some(other) = before.find(|s| s.spec.cow == planned.spec.cow) {
            return Err(DaemonError::Refused(format!(
                "snapshots {} and {} have the same COW {}: give each a file or device of its own",
                other.spec.name, planned.spec.name, planned.spec.cow
            )));
        }
    }
    Ok(())
}
