//! One guest's thread: a port, its disk, the data of its requests.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex};

use super::Kept;
use super::oracle::{Oracle, Stamp};
use super::volumes::Volume;
use crate::engine::tests::guest_disk::GuestDisk;
use crate::engine::*;
use crate::io::Done;

/// Puts a thread to sleep and wakes it. Nothing else wakes it, so a lost wake-up ends
/// in a deadlock, which shuttle reports.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !std::mem::take(&mut *rung) {
            rung = self.changed.wait(rung).unwrap();
        }
    }
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

struct Open {
    id: u64,
    kind: RequestKind,
    sectors: Range<usize>,
}

pub struct Guest {
    port: Kept<Port>,
    disk: Kept<GuestDisk>,
    bell: Arc<Bell>,
    view: ViewId,
    oracle: Oracle,
    open: BTreeMap<Slot, Open>,
    /// What the last read showed.
    shown: Vec<Stamp>,
    /// The view may answer with errors, because its snapshot is being removed.
    pub may_fail: bool,
}

/// Stamps are below this; the bits above hold the place.
const STAMPS: u64 = 1 << 40;

/// What sector `place` of a view holds after the write with this stamp.
pub fn sector(place: usize, stamp: Stamp) -> [u8; 512] {
    let word = place as u64 * STAMPS + stamp;
    let mut bytes = [0; 512];
    for part in bytes.chunks_exact_mut(8) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The stamps of consecutive sectors, the first of which is sector `first` of a view.
pub fn stamps(first: usize, bytes: &[u8]) -> Vec<Stamp> {
    let stamp = |(place, sector): (usize, &[u8])| {
        let word = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(
            sector.chunks_exact(8).all(|part| part == &sector[..8]),
            "a torn sector"
        );
        let held = (word / STAMPS) as usize;
        assert_eq!(held, place, "data of another sector of the same write");
        word % STAMPS
    };
    (first..).zip(bytes.chunks_exact(512)).map(stamp).collect()
}

impl Guest {
    pub fn new(volume: &Volume, view: ViewId) -> Self {
        let bell = Arc::new(Bell::default());
        let port = volume
            .engine
            .open_port(PortRole::View(view), 8, bell.clone());
        Self {
            port: Kept::new(port),
            disk: Kept::new(GuestDisk::new(volume.devices.disk())),
            bell,
            view,
            oracle: volume.oracle.clone(),
            open: BTreeMap::new(),
            shown: Vec::new(),
            may_fail: false,
        }
    }

    /// Starts a request; several may be under way.
    pub fn start(&mut self, kind: RequestKind, sectors: Range<usize>) {
        let slot = (0..8).find(|s| !self.open.contains_key(s)).unwrap();
        let id = self.oracle.next();
        let (mut data, range) = (vec![0; sectors.len() * 512], sectors.clone());
        match kind {
            RequestKind::Write { .. } => {
                data = sectors.clone().flat_map(|at| sector(at, id)).collect();
                self.oracle.begin_write(self.view, id, range);
            }
            RequestKind::Read => self.oracle.begin_read(self.view, id, range),
            _ => {}
        }
        let request = Request {
            slot,
            kind,
            sector: sectors.start as u64,
            sectors: sectors.len() as u64,
        };
        let open = Open { id, kind, sectors };
        self.open.insert(slot, open);
        self.disk.get().memory.slots.insert(slot, data);
        let mut commands = Vec::new();
        self.port.get().request(request, &mut commands);
        self.execute(commands);
    }

    pub fn write(&mut self, sectors: Range<usize>) {
        self.start(RequestKind::Write { durable: false }, sectors);
        self.finish();
    }

    pub fn read(&mut self, sectors: Range<usize>) -> Vec<Stamp> {
        self.start(RequestKind::Read, sectors);
        self.finish();
        self.shown.clone()
    }

    pub fn flush(&mut self) {
        self.start(RequestKind::Flush, 0..0);
        self.finish();
    }

    /// Waits until all requests have ended.
    pub fn finish(&mut self) {
        while !self.open.is_empty() {
            self.turn();
        }
    }

    /// Waits until the port may be dropped, as a worker does.
    pub fn close(mut self) {
        while !self.port.get().is_idle() || self.disk.get().in_flight() > 0 {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let mut commands = Vec::new();
        self.port.get().take_inbox(&mut commands);
        let mut moved = !commands.is_empty();
        self.execute(commands);
        let mut done = Vec::new();
        let disk = self.disk.get();
        disk.reap(false, &mut done);
        if done.is_empty() && !moved && disk.in_flight() > 0 {
            disk.reap(true, &mut done);
        }
        for Done {
            tag,
            result,
            buffer,
        } in done
        {
            moved = true;
            let mut commands = Vec::new();
            let port = self.port.get();
            port.io_done(tag, result, buffer, &mut commands);
            self.execute(commands);
        }
        if !moved && !self.open.is_empty() {
            self.bell.wait();
        } else if !moved {
            shuttle::thread::yield_now();
        }
    }

    fn execute(&mut self, commands: Vec<Command>) {
        for command in commands {
            match self.disk.get().carry_out(self.port.get(), command) {
                Some(Execution::Complete { slot, status }) => self.complete(slot, status),
                Some(other) => panic!("not for a guest: {other:?}"),
                None => {}
            }
        }
    }

    fn complete(&mut self, slot: Slot, status: Status) {
        let open = self.open.remove(&slot).unwrap();
        let data = self.disk.get().memory.slots.remove(&slot).unwrap();
        if status != Status::Ok {
            assert!(self.may_fail, "{:?} of {:?} fails", open.kind, self.view);
            return;
        }
        match open.kind {
            RequestKind::Read => {
                let first = open.sectors.start;
                self.shown = stamps(first, &data);
                self.oracle.end_read(self.view, open.id, first, &self.shown);
            }
            RequestKind::Write { .. } => self.oracle.end_write(self.view, open.id, open.sectors),
            _ => {}
        }
    }
}
