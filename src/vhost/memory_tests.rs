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
    let mut table = MemoryTable::new(false).unwrap();
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
        "memory region at 0x200000 needs 8 KiB from offset 0 of a file of 4 KiB"
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
    let mut table = MemoryTable::new(false).unwrap();
    let memory = file(1);
    for i in 0..509 {
        let place = i * 2 * PAGE;
        let region = region(place, 1, place);
        table.add(&region, memory.try_clone().unwrap()).unwrap();
    }
    let error = table.add(&region(1 << 40, 1, 1 << 40), memory).unwrap_err();
    assert_eq!(error.to_string(), "more than 509 memory regions");
}

/// Whoever reads sees zeroes, and everybody else goes on.
#[test]
fn memory_that_is_cut_while_it_is_mapped_ends_its_front_end_and_not_the_process() {
    let (mut cut, whole) = (MemoryTable::new(false).unwrap(), table());
    let memory = file(4);
    let keep = memory.try_clone().unwrap();
    cut.set(&[region(0, 4, 0x7000_0000)], vec![memory]).unwrap();
    let map = cut.map();
    map.write_obj(7_u8, GuestAddress(0)).unwrap();
    let faults = crate::vhost::vanishing::faults();
    keep.set_len(PAGE).unwrap();
    // What is left of it is still there.
    assert_eq!(map.read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
    assert!(!map.is_gone());
    map.write_obj(9_u8, GuestAddress(3 * PAGE)).unwrap();
    assert_eq!(map.read_obj::<u8>(GuestAddress(2 * PAGE)).unwrap(), 0);
    assert_eq!(map.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
    assert!(map.is_gone());
    assert!(crate::vhost::vanishing::faults() > faults);
    let mut event = [rustix::event::PollFd::new(
        cut.gone(),
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec::default();
    assert_eq!(rustix::event::poll(&mut event, Some(&now)), Ok(1));
    assert!(!whole.map().is_gone());
    whole.map().write_obj(7_u8, GuestAddress(0)).unwrap();
    assert_eq!(whole.map().read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
}

#[test]
fn only_memory_of_this_machine_is_taken_unless_it_is_insisted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory");
    let other = File::create_new(&path).unwrap();
    other.set_len(PAGE).unwrap();
    let kind = rustix::fs::fstatfs(&other).unwrap().f_type;
    if kind == 0x0102_1994 {
        return; // This is memory, too.
    }
    let region = region(0, 1, 0);
    let mut table = table();
    let error = table
        .set(&[region], vec![other.try_clone().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("--any-guest-memory"), "{error}");
    assert!(error.contains(&format!("{kind:#x}")), "{error}");
    let mut any = MemoryTable::new(true).unwrap();
    any.set(&[region], vec![other]).unwrap();
}

#[test]
fn a_front_end_maps_no_more_than_its_share_of_the_address_space() {
    let sparse = file(1);
    let size = 100_u64 << 40;
    sparse.set_len(size).unwrap();
    let region = |len| VhostUserMemoryRegion::new(0, len, 0, 0);
    let mut table = table();
    let error = table
        .set(&[region(size)], vec![sparse.try_clone().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("a front end may have"), "{error}");
    // Four front ends have all of it; what they give back is there for others.
    let share = BYTES_MAX;
    let mut others: Vec<_> = (0..3).map(|_| MemoryTable::new(false).unwrap()).collect();
    for other in &mut others {
        let file = sparse.try_clone().unwrap();
        other.set(&[region(share)], vec![file]).unwrap();
    }
    let mut last = MemoryTable::new(false).unwrap();
    let error = last
        .set(&[region(share)], vec![sparse.try_clone().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("all front ends together"), "{error}");
    others.pop();
    last.set(&[region(share)], vec![sparse]).unwrap();
}

#[test]
fn regions_that_overlap_for_the_front_end_or_begin_inside_a_page_are_refused() {
    let mut table = table();
    for (bad, words) in [
        (region(0x20_0000, 2, 0x4fff_f000), "0x100000 has a part"),
        (region(0x20_0000, 1, 0x7000_1000), "0x0 has a part"),
        (region(0x20_0000, 1, u64::MAX - PAGE + 1), "address space"),
        (region(0x20_0010, 1, 0x1000_0000), "multiple of 4096"),
    ] {
        let error = table.add(&bad, file(2)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(table.map().num_regions(), 2);
}
