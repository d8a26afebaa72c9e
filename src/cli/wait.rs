//! `--wait`: waits until a merge is done.

use std::time::Duration;

use super::progress::{Amount, Progress};
use super::{CliError, interrupt, output};
use crate::control::api::{MergeOutcome, MergeStatus, State, VolumeStatus};
use crate::control::{Client, ClientError, render};
use crate::units::SECTOR_SIZE;

/// How often the daemon is polled.
const INTERVAL: Duration = Duration::from_millis(200);

/// The state before the merge was requested: the end of an earlier merge must not be
/// mistaken for the end of this one.
#[derive(Debug, Default)]
pub struct Earlier {
    last: Option<MergeOutcome>,
    merging: Option<String>,
    /// The end is not told in words.
    pub quiet: bool,
}

impl Earlier {
    /// Asks the daemon, if `wait`.
    pub fn read(client: &Client, wait: bool) -> Result<Self, CliError> {
        if !wait {
            return Ok(Self::default());
        }
        // Before the request, so that an interruption never ends the process after it.
        interrupt::watch();
        let status = client.status()?;
        Ok(Self {
            last: status.last_merge,
            merging: status.merge.map(|merge| merge.snapshot),
            quiet: false,
        })
    }

    /// Nothing was being merged: how the last merge ended, if there was one.
    pub fn ended(&self) -> Result<String, CliError> {
        match &self.last {
            None => Ok("no merge is running".to_owned()),
            Some(MergeOutcome {
                snapshot,
                error: None,
                ..
            }) => Ok(is_merged(snapshot)),
            Some(MergeOutcome {
                snapshot,
                error: Some(error),
                ..
            }) => Err(CliError::Failed(has_failed(snapshot, error))),
        }
    }

    /// The snapshot that was being merged.
    pub fn merging(&self) -> Option<&str> {
        self.merging.as_deref()
    }
}

fn is_merged(name: &str) -> String {
    format!("{name} is merged; its COW is empty and can be removed")
}

fn has_failed(name: &str, reason: &str) -> String {
    let reason = render::printable(reason);
    format!("the merge of {name} failed: {reason}")
}

/// Waits until `name` is merged, or its merge failed. An interruption (Ctrl-C) ends the wait, not
/// the merge.
pub fn until_merged(client: &Client, name: &str, earlier: &Earlier) -> Result<(), CliError> {
    let mut bar = Progress::new("merging");
    let mut seen = false;
    loop {
        let status = client.status().map_err(|error| daemon_ended(error, name))?;
        match judge(&status, name, earlier, seen) {
            Step::AtReset => bar.set_message(format!(
                "waiting for the guest's reset to roll back to {name}"
            )),
            Step::Running(merge) => {
                seen = true;
                bar.set_message(if merge.paused {
                    format!("{name} paused")
                } else {
                    format!("merging {name}")
                });
                bar.show_amount(amount(&status, merge));
            }
            Step::Starting => {}
            Step::Done => {
                bar.end();
                return match earlier.quiet {
                    true => Ok(()),
                    false => output::line(&is_merged(name)),
                };
            }
            Step::Failed(reason) => return Err(CliError::Failed(reason)),
        }
        if interrupt::happened() {
            bar.end();
            return Err(CliError::Interrupted(format!(
                "no longer waiting; the daemon goes on with {name}, see snapback status"
            )));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// A merge in bytes.
pub fn amount(status: &VolumeStatus, merge: &MergeStatus) -> Amount {
    let merged = status.snapshots.iter().find(|s| s.name == merge.snapshot);
    let chunk = merged.map_or(0, |s| s.chunk_sectors.saturating_mul(SECTOR_SIZE));
    let chunks = merge.chunks_done.saturating_add(merge.chunks_left);
    let moves = !merge.paused && merge.error.is_none();
    Amount {
        done: merge.chunks_done.saturating_mul(chunk),
        total: chunks.saturating_mul(chunk),
        rate: moves.then_some(merge.bytes_per_second),
        limit: merge.rate_limit,
        seconds_left: merge.seconds_left,
    }
}

/// Whether both are the same end of a merge; what became of its COW since does not matter.
fn is_same_end(one: &MergeOutcome, other: Option<&MergeOutcome>) -> bool {
    other.is_some_and(|other| {
        (&one.snapshot, one.chunks, &one.error) == (&other.snapshot, other.chunks, &other.error)
    })
}

#[derive(Debug, PartialEq)]
enum Step<'a> {
    AtReset,
    Starting,
    Running(&'a MergeStatus),
    Done,
    Failed(String),
}

/// `seen`: an earlier status showed the merge running.
fn judge<'a>(status: &'a VolumeStatus, name: &str, earlier: &Earlier, seen: bool) -> Step<'a> {
    let failed = |reason: &str| Step::Failed(has_failed(name, reason));
    if status.rollback_at_reset.as_deref() == Some(name) {
        return Step::AtReset;
    }
    if let Some(merge) = status.merge.as_ref().filter(|merge| merge.snapshot == name) {
        let advice = merge.retry.map(|retry| format!("; {}", retry.advice()));
        return match &merge.error {
            Some(error) => failed(&(error.clone() + &advice.unwrap_or_default())),
            None => Step::Running(merge),
        };
    }
    let ended = status
        .last_merge
        .as_ref()
        .filter(|last| last.snapshot == name);
    if let Some(last) = ended
        && (seen || !is_same_end(last, earlier.last.as_ref()))
    {
        return last.error.as_deref().map_or(Step::Done, failed);
    }
    let state = status
        .snapshots
        .iter()
        .find(|s| s.name == name)
        .map(|s| s.state);
    match state {
        Some(State::Merging | State::MergePaused) => Step::Starting,
        Some(State::MergeFailed) => failed("see `snapback status` and the daemon's log"),
        // An earlier merge with the same outcome hides the end of this one.
        None if seen || ended.is_some_and(|last| last.error.is_none()) => Step::Done,
        Some(State::Invalid) if seen => Step::Done,
        Some(State::Invalid) => failed("the snapshot became invalid before it began"),
        Some(State::Active | State::Overflow) => failed("the rollback was cancelled"),
        None => failed("the snapshot was removed before it began"),
    }
}

/// The error of a daemon that ended while a merge was waited for.
fn daemon_ended(error: ClientError, name: &str) -> CliError {
    match error {
        ClientError::NoDaemon { .. } | ClientError::Lost { .. } => CliError::Failed(format!(
            "{error} (the merge of {name} was not finished; it continues when the daemon is started again)"
        )),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{OriginStatus, Retry, SnapshotStatus, StoreType};

    fn status(state: Option<State>) -> VolumeStatus {
        let snapshot = |state| SnapshotStatus {
            name: "s".to_owned(),
            cow: "/c".to_owned(),
            store_type: StoreType::P,
            cow_device: "0:0".to_owned(),
            state,
            sectors: 1024,
            read_only: false,
            chunk_sectors: 8,
            allocated_sectors: 16,
            total_sectors: 1024,
            metadata_sectors: 16,
            discard_zeroes_cow: false,
            discard_passdown_origin: false,
            defer_entries: false,
        };
        VolumeStatus {
            origin: OriginStatus {
                path: "/d".to_owned(),
                sectors: 1024,
                read_only: false,
                device: "0:0".to_owned(),
            },
            views: Vec::new(),
            snapshots: state.map(snapshot).into_iter().collect(),
            merge: None,
            rollback_at_reset: None,
            rollback: None,
            sandbox: None,
            last_merge: None,
            pid: None,
            access: Default::default(),
        }
    }

    fn merge(snapshot: &str, error: Option<&str>) -> MergeStatus {
        MergeStatus {
            snapshot: snapshot.to_owned(),
            chunks_done: 1,
            chunks_left: 2,
            bytes_per_second: 0,
            rate_limit: None,
            seconds_left: None,
            paused: false,
            error: error.map(str::to_owned),
            retry: error.map(|_| Retry::Restart),
        }
    }

    fn outcome(error: Option<&str>) -> Option<MergeOutcome> {
        Some(MergeOutcome {
            snapshot: "s".to_owned(),
            chunks: 3,
            error: error.map(str::to_owned),
            cow: None,
        })
    }

    #[test]
    fn a_merge_that_was_too_fast_to_be_seen_is_done() {
        let mut now = status(None);
        now.last_merge = outcome(None);
        assert_eq!(judge(&now, "s", &Earlier::default(), false), Step::Done);
    }

    #[test]
    fn the_end_of_an_earlier_merge_is_not_taken_for_this_one() {
        let mut now = status(Some(State::Merging));
        now.last_merge = outcome(None);
        let earlier = Earlier {
            last: outcome(None),
            merging: None,
            quiet: false,
        };
        assert_eq!(judge(&now, "s", &earlier, false), Step::Starting);
        now.merge = Some(merge("s", None));
        assert!(matches!(
            judge(&now, "s", &earlier, false),
            Step::Running(_)
        ));
    }

    #[test]
    fn waiting_for_the_reset_is_not_the_end() {
        let mut now = status(Some(State::Active));
        now.rollback_at_reset = Some("s".to_owned());
        assert_eq!(judge(&now, "s", &Earlier::default(), false), Step::AtReset);
    }

    #[test]
    fn every_kind_of_failure_is_reported() {
        let mut stopped = status(Some(State::MergeFailed));
        stopped.merge = Some(merge("s", Some("I/O error")));
        let mut ended = status(None);
        ended.last_merge = outcome(Some("I/O error"));
        for (now, seen) in [
            (stopped, true),
            (ended, true),
            (status(Some(State::MergeFailed)), true),
            (status(Some(State::Invalid)), false),
            (status(Some(State::Active)), false),
            (status(None), false),
        ] {
            let step = judge(&now, "s", &Earlier::default(), seen);
            assert!(matches!(step, Step::Failed(_)), "{step:?} for {now:?}");
        }
    }

    #[test]
    fn a_merge_that_was_seen_and_is_gone_is_done() {
        assert_eq!(
            judge(&status(None), "s", &Earlier::default(), true),
            Step::Done
        );
        assert_eq!(
            judge(
                &status(Some(State::Invalid)),
                "s",
                &Earlier::default(),
                true
            ),
            Step::Done
        );
    }
}
