#![allow(clippy::unwrap_used)]

use super::*;
use crate::vhost::memory::DirtyBitmap;
use vm_memory::GuestMemoryMmap;

const SIZE: u16 = 4;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

struct Driver {
    hold: Arc<MemoryHold>,
}

impl Driver {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), 0x1_0000)];
        let map = GuestMemoryMmap::<DirtyBitmap>::from_ranges(&ranges).unwrap();
        Self {
            hold: Arc::new(MemoryHold { map: Arc::new(map) }),
        }
    }

    /// A ring whose available and used index stand at `at`.
    fn ring(&self, at: u16) -> Ring {
        self.store(AVAIL + INDEX, at);
        self.store(USED + INDEX, at);
        let mut queue = Queue::new(SIZE).unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(AVAIL))
            .unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        queue.set_next_avail(at);
        Ring::new(queue, Arc::clone(&self.hold), Arc::default()).unwrap()
    }

    fn store(&self, address: u64, value: u16) {
        self.hold
            .map
            .write_obj(value.to_le(), GuestAddress(address))
            .unwrap();
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(self.hold.map.read_obj(GuestAddress(address)).unwrap())
    }
}

#[test]
fn the_index_moves_once_for_many_heads_and_wraps() {
    let driver = Driver::new();
    let mut ring = driver.ring(0xfffe);
    let used = ring.queue.used_ring();
    for head in 0..3 {
        ring.push_used(head, 100 + u32::from(head)).unwrap();
        assert_eq!(
            driver.load(used + INDEX),
            0xfffe,
            "not before it is published"
        );
    }
    ring.publish().unwrap();
    assert_eq!(driver.load(used + INDEX), 1);
    // 0xfffe % 4 = 2, so the third head is at place 0.
    for (place, head) in [(2, 0), (3, 1), (0, 2)] {
        assert_eq!(driver.load(used + ELEMENTS + 8 * place), head);
        assert_eq!(driver.load(used + ELEMENTS + 8 * place + 4), 100 + head);
    }
}

#[test]
fn more_available_than_can_be_under_way_is_a_fault() {
    let driver = Driver::new();
    let mut ring = driver.ring(10);
    let avail = ring.queue.avail_ring();
    for (index, room, want) in [
        (14, 4, Ok(4)),
        (
            15,
            0,
            Err(RingFault::TooManyAvailable {
                available: 1,
                room: 0,
            }),
        ),
        (
            19,
            4,
            Err(RingFault::TooManyAvailable {
                available: 5,
                room: 4,
            }),
        ),
        (
            13,
            4,
            Err(RingFault::TooManyAvailable {
                available: 0xffff,
                room: 4,
            }),
        ),
    ] {
        driver.store(avail + INDEX, index);
        assert_eq!(ring.take_available(room, |_, _| ()), want, "index {index}");
    }
    assert_eq!(ring.next_avail(), 14);
}

#[test]
fn a_head_outside_the_table_is_a_fault_after_the_good_ones() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    let avail = ring.queue.avail_ring();
    driver.store(avail + ELEMENTS, 1);
    driver.store(avail + ELEMENTS + 2, SIZE);
    driver.store(avail + INDEX, 2);
    let mut heads = Vec::new();
    let result = ring.take_available(4, |head, _| heads.push(head));
    assert_eq!((result, heads), (Err(RingFault::Head(SIZE)), vec![1]));
}

#[test]
fn arming_notices_what_came_meanwhile() {
    let driver = Driver::new();
    for event_idx in [false, true] {
        let mut ring = driver.ring(7);
        ring.queue.set_event_idx(event_idx);
        let avail = ring.queue.avail_ring();
        assert_eq!(ring.arm(), Ok(false));
        ring.disarm().unwrap();
        driver.store(avail + INDEX, 8);
        assert_eq!(ring.arm(), Ok(true));
        if event_idx {
            let event = ring.queue.used_ring() + ELEMENTS + 8 * u64::from(SIZE);
            assert_eq!(driver.load(event), 7, "a kick for the next head");
        } else {
            assert_eq!(driver.load(ring.queue.used_ring()), 0);
            ring.disarm().unwrap();
            assert_eq!(driver.load(ring.queue.used_ring()), 1, "no kicks wanted");
        }
    }
}

#[test]
fn a_ring_outside_memory_is_a_fault_not_a_panic() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    ring.queue
        .try_set_used_ring_address(GuestAddress(0x1_0000))
        .unwrap();
    ring.queue
        .try_set_avail_ring_address(GuestAddress(u64::MAX - 1))
        .unwrap();
    assert_eq!(ring.push_used(0, 0), Err(RingFault::Memory));
    assert_eq!(ring.take_available(4, |_, _| ()), Err(RingFault::Memory));
    assert_eq!(ring.arm(), Err(RingFault::Memory));
    assert_eq!(ring.disarm(), Err(RingFault::Memory));
}
