//! Identifying a file or device by what the system says of it, so that the next start
//! recognizes it.

pub mod device_names;
pub mod storage;

pub use crate::io::identity_of as storage_of;
pub use storage::{
    OriginIdentity, Relation, StorageIdentity, StorageKind, Timestamp, UnflushedRecord, same_path,
};
