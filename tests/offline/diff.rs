//! `diff`: where a snapshot differs from its origin.

use super::*;

fn change(start: usize, length: usize, offset: usize, zero: bool) -> Value {
    json!({"start": start, "length": length, "depth": 0, "present": true, "zero": zero,
           "data": true, "offset": offset})
}

#[test]
fn diff_names_what_differs_as_qemu_img_map_does() {
    let world = World::new(&[(7, 2), (8, 3), (30, 5), (31, 6), (39, 9), (20, 7)]);
    let disk = world.disk();
    world.change_cow(|cow| {
        // Chunk 8 was written back to what it was, 20 holds zeroes where the disk has data.
        cow[3 * CHUNK..4 * CHUNK].copy_from_slice(&disk[8 * CHUNK..9 * CHUNK]);
        cow[7 * CHUNK..8 * CHUNK].fill(0);
    });
    let last = DISK - 39 * CHUNK;
    assert!(disk[19 * CHUNK..20 * CHUNK].iter().any(|b| *b != 0));
    assert_eq!(
        world.json(0, &both(&["diff", "--json"])),
        json!([
            change(7 * CHUNK, CHUNK, 2 * CHUNK, false),
            change(30 * CHUNK, 2 * CHUNK, 5 * CHUNK, false),
            change(39 * CHUNK, last, 9 * CHUNK, false),
        ]),
        "chunk 20 is zero on both sides"
    );
    assert_eq!(
        world.json(0, &both(&["diff", "--json", "--entries-only"])),
        json!([
            change(7 * CHUNK, 2 * CHUNK, 2 * CHUNK, false),
            change(20 * CHUNK, CHUNK, 7 * CHUNK, false),
            change(30 * CHUNK, 2 * CHUNK, 5 * CHUNK, false),
            change(39 * CHUNK, last, 9 * CHUNK, false),
        ])
    );
    let text = world.answer(0, &both(&["diff"]));
    assert!(
        text.ends_with(" kept\n") && text.lines().count() == 5,
        "{text}"
    );
    let none = World::new(&[]);
    assert_eq!(none.json(0, &both(&["diff", "--json"])), json!([]));
}

/// Chunks below 4 KiB are compared each for itself.
#[test]
fn small_chunks_differ_one_by_one() {
    for chunk in [512_usize, 1024, 2048] {
        let world = World::new(&[]);
        let disk = world.disk();
        let mut cow = vec![0; 256 * chunk];
        cow[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\0\0\0\0");
        cow[12] = (chunk / 512) as u8;
        // 24 neighbours, in the COW too: copies of what the disk has.
        let (first, count) = (9, 24);
        for slot in 0..count {
            let (old, new) = (first + slot, 2 + slot);
            let at = chunk + slot * 16;
            cow[at..at + 8].copy_from_slice(&(old as u64).to_le_bytes());
            cow[at + 8..at + 16].copy_from_slice(&(new as u64).to_le_bytes());
            cow[new * chunk..][..chunk].copy_from_slice(&disk[old * chunk..][..chunk]);
        }
        // One byte differs in each of these, and all are zero in another two.
        for slot in [0, 3, 4, 11, 23] {
            cow[(2 + slot) * chunk + chunk - 1] ^= 0xff;
        }
        for slot in [15, 16] {
            cow[(2 + slot) * chunk..][..chunk].fill(0);
        }
        std::fs::write(world.path("cow"), cow).unwrap();
        let part = |slot: usize, chunks: usize, zero| {
            change(
                (first + slot) * chunk,
                chunks * chunk,
                (2 + slot) * chunk,
                zero,
            )
        };
        assert_eq!(
            world.json(0, &both(&["diff", "--json"])),
            json!([
                part(0, 1, false),
                part(3, 2, false),
                part(11, 1, false),
                part(15, 2, true),
                part(23, 1, false),
            ]),
            "chunks of {chunk}"
        );
    }
}

#[test]
fn diff_draws_a_map_and_overwrites_nothing() {
    let world = World::new(&[(7, 2), (8, 3), (30, 5)]);
    let disk = world.disk();
    // Chunk 8 was written back to what it was.
    world.change_cow(|cow| {
        cow[3 * CHUNK..4 * CHUNK].copy_from_slice(&disk[8 * CHUNK..9 * CHUNK]);
    });
    let text = world.answer(0, &both(&["diff", "--svg", "map.svg"]));
    assert!(
        text.ends_with(" kept\n") && text.lines().count() == 1,
        "{text}"
    );
    let drawn = std::fs::read_to_string(world.path("map.svg")).unwrap();
    assert!(
        drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"),
        "{drawn}"
    );
    assert!(
        drawn.contains(" differs from ") && drawn.contains("Each square is "),
        "{drawn}"
    );
    // Two squares are dark.
    let darkest = drawn
        .lines()
        .find(|line| line.contains("<path fill=\"#4a0018\""));
    assert_eq!(darkest.unwrap().matches('M').count(), 2, "{drawn}");

    world.refuse(&both(&["diff", "--svg", "map.svg"]), "exists already");
    world.answer(0, &both(&["diff", "--svg", "same.svg"]));
    assert_eq!(
        std::fs::read_to_string(world.path("same.svg")).unwrap(),
        drawn
    );
    world.answer(0, &both(&["diff", "--svg", "kept.svg", "--entries-only"]));
    let kept = std::fs::read_to_string(world.path("kept.svg")).unwrap();
    assert!(kept.contains(" keeps ") && kept.contains(" of "), "{kept}");
    world.refuse(&both(&["diff", "--svg", "none/map.svg"]), "none/map.svg");
    world.refuse(&both(&["diff", "--svg", "x.svg", "--json"]), "--json");
    assert!(!world.path("x.svg").exists());
}
