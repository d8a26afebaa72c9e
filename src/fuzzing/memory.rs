//! A guest's memory on the heap, where the address sanitizer sees each access beside it.
#![allow(unsafe_code)] // Named file: regions over memory of this process.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use crate::vhost::parts::{DirtyBitmap, GuestMap};

/// Guest addresses and lengths in bytes: two regions that adjoin, and one behind a hole.
pub const REGIONS: [(u64, usize); 3] = [(0, 0x8000), (0x8000, 0x4000), (0x1_0000, 0x4000)];

/// The address behind the last region.
pub const END: u64 = 0x1_4000;

/// A guest's memory.
pub struct Memory {
    // Dropped before the allocations.
    map: Option<GuestMap>,
    regions: Vec<Arc<GuestRegionMmap<DirtyBitmap>>>,
    blocks: Vec<(*mut u8, Layout)>,
}

impl Memory {
    pub fn new() -> Self {
        let mut memory = Self {
            map: None,
            regions: Vec::new(),
            blocks: Vec::new(),
        };
        let mut map = GuestMap::new();
        for (address, len) in REGIONS {
            let layout = Layout::from_size_align(len, 4096).unwrap();
            // SAFETY: the layout is not empty.
            let block = unsafe { alloc_zeroed(layout) };
            if block.is_null() {
                handle_alloc_error(layout);
            }
            memory.blocks.push((block, layout));
            let region = MmapRegionBuilder::new_with_bitmap(len, DirtyBitmap::default())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE);
            // SAFETY: the block has this length, and `map` is dropped before it.
            let region = unsafe { region.with_raw_mmap_pointer(block) };
            let region = GuestRegionMmap::new(region.build().unwrap(), GuestAddress(address));
            let region = Arc::new(region.unwrap());
            map = map.insert_region(Arc::clone(&region)).unwrap();
            memory.regions.push(region);
        }
        memory.map = Some(map);
        memory
    }

    /// The memory for a worker, which must be gone before this is dropped.
    pub fn map(&self) -> GuestMap {
        self.map.clone().unwrap()
    }

    /// Writes as much as lies in memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let map = self.map.as_ref().unwrap();
        if map.write_slice(bytes, GuestAddress(address)).is_ok() {
            return;
        }
        for (at, byte) in (address..).zip(bytes) {
            let _ = map.write_obj(*byte, GuestAddress(at));
        }
    }

    /// What it holds now.
    pub fn image(&self) -> Image {
        let map = self.map.as_ref().unwrap();
        let mut bytes = vec![0; END as usize];
        for (address, len) in REGIONS {
            let at = address as usize;
            let part = &mut bytes[at..at + len];
            map.read_slice(part, GuestAddress(address)).unwrap();
        }
        Image(bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.map = None;
        for region in self.regions.drain(..) {
            let unused = Arc::strong_count(&region) == 1 || std::thread::panicking();
            assert!(unused, "memory is still in use");
        }
        for (block, layout) in self.blocks.drain(..) {
            // SAFETY: allocated in `new` with this layout, and no longer mapped anywhere.
            unsafe { dealloc(block, layout) };
        }
    }
}

/// The memory at one time.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(Vec<u8>);

impl Image {
    /// Whether all of `len` bytes at `address` are memory.
    pub fn has(address: u64, len: u64) -> bool {
        let Some(end) = address.checked_add(len) else {
            return false;
        };
        // The first two regions adjoin.
        len == 0 || end <= 0xc000 || (address >= 0x1_0000 && end <= END)
    }

    pub fn get(&self, address: u64, len: u64) -> Option<&[u8]> {
        if len == 0 {
            return Some(&[]);
        }
        if !Self::has(address, len) {
            return None;
        }
        self.0.get(address as usize..(address + len) as usize)
    }

    pub fn array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        self.get(address, N as u64)?.try_into().ok()
    }

    pub fn u16(&self, address: u64) -> Option<u16> {
        self.array(address).map(u16::from_le_bytes)
    }

    /// The addresses at which it differs from `other`.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u64> + 'a {
        const STEP: usize = 256;
        let steps = self.0.chunks(STEP).zip(other.0.chunks(STEP)).enumerate();
        let changed = steps.filter(|(_, (now, then))| now != then);
        changed.flat_map(|(step, (now, then))| {
            let places = now.iter().zip(then).enumerate();
            places
                .filter(|(_, (now, then))| now != then)
                .map(move |(at, _)| (step * STEP + at) as u64)
        })
    }
}
