//! A port whose requests are abandoned, because the daemon stops or the front end
//! has disconnected: work that other requests depend on is still completed.

use super::world::*;
use crate::engine::*;
use crate::io::Errno;

fn write(slot: Slot, sector: u64, sectors: u64) -> Request {
    Request {
        slot,
        kind: RequestKind::Write { durable: false },
        sector,
        sectors,
    }
}

/// Requests that wait for copy-outs end with an error, whenever they are abandoned.
/// The snapshots stay exact and valid, and requests of other ports complete.
#[test]
fn what_an_abandoned_port_had_begun_for_others_is_finished() {
    let mut failed = 0;
    for moment in 0..60 {
        let mut w = World::new(moment, 256);
        let leaving = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let staying = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let s = w.add_snapshot(1, 8, 4000, "P", false);
        let t = w.add_snapshot(2, 32, 4000, "P", false);
        for slot in 0..15 {
            let at = 16 * u64::from(slot);
            w.submit(leaving, write(slot, at, 16), data_of(at, 16, 900));
        }
        // The same chunks: it must not matter which port started a copy-out.
        w.submit(staying, write(0, 4, 200), data_of(4, 200, 901));
        for _ in 0..moment {
            w.step();
        }
        w.actors[leaving].port.abandon();
        while !w.actors[leaving].port.is_idle() || !w.actors[staying].port.is_idle() {
            w.step();
        }
        let ends = std::mem::take(&mut w.actors[leaving].completed);
        assert_eq!(ends.len(), 15);
        failed += ends.iter().filter(|(_, s)| *s == Status::IoError).count();
        assert_eq!(w.actors[staying].completed, [(0, Status::Ok)]);
        w.engine.check().unwrap();
        let states: Vec<_> = (w.engine.status().snapshots.iter())
            .map(|s| s.state)
            .collect();
        assert_eq!(states, [SnapshotState::Active; 2], "moment {moment}");
        for snapshot in [s, t] {
            let view = w.add_actor(PortRole::View(snapshot));
            assert_eq!(w.read(view, 0, 256).unwrap(), (0..256).collect::<Vec<_>>());
        }
        let origin = w.read(staying, 0, 256).unwrap();
        for (slot, status) in ends {
            let at = 16 * usize::from(slot);
            let of_others = |sector: &usize| (4..204).contains(sector);
            for sector in (at..at + 16).filter(|s| !of_others(s)) {
                let want = if status == Status::Ok {
                    900
                } else {
                    sector as u64
                };
                assert_eq!(origin[sector], want, "moment {moment}");
            }
        }
        assert_eq!(w.write(staying, 0, 256, 902), Status::Ok);
    }
    assert!(failed > 100, "only {failed} were left undone");
}

/// An I/O command whose tag says that it may be abandoned fails its request and
/// nothing else.
#[test]
fn only_transfers_that_matter_to_nobody_else_may_be_abandoned() {
    let mut w = World::new(5, 64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    let mut port = w.engine.open_port(PortRole::View(s), 4, w.no_wake());
    let mut out = Vec::new();
    let mut request = |port: &mut Port, request, abandonable: bool| {
        port.request(request, &mut out);
        let tags: Vec<_> = (out.drain(..))
            .map(|command| match command {
                Command::GuestRead { tag, .. } | Command::GuestWrite { tag, .. } => tag,
                other => panic!("{other:?}"),
            })
            .collect();
        for tag in &tags {
            assert_eq!(Port::is_abandonable(*tag), abandonable, "{request:?}");
        }
        tags
    };
    let read = Request {
        slot: 0,
        kind: RequestKind::Read,
        sector: 0,
        sectors: 8,
    };
    let tags = request(&mut port, read, true);
    let first_write = request(&mut port, write(1, 8, 8), false);
    for tag in tags {
        port.io_done(tag, Err(Errno::ECANCELED), None, &mut out);
    }
    assert!(
        matches!(
            out.as_slice(),
            [Command::Complete {
                slot: 0,
                status: Status::IoError
            }]
        ),
        "{out:?}"
    );
    assert_eq!(w.engine.status().snapshots[0].state, SnapshotState::Active);
    // The world is dropped while the write is under way.
    std::mem::forget((port, first_write));
}
