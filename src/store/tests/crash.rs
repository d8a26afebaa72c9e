//! Sequences of appends and removals with power loss in every step, which leaves any
//! mixture of its units. At each instant a decoder that shares no code with the store reads
//! the image.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::linux_merge::linux_merges;
use super::{DEVICE, Decoded, Event, MemoryDisk, apply, decode_as, params};
use crate::mutation::{self, Mutation};
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
    /// From one old chunk to the next.
    spread: u64,
    /// All subsets of a step's units are tried up to this many units.
    exhaustive: usize,
    /// How often settling is cut short as well.
    depth: usize,
    /// What a crash leaves now, Linux must be able to merge: nothing moves.
    linux_merges: bool,
}

/// As Linux lays it out.
fn whole(chunk_sectors: u64) -> Layout {
    Layout::new(ChunkSize::new(chunk_sectors).unwrap())
}

fn short(chunk_sectors: u64, entries: usize) -> Layout {
    Layout::with_short_areas(ChunkSize::new(chunk_sectors).unwrap(), entries)
}

/// Entries between the terminator and the end of its area, which Linux would take for its
/// log if it appended up to them.
fn stale(image: &[u8], layout: Layout, len: usize) -> Vec<Entry> {
    let start = layout.slot_offset(len) as usize;
    let left = layout.area_len() - len % layout.area_len();
    let entries = image[start..start + left * 16].as_chunks().0;
    entries
        .iter()
        .filter_map(|e| Entry::from_bytes(*e))
        .collect()
}

/// Asserts that the image holds every entry of `must`, no entry that is not in `may`,
/// no old chunk with two copies, and nothing after its end but copies of what it holds.
fn check(image: &[u8], layout: Layout, must: &[Entry], may: &[Entry]) -> Vec<Entry> {
    let decoded = decode_as(image, layout.area_len());
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
    let stale = stale(image, layout, decoded.entries.len());
    assert!(
        !decoded.junk || !stale.is_empty(),
        "no entries after the end"
    );
    for entry in stale {
        let there = view.get(&entry.old);
        assert_eq!(there, Some(&entry.new), "{entry:?} after the end");
    }
    decoded.entries
}

/// Every subset of `units` things, or some if there are many: none, all, and others that
/// look random.
fn subsets(units: usize, exhaustive: usize) -> Vec<u64> {
    if units <= exhaustive {
        return (0..1 << units).collect();
    }
    let all = u64::MAX >> (64 - units.min(64));
    let others = (1..10u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) & all);
    [0, all].into_iter().chain(others).collect()
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
            spread: 7,
            exhaustive: 3,
            depth: 0,
            linux_merges: false,
        }
    }

    fn layout(&self) -> Layout {
        self.metadata.layout()
    }

    fn decode(&self, image: &[u8]) -> Decoded {
        decode_as(image, self.layout().area_len())
    }

    fn check(&self, must: &[Entry], may: &[Entry]) -> Vec<Entry> {
        check(&self.image, self.layout(), must, may)
    }

    /// As [`check`], and the crashed image loads, settles and agrees; it does so as well
    /// when settling is cut short anywhere.
    fn crash(&self, image: &[u8], must: &[Entry], may: &[Entry], depth: usize) {
        let layout = self.layout();
        let entries = check(image, layout, must, may);
        let params = params(image, self.unit, Some(OLDS * 8));
        let mut disk = MemoryDisk::new(image.to_vec());
        let loaded = load_as(&mut disk, DEVICE, &params, |_| layout);
        let Loaded::Valid(store) = loaded.unwrap() else {
            panic!("not valid")
        };
        let survey = survey_as(
            &mut disk,
            DEVICE,
            &params,
            |_| layout,
            &mut |slot, entry, error| {
                assert_eq!((entry, error), (entries[slot], None));
            },
        );
        let Ok(Survey::Log {
            entries: count,
            junk,
            missing_area: None,
            ..
        }) = survey
        else {
            panic!("{survey:?}")
        };
        assert_eq!(count, entries.len());
        assert_eq!(junk.map(|junk| junk.bytes), store.junk());
        let stale = stale(image, layout, entries.len());
        assert_eq!(store.junk().is_some(), !stale.is_empty());
        assert_eq!(store.copies_behind_end(), stale.len() as u64);
        let distinct: BTreeSet<u64> = entries.iter().map(|e| e.old).collect();
        assert_eq!(store.duplicates().len(), entries.len() - distinct.len());
        if store.is_clean() {
            return;
        }
        if self.linux_merges {
            for front in [[false, false], [false, true], [true, false], [true, true]] {
                assert_eq!(linux_merges(&entries, front), Ok(()), "{front:?}");
            }
        }
        let metadata = store.settle(&mut disk, DEVICE).unwrap();
        let repaired = check(&disk.image, layout, must, may);
        assert_eq!(repaired, metadata.entries().to_vec());
        assert_eq!(metadata.entries().len(), distinct.len());
        assert!(!self.decode(&disk.image).junk);
        if depth > 0 {
            let kept = metadata.entries().to_vec();
            self.crash_while_settling(image, &disk.events, &kept, may, depth - 1);
        }
    }

    /// Crashes between any two flushes, with any subset of the units written meanwhile.
    fn crash_while_settling(
        &self,
        image: &[u8],
        events: &[Event],
        must: &[Entry],
        may: &[Entry],
        depth: usize,
    ) {
        let mut durable = image.to_vec();
        let mut volatile = Vec::new();
        for event in events {
            let flushes = match event {
                Event::Flush => true,
                Event::Write {
                    offset,
                    data,
                    durable,
                } => {
                    let data = data.clone();
                    volatile.push(MetaWrite {
                        offset: *offset,
                        data,
                    });
                    *durable
                }
            };
            if flushes {
                let writes = std::mem::take(&mut volatile);
                self.crash_in_step(&durable, &writes, must, may, depth);
                for write in writes {
                    apply(&mut durable, write.offset, &write.data);
                }
            }
        }
    }

    /// Power is lost when any subset of the units of `writes` is on the medium.
    fn crash_in_step(
        &self,
        image: &[u8],
        writes: &[MetaWrite],
        must: &[Entry],
        may: &[Entry],
        depth: usize,
    ) {
        let units: Vec<(u64, &[u8])> = writes
            .iter()
            .flat_map(|w| {
                let parts = w.data.chunks(self.unit).enumerate();
                parts.map(|(n, data)| (w.offset + (n * self.unit) as u64, data))
            })
            .collect();
        for subset in subsets(units.len(), self.exhaustive) {
            let mut image = image.to_vec();
            for (n, (offset, data)) in units.iter().enumerate() {
                if subset >> (n % 64) & 1 == 1 {
                    apply(&mut image, *offset, data);
                }
            }
            self.crash(&image, must, may, depth);
        }
    }

    /// Carries out the writes of one step, after all its crashes.
    fn step(&mut self, writes: &[MetaWrite], must: &[Entry], may: &[Entry]) {
        for write in writes {
            assert!(write.data.len().is_multiple_of(self.unit) && !write.data.is_empty());
            assert!(write.offset.is_multiple_of(self.unit as u64));
            let chunk = self.layout().chunk_size.bytes();
            let (first, last) = (write.offset, write.offset + write.data.len() as u64 - 1);
            assert_eq!(first / chunk, last / chunk);
            assert!(self.layout().is_metadata(first / chunk), "not metadata");
        }
        let image = self.image.clone();
        self.crash_in_step(&image, writes, must, may, self.depth);
        for write in writes {
            apply(&mut self.image, write.offset, &write.data);
        }
    }

    fn append(&mut self, count: usize) {
        let mut entries = Vec::new();
        while entries.len() < count {
            let Ok(new) = self.metadata.allocate() else {
                break;
            };
            entries.push(Entry {
                old: self.next_old * self.spread % OLDS,
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
            // The padding is no news: it may be on the medium before the data is.
            self.linux_merges = self.depth == 0;
            self.step(plan.padding.as_slice(), &before, &before);
            self.step(plan.write.as_slice(), &before, &after);
            let decoded = self.decode(&self.image);
            assert_eq!((decoded.entries, decoded.junk), (after.clone(), false));
            self.metadata.apply_append(taken);
            assert_eq!(self.metadata.entries().to_vec(), after);
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
        self.linux_merges = plan.moves.is_empty() && self.depth == 0;
        for step in std::iter::once(&plan.moves).chain(&plan.tail) {
            self.step(step, &kept, &before);
        }
        self.metadata.apply_removal(&plan);
        let decoded = self.decode(&self.image);
        assert_eq!(decoded.entries, self.metadata.entries().to_vec());
        assert!(!decoded.junk, "something is left after the terminator");
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
        assert_eq!(
            metadata.entries().to_vec(),
            self.metadata.entries().to_vec()
        );
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
        assert_eq!(bench.metadata.entries().to_vec(), []);
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
    assert_eq!(plan.tail[0][0].offset, 9 * 512, "from area 2 in chunk 9");
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
    assert!(nothing.moves.is_empty() && nothing.tail.is_empty() && nothing.new_len == 5);
}

#[test]
fn a_removal_writes_only_the_units_it_changes() {
    let mut bench = Bench::new(whole(4), 512); // 128 entries, 4 units in an area
    bench.append(300);
    // Slots 3 and 4 share a unit; two survivors of the tail fill them.
    let plan = bench.metadata.plan_removal(&[4, 3]);
    assert_eq!((plan.moves.len(), plan.tail.len()), (1, 1));
    // Only the tail: nothing moves.
    let tail: Vec<usize> = (100..300).collect();
    let plan = bench.metadata.plan_removal(&tail);
    assert!(plan.moves.is_empty());
    let written = |step: &Vec<MetaWrite>| step.iter().map(|w| w.data.len() / 512).sum::<usize>();
    let units = 300usize.div_ceil(32) - 3;
    assert_eq!(
        plan.tail.iter().map(written).collect::<Vec<_>>(),
        [units - 1, units]
    );
}

#[test]
fn the_durable_steps_do_not_grow_with_the_number_of_entries() {
    let mut bench = Bench::new(whole(8), 512); // 256 entries, 8 units in an area
    bench.append(300);
    for count in [1, 30, 33, 100, 200] {
        let entries: Vec<Entry> = (0..count)
            .map(|n| Entry {
                old: 9000 + n,
                new: 320 + n,
            })
            .collect();
        let plan = bench.metadata.plan_append(&entries);
        assert_eq!(plan.taken, entries.len());
        assert_eq!(plan.padding.is_some(), 300 % 32 + count > 32);
        assert!(plan.write.is_some());
    }
    let steps = |slots: std::ops::Range<usize>| {
        let plan = bench.metadata.plan_removal(&slots.collect::<Vec<_>>());
        (plan.moves.len(), plan.tail.len())
    };
    assert_eq!(
        [290, 250, 100, 1].map(|from| steps(from..300)),
        [(0, 1), (0, 2), (0, 2), (0, 2)]
    );
    assert_eq!(
        [290, 250, 100].map(|to| steps(0..to)),
        [(1, 2), (1, 2), (1, 2)]
    );
    assert_eq!(
        steps(0..300),
        (0, 3),
        "the last entry of all goes by itself"
    );
}

/// Every mixture of up to eight units in each step, and settling cut short after each.
#[test]
fn every_mixture_of_units_is_a_good_store() {
    for (layout, unit) in [(whole(8), 512), (short(8, 250), 512), (whole(2), 512)] {
        let mut bench = Bench::new(layout, unit);
        (bench.exhaustive, bench.spread) = (8, 1);
        let area = layout.area_len();
        bench.append(20);
        bench.append(area - 30);
        bench.append(10);
        bench.append(area);
        for slots in [
            (2 * area - area / 2..2 * area).collect::<Vec<_>>(),
            (3..area / 2).collect(),
            (0..2 * area).step_by(3).collect(),
        ] {
            bench.remove(&slots);
        }
        bench.append(area / 2);
        let len = bench.metadata.entries().len();
        bench.remove(&(0..len).collect::<Vec<_>>());
        bench.reload();
    }
}

#[test]
fn settling_a_mixture_may_be_cut_short_as_well() {
    let mut bench = Bench::new(whole(4), 512); // 4 units in an area
    (bench.exhaustive, bench.depth) = (4, 2);
    bench.append(20);
    bench.append(105);
    bench.remove(&(10..120).collect::<Vec<_>>());
    bench.append(100);
    let len = bench.metadata.entries().len();
    bench.remove(&(0..len).collect::<Vec<_>>());
}

#[test]
fn a_store_padded_with_an_entry_from_the_middle_of_a_run_would_not_merge_in_linux() {
    let found = |mutation| {
        mutation::with(mutation, || {
            std::panic::catch_unwind(|| {
                let mut bench = Bench::new(whole(4), 512);
                bench.spread = 1;
                bench.append(20);
                bench.append(60);
                bench.remove(&(25..80).collect::<Vec<_>>());
            })
            .is_err()
        })
    };
    assert!(!found(None));
    assert!(found(Some(Mutation::PaddedFromRun)));
}
