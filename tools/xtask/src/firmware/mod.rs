//! `cargo xtask firmware`: BIOS and UEFI boot from our drives.
//!
//! ```text
//!   virtual board                                       this machine
//!   ringdrived ─► dummy_hcd ─► usbredirect ─► a port ─► QEMU: usb-redir behind EHCI or xHCI ─► SeaBIOS or OVMF
//! ```
//! The board serves one set of drives after the other, each through a port of its own, and says when one is there. The
//! second machine runs here, because an emulated machine inside an emulated one would take minutes to boot. It is reset when the
//! drives are plugged in; from there on time is taken, until the program that was booted shows itself.

mod board;
mod image;
mod machine;
mod plan;
mod qmp;
mod screen;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::vm::{self, Link, Speed};
use crate::{project, setup};
use image::Images;
use machine::Machine;
use plan::Combination;

/// The name of the hidden command that serves.
pub(crate) const ON_BOARD: &str = "firmware-on-board";

/// The name of a port, which a number follows.
const PORT: &str = "ringdrive.usb.";

/// What the board prints before the number of drives that are there.
const READY: &str = "ready ";

/// Much longer than a start of the daemon and an enumeration.
const SERVED: Duration = Duration::from_secs(60);

/// One board serves that long at most; all combinations together take about ten minutes.
const LIMIT_SECONDS: u64 = 3600;

/// The flags of `cargo xtask firmware`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
}

/// Which combinations.
#[derive(Clone, Debug, Default, clap::Args)]
struct Choice {
    /// All combinations, at both speeds of the board, instead of a few
    #[arg(long)]
    full: bool,
    /// Only those in whose line of the table this stands, as `OVMF, xHCI`; of all
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

impl Choice {
    fn combinations(&self, speed: Speed) -> Vec<Combination> {
        let mut plan = plan::combinations(speed, self.full || self.only.is_some());
        plan.retain(|boot| self.only.as_ref().is_none_or(|only| boot.to_string().contains(only)));
        plan
    }

    /// As on the command line.
    fn flags(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = self.full.then(|| "--full".into()).into_iter().collect();
        flags.extend(self.only.as_ref().into_iter().flat_map(|only| ["--only".into(), only.into()]));
        flags
    }
}

impl Args {
    /// The short form, as CI does it.
    pub(crate) fn short() -> Self {
        Self { choice: Choice::default() }
    }
}

/// What the board needs to know.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OnBoardArgs {
    #[arg(long, value_enum)]
    speed: Speed,
    #[command(flatten)]
    choice: Choice,
    /// Where the images are
    #[arg(long)]
    images: PathBuf,
}

/// A combination, and how long it took or why it did not boot.
type Row = (Speed, Combination, Result<Duration>);

/// `cargo xtask firmware`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let started = Instant::now();
    setup::board(Link::Stock)?;
    let iso = setup::memtest_iso()?;
    let shell = Shell::new()?;
    eprintln!("building the release binaries");
    project::build_release(&shell)?;
    let dir = tempfile::Builder::new().prefix("firmware-").tempdir_in(project::target_dir()?)?;
    let images = Images::make(&shell, dir.path(), &iso)?;
    let mut rows: Vec<Row> = Vec::new();
    for speed in [Speed::High, Speed::Super] {
        let plan = args.choice.combinations(speed);
        if !plan.is_empty() {
            rows.extend(on_board(args, speed, &plan, &images, dir.path())?);
        }
    }
    println!("{}", plan::markdown(&rows));
    println!("{}.", versions(&shell)?);
    let failed = rows.iter().filter(|(.., outcome)| outcome.is_err()).count();
    eprintln!("{:.0} s in all", started.elapsed().as_secs_f64());
    ensure!(failed == 0, "{failed} of {} did not boot; their screens are above", rows.len());
    Ok(ExitCode::SUCCESS)
}

/// The serving part, on the board.
pub(crate) fn on_this_board(args: &OnBoardArgs) -> Result<ExitCode> {
    board::run(args)
}

/// Boots a board and, one after the other, a machine for each combination.
fn on_board(
    args: &Args,
    speed: Speed,
    plan: &[Combination],
    images: &Images,
    dir: &Path,
) -> Result<Vec<Row>> {
    eprintln!("booting the virtual board, {} speed", speed.name());
    let itself = env::current_exe().context("cannot tell where this program is")?;
    let mut command: Vec<OsString> =
        vec![itself.into(), ON_BOARD.into(), "--speed".into(), speed.name().into()];
    command.extend(["--images".into(), dir.into()]);
    command.extend(args.choice.flags());
    let sockets: Vec<PathBuf> =
        (0..plan.len()).map(|number| dir.join(format!("{}-{number}", speed.name()))).collect();
    let ports = sockets.iter().enumerate().map(|(number, path)| (format!("{PORT}{number}"), path.clone()));
    let board = vm::Args { ports: ports.collect(), timeout: LIMIT_SECONDS, ..vm::Args::new(speed, command) };
    let (said, told) = mpsc::channel::<Vec<u8>>();
    thread::scope(|scope| {
        let board = scope.spawn(move || {
            vm::run_with(&board, |piece| {
                // Nobody listens any more when a combination has failed for good.
                let _ = said.send(piece.to_vec());
                Ok(())
            })
        });
        let mut lines = Lines { told, begun: String::new() };
        let mut rows = Vec::new();
        for (number, (combination, socket)) in plan.iter().zip(&sockets).enumerate() {
            if !lines.await_line(&format!("{READY}{number}"), number == 0) {
                break;
            }
            let work = dir.join(format!("machine-{}-{number}", speed.name()));
            let outcome = Machine::boot(combination, socket, images, &work);
            tell(speed, combination, &outcome);
            rows.push((speed, *combination, outcome));
        }
        let status = board.join().map_err(|_| anyhow::anyhow!("the board's thread panicked"))??;
        ensure!(status == 0, "serving failed with status {status} on the board");
        ensure!(rows.len() == plan.len(), "the board served {} of {} sets of drives", rows.len(), plan.len());
        Ok(rows)
    })
}

fn tell(speed: Speed, combination: &Combination, outcome: &Result<Duration>) {
    match outcome {
        Ok(took) => eprintln!("✓ {:.1} s: {combination}, {} speed", took.as_secs_f64(), speed.name()),
        Err(error) => eprintln!("✗ {combination}, {} speed: {error:#}", speed.name()),
    }
}

/// What the board prints, line by line.
struct Lines {
    told: Receiver<Vec<u8>>,
    begun: String,
}

impl Lines {
    /// Waits for a line; false if it does not come. The first comes when the board has booted, for which `vm` has a limit.
    fn await_line(&mut self, wanted: &str, first: bool) -> bool {
        loop {
            while let Some((line, rest)) = self.begun.split_once('\n') {
                let found = line.trim() == wanted;
                self.begun = rest.to_owned();
                if found {
                    return true;
                }
            }
            let piece = if first { self.told.recv().ok() } else { self.told.recv_timeout(SERVED).ok() };
            let Some(piece) = piece else { return false };
            self.begun.push_str(&String::from_utf8_lossy(&piece));
        }
    }
}

/// Of all that takes part.
fn versions(shell: &Shell) -> Result<String> {
    let packages = ["qemu-system-x86", "seabios", "ovmf", "usbredirect"];
    let format = "${Package} ${Version}\n";
    let installed = cmd!(shell, "dpkg-query --show --showformat={format} {packages...}").quiet().read()?;
    Ok(installed.lines().collect::<Vec<_>>().join(", "))
}
