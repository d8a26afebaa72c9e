//! Carries out the engine's commands on a disk, for ports without a guest: the control port,
//! the notice port and the merger's.

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

/// The result of a turn besides I/O.
#[derive(Debug)]
pub enum Output {
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
    // These are kept between turns only to reuse their allocations.
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

    /// Ends this executor's [`Self::wait`].
    pub fn waker(&self) -> Arc<EventFlag> {
        self.wake.clone()
    }

    /// Starts a control request; its `Output::ControlDone` has the returned number.
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

    /// No I/O is in flight.
    pub fn is_idle(&self) -> bool {
        self.commands.is_empty() && self.port.is_idle()
    }

    /// Does everything that is possible without waiting.
    pub fn turn(&mut self, outputs: &mut Vec<Output>) {
        self.wake.clear();
        self.port.take_inbox(&mut self.commands);
        loop {
            self.execute(outputs);
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

    /// As [`Self::wait`]; also returns when one of `others` is readable.
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
        // An interrupted wait merely ends early.
        let _ = sync::wait(timeout, |timeout| poll(&mut fds, timeout));
    }

    /// Carries out one control request to its end, and returns all other outputs.
    ///
    /// The caller may not use this port again for a long time, so no I/O may be left here that
    /// others wait for. The engine guarantees this (`engine/core/carrier.rs`).
    pub fn drive(
        &mut self,
        request: ControlRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<(), ControlError> {
        let ours = self.start(request);
        let mut end = None;
        loop {
            let mut news = Vec::new();
            self.turn(&mut news);
            for output in news {
                match output {
                    Output::ControlDone { id, result } if id == ours => end = Some(result),
                    other => outputs.push(other),
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

    fn execute(&mut self, outputs: &mut Vec<Output>) {
        // A refused command may cause new ones, so this is repeated until the list is empty.
        while !self.commands.is_empty() {
            for command in std::mem::take(&mut self.commands) {
                self.execute_one(command, outputs);
            }
        }
    }

    fn execute_one(&mut self, command: Command, outputs: &mut Vec<Output>) {
        match command.execution(&mut NoSlots) {
            Execution::Submit(op) => self.disk.submit(op),
            Execution::ControlDone { id, result } => {
                outputs.push(Output::ControlDone { id, result })
            }
            Execution::Notice(notice) => outputs.push(Output::Notice(notice)),
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
