//! What the log says of a session when its first ring starts.

use tracing::debug;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Handler;
use crate::size::in_words;
use crate::vhost::feature_names;
use crate::vhost::memory::{GuestMap, is_untouched};

impl Handler {
    /// Says once what was negotiated, and what looks wrong about the memory.
    pub(super) fn describe_session(&mut self) {
        if std::mem::replace(&mut self.described, true) {
            return;
        }
        let name = &self.view.config.name;
        let map = self.memory.map();
        debug!(
            "view {name}: features: {}",
            feature_names::of(self.features)
        );
        let protocol = VhostUserProtocolFeatures::from_bits_retain(self.protocol_features);
        let names: Vec<&str> = protocol.iter_names().map(|(name, _)| name).collect();
        debug!("view {name}: protocol features: {}", names.join(", "));
        debug!("view {name}: memory: {}", describe_memory(&map));
        let rings = self
            .queues
            .iter()
            .enumerate()
            .filter(|(_, q)| q.is_set_up());
        let rings: Vec<String> = rings
            .map(|(index, queue)| format!("queue {index} has {} entries", queue.size))
            .collect();
        let region = match &self.inflight {
            Some(_) => "with an in-flight region",
            None => "without an in-flight region",
        };
        debug!("view {name}: rings so far: {}; {region}", rings.join(", "));
        // A guest's memory begins with its firmware and its rings; a program's may be new.
        if !self.memory.is_the_front_ends_own() && is_untouched(&map) {
            self.view.log.doubt_memory(format_args!(
                "view {name}: a ring starts, but nobody has written to the guest's memory that this daemon was given"
            ));
        }
    }
}

fn describe_memory(map: &GuestMap) -> String {
    let regions: Vec<String> = map
        .iter()
        .map(|region| format!("{} at {:#x}", in_words(region.len()), region.start_addr().0))
        .collect();
    regions.join(", ")
}
