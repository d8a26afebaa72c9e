//! Durability as the kernel is asked for it, by the disk of blocking threads.

use super::failing::Failing;
use super::inject::{Call, Made};
use super::*;

/// Metadata of a small COW with chunks of 4 KiB: the header and the first area.
const METADATA: std::ops::Range<u64> = 0..8192;

fn is_metadata(made: &Made) -> bool {
    made.call == Call::Write
        && made.file.ends_with("/s.cow")
        && made.offset.is_some_and(|at| METADATA.contains(&at))
}

/// Whatever verb it belongs to.
#[test]
fn every_write_of_metadata_is_durable_and_no_write_of_data() {
    let failing = Failing::start(World::new());
    let client = failing.world.client();
    client.add_snapshot(&failing.world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    let mut of_snapshot = Guest::connect(&failing.world.path("s.sock"));
    failing.faults.record();
    wreck(&mut guest, 1);
    wreck(&mut of_snapshot, 2);
    drop(of_snapshot);
    let request = MergeRequest {
        snapshot: "s".into(),
        follow: false,
        rate: None,
        now: true,
    };
    client.merge(&request).unwrap();
    failing.world.merged();
    fs::remove_file(failing.world.path("s.cow")).unwrap();
    let merged = failing.faults.recorded();
    client.add_snapshot(&failing.world.snapshot("s")).unwrap();
    failing.faults.record();
    client.remove_snapshot("s").unwrap();
    let removed = failing.faults.recorded();
    assert!(merged.iter().filter(|made| is_metadata(made)).count() > 1);
    assert!(removed.iter().any(is_metadata), "{removed:?}");
    for made in merged.iter().chain(&removed) {
        assert_eq!(made.durable, is_metadata(made), "{made:?}");
    }
}

/// The order at the top of the engine's copy-out, as system calls.
#[test]
fn a_copy_is_flushed_before_its_entry_and_the_entry_is_written_before_the_origin() {
    let failing = Failing::start(World::new());
    let client = failing.world.client();
    client.add_snapshot(&failing.world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    failing.faults.record();
    assert_eq!(guest.write(80, &[7; 512]), 0);
    let recorded = failing.faults.recorded();
    let made: Vec<_> = recorded
        .iter()
        .map(|made| {
            let file = made.file.rsplit('/').next().unwrap();
            (made.call, file, made.offset.unwrap_or(0), made.durable)
        })
        .collect();
    // Where the file system notes the first write of each block, the space behind the first
    // data chunk is zeroed.
    let magic = rustix::fs::statfs(failing.world.path("s.cow"))
        .unwrap()
        .f_type;
    let is_noted = [0xEF53, 0x5846_5342].contains(&magic);
    let is_ahead = |(_, file, at, _): &(Call, &str, u64, bool)| *file == "s.cow" && *at > 2 * 4096;
    let (ahead, made): (Vec<_>, Vec<_>) = made.into_iter().partition(is_ahead);
    let zeroes = (Call::Write, "s.cow", 3 * 4096, false);
    assert_eq!(ahead, if is_noted { vec![zeroes] } else { vec![] });
    let chunk = 80 / 8 * 4096;
    let expected = [
        (Call::Read, "disk.img", chunk, false),
        (Call::Write, "s.cow", 2 * 4096, false),
        (Call::Flush, "s.cow", 0, false),
        (Call::Write, "s.cow", 4096, true),
        (Call::Write, "disk.img", 80 * 512, false),
    ];
    assert_eq!(made, expected);
}
