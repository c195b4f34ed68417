//! `cargo xtask …`: everything a person or a CI does to ringdrive, as one program.
//!
//! Each command is a module; `setup` is what the others call first, `vm` is the virtual board on which `test` and `demo` run.

mod console;
mod demo;
mod lint;
mod project;
mod quote;
mod report;
mod setup;
mod source;
mod test;
mod tidy;
mod vm;

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
    Setup,
    /// Run a command as root on the virtual board and end with its exit status
    Vm(vm::Args),
    /// Formatting, clippy, rustdoc and the house rules; reports all failures
    Lint,
    /// Show a real USB host using our drives: a CD read whole, a flash disk written and checked
    Demo(demo::Args),
    #[command(name = demo::ON_BOARD, hide = true)]
    DemoOnBoard(demo::OnBoardArgs),
    /// Every test, on this machine and on the virtual board; ends with a table
    Test(test::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Command::Vm(args) => vm::run(&args),
        Command::Lint => lint::run(),
        Command::Demo(args) => demo::run(args),
        Command::DemoOnBoard(args) => demo::on_board(&args),
        Command::Test(args) => test::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
