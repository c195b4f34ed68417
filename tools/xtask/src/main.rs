//! `cargo xtask …`: everything a person or a CI does to ringdrive, as one program.
//!
//! Each command is a module; `setup` is what the others call first, `vm` is the virtual board on which `test` and `demo` run.

mod bench;
mod beside;
mod console;
mod daemon;
mod demo;
mod firmware;
mod fuzz;
mod instructions;
mod lint;
mod project;
mod quote;
mod report;
mod setup;
mod source;
mod sysfs;
mod test;
mod tidy;
mod vm;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, test and show ringdrive.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need; says what before it does
    ///
    /// Debian packages need root; the rest goes below cargo's target directory. Quick when all is there.
    Setup,
    /// Run a command as root on the virtual board and end with its exit status
    ///
    /// The command sees this machine's own files: read-only below the root, with changes that are lost under /etc, /usr,
    /// /var, /home, /opt, /srv and /tmp, and read-write in cargo's target directory. It finds the release binaries first
    /// on PATH, /sys/kernel/config mounted, the USB modules loaded, and RINGDRIVE_BOARD and RINGDRIVE_SPEED set.
    /// docs/virtual-board.md tells the rest.
    Vm(vm::Args),
    /// Formatting, clippy, rustdoc and the house rules; reports all failures
    Lint,
    /// Show a real USB host using our drives: a CD read whole, a flash disk written and checked
    ///
    /// The host is this machine's own if it has a dummy_hcd, else the virtual board's. Takes about a minute.
    Demo(demo::Args),
    #[command(name = demo::ON_BOARD, hide = true)]
    DemoOnBoard(demo::OnBoardArgs),
    /// Our speed and CPU time against the kernel's f_mass_storage, repeatable to the digit
    ///
    /// On the virtual board with a cable's bandwidth, at high speed and SuperSpeed. docs/performance.md tells how to read it.
    Bench(bench::Args),
    /// Whether two runs of `bench` agree, figure by figure
    ///
    /// Compares all figures of the rows that both files have, and fails if one differs by more than --within.
    BenchCompare(bench::CompareArgs),
    #[command(name = bench::ON_BOARD, hide = true)]
    BenchOnBoard(bench::OnBoardArgs),
    /// BIOS and UEFI boot from our drives, behind EHCI and xHCI; how long it takes from reset
    ///
    /// The virtual board serves the drives, a second machine boots from them. docs/firmware.md has the table.
    Firmware(firmware::Args),
    #[command(name = firmware::ON_BOARD, hide = true)]
    FirmwareOnBoard(firmware::OnBoardArgs),
    /// Instructions that the pure rooms take for one command, under Valgrind, against those kept in benches/instructions.json
    Instructions(instructions::Args),
    /// Looks for what a host could say to break us, by coverage-guided fuzzing
    ///
    /// `cargo test` replays the scripts that were kept. docs/fuzzing.md tells how to read what it prints.
    Fuzz(fuzz::Args),
    /// Every test, on this machine and on the virtual board; ends with a table
    ///
    /// Set-up, lint, unit, integration and doc tests, the virtual board's at high speed and SuperSpeed, and the short
    /// forms of `firmware`, and of `bench` against the kept table. A test that is skipped on the board counts as failed.
    Test(test::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Command::Vm(args) => vm::run(&args),
        Command::Lint => lint::run(),
        Command::Demo(args) => demo::run(args),
        Command::DemoOnBoard(args) => demo::on_board(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchCompare(args) => bench::compare(&args),
        Command::BenchOnBoard(args) => bench::on_this_board(&args),
        Command::Firmware(args) => firmware::run(&args),
        Command::FirmwareOnBoard(args) => firmware::on_this_board(&args),
        Command::Instructions(args) => instructions::run(args).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(args) => fuzz::run(args).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
