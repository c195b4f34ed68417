//! `cargo xtask lint`: what a machine can say about the source before a person reads it.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::report::Report;
use crate::{project, tidy};

/// Runs all checks and reports all failures.
pub(crate) fn run() -> Result<ExitCode> {
    let mut report = Report::default();
    steps(&mut report)?;
    Ok(report.finish())
}

/// The checks as steps of a longer run.
pub(crate) fn steps(report: &mut Report) -> Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(project::root());
    report.step("format", || {
        cmd!(shell, "cargo fmt --all --check").quiet().run().context("not formatted; run `cargo fmt`")
    });
    report.step("clippy", || {
        let command = cmd!(shell, "cargo clippy --quiet --workspace --all-targets -- -D warnings");
        command.quiet().run().context("clippy found something")
    });
    report.step("rustdoc", || {
        let command = cmd!(shell, "cargo doc --quiet --workspace --no-deps --document-private-items");
        command.env("RUSTDOCFLAGS", "-D warnings").quiet().run().context("rustdoc found something")
    });
    report.step("house rules", || {
        let faults = tidy::check(&project::root())?;
        for fault in &faults {
            eprintln!("{fault}");
        }
        if !faults.is_empty() {
            bail!("{} broken; see above", faults.len());
        }
        Ok(())
    });
    Ok(())
}
