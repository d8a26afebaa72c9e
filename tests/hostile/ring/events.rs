//! When the driver is signalled, by what it writes into its ring.

use crate::client::{IN, SECTOR_OF_CASES, Session, on_all_views};
use crate::raw::{EVENT_IDX, signalled};

/// Offers `count` requests with the used event at `ahead` of the used index, and says
/// whether a signal comes. At most ten milliseconds are waited for one that must not come.
fn signals(session: &mut Session, count: usize, ahead: u16, expected: bool) -> bool {
    let (raw, ring) = (&session.raw, &mut session.ring);
    raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
    // What comes late from before is over.
    while signalled(&ring.call, 5) {}
    let event = raw.used_index(ring).wrapping_add(ahead);
    raw.set_used_event(ring, event);
    raw.run(ring, &vec![0; count]);
    signalled(&ring.call, if expected { 20_000 } else { 10 })
}

fn all_transitions(session: &mut Session) {
    for (count, ahead, expected) in [
        (1, 0, true),
        (1, 1, false),
        (1, u16::MAX, false),
        (1, 0x8000, false),
        (1, 0x7fff, false),
        (4, 3, true),
        (4, 4, false),
        (16, 15, true),
        (16, 16, false),
        (16, u16::MAX, false),
    ] {
        let came = signals(session, count, ahead, expected);
        assert_eq!(came, expected, "{:?}: {count} at {ahead}", session.view);
    }
}

#[test]
fn a_signal_comes_exactly_at_the_event_index_also_where_it_wraps_around() {
    on_all_views(EVENT_IDX, |session, _| {
        all_transitions(session);
        // Over 65,535, wherever it is in the middle of a batch.
        for start in [65_530, 65_534, 65_535] {
            session.stop();
            session.ring = session.raw.start_at(session.ring.index, start);
            all_transitions(session);
        }
    });
}

#[test]
fn with_event_indices_the_flag_against_signals_has_no_meaning() {
    on_all_views(EVENT_IDX, |session, _| {
        session.raw.set_avail_flags(&session.ring, 1);
        assert!(signals(session, 1, 0, true));
        assert!(!signals(session, 1, 1, false));
    });
}

#[test]
fn without_event_indices_the_flag_suppresses_signals_and_the_index_has_no_meaning() {
    on_all_views(0, |session, _| {
        for (flags, expected) in [(0, true), (1, false), (0xfffe, true), (0xffff, false)] {
            session.raw.set_avail_flags(&session.ring, flags);
            for ahead in [0, 5] {
                let came = signals(session, 1, ahead, expected);
                assert_eq!(came, expected, "{:?}: {flags:#x}", session.view);
            }
        }
    });
}

#[test]
fn the_available_index_wraps_around() {
    on_all_views(0, |session, _| {
        for start in [65_520, 65_535, 0] {
            session.stop();
            session.ring = session.raw.start_at(session.ring.index, start);
            for count in [1, 16, 3, 16] {
                let (raw, ring) = (&session.raw, &mut session.ring);
                raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
                raw.run(ring, &vec![0; count]);
                assert_eq!(raw.status(ring, 0), 0);
            }
            assert_eq!(
                session.raw.used_index(&session.ring),
                u16::wrapping_add(start, 36)
            );
        }
    });
}
