//! The block sizes that guests see: as the options and the state file say, otherwise as
//! suits the file or device behind the disk.

use crate::daemon::state::{BlockSizes, VolumeState};
use crate::io::Limits;
use crate::size::in_words;
use crate::units::SECTOR_SHIFT;
use crate::virtio_blk::{MAX_WRITE_ZEROES_SECTORS, Topology};

/// The largest logical block size.
pub const LOGICAL_MAX: u32 = 32 << 10;
/// The largest physical block size.
pub const PHYSICAL_MAX: u32 = 2 << 20;
/// The largest granularity of discards: the smallest of the limits that a view has for one
/// range.
pub const GRANULARITY_MAX: u32 = MAX_WRITE_ZEROES_SECTORS << SECTOR_SHIFT;
/// Unless the device has a larger one: the unit in which file systems give space back.
const GRANULARITY: u32 = 4096;

/// The messages explain the variants. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockSizeError {
    #[error("{option} {size}: must be a power of two from {least} to {most}")]
    NotPossible {
        option: &'static str,
        size: u32,
        least: u32,
        most: u32,
    },
    #[error(
        "--logical-block-size {asked}: the device {path} has blocks of {}, and smaller ones cannot be written; \
         give {has} or more, or leave the option out",
        in_words(*has)
    )]
    BelowDevice { path: String, asked: u32, has: u32 },
    #[error(
        "--logical-block-size {asked}: {path} has {}, which is not a multiple of it; give a smaller block \
         size, or enlarge the file first (truncate -s %{asked})",
        in_words(*size)
    )]
    OriginSize { path: String, asked: u32, size: u64 },
    #[error(
        "--logical-block-size {asked}: snapshot {name} has {}, which is not a multiple of it; give a \
         smaller block size, or remove the snapshot first",
        in_words(*length)
    )]
    SnapshotLength {
        name: String,
        asked: u32,
        length: u64,
    },
    #[error(
        "--physical-block-size {physical} is smaller than the logical block size, {}; give {logical} or more, \
         or leave the option out",
        in_words(*logical)
    )]
    PhysicalBelowLogical { physical: u32, logical: u32 },
    #[error(
        "--discard-granularity {granularity} is smaller than the logical block size, {}; give {logical} or \
         more, or leave the option out",
        in_words(*logical)
    )]
    GranularityBelowLogical { granularity: u32, logical: u32 },
    #[error(
        "--opt-io {opt_io} is not a multiple of the logical block size, {}; give a multiple of it, or 0 for \
         none",
        in_words(*logical)
    )]
    OptIo { opt_io: u32, logical: u32 },
}

/// The origin, as far as block sizes depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub path: &'a str,
    pub size: u64,
    /// Its own logical block size.
    pub block_size: u32,
    pub limits: Limits,
}

/// The block sizes of all views of `origin`. `state` has the options of this start and of
/// those before.
pub fn topology(origin: Origin<'_>, state: &VolumeState) -> Result<Topology, BlockSizeError> {
    let asked = &state.blocks;
    let logical = logical(origin, state)?;
    let limits = origin.limits;
    let physical = physical(asked, logical, limits.physical_block)?;
    let is_own = asked.physical.is_none() && physical == limits.physical_block;
    let offset = limits.alignment_offset;
    let is_aligned = offset < physical && offset.is_multiple_of(logical);
    let is_usual = |size: u32| size >= physical && size.is_multiple_of(physical);
    let opt_io = match asked.opt_io {
        Some(opt_io) if !opt_io.is_multiple_of(logical) => {
            return Err(BlockSizeError::OptIo { opt_io, logical });
        }
        Some(opt_io) => opt_io,
        None => Some(limits.optimal_io)
            .filter(|s| is_usual(*s))
            .unwrap_or(0),
    };
    // The field has 16 bits.
    let fits = |size: u32| size / logical <= u32::from(u16::MAX);
    Ok(Topology {
        logical,
        physical,
        alignment_offset: if is_own && is_aligned { offset } else { 0 },
        min_io: Some(limits.minimum_io)
            .filter(|size| is_own && is_usual(*size) && fits(*size))
            .unwrap_or(physical),
        opt_io,
        discard_granularity: granularity(asked, logical, limits.discard_granularity)?,
    })
}

fn logical(origin: Origin<'_>, state: &VolumeState) -> Result<u32, BlockSizeError> {
    let Some(asked) = state.blocks.logical else {
        return Ok(origin.block_size);
    };
    check("--logical-block-size", asked, LOGICAL_MAX)?;
    let path = || origin.path.to_owned();
    if asked < origin.block_size {
        return Err(BlockSizeError::BelowDevice {
            path: path(),
            asked,
            has: origin.block_size,
        });
    }
    if !origin.size.is_multiple_of(asked.into()) {
        return Err(BlockSizeError::OriginSize {
            path: path(),
            asked,
            size: origin.size,
        });
    }
    for record in &state.snapshots {
        let odd = |length: &u64| !length.is_multiple_of(asked.into());
        if let Some(length) = record.length.filter(odd) {
            return Err(BlockSizeError::SnapshotLength {
                name: record.spec.name.clone(),
                asked,
                length,
            });
        }
    }
    Ok(asked)
}

fn physical(asked: &BlockSizes, logical: u32, device: u32) -> Result<u32, BlockSizeError> {
    let Some(physical) = asked.physical else {
        let is_possible = |size: &u32| size.is_power_of_two() && *size <= PHYSICAL_MAX;
        return Ok(Some(device).filter(is_possible).unwrap_or(0).max(logical));
    };
    check("--physical-block-size", physical, PHYSICAL_MAX)?;
    if physical < logical {
        return Err(BlockSizeError::PhysicalBelowLogical { physical, logical });
    }
    Ok(physical)
}

fn granularity(asked: &BlockSizes, logical: u32, device: u32) -> Result<u32, BlockSizeError> {
    let Some(granularity) = asked.discard_granularity else {
        let is_possible = |size: &u32| size.is_power_of_two() && *size <= GRANULARITY_MAX;
        let device = Some(device).filter(is_possible).unwrap_or(0);
        return Ok(device.max(GRANULARITY).max(logical));
    };
    check("--discard-granularity", granularity, GRANULARITY_MAX)?;
    if granularity < logical {
        return Err(BlockSizeError::GranularityBelowLogical {
            granularity,
            logical,
        });
    }
    Ok(granularity)
}

fn check(option: &'static str, size: u32, most: u32) -> Result<(), BlockSizeError> {
    let least = 512;
    match size.is_power_of_two() && (least..=most).contains(&size) {
        true => Ok(()),
        false => Err(BlockSizeError::NotPossible {
            option,
            size,
            least,
            most,
        }),
    }
}

/// What to say if guests may have seen other blocks than they will see now: `before` are
/// the sizes that were recorded.
pub fn remark(before: &BlockSizes, state: &VolumeState, own: u32, now: u32) -> Option<String> {
    let then = before.logical.unwrap_or(own);
    (then != now && state.guest_attached).then(|| {
        format!(
            "the logical block size is {} from now on, and was {}: a guest that was attached meanwhile \
             does not know that. Restart it, or go back with --logical-block-size {then}",
            in_words(now),
            in_words(then)
        )
    })
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
