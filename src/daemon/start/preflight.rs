//! The first half of a start: everything is opened, locked and looked at, so
//! that a start that is refused has changed nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inherited;
use super::lost;
use super::options::{Endpoint, ServeOptions};
use super::plan::{Plan, PlannedSnapshot, Source, check_served, plan};
use crate::control::ControlSocket;
use crate::control::api::SnapshotSpec;
use crate::daemon::DaemonError;
use crate::daemon::cow::error::CowError;
use crate::daemon::cow::mark::{self as cow_mark, ToMark};
use crate::daemon::cow::{self, InspectedCow, OriginFacts, Purpose};
use crate::daemon::identity::OriginIdentity;
use crate::daemon::provenance::cow_verdict::{Verdict, belongs_elsewhere, judge};
use crate::daemon::provenance::golden;
use crate::daemon::provenance::standing::Standing;
use crate::daemon::state::place::default_state_path;
use crate::daemon::state::{OpenedState, SnapshotRecord, VolumeState};
use crate::daemon::volume::views;
use crate::io::{BlockFile, DeviceId, Devices, Disk, Identity, IoEngine, OpenOptions, open_disk};
use crate::vhost::ViewSocket;

/// Everything that was looked at, and locked, but not written.
pub struct Checked {
    pub plan: Plan,
    pub state: OpenedState,
    pub origin: OriginFacts,
    pub origin_device: DeviceId,
    /// `major:minor` of the origin.
    pub device_string: String,
    pub devices: Arc<Devices>,
    /// For the work at the start; belongs to this thread.
    pub disk: Box<dyn Disk + Send>,
    pub snapshots: Vec<(PlannedSnapshot, InspectedCow)>,
    /// With what is left of their stores.
    pub forget: Vec<(SnapshotRecord, ToMark)>,
    pub sockets: Sockets,
}

/// Bound and not served yet; their files vanish if this is dropped.
#[derive(Default)]
pub struct Sockets {
    pub origin: Option<ViewSocket>,
    pub followed: Vec<(String, ViewSocket)>,
    /// By snapshot name.
    pub snapshots: Vec<(String, ViewSocket)>,
    pub control: Option<ControlSocket>,
}

/// Looks at everything that `options` and the state file name.
pub fn check(options: &ServeOptions) -> Result<Checked, DaemonError> {
    let mut checked = check_without_guests(options)?;
    check_served(options, &checked.plan)?;
    checked.sockets = bind_sockets(options, &checked.plan)?;
    Ok(checked)
}

/// As [`check`], but binds no socket: for work on a volume that nobody attaches to.
pub fn check_without_guests(options: &ServeOptions) -> Result<Checked, DaemonError> {
    let path = &options.origin;
    let open = if options.read_only {
        OpenOptions::read_only()
    } else {
        OpenOptions::default()
    };
    let file =
        BlockFile::open(path, open).map_err(|e| DaemonError::Refused(format!("origin {e}")))?;
    let unidentified = |e| DaemonError::system("identify the origin", e);
    let identity = OriginIdentity::read(path, file.size()).map_err(unidentified)?;
    let state = open_state(options)?;
    let standing = Standing::look(path, state.path(), state.recorded.as_ref());
    let suspicion = lost::refuse_cow(path, standing.mark.as_ref())?;
    let mut options = options.clone();
    let found = match (state.path(), &state.recorded) {
        (Some(place), None) => lost::check(&options, &identity.storage(), place, &standing)?,
        (Some(_), Some(recorded)) if options.accept_changes || !options.forget.is_empty() => {
            lost::check_older(&options, recorded, &standing)?
        }
        _ => lost::Found::default(),
    };
    // These are known from their COWs alone.
    let is_lost = |name: &String| found.forget.iter().any(|s| s.spec.name == *name);
    options.forget.retain(|name| !is_lost(name));
    let mut plan = plan(&options, state.recorded.clone(), &identity, &standing)?;
    plan.remarks.extend(suspicion);
    plan.remarks.extend(found.remarks);
    plan.forget.extend(found.forget);
    let memory = state.recorded.as_ref();

    let origin = OriginFacts {
        identity: file.identity(),
        sectors: file.sectors(),
        block_size: file.block_size(),
        read_only: file.is_read_only(),
    };
    let device_string = file.device_string();
    let devices = Devices::new();
    let origin_device = devices.add(file);
    let mut disk = open_disk(IoEngine::Threads, devices.clone(), 1)
        .map_err(|e| DaemonError::system("start an I/O thread", e))?;

    let mut used: Vec<(String, Identity)> = Vec::new();
    let mut snapshots = Vec::new();
    let (mut absent, mut remarks) = (Vec::new(), Vec::new());
    for planned in &plan.snapshots {
        let (name, cow) = (&planned.spec.name, &planned.spec.cow);
        let known_invalid = planned.source == Source::Recorded && !planned.valid;
        if known_invalid && let Some(why) = foreign(name, memory, &standing) {
            absent.push((name.clone(), format!("COW {cow} {why}")));
            continue;
        }
        let verdict = verdict(planned, memory, &standing)?;
        let inspected = match inspect(planned, &origin, &used, &devices, &mut *disk) {
            // There is nothing left that could be taken for a snapshot.
            Err(error) if known_invalid && error.is_absence() => {
                absent.push((name.clone(), error.to_string()));
                continue;
            }
            Err(error) => return Err(refusal(planned, &error)),
            Ok(inspected) => inspected,
        };
        refuse_if_elsewhere(planned, memory)?;
        if inspected.is_valid() {
            let remark = believe(&planned.spec, verdict, options.accept_changes)?;
            remarks.extend(remark);
        }
        if state.path().is_none() && inspected.holds_entries() {
            let change = golden::change(Path::new(cow), &identity);
            remarks.extend(accept_image(&options, planned, change)?);
        }
        if let Some(warning) = &inspected.warning {
            remarks.push(format!("snapshot {name}: COW {cow}: {warning}"));
        }
        used.extend(
            cow::storage_of(Path::new(&planned.spec.cow)).map(|i| (planned.spec.name.clone(), i)),
        );
        if let Some(merge) = plan
            .state
            .merge
            .as_ref()
            .filter(|m| m.snapshot == planned.spec.name)
            && !(planned.valid && inspected.is_valid())
        {
            return Err(DaemonError::Refused(format!(
                "snapshot {0} cannot be merged: its store is invalid. If its merge was under way, the origin holds a part of \
                 it; to serve the origin as it is, pass --forget {0}",
                merge.snapshot
            )));
        }
        snapshots.push((planned.clone(), inspected));
    }
    check_absent_twice(&plan.snapshots)?;
    plan.remarks.extend(remarks);
    for (name, why) in absent {
        plan.remarks.push(format!(
            "snapshot {name} was invalid, and is forgotten now: {why}"
        ));
        plan.snapshots.retain(|s| s.spec.name != name);
        plan.state.drop_snapshot(&name);
    }
    let forget = plan.forget.iter().map(|record| {
        let name = &record.spec.name;
        // What is at its path may be another snapshot's, whose business it is.
        let left = match foreign(name, memory, &standing) {
            Some(why) => ToMark::Absent(format!("its COW {why}")),
            None => match cow_mark::open(Path::new(&record.spec.cow), &origin, &used) {
                Err(error) if options.force => ToMark::Absent(error.to_string()),
                left => left.map_err(|error| cannot_forget(name, &error))?,
            },
        };
        Ok((record.clone(), left))
    });
    let forget = forget.collect::<Result<_, DaemonError>>()?;
    Ok(Checked {
        plan,
        state,
        origin,
        origin_device,
        device_string,
        devices,
        disk,
        snapshots,
        forget,
        sockets: Sockets::default(),
    })
}

/// Opens the state file, or decides that there is none.
fn open_state(options: &ServeOptions) -> Result<OpenedState, DaemonError> {
    let found = |e| DaemonError::system("find the place of the state file", e);
    let default = || default_state_path(&options.origin).map_err(found);
    let path: Option<PathBuf> = match &options.state {
        Some(path) => Some(std::path::absolute(path).map_err(found)?),
        // Many daemons may share a read-only origin; its own file is not theirs.
        None if options.read_only => None,
        None => Some(default()?),
    };
    if path.is_none() {
        refuse_half_merged(&default()?)?;
    }
    Ok(OpenedState::open(path.as_deref())?)
}

/// A read-only origin in the middle of a merge is no image of any moment.
fn refuse_half_merged(path: &Path) -> Result<(), DaemonError> {
    match OpenedState::open(Some(path)) {
        Ok(OpenedState {
            recorded: Some(state),
            ..
        }) => match &state.merge {
            Some(merge) => Err(DaemonError::Refused(format!(
                "a merge of {} into this origin is not finished ({}): serve it without --read-only until it is",
                merge.snapshot,
                path.display()
            ))),
            None => Ok(()),
        },
        // Another daemon has it, then its lock on the origin decides; and what
        // cannot be read is the business of who writes the origin.
        _ => Ok(()),
    }
}

/// What the file at a snapshot's COW path is to it. Refused if it is for certain
/// not its own: whatever else was said of it would be said of another's.
fn verdict(
    planned: &PlannedSnapshot,
    memory: Option<&VolumeState>,
    standing: &Standing,
) -> Result<Verdict, DaemonError> {
    let (name, cow) = (&planned.spec.name, &planned.spec.cow);
    let recorded = memory.and_then(|memory| Some((memory.snapshot(name)?, memory)));
    let Some((record, memory)) = recorded.filter(|_| planned.valid) else {
        return Ok(Verdict::Own);
    };
    match judge(record, memory, standing) {
        Verdict::Foreign(why) => Err(DaemonError::Refused(format!(
            "snapshot {name} is known to this volume, but COW {cow} {why}. Without its own the snapshot would be wrong for \
             good. Bring that back to this path, or give the snapshot up with snapback serve --forget {name}, which leaves \
             the file alone"
        ))),
        Verdict::Originals => Err(DaemonError::Refused(format!(
            "snapshot {name}: this is a copy, and COW {cow} is outside the copied folder, so it is what the original uses. \
             Give the snapshot up in the copy with snapback serve --forget {name}, which leaves the original's alone"
        ))),
        verdict => Ok(verdict),
    }
}

/// Why what is at the COW path of a snapshot is for certain not its own.
fn foreign(name: &str, memory: Option<&VolumeState>, standing: &Standing) -> Option<String> {
    let record = memory.and_then(|memory| memory.snapshot(name))?;
    match judge(record, memory?, standing) {
        Verdict::Foreign(why) => Some(why),
        Verdict::Originals => Some("is what the original of this copy uses".to_owned()),
        _ => None,
    }
}

/// A COW that is new to this volume may be a living one of another.
fn refuse_if_elsewhere(
    planned: &PlannedSnapshot,
    memory: Option<&VolumeState>,
) -> Result<(), DaemonError> {
    let (name, cow) = (&planned.spec.name, &planned.spec.cow);
    let volume = memory.and_then(|memory| memory.volume.as_deref());
    let unknown = planned.source == Source::Options;
    match belongs_elsewhere(Path::new(cow), volume).filter(|_| unknown) {
        Some(why) => Err(DaemonError::Refused(format!(
            "snapshot {name}: COW {cow} {why}: give the snapshot a file or device of its own"
        ))),
        None => Ok(()),
    }
}

/// Whether a COW that can be loaded is believed to be what it was; what to say.
fn believe(
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
            "snapshot {name} is known to this volume, but COW {cow} {why}. Bring the COW back as the daemon left it, or give \
             the snapshot up with snapback serve --forget {name}; or, if you know that it holds what the daemon left in it \
             (a copy, or made longer), start with --accept-changes"
        ))),
        _ => Ok(None),
    }
}

fn inspect(
    planned: &PlannedSnapshot,
    origin: &OriginFacts,
    used: &[(String, Identity)],
    devices: &Arc<Devices>,
    disk: &mut dyn Disk,
) -> Result<InspectedCow, CowError> {
    let purpose = match planned.source {
        Source::Recorded if !planned.valid => Purpose::KnownInvalid,
        Source::Recorded => Purpose::Known,
        Source::Options if planned.scratch => Purpose::Scratch,
        Source::Options => Purpose::AtStart,
    };
    cow::inspect(&planned.spec, purpose, origin, used, devices, disk)
}

/// A fork of an image that nobody remembers but the fork itself.
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
        "snapshot {name}: the origin {origin} is not what it was when this snapshot was last used: {change}. What the \
         snapshot shares with it would be wrong. Put the origin back as it was (with its times: cp -p), or make the \
         snapshot anew on another COW; --accept-changes serves it if the content is known to be the same"
    )))
}

fn refusal(planned: &PlannedSnapshot, error: &CowError) -> DaemonError {
    let name = &planned.spec.name;
    DaemonError::Refused(match planned.source {
        Source::Options => format!("snapshot {name}: {error}"),
        Source::Recorded if !planned.valid => format!(
            "snapshot {name} is invalid, and its COW cannot be marked so: {error}. Mend that, or drop the snapshot with \
             snapback serve --forget {name} --force and never use its COW again"
        ),
        Source::Recorded => format!(
            "snapshot {name} is known to this volume, but: {error}. Without it the origin must not be served, or the \
             snapshot would be wrong for good. Bring the COW back, or give the snapshot up with snapback serve --forget {name}"
        ),
    })
}

/// A record may go only when its store cannot be taken for good any more.
pub fn cannot_forget(name: &str, error: &CowError) -> DaemonError {
    DaemonError::Refused(format!(
        "snapshot {name} cannot be forgotten: {error}. Without its record the store would pass for a good snapshot, \
         which it is not once the origin is written. Mend that, or remove the COW; to drop the record all the same add \
         --force, and never use the COW again"
    ))
}

/// Two COWs that are to be made at one path: neither is there to be compared.
fn check_absent_twice(snapshots: &[PlannedSnapshot]) -> Result<(), DaemonError> {
    for (index, planned) in snapshots.iter().enumerate() {
        if let Some(other) = snapshots
            .iter()
            .take(index)
            .find(|s| s.spec.cow == planned.spec.cow)
        {
            return Err(DaemonError::Refused(format!(
                "snapshots {} and {} have the same COW {}: give each a file or device of its own",
                other.spec.name, planned.spec.name, planned.spec.cow
            )));
        }
    }
    Ok(())
}

fn bind_sockets(options: &ServeOptions, plan: &Plan) -> Result<Sockets, DaemonError> {
    let bind =
        |path: &str| views::bind(path).map_err(|e| DaemonError::Refused(format!("socket {e}")));
    let origin = match (&options.endpoint, &plan.state.socket) {
        (Some(Endpoint::Fd(fd)), _) => {
            let fd = inherited::take(*fd)
                .map_err(|e| DaemonError::Refused(format!("--fd {fd}: {e}")))?;
            Some(ViewSocket::from_fd(fd).map_err(|e| DaemonError::Refused(format!("--fd: {e}")))?)
        }
        (_, Some(path)) => Some(bind(path)?),
        (_, None) => None,
    };
    let mut sockets = Sockets {
        origin,
        ..Sockets::default()
    };
    for path in &plan.state.followed_sockets {
        // The user may have chosen one of them for the origin by now.
        if plan.state.socket.as_ref() != Some(path) {
            sockets.followed.push((path.clone(), bind(path)?));
        }
    }
    for planned in &plan.snapshots {
        if let Some(path) = &planned.spec.socket {
            sockets
                .snapshots
                .push((planned.spec.name.clone(), bind(path)?));
        }
    }
    if let Some(path) = &plan.state.control {
        let bound = ControlSocket::bind(Path::new(path))
            .map_err(|e| DaemonError::Refused(format!("control {e}")))?;
        sockets.control = Some(bound);
    }
    Ok(sockets)
}
