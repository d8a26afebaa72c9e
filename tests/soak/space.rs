//! Stores that take space as they fill, and what ends when there is none.

use std::fs::File;

use snapback::control::api::State;

use crate::faults::Fault;
use crate::model::{Model, Snap};

impl Model {
    /// The options of a snapshot for a new store of this size, which is sparse or allocated in
    /// full.
    pub fn store(&mut self, name: &str, kib: u64) -> (String, bool) {
        let sparse = self.place.is_some() && self.random.below(2) == 0;
        if sparse {
            let file = File::create(self.volume.path(&format!("{name}.cow")));
            file.and_then(|file| file.set_len(kib << 10)).unwrap();
            return (format!("--cow {name}.cow"), true);
        }
        (format!("--cow {name}.cow --size {kib}K"), false)
    }

    /// A merge that ends for want of space is not in the model.
    pub fn draw_fault(&mut self) -> Fault {
        let fault = Fault::draw(&mut self.random);
        let can_be_full = self.place.is_some() && self.merging.is_none();
        let fault = match fault {
            Fault::NoSpace if !can_be_full => Fault::None,
            other => other,
        };
        self.counts.faults += u64::from(fault != Fault::None);
        self.counts.full += u64::from(fault == Fault::NoSpace);
        fault
    }

    /// There was no space for a while: sparse stores may have ended by it, others have not.
    pub fn remove_what_ended(&mut self) {
        let status = self.volume.status();
        let ended = |snap: &Snap| {
            let found = status.snapshots.iter().find(|s| s.name == snap.name);
            found.is_some_and(|found| found.state == State::Invalid)
        };
        let snaps = std::mem::take(&mut self.snaps);
        let (gone, stay): (Vec<Snap>, Vec<Snap>) = snaps.into_iter().partition(ended);
        self.snaps = stay;
        for snap in gone {
            assert!(snap.sparse, "{}: its store has all its space", snap.name);
            self.remove_ended(&snap.name);
        }
        for snap in &mut self.snaps {
            // A write to a chunk that the store has may fail alone.
            let unread = std::mem::take(&mut snap.load.counts.unread);
            assert_eq!(unread, 0, "{}: failed reads, but no end", snap.name);
        }
    }

    pub fn remove_ended(&mut self, name: &str) {
        self.counts.ended += 1;
        self.verbs.must(&self.volume, &["remove", name]);
        self.assert_dead(&format!("{name}.cow"));
    }

    /// A file that was enlarged, and no more, when the daemon ended, needs the option that a start
    /// without it names.
    pub fn start_after_resize(&mut self, resizes: bool) {
        match resizes {
            true => self.start_with(&["--accept-changes"]),
            false => self.start(),
        }
    }

    /// A file that was enlarged when that could not be recorded: there is space now.
    pub fn finish_resize(&mut self, resizes: bool) {
        if resizes {
            self.verbs.must(&self.volume, &["resize"]);
        }
    }
}
