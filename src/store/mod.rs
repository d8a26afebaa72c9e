//! The Linux dm-snapshot exception store, persistent format version 1, as pure
//! code: bytes in, plans out. `docs/format.md` has the byte tables.
//!
//! [`Metadata`] is the log of a store in use; it plans writes and never does I/O.
//! [`load`] and [`create`] use a [`Disk`](crate::io::Disk) that nothing else uses
//! meanwhile.

mod append;
mod buckets;
mod create;
mod disk;
mod entry;
mod error;
mod header;
mod holes;
mod layout;
mod load;
mod log;
mod metadata;
mod record;
mod removal;
mod scan;
mod settle;
mod survey;
mod validate;

#[cfg(test)]
mod tests;

pub use append::AppendPlan;
pub use create::create;
#[cfg(test)]
pub(crate) use create::create_as;
pub use entry::Entry;
pub use error::StoreError;
pub use header::{HEADER_BYTES, Header, RawHeader, VALID_WORD};
pub use holes::Holes;
pub use layout::Layout;
#[cfg(test)]
pub(crate) use load::load_as;
pub use load::{Loaded, load};
pub use log::Log;
pub use metadata::{MetaWrite, Metadata, NoSpace, Usage};
pub use record::{
    FoundRecord, Listed, RECORD_BLOCK, RECORD_BYTES, RECORD_ROOM, RecordError, RecordOwner,
    check_record, read_record, record_block_of, record_slots, record_write, replay_record,
};
pub use removal::RemovalPlan;
pub use scan::{Junk, LoadParams};
pub use settle::{ValidStore, settle_invalid};
#[cfg(test)]
pub(crate) use survey::survey_as;
pub use survey::{Survey, survey};
pub use validate::{Repeat, for_each_repeat};
