//! A file system without space.
#![allow(unsafe_code)] // Test code: mounts without a process of its own, see `file_tests.rs`.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use super::rig::DEPTH;
use crate::io::*;

/// A file system of 64 KiB, unmounted when dropped.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: all arguments are strings that outlive the call.
        let result = unsafe {
            libc::mount(
                c"tiny".as_ptr(),
                at.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=64k".as_ptr().cast(),
            )
        };
        if result != 0 {
            eprintln!("skipped: mounting a tmpfs is not allowed here");
        }
        (result == 0).then(|| Self(dir))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let at = CString::new(self.0.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a string that outlives the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

pub(super) fn full_file_system_gives_enospc(engine: IoEngine) {
    let Some(tiny) = Tiny::new() else { return };
    let path = tiny.0.path().join("image");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let devices = Devices::new();
    let device = devices.add(BlockFile::open(&path, OpenOptions::default()).unwrap());
    let mut disk = open_disk(engine, devices, DEPTH).unwrap();
    let data = OwnedBuffer::zeroed(1 << 20);
    let result = blocking::write_all(&mut *disk, device, 0, data, false);
    assert_eq!(result.map(drop), Err(Errno::ENOSPC));
    drop(disk);

    let create = OpenOptions {
        create: Some(1 << 20),
        ..OpenOptions::default()
    };
    let path = tiny.0.path().join("cow");
    let error = BlockFile::open(&path, create).unwrap_err();
    assert_eq!(
        error,
        OpenError::NoSpace {
            path: path.clone(),
            size: 1 << 20,
            // The other file has taken everything.
            free: Some(0),
        }
    );
    assert!(!path.exists());
}
