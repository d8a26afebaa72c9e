//! What the screen shows: the last status, what changed since, the latest events.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use serde_json::Value;

use super::rates::{Counters, History};
use crate::cli::poll::Answer;
use crate::control::api::{ViewStatus, VolumeStatus};
use crate::control::{narrate, render};

/// Events that are kept for the screen.
const EVENTS_MAX: usize = 200;

/// What tells one view from another.
type Key = (Option<String>, Option<String>);

/// All that is known of the daemon.
#[derive(Debug, Default)]
pub struct Model {
    pub status: Option<VolumeStatus>,
    /// Why the daemon does not answer.
    pub lost: Option<String>,
    /// The newest last.
    pub events: VecDeque<String>,
    histories: BTreeMap<Key, History>,
}

impl Model {
    pub fn take(&mut self, answer: Answer) {
        match answer.result {
            Ok(said) => {
                self.lost = None;
                self.note(answer.at, &said.status);
                self.status = Some(said.status);
                self.events.extend(said.events.iter().map(event));
                while self.events.len() > EVENTS_MAX {
                    self.events.pop_front();
                }
            }
            Err(error) => self.lost = Some(render::printable(&error.to_string())),
        }
    }

    /// Views that are gone are forgotten.
    fn note(&mut self, at: Instant, status: &VolumeStatus) {
        let mut known = std::mem::take(&mut self.histories);
        for view in &status.views {
            let key = key(view);
            let mut history = known.remove(&key).unwrap_or_default();
            history.note(at, counters(view));
            self.histories.insert(key, history);
        }
    }

    pub fn history(&self, view: &ViewStatus) -> Option<&History> {
        self.histories.get(&key(view))
    }
}

fn key(view: &ViewStatus) -> Key {
    let socket = view.socket.as_ref().or(view.connects.as_ref());
    (view.snapshot.clone(), socket.cloned())
}

/// The counters in a status. Those of a daemon that does not count stay 0.
const fn counters(view: &ViewStatus) -> Counters {
    let io = &view.io;
    let zeroing = io.write_zeroes.saturating_add(io.discards);
    let writes = io.writes.saturating_add(zeroing);
    let others = io.flushes.saturating_add(io.others);
    Counters {
        reads: io.reads,
        writes,
        read_bytes: io.read_bytes,
        write_bytes: io.write_bytes,
        latency_us: io.latency_us_sum,
        requests: io.reads.saturating_add(writes).saturating_add(others),
        in_flight: io.in_flight,
    }
}

/// An event in a line: the time of day, and what happened.
fn event(event: &Value) -> String {
    let line = narrate::line(event);
    let mut parts = line.trim_start().splitn(3, "  ");
    let time = parts.nth(1).unwrap_or_default();
    let clock: String = time.chars().skip(11).take(8).collect();
    format!("{clock}  {}", parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_shown_with_its_time_of_day() {
        let known = serde_json::json!({"instance": "9a", "seq": 12345, "snapshot": "before",
            "time": "2026-11-22T16:55:25.955Z", "kind": "usage-threshold", "percent": 81});
        assert_eq!(event(&known), "16:55:25  before: 81 % of the COW is used");
        let disk = serde_json::json!({"seq": 7, "time": "2026-11-22T16:55:25.955Z",
            "kind": "stopping"});
        assert!(event(&disk).starts_with("16:55:25  "), "{}", event(&disk));
        assert_eq!(
            event(&Value::Null).trim(),
            narrate::line(&Value::Null).rsplit("  ").next().unwrap()
        );
    }
}
