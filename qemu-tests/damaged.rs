//! Damaged stores: what the loader here accepts, Linux must read the same way.

use std::fs;
use std::io::Read;
use std::path::Path;

use snapback::offline::{ExportOptions, export};

use crate::bench::Bench;
use crate::disk::{MIB, Sums};
use crate::guest::Attach;

/// Stores that are accepted here and shown to Linux.
const STORES: usize = 48;
const SIZE: u64 = 2 * MIB;
const SECTORS: u64 = SIZE / 512;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/golden");
    let file = fs::File::open(path.join(name)).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// Numbers that look random and are the same in every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A store of 4 KiB chunks with some of its header and entries changed.
fn damage(good: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut store = good.to_vec();
    for _ in 0..=numbers.below(3) {
        let entry = 4096 + 16 * numbers.below(18) as usize;
        match numbers.below(6) {
            // Another origin chunk, or another COW chunk, within what there is.
            0 | 1 => store[entry] = numbers.below(256) as u8,
            2 | 3 => store[entry + 8] = numbers.below(40) as u8,
            // Any bit of an entry.
            4 => store[entry + numbers.below(16) as usize] ^= 1 << numbers.below(8),
            // Any bit of the header's fields.
            _ => store[numbers.below(16) as usize] ^= 1 << numbers.below(8),
        }
    }
    store
}

#[test]
fn a_damaged_store_that_is_accepted_here_reads_the_same_in_linux() {
    let bench = Bench::new();
    let origin = bench.path("origin.img");
    fs::write(&origin, golden("g1-origin.img.gz")).unwrap();
    let good = golden("g1-cow-P8.img.gz");
    let mut numbers = Numbers(0x5eed);
    let (mut stores, mut views, mut refused) = (Vec::new(), Vec::new(), 0);
    while views.len() < STORES {
        let store = damage(&good, &mut numbers);
        let cow = bench.path("damaged.cow");
        fs::write(&cow, &store).unwrap();
        let out = bench.path(&format!("view{}.img", views.len()));
        let options = ExportOptions {
            origin: origin.clone(),
            known: None,
            cow,
            range: None,
        };
        match export(&options, &out, |_, _| {}) {
            Ok(_) => {
                stores.extend_from_slice(&store);
                views.push(Sums::of_file(&out));
            }
            Err(_) => refused += 1,
        }
    }
    let cows = bench.path("cows.img");
    fs::write(&cows, &stores).unwrap();

    let mut linux = bench.boot("linux", &[Attach::Raw(origin.clone()), Attach::Raw(cows)]);
    let (mut same, mut refused_there, mut changed) = (0, 0, 0);
    let whole = Sums::of_file(&origin);
    for (n, here) in views.iter().enumerate() {
        let start = n as u64 * SECTORS;
        linux.run(&format!(
            "dmsetup create cow --table '0 {SECTORS} linear /dev/vdb {start}'"
        ));
        let (status, _) = linux.try_run(&format!(
            "dmsetup create snap --table '0 {SECTORS} snapshot /dev/vda /dev/mapper/cow P 8'"
        ));
        if status == 0 {
            let there = linux.sums("/dev/mapper/snap");
            there.assert_same(here, &format!("store {n} in Linux with its view here"));
            same += 1;
            changed += usize::from(!here.differences(&whole).is_empty());
            linux.run("dmsetup remove snap");
        } else {
            refused_there += 1;
        }
        linux.run("dmsetup remove cow");
    }
    println!(
        "{refused} damaged stores refused here; of {STORES} accepted, Linux refused {refused_there} and \
         reads {same} with the same view, {changed} of them other than the origin"
    );
    assert!(same > STORES / 2, "Linux accepted too few to show anything");
    assert!(refused > 0, "no damage was refused");
    linux.quit();
}
