//! `snapback run`: the real program, and commands that stand for a boot test: shells, and a
//! guest with a virtio-blk driver, which is this file's own program once more.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../daemon/guest.rs"]
#[allow(dead_code)]
mod guest;

mod changes;
mod ends;
#[path = "../common/listening.rs"]
mod listening;
mod world;

use std::path::Path;

use guest::Guest;

/// Bytes of a step's block.
const BLOCK: usize = 4096;

/// The command of other tests: a guest that takes the steps in `STEPS`, one after the other.
/// `w2=7` writes block 2 full of 7s, `r2=7` reads it, `e2` writes it, which must fail, `x3`
/// exits with 3, and `s` says that it is ready and sleeps.
#[test]
#[ignore = "other tests start it"]
fn guest_that_takes_steps() {
    let Ok(steps) = std::env::var("STEPS") else {
        return;
    };
    let socket = std::env::var("SNAPBACK_SOCKET").unwrap();
    let mut guest = Guest::connect(Path::new(&socket));
    for step in steps.split(' ') {
        let (kind, rest) = step.split_at(1);
        let (number, value) = rest.split_once('=').unwrap_or((rest, "0"));
        let number: u64 = number.parse().unwrap_or(0);
        let value: u8 = value.parse().unwrap();
        let sector = number * BLOCK as u64 / 512;
        match kind {
            "w" => {
                assert_eq!(guest.write(sector, &[value; BLOCK]), 0, "{step}");
                assert_eq!(guest.flush(), 0, "{step}");
            }
            "e" => assert_ne!(guest.write(sector, &[1; BLOCK]), 0, "{step}"),
            "r" => assert!(
                guest.read(sector, BLOCK).unwrap() == [value; BLOCK],
                "{step}"
            ),
            "x" => std::process::exit(number as i32),
            "s" => {
                std::fs::write("ready", "").unwrap();
                std::thread::sleep(std::time::Duration::from_secs(600));
            }
            _ => panic!("no step {step}"),
        }
    }
}
