//! Whether the origin is the one that the state file knows, with the content that
//! it had.

use super::options::ServeOptions;
use super::plan::same_path;
use crate::control::api::StoreType;
use crate::daemon::identity::{OriginIdentity, Relation};
use crate::daemon::plan_error::PlanError;
use crate::daemon::provenance::standing::{Standing, Whereabouts, mark_speaks_against};
use crate::daemon::state::VolumeState;

/// What a snapshot shares with the origin must be there.
pub fn check_lengths(state: &VolumeState, now: &OriginIdentity) -> Result<(), PlanError> {
    let at_stake = state
        .snapshots
        .iter()
        .filter(|s| s.valid && s.spec.store_type != StoreType::N);
    for record in at_stake {
        if let Some(length) = record.length.filter(|length| *length > now.size) {
            return Err(PlanError::OriginShrank {
                origin: now.path.clone(),
                size: now.size,
                name: record.spec.name.clone(),
                length,
            });
        }
    }
    Ok(())
}

/// An origin that was written without its snapshots makes them wrong, and
/// nothing but its identity tells.
pub fn check_origin(
    options: &ServeOptions,
    state: &VolumeState,
    now: &OriginIdentity,
    standing: &Standing,
    remarks: &mut Vec<String>,
) -> Result<(), PlanError> {
    let at_stake: Vec<String> = state
        .snapshots
        .iter()
        .filter(|s| s.valid && s.spec.store_type != StoreType::N)
        .map(|s| s.spec.name.clone())
        .collect();
    let OriginChanges {
        changes,
        grown,
        against,
        remark,
    } = origin_changes(state, now, standing);
    remarks.extend(remark);
    if changes.is_empty() || at_stake.is_empty() {
        return Ok(());
    }
    if options.accept_changes {
        remarks.push(format!(
            "the origin was changed while no daemon served it, accepted: {}",
            changes.join("; ")
        ));
        return Ok(());
    }
    let origin = now.path.clone();
    Err(match (&standing.whereabouts, against) {
        (Whereabouts::Copy { of }, _) => PlanError::CopyUnproven {
            origin,
            original: of.display().to_string(),
            changes,
            snapshots: at_stake,
        },
        (_, Some(why)) => PlanError::OtherTime {
            origin,
            place: standing.place(),
            why,
            snapshots: at_stake,
        },
        (_, None) => PlanError::OriginChanged {
            origin,
            changes,
            grown,
            snapshots: at_stake,
        },
    })
}

/// What speaks against the origin being the one that the state file knows, with
/// the content that it had.
#[derive(Debug)]
pub struct OriginChanges {
    pub changes: Vec<String>,
    /// It is the same one, and longer than it was.
    pub grown: bool,
    /// What its mark says against it, which is also among the changes.
    pub against: Option<String>,
    pub remark: Option<String>,
}

/// Compares the origin that is there now with what `state` says of it.
pub fn origin_changes(
    state: &VolumeState,
    now: &OriginIdentity,
    standing: &Standing,
) -> OriginChanges {
    let against = standing
        .mark
        .as_ref()
        .and_then(|mark| mark_speaks_against(state, mark));
    let is_marked = standing.mark.is_some() && against.is_none();
    let (mut changes, mut grown, mut remark) = (Vec::new(), false, None);
    match state.origin.relation(now, !state.running) {
        Relation::Same => {}
        Relation::Touched => tracing::debug!("the origin's name, owner or mode was changed"),
        // Files that were made together may have the same times.
        Relation::Copied if !is_marked && !same_path(&state.origin.path, &now.path) => {
            changes.push(format!(
                "it is another file than {}, which the state file is about",
                state.origin.path
            ));
        }
        // Of a copy something else is said.
        Relation::Copied if standing.is_copy() => {}
        Relation::Copied => {
            remark = Some(
                "the origin is another file than it was, with the same size and time of its last write: taken for the same, \
             moved or restored"
                    .into(),
            );
        }
        Relation::Written(why) => {
            grown = now.size > state.origin.size;
            changes.push(why);
        }
        Relation::Other(why) => changes.push(why),
    }
    if let Some(why) = &against {
        changes.push(format!("it {why}"));
    }
    // Nothing of it has changed; but it is not known to be of one moment.
    if changes.is_empty() && standing.is_copy() && state.running {
        changes.push("a daemon was serving the original".into());
    }
    OriginChanges {
        changes,
        grown,
        against,
        remark,
    }
}
