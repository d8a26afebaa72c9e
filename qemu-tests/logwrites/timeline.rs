//! The log and the trace of a run, put together.
//!
//! dm-log-writes has the data, but it writes a write down at the next flush, where
//! a write that was issued too early looks as if it had come in time. The block
//! layer's trace points tell when each began and ended, and have no data. A write
//! is the same in both by its place, its length and its turn.

use std::collections::{BTreeMap, VecDeque};

use super::plan::{ORIGIN_AT, Plan};
use super::record::Recording;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const MARK: u64 = 8;

/// A write or a flush of one device.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    pub kind: IoKind,
    /// On the logged disk. A flush has its device's first sector.
    pub sector: u64,
    pub count: u64,
    /// Of a write: in sectors of the log.
    pub data: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoKind {
    Write,
    /// With FUA.
    Durable,
    Flush,
}

/// What the pilot noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Writer, number, sector of the view, sectors.
    Write(u8, u64, u64, u64),
    Acked(u8, u64),
    Flush(u8, u64),
    Flushed(u8, u64),
    /// The rest: `ready`, `take`, `taken`, `hand`, `handed`, `merged`, `stopped`.
    Step(String),
}

#[derive(Clone, Debug)]
pub enum Event {
    /// By number in [`Timeline::ios`].
    Begun(usize),
    Ended(usize),
    Mark(Mark),
}

pub struct Timeline {
    pub ios: Vec<Io>,
    pub events: Vec<Event>,
    /// In the log.
    pub entries: usize,
    /// Flushes that ended while another one of the same device was under way.
    pub twins: usize,
}

/// What tells one I/O from most others.
type Key = (IoKind, u64, u64);

impl Timeline {
    /// # Panics
    /// If log and trace are not of one run, or something is missing in either.
    pub fn new(recording: &Recording) -> Self {
        let mut timeline = Self {
            ios: Vec::new(),
            events: Vec::new(),
            entries: 0,
            twins: 0,
        };
        let mut under_way: BTreeMap<Key, VecDeque<usize>> = BTreeMap::new();
        let mut ended = Vec::new();
        for line in recording
            .trace
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            if let Some((_, mark)) = line.split_once("tracing_mark_write: sb ") {
                timeline.events.push(Event::Mark(parse_mark(mark.trim())));
            } else if let Some(io) = bio(line, "block_bio_queue: ", recording) {
                let number = timeline.ios.len();
                under_way.entry(key(&io)).or_default().push_back(number);
                timeline.ios.push(io);
                timeline.events.push(Event::Begun(number));
            } else if let Some(io) = bio(line, "block_bio_complete: ", recording) {
                let same = under_way.entry(key(&io)).or_default();
                // Of two flushes of one device nothing tells which has ended; a task
                // may be held up between the trace and the disk. The later one
                // promises more: until both have ended, doubts are the disk's.
                let number = match io.kind {
                    IoKind::Flush => {
                        timeline.twins += usize::from(same.len() > 1);
                        same.pop_back()
                    }
                    _ => same.pop_front(),
                };
                let number = number.unwrap_or_else(|| panic!("nobody began this: {line}"));
                ended.push(number);
                timeline.events.push(Event::Ended(number));
            }
        }
        assert!(
            under_way.values().all(VecDeque::is_empty),
            "something never ended"
        );
        let mut logged = read_log(&recording.log);
        timeline.entries = logged.values().map(VecDeque::len).sum();
        assert_eq!(
            timeline.entries,
            ended.len(),
            "entries in the log, ends in the trace"
        );
        for number in ended {
            let io = &mut timeline.ios[number];
            let data = logged.get_mut(&key(io)).and_then(VecDeque::pop_front);
            io.data = data.unwrap_or_else(|| panic!("not in the log: {io:?}"));
        }
        timeline.check_devices(&recording.plan);
        timeline
    }

    /// Every I/O is of one device, flushes too.
    fn check_devices(&self, plan: &Plan) {
        for io in &self.ios {
            let mut devices = plan.devices().into_iter();
            let device = devices.find(|(_, range)| range.contains(&io.sector));
            let (name, range) = device.unwrap_or_else(|| panic!("of no device: {io:?}"));
            assert!(io.sector + io.count <= range.end, "{name}: {io:?}");
            assert!(
                io.kind != IoKind::Flush || io.sector == range.start,
                "the kernel does not say whose flush it is: {io:?}"
            );
        }
    }

    /// The events, with each write of a guest to the origin moved before the end of
    /// the last durable write, if that came after the guest's request.
    pub fn hasty(&self) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::with_capacity(self.events.len());
        for event in &self.events {
            let mut place = events.len();
            if let Event::Begun(io) = event {
                let io = self.ios[*io];
                let asked = |event: &Event| {
                    matches!(event, Event::Mark(Mark::Write(1, _, sector, count))
                        if (sector + ORIGIN_AT, *count) == (io.sector, io.count))
                };
                let durable = |event: &Event| matches!(event, Event::Ended(io) if self.ios[*io].kind == IoKind::Durable);
                let (asked, durable) = (
                    events.iter().rposition(asked),
                    events.iter().rposition(durable),
                );
                if asked.is_some() && durable > asked {
                    place = durable.unwrap_or(place);
                }
            }
            events.insert(place, event.clone());
        }
        events
    }

    pub fn flushes(&self) -> usize {
        self.count(IoKind::Flush)
    }

    pub fn durable_writes(&self) -> usize {
        self.count(IoKind::Durable)
    }

    fn count(&self, kind: IoKind) -> usize {
        self.ios.iter().filter(|io| io.kind == kind).count()
    }
}

fn key(io: &Io) -> Key {
    (io.kind, io.sector, io.count)
}

/// `... EVENT: MAJOR,MINOR RWBS SECTOR + COUNT [...]`
fn bio(line: &str, event: &str, recording: &Recording) -> Option<Io> {
    let (_, text) = line.split_once(event)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let [device, flags, sector, "+", count, ..] = words.as_slice() else {
        panic!("not as expected: {line}");
    };
    assert_eq!(*device, recording.disk, "{line}");
    let kind = match flags.trim_end_matches(['S', 'M']) {
        // Also what the kernel reads ahead.
        "R" | "RA" => return None,
        "W" => IoKind::Write,
        "WF" => IoKind::Durable,
        "FW" => IoKind::Flush,
        other => panic!("'{other}' is not known: {line}"),
    };
    let count = count.parse().unwrap();
    assert_eq!(kind == IoKind::Flush, count == 0, "{line}");
    Some(Io {
        kind,
        sector: sector.parse().unwrap(),
        count,
        data: 0,
    })
}

fn parse_mark(text: &str) -> Mark {
    let words: Vec<&str> = text.split(' ').collect();
    let number = |word: &str| {
        word.parse::<u64>()
            .unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    let writer = |word: &str| word.parse::<u8>().unwrap_or_else(|e| panic!("{text}: {e}"));
    match words.as_slice() {
        ["w", by, id, sector, count] => {
            Mark::Write(writer(by), number(id), number(sector), number(count))
        }
        ["a", by, id] => Mark::Acked(writer(by), number(id)),
        ["f", by, id] => Mark::Flush(writer(by), number(id)),
        ["F", by, id] => Mark::Flushed(writer(by), number(id)),
        [step] => Mark::Step((*step).to_owned()),
        _ => panic!("no mark: {text}"),
    }
}

/// Where the data of each entry is, in sectors of the log. An entry is a sector
/// with its description, followed by its data.
fn read_log(log: &[u8]) -> BTreeMap<Key, VecDeque<u32>> {
    let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    let sector_size = u32::from_le_bytes(log[24..28].try_into().unwrap());
    assert_eq!((word(0), word(8), sector_size), (MAGIC, 1, 512), "the log");
    let mut entries: BTreeMap<Key, VecDeque<u32>> = BTreeMap::new();
    let mut at = 512;
    for _ in 0..word(16) {
        let (sector, count, flags) = (word(at), word(at + 8), word(at + 16));
        at += 512;
        if flags == MARK {
            continue;
        }
        let kind = match flags {
            0 => IoKind::Write,
            FUA => IoKind::Durable,
            FLUSH => IoKind::Flush,
            other => panic!("an entry of the log has flags {other}"),
        };
        let data = u32::try_from(at / 512).unwrap();
        entries
            .entry((kind, sector, count))
            .or_default()
            .push_back(data);
        at += count as usize * 512;
    }
    entries
}
