//! Whether the origin is the one that the state file records, with the content that it had.

use super::placement::{Placement, mark_speaks_against};
use crate::daemon::identity::{OriginIdentity, Relation, same_path};
use crate::daemon::state::VolumeState;

/// The differences between the origin and its record.
#[derive(Debug)]
pub struct OriginChanges {
    pub changes: Vec<String>,
    /// It is the same file or device, and it is larger than before.
    pub grown: bool,
    /// The contradiction between its mark and the state file, which is also in `changes`.
    pub against: Option<String>,
    pub remark: Option<String>,
}

/// Compares the origin as it is `now` with its record in `state`.
pub fn origin_changes(
    state: &VolumeState,
    now: &OriginIdentity,
    placement: &Placement,
) -> OriginChanges {
    let against = placement
        .mark
        .as_ref()
        .and_then(|mark| mark_speaks_against(state, mark));
    let is_marked = placement.mark.is_some() && against.is_none();
    let (mut changes, mut grown, mut remark) = (Vec::new(), false, None);
    match state.origin.relation(now, !state.running) {
        Relation::Same => {}
        Relation::Touched => tracing::debug!("the origin's name, owner or mode was changed"),
        // Two files that were created together may have the same times.
        Relation::Copied if !is_marked && !same_path(&state.origin.path, &now.path) => {
            changes.push(format!(
                "it is another file than {}, which the state file describes",
                state.origin.path
            ));
        }
        // A copy is reported elsewhere.
        Relation::Copied if placement.is_copy() => {}
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
    // Nothing has changed, but disk and COWs may have been copied at different moments.
    if changes.is_empty() && placement.is_copy() && state.running {
        changes.push("a daemon was serving the original".into());
    }
    OriginChanges {
        changes,
        grown,
        against,
        remark,
    }
}
