//! `cargo xtask bench`: our data path against the kernel's f_mass_storage, on the virtual board, repeatable to the digit.
//!
//! ```text
//!   bench ─► vm (instructions as time, one CPU, a cable's bandwidth), once a link
//!              └─► bench-on-board: a source ─► f_mass_storage, then ringdrived ─► fio on the host's side
//!   table, JSON ◄── a JSON object for each test
//!       └─► compare, with a table that was kept
//! ```
//! Both are measured in one boot, one after the other, on the same image file.

mod board;
mod compare;
mod enumeration;
mod fetching;
mod fio;
mod image;
mod layers;
mod memory;
mod meter;
mod outage;
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
use plan::{Scale, Source};

/// The name of the hidden command that measures.
pub(crate) const ON_BOARD: &str = "bench-on-board";

/// The kept table, below the source tree's root.
pub(crate) const KEPT: &str = "docs/performance.json";

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
    #[arg(long, conflicts_with = "short")]
    quick: bool,
    /// Do only the tests that tell most, with all their bytes, in a third of the time
    #[arg(long)]
    short: bool,
    /// Fail if a figure of ours is worse than in this table by more than 3 %; FILE is what --json wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "real_time"])]
    compare: Option<PathBuf>,
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

impl Args {
    fn scale(&self) -> Scale {
        match (self.quick, self.short) {
            (true, _) => Scale::Quick,
            (_, true) => Scale::Short,
            _ => Scale::Full,
        }
    }
}

/// The flags of `cargo xtask bench-compare`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// What `bench --json` wrote
    before: PathBuf,
    /// The same of another run
    after: PathBuf,
    /// How many percent a figure may differ
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    within: f64,
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
    #[arg(long, value_enum)]
    scale: Scale,
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
    let kept = args.compare.as_deref().map(compare::read).transpose()?;
    let kernel = setup::board(Link::Real)?.kernel.release;
    let nfs = setup::nfs_server()?;
    eprintln!("building the release binaries");
    let shell = Shell::new()?;
    shell.change_dir(project::root());
    project::build_release(&shell)?;
    let commit = cmd!(shell, "git describe --always --dirty --abbrev=12").quiet().ignore_stderr().read();
    let (mut rows, mut lines, mut enumerations) = (Vec::new(), Vec::new(), Vec::new());
    let mut elsewhere = Vec::new();
    for speed in args.speed.all() {
        let printed = table::parse(&on_board(args, speed, &nfs)?);
        rows.extend(table::rows(&printed, speed, args.scale(), &args.sources, &args.engine.all())?);
        enumerations.push(enumeration::sentences(&printed, link_name(speed), &args.engine.all()));
        elsewhere.extend(fetching::sentences(&printed, link_name(speed)));
        elsewhere.extend(layers::sentences(&printed, link_name(speed)));
        elsewhere.extend(outage::sentences(&printed, link_name(speed)));
        lines.extend(printed);
    }
    println!("{}", table::markdown(&rows));
    for sentence in table::peaks(&lines).into_iter().chain(elsewhere) {
        println!("{sentence}");
    }
    let clock = if args.real_time { "this machine's clock" } else { "instructions as time" };
    println!("Kernel {kernel}, commit {}, {clock}.", commit.unwrap_or_else(|_| "unknown".to_owned()));
    let rows: Vec<Value> = rows.iter().map(table::Row::json).collect();
    if let Some(path) = &args.json {
        let mut text = serde_json::to_string_pretty(&rows)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for sentences in enumerations {
        for sentence in sentences? {
            println!("{sentence}");
        }
    }
    eprintln!("{:.0} s in all", started.elapsed().as_secs_f64());
    if let Some(kept) = kept {
        compare::against_kept(&kept, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask bench-compare`.
pub(crate) fn compare(args: &CompareArgs) -> Result<ExitCode> {
    compare::two_runs(&compare::read(&args.before)?, &compare::read(&args.after)?, args.within)?;
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
    let name = |value: Option<clap::builder::PossibleValue>| value.context("a value without a name");
    let engine = name(args.engine.to_possible_value())?;
    let scale = name(args.scale().to_possible_value())?;
    let mut command: Vec<OsString> = vec![itself.into(), ON_BOARD.into()];
    for (flag, value) in [
        ("--speed", speed.name()),
        ("--source", &sources.join(",")),
        ("--engine", engine.get_name()),
        ("--scale", scale.get_name()),
    ] {
        command.extend([flag.into(), value.into()]);
    }
    command.extend(["--nfs".into(), nfs.into()]);
    let board = vm::Args {
        icount: !args.real_time,
        link: Link::Real,
        timeout: LIMIT_SECONDS,
        // As on boards' kernels: Debian's default would zero every buffer of either side first. And the same addresses each time.
        append: ["init_on_alloc=0", "norandmaps"].map(str::to_owned).to_vec(),
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
