//! Verifies from a guest's own record of its writes that a disk was rolled back to a
//! snapshot in two clean cuts.
//!
//! The writes are numbered; each is acknowledged before the next is sent. In the
//! end a block holds the last write to it (*kept*) or an older one (*reverted* by
//! a rollback). Then two numbers S < T must exist, the snapshot and the handover:
//! a reverted block holds its last write up to S and had none after T; a kept
//! block has its last write up to S or after T. The write that was in flight at S or
//! T may be on either side.

/// The bounds on S and T that follow from the blocks.
#[derive(Default)]
pub struct Cut {
    /// The last write to each block that still holds it.
    kept: Vec<u64>,
    reverted: u64,
    /// S is at least this: the newest write that a reverted block went back to.
    snapshot_from: u64,
    /// S is at most this: the oldest write that a reverted block lost.
    snapshot_to: Option<u64>,
    /// T is at least this: the newest write that a reverted block lost.
    handover_from: u64,
}

impl Cut {
    /// Adds a block that holds write `found`; `writes` are all that were sent to it,
    /// oldest first.
    pub fn add(&mut self, block: u64, found: u64, writes: &[u64]) -> Result<(), String> {
        let place = writes
            .iter()
            .position(|write| *write == found)
            .ok_or_else(|| {
                format!("block {block} holds write {found}, which was never sent to it")
            })?;
        let last = writes[writes.len() - 1];
        match writes.get(place + 1) {
            None => self.kept.push(last),
            Some(next) => {
                self.reverted += 1;
                self.snapshot_from = self.snapshot_from.max(found);
                self.snapshot_to = Some(self.snapshot_to.unwrap_or(*next).min(*next));
                self.handover_from = self.handover_from.max(last);
            }
        }
        Ok(())
    }

    /// `kept=N reverted=N`, or why no S and T exist.
    pub fn verdict(&self) -> Result<String, String> {
        let from = self.snapshot_from;
        let to = self.snapshot_to.unwrap_or(u64::MAX);
        if from > to {
            return Err(format!(
                "the snapshot is no clean cut: one block went back to write {from}, another lost write {to}"
            ));
        }
        let torn = |write: &&u64| **write > to && **write < self.handover_from;
        if let Some(write) = self.kept.iter().find(torn) {
            return Err(format!(
                "the handover is no clean cut: write {write} is there, write {} is not",
                self.handover_from
            ));
        }
        Ok(format!(
            "kept={} reverted={}",
            self.kept.len(),
            self.reverted
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks as (what each holds, what was written to it).
    fn judge(blocks: &[(u64, &[u64])]) -> Result<String, String> {
        let mut cut = Cut::default();
        for (block, (found, writes)) in (0..).zip(blocks) {
            cut.add(block, *found, writes)?;
        }
        cut.verdict()
    }

    #[test]
    fn a_disk_that_kept_everything_passes() {
        assert_eq!(
            judge(&[(0, &[0]), (3, &[0, 1, 3])]).unwrap(),
            "kept=2 reverted=0"
        );
    }

    #[test]
    fn a_clean_rollback_passes() {
        // S is 2, T is 5.
        let blocks: [(u64, &[u64]); 4] =
            [(1, &[0, 1]), (2, &[0, 2, 4]), (0, &[0, 3]), (6, &[0, 5, 6])];
        assert_eq!(judge(&blocks).unwrap(), "kept=2 reverted=2");
    }

    #[test]
    fn a_snapshot_that_holds_a_later_write_but_not_an_earlier_one_is_caught() {
        let message = judge(&[(4, &[0, 4, 6]), (0, &[0, 2, 5])]).unwrap_err();
        assert!(message.contains("snapshot is no clean cut"), "{message}");
    }

    #[test]
    fn a_write_that_survived_before_one_that_was_lost_is_caught() {
        let message = judge(&[(0, &[0, 1]), (3, &[0, 3]), (0, &[0, 5])]).unwrap_err();
        assert!(message.contains("handover is no clean cut"), "{message}");
    }

    #[test]
    fn a_write_that_was_sent_elsewhere_is_caught() {
        assert!(judge(&[(7, &[0, 1])]).unwrap_err().contains("never sent"));
    }
}
