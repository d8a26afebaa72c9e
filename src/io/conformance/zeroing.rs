//! Zeroing: what it does to the content, and to the space of a file.

use std::os::unix::fs::MetadataExt;

use super::rig::{LEN, Rig, bytes, image, owned, read, real_with, zero};
use crate::io::allocate::Allocate;
use crate::io::*;

pub(super) fn zeroes_are_where_they_were_asked_for_and_nowhere_else(mut rig: Rig) {
    let mut expected = image();
    for (how, offset, len) in [
        (Zeroing::Keep, 512, 512),
        (Zeroing::Keep, 3072, 70_144),
        (Zeroing::Unmap, 131_072, 65_536),
        (Zeroing::Unmap, 262_656, 5120),
        (Zeroing::Keep, LEN - 512, 512),
        (Zeroing::Keep, 8192, 0),
    ] {
        let done = rig.run(zero(how, offset as u64, len as u64));
        assert_eq!(
            (done.result, done.buffer.is_none()),
            (Ok(()), true),
            "{how:?}"
        );
        expected[offset..offset + len].fill(0);
        assert!((rig.content)() == expected, "{how:?} of {len} at {offset}");
        let seen = rig.run(read(offset as u64, owned(1, len)));
        assert!(bytes(&seen.buffer.unwrap()).iter().all(|b| *b == 0));
    }
    // What was written of zeroes that take no memory is the same.
    let data = Buffer::Zeroes { len: 300 * 1024 };
    let done = rig.run(OpKind::Write {
        offset: 524_800,
        buffer: data,
        durable: true,
    });
    assert_eq!(done.result, Ok(()));
    assert!(matches!(done.buffer, Some(Buffer::Zeroes { len: 307_200 })));
    expected[524_800..832_000].fill(0);
    assert!((rig.content)() == expected);
    let done = rig.run(read(0, Buffer::Zeroes { len: 512 }));
    assert_eq!(done.result, Err(Errno::EINVAL), "zeroes are read-only");
}

pub(super) fn a_discarded_block_is_as_before_or_zero(mut rig: Rig) {
    let before = image();
    let done = rig.run(zero(Zeroing::Discard, 4096, 16384));
    assert_eq!((done.result, done.buffer.is_none()), (Ok(()), true));
    let after = (rig.content)();
    for (n, (was, is)) in before.chunks(512).zip(after.chunks(512)).enumerate() {
        let zero = (8..40).contains(&n) && is.iter().all(|b| *b == 0);
        assert!(was == is || zero, "sector {n}");
    }
}

pub(super) fn zeroing_keeps_to_the_rules_of_a_write(mut rig: Rig) {
    for how in [Zeroing::Keep, Zeroing::Unmap, Zeroing::Discard] {
        for (offset, len) in [(1, 512), (512, 511), (256, 512)] {
            let done = rig.run(zero(how, offset, len));
            assert_eq!(done.result, Err(Errno::EINVAL), "{how:?} {offset} {len}");
        }
        let end = LEN as u64;
        for (offset, len) in [(end, 512), (end - 512, 1024), (u64::MAX - 511, 1024)] {
            let done = rig.run(zero(how, offset, len));
            assert_eq!(done.result, Err(Errno::ENOSPC), "{how:?} {offset} {len}");
        }
        rig.disk.submit(Op {
            tag: 1,
            device: DeviceId(99),
            kind: zero(how, 0, 512),
        });
        let done = rig.drain().pop().unwrap();
        assert_eq!(
            (done.result, done.buffer.is_none()),
            (Err(Errno::ENODEV), true)
        );
    }
    assert!((rig.content)() == image());
}

/// Every way down: a file that can punch holes only, zero ranges only, neither;
/// and one whose file system says so itself.
pub(super) fn zeroing_works_where_the_file_cannot_do_it(engine: IoEngine) {
    let known = [
        vec![],
        vec![Allocate::Punch],
        vec![Allocate::ZeroRange],
        vec![Allocate::Punch, Allocate::ZeroRange],
    ];
    let mut places = vec![tempfile::tempdir().unwrap().keep()];
    // A tmpfs punches holes and zeroes no ranges.
    places.extend(tempfile::tempdir_in("/dev/shm").ok().map(|d| d.keep()));
    for place in places {
        for cannot in &known {
            for direct in [Direct::Auto, Direct::Off] {
                let open = OpenOptions {
                    direct,
                    ..OpenOptions::default()
                };
                let dir = tempfile::tempdir_in(&place).unwrap();
                let (rig, file) = real_with(engine, open, dir);
                cannot.iter().for_each(|how| file.abilities().cannot(*how));
                drop(file);
                zeroes_are_where_they_were_asked_for_and_nowhere_else(rig);
                let dir = tempfile::tempdir_in(&place).unwrap();
                let (rig, file) = real_with(engine, open, dir);
                cannot.iter().for_each(|how| file.abilities().cannot(*how));
                a_discarded_block_is_as_before_or_zero(rig);
            }
        }
        std::fs::remove_dir_all(place).unwrap();
    }
}

pub(super) fn space_is_given_back_where_it_may_be(engine: IoEngine) {
    // A file system that cannot punch holes gives nothing back, rightly.
    let dir = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    for keep_space in [false, true] {
        for how in [Zeroing::Unmap, Zeroing::Discard, Zeroing::Keep] {
            let open = OpenOptions {
                keep_space,
                ..OpenOptions::default()
            };
            let (mut rig, file) = real_with(engine, open, dir().unwrap());
            let blocks = || std::fs::metadata(file.path()).unwrap().blocks();
            let before = blocks();
            assert_eq!(rig.run(zero(how, 65536, 524_288)).result, Ok(()));
            let given_back = !keep_space && how != Zeroing::Keep;
            assert_eq!(
                before - blocks(),
                if given_back { 1024 } else { 0 },
                "{how:?}"
            );
            // What must not be given back is not given up as a hint either.
            let kept = keep_space && how == Zeroing::Discard;
            assert_eq!((rig.content)() == image(), kept);
            assert!(file.abilities().can(Allocate::Punch));
        }
    }
}
