//! The power cut of a device that carries a disk and its COW: from one instant on, no write
//! reaches it, and everybody is told the opposite.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::field::{DISK, Field, assert_same, pattern};
use super::inside;
use super::mapper::Mapped;

const SECTORS: u64 = DISK as u64 / 512;
const CHUNK: usize = 4096;
const ROUNDS: u64 = 3;
/// Nothing here takes as long.
const HANG: Duration = Duration::from_secs(60);

/// What a chunk may hold: the content before, and after each write to it, oldest first.
struct Chunk {
    written: Vec<u8>,
    /// So many of them at least are there, because a flush after them was answered before the cut.
    flushed: usize,
}

fn data(seed: u8) -> Vec<u8> {
    pattern(seed, CHUNK)
}

/// The instant from which on writes are lost lies between the two.
#[derive(Default)]
struct Cut {
    begins: AtomicBool,
    is_over: AtomicBool,
    /// So many writes were answered.
    written: AtomicU64,
}

/// Writes chunks here and there, and flushes, until some time after the cut.
fn write(field: &Field, round: u64, cut: &Cut) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = (0..DISK / CHUNK)
        .map(|_| Chunk {
            written: Vec::new(),
            flushed: 0,
        })
        .collect();
    let mut guest = field.guest("a.sock");
    let mut after = 0;
    for n in 0_u64.. {
        let at = ((n * 2_654_435_761 + round * 97) >> 7) as usize % 300;
        let seed = (n % 250) as u8 + 2;
        assert_eq!(guest.write((at * CHUNK / 512) as u64, &data(seed)), 0);
        chunks[at].written.push(seed);
        cut.written.fetch_add(1, Ordering::SeqCst);
        if n % 7 == 0 {
            assert_eq!(guest.flush(), 0);
            if !cut.begins.load(Ordering::SeqCst) {
                for chunk in &mut chunks {
                    chunk.flushed = chunk.written.len();
                }
            }
        }
        after += usize::from(cut.is_over.load(Ordering::SeqCst));
        if after == 60 {
            break;
        }
    }
    println!(
        "round {round}: {} writes",
        chunks.iter().map(|c| c.written.len()).sum::<usize>()
    );
    chunks
}

#[test]
fn a_device_that_drops_writes_from_an_instant_on_leaves_every_view_as_of_that_instant() {
    let name =
        "power::a_device_that_drops_writes_from_an_instant_on_leaves_every_view_as_of_that_instant";
    inside(name, &[24], || {
        for round in 0..ROUNDS {
            one(round);
        }
    });
}

fn one(round: u64) {
    let whole = Mapped::linear("whole", 24 << 11, Path::new("/dev/vda"), 0);
    let parts = || {
        let disk = Mapped::linear("disk", SECTORS, &whole.path(), 0);
        let cow = Mapped::linear("cow", 12 << 11, &whole.path(), SECTORS + 2048);
        (disk, cow)
    };
    let (disk, cow) = parts();
    disk.fill(&pattern(0, DISK));
    cow.fill(&[0; CHUNK]);
    let mut field = Field::on(disk.path());
    let place = cow.path().to_str().unwrap().to_owned();
    let serve = |field: &mut Field| field.start(&["--state", "state", "--allow-path", &place]);
    serve(&mut field);
    let mut spec = field.spec("s", field.here.path());
    (spec.cow, spec.size) = (place.clone(), None);
    field.client().add_snapshot(&spec).unwrap();
    let cut = Cut::default();
    let chunks = std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while cut.written.load(Ordering::SeqCst) < 50 + 75 * round {
                assert!(start.elapsed() < HANG, "the guest does not go on");
                std::thread::sleep(Duration::from_millis(1));
            }
            // A flush that is answered from here on is not counted.
            cut.begins.store(true, Ordering::SeqCst);
            whole.drop_writes();
            cut.is_over.store(true, Ordering::SeqCst);
        });
        write(&field, round, &cut)
    });
    // The device lies to everybody: nothing has noticed.
    assert_eq!(field.state("s"), "active");
    assert!(field.events("io-failed").is_empty());
    field.kill();
    drop((disk, cow));
    whole.mend();
    let (_disk, _cow) = parts();
    serve(&mut field);
    assert_eq!(field.state("s"), "active");
    assert_same(&field.shows("s.sock"), &pattern(0, DISK), "the snapshot");
    let shown = field.shows("a.sock");
    let first = pattern(0, DISK);
    let mut lost = 0;
    for (at, chunk) in chunks.iter().enumerate() {
        let found = &shown[at * CHUNK..][..CHUNK];
        let before = chunk.flushed == 0 && found == &first[at * CHUNK..][..CHUNK];
        let kept = chunk.flushed.saturating_sub(1)..chunk.written.len();
        let later = chunk.written.get(kept).unwrap_or_default();
        assert!(
            before || later.iter().any(|seed| found == data(*seed)),
            "round {round}: chunk {at} lost a flushed write"
        );
        lost += usize::from(
            chunk
                .written
                .last()
                .is_some_and(|last| found != data(*last)),
        );
    }
    assert!(lost > 0, "round {round}: no write was dropped");
    println!("round {round}: {lost} chunks hold older writes");
    assert!(field.stop().success());
}
