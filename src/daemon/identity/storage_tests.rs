use std::fs;

use super::*;

fn at(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp {
        seconds,
        nanoseconds,
    }
}

fn file(size: u64, inode: u64, mtime: i64, ctime: i64) -> StorageIdentity {
    StorageIdentity {
        size,
        kind: StorageKind::File(FileFacts {
            inode,
            mtime: at(mtime, 5_000_001),
            ctime: at(ctime, 0),
            birth: Some(at(50, 7)),
            file_system: Some("abc".into()),
        }),
    }
}

fn facts(identity: &mut StorageIdentity) -> &mut FileFacts {
    match &mut identity.kind {
        StorageKind::File(facts) => facts,
        StorageKind::Device(_) => panic!("a device"),
    }
}

#[test]
fn every_kind_of_change_is_named() {
    let was = file(4096, 7, 100, 100);
    assert_eq!(was.relation(&was, true), Relation::Same);
    assert_eq!(
        was.relation(&file(4096, 7, 100, 160), true),
        Relation::Touched
    );
    assert_eq!(
        was.relation(&file(4096, 8, 100, 160), true),
        Relation::Copied
    );
    for (now, word) in [
        (file(8192, 7, 100, 100), "size was 4 KiB and is 8 KiB"),
        (
            file(4096, 7, 160, 160),
            "written after the stop, at 1970-01-01T00:02:40.005Z (the last write before the stop was at 1970-01-01T00:01:40.005Z)",
        ),
        (
            file(4096, 7, 40, 160),
            "older content, last written at 1970-01-01T00:00:40.005Z",
        ),
    ] {
        let Relation::Written(why) = was.relation(&now, true) else {
            panic!("{now:?}");
        };
        assert!(why.contains(word), "{why}");
    }
    for (now, word) in [
        (file(4096, 8, 160, 160), "its inode was 7, and is 8 now"),
        (
            file(4096, 8, 160, 160),
            "written after the stop, at 1970-01-01T00:02:40.005Z",
        ),
        (file(8192, 8, 100, 100), "is 8 KiB"),
    ] {
        let Relation::Other(why) = was.relation(&now, true) else {
            panic!("{now:?}");
        };
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn after_a_kill_times_do_not_count_but_the_file_does() {
    let was = file(4096, 7, 100, 100);
    assert_eq!(
        was.relation(&file(4096, 7, 160, 160), false),
        Relation::Same
    );
    // Nor do they show that a copy is faithful.
    for mtime in [100, 160] {
        let now = was.relation(&file(4096, 8, mtime, 160), false);
        assert!(matches!(now, Relation::Other(_)));
    }
}

/// An inode number is used again as soon as its file is deleted.
#[test]
fn a_file_made_anew_with_the_old_inode_is_another_one() {
    let was = file(4096, 7, 100, 100);
    let mut anew = file(4096, 7, 160, 160);
    facts(&mut anew).birth = Some(at(159, 0));
    assert!(matches!(was.relation(&anew, false), Relation::Other(_)));
    // Without times of birth the file system decides, as far as it is known.
    facts(&mut anew).birth = None;
    assert!(was.is(&anew));
    facts(&mut anew).file_system = Some("def".into());
    assert!(!was.is(&anew));
    facts(&mut anew).file_system = None;
    assert!(was.is(&anew));
}

#[test]
fn a_time_from_an_archive_is_recognised() {
    let was = at(100, 123_456_789);
    for (now, same) in [
        (at(100, 123_456_789), true),
        (at(100, 0), true),
        (at(100, 123_456_000), true),
        (at(100, 123_456_788), false),
        (at(100, 123_000_000), false),
        (at(101, 0), false),
    ] {
        assert_eq!(was.survived_as(&now), same, "{now:?}");
    }
}

#[test]
fn writing_a_file_changes_its_identity() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, [0; 4096]).unwrap();
    let was = StorageIdentity::read(&path, 4096).unwrap();
    let now = || StorageIdentity::read(&path, 4096).unwrap();
    assert_eq!(was.relation(&now(), true), Relation::Same);
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::rename(&path, directory.path().join("x")).unwrap();
    fs::rename(directory.path().join("x"), &path).unwrap();
    assert_eq!(was.relation(&now(), true), Relation::Touched);
    fs::write(&path, [1; 4096]).unwrap();
    assert!(matches!(was.relation(&now(), true), Relation::Written(_)));
    fs::remove_file(&path).unwrap();
    fs::write(&path, [0; 4096]).unwrap();
    assert!(matches!(was.relation(&now(), false), Relation::Other(_)));
}

/// Another file takes the place of the origin after it was opened.
#[test]
fn the_identity_is_that_of_the_file_that_was_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, [0; 4096]).unwrap();
    let was = StorageIdentity::read(&path, 4096).unwrap();
    let file = BlockFile::open(&path, crate::io::OpenOptions::read_only()).unwrap();
    fs::write(directory.path().join("x"), [0; 4096]).unwrap();
    fs::rename(directory.path().join("x"), &path).unwrap();
    let origin = OriginIdentity::of_open(&file).unwrap();
    assert!(origin.storage().is(&was));
    assert!(!StorageIdentity::read(&path, 4096).unwrap().is(&was));
    assert!(origin.path.ends_with("disk.img"));
}
