//! How full each store is: enough of the truth to aim at its edges and to know
//! which bytes are determined. What a view holds is not modelled; Linux says it.

use std::collections::BTreeSet;
use std::ops::Range;

/// `count` sectors from `sector` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub sector: u64,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    P,
    PO,
    N,
}

#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub kind: Kind,
    /// Sectors in a chunk.
    pub chunk: u64,
    /// Sectors of the COW.
    pub cow: u64,
}

impl Geometry {
    /// Entries in a metadata area.
    pub fn area(&self) -> u64 {
        self.chunk * 32
    }

    /// Data chunks that the COW can hold.
    pub fn capacity(&self) -> u64 {
        let chunks = self.cow / self.chunk;
        if self.kind == Kind::N {
            return chunks;
        }
        (2..chunks)
            .filter(|chunk| chunk % (self.area() + 1) != 1)
            .count() as u64
    }

    pub fn chunks(&self, extent: Extent) -> Range<u64> {
        extent.sector / self.chunk..(extent.sector + extent.count).div_ceil(self.chunk)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Valid,
    Overflow,
    Invalid,
}

/// What can be said about the bytes of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    All,
    /// Only the header: what was on its way when the store became invalid may
    /// have arrived or not.
    Header,
    /// The order of entries was open: requests at once, or a merge's copy-outs.
    Nothing,
}

/// One snapshot in use.
#[derive(Clone, Debug)]
pub struct Store {
    pub geometry: Geometry,
    pub health: Health,
    pub bytes: Bytes,
    pub entries: BTreeSet<u64>,
}

impl Store {
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            health: Health::Valid,
            bytes: Bytes::All,
            entries: BTreeSet::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.entries.len() as u64 >= self.geometry.capacity()
    }

    /// Chunks of `extent` that have no entry.
    pub fn missing(&self, extent: Extent) -> u64 {
        let chunks = self.geometry.chunks(extent);
        chunks.filter(|c| !self.entries.contains(c)).count() as u64
    }

    pub fn room(&self) -> u64 {
        self.geometry.capacity() - self.entries.len() as u64
    }

    fn invalidate(&mut self, others_under_way: bool) {
        self.health = Health::Invalid;
        if others_under_way || self.bytes == Bytes::Nothing {
            self.bytes = Bytes::Header;
        }
    }

    /// An origin write, or a merge of another snapshot into the origin.
    pub fn copy_out(&mut self, extent: Extent) {
        let mut added = false;
        for chunk in self.geometry.chunks(extent) {
            if self.health == Health::Invalid || self.entries.contains(&chunk) {
                continue;
            }
            if self.is_full() {
                return self.invalidate(added);
            }
            added = self.entries.insert(chunk);
        }
    }

    pub fn write(&mut self, extent: Extent) {
        let mut added = false;
        for chunk in self.geometry.chunks(extent) {
            if self.health != Health::Valid {
                return;
            }
            if self.entries.contains(&chunk) {
                continue;
            }
            if self.is_full() {
                match self.geometry.kind {
                    Kind::PO => self.health = Health::Overflow,
                    Kind::P | Kind::N => self.invalidate(added),
                }
                return;
            }
            added = self.entries.insert(chunk);
        }
    }

    /// The order in which entries came is not determined any more.
    pub fn unordered(&mut self) {
        self.bytes = match self.health {
            Health::Invalid => Bytes::Header,
            Health::Valid | Health::Overflow => Bytes::Nothing,
        };
    }
}
