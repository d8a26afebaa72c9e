#![allow(clippy::unwrap_used)]

use super::*;
use vm_memory::{Bytes, GuestMemoryBackend};

const PAGE: u64 = 4096;

fn file(pages: u64) -> File {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len(pages * PAGE).unwrap();
    file
}

/// A region of `pages` at the guest's `guest`, the front end's `user`.
fn region(guest: u64, pages: u64, user: u64) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(guest, pages * PAGE, user, 0)
}

fn table() -> MemoryTable {
    let mut table = MemoryTable::new();
    let regions = [region(0, 2, 0x7000_0000), region(0x10_0000, 1, 0x5000_0000)];
    table.set(&regions, vec![file(2), file(1)]).unwrap();
    table
}

#[test]
fn addresses_of_the_front_end_become_guest_addresses() {
    let table = table();
    for (user, guest) in [
        (0x7000_0000, Some(0)),
        (0x7000_1fff, Some(0x1fff)),
        (0x7000_2000, None),
        (0x6fff_ffff, None),
        (0x5000_0123, Some(0x10_0123)),
        (0, None),
        (u64::MAX, None),
    ] {
        assert_eq!(table.guest_address(user), guest, "{user:#x}");
    }
}

#[test]
fn a_refused_change_leaves_the_table_as_it_was() {
    let mut table = table();
    let overlapping = region(PAGE, 1, 0x1000_0000);
    assert!(table.add(&overlapping, file(1)).is_err());
    let short = region(0x20_0000, 2, 0x1000_0000);
    let error = table.add(&short, file(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory region at 0x200000 needs 8192 bytes from offset 0 of a file of 4096 bytes"
    );
    assert!(table.set(&[short], vec![file(1)]).is_err());
    assert_eq!(table.guest_address(0x1000_0000), None);
    assert_eq!(table.guest_address(0x7000_0000), Some(0));
    assert_eq!(table.map().num_regions(), 2);
}

#[test]
fn only_the_very_region_that_was_added_can_be_removed() {
    let mut table = table();
    for other in [
        region(0x10_0000, 2, 0x5000_0000),
        region(0x10_1000, 1, 0x5000_0000),
        region(0x10_0000, 1, 0x5000_1000),
    ] {
        assert!(table.remove(&other).is_err());
    }
    table.remove(&region(0x10_0000, 1, 0x5000_0000)).unwrap();
    assert_eq!(table.guest_address(0x5000_0000), None);
    assert_eq!(table.map().num_regions(), 1);
}

#[test]
fn a_map_in_use_outlives_its_replacement() {
    let mut table = table();
    let old = table.map();
    table.set(&[region(0, 1, 0)], vec![file(1)]).unwrap();
    old.write_obj(7_u8, GuestAddress(0x10_0000)).unwrap();
    assert!(
        table
            .map()
            .write_obj(7_u8, GuestAddress(0x10_0000))
            .is_err()
    );
}

#[test]
fn no_more_regions_are_taken_than_announced() {
    let mut table = MemoryTable::new();
    let memory = file(1);
    for i in 0..509 {
        let place = i * 2 * PAGE;
        let region = region(place, 1, place);
        table.add(&region, memory.try_clone().unwrap()).unwrap();
    }
    let error = table.add(&region(1 << 40, 1, 1 << 40), memory).unwrap_err();
    assert_eq!(error.to_string(), "more than 509 memory regions");
}
