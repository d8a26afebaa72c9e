//! What a guest does, for the scripts: `book guest write|see|stay|file PATH OFFSET LENGTH LETTER`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::common_guest::{Ask, Guest, Kind, REQUEST_MAX};

pub fn run(arguments: &[String]) {
    let [verb, path, offset, length, letter] = arguments else {
        panic!("{arguments:?}: five words are needed");
    };
    let (offset, length) = (bytes(offset), bytes(length));
    let byte = match letter.as_bytes() {
        [b'0'] => 0,
        [letter] => *letter,
        _ => panic!("{letter}: one letter"),
    };
    let path = Path::new(path);
    match verb.as_str() {
        "write" => {
            let mut guest = Guest::connect(path, 1, 1);
            write(&mut guest, offset, length, byte);
            request(&mut guest, Kind::Flush, 0, 0);
        }
        "stay" => {
            let _guest = Guest::connect(path, 1, 1);
            loop {
                std::thread::park();
            }
        }
        "see" => {
            let mut guest = Guest::connect(path, 1, 1);
            each(offset, length, |sector, len| {
                request(&mut guest, Kind::Read, sector, len);
                compare(path, sector, &guest.memory(0)[..len], byte);
            });
        }
        "file" => {
            let file = File::open(path).unwrap();
            each(offset, length, |sector, len| {
                let mut data = vec![0; len];
                file.read_exact_at(&mut data, sector * 512).unwrap();
                compare(path, sector, &data, byte);
            });
        }
        _ => panic!("{verb}: write, see, stay or file"),
    }
}

pub fn write(guest: &mut Guest, offset: u64, length: u64, byte: u8) {
    each(offset, length, |sector, len| {
        guest.memory(0)[..len].fill(byte);
        request(guest, Kind::Write, sector, len);
    });
}

/// The pieces of a part of the disk.
fn each(offset: u64, length: u64, mut piece: impl FnMut(u64, usize)) {
    let mut at = offset;
    while at < offset + length {
        let len = (offset + length - at).min(REQUEST_MAX as u64);
        piece(at / 512, usize::try_from(len).unwrap());
        at += len;
    }
}

fn request(guest: &mut Guest, kind: Kind, sector: u64, len: usize) {
    let ask = Ask {
        kind,
        sector,
        len,
        offset: 0,
        cut: 0,
    };
    guest.submit(0, &ask);
    guest.kick();
    let mut done = Vec::new();
    guest.wait(&mut done);
    assert_eq!(done, [(0, 0)], "{ask:?}");
}

fn compare(path: &Path, sector: u64, data: &[u8], byte: u8) {
    if let Some(at) = data.iter().position(|found| *found != byte) {
        panic!(
            "{}: byte {} is {:#04x}, not {byte:#04x}",
            path.display(),
            sector * 512 + at as u64,
            data[at]
        );
    }
}

/// `4096`, `4K`, `1M`, `1G`.
fn bytes(text: &str) -> u64 {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().unwrap() << shift
}
