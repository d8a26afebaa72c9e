//! The exceptions of one snapshot that are not settled.
//!
//! Each is 1 allocated: it has a COW chunk → 2 ready: its data is written → 3 committed:
//! its entry is durable → 4 settled: no read of the old origin chunk is under way. It
//! is published, which means that it can be looked up, at 3, or after 2 where commits
//! are deferred. Entries become durable in the order of allocation, because the log
//! has no gaps. A commit starts only if some exception is demanded.

use std::collections::{BTreeMap, VecDeque};

use super::waiting::Waiter;
use crate::engine::table::ExceptionTable;
use crate::store::Entry;

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum When {
    /// The exception can be looked up.
    Published,
    /// Its entry is durable.
    Committed,
    /// And the old reads of the origin chunk have ended.
    Settled,
}

#[derive(Debug)]
struct Pending {
    /// Its place in the order of allocation, counted from the first of the snapshot.
    sequence: u64,
    published: bool,
    waiters: Vec<(When, Waiter)>,
}

/// An exception that is not committed.
#[derive(Clone, Copy, Debug)]
struct Queued {
    entry: Entry,
    ready: bool,
}

#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// By origin chunk.
    pending: BTreeMap<u64, Pending>,
    /// Those of them that are not committed, in allocation order.
    queue: VecDeque<Queued>,
    /// Sequence number of the queue's front.
    committed: u64,
    /// Everything below this sequence number is wanted durable.
    demand: u64,
    /// The demand when the next group got its first ready exception. The group is
    /// complete when it reaches it: one flush serves all of them.
    goal: Option<u64>,
}

impl Unsettled {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn contains(&self, chunk: u64) -> bool {
        self.pending.contains_key(&chunk)
    }

    pub(super) fn allocated(&mut self, chunk: u64, cow_chunk: u64) {
        let sequence = self.end();
        self.queue.push_back(Queued {
            entry: Entry {
                old: chunk,
                new: cow_chunk,
            },
            ready: false,
        });
        self.pending.insert(
            chunk,
            Pending {
                sequence,
                published: false,
                waiters: Vec::new(),
            },
        );
    }

    /// The sequence number of the next allocation.
    fn end(&self) -> u64 {
        self.committed + self.queue.len() as u64
    }

    /// The COW chunk of an exception that is not committed.
    pub(super) fn cow_chunk(&self, chunk: u64) -> Option<u64> {
        let queued = self.queue.get(self.place(chunk)?)?;
        Some(queued.entry.new)
    }

    pub(super) fn is_published(&self, chunk: u64) -> bool {
        self.pending.get(&chunk).is_some_and(|p| p.published)
    }

    /// Its data is written, not necessarily durable. False if it is not among the
    /// uncommitted ones.
    pub(super) fn ready(&mut self, chunk: u64) -> bool {
        let queued = self.place(chunk).and_then(|at| self.queue.get_mut(at));
        queued.is_some_and(|q| {
            q.ready = true;
            true
        })
    }

    /// The newest exception that is ready and not committed.
    pub(super) fn newest_ready(&self) -> Option<u64> {
        let newest = self.queue.iter().rev().find(|q| q.ready)?;
        Some(newest.entry.old)
    }

    /// The place of an exception among the uncommitted ones, which the log will get in this
    /// order.
    pub(super) fn place(&self, chunk: u64) -> Option<usize> {
        let sequence = self.pending.get(&chunk)?.sequence;
        usize::try_from(sequence.checked_sub(self.committed)?).ok()
    }

    /// The entry of the uncommitted exception in this place, if its data is written.
    pub(super) fn ready_at(&self, place: usize) -> Option<Entry> {
        let queued = self.queue.get(place)?;
        queued.ready.then_some(queued.entry)
    }

    /// Makes an uncommitted exception one that can be looked up; returns its COW chunk.
    pub(super) fn publish(&mut self, chunk: u64) -> Option<u64> {
        let cow_chunk = self.cow_chunk(chunk)?;
        self.pending.get_mut(&chunk)?.published = true;
        Some(cow_chunk)
    }

    /// Asks for everything up to this exception to become durable.
    pub(super) fn demand(&mut self, chunk: u64) {
        if let Some(p) = self.pending.get(&chunk) {
            self.demand = self.demand.max(p.sequence + 1);
        }
    }

    /// Asks for everything to become durable.
    pub(super) fn demand_all(&mut self) {
        self.demand = self.end();
    }

    /// Everything that was demanded is committed.
    pub(super) fn is_demand_met(&self) -> bool {
        self.demand <= self.committed
    }

    /// The first waiter of the newest exception that is demanded. A handover and a
    /// clean stop demand without a waiter.
    pub(super) fn demander(&self) -> Option<Waiter> {
        let newest = self.demand.checked_sub(self.committed)?.checked_sub(1)?;
        let queued = self.queue.get(usize::try_from(newest).ok()?)?;
        let waiters = &self.pending.get(&queued.entry.old)?.waiters;
        waiters.first().map(|(_, waiter)| *waiter)
    }

    /// The entries for the next commit, in order; empty if none may start now.
    pub(super) fn next_group(&mut self) -> Vec<Entry> {
        if self.is_demand_met() {
            return Vec::new();
        }
        let ready = self.queue.iter().take_while(|q| q.ready).count();
        if ready == 0 {
            return Vec::new();
        }
        let goal = *self.goal.get_or_insert(self.demand);
        if self.committed + (ready as u64) < goal {
            return Vec::new();
        }
        self.goal = None;
        self.queue.iter().take(ready).map(|q| q.entry).collect()
    }

    /// The entries of a group, or of its first part, are durable; they are published.
    pub(super) fn committed(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.queue.pop_front();
            self.committed += 1;
            if let Some(p) = self.pending.get_mut(&entry.old) {
                p.published = true;
            }
        }
    }

    pub(super) fn wait(&mut self, chunk: u64, when: When, waiter: Waiter) {
        if let Some(p) = self.pending.get_mut(&chunk) {
            p.waiters.push((when, waiter));
        }
    }

    /// Takes out the waiters of an exception that has come as far as `reached`.
    pub(super) fn take_waiters(
        &mut self,
        chunk: u64,
        reached: When,
    ) -> impl Iterator<Item = Waiter> + use<> {
        let mut now = Vec::new();
        if let Some(p) = self.pending.get_mut(&chunk) {
            let all = std::mem::take(&mut p.waiters).into_iter();
            (now, p.waiters) = all.partition(|(when, _)| *when <= reached);
        }
        now.into_iter().map(|(_, waiter)| waiter)
    }

    /// The old reads have ended: forgets a committed exception, and returns its waiters.
    pub(super) fn settled(&mut self, chunk: u64) -> impl Iterator<Item = Waiter> + use<> {
        let waiters = self.pending.remove(&chunk).map(|p| p.waiters);
        let waiters = waiters.unwrap_or_default().into_iter();
        waiters.map(|(_, waiter)| waiter)
    }

    /// The snapshot is given up: forgets everything, and returns all waiters.
    pub(super) fn give_up(&mut self) -> Vec<(When, Waiter)> {
        let pending = std::mem::take(self).pending;
        pending.into_values().flat_map(|p| p.waiters).collect()
    }

    /// Walks the invariants, against the table that the threads look at.
    pub(super) fn check(&self, table: &ExceptionTable) -> Result<(), String> {
        for (chunk, p) in &self.pending {
            if p.published != table.get(*chunk).is_some() {
                let published = p.published;
                return Err(format!(
                    "chunk {chunk} pending, published {published}, table disagrees"
                ));
            }
            if table.get(*chunk).is_settled() {
                return Err(format!("chunk {chunk} is settled and pending"));
            }
        }
        for (queued, sequence) in self.queue.iter().zip(self.committed..) {
            let pending = self.pending.get(&queued.entry.old);
            if pending.is_none_or(|p| p.sequence != sequence) {
                let chunk = queued.entry.old;
                return Err(format!("chunk {chunk} queued and not pending"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Allocate(u64),
        Ready(u64),
        Demand(u64),
        DemandAll,
        /// Starts a commit, if none runs.
        Group,
        /// As much of the group as fits in a plan has become durable.
        Committed(usize),
        Settle(u64),
    }

    /// One exception of the model, which never forgets any.
    #[derive(Clone, Copy, Debug, Default)]
    struct One {
        chunk: u64,
        ready: bool,
        wanted: bool,
        committed: bool,
        settled: bool,
    }

    /// The same by a list of everything that was ever allocated.
    #[derive(Clone, Debug, Default)]
    struct Model {
        all: Vec<One>,
        /// The last exception that the next group must have.
        last: Option<usize>,
        /// The group under way.
        group: Vec<usize>,
    }

    fn entry(at: usize, one: &One) -> Entry {
        Entry {
            old: one.chunk,
            new: at as u64 + 100,
        }
    }

    impl Model {
        fn pending(&mut self, chunk: u64) -> Option<(usize, &mut One)> {
            let mut all = self.all.iter_mut().enumerate();
            all.find(|(_, one)| one.chunk == chunk && !one.settled)
        }

        fn want(&mut self, until: usize) {
            for one in self.all.iter_mut().take(until) {
                one.wanted = true;
            }
        }

        fn next_group(&mut self) -> Vec<usize> {
            let uncommitted = self.all.iter().enumerate().filter(|(_, o)| !o.committed);
            let newest_wanted = uncommitted.clone().rfind(|(_, o)| o.wanted);
            let Some((newest_wanted, _)) = newest_wanted else {
                return Vec::new();
            };
            let group: Vec<usize> = uncommitted
                .take_while(|(_, o)| o.ready)
                .map(|(at, _)| at)
                .collect();
            if group.is_empty() || !group.contains(self.last.get_or_insert(newest_wanted)) {
                return Vec::new();
            }
            self.last = None;
            group
        }

        /// Does a step on both; false if it is impossible now.
        fn step(&mut self, real: &mut Unsettled, step: Step) -> bool {
            match step {
                Step::Allocate(chunk) => {
                    if self.pending(chunk).is_some() {
                        return false;
                    }
                    let one = One {
                        chunk,
                        ..One::default()
                    };
                    real.allocated(chunk, entry(self.all.len(), &one).new);
                    self.all.push(one);
                }
                Step::Ready(chunk) => match self.pending(chunk) {
                    Some((_, one)) if !one.ready => {
                        one.ready = true;
                        assert!(real.ready(chunk));
                    }
                    _ => return false,
                },
                Step::Demand(chunk) => match self.pending(chunk) {
                    Some((at, one)) if !one.wanted => {
                        self.want(at + 1);
                        real.demand(chunk);
                    }
                    _ => return false,
                },
                Step::DemandAll => {
                    self.want(usize::MAX);
                    real.demand_all();
                }
                Step::Group => {
                    if !self.group.is_empty() {
                        return false;
                    }
                    self.group = self.next_group();
                    let group = self.group.iter().map(|at| entry(*at, &self.all[*at]));
                    assert_eq!(real.next_group(), group.collect::<Vec<_>>());
                }
                Step::Committed(most) => {
                    if self.group.is_empty() {
                        return false;
                    }
                    self.group.truncate(most);
                    let mut entries = Vec::new();
                    for at in std::mem::take(&mut self.group) {
                        entries.push(entry(at, &self.all[at]));
                        self.all[at].committed = true;
                    }
                    real.committed(&entries);
                }
                Step::Settle(chunk) => match self.pending(chunk) {
                    Some((_, one)) if one.committed => {
                        one.settled = true;
                        assert_eq!(real.settled(chunk).count(), 0);
                    }
                    _ => return false,
                },
            }
            true
        }

        fn compare(&mut self, real: &Unsettled) {
            for chunk in 0..3 {
                let one = self.pending(chunk).map(|(at, one)| (at, *one));
                assert_eq!(real.contains(chunk), one.is_some());
                let uncommitted = one.filter(|(_, one)| !one.committed);
                let cow_chunk = uncommitted.map(|(at, one)| entry(at, &one).new);
                assert_eq!(real.cow_chunk(chunk), cow_chunk);
                let published = one.is_some_and(|(_, one)| one.committed);
                assert_eq!(real.is_published(chunk), published);
            }
            let mut uncommitted = self.all.iter().filter(|one| !one.committed);
            let newest = uncommitted.clone().rfind(|one| one.ready);
            assert_eq!(real.newest_ready(), newest.map(|one| one.chunk));
            assert_eq!(real.is_demand_met(), !uncommitted.any(|one| one.wanted));
        }
    }

    /// Walks every sequence of `depth` steps; returns how many there were.
    fn walk(done: &mut Vec<Step>, depth: usize) -> u64 {
        let chunks = (0..3).flat_map(|chunk| {
            [
                Step::Allocate(chunk),
                Step::Ready(chunk),
                Step::Demand(chunk),
                Step::Settle(chunk),
            ]
        });
        let others = [Step::DemandAll, Step::Group];
        let ends = [Step::Committed(1), Step::Committed(usize::MAX)];
        let mut walked = 0;
        for step in chunks.chain(others).chain(ends) {
            let (mut model, mut real) = (Model::default(), Unsettled::default());
            done.push(step);
            if done.iter().all(|step| model.step(&mut real, *step)) {
                model.compare(&real);
                walked += 1;
                if depth > 1 {
                    walked += walk(done, depth - 1);
                }
            }
            done.pop();
        }
        walked
    }

    #[test]
    fn groups_are_what_a_plain_list_of_all_exceptions_gives() {
        // Steps that lead to a group of two, then everything from there.
        let start = [
            Step::Allocate(0),
            Step::Allocate(1),
            Step::Demand(1),
            Step::Ready(1),
        ];
        assert!(walk(&mut Vec::new(), 5) > 1000);
        assert!(walk(&mut start.to_vec(), 5) > 1000);
    }

    #[test]
    fn a_waiter_is_woken_once_and_not_before_its_exception_has_come_so_far() {
        let mut u = Unsettled::default();
        u.allocated(7, 100);
        for (when, id) in [
            (When::Settled, 3),
            (When::Published, 1),
            (When::Committed, 2),
        ] {
            u.wait(7, when, Waiter::Request(id));
        }
        u.demand(7);
        assert_eq!(u.demander(), Some(Waiter::Request(3)));
        u.ready(7);
        assert_eq!(u.publish(7), Some(100));
        let woken = u.take_waiters(7, When::Published);
        assert!(woken.eq([Waiter::Request(1)]));
        let group = u.next_group();
        u.committed(&group);
        let woken = u.take_waiters(7, When::Committed);
        assert!(woken.eq([Waiter::Request(2)]));
        assert!(u.settled(7).eq([Waiter::Request(3)]));
        assert!(u.is_empty());
    }

    #[test]
    fn nothing_is_left_of_what_is_given_up_but_its_waiters() {
        let mut u = Unsettled::default();
        for chunk in [5, 4] {
            u.allocated(chunk, chunk + 100);
            u.ready(chunk);
            u.wait(chunk, When::Settled, Waiter::Part(1, chunk));
        }
        u.demand_all();
        let waiters = [4, 5].map(|chunk| (When::Settled, Waiter::Part(1, chunk)));
        assert_eq!(u.give_up(), waiters);
        assert!(u.is_empty() && u.is_demand_met() && u.next_group().is_empty());
    }
}
