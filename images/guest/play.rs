//! `disktool play`: runs a script of operations on device-mapper devices. A script is
//! text on a disk, terminated by a NUL. The content of whole devices is written to
//! another disk, and all other results to standard output as `LINE-NUMBER RESULT`.
//!
//! ```text
//! create NAME SECTORS TARGET PARAMS...  create a device; @OTHER is OTHER's number
//! suspend|resume|remove NAME
//! write NAME SECTOR COUNT WRITE         content of write number WRITE; ok or EIO
//! burst NAME SECTOR COUNT WRITE ...     several writes at once
//! flush NAME                            ok or EIO
//! dump NAME SECTORS AT                  copy the device to sector AT; ok or EIO
//! status NAME                           as dmsetup prints it
//! merged NAME                           wait for the merge; its last status
//! sleep MS
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::content::put;
use crate::dm::Mapper;
use crate::{Buffer, Result, number, open};

const SECTOR: usize = 512;
/// Sectors in one transfer of `dump`.
const PIECE: u64 = 512;
/// A step that takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);
/// Longest script in bytes.
const LONGEST: usize = 256 * 1024;

struct Player {
    mapper: Mapper,
    seed: u64,
    open: HashMap<String, File>,
    results: File,
    buffer: Buffer,
}

/// Runs the script at byte `at` of the disk `script`.
pub fn play(script: &str, results: &str, at: u64, seed: u64) -> Result<()> {
    let mut buffer = Buffer::new(LONGEST / crate::content::BLOCK);
    let text = buffer.blocks(LONGEST / crate::content::BLOCK);
    open(script)?
        .read_exact_at(text, at)
        .map_err(|e| format!("{script}: {e}"))?;
    let end = text
        .iter()
        .position(|byte| *byte == 0)
        .ok_or("the script has no end")?;
    let text = String::from_utf8_lossy(&text[..end]).into_owned();
    let mut player = Player {
        mapper: Mapper::open().map_err(|e| format!("/dev/mapper/control: {e}"))?,
        seed,
        open: HashMap::new(),
        results: open(results)?,
        buffer,
    };
    let watched = watch();
    for (index, line) in text.lines().enumerate() {
        if let Ok(mut watched) = watched.lock() {
            *watched = (line.to_owned(), Instant::now());
        }
        let result = player.step(line).map_err(|e| format!("`{line}`: {e}"))?;
        if let Some(result) = result {
            println!("{index} {result}");
        }
    }
    Ok(())
}

/// Makes the kernel print the blocked tasks on the console when a step hangs.
fn watch() -> Arc<Mutex<(String, Instant)>> {
    let watched = Arc::new(Mutex::new((String::new(), Instant::now())));
    let theirs = watched.clone();
    std::thread::spawn(move || {
        loop {
            sleep(Duration::from_secs(1));
            let Ok(mut watched) = theirs.lock() else {
                return;
            };
            let (line, begin) = &mut *watched;
            if begin.elapsed() > HANGS {
                *begin = Instant::now();
                for (path, text) in [
                    ("/proc/sysrq-trigger", "9"),
                    ("/dev/kmsg", &format!("disktool: `{line}` hangs")),
                    ("/proc/sysrq-trigger", "w"),
                ] {
                    // Nothing else can be done about it.
                    let _ = std::fs::write(path, text);
                }
            }
        }
    });
    watched
}

/// `EIO`, or why the script cannot continue: only that error is a device's answer.
fn answer(result: std::io::Result<()>) -> Result<Option<String>> {
    match result {
        Ok(()) => Ok(Some("ok".into())),
        Err(e) if e.raw_os_error() == Some(5) => Ok(Some("EIO".into())),
        Err(e) => Err(e.to_string()),
    }
}

impl Player {
    fn step(&mut self, line: &str) -> Result<Option<String>> {
        let words: Vec<&str> = line.split(' ').collect();
        let text = |e: std::io::Error| e.to_string();
        match words.as_slice() {
            ["create", name, sectors, target, params @ ..] => {
                let mut resolved = Vec::new();
                for word in params {
                    resolved.push(match word.strip_prefix('@') {
                        Some(other) => self.mapper.number(other).map_err(text)?,
                        None => (*word).to_owned(),
                    });
                }
                self.mapper
                    .create(name, number(sectors)?, target, &resolved.join(" "))
                    .map_err(text)?;
            }
            ["suspend", name] => self.mapper.suspend(name).map_err(text)?,
            ["resume", name] => self.mapper.resume(name).map_err(text)?,
            ["remove", name] => {
                self.open.remove(*name);
                self.mapper.remove(name).map_err(text)?;
            }
            ["write", name, sector, count, write] => {
                let (sector, count, write) = (number(sector)?, number(count)?, number(write)?);
                let seed = self.seed;
                let file = self.file(name)?;
                return answer(write_at(&file, seed, sector, count, write));
            }
            ["burst", name, writes @ ..] => {
                let file = self.file(name)?;
                let numbers: Vec<u64> = writes.iter().map(|w| number(w)).collect::<Result<_>>()?;
                let seed = self.seed;
                let all = std::thread::scope(|scope| {
                    let threads: Vec<_> = numbers
                        .chunks_exact(3)
                        .map(|w| (w[0], w[1], w[2], &file))
                        .map(|(sector, count, write, file)| {
                            scope.spawn(move || write_at(file, seed, sector, count, write))
                        })
                        .collect();
                    threads
                        .into_iter()
                        .map(|t| t.join().map_err(|_| "a writer panicked".to_owned()))
                        .collect::<Result<Vec<_>>>()
                })?;
                return answer(all.into_iter().collect());
            }
            ["flush", name] => return answer(self.file(name)?.sync_data()),
            ["dump", name, sectors, at] => {
                let (sectors, at) = (number(sectors)?, number(at)?);
                return self.dump(name, sectors, at);
            }
            ["status", name] => return self.mapper.status(name).map(Some).map_err(text),
            ["merged", name] => return self.merged(name).map(Some),
            ["sleep", ms] => sleep(Duration::from_millis(number(ms)?)),
            _ => return Err("not a step".into()),
        }
        Ok(None)
    }

    fn file(&mut self, name: &str) -> Result<File> {
        if !self.open.contains_key(name) {
            let path = self.mapper.path(name).map_err(|e| format!("{name}: {e}"))?;
            self.open.insert(name.to_owned(), open(&path)?);
        }
        self.open[name].try_clone().map_err(|e| e.to_string())
    }

    fn dump(&mut self, name: &str, sectors: u64, at: u64) -> Result<Option<String>> {
        let file = self.file(name)?;
        let mut sector = 0;
        while sector < sectors {
            let count = PIECE.min(sectors - sector);
            let bytes = &mut self
                .buffer
                .blocks(PIECE as usize * SECTOR / crate::content::BLOCK)[..count as usize * SECTOR];
            if let Err(error) = file.read_exact_at(bytes, sector * SECTOR as u64) {
                return answer(Err(error));
            }
            self.results
                .write_all_at(bytes, (at + sector) * SECTOR as u64)
                .map_err(|e| format!("results: {e}"))?;
            sector += count;
        }
        answer(Ok(()))
    }

    /// A merge has ended when nothing but metadata is allocated.
    fn merged(&self, name: &str) -> Result<String> {
        let begin = Instant::now();
        loop {
            let status = self.mapper.status(name).map_err(|e| e.to_string())?;
            let words: Vec<&str> = status.split(' ').collect();
            let ended = match words.as_slice() {
                [_, _, "snapshot-merge", usage, metadata] => {
                    usage.split('/').next() == Some(metadata)
                }
                _ => true,
            };
            if ended {
                return Ok(status);
            }
            if begin.elapsed() > Duration::from_secs(60) {
                return Err(format!("the merge hangs: {status}"));
            }
            sleep(Duration::from_millis(2));
        }
    }
}

fn write_at(file: &File, seed: u64, sector: u64, count: u64, write: u64) -> std::io::Result<()> {
    let bytes = count as usize * SECTOR;
    let mut buffer = Buffer::new(bytes.div_ceil(crate::content::BLOCK));
    let target = &mut buffer.blocks(bytes.div_ceil(crate::content::BLOCK))[..bytes];
    for (index, slot) in target.chunks_exact_mut(SECTOR).enumerate() {
        put(slot, seed, sector + index as u64, write);
    }
    file.write_all_at(target, sector * SECTOR as u64)
}
