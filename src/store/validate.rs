//! The checks of entries. Linux has none: with invalid entries it would return EIO, or
//! show one content to readers and another to a merge.

use super::StoreError;
use super::buckets::Buckets;
use super::entry::Entry;
use super::layout::Layout;
use super::log::Log;

/// Bounds for a single entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryRules {
    pub layout: Layout,
    cow_sectors: u64,
    origin_chunks: Option<u64>,
}

impl EntryRules {
    pub fn new(layout: Layout, cow_sectors: u64, origin_sectors: Option<u64>) -> Self {
        let origin_chunks = origin_sectors.map(|s| layout.chunk_size.chunks_covering(s));
        Self {
            layout,
            cow_sectors,
            origin_chunks,
        }
    }

    /// The copy must be a data chunk on the device, the original a chunk of the origin.
    pub fn check(&self, slot: usize, entry: Entry) -> Result<(), StoreError> {
        let chunk_size = self.layout.chunk_size;
        if !self.layout.is_data(entry.new) {
            let holds = "the store's own metadata";
            return Err(StoreError::NotData { slot, entry, holds });
        }
        if entry.new >= chunk_size.whole_chunks(self.cow_sectors) {
            return Err(StoreError::Truncated {
                what: format!(
                    "entry {slot} (origin chunk {} in COW chunk {})",
                    entry.old, entry.new
                ),
                needs: chunk_size.first_sector(entry.new.saturating_add(1)),
                has: self.cow_sectors,
            });
        }
        match self.origin_chunks {
            Some(origin_chunks) if entry.old >= origin_chunks => Err(StoreError::BeyondOrigin {
                slot,
                entry,
                origin_chunks,
                chunk_sectors: chunk_size.sectors(),
            }),
            _ => Ok(()),
        }
    }
}

/// Two entries that have something in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// Slots, ascending, no third with the same in between.
    pub first: usize,
    pub second: usize,
    a: Entry,
    b: Entry,
}

impl Repeat {
    /// Why they cannot both be right; `None` for identical entries, which are
    /// what a removal leaves when it is cut short.
    pub fn conflict(self) -> Option<StoreError> {
        let Self {
            first,
            second,
            a,
            b,
        } = self;
        if a == b {
            None
        } else if a.old == b.old {
            Some(StoreError::TwoCopies {
                first,
                second,
                old: a.old,
                first_new: a.new,
                second_new: b.new,
            })
        } else {
            Some(StoreError::SharedCopy {
                first,
                second,
                new: a.new,
                first_old: a.old,
                second_old: b.old,
            })
        }
    }
}

/// Refuses two copies of one chunk and two chunks in one copy. Of identical
/// entries the slots of the later ones are returned, ascending.
pub fn check_unique(entries: &Log) -> Result<Vec<usize>, StoreError> {
    let mut duplicates = Vec::new();
    for_each_repeat(entries, &mut |repeat| match repeat.conflict() {
        Some(error) => Err(error),
        None => {
            duplicates.push(repeat.second);
            Ok(())
        }
    })?;
    duplicates.sort_unstable();
    Ok(duplicates)
}

/// Calls `found` with every two entries, neighbours in slot order, that are for
/// the same chunk or in the same copy; with identical ones once.
///
/// # Errors
/// What `found` says.
pub fn for_each_repeat(
    entries: &Log,
    found: &mut dyn FnMut(Repeat) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for_equal_neighbours(entries, |e| e.old, found)?;
    for_equal_neighbours(entries, |e| e.new, &mut |repeat| {
        if repeat.a == repeat.b {
            return Ok(()); // found by its old chunk
        }
        found(repeat)
    })
}

/// Entries sorted at a time: sorting all of a large log at once would take as
/// much memory again as the log.
const SORTED_AT_ONCE: usize = 1 << 20;
/// Passes over the log at most, so that time stays in proportion to its length.
const PASSES: usize = 16;

/// Calls `found` with each two slots, neighbours in slot order, whose keys are equal.
fn for_equal_neighbours(
    entries: &Log,
    key: impl Fn(&Entry) -> u64,
    found: &mut dyn FnMut(Repeat) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    // The usual store: nothing to sort, nothing to allocate.
    if entries.iter().is_sorted_by(|a, b| key(a) < key(b)) {
        return Ok(());
    }
    let suspects = Suspects::of(entries, &key);
    let passes = suspects.most.div_ceil(SORTED_AT_ONCE).clamp(1, PASSES) as u64;
    let mut order: Vec<(u64, usize)> = Vec::new();
    for pass in 0..passes {
        order.clear();
        order.extend(
            entries
                .iter()
                .enumerate()
                .map(|(slot, entry)| (key(&entry), slot))
                .filter(|(key, _)| suspects.contains(*key))
                .filter(|(key, _)| passes == 1 || mixed(*key) % passes == pass),
        );
        order.sort_unstable();
        for pair in order.windows(2) {
            if let [(first_key, first), (second_key, second)] = *pair
                && first_key == second_key
                && let (Some(a), Some(b)) = (entries.get(first), entries.get(second))
            {
                found(Repeat {
                    first,
                    second,
                    a,
                    b,
                })?;
            }
        }
    }
    Ok(())
}

/// The keys that may occur twice.
struct Suspects {
    /// By another hash than the one that raised the suspicion.
    keys: Bits,
    /// Entries with such keys, about.
    most: usize,
}

impl Suspects {
    /// Keys of which an earlier one shares a bit. With 8 bits or more for each entry, these
    /// are less than a sixteenth of a log without repeats; if there are many, all are.
    fn of(entries: &Log, key: impl Fn(&Entry) -> u64) -> Self {
        let mut seen = Bits::new(entries.len().saturating_mul(8), SPREAD);
        let mut again = Vec::new();
        let mut see = |keys: &[u64]| {
            let old = keys.iter().copied().filter(|key| !seen.insert(*key));
            // One more than that is as bad as all.
            again.extend(old.take((SORTED_AT_ONCE + 1).saturating_sub(again.len())));
        };
        let mut buckets = Buckets::new(u64::MAX);
        entries.iter().for_each(|entry| {
            let key = key(&entry);
            buckets.push(key.wrapping_mul(SPREAD), key, &mut see);
        });
        buckets.finish(&mut see);
        if again.len() > SORTED_AT_ONCE {
            return Self {
                keys: Bits::all(),
                most: entries.len(),
            };
        }
        let mut keys = Bits::new(again.len().saturating_mul(16), OTHER_SPREAD);
        for key in &again {
            keys.insert(*key);
        }
        let most = 2 * again.len() + entries.len() / 16;
        Self { keys, most }
    }

    fn contains(&self, key: u64) -> bool {
        self.keys.contains(key)
    }
}

/// A bit for each of the values that a hash of a key can have.
struct Bits {
    words: Vec<u64>,
    shift: u32,
    spread: u64,
}

impl Bits {
    /// `count` bits or more.
    fn new(count: usize, spread: u64) -> Self {
        let count = count.next_power_of_two().max(64);
        Self {
            words: vec![0; count / 64],
            shift: u64::BITS - count.ilog2(),
            spread,
        }
    }

    /// Contains every key.
    fn all() -> Self {
        Self {
            words: vec![u64::MAX],
            shift: u64::BITS - 6,
            spread: SPREAD,
        }
    }

    fn place(&self, key: u64) -> (usize, u64) {
        let bit = key.wrapping_mul(self.spread) >> self.shift;
        (
            usize::try_from(bit / 64).unwrap_or_default(),
            1 << (bit % 64),
        )
    }

    /// Whether the bit was clear.
    fn insert(&mut self, key: u64) -> bool {
        let (word, bit) = self.place(key);
        self.words.get_mut(word).is_some_and(|word| {
            let clear = *word & bit == 0;
            *word |= bit;
            clear
        })
    }

    fn contains(&self, key: u64) -> bool {
        let (word, bit) = self.place(key);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }
}

/// 2^64 divided by the golden ratio, for Fibonacci hashing.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Another odd number without a pattern.
const OTHER_SPREAD: u64 = 0xd6e8_feb8_6659_fd93;

/// Spreads chunk numbers evenly, whatever their pattern (Fibonacci hashing).
const fn mixed(key: u64) -> u64 {
    key.wrapping_mul(SPREAD) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ChunkSize;

    fn log(pairs: &[(u64, u64)]) -> Log {
        pairs.iter().map(|&(old, new)| Entry { old, new }).collect()
    }

    #[test]
    fn identical_duplicates_are_named_later_ones_only() {
        assert_eq!(
            check_unique(&log(&[(1, 2), (9, 3), (1, 2), (5, 4), (1, 2)])).unwrap(),
            [2, 4]
        );
        assert_eq!(
            check_unique(&log(&[(7, 2), (3, 5), (4, 3)])).unwrap(),
            [0_usize; 0]
        );
    }

    #[test]
    fn two_copies_of_a_chunk_are_refused_with_both_slots() {
        let error = check_unique(&log(&[(10, 2), (1, 4), (10, 3)])).unwrap_err();
        let expected = StoreError::TwoCopies {
            first: 0,
            second: 2,
            old: 10,
            first_new: 2,
            second_new: 3,
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn two_chunks_in_one_copy_are_refused_with_both_slots() {
        let error = check_unique(&log(&[(1, 2), (3, 4), (5, 2)])).unwrap_err();
        let expected = StoreError::SharedCopy {
            first: 0,
            second: 2,
            new: 2,
            first_old: 1,
            second_old: 5,
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn entries_must_point_at_data_on_the_devices() {
        let layout = Layout::new(ChunkSize::new(1).unwrap());
        let rules = EntryRules::new(layout, 100, Some(50));
        let check = |old, new| rules.check(7, Entry { old, new });
        assert_eq!(check(0, 2), Ok(()));
        assert_eq!(check(49, 99), Ok(()));
        for metadata in [1, 34, 67] {
            assert!(matches!(
                check(0, metadata),
                Err(StoreError::NotData { slot: 7, .. })
            ));
        }
        assert!(matches!(
            check(0, 101),
            Err(StoreError::Truncated {
                needs: 102,
                has: 100,
                ..
            })
        ));
        assert!(matches!(
            check(0, u64::MAX),
            Err(StoreError::Truncated { .. })
        ));
        assert!(matches!(
            check(50, 2),
            Err(StoreError::BeyondOrigin {
                origin_chunks: 50,
                ..
            })
        ));
        assert!(matches!(
            check(u64::MAX, 2),
            Err(StoreError::BeyondOrigin { .. })
        ));
    }

    #[test]
    fn repeats_are_found_however_many_entries_there_are() {
        // More than are sorted at once, in no order, with one conflict of each kind.
        let len = 2 * SORTED_AT_ONCE as u64 + 7;
        let mut entries: Vec<Entry> = (0..len)
            .map(|n| Entry {
                old: (n * 7_368_787) % (1 << 40),
                new: len + 5 - n,
            })
            .collect();
        let check_unique = |entries: &[Entry]| check_unique(&entries.iter().copied().collect());
        assert_eq!(check_unique(&entries).unwrap(), [0_usize; 0]);
        let last = entries.len() - 1;
        entries[last] = entries[3];
        assert_eq!(check_unique(&entries).unwrap(), [last]);
        entries[last].new = 2;
        assert!(matches!(
            check_unique(&entries),
            Err(StoreError::TwoCopies { first: 3, .. })
        ));
        entries[last] = Entry {
            old: u64::MAX,
            new: entries[9].new,
        };
        assert!(matches!(
            check_unique(&entries),
            Err(StoreError::SharedCopy { first: 9, .. })
        ));
    }
}
