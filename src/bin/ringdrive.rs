//! The command line; all of it is in [`ringdrive::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ringdrive::cli::run()
}
