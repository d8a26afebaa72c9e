//! Which notices are sent, and in which order. I04 of `docs/checklist.md`.

use super::helpers::*;
use super::world::*;
use crate::engine::*;

/// Sectors of a store of 100 chunks, so that each chunk is one percent.
const HUNDRED: u64 = 800;

fn take_notices(w: &mut World) -> Vec<Notice> {
    w.settle();
    std::mem::take(&mut w.actors[NOTICES].notices)
}

fn usage(w: &mut World) -> Vec<u64> {
    let notices = take_notices(w).into_iter();
    notices
        .filter_map(|n| match n {
            Notice::Usage { percent, .. } => Some(percent),
            _ => None,
        })
        .collect()
}

#[test]
fn each_usage_step_is_reported_once_and_again_after_usage_fell_below_it() {
    let (mut w, origin) = world(8 * 300);
    let s = w.add_snapshot(1, 8, HUNDRED, "P", false);
    // The header and the area are two of the hundred chunks.
    for chunk in 0..77 {
        assert_eq!(w.write(origin, chunk * 8, 1, 900), Status::Ok);
    }
    assert_eq!(usage(&mut w), [0; 0], "79 %");
    for chunk in 77..98 {
        assert_eq!(w.write(origin, chunk * 8, 1, 900), Status::Ok);
        // Written again: no step is reported twice.
        assert_eq!(w.write(origin, chunk * 8, 1, 901), Status::Ok);
    }
    assert_eq!(usage(&mut w), [80, 85, 90, 95, 100]);

    // Grown by a tenth: 100 of 110 chunks are 90 %, a step that was reported before.
    let grow = |w: &mut World, cow_sectors| {
        w.devices.resize(w.cows[&s], cow_sectors);
        w.control_wait(ControlRequest::Grow {
            snapshot: s,
            cow_sectors,
        })
        .unwrap();
    };
    grow(&mut w, 8 * 110);
    assert_eq!(take_notices(&mut w), [Notice::Grown { snapshot: s }]);
    grow(&mut w, 8 * 200);
    for chunk in 98..200 {
        assert_eq!(w.write(origin, chunk * 8, 1, 900), Status::Ok);
    }
    assert_eq!(usage(&mut w), [80, 85, 90, 95, 100]);
}

#[test]
fn a_write_that_passes_several_usage_steps_reports_the_last_one() {
    let (mut w, origin) = world(8 * 98);
    w.add_snapshot(1, 8, HUNDRED, "P", false);
    assert_eq!(w.write(origin, 0, 8 * 91, 900), Status::Ok);
    assert_eq!(usage(&mut w), [93]);
}

#[test]
fn a_store_that_is_nearly_full_when_added_is_reported_at_once() {
    let (mut w, origin) = world(8 * 98);
    let s = w.add_snapshot(1, 8, HUNDRED, "P", false);
    assert_eq!(w.write(origin, 0, 8 * 84, 900), Status::Ok);
    let cow = w.cows[&s];
    let crashed = w.devices.crash(crate::io::sim::Keep::Everything);
    let mut again = restart(crashed, w.origin, &[(s, cow)]);
    let expected = [
        Notice::Added { snapshot: s },
        Notice::Usage {
            snapshot: s,
            percent: 86,
        },
    ];
    assert_eq!(take_notices(&mut again), expected);
}

#[test]
fn the_notices_of_a_merge_come_in_order_from_handover_to_end() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, HUNDRED, "P", false);
    w.write(origin, 0, 64, 900);
    w.merge_background = false; // nothing is merged before the end of these
    hand_over(&mut w, s, MergeWrites::Wait);
    for request in [
        ControlRequest::PauseMerge,
        ControlRequest::PauseMerge,
        ControlRequest::ResumeMerge,
        ControlRequest::ResumeMerge,
    ] {
        w.control_wait(request).unwrap();
    }
    w.merge_background = true;
    let expected = [
        Notice::Added { snapshot: s },
        Notice::HandedOver { snapshot: s },
        Notice::MergePaused { snapshot: s },
        Notice::MergeResumed { snapshot: s },
        Notice::MergeDone { snapshot: s },
    ];
    assert_eq!(take_notices(&mut w), expected);
}
