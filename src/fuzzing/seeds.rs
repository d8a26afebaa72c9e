//! The first inputs of each target: valid ones of every kind, and one for each flaw that
//! the targets know.

/// The kinds in the order of [`super::driver::Driver::request`]'s choice.
const KINDS: u8 = 10;
const FLAWS: u8 = 16;
const RUN: u8 = 160;
const STOP: u8 = 200;
const HANG_UP: u8 = 210;
const MISCHIEF: u8 = 220;

/// The bytes of a request with at most two pieces of data.
fn request(kind: u8, sector: u8, layout: u8, flaw: u8) -> Vec<u8> {
    let mut bytes = vec![0, kind, sector];
    match kind {
        // Two segments; a discard of 8 sectors.
        0 | 1 | 3 => bytes.extend([1, 7, 0]),
        4 | 5 => bytes.extend([8, 0]),
        _ => {}
    }
    bytes.extend([layout, flaw]);
    // The place of a flaw, and what it needs.
    bytes.extend([1, 2, 3, 4, 5]);
    if flaw == 0 {
        bytes.truncate(bytes.len() - 4);
    }
    if layout & 4 == 4 {
        bytes.push(3);
    }
    bytes
}

fn ring_header(view: u8, block: u8, event_idx: u8, base: u8, place: u8, size: u8) -> Vec<u8> {
    vec![view, 1, block, event_idx, 0, base, place, size]
}

/// Inputs for the ring, by name.
pub fn ring() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for view in 0..4 {
        for layout in [0, 1, 3, 5, 9] {
            let mut bytes = ring_header(view, 0, layout & 1, view, 0, 5);
            for kind in 0..KINDS {
                bytes.extend(request(kind, 8 * kind, layout, 0));
            }
            bytes.push(RUN);
            bytes.extend(request(1, 8, layout, 0));
            bytes.push(RUN);
            seeds.push((format!("view-{view}-layout-{layout}"), bytes));
        }
    }
    for view in 0..4 {
        let mut bytes = ring_header(view, 0, 1, view, 0, 0);
        bytes.extend(request(1, 8, 0, 0));
        bytes.extend(request(0, 16, 0, 0));
        bytes.extend([120, HANG_UP]);
        bytes.extend(request(0, 24, 1, 0));
        bytes.push(RUN);
        seeds.push((format!("hang-up-{view}"), bytes));
    }
    for flaw in 0..FLAWS {
        let mut bytes = ring_header(flaw % 3, 0, 1, 1, flaw % 6, 0);
        for kind in [0, 1, 4] {
            bytes.extend(request(kind, 16, 0, flaw));
            bytes.extend(request(kind, 32, 1, flaw));
        }
        bytes.push(RUN);
        seeds.push((format!("flaw-{flaw}"), bytes));
    }
    for act in 0..6 {
        let mut bytes = ring_header(1, 1, 1, 0, act, 4);
        bytes.extend(request(0, 8, 0, 0));
        bytes.extend([MISCHIEF, act, 2, 0, 9, 1, 1, 1, 1, 1, 1, 1, 1]);
        bytes.extend([RUN, STOP]);
        bytes.extend(request(1, 8, 0, 0));
        bytes.extend([120, HANG_UP]);
        bytes.extend(request(2, 0, 0, 0));
        seeds.push((format!("mischief-{act}"), bytes));
    }
    seeds.extend(ranges());
    seeds.extend(limits());
    seeds
}

/// A discard or a write of zeroes of `count` ranges of two sectors, from sector 8 on; `last`:
/// sector, sectors and flags of the last one.
pub fn request_of_ranges(kind: u8, count: u8, last: Option<[u8; 3]>, layout: u8) -> Vec<u8> {
    let further = count - 1;
    let mut bytes = vec![0, kind, 8, 2, further << 2];
    for number in 1..=further {
        match last {
            Some(last) if number == further => {
                bytes.push(1);
                bytes.extend(last);
            }
            _ => bytes.push(0),
        }
    }
    // Without a flaw; its place is not used.
    bytes.extend([layout, 0, 0]);
    bytes
}

/// Discards and writes of zeroes with several ranges.
fn ranges() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (kind, name) in [(4, "discard"), (5, "zeroes")] {
        for count in [2, 8, 9, 32, 33, 64] {
            let mut bytes = ring_header(count % 3, 0, 1, 1, 0, 0);
            let beyond = Some([200, 2, 0]);
            let unknown_flag = Some([16, 2, 2]);
            let twice = Some([8, 2, 0]);
            for (place, last) in [None, beyond, unknown_flag, twice].into_iter().enumerate() {
                let layout = place as u8 & 1;
                bytes.extend(request_of_ranges(kind, count, last, layout));
                bytes.push(RUN);
            }
            // The front end leaves in the middle of it.
            bytes.extend(request_of_ranges(kind, count, None, 0));
            bytes.extend([120, HANG_UP]);
            seeds.push((format!("ranges-{name}-{count}"), bytes));
        }
    }
    seeds
}

/// Chains that keep to all limits, or break one of them.
fn limits() -> Vec<(String, Vec<u8>)> {
    const INDIRECT: u8 = 1;
    const LARGE_TABLE: u8 = 1 | 16;
    let mut seeds = Vec::new();
    for (name, layout, flaw) in [
        // Beside header, two pieces of data and status.
        ("1024-descriptors", INDIRECT, [15, 1, 60, 0]),
        ("1025-descriptors", INDIRECT, [15, 1, 61, 0]),
        ("1025-pieces", INDIRECT, [15, 1, 61, 1]),
        ("large-table", LARGE_TABLE, [0, 0, 0, 0]),
        ("4-gib-direct", 0, [5, 1, 0xff, 0xff]),
        ("4-gib", INDIRECT, [5, 1, 0xff, 0xff]),
    ] {
        let mut bytes = ring_header(1, 0, 1, 1, 0, 0);
        for kind in [0, 1] {
            bytes.extend([0, kind, 8, 1, 7, 0, layout]);
            let used = match flaw[0] {
                0 => 2,
                _ => 4,
            };
            bytes.extend(&flaw[..used]);
            if flaw[0] == 5 {
                bytes.extend([0xff, 0xff]);
            }
            bytes.push(RUN);
        }
        seeds.push((format!("limit-{name}"), bytes));
    }
    seeds
}

/// Inputs for the in-flight region.
pub fn inflight() -> Vec<(String, Vec<u8>)> {
    const DIE: u8 = 160;
    const POKE: u8 = 200;
    let mut seeds = Vec::new();
    for view in 0..4 {
        for (name, poke) in [
            ("honest", vec![]),
            ("in-flight", vec![POKE, 16, 0, 1, 1]),
            ("twice", vec![POKE, 32, 0, 1, 1, POKE, 48, 0, 1, 1]),
            ("used", vec![POKE, 14, 0, 2, 1, 0]),
            ("batch", vec![POKE, 12, 0, 4, 5, 0, 2, 0]),
            (
                "loop",
                vec![POKE, 22, 0, 2, 0, 0, POKE, 14, 0, 2, 0xf0, 0xff],
            ),
            (
                "outside",
                vec![POKE, 12, 0, 2, 0xff, 0xff, POKE, 14, 0, 2, 0xff, 0xff],
            ),
        ] {
            let mut bytes = ring_header(view, 0, 1, view, 0, 0);
            // A region of the ring's size, empty, as it was made.
            bytes.extend([0, 0, 0]);
            bytes.extend(request(0, 8, 0, 0));
            bytes.extend(request(1, 8, 0, 0));
            bytes.extend(request(0, 24, 1, 0));
            bytes.push(100);
            bytes.extend(&poke);
            bytes.push(DIE);
            bytes.extend(request(2, 0, 0, 0));
            bytes.extend([130, 190, DIE]);
            seeds.push((format!("view-{view}-{name}"), bytes));
        }
    }
    // A region for fewer entries than the ring has, as the front end asked for it.
    let mut bytes = ring_header(0, 0, 0, 0, 0, 6);
    bytes.extend([2, 0, 0]);
    bytes.extend(request(0, 8, 0, 0));
    bytes.extend([100, DIE]);
    seeds.push(("region-of-1-entry".into(), bytes));
    for way in 1..6 {
        let mut bytes = ring_header(0, 0, 0, 0, 0, 0);
        bytes.extend([0, 16]);
        // Its header: version 1, 16 descriptors, used index 2.
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0, 0, 2, 0]);
        bytes.extend([way, 64, 0]);
        bytes.extend([0; 6]);
        bytes.extend(request(0, 8, 0, 0));
        bytes.extend([100, DIE]);
        seeds.push((format!("region-{way}"), bytes));
    }
    seeds
}

/// A message: its number in the list of requests, its queue, how many numbers it has that
/// may be wrong, and what is wrong with it as a whole.
fn message(code: u8, queue: u8, numbers: usize, flaw: u8) -> Vec<u8> {
    let mut bytes = vec![code, queue];
    bytes.extend(vec![0; numbers]);
    bytes.extend([1, flaw]);
    if flaw != 0 {
        bytes.extend([3, 4]);
    }
    bytes
}

/// Inputs for the socket.
pub fn socket() -> Vec<(String, Vec<u8>)> {
    let start: Vec<Vec<u8>> = vec![
        message(0, 0, 0, 0),
        message(1, 0, 0, 0),
        message(2, 0, 1, 0),
        message(3, 0, 0, 0),
        message(4, 0, 1, 0),
        message(17, 0, 4, 0),
        message(18, 0, 4, 0),
        message(5, 0, 6, 0),
        message(6, 0, 2, 0),
        message(7, 0, 6, 0),
        message(8, 0, 2, 0),
        message(9, 0, 1, 0),
        message(13, 0, 1, 0),
        message(10, 0, 1, 0),
        message(11, 0, 2, 0),
    ];
    let end = [
        message(14, 0, 0, 0),
        message(15, 0, 4, 0),
        message(16, 0, 4, 0),
        message(20, 0, 6, 0),
        message(19, 0, 6, 0),
        message(11, 0, 2, 0),
        message(12, 0, 2, 0),
        message(21, 0, 2, 0),
    ];
    let mut seeds = Vec::new();
    for view in 0..4 {
        for shorten in 0..2 {
            let mut bytes = vec![view, shorten];
            bytes.extend(start.concat());
            bytes.extend(end.concat());
            seeds.push((format!("view-{view}-shorten-{shorten}"), bytes));
        }
    }
    seeds.extend(migrations(&start, &end));
    seeds.extend(refusals(&start, &end));
    for code in 0..34 {
        let mut bytes = vec![code % 4, 0];
        bytes.extend(start.concat());
        bytes.extend(message(code, 0, 7, 0));
        bytes.extend(end.concat());
        seeds.push((format!("message-{code}"), bytes));
    }
    for (number, flaw) in [202, 207, 212, 220, 227, 235, 242, 247]
        .into_iter()
        .enumerate()
    {
        let mut bytes = vec![1, 0];
        for (place, message) in start.iter().enumerate() {
            bytes.extend(message);
            if place == 7 + number {
                bytes.extend(self::message(7 + number as u8, 1, 0, flaw));
            }
        }
        bytes.extend(message(7, 0, 6, flaw));
        bytes.extend(end.concat());
        seeds.push((format!("flaw-{flaw}"), bytes));
    }
    seeds
}

const SET_FEATURES: u8 = 4;
const SET_RING_SIZE: u8 = 6;
const SET_ADDRESSES: u8 = 7;
const SET_LOG: u8 = 21;
const RESET_DEVICE: u8 = 25;

/// A front end that has what the device writes logged, before the rings start or later.
fn migrations(start: &[Vec<u8>], end: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let features: u64 = 1 << 26 | 1 << 30 | 1 << 32 | 1 << 29 | 0x1244;
    let mut all = vec![SET_FEATURES, 0, 255];
    all.extend(features.to_le_bytes());
    all.extend([1, 0]);
    let log = [
        message(SET_LOG, 0, 2, 0),
        // The used ring too, at its guest address.
        vec![SET_ADDRESSES, 0, 0, 240, 1, 0, 0, 0, 200, 0, 0x20, 1, 0],
        all,
    ]
    .concat();
    // A log of 4 bytes is too short for the memory.
    let short = vec![SET_LOG, 0, 240, 4, 0, 1, 0];
    let mut seeds = Vec::new();
    for (name, at) in [("early", 10), ("late", start.len())] {
        let mut bytes = vec![1, 0];
        bytes.extend(start[..at].concat());
        bytes.extend(&log);
        bytes.extend(start[at..].concat());
        bytes.extend(message(SET_LOG, 0, 2, 0));
        bytes.extend(&short);
        bytes.extend(end.concat());
        seeds.push((format!("log-{name}"), bytes));
    }
    seeds
}

/// Rings that cannot be used, features that were not offered, and a reset.
fn refusals(start: &[Vec<u8>], end: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, at: usize, message: &[u8]| {
        let mut bytes = vec![2, 0];
        bytes.extend(start[..at].concat());
        bytes.extend(message);
        bytes.extend(start[at..].concat());
        // Mended, in the middle of what follows.
        bytes.extend(start[8..].concat());
        bytes.extend(end.concat());
        seeds.push((name.to_string(), bytes));
    };
    for part in 0..3 {
        let mut message = vec![SET_ADDRESSES, 0, 0, 0];
        for place in 0..4 {
            if place == part {
                message.extend([200, 1, 0]);
            } else {
                message.push(0);
            }
        }
        message.extend([1, 0]);
        add(&format!("unaligned-{part}"), 10, &message);
    }
    add("ring-of-9", 10, &[SET_RING_SIZE, 0, 0, 200, 1, 0, 1, 0]);
    add("all-features", 5, &[SET_FEATURES, 0, 230, 0, 1, 0]);
    add("reset", 15, &message(RESET_DEVICE, 0, 0, 0));
    seeds
}
