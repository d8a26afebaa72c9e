//! What it costs that requests go back in the order in which they came, where the
//! front end keeps no in-flight region: the same load on the same daemon in turn.

use std::time::Instant;

use crate::common::random::{self, Random};
use crate::disk::Disk;
use crate::guest::{Guest, Resume};
use crate::ring::{IN, Shape};
use crate::server::Server;

const DEPTH: usize = 32;
/// Of the origin. Random bytes, so that it has blocks of its own on the disk.
const SECTORS: u64 = 512 << 10;
const SMALL: usize = 4096;
/// One read in this many is large, and what comes behind it ends before it.
const LARGE_ONE_IN: u64 = 16;
const LARGE: usize = 64 << 10;

/// Requests a second, and how many ended before an older one.
fn load(server: &Server, region: bool, large: bool, requests: usize) -> (f64, usize) {
    let shape = Shape {
        queues: 1,
        depth: DEPTH,
        indirect: false,
        event_idx: true,
    };
    let disk = Disk::new(1, 0, Vec::new());
    let mut guest = Guest::new("g", &server.socket("origin"), shape, Resume::Used, disk);
    guest.with_region = region;
    guest.connect(|| ()).unwrap();
    let mut random = Random::new(5);
    let mut order = std::collections::VecDeque::new();
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut begun, mut ended, mut overtaken) = (0, 0, 0);
    let start = Instant::now();
    while ended < requests {
        let mut offered = false;
        while begun < requests
            && let Some(slot) = free.pop()
        {
            let len = match large && random.below(LARGE_ONE_IN) == 0 {
                true => LARGE,
                false => SMALL,
            };
            let sector = random.below((SECTORS - 128) / 8) * 8;
            guest.rings[0].submit(slot, IN, sector, slot, len);
            order.push_back(slot);
            (begun, offered) = (begun + 1, true);
        }
        if offered {
            guest.rings[0].notify();
        }
        while let Some((head, _)) = guest.rings[0].take_used() {
            let slot = shape.slot(head).unwrap();
            assert_eq!(guest.rings[0].status(slot), 0);
            let place = order.iter().position(|s| *s == slot).unwrap();
            order.remove(place);
            overtaken += usize::from(place > 0);
            free.push(slot);
            ended += 1;
        }
        assert!(start.elapsed().as_secs() < 300, "it hangs");
        std::thread::yield_now();
    }
    (requests as f64 / start.elapsed().as_secs_f64(), overtaken)
}

#[test]
fn requests_overtake_each_other_only_with_a_region() {
    let requests = random::number("SNAPBACK_COST_REQUESTS").map_or(3000, |n| n as usize);
    let mut server = Server::new(SECTORS, &["--socket-path", "origin.sock"]);
    server.start(&[]);
    for large in [false, true] {
        let mut ratios = Vec::new();
        for _ in 0..5 {
            let (with, overtaken) = load(&server, true, large, requests);
            let (without, none) = load(&server, false, large, requests);
            assert_eq!(none, 0, "without a region nothing may overtake");
            println!(
                "large ones among them: {large}; with a region {with:.0} requests/s, of which {overtaken} \
                 of {requests} overtook; in order {without:.0}"
            );
            ratios.push(without / with);
        }
        ratios.sort_by(f64::total_cmp);
        println!("in order / with a region: {ratios:.2?}");
    }
}
