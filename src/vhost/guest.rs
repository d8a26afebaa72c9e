//! A request's data in guest memory, in the form that disks and the engine use.
#![allow(unsafe_code)] // Named file: makes buffers of pointers into guest memory, and copies from it.

use std::any::Any;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestRegionMmap};

use super::dirty_log::DirtyBitmap;
use super::memory::WatchedMap;
use crate::io::{GuestBuffer, GuestSlice};
use crate::virtio_blk::request::Segment;

type GuestRegion = GuestRegionMmap<DirtyBitmap>;

/// One worker's reference to the guest's memory. Each worker has its own, so that the
/// reference counts of its requests do not share a cache line with other workers.
#[derive(Debug)]
pub struct MemoryHold {
    pub map: Arc<WatchedMap>,
}

/// Mapped data of one request. Keeps the memory mapped.
pub struct GuestData {
    slices: SmallVec<[GuestSlice; 4]>,
    len: usize,
    hold: Arc<MemoryHold>,
}

// SAFETY: the pointers are valid on any thread while `hold` lives, and no
// reference to what they point at is ever made.
unsafe impl Send for GuestData {}

impl GuestData {
    /// Finds the memory of the segments; `None` if a part is not guest memory. A segment
    /// may span adjacent regions.
    pub fn map(hold: &Arc<MemoryHold>, segments: &[Segment]) -> Option<Self> {
        let mut slices = SmallVec::new();
        let mut len = 0_usize;
        for segment in segments {
            let wanted = usize::try_from(segment.len).ok()?;
            let mut found = 0_usize;
            for slice in hold.map.get_slices(segment.address, wanted) {
                let slice = slice.ok()?;
                let piece = GuestSlice {
                    pointer: slice.ptr_guard_mut().as_ptr(),
                    len: slice.len(),
                };
                found += piece.len;
                slices.push(piece);
            }
            if found != wanted {
                return None;
            }
            len = len.checked_add(wanted)?;
        }
        Some(Self {
            slices,
            len,
            hold: Arc::clone(hold),
        })
    }

    /// Bytes of data.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The `len` bytes from `offset`; `None` beyond the end.
    pub fn buffer(&self, offset: usize, len: usize) -> Option<GuestBuffer> {
        let slices = self.part(offset, len)?;
        let owner: Arc<dyn Any + Send + Sync> = self.hold.clone();
        // SAFETY: the slices are parts of regions of `hold.map`, which are
        // readable and writable, shared with the guest, and stay mapped while
        // `hold`, now the owner, lives.
        Some(unsafe { GuestBuffer::new(slices, owner) })
    }

    /// Copies the bytes from `offset` to `to`; false beyond the end. Concurrent writes of
    /// the guest may or may not be included.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> bool {
        let Some(slices) = self.part(offset, to.len()) else {
            return false;
        };
        let mut rest = to;
        for slice in slices {
            let Some((now, later)) = std::mem::take(&mut rest).split_at_mut_checked(slice.len)
            else {
                return false;
            };
            // SAFETY: the source is mapped guest memory of this length (see
            // `map`), the target a slice of it; they cannot overlap, since guest
            // memory is never lent out as a Rust slice.
            unsafe { std::ptr::copy_nonoverlapping(slice.pointer, now.as_mut_ptr(), slice.len) };
            rest = later;
        }
        true
    }

    /// Copies as much of `from` as there is room for; returns the number of bytes.
    pub fn copy_in(&self, from: &[u8]) -> usize {
        let mut rest = from;
        for slice in &self.slices {
            let (now, later) = rest.split_at(slice.len.min(rest.len()));
            // SAFETY: as in `copy_out`, in the other direction.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), slice.pointer, now.len()) };
            rest = later;
        }
        from.len() - rest.len()
    }

    /// Marks the first `len` bytes as written in the log of dirty pages, if there is one.
    /// The kernel and [`Self::copy_in`] write through pointers, so nothing else does it.
    pub fn mark_written(&self, len: usize) {
        let mut left = len;
        for slice in &self.slices {
            let written = slice.len.min(left);
            left -= written;
            let place = slice.pointer.addr();
            let within = |region: &&GuestRegion| {
                let start = region.as_ptr().addr();
                (start..start.saturating_add(region.size())).contains(&place)
            };
            if let Some(region) = self.hold.map.iter().find(within) {
                let offset = place - region.as_ptr().addr();
                (**region).bitmap().mark_dirty(offset, written);
            }
        }
    }

    fn part(&self, offset: usize, len: usize) -> Option<SmallVec<[GuestSlice; 4]>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        if offset == 0 && len == self.len {
            return Some(self.slices.clone());
        }
        let mut part = SmallVec::new();
        let mut skip = offset;
        let mut left = len;
        for slice in &self.slices {
            if left == 0 {
                break;
            }
            if skip >= slice.len {
                skip -= slice.len;
                continue;
            }
            let take = left.min(slice.len - skip);
            part.push(GuestSlice {
                // SAFETY: `skip` < the slice's length, so the pointer stays in
                // the same mapping.
                pointer: unsafe { slice.pointer.add(skip) },
                len: take,
            });
            skip = 0;
            left -= take;
        }
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// Two regions that adjoin at 0x1000, and one by itself.
    fn hold() -> Arc<MemoryHold> {
        let ranges = [
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x4000), 0x1000),
        ];
        let map = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let map = Arc::new(map.into());
        Arc::new(MemoryHold { map })
    }

    fn segment(address: u64, len: u32) -> Segment {
        let address = GuestAddress(address);
        Segment { address, len }
    }

    fn sample(hold: &Arc<MemoryHold>) -> (GuestData, Vec<u8>) {
        let bytes: Vec<u8> = (0..=255).cycle().take(0x5000).collect();
        for (start, len) in [(0, 0x2000), (0x4000, 0x1000)] {
            let part = bytes.get(start..start + len).unwrap();
            let address = GuestAddress(u64::try_from(start).unwrap());
            hold.map.write_slice(part, address).unwrap();
        }
        let segments = [
            segment(0xf01, 0x203),
            segment(0x4005, 7),
            segment(0x10, 300),
        ];
        let mut want = Vec::new();
        for (start, len) in [(0xf01, 0x203), (0x4005, 7), (0x10, 300)] {
            want.extend_from_slice(bytes.get(start..start + len).unwrap());
        }
        (GuestData::map(hold, &segments).unwrap(), want)
    }

    #[test]
    fn any_part_of_the_data_is_what_the_segments_hold() {
        let hold = hold();
        let (data, want) = sample(&hold);
        assert_eq!(data.len(), want.len());
        for offset in (0..=want.len()).step_by(13) {
            for len in [0, 1, 7, 250, 255, 256, 512, want.len() - offset] {
                let mut got = vec![0xaa; len];
                let expected = want.get(offset..offset + len);
                assert_eq!(data.copy_out(offset, &mut got), expected.is_some());
                let buffer = data.buffer(offset, len);
                assert_eq!(buffer.is_some(), expected.is_some(), "{offset}+{len}");
                let Some(expected) = expected else { continue };
                assert_eq!(got, expected, "{offset}+{len}");
                let buffer = buffer.unwrap();
                assert_eq!(buffer.len(), len);
                let mut pieces = Vec::new();
                for slice in buffer.slices() {
                    // SAFETY: the buffer keeps the memory mapped.
                    pieces.extend((0..slice.len).map(|i| unsafe { *slice.pointer.add(i) }));
                }
                assert_eq!(pieces, expected, "{offset}+{len}");
            }
        }
        assert!(data.buffer(usize::MAX, 2).is_none());
    }

    #[test]
    fn data_outside_memory_is_not_mapped() {
        let hold = hold();
        for bad in [
            segment(0x1fff, 2),
            segment(0x2000, 1),
            segment(0x3fff, 1),
            segment(0x4fff, 2),
            segment(u64::MAX, 2),
            segment(0, u32::MAX),
        ] {
            assert!(
                GuestData::map(&hold, &[segment(0, 1), bad]).is_none(),
                "{bad:?}"
            );
        }
        assert_eq!(GuestData::map(&hold, &[]).unwrap().len(), 0);
    }

    #[test]
    fn copying_in_stops_at_the_shorter_end() {
        let hold = hold();
        let data = GuestData::map(&hold, &[segment(0xffe, 4), segment(0x4000, 2)]).unwrap();
        assert_eq!(data.copy_in(&[1, 2, 3, 4, 5, 6, 7, 8]), 6);
        let mut got = [0; 6];
        assert!(data.copy_out(0, &mut got));
        assert_eq!(got, [1, 2, 3, 4, 5, 6]);
        assert_eq!(data.copy_in(&[9]), 1);
        assert!(data.copy_out(0, &mut got));
        assert_eq!(got, [9, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_buffer_keeps_its_memory_mapped() {
        let hold = hold();
        let map = Arc::downgrade(&hold.map);
        let buffer = GuestData::map(&hold, &[segment(0, 1)])
            .unwrap()
            .buffer(0, 1)
            .unwrap();
        drop(hold);
        assert!(map.upgrade().is_some());
        drop(buffer);
        assert!(map.upgrade().is_none());
    }
}
