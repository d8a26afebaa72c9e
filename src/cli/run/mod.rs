//! `snapback run`: a command on throw-away forks of images.
//!
//! ```text
//!  snapback run ─┬─► snapback run-disk, one for each image: serves a fork    (keeper)
//!                └─► snapback run-command, which becomes the command         (command)
//! ```
//!
//! Each of the three may be killed at any time: a keeper removes its files and ends the
//! command when this process has ended, the kernel ends the command then, and this process
//! cleans up after a keeper.

mod command;
mod disk;
mod keeper;
mod message;
mod options;
mod signals;
mod verdict;
mod words;

pub use command::RunCommand;
pub use keeper::RunDisk;
pub use options::Run;

use crate::cli::outcome::CliError;
use crate::control::render::printable;
use crate::daemon;
use disk::Disk;
use options::Image;
use signals::Signals;
use verdict::Fate;

impl Run {
    /// Runs the command; returns the exit status for the caller.
    ///
    /// Order: 1 the options are checked → 2 the forks are served → 3 the command runs, and
    /// ends with all of its processes → 4 each fork is stopped; its changes are durable, if
    /// they are kept → 5 they are merged into the image, if they are committed.
    ///
    /// `log`: the options that say what is logged, and where.
    ///
    /// # Errors
    /// What failed in snapback itself.
    pub fn run(self, log: &[String]) -> Result<u8, CliError> {
        let images = self.images().map_err(CliError::Usage)?;
        words::check(&self.command, images.len()).map_err(CliError::Usage)?;
        let signals = Signals::take()
            .map_err(|e| CliError::Failed(format!("cannot take over signals: {e}")))?;
        let mut disks = Vec::new();
        for image in &images {
            let disk = Disk::serve(image, log, &signals)?;
            let socket = disk.socket().display().to_string();
            self.say(|| format!("a fork of {} is served at {socket}", image.path));
            disks.push(disk);
        }
        let end = command::run(&self.command, &mut disks, self.timeout, &signals)?;
        self.say(|| format!("the command {end}"));
        let fate = Fate::of(end.is_success(&self.success), self.keep.into(), self.commit);
        // All of them, before one image is changed.
        let broken = disks.iter().filter(|disk| !disk.is_whole());
        let broken: Vec<&str> = broken.map(Disk::image).collect();
        report_broken(&broken, fate)?;
        for (disk, image) in disks.into_iter().zip(&images) {
            self.end(disk, image, fate)?;
        }
        Ok(end.status(&self.success))
    }

    fn end(&self, disk: Disk, image: &Image, fate: Fate) -> Result<(), CliError> {
        let Some(cow) = image.cow.as_deref().filter(|_| fate != Fate::Drop) else {
            disk.drop_changes();
            return Ok(());
        };
        disk.keep_changes(cow)?;
        if fate == Fate::Keep {
            self.say(|| format!("the changes of {} are kept in {cow}", image.path));
            return Ok(());
        }
        commit(&image.path, cow)?;
        self.say(|| format!("the changes are merged into {}", image.path));
        Ok(())
    }

    /// Prints a line with `--verbose`.
    fn say(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("snapback: {}", printable(&line()));
        }
    }
}

/// Says which disks have failed. What is missing in one cannot be committed.
fn report_broken(images: &[&str], fate: Fate) -> Result<(), CliError> {
    for image in images {
        eprintln!(
            "snapback: the disk of {} has failed: its changes were more than --size allows, or there was no space for them, \
             or its COW could not be written",
            printable(image)
        );
    }
    if fate == Fate::Commit && !images.is_empty() {
        return Err(CliError::Failed(
            "no image is changed, because changes are missing; repeat this with a larger --size, or with more free space"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Merges the changes of a fork into its image, which nobody serves any more.
fn commit(origin: &str, cow: &str) -> Result<(), CliError> {
    daemon::merge_offline(origin.as_ref(), cow.as_ref(), None, |_, _| {}).map_err(|e| {
        CliError::Failed(format!(
            "the changes are not merged into {origin}, or only in part: {e}. They are in {cow}; before the image is used \
             again, finish with: snapback merge --origin {origin} --cow {cow}"
        ))
    })?;
    std::fs::remove_file(cow).map_err(|e| {
        CliError::Failed(format!(
            "the changes are merged into {origin}; {cow} is empty now, and cannot be removed: {e}"
        ))
    })
}
