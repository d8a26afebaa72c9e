//! What a failing device may and may not do.

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
                // Nobody can record the invalidation: answer for the daemon.
                let data: Vec<u8> = (0..16).flat_map(|_| pattern(900 + n)).collect();
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
    let data = pattern(900).to_vec();
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
    assert_eq!(w.devices.read_now(w.origin, 0, 512), pattern(0));
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
            // Writes go by the redirect rule, or are refused; they are never lost.
            let status = w.write(origin, 100, 50, 901);
            let seen = w.read(origin, 0, 512).unwrap();
            if status == Status::Ok {
                assert_eq!(seen[100..150], [901; 50], "{on:?} cow {cow} {nth}");
            }
            // A new start finishes it from what is on disk.
            let image = World::offline_view(&w.devices, w.origin, w.cows[&s]).unwrap();
            let image: Vec<u64> = image.chunks_exact(512).map(stamp_of).collect();
            assert_eq!(image, seen, "{on:?} cow {cow} {nth}");
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
    // What went wrong: the batch's own flush succeeded after a guest's had taken
    // the error, and entries were removed whose data the origin may have lost.
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

/// Two flushes of one view under way at once; the first to end has failed.
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
    // What went wrong: the failed one had lost what the other covered, too.
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
