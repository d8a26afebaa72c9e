//! A model of how Linux merges a store.

use crate::store::Entry;

/// Whether Linux merges a log to its end, of which it knows this: entries with chunks that
/// follow one another on both sides are one element in memory; entries are merged from the
/// last to the first, and each is then removed from an element that has it, at an end of
/// which it must be. `front`: which of several elements is extended, and which is found.
pub fn linux_merges(log: &[Entry], front: [bool; 2]) -> Result<(), Entry> {
    fn pick(mut matching: impl DoubleEndedIterator<Item = usize>, front: bool) -> Option<usize> {
        if front {
            matching.next()
        } else {
            matching.next_back()
        }
    }
    // The first entry and how many follow it.
    let mut elements: Vec<(Entry, u64)> = Vec::new();
    for e in log {
        let follows = |n: &usize| {
            let (first, more) = elements[*n];
            (e.old, e.new) == (first.old + more + 1, first.new + more + 1)
        };
        let precedes = |n: &usize| {
            let (first, _) = elements[*n];
            (e.old + 1, e.new + 1) == (first.old, first.new)
        };
        if let Some(n) = pick((0..elements.len()).filter(follows), front[0]) {
            elements[n].1 += 1;
        } else if let Some(n) = pick((0..elements.len()).filter(precedes), front[0]) {
            elements[n] = (*e, elements[n].1 + 1);
        } else {
            elements.push((*e, 0));
        }
    }
    for e in log.iter().rev() {
        let has = |n: &usize| {
            let (first, more) = elements[*n];
            (first.old..=first.old + more).contains(&e.old)
        };
        let n = pick((0..elements.len()).filter(has), front[1]).ok_or(*e)?;
        match elements[n] {
            (_, 0) => drop(elements.remove(n)),
            (first, more) if first.old == e.old => {
                let (old, new) = (first.old + 1, first.new + 1);
                elements[n] = (Entry { old, new }, more - 1);
            }
            (first, more) if first.old + more == e.old => elements[n].1 -= 1,
            _ => return Err(*e),
        }
    }
    Ok(())
}
