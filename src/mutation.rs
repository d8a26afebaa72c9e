//! Seeded bugs, which show that the tests find bugs.
//!
//! Bugs in what happens between the engine and a disk (a dropped flush, an error that
//! is reported as success) are made by the tests' executor, in
//! `engine/tests/seeded_bugs.rs`. Bugs of logic and of memory order are in the program,
//! each on a line that asks [`is`] whether this thread runs with it. Outside of test
//! builds that is `false` at compile time, and nothing of it remains.

/// A bug that the simulator or the models of the races must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "some are in the tests only"))]
pub(crate) enum Mutation {
    OriginWriteBeforeEntry,
    CopyOutWaiterForgotten,
    SyncForgetsEntries,
    FailedSyncForgotten,
    SnapshotReadsNotDrained,
    InvalidReadsNotDrained,
    MergeWritesNotDrained,
    CutNotDrained,
    PartsNotDrained,
    HandoverNotDrained,
    MergeEndNotDrained,
    RemovalNotDrained,
    PresentIsEnough,
    SecondSnapshotSkipped,
    OverflowKeptOnCopyOut,
    FailedFlushForgotten,
    FailedStoreFlushForgotten,
    UnmergedWriteReachesOrigin,
    FenceIgnored,
    MergeSkipsCopyOut,
    MergeBehindSnapshot,
    CopyOutBehindSnapshot,
    CopyShownBehindSnapshot,
    FenceSkipped,
    MergeWaiterForgotten,
    FailedRemovalForgotten,
    RegistrationSkipped,
    NextChangeTakenForSeen,
    StaleConfiguration,
    OriginWriteBeforeCopy,
    FlushForgetsEntries,
    PublishedBeforeWritten,
    WriteAckedBeforeEntry,
    OverflowMixedUp,
    ShortTransferTakenForWhole,
    NextAreaOffTheEnd,
    PaddedWithNewEntry,
    LastUnitPadded,
    TailPaddedWithGoing,
    TailUnpadded,
    LastEntryNotAlone,
    TailZeroedForwards,
    RepetitionsKept,
    JunkKept,
    GroupCrossesAreas,
    MetadataChunkGivenOut,
    EarlierAreasNotZeroed,
    MovedEntryForgotten,
    FullAreaEndsLog,
    FlushBesideFailedOne,
    SharedChunkDiscarded,
    DiscardNotRegistered,
    PassdownSparesNobody,
    PassdownNotDrained,
    IoToWhoeverCalls,
    LowestChunkFirst,
    DirectWriteFlushedEarly,
    DirectWriteAckedEarly,
    PartialWriteDirect,
    AbandonedWriteAcked,
    CopiedDuringFlushRemoved,
    AllocatedWhileZeroed,
    ZeroedBehind,
    RemovalFlushedEarly,
    WithdrawnChunkRemoved,
    WithdrawnChunkFree,
    RecordNotRetired,
    RecordOfAnyBoot,
    RecordReplayedUnflushed,
    RecordBlocksOverlap,
    // Found by `engine/tests/io_errors.rs`, `engine/tests/truncated_store.rs` and
    // `store/tests/crash.rs`.
    HeaderLeftValid,
    PaddedFromRun,
    CutRegrown,
    CutUnnoticed,
    // Races. The simulator has one thread and cannot find them.
    RegistrationUnfenced,
    ChangeUnfenced,
    EndUnfenced,
    RegisteredAfterLookUp,
    ExceptionRelaxed,
    LeafNotRechecked,
    LeafPublishedRelaxed,
    LeafReusedRelaxed,
    EndNotTold,
    InboxFlagClearedLate,
    SignalClearedByStore,
    WakeClearedLate,
    StopNotDrained,
    StopHeardOnce,
    // Death of a queue's worker between two stores (`vhost/inflight_tests.rs`).
    TakenNotRecorded,
    InFlightBeforeCounter,
    BatchLinkedLate,
    InFlightEndsEarly,
    UsedIndexRecordedEarly,
    ReplayUnordered,
    ReplayCountForgotten,
    PublishedOutOfOrder,
    ResumedAtTheTold,
    // Between the engine and the disk (`engine/tests/seeded_bugs.rs`): not in the program.
    EntryBeforeData,
    CommitFlushDropped,
    EntryVolatile,
    FailedCommitIgnored,
    CutFlushDropped,
    SyncFlushDropped,
    OriginWriteBeforeInvalid,
    FailedCopyReadIgnored,
    FailedCopyWriteIgnored,
    InvalidationVolatile,
    FailedInvalidationIgnored,
    MergeFlushDropped,
    FailedMergeReadIgnored,
    FailedMergeWriteIgnored,
    FailedMergeFlushIgnored,
    MovesDropped,
    MoveVolatile,
    TailZeroedBeforeMoves,
    RemovalVolatile,
    MovesFlushDropped,
    RemovalFlushDropped,
    FlushCompletedEarly,
    FlushForgetsStore,
    FailedIoReportedOk,
    PatchDropped,
    SlotOffsetIgnored,
    PatchOffsetIgnored,
    NextAreaNotZeroed,
    NextAreaZeroedLate,
    PaddingDropped,
    PaddingWrittenLate,
    TailZeroedBeforePadding,
    RecordDropped,
    RecordWrittenLate,
    RepairVolatile,
    LoadedStoreVolatile,
    WriteThroughBeforeEntry,
    PartialWriteTakenForWhole,
}

#[cfg(not(test))]
pub(crate) const fn is(_: Mutation) -> bool {
    false
}

/// Called before every store to memory that outlives the process. True if the process
/// has died in the test.
#[cfg(not(test))]
pub(crate) const fn is_dead() -> bool {
    false
}

#[cfg(test)]
pub(crate) use chosen::{ALL, is, is_any, with};
#[cfg(test)]
pub(crate) use death::{dying_after, has_died, is_dead};

/// Death between two stores, for tests that try every position.
#[cfg(test)]
mod death {
    use std::cell::Cell;

    thread_local!(static LEFT: Cell<Option<u64>> = const { Cell::new(None) });

    pub fn is_dead() -> bool {
        match LEFT.get() {
            Some(0) => true,
            Some(left) => {
                LEFT.set(Some(left - 1));
                false
            }
            None => false,
        }
    }

    /// Runs `body`, of which only the first `stores` stores on this thread take effect.
    /// Returns whether `body` made as many.
    pub fn dying_after(stores: u64, body: impl FnOnce()) -> bool {
        LEFT.set(Some(stores));
        body();
        LEFT.replace(None) == Some(0)
    }

    /// Whether no further store will happen.
    pub fn has_died() -> bool {
        LEFT.get() == Some(0)
    }
}

#[cfg(test)]
mod chosen {
    use super::Mutation;
    use std::cell::Cell;

    thread_local!(static CHOSEN: Cell<Option<Mutation>> = const { Cell::new(None) });

    pub fn is(mutation: Mutation) -> bool {
        CHOSEN.get() == Some(mutation)
    }

    /// Whether this thread runs with any bug in.
    pub fn is_any() -> bool {
        CHOSEN.get().is_some()
    }

    /// Runs `body` on this thread with the bug in.
    pub fn with<T>(mutation: Option<Mutation>, body: impl FnOnce() -> T) -> T {
        let before = CHOSEN.replace(mutation);
        let result = body();
        CHOSEN.set(before);
        result
    }

    pub const ALL: &[Mutation] = &[
        Mutation::OriginWriteBeforeEntry,
        Mutation::EntryBeforeData,
        Mutation::CommitFlushDropped,
        Mutation::EntryVolatile,
        Mutation::FailedCommitIgnored,
        Mutation::CopyOutWaiterForgotten,
        Mutation::CutFlushDropped,
        Mutation::SyncForgetsEntries,
        Mutation::FailedSyncForgotten,
        Mutation::SnapshotReadsNotDrained,
        Mutation::InvalidReadsNotDrained,
        Mutation::MergeWritesNotDrained,
        Mutation::CutNotDrained,
        Mutation::HandoverNotDrained,
        Mutation::MergeEndNotDrained,
        Mutation::RemovalNotDrained,
        Mutation::OriginWriteBeforeInvalid,
        Mutation::PresentIsEnough,
        Mutation::SecondSnapshotSkipped,
        Mutation::OverflowKeptOnCopyOut,
        Mutation::FailedCopyReadIgnored,
        Mutation::FailedCopyWriteIgnored,
        Mutation::FailedFlushForgotten,
        Mutation::FailedStoreFlushForgotten,
        Mutation::InvalidationVolatile,
        Mutation::FailedInvalidationIgnored,
        Mutation::UnmergedWriteReachesOrigin,
        Mutation::FenceIgnored,
        Mutation::MergeSkipsCopyOut,
        Mutation::MergeBehindSnapshot,
        Mutation::CopyOutBehindSnapshot,
        Mutation::CopyShownBehindSnapshot,
        Mutation::FenceSkipped,
        Mutation::MergeFlushDropped,
        Mutation::FailedMergeReadIgnored,
        Mutation::FailedMergeFlushIgnored,
        Mutation::MovesDropped,
        Mutation::MoveVolatile,
        Mutation::RemovalVolatile,
        Mutation::MovesFlushDropped,
        Mutation::RemovalFlushDropped,
        Mutation::MergeWaiterForgotten,
        Mutation::FailedRemovalForgotten,
        Mutation::RegistrationSkipped,
        Mutation::NextChangeTakenForSeen,
        Mutation::StaleConfiguration,
        Mutation::WriteThroughBeforeEntry,
        Mutation::FlushCompletedEarly,
        Mutation::FlushForgetsStore,
        Mutation::FailedIoReportedOk,
        Mutation::OriginWriteBeforeCopy,
        Mutation::FlushForgetsEntries,
        Mutation::PartialWriteTakenForWhole,
        Mutation::PublishedBeforeWritten,
        Mutation::WriteAckedBeforeEntry,
        Mutation::PatchDropped,
        Mutation::OverflowMixedUp,
        Mutation::ShortTransferTakenForWhole,
        Mutation::RepairVolatile,
        Mutation::NextAreaOffTheEnd,
        Mutation::NextAreaNotZeroed,
        Mutation::PaddedWithNewEntry,
        Mutation::LastUnitPadded,
        Mutation::TailPaddedWithGoing,
        Mutation::TailUnpadded,
        Mutation::LastEntryNotAlone,
        Mutation::PaddingDropped,
        Mutation::PaddingWrittenLate,
        Mutation::TailZeroedBeforePadding,
        Mutation::RecordDropped,
        Mutation::RecordWrittenLate,
        Mutation::TailZeroedForwards,
        Mutation::RepetitionsKept,
        Mutation::LoadedStoreVolatile,
        Mutation::JunkKept,
        Mutation::NextAreaZeroedLate,
        Mutation::GroupCrossesAreas,
        Mutation::MetadataChunkGivenOut,
        Mutation::TailZeroedBeforeMoves,
        Mutation::EarlierAreasNotZeroed,
        Mutation::MovedEntryForgotten,
        Mutation::FullAreaEndsLog,
        Mutation::FlushBesideFailedOne,
        Mutation::SharedChunkDiscarded,
        Mutation::DiscardNotRegistered,
        Mutation::PassdownSparesNobody,
        Mutation::PassdownNotDrained,
        Mutation::IoToWhoeverCalls,
        Mutation::LowestChunkFirst,
        Mutation::DirectWriteFlushedEarly,
        Mutation::DirectWriteAckedEarly,
        Mutation::PartialWriteDirect,
        Mutation::AbandonedWriteAcked,
        Mutation::CopiedDuringFlushRemoved,
        Mutation::AllocatedWhileZeroed,
        Mutation::ZeroedBehind,
        Mutation::RemovalFlushedEarly,
        Mutation::WithdrawnChunkRemoved,
        Mutation::WithdrawnChunkFree,
        Mutation::RecordNotRetired,
        Mutation::RecordOfAnyBoot,
        Mutation::RecordReplayedUnflushed,
        Mutation::RecordBlocksOverlap,
        Mutation::FailedMergeWriteIgnored,
        Mutation::SyncFlushDropped,
        Mutation::SlotOffsetIgnored,
        Mutation::PatchOffsetIgnored,
    ];
}
