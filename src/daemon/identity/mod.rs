//! What the system says of a file or device, so that it is known again.

pub mod device_names;
pub mod storage;

pub use storage::{OriginIdentity, Relation, StorageIdentity, StorageKind, Timestamp};
