//! Carries out the engine's commands on a disk, for ports that have no guest:
//! the control port, the notice port and the merger.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::engine::{
    Command, ControlError, ControlRequest, Engine, Execution, MergeStep, NoSlots, Notice, Port,
    PortRole,
};
use crate::event_flag::EventFlag;
use crate::io::{Disk, Done};
use crate::sync;

/// A result of a turn that is not I/O.
#[derive(Debug)]
pub enum Report {
    ControlDone {
        id: u64,
        result: Result<(), ControlError>,
    },
    Notice(Notice),
}

/// One thread's port and disk.
pub struct Executor {
    port: Port,
    disk: Box<dyn Disk + Send>,
    wake: Arc<EventFlag>,
    // Empty between turns; kept to reuse their allocations.
    commands: Vec<Command>,
    done: Vec<Done>,
    next_control: u64,
}

impl Executor {
    /// Opens a port in `role`, which must not be a view's.
    pub fn new(
        engine: &Arc<Engine>,
        role: PortRole,
        disk: Box<dyn Disk + Send>,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFlag::new()?);
        let port = engine.open_port(role, 0, wake.clone());
        Ok(Self {
            port,
            disk,
            wake,
            commands: Vec::new(),
            done: Vec::new(),
            next_control: 0,
        })
    }

    /// Ends this executor's [`Self::wait`] when it is set.
    pub fn waker(&self) -> Arc<EventFlag> {
        self.wake.clone()
    }

    /// Starts a control request; its `Report::ControlDone` carries the number.
    pub fn start(&mut self, request: ControlRequest) -> u64 {
        self.next_control += 1;
        self.port
            .control(self.next_control, request, &mut self.commands);
        self.next_control
    }

    /// Starts a merge batch, see [`Port::merge_step`].
    pub fn merge_step(&mut self, background: u64, urgent: u64) -> MergeStep {
        self.port.merge_step(background, urgent, &mut self.commands)
    }

    /// No I/O under way.
    pub fn is_idle(&self) -> bool {
        self.commands.is_empty() && self.port.is_idle()
    }

    /// Does everything that can be done without waiting.
    pub fn turn(&mut self, reports: &mut Vec<Report>) {
        self.wake.clear();
        self.port.take_inbox(&mut self.commands);
        loop {
            self.execute(reports);
            self.disk.reap(false, &mut self.done);
            if self.done.is_empty() {
                return;
            }
            self.report_done();
        }
    }

    /// Waits until there is something for [`Self::turn`] to do, or for `timeout`.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.wait_also(&[], timeout);
    }

    /// As [`Self::wait`], and returns when one of `others` is readable, too.
    pub fn wait_also(&mut self, others: &[BorrowedFd<'_>], timeout: Option<Duration>) {
        if self.disk.event_fd().is_none() && self.disk.in_flight() > 0 {
            self.disk.reap(true, &mut self.done);
            self.report_done();
            return;
        }
        let disk = self.disk.event_fd();
        let mut fds: Vec<PollFd<'_>> = std::iter::once(self.wake.as_fd())
            .chain(disk)
            .chain(others.iter().copied())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = timeout.map(|t| {
            Timespec::try_from(t).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        // An interrupted wait is a wait that ended early.
        let _ = sync::wait(timeout, |timeout| poll(&mut fds, timeout));
    }

    /// Carries out one control request to its end, passing everything else on.
    ///
    /// The caller may not come back for long, so nothing may be left here that
    /// others wait for. The engine sees to it (`engine/core/carrier.rs`).
    pub fn drive(
        &mut self,
        request: ControlRequest,
        reports: &mut Vec<Report>,
    ) -> Result<(), ControlError> {
        let ours = self.start(request);
        let mut end = None;
        loop {
            let mut news = Vec::new();
            self.turn(&mut news);
            for report in news {
                match report {
                    Report::ControlDone { id, result } if id == ours => end = Some(result),
                    other => reports.push(other),
                }
            }
            match end {
                Some(result) if self.is_idle() => return result,
                Some(_) => debug_assert!(false, "I/O was left on a control port"),
                None => {}
            }
            self.wait(None);
        }
    }

    fn report_done(&mut self) {
        let Self {
            port,
            commands,
            done,
            ..
        } = self;
        for Done {
            tag,
            result,
            buffer,
        } in done.drain(..)
        {
            port.io_done(tag, result, buffer, commands);
        }
    }

    fn execute(&mut self, reports: &mut Vec<Report>) {
        // A refused command makes new ones, so this ends only with an empty list.
        while !self.commands.is_empty() {
            for command in std::mem::take(&mut self.commands) {
                self.execute_one(command, reports);
            }
        }
    }

    fn execute_one(&mut self, command: Command, reports: &mut Vec<Report>) {
        match command.execution(&mut NoSlots) {
            Execution::Submit(op) => self.disk.submit(op),
            Execution::ControlDone { id, result } => {
                reports.push(Report::ControlDone { id, result })
            }
            Execution::Notice(notice) => reports.push(Report::Notice(notice)),
            Execution::Refuse(Done {
                tag,
                result,
                buffer,
            }) => {
                tracing::error!("guest I/O on a port without a guest refused");
                self.port.io_done(tag, result, buffer, &mut self.commands);
            }
            Execution::Complete { .. } => {
                tracing::error!("completion on a port without a guest ignored");
            }
        }
    }
}
