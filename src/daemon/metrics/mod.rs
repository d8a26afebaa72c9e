//! The metrics of a volume. What others write is copied while the tables are locked
//! (`scene.rs`), which takes no disk and no guest; the text is made of the copy.
//!
//! Every sample belongs to a view or snapshot that is there now, so that there are never more
//! of them than what the volume has.

mod process;
mod scene;
mod snapshots;
mod views;

use crate::control::api::ApiError;
use crate::control::metrics::{Family, Kind, Unit, Value, labels};
use crate::daemon::volume::LiveVolume;
use crate::engine::{FailedDevice, Operation};
use crate::units::SECTOR_SIZE;
use scene::Scene;

impl LiveVolume {
    /// All metrics.
    ///
    /// # Errors
    /// The tables are not free for long, because the daemon ends while a disk does not answer.
    pub fn metrics(&self) -> Result<Vec<Family>, ApiError> {
        let scene = self.scene()?;
        let mut families = volume(&scene);
        families.extend(views::families(&scene.views));
        families.extend(snapshots::snapshots(&scene));
        families.extend(snapshots::merge(&scene));
        families.extend(process::families());
        Ok(families)
    }
}

fn volume(scene: &Scene) -> Vec<Family> {
    let counts = &scene.engine.counts;
    let version = labels([("version", env!("CARGO_PKG_VERSION"))]);
    let invalid = Family::counter(
        "snapback_invalidations",
        "Snapshots that became invalid, by reason: their COW was full, or an error",
    );
    vec![
        Family::new(Kind::Info, "snapback_build", "The version of the daemon")
            .sample(version, Value::Integer(1)),
        Family::gauge("snapback_origin_size", "Size of the disk")
            .unit(Unit::Bytes)
            .value(scene.origin_sectors.saturating_mul(SECTOR_SIZE)),
        Family::gauge(
            "snapback_rollback_pending",
            "1 while a rollback waits for a reset",
        )
        .value(u64::from(scene.rollback_pending)),
        invalid
            .sample(
                labels([("reason", "full")]),
                Value::Integer(counts.invalid_full),
            )
            .sample(
                labels([("reason", "error")]),
                Value::Integer(counts.invalid_io),
            ),
        disk_errors(scene),
    ]
}

fn disk_errors(scene: &Scene) -> Family {
    let mut family = Family::counter(
        "snapback_disk_errors",
        "Operations of the daemon itself that failed: copy-outs, metadata, merges, and flushes",
    );
    let devices = [
        ("origin", FailedDevice::Origin),
        ("cow", FailedDevice::Cow),
        ("record", FailedDevice::Record),
    ];
    let operations = [
        ("read", Operation::Read),
        ("write", Operation::Write),
        ("write_metadata", Operation::WriteMetadata),
        ("flush", Operation::Flush),
    ];
    for (device_name, device) in devices {
        for (name, operation) in operations {
            let count = scene.engine.counts.failures.get(device, operation);
            let labels = labels([("device", device_name), ("operation", name)]);
            family = family.sample(labels, Value::Integer(count));
        }
    }
    family
}
