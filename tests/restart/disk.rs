//! What a guest knows of its disk, and what it asks of it.

use super::common::random::Random;
use super::common::stamps::{self, Found, SECTOR};
use super::ring::{self, BUFFER};

/// The content of a buffer that no request uses.
const POISON: u8 = 255;

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub kind: u32,
    pub sector: u64,
    /// Bytes.
    pub len: usize,
    pub buffer: usize,
    /// Of the first sector of what the buffer was filled with.
    pub stamp: u64,
    /// The front end gave it up, and will offer it again unless it is completed.
    pub lost: bool,
}

impl Flight {
    fn range(&self) -> std::ops::Range<u64> {
        self.sector..self.sector + (self.len / SECTOR) as u64
    }

    fn changes(&self) -> bool {
        matches!(self.kind, ring::OUT | ring::ZEROES)
    }
}

pub struct Disk {
    /// Stamps of all sectors, as far as writes are acknowledged.
    pub shadow: Vec<u64>,
    writer: u8,
    next_write: u64,
    next_poison: u64,
    random: Random,
    /// The whole disk is being read; the next sector.
    pub sweep: Option<u64>,
    pub zeroes: bool,
}

impl Disk {
    pub fn new(writer: u8, seed: u64, shadow: Vec<u64>) -> Self {
        Self {
            shadow,
            writer,
            next_write: 0,
            next_poison: 0,
            random: Random::new(seed ^ u64::from(writer) << 56),
            sweep: None,
            zeroes: true,
        }
    }

    pub fn poison(&mut self) -> u64 {
        self.next_poison += 1;
        stamps::stamp(POISON, self.next_poison)
    }

    /// A request that meets no write under way; none if a sweep has come to its end.
    pub fn draw(&mut self, under_way: &[Flight]) -> Option<Flight> {
        if let Some(next) = self.sweep {
            let left = (self.shadow.len() as u64 - next) as usize * SECTOR;
            let len = left.min(BUFFER);
            self.sweep = Some(next + (len / SECTOR) as u64);
            return (len > 0).then_some(Flight {
                kind: ring::IN,
                sector: next,
                len,
                buffer: 0,
                stamp: 0,
                lost: false,
            });
        }
        for _ in 0..8 {
            let flight = self.draw_any();
            let range = flight.range();
            let meets = under_way.iter().any(|other| {
                let theirs = other.range();
                let meet = range.start < theirs.end && theirs.start < range.end;
                meet && (flight.changes() || other.changes())
            });
            if !meets {
                return Some(flight);
            }
        }
        None
    }

    fn draw_any(&mut self) -> Flight {
        let random = &mut self.random;
        let kind = match random.below(100) {
            0..3 => ring::FLUSH,
            3..45 => ring::IN,
            45..50 if self.zeroes => ring::ZEROES,
            _ => ring::OUT,
        };
        let sectors = match random.below(20) {
            0..8 => random.between(1, 8),
            8..16 => 8,
            16..19 => random.between(1, 32),
            _ => random.between(1, (BUFFER / SECTOR) as u64),
        };
        // Half of them at one place, so that a write done again meets a later one.
        let end = self.shadow.len() as u64 - sectors;
        let last = if random.below(2) == 0 {
            end.min(1024)
        } else {
            end
        };
        let mut sector = random.between(0, last);
        if sectors % 8 == 0 {
            sector &= !7;
        }
        let len = if kind == ring::FLUSH {
            0
        } else {
            sectors as usize * SECTOR
        };
        let stamp = if kind == ring::OUT {
            self.next_write += 1;
            stamps::stamp(self.writer, self.next_write)
        } else {
            0
        };
        Flight {
            kind,
            sector,
            len,
            buffer: 0,
            stamp,
            lost: false,
        }
    }

    /// Takes the end of a request, whose buffer holds `data`. Returns what is wrong.
    pub fn ended(&mut self, flight: &Flight, data: &[u8]) -> Result<(), String> {
        let range = flight.sector as usize..flight.sector as usize + flight.len / SECTOR;
        match flight.kind {
            ring::FLUSH => return Ok(()),
            ring::ZEROES => self.shadow[range].fill(stamps::ZEROES),
            ring::OUT => {
                compare(data, flight.stamp).map_err(|(at, found)| {
                    format!(
                        "the buffer of a write to sector {} holds {} in its sector {at}: a read landed in a reused page",
                        flight.sector, Found(found)
                    )
                })?;
                for (place, stamp) in self.shadow[range].iter_mut().zip(flight.stamp..) {
                    *place = stamp;
                }
            }
            _ => {
                for (i, (sector, expected)) in data
                    .chunks_exact(SECTOR)
                    .zip(&self.shadow[range])
                    .enumerate()
                {
                    let found = stamps::read(sector);
                    if found != Some(*expected) {
                        return Err(format!(
                            "sector {} holds {}, not {}",
                            flight.sector + i as u64,
                            Found(found),
                            Found(Some(*expected))
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The first sector that is not what `fill` with this stamp made.
pub fn compare(data: &[u8], first: u64) -> Result<(), (usize, Option<u64>)> {
    for (i, (sector, stamp)) in data.chunks_exact(SECTOR).zip(first..).enumerate() {
        let found = stamps::read(sector);
        if found != Some(stamp) {
            return Err((i, found));
        }
    }
    Ok(())
}
