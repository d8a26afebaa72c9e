//! The kinds of damage that a store can have, and the verdict on it.

use serde::Serialize;

/// Whether the store may be used, and by which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// By snapback and by Linux.
    Good,
    /// Begins with zeroes: no store was made there yet.
    New,
    /// By snapback, which repairs it without loss before the first use; Linux might take
    /// stale bytes for entries.
    Stale,
    /// Invalidated permanently.
    Invalid,
    Damaged,
}

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// No store can have the file's size.
    FileSize,
    Header,
    /// The next metadata area lies beyond the end of the file.
    MissingArea,
    /// The copy lies beyond the end of the file.
    BeyondStore,
    /// The copy is said to be where the store keeps its metadata.
    Metadata,
    /// The original lies beyond the end of the origin.
    BeyondOrigin,
    /// One chunk has two different copies.
    TwoCopies,
    /// Two chunks share one copy.
    SharedCopy,
}

/// One kind of damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub kind: DamageKind,
    /// How often it was found.
    pub count: u64,
    /// The first few, each with its values.
    pub examples: Vec<String>,
}
