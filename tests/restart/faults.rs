//! What went wrong, counted by kind.

use std::collections::BTreeMap;

/// The first of each kind is described.
#[derive(Debug, Default)]
pub struct Faults {
    pub counts: BTreeMap<&'static str, u64>,
    pub first: Vec<String>,
}

pub const LATE: &str = "published after the hang-up";
pub const AGAIN_TAKEN: &str = "completed heads that are taken again";
pub const LOST: &str = "heads that nobody will complete";
pub const TWICE: &str = "heads completed twice";
pub const CONTENT: &str = "wrong contents";
pub const REFUSED: &str = "requests that failed";
pub const STUCK_HEADS: &str = "heads that hang";
pub const REGION: &str = "wrong in-flight regions";
pub const CONNECTION: &str = "connections that failed";
pub const SLOW: &str = "stops that were not clean";

impl Faults {
    pub fn add(&mut self, kind: &'static str, count: u64, what: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        let counted = self.counts.entry(kind).or_default();
        *counted += count;
        if *counted == count {
            self.first.push(format!("{kind}: {}", what()));
        }
    }

    pub fn any(&self) -> bool {
        !self.counts.is_empty()
    }
}
