//! Sequences of appends and removals with power loss at every write. At each instant
//! a decoder that shares no code with the store reads the image.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{DEVICE, Decoded, MemoryDisk, apply, decode_as, params};
use crate::store::{
    Entry, Layout, Loaded, MetaWrite, Metadata, Survey, create_as, load, load_as, survey_as,
};
use crate::units::ChunkSize;

/// Chunks on the device of a store with whole areas, and with short ones.
const CHUNKS: u64 = 600;
const FEW_CHUNKS: u64 = 70;
/// Old chunks are spread over this many chunks (a prime).
const OLDS: u64 = 10_007;

#[derive(Clone, Debug)]
enum Step {
    /// Allocate up to this many chunks and append their entries.
    Append(usize),
    /// As many as the current area still takes.
    FillArea,
    /// Remove the entries that the bits choose.
    Remove(Vec<bool>),
    /// Remove this many from the end.
    RemoveTail(usize),
    /// Start again from the image.
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..90usize).prop_map(Step::Append),
        2 => Just(Step::FillArea),
        2 => prop::collection::vec(any::<bool>(), 1..40).prop_map(Step::Remove),
        1 => prop::collection::vec(prop::bool::weighted(0.05), 50..200).prop_map(Step::Remove),
        1 => (1..100usize).prop_map(Step::RemoveTail),
        1 => Just(Step::Reload),
    ]
}

struct Bench {
    unit: usize,
    image: Vec<u8>,
    metadata: Metadata,
    next_old: u64,
}

/// As Linux lays it out.
fn whole(chunk_sectors: u64) -> Layout {
    Layout::new(ChunkSize::new(chunk_sectors).unwrap())
}

fn short(chunk_sectors: u64, entries: usize) -> Layout {
    Layout::with_short_areas(ChunkSize::new(chunk_sectors).unwrap(), entries)
}

/// Asserts that the image holds every entry of `must`, no entry that is not in `may`,
/// no old chunk with two copies, and nothing after its end.
fn check(decoded: Decoded, must: &[Entry], may: &[Entry]) -> Vec<Entry> {
    assert!(!decoded.junk, "something is left after the terminator");
    let may: BTreeSet<(u64, u64)> = may.iter().map(|e| (e.old, e.new)).collect();
    let mut view = BTreeMap::new();
    for entry in &decoded.entries {
        assert!(
            may.contains(&(entry.old, entry.new)),
            "{entry:?} came from nowhere"
        );
        assert_eq!(*view.entry(entry.old).or_insert(entry.new), entry.new);
    }
    for entry in must {
        assert_eq!(view.get(&entry.old), Some(&entry.new), "{entry:?} is lost");
    }
    decoded.entries
}

impl Bench {
    fn new(layout: Layout, unit: usize) -> Self {
        let few = layout.area_len() < 10;
        let chunks = if few { FEW_CHUNKS } else { CHUNKS };
        let size = layout.chunk_offset(chunks) as usize;
        let mut disk = MemoryDisk::new(vec![0xee; size]);
        let sectors = layout.chunk_size.first_sector(chunks);
        let metadata = create_as(&mut disk, DEVICE, layout, sectors, unit).unwrap();
        Self {
            unit,
            image: disk.image,
            metadata,
            next_old: 0,
        }
    }

    fn layout(&self) -> Layout {
        self.metadata.layout()
    }

    fn decode(&self, image: &[u8]) -> Decoded {
        decode_as(image, self.layout().area_len())
    }

    fn check(&self, must: &[Entry], may: &[Entry]) -> Vec<Entry> {
        check(self.decode(&self.image), must, may)
    }

    /// As [`check`], and the crashed image loads, settles and agrees.
    fn crash(&self, must: &[Entry], may: &[Entry]) {
        let entries = self.check(must, may);
        let layout = self.layout();
        let params = params(&self.image, self.unit, Some(OLDS * 8));
        let mut disk = MemoryDisk::new(self.image.clone());
        let survey = survey_as(
            &mut disk,
            DEVICE,
            &params,
            |_| layout,
            &mut |slot, entry, error| {
                assert_eq!((entry, error), (entries[slot], None));
            },
        );
        let sound = Survey::Log {
            layout,
            entries: entries.len(),
            junk: None,
            missing_area: None,
        };
        assert_eq!(survey, Ok(sound));
        let loaded = load_as(&mut disk, DEVICE, &params, |_| layout);
        let Loaded::Valid(store) = loaded.unwrap() else {
            panic!("not valid")
        };
        assert_eq!(store.junk(), None);
        let distinct: BTreeSet<u64> = entries.iter().map(|e| e.old).collect();
        assert_eq!(store.duplicates().len(), entries.len() - distinct.len());
        if !store.duplicates().is_empty() {
            let metadata = store.settle(&mut disk, DEVICE).unwrap();
            let repaired = self.decode(&disk.image);
            assert_eq!(check(repaired, must, may), metadata.entries());
            assert_eq!(metadata.entries().len(), distinct.len());
        }
    }

    fn write(&mut self, write: &MetaWrite) {
        assert_eq!(write.data.len(), self.unit);
        assert!(write.offset.is_multiple_of(self.unit as u64));
        let chunk = write.offset / self.layout().chunk_size.bytes();
        assert!(
            self.layout().is_metadata(chunk),
            "chunk {chunk} is not metadata"
        );
        apply(&mut self.image, write.offset, &write.data);
    }

    fn append(&mut self, count: usize) {
        let mut entries = Vec::new();
        while entries.len() < count {
            let Ok(new) = self.metadata.allocate() else {
                break;
            };
            entries.push(Entry {
                old: self.next_old * 7 % OLDS,
                new,
            });
            self.next_old += 1;
        }
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let before = self.metadata.entries().to_vec();
            let plan = self.metadata.plan_append(rest);
            let taken = &rest[..plan.taken];
            let after: Vec<Entry> = before.iter().chain(taken).copied().collect();
            let full = after.len().is_multiple_of(self.layout().area_len());
            assert_eq!(full, plan.zero_next_area.is_some());
            if let Some((offset, len)) = plan.zero_next_area {
                for half in [0, len / 2] {
                    apply(&mut self.image, offset + half, &vec![0; len as usize / 2]);
                    assert_eq!(self.check(&before, &before), before);
                }
            }
            for write in &plan.writes {
                self.write(write);
                let there = self.check(&before, &after);
                assert_eq!(there, after[..there.len()], "a prefix, in order");
                self.crash(&before, &after);
            }
            assert_eq!(self.decode(&self.image).entries, after);
            self.metadata.apply_append(taken);
            assert_eq!(self.metadata.entries(), after);
            rest = &rest[plan.taken..];
        }
    }

    fn remove(&mut self, slots: &[usize]) {
        let before = self.metadata.entries().to_vec();
        let kept: Vec<Entry> = before
            .iter()
            .enumerate()
            .filter(|(slot, _)| !slots.contains(slot))
            .map(|(_, entry)| *entry)
            .collect();
        let plan = self.metadata.plan_removal(slots);
        assert_eq!(plan.new_len, kept.len());

        // Moves land in any order: forwards, backwards, and each alone.
        let untouched = self.image.clone();
        let forwards: Vec<usize> = (0..plan.moves.len()).collect();
        let backwards = forwards.iter().rev().copied().collect();
        let alone = (0..plan.moves.len()).map(|n| vec![n]);
        for order in alone.chain([backwards, forwards]) {
            self.image.clone_from(&untouched);
            for index in order {
                self.write(&plan.moves[index]);
                self.crash(&kept, &before);
            }
        }
        for write in &plan.zeroes {
            self.write(write);
            self.crash(&kept, &before);
        }
        self.metadata.apply_removal(&plan);
        assert_eq!(self.decode(&self.image).entries, self.metadata.entries());
        assert_eq!(self.metadata.entries().len(), kept.len());
        self.check(&kept, &kept);
    }

    fn reload(&mut self) {
        let params = params(&self.image, self.unit, None);
        let mut disk = MemoryDisk::new(self.image.clone());
        let layout = self.layout();
        let loaded = load_as(&mut disk, DEVICE, &params, |_| layout);
        let Loaded::Valid(store) = loaded.unwrap() else {
            panic!("not valid")
        };
        assert!(store.is_clean());
        let metadata = store.settle(&mut disk, DEVICE).unwrap();
        assert_eq!(metadata.entries(), self.metadata.entries());
        self.metadata = metadata;
    }

    fn run(&mut self, step: &Step) {
        let len = self.metadata.entries().len();
        match step {
            Step::Append(count) => self.append(*count),
            Step::FillArea => {
                self.append(self.layout().area_len() - len % self.layout().area_len())
            }
            Step::Remove(bits) => {
                let slots: Vec<usize> = (0..len).filter(|n| bits[n % bits.len()]).rev().collect();
                self.remove(&slots);
            }
            Step::RemoveTail(count) => {
                self.remove(&(len.saturating_sub(*count)..len).collect::<Vec<_>>());
            }
            Step::Reload => self.reload(),
        }
        for (slot, entry) in self.metadata.entries().iter().enumerate() {
            assert_eq!(self.metadata.slot_of(entry.new), Some(slot));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_instant_is_a_good_store(
        steps in prop::collection::vec(step(), 1..10),
        (layout, unit) in prop::sample::select(vec![
            (whole(1), 512), (whole(2), 512), (whole(4), 512), (whole(8), 4096),
            (short(1, 1), 512), (short(1, 2), 512), (short(2, 3), 512), (short(8, 4), 4096),
            (short(4, 65), 512), // a third unit, with one entry
        ]),
    ) {
        let mut bench = Bench::new(layout, unit);
        for step in &steps {
            bench.run(step);
        }
        bench.reload();
    }
}

#[test]
fn areas_fill_exactly_and_empty_across_their_borders() {
    for layout in [
        whole(1),
        short(1, 2),
        short(1, 3),
        short(2, 4),
        short(2, 33),
    ] {
        let mut bench = Bench::new(layout, 512);
        for step in [
            Step::FillArea,
            Step::Reload,
            Step::Append(1),
            Step::FillArea,
            Step::FillArea,
            Step::Reload,
            Step::Remove(vec![true, false, false]),
            Step::RemoveTail(layout.area_len() + 1),
            Step::RemoveTail(1000),
            Step::Reload,
        ] {
            bench.run(&step);
        }
        assert_eq!(bench.metadata.entries(), []);
        assert_eq!(
            bench.metadata.usage().allocated,
            2 * layout.chunk_size.sectors()
        );
    }
}

#[test]
fn the_last_entry_moves_from_one_area_to_another() {
    let mut bench = Bench::new(short(1, 3), 512);
    bench.append(7);
    let plan = bench.metadata.plan_removal(&[1]);
    assert_eq!(plan.moves[0].offset, 512, "to area 0 in chunk 1");
    assert_eq!(plan.zeroes[0].offset, 9 * 512, "from area 2 in chunk 9");
    bench.remove(&[1]);
    // Area 2 is empty now, but still terminates the log after the full area 1.
    assert_eq!(bench.metadata.entries().len(), 6);
    bench.reload();
}

#[test]
fn a_store_with_short_areas_is_another_store_to_who_does_not_know() {
    let mut bench = Bench::new(short(1, 2), 512);
    bench.append(3);
    let params = params(&bench.image, 512, None);
    let mut disk = MemoryDisk::new(bench.image.clone());
    let Loaded::Valid(store) = load(&mut disk, DEVICE, &params).unwrap() else {
        panic!("not valid")
    };
    // The image does not record this: production code reads 32 entries in an area.
    assert_eq!(store.metadata().layout(), whole(1));
    assert_eq!(store.metadata().entries().len(), 2);
}

#[test]
fn unknown_and_repeated_slots_are_ignored() {
    let mut bench = Bench::new(whole(1), 512);
    bench.append(5);
    let plan = bench.metadata.plan_removal(&[1, 1, 99, usize::MAX]);
    assert_eq!((plan.new_len, plan.moved.len()), (4, 1));
    let nothing = bench.metadata.plan_removal(&[]);
    assert!(nothing.moves.is_empty() && nothing.zeroes.is_empty() && nothing.new_len == 5);
}

#[test]
fn a_removal_writes_only_the_units_it_changes() {
    let mut bench = Bench::new(whole(4), 512); // 128 entries, 4 units in an area
    bench.append(300);
    // Slots 3 and 4 share a unit; two survivors of the tail fill them.
    let plan = bench.metadata.plan_removal(&[4, 3]);
    assert_eq!((plan.moves.len(), plan.zeroes.len()), (1, 1));
    // Only the tail: nothing moves; units go from the end backwards.
    let tail: Vec<usize> = (100..300).collect();
    let plan = bench.metadata.plan_removal(&tail);
    assert!(plan.moves.is_empty());
    assert!(plan.zeroes.is_sorted_by(|a, b| a.offset > b.offset));
    assert_eq!(plan.zeroes.len(), 300usize.div_ceil(32) - 3);
}
