//! What must hold of any bytes in the place of a state file: a fuzz target, and an ordinary test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use super::{Home, OpenedState, VolumeState};

/// Reads `content` as the state file of a disk in `folder`. Returns whether it is one.
pub fn reread(folder: &Path, content: &[u8]) -> bool {
    let path = folder.join("disk.img.snapback");
    fs::write(&path, content).unwrap();
    let looked = OpenedState::look(Some(&path)).map(|opened| opened.recorded);
    let opened = match OpenedState::open(Some(&path)) {
        Ok(opened) => opened,
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("disk.img.snapback"), "{message}");
            assert!(looked.is_err() && VolumeState::peek(&path).is_none());
            assert!(fs::read(&path).unwrap() == content, "it was changed");
            return false;
        }
    };
    let state = opened.recorded.clone().unwrap();
    assert_eq!(looked.unwrap().as_ref(), Some(&state));
    // Written and read again it says the same, and is the same from then on.
    drop(opened.begin(state.clone()).unwrap());
    let written = fs::read(&path).unwrap();
    let again = OpenedState::open(Some(&path)).unwrap();
    let read = again.recorded.clone().unwrap();
    let home = Home::of(&path);
    assert_eq!(kept(&home, &read), kept(&home, &state));
    drop(again.begin(read).unwrap());
    assert!(fs::read(&path).unwrap() == written, "it changes each time");
    true
}

/// As it is written: one path has only one form there. The folder is that of the file from then
/// on.
fn kept(home: &Home, state: &VolumeState) -> VolumeState {
    let mut kept = state.clone();
    home.keep_all(&mut kept);
    kept.home = None;
    kept
}
