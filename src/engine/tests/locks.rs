//! What a queue's work must not wait for.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::helpers::*;
use crate::engine::shared::lock;
use crate::engine::*;

/// Only a thread that waits for a lock takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// A request from its start to its end, all I/O with success.
fn carry_out(port: &mut Port, kind: RequestKind, sector: u64, sectors: u64) {
    let slot = 0;
    let request = Request {
        slot,
        kind,
        sector,
        sectors,
    };
    let mut commands = Vec::new();
    port.request(request, &mut commands);
    let mut ended = false;
    while let Some(command) = commands.pop() {
        match command {
            Command::GuestRead { tag, .. }
            | Command::GuestWrite { tag, .. }
            | Command::Flush { tag, .. } => port.io_done(tag, Ok(()), None, &mut commands),
            Command::Complete { status, .. } => {
                assert_eq!(status, Status::Ok);
                ended = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(ended, "{kind:?} at {sector}");
}

/// The locks that queues share are held meanwhile: that of the engine's state (under which
/// also the tables' memory is allocated), and that of the configuration.
#[test]
fn requests_whose_chunks_are_settled_take_no_lock_that_queues_share() {
    let (mut w, origin) = world(64);
    let s = w.add_snapshot(1, 8, 400, "P", false);
    assert_eq!(w.write(origin, 0, 32, 900), Status::Ok);
    let wake = || Arc::new(NoWake);
    let mut ports =
        [ViewId::ORIGIN, s].map(|view| w.engine.open_port(PortRole::View(view), 1, wake()));
    let held = (lock(&w.engine.core), lock(&w.engine.shared.config));
    let (ended, end) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for port in &mut ports {
                for sector in [0, 8, 25] {
                    carry_out(port, RequestKind::Read, sector, 5);
                    carry_out(port, RequestKind::Write { durable: false }, sector, 5);
                    carry_out(port, RequestKind::Write { durable: true }, sector, 5);
                }
                // Of what was never copied.
                carry_out(port, RequestKind::Read, 40, 16);
                carry_out(port, RequestKind::Flush, 0, 0);
            }
            ended.send(ports).unwrap();
        });
        let ports = end.recv_timeout(PATIENCE);
        drop(held);
        assert!(ports.is_ok(), "a queue waits for a lock");
    });
}
