//! A guest's memory: any number of regions, each in a file of its own or at an offset of
//! a common one.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

pub const MIB: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Dimm {
    pub guest: u64,
    pub len: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

pub struct Memory {
    pub map: GuestMemoryMmap<()>,
}

impl Memory {
    /// `len` bytes at 0.
    pub fn flat(len: u64) -> Self {
        Self::of(&[Dimm {
            guest: 0,
            len,
            offset: 0,
        }])
    }

    pub fn of(dimms: &[Dimm]) -> Self {
        let regions = dimms.iter().map(|dimm| {
            let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(dimm.offset + dimm.len).unwrap();
            let at = FileOffset::new(file, dimm.offset);
            (GuestAddress(dimm.guest), dimm.len as usize, Some(at))
        });
        let map = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
        Self { map }
    }

    /// As in the messages; the front end knows its memory by its own addresses.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |region: &vm_memory::GuestRegionMmap<()>| {
            let at = region.file_offset().unwrap();
            VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: self.host(region.start_addr().0),
                mmap_offset: at.start(),
                mmap_handle: at.file().as_raw_fd(),
            }
        };
        self.map.iter().map(region).collect()
    }

    /// As [`Self::regions`], for a front end without a guest: guest addresses are its own.
    pub fn own_regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let mut regions = self.regions();
        for region in &mut regions {
            region.guest_phys_addr = region.userspace_addr;
        }
        regions
    }

    pub fn host(&self, guest: u64) -> u64 {
        self.map.get_host_address(GuestAddress(guest)).unwrap() as u64
    }

    pub fn put<T: ByteValued>(&self, guest: u64, value: T) {
        self.map.write_obj(value, GuestAddress(guest)).unwrap();
    }

    pub fn get<T: ByteValued>(&self, guest: u64) -> T {
        self.map.read_obj(GuestAddress(guest)).unwrap()
    }

    pub fn write(&self, guest: u64, data: &[u8]) {
        self.map.write_slice(data, GuestAddress(guest)).unwrap();
    }

    pub fn read(&self, guest: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.map.read_slice(&mut data, GuestAddress(guest)).unwrap();
        data
    }

    pub fn store(&self, guest: u64, value: u16) {
        let order = std::sync::atomic::Ordering::SeqCst;
        self.map.store(value, GuestAddress(guest), order).unwrap();
    }

    pub fn load(&self, guest: u64) -> u16 {
        let order = std::sync::atomic::Ordering::SeqCst;
        self.map.load(GuestAddress(guest), order).unwrap()
    }
}
