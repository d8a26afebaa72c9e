//! How a start contradicts the state file, and what to do.

use crate::size::in_words;

/// The messages explain the variants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "origin {origin} was changed while no daemon served it: {}. The snapshots {} do not have the data that was \
         overwritten. Restore the origin as it was, or start snapback serve with --forget NAME for each of them, or, if {}",
        changes.join("; "), snapshots.join(", "),
        if *grown {
            "it was only enlarged and nothing else wrote it, with --accept-changes: each snapshot keeps its length"
        } else {
            "you know that it has the content that it had when the daemon ended (a copy, or touch), with --accept-changes"
        }
    )]
    OriginChanged {
        origin: String,
        changes: Vec<String>,
        /// It is the same file or device, and it is larger than before.
        grown: bool,
        snapshots: Vec<String>,
    },
    #[error(
        "origin {origin} {why}. The snapshots {} are right only if disk, COWs and state file are of the same time. Restore \
         disk, COWs and state file {place} of one time; or start snapback serve with --forget NAME for each of them; or, if \
         you know that they are of the same time, with --accept-changes", snapshots.join(", ")
    )]
    OtherTime {
        origin: String,
        place: String,
        /// Continues a sentence after "origin".
        why: String,
        snapshots: Vec<String>,
    },
    #[error(
        "origin {origin} is a copy of the disk in {original}, and it is unknown whether disk, COWs and state file were \
         copied at one moment: {}. If no daemon served the original while they were copied (or the copy is of one \
         moment, such as a snapshot of their file system), start snapback serve with --accept-changes: the copy becomes \
         a volume of its own. Otherwise its snapshots {} cannot be trusted: give each up with --forget NAME", changes.join("; "),
        snapshots.join(", ")
    )]
    CopyUnproven {
        origin: String,
        original: String,
        changes: Vec<String>,
        snapshots: Vec<String>,
    },
    #[error(
        "origin {origin} has {}, and snapshot {name} has {}: its data behind the end of the origin is lost. Restore the \
         origin as it was, or give the snapshot up with snapback serve --forget {name}",
        in_words(*size),
        in_words(*length)
    )]
    OriginShrank {
        origin: String,
        size: u64,
        name: String,
        length: u64,
    },
    #[error(
        "snapshot {name}: {what} is {recorded} in the state file and {asked} in --snapshot: leave the option out, or remove the snapshot first"
    )]
    Contradiction {
        name: String,
        what: &'static str,
        recorded: String,
        asked: String,
    },
    #[error("snapshot {0} is given twice: choose another name for one of them")]
    Twice(String),
    #[error("{0}")]
    Name(String),
    #[error("--{option} {name}: no such snapshot; known are: {known}")]
    Unknown {
        option: &'static str,
        name: String,
        known: String,
    },
    #[error(
        "--merge {asked}: a merge of {running} is in progress and must end first; leave --merge out to continue it"
    )]
    OtherMerge { asked: String, running: String },
    #[error(
        "--merge {asked}: a rollback to {pending} waits for the guest's reset; leave --merge out, or forget {pending}"
    )]
    OtherRollback { asked: String, pending: String },
    #[error(
        "--merge {0}: a transient store cannot be merged; take a snapshot that is to be merged with type=P"
    )]
    Transient(String),
    #[error(
        "--merge {0}: the snapshot is invalid, so it cannot be merged; remove it with --forget {0}"
    )]
    Invalid(String),
    #[error("a merge of {0} writes the origin: leave --read-only out")]
    MergeReadOnly(String),
    #[error(
        "a rollback to {0} waits for the guest's reset and will write the origin: leave --read-only out"
    )]
    RollbackReadOnly(String),
    #[error(
        "nothing to serve: give --socket-path, --fd or --connect for the origin, or a snapshot with socket=, or --control (an origin's \
         sockets are recorded once it has a snapshot)"
    )]
    Nothing,
    #[error(
        "socket {path} would serve both {first} and {second}: choose another path for one of them"
    )]
    SocketTwice {
        path: String,
        first: String,
        second: String,
    },
    #[error(
        "nothing to serve: give --socket-path or --fd for the origin, or --control. (This is a copy; the recorded sockets {} \
         are outside the copied folder, so they belong to the original)", .0.join(", ")
    )]
    NothingOfItsOwn(Vec<String>),
    #[error("cannot make {path} absolute: {reason}")]
    Path { path: String, reason: String },
}
