//! An engine with one snapshot, on a disk that ends every operation at once.

use std::sync::Arc;

use snapback::engine::*;
use snapback::io::DeviceId;
use snapback::store::{Entry, Layout, Metadata};
use snapback::units::ChunkSize;

const ORIGIN: DeviceId = DeviceId(0);
const COW: DeviceId = DeviceId(1);
const SNAPSHOT: ViewId = ViewId(1);
pub const CHUNK_SECTORS: u64 = 8;

/// Where exceptions are, in chunks of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other.
    Row,
    /// Every chunk of a part of the disk, in no order.
    Cluster,
    /// As far apart as 10 million on 1 TiB, in ten parts of 1 TiB.
    Random,
    /// One in each 2 MiB or so: as 100,000 over 256 GiB.
    Sparse,
    /// At random over 16 TiB.
    Wide,
    /// At random over 1 GiB.
    Small,
}

impl Pattern {
    /// The chunk of exception number `n`, each once.
    pub fn place(self, n: u64) -> u64 {
        let mixed = |bits: u32| mix(n, bits);
        match self {
            Self::Row => (1 << 24) + n,
            // A million numbers in an order that never repeats one.
            Self::Cluster => (1 << 24) + n / (1 << 16) * (1 << 16) + mix(n % (1 << 16), 16),
            Self::Random => {
                // 2^25 chunks hold 1.25 million: 26.8 chunks for each.
                let near = mixed(25);
                (near >> 22 << 25) + (near & ((1 << 22) - 1))
            }
            Self::Sparse => mixed(26),
            Self::Wide => mixed(32),
            Self::Small => mixed(18),
        }
    }

    /// Chunks of the origin.
    fn chunks(self) -> u64 {
        match self {
            Self::Wide => 1 << 32,
            Self::Small => 1 << 18,
            _ => 1 << 28,
        }
    }
}

/// A bijection of the numbers below `1 << bits`: steps that can each be undone.
pub fn mix(n: u64, bits: u32) -> u64 {
    let mask = (1 << bits) - 1;
    let mut n = n & mask;
    for factor in [
        0x9e37_79b9_7f4a_7c15_u64,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
    ] {
        n = n.wrapping_mul(factor | 1) & mask;
        n ^= n >> (bits / 2);
    }
    n
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

pub struct Bench {
    _engine: Arc<Engine>,
    origin: Port,
    snapshot: Port,
    commands: Vec<Command>,
    again: Vec<Command>,
}

impl Bench {
    /// The store has `count` exceptions when the snapshot is added.
    pub fn loaded(pattern: Pattern, count: u64) -> Self {
        let sectors = pattern.chunks() * CHUNK_SECTORS;
        let engine = Engine::new(OriginParams {
            device: ORIGIN,
            sectors,
        });
        let layout = Layout::new(ChunkSize::new(CHUNK_SECTORS).unwrap());
        let mut metadata = Metadata::transient(layout, sectors);
        for n in 0..count {
            let new = metadata.allocate().unwrap();
            metadata.apply_append(&[Entry {
                old: pattern.place(n),
                new,
            }]);
        }
        let store = SnapshotStore {
            device: COW,
            metadata,
            sectors,
            keep_on_overflow: false,
            valid: true,
            marked: false,
            record: None,
            discards: Discards::default(),
            zero_ahead: 0,
        };
        let mut control = engine.open_port(PortRole::Control, 1, Arc::new(NoWake));
        let request = ControlRequest::AddSnapshot {
            snapshot: SNAPSHOT,
            store: Box::new(store),
        };
        let mut bench = Self {
            origin: engine.open_port(PortRole::View(ViewId::ORIGIN), 1, Arc::new(NoWake)),
            snapshot: engine.open_port(PortRole::View(SNAPSHOT), 1, Arc::new(NoWake)),
            _engine: engine,
            commands: Vec::new(),
            again: Vec::new(),
        };
        control.control(1, request, &mut bench.commands);
        carry_out(&mut control, &mut bench.commands, &mut bench.again);
        bench
    }

    pub fn read(&mut self, sector: u64, sectors: u64) {
        self.request(false, RequestKind::Read, sector, sectors);
    }

    pub fn write(&mut self, sector: u64, sectors: u64) {
        self.request(
            false,
            RequestKind::Write { durable: false },
            sector,
            sectors,
        );
    }

    pub fn origin(&mut self, kind: RequestKind, sector: u64, sectors: u64) {
        self.request(true, kind, sector, sectors);
    }

    fn request(&mut self, origin: bool, kind: RequestKind, sector: u64, sectors: u64) {
        let port = if origin {
            &mut self.origin
        } else {
            &mut self.snapshot
        };
        let request = Request {
            slot: 0,
            kind,
            sector,
            sectors,
        };
        port.request(request, &mut self.commands);
        let completed = carry_out(port, &mut self.commands, &mut self.again);
        assert_eq!(completed, 1, "{kind:?} at {sector}");
    }
}

/// Ends all I/O with success, until nothing is left; returns the requests that ended.
fn carry_out(port: &mut Port, commands: &mut Vec<Command>, again: &mut Vec<Command>) -> usize {
    let mut completed = 0;
    while !commands.is_empty() {
        for command in commands.drain(..) {
            match command {
                Command::GuestRead { tag, .. }
                | Command::GuestWrite { tag, .. }
                | Command::Flush { tag, .. }
                | Command::Zero { tag, .. } => port.io_done(tag, Ok(()), None, again),
                Command::Read { tag, buffer, .. } | Command::Write { tag, buffer, .. } => {
                    port.io_done(tag, Ok(()), Some(buffer), again);
                }
                Command::Complete { status, .. } => {
                    assert_eq!(status, Status::Ok);
                    completed += 1;
                }
                Command::ControlDone { result, .. } => assert_eq!(result, Ok(())),
                Command::Notice(_) => {}
            }
        }
        std::mem::swap(commands, again);
    }
    completed
}
