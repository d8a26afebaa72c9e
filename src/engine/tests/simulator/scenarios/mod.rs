//! Small scenarios. Each is run with every crash and every fault.

mod discards;
mod flushes;
mod merges;
mod stores;

use super::areas;
use super::plan::Case;
use crate::engine::MergeWrites::{Redirect, Wait};

/// Scenarios with few entries, which are also run with short areas.
pub fn small() -> Vec<Case> {
    vec![
        stores::copy_out(),
        stores::copy_out_for_two(),
        stores::snapshot_writes(),
        stores::write_across_chunks(),
        stores::deferred_writes(),
        stores::write_through(),
        stores::zeroed_ahead(1),
        stores::zeroed_ahead(2),
        merges::merge(Wait),
        merges::merge(Redirect),
        merges::merge_with_another(),
        merges::hole(),
        stores::cut(),
        stores::full(),
        stores::overflow(),
        stores::large_blocks(),
        merges::interrupted(),
        stores::reopened(),
        flushes::synced(),
        merges::paused(),
        flushes::synced_at_the_end(),
        discards::discards(),
        discards::discard_across_a_cut(),
        discards::discards_of_a_snapshot(),
        discards::passed_down(),
        discards::passed_down_across_a_cut(),
        merges::shorter(Wait),
        merges::shorter(Redirect),
        flushes::flushes_at_once(),
        flushes::flushes_at_once_in_a_merge(),
        flushes::flush_at_a_handover(),
        merges::queue(),
        merges::replaced(),
        merges::withdrawn(),
    ]
}

/// Scenarios that fill areas and units of the size that they have on real disks.
fn whole() -> Vec<Case> {
    vec![
        stores::area_fills(),
        stores::units_fill(),
        stores::units_fill_at_once(),
        merges::hole_across_units(),
        merges::long_tail(),
        merges::padded_tail(),
        merges::emptied_at_once(),
        merges::padded_after_moves(),
        stores::filled_to_the_last_area(),
        stores::transient(),
        stores::junk(),
    ]
}

/// All scenarios; the seed chooses how short the short areas are.
pub fn all(seed: u64) -> Vec<Case> {
    let size = areas::SIZES[seed as usize % areas::SIZES.len()];
    let whole = small().into_iter().chain(whole());
    whole.chain(areas::of(size)).collect()
}
