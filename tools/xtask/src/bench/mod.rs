//! `cargo xtask bench`: our data path against the kernel's f_mass_storage, on the virtual board, repeatable to the digit.
//!
//! ```text
//!   bench ─► vm (instructions as time, one CPU, a cable's bandwidth), once a link
//!              └─► bench-on-board: a source ─► f_mass_storage, then ringdrived ─► fio on the host's side
//!   table, JSON ◄── a JSON object for each test
//! ```
//! Both are measured in one boot, one after the other, on the same image file.

mod board;
mod fio;
mod image;
mod meter;
mod plan;
mod served;
mod table;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::vm::{self, Link, Speed};
use crate::{project, setup};
use plan::Source;

/// The name of the hidden command that measures.
pub(crate) const ON_BOARD: &str = "bench-on-board";

/// Real seconds for one board; all tests take about five minutes on an idle machine.
const LIMIT_SECONDS: u64 = 3600;

/// The flags of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Also write the rows to this file, as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure with this machine's clock instead of counting instructions; repeats only roughly
    #[arg(long)]
    real_time: bool,
    /// Move a quarter of the bytes
    #[arg(long)]
    quick: bool,
    /// Which link
    #[arg(long, value_enum, default_value_t = Links::Both)]
    speed: Links,
    /// Where the image is
    #[arg(long = "source", value_enum, value_delimiter = ',', default_values_t = [Source::Tmpfs, Source::Ext4, Source::Nfs])]
    sources: Vec<Source>,
    /// How our endpoints are driven
    #[arg(long, value_enum, default_value_t = Engines::Aio)]
    engine: Engines,
}

/// What the board needs to know.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OnBoardArgs {
    #[arg(long, value_enum)]
    speed: Speed,
    #[arg(long = "source", value_enum, value_delimiter = ',')]
    sources: Vec<Source>,
    #[arg(long, value_enum)]
    engine: Engines,
    #[arg(long)]
    quick: bool,
    /// Where the NFS server's programs are
    #[arg(long)]
    nfs: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Links {
    High,
    Super,
    Both,
}

impl Links {
    fn all(self) -> Vec<Speed> {
        match self {
            Self::High => vec![Speed::High],
            Self::Super => vec![Speed::Super],
            Self::Both => vec![Speed::High, Speed::Super],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engines {
    Aio,
    Sync,
    Both,
}

impl Engines {
    fn all(self) -> Vec<Engine> {
        match self {
            Self::Aio => vec![Engine::Aio],
            Self::Sync => vec![Engine::Sync],
            Self::Both => vec![Engine::Aio, Engine::Sync],
        }
    }
}

/// An engine of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Aio,
    Sync,
}

impl Engine {
    /// As in the daemon's configuration and in the JSON rows.
    fn name(self) -> &'static str {
        match self {
            Self::Aio => "aio",
            Self::Sync => "sync",
        }
    }
}

/// As in the JSON rows.
fn link_name(speed: Speed) -> &'static str {
    match speed {
        Speed::High => "hs",
        Speed::Super => "ss",
    }
}

/// `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let started = Instant::now();
    let kernel = setup::board(Link::Real)?.kernel.release;
    let nfs = setup::nfs_server()?;
    eprintln!("building the release binaries");
    let shell = Shell::new()?;
    shell.change_dir(project::root());
    cmd!(shell, "cargo build --quiet --release --package ringdrive --bins").quiet().run()?;
    let commit = cmd!(shell, "git describe --always --dirty --abbrev=12").quiet().ignore_stderr().read();
    let mut rows = Vec::new();
    let mut peak = 0;
    for speed in args.speed.all() {
        let printed = on_board(args, speed, &nfs)?;
        let (more, memory) = table::rows(&printed, speed, &args.sources, &args.engine.all())?;
        rows.extend(more);
        peak = peak.max(memory);
    }
    println!("{}", table::markdown(&rows));
    let clock = if args.real_time { "this machine's clock" } else { "instructions as time" };
    println!("Peak memory of ringdrived: {:.1} MiB.", plan::float(peak) / 1024.0);
    println!("Kernel {kernel}, commit {}, {clock}.", commit.unwrap_or_else(|_| "unknown".to_owned()));
    if let Some(path) = &args.json {
        let array: Vec<Value> = rows.iter().map(table::Row::json).collect();
        let mut text = serde_json::to_string_pretty(&array)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!("{:.0} s in all", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// The measuring part, on the board.
pub(crate) fn on_this_board(args: &OnBoardArgs) -> Result<ExitCode> {
    board::run(args)
}

/// Boots a board for one link; gives what it printed.
fn on_board(args: &Args, speed: Speed, nfs: &std::path::Path) -> Result<String> {
    eprintln!("booting the virtual board, {} speed", speed.name());
    let itself = env::current_exe().context("cannot tell where this program is")?;
    let sources: Vec<&str> = args.sources.iter().map(|source| source.name()).collect();
    let value = args.engine.to_possible_value().context("an engine without a name")?;
    let mut command: Vec<OsString> = vec![itself.into(), ON_BOARD.into()];
    for (flag, value) in
        [("--speed", speed.name()), ("--source", &sources.join(",")), ("--engine", value.get_name())]
    {
        command.extend([flag.into(), value.into()]);
    }
    command.extend(["--nfs".into(), nfs.into()]);
    if args.quick {
        command.push("--quick".into());
    }
    let board = vm::Args {
        icount: !args.real_time,
        link: Link::Real,
        timeout: LIMIT_SECONDS,
        // As on boards' kernels; Debian's default would zero every buffer of either side first.
        append: vec!["init_on_alloc=0".to_owned()],
        ..vm::Args::new(speed, command)
    };
    let mut printed = Vec::new();
    let status = vm::run_with(&board, |piece| {
        printed.extend_from_slice(piece);
        Ok(())
    })?;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    ensure!(status == 0, "the measurement failed; it had printed:\n{printed}");
    Ok(printed)
}
