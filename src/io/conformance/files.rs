//! What holds for the disks over real files only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rig::{DEPTH, bytes, image, owned, read, real};
use crate::io::*;

pub(super) fn disk_can_be_made_on_one_thread_and_used_on_another(engine: IoEngine) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image()).unwrap();
    let devices = Devices::new();
    let device = devices.add(BlockFile::open(&path, OpenOptions::default()).unwrap());
    let mut disk = open_disk(engine, devices, DEPTH).unwrap();
    disk.submit(Op {
        tag: 1,
        device,
        kind: read(0, owned(0, 512)),
    });
    let use_it = move || {
        let data = sync_read(&mut *disk);
        assert!(data == image()[..512]);
        assert!(
            blocking::read_exact(&mut *disk, device, 512, 512)
                .unwrap()
                .as_slice()
                == &image()[512..1024]
        );
    };
    std::thread::spawn(use_it).join().unwrap();
}

fn sync_read(disk: &mut dyn Disk) -> Vec<u8> {
    let mut done = Vec::new();
    disk.reap(true, &mut done);
    bytes(done[0].buffer.as_ref().unwrap())
}

pub(super) fn removed_device_is_closed_when_its_last_operation_ends(engine: IoEngine) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image()).unwrap();
    let devices = Devices::new();
    let device = devices.add(BlockFile::open(&path, OpenOptions::default()).unwrap());
    let mut disk = open_disk(engine, Arc::clone(&devices), DEPTH).unwrap();
    blocking::flush(&mut *disk, device).unwrap(); // the disk knows it now
    drop(devices.remove(device));
    // The thread that ended the flush may hold the file a moment longer.
    let start = Instant::now();
    while BlockFile::open(&path, OpenOptions::default()).is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "still locked");
    }
}

pub(super) fn file_that_shrank_gives_eio(engine: IoEngine) {
    let mut rig = real(engine, Direct::Auto);
    let path = rig.dir.as_ref().unwrap().path().join("image");
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(8192)
        .unwrap();
    assert_eq!(rig.run(read(4096, owned(0, 8192))).result, Err(Errno::EIO));
    assert_eq!(rig.run(read(4096, owned(0, 4096))).result, Ok(()));
}
