//! One small program for everything that a guest does to its disk:
//!
//! ```text
//! disktool fill DEV SEED                   give every block a content of its own
//! disktool sums DEV                        one checksum for each 256 KiB
//! disktool hammer DEV SEED FIRST COUNT     write until /tmp/stop exists, then verify
//! disktool storm DEV SEED FIRST COUNT THREADS PROGRESS
//!                                          several writers at once (storm.rs)
//! disktool play DEV RESULTS AT SEED        a script of device-mapper steps (play.rs)
//! disktool polled DEV                      as `sums`, without interrupts (polled.rs)
//! disktool kexec KERNEL INITRAMFS OPTIONS  another kernel, without a reset (kexec.rs)
//! ```
//!
//! `hammer` works on blocks FIRST .. FIRST+COUNT of a disk that `fill` wrote with
//! the same seed. Each write is acknowledged before the next is sent, and has a
//! number that is stored in its blocks. At the end it reads everything back and
//! verifies it as described in `cut.rs`.

mod content;
mod cut;
mod dm;
mod kexec;
mod play;
mod polled;
mod storm;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;
use std::{env, path::Path, process::ExitCode};

use content::{BLOCK, SUM_BLOCK, checksum, put, random};
use cut::Cut;

const O_DIRECT: i32 = 0o40000;
/// Blocks in the longest write.
const LONGEST: usize = 16;
/// Blocks in one transfer of `fill` and of the final reading.
const BATCH: usize = 64;

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["fill", device, seed] => number(seed).and_then(|seed| fill(device, seed)),
        ["sums", device] => sums(device),
        ["hammer", device, seed, first, count] => {
            number(seed).and_then(|seed| hammer(device, seed, number(first)?, number(count)?))
        }
        ["storm", device, seed, first, count, threads, progress] => number(seed).and_then(|seed| {
            let (first, count) = (number(first)?, number(count)?);
            storm::storm(device, seed, first, count, number(threads)?, progress)
        }),
        ["play", script, results, at, seed] => {
            number(at).and_then(|at| play::play(script, results, at, number(seed)?))
        }
        ["polled", device] => polled::sums(device),
        ["kexec", kernel, initramfs, options] => kexec::start(kernel, initramfs, options),
        _ => Err("usage: disktool fill|sums|hammer|storm|play|polled|kexec ...".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("disktool: {message}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse()
        .map_err(|_| format!("'{text}' is not a number"))
}

fn open(device: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(device)
        .map_err(|e| format!("{device}: {e}"))
}

/// Memory that O_DIRECT accepts.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new(blocks: usize) -> Self {
        let bytes = vec![0; (blocks + 1) * BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start }
    }

    fn blocks(&mut self, count: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + count * BLOCK]
    }
}

fn fill(device: &str, seed: u64) -> Result<()> {
    let mut disk = open(device)?;
    let size = disk
        .seek(SeekFrom::End(0))
        .map_err(|e| format!("{device}: {e}"))?;
    let blocks = size / BLOCK as u64;
    let mut buffer = Buffer::new(BATCH);
    let mut block = 0;
    while block < blocks {
        let count = (blocks - block).min(BATCH as u64) as usize;
        let batch = buffer.blocks(count);
        for (index, target) in batch.chunks_exact_mut(BLOCK).enumerate() {
            put(target, seed, block + index as u64, 0);
        }
        disk.write_all_at(batch, block * BLOCK as u64)
            .map_err(|e| format!("write of block {block}: {e}"))?;
        block += count as u64;
    }
    disk.sync_all().map_err(|e| format!("flush: {e}"))
}

fn sums(device: &str) -> Result<()> {
    let mut disk = File::open(device).map_err(|e| format!("{device}: {e}"))?;
    let mut bytes = vec![0; SUM_BLOCK];
    let mut out = String::new();
    loop {
        let mut filled = 0;
        while filled < bytes.len() {
            match disk
                .read(&mut bytes[filled..])
                .map_err(|e| format!("read of {device}: {e}"))?
            {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            print!("{out}");
            return Ok(());
        }
        out.push_str(&format!("{:016x}\n", checksum(&bytes[..filled])));
    }
}

/// The writes to each block, oldest first; write 0 is that of `fill`.
struct History {
    first: u64,
    writes: Vec<Vec<u64>>,
}

/// Gives a file this number as its content in one step, so that a reader never sees a
/// part of two numbers.
fn replace(path: &str, number: u64) -> std::io::Result<()> {
    let new = format!("{path}.new");
    std::fs::write(&new, format!("{number}\n"))?;
    std::fs::rename(new, path)
}

fn hammer(device: &str, seed: u64, first: u64, count: u64) -> Result<()> {
    let disk = open(device)?;
    let mut buffer = Buffer::new(BATCH);
    let mut history = History {
        first,
        writes: vec![vec![0]; count as usize],
    };
    let mut longest = 0;
    let mut write = 0;
    while !Path::new("/tmp/stop").exists() {
        write += 1;
        let dice = random(seed ^ write);
        let offset = dice % count;
        let length = (1 + (dice >> 40) % LONGEST as u64).min(count - offset) as usize;
        let target = buffer.blocks(length);
        for (index, slot) in target.chunks_exact_mut(BLOCK).enumerate() {
            put(slot, seed, first + offset + index as u64, write);
            history.writes[offset as usize + index].push(write);
        }
        let begin = Instant::now();
        disk.write_all_at(target, (first + offset) * BLOCK as u64)
            .map_err(|e| format!("write {write} of block {}: {e}", first + offset))?;
        longest = longest.max(begin.elapsed().as_millis());
        if write % 64 == 0 {
            disk.sync_data()
                .map_err(|e| format!("flush after write {write}: {e}"))?;
        }
        if write % 32 == 0 {
            replace("/tmp/hammer.writes", write).map_err(|e| e.to_string())?;
        }
    }
    disk.sync_data().map_err(|e| format!("last flush: {e}"))?;
    let verdict = judge(&disk, &mut buffer, seed, &history)?;
    println!("writes={write} {verdict} longest_ms={longest}");
    Ok(())
}

fn judge(disk: &File, buffer: &mut Buffer, seed: u64, history: &History) -> Result<String> {
    let mut cut = Cut::default();
    let mut expected = vec![0; BLOCK];
    for (batch, writes) in history.writes.chunks(BATCH).enumerate() {
        let block = history.first + (batch * BATCH) as u64;
        let target = buffer.blocks(writes.len());
        disk.read_exact_at(target, block * BLOCK as u64)
            .map_err(|e| format!("read of block {block}: {e}"))?;
        for (index, (found, writes)) in target.chunks_exact(BLOCK).zip(writes).enumerate() {
            let block = block + index as u64;
            let write = u64::from_le_bytes(found[8..16].try_into().map_err(|_| "no word")?);
            put(&mut expected, seed, block, write);
            if found != expected {
                return Err(format!("block {block}: neither an old nor a new content"));
            }
            cut.add(block, write, writes)?;
        }
    }
    cut.verdict()
}
