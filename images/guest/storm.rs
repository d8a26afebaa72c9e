//! Several writers at the same time, each with blocks of its own, that verify what they
//! read. They detect a disk that pauses, fails, or returns the wrong data.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs::File, path::Path, thread};

use crate::content::{BLOCK, put, random};
use crate::{Buffer, Result, open};

/// A request that takes longer is counted as a pause.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    reads: AtomicU64,
    pauses: AtomicU64,
    longest_ms: AtomicU64,
}

/// Writes and reads blocks `first .. first + count` by `threads` threads until
/// `/tmp/stop` exists, then verifies all of them. The disk was filled with `seed`.
/// `progress`: a file to which the number of writes is written.
pub fn storm(
    device: &str,
    seed: u64,
    first: u64,
    count: u64,
    threads: u64,
    progress: &str,
) -> Result<()> {
    let disk = open(device)?;
    let (counts, over) = (Counts::default(), AtomicBool::new(false));
    let all = thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|index| {
                let (disk, counts, over) = (&disk, &counts, &over);
                scope.spawn(move || {
                    let blocks: Vec<u64> = (first..first + count)
                        .filter(|block| block % threads == index)
                        .collect();
                    let done = write(disk, seed, &blocks, counts, over);
                    if done.is_err() {
                        over.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        while !over.load(Ordering::Relaxed) {
            let writes = counts.writes.load(Ordering::Relaxed);
            // Whoever waits for the progress notices if it cannot be written.
            let _ = crate::replace(progress, writes);
            if Path::new("/tmp/stop").exists() {
                over.store(true, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(50));
        }
        let ends = writers.into_iter().map(|writer| {
            let end = writer.join();
            end.unwrap_or_else(|_| Err("a writer panicked".into()))
        });
        ends.collect::<Result<Vec<()>>>()
    });
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "writes={} reads={} pauses={} longest_ms={}",
        get(&counts.writes),
        get(&counts.reads),
        get(&counts.pauses),
        get(&counts.longest_ms)
    );
    all.map(|_| ())
}

/// One writer, until the end of the run; then it verifies its blocks.
fn write(disk: &File, seed: u64, blocks: &[u64], counts: &Counts, over: &AtomicBool) -> Result<()> {
    let mut buffer = Buffer::new(1);
    let mut versions = vec![0; blocks.len()];
    let mut dice = seed ^ blocks.first().copied().unwrap_or(0).rotate_left(17);
    while !over.load(Ordering::Relaxed) {
        dice = random(dice);
        let index = (dice >> 8) as usize % blocks.len();
        let (block, version) = (blocks[index], &mut versions[index]);
        let begin = Instant::now();
        if dice % 3 == 0 {
            verify(disk, &mut buffer, seed, block, *version)?;
            counts.reads.fetch_add(1, Ordering::Relaxed);
        } else {
            *version += 1;
            let target = buffer.blocks(1);
            put(target, seed, block, *version);
            disk.write_all_at(target, block * BLOCK as u64)
                .map_err(|e| format!("write {version} of block {block}: {e}"))?;
            counts.writes.fetch_add(1, Ordering::Relaxed);
        }
        if dice % 251 == 0 {
            disk.sync_data().map_err(|e| format!("flush: {e}"))?;
        }
        let took = begin.elapsed();
        if took > PAUSE {
            counts.pauses.fetch_add(1, Ordering::Relaxed);
        }
        let took = took.as_millis() as u64;
        counts.longest_ms.fetch_max(took, Ordering::Relaxed);
    }
    for (block, version) in blocks.iter().zip(versions) {
        verify(disk, &mut buffer, seed, *block, version)?;
    }
    Ok(())
}

fn verify(disk: &File, buffer: &mut Buffer, seed: u64, block: u64, version: u64) -> Result<()> {
    let found = buffer.blocks(1);
    disk.read_exact_at(found, block * BLOCK as u64)
        .map_err(|e| format!("read of block {block}: {e}"))?;
    let mut expected = vec![0; BLOCK];
    put(&mut expected, seed, block, version);
    if found == expected {
        return Ok(());
    }
    let word = |at: usize| {
        let bytes = found.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let (block_there, version_there) = (word(0), word(8));
    put(&mut expected, seed, block_there, version_there);
    let whole = if found == expected { "" } else { ", torn" };
    Err(format!(
        "block {block} holds write {version_there} of block {block_there}{whole}; write {version} was acknowledged"
    ))
}
