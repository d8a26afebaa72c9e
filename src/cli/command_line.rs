//! What the command line accepts: the options of all verbs, and the verbs.

use clap::{Parser, Subcommand, ValueEnum};

use super::{
    check, detach, diff, dump, events, export, generate, grow, list, logging, merge, release,
    resize, rollback, run, serve, snapshot, status, store, top,
};

/// Snapshots, merges and live rollback for the raw disks of running virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "snapback",
    version = env!("SNAPBACK_VERSION"),
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_help = "\
EXAMPLE
  snapback serve --origin disk.img --socket-path disk.sock &
  snapback snapshot before --cow before.cow --size 2G
  snapback rollback before

EXIT STATUS
  0  done
  1  the store or snapshot in question is damaged or invalid
  2  wrong usage, or an error
  130  a wait was interrupted (Ctrl-C); what the daemon does goes on
  snapback run exits as its command does, and with 125 for wrong usage or an error")]
pub struct Cli {
    /// What to log: error, warn, info, debug, trace, or filter directives [default: info
    /// for serve, warn for all other verbs; env: SNAPBACK_LOG].
    // As --control: not read by the parser.
    #[arg(long, global = true, value_name = "LEVEL", display_order = 900)]
    log_level: Option<String>,

    /// Where to log to.
    #[arg(
        long,
        global = true,
        value_name = "TARGET",
        value_enum,
        default_value_t,
        display_order = 901
    )]
    pub log_target: logging::Target,

    /// Print the capabilities of this vhost-user back end as JSON; all other arguments are ignored.
    #[arg(long)]
    pub print_capabilities: bool,

    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Serve(Box<serve::Serve>),
    #[command(visible_alias = "ls")]
    List(list::List),
    Status(status::Status),
    Table(status::Table),
    Events(events::Events),
    Top(top::Top),
    Snapshot(snapshot::Snapshot),
    Grow(grow::Grow),
    #[command(visible_aliases = ["delete", "rm"])]
    Remove(snapshot::Remove),
    Detach(detach::Detach),
    Resize(resize::Resize),
    Release(release::Release),
    #[command(visible_alias = "revert")]
    Rollback(rollback::Rollback),
    Merge(merge::Merge),
    Create(store::Create),
    Info(store::Info),
    Check(check::Check),
    Dump(dump::Dump),
    Export(export::Export),
    Diff(diff::Diff),
    #[command(hide = true)]
    Generate(generate::Generate),
    Run(run::Run),
    #[command(hide = true)]
    RunDisk(run::RunDisk),
    #[command(hide = true)]
    RunCommand(run::RunCommand),
}

impl Cli {
    /// What to log, if that is said: the option goes before the variable.
    pub fn log_level(&self) -> Option<String> {
        let variable = || {
            let level = std::env::var_os("SNAPBACK_LOG")?;
            Some(level.to_string_lossy().into_owned())
        };
        self.log_level.clone().or_else(variable)
    }

    /// The options for another process of this program whose log is that of this one.
    pub fn log_options(&self) -> Vec<String> {
        let level = self.log_level().map(|level| format!("--log-level={level}"));
        let target = self.log_target.to_possible_value();
        let target = target.map(|target| format!("--log-target={}", target.get_name()));
        level.into_iter().chain(target).collect()
    }
}
