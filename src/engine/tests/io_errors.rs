//! Failing devices: what they may cost, and what must survive them.

use super::world::*;
use crate::engine::*;
use crate::io::Errno;
use crate::io::sim::{Fault, FaultOn};

#[test]
fn the_origin_lives_on_whatever_operation_of_the_store_fails() {
    for on in [FaultOn::Read, FaultOn::Write, FaultOn::Flush, FaultOn::Any] {
        for nth in 0..12 {
            let mut w = World::new(nth, 256);
            let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
            let s = w.add_snapshot(1, 8, 2000, "P", false);
            let other = w.add_snapshot(2, 16, 2000, "P", false);
            let other_view = w.add_actor(PortRole::View(other));
            w.devices
                .fail(Fault::new(on, Errno::EIO).device(w.cows[&s]).after(nth));
            for n in 0..8 {
                // The header cannot be written: record the invalidation, as the daemon would.
                let data = data_of(n * 20, 16, 900 + n);
                let kind = RequestKind::Write { durable: false };
                w.submit(
                    origin,
                    Request {
                        slot: 1,
                        kind,
                        sector: n * 20,
                        sectors: 16,
                    },
                    data,
                );
                w.settle();
                for notice in std::mem::take(&mut w.actors[NOTICES].notices) {
                    if let Notice::Invalid {
                        snapshot,
                        durable: false,
                        ..
                    } = notice
                    {
                        w.control_wait(ControlRequest::InvalidRecorded { snapshot })
                            .unwrap();
                    }
                }
                w.settle();
                assert_eq!(
                    std::mem::take(&mut w.actors[origin].completed),
                    [(1, Status::Ok)],
                    "{on:?} {nth}"
                );
            }
            assert_eq!(
                w.read(other_view, 0, 256).unwrap(),
                (0..256).collect::<Vec<u64>>(),
                "{on:?} {nth}"
            );
        }
    }
}

#[test]
fn an_origin_write_waits_until_an_unwritable_invalidation_is_recorded() {
    let mut w = World::new(3, 64);
    let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
    let s = w.add_snapshot(1, 8, 400, "P", false);
    w.devices
        .fail(Fault::new(FaultOn::Write, Errno::EIO).device(w.cows[&s]));
    let data = data_of(0, 1, 900);
    w.submit(
        origin,
        Request {
            slot: 1,
            kind: RequestKind::Write { durable: false },
            sector: 0,
            sectors: 1,
        },
        data,
    );
    w.settle();
    assert!(
        w.actors[origin].completed.is_empty(),
        "released before anybody knows"
    );
    assert_eq!(w.devices.read_now(w.origin, 0, 512), pattern(0, 0));
    w.control_wait(ControlRequest::InvalidRecorded { snapshot: s })
        .unwrap();
    w.settle();
    assert_eq!(w.actors[origin].completed, [(1, Status::Ok)]);
}

#[test]
fn a_merge_that_fails_anywhere_keeps_the_right_content() {
    for (on, cow) in [
        (FaultOn::Read, true),
        (FaultOn::Write, true),
        (FaultOn::Write, false),
        (FaultOn::Flush, false),
    ] {
        for nth in 0..10 {
            let mut w = World::new(nth, 512);
            let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
            let s = w.add_snapshot(1, 8, 4000, "P", false);
            w.write(origin, 0, 512, 900);
            let device = if cow { w.cows[&s] } else { w.origin };
            w.devices
                .fail(Fault::new(on, Errno::EIO).device(device).after(nth).once());
            w.control_wait(ControlRequest::Handover {
                snapshot: s,
                writes: MergeWrites::Wait,
                follow: false,
            })
            .unwrap();
            w.settle();
            let expected: Vec<u64> = (0..512).collect();
            assert_eq!(
                w.read(origin, 0, 512).unwrap(),
                expected,
                "{on:?} cow {cow} {nth}"
            );
            // Writes follow the redirect rule or are refused; they are never lost.
            let status = w.write(origin, 100, 50, 901);
            let seen = w.read(origin, 0, 512).unwrap();
            if status == Status::Ok {
                assert_eq!(seen[100..150], [901; 50], "{on:?} cow {cow} {nth}");
            }
            // What is on disk is enough for a new start to finish the merge.
            let image = World::offline_view(&w.devices, w.origin, w.cows[&s]).unwrap();
            assert_eq!(stamps_from(0, &image), seen, "{on:?} cow {cow} {nth}");
            if w.engine.status().merge.is_some()
                && w.control_wait(ControlRequest::ResumeMerge).is_ok()
            {
                w.settle();
                assert!(
                    w.engine.status().merge.is_none(),
                    "{on:?} cow {cow} {nth}: does not end"
                );
                assert_eq!(w.read(origin, 0, 512).unwrap(), seen);
            }
        }
    }
}

#[test]
fn a_flush_that_failed_for_a_guest_is_not_believed_for_the_merge() {
    // A bug that was found: the batch's own flush succeeded after a guest's flush had
    // got the error, and entries were removed whose data the origin may have lost.
    let mut w = World::new(5, 256);
    let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
    let s = w.add_snapshot(1, 8, 2000, "P", false);
    w.write(origin, 0, 256, 900);
    w.devices.fail(
        Fault::new(FaultOn::Flush, Errno::EIO)
            .device(w.origin)
            .once(),
    );
    assert_eq!(w.flush(origin), Status::IoError);
    assert_eq!(w.flush(origin), Status::IoError, "believed again");
    let handover = ControlRequest::Handover {
        snapshot: s,
        writes: MergeWrites::Wait,
        follow: false,
    };
    w.control_wait(handover).unwrap();
    w.settle();
    let merge = w.engine.status().merge.unwrap();
    assert_eq!(merge.chunks_done, 0, "entries were removed");
    assert_eq!(
        w.control_wait(ControlRequest::ResumeMerge),
        Err(ControlError::MergeFailed)
    );
    assert!(w.control_wait(ControlRequest::Sync).is_err());
}

/// Two flushes of one view are under way at once; the first to end fails.
fn two_flushes(w: &mut World, view: ViewId, failing: crate::io::DeviceId) -> [Status; 2] {
    let pair = [0, 1].map(|_| w.add_actor(PortRole::View(view)));
    let fault = Fault::new(FaultOn::Flush, Errno::EIO).device(failing);
    w.devices.fail(fault.once());
    for actor in pair {
        let request = Request {
            slot: 0,
            kind: RequestKind::Flush,
            sector: 0,
            sectors: 0,
        };
        w.submit(actor, request, Vec::new());
    }
    pair.map(|actor| {
        while w.step_actor(actor) {}
        w.actors[actor].completed.pop().unwrap().1
    })
}

#[test]
fn a_flush_beside_one_that_failed_is_not_believed() {
    // A bug that was found: the failed flush had lost data that the other one covered.
    let failed = [Status::IoError; 2];
    let mut w = World::new(6, 256);
    let s = w.add_snapshot(1, 8, 2000, "P", false);
    let origin = w.origin;
    assert_eq!(two_flushes(&mut w, ViewId::ORIGIN, origin), failed);

    let mut w = World::new(7, 256);
    assert_eq!(w.add_snapshot(1, 8, 2000, "P", false), s);
    let cow = w.cows[&s];
    assert_eq!(two_flushes(&mut w, s, cow), failed, "a snapshot's store");

    let mut w = World::new(8, 256);
    assert_eq!(w.add_snapshot(1, 8, 2000, "P", false), s);
    let view = w.add_actor(PortRole::View(ViewId::ORIGIN));
    w.write(view, 0, 256, 900);
    w.merge_background = false;
    let handover = ControlRequest::Handover {
        snapshot: s,
        writes: MergeWrites::Redirect,
        follow: false,
    };
    w.control_wait(handover).unwrap();
    let cow = w.cows[&s];
    let told = two_flushes(&mut w, ViewId::ORIGIN, cow);
    assert_eq!(told, failed, "a merging store");
    let stop = w.control_wait(ControlRequest::Sync);
    assert!(stop.is_err(), "nor is a clean stop believed");
}

/// A snapshot shows origin data, so it must not be taken of data that a flush lost.
#[test]
fn no_snapshot_is_taken_after_or_beside_a_failed_flush_of_the_origin() {
    for beside in [false, true] {
        let mut w = World::new(3, 64);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        assert_eq!(w.write(origin, 0, 8, 900), Status::Ok);
        let fault = Fault::new(FaultOn::Flush, Errno::EIO).device(w.origin);
        w.devices.fail(fault.once());
        let flush = Request {
            slot: 1,
            kind: RequestKind::Flush,
            sector: 0,
            sectors: 0,
        };
        w.submit(origin, flush, Vec::new());
        if !beside {
            w.settle();
        }
        let snapshot = ViewId(1);
        let store = Box::new(w.new_store(snapshot, 8, 400, "P", false));
        w.control(1, ControlRequest::AddSnapshot { snapshot, store });
        // The guest's flush fails first; the flush of the cut succeeds.
        w.settle_without(&[CONTROL]);
        assert_eq!(w.actors[origin].completed, [(1, Status::IoError)]);
        w.settle();
        let [(1, Err(ControlError::Io(failure)))] = w.actors[CONTROL].control_done[..] else {
            panic!("{:?}, beside: {beside}", w.actors[CONTROL].control_done)
        };
        assert_eq!(failure.device, FailedDevice::Origin);
        assert_eq!(failure.operation, Operation::Flush);
        assert!(w.engine.status().snapshots.is_empty());
        assert_eq!(w.write(origin, 0, 8, 901), Status::Ok, "the origin works");
    }
}

/// A bug that was found: a merge was resumed while pieces of the failed batch were
/// still being copied. They succeeded, the batch continued, and the entry of the
/// failed piece was removed although its data was not in the origin.
#[test]
fn a_merge_that_is_resumed_while_its_failed_batch_ends_loses_nothing() {
    for (on, cow) in [(FaultOn::Read, true), (FaultOn::Write, false)] {
        for seed in 0..20 {
            let mut w = World::new(seed, 512);
            let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
            let s = w.add_snapshot(1, 8, 4000, "P", false);
            // In this order every chunk becomes a run of its own.
            for n in 0..64 {
                w.write(origin, n * 40 % 512, 8, 900);
            }
            let device = if cow { w.cows[&s] } else { w.origin };
            w.devices
                .fail(Fault::new(on, Errno::EIO).device(device).once());
            w.control_wait(ControlRequest::Handover {
                snapshot: s,
                writes: MergeWrites::Wait,
                follow: false,
            })
            .unwrap();
            let stopped = |w: &World| w.engine.status().merge.is_some_and(|m| m.stopped.is_some());
            while !stopped(&w) {
                w.advance();
            }
            w.control_wait(ControlRequest::ResumeMerge).unwrap();
            w.settle();
            assert!(w.engine.status().merge.is_none(), "{seed}: does not end");
            let expected: Vec<u64> = (0..512).collect();
            let seen = w.read(origin, 0, 512).unwrap();
            assert_eq!(seen, expected, "{on:?} cow {cow} {seed}");
        }
    }
}

/// The notice of a merge's failure names the device and the operation, and says
/// whether the merge can be resumed.
#[test]
fn every_failure_of_a_merge_is_told_with_the_way_on() {
    use FailedDevice::{Cow, Origin};
    use Operation::{Flush, Read, Write, WriteMetadata};
    let areas = 4096..8192;
    let cases = [
        (FaultOn::Read, Cow, Read, true),
        (FaultOn::Write, Origin, Write, true),
        (FaultOn::Flush, Origin, Flush, false),
        (FaultOn::Write, Cow, WriteMetadata, false),
    ];
    for (on, device, operation, resumable) in cases {
        let mut w = World::new(1, 512);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 4000, "P", false);
        w.write(origin, 0, 512, 900);
        let failing = if device == Cow { w.cows[&s] } else { w.origin };
        let mut fault = Fault::new(on, Errno::ENOSPC).device(failing).once();
        if operation == WriteMetadata {
            fault = fault.range(areas.clone());
        }
        w.devices.fail(fault);
        w.control_wait(ControlRequest::Handover {
            snapshot: s,
            writes: MergeWrites::Wait,
            follow: false,
        })
        .unwrap();
        w.settle();
        let told = std::mem::take(&mut w.actors[NOTICES].notices);
        let told: Vec<MergeStop> = told
            .iter()
            .filter_map(|n| match n {
                Notice::MergeFailed { stop, .. } => Some(*stop),
                _ => None,
            })
            .collect();
        let [stop] = told[..] else {
            panic!("{operation:?}: told {told:?}")
        };
        let Failure { errno, offset, .. } = stop.failure;
        assert_eq!(
            (stop.failure.device, stop.failure.operation, errno),
            (device, operation, Errno::ENOSPC)
        );
        assert_eq!(offset.is_none(), operation == Flush, "{offset:?}");
        assert!(operation != WriteMetadata || areas.contains(&offset.unwrap()));
        assert_eq!(stop.resumable, resumable, "{operation:?}");
        assert_eq!(w.engine.status().merge.unwrap().stopped, Some(stop));
        let resumed = w.control_wait(ControlRequest::ResumeMerge);
        assert_eq!(resumed.is_ok(), resumable, "{operation:?}");
        w.settle();
        assert_eq!(w.engine.status().merge.is_none(), resumable);
        assert_eq!(
            w.read(origin, 0, 512).unwrap(),
            (0..512).collect::<Vec<_>>()
        );
    }
}

/// After a flush that fails while the merge is stopped, it can no longer be resumed.
#[test]
fn a_stopped_merge_that_cannot_be_resumed_any_more_is_told_again() {
    for (of_origin, device) in [(true, FailedDevice::Origin), (false, FailedDevice::Cow)] {
        let mut w = World::new(1, 512);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 4000, "P", false);
        w.write(origin, 0, 512, 900);
        let read = Fault::new(FaultOn::Read, Errno::EIO).device(w.cows[&s]);
        w.devices.fail(read.once());
        w.control_wait(ControlRequest::Handover {
            snapshot: s,
            writes: MergeWrites::Wait,
            follow: false,
        })
        .unwrap();
        w.settle();
        let failing = if of_origin { w.origin } else { w.cows[&s] };
        let flush = Fault::new(FaultOn::Flush, Errno::EIO).device(failing);
        w.devices.fail(flush.once());
        assert_eq!(w.flush(origin), Status::IoError);
        assert_eq!(w.flush(origin), Status::IoError);
        w.settle();
        let told = std::mem::take(&mut w.actors[NOTICES].notices);
        let told: Vec<_> = told
            .iter()
            .filter_map(|n| match n {
                Notice::MergeFailed { stop, .. } => Some((stop.failure.device, stop.resumable)),
                _ => None,
            })
            .collect();
        assert_eq!(told, [(FailedDevice::Cow, true), (device, false)]);
        assert_eq!(
            w.control_wait(ControlRequest::ResumeMerge),
            Err(ControlError::MergeFailed)
        );
    }
}

/// A bug that was found: an unreadable origin was reported as a failed COW.
#[test]
fn a_lost_snapshot_is_told_with_the_device_that_failed() {
    use FailedDevice::{Cow, Origin};
    use Operation::{Flush, Read, Write, WriteMetadata};
    let cases = [
        (FaultOn::Read, Origin, Read, 0..512),
        (FaultOn::Write, Cow, Write, 8192..1 << 20),
        (FaultOn::Flush, Cow, Flush, 0..0),
        (FaultOn::Write, Cow, WriteMetadata, 4096..8192),
    ];
    for (on, device, operation, range) in cases {
        // The old data is needed for an origin write, and for part of a chunk.
        for by_origin in [true, false] {
            let mut w = World::new(1, 64);
            let s = w.add_snapshot(1, 8, 400, "P", false);
            let view = if by_origin { ViewId::ORIGIN } else { s };
            let view = w.add_actor(PortRole::View(view));
            let failing = if device == Cow { w.cows[&s] } else { w.origin };
            let mut fault = Fault::new(on, Errno::EIO).device(failing).once();
            if operation != Flush {
                fault = fault.range(range.clone());
            }
            w.devices.fail(fault);
            w.write(view, 0, 1, 900);
            w.settle();
            let told = std::mem::take(&mut w.actors[NOTICES].notices);
            let failure = told.iter().find_map(|n| match n {
                Notice::Invalid {
                    reason: InvalidReason::Io(failure),
                    ..
                } => Some(*failure),
                _ => None,
            });
            let failure = failure.unwrap();
            assert_eq!((failure.device, failure.operation), (device, operation));
            assert_eq!(failure.offset.is_none(), operation == Flush);
            assert!(failure.offset.is_none_or(|at| range.contains(&at)));
        }
    }
}

/// Tries to remove a snapshot whose header cannot be written, until the device works
/// again or by force.
fn remove_without_a_header(invalid_before: bool, force: bool) -> Result<(), String> {
    let mut w = World::new(7, 64);
    let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let is_valid = |w: &World| {
        let image = w.devices.crash(crate::io::sim::Keep::Nothing);
        World::offline_view(&image, w.origin, w.cows[&s]).is_some()
    };
    w.devices
        .fail(Fault::new(FaultOn::Write, Errno::EIO).device(w.cows[&s]));
    if invalid_before {
        let request = Request {
            slot: 1,
            kind: RequestKind::Write { durable: false },
            sector: 0,
            sectors: 1,
        };
        w.submit(origin, request, data_of(0, 1, 900));
        w.settle();
        w.control_wait(ControlRequest::InvalidRecorded { snapshot: s })
            .unwrap();
        w.settle();
    }
    let remove = |force| ControlRequest::RemoveSnapshot { snapshot: s, force };
    for _ in 0..2 {
        match w.control_wait(remove(false)) {
            Err(ControlError::NotMarked(f)) if f.errno == Errno::EIO => {}
            other => return Err(format!("{other:?} with a header that says valid")),
        }
        let status = w.engine.status();
        assert_eq!(status.snapshots[0].state, SnapshotState::Invalid);
        assert!(is_valid(&w), "nothing was written");
    }
    // Origin writes do not wait for the removal.
    assert_eq!(w.write(origin, 8, 8, 901), Status::Ok);
    if !force {
        w.devices.clear_faults();
    }
    w.control_wait(remove(force)).unwrap();
    assert!(w.engine.status().snapshots.is_empty());
    assert_eq!(is_valid(&w), force);
    Ok(())
}

#[test]
fn a_removal_without_a_header_keeps_the_snapshot_until_one_is_written_or_it_is_forced() {
    for invalid_before in [true, false] {
        for force in [true, false] {
            remove_without_a_header(invalid_before, force).unwrap();
        }
    }
    let bug = Some(crate::mutation::Mutation::HeaderLeftValid);
    let found = crate::mutation::with(bug, || remove_without_a_header(true, false));
    found.unwrap_err();
}
