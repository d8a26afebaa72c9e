//! The ports of the engine, and the commands for them.

use std::sync::Arc;

use slab::Slab;

use super::Core;
use crate::engine::api::{Command, ControlError, Notice, PortRole};
use crate::engine::shared::PortShared;
use crate::engine::views::ViewMode;

/// A control request under way: the port that it came from, and its number there.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlCall {
    pub(super) port: usize,
    pub(super) id: u64,
}

#[derive(Default)]
pub(super) struct Ports {
    open: Slab<Arc<PortShared>>,
    /// What the present event has set off, by port.
    commands: Vec<(usize, Command)>,
}

impl Core {
    pub fn add_port(&mut self, port: Arc<PortShared>) -> usize {
        self.ports.open.insert(port)
    }

    pub fn remove_port(&mut self, index: usize) {
        self.ports.open.try_remove(index);
        self.drains.closed(index);
    }

    pub fn port(&self, index: usize) -> Option<&Arc<PortShared>> {
        self.ports.open.get(index)
    }

    /// Takes the commands that the event has set off.
    pub fn commands(&mut self) -> std::vec::IntoIter<(usize, Command)> {
        std::mem::take(&mut self.ports.commands).into_iter()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = (usize, &Arc<PortShared>)> {
        self.ports.open.iter()
    }

    pub(super) fn port_with(&self, role: PortRole) -> Option<usize> {
        let mut of_role = self.ports().filter(|(_, port)| port.role == role);
        of_role.next().map(|(index, _)| index)
    }

    /// The ports of the views that show what `which` picks.
    pub(super) fn ports_where(
        &self,
        which: impl Fn(&ViewMode) -> bool,
    ) -> impl Iterator<Item = &Arc<PortShared>> {
        self.ports().filter_map(move |(_, port)| match port.role {
            PortRole::View(view) if which(self.config.mode(view)) => Some(port),
            PortRole::View(_) | PortRole::Merger | PortRole::Control | PortRole::Notices => None,
        })
    }

    pub(super) fn emit(&mut self, port: usize, command: Command) {
        self.ports.commands.push((port, command));
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        let role = if matches!(notice, Notice::MergeWork { .. }) {
            PortRole::Merger
        } else {
            PortRole::Notices
        };
        if let Some(port) = self.port_with(role) {
            self.emit(port, Command::Notice(notice));
        }
    }

    pub(super) fn control_done(&mut self, call: ControlCall, result: Result<(), ControlError>) {
        let id = call.id;
        self.emit(call.port, Command::ControlDone { id, result });
    }
}
