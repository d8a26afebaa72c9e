//! The cost of making a damaged store usable.

use serde::Serialize;

use super::damage::{Damage, DamageKind, Verdict};
use crate::size::in_words;

/// What a repair would cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// Whether there is one.
    pub possible: bool,
    /// Entries that it would drop: in their chunks the snapshot would show what
    /// the origin holds now.
    pub drops_entries: u64,
    pub keeps_entries: u64,
    /// Stale bytes that it would clear.
    pub clears_bytes: u64,
    /// The same as text for people.
    pub text: String,
}

/// Slots of entries that cannot be kept.
#[derive(Default)]
pub(super) struct Loss {
    slots: Vec<u64>,
}

impl Loss {
    pub fn entry(&mut self, slot: usize) {
        let word = slot / 64;
        if word >= self.slots.len() {
            self.slots.resize(word + 1, 0);
        }
        if let Some(bits) = self.slots.get_mut(word) {
            *bits |= 1 << (slot % 64);
        }
    }

    /// Each counts once, whatever is wrong with it.
    pub fn count(&self) -> u64 {
        let ones = |bits: &u64| u64::from(bits.count_ones());
        self.slots.iter().map(ones).sum()
    }
}

impl Repair {
    pub(super) fn new(
        verdict: Verdict,
        damage: &[Damage],
        lost: u64,
        entries: u64,
        stale_bytes: u64,
    ) -> Self {
        let has = |kind| damage.iter().any(|damage| damage.kind == kind);
        let hopeless = has(DamageKind::Header) || has(DamageKind::FileSize);
        let text = match verdict {
            Verdict::Good | Verdict::New => "none needed".to_owned(),
            Verdict::Stale => format!(
                "costs nothing: {} after the log, which are stale, are cleared before the next use, by \
                 serve as by merge; Linux does not, so do not give it the store before",
                in_words(stale_bytes)
            ),
            Verdict::Invalid => "impossible: the snapshot misses chunks that nobody kept; remove \
                                 the store, or make a new one there with create --force"
                .to_owned(),
            Verdict::Damaged if has(DamageKind::FileSize) => {
                "bring the file back from a copy that is whole, and check again: making it longer \
                 does not bring back what was cut off"
                    .to_owned()
            }
            Verdict::Damaged if has(DamageKind::Header) => {
                "restore the first 16 bytes from a backup, and check again: without a header \
                 nobody knows where the entries are"
                    .to_owned()
            }
            Verdict::Damaged => {
                let mut text = format!(
                    "drops {lost} of {entries} entries: in their chunks the snapshot would show \
                     what the origin holds now"
                );
                if has(DamageKind::MissingArea) {
                    text.push_str(
                        "; so it would in all that the missing metadata area and those after it \
                         recorded",
                    );
                }
                if has(DamageKind::BeyondStore) || has(DamageKind::MissingArea) {
                    text.push_str(
                        "; if the file was cut, bring it back from a copy that is whole instead",
                    );
                }
                if has(DamageKind::BeyondOrigin) {
                    text.push_str("; is it the right origin, and at its full size?");
                }
                text
            }
        };
        let possible = verdict != Verdict::Invalid && !hopeless;
        Self {
            possible,
            drops_entries: lost,
            keeps_entries: if possible { entries - lost } else { 0 },
            clears_bytes: stale_bytes,
            text,
        }
    }
}
