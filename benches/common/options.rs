//! The options of a benchmark.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

#[derive(Clone, Debug, Parser)]
#[command(
    after_help = "Each case runs all programs in turn, forwards and backwards (A B B A), on one \
                  disk. The daemon runs on processor 0 and the load on processor 1. Nothing else \
                  should run meanwhile."
)]
pub struct Options {
    /// A few minutes: fewer cases, shorter rounds, a smaller disk.
    #[arg(long)]
    pub short: bool,

    /// Run only the cases whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,

    /// Folder for the disks; repeat it for several file systems [default: target/tmp and
    /// /dev/shm].
    #[arg(long, value_name = "DIR")]
    pub folder: Vec<PathBuf>,

    /// How often each program is measured; twice in every A B B A [default: 10, short: 4].
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,

    /// Seconds of each measurement of random requests [default: 2, short: 1].
    #[arg(long, value_name = "N")]
    pub seconds: Option<f64>,

    /// Write a plot (SVG) for each group of cases into this folder.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,

    /// Ignored; `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    pub fn rounds(&self) -> usize {
        let rounds = self.rounds.unwrap_or(if self.short { 4 } else { 10 });
        rounds.next_multiple_of(2)
    }

    pub fn time(&self) -> Duration {
        let seconds = self.seconds.unwrap_or(if self.short { 1.0 } else { 2.0 });
        Duration::from_secs_f64(seconds)
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        if self.short { 128 << 20 } else { 1 << 30 }
    }

    pub fn folders(&self) -> Vec<PathBuf> {
        if !self.folder.is_empty() {
            return self.folder.clone();
        }
        vec![
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            PathBuf::from("/dev/shm"),
        ]
    }

    pub fn wants(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|only| case.contains(only))
    }
}
