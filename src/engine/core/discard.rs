//! A discard off the fast path.

use super::Core;
use super::accounting::IoPurpose;
use super::request::Stage;
use super::waiting::RequestId;
use crate::engine::discard;
use crate::engine::views::ViewMode;

impl Core {
    /// A discard that came while the gate was closed.
    pub(super) fn discard(&mut self, id: RequestId, mode: &ViewMode) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (start, end, port) = (request.start(), request.end(), request.port());
        request.set_stage(Stage::Issued);
        // Registered before it is resolved, as on the fast path.
        self.register(id, discard::TOUCHES);
        let mut extents = Vec::new();
        if let Some(touches) = discard::resolve(mode, start, end, |e, how| extents.push((e, how))) {
            self.register(id, touches);
        }
        if extents.is_empty() {
            return self.finish(id);
        }
        if let Some(request) = self.requests.get_mut(id) {
            let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
            request.waits().add(count);
        }
        let origin = self.origin_device();
        for (extent, how) in extents {
            let purpose = IoPurpose::Guest {
                request: id,
                snapshot: None,
                fresh: Vec::new(),
            };
            self.issue(port, purpose, |tag| {
                discard::command(tag, origin, extent, how)
            });
        }
    }
}
