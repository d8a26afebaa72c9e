//! The options of `snapback run`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::verdict::When;
use crate::cli::values;
use crate::size;

/// Run a command, such as a test that boots a virtual machine, on throw-away forks of images.
///
/// Each image is opened read-only and never written, so any number of runs can use one image at
/// once. What the command writes goes to a COW, which is dropped at the end.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  Boot an image in QEMU; all changes are dropped:
    snapback run --image golden.img --timeout 5m -- \\
      qemu-system-x86_64 -accel kvm -machine q35 -nographic {memory=2G} {disk},bootindex=1

  Keep the changes of a run that fails, and look at them:
    snapback run --image golden.img --keep on-failure --cow failed.cow -- ./test.sh
    snapback export --origin golden.img --cow failed.cow failed.img

IN THE COMMAND
  {socket}       the path of the vhost-user-blk socket; {socket1}, {socket2}, ... if there are
                 several images
  {disk}         -chardev and -device for QEMU; options for the device may follow: {disk},serial=x
  {memory=2G}    -m, -object and -machine for QEMU: memory that is shared with snapback
  Other front ends need memory that is shared, too (cloud-hypervisor: --memory shared=on).

IN THE ENVIRONMENT OF THE COMMAND
  SNAPBACK_SOCKET   the socket of the first image; SNAPBACK_SOCKET1, SNAPBACK_SOCKET2, ...
  SNAPBACK_IMAGE    the first image;               SNAPBACK_IMAGE1, SNAPBACK_IMAGE2, ...
  SNAPBACK_CONTROL  the control socket of the first fork, which is named fork;
                    SNAPBACK_CONTROL1, SNAPBACK_CONTROL2, ...

EXIT STATUS
  That of the command; 128 + N if signal N ended it, or came to snapback and the command then
  exited as if nothing had happened
  124  --timeout is over
  125  wrong usage, or an error in snapback
  126  the command cannot be run
  127  the command is not found")]
pub struct Run {
    /// The image: a raw file or block device. Give it several times for several disks.
    #[arg(long = "image", value_name = "FILE", required = true, value_parser = values::path)]
    images: Vec<String>,

    /// When to keep the changes, in the COW that --cow names.
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        requires_if("on-failure", "cows"),
        requires_if("on-success", "cows"),
        requires_if("always", "cows")
    )]
    pub keep: Keep,

    /// The COW of the image, which must not exist; once for each --image [default: a file in
    /// TMPDIR or /tmp that has no name any more when the command begins].
    #[arg(id = "cows", long = "cow", value_name = "FILE", value_parser = values::path)]
    cows: Vec<String>,

    /// Merge the changes into the image if the command succeeds. Then nobody else can use the
    /// image meanwhile. Without --cow the COW is beside the image.
    #[arg(long)]
    pub commit: bool,

    /// Most space that the changes of each image may take; the disk fails when it is used up
    /// [default: enough for all of the image].
    #[arg(long, value_name = "SIZE", value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Copy-on-write unit, a power of two from 512 to 1G [default: 4K].
    #[arg(long, value_name = "SIZE", value_parser = values::chunk_size)]
    chunk_size: Option<u64>,

    /// End the command if it takes longer: SIGTERM, and SIGKILL 5 s later. A number of seconds, or
    /// one with s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub timeout: Option<Duration>,

    /// Exit statuses of the command that mean success, for --keep and --commit.
    #[arg(
        long,
        value_name = "STATUS,...",
        value_delimiter = ',',
        default_value = "0"
    )]
    pub success: Vec<u8>,

    /// Report on stderr what is done.
    #[arg(short, long)]
    pub verbose: bool,

    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    #[default]
    Never,
    /// If the exit status is not one of --success, or there is none.
    OnFailure,
    OnSuccess,
    Always,
}

impl From<Keep> for When {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Never => Self::Never,
            Keep::OnFailure => Self::OnFailure,
            Keep::OnSuccess => Self::OnSuccess,
            Keep::Always => Self::Always,
        }
    }
}

/// An image, and how it is forked.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub path: String,
    /// `None`: a nameless file.
    pub cow: Option<String>,
    /// Its COW may be needed afterwards, so that it has to be a complete store.
    pub persistent: bool,
    /// Nobody else may use it.
    pub exclusive: bool,
    pub size: Option<u64>,
    pub chunk_size: Option<u64>,
}

impl Run {
    /// The images in the order of the options.
    ///
    /// # Errors
    /// Options that contradict one another.
    pub fn images(&self) -> Result<Vec<Image>, String> {
        let (images, cows) = (self.images.len(), self.cows.len());
        if cows != 0 && cows != images {
            return Err(format!(
                "there are {images} images and {cows} COWs: give --cow once for each --image, in the same order"
            ));
        }
        if self.commit && matches!(self.keep, Keep::OnSuccess | Keep::Always) {
            return Err(
                "--commit merges the changes of a success into the image, so that nothing is left to keep: leave --commit \
                 out, or take --keep on-failure"
                    .to_owned(),
            );
        }
        let persistent = self.commit || self.keep != Keep::Never;
        let numbered = self.images.iter().enumerate();
        Ok(numbered
            .map(|(index, path)| {
                let beside = || format!("{path}.run-{}-{}.cow", std::process::id(), index + 1);
                let given = self.cows.get(index).cloned();
                Image {
                    path: path.clone(),
                    cow: given.or_else(|| self.commit.then(beside)),
                    persistent,
                    exclusive: self.commit,
                    size: self.size,
                    chunk_size: self.chunk_size,
                }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        run: Run,
    }

    fn images(arguments: &[&str]) -> Result<Vec<Image>, String> {
        let all = ["run"].iter().chain(arguments).chain(&["--", "true"]);
        let parsed = Only::try_parse_from(all).map_err(|e| e.to_string())?;
        parsed.run.images()
    }

    #[test]
    fn a_cow_is_nameless_unless_it_may_be_needed() {
        let plain = images(&["--image", "/a"]).unwrap();
        assert_eq!((&plain[0].cow, plain[0].persistent), (&None, false));
        let kept = images(&["--image", "/a", "--keep", "on-failure", "--cow", "/c"]).unwrap();
        assert_eq!(kept[0].cow.as_deref(), Some("/c"));
        assert!(kept[0].persistent && !kept[0].exclusive);
        let committed = images(&["--image", "/a", "--image", "/b", "--commit"]).unwrap();
        let cow = committed[1].cow.as_deref().unwrap();
        assert!(
            cow.starts_with("/b.run-") && cow.ends_with("-2.cow"),
            "{cow}"
        );
        assert!(committed[1].persistent && committed[1].exclusive);
    }

    #[test]
    fn options_that_contradict_one_another_are_refused() {
        for (arguments, word) in [
            (&["--image", "/a", "--keep", "always"][..], "--cow"),
            (
                &["--image", "/a", "--cow", "/b", "--cow", "/c"],
                "once for each",
            ),
            (
                &[
                    "--image", "/a", "--cow", "/c", "--commit", "--keep", "always",
                ],
                "on-failure",
            ),
            (&["--image", "/a", "--timeout", "5x"], "5x"),
            (&["--image", "/a", "--success", "256"], "256"),
            (&["--image", "/a", "--size", "1"], "--size"),
            (&[], "--image"),
        ] {
            let error = images(arguments).unwrap_err();
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }
}
