//! `cargo xtask demo`: a real USB host uses drives that our daemon serves, from nothing to a checked result.
//!
//! The host is this machine's own, where it has a device port wired to it (dummy_hcd) and we are root; else the virtual
//! board's. The story itself is [`story`], which this program runs by executing itself there.

mod device;
mod files;
mod host;
mod story;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xshell::Shell;

use crate::vm::{self, Speed};
use crate::{project, setup};

/// The name of the hidden command that tells the story.
pub(crate) const ON_BOARD: &str = "demo-on-board";

/// Far more than the story takes on a busy machine.
const LIMIT_SECONDS: u64 = 600;

/// The flags of `cargo xtask demo`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Speed of the USB link
    #[arg(long, value_enum, default_value_t = Speed::High)]
    speed: Speed,
}

/// What the story needs to know.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OnBoardArgs {
    /// The image to serve as a CD
    iso: PathBuf,
    /// Speed of the USB link
    #[arg(long, value_enum, default_value_t = Speed::High)]
    speed: Speed,
}

/// `cargo xtask demo`.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let started = Instant::now();
    setup::run()?;
    let iso = setup::memtest_iso()?;
    eprintln!("building the release binaries");
    project::build_release(&Shell::new()?)?;
    let built = Instant::now();
    let itself = env::current_exe().context("cannot tell where this program is")?;
    let speed = OsString::from(args.speed.name());
    let command = vec![itself.into(), ON_BOARD.into(), "--speed".into(), speed, iso.into()];
    let status = if own_port_and_host() {
        println!("on this machine's own device port");
        on_this_machine(&command)?
    } else {
        println!(
            "on the virtual board, {} speed; it takes a quarter of a minute to start",
            args.speed.name()
        );
        let args = vm::Args { timeout: LIMIT_SECONDS, ..vm::Args::new(args.speed, command) };
        vm::run_with(&args, vm::to_stdout)?
    };
    println!(
        "{:.0} s after the build, {:.0} s in all",
        built.elapsed().as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    if status != 0 {
        bail!("the demo did not hold; the step above without ✓ tells where");
    }
    Ok(ExitCode::SUCCESS)
}

/// The story, where the device port is.
pub(crate) fn on_board(args: &OnBoardArgs) -> Result<ExitCode> {
    story::tell(&args.iso, args.speed)?;
    Ok(ExitCode::SUCCESS)
}

/// Only dummy_hcd's port leads back to this machine; any other needs a cable and a second computer.
fn own_port_and_host() -> bool {
    let ports = fs::read_dir("/sys/class/udc").into_iter().flatten().flatten();
    let mut names = ports.map(|port| port.file_name());
    nix::unistd::geteuid().is_root() && names.any(|name| name.as_encoded_bytes().starts_with(b"dummy_udc"))
}

fn on_this_machine(command: &[OsString]) -> Result<u8> {
    let Some((program, arguments)) = command.split_first() else { bail!("nothing to run") };
    let path = project::path_with(&project::release_dir()?)?;
    let status = Command::new(program).args(arguments).env("PATH", path).status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
