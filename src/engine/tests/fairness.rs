//! What a change waits for: the requests that were under way before it, and no others. So
//! nobody can hold up the change, and who waits for it, with ever new requests.

use super::helpers::*;
use super::world::*;
use crate::engine::registrations;
use crate::engine::*;

/// In sectors.
const CHUNK: u64 = 8;

/// Submits a read and does not wait for it.
fn start_read(w: &mut World, actor: usize, slot: Slot, (sector, sectors): (u64, u64)) {
    let request = Request {
        slot,
        kind: RequestKind::Read,
        sector,
        sectors,
    };
    w.submit(actor, request, vec![0; sectors as usize * 512]);
}

/// Ends everything that an actor has under way, and what that sets off for the others
/// except `held`.
fn end(w: &mut World, actor: usize, held: &[usize]) {
    while w.step_actor(actor) {}
    w.settle_without(held);
}

/// Reads of two chunks, of which the second is never copied: each of them reads the origin,
/// also where the first chunk comes from the store.
#[test]
fn an_origin_write_waits_for_no_read_of_a_snapshot_that_came_after_its_copy_out() {
    let (mut w, origin) = world(8 * CHUNK);
    let s = w.add_snapshot(1, CHUNK, 400, "P", false);
    let [one, two] = [(); 2].map(|()| w.add_actor(PortRole::View(s)));
    let both = (0, 2 * CHUNK);
    start_read(&mut w, one, 0, both);
    start_write(&mut w, origin, 0, (0, CHUNK), 900);
    w.settle_without(&[one, two]);
    // Copied out, but the first read may not have read the origin yet.
    assert_done(&mut w, origin, []);
    start_read(&mut w, two, 0, both);
    end(&mut w, one, &[two]);
    assert_done(&mut w, origin, [0]);
    w.settle();
    for reader in [one, two] {
        assert_done(&mut w, reader, [0]);
        assert_eq!(stamps(w.actors[reader].data(0)), numbers(2 * CHUNK));
    }
}

/// The same slots are taken again at once, as a busy guest does it.
#[test]
fn reads_that_follow_each_other_in_the_same_slots_delay_an_origin_write_by_one_each() {
    let (mut w, origin) = world(8 * CHUNK);
    let s = w.add_snapshot(1, CHUNK, 400, "P", false);
    let readers = [(); 3].map(|()| w.add_actor(PortRole::View(s)));
    let both = (0, 2 * CHUNK);
    for reader in readers {
        start_read(&mut w, reader, 0, both);
    }
    start_write(&mut w, origin, 0, (0, CHUNK), 900);
    w.settle_without(&readers);
    for reader in readers {
        assert_done(&mut w, origin, []);
        end(&mut w, reader, &readers);
        assert_done(&mut w, reader, [0]);
        assert_eq!(stamps(w.actors[reader].data(0)), numbers(2 * CHUNK));
        start_read(&mut w, reader, 0, both);
    }
    assert_done(&mut w, origin, [0]);
    w.settle();
    for reader in readers {
        assert_eq!(stamps(w.actors[reader].data(0)), numbers(2 * CHUNK));
    }
}

/// The old write went to the COW copies under `redirect`.
#[test]
fn a_merge_batch_waits_for_no_write_that_came_after_it() {
    let (mut w, origin) = world(8 * CHUNK);
    let s = w.add_snapshot(1, CHUNK, 400, "P", false);
    assert_eq!(w.write(origin, 0, 3 * CHUNK, 900), Status::Ok);
    w.merge_background = false;
    hand_over(&mut w, s, MergeWrites::Redirect);
    let late = w.add_actor(PortRole::View(ViewId::ORIGIN));
    start_write(&mut w, origin, 0, (0, 3 * CHUNK), 901);
    let wait = ControlRequest::SetMergeWrites(MergeWrites::Wait);
    w.control_wait(wait).unwrap();
    w.merge_background = true;
    let left = |w: &World| w.engine.status().merge.map(|m| m.chunks_left);
    for n in 0..3 {
        start_write(&mut w, late, n as Slot, (n * CHUNK + 1, CHUNK), 902 + n);
    }
    w.settle_without(&[origin, late]);
    assert_eq!(left(&w), Some(3), "the write to the chunks has not ended");
    end(&mut w, origin, &[late]);
    assert_done(&mut w, origin, [0]);
    assert_eq!(left(&w), None, "the merge waits for later writes");
    w.settle();
    assert_done(&mut w, late, 0..3);
}

#[test]
fn a_new_snapshot_waits_for_no_request_that_came_after_it() {
    let (mut w, origin) = world(8 * CHUNK);
    let late = w.add_actor(PortRole::View(ViewId::ORIGIN));
    start_write(&mut w, origin, 0, (0, 2 * CHUNK), 900);
    let snapshot = ViewId(1);
    let store = Box::new(w.new_store(snapshot, CHUNK, 400, "P", false));
    w.control(1, ControlRequest::AddSnapshot { snapshot, store });
    start_read(&mut w, late, 0, (0, 4 * CHUNK));
    start_write(&mut w, late, 1, (0, 2 * CHUNK), 901);
    w.settle_without(&[origin, late]);
    assert_eq!(w.actors[CONTROL].control_done, []);
    end(&mut w, origin, &[late]);
    assert_eq!(w.actors[CONTROL].control_done, [(1, Ok(()))]);
    w.settle();
    assert_done(&mut w, late, [0, 1]);
    let view = w.add_actor(PortRole::View(snapshot));
    assert_eq!(w.read(view, 0, 1).unwrap(), [900]);
}

/// One read holds up many changes, while requests that have nothing to do with them end.
#[test]
fn the_end_of_a_request_costs_no_look_at_others_however_many_changes_wait() {
    const CHANGES: u64 = 200;
    const SLOTS: u64 = 32;
    let (mut w, origin) = world((CHANGES + 1) * CHUNK);
    let s = w.add_snapshot(1, CHUNK, 4 * CHANGES * CHUNK, "P", false);
    let [reader, writer] = [(); 2].map(|()| w.add_actor(PortRole::View(s)));
    let all = (0, (CHANGES + 1) * CHUNK);
    start_read(&mut w, reader, 0, all);
    let before = registrations::looks();
    // The snapshot's guest is not held up by what it makes others wait for.
    for n in 0..CHANGES {
        start_write(&mut w, writer, 0, (n * CHUNK, CHUNK), 900);
        w.settle_without(&[reader]);
        assert_done(&mut w, writer, [0]);
    }
    let after_changes = registrations::looks();
    for _ in 0..100 {
        start_read(&mut w, origin, 0, (0, CHUNK));
        w.settle_without(&[reader]);
        assert_done(&mut w, origin, [0]);
    }
    let after_ends = registrations::looks();
    end(&mut w, reader, &[]);
    assert_done(&mut w, reader, [0]);
    let after_all = registrations::looks();
    let (started, ended) = (after_changes - before, after_ends - after_changes);
    let rest = after_all - after_ends;
    println!("{CHANGES} changes: {started} looks, 100 ends: {ended}, the end of all: {rest}");
    assert_eq!(ended, 0, "looks at registrations by requests that end");
    // Each change looks at each registration of the view once, when it comes or later, and
    // twice at the one that it has to wait for.
    let all = CHANGES * (2 * SLOTS + 1);
    assert!(started + rest <= all, "more than {all} looks");
}
