//! What a worker may do for the chains that it has taken: the memory and the sectors that
//! it may change, what it answers, and how often.

use std::collections::BTreeMap;

use super::chain::{Chain, Piece, Wish, decode};
use super::driver::Ring;
use super::memory::Image;
use super::volume::{SECTORS, initial};
use crate::virtio_blk::BlkDevice;

type Sector = [u8; 512];

/// What a sector may show: besides what it holds at first, the data of writes.
#[derive(Default)]
struct Shown {
    written: Vec<Sector>,
    /// Writes of the same data, the last of which ended well.
    certain: bool,
    discarded: bool,
    /// The data of a write may have changed while it was under way.
    unknown: bool,
}

pub struct Judge {
    ring: Ring,
    device: BlkDevice,
    first: &'static [u8],
    sectors: BTreeMap<u64, Shown>,
    /// Taken and not back.
    pub under_way: Vec<(u16, Chain)>,
    /// All memory that chains let the device write.
    writable: Vec<Piece>,
    readable: Vec<Piece>,
    /// The device may have overwritten its own answers.
    pub ring_is_overwritten: bool,
    /// Pieces of requests overlap, or the driver has changed them under way.
    pub is_tangled: bool,
    used: u16,
    pub taken: u64,
    pub back: u64,
}

fn overlap(a: Piece, b: Piece) -> bool {
    let end = |(at, len): Piece| at.saturating_add(len);
    a.1 > 0 && b.1 > 0 && a.0 < end(b) && b.0 < end(a)
}

impl Judge {
    pub fn new(ring: Ring, device: BlkDevice, used: u16) -> Self {
        Self {
            ring,
            device,
            first: initial(),
            sectors: BTreeMap::new(),
            under_way: Vec::new(),
            writable: Vec::new(),
            readable: Vec::new(),
            ring_is_overwritten: false,
            is_tangled: false,
            used,
            taken: 0,
            back: 0,
        }
    }

    /// The chain of a head, as it stands now.
    pub fn look(&self, image: &Image, head: u16) -> Chain {
        decode(
            image,
            self.ring.descriptors,
            self.ring.size,
            head,
            &self.device,
        )
    }

    /// The driver has changed its memory.
    pub fn driver_wrote(&mut self, before: &Image, after: &Image) {
        let used = self.ring.used_piece();
        for at in after.differences(before) {
            self.ring_is_overwritten |= overlap((at, 1), used);
            if !self.under_way.is_empty() {
                let pieces = self.writable.iter().chain(&self.readable);
                self.is_tangled |= pieces.clone().any(|piece| overlap((at, 1), *piece));
            }
        }
    }

    /// The worker has taken a head, whose chain was this.
    pub fn took(&mut self, image: &Image, head: u16, chain: Chain) {
        self.taken += 1;
        let size = u64::from(self.ring.size);
        let used = self.ring.used_piece();
        let ring = [
            used,
            (self.ring.descriptors, 16 * size),
            (self.ring.available, 6 + 2 * size),
        ];
        for (place, piece) in chain.writable.iter().enumerate() {
            let others = chain.writable.iter().enumerate();
            let twice = others
                .filter(|(p, _)| *p != place)
                .any(|(_, o)| overlap(*piece, *o));
            let all = ring.iter().chain(&chain.readable);
            let all = all.chain(&self.readable).chain(&self.writable);
            self.is_tangled |= twice || all.clone().any(|other| overlap(*piece, *other));
            self.ring_is_overwritten |= overlap(*piece, used);
        }
        for piece in &chain.readable {
            let mut others = self.writable.iter().chain([&used]);
            self.is_tangled |= others.any(|other| overlap(*piece, *other));
        }
        self.expect(image, &chain);
        self.writable.extend(&chain.writable);
        self.readable.extend(&chain.readable);
        self.under_way.push((head, chain));
    }

    fn expect(&mut self, image: &Image, chain: &Chain) {
        match &chain.wish {
            Wish::Write { sector, .. } => {
                let mut data = Vec::new();
                for (at, len) in &chain.data {
                    data.extend_from_slice(image.get(*at, *len).unwrap());
                }
                for (sector, bytes) in (*sector..).zip(data.chunks(512)) {
                    self.expect_sector(sector, bytes.try_into().unwrap());
                }
            }
            Wish::Zeroes(ranges) | Wish::Discard(ranges) => {
                for (sector, sectors) in ranges {
                    for sector in *sector..sector + sectors {
                        let shown = self.expect_sector(sector, [0; 512]);
                        shown.discarded |= matches!(chain.wish, Wish::Discard(_));
                    }
                }
            }
            _ => {}
        }
    }

    fn expect_sector(&mut self, sector: u64, bytes: Sector) -> &mut Shown {
        let shown = self.sectors.entry(sector).or_default();
        shown.certain = shown.written.iter().all(|written| *written == bytes);
        shown.written.push(bytes);
        shown
    }

    /// The worker has ended without an answer to what it had taken. The writes among it may
    /// have been carried out.
    pub fn died(&mut self) {
        self.taken -= self.under_way.len() as u64;
        self.under_way.clear();
        for shown in self.sectors.values_mut() {
            shown.certain = false;
        }
    }

    /// The worker has done a round.
    pub fn after_round(&mut self, before: &Image, after: &Image) {
        let used = self.ring.used_piece();
        for at in after.differences(before) {
            let mut allowed = self.writable.iter().chain([&used]);
            assert!(
                allowed.any(|piece| overlap((at, 1), *piece)),
                "the device writes to {at:#x}, which no chain lets it"
            );
        }
        if self.is_tangled {
            for shown in self.sectors.values_mut() {
                shown.unknown = true;
            }
        }
        if self.ring_is_overwritten {
            return;
        }
        let now = after.u16(self.ring.used + 2).unwrap();
        let mut answers = 0;
        while self.used != now {
            answers += 1;
            assert!(answers <= self.ring.size, "more answers than entries");
            let place = u64::from(self.used % self.ring.size);
            let raw = after.array::<8>(self.ring.used + 4 + 8 * place).unwrap();
            let (head, len) = (
                u64::from_le_bytes(raw) as u32,
                u64::from_le_bytes(raw) >> 32,
            );
            self.used = self.used.wrapping_add(1);
            self.came_back(after, head, len);
        }
    }

    fn came_back(&mut self, image: &Image, head: u32, len: u64) {
        self.back += 1;
        let at = self
            .under_way
            .iter()
            .position(|(h, _)| u32::from(*h) == head);
        let at = at.unwrap_or_else(|| panic!("head {head} goes back, but is not under way"));
        let twice = self.under_way.iter().filter(|(h, _)| u32::from(*h) == head);
        if twice.count() > 1 {
            // Which of them has ended cannot be seen.
            self.is_tangled = true;
        }
        let (_, chain) = self.under_way.remove(at);
        let most: u64 = chain.writable.iter().map(|(_, len)| len).sum();
        assert!(
            self.is_tangled || len <= most,
            "head {head} goes back with {len} bytes, of {most} that it has: {chain:?}"
        );
        if !self.is_tangled {
            self.check_answer(image, &chain, len);
        }
    }

    fn check_answer(&self, image: &Image, chain: &Chain, len: u64) {
        let data: u64 = chain.data.iter().map(|(_, len)| len).sum();
        let (code, written) = match chain.wish {
            Wish::Read { .. } => (0, data + 1),
            Wish::Id => (0, data.min(20) + 1),
            Wish::Write { .. } | Wish::Zeroes(_) | Wish::Discard(_) | Wish::Flush => (0, 1),
            Wish::Failure => (1, 1),
            Wish::Unsupported => (2, 1),
        };
        let status = chain.status.and_then(|at| image.array::<1>(at));
        let expected = status.map_or((None, 0), |_| (Some([code]), written));
        assert_eq!((status, len), expected, "{chain:?}");
        if let Wish::Read { sector, .. } = chain.wish {
            let mut bytes = Vec::new();
            for (at, len) in &chain.data {
                bytes.extend_from_slice(image.get(*at, *len).unwrap());
            }
            for (sector, bytes) in (sector..).zip(bytes.chunks(512)) {
                assert!(
                    self.may_show(sector, bytes),
                    "sector {sector} is read wrong"
                );
            }
        }
    }

    fn initially(&self, sector: u64) -> &[u8] {
        let at = sector as usize * 512;
        &self.first[at..at + 512]
    }

    fn may_show(&self, sector: u64, bytes: &[u8]) -> bool {
        let Some(shown) = self.sectors.get(&sector) else {
            return bytes == self.initially(sector);
        };
        // A discard leaves zeroes or what was there.
        shown.unknown
            || bytes == self.initially(sector)
            || shown.written.iter().any(|written| written == bytes)
    }

    /// Nothing is under way: what the view shows now.
    pub fn check_disk(&self, shown: &[u8], all_ended: bool) {
        assert_eq!(shown.len() as u64, SECTORS * 512);
        for (sector, bytes) in (0..).zip(shown.chunks(512)) {
            assert!(self.may_show(sector, bytes), "sector {sector} is changed");
            if let Some(state) = self.sectors.get(&sector)
                && state.certain
                && all_ended
                && !state.unknown
                && !state.discarded
            {
                assert_eq!(bytes, state.written[0], "sector {sector} is not written");
            }
        }
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
