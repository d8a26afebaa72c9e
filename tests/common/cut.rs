//! A snapshot taken while a guest writes must be a cut: it has what was
//! acknowledged before, nothing that was submitted after, and of the writes
//! around it whole ones only, never a later one without an earlier one.

use std::collections::HashMap;
use std::time::Instant;

use super::load::Written;
use super::stamps::Found;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    In,
    Out,
}

/// Checks what a snapshot holds (`found`, by sector) against the content before
/// all `writes` and the two instants around the taking of the snapshot. Returns
/// how many writes were around the cut, and how many of these are in.
pub fn check(
    found: &[Option<u64>],
    first: &[u64],
    writes: &[Written],
    asked: Instant,
    answered: Instant,
) -> (usize, usize) {
    let mut base = first.to_vec();
    let mut around: Vec<Written> = Vec::new();
    // Overlapping writes are never in flight together, so the order of their
    // submission is that of their completion.
    for write in writes.iter().filter(|w| w.submitted <= answered) {
        if write.done.is_some_and(|done| done < asked) {
            let range = write.sector as usize..(write.sector + write.sectors) as usize;
            for (place, stamp) in base[range].iter_mut().zip(write.stamp..) {
                *place = stamp;
            }
        } else {
            around.push(*write);
        }
    }
    let mut by_sector: HashMap<usize, Vec<usize>> = HashMap::new();
    for (i, write) in around.iter().enumerate() {
        for sector in write.sector..write.sector + write.sectors {
            by_sector.entry(sector as usize).or_default().push(i);
        }
    }
    let mut sides: Vec<Option<Side>> = vec![None; around.len()];
    for (sector, found) in found.iter().enumerate() {
        let here = by_sector.get(&sector).map_or(&[][..], Vec::as_slice);
        let stamp = |i: usize| around[i].stamp + (sector as u64 - around[i].sector);
        let newest = here.iter().rposition(|i| Some(stamp(*i)) == *found);
        assert!(
            newest.is_some() || *found == Some(base[sector]),
            "the cut: sector {sector} holds {}, not {}, nor one of {} writes around the cut",
            Found(*found),
            Found(Some(base[sector])),
            here.len()
        );
        // What an older write left below the newest one cannot be seen.
        for (age, i) in here.iter().enumerate().skip(newest.unwrap_or(0)) {
            let side = if Some(age) == newest {
                Side::In
            } else {
                Side::Out
            };
            let known = sides[*i].get_or_insert(side);
            assert_eq!(*known, side, "half of a write is in: {:?}", around[*i]);
        }
    }
    // The write that is out and was the first to be acknowledged: all that were
    // submitted after that must be out, too.
    let side_is = |wanted: Side| {
        let pairs = around.iter().zip(&sides);
        pairs.filter_map(move |(w, side)| (*side == Some(wanted)).then_some(w))
    };
    let first_out = side_is(Side::Out)
        .filter(|w| w.done.is_some())
        .min_by_key(|w| w.done);
    if let Some(out) = first_out {
        for later in side_is(Side::In) {
            assert!(
                out.done > Some(later.submitted),
                "{later:?} is in without the earlier {out:?}"
            );
        }
    }
    let inside = sides.iter().filter(|s| **s == Some(Side::In)).count();
    (around.len(), inside)
}
