#![allow(clippy::unwrap_used)]

use super::*;
use crate::vhost::dirty_log::DirtyBitmap;
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
            hold: Arc::new(MemoryHold {
                map: Arc::new(map.into()),
            }),
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
        let (ring, replay) = Ring::new(queue, Arc::clone(&self.hold), None).unwrap();
        assert!(replay.is_empty());
        ring
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

/// Takes all that is available.
fn take(ring: &mut Ring) -> Result<Vec<Taken>, RingFault> {
    let mut all = Vec::new();
    ring.take_available(|taken, _| {
        all.push(taken);
        true
    })?;
    Ok(all)
}

fn too_many(available: u16, room: u16) -> Result<Vec<Taken>, RingFault> {
    Err(RingFault::TooManyAvailable { available, room })
}

#[test]
fn more_available_than_can_be_under_way_is_a_fault() {
    let driver = Driver::new();
    let mut ring = driver.ring(10);
    let avail = ring.queue.avail_ring();
    driver.store(avail + INDEX, 14);
    let taken = take(&mut ring).unwrap();
    assert_eq!(taken.len(), 4);
    for (index, ahead) in [(15, 1), (19, 5), (13, 0xffff)] {
        driver.store(avail + INDEX, index);
        assert_eq!(take(&mut ring), too_many(ahead, 0), "index {index}");
    }
    // The second has ended, but it has not gone back before the first.
    ring.give_back(taken[1], 1).unwrap();
    driver.store(avail + INDEX, 15);
    assert_eq!(take(&mut ring), too_many(1, 0));
    ring.give_back(taken[0], 1).unwrap();
    driver.store(avail + INDEX, 17);
    assert_eq!(take(&mut ring), too_many(3, 2));
    assert_eq!(ring.next_avail(), 14);
}

/// Without a region the used index is all that tells a successor what is done.
#[test]
fn without_a_region_requests_go_back_in_the_order_in_which_they_were_taken() {
    let driver = Driver::new();
    let mut ring = driver.ring(0xffff);
    let (avail, used) = (ring.queue.avail_ring(), ring.queue.used_ring());
    for (place, head) in [(3, 2), (0, 0), (1, 3)] {
        driver.store(avail + ELEMENTS + 2 * place, head);
    }
    driver.store(avail + INDEX, 2);
    let taken = take(&mut ring).unwrap();
    let mut published = |taken, len| {
        ring.give_back(taken, len).unwrap();
        ring.publish().unwrap();
        driver.load(used + INDEX)
    };
    assert_eq!(published(taken[2], 12), 0xffff);
    assert_eq!(published(taken[0], 10), 0);
    assert_eq!(published(taken[1], 11), 2);
    for (place, head, len) in [(3, 2, 10), (0, 0, 11), (1, 3, 12)] {
        assert_eq!(driver.load(used + ELEMENTS + 8 * place), head);
        assert_eq!(driver.load(used + ELEMENTS + 8 * place + 4), len);
    }
}

#[test]
fn a_ring_goes_on_at_its_used_index_whatever_the_front_end_says() {
    let driver = Driver::new();
    for (told, available, goes_on) in [(7, 9, 7), (8, 9, 7), (9, 9, 7), (0, 9, 7), (8, 90, 7)] {
        driver.store(AVAIL + INDEX, available);
        driver.store(USED + INDEX, 7);
        let mut queue = Queue::new(SIZE).unwrap();
        (queue.try_set_avail_ring_address(GuestAddress(AVAIL))).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        queue.set_next_avail(told);
        let hold = Arc::clone(&driver.hold);
        let (ring, replay) = Ring::new(queue, hold, None).unwrap();
        assert_eq!((ring.next_avail(), replay), (goes_on, Vec::new()), "{told}");
    }
}

/// A ring that begins with an invalid available index, which the driver then takes back:
/// requests were counted from where the front end said, and never went back.
#[test]
fn requests_of_a_ring_that_began_invalid_go_back() {
    let driver = Driver::new();
    driver.store(AVAIL + INDEX, 90);
    driver.store(USED + INDEX, 7);
    let mut queue = Queue::new(SIZE).unwrap();
    (queue.try_set_avail_ring_address(GuestAddress(AVAIL))).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue.set_next_avail(8);
    let (mut ring, _) = Ring::new(queue, Arc::clone(&driver.hold), None).unwrap();
    driver.store(AVAIL + INDEX, 9);
    let taken = take(&mut ring).unwrap();
    assert!(!taken.is_empty());
    for one in &taken {
        ring.give_back(*one, 1).unwrap();
    }
    ring.publish().unwrap();
    let gone_back = driver.load(USED + INDEX).wrapping_sub(7);
    assert_eq!(usize::from(gone_back), taken.len());
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
    let result = ring.take_available(|taken, _| {
        heads.push(taken.head);
        true
    });
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

/// Around the wrap of the index too: the driver is signalled if what it waits for lies
/// among the requests that went back.
#[test]
fn with_event_idx_the_driver_is_signalled_exactly_when_its_event_was_passed() {
    let driver = Driver::new();
    for old in [
        0_u16, 1, 7, 0x7ffe, 0x7fff, 0x8000, 0xfffc, 0xfffd, 0xfffe, 0xffff,
    ] {
        for count in 1..=SIZE {
            for ahead in -4_i16..=8 {
                let event = old.wrapping_add_signed(ahead);
                let mut ring = driver.ring(old);
                ring.queue.set_event_idx(true);
                driver.store(AVAIL + ELEMENTS + AVAIL_ELEMENT * u64::from(SIZE), event);
                for head in 0..count {
                    ring.push_used(head, 1).unwrap();
                }
                let signalled = ring.publish().unwrap();
                let passed = (0..count).any(|n| old.wrapping_add(n) == event);
                assert_eq!(signalled, passed, "{count} from {old}, event {event}");
            }
        }
    }
}

/// The other direction, around the wrap too.
#[test]
fn with_event_idx_the_driver_is_asked_for_a_kick_at_the_next_head() {
    let driver = Driver::new();
    let event = USED + ELEMENTS + USED_ELEMENT * u64::from(SIZE);
    for at in [0_u16, 1, 0x7fff, 0x8000, 0xfffd, 0xfffe, 0xffff] {
        for more in 0..=SIZE {
            let mut ring = driver.ring(at);
            ring.queue.set_event_idx(true);
            driver.store(event, at.wrapping_sub(7));
            driver.store(AVAIL + INDEX, at.wrapping_add(more));
            assert_eq!(ring.arm(), Ok(more > 0), "{more} from {at}");
            assert_eq!(driver.load(event), at, "{more} from {at}");
            // What was asked for stays as it is until the ring is armed again.
            ring.disarm().unwrap();
            assert_eq!(driver.load(event), at);
            assert_eq!(take(&mut ring).unwrap().len(), usize::from(more));
            assert_eq!(ring.arm(), Ok(false));
            assert_eq!(driver.load(event), at.wrapping_add(more));
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
    assert_eq!(take(&mut ring), Err(RingFault::Memory));
    assert_eq!(ring.arm(), Err(RingFault::Memory));
    assert_eq!(ring.disarm(), Err(RingFault::Memory));
}
