//! Reads a view as a guest would, without a ring.

use std::sync::Arc;

use super::volume::{CHUNK, SECTORS};
use crate::engine::*;
use crate::event_flag::EventFlag;
use crate::io::sim::SimDevices;
use crate::io::{Buffer, Disk, OpKind, OwnedBuffer};

/// The one request: a read of everything, into a buffer for each piece.
struct Whole;

impl SlotData for Whole {
    fn read_buffer(&mut self, range: SlotRange) -> Option<Buffer> {
        Some(Buffer::Owned(OwnedBuffer::zeroed(range.len)))
    }

    fn write_op(&mut self, _: SlotRange, _: u64, _: bool) -> Option<OpKind> {
        None
    }

    fn lay_over(&mut self, _: &mut Buffer, _: Patch) -> bool {
        false
    }
}

/// All that `view` shows; chunk by chunk, so that each piece is its own request.
pub fn read_all(engine: &Arc<Engine>, devices: &SimDevices, view: ViewId) -> Vec<u8> {
    let wake = Arc::new(EventFlag::new().unwrap());
    let mut port = engine.open_port(PortRole::View(view), 1, wake);
    let mut disk = devices.disk();
    let mut shown = Vec::new();
    for sector in (0..SECTORS).step_by(CHUNK as usize) {
        let request = Request {
            slot: 0,
            kind: RequestKind::Read,
            sector,
            sectors: CHUNK,
        };
        let (mut commands, mut done) = (Vec::new(), Vec::new());
        port.request(request, &mut commands);
        let mut ended = false;
        while !ended {
            for command in std::mem::take(&mut commands) {
                match command.execution(&mut Whole) {
                    Execution::Submit(op) => disk.submit(op),
                    Execution::Complete { status, .. } => {
                        assert_eq!(status, Status::Ok);
                        ended = true;
                    }
                    _ => panic!("not for a reader"),
                }
            }
            disk.reap(true, &mut done);
            for end in done.drain(..) {
                if let Some(Buffer::Owned(buffer)) = &end.buffer {
                    shown.extend_from_slice(buffer.as_slice());
                }
                port.io_done(end.tag, end.result, end.buffer, &mut commands);
            }
        }
    }
    shown
}
