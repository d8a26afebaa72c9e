//! Refusing an origin that has changed since the state file was written.

use super::options::ServeOptions;
use crate::control::api::StoreType;
use crate::daemon::identity::OriginIdentity;
use crate::daemon::plan_error::PlanError;
use crate::daemon::provenance::origin::{OriginChanges, origin_changes};
use crate::daemon::provenance::placement::{Location, Placement};
use crate::daemon::state::VolumeState;

/// Refuses an origin that is shorter than one of its snapshots.
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

/// Refuses an origin that was written while no daemon served it: its snapshots would be
/// wrong, and only the comparison with its recorded identity shows it.
pub fn check_origin(
    options: &ServeOptions,
    state: &VolumeState,
    now: &OriginIdentity,
    placement: &Placement,
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
    } = origin_changes(state, now, placement);
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
    Err(match (&placement.location, against) {
        (Location::Copy { of }, _) => PlanError::CopyUnproven {
            origin,
            original: of.display().to_string(),
            changes,
            snapshots: at_stake,
        },
        (_, Some(why)) => PlanError::OtherTime {
            origin,
            place: placement.place(),
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
