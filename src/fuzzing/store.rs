//! A COW file → the loader, and every verb that works without a daemon.

use std::fs;
use std::path::{Path, PathBuf};

use super::cow_decoder as decoder;
use super::cow_image::Image;
use super::folder::Folder;
use crate::daemon::merge_offline;
use crate::io::sim::{Fill, SimDevices};
use crate::offline::{self, Diff, Dump, ExportOptions, OfflineError, StoreState, Verdict};
use crate::store::{self, LoadParams, Loaded, StoreError, ValidStore};

/// The files of one execution.
struct Files {
    folder: Folder,
    cow: PathBuf,
    origin: PathBuf,
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// As `check` says, with the origin.
    pub verdict: Verdict,
    pub merged: bool,
}

/// The body of the target.
pub fn run(bytes: &[u8]) {
    let _ = judge(bytes);
}

/// The same; tells what became of it.
pub fn judge(bytes: &[u8]) -> Outcome {
    let image = Image::read(bytes);
    let folder = Folder::new();
    let files = Files {
        cow: folder.write("a.cow", &image.cow),
        origin: folder.write("disk.img", &image.origin),
        folder,
    };
    // No disk has another size.
    let is_disk = !image.cow.is_empty() && image.cow.len().is_multiple_of(512);
    let loaded = is_disk
        .then(|| load(&image.cow, &image.origin).ok())
        .flatten();
    let verdict = agree(&files, is_disk, loaded.as_ref());
    let mut merged = false;
    if let Some(Loaded::Valid(store)) = loaded {
        let view = decoder::view(&image.origin, &image.cow);
        files.show(&image, &view);
        settle(&image, *store);
        files.are_as_before(&image);
        if image.merges {
            files.merge(&view);
            merged = true;
        }
    } else {
        files.refuse(&image);
    }
    Outcome { verdict, merged }
}

fn params(cow: &[u8], origin: &[u8]) -> LoadParams {
    LoadParams {
        cow_sectors: cow.len() as u64 / 512,
        origin_sectors: Some(origin.len() as u64 / 512),
        unit: 512,
        block_bytes: 512,
    }
}

/// Loads it from a simulated disk, where every access beyond the end is an error.
fn load(cow: &[u8], origin: &[u8]) -> Result<Loaded, StoreError> {
    let devices = SimDevices::new(7);
    let device = devices.add(cow.len() as u64 / 512, Fill::Image(cow.to_vec()));
    store::load(&mut devices.disk(), device, &params(cow, origin))
}

/// `check`, `info` and `dump` say the same as the loader.
fn agree(files: &Files, is_disk: bool, loaded: Option<&Loaded>) -> Verdict {
    let found = offline::check(&files.cow, Some(&files.origin), None).unwrap();
    let expected = match loaded {
        None => Verdict::Damaged,
        Some(Loaded::New) => Verdict::New,
        Some(Loaded::Invalid { .. }) => Verdict::Invalid,
        Some(Loaded::Valid(s)) if s.junk().is_some() && s.copies_behind_end() == 0 => {
            Verdict::Stale
        }
        Some(Loaded::Valid(_)) => Verdict::Good,
    };
    assert_eq!(found.verdict, expected, "{found:?}");
    assert_eq!(found.damage.is_empty(), expected != Verdict::Damaged);
    let Ok(info) = offline::info(&files.cow, None) else {
        assert!(!is_disk, "info fails only where the size is no disk's");
        return found.verdict;
    };
    // Without the origin fewer things can be wrong.
    match info.state {
        StoreState::Corrupt => assert_eq!(expected, Verdict::Damaged),
        StoreState::New => assert_eq!(expected, Verdict::New),
        StoreState::Invalid => assert_eq!(expected, Verdict::Invalid),
        StoreState::Valid => assert_eq!(info.problem, None),
    }
    let mut entries = 0;
    let end = Dump::open(&files.cow)
        .unwrap()
        .runs(&mut |run| {
            entries += run.count;
            Ok::<(), OfflineError>(())
        })
        .unwrap();
    assert_eq!(entries, end.entries);
    found.verdict
}

/// The loader's repair changes nothing that the store says, and is done after one time.
fn settle(image: &Image, store: ValidStore) {
    let before = store.metadata().entries().to_vec();
    let devices = SimDevices::new(7);
    let sectors = image.cow.len() as u64 / 512;
    let device = devices.add(sectors, Fill::Image(image.cow.clone()));
    store.settle(&mut devices.disk(), device).unwrap();
    let settled = devices.current(device);
    let Ok(Loaded::Valid(again)) = load(&settled, &image.origin) else {
        panic!("a store that was repaired is refused");
    };
    assert!(again.is_clean(), "a repair that has to be repeated");
    assert_eq!(again.metadata().entries().to_vec(), before);
    let view = |cow: &[u8]| decoder::view(&image.origin, cow);
    assert!(
        view(&settled) == view(&image.cow),
        "a repair that loses data"
    );
}

impl Files {
    fn options(&self) -> ExportOptions {
        ExportOptions {
            origin: self.origin.clone(),
            cow: self.cow.clone(),
            known: None,
            range: None,
        }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out.img")
    }

    /// An accepted store: what every verb shows is what an independent decoder sees.
    fn show(&self, image: &Image, view: &[u8]) {
        let expected = decoder::entries(&image.cow);
        let mut dumped = Vec::new();
        let end = Dump::open(&self.cow).unwrap().runs(&mut |run| {
            dumped.extend((0..run.count).map(|n| (run.old + n, run.new + n)));
            Ok::<(), OfflineError>(())
        });
        assert_eq!(end.unwrap().problem, None);
        assert_eq!(dumped, expected);

        offline::export(&self.options(), &self.out(), |_, _| {}).unwrap();
        assert!(fs::read(self.out()).unwrap() == view, "export differs");
        let mut piped = Vec::new();
        offline::export_to(&self.options(), &mut piped, Path::new("-"), |_, _| {}).unwrap();
        assert!(piped == view, "export to a pipe differs");

        let mut patched = image.origin.clone();
        let diff = Diff::open(&self.origin, &self.cow, None).unwrap();
        let changes = diff.changes(|_, _| {}, &mut |change| {
            let (to, from) = (change.start as usize, change.offset as usize);
            let new = &image.cow[from..from + change.length as usize];
            assert_eq!(change.zero, new.iter().all(|byte| *byte == 0));
            patched[to..to + new.len()].copy_from_slice(new);
            Ok::<(), OfflineError>(())
        });
        changes.unwrap();
        assert!(patched == view, "diff differs");
    }

    /// What is no store for this origin is refused, and nothing is left behind.
    fn refuse(&self, image: &Image) {
        offline::export(&self.options(), &self.out(), |_, _| {}).unwrap_err();
        assert!(!self.out().exists(), "a file of a failed export");
        assert!(Diff::open(&self.origin, &self.cow, None).is_err());
        if image.merges {
            assert!(merge_offline(&self.origin, &self.cow, None, |_, _| {}).is_err());
        }
        self.are_as_before(image);
    }

    fn are_as_before(&self, image: &Image) {
        assert!(fs::read(&self.cow).unwrap() == image.cow, "the COW changed");
        let origin = fs::read(&self.origin).unwrap();
        assert!(origin == image.origin, "the origin changed");
    }

    /// After a merge the origin is what the snapshot showed, and the store keeps nothing.
    fn merge(&self, view: &[u8]) {
        merge_offline(&self.origin, &self.cow, None, |_, _| {}).unwrap();
        assert!(fs::read(&self.origin).unwrap() == view, "merge differs");
        let info = offline::info(&self.cow, None).unwrap();
        let kept = info.contents.map_or(0, |contents| contents.exceptions);
        assert_eq!(kept, 0, "a merged store keeps entries");
        let files = fs::read_dir(self.folder.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert_eq!(names, ["a.cow", "disk.img", "out.img"]);
    }
}
