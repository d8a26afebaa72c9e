//! What a view may show after a power cut.

use std::collections::HashMap;

use super::plan::ORIGIN;
use super::stamps;

/// A view and the promises that were made to its guests.
pub struct View {
    name: &'static str,
    /// By sector: the stamps that it may hold; the first is the oldest that no
    /// flush has covered anew.
    allowed: Vec<Vec<u64>>,
    /// By sector: what was acknowledged last.
    acked: Vec<u64>,
    writes: HashMap<(u8, u64), (u64, u64)>,
    /// In the order of their acknowledgement.
    acks: Vec<(u8, u64)>,
    /// Flushes under way: how many acknowledgements they cover.
    flushes: HashMap<(u8, u64), usize>,
    /// Of `acks`: these are covered.
    covered: usize,
}

impl View {
    pub fn new(name: &'static str, content: Vec<u64>) -> Self {
        assert_eq!(content.len() as u64, ORIGIN);
        Self {
            name,
            allowed: content.iter().map(|stamp| vec![*stamp]).collect(),
            acked: content,
            writes: HashMap::new(),
            acks: Vec::new(),
            flushes: HashMap::new(),
            covered: 0,
        }
    }

    pub fn write(&mut self, by: u8, number: u64, sector: u64, count: u64) {
        self.writes.insert((by, number), (sector, count));
        for (sector, stamp) in (sector..sector + count).zip(stamps::stamp(by, number)..) {
            self.allowed[sector as usize].push(stamp);
        }
    }

    pub fn ack(&mut self, by: u8, number: u64) {
        self.acks.push((by, number));
        let (sector, count) = self.writes[&(by, number)];
        for (sector, stamp) in (sector..sector + count).zip(stamps::stamp(by, number)..) {
            self.acked[sector as usize] = stamp;
        }
    }

    pub fn flush(&mut self, by: u8, number: u64) {
        self.flushes.insert((by, number), self.acks.len());
    }

    pub fn flushed(&mut self, by: u8, number: u64) {
        let covers = self
            .flushes
            .remove(&(by, number))
            .expect("a flush under way");
        self.cover(covers);
    }

    /// All that was acknowledged is durable.
    pub fn stopped(&mut self) {
        self.cover(self.acks.len());
    }

    fn cover(&mut self, acks: usize) {
        for (by, number) in &self.acks[self.covered.min(acks)..acks] {
            let (sector, count) = self.writes[&(*by, *number)];
            for (sector, stamp) in (sector..sector + count).zip(stamps::stamp(*by, *number)..) {
                let allowed = &mut self.allowed[sector as usize];
                if let Some(at) = allowed.iter().position(|one| *one == stamp) {
                    allowed.drain(..at);
                }
            }
        }
        self.covered = self.covered.max(acks);
    }

    /// By sector: what a cut that begins now may have.
    pub fn cut(&self) -> Vec<Vec<u64>> {
        let sectors = self.allowed.iter().zip(&self.acked);
        let since = |(allowed, acked): (&Vec<u64>, &u64)| {
            let at = allowed.iter().position(|one| one == acked).unwrap_or(0);
            allowed[at..].to_vec()
        };
        sectors.map(since).collect()
    }

    /// # Errors
    /// Names the first sector that holds anything else.
    pub fn judge(&self, found: impl Fn(u64) -> u64) -> Result<(), String> {
        for (sector, allowed) in (0..).zip(&self.allowed) {
            let stamp = found(sector);
            if !allowed.contains(&stamp) {
                let say = |stamp: &u64| format!("{}", stamps::Found(Some(*stamp)));
                let allowed: Vec<String> = allowed.iter().map(say).collect();
                return Err(format!(
                    "{}: sector {sector} holds {}, not {}",
                    self.name,
                    if stamp == super::medium::MIXTURE {
                        "a mixture".into()
                    } else {
                        say(&stamp)
                    },
                    allowed.join(" or ")
                ));
            }
        }
        Ok(())
    }
}
