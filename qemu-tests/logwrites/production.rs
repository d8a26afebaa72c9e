//! The same images through the program's own eyes: each store is loaded as the
//! daemon loads it; some images become files, for the verbs without a daemon.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use snapback::io::{Buffer, DeviceId, Disk, Done, Errno, Op, OpKind};
use snapback::offline::{Verdict, check};
use snapback::store::{LoadParams, Loaded, load};

use super::medium::Image;
use super::plan::{ORIGIN, ORIGIN_AT, Store};
use super::store::Copies;
use crate::bench::Bench;
use crate::daemon::offline;

pub struct Production<'a> {
    bench: &'a Bench,
    /// One store of this many becomes files: else, and in the middle of its merge.
    every: Option<[usize; 2]>,
    seen: [usize; 2],
    pub loads: usize,
    pub checks: usize,
    pub merges: usize,
}

/// One store's device in an image; it is only read.
struct ImageDisk<'a> {
    image: &'a Image<'a>,
    store: Store,
    done: Vec<Done>,
}

impl Disk for ImageDisk<'_> {
    fn submit(&mut self, op: Op) {
        let OpKind::Read { offset, buffer } = op.kind else {
            panic!("a load writes: {op:?}");
        };
        let Buffer::Owned(mut buffer) = buffer else {
            panic!("a load reads into a guest");
        };
        let end = offset + buffer.len() as u64;
        let result = if end <= self.store.sectors * 512 {
            for (sector, target) in (offset / 512..).zip(buffer.as_mut_slice().chunks_mut(512)) {
                target.copy_from_slice(self.image.sector(self.store.first + sector));
            }
            Ok(())
        } else {
            Err(Errno::EIO)
        };
        self.done.push(Done {
            tag: op.tag,
            result,
            buffer: Some(Buffer::Owned(buffer)),
        });
    }

    fn reap(&mut self, _wait: bool, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl<'a> Production<'a> {
    pub fn new(bench: &'a Bench, every: Option<[usize; 2]>) -> Self {
        Self {
            bench,
            every,
            seen: [0; 2],
            loads: 0,
            checks: 0,
            merges: 0,
        }
    }

    /// The daemon's own loading finds the same; `None`: that it is invalid.
    pub fn same(
        &mut self,
        image: &Image,
        store: Store,
        copies: Option<&Copies>,
    ) -> Result<(), String> {
        let mut disk = ImageDisk {
            image,
            store,
            done: Vec::new(),
        };
        let params = LoadParams {
            cow_sectors: store.sectors,
            origin_sectors: Some(ORIGIN),
            unit: 512,
            block_bytes: 512,
        };
        self.loads += 1;
        let loaded = load(&mut disk, DeviceId(0), &params);
        let found = match loaded.map_err(|e| format!("{}: {e}", store.name))? {
            Loaded::New => return Err(format!("{}: the daemon finds no store", store.name)),
            Loaded::Invalid { .. } => None,
            Loaded::Valid(valid) => {
                let (junk, harmless) = (valid.junk(), valid.copies_behind_end() > 0);
                let behind = copies.and_then(|copies| copies.behind.clone());
                if junk != behind || junk.is_some() && !harmless {
                    return Err(format!(
                        "{}: the daemon finds junk at {junk:?}, harmless: {harmless}; copies are \
                         at {behind:?}",
                        store.name
                    ));
                }
                let mut of = vec![0; (ORIGIN / store.chunk) as usize];
                for entry in valid.metadata().entries() {
                    of[entry.old as usize] = entry.new;
                }
                Some(of)
            }
        };
        if found.as_ref() != copies.map(|copies| &copies.of) {
            return Err(format!("{}: the daemon finds other entries", store.name));
        }
        Ok(())
    }

    /// One image of some becomes files: `check` finds nothing wrong, `export`
    /// writes what the view shows, and so does a merge to its end.
    pub fn sample(&mut self, image: &Image, copies: &Copies, merge: bool) -> Result<(), String> {
        let Some(every) = self.every else {
            return Ok(());
        };
        let kind = usize::from(merge);
        self.seen[kind] += 1;
        if !self.seen[kind].is_multiple_of(every[kind]) {
            return Ok(());
        }
        let store = copies.store;
        let shown: Vec<u8> = (0..ORIGIN)
            .flat_map(|sector| image.sector(copies.place(sector)).iter().copied())
            .collect();
        let file = |name: &str, bytes: Vec<u8>| -> PathBuf {
            let path = self.bench.path(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let origin = file("cut-origin.img", image.bytes(ORIGIN_AT..ORIGIN_AT + ORIGIN));
        let cow = file(
            "cut.cow",
            image.bytes(store.first..store.first + store.sectors),
        );
        let report = check(&cow, Some(&origin), None).map_err(|e| e.to_string())?;
        if report.verdict != Verdict::Good {
            return Err(format!("check: {report:?}"));
        }
        self.checks += 1;
        let [origin, cow, out] = [origin, cow, self.bench.path("cut-out.img")]
            .map(|path| path.into_os_string().into_string().unwrap());
        let _ = std::fs::remove_file(&out);
        offline(&["export", "--origin", &origin, "--cow", &cow, &out]);
        if std::fs::read(&out).unwrap() != shown {
            return Err(format!("{}: export writes something else", store.name));
        }
        if merge {
            offline(&["merge", "--origin", &origin, "--cow", &cow]);
            if std::fs::read(&origin).unwrap() != shown {
                return Err("merged to its end, the origin is something else".into());
            }
            self.merges += 1;
        }
        Ok(())
    }
}
